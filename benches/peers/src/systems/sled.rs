//! Bare sled with group commit: one batch per group, a flush, and a data sync of its file, which
//! sled's own flush leaves out on Linux. Each commit writes the keys that such work cannot do without.

use std::fs::File;
use std::path::Path;

use super::{LIFECYCLE_COMMITS, Store};
use crate::group::Group;

const RECORD_BYTES: usize = 300;
const EVENT_BYTES: usize = 256;

type Key = Vec<u8>;

pub struct Sled {
    group: Group<Vec<(Key, usize)>>,
}

impl Sled {
    pub fn open(dir: &Path) -> Self {
        let place = dir.join("sled");
        let db = sled::open(&place).expect("a sled store");
        db.flush().expect("a flush");
        // A descriptor of our own: sled gives none.
        let file = File::options().write(true).open(place.join("db"));
        let file = file.expect("sled's file");
        let group = Group::new(move |group: Vec<Vec<(Key, usize)>>| {
            let mut batch = sled::Batch::default();
            for (key, bytes) in group.into_iter().flatten() {
                batch.insert(key, vec![7; bytes]);
            }
            db.apply_batch(batch).expect("a batch");
            db.flush().expect("a flush");
            file.sync_data().expect("a data sync");
        });
        Self { group }
    }

    /// The record of a process, an event of it, and an entry of an index.
    async fn commit(&self, process: &str, sequence: u64) {
        let event = [b"e", process.as_bytes(), &[0], &sequence.to_be_bytes()].concat();
        let index = [b"i", process.as_bytes()].concat();
        let keys = vec![
            (record(process), RECORD_BYTES),
            (event, EVENT_BYTES),
            (index, 8),
        ];
        self.group.commit(keys).await;
    }
}

fn record(process: &str) -> Key {
    [b"r", process.as_bytes()].concat()
}

fn named(caller: usize, number: u64) -> String {
    format!("p-{caller}-{number}")
}

#[async_trait::async_trait]
impl Store for Sled {
    async fn append(&self, caller: usize, number: u64) {
        self.commit(&format!("p-{caller}"), number).await;
    }

    /// The record, the grant both ways, and an entry of an index.
    async fn start(&self, caller: usize, number: u64) {
        let process = named(caller, number);
        let edge = |kind: &[u8]| [kind, b"session-1\0", process.as_bytes()].concat();
        let index = [b"i", process.as_bytes()].concat();
        let keys = vec![
            (record(&process), RECORD_BYTES),
            (edge(b"g"), 16),
            (edge(b"h"), 16),
            (index, 8),
        ];
        self.group.commit(keys).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        self.start(caller, number).await;
        for sequence in 1..LIFECYCLE_COMMITS {
            self.commit(&named(caller, number), sequence).await;
        }
    }
}
