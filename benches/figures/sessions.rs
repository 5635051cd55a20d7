//! What a session sees, by how much else is stored.
//!
//! The stores of all sizes are made first, each from a copy of the one before. Then each is opened in a
//! process of its own (one that has just made a million processes has an allocator that shows it), which
//! keeps it open and measures when it is told to. In every round each call is measured on all stores,
//! one right after the other, so that a machine that gets slower or busier is so for all of them; a
//! ratio compares figures of one round, and the middle one of all rounds counts.
//!
//! Two sessions have all that they hold among the first thousand processes: side by side, however much
//! else is stored. What a third one holds is spread evenly over each store.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use procession::{
    ProcessEventAppendRequest, ProcessEventType, ProcessHandleDescriptor, ProcessListFilter,
    ProcessOriginator, ProcessStartGrant, ProcessStartRequest, Processes, SessionScope, Supervisor,
};
use serde_json::{Value, json};

use super::setup::{self, inline, median, rounded, runtime};
use super::{Ask, print};

/// Stored processes at which it is measured.
const SIZES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
/// The largest with `--quick`.
const QUICK_MAX: u64 = 10_000;
/// Processes granted to each of the sessions.
const GRANTED: u64 = 50;
/// Of every so many of the first thousand processes, one belongs to each of the first two.
const EVERY: u64 = 20;
const CACHE_BYTES: u64 = 64 << 20;
/// Rounds, and how many with `--quick`.
const ROUNDS: usize = 7;
const QUICK_ROUNDS: usize = 3;
/// Opens after each of which a first call is measured.
const COLD_ROUNDS: usize = 3;
/// Calls that a measurement begins with and does not count, and those that it counts at least.
const WARMING: usize = 20;
const COUNTED_MIN: usize = 100;

fn few() -> SessionScope {
    SessionScope::new("few")
}

fn many() -> SessionScope {
    SessionScope::new("many")
}

/// The session whose processes are spread over a store of this size. A larger store is a copy of it.
fn spread(stored: u64) -> SessionScope {
    SessionScope::new(format!("spread-{stored}"))
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

/// Has a session of its own hold every so many of all processes of a store, none of which another of the
/// measured sessions holds: that of a smaller store holds those next to them.
async fn add_spread(supervisor: &Supervisor, stored: u64) {
    let processes = supervisor.processes();
    let scope = spread(stored);
    let smaller = SIZES.iter().filter(|size| **size < stored).count() as u64;
    for number in 0..GRANTED {
        let id = format!("p-{}", number * (stored / GRANTED) + 5 + smaller);
        let descriptor = ProcessHandleDescriptor::label("some work");
        let granted = processes.grant(&scope, &id, descriptor).await;
        granted.expect("a grant");
        for event in 0..4 {
            let appended = processes.append_event(&id, note(event)).await;
            appended.expect("an append");
        }
    }
    setup::drain(supervisor).await;
}

async fn grow(supervisor: &Supervisor, from: u64, to: u64) {
    let processes = supervisor.processes();
    setup::each(setup::MAKERS, from..to, move |number| {
        let processes = processes.clone();
        async move { add(&processes, number).await }
    })
    .await;
    setup::drain(supervisor).await;
}

const CALLS: [&str; 6] = [
    "list_granted_to",
    "list_granted_to_spread",
    "list_originated_by",
    "session_snapshot_4",
    "session_snapshot_4_spread",
    "session_snapshot_32",
];

/// Makes a call on a store of this size, and says how many processes it showed.
async fn call(name: &str, processes: &Processes, stored: u64) -> usize {
    let all = ProcessListFilter::any();
    let shown = match name {
        "list_granted_to" => processes
            .list_granted_to(&few(), &all)
            .await
            .map(|l| l.len()),
        "list_granted_to_spread" => {
            let listed = processes.list_granted_to(&spread(stored), &all).await;
            listed.map(|l| l.len())
        }
        "session_snapshot_4_spread" => {
            let shown = processes.session_snapshot(spread(stored).session_id).await;
            shown.map(|s| s.items.len())
        }
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

async fn open(place: &Path) -> Supervisor {
    setup::open_with(place, |builder| builder.cache_capacity(CACHE_BYTES)).await
}

pub(crate) fn run(ask: &Ask) {
    let place = setup::place(ask);
    let sizes: Vec<u64> = SIZES
        .into_iter()
        .filter(|size| !ask.quick || *size <= QUICK_MAX)
        .collect();
    let stores = runtime().block_on(make(place.path(), &sizes));
    for (stored, store) in sizes.iter().zip(&stores) {
        runtime().block_on(cold(*stored, store));
    }
    let mut measuring: Vec<Measuring> = stores
        .iter()
        .zip(&sizes)
        .map(|(store, stored)| Measuring::begin(ask, store, *stored))
        .collect();
    let rounds = if ask.quick { QUICK_ROUNDS } else { ROUNDS };
    // By call, size and round.
    let mut times = vec![vec![Vec::new(); sizes.len()]; CALLS.len()];
    for round in 0..rounds {
        for (name, times) in CALLS.into_iter().zip(&mut times) {
            for turn in 0..sizes.len() {
                // Another one goes first each time.
                let at = (turn + round) % sizes.len();
                let measured = measuring[at].measure(name);
                times[at].push(measured);
            }
        }
    }
    measuring.into_iter().for_each(Measuring::end);
    for (name, times) in CALLS.into_iter().zip(&times) {
        report(name, &sizes, times);
    }
}

/// The first call on a store that was just opened: nothing of it is in its cache, though its file is in
/// the system's. Without recovery, whose walk would have read some of it.
async fn cold(stored: u64, store: &Path) {
    for name in CALLS {
        let mut times = Vec::new();
        for _ in 0..COLD_ROUNDS {
            let opening = |builder: procession::SupervisorBuilder| {
                builder.cache_capacity(CACHE_BYTES).recover(false)
            };
            let supervisor = setup::open_with(store, opening).await;
            let asked = Instant::now();
            let shown = call(name, &supervisor.processes(), stored).await;
            assert_eq!(shown, 50, "{name}");
            times.push(asked.elapsed().as_secs_f64() * 1e3);
            setup::close(&supervisor).await;
        }
        print(
            &json!({ "figure": "sessions", "call": name, "stored": stored, "granted": GRANTED,
            "ms_median": rounded(median(times)), "rounds": COLD_ROUNDS,
            "cache_bytes": CACHE_BYTES, "cache": "cold" }),
        );
    }
}

/// Prints the figures of a call by size, and their ratios to those of the smallest one.
fn report(name: &str, sizes: &[u64], times: &[Vec<Times>]) {
    for (stored, times) in sizes.iter().zip(times) {
        let of = |which: fn(&Times) -> f64| rounded(median(times.iter().map(which).collect()));
        print(
            &json!({ "figure": "sessions", "call": name, "stored": stored,
            "granted": GRANTED, "ms_median": of(|it| it.median_ms), "ms_p10": of(|it| it.p10_ms),
            "rounds": times.len(), "cache_bytes": CACHE_BYTES, "cache": "warm" }),
        );
    }
    for (stored, times_of) in sizes.iter().zip(times).skip(1) {
        let by_round = |which: fn(&Times) -> f64| {
            let pairs = times_of.iter().zip(&times[0]);
            let mut ratios: Vec<f64> = pairs.map(|(it, to)| which(it) / which(to)).collect();
            ratios.sort_by(f64::total_cmp);
            ratios
        };
        let ratios = by_round(|it| it.median_ms);
        let (lowest, highest) = (ratios[0], ratios[ratios.len() - 1]);
        print(
            &json!({ "ratio": "sessions", "call": name, "stored": stored, "to": sizes[0],
            "value": rounded(median(ratios)), "lowest": rounded(lowest),
            "highest": rounded(highest), "of_p10": rounded(median(by_round(|it| it.p10_ms))),
            "rounds": times_of.len() }),
        );
    }
}

/// Makes a store of each size.
async fn make(place: &Path, sizes: &[u64]) -> Vec<PathBuf> {
    let mut stores: Vec<PathBuf> = Vec::new();
    let mut stored = 0;
    for size in sizes {
        let store = place.join(size.to_string());
        match stores.last() {
            Some(smaller) => setup::copy(smaller, &store),
            None => std::fs::create_dir(&store).expect("a directory"),
        }
        let supervisor = open(&store).await;
        grow(&supervisor, stored, *size).await;
        add_spread(&supervisor, *size).await;
        setup::close(&supervisor).await;
        stored = *size;
        stores.push(store);
    }
    stores
}

/// What one measurement comes to, in milliseconds a call: the median, and the tenth percentile, which
/// is what it takes undisturbed.
#[derive(Debug, Clone, Copy)]
struct Times {
    median_ms: f64,
    p10_ms: f64,
}

/// A process that has a store open and measures when it is told to.
struct Measuring {
    stored: u64,
    child: Child,
    asked: ChildStdin,
    told: Lines<BufReader<ChildStdout>>,
}

impl Measuring {
    /// Returns once its store is warm and it does nothing.
    fn begin(ask: &Ask, store: &Path, stored: u64) -> Self {
        let slice = ask.seconds.div_f64(60.0).min(Duration::from_millis(500));
        let binary = std::env::current_exe().expect("this binary");
        let mut child = Command::new(binary)
            .args(["--child", "sessions", "--seconds"])
            .arg(slice.as_secs_f64().to_string())
            .arg("--dir")
            .arg(store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a child");
        let asked = child.stdin.take().expect("its input");
        let told = BufReader::new(child.stdout.take().expect("its output")).lines();
        let mut begun = Self {
            stored,
            child,
            asked,
            told,
        };
        for name in CALLS {
            begun.measure(name);
        }
        begun
    }

    fn measure(&mut self, name: &str) -> Times {
        writeln!(self.asked, "{name} {}", self.stored).expect("a child that listens");
        let line = self.told.next().expect("an answer").expect("text");
        let times: Value = serde_json::from_str(&line).expect("times");
        let of = |key: &str| times[key].as_f64().expect("a time");
        Times {
            median_ms: of("median_ms"),
            p10_ms: of("p10_ms"),
        }
    }

    fn end(self) {
        let Self {
            stored: _,
            mut child,
            asked,
            told,
        } = self;
        drop((asked, told));
        let ended = child.wait().expect("a child that ends");
        assert!(ended.success(), "{ended}");
    }
}

/// Measures on a store for as long as it is told to, a call at a time.
pub(crate) fn child(ask: &Ask) {
    runtime().block_on(async {
        let supervisor = open(&ask.dir).await;
        // The walk that each open begins with is behind it then.
        supervisor.recover().await.expect("a sweep");
        let processes = supervisor.processes();
        for asked in std::io::stdin().lines() {
            let asked = asked.expect("text");
            let (name, stored) = asked.split_once(' ').expect("a call and a size");
            let stored = stored.parse().expect("a size");
            let times = measured(ask.seconds, name, &processes, stored).await;
            print(&json!({ "median_ms": times.median_ms, "p10_ms": times.p10_ms }));
        }
        setup::close(&supervisor).await;
    });
}

async fn measured(time: Duration, name: &str, processes: &Processes, stored: u64) -> Times {
    for _ in 0..WARMING {
        assert_eq!(call(name, processes, stored).await, 50, "{name}");
    }
    let until = Instant::now() + time;
    let mut times = Vec::new();
    while Instant::now() < until || times.len() < COUNTED_MIN {
        let asked = Instant::now();
        call(name, processes, stored).await;
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    let at = |part: usize| times[times.len() * part / 10].as_secs_f64() * 1e3;
    Times {
        median_ms: at(5),
        p10_ms: at(1),
    }
}
