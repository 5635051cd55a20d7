//! What is written, by how much is stored already.

use serde_json::json;

use super::setup::{
    MAKERS, append, close, drain, each, external, figure, median, open_with, place, rounded,
    runtime, start, start_some,
};
use super::{Ask, load, print};
use procession::Supervisor;

/// Stored processes at which it is measured.
const SMALL: u64 = 1_000;
const LARGE: u64 = 1_000_000;
const LARGE_QUICK: u64 = 100_000;
/// Starts that are timed at a time: a store of the small size must not grow large by it.
const STARTS: u64 = 10_000;
const CALLERS: usize = 64;
/// Measurements of each kind, of which the median counts.
const TIMES: usize = 5;
const CACHE_BYTES: u64 = 64 << 20;

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        let large = if ask.quick { LARGE_QUICK } else { LARGE };
        // A fresh store each time: the starts that are timed make it larger.
        let (mut starts, mut appends) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            let (started, appended) = at(ask, SMALL, 1).await;
            starts.extend(started);
            appends.extend(appended);
        }
        let small = (median(starts), median(appends));
        let (starts, appends) = at(ask, large, TIMES).await;
        let large_medians = (median(starts), median(appends));
        for (name, small, value) in [
            ("start", small.0, large_medians.0),
            ("append", small.1, large_medians.1),
        ] {
            print(
                &json!({ "ratio": "size", "call": name, "stored": large, "to": SMALL,
                "per_second": [value.round(), small.round()],
                "value": rounded(small / value) }),
            );
        }
    });
}

/// Starts and appends a second in a store of a size, so many times each.
async fn at(ask: &Ask, stored: u64, times: usize) -> (Vec<f64>, Vec<f64>) {
    let place = place(ask);
    let supervisor = open_with(place.path(), |it| it.cache_capacity(CACHE_BYTES)).await;
    make(&supervisor, MAKERS, 0..stored).await;
    start_some(&supervisor.processes(), "written", CALLERS).await;
    drain(&supervisor).await;
    let (mut starts, mut appends) = (Vec::new(), Vec::new());
    let mut next = stored;
    for _ in 0..times {
        appends.push(appended(ask, &supervisor, stored).await);
        let began = std::time::Instant::now();
        make(&supervisor, CALLERS, next..next + STARTS).await;
        next += STARTS;
        let per_second = STARTS as f64 / began.elapsed().as_secs_f64();
        print(
            &json!({ "figure": "size", "call": "start", "stored": stored, "starts": STARTS,
            "callers": CALLERS, "per_second": per_second.round(), "cache_bytes": CACHE_BYTES }),
        );
        starts.push(per_second);
    }
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
    let time = ask.seconds.div_f64(TIMES as f64);
    let measured = load::run(CALLERS, time, call, drain(supervisor)).await;
    let more = json!({ "call": "append", "stored": stored, "callers": CALLERS,
        "cache_bytes": CACHE_BYTES });
    print(&figure("size", &measured, more));
    measured.per_second()
}
