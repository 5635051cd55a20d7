//! The contract of an engine: what executes processes, and what it may ask of the runtime.

#[cfg(all(feature = "command", unix, not(target_os = "openbsd")))]
mod command;
mod context;
mod failure;

#[cfg(all(feature = "command", unix, not(target_os = "openbsd")))]
pub use command::{CommandEngine, SurvivorPolicy};
pub(crate) use context::{AttemptRecord, CancelSignal, ExecutionPort};
pub use context::{CancelReason, ProcessContext};
pub use failure::{EngineFailure, EngineResult, PayloadProblem};

use serde_json::Value;

use crate::model::{ProcessEvent, ProcessEventType, ProcessRecord, Survivor};

/// Executes the processes of one kind.
///
/// A panic in `run` is caught and becomes a failure with code `engine_panicked`.
///
/// ```
/// use procession::{EngineResult, ProcessContext, ProcessEngine};
/// use serde_json::{Value, json};
///
/// struct Double;
///
/// #[async_trait::async_trait]
/// impl ProcessEngine for Double {
///     fn kind(&self) -> &str {
///         "double"
///     }
///     async fn run(&self, _cx: ProcessContext, payload: Value) -> EngineResult {
///         Ok(json!(payload.as_i64().unwrap_or(0) * 2))
///     }
/// }
/// ```
#[async_trait::async_trait]
pub trait ProcessEngine: Send + Sync + 'static {
    /// The kind of input it executes.
    fn kind(&self) -> &str;

    /// Event types that each of its processes declares, beside those of the request.
    fn event_types(&self) -> Vec<ProcessEventType> {
        Vec::new()
    }

    /// Checks a payload when a process is started, so that a bad one is refused at `start`.
    ///
    /// # Errors
    /// Where the problem is, and what it is.
    fn check(&self, payload: &Value) -> Result<(), PayloadProblem> {
        let _ = payload;
        Ok(())
    }

    /// Executes one attempt.
    ///
    /// # Cancel safety
    /// The future is dropped when the attempt is forced to end: after the grace period of a
    /// cancellation, and when the lease is lost. What must be undone then belongs into `Drop`.
    ///
    /// # Errors
    /// The failure, as it will stand in the log.
    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult;

    /// The replay key of the event in which the last attempt of a process said what of it could
    /// outlive the runtime; `None` for an engine whose work ends with the runtime.
    ///
    /// A key and not a type, so that recovery reads one event and never looks through a log.
    fn survivor_key(&self, record: &ProcessRecord) -> Option<String> {
        let _ = record;
        None
    }

    /// Looks for what an attempt left behind after its owner was gone, ends it if that is the
    /// engine's way, and says what it found. Recovery calls it before it abandons a process or
    /// runs it again, with the event of [`ProcessEngine::survivor_key`]. Where the log does not have that
    /// one nobody is asked, and [`AbandonEvidence::survivors`](crate::AbandonEvidence) is absent.
    ///
    /// It may be called again for the same event, and must never touch what is not the attempt's.
    /// Eight such calls are made at once at the most. One that takes more than five seconds, or
    /// panics, is dropped and made again by later sweeps, three times; if none of them answers
    /// either, recovery goes on, and [`AbandonEvidence::survivors`](crate::AbandonEvidence) is absent.
    /// So it does for the other processes of an engine that has not answered in four sweeps. Code that
    /// blocks its thread instead of yielding cannot be dropped: it goes on beside the calls that follow.
    ///
    /// # Cancel safety
    /// The future may be dropped at any point; as long as its process is not settled, recovery calls
    /// it again, as said above.
    async fn end_survivors(&self, event: &ProcessEvent) -> Vec<Survivor> {
        let _ = event;
        Vec::new()
    }
}
