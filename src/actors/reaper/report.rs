//! What recovery did.

use serde::{Deserialize, Serialize};

use crate::model::{LeaveReason, StartReason};

/// What recovery did with one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecoveryStep {
    /// It was put into the queue of its engine.
    Queued {
        /// Why its next attempt begins.
        reason: StartReason,
    },
    /// It was ended as abandoned.
    Abandoned,
    /// It was ended as cancelled: that had been asked for, and nothing ran any more.
    Cancelled,
    /// It was ended as failed: it lost its owner too often, or its time limit had passed.
    Failed,
    /// It was left as it is.
    Left {
        /// Why.
        reason: LeaveReason,
    },
}

/// What recovery did, process by process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Processes that were looked at.
    pub examined: u64,
    /// Put into the queue of their engine.
    pub queued: u64,
    /// Ended as abandoned.
    pub abandoned: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
    /// Ended as failed.
    pub failed: u64,
    /// Left as they are.
    pub left: u64,
    /// The first 10,000 of them: id and what was done.
    pub processes: Vec<(String, RecoveryStep)>,
}

/// Most processes that a report names.
const REPORT_MAX: usize = 10_000;

impl RecoveryReport {
    pub(super) fn note(&mut self, id: &str, step: RecoveryStep) {
        self.examined += 1;
        match step {
            RecoveryStep::Queued { .. } => self.queued += 1,
            RecoveryStep::Abandoned => self.abandoned += 1,
            RecoveryStep::Cancelled => self.cancelled += 1,
            RecoveryStep::Failed => self.failed += 1,
            RecoveryStep::Left { .. } => self.left += 1,
        }
        if self.processes.len() < REPORT_MAX {
            self.processes.push((id.to_owned(), step));
        }
    }
}
