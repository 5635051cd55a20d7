//! Opening a store whose owner was killed: how long until it serves, how long until everything
//! that was started is settled, and what other calls feel of it meanwhile.
//!
//! Of the processes half are `Rerunnable` and started, 30 % `OwnerBound` and started, 10 % started
//! and asked to be given up, 10 % never started; ten events each. A child prepares them, and is
//! killed with everything running.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use procession::{
    Durability, EngineFailure, EngineResult, ExecutionScope, PageRequest, ProcessContext,
    ProcessEngine, ProcessEventAppendRequest, ProcessEventType, ProcessInput, ProcessListFilter,
    ProcessOriginator, ProcessStartGrant, ProcessStartRequest, Processes, RecoveryDisposition,
    ScopedEffectController, SessionScope, ShutdownOptions, Supervisor,
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Ask, print};

const PROCESSES: u64 = 100_000;
/// With `--quick`.
const QUICK_PROCESSES: u64 = 10_000;
const EVENTS_EACH: u64 = 10;
/// Processes that the calls beside recovery are about.
const BESIDE: u64 = 50;
/// Calls in flight while the store is prepared.
const PREPARING: usize = 256;
/// Callers beside recovery, and the pause of each between two calls.
const CALLERS: u64 = 6;
const PAUSE: Duration = Duration::from_millis(5);
/// Tells a child what to prepare.
const PREPARE: &str = "PROCESSION_FIGURES_PREPARE";
const PREPARE_IN: &str = "PROCESSION_FIGURES_PREPARE_IN";

/// Says nine things and then runs until it is told to stop.
struct Works {
    said: Arc<AtomicU64>,
}

#[async_trait::async_trait]
impl ProcessEngine for Works {
    fn kind(&self) -> &str {
        "work"
    }

    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        if cx.attempt() == 1 {
            // And one event says that it was started.
            for n in 0..EVENTS_EACH - 2 {
                cx.emit("note", note(n).payload).await?;
            }
            cx.emit_durable(note(EVENTS_EACH)).await?;
            self.said.fetch_add(1, Ordering::Relaxed);
        }
        Err(EngineFailure::cancelled(cx.cancelled().await))
    }
}

fn note(number: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", json!({ "n": number, "t": "x".repeat(100) }))
}

fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("bench"))
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

/// Whether this is a child that was to prepare a store; it is killed before it returns.
pub(crate) fn prepared() -> bool {
    let (Ok(count), Ok(place)) = (std::env::var(PREPARE), std::env::var(PREPARE_IN)) else {
        return false;
    };
    // Nobody is left to kill it where its parent was killed.
    std::thread::spawn(|| {
        let _ = std::io::stdin().read(&mut [0]);
        std::process::exit(1);
    });
    let count = count.parse().expect("a number of processes");
    runtime().block_on(prepare(Path::new(&place), count));
    true
}

async fn prepare(place: &Path, count: u64) {
    let started = count / 10 * 9;
    let said = Arc::new(AtomicU64::new(0));
    let engine = Works {
        said: Arc::clone(&said),
    };
    let supervisor = Supervisor::builder(place)
        .engine(engine)
        .durability(Durability::Relaxed(Duration::from_secs(1)))
        .concurrency(usize::try_from(started).expect("a machine of today"))
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    for_each(BESIDE, &processes, |processes, n| async move {
        let originator = ProcessOriginator::session(beside());
        let request = ProcessStartRequest::external(format!("beside-{n}"), originator, json!({}))
            .with_event_type(ProcessEventType::new("note"))
            .with_grant(Some(ProcessStartGrant::new(beside(), "beside")));
        processes.start(request, inline()).await.expect("a start");
    })
    .await;
    for_each(started, &processes, start).await;
    while said.load(Ordering::Relaxed) < started {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    for_each(count / 10, &processes, |processes, n| async move {
        let id = format!("p-{}", n * 9 + 8);
        let abandoned = processes.request_abandon(&id, "bench", None);
        abandoned.await.expect("a request");
    })
    .await;
    // Every slot is taken now.
    for_each(count / 10, &processes, move |processes, n| async move {
        start(processes.clone(), started + n).await;
        for number in 0..EVENTS_EACH {
            let id = format!("p-{}", started + n);
            let appended = processes.append_event(&id, note(number)).await;
            appended.expect("an append");
        }
    })
    .await;
    print(&json!("prepared"));
    std::future::pending::<()>().await;
}

fn beside() -> SessionScope {
    SessionScope::new("beside")
}

/// Does something for so many, with a bounded number at once.
async fn for_each<F, R>(count: u64, processes: &Processes, what: F)
where
    F: Fn(Processes, u64) -> R,
    R: Future<Output = ()> + Send + 'static,
{
    let room = Arc::new(Semaphore::new(PREPARING));
    let mut tasks = JoinSet::new();
    for n in 0..count {
        let permit = Arc::clone(&room).acquire_owned().await.expect("open");
        let doing = what(processes.clone(), n);
        tasks.spawn(async move {
            doing.await;
            drop(permit);
        });
        while let Some(done) = tasks.try_join_next() {
            done.expect("no panic");
        }
    }
    while let Some(done) = tasks.join_next().await {
        done.expect("no panic");
    }
}

/// Of nine that are started, five may be run again, three may not, one is to be given up.
async fn start(processes: Processes, number: u64) {
    let disposition = match number % 9 {
        0..=4 | 8 => RecoveryDisposition::Rerunnable,
        _ => RecoveryDisposition::OwnerBound,
    };
    let request = ProcessStartRequest::new(
        format!("p-{number}"),
        ProcessInput::engine("work", json!({ "n": number })),
        disposition,
        ProcessOriginator::host(),
    )
    .with_event_type(ProcessEventType::new("note"));
    processes.start(request, inline()).await.expect("a start");
}

pub(crate) fn run(ask: &Ask) {
    let count = if ask.quick {
        QUICK_PROCESSES
    } else {
        PROCESSES
    };
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let began = Instant::now();
    let mut child = Command::new(std::env::current_exe().expect("this program"))
        .env(PREPARE, count.to_string())
        .env(PREPARE_IN, place.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let said = BufReader::new(child.stdout.take().expect("piped"));
    let ready = said
        .lines()
        .any(|line| line.expect("text") == "\"prepared\"");
    child.kill().expect("it runs");
    child.wait().expect("it was killed");
    assert!(ready, "the store could not be prepared");
    figure(
        "prepared",
        &json!({ "processes": count, "events": count * EVENTS_EACH,
                 "seconds": began.elapsed().as_secs_f64() }),
    );
    runtime().block_on(recover(place.path()));
}

fn figure(what: &str, facts: &Value) {
    let mut line = json!({ "figure": "recovery", "what": what });
    if let (Some(line), Some(facts)) = (line.as_object_mut(), facts.as_object()) {
        line.extend(facts.clone());
    }
    print(&line);
}

async fn recover(place: &Path) {
    let began = Instant::now();
    let engine = Works {
        said: Arc::default(),
    };
    let supervisor = Supervisor::builder(place)
        .engine(engine)
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    let first = processes.get("beside-0").await.expect("an answer");
    assert!(first.is_some(), "what was acknowledged is there");
    let serving = began.elapsed();
    figure("serving_s", &json!({ "value": serving.as_secs_f64() }));

    let over = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for caller in 0..CALLERS {
        callers.spawn(call_beside(processes.clone(), caller, Arc::clone(&over)));
    }
    let report = supervisor.recover().await.expect("a sweep");
    let settled = began.elapsed();
    over.store(true, Ordering::Relaxed);
    let mut latencies_us = Vec::new();
    while let Some(measured) = callers.join_next().await {
        latencies_us.extend(measured.expect("a caller"));
    }
    check_settled(&processes).await;
    figure(
        "settled_s",
        &json!({ "value": settled.as_secs_f64(), "released": report.since_open.released,
                 "abandoned": report.since_open.abandoned, "examined": report.examined }),
    );
    latencies_us.sort_unstable();
    let at = |thousandths: usize| {
        let last = latencies_us.len().saturating_sub(1);
        Duration::from_micros(latencies_us[last * thousandths / 1_000]).as_secs_f64() * 1_000.0
    };
    figure(
        "p99_ms",
        &json!({ "value": at(990), "p50_ms": at(500), "max_ms": at(1_000),
                 "calls": latencies_us.len() }),
    );
    supervisor
        .shutdown(ShutdownOptions::grace(Duration::ZERO))
        .await
        .expect("a shutdown");
}

/// One call after the other, with a pause between them: gets, appends, lists.
async fn call_beside(processes: Processes, caller: u64, over: Arc<AtomicBool>) -> Vec<u64> {
    let mut latencies = Vec::new();
    let mut number = 0;
    while !over.load(Ordering::Relaxed) {
        let id = format!("beside-{}", (caller * 7 + number) % BESIDE);
        let sent = Instant::now();
        match (caller + number) % 3 {
            0 => drop(processes.get(&id).await.expect("an answer")),
            1 => drop(
                processes
                    .append_event(&id, note(number))
                    .await
                    .expect("an event"),
            ),
            _ => {
                let filter = ProcessListFilter::default();
                let listed = processes.list_granted_to(&beside(), &filter).await;
                drop(listed.expect("a list"));
            }
        }
        latencies.push(u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX));
        number += 1;
        tokio::time::sleep(PAUSE).await;
    }
    latencies
}

/// What was started is free, held by somebody who lives, or has ended.
async fn check_settled(processes: &Processes) {
    let filter = ProcessListFilter::default();
    let mut page = PageRequest::first(1_000);
    loop {
        let found = processes.list_page(&filter, &page).await.expect("a page");
        for process in &found.items {
            let held = process.lease.as_ref().is_some_and(|lease| !lease.live);
            assert!(!held, "{} is still its dead owner's", process.process_id);
        }
        match found.next {
            Some(next) => page = PageRequest::after(next, 1_000),
            None => break,
        }
    }
}
