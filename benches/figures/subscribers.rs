//! What the subscribers of a session cost a writer, and what those hold that do not read.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;

use futures_core::Stream;
use procession::{
    ProcessEventAppendRequest, ProcessEventType, ProcessOriginator, ProcessStartRequest,
    ProcessWake, Processes, Selector, SessionScope, SessionWatch, ShutdownOptions, Subscription,
    Supervisor, WakeSemantics,
};
use serde_json::json;
use tokio::task::JoinSet;

use super::load;
use super::setup::{each, external, median, resident_bytes, rounded, runtime, start};
use super::{Ask, print};

/// Processes that are written to and subscribed to.
const WRITTEN: usize = 10;
/// Events of each that are there before anybody subscribes: many more than a subscriber may hold.
const EARLIER: u64 = 1_000;
const READING: usize = 900;
/// Subscribers that stop reading. Half have read one event and hold what they took with it, half wait
/// for news.
const STALLED: usize = 100;
/// Watches of the session that are never read, half of them after a first look.
const WATCHING: usize = 50;
/// Who waits for a wake, and does not look when it comes.
const WAKING: usize = 50;
/// Between two wakes.
const WAKE_EVERY: Duration = Duration::from_millis(5);
const WRITERS: usize = 64;
/// Pairs of runs, one after the other, of which the median ratio counts.
const PAIRS: usize = 5;

const SESSION: &str = "session";

fn note(number: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", json!({ "n": number, "t": "x".repeat(100) }))
}

/// What a run shows.
struct Written {
    per_second: f64,
    /// What became resident from before the stalled ones came until the end of the writing.
    grown_bytes: Option<f64>,
}

pub(crate) fn run(ask: &Ask) {
    let runtime = runtime();
    let (mut ratios, mut with, mut without) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        let run = |beside| runtime.block_on(written(ask, beside));
        // Each goes first in turn: a machine that gets slower favours neither.
        let (alone, beside) = if pair % 2 == 0 {
            let alone = run(false);
            (alone, run(true))
        } else {
            let beside = run(true);
            (run(false), beside)
        };
        // What a write costs, not how many there are.
        ratios.push(alone.per_second / beside.per_second);
        with.extend(beside.grown_bytes);
        without.extend(alone.grown_bytes);
    }
    print(
        &json!({ "ratio": "subscribers", "call": "append_event", "reading": READING,
        "never_reading": STALLED + WATCHING + WAKING, "to": 0, "value": rounded(median(ratios)) }),
    );
    let (with, without) = (median(with), median(without));
    print(
        &json!({ "figure": "stalled_memory", "stalled": STALLED, "watching": WATCHING,
        "waking": WAKING, "grown_bytes_with": with, "grown_bytes_without": without,
        "difference_bytes": with - without }),
    );
}

type Wakes = procession::Result<Vec<ProcessWake>>;

/// Those who do not read.
#[derive(Default)]
struct Stalled {
    subscriptions: Vec<Subscription>,
    watches: Vec<SessionWatch>,
    wakes: Vec<Pin<Box<dyn Future<Output = Wakes> + Send>>>,
}

impl Stalled {
    async fn come(supervisor: &Supervisor) -> Self {
        let processes = supervisor.processes();
        let scope = SessionScope::new(SESSION);
        let mut stalled = Self::default();
        for number in 0..STALLED {
            let subscription = if number % 2 == 0 {
                let mut subscription = subscribe(&processes, number / 2, 0).await;
                assert!(next(&mut subscription).await, "one event");
                subscription
            } else {
                // Looked at once, so that it waits and is told.
                let mut subscription = subscribe(&processes, number / 2, EARLIER).await;
                assert!(waits(|cx| Pin::new(&mut subscription)
                    .poll_next(cx)
                    .is_pending()));
                subscription
            };
            stalled.subscriptions.push(subscription);
        }
        for number in 0..WATCHING {
            let session = supervisor.session(scope.clone()).processes();
            let mut watch = session.watch_session().expect("a watch");
            if number % 2 == 0 {
                assert!(next(&mut watch).await, "a snapshot");
                assert!(waits(|cx| Pin::new(&mut watch).poll_next(cx).is_pending()));
            }
            stalled.watches.push(watch);
        }
        for _ in 0..WAKING {
            let (processes, scope) = (processes.clone(), scope.clone());
            let wakes = async move { processes.next_wakes(&scope).await };
            stalled.wakes.push(Box::pin(wakes));
        }
        // A look at the store, and then it waits.
        for _ in 0..2 {
            for wakes in &mut stalled.wakes {
                assert!(waits(|cx| wakes.as_mut().poll(cx).is_pending()));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stalled
    }
}

fn waits(poll: impl FnOnce(&mut Context<'_>) -> bool) -> bool {
    poll(&mut Context::from_waker(Waker::noop()))
}

async fn subscribe(processes: &Processes, number: usize, after: u64) -> Subscription {
    let id = format!("w-{}", number % WRITTEN);
    processes
        .subscribe(&id, after)
        .await
        .expect("a subscription")
}

/// A process that wakes the session.
fn waking() -> ProcessStartRequest {
    let wake = WakeSemantics::new(Selector::constant("look"));
    ProcessStartRequest::external("waking", ProcessOriginator::host(), json!({}))
        .with_event_type(ProcessEventType::new("ping").with_wake(wake))
        .with_wake_target(Some(SessionScope::new(SESSION)))
}

/// Appends a second beside reading subscribers, and some that never read.
async fn written(ask: &Ask, beside_stalled: bool) -> Written {
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let supervisor = Supervisor::builder(place.path())
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    for number in 0..WRITTEN {
        start(&processes, external(format!("w-{number}"), SESSION)).await;
    }
    start(&processes, waking()).await;
    let appending = processes.clone();
    let append = move |number: u64| {
        let processes = appending.clone();
        async move {
            let id = format!("w-{}", number % WRITTEN as u64);
            let appended = processes.append_event(&id, note(number)).await;
            appended.expect("an append");
        }
    };
    each(WRITERS, 0..EARLIER * WRITTEN as u64, append.clone()).await;
    let delivered = Arc::new(AtomicU64::new(0));
    let mut readers = JoinSet::new();
    for number in 0..READING {
        let mut subscription = subscribe(&processes, number, EARLIER).await;
        let delivered = Arc::clone(&delivered);
        readers.spawn(async move {
            while next(&mut subscription).await {
                delivered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    let before = resident_bytes();
    let stalled = if beside_stalled {
        Stalled::come(&supervisor).await
    } else {
        Stalled::default()
    };
    let pinging = processes.clone();
    readers.spawn(async move {
        loop {
            let ping = ProcessEventAppendRequest::new("ping", json!({}));
            let pinged = pinging.append_event("waking", ping).await;
            pinged.expect("a wake");
            tokio::time::sleep(WAKE_EVERY).await;
        }
    });
    let drained = async { supervisor.drain().await.expect("a drained store") };
    let time = ask.seconds.div_f64(2.0 * PAIRS as f64);
    let call = move |caller: usize, _| append(caller as u64);
    let measured = load::run(WRITERS, time, call, drained).await;
    let after = resident_bytes();
    readers.abort_all();
    let grown = before.zip(after).map(|(before, after)| {
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52 bytes")]
        let grown = after as f64 - before as f64;
        grown
    });
    print(&json!({ "figure": "subscribers", "reading": READING,
        "stalled": stalled.subscriptions.len(), "watching": stalled.watches.len(),
        "waking": stalled.wakes.len(), "processes": WRITTEN, "callers": WRITERS,
        "per_second": measured.per_second().round(),
        "p50_us": measured.quantile_us(500), "p99_us": measured.quantile_us(990),
        "delivered": delivered.load(Ordering::Relaxed),
        "resident_bytes_before": before, "resident_bytes_after": after,
        "seconds": measured.elapsed.as_secs_f64() }));
    drop(stalled);
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .expect("a shutdown");
    Written {
        per_second: measured.per_second(),
        grown_bytes: grown,
    }
}

/// Whether there was a next one.
async fn next<T, S: Stream<Item = procession::Result<T>> + Unpin>(stream: &mut S) -> bool {
    let next = std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await;
    matches!(next, Some(Ok(_)))
}
