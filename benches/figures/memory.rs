//! Memory per process, each case in a process of its own: what an allocator was given back and
//! gives out again would show as memory that costs nothing.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use procession::{Processes, Supervisor};
use serde_json::json;

use super::setup::{
    MAKERS, PASSIVATED_AFTER, close, complete, drain, each, external, open_with, place,
    resident_bytes, runtime, start, start_waiting, waiting,
};
use super::{Ask, print};

/// Small, so that it is full before anything is counted: it is the store's, however many processes run.
const CACHE_BYTES: u64 = 2 << 20;
/// Processes before those that are counted: the store's cache and the runtime's own are warm then.
const WARM: u64 = 2_000;

/// A case: its name, how many processes, and what it does with a store.
const CASES: [(&str, u64); 5] = [
    ("active", 10_000),
    ("parked", 100_000),
    ("parked_reopened", 100_000),
    ("terminal", 100_000),
    ("terminal_reopened", 100_000),
];
const QUICK_PART: u64 = 10;

pub(crate) fn run(ask: &Ask) {
    let mut place = place(ask);
    for (case, _) in CASES {
        // What is opened again is what the case before has left.
        if !case.ends_with("_reopened") {
            place = super::setup::place(ask);
        }
        let binary = std::env::current_exe().expect("this binary");
        let mut child = Command::new(binary);
        child.args(["--child", case, "--dir"]).arg(place.path());
        if ask.quick {
            child.arg("--quick");
        }
        let mut child = child.stdout(Stdio::piped()).spawn().expect("a child");
        for line in BufReader::new(child.stdout.take().expect("its output")).lines() {
            // Printed here, so that it counts among this program's.
            print(&serde_json::from_str(&line.expect("text")).expect("a figure"));
        }
        let ended = child.wait().expect("a child");
        assert!(ended.success(), "{case}: {ended}");
    }
}

/// One case, in a process of its own.
pub(crate) fn child(ask: &Ask, case: &str) {
    let (_, count) = CASES
        .iter()
        .find(|(name, _)| *name == case)
        .expect("a case");
    let count = if ask.quick {
        count / QUICK_PART
    } else {
        *count
    };
    let store = ask.dir.join("store");
    runtime().block_on(async {
        match case {
            "active" => active(&store, count).await,
            "parked" => made(case, &store, count, false).await,
            "terminal" => made(case, &store, count, true).await,
            _ => reopened(case, &ask.dir, count).await,
        }
    });
}

fn say(case: &str, count: u64, before: Option<u64>, after: Option<u64>, how: &str) {
    let each = before
        .zip(after)
        .map(|(before, after)| (after as f64 - before as f64) / count as f64);
    print(
        &json!({ "figure": "memory", "case": case, "processes": count, "how": how,
        "bytes_each": each.map(f64::round), "resident_before": before, "resident_after": after,
        "cache_bytes": CACHE_BYTES }),
    );
}

async fn settle(supervisor: &Supervisor) {
    drain(supervisor).await;
    tokio::time::sleep(PASSIVATED_AFTER).await;
    drain(supervisor).await;
}

async fn active(store: &Path, count: u64) {
    let (engine, waits) = waiting();
    let with = |it: procession::SupervisorBuilder| it.engine(engine).cache_capacity(CACHE_BYTES);
    let supervisor = open_with(store, with).await;
    start_waiting(&supervisor, 0..WARM, &waits).await;
    settle(&supervisor).await;
    let before = resident_bytes();
    start_waiting(&supervisor, WARM..WARM + count, &waits).await;
    settle(&supervisor).await;
    let between = resident_bytes();
    say(
        "active",
        count,
        before,
        between,
        "engine waits for a signal",
    );
    start_waiting(&supervisor, WARM + count..WARM + 2 * count, &waits).await;
    settle(&supervisor).await;
    say("active", count, between, resident_bytes(), "as many again");
    close(&supervisor).await;
}

/// As many again, once the first are there: what is not needed per process shows in the first only.
async fn made(case: &str, store: &Path, count: u64, ended: bool) {
    let supervisor = open_with(store, |it| it.cache_capacity(CACHE_BYTES)).await;
    make(&supervisor.processes(), 0..WARM, ended).await;
    settle(&supervisor).await;
    let before = resident_bytes();
    make(&supervisor.processes(), WARM..count, ended).await;
    settle(&supervisor).await;
    let between = resident_bytes();
    say(case, count - WARM, before, between, "made here");
    make(&supervisor.processes(), count..2 * count, ended).await;
    settle(&supervisor).await;
    say(case, count, between, resident_bytes(), "as many again");
    close(&supervisor).await;
}

async fn make(processes: &Processes, numbers: std::ops::Range<u64>, ended: bool) {
    let processes = processes.clone();
    each(MAKERS, numbers, move |number| {
        let (processes, id) = (processes.clone(), format!("p-{number}"));
        async move {
            start(&processes, external(id.as_str(), "some")).await;
            if ended {
                complete(&processes, &id).await;
            }
        }
    })
    .await;
}

/// A store that holds twice as many, opened again, against one that holds none.
async fn reopened(case: &str, directory: &Path, count: u64) {
    let mut resident = Vec::new();
    for store in ["empty", "store"] {
        let store = directory.join(store);
        let supervisor = open_with(&store, |it| it.cache_capacity(CACHE_BYTES)).await;
        settle(&supervisor).await;
        resident.push(resident_bytes());
        close(&supervisor).await;
    }
    let how = "opened again, against an empty store";
    say(case, 2 * count, resident[0], resident[1], how);
}
