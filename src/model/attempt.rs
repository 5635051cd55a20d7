//! How attempts begin and go over into the next: claims, retries, lost owners (SPEC §3.7, §3.8).

use super::decide::{
    Decision, Facts, LeaseChange, commit, illegal, require_claim, require_running,
};
use super::error::{Error, Result, clip};
use super::event::{RuntimeEvent, StartReason};
use super::ids::FencingToken;
use super::lease::ProcessOwner;
use super::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX};
use super::output::{AbandonProof, ProcessError};
use super::record::{ProcessState, Registration};
use super::request::RecoveryDisposition;

/// Decides the claim of a process and the start of an attempt.
pub(super) fn begin(
    registration: &Registration,
    state: &ProcessState,
    owner: ProcessOwner,
    token: FencingToken,
    reason: StartReason,
    facts: Facts,
) -> Result<Decision> {
    require_running(registration, state)?;
    match registration.disposition {
        RecoveryDisposition::ExternallyOwned => {
            return Err(illegal(registration, "it is executed elsewhere"));
        }
        RecoveryDisposition::OwnerBound if state.attempt > 0 => {
            return Err(illegal(
                registration,
                "a started owner-bound process is never run again",
            ));
        }
        RecoveryDisposition::OwnerBound | RecoveryDisposition::Rerunnable => {}
    }
    require_claim(registration, facts, token)?;
    let of_process = |reason: &str, limit: &str| {
        Error::invalid("start", reason, limit).for_process(&registration.id)
    };
    // What nobody holds and somebody asked to stop ends as it is, without running once more.
    if state.cancel_request.is_some() {
        return Err(of_process("comes after a request to cancel", "no request"));
    }
    if state.abandon_request.is_some() {
        return Err(of_process("comes after a request to abandon", "no request"));
    }
    if (reason == StartReason::First) != (state.attempt == 0) {
        return Err(of_process(
            "gives a reason that is not that of its attempt",
            "first for the first attempt and for no other",
        ));
    }
    if (reason == StartReason::Recovery) != state.owner_lost.is_some() {
        return Err(of_process(
            "gives a reason that is not that of its attempt",
            "recovery after the loss of an owner and after nothing else",
        ));
    }
    let going_on = state.attempt > 0 && state.retry_pause.is_none() && state.owner_lost.is_none();
    if facts.holder.is_some() && going_on {
        // Claimed over its head, the loss of its owner would count against nothing.
        return Err(of_process(
            "comes before the loss of its owner is recorded",
            "a lease that is free",
        ));
    }
    commit(
        RuntimeEvent::Started {
            owner,
            attempt: state.attempt.saturating_add(1),
            fencing_token: token,
            reason,
            store_age_ms: facts.store_age_ms,
        },
        LeaseChange::Acquire(token),
    )
}

/// Decides a pause before another attempt.
pub(super) fn schedule_retry(
    registration: &Registration,
    state: &ProcessState,
    retry_at_ms: u64,
    error: &ProcessError,
) -> Result<Decision> {
    if registration.disposition != RecoveryDisposition::Rerunnable {
        return Err(illegal(registration, "only rerunnable work is tried again"));
    }
    let attempts = registration.retry.attempts;
    if state.retries.saturating_add(1) >= attempts {
        return Err(Error::invalid(
            "retry.attempts",
            format!("are used up: {} retries were made", state.retries),
            format!("{attempts} attempts"),
        )
        .for_process(&registration.id));
    }
    commit(
        RuntimeEvent::RetryScheduled {
            retry_at_ms,
            // The engine's own words, cut as those of an outcome are.
            error: ProcessError {
                class: error.class,
                code: clip(&error.code, NAME_BYTES_MAX).to_owned(),
                message: clip(&error.message, MESSAGE_BYTES_MAX).to_owned(),
            },
        },
        LeaseChange::Release,
    )
}

/// What an owner is lost by: its lease can be claimed now, and an attempt of its was going on.
pub(super) fn require_lost(
    registration: &Registration,
    state: &ProcessState,
    facts: Facts,
    token: FencingToken,
    proof: AbandonProof,
) -> Result<()> {
    require_running(registration, state)?;
    if registration.disposition != RecoveryDisposition::Rerunnable {
        return Err(illegal(
            registration,
            "only rerunnable work outlives its owner",
        ));
    }
    let proven = matches!(proof, AbandonProof::StoreEpoch | AbandonProof::Lapse);
    let going_on = state.attempt > 0 && state.retry_pause.is_none() && state.owner_lost.is_none();
    if !proven || !going_on || facts.holder.is_none() {
        return Err(Error::invalid(
            "owner",
            "is not one that can be lost",
            "the holder of a lease under which an attempt was going on",
        )
        .for_process(&registration.id));
    }
    require_claim(registration, facts, token)
}
