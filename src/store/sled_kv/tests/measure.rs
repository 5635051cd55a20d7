//! Figures of the machine by itself. Not tests: run them one at a time, in a release build.
//!
//! `cargo test --release --lib store::sled_kv::tests::measure -- --ignored --nocapture --test-threads=1`

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::super::super::clock::SystemClock;
use super::super::super::error::StoreError;
use super::super::super::kv::{CommitContext, Kv, Outcome, Proposal, Reader, Verdict};
use super::super::super::kv_laws::{append, delete, put, put_once};
use super::super::{Options, SledKv};

/// A submitter that goes on with its next proposal as soon as one is answered, as an actor does.
struct Submitter {
    kv: Arc<SledKv>,
    number: u64,
    sequence: u64,
    position: u64,
    shared: Arc<Shared>,
    asked_at: Instant,
    latencies_us: Vec<u32>,
}

struct Shared {
    until: Instant,
    done: AtomicU64,
    ended: std::sync::mpsc::Sender<Vec<u32>>,
}

impl Proposal for Submitter {
    fn resolve(
        &mut self,
        state: &dyn Reader,
        cx: &mut CommitContext<'_>,
    ) -> Result<Verdict, StoreError> {
        // The condition: this process's revision.
        let record = format!("record/{:06}", self.number);
        state.get(record.as_bytes())?;
        let position = cx.next_position;
        cx.next_position += 1;
        cx.ops.push(put(&record, [7; 150]));
        cx.ops.push(append(self.number, self.sequence, [8; 200]));
        if self.position > 0 {
            cx.ops.push(delete(feed_key(self.position)));
        }
        cx.ops.push(put_once(feed_key(position), [9; 16]));
        self.position = position;
        Ok(Verdict::Accept)
    }

    fn done(mut self: Box<Self>, outcome: Outcome) {
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        let now = Instant::now();
        let took = now.duration_since(self.asked_at).as_micros();
        self.latencies_us.push(u32::try_from(took).unwrap());
        self.shared.done.fetch_add(1, Ordering::Relaxed);
        if now >= self.shared.until {
            let latencies = std::mem::take(&mut self.latencies_us);
            self.shared.ended.send(latencies).unwrap();
            return;
        }
        self.sequence += 1;
        self.asked_at = now;
        let kv = Arc::clone(&self.kv);
        kv.submit(self);
    }
}

fn feed_key(position: u64) -> Vec<u8> {
    [b"feed/", &position.to_be_bytes()[..]].concat()
}

fn fdatasync_median_us(directory: &std::path::Path) -> u128 {
    let mut file = std::fs::File::create(directory.join("probe")).unwrap();
    let mut took: Vec<u128> = (0..500)
        .map(|_| {
            file.write_all(&[1; 500]).unwrap();
            let start = Instant::now();
            file.sync_data().unwrap();
            start.elapsed().as_micros()
        })
        .collect();
    took.sort_unstable();
    took[250]
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .collect();
    let ticks = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    ticks / 100.0
}

fn run(submitters: u64, seconds: u64) {
    let directory =
        tempfile::tempdir_in(std::env::var("MEASURE_DIR").unwrap_or(".".to_owned())).unwrap();
    let fdatasync_us = fdatasync_median_us(directory.path());
    let kv = Arc::new(
        SledKv::open(
            &directory.path().join("store"),
            Options::new(Arc::new(SystemClock::default())),
        )
        .unwrap(),
    );
    let (ended, ends) = std::sync::mpsc::channel();
    let started = Instant::now();
    let cpu = cpu_seconds();
    let shared = Arc::new(Shared {
        until: started + Duration::from_secs(seconds),
        done: AtomicU64::new(0),
        ended,
    });
    for number in 0..submitters {
        kv.submit(Box::new(Submitter {
            kv: Arc::clone(&kv),
            number,
            sequence: 1,
            position: 0,
            shared: Arc::clone(&shared),
            asked_at: Instant::now(),
            latencies_us: Vec::new(),
        }));
    }
    let mut latencies: Vec<u32> = (0..submitters).flat_map(|_| ends.recv().unwrap()).collect();
    kv.drain().unwrap();
    let elapsed = started.elapsed().as_secs_f64();
    let stats = kv.stats();
    latencies.sort_unstable();
    let at = |per_mille: usize| latencies[(latencies.len() - 1) * per_mille / 1000];
    let done = shared.done.load(Ordering::Relaxed) as f64;
    println!(
        "submitters {submitters}: {:.0} proposals/s (drained), median {} us, p99 {} us, p99.9 {} us, \
         max {} us, fdatasync {fdatasync_us} us, group {:.0}, {:.0} groups/s, index keys/proposal {:.3}, \
         journal {:.0} bytes/proposal, cpu {:.2}, file {} MiB",
        done / elapsed,
        at(500),
        at(990),
        at(999),
        at(1000),
        done / stats.groups as f64,
        stats.groups as f64 / elapsed,
        stats.index_keys_written as f64 / done,
        stats.journal_bytes as f64 / done,
        (cpu_seconds() - cpu) / elapsed,
        std::fs::metadata(directory.path().join("store/db"))
            .unwrap()
            .len()
            >> 20,
    );
    kv.close().unwrap();
}

fn seconds() -> u64 {
    std::env::var("MEASURE_SECONDS").map_or(10, |text| text.parse().unwrap())
}

#[test]
#[ignore = "a measurement"]
fn proposals_by_1() {
    run(1, seconds());
}

#[test]
#[ignore = "a measurement"]
fn proposals_by_64() {
    run(64, seconds());
}

#[test]
#[ignore = "a measurement"]
fn proposals_by_256() {
    run(256, seconds());
}
