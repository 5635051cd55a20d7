//! How an attempt ends, as its engine says it.

use serde_json::Value;

use super::CancelReason;
use crate::model::{Error, FailureClass};

/// What an attempt returns.
pub type EngineResult = Result<Value, EngineFailure>;

/// A failed attempt.
///
/// ```
/// use procession::EngineFailure;
/// let failure = EngineFailure::new("upstream_down", "the service answered 503").retryable();
/// assert!(failure.retryable);
/// ```
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EngineFailure {
    /// What kind of failure.
    pub class: FailureClass,
    /// A stable code that programs can match on, at most 128 bytes.
    pub code: String,
    /// What happened, for people, at most 4,096 bytes; a longer text is cut.
    pub message: String,
    /// Whether another attempt may succeed; the retry policy decides whether there is one.
    pub retryable: bool,
    /// Raw detail, at most 1 MiB of JSON.
    pub raw: Option<Value>,
    /// Set where the engine stopped because it was told to.
    pub cancelled: Option<CancelReason>,
}

impl EngineFailure {
    /// A failure that another attempt would not mend.
    #[must_use]
    pub fn new(code: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            class: FailureClass::Execution,
            code: code.into(),
            message: message.into(),
            retryable: false,
            raw: None,
            cancelled: None,
        }
    }

    /// The engine stopped because it was told to.
    #[must_use]
    pub fn cancelled(reason: CancelReason) -> Self {
        let message = reason.to_string();
        Self {
            cancelled: Some(reason),
            ..Self::new("cancelled", message)
        }
    }

    /// The payload is of no use.
    #[must_use]
    pub fn invalid_input(message: impl Into<String>) -> Self {
        Self {
            class: FailureClass::InvalidInput,
            ..Self::new("invalid_input", message)
        }
    }

    /// Another attempt may succeed.
    #[must_use]
    pub const fn retryable(mut self) -> Self {
        self.retryable = true;
        self
    }

    /// With raw detail.
    #[must_use]
    pub fn with_raw(mut self, raw: impl Into<Value>) -> Self {
        self.raw = Some(raw.into());
        self
    }
}

impl std::fmt::Display for EngineFailure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.code, self.message)
    }
}

impl std::error::Error for EngineFailure {}

impl From<Error> for EngineFailure {
    /// A refusal of the runtime that the engine did not handle. A lost lease says so; the outcome
    /// then belongs to whoever holds it now.
    fn from(error: Error) -> Self {
        let message = error.to_string();
        if matches!(error, Error::Superseded { .. }) {
            return Self::cancelled(CancelReason::LeaseLost);
        }
        if matches!(error, Error::ShuttingDown) {
            return Self::cancelled(CancelReason::Shutdown);
        }
        let transient = matches!(
            error,
            Error::Overloaded { .. } | Error::CommitUnknown { .. } | Error::Timeout { .. }
        );
        Self {
            retryable: transient,
            ..Self::new("runtime_refused", message)
        }
    }
}

/// What is wrong with a payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PayloadProblem {
    /// JSON pointer to the offending part; empty for the whole.
    pub path: String,
    /// What is wrong with it.
    pub reason: String,
}

impl PayloadProblem {
    /// A problem at a JSON pointer.
    #[must_use]
    pub fn new(path: impl Into<String>, reason: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            reason: reason.into(),
        }
    }
}
