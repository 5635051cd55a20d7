//! Who may end a process, and as what (SPEC §3.7, §3.8).

use super::decide::{
    Decision, Facts, Finisher, LeaseChange, commit, illegal, require_claim, require_holder,
    require_running,
};
use super::error::{Error, Result};
use super::event::{CompletionAuthority, RuntimeEvent, TerminalAuthority};
use super::ids::{FencingToken, check_id};
use super::output::{AbandonEvidence, AbandonProof, AbandonWriter, ProcessAwaitOutput};
use super::record::{ProcessState, Registration};
use super::request::RecoveryDisposition;

/// Decides the end of a process.
pub(super) fn finish(
    registration: &Registration,
    state: &ProcessState,
    output: ProcessAwaitOutput,
    finisher: Finisher,
    facts: Facts,
) -> Result<Decision> {
    match allow(registration, state, &output, finisher, facts) {
        Ok((authority, lease)) => commit(RuntimeEvent::terminal(output, authority), lease),
        Err(error) => {
            output.dismantle();
            Err(error.for_process(&registration.id))
        }
    }
}

fn allow(
    registration: &Registration,
    state: &ProcessState,
    output: &ProcessAwaitOutput,
    finisher: Finisher,
    facts: Facts,
) -> Result<(TerminalAuthority, LeaseChange)> {
    output.check()?;
    require_running(registration, state)?;
    match finisher {
        Finisher::Owner(fencing_token) => {
            require_holder(registration, state, facts, fencing_token)?;
            if let ProcessAwaitOutput::Abandoned { evidence } = output {
                check_drain(registration, evidence)?;
            }
            Ok((
                TerminalAuthority::Lease { fencing_token },
                LeaseChange::Release,
            ))
        }
        Finisher::Claim(token) => {
            let authority = check_claimer(registration, state, output, token)?;
            require_claim(registration, facts, token)?;
            Ok((authority, LeaseChange::Pass(token)))
        }
        Finisher::Authority(authority) => {
            check_authority(registration, state, output, &authority)?;
            Ok((authority.into(), LeaseChange::Keep))
        }
    }
}

/// What the holder of a lease may write as `Abandoned`: that it stopped owner-bound work itself. It
/// is alive, so it is no proof of its own death, and a request ends nothing while it lives (A1).
fn check_drain(registration: &Registration, evidence: &AbandonEvidence) -> Result<()> {
    if evidence.writer == AbandonWriter::OwnerDrain
        && evidence.proof == AbandonProof::Drain
        && registration.disposition == RecoveryDisposition::OwnerBound
    {
        return Ok(());
    }
    Err(Error::invalid(
        "output.evidence",
        "is not that of an owner that stopped its own work",
        "owner_drain by drain, of owner_bound work",
    ))
}

/// What may be written by somebody who claims a free lease to end what nobody executes any more:
/// the reaper, or a canceller.
fn check_claimer(
    registration: &Registration,
    state: &ProcessState,
    output: &ProcessAwaitOutput,
    fencing_token: FencingToken,
) -> Result<TerminalAuthority> {
    if registration.disposition == RecoveryDisposition::ExternallyOwned {
        return Err(illegal(registration, "it is executed elsewhere"));
    }
    let lost_owner =
        registration.disposition == RecoveryDisposition::OwnerBound && state.attempt > 0;
    match output {
        ProcessAwaitOutput::Abandoned { evidence } => {
            check_reaper(registration, state, evidence)?;
            Ok(TerminalAuthority::ReconciledAbandon)
        }
        ProcessAwaitOutput::Success { .. } => Err(Error::invalid(
            "output",
            "is a success, which only who executed it can know",
            "failure, cancelled or abandoned",
        )),
        ProcessAwaitOutput::Failure { .. } | ProcessAwaitOutput::Cancelled { .. } if lost_owner => {
            Err(illegal(
                registration,
                "how a started owner-bound process ended is unknowable: it is abandoned",
            ))
        }
        ProcessAwaitOutput::Cancelled { .. } if state.cancel_request.is_none() => {
            Err(Error::invalid(
                "output",
                "is cancelled, which nobody asked for",
                "a request",
            ))
        }
        ProcessAwaitOutput::Failure { .. } | ProcessAwaitOutput::Cancelled { .. } => {
            Ok(TerminalAuthority::Lease { fencing_token })
        }
    }
}

/// What the reaper may write as `Abandoned`.
fn check_reaper(
    registration: &Registration,
    state: &ProcessState,
    evidence: &AbandonEvidence,
) -> Result<()> {
    let refused = |reason: &str, limit: &str| Err(Error::invalid("output.evidence", reason, limit));
    match (evidence.writer, evidence.proof) {
        (
            AbandonWriter::ReconciledRequest,
            AbandonProof::StoreEpoch | AbandonProof::Lapse | AbandonProof::Unowned,
        ) => match state.abandon_request {
            Some(_) => Ok(()),
            None => refused("is a request that nobody made", "a recorded request"),
        },
        (AbandonWriter::Sweep, AbandonProof::StoreEpoch | AbandonProof::Unowned) => {
            match registration.disposition {
                RecoveryDisposition::OwnerBound if state.attempt > 0 => Ok(()),
                RecoveryDisposition::OwnerBound
                | RecoveryDisposition::Rerunnable
                | RecoveryDisposition::ExternallyOwned => refused(
                    "is a sweep of what can still be run",
                    "started owner_bound work",
                ),
            }
        }
        // L5: that time has passed is no proof about an owner.
        (AbandonWriter::Sweep, AbandonProof::Lapse) => refused(
            "is a lapse, which proves nothing about the owner",
            "store_epoch or unowned",
        ),
        (AbandonWriter::OwnerDrain, _)
        | (AbandonWriter::ReconciledRequest | AbandonWriter::Sweep, AbandonProof::Drain) => {
            refused(
                "is a drain, which only the owner itself can write",
                "sweep or reconciled_request",
            )
        }
    }
}

fn check_authority(
    registration: &Registration,
    state: &ProcessState,
    output: &ProcessAwaitOutput,
    authority: &CompletionAuthority,
) -> Result<()> {
    if registration.disposition != RecoveryDisposition::ExternallyOwned {
        return Err(Error::invalid(
            "authority",
            "ends only externally owned processes",
            "disposition externally_owned",
        ));
    }
    match authority {
        CompletionAuthority::ReconciledAbandon => {
            return match output {
                ProcessAwaitOutput::Abandoned { evidence } => {
                    check_reaper(registration, state, evidence)
                }
                ProcessAwaitOutput::Success { .. }
                | ProcessAwaitOutput::Failure { .. }
                | ProcessAwaitOutput::Cancelled { .. } => Err(Error::invalid(
                    "authority",
                    "reconciled_abandon writes nothing but abandoned",
                    "abandoned",
                )),
            };
        }
        CompletionAuthority::ExternalOwner { granted_to } => {
            granted_to.check("authority.granted_to")?;
        }
        CompletionAuthority::Host { by } => check_id("authority.by", by)?,
    }
    if matches!(output, ProcessAwaitOutput::Abandoned { .. }) {
        return Err(Error::invalid(
            "output",
            "is abandoned, which only the runtime can establish",
            "success, failure or cancelled",
        ));
    }
    Ok(())
}
