//! What recovery did.

use serde::{Deserialize, Serialize};

use crate::model::{LeaveReason, StartReason};

/// What recovery did with one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecoveryStep {
    /// It was put into the queue of its engine. Where its last owner was lost, that is durable: its
    /// lease is free, and the loss is counted.
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
    /// It was asked to stop: its parent had been, and a crash kept the word from it.
    CancelRequested,
    /// Somebody else wrote to it first: the next sweep sees what is left to do.
    Overtaken,
    /// It could not be read or written, or nobody could look for its survivors, as the log of the
    /// runtime says: the next sweep tries again.
    Unsettled,
    /// It was left as it is.
    Left {
        /// Why.
        reason: LeaveReason,
    },
}

/// What recovery has done since the store was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecoveryTotals {
    /// Sweeps that went through to their end: the one that every open begins with, those by
    /// interval, those that were asked for.
    pub sweeps: u64,
    /// Processes that were made ready for another attempt after they had lost their owner.
    pub released: u64,
    /// Ended as abandoned.
    pub abandoned: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
    /// Ended as failed.
    pub failed: u64,
}

/// What one sweep did, process by process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// Processes that were looked at: the sum of all that follow.
    pub examined: u64,
    /// Put into the queue of their engine.
    pub queued: u64,
    /// Ended as abandoned.
    pub abandoned: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
    /// Ended as failed.
    pub failed: u64,
    /// Asked to stop, because their parent had been.
    pub cancel_requested: u64,
    /// Written to by somebody else first.
    pub overtaken: u64,
    /// Not to be read or written this time.
    pub unsettled: u64,
    /// Left as they are: what is executed here among them.
    pub left: u64,
    /// What was done with each, by id. At most 10,000 are named here, in no particular order; the
    /// numbers count them all. What cannot be read is named by its incarnation.
    pub processes: Vec<(String, RecoveryStep)>,
    /// What this sweep and all before it have done since the open. An open begins with a sweep of
    /// its own, so what an asked-for one finds has often been dealt with already.
    pub since_open: RecoveryTotals,
}

/// Most processes that a report names.
const REPORT_MAX: usize = 10_000;

impl RecoveryReport {
    pub(super) fn note(&mut self, id: String, step: RecoveryStep) {
        self.examined += 1;
        *match step {
            RecoveryStep::Queued { .. } => &mut self.queued,
            RecoveryStep::Abandoned => &mut self.abandoned,
            RecoveryStep::Cancelled => &mut self.cancelled,
            RecoveryStep::Failed => &mut self.failed,
            RecoveryStep::CancelRequested => &mut self.cancel_requested,
            RecoveryStep::Overtaken => &mut self.overtaken,
            RecoveryStep::Unsettled => &mut self.unsettled,
            RecoveryStep::Left { .. } => &mut self.left,
        } += 1;
        if self.processes.len() < REPORT_MAX {
            self.processes.push((id, step));
        }
    }

    /// Adds what the sweeps before it did, and hands on the sum; what one did that failed counts too.
    pub(super) fn sum_up(&mut self, before: RecoveryTotals, to_its_end: bool) -> RecoveryTotals {
        self.since_open = RecoveryTotals {
            sweeps: before.sweeps + u64::from(to_its_end),
            released: before.released + self.since_open.released,
            abandoned: before.abandoned + self.abandoned,
            cancelled: before.cancelled + self.cancelled,
            failed: before.failed + self.failed,
        };
        self.since_open
    }
}
