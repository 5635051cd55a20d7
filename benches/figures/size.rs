//! What is written, by how much is stored already.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::setup::{
    MAKERS, append, close, drain, each, external, figure, median, open_with, place, rounded,
    runtime, start, start_some,
};
use super::{Ask, load, print, syncs};
use procession::Supervisor;

/// Stored processes at which it is measured.
const SMALL: u64 = 1_000;
const LARGE: u64 = 1_000_000;
const LARGE_QUICK: u64 = 100_000;
/// Starts that are timed at a time: a store of the small size must not grow large by it.
const STARTS: u64 = 10_000;
const CALLERS: usize = 64;
/// Pairs of measurements, one after the other, of which the median ratio counts.
const PAIRS: u64 = 5;
const CACHE_BYTES: u64 = 64 << 20;

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        let large = if ask.quick { LARGE_QUICK } else { LARGE };
        let large_place = place(ask);
        grow(large_place.path(), large).await;
        let (mut starts, mut appends) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            // A fresh one each time: the starts that are timed make it larger.
            let small_place = place(ask);
            grow(small_place.path(), SMALL).await;
            let small = at(ask, small_place.path(), SMALL, SMALL).await;
            let next = large + pair * STARTS;
            let large = at(ask, large_place.path(), large, next).await;
            starts.push(small.0 / large.0);
            appends.push(small.1 / large.1);
        }
        for (name, ratios) in [("start", starts), ("append", appends)] {
            print(
                &json!({ "ratio": "size", "call": name, "stored": large, "to": SMALL,
                "slower": true, "value": rounded(median(ratios)) }),
            );
        }
    });
}

async fn opened(store: &Path) -> Supervisor {
    open_with(store, |it| it.cache_capacity(CACHE_BYTES)).await
}

async fn grow(store: &Path, to: u64) {
    let supervisor = opened(store).await;
    make(&supervisor, MAKERS, 0..to).await;
    start_some(&supervisor.processes(), "written", CALLERS).await;
    drain(&supervisor).await;
    close(&supervisor).await;
}

/// Starts and appends a second in a store of a size. Only one store is open at a time: what a large
/// one does by itself is a cost of its own size.
async fn at(ask: &Ask, store: &Path, stored: u64, next: u64) -> (f64, f64) {
    let supervisor = opened(store).await;
    // The look at every process that follows an open is another figure's.
    supervisor.recover().await.expect("a recovery");
    let appends = appended(ask, &supervisor, stored).await;
    let began = Instant::now();
    make(&supervisor, CALLERS, next..next + STARTS).await;
    let starts = STARTS as f64 / began.elapsed().as_secs_f64();
    print(
        &json!({ "figure": "size", "call": "start", "stored": stored, "starts": STARTS,
        "callers": CALLERS, "per_second": starts.round(), "cache_bytes": CACHE_BYTES }),
    );
    close(&supervisor).await;
    (starts, appends)
}

/// Starts processes, until all of it is in the index.
async fn make(supervisor: &Supervisor, at_once: usize, numbers: std::ops::Range<u64>) {
    let processes = supervisor.processes();
    each(at_once, numbers, move |number| {
        let processes = processes.clone();
        let request = external(format!("p-{number}"), &format!("s-{}", number / 50));
        async move { start(&processes, request).await }
    })
    .await;
    drain(supervisor).await;
}

async fn appended(ask: &Ask, supervisor: &Supervisor, stored: u64) -> f64 {
    let processes = supervisor.processes();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        async move { append(&processes, &format!("written-{caller}"), number).await }
    };
    let time = ask.seconds.div_f64(PAIRS as f64);
    let before = supervisor.stats();
    syncs::listen();
    let measured = load::run(CALLERS, time, call, drain(supervisor)).await;
    let (p50, p99) = syncs::quantiles_us(&syncs::take());
    let after = supervisor.stats();
    let more = json!({ "call": "append", "stored": stored, "callers": CALLERS,
        "cache_bytes": CACHE_BYTES, "syncs": after.syncs - before.syncs,
        "sync_p50_us": p50, "sync_p99_us": p99,
        "index_keys": after.index_keys_written - before.index_keys_written });
    print(&figure("size", &measured, more));
    measured.per_second()
}
