//! The pure model: public data types and the rules that govern them.
//!
//! Nothing here is async, reads a clock, draws a random number or touches storage. A decision is a
//! function of (state, command, facts) that returns data.

pub(crate) mod age;
pub(crate) mod append;
mod attempt;
pub(crate) mod decide;
#[cfg(test)]
mod decide_tests;
pub(crate) mod duration;
pub(crate) mod effect;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod event_type;
pub(crate) mod filter;
#[cfg(test)]
mod filter_tests;
mod finish;
pub(crate) mod fold;
#[cfg(test)]
mod fold_tests;
#[cfg(test)]
mod hash_tests;
#[cfg(test)]
mod hostile_tests;
pub(crate) mod ids;
pub(crate) mod json;
pub(crate) mod lease;
pub mod limits;
#[cfg(test)]
mod limits_tests;
pub(crate) mod observed;
pub(crate) mod output;
pub(crate) mod record;
pub(crate) mod recovery;
#[cfg(test)]
mod recovery_tests;
pub(crate) mod request;
pub(crate) mod retention;
mod retry;
#[cfg(test)]
mod retry_tests;
pub(crate) mod scope;
pub(crate) mod selector;
#[cfg(test)]
mod serde_tests;
pub(crate) mod session_report;
#[cfg(test)]
mod testing;
pub(crate) mod verify_report;

pub use effect::{EffectKey, ExecutionScope};
pub use error::{Error, Result};
pub use event::{
    CompletionAuthority, ObservedProcessEvent, ProcessEvent, ProcessEventAppendRequest,
    StartReason, TerminalAuthority, WaitResult,
};
pub use event_type::{MappedState, ProcessEventType, TerminalSemantics, WakeSemantics};
pub use filter::{Page, PageCursor, PageRequest, ProcessListFilter, StatusFilter};
pub use ids::{FencingToken, Incarnation, OwnerNumber, StoreEpoch};
pub use json::{ContentHash, Payload};
pub use lease::{LeaseTimings, ProcessOwner};
pub use observed::{
    Facets, Lifecycle, ObservedLease, ObservedProcess, ProcessWorkItem, ProcessWorkSnapshot,
    QueuedReason,
};
pub use output::{
    AbandonEvidence, AbandonProof, AbandonWriter, FailureClass, ProcessAwaitOutput, ProcessError,
    Survivor, TerminalState,
};
pub use record::{
    AbandonRequest, CancelRequest, FirstStart, OwnerLoss, ProcessCancelSummary, ProcessParent,
    ProcessProvenance, ProcessRecord, ProcessStatus, ProcessWait, RetryPause, SignalWait,
};
pub use recovery::LeaveReason;
pub use request::{
    Backoff, ProcessEnvSpec, ProcessHandleDescriptor, ProcessIdentity, ProcessInput,
    ProcessStartGrant, ProcessStartRequest, RecoveryDisposition, RetryPolicy,
};
pub use retention::{ProcessPruneReport, PruneSelector, RetentionPolicy};
pub use scope::{ProcessOriginator, SessionScope};
pub use selector::Selector;
pub use session_report::{
    ChangeCursor, ChangePage, ProcessChange, ProcessWake, RevokedGrant, SessionDeleteReport,
};
pub use verify_report::{VerifyProblem, VerifyReport};
