//! An attempt that is being executed: its task, its slot, and how it is stopped.

use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;
use std::time::Duration;

use ractor::ActorRef;
use serde_json::Value;
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::Instrument;

use super::messages::ProcessMsg;
use super::panic_text;
use super::port::Port;
use super::waits::Waits;
use crate::actors::config::EMIT_ROOM;
use crate::actors::dispatcher::SlotPermit;
use crate::actors::keeper::OwnerHandle;
use crate::actors::runtime::{Claimed, Shared};
use crate::engines::{
    AttemptRecord, CancelReason, CancelSignal, EngineFailure, EngineResult, ProcessContext,
    ProcessEngine,
};
use crate::model::limits::PAYLOAD_BYTES_MAX;
use crate::model::record::{ProcessState, Registration};
use crate::model::{FailureClass, FencingToken, json};
use crate::store::keys::Row;

/// How an execution is stopped, from any thread.
#[derive(Debug, Clone)]
pub(crate) struct Brake {
    cancel: CancelSignal,
    task: AbortHandle,
    room: Arc<Semaphore>,
    closed: Arc<AtomicBool>,
}

impl Brake {
    /// Accepts nothing more.
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.room.close();
    }

    /// Stops it now: nothing that it does from here on is accepted.
    fn abort(&self) {
        self.close();
        self.task.abort();
    }

    /// Stops it because its lease is lost.
    pub(crate) fn lose(&self) {
        // Closed before it hears of it, so that not one more write begins.
        self.close();
        self.cancel.fire(CancelReason::LeaseLost);
        self.task.abort();
    }
}

/// An attempt that is being executed.
#[derive(Debug)]
pub(super) struct Execution {
    pub(super) token: FencingToken,
    pub(super) owner: Arc<OwnerHandle>,
    pub(super) cancel: CancelSignal,
    /// `None` while it waits for a signal, and until it has one again.
    pub(super) permit: Option<SlotPermit>,
    /// It has asked for a slot and not got it yet.
    pub(super) asked_for_slot: bool,
    pub(super) waits: Waits,
    /// Whether it was aborted after it had been told to stop.
    pub(super) forced: bool,
    /// Its end has been decided: whatever else it does is of no account.
    pub(super) settled: bool,
    brake: Brake,
    timers: Vec<AbortHandle>,
    /// Says that its lease is in use, for as long as this lives.
    claimed: Claimed,
}

/// What an execution is made from.
pub(super) struct Launch {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: ActorRef<ProcessMsg>,
    pub(super) registration: Arc<Registration>,
    pub(super) state: Arc<ProcessState>,
    pub(super) engine: Arc<dyn ProcessEngine>,
    pub(super) payload: Value,
    pub(super) owner: Arc<OwnerHandle>,
    pub(super) token: FencingToken,
    pub(super) permit: SlotPermit,
    pub(super) waits: Waits,
    pub(super) claimed: Claimed,
}

/// Says that a task has ended, however it did.
struct TaskGuard {
    shared: Arc<Shared>,
    actor: ActorRef<ProcessMsg>,
    owner: Arc<OwnerHandle>,
    row: Row,
    token: FencingToken,
    result: Option<EngineResult>,
}

impl TaskGuard {
    fn finished(&mut self, result: EngineResult) {
        // Here, so that nothing that is too deep to be dropped or cloned goes any further.
        self.result = Some(bounded(result));
    }
}

impl Drop for TaskGuard {
    fn drop(&mut self) {
        self.shared.task_ended(self.row.incarnation);
        self.owner.task_ended(self.token);
        let ended = self.actor.cast(ProcessMsg::Ended {
            token: self.token,
            result: self.result.take(),
        });
        if ended.is_err() {
            // Without an actor nobody is left to tell: only now can recovery go on.
            self.shared.look_at(self.row);
        }
    }
}

impl Execution {
    /// Starts the task. Its attempt is durable by now (P5), and counted by its owner.
    pub(super) fn launch(launch: Launch) -> Self {
        let cancel = CancelSignal::default();
        let room = Arc::new(Semaphore::new(EMIT_ROOM));
        let closed = Arc::new(AtomicBool::new(false));
        let port = Arc::new(Port {
            shared: Arc::clone(&launch.shared),
            actor: launch.actor.clone(),
            registration: Arc::clone(&launch.registration),
            token: launch.token,
            owner: launch.owner.number,
            cancel: cancel.clone(),
            room: Arc::clone(&room),
            closed: Arc::clone(&closed),
            wait_ids: AtomicU64::new(0),
        });
        let span = tracing::info_span!(
            "execution",
            process = %launch.registration.id,
            attempt = launch.state.attempt,
            fencing_token = launch.token.get(),
            owner = %launch.owner.owner.owner_id,
        );
        let record = AttemptRecord::new(Arc::clone(&launch.registration), launch.state);
        let context = ProcessContext::new(record, launch.token, cancel.clone(), port);
        launch.shared.task_began(launch.registration.incarnation);
        let mut guard = TaskGuard {
            shared: launch.shared,
            actor: launch.actor,
            owner: Arc::clone(&launch.owner),
            row: Row::of(&launch.registration),
            token: launch.token,
            result: None,
        };
        let (engine, payload) = (launch.engine, launch.payload);
        let task = tokio::spawn(
            async move {
                // Called inside: a panic before the first await is the engine's as well.
                let result = contained(async move { engine.run(context, payload).await }).await;
                guard.finished(result);
            }
            .instrument(span),
        );
        let brake = Brake {
            cancel: cancel.clone(),
            task: task.abort_handle(),
            room,
            closed,
        };
        launch.owner.task_stops_by(launch.token, &brake);
        Self {
            token: launch.token,
            owner: launch.owner,
            cancel,
            permit: Some(launch.permit),
            asked_for_slot: false,
            waits: launch.waits,
            forced: false,
            settled: false,
            brake,
            timers: Vec::new(),
            claimed: launch.claimed,
        }
    }

    /// Tells the engine to stop, and sets the time after which it is aborted.
    pub(super) fn stop(
        &mut self,
        actor: &ActorRef<ProcessMsg>,
        reason: CancelReason,
        grace: Duration,
    ) {
        if self.cancel.reason().is_some() {
            return;
        }
        self.cancel.fire(reason);
        let token = self.token;
        self.after(actor, grace, move || ProcessMsg::GraceOver { token });
    }

    /// Stops it now: nothing that it does from here on is accepted.
    pub(super) fn abort(&mut self) {
        self.forced = true;
        self.brake.abort();
    }

    /// Stops it because its lease is lost.
    pub(super) fn lose(&mut self) {
        self.settled = true;
        self.forced = true;
        self.brake.lose();
    }

    /// Its process has ended.
    pub(super) fn process_ended(&mut self) {
        self.claimed.ended();
    }

    /// Accepts nothing more.
    pub(super) fn close(&self) {
        self.brake.close();
    }

    /// Sends a message after a time, unless the execution is over by then.
    pub(super) fn after(
        &mut self,
        actor: &ActorRef<ProcessMsg>,
        wait: Duration,
        message: impl FnOnce() -> ProcessMsg + Send + 'static,
    ) {
        let actor = actor.clone();
        let timer = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = actor.cast(message());
        });
        self.timers.retain(|timer| !timer.is_finished());
        self.timers.push(timer.abort_handle());
    }
}

impl Drop for Execution {
    fn drop(&mut self) {
        // Also the end of an actor that panicked: what it executed must not go on unsupervised.
        self.brake.lose();
        for timer in &self.timers {
            timer.abort();
        }
    }
}

/// What an engine returned, without what is too deep or too large to be kept.
fn bounded(result: EngineResult) -> EngineResult {
    match result {
        Ok(value) => match json::bounded_bytes("output.value", &value, PAYLOAD_BYTES_MAX) {
            Ok(_) => Ok(value),
            Err(error) => {
                json::dismantle(value);
                let mut failure = EngineFailure::new("output_refused", error.to_string());
                failure.class = FailureClass::Internal;
                Err(failure)
            }
        },
        Err(mut failure) => {
            failure.raw = failure.raw.and_then(|raw| {
                match json::bounded_bytes("raw", &raw, PAYLOAD_BYTES_MAX) {
                    Ok(_) => Some(raw),
                    Err(_) => {
                        json::dismantle(raw);
                        None
                    }
                }
            });
            Err(failure)
        }
    }
}

/// Runs an engine so that its panic is a failure and nothing more.
async fn contained(run: impl Future<Output = EngineResult>) -> EngineResult {
    let mut run = pin!(run);
    poll_fn(
        move |cx| match catch_unwind(AssertUnwindSafe(|| run.as_mut().poll(cx))) {
            Ok(poll) => poll,
            Err(panic) => {
                let mut failure = EngineFailure::new("engine_panicked", panic_text(&*panic));
                failure.class = FailureClass::Internal;
                Poll::Ready(Err(failure))
            }
        },
    )
    .await
}
