//! How a process ended.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Result, clip};
use super::ids::check_text;
use super::json;
use super::lease::ProcessOwner;
use super::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX};

/// The four ways in which a process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminalState {
    /// It returned a value.
    Completed,
    /// It failed.
    Failed,
    /// It ended because it was asked to.
    Cancelled,
    /// Its owner stopped without recording an outcome: what really happened is unknowable.
    Abandoned,
}

impl fmt::Display for TerminalState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Abandoned => "abandoned",
        })
    }
}

/// What kind of failure it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// The engine ran and failed.
    Execution,
    /// The process's own time limit passed.
    Timeout,
    /// The engine refused its payload.
    InvalidInput,
    /// Whoever executed it elsewhere says that it failed.
    External,
    /// The runtime could not go on with it: it panicked, or was recovered too often.
    Internal,
}

/// The one outcome of a process: what every awaiter gets, before and after a restart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProcessAwaitOutput {
    /// It returned a value.
    Success {
        /// That value.
        value: Value,
    },
    /// It failed.
    Failure {
        /// What kind of failure.
        class: FailureClass,
        /// A stable code that programs can match on.
        code: String,
        /// What happened, for people.
        message: String,
        /// Whatever the engine wanted to add.
        #[serde(
            default,
            deserialize_with = "json::present",
            skip_serializing_if = "Option::is_none"
        )]
        raw: Option<Value>,
    },
    /// It ended because it was asked to.
    Cancelled {
        /// Why, and whether it had to be forced.
        message: String,
        /// Whatever the engine wanted to add.
        #[serde(
            default,
            deserialize_with = "json::present",
            skip_serializing_if = "Option::is_none"
        )]
        raw: Option<Value>,
    },
    /// Nobody can know how it ended.
    Abandoned {
        /// Who says so, and on what grounds.
        evidence: AbandonEvidence,
    },
}

impl ProcessAwaitOutput {
    /// A success.
    #[must_use]
    pub fn success(value: impl Into<Value>) -> Self {
        Self::Success {
            value: value.into(),
        }
    }

    /// The state that this outcome is.
    #[must_use]
    pub const fn state(&self) -> TerminalState {
        match self {
            Self::Success { .. } => TerminalState::Completed,
            Self::Failure { .. } => TerminalState::Failed,
            Self::Cancelled { .. } => TerminalState::Cancelled,
            Self::Abandoned { .. } => TerminalState::Abandoned,
        }
    }

    /// Drops it without recursion, however deep the JSON in it is.
    pub(crate) fn dismantle(self) {
        match self {
            Self::Success { value } => json::dismantle(value),
            Self::Failure { raw, .. } | Self::Cancelled { raw, .. } => {
                raw.into_iter().for_each(json::dismantle);
            }
            Self::Abandoned { .. } => {}
        }
    }

    /// Checks an outcome that comes from outside, and says how many bytes of JSON it brings.
    pub(crate) fn check(&self) -> Result<usize> {
        match self {
            Self::Success { value } => bounded("output.value", Some(value)),
            Self::Failure {
                code, message, raw, ..
            } => {
                check_text("output.code", code, NAME_BYTES_MAX)?;
                check_message("output.message", message)?;
                bounded("output.raw", raw.as_ref())
            }
            Self::Cancelled { message, raw } => {
                check_message("output.message", message)?;
                bounded("output.raw", raw.as_ref())
            }
            Self::Abandoned { .. } => Ok(0),
        }
    }

    /// Short facts about a failure, for lists.
    pub(crate) fn error(&self) -> Option<ProcessError> {
        match self {
            Self::Failure {
                class,
                code,
                message,
                ..
            } => Some(ProcessError {
                class: *class,
                code: code.clone(),
                message: clip(message, MESSAGE_BYTES_MAX).to_owned(),
            }),
            Self::Success { .. } | Self::Cancelled { .. } | Self::Abandoned { .. } => None,
        }
    }
}

fn bounded(field: &str, value: Option<&Value>) -> Result<usize> {
    match value {
        Some(value) => {
            json::bounded_bytes(field, value, PAYLOAD_BYTES_MAX).map(|bytes| bytes.len())
        }
        None => Ok(0),
    }
}

fn check_message(field: &str, message: &str) -> Result<()> {
    if message.len() > MESSAGE_BYTES_MAX {
        return Err(super::Error::invalid(
            field,
            format!("has {} bytes", message.len()),
            format!("{MESSAGE_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

/// What an observer sees of a failure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessError {
    /// What kind of failure.
    pub class: FailureClass,
    /// A stable code.
    pub code: String,
    /// What happened, for people.
    pub message: String,
}

/// Who wrote an `Abandoned`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbandonWriter {
    /// The owner itself, at a graceful shutdown.
    OwnerDrain,
    /// The reaper, because an `OwnerBound` process lost its owner.
    Sweep,
    /// The reaper, because somebody had asked for it.
    ReconciledRequest,
}

/// On what proof it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AbandonProof {
    /// The owner stopped the execution itself.
    Drain,
    /// The owner can no longer write: it belongs to an earlier open of the store, or to an earlier
    /// incarnation of this runtime whose tasks have ended, or it is this incarnation itself, whose
    /// execution of the process broke down and has ended.
    StoreEpoch,
    /// The owner's lease had lapsed.
    Lapse,
    /// Nobody held a lease.
    Unowned,
}

/// Something of an abandoned execution that was found alive after its owner was gone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Survivor {
    /// Operating-system process id.
    pub pid: u32,
    /// Whether it was ended.
    pub ended: bool,
}

/// Why a process is `Abandoned`: who wrote it, on what proof, about which owner, and when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonEvidence {
    /// Who wrote it.
    pub writer: AbandonWriter,
    /// The owner that is gone; absent where there never was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ProcessOwner>,
    /// On what proof.
    pub proof: AbandonProof,
    /// Who had asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// What was found alive of its last attempt.
    ///
    /// Empty where nothing was: its engine looked for what the attempt had said it could leave, or there
    /// was nothing to be left, because no attempt had begun or the engine's work ends with its runtime
    /// ([`ProcessEngine::survivor_key`](crate::ProcessEngine::survivor_key)). An engine looks on the machine
    /// on which recovery runs: of a command nothing can be alive where that was started anew since, and
    /// this is empty. It says nothing about another machine, where hosts that share a store run on
    /// several, nor where the system does not tell what is alive, or which start of the machine it is (any
    /// but Linux).
    ///
    /// Absent where nobody can know: its engine is not registered here or did not answer in time, its log
    /// could not be read, or does not have the event by which the attempt would have said what it could
    /// leave, which a crash may have kept from being written; somebody else executed it, or its owner
    /// stopped it itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub survivors: Option<Vec<Survivor>>,
    /// When it was written, milliseconds since the epoch.
    pub epoch_ms: u64,
}
