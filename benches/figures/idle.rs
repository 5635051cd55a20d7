//! What a runtime with many parked processes costs while nothing happens.
//!
//! Recovery walks through all that has not ended once in a time to live, or where that takes long as
//! seldom as makes it a quarter of a percent of the time. One may fall into what is watched (`sweeps` says so),
//! and what one costs is measured besides. Each kind is in a store of its own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use procession::{
    EngineFailure, ProcessContext, ProcessEngine, ProcessEventType, RecoveryReport, Supervisor,
};
use serde_json::json;
use tokio::sync::Notify;

use super::setup::{
    MAKERS, PASSIVATED_AFTER, close, drain, each, engine, external, open, open_with, place,
    rounded, runtime, signal, start, work,
};
use super::{Ask, print};

const PARKED: u64 = 100_000;
/// Longer than two of the times to live that leases have by default.
const WATCHED: Duration = Duration::from_secs(65);
/// Longer than one.
const WATCHED_QUICK: Duration = Duration::from_secs(32);
/// What the system counts processor time in, for every program, on every machine it matters on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        externally_owned(ask).await;
        queued(ask).await;
        children(ask).await;
    });
}

fn session(number: u64) -> String {
    format!("s-{}", number / 50)
}

/// Executed elsewhere, and nobody's children.
async fn externally_owned(ask: &Ask) {
    let place = place(ask);
    let supervisor = open(place.path()).await;
    let processes = supervisor.processes();
    each(MAKERS, 0..PARKED, move |number| {
        let processes = processes.clone();
        let request = external(format!("p-{number}"), &session(number));
        async move { start(&processes, request).await }
    })
    .await;
    watch(ask, &supervisor, "external", 0).await;
}

/// Queued behind one that holds the only slot.
async fn queued(ask: &Ask) {
    let place = place(ask);
    let with = |it: procession::SupervisorBuilder| it.engine(holding()).concurrency(1);
    let supervisor = open_with(place.path(), with).await;
    let processes = supervisor.processes();
    each(MAKERS, 0..PARKED + 1, move |number| {
        let processes = processes.clone();
        let request = work(format!("p-{number}"), "hold", &session(number));
        async move { start(&processes, request).await }
    })
    .await;
    watch(ask, &supervisor, "queued", 1).await;
}

/// An engine of kind `hold`, whose processes keep their slot until they are to stop.
fn holding() -> impl ProcessEngine {
    engine("hold", Vec::new(), |cx: ProcessContext, _| async move {
        Err(EngineFailure::cancelled(cx.cancelled().await))
    })
}

/// Executed elsewhere, and children of one that waits.
async fn children(ask: &Ask) {
    let place = place(ask);
    let started = Arc::new(Notify::new());
    let parent = parent(Arc::clone(&started));
    let supervisor = open_with(place.path(), |it| it.engine(parent)).await;
    let request = work("parent", "parent", "some");
    start(&supervisor.processes(), request).await;
    started.notified().await;
    watch(ask, &supervisor, "child", 1).await;
}

/// An engine of kind `parent`, whose process starts children, says so, and waits for a signal that never
/// comes.
fn parent(started: Arc<Notify>) -> impl ProcessEngine {
    let go = vec![ProcessEventType::signal("go")];
    engine("parent", go, move |cx: ProcessContext, _| {
        let started = Arc::clone(&started);
        async move {
            let starting = cx.clone();
            each(MAKERS, 0..PARKED, move |number| {
                let cx = starting.clone();
                async move {
                    // Its id is made of the parent and the key.
                    let request = external("child", &session(number));
                    let child = cx.start_child(&number.to_string(), request).await;
                    child.expect("a child");
                }
            })
            .await;
            started.notify_one();
            let signal = signal(&cx, "go").await?;
            Ok(signal.sequence.into())
        }
    })
}

/// Watches what is parked, and so many beside them that are executed here.
async fn watch(ask: &Ask, supervisor: &Supervisor, kind: &str, executing: u64) {
    drain(supervisor).await;
    tokio::time::sleep(PASSIVATED_AFTER).await;
    let watched = if ask.quick { WATCHED_QUICK } else { WATCHED };
    // It takes a sweep to be told of those before it.
    let swept_before = sweep(supervisor).await.since_open.sweeps;
    let (began, before, stats) = (Instant::now(), ticks(), supervisor.stats());
    tokio::time::sleep(watched).await;
    let (elapsed, after) = (began.elapsed().as_secs_f64(), ticks());
    let share = before
        .zip(after)
        .map(|(before, after)| (after - before) / TICKS_PER_SECOND / elapsed);
    let now = supervisor.stats();
    let (began, before) = (Instant::now(), ticks());
    let asked_for = sweep(supervisor).await;
    let walk_ms = began.elapsed().as_secs_f64() * 1_000.0;
    let walk_cpu_ms = before
        .zip(ticks())
        .map(|(before, after)| (after - before) / TICKS_PER_SECOND * 1_000.0);
    print(
        &json!({ "figure": "idle", "kind": kind, "parked": PARKED, "executing": executing,
        "seconds": rounded(elapsed), "cpu_percent": share.map(|share| rounded(share * 100.0)),
        "commits": now.commits - stats.commits,
        "index_keys": now.index_keys_written - stats.index_keys_written,
        "sweeps": asked_for.since_open.sweeps - swept_before - 1,
        // Of one that was asked for and looks at everything.
        "walk": { "examined": asked_for.examined, "ms": walk_ms.round(), "cpu_ms": walk_cpu_ms } }),
    );
    close(supervisor).await;
}

async fn sweep(supervisor: &Supervisor) -> RecoveryReport {
    supervisor.recover().await.expect("a sweep")
}

/// Processor time of this program so far, where the system tells.
fn ticks() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything; user and system time are 14th and 15th.
    let (_, fields) = told.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}
