//! The floor: an append-only file with one data sync per group, and nothing else. What a durable log
//! that grows can at best approach; one that overwrites what it has need not sync the file's length, and
//! can be faster.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::{LIFECYCLE_COMMITS, Store};
use crate::group::Group;

/// An event with its header.
const EVENT_BYTES: usize = 256;
/// A record and a grant with their headers.
const START_BYTES: usize = 512;

pub struct Floor {
    group: Group<Vec<u8>>,
}

impl Floor {
    pub fn open(dir: &Path) -> Self {
        let mut file = File::create(dir.join("floor")).expect("a file to append to");
        let group = Group::new(move |group: Vec<Vec<u8>>| {
            file.write_all(&group.concat()).expect("room on the disk");
            file.sync_data().expect("a data sync");
        });
        Self { group }
    }
}

#[async_trait::async_trait]
impl Store for Floor {
    async fn append(&self, _caller: usize, _number: u64) {
        self.group.commit(vec![7; EVENT_BYTES]).await;
    }

    async fn start(&self, _caller: usize, _number: u64) {
        self.group.commit(vec![7; START_BYTES]).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        self.start(caller, number).await;
        for _ in 1..LIFECYCLE_COMMITS {
            self.append(caller, number).await;
        }
    }
}
