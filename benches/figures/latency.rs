//! How long after it is durable an event reaches its subscriber, and an outcome its awaiter.
//!
//! Three clocks, all readings of one monotonic clock in one process: since the call began, since
//! the call's own answer (negative where the subscriber was told first), and since the end of the
//! sync that made it durable. The store tells when its syncs begin and end, but not what is in
//! each, so the last is given as two bounds: counted from the first sync that began after the call
//! (`sync`, which is no less than the truth), and from the last one that had ended when it was
//! delivered (`last_sync`, which is no more).

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_core::Stream;
use procession::{Processes, Subscription, Supervisor};
use serde_json::json;

use super::setup::{
    append, close, complete, drain, external, note, open, place, runtime, start, start_some,
};
use super::syncs::{self, Sync};
use super::{Ask, load, print};

/// Processes that are written to, each by one caller.
const BUSY: usize = 64;
/// The part of the peak at which it is measured.
const PACE: f64 = 0.25;
/// How long a subscriber waits for another event once all was written.
const SILENCE: Duration = Duration::from_secs(3);

/// The moments of one call.
#[derive(Debug, Clone, Copy)]
struct Moments {
    called: Instant,
    answered: Instant,
    delivered: Instant,
}

type Kept<T> = Arc<Mutex<Vec<T>>>;

fn keep<T>(kept: &Kept<T>, one: T) {
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    kept.push(one);
}

fn kept<T>(kept: &Kept<T>) -> Vec<T> {
    std::mem::take(&mut *kept.lock().unwrap_or_else(PoisonError::into_inner))
}

pub(crate) fn run(ask: &Ask) {
    syncs::listen();
    let runtime = runtime();
    runtime.block_on(events(ask));
    runtime.block_on(completions(ask));
}

async fn events(ask: &Ask) {
    let place = place(ask);
    let supervisor = open(place.path()).await;
    let processes = supervisor.processes();
    start_some(&processes, "p", BUSY).await;
    let peak = append_peak(ask, &supervisor).await;
    let subscribers = subscribe(&processes).await;
    syncs::take();
    let written: Kept<(usize, u64, Instant, Instant)> = Arc::default();
    let (writing, keeping) = (processes.clone(), Arc::clone(&written));
    let call = move |caller: usize, number: u64| {
        let (processes, written) = (writing.clone(), Arc::clone(&keeping));
        async move {
            let id = format!("p-{caller}");
            let called = Instant::now();
            let appended = processes.append_event(&id, note(number)).await;
            let answered = Instant::now();
            let sequence = appended.expect("an append").sequence;
            keep(&written, (caller, sequence, called, answered));
        }
    };
    let time = tokio::time::sleep(ask.seconds);
    let paced = load::paced(BUSY, peak * PACE, time, call).await;
    let mut delivered = HashMap::new();
    for (caller, subscriber) in subscribers.into_iter().enumerate() {
        for (sequence, at) in subscriber.await.expect("a subscriber") {
            delivered.insert((caller, sequence), at);
        }
    }
    let moments: Vec<_> = kept(&written)
        .into_iter()
        .map(|(caller, sequence, called, answered)| Moments {
            called,
            answered,
            delivered: delivered[&(caller, sequence)],
        })
        .collect();
    say(
        ["event_to_subscriber", "append_to_answer"],
        peak,
        &paced,
        &moments,
    );
    drain(&supervisor).await;
    close(&supervisor).await;
}

async fn append_peak(ask: &Ask, supervisor: &Supervisor) -> f64 {
    let processes = supervisor.processes();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        async move { append(&processes, &format!("p-{caller}"), number).await }
    };
    let time = ask.seconds.div_f64(3.0);
    let peak = load::run(BUSY, time, call, drain(supervisor)).await;
    peak.per_second()
}

type Subscriber = tokio::task::JoinHandle<Vec<(u64, Instant)>>;

/// One subscriber for each process, which keeps when it was given what.
async fn subscribe(processes: &Processes) -> Vec<Subscriber> {
    let mut subscribers = Vec::new();
    for number in 0..BUSY {
        let id = format!("p-{number}");
        let seen = processes.get(&id).await.expect("a read");
        let last = seen.expect("a process").last_sequence;
        let subscription = processes.subscribe(&id, last).await;
        subscribers.push(tokio::spawn(read(subscription.expect("a subscription"))));
    }
    subscribers
}

async fn read(mut subscription: Subscription) -> Vec<(u64, Instant)> {
    let mut given = Vec::new();
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut subscription).poll_next(cx));
        let Ok(next) = tokio::time::timeout(SILENCE, next).await else {
            return given;
        };
        let at = Instant::now();
        given.push((next.expect("a live log").expect("an event").sequence, at));
    }
}

/// Starts a process, has a task await it, and ends it; the end is what is timed.
async fn complete_one(processes: &Processes, id: String) -> Moments {
    start(processes, external(id.as_str(), "some")).await;
    let (awaiting, awaited) = (processes.clone(), id.clone());
    let awaiter = tokio::spawn(async move {
        let output = awaiting.await_output(&awaited).await;
        let at = Instant::now();
        output.expect("an output");
        at
    });
    // Its first poll is where it registers.
    tokio::task::yield_now().await;
    let called = Instant::now();
    complete(processes, &id).await;
    let answered = Instant::now();
    Moments {
        called,
        answered,
        delivered: awaiter.await.expect("an awaiter"),
    }
}

async fn completions(ask: &Ask) {
    let place = place(ask);
    let supervisor = open(place.path()).await;
    let ending: Kept<Moments> = Arc::default();
    let call = |prefix: &'static str| {
        let (processes, ending) = (supervisor.processes(), Arc::clone(&ending));
        move |caller: usize, number: u64| {
            let (processes, ending) = (processes.clone(), Arc::clone(&ending));
            async move {
                let id = format!("{prefix}-{caller}-{number}");
                keep(&ending, complete_one(&processes, id).await);
            }
        }
    };
    let time = ask.seconds.div_f64(3.0);
    let peak = load::run(BUSY, time, call("peak"), drain(&supervisor)).await;
    let peak = peak.per_second();
    kept(&ending);
    syncs::take();
    let time = tokio::time::sleep(ask.seconds);
    let paced = load::paced(BUSY, peak * PACE, time, call("paced")).await;
    say(
        ["completion_to_awaiter", "completion_to_answer"],
        peak,
        &paced,
        &kept(&ending),
    );
    drain(&supervisor).await;
    close(&supervisor).await;
}

fn micros(from: Instant, to: Instant) -> f64 {
    let after = to.saturating_duration_since(from).as_secs_f64();
    let before = from.saturating_duration_since(to).as_secs_f64();
    (after - before) * 1e6
}

/// Since the first sync that began after the call, and since the last that had ended in time.
fn since_syncs(syncs: &[Sync], moments: &Moments, at: Instant) -> Option<(f64, f64)> {
    let first = syncs.partition_point(|sync| sync.began < moments.called);
    let behind = syncs.partition_point(|sync| sync.ended <= at);
    let (first, last) = (syncs.get(first)?, syncs.get(behind.checked_sub(1)?)?);
    Some((micros(first.ended, at), micros(last.ended, at)))
}

/// Prints how these are spread.
fn spread(of: &str, since: &str, peak: f64, paced: &load::Measured, mut values: Vec<f64>) {
    values.sort_by(f64::total_cmp);
    let at = |thousandths: usize| {
        let last = values.len().saturating_sub(1);
        values.get(last * thousandths / 1_000).map(|it| it.round())
    };
    print(
        &json!({ "figure": "latency", "of": of, "since": since, "processes": BUSY,
        "p50_us": at(500), "p99_us": at(990), "p999_us": at(999), "calls": values.len(),
        "per_second": paced.per_second().round(), "peak_per_second": peak.round() }),
    );
}

fn say([of, answer]: [&str; 2], peak: f64, paced: &load::Measured, moments: &[Moments]) {
    let syncs = syncs::take();
    let from_syncs = |at: fn(&Moments) -> Instant| {
        let moments = moments.iter();
        let found = moments.filter_map(|it| since_syncs(&syncs, it, at(it)));
        found.unzip::<_, _, Vec<_>, Vec<_>>()
    };
    let from = |moment: fn(&Moments) -> Instant| {
        let moments = moments.iter();
        moments
            .map(|it| micros(moment(it), it.delivered))
            .collect::<Vec<_>>()
    };
    let (sync, last_sync) = from_syncs(|it| it.delivered);
    spread(of, "sync", peak, paced, sync);
    spread(of, "last_sync", peak, paced, last_sync);
    spread(of, "answer", peak, paced, from(|it| it.answered));
    spread(of, "call", peak, paced, from(|it| it.called));
    let (answered, _) = from_syncs(|it| it.answered);
    spread(answer, "sync", peak, paced, answered);
}
