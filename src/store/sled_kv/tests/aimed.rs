//! Kills aimed at the journal, its replay and its trimming: another process says that it has come to
//! a step, stays there, and is killed there.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::super::kv::Kv;
use super::super::super::kv_laws::commit;
use super::super::SledKv;
use super::super::fault::Faults;
use super::super::tape::Tape;
use super::audit::audit;
use super::kill::{busy_options, history};
use super::on_demand;

const DIRECTORY: &str = "PROCESSION_AIMED_STORE";
const STEP: &str = "PROCESSION_AIMED_STEP";
const PASSES: &str = "PROCESSION_AIMED_PASSES";
/// Commits after which a victim that never came to its step gives up.
const COMMITS_MAX: u64 = 2_000;

/// In the middle of writing an entry, in a commit and in a replay.
const HALF_WRITTEN: &str = "HalfWritten";
const HALF_REWRITTEN: &str = "HalfRewritten";

const JOURNAL: [&str; 4] = ["CommitEntry", HALF_WRITTEN, "CommitSync", "CommitPublish"];
const REPLAY: [&str; 5] = [
    "OpenStarted",
    HALF_REWRITTEN,
    "OpenRewritten",
    "OpenReplayed",
    "OpenRaised",
];
const TRIMMING: [&str; 7] = [
    "DrainFrozen",
    "DrainSlice",
    "DrainErased",
    "DrainWritten",
    "DrainSynced",
    "DrainMarked",
    "DrainTrimmed",
];

#[test]
#[ignore = "what the tests below kill"]
fn the_victim() {
    let path = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let aim = std::env::var(STEP).unwrap();
    let passes: u64 = std::env::var(PASSES).unwrap().parse().unwrap();
    let passed = AtomicU64::new(0);
    let at = Arc::new(move |step: &str| {
        if step == aim && passed.fetch_add(1, Ordering::SeqCst) == passes {
            println!("reached {step}");
            loop {
                std::thread::park();
            }
        }
    });
    let is_open = Arc::new(AtomicBool::new(false));
    let tape = Tape::halfway({
        let (at, is_open) = (Arc::clone(&at), Arc::clone(&is_open));
        move || {
            at(if is_open.load(Ordering::SeqCst) {
                HALF_WRITTEN
            } else {
                HALF_REWRITTEN
            });
        }
    });
    let faults = Faults::new(move |step, _| {
        at(&format!("{step:?}"));
        Ok(())
    });
    let mut options = busy_options();
    options.faults = faults.taped(&Arc::new(tape));
    let kv = SledKv::open(&path, options).unwrap();
    is_open.store(true, Ordering::SeqCst);
    let commits = kv.view().unwrap().commit();
    let (mut model, mut random) = history(commits);
    for _ in 0..COMMITS_MAX {
        println!("acknowledged {}", commit(&kv, model.step(&mut random)));
    }
}

/// Kills a victim at a step, and returns what it was acknowledged last.
fn kill_at(store: &Path, step: &str, passes: u64) -> u64 {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::sled_kv::tests::aimed::the_victim"])
        .args(["--ignored", "--nocapture"])
        .env(DIRECTORY, store)
        .env(STEP, step)
        .env(PASSES, passes.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    let mut reached = false;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, number)) = line.split_once("acknowledged ") {
            last = number.parse().unwrap();
        }
        if line.contains("reached ") {
            reached = true;
            victim.kill().unwrap();
        }
    }
    let ended = victim.wait().unwrap();
    assert!(reached, "{step} was not reached {passes} times: {ended}");
    assert_eq!(ended.code(), None, "{step}: not killed, {ended}");
    last
}

/// Kills at each step of a list, round by round on one store, and looks at it after each.
fn kills(steps: &[&'static str], rounds: u64) {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let mut tally: BTreeMap<&str, u64> = BTreeMap::new();
    let mut acknowledged = 0;
    let mut kill = |step: &'static str, passes: u64| {
        acknowledged = kill_at(&store, step, passes).max(acknowledged);
        *tally.entry(step).or_default() += 1;
        // Its write-behind moves nothing: what is to be replayed stays.
        let kv = SledKv::open(&store, on_demand()).unwrap();
        let view = kv.view().unwrap();
        let found = view.commit();
        assert!(found >= acknowledged, "{step}: {found} of {acknowledged}");
        assert!(
            found <= acknowledged + 1,
            "{step}: {found} of {acknowledged}"
        );
        history(found).0.check(&*view);
        acknowledged = found;
    };
    for round in 0..rounds {
        for step in steps {
            if REPLAY.contains(step) {
                // So that there is something to replay, and it is not in the index.
                kill("CommitPublish", 1 + round);
                kill(step, 0);
            } else {
                kill(step, round * 5);
            }
        }
    }
    for step in steps {
        assert!(tally[step] >= rounds, "{step}: {tally:?}");
    }
    let kv = SledKv::open(&store, busy_options()).unwrap();
    let model = history(kv.view().unwrap().commit()).0;
    kv.drain().unwrap();
    kv.close().unwrap();
    audit(&store, &model);
}

#[test]
fn kills_aimed_at_writes_to_the_journal() {
    kills(&JOURNAL, 3);
}

#[test]
fn kills_aimed_at_the_replay() {
    kills(&REPLAY, 2);
}

#[test]
fn kills_aimed_at_the_trimming() {
    kills(&TRIMMING, 2);
}

/// `PROCESSION_KILLS` says how often each step is hit; 100 times by default.
#[test]
#[ignore = "takes minutes: the three above are the short form"]
fn as_many_aimed_kills_as_are_asked_for() {
    let rounds = std::env::var("PROCESSION_KILLS").map_or(100, |it| it.parse().unwrap());
    let steps = [&JOURNAL[..], &REPLAY, &TRIMMING].concat();
    kills(&steps, rounds);
}
