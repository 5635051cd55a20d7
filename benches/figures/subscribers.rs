//! What the subscribers of a session cost a writer.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_core::Stream;
use procession::{
    ProcessEventAppendRequest, ProcessEventType, ProcessOriginator, ProcessStartRequest,
    ShutdownOptions, Subscription, Supervisor,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::load;
use super::setup::{inline, rounded, runtime};
use super::{Ask, print};

/// Processes that are written to and subscribed to.
const WRITTEN: usize = 10;
const READING: usize = 900;
const STALLED: usize = 100;
const WRITERS: usize = 64;
/// Pairs of runs, one after the other, of which the median ratio counts.
const PAIRS: usize = 5;

fn note(number: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", json!({ "n": number, "t": "x".repeat(100) }))
}

pub(crate) fn run(ask: &Ask) {
    let runtime = runtime();
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let run = |stalled| runtime.block_on(written(ask, stalled));
        // Each goes first in turn: a machine that gets slower favours neither.
        let (alone, beside) = if pair % 2 == 0 {
            let alone = run(0);
            (alone, run(STALLED))
        } else {
            let beside = run(STALLED);
            (run(0), beside)
        };
        // What a write costs, not how many there are.
        ratios.push(alone / beside);
    }
    ratios.sort_by(f64::total_cmp);
    print(
        &json!({ "ratio": "subscribers", "call": "append_event", "reading": READING,
        "never_reading": STALLED, "to": 0, "value": rounded(ratios[PAIRS / 2]) }),
    );
}

/// Appends a second beside reading subscribers, and some that never read.
async fn written(ask: &Ask, stalled: usize) -> f64 {
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let supervisor = Supervisor::builder(place.path())
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    for number in 0..WRITTEN {
        let id = format!("w-{number}");
        let request = ProcessStartRequest::external(id, ProcessOriginator::host(), json!({}))
            .with_event_type(ProcessEventType::new("note"));
        processes.start(request, inline()).await.expect("a start");
    }
    let subscribe = |number: usize| {
        let processes = processes.clone();
        async move {
            let id = format!("w-{}", number % WRITTEN);
            processes.subscribe(&id, 0).await.expect("a subscription")
        }
    };
    let delivered = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for number in 0..READING {
        let mut subscription = subscribe(number).await;
        let delivered = Arc::clone(&delivered);
        readers.spawn(async move {
            while next(&mut subscription).await {
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let mut never_reading = Vec::new();
    for number in 0..stalled {
        // Looked at once, so that it waits and is told.
        let mut subscription = subscribe(number).await;
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(Pin::new(&mut subscription).poll_next(&mut cx).is_pending());
        never_reading.push(subscription);
    }
    let before = resident_kib();
    let appending = processes.clone();
    let append = move |caller: usize, number: u64| {
        let processes = appending.clone();
        async move {
            let id = format!("w-{}", caller % WRITTEN);
            let appended = processes.append_event(&id, note(number)).await;
            appended.expect("an append");
        }
    };
    let drained = async { supervisor.drain().await.expect("a drained store") };
    let time = ask.seconds.div_f64(2.0 * PAIRS as f64);
    let measured = load::run(WRITERS, time, append, drained).await;
    let after = resident_kib();
    readers.abort_all();
    drop(never_reading);
    print(
        &json!({ "figure": "subscribers", "reading": READING, "never_reading": stalled,
        "processes": WRITTEN, "callers": WRITERS, "per_second": measured.per_second().round(),
        "p50_us": measured.quantile_us(500), "p99_us": measured.quantile_us(990),
        "delivered": delivered.load(Ordering::Relaxed),
        "resident_kib_before": before, "resident_kib_after": after,
        "seconds": measured.elapsed.as_secs_f64() }),
    );
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .expect("a shutdown");
    measured.per_second()
}

/// Whether there was a next event.
async fn next(subscription: &mut Subscription) -> bool {
    let next = std::future::poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx)).await;
    matches!(next, Some(Ok(_)))
}

/// Memory that is resident, where the system tells.
fn resident_kib() -> Value {
    let told = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .into()
}
