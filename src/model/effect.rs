//! Effects: commands that a host may journal, so that a replayed turn does not do them twice.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::ids::check_id;

/// Where an effect is executed: the unit that is replayed as a whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ExecutionScope {
    /// A turn of a session.
    Turn {
        /// The session.
        session_id: String,
        /// The turn.
        turn_id: String,
    },
    /// The execution of a process.
    Process {
        /// The process.
        process_id: String,
    },
    /// An operation that the host names.
    Operation {
        /// Its name.
        id: String,
    },
}

impl ExecutionScope {
    /// A turn of a session.
    #[must_use]
    pub fn turn(session_id: impl Into<String>, turn_id: impl Into<String>) -> Self {
        Self::Turn {
            session_id: session_id.into(),
            turn_id: turn_id.into(),
        }
    }

    /// The execution of a process.
    #[must_use]
    pub fn process(process_id: impl Into<String>) -> Self {
        Self::Process {
            process_id: process_id.into(),
        }
    }

    /// An operation that the host names.
    #[must_use]
    pub fn operation(id: impl Into<String>) -> Self {
        Self::Operation { id: id.into() }
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Turn {
                session_id,
                turn_id,
            } => {
                check_id("execution_scope.session_id", session_id)?;
                check_id("execution_scope.turn_id", turn_id)
            }
            Self::Process { process_id } => check_id("execution_scope.process_id", process_id),
            Self::Operation { id } => check_id("execution_scope.id", id),
        }
    }

    /// The scope as parts, for keys.
    pub(crate) fn parts(&self) -> (&'static str, &str, &str) {
        match self {
            Self::Turn {
                session_id,
                turn_id,
            } => ("turn", session_id, turn_id),
            Self::Process { process_id } => ("process", process_id, ""),
            Self::Operation { id } => ("operation", id, ""),
        }
    }
}

impl fmt::Display for ExecutionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Turn {
                session_id,
                turn_id,
            } => write!(f, "turn {turn_id} of session {session_id}"),
            Self::Process { process_id } => write!(f, "process {process_id}"),
            Self::Operation { id } => write!(f, "operation {id}"),
        }
    }
}

/// What an effect does, and to what: its key inside the scope.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EffectKey {
    /// Start a process.
    Start {
        /// Which.
        process_id: String,
    },
    /// Cancel a process.
    Cancel {
        /// Which.
        process_id: String,
    },
    /// Cancel every running process.
    CancelAll,
    /// Signal a process.
    Signal {
        /// Which.
        process_id: String,
        /// The name of the signal.
        signal_name: String,
        /// The id of the signal.
        signal_id: String,
    },
}

impl EffectKey {
    /// The process that it is done to, if it is one.
    #[must_use]
    pub fn process_id(&self) -> Option<&str> {
        match self {
            Self::Start { process_id }
            | Self::Cancel { process_id }
            | Self::Signal { process_id, .. } => Some(process_id),
            Self::CancelAll => None,
        }
    }
}

impl fmt::Display for EffectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start { process_id } => write!(f, "start {process_id}"),
            Self::Cancel { process_id } => write!(f, "cancel {process_id}"),
            Self::CancelAll => f.write_str("cancel_all"),
            Self::Signal {
                process_id,
                signal_name,
                signal_id,
            } => write!(f, "signal {process_id} {signal_name}/{signal_id}"),
        }
    }
}
