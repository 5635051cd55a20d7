//! A look at the trees of a closed store, past everything that hides what is left behind.

use std::path::Path;

use bytes::Bytes;

use super::super::super::kv_laws::Model;
use super::super::index::{Home, TAG_PARTS, part_key};

/// A closed store's trees.
pub(super) fn raw(store: &Path) -> sled::Db {
    sled::Config::new()
        .path(store)
        .flush_every_ms(None)
        .open()
        .unwrap()
}

/// Lets go of a store that was opened raw, for good.
pub(super) fn shut(db: sled::Db, store: &Path) {
    db.flush().unwrap();
    drop(db);
    super::super::wait_for_release(store).unwrap();
}

/// Everything of a drained, closed store is the model's: no key too many, no stale part, no chunk
/// of an erased log.
pub(super) fn audit(store: &Path, model: &Model) {
    let db = raw(store);
    let index = db.open_tree("index").unwrap();
    let events = db.open_tree("events").unwrap();
    let keys: Vec<Bytes> = index
        .iter()
        .keys()
        .map(|key| Bytes::copy_from_slice(&key.unwrap()))
        .collect();
    let expected: Vec<Bytes> = model.keys.keys().cloned().collect();
    assert_eq!(keys, expected, "keys of the index");
    for chunk in events.iter().keys() {
        let incarnation = u64::from_be_bytes(chunk.unwrap()[..8].try_into().unwrap());
        assert!(incarnation > model.erased, "log {incarnation} was erased");
    }
    let mut parts: Vec<Vec<u8>> = Vec::new();
    for (home, tree) in [(Home::Keys, &index), (Home::Events, &events)] {
        for entry in tree {
            let (key, stored) = entry.unwrap();
            if stored[0] == TAG_PARTS {
                let length = u32::from_be_bytes(stored[1..5].try_into().unwrap());
                parts.extend((0..length.div_ceil(4096)).map(|part| part_key(home, &key, part)));
            }
        }
    }
    parts.sort();
    let found: Vec<Vec<u8>> = db
        .open_tree("parts")
        .unwrap()
        .iter()
        .keys()
        .map(|key| key.unwrap().to_vec())
        .collect();
    assert_eq!(found, parts, "parts");
    assert!(db.open_tree("garbage").unwrap().is_empty(), "garbage");
    assert_eq!(std::fs::read_dir(store.join("blobs")).unwrap().count(), 0);
    drop((index, events));
    shut(db, store);
}
