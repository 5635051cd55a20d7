//! What the reaper may do with a process, as a function of what is known about it (SPEC §3.8).

use super::event::StartReason;
use super::lease::OwnerStanding;
use super::output::{AbandonProof, AbandonWriter};
use super::record::{ProcessState, Registration};
use super::request::RecoveryDisposition;

/// What is known about the lease of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseStanding {
    /// Nobody holds it.
    Free,
    /// Somebody holds it, or held it last without giving it back.
    Held(OwnerStanding),
}

/// What the reaper must know beside the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecoveryFacts {
    pub(crate) lease: LeaseStanding,
    /// Whether an engine is registered for its kind.
    pub(crate) engine_registered: bool,
    /// For how long it has been started, where it has a time limit: not by a clock that jumps.
    pub(crate) started_for_ms: u64,
    /// When its pause before a retry ends, where it has one: by the clock of whoever asks.
    pub(crate) pause_ends_ms: u64,
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecoveryAction {
    /// Nothing, for this reason.
    Leave(LeaveReason),
    /// Put it into the queue of its engine; not before `not_before_ms`.
    Queue {
        reason: StartReason,
        not_before_ms: u64,
    },
    /// Record that its owner is gone, and take its lease: then it is ready for its next attempt.
    Release { proof: AbandonProof },
    /// End it as abandoned.
    Abandon {
        writer: AbandonWriter,
        proof: AbandonProof,
    },
    /// End it as cancelled: that had been asked for, and nothing runs any more.
    Cancel,
    /// End it as failed: it lost its owner too often.
    ExhaustRecoveries,
    /// End it as failed: its time limit has passed.
    TimeOut,
}

/// Why a process is left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum LeaveReason {
    /// It has ended.
    Terminal,
    /// Its lease is live.
    Leased,
    /// Somebody else executes it.
    ExternallyOwned,
    /// It is owner-bound, its lease has lapsed, and nothing proves that its owner is gone.
    Stale,
    /// No engine is registered for its kind.
    UnregisteredEngine,
}

/// What is left of the time limit of a process that has been started for so long.
pub(crate) fn time_left_ms(
    registration: &Registration,
    state: &ProcessState,
    started_for_ms: u64,
) -> Option<u64> {
    let timeout = registration.timeout?;
    state.first_started.as_ref()?;
    let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
    Some(timeout_ms.saturating_sub(started_for_ms))
}

/// Decides the recovery of one process.
pub(crate) fn recover(
    registration: &Registration,
    state: &ProcessState,
    facts: RecoveryFacts,
) -> RecoveryAction {
    if state.terminal().is_some() {
        return RecoveryAction::Leave(LeaveReason::Terminal);
    }
    let lost = match facts.lease {
        LeaseStanding::Held(OwnerStanding::Live) => {
            return RecoveryAction::Leave(LeaveReason::Leased);
        }
        LeaseStanding::Free => None,
        LeaseStanding::Held(OwnerStanding::Lapsed) => Some(AbandonProof::Lapse),
        LeaseStanding::Held(OwnerStanding::Dead) => Some(AbandonProof::StoreEpoch),
    };
    if state.abandon_request.is_some() {
        return RecoveryAction::Abandon {
            writer: AbandonWriter::ReconciledRequest,
            proof: lost.unwrap_or(AbandonProof::Unowned),
        };
    }
    match registration.disposition {
        RecoveryDisposition::ExternallyOwned => RecoveryAction::Leave(LeaveReason::ExternallyOwned),
        RecoveryDisposition::OwnerBound => recover_owner_bound(state, facts, lost),
        RecoveryDisposition::Rerunnable => recover_rerunnable(registration, state, facts, lost),
    }
}

fn recover_owner_bound(
    state: &ProcessState,
    facts: RecoveryFacts,
    lost: Option<AbandonProof>,
) -> RecoveryAction {
    if state.attempt > 0 {
        // Its engine alone can look for what the attempt left behind; it waits for it, unless
        // somebody wants it ended as it is.
        if !facts.engine_registered && state.cancel_request.is_none() {
            return RecoveryAction::Leave(LeaveReason::UnregisteredEngine);
        }
        return match lost {
            // Nothing but its lapse speaks against the owner: it may still be at work.
            Some(AbandonProof::Lapse) => RecoveryAction::Leave(LeaveReason::Stale),
            // What had an owner and has none ended without an outcome, however that came about.
            Some(proof) => RecoveryAction::Abandon {
                writer: AbandonWriter::Sweep,
                proof,
            },
            None => RecoveryAction::Abandon {
                writer: AbandonWriter::Sweep,
                proof: AbandonProof::Unowned,
            },
        };
    }
    queue_first(state, facts)
}

fn queue_first(state: &ProcessState, facts: RecoveryFacts) -> RecoveryAction {
    if state.cancel_request.is_some() {
        return RecoveryAction::Cancel;
    }
    if !facts.engine_registered {
        return RecoveryAction::Leave(LeaveReason::UnregisteredEngine);
    }
    RecoveryAction::Queue {
        reason: StartReason::First,
        not_before_ms: 0,
    }
}

fn recover_rerunnable(
    registration: &Registration,
    state: &ProcessState,
    facts: RecoveryFacts,
    lost: Option<AbandonProof>,
) -> RecoveryAction {
    if state.attempt == 0 {
        return queue_first(state, facts);
    }
    if state.cancel_request.is_some() {
        return RecoveryAction::Cancel;
    }
    if !facts.engine_registered {
        return RecoveryAction::Leave(LeaveReason::UnregisteredEngine);
    }
    if time_left_ms(registration, state, facts.started_for_ms) == Some(0) {
        return RecoveryAction::TimeOut;
    }
    if state.retry_pause.is_some() {
        return RecoveryAction::Queue {
            reason: StartReason::Retry,
            not_before_ms: facts.pause_ends_ms,
        };
    }
    let ready = |reason| RecoveryAction::Queue {
        reason,
        not_before_ms: 0,
    };
    match lost {
        // Counted when it was recorded.
        _ if state.owner_lost.is_some() => ready(StartReason::Recovery),
        Some(_) if state.recoveries >= registration.retry.recoveries_max => {
            RecoveryAction::ExhaustRecoveries
        }
        Some(proof) => RecoveryAction::Release { proof },
        None => ready(StartReason::Released),
    }
}
