//! What the tests of the runtime have in common: engines made of closures, both stores, and waits
//! for things that really happen, each with a bound.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes,
    reason = "each test file uses a part of it, and a test that cannot go on says so"
)]

pub mod refusals;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;
use procession::*;
use serde_json::Value;

/// Longer than anything here takes; what waits longer hangs.
pub const BOUND: Duration = Duration::from_secs(60);

/// An engine that runs a closure.
pub struct Run<F> {
    kind: &'static str,
    run: F,
    event_types: Vec<ProcessEventType>,
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

pub fn engine<F, R>(kind: &'static str, run: F) -> Run<F>
where
    F: Fn(ProcessContext, Value) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    Run {
        kind,
        run,
        event_types: Vec::new(),
    }
}

/// Returns its payload at once.
pub fn echo() -> impl ProcessEngine {
    engine("echo", |_, payload| async move { Ok(payload) })
}

/// Runs until it is told to stop, and stops then.
pub fn polite() -> impl ProcessEngine {
    engine("polite", |cx: ProcessContext, _| async move {
        Err(EngineFailure::cancelled(cx.cancelled().await))
    })
}

/// Runs and never looks up.
pub fn deaf() -> impl ProcessEngine {
    engine("deaf", |_, _| async move {
        std::future::pending::<()>().await;
        Ok(Value::Null)
    })
}

/// Fails at first, and is content the second time.
pub fn fails_once() -> impl ProcessEngine {
    engine("fails-once", |cx: ProcessContext, _| async move {
        match cx.attempt() {
            1 => Err(EngineFailure::new("not_yet", "next time").retryable()),
            attempt => Ok(Value::from(attempt)),
        }
    })
}

pub fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("test"))
}

/// Work for an engine, created by the host.
pub fn work(id: &str, kind: &str, disposition: RecoveryDisposition) -> ProcessStartRequest {
    ProcessStartRequest::new(
        id,
        ProcessInput::engine(kind, Value::Null),
        disposition,
        ProcessOriginator::host(),
    )
}

pub fn rerunnable(id: &str, kind: &str) -> ProcessStartRequest {
    work(id, kind, RecoveryDisposition::Rerunnable)
}

pub fn owner_bound(id: &str, kind: &str) -> ProcessStartRequest {
    work(id, kind, RecoveryDisposition::OwnerBound)
}

pub fn external(id: &str) -> ProcessStartRequest {
    ProcessStartRequest::external(id, ProcessOriginator::host(), Value::Null)
}

/// A store that outlives the runtimes that open it.
pub enum Place {
    Memory(InMemoryStore),
    Disk(tempfile::TempDir),
}

impl Place {
    pub fn memory() -> Self {
        Self::Memory(InMemoryStore::new())
    }

    pub fn disk() -> Self {
        Self::Disk(tempfile::tempdir().unwrap())
    }

    pub fn both() -> [Self; 2] {
        [Self::memory(), Self::disk()]
    }

    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Memory(_) => panic!("not on disk"),
            Self::Disk(dir) => dir.path(),
        }
    }

    pub fn builder(&self) -> SupervisorBuilder {
        match self {
            Self::Memory(store) => Supervisor::in_memory_store(store),
            Self::Disk(dir) => Supervisor::builder(dir.path()),
        }
    }

    /// Opens again after a crash: as soon as the one before has let go of the store.
    pub async fn reopen(
        &self,
        with: impl Fn(SupervisorBuilder) -> SupervisorBuilder,
    ) -> Supervisor {
        within(async {
            loop {
                match with(self.builder()).open().await {
                    Err(Error::StoreBusy { .. }) => pause().await,
                    opened => return opened.unwrap(),
                }
            }
        })
        .await
    }
}

/// A moment, for looking again at what cannot be waited for.
pub async fn pause() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// Waits for something that is bound to happen.
pub async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, what)
        .await
        .expect("did not happen in time")
}

/// Shuts down with a grace period that suits tests.
pub async fn close(supervisor: &Supervisor) -> ShutdownReport {
    within(supervisor.shutdown(ShutdownOptions::grace(Duration::from_secs(20))))
        .await
        .unwrap()
}

/// The next item of a stream.
pub async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    within(std::future::poll_fn(|cx| {
        Pin::new(&mut *stream).poll_next(cx)
    }))
    .await
}

/// What a stream says if it is asked just once.
pub fn polled<S: Stream + Unpin>(stream: &mut S) -> Poll<Option<S::Item>> {
    let mut cx = Context::from_waker(Waker::noop());
    Pin::new(stream).poll_next(&mut cx)
}

/// Externally owned work that takes a `note`, an `ask` (which wakes, once for each `/key`), a `ping`
/// (which wakes every time) and a signal `go`.
pub fn noted(id: &str) -> ProcessStartRequest {
    let text = || WakeSemantics::new(Selector::pointer("/text"));
    external(id).with_event_types(vec![
        ProcessEventType::new("note"),
        ProcessEventType::signal("go"),
        ProcessEventType::new("ask").with_wake(text().with_dedupe_key(Selector::pointer("/key"))),
        ProcessEventType::new("ping").with_wake(text()),
    ])
}

pub async fn append(processes: &Processes, id: &str, event_type: &str, payload: Value) -> u64 {
    let request = ProcessEventAppendRequest::new(event_type, payload);
    let appended = processes.append_event(id, request).await;
    appended.unwrap().sequence
}

/// Ends externally owned work well.
pub async fn complete(processes: &Processes, id: &str) {
    let authority = CompletionAuthority::Host { by: "test".into() };
    let output = ProcessAwaitOutput::success(Value::Null);
    let ended = processes.complete_external(id, output, authority).await;
    ended.unwrap();
}

pub fn ids(processes: &[ObservedProcess]) -> Vec<&str> {
    processes.iter().map(|p| p.process_id.as_str()).collect()
}

/// The rest of a subscription, as sequences.
pub async fn drain(subscription: &mut Subscription) -> Vec<u64> {
    let mut sequences = Vec::new();
    while let Some(event) = next(subscription).await {
        sequences.push(event.unwrap().sequence);
    }
    sequences
}

/// Waits until a process looks as it should.
pub async fn until(
    processes: &Processes,
    id: &str,
    looks: impl Fn(&ObservedProcess) -> bool,
) -> ObservedProcess {
    within(async {
        loop {
            if let Some(process) = processes.get(id).await.unwrap()
                && looks(&process)
            {
                return process;
            }
            pause().await;
        }
    })
    .await
}

pub async fn output(processes: &Processes, id: &str) -> ProcessAwaitOutput {
    within(processes.await_output(id)).await.unwrap()
}

/// The types of a process's events, in order.
pub async fn event_types(processes: &Processes, id: &str) -> Vec<String> {
    let events = processes.events(id, 0).await.unwrap();
    let dense = (1..).zip(&events).all(|(n, event)| event.sequence == n);
    assert!(dense, "sequences of {id} are not dense: {events:?}");
    events.into_iter().map(|event| event.event_type).collect()
}

/// Closes, and checks that what is left is in order.
pub async fn close_clean(supervisor: &Supervisor) {
    let report = supervisor.verify().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    close(supervisor).await;
}
