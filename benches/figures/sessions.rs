//! What a session sees, by how much else is stored; and what its subscribers cost a writer.

use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_core::Stream;
use procession::{
    ExecutionScope, ProcessEventAppendRequest, ProcessEventType, ProcessListFilter,
    ProcessOriginator, ProcessStartGrant, ProcessStartRequest, Processes, ScopedEffectController,
    SessionScope, ShutdownOptions, Subscription, Supervisor,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::load;
use super::{Ask, print};

/// Stored processes at which it is measured; the store grows from one to the next.
const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The largest with `--quick`.
const QUICK_MAX: u64 = 10_000;
/// Processes granted to each of the two sessions.
const GRANTED: u64 = 50;
/// Of every so many of the first thousand processes, one belongs to each session.
const EVERY: u64 = 20;
/// Calls in flight while the store grows.
const GROWING: usize = 256;
const CACHE_BYTES: u64 = 64 << 20;

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(sessions(ask));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("bench"))
}

fn few() -> SessionScope {
    SessionScope::new("few")
}

fn many() -> SessionScope {
    SessionScope::new("many")
}

fn note(number: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", json!({ "n": number, "t": "x".repeat(100) }))
}

/// Whose the process with a number is, and how many events it has.
fn owner(number: u64) -> (SessionScope, u64) {
    match (number < GRANTED * EVERY, number % EVERY) {
        (true, 3) => (few(), 4),
        (true, 13) => (many(), 32),
        _ => (SessionScope::new(format!("s-{}", number / 50)), 0),
    }
}

async fn add(processes: &Processes, number: u64) {
    let (scope, events) = owner(number);
    let originator = ProcessOriginator::session(scope.clone());
    let request = ProcessStartRequest::external(format!("p-{number}"), originator, json!({}))
        .with_event_type(ProcessEventType::new("note"))
        .with_grant(Some(ProcessStartGrant::new(scope, "some work")));
    let started = processes.start(request, inline()).await.expect("a start");
    for event in 0..events {
        let appended = processes.append_event(&started.id, note(event)).await;
        appended.expect("an append");
    }
}

async fn grow(supervisor: &Supervisor, from: u64, to: u64) {
    let next = Arc::new(AtomicU64::new(from));
    let mut growing = JoinSet::new();
    for _ in 0..GROWING {
        let (next, processes) = (Arc::clone(&next), supervisor.processes());
        growing.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= to {
                    return;
                }
                add(&processes, number).await;
            }
        });
    }
    while let Some(grown) = growing.join_next().await {
        grown.expect("a caller");
    }
    supervisor.drain().await.expect("a drained store");
}

const CALLS: [&str; 4] = [
    "list_granted_to",
    "list_originated_by",
    "session_snapshot_4",
    "session_snapshot_32",
];

/// Makes a call, and says how many processes it showed.
async fn call(name: &str, processes: &Processes) -> usize {
    let all = ProcessListFilter::any();
    let shown = match name {
        "list_granted_to" => processes
            .list_granted_to(&few(), &all)
            .await
            .map(|l| l.len()),
        "list_originated_by" => {
            let listed = processes.list_originated_by(&few(), &all).await;
            listed.map(|l| l.len())
        }
        "session_snapshot_4" => processes
            .session_snapshot("few")
            .await
            .map(|s| s.items.len()),
        _ => processes
            .session_snapshot("many")
            .await
            .map(|s| s.items.len()),
    };
    shown.expect("a read")
}

/// The median of a warm call in milliseconds, and the tenth percentile: what it takes undisturbed.
async fn median(ask: &Ask, name: &str, processes: &Processes) -> (f64, f64) {
    for _ in 0..20 {
        assert_eq!(call(name, processes).await, 50, "{name}");
    }
    let until = Instant::now() + ask.seconds.div_f64(8.0).min(Duration::from_secs(5));
    let mut times = Vec::new();
    while Instant::now() < until || times.len() < 100 {
        let asked = Instant::now();
        call(name, processes).await;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 10].as_secs_f64() * 1e3;
    (at(5), at(1))
}

async fn open(place: &Path) -> Supervisor {
    Supervisor::builder(place)
        .cache_capacity(CACHE_BYTES)
        .open()
        .await
        .expect("a store")
}

async fn sessions(ask: &Ask) {
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let mut stored = 0;
    let mut smallest = Vec::new();
    for size in SIZES {
        if ask.quick && size > QUICK_MAX {
            break;
        }
        let supervisor = open(place.path()).await;
        grow(&supervisor, stored, size).await;
        stored = size;
        supervisor
            .shutdown(ShutdownOptions::default())
            .await
            .expect("a shutdown");
        for (at, (name, ms)) in CALLS
            .into_iter()
            .zip(in_child(ask, place.path(), stored))
            .enumerate()
        {
            match smallest.get(at) {
                None => smallest.push(ms),
                Some(first) => print(&json!({ "ratio": "sessions", "call": name,
                    "stored": stored, "to": SIZES[0], "value": rounded(ms / first) })),
            }
        }
    }
}

/// Measures in a process of its own: one that has just made a million processes has an allocator
/// that shows it. The median of each call.
fn in_child(ask: &Ask, place: &Path, stored: u64) -> Vec<f64> {
    let binary = std::env::current_exe().expect("this binary");
    let told = std::process::Command::new(binary)
        .args(["--child", &format!("sessions_{stored}"), "--seconds"])
        .arg(ask.seconds.as_secs_f64().to_string())
        .arg("--dir")
        .arg(place)
        .output()
        .expect("a child");
    assert!(told.status.success(), "{told:?}");
    let lines = String::from_utf8(told.stdout).expect("text");
    let figure = |line: &str| {
        let figure: Value = serde_json::from_str(line).expect("a figure");
        print(&figure);
        figure["ms_median"].as_f64().expect("a median")
    };
    lines.lines().map(figure).collect()
}

/// Measures a store of a size.
pub(crate) fn child(ask: &Ask, stored: u64) {
    runtime().block_on(async {
        let supervisor = open(&ask.dir).await;
        // The walk that each open begins with is behind it then.
        supervisor.recover().await.expect("a sweep");
        let processes = supervisor.processes();
        for name in CALLS {
            let (ms, undisturbed) = median(ask, name, &processes).await;
            print(
                &json!({ "figure": "sessions", "call": name, "stored": stored,
                "granted": GRANTED, "ms_median": rounded(ms),
                "ms_p10": rounded(undisturbed), "cache_bytes": CACHE_BYTES }),
            );
        }
        supervisor
            .shutdown(ShutdownOptions::default())
            .await
            .expect("a shutdown");
    });
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Processes that are written to and subscribed to.
const WRITTEN: usize = 10;
const READING: usize = 900;
const STALLED: usize = 100;
const WRITERS: usize = 64;
/// Pairs of runs, one after the other, of which the median ratio counts.
const PAIRS: usize = 5;

pub(crate) fn subscribers(ask: &Ask) {
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
