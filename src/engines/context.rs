//! What an engine may ask of the runtime while it executes an attempt.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::model::record::{ProcessState, Registration};
use crate::model::{
    Error, FencingToken, ProcessEvent, ProcessEventAppendRequest, ProcessRecord,
    ProcessStartRequest, Result,
};

/// Why an attempt is told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CancelReason {
    /// Somebody asked for it.
    Requested {
        /// Who, where that is known.
        requested_by: Option<String>,
    },
    /// The time limit of the process has passed.
    TimedOut,
    /// The runtime shuts down.
    Shutdown,
    /// The lease is lost: nothing that the attempt writes is accepted any more.
    LeaseLost,
}

impl fmt::Display for CancelReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requested {
                requested_by: Some(by),
            } => write!(f, "cancelled by {by}"),
            Self::Requested { requested_by: None } => f.write_str("cancelled on request"),
            Self::TimedOut => f.write_str("its time limit has passed"),
            Self::Shutdown => f.write_str("the runtime shuts down"),
            Self::LeaseLost => f.write_str("its lease is lost"),
        }
    }
}

/// A cancellation token that carries its reason. The first reason stays, but for a lost lease,
/// which is worse than any other.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelSignal {
    fired: CancellationToken,
    reason: Arc<OnceLock<CancelReason>>,
    lost: CancellationToken,
}

impl CancelSignal {
    pub(crate) fn fire(&self, reason: CancelReason) {
        let lost = reason == CancelReason::LeaseLost;
        // A second reason changes nothing: the engine has been told already.
        let _ = self.reason.set(reason);
        self.fired.cancel();
        if lost {
            self.lost.cancel();
        }
    }

    pub(crate) fn reason(&self) -> Option<CancelReason> {
        if self.lost.is_cancelled() {
            return Some(CancelReason::LeaseLost);
        }
        self.fired
            .is_cancelled()
            .then(|| self.reason.get().cloned())
            .flatten()
    }
}

/// What the runtime does for an attempt. Implemented by the process actor.
#[async_trait::async_trait]
pub(crate) trait ExecutionPort: Send + Sync {
    /// Appends an event; returns when it was accepted.
    async fn emit(&self, request: ProcessEventAppendRequest) -> Result<()>;

    /// Appends an event; returns when it is durable.
    async fn emit_durable(&self, request: ProcessEventAppendRequest) -> Result<ProcessEvent>;

    /// Waits for the next signal of a name; `None` when the time is over first.
    async fn wait_signal(
        &self,
        signal_name: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<ProcessEvent>>;

    /// Starts a child.
    async fn start_child(
        &self,
        key: &str,
        detached: bool,
        request: ProcessStartRequest,
    ) -> Result<ProcessRecord>;

    /// Says that the attempt is alive.
    async fn heartbeat(&self) -> Result<()>;
}

/// The two halves of a process's record when an attempt of it begins, as its actor has them. They are
/// put together for whoever asks: most engines do not, and a record is kilobytes.
pub(crate) struct AttemptRecord {
    registration: Arc<Registration>,
    state: Arc<ProcessState>,
    whole: OnceLock<Box<ProcessRecord>>,
}

impl AttemptRecord {
    pub(crate) fn new(registration: Arc<Registration>, state: Arc<ProcessState>) -> Self {
        Self {
            registration,
            state,
            whole: OnceLock::new(),
        }
    }

    pub(crate) fn whole(&self) -> &ProcessRecord {
        self.whole
            .get_or_init(|| Box::new(ProcessRecord::assemble(&self.registration, &self.state)))
    }
}

/// An attempt's view of the runtime. Cheap to clone; closed when the attempt ends, after which
/// every call answers `Superseded`.
#[derive(Clone)]
pub struct ProcessContext {
    record: Arc<AttemptRecord>,
    fencing_token: FencingToken,
    cancel: CancelSignal,
    port: Arc<dyn ExecutionPort>,
}

impl fmt::Debug for ProcessContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProcessContext")
            .field("process_id", &self.process_id())
            .field("attempt", &self.attempt())
            .field("fencing_token", &self.fencing_token)
            .finish_non_exhaustive()
    }
}

impl ProcessContext {
    pub(crate) fn new(
        record: AttemptRecord,
        fencing_token: FencingToken,
        cancel: CancelSignal,
        port: Arc<dyn ExecutionPort>,
    ) -> Self {
        Self {
            record: Arc::new(record),
            fencing_token,
            cancel,
            port,
        }
    }

    /// The id of the process.
    #[must_use]
    pub fn process_id(&self) -> &str {
        &self.record.registration.id
    }

    /// The record as it was when this attempt began: the registration, and what had become of it.
    #[must_use]
    pub fn record(&self) -> &ProcessRecord {
        self.record.whole()
    }

    /// Which attempt this is, from 1. Durable before the engine is called.
    #[must_use]
    pub fn attempt(&self) -> u32 {
        self.record.state.attempt
    }

    /// The token under which this attempt's writes are accepted. An engine that writes elsewhere
    /// can pass it on, so that a later attempt fences it there too.
    #[must_use]
    pub const fn fencing_token(&self) -> FencingToken {
        self.fencing_token
    }

    /// Resolves when the attempt is to stop, with the reason.
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn cancelled(&self) -> CancelReason {
        self.cancel.fired.cancelled().await;
        self.cancel.reason().unwrap_or(CancelReason::LeaseLost)
    }

    /// Why the attempt is to stop, if it is.
    #[must_use]
    pub fn cancel_reason(&self) -> Option<CancelReason> {
        self.cancel.reason()
    }

    /// A token that fires when the attempt is to stop, for libraries that take one.
    #[must_use]
    pub fn cancellation_token(&self) -> CancellationToken {
        self.cancel.fired.child_token()
    }

    /// Resolves when the lease is lost: somebody else may execute the process now.
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub async fn lease_lost(&self) {
        self.cancel.lost.cancelled().await;
    }

    /// Appends an event of a declared type. Waits for room; returns when the event was accepted.
    /// It is durable soon after, and before the outcome of the attempt is. Unless the lease lapses
    /// first: then it is refused, while an outcome that nobody has overtaken still counts. What must
    /// not be missing goes through [`ProcessContext::emit_durable`].
    ///
    /// # Cancel safety
    /// Dropped before it returns, the event may or may not have been accepted.
    ///
    /// # Errors
    /// `UndeclaredEvent`, `InvalidPayload`, `InvalidInput`; `Superseded` once the attempt is over.
    pub async fn emit(
        &self,
        event_type: impl Into<String> + Send,
        payload: impl Into<Value> + Send,
    ) -> Result<()> {
        let request = ProcessEventAppendRequest::new(event_type, payload);
        self.port.emit(request).await
    }

    /// Appends an event; returns when it is durable.
    ///
    /// # Cancel safety
    /// As [`ProcessContext::emit`]; with a replay key in the request it can be asked again.
    ///
    /// # Errors
    /// As [`ProcessContext::emit`], and `Conflict` where the replay key stands for other content.
    pub async fn emit_durable(&self, request: ProcessEventAppendRequest) -> Result<ProcessEvent> {
        self.port.emit_durable(request).await
    }

    /// Takes the next signal of a name: the n-th call of an attempt gets the n-th signal of that
    /// name, whether it arrived before or after. What it returned once it returns again when the
    /// process is run again. While it waits, the process's concurrency slot is free for others.
    ///
    /// # Cancel safety
    /// A wait that is dropped gives its number back: no signal is lost.
    ///
    /// # Errors
    /// `UndeclaredEvent` where the process did not declare `signal.<name>`; `Superseded` once the
    /// attempt is over.
    pub async fn wait_signal(&self, signal_name: &str) -> Result<ProcessEvent> {
        match self.port.wait_signal(signal_name, None).await? {
            Some(signal) => Ok(signal),
            None => Err(Error::Timeout {
                what: format!("signal {signal_name} of process {}", self.process_id()),
                waited_ms: 0,
            }),
        }
    }

    /// As [`ProcessContext::wait_signal`], with a limit. That the time was over is recorded, and
    /// is the answer again when the process is run again.
    ///
    /// # Errors
    /// As [`ProcessContext::wait_signal`].
    pub async fn wait_signal_timeout(
        &self,
        signal_name: &str,
        timeout: Duration,
    ) -> Result<Option<ProcessEvent>> {
        self.port.wait_signal(signal_name, Some(timeout)).await
    }

    /// Starts a child process. Its id derives from this process's incarnation and the key, so that
    /// an attempt that is run again finds its children instead of starting them twice; the id in
    /// the request is not used. Cancelling this process cancels the child.
    ///
    /// # Errors
    /// As `start`; `AlreadyTerminal` or `Superseded` where this process may start nothing more.
    pub async fn start_child(
        &self,
        key: &str,
        request: ProcessStartRequest,
    ) -> Result<ProcessRecord> {
        self.port.start_child(key, false, request).await
    }

    /// As [`ProcessContext::start_child`], for a child that outlives the cancellation of this
    /// process.
    ///
    /// # Errors
    /// As [`ProcessContext::start_child`].
    pub async fn start_detached_child(
        &self,
        key: &str,
        request: ProcessStartRequest,
    ) -> Result<ProcessRecord> {
        self.port.start_child(key, true, request).await
    }

    /// Says that the attempt is alive, and learns whether it may go on. Writes nothing: leases are
    /// renewed by the runtime, one write for all of an owner's processes.
    ///
    /// # Errors
    /// `Superseded` once the lease is lost or the attempt is over.
    pub async fn heartbeat(&self) -> Result<()> {
        self.port.heartbeat().await
    }
}
