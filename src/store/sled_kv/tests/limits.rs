//! Bounds: of views in time, of the overlay in memory, of what an acknowledgement waits for.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::super::error::StoreError;
use super::super::super::kv::{Durability, Kv, Op, Outcome, Verdict};
use super::super::super::kv_laws::{append, commit, delete, put, put_once, scripted, submit_ops};
use super::super::journal::{JOURNAL_FILE, REGION_BYTES};
use super::super::{Options, SledKv};
use super::{StoppedClock, on_demand};

#[test]
fn a_view_that_is_too_old_expires_and_holds_nothing_up() {
    let home = tempfile::tempdir().unwrap();
    let clock = Arc::new(StoppedClock::default());
    let options = Options::new(Arc::<StoppedClock>::clone(&clock));
    let kv = SledKv::open(home.path(), options).unwrap();
    commit(&kv, vec![put("k", "1")]);
    let view = kv.view().unwrap();
    commit(&kv, vec![put("k", "2")]);
    clock.advance(Duration::from_millis(4_999));
    assert_eq!(view.get(b"k").unwrap().unwrap(), "1");
    clock.advance(Duration::from_millis(1));
    kv.drain().unwrap();
    let expired = view.get(b"k").unwrap_err();
    assert!(
        matches!(expired, StoreError::ViewExpired { held_ms: 5_000 }),
        "{expired:?}"
    );
    drop(view);
    kv.close().unwrap();
}

#[test]
fn a_view_gives_way_sooner_while_commits_wait() {
    let home = tempfile::tempdir().unwrap();
    let clock = Arc::new(StoppedClock::default());
    let mut options = Options::new(Arc::<StoppedClock>::clone(&clock));
    options.bounds.overlay_entries_max = 10;
    let kv = SledKv::open(home.path(), options).unwrap();
    commit(&kv, vec![put("k", "1")]);
    let view = kv.view().unwrap();
    commit(&kv, (0..20_u8).map(|key| put([key], "1")).collect());
    let waits = submit_ops(&kv, vec![put("k", "2")]);
    clock.advance(Duration::from_millis(499));
    assert_eq!(view.get(b"k").unwrap().unwrap(), "1");
    clock.advance(Duration::from_millis(1));
    let committed = waits.recv_timeout(Duration::from_secs(20));
    // Whatever came of it, the write-behind is not held up for good.
    clock.advance(Duration::from_secs(5));
    assert!(
        matches!(committed, Ok(Outcome::Committed { .. })),
        "{committed:?}"
    );
    view.get(b"k").unwrap_err();
    kv.close().unwrap();
}

#[test]
fn a_view_that_is_let_go_lets_the_write_behind_go_on() {
    let home = tempfile::tempdir().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    commit(&kv, vec![put("k", "1")]);
    let view = kv.view().unwrap();
    commit(&kv, vec![put("k", "2")]);
    std::thread::scope(|scope| {
        let drained = scope.spawn(|| kv.drain());
        assert_eq!(view.get(b"k").unwrap().unwrap(), "1");
        drop(view);
        drained.join().unwrap().unwrap();
    });
    assert_eq!(kv.stats().journal_low_water, kv.stats().journal_next);
    kv.close().unwrap();
}

#[test]
fn the_overlay_is_bounded_and_callers_feel_it() {
    let home = tempfile::tempdir().unwrap();
    let mut options = on_demand();
    options.bounds.overlay_entries_max = 200;
    options.bounds.group_proposals_max = 10;
    let kv = SledKv::open(home.path(), options).unwrap();
    let (sender, receiver) = channel();
    for number in 0..3_000_u32 {
        let sender = sender.clone();
        kv.submit(scripted(
            move |_, cx| {
                cx.ops.push(put(number.to_be_bytes(), "1"));
                Verdict::Accept
            },
            move |outcome| sender.send(outcome).unwrap(),
        ));
    }
    let mut most = 0;
    for _ in 0..3_000 {
        assert!(matches!(
            receiver.recv().unwrap(),
            Outcome::Committed { .. }
        ));
        most = most.max(kv.stats().overlay_entries);
    }
    assert!(most <= 200 + 10, "{most} entries");
    kv.close().unwrap();
}

#[test]
fn the_journal_is_bounded_even_if_one_key_changes_all_the_time() {
    let home = tempfile::tempdir().unwrap();
    let mut options = on_demand();
    options.bounds.journal_bytes_max = 2 * REGION_BYTES as u64;
    let kv = SledKv::open(home.path(), options).unwrap();
    for number in 0..2_000_u32 {
        // A page each, so that 256 fill a region.
        commit(&kv, vec![put("k", number.to_be_bytes())]);
    }
    kv.close().unwrap();
    let bytes = std::fs::metadata(home.path().join(JOURNAL_FILE)).unwrap();
    let regions = bytes.len() / REGION_BYTES as u64;
    assert!((1..=3).contains(&regions), "{regions} regions");
}

#[test]
fn changes_within_a_window_cost_one_index_write() {
    let home = tempfile::tempdir().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    for number in 1..=500_u64 {
        commit(
            &kv,
            vec![
                put("record", number.to_be_bytes()),
                append(1, number, "e"),
                put_once(number.to_be_bytes(), "feed"),
                delete((number - 1).to_be_bytes()),
            ],
        );
    }
    assert_eq!(
        kv.stats().overlay_entries,
        1 + 500 + 1 + 1,
        "with one tombstone, for key 0"
    );
    kv.drain().unwrap();
    let stats = kv.stats();
    assert_eq!(stats.overlay_entries, 0);
    // The record, the last feed entry, the tombstone, and a chunk for 500 events of one byte.
    assert_eq!(
        stats.index_keys_written,
        4 + 3,
        "chunks are written in slices of 128 events"
    );
    assert_eq!(stats.syncs, stats.groups);
    kv.close().unwrap();
}

#[test]
fn relaxed_acknowledges_before_the_sync_and_drains_after_it() {
    let home = tempfile::tempdir().unwrap();
    let clock = Arc::new(StoppedClock::default());
    let mut options = Options::new(Arc::<StoppedClock>::clone(&clock));
    options.durability = Durability::Relaxed(Duration::from_secs(1));
    let kv = SledKv::open(&home.path().join("store"), options.clone()).unwrap();
    for number in 0..50_u8 {
        commit(&kv, vec![put([number], "1")]);
    }
    assert_eq!(kv.stats().syncs, 0);
    clock.advance(Duration::from_secs(1));
    commit(&kv, vec![put("late", "1")]);
    assert_eq!(kv.stats().syncs, 1);
    kv.drain().unwrap();
    kv.close().unwrap();
    let kv = SledKv::open(&home.path().join("store"), options).unwrap();
    assert!(kv.view().unwrap().get(&[49]).unwrap().is_some());
    kv.close().unwrap();
}

#[test]
fn the_last_handle_may_be_dropped_by_a_proposal() {
    let home = tempfile::tempdir().unwrap();
    let kv = Arc::new(SledKv::open(home.path(), on_demand()).unwrap());
    let (sender, receiver) = channel();
    let (go, wait) = channel::<()>();
    let last = Arc::clone(&kv);
    kv.submit(scripted(
        |_, _| Verdict::Accept,
        move |_| {
            wait.recv().unwrap();
            drop(last);
            sender.send(()).unwrap();
        },
    ));
    drop(kv);
    go.send(()).unwrap();
    receiver.recv().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    kv.close().unwrap();
}

#[test]
fn a_drop_answers_what_is_queued() {
    let home = tempfile::tempdir().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    let outcomes: Vec<_> = (0..500_u32)
        .map(|number| submit_ops(&kv, vec![put(number.to_be_bytes(), "1")]))
        .collect();
    drop(kv);
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    let view = kv.view().unwrap();
    for (number, outcome) in (0..500_u32).zip(outcomes) {
        let found = view.get(&number.to_be_bytes()).unwrap().is_some();
        let outcome = outcome.recv().unwrap();
        assert!(
            match &outcome {
                Outcome::Committed { .. } => found,
                Outcome::NotWritten(error) => matches!(error, StoreError::Closed) && !found,
                Outcome::Refused | Outcome::Unknown(_) => false,
            },
            "{number}: {outcome:?}"
        );
    }
    drop(view);
    kv.close().unwrap();
}

#[test]
fn erasing_is_done_in_bounded_passes_and_survives_a_reopen() {
    let home = tempfile::tempdir().unwrap();
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    for incarnation in 1..=3 {
        let log = (1..=700).map(|sequence| append(incarnation, sequence, [1; 4_000]));
        commit(&kv, log.collect());
    }
    kv.drain().unwrap();
    let erase = (1..=3).map(|incarnation| Op::EraseLog { incarnation });
    commit(&kv, erase.collect());
    drop(kv);
    let kv = SledKv::open(home.path(), on_demand()).unwrap();
    kv.drain().unwrap();
    kv.close().unwrap();
    let db = super::audit::raw(home.path());
    assert!(db.open_tree("events").unwrap().is_empty());
    assert!(db.open_tree("garbage").unwrap().is_empty());
    super::audit::shut(db, home.path());
}
