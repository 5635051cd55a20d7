//! Transfers of hundreds at once, by the registry's own plan, each with the prune of another process in
//! the same commit, with the store stopped as if killed between any two of its operations.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::super::kv_laws::XorShift;
use super::super::super::testing::{Host, Proc, request, session};
use super::super::super::write_set::{Change, CommitError};
use super::super::super::writes;
use super::super::fault::Step;
use super::super::{SledKv, open};
use super::{failure, on_demand, with_faults};
use crate::model::{ProcessHandleDescriptor, SessionScope};

/// So many that one transfer is several slices of index writes, each with some of its keys: a grant is
/// two keys that go and two that come, and a slice has 128.
const PROCESSES: usize = 300;
/// Transfers before the store is opened with its fault, after it, and once it is mended.
const STEPS: [usize; 3] = [6, 30, 5];

/// On which of the two sides each process is.
type Sides = Vec<usize>;

fn side(number: usize) -> SessionScope {
    match number {
        0 => session("left"),
        _ => session("right").with_frame("f"),
    }
}

/// Moves a random part of what is on one side, as the registry does; the sides after it.
fn step(
    host: &Host,
    processes: &[Proc],
    sides: &Sides,
    ended: &Proc,
    random: &mut XorShift,
) -> (Sides, Result<(), CommitError>) {
    let from = sides[usize::try_from(random.below(PROCESSES as u64)).unwrap()];
    let mut after = sides.clone();
    let mut moved = Vec::new();
    for (number, process) in processes.iter().enumerate() {
        if sides[number] == from && (moved.is_empty() || random.below(3) > 0) {
            moved.push(process.registration.id.clone());
            after[number] = 1 - from;
        }
    }
    let (given_by, taken_by) = ([side(from)], side(1 - from));
    let planned = writes::transfer(&host.view(), &given_by, &taken_by, &moved).unwrap();
    assert!(planned.missing.is_empty());
    let mut set = planned.set.unwrap();
    set.changes.push(host.pruned(ended));
    (after, host.submit(set).recv().unwrap().map(drop))
}

/// What there is to prune: each with a log and with grants of its own.
fn ended(host: &Host) -> Vec<Proc> {
    let mut all = Vec::new();
    for number in 0..STEPS.iter().sum() {
        let mut process = host.start(request(&format!("ended-{number}")));
        host.emit(&mut process, "note", serde_json::json!(number));
        let grants = (0..2).map(|number| Change::Grant {
            row: process.row(),
            scope: side(number),
            descriptor: ProcessHandleDescriptor::default(),
        });
        host.ok(vec![], grants.collect());
        host.finish(&mut process);
        all.push(process);
    }
    all
}

/// Where everything was when the store stopped, and where it would have been.
struct Stopped {
    copy: PathBuf,
    processes: Vec<Proc>,
    /// To be pruned from here on.
    ended: Vec<Proc>,
    acknowledged: Sides,
    attempted: Sides,
}

fn run_into(at: Step, passes: u64, flushed: bool, home: &Path) -> Option<Stopped> {
    let (store, copy) = (home.join("store"), home.join("copy"));
    let mut random = XorShift(0x9E37_79B9_7F4A_7C15 + passes);
    let host = Host::on(Arc::new(SledKv::open(&store, on_demand()).unwrap()));
    let processes: Vec<Proc> = (0..PROCESSES)
        .map(|number| Proc::new(&host, request(&format!("p-{number}")), None))
        .collect();
    host.ok(vec![], processes.iter().map(Proc::register).collect());
    let grants = processes.iter().map(|process| Change::Grant {
        row: process.row(),
        scope: side(0),
        descriptor: ProcessHandleDescriptor::label("first"),
    });
    host.ok(vec![], grants.collect());
    let mut ended = ended(&host);
    let mut sides = vec![0; PROCESSES];
    // A past that the open has to replay.
    for _ in 0..STEPS[0] {
        let next = ended.pop().unwrap();
        let (after, done) = step(&host, &processes, &sides, &next, &mut random);
        done.unwrap();
        sides = after;
    }
    drop(host);
    let count = AtomicU64::new(0);
    let options = with_faults({
        let (store, copy) = (store.clone(), copy.clone());
        move |step, db| {
            if step != at || count.fetch_add(1, Ordering::SeqCst) != passes {
                return Ok(());
            }
            if flushed {
                db.flush().unwrap();
            }
            open::copy_directory(&store, &copy).unwrap();
            Err(failure())
        }
    });
    let stopped = |processes, ended, acknowledged, attempted| {
        Some(Stopped {
            copy: copy.clone(),
            processes,
            ended,
            acknowledged,
            attempted,
        })
    };
    let Ok(kv) = SledKv::open(&store, options) else {
        return stopped(processes, ended, sides.clone(), sides);
    };
    let host = Host::on(Arc::new(kv));
    for number in 1..=STEPS[1] {
        let next = ended.pop().unwrap();
        let (after, done) = step(&host, &processes, &sides, &next, &mut random);
        match done {
            Ok(()) => sides = after,
            Err(CommitError::Unknown(_)) => return stopped(processes, ended, sides, after),
            Err(unexpected) => panic!("{unexpected:?}"),
        }
        if number % 8 == 0 && host.store.drain().is_err() {
            return stopped(processes, ended, sides.clone(), sides);
        }
    }
    None
}

/// Who holds each process, from both directions, which must agree.
fn found(host: &Host, processes: &[Proc]) -> Sides {
    let view = host.view();
    let mut sides = vec![0; PROCESSES];
    for (number, process) in processes.iter().enumerate() {
        let row = process.row();
        // G2: exactly one side holds it. G3: and that side knows it.
        let holders = view.scopes_granted(row).unwrap();
        let [holder] = &holders[..] else {
            panic!("process {number} is held by {holders:?}");
        };
        sides[number] = usize::from(*holder == side(1));
        for other in 0..2 {
            let forward = view.grant(&side(other), row).unwrap().is_some();
            assert_eq!(forward, other == sides[number], "process {number}");
        }
    }
    sides
}

fn stop_at(at: Step) {
    let mut reached = 0;
    for passes in [0, 1, 2, 5] {
        for flushed in [false, true] {
            let home = tempfile::tempdir().unwrap();
            let Some(stopped) = run_into(at, passes, flushed, home.path()) else {
                continue;
            };
            reached += 1;
            let kv = SledKv::open(&stopped.copy, on_demand()).unwrap();
            let host = Host::on(Arc::new(kv));
            let mut sides = found(&host, &stopped.processes);
            assert!(
                sides == stopped.acknowledged || sides == stopped.attempted,
                "{at:?}: {sides:?} is neither {:?} nor {:?}",
                stopped.acknowledged,
                stopped.attempted
            );
            host.assert_clean();
            // And it goes on from there.
            let mut random = XorShift(7 + passes);
            for next in stopped.ended.iter().take(STEPS[2]) {
                let (after, done) = step(&host, &stopped.processes, &sides, next, &mut random);
                done.unwrap();
                sides = after;
                assert_eq!(found(&host, &stopped.processes), sides);
            }
            host.store.close().unwrap();
        }
    }
    assert!(reached > 0, "{at:?} was never reached");
}

at_every_step!(
    stop_at:
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_open_writes: OpenStarted,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_rewritten_journal_is_synced: OpenRewritten,
    g2_g3_exactly_one_side_holds_it_after_a_stop_after_the_replay: OpenReplayed,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_epoch_is_synced: OpenRaised,
    g2_g3_exactly_one_side_holds_it_after_a_stop_between_journal_entries: CommitEntry,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_sync: CommitSync,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_group_is_shown: CommitPublish,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_sync_of_sleds_file: IndexSync,
    g2_g3_exactly_one_side_holds_it_after_a_stop_after_the_sync_of_sleds_file: IndexSynced,
    g2_g3_exactly_one_side_holds_it_after_a_stop_after_the_freeze: DrainFrozen,
    g2_g3_exactly_one_side_holds_it_after_a_stop_between_index_writes: DrainSlice,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_a_log_is_erased: DrainErased,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_index_is_synced: DrainWritten,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_mark_advances: DrainSynced,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_mark_is_synced: DrainMarked,
    g2_g3_exactly_one_side_holds_it_after_a_stop_before_the_regions_are_freed: DrainTrimmed,
);
