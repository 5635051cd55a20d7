//! What it costs to keep processes leased.

use std::time::Duration;

use procession::{LeaseTimings, Processes, StoreStats, Supervisor};
use serde_json::json;

use super::setup::{
    append, close, drain, figure, median, open_with, place, rounded, runtime, start_some,
    start_waiting, waiting,
};
use super::{Ask, load, print};

const LEASED: [u64; 3] = [1, 1_000, 100_000];
/// The most with `--quick`.
const QUICK_MAX: u64 = 10_000;
const TTL: Duration = Duration::from_secs(3);
const RENEW_EVERY: Duration = Duration::from_secs(1);
/// Leased processes beside which is appended, against one.
const BESIDE: u64 = 10_000;
const CALLERS: usize = 64;
/// Pairs of runs, one after the other, of which the median ratio counts.
const PAIRS: usize = 3;

pub(crate) fn run(ask: &Ask) {
    let runtime = runtime();
    for leased in LEASED {
        let leased = if ask.quick {
            leased.min(QUICK_MAX)
        } else {
            leased
        };
        runtime.block_on(intervals(ask, leased));
    }
    let mut ratios = Vec::new();
    for _ in 0..PAIRS {
        let one = runtime.block_on(appends(ask, 1));
        let many = runtime.block_on(appends(ask, BESIDE));
        ratios.push(many / one);
    }
    print(
        &json!({ "ratio": "heartbeat", "call": "append", "leased": BESIDE, "to": 1,
        "value": rounded(median(ratios)) }),
    );
}

/// A runtime with so many processes that run and wait.
async fn leased(directory: &std::path::Path, count: u64) -> Supervisor {
    let (engine, waits) = waiting();
    let timings = LeaseTimings::new(TTL, RENEW_EVERY).expect("timings");
    let supervisor = open_with(directory, |it| it.engine(engine).lease(timings)).await;
    start_waiting(&supervisor, 0..count, &waits).await;
    supervisor
}

/// Waits until nothing but heartbeats is written.
async fn quiet(supervisor: &Supervisor) {
    loop {
        let before = supervisor.stats().commits;
        tokio::time::sleep(RENEW_EVERY * 2).await;
        if supervisor.stats().commits - before <= 3 {
            return;
        }
    }
}

async fn intervals(ask: &Ask, count: u64) {
    let place = place(ask);
    let supervisor = leased(place.path(), count).await;
    quiet(&supervisor).await;
    let intervals = if ask.quick { 5 } else { 15 };
    let before = supervisor.stats();
    tokio::time::sleep(RENEW_EVERY * intervals).await;
    let after = supervisor.stats();
    let rate = |of: fn(&StoreStats) -> u64| {
        rounded((of(&after) - of(&before)) as f64 / f64::from(intervals))
    };
    print(
        &json!({ "figure": "heartbeat", "leased": count, "live": live(&supervisor, count).await,
        "commits_per_interval": rate(|it| it.commits), "syncs_per_interval": rate(|it| it.syncs),
        "index_keys_per_interval": rate(|it| it.index_keys_written),
        "intervals": intervals, "interval_seconds": RENEW_EVERY.as_secs_f64(),
        "ttl_seconds": TTL.as_secs_f64() }),
    );
    end(&supervisor).await;
}

/// How many hold a live lease under the first attempt.
async fn live(supervisor: &Supervisor, count: u64) -> u64 {
    let processes: Processes = supervisor.processes();
    let mut live = 0;
    for number in 0..count {
        let seen = processes.get(&format!("w-{number}")).await.expect("a read");
        let seen = seen.expect("a process");
        live += u64::from(seen.attempt == 1 && seen.lease.is_some_and(|lease| lease.live));
    }
    live
}

async fn appends(ask: &Ask, count: u64) -> f64 {
    let place = place(ask);
    let supervisor = leased(place.path(), count).await;
    start_some(&supervisor.processes(), "p", CALLERS).await;
    quiet(&supervisor).await;
    let processes = supervisor.processes();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        async move { append(&processes, &format!("p-{caller}"), number).await }
    };
    let time = ask.seconds.div_f64(PAIRS as f64);
    let measured = load::run(CALLERS, time, call, drain(&supervisor)).await;
    let more = json!({ "call": "append", "callers": CALLERS, "leased": count });
    print(&figure("heartbeat", &measured, more));
    end(&supervisor).await;
    measured.per_second()
}

async fn end(supervisor: &Supervisor) {
    drain(supervisor).await;
    close(supervisor).await;
}
