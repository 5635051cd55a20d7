//! The floor: an append-only file with one data sync per group, and nothing else. What a durable log
//! that grows can at best approach; one that overwrites what it has need not sync the file's length, and
//! can be faster.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

type Entry = (Vec<u8>, oneshot::Sender<()>);

/// An append-only file and the thread that writes it.
#[derive(Debug)]
pub(crate) struct Floor {
    queue: mpsc::Sender<Entry>,
    syncs: Arc<AtomicU64>,
}

impl Floor {
    pub(crate) fn open(path: &Path) -> Self {
        let mut file = File::create(path).expect("a file to append to");
        let (queue, entries) = mpsc::channel::<Entry>();
        let syncs = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&syncs);
        std::thread::spawn(move || {
            while let Ok(first) = entries.recv() {
                let mut group = vec![first];
                group.extend(entries.try_iter());
                let bytes: Vec<u8> = group.iter().flat_map(|(bytes, _)| bytes.clone()).collect();
                file.write_all(&bytes).expect("room on the disk");
                file.sync_data().expect("a data sync");
                counted.fetch_add(1, Ordering::Relaxed);
                for (_, done) in group {
                    // A caller that is gone needs no answer.
                    let _ = done.send(());
                }
            }
        });
        Self { queue, syncs }
    }

    /// Appends some bytes; they are durable when it returns.
    pub(crate) async fn append(&self, bytes: Vec<u8>) {
        let (done, wait) = oneshot::channel();
        self.queue.send((bytes, done)).expect("the writer");
        wait.await.expect("the writer");
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.syncs.load(Ordering::Relaxed)
    }
}

/// The median of some data syncs after a small write to the end of a file, in microseconds.
pub(crate) fn sync_us(path: &Path) -> u64 {
    let mut file = File::create(path).expect("a file to sync");
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            file.write_all(&[7; 256]).expect("room on the disk");
            let start = Instant::now();
            file.sync_data().expect("a data sync");
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    u64::try_from(times[times.len() / 2].as_micros()).unwrap_or(u64::MAX)
}
