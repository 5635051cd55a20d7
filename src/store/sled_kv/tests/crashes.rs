//! The store stops as if killed between any two steps, and is opened again.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::super::kv::{Durability, Kv, Op, Outcome};
use super::super::super::kv_laws::{Model, XorShift, all, append, commit, delete, put, submit_ops};
use super::super::events::chunk_key;
use super::super::fault::Step;
use super::super::index::{Home, part_key};
use super::super::journal::{JOURNAL_FILE, PAGE_BYTES, REGION_BYTES};
use super::super::{SledKv, open};
use super::audit::{audit, raw, shut};
use super::{failure, on_demand, with_faults};

/// Where to stop.
#[derive(Debug, Clone, Copy)]
struct Kill {
    step: Step,
    /// How often the step passes before.
    passes: u64,
    /// Whether sled had written out its buffers by chance.
    flushed: bool,
}

/// Runs a random history into the kill and returns the copy of the directory as it was then, the
/// acknowledged state, and the state had the last commit counted.
fn run_into(kill: Kill, home: &Path, seed: u64) -> Option<(PathBuf, Model, Model)> {
    let store = home.join("store");
    let copy = home.join("copy");
    let count = Arc::new(AtomicU64::new(0));
    let options = with_faults({
        let (store, copy, count) = (store.clone(), copy.clone(), Arc::clone(&count));
        move |step, db| {
            if step != kill.step || count.fetch_add(1, Ordering::SeqCst) != kill.passes {
                return Ok(());
            }
            if kill.flushed {
                db.flush().unwrap();
            }
            open::copy_directory(&store, &copy).unwrap();
            Err(failure())
        }
    });
    let mut random = XorShift(seed);
    let mut acknowledged = Model::default();
    // A past that was drained in part and not closed, so that the open has something to replay.
    let kv = SledKv::open(&store, on_demand()).unwrap();
    for number in 1..=30 {
        let ops = acknowledged.step(&mut random);
        let outcome = submit_ops(&kv, ops).recv().unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        if number == 15 {
            kv.drain().unwrap();
        }
    }
    drop(kv);
    let Ok(kv) = SledKv::open(&store, options) else {
        return Some((copy, acknowledged.clone(), acknowledged));
    };
    for number in 1..=60 {
        let mut attempted = acknowledged.clone();
        let ops = attempted.step(&mut random);
        match submit_ops(&kv, ops).recv().unwrap() {
            Outcome::Committed { .. } => acknowledged = attempted,
            Outcome::Unknown(_) => return Some((copy, acknowledged, attempted)),
            unexpected @ (Outcome::Refused | Outcome::NotWritten(_)) => panic!("{unexpected:?}"),
        }
        if number % 20 == 0 && kv.drain().is_err() {
            return Some((copy, acknowledged.clone(), acknowledged));
        }
    }
    None
}

/// Opens what the kill left, goes on with it, and looks at everything.
fn check_after(kill: Kill, copy: &Path, acknowledged: Model, attempted: Model) {
    let kv = SledKv::open(copy, on_demand()).unwrap();
    let view = kv.view().unwrap();
    let keys = view.scan(&all(), usize::MAX).unwrap();
    // Every commit of a history changes a key or a log, so the two can be told apart.
    let logs_grew = attempted.logs.iter().any(|(incarnation, log)| {
        let before = acknowledged.logs.get(incarnation).map_or(0, Vec::len);
        let found = view.events(*incarnation, 1, usize::MAX, usize::MAX);
        log.len() > before && found.unwrap().len() > before
    });
    let is_attempted =
        logs_grew || keys != acknowledged.keys.clone().into_iter().collect::<Vec<_>>();
    let mut model = if is_attempted {
        attempted
    } else {
        acknowledged
    };
    model.check(&*view);
    drop(view);
    let mut random = XorShift(kill.passes + 99);
    for number in 0..40 {
        let ops = model.step(&mut random);
        let outcome = submit_ops(&kv, ops).recv().unwrap();
        assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
        if number == 20 {
            kv.drain().unwrap();
        }
    }
    model.check(&*kv.view().unwrap());
    kv.drain().unwrap();
    kv.close().unwrap();
    audit(copy, &model);
    let kv = SledKv::open(copy, on_demand()).unwrap();
    model.check(&*kv.view().unwrap());
    kv.close().unwrap();
}

fn kill_at(step: Step) {
    let mut reached = 0;
    for passes in [0, 1, 2, 7] {
        for flushed in [false, true] {
            let kill = Kill {
                step,
                passes,
                flushed,
            };
            let home = tempfile::tempdir().unwrap();
            let seed = 0xA076_1D64_78BD_642F + passes;
            if let Some((copy, acknowledged, attempted)) = run_into(kill, home.path(), seed) {
                check_after(kill, &copy, acknowledged, attempted);
                reached += 1;
            }
        }
    }
    assert!(reached > 0, "{step:?} was never reached");
}

at_every_step!(
    kill_at:
    a_kill_before_the_open_writes: OpenStarted,
    a_kill_before_the_rewritten_journal_is_synced: OpenRewritten,
    a_kill_after_the_replay: OpenReplayed,
    a_kill_before_the_epoch_is_synced: OpenRaised,
    a_kill_between_journal_entries: CommitEntry,
    a_kill_before_the_sync: CommitSync,
    a_kill_before_the_group_is_shown: CommitPublish,
    a_kill_before_the_sync_of_sleds_file: IndexSync,
    a_kill_after_the_sync_of_sleds_file: IndexSynced,
    a_kill_after_the_freeze: DrainFrozen,
    a_kill_between_index_writes: DrainSlice,
    a_kill_between_erasures: DrainErased,
    a_kill_before_the_index_is_synced: DrainWritten,
    a_kill_before_the_mark_advances: DrainSynced,
    a_kill_before_the_mark_is_synced: DrainMarked,
    a_kill_before_the_regions_are_freed: DrainTrimmed,
);

/// Stops a store in the middle of a group of four entries, and returns a copy of what was there.
fn cut_after(entries: u64, home: &Path) -> PathBuf {
    let (store, copy) = (home.join("store"), home.join("copy"));
    let count = AtomicU64::new(0);
    let options = with_faults({
        let (store, copy) = (store.clone(), copy.clone());
        move |step, _| {
            if step != Step::CommitEntry || count.fetch_add(1, Ordering::SeqCst) != 1 + entries {
                return Ok(());
            }
            open::copy_directory(&store, &copy).unwrap();
            Err(failure())
        }
    });
    let kv = SledKv::open(&store, options).unwrap();
    commit(&kv, vec![put("before", "1")]);
    let cut = submit_ops(&kv, vec![put("cut", vec![1; 3 * REGION_BYTES])]);
    assert!(matches!(cut.recv().unwrap(), Outcome::Unknown(_)));
    copy
}

/// The sequences of a group that was cut short are used again: what is left of it must not be
/// taken for a part of what comes after.
#[test]
fn a_group_that_was_cut_short_never_comes_back() {
    for entries in 1..=3 {
        let home = tempfile::tempdir().unwrap();
        let copy = cut_after(entries, home.path());
        for round in 0..3 {
            let kv = SledKv::open(&copy, on_demand()).unwrap();
            let keys = kv.view().unwrap().scan(&all(), 9).unwrap();
            assert_eq!(keys.len(), 1 + round, "round {round}");
            // Frees another region, which the next entry takes instead of writing over a leftover.
            kv.drain().unwrap();
            commit(&kv, vec![put([u8::try_from(round).unwrap()], "after")]);
        }
    }
}

/// A crash between the parts of a value and its head leaves parts that no head speaks of.
#[test]
fn parts_without_a_head_are_not_taken_for_those_of_the_next_value() {
    let home = tempfile::tempdir().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    commit(&kv, vec![put("big", vec![7; 5_000]), append(1, 1, "e")]);
    drop(kv);
    let db = raw(home.path());
    let parts = db.open_tree("parts").unwrap();
    for part in 0..9 {
        parts
            .insert(part_key(Home::Keys, b"big", part), &[1])
            .unwrap();
    }
    let chunk = chunk_key(1, 9);
    parts
        .insert(part_key(Home::Events, &chunk, 0), &[1])
        .unwrap();
    drop(parts);
    shut(db, home.path());
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    kv.drain().unwrap();
    let view = kv.view().unwrap();
    assert_eq!(view.get(b"big").unwrap().unwrap(), vec![7; 5_000]);
    drop(view);
    commit(&kv, vec![delete("big"), Op::EraseLog { incarnation: 1 }]);
    kv.drain().unwrap();
    kv.close().unwrap();
    let mut empty = Model::default();
    empty.erased = 1;
    audit(home.path(), &empty);
}

/// A power failure in the middle of a write: any page of the last group may be the old one.
#[test]
fn a_torn_last_group_is_dropped_and_what_was_acknowledged_is_there() {
    let home = tempfile::tempdir().unwrap();
    let (store, copy) = (home.path().join("store"), home.path().join("copy"));
    let last = 20_000;
    let kv = SledKv::open(&store, on_demand()).unwrap();
    commit(&kv, vec![put("first", "1")]);
    commit(&kv, vec![put("last", vec![2; last])]);
    drop(kv);
    let pages = (last + 200).div_ceil(PAGE_BYTES);
    for page in 0..pages {
        let _ = std::fs::remove_dir_all(&copy);
        open::copy_directory(&store, &copy).unwrap();
        let journal = copy.join(JOURNAL_FILE);
        let mut bytes = std::fs::read(&journal).unwrap();
        // Behind the file's header and the first group, a page each.
        let at = (2 + page) * PAGE_BYTES;
        bytes[at..at + PAGE_BYTES].fill(0);
        std::fs::write(&journal, bytes).unwrap();
        let kv = SledKv::open(&copy, on_demand()).unwrap();
        let keys = kv.view().unwrap().scan(&all(), 9).unwrap();
        assert_eq!(keys.len(), 1, "page {page}");
        commit(&kv, vec![put("next", "1")]);
        drop(kv);
        let kv = SledKv::open(&copy, on_demand()).unwrap();
        assert_eq!(kv.view().unwrap().scan(&all(), 9).unwrap().len(), 2);
    }
}

/// Without a sync per group the machine may lose any of those since the last one, and keep later
/// ones: what is left is a beginning all the same.
#[test]
fn a_relaxed_store_loses_an_end_and_nothing_in_the_middle() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let mut options = on_demand();
    options.durability = Durability::Relaxed(Duration::from_secs(3600));
    let kv = SledKv::open(&store, options).unwrap();
    for number in 0..6_u8 {
        commit(&kv, vec![put([number], "1")]);
    }
    drop(kv);
    let journal = store.join(JOURNAL_FILE);
    let mut bytes = std::fs::read(&journal).unwrap();
    bytes[4 * PAGE_BYTES..5 * PAGE_BYTES].fill(0);
    std::fs::write(&journal, bytes).unwrap();
    for _ in 0..2 {
        let kv = SledKv::open(&store, on_demand()).unwrap();
        assert_eq!(kv.view().unwrap().scan(&all(), 9).unwrap().len(), 3);
    }
}
