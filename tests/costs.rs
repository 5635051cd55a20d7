//! What an append and a whole lifecycle cost, in things that can be counted: commits, syncs, bytes
//! of journal, keys of the index, allocations. A guard against getting slower without noticing
//! whose bounds are counts and no times.
//!
//! The write-behind goes by the clock: on a machine that is busy more of its passes fall into the same
//! work. So keys are allowed for each pass that there can have been, and what a pass allocates is not
//! counted. What is left is the same on a busy machine and on one that is not.
//!
//! One test, because the counts are those of the whole operating-system process. Where a change
//! is meant to cost more, or costs less, its bound is the one to move.
#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test that cannot go on says so, and this one says what it counted"
)]

mod common;

use std::alloc::System;
use std::time::{Duration, Instant};

use common::*;
use procession::*;
use serde_json::json;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const APPENDS: u64 = 2_000;
const LIFECYCLES: u64 = 200;
const EVENTS: u64 = 10;
/// Appends that are made at once.
const CALLERS: u64 = 64;
/// Passes of the write-behind are no closer together, unless they are urged.
const PASS_EVERY: Duration = Duration::from_millis(50);
/// Keys that each pass writes again of a process that is written to: its state, its entry of the feed in
/// another place, its last chunk; and a half to spare.
const KEYS_A_PASS: f64 = 4.5;
/// What a pass allocates, for each of its keys.
const ALLOCATIONS_A_KEY: f64 = 22.0;

/// What so many operations cost, each on average.
#[derive(Debug)]
struct Cost {
    commits: f64,
    syncs: f64,
    journal_bytes: f64,
    index_keys: f64,
    /// The most passes of the write-behind that there can have been.
    passes: f64,
    /// But for those of the write-behind.
    allocations: f64,
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
async fn cost(supervisor: &Supervisor, operations: u64, work: impl AsyncFnOnce()) -> Cost {
    supervisor.drain().await.unwrap();
    let before = supervisor.stats();
    let (region, began) = (Region::new(ALLOCATOR), Instant::now());
    work().await;
    let (allocated, took) = (region.change(), began.elapsed());
    let written_meanwhile = supervisor.stats().index_keys_written - before.index_keys_written;
    supervisor.drain().await.unwrap();
    let after = supervisor.stats();
    // The last one is the drain's.
    let passes = took.div_duration_f64(PASS_EVERY) + 1.0;
    let allocations = (allocated.allocations + allocated.reallocations) as f64
        - written_meanwhile as f64 * ALLOCATIONS_A_KEY;
    let each = |after: u64, before: u64| (after - before) as f64 / operations as f64;
    Cost {
        commits: each(after.commits, before.commits),
        syncs: each(after.syncs, before.syncs),
        journal_bytes: each(after.journal_bytes, before.journal_bytes),
        index_keys: each(after.index_keys_written, before.index_keys_written),
        passes: passes / operations as f64,
        allocations: allocations / operations as f64,
    }
}

fn at_most(what: &str, found: f64, bound: f64) {
    assert!(
        found <= bound,
        "{what}: {found:.2}, at most {bound} are allowed"
    );
}

async fn appends(supervisor: &Supervisor) {
    let processes = supervisor.processes();
    let request = external("p").with_event_type(ProcessEventType::new("note"));
    processes.start(request, inline()).await.unwrap();
    let text = "x".repeat(188);
    let append = async |number: u64| {
        let payload = json!({ "n": number, "t": text });
        let request = ProcessEventAppendRequest::new("note", payload);
        processes.append_event("p", request).await.unwrap();
    };
    for number in 0..100 {
        append(number).await;
    }
    let cost = cost(supervisor, APPENDS, async || {
        for number in 0..APPENDS {
            append(number).await;
        }
    })
    .await;
    println!("an append: {cost:?}");
    // Nobody else is there, so each is a group of its own; a heartbeat may come in between.
    at_most("commits of an append", cost.commits, 1.01);
    at_most("syncs of an append", cost.syncs, 1.01);
    at_most("bytes of journal of an append", cost.journal_bytes, 540.0);
    // A chunk for some eighteen events.
    let keys = 0.08 + cost.passes * KEYS_A_PASS;
    at_most("index keys of an append", cost.index_keys, keys);
    at_most("allocations of an append", cost.allocations, 48.0);
}

/// What many callers ask of one process at once shares sets, and what many ask of many shares groups.
async fn appends_at_once(supervisor: &Supervisor) {
    // Of one process the pass alone, of 64 that have one event each the chunk and the state of each.
    for (what, spread, keys, allocations) in [
        ("one process", 1, 0.02, 27.0),
        ("64 processes", CALLERS, 4.1, 56.0),
    ] {
        let processes = supervisor.processes();
        for number in 0..spread {
            let id = format!("at-once-{spread}-{number}");
            let request = external(&id).with_event_type(ProcessEventType::new("note"));
            processes.start(request, inline()).await.unwrap();
            let warm = ProcessEventAppendRequest::new("note", json!({ "n": 0 }));
            processes.append_event(&id, warm).await.unwrap();
        }
        let cost = cost(supervisor, CALLERS, async || {
            let mut calls = tokio::task::JoinSet::new();
            for number in 0..CALLERS {
                let processes = processes.clone();
                calls.spawn(async move {
                    let id = format!("at-once-{spread}-{}", number % spread);
                    let request = ProcessEventAppendRequest::new("note", json!({ "n": number }));
                    processes.append_event(&id, request).await.unwrap();
                });
            }
            while let Some(called) = calls.join_next().await {
                called.unwrap();
            }
        })
        .await;
        println!("one of {CALLERS} appends at once to {what}: {cost:?}");
        // A few groups for all of them, depending on when the committer looks.
        at_most("syncs of appends at once", cost.syncs, 0.25);
        let sets = if spread == 1 { 0.25 } else { 1.05 };
        at_most("commits of appends at once", cost.commits, sets);
        let keys = keys + cost.passes * KEYS_A_PASS;
        at_most("index keys of appends at once", cost.index_keys, keys);
        // A tenth more than what was seen: each further group costs some as well.
        at_most(
            "allocations of appends at once",
            cost.allocations,
            allocations,
        );
    }
}

async fn lifecycles(supervisor: &Supervisor) {
    let processes = supervisor.processes();
    let scope = SessionScope::new("s");
    let live = async |id: String| {
        let request = rerunnable(&id, "talks")
            .with_event_type(ProcessEventType::new("note"))
            .with_grant(Some(ProcessStartGrant::new(scope.clone(), "work")));
        processes.start(request, inline()).await.unwrap();
        let output = processes.await_output(&id).await.unwrap();
        assert!(matches!(output, ProcessAwaitOutput::Success { .. }));
    };
    live("warm".to_owned()).await;
    let cost = cost(supervisor, LIFECYCLES, async || {
        for number in 0..LIFECYCLES {
            live(format!("l-{number}")).await;
        }
    })
    .await;
    println!("a lifecycle of {EVENTS} events: {cost:?}");
    // The start, the claim, and the events with the end.
    at_most("commits of a lifecycle", cost.commits, 3.05);
    at_most("syncs of a lifecycle", cost.syncs, 3.05);
    at_most(
        "bytes of journal of a lifecycle",
        cost.journal_bytes,
        2_500.0,
    );
    let keys = 7.3 + cost.passes * KEYS_A_PASS;
    at_most("index keys of a lifecycle", cost.index_keys, keys);
    at_most("allocations of a lifecycle", cost.allocations, 550.0);
}

#[test]
fn an_append_and_a_lifecycle_cost_no_more_than_they_did() {
    let place = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let talks = engine("talks", |cx: ProcessContext, _| async move {
            for number in 0..EVENTS {
                cx.emit("note", json!({ "n": number })).await?;
            }
            Ok(json!(null))
        });
        let supervisor = Supervisor::builder(place.path())
            .engine(talks)
            .open()
            .await
            .unwrap();
        appends(&supervisor).await;
        appends_at_once(&supervisor).await;
        lifecycles(&supervisor).await;
        supervisor
            .shutdown(ShutdownOptions::default())
            .await
            .unwrap();
    });
}
