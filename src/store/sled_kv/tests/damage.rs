//! Stored bytes that are not what was written, and stores that are not for us.

use std::fs;
use std::path::Path;
use std::sync::mpsc::channel;

use super::super::super::error::StoreError;
use super::super::super::kv::{Kv, KvView, Outcome, Verdict};
use super::super::super::kv_laws::{append, commit, put, scripted, submit_ops};
use super::super::fault::Step;
use super::super::journal::{JOURNAL_FILE, PAGE_BYTES, REGION_BYTES};
use super::super::{SledKv, meta};
use super::audit::{raw, shut};
use super::{failure, on_demand, open, with_faults};

fn what(error: StoreError) -> String {
    let StoreError::Corrupted { what } = error else {
        panic!("not corrupted: {error:?}");
    };
    what
}

fn drained(store: &Path) {
    let kv = open(store);
    commit(&kv, vec![put("big", vec![7; 10_000]), put("small", "1")]);
    commit(&kv, vec![append(1, 1, "one"), append(1, 2, "two")]);
    kv.close().unwrap();
}

/// Flips one bit of a value, at each of its bytes in turn.
fn flip_each(store: &Path, tree: &str, key: &[u8], check: impl Fn(&dyn KvView)) {
    let length = {
        let db = raw(store);
        let length = db.open_tree(tree).unwrap().get(key).unwrap().unwrap().len();
        shut(db, store);
        length
    };
    for at in (0..length).step_by(1 + length / 24) {
        let flip = || {
            let db = raw(store);
            let values = db.open_tree(tree).unwrap();
            let mut value = values.get(key).unwrap().unwrap().to_vec();
            value[at] ^= 0x10;
            values.insert(key, value).unwrap();
            drop(values);
            shut(db, store);
        };
        flip();
        let kv = open(store);
        check(&*kv.view().unwrap());
        kv.close().unwrap();
        flip();
    }
}

#[test]
fn a_damaged_chunk_is_named() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    drained(&store);
    let key = super::super::events::chunk_key(1, 1);
    flip_each(&store, "events", &key, |view| {
        let what = what(view.events(1, 1, 9, 999).unwrap_err());
        assert!(what.contains("tree events"), "{what}");
        assert!(
            what.contains("key 00000000000000010000000000000001"),
            "{what}"
        );
    });
}

#[test]
fn a_log_with_a_damaged_chunk_does_not_stop_the_store() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    drained(&store);
    let db = raw(&store);
    let events = db.open_tree("events").unwrap();
    let key = super::super::events::chunk_key(1, 1);
    events.insert(key, b"C\x00\x02damage").unwrap();
    drop(events);
    shut(db, &store);
    let kv = open(&store);
    commit(&kv, vec![append(1, 3, "three"), append(2, 1, "other")]);
    kv.drain().unwrap();
    let view = kv.view().unwrap();
    what(view.events(1, 1, 9, 999).unwrap_err());
    assert_eq!(view.events(1, 3, 9, 999).unwrap(), [(3, "three".into())]);
    assert_eq!(view.events(2, 1, 9, 999).unwrap(), [(1, "other".into())]);
    drop(view);
    kv.close().unwrap();
}

#[test]
fn damaged_parts_and_their_head_are_named() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    drained(&store);
    let check = |view: &dyn KvView| {
        let what = what(view.get(b"big").unwrap_err());
        assert!(what.contains("tree index, key 626967"), "{what}");
        assert_eq!(view.get(b"small").unwrap().unwrap(), "1");
    };
    flip_each(&store, "parts", b"\x01\x00\x03big\x00\x00\x00\x01", check);
    flip_each(&store, "index", b"big", |view| {
        // A flip in the first byte makes it a value of another kind.
        what(view.get(b"big").unwrap_err());
    });
}

#[test]
fn a_damaged_journal_is_never_replayed() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let kv = open(&store);
    for number in 0..5_u8 {
        commit(&kv, vec![put([number], [number; 50])]);
    }
    drop(kv);
    let path = store.join(JOURNAL_FILE);
    let sound = fs::read(&path).unwrap();
    // The third entry, behind the page of the file's header: one bit of it, and all of it. What
    // follows it was acknowledged, so it must not be skipped.
    let third = 3 * PAGE_BYTES..4 * PAGE_BYTES;
    let mut flipped = sound.clone();
    flipped[third.start + 60] ^= 1;
    let mut lost = sound.clone();
    lost[third].fill(0);
    for damaged in [flipped, lost] {
        fs::write(&path, damaged).unwrap();
        let missing = what(SledKv::open(&store, on_demand()).unwrap_err());
        assert!(missing.contains("commit 3 is not there"), "{missing}");
    }
    fs::write(&path, sound).unwrap();
    let kv = open(&store);
    assert_eq!(kv.view().unwrap().get(&[4]).unwrap().unwrap(), [4; 50][..]);
    kv.close().unwrap();
}

#[test]
fn a_journal_that_is_not_the_stores_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let other = home.path().join("other");
    drop(open(&store));
    drop(open(&other));
    let path = store.join(JOURNAL_FILE);
    let own = fs::read(&path).unwrap();
    let refused = |expected: &str| {
        let refusal = what(SledKv::open(&store, on_demand()).unwrap_err());
        assert!(refusal.contains(expected), "{refusal}");
    };
    fs::copy(other.join(JOURNAL_FILE), &path).unwrap();
    refused("belongs to another store");
    fs::write(&path, &own[..100]).unwrap();
    refused("is cut short");
    let mut damaged = own.clone();
    damaged[20] ^= 1;
    fs::write(&path, damaged).unwrap();
    refused("has no sound header");
    fs::remove_file(&path).unwrap();
    refused("is missing");
    fs::write(&path, own).unwrap();
    open(&store).close().unwrap();
}

/// A journal that holds something is never taken for that of a store which is new.
#[test]
fn a_journal_whose_index_is_gone_is_kept() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let kv = open(&store);
    commit(&kv, vec![put("k", "v")]);
    drop(kv);
    let journal = fs::read(store.join(JOURNAL_FILE)).unwrap();
    for entry in fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() && path.file_name().unwrap() != JOURNAL_FILE {
            fs::remove_file(path).unwrap();
        }
    }
    for _ in 0..2 {
        let refusal = what(SledKv::open(&store, on_demand()).unwrap_err());
        assert!(
            refusal.contains("sled's part of the store is empty"),
            "{refusal}"
        );
        assert_eq!(fs::read(store.join(JOURNAL_FILE)).unwrap(), journal);
    }
}

/// A region that was being added when the machine went down, with an entry in it: its sequence is
/// used again, so the entry must be gone for good.
#[test]
fn what_was_in_a_region_that_was_not_whole_never_turns_up() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let path = store.join(JOURNAL_FILE);
    let kv = open(&store);
    commit(&kv, vec![put("a", "1")]);
    commit(&kv, vec![put("unsynced", "1")]);
    drop(kv);
    let mut bytes = fs::read(&path).unwrap();
    let second = 2 * PAGE_BYTES..3 * PAGE_BYTES;
    let entry = bytes[second.clone()].to_vec();
    bytes[second].fill(0);
    bytes.extend_from_slice(&entry);
    fs::write(&path, bytes).unwrap();
    let kv = open(&store);
    commit(&kv, vec![put("b", "1")]);
    drop(kv);
    // The file has its size back, as if the growth had survived after all.
    let whole = (PAGE_BYTES + 2 * REGION_BYTES) as u64;
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(whole).unwrap();
    drop(file);
    let kv = open(&store);
    let view = kv.view().unwrap();
    assert!(view.get(b"b").unwrap().is_some());
    assert_eq!(view.get(b"unsynced").unwrap(), None);
    drop(view);
    kv.close().unwrap();
}

#[test]
fn another_format_is_refused_and_left_alone() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    open(&store).close().unwrap();
    let set = |version: u32| {
        let db = raw(&store);
        let tree = db.open_tree("meta").unwrap();
        let epoch = meta::get_u64(&tree, meta::EPOCH).unwrap();
        meta::put(&tree, meta::FORMAT, &version.to_be_bytes()).unwrap();
        drop(tree);
        shut(db, &store);
        epoch
    };
    assert_eq!(set(3), Some(1));
    let newer = SledKv::open(&store, on_demand()).unwrap_err();
    assert!(
        matches!(
            newer,
            StoreError::TooNew {
                found: 3,
                supported: 2
            }
        ),
        "{newer:?}"
    );
    assert_eq!(set(1), Some(1), "the epoch is not raised");
    let older = SledKv::open(&store, on_demand()).unwrap_err();
    assert!(
        matches!(
            older,
            StoreError::TooOld {
                found: 1,
                supported: 2
            }
        ),
        "{older:?}"
    );
    set(2);
    assert_eq!(open(&store).epoch(), 2);
}

#[test]
fn somebody_elses_sled_store_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let db = raw(home.path());
    db.insert("theirs", "1").unwrap();
    shut(db, home.path());
    what(SledKv::open(home.path(), on_demand()).unwrap_err());
}

#[test]
fn a_half_written_snapshot_is_removed_and_a_damaged_one_repaired() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    drained(&store);
    open(&store).close().unwrap();
    fs::write(store.join("snap.ffff.generating"), "half").unwrap();
    open(&store).close().unwrap();
    assert!(!store.join("snap.ffff.generating").exists());
    for entry in fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        if path
            .file_name()
            .unwrap()
            .to_string_lossy()
            .starts_with("snap.")
        {
            let mut bytes = fs::read(&path).unwrap();
            bytes[3] ^= 0x40;
            fs::write(&path, bytes).unwrap();
        }
    }
    let kv = open(&store);
    assert_eq!(kv.view().unwrap().get(b"small").unwrap().unwrap(), "1");
    kv.close().unwrap();
    assert!(home.path().join("store.damaged-1").join("db").exists());
}

/// Input and output fail at one step of a commit, or behind it.
#[test]
fn a_failure_poisons_the_store_until_it_is_reopened() {
    let steps = [
        Step::CommitEntry,
        Step::CommitSync,
        Step::DrainWritten,
        Step::DrainSynced,
        Step::DrainMarked,
    ];
    for step in steps {
        let home = tempfile::tempdir().unwrap();
        let store = home.path().join("store");
        let armed = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let hook = std::sync::Arc::clone(&armed);
        let options = with_faults(move |at, _| {
            if at == step && hook.load(std::sync::atomic::Ordering::SeqCst) {
                return Err(failure());
            }
            Ok(())
        });
        let kv = SledKv::open(&store, options).unwrap();
        commit(&kv, vec![put("before", "1")]);
        let view = kv.view().unwrap();
        armed.store(true, std::sync::atomic::Ordering::SeqCst);
        let outcome = submit_ops(&kv, vec![put("during", "1")]).recv().unwrap();
        let behind = kv.drain();
        let cause = |error: &StoreError| error.to_string().contains("a test's failure");
        match outcome {
            Outcome::Unknown(error) => assert!(cause(&error)),
            Outcome::Committed { .. } => {}
            Outcome::Refused | Outcome::NotWritten(_) => panic!("{outcome:?}"),
        }
        assert!(cause(&behind.unwrap_err()));
        let late = submit_ops(&kv, vec![put("late", "1")]).recv().unwrap();
        assert!(matches!(late, Outcome::NotWritten(error) if cause(&error)));
        assert!(cause(&kv.view().unwrap_err()));
        assert!(cause(&view.get(b"before").unwrap_err()));
        assert!(cause(&kv.close().unwrap_err()));
        let kv = open(&store);
        let view = kv.view().unwrap();
        assert_eq!(view.get(b"before").unwrap().unwrap(), "1");
        assert_eq!(view.get(b"late").unwrap(), None);
        drop(view);
        kv.close().unwrap();
    }
}

#[test]
fn everything_queued_behind_a_failure_is_answered() {
    let home = tempfile::tempdir().unwrap();
    let (gate, opened) = channel::<()>();
    let opened = std::sync::Mutex::new(Some(opened));
    let options = with_faults(move |at, _| {
        if at == Step::CommitSync {
            if let Some(opened) = opened.lock().unwrap().take() {
                opened.recv().unwrap();
            }
            return Err(failure());
        }
        Ok(())
    });
    let kv = SledKv::open(&home.path().join("store"), options).unwrap();
    let (sender, receiver) = channel();
    for number in 0..10_u8 {
        let sender = sender.clone();
        kv.submit(scripted(
            move |_, cx| {
                cx.ops.push(put([number], "1"));
                if number % 2 == 0 {
                    Verdict::Accept
                } else {
                    Verdict::Refuse
                }
            },
            move |outcome| sender.send(outcome).unwrap(),
        ));
    }
    gate.send(()).unwrap();
    let outcomes: Vec<Outcome> = (0..10).map(|_| receiver.recv().unwrap()).collect();
    assert!(matches!(outcomes[0], Outcome::Unknown(_)));
    assert!(outcomes.iter().all(|it| matches!(
        it,
        Outcome::Unknown(StoreError::Failed { .. })
            | Outcome::NotWritten(StoreError::Failed { .. })
    )));
    drop(kv);
}
