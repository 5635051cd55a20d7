//! Each sync, by what is lost with the power where it is missing. Every test names the line that it
//! is about, and was seen to fail without it.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use super::super::super::kv::{Durability, Kv, Op, Outcome};
use super::super::super::kv_laws::{XorShift, all, append, commit, delete, put, submit_ops};
use super::super::super::locks::lock;
use super::super::fault::Step;
use super::super::journal::{PAGE_BYTES, REGION_BYTES};
use super::super::settle::NOTE_FILE;
use super::super::tape::{Loss, Tape};
use super::super::{Options, SledKv};
use super::power::{Index, Plug};
use super::{StoppedClock, failure, on_demand};

fn plugged(plug: &Arc<Plug>) -> Options {
    let mut options = on_demand();
    options.faults = plug.faults(|_, _, _| Ok(()));
    options
}

/// The keys of every store that the noted losses of power may leave.
fn left(plug: &Plug, mut check: impl FnMut(&str, Vec<u8>)) {
    let home = tempfile::tempdir().unwrap();
    let copy = home.path().join("copy");
    let mut random = XorShift(0xA076_1D64_78BD_642F);
    let crashes = std::mem::take(&mut *lock(&plug.crashes));
    assert!(!crashes.is_empty());
    for crash in &crashes {
        for loss in Loss::ALL {
            for index in Index::ALL {
                let what = format!("{:?}, {loss:?}, {index:?}", crash.step);
                plug.image(crash, loss, index, &mut random, &copy).unwrap();
                check(&what, first_bytes(&copy, &what));
            }
        }
    }
}

fn first_bytes(store: &Path, what: &str) -> Vec<u8> {
    let kv = SledKv::open(store, on_demand()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let keys = kv.view().unwrap().scan(&all(), 99).unwrap();
    kv.close().unwrap();
    keys.iter().map(|(key, _)| key[0]).collect()
}

/// `sync_journal` in `Committer::make_durable`.
#[test]
fn a_commit_is_acknowledged_behind_its_sync() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let kv = SledKv::open(&plug.store, plugged(&plug)).unwrap();
    for number in 0..3 {
        commit(&kv, vec![put([number], [number; 9_000])]);
        plug.pull(Step::CommitPublish);
        left(&plug, |what, keys| {
            assert_eq!(keys, (0..=number).collect::<Vec<_>>(), "{what}");
        });
    }
}

/// `journal.sync()` in `open_locked`: what a killed process left in the system's cache is shown to
/// readers, so from then on it has to survive.
#[test]
fn an_open_syncs_the_journal_before_it_shows_what_it_found() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let killed = AtomicBool::new(false);
    let mut options = on_demand();
    options.faults = plug.faults(move |_, step, _| {
        if step == Step::CommitSync && killed.swap(true, Ordering::SeqCst) {
            return Err(failure());
        }
        Ok(())
    });
    let kv = SledKv::open(&plug.store, options).unwrap();
    commit(&kv, vec![put([0], "1")]);
    let cut = submit_ops(&kv, vec![put([1], "1")]).recv().unwrap();
    assert!(matches!(cut, Outcome::Unknown(_)));
    drop(kv);
    let kv = SledKv::open(&plug.store, plugged(&plug)).unwrap();
    assert!(kv.view().unwrap().get(&[1]).unwrap().is_some());
    plug.pull(Step::OpenReplayed);
    left(&plug, |what, keys| assert_eq!(keys, [0, 1], "{what}"));
}

/// The same line: what an open drops must be gone for good before its sequences are used again, or
/// it comes back behind what was written instead of what had been before it.
#[test]
fn an_open_syncs_what_it_dropped() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let mut options = on_demand();
    options.durability = Durability::Relaxed(Duration::from_secs(3600));
    let kv = SledKv::open(&store, options).unwrap();
    commit(&kv, vec![put([0], "1")]);
    commit(&kv, vec![put([1], "1")]);
    drop(kv);
    // A loss of power took the first, and left the second.
    let journal = store.join(super::super::journal::JOURNAL_FILE);
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[PAGE_BYTES..2 * PAGE_BYTES].fill(0);
    std::fs::write(&journal, bytes).unwrap();
    let plug = Plug::of(store);
    let mut options = on_demand();
    options.faults = plug.faults(|plug, step, _| {
        if step == Step::CommitSync {
            plug.pull(step);
        }
        Ok(())
    });
    let kv = SledKv::open(&plug.store, options).unwrap();
    commit(&kv, vec![put([2], "1")]);
    left(&plug, |what, keys| {
        assert!(keys.is_empty() || keys == [2], "{what}: {keys:?}");
    });
}

/// `sync_journal` in `pass`: under `Durability::Relaxed` the index would hold some keys of commits
/// that the journal lost.
#[test]
fn a_relaxed_journal_is_synced_before_the_index_gets_anything_of_it() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let mut options = on_demand();
    options.durability = Durability::Relaxed(Duration::from_secs(3600));
    options.faults = plug.faults(|plug, step, db| {
        if matches!(step, Step::DrainSlice | Step::DrainWritten) {
            // By chance all of it gets out.
            db.flush().unwrap();
            plug.pull(step);
        }
        Ok(())
    });
    let kv = SledKv::open(&plug.store, options).unwrap();
    for number in 0..4 {
        commit(&kv, vec![put([number], "1"), put([9], [number])]);
    }
    kv.drain().unwrap();
    left(&plug, |what, keys| {
        assert_eq!(keys, [0, 1, 2, 3, 9], "{what}");
    });
}

/// The second `sync_index` in `pass`: a region must not be used again while the mark that says so
/// may be lost.
#[test]
fn a_region_is_used_again_only_behind_the_sync_of_the_mark() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let kv = SledKv::open(&plug.store, plugged(&plug)).unwrap();
    commit(&kv, vec![put([0], vec![1; REGION_BYTES / 2])]);
    kv.drain().unwrap();
    commit(&kv, vec![put([1], "1")]);
    let used = plug.tape().writes();
    assert_eq!(used[used.len() - 1].0.start, PAGE_BYTES as u64);
    plug.pull(Step::CommitPublish);
    left(&plug, |what, keys| assert_eq!(keys, [0, 1], "{what}"));
}

/// The zeros in `Journal::write`: without them each commit makes the file longer, and its sync has
/// that to make durable as well; and what an open finds is not whole and is cut off.
#[test]
fn a_commit_writes_where_something_was_written_before() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let kv = SledKv::open(&plug.store, plugged(&plug)).unwrap();
    for number in 0..6 {
        commit(&kv, vec![put([number], vec![1; REGION_BYTES / 3])]);
    }
    let writes = plug.tape().writes();
    let mut end = PAGE_BYTES as u64;
    let mut regions = 0;
    // Behind the page at the start.
    for (place, zeros) in &writes[1..] {
        if *zeros {
            assert_eq!(place.start, end);
            end += REGION_BYTES as u64;
            regions += 1;
        }
        assert!(place.end <= end, "{place:?} of {end}");
    }
    assert_eq!(regions, 3);
    plug.pull(Step::CommitPublish);
    left(&plug, |what, keys| {
        assert_eq!(keys, [0, 1, 2, 3, 4, 5], "{what}")
    });
}

/// `sync_due` and `make_durable`: a loss of power takes the last interval, and no more.
#[test]
fn a_relaxed_store_is_synced_once_in_an_interval() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let clock = Arc::new(StoppedClock::default());
    let mut options = on_demand();
    options.clock = Arc::<StoppedClock>::clone(&clock);
    options.durability = Durability::Relaxed(Duration::from_secs(1));
    options.faults = plug.faults(|_, _, _| Ok(()));
    let kv = SledKv::open(&plug.store, options).unwrap();
    commit(&kv, vec![put([0], "1")]);
    clock.advance(Duration::from_secs(1));
    commit(&kv, vec![put([1], "1")]);
    commit(&kv, vec![put([2], "1")]);
    commit(&kv, vec![put([3], "1")]);
    plug.pull(Step::CommitPublish);
    let mut lost = false;
    left(&plug, |what, keys| {
        assert!((2..=4).contains(&keys.len()), "{what}: {keys:?}");
        assert_eq!(keys, [0, 1, 2, 3][..keys.len()], "{what}");
        lost |= keys.len() == 2;
    });
    assert!(lost, "the last interval was never lost");
}

/// `settle` in `open_locked`: sled makes a snapshot of what it finds, and syncs that.
#[test]
fn sleds_file_is_synced_before_sled_reads_it() {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let kv = SledKv::open(&plug.store, plugged(&plug)).unwrap();
    commit(&kv, vec![put([0], "1")]);
    drop(kv);
    let index = Arc::new(Tape::default());
    let seen = Arc::clone(&index);
    let mut options = on_demand();
    let faults = plug.faults(move |_, step, _| {
        assert!(step != Step::OpenStarted || seen.syncs() == 1);
        Ok(())
    });
    options.faults = faults.index_taped(&index);
    SledKv::open(&plug.store, options).unwrap().close().unwrap();
    assert_eq!((index.syncs(), index.writes().len()), (1, 0));
}

/// A sync of sled's file fails: the system takes what it could not write for written, so the next
/// open writes everything again before it syncs. `distrust` in `drain::run` and `open::open`,
/// `write_again` in `settle`.
#[test]
fn a_failed_sync_of_sleds_file_is_not_trusted_by_the_next_open() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let fails = Arc::new(AtomicBool::new(false));
    let index = Arc::new(Tape::default());
    let journal = Arc::new(Tape::default());
    let open = || {
        let fails = Arc::clone(&fails);
        let faults = super::Faults::new(move |step, _| {
            if step == Step::IndexSync && fails.load(Ordering::SeqCst) {
                return Err(failure());
            }
            Ok(())
        });
        let mut options = on_demand();
        options.faults = faults.taped(&journal).index_taped(&index);
        SledKv::open(&store, options)
    };
    let note = store.join(NOTE_FILE);
    let length = |file: &str| std::fs::metadata(store.join(file)).unwrap().len();
    let is_whole = |tape: &Tape, before: usize, length: u64| {
        let mut end = 0;
        for (place, _) in &tape.writes()[before..] {
            if place.start == end {
                end = place.end;
            }
        }
        assert_eq!(end, length);
    };
    let kv = open().unwrap();
    commit(&kv, vec![put([0], "1")]);
    assert!(!note.exists());
    fails.store(true, Ordering::SeqCst);
    kv.drain().unwrap_err();
    kv.close().unwrap_err();
    assert!(note.exists());
    // This open writes them again, and its own sync fails.
    let before = (index.writes().len(), journal.writes().len());
    let lengths = (length("db"), length("journal"));
    open().unwrap_err();
    is_whole(&index, before.0, lengths.0);
    is_whole(&journal, before.1, lengths.1);
    assert!(note.exists());
    fails.store(false, Ordering::SeqCst);
    let before = index.writes().len();
    let kv = open().unwrap();
    assert!(index.writes().len() > before);
    assert!(!note.exists());
    assert!(kv.view().unwrap().get(&[0]).unwrap().is_some());
    kv.close().unwrap();
    let before = index.writes().len();
    open().unwrap().close().unwrap();
    assert_eq!(index.writes().len(), before);
}

/// `sync_data_file` in `Slices::wrote`: sled's file is never far ahead of its sync, whatever it is that
/// brings much at once. How far is what sled uses again of its file, which a loss of power shows only
/// where it happens to hit it.
#[test]
fn what_is_written_into_the_index_is_synced_on_the_way() {
    let home = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicU64::new(0));
    let mut options = on_demand();
    let counted = Arc::clone(&syncs);
    options.faults = super::Faults::new(move |step, _| {
        if step == Step::IndexSync {
            counted.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    });
    let kv = SledKv::open(home.path(), options).unwrap();
    let brings = |what: &str, ops: Vec<Op>, expected: u64| {
        commit(&kv, ops);
        let before = syncs.load(Ordering::SeqCst);
        kv.drain().unwrap();
        let found = syncs.load(Ordering::SeqCst) - before;
        // Two of them end the pass. No more than there have to be: each costs what a commit's costs.
        assert!(
            (expected..=2 * expected).contains(&found),
            "{what}: {found}"
        );
    };
    let large = vec![7; 1 << 20];
    let log = |bytes: usize| (1..=128).map(move |at| append(1, at, vec![7; bytes]));
    brings("a value", vec![put("large", &large)], 8);
    brings("another in its place", vec![put("large", &large)], 16);
    brings("its end", vec![delete("large")], 8);
    brings("a log of large events", log(16 << 10).collect(), 16);
    brings("its erasure", vec![Op::EraseLog { incarnation: 1 }], 16);
    brings("little", vec![put("k", "1")], 2);
    kv.close().unwrap();
}
