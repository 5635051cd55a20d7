//! What is written, by how much is stored already.
//!
//! Starts make a store larger, so on the small one they are made in short batches, each on a copy of its
//! own, as many as fill the time; on the large one there are as many, in batches of the same size. Each
//! batch ends when it is in the index.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;

use super::setup::{
    MAKERS, append, close, copy, drain, each, external, figure, median, open_with, place, rounded,
    runtime, start, start_some,
};
use super::{Ask, load, print, syncs};
use procession::Supervisor;

/// Stored processes at which it is measured, beside those that are appended to.
const SMALL: u64 = 1_000;
const LARGE: u64 = 1_000_000;
const LARGE_QUICK: u64 = 100_000;
/// Starts that are timed at a time: by so much a store of the small size grows.
const BATCH: u64 = 2_000;
/// Appends that nobody counts, after each open: they make the journal of a small store as long as what
/// follows needs it, as that of a large one is.
const WARMING: u64 = 10_000;
/// Each appends to a process of its own.
const CALLERS: usize = 64;
/// Pairs of measurements, one after the other, of which the median ratio counts.
const PAIRS: u32 = 5;
const CACHE_BYTES: u64 = 64 << 20;

/// Appends a second, and the starts.
struct Measured {
    appends: f64,
    starts: Starts,
}

/// Starts that were timed, batch by batch.
#[derive(Debug, Default)]
struct Starts {
    batches: u64,
    took: Duration,
}

impl Starts {
    async fn add(&mut self, supervisor: &Supervisor, from: u64) {
        let began = Instant::now();
        make(supervisor, CALLERS, from..from + BATCH).await;
        self.took += began.elapsed();
        self.batches += 1;
    }

    fn count(&self) -> u64 {
        self.batches * BATCH
    }

    fn per_second(&self) -> f64 {
        self.count() as f64 / self.took.as_secs_f64()
    }

    /// Prints them, in a store of a size that had grown, on average and at the end, by so much.
    fn say(&self, stored: u64, grown_on_average: u64, grown: u64) {
        print(
            &json!({ "figure": "size", "call": "start", "stored": stored,
            "stored_mean": stored + CALLERS as u64 + grown_on_average, "grown": grown,
            "starts": self.count(), "batches": self.batches, "callers": CALLERS,
            "per_second": self.per_second().round(), "seconds": rounded(self.took.as_secs_f64()),
            "cache_bytes": CACHE_BYTES }),
        );
    }
}

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        let large = if ask.quick { LARGE_QUICK } else { LARGE };
        let (small_place, large_place) = (place(ask), place(ask));
        grow(small_place.path(), SMALL).await;
        grow(large_place.path(), large).await;
        let (mut starts, mut appends) = (Vec::new(), Vec::new());
        let mut grown = 0;
        for _ in 0..PAIRS {
            let few = in_small(ask, small_place.path()).await;
            let batches = few.starts.batches;
            let many = in_large(ask, large_place.path(), large, grown, batches).await;
            grown += many.starts.count();
            starts.push(few.starts.per_second() / many.starts.per_second());
            appends.push(few.appends / many.appends);
        }
        for (name, mut ratios) in [("start", starts), ("append", appends)] {
            ratios.sort_by(f64::total_cmp);
            let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
            print(
                &json!({ "ratio": "size", "call": name, "stored": large, "to": SMALL,
                "slower": true, "value": rounded(median(ratios)), "lowest": rounded(lowest),
                "highest": rounded(highest), "pairs": PAIRS }),
            );
        }
    });
}

/// A store that is ready to be measured. Only one is open at a time: what a large one does by itself is a
/// cost of its own size.
async fn opened(store: &Path) -> Supervisor {
    let supervisor = open_with(store, |it| it.cache_capacity(CACHE_BYTES)).await;
    // The look at every process that follows an open is another figure's.
    supervisor.recover().await.expect("a recovery");
    let processes = supervisor.processes();
    // What was just copied is on the disk behind it as well.
    each(CALLERS, 0..WARMING, move |number| {
        let processes = processes.clone();
        let id = format!("written-{}", number % CALLERS as u64);
        async move { append(&processes, &id, number).await }
    })
    .await;
    drain(&supervisor).await;
    supervisor
}

async fn grow(store: &Path, to: u64) {
    let supervisor = open_with(store, |it| it.cache_capacity(CACHE_BYTES)).await;
    make(&supervisor, MAKERS, 0..to).await;
    start_some(&supervisor.processes(), "written", CALLERS).await;
    drain(&supervisor).await;
    close(&supervisor).await;
}

/// On copies of the small store.
async fn in_small(ask: &Ask, store: &Path) -> Measured {
    let (place, supervisor) = copied(ask, store).await;
    let appends = appended(ask, &supervisor, SMALL, 0).await;
    close(&supervisor).await;
    drop(place);
    let mut starts = Starts::default();
    while starts.took < ask.seconds / PAIRS {
        let (_place, supervisor) = copied(ask, store).await;
        starts.add(&supervisor, SMALL).await;
        close(&supervisor).await;
    }
    starts.say(SMALL, BATCH / 2, BATCH);
    Measured { appends, starts }
}

async fn copied(ask: &Ask, store: &Path) -> (tempfile::TempDir, Supervisor) {
    let place = place(ask);
    let copied = place.path().join("store");
    copy(store, &copied);
    let supervisor = opened(&copied).await;
    (place, supervisor)
}

/// On the large store, which has grown by so much since it was made.
async fn in_large(ask: &Ask, store: &Path, stored: u64, grown: u64, batches: u64) -> Measured {
    let supervisor = opened(store).await;
    let appends = appended(ask, &supervisor, stored, grown).await;
    let mut starts = Starts::default();
    for batch in 0..batches {
        let next = stored + grown + batch * BATCH;
        starts.add(&supervisor, next).await;
    }
    close(&supervisor).await;
    let count = starts.count();
    starts.say(stored, grown + count / 2, grown + count);
    Measured { appends, starts }
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

async fn appended(ask: &Ask, supervisor: &Supervisor, stored: u64, grown: u64) -> f64 {
    let processes = supervisor.processes();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        async move { append(&processes, &format!("written-{caller}"), number).await }
    };
    let before = supervisor.stats();
    syncs::listen();
    let time = ask.seconds / PAIRS;
    let measured = load::run(CALLERS, time, call, drain(supervisor)).await;
    let (p50, p99) = syncs::quantiles_us(&syncs::take());
    let after = supervisor.stats();
    let more = json!({ "call": "append", "stored": stored,
        "stored_mean": stored + CALLERS as u64 + grown, "grown": grown, "callers": CALLERS,
        "cache_bytes": CACHE_BYTES, "syncs": after.syncs - before.syncs,
        "sync_p50_us": p50, "sync_p99_us": p99,
        "index_keys": after.index_keys_written - before.index_keys_written });
    print(&figure("size", &measured, more));
    measured.per_second()
}
