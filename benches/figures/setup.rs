//! What the figures have in common: stores, processes, engines.

use std::future::Future;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use procession::{
    CompletionAuthority, EngineFailure, EngineResult, ExecutionScope, ProcessAwaitOutput,
    ProcessContext, ProcessEngine, ProcessEvent, ProcessEventAppendRequest, ProcessEventType,
    ProcessInput, ProcessOriginator, ProcessStartGrant, ProcessStartRequest, Processes,
    RecoveryDisposition, ScopedEffectController, SessionScope, ShutdownOptions, Supervisor,
    SupervisorBuilder,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Ask;
use super::load::Measured;

/// Bytes of JSON in a [`note`].
pub(crate) const NOTE_BYTES: usize = 200;
/// Calls in flight where many processes are made beforehand.
pub(crate) const MAKERS: usize = 256;
/// Longer than an actor with nothing to do is kept.
pub(crate) const PASSIVATED_AFTER: Duration = Duration::from_secs(12);

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime")
}

pub(crate) fn place(ask: &Ask) -> tempfile::TempDir {
    tempfile::tempdir_in(&ask.dir).expect("a directory")
}

/// Copies a closed store to a place where there is nothing.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if from.is_dir() {
            copy(&from, &to);
        } else {
            std::fs::copy(from, to).expect("a copy");
        }
    }
}

pub(crate) async fn open(directory: &Path) -> Supervisor {
    open_with(directory, |builder| builder).await
}

pub(crate) async fn open_with(
    directory: &Path,
    with: impl FnOnce(SupervisorBuilder) -> SupervisorBuilder,
) -> Supervisor {
    let opened = with(Supervisor::builder(directory)).open().await;
    opened.expect("a store")
}

pub(crate) async fn drain(supervisor: &Supervisor) {
    supervisor.drain().await.expect("a drained store");
}

pub(crate) async fn close(supervisor: &Supervisor) {
    let closed = supervisor
        .shutdown(ShutdownOptions::grace(Duration::from_secs(30)))
        .await;
    closed.expect("a shutdown");
}

pub(crate) fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("bench"))
}

/// Externally owned work that takes notes, granted to a session.
pub(crate) fn external(id: impl Into<String>, session: &str) -> ProcessStartRequest {
    granted(
        ProcessStartRequest::external(id, ProcessOriginator::host(), json!({})),
        session,
    )
    .with_event_type(ProcessEventType::new("note"))
}

/// Work for an engine, granted to a session.
pub(crate) fn work(id: impl Into<String>, kind: &str, session: &str) -> ProcessStartRequest {
    let request = ProcessStartRequest::new(
        id,
        ProcessInput::engine(kind, json!({})),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    );
    granted(request, session)
}

fn granted(request: ProcessStartRequest, session: &str) -> ProcessStartRequest {
    let grant = ProcessStartGrant::new(SessionScope::new(session), "some work");
    request.with_grant(Some(grant))
}

pub(crate) async fn start(processes: &Processes, request: ProcessStartRequest) {
    processes.start(request, inline()).await.expect("a start");
}

/// Starts externally owned processes that take notes, `{prefix}-0` and on.
pub(crate) async fn start_some(processes: &Processes, prefix: &str, count: usize) {
    for number in 0..count {
        start(processes, external(format!("{prefix}-{number}"), "some")).await;
    }
}

/// Text that makes a note 200 bytes of JSON.
fn filling(number: u64) -> String {
    let bare = json!({ "n": number, "t": "" }).to_string().len();
    "x".repeat(NOTE_BYTES.saturating_sub(bare))
}

/// An event with 200 bytes of payload.
pub(crate) fn note(number: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", note_payload(number))
}

pub(crate) fn note_payload(number: u64) -> Value {
    json!({ "n": number, "t": filling(number) })
}

pub(crate) async fn append(processes: &Processes, id: &str, number: u64) {
    let appended = processes.append_event(id, note(number)).await;
    appended.expect("an append");
}

/// Ends externally owned work well.
pub(crate) async fn complete(processes: &Processes, id: &str) {
    let authority = CompletionAuthority::Host { by: "bench".into() };
    let output = ProcessAwaitOutput::success(json!({ "ok": true }));
    let ended = processes.complete_external(id, output, authority).await;
    ended.expect("a completion");
}

/// Does something for every number of a range, so many at once.
pub(crate) async fn each<C, F>(at_once: usize, numbers: Range<u64>, call: C)
where
    C: Fn(u64) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send,
{
    let (next, call) = (Arc::new(AtomicU64::new(numbers.start)), Arc::new(call));
    let mut calling = JoinSet::new();
    for _ in 0..at_once {
        let (next, call) = (Arc::clone(&next), Arc::clone(&call));
        calling.spawn(async move {
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= numbers.end {
                    return;
                }
                call(number).await;
            }
        });
    }
    while let Some(called) = calling.join_next().await {
        called.expect("a caller");
    }
}

/// An engine that runs a closure.
pub(crate) struct Run<F> {
    kind: &'static str,
    event_types: Vec<ProcessEventType>,
    run: F,
}

pub(crate) fn engine<F, R>(
    kind: &'static str,
    event_types: Vec<ProcessEventType>,
    run: F,
) -> impl ProcessEngine
where
    F: Fn(ProcessContext, Value) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    Run {
        kind,
        event_types,
        run,
    }
}

#[async_trait::async_trait]
impl<F, R> ProcessEngine for Run<F>
where
    F: Fn(ProcessContext, Value) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    fn kind(&self) -> &str {
        self.kind
    }

    fn event_types(&self) -> Vec<ProcessEventType> {
        self.event_types.clone()
    }

    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult {
        (self.run)(cx, payload).await
    }
}

/// The next signal of a name, unless the attempt is to stop first: a shutdown need not wait then.
pub(crate) async fn signal(cx: &ProcessContext, name: &str) -> Result<ProcessEvent, EngineFailure> {
    tokio::select! {
        signal = cx.wait_signal(name) => Ok(signal?),
        reason = cx.cancelled() => Err(EngineFailure::cancelled(reason)),
    }
}

/// An engine of kind `wait` whose processes wait for a signal that never comes, and the count of
/// those that do.
pub(crate) fn waiting() -> (impl ProcessEngine, Arc<AtomicU64>) {
    let count = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&count);
    let run = move |cx: ProcessContext, _| {
        let counted = Arc::clone(&counted);
        async move {
            counted.fetch_add(1, Ordering::Relaxed);
            let signal = signal(&cx, "go").await?;
            Ok(signal.sequence.into())
        }
    };
    (
        engine("wait", vec![ProcessEventType::signal("go")], run),
        count,
    )
}

/// Starts processes that wait, and returns once the engines of all of them were called.
pub(crate) async fn start_waiting(
    supervisor: &Supervisor,
    numbers: Range<u64>,
    waiting: &AtomicU64,
) {
    let (processes, until) = (supervisor.processes(), numbers.end);
    each(MAKERS, numbers, move |number| {
        let processes = processes.clone();
        async move { start(&processes, work(format!("w-{number}"), "wait", "some")).await }
    })
    .await;
    while waiting.load(Ordering::Relaxed) < until {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drain(supervisor).await;
}

/// What is said of every load, with what is said of this one besides.
pub(crate) fn figure(name: &str, measured: &Measured, more: Value) -> Value {
    let mut line = json!({ "figure": name });
    let said = json!({
        "per_second": measured.per_second().round(),
        "p50_us": measured.quantile_us(500),
        "p99_us": measured.quantile_us(990),
        "p999_us": measured.quantile_us(999),
        "seconds": rounded(measured.elapsed.as_secs_f64()),
    });
    for part in [more, said] {
        if let (Value::Object(line), Value::Object(part)) = (&mut line, part) {
            line.extend(part);
        }
    }
    line
}

pub(crate) fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// The middle one.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Memory that is resident, in bytes, where the system tells.
pub(crate) fn resident_bytes() -> Option<u64> {
    let told = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = told.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}
