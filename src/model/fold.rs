//! `apply`: how an event changes the state of its process.
//!
//! The same function runs when an event is decided, when a log is replayed, and when the verifier
//! refolds it. It refuses what cannot have happened instead of guessing.

use std::sync::Arc;

use super::event::{EventBody, RuntimeEvent, StartReason, TerminalAuthority, WaitResult};
use super::event_type::ProcessEventType;
use super::output::ProcessAwaitOutput;
use super::record::{
    AbandonRequest, CancelRequest, FirstStart, OwnerLoss, ProcessState, ProcessStatus,
    Registration, RetryPause, SignalWait,
};
use super::request::RecoveryDisposition;

/// An event that cannot follow on the state it is applied to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FoldError {
    /// The log has a gap, or goes on after its end.
    #[error("event {found} of process {process_id} follows on event {last}")]
    OutOfSequence {
        process_id: String,
        last: u64,
        found: u64,
    },
    /// The event is illegal in this state.
    #[error("event {sequence} ({event}) of process {process_id} is illegal: {reason}")]
    Illegal {
        process_id: String,
        sequence: u64,
        event: String,
        reason: &'static str,
    },
}

/// Folds one event into a state.
///
/// # Errors
/// [`FoldError`] if the event cannot follow; the state is then unchanged.
pub(crate) fn apply(
    registration: &Registration,
    state: &mut ProcessState,
    sequence: u64,
    occurred_at_ms: u64,
    body: &EventBody,
) -> Result<(), FoldError> {
    if Some(sequence) != state.last_sequence.checked_add(1) {
        return Err(FoldError::OutOfSequence {
            process_id: registration.id.clone(),
            last: state.last_sequence,
            found: sequence,
        });
    }
    let illegal = |event: &str, reason| FoldError::Illegal {
        process_id: registration.id.clone(),
        sequence,
        event: event.to_owned(),
        reason,
    };
    if state.terminal().is_some() {
        return Err(illegal(name_of(body), "the process has ended"));
    }
    match body {
        EventBody::Declared {
            event_type,
            payload,
        } => {
            let Some(declared) = registration.event_type(event_type) else {
                return Err(illegal(event_type, "the type is not declared"));
            };
            if let Some(terminal) = &declared.terminal {
                // Only the holder of a lease appends such an event (SPEC §3.3).
                require_attempt(state).map_err(|reason| illegal(event_type, reason))?;
                end(state, terminal.output(event_type, payload));
            }
        }
        EventBody::Runtime(event) => {
            apply_runtime(registration, state, occurred_at_ms, body, event)
                .map_err(|reason| illegal(name_of(body), reason))?
        }
    }
    state.last_sequence = sequence;
    state.updated_at_ms = occurred_at_ms;
    Ok(())
}

fn apply_runtime(
    registration: &Registration,
    state: &mut ProcessState,
    at_ms: u64,
    body: &EventBody,
    event: &RuntimeEvent,
) -> Result<(), &'static str> {
    match event {
        RuntimeEvent::Started {
            owner,
            attempt,
            reason,
            fencing_token: _,
            store_age_ms: _,
        } => {
            if Some(*attempt) != state.attempt.checked_add(1) {
                return Err("attempts are counted one by one");
            }
            if (*reason == StartReason::First) != (*attempt == 1) {
                return Err("the first attempt is the one that is started first");
            }
            if (*reason == StartReason::Recovery) != state.owner_lost.is_some() {
                return Err("a recovery follows on the loss of an owner, and nothing else does");
            }
            match registration.disposition {
                RecoveryDisposition::ExternallyOwned => {
                    return Err("externally owned work is never started here");
                }
                RecoveryDisposition::OwnerBound if state.attempt > 0 => {
                    return Err("a started owner-bound process is never started again");
                }
                RecoveryDisposition::OwnerBound | RecoveryDisposition::Rerunnable => {}
            }
            state.attempt = *attempt;
            state.waits.clear();
            state.retry_pause = None;
            state.owner_lost = None;
            state.first_started.get_or_insert_with(|| {
                Arc::new(FirstStart {
                    at_ms,
                    owner: owner.clone(),
                })
            });
        }
        RuntimeEvent::Waiting {
            signal_name,
            number,
            deadline_ms,
        } => {
            require_attempt(state)?;
            if state.open_wait(signal_name, *number).is_some() {
                return Err("that wait is open already");
            }
            state.waits.reserve_exact(1);
            state.waits.push(SignalWait {
                signal_name: signal_name.clone(),
                number: *number,
                since_ms: at_ms,
                deadline_ms: *deadline_ms,
            });
        }
        RuntimeEvent::Resumed {
            signal_name,
            number,
            result,
        } => {
            require_attempt(state)?;
            if let WaitResult::Signal { sequence } = result
                && !(1..=state.last_sequence).contains(sequence)
            {
                return Err("the signal is not in the log");
            }
            match (state.open_wait(signal_name, *number), result) {
                (Some(at), _) => {
                    state.waits.remove(at);
                }
                // The signal was there before the wait began: it never had to be said.
                (None, WaitResult::Signal { .. } | WaitResult::TimedOut) => {}
                (None, WaitResult::Dropped) => return Err("no such wait is open"),
            }
        }
        RuntimeEvent::CancelRequested { requested_by } => {
            if state.cancel_request.is_some() {
                return Err("cancellation was requested before");
            }
            state.cancel_request = Some(Arc::new(CancelRequest {
                requested_by: requested_by.clone(),
                requested_at_ms: at_ms,
            }));
        }
        RuntimeEvent::AbandonRequested {
            requested_by,
            reason,
        } => {
            if state.abandon_request.is_some() {
                return Err("abandonment was requested before");
            }
            state.abandon_request = Some(Arc::new(AbandonRequest {
                requested_by: requested_by.clone(),
                reason: reason.clone(),
                requested_at_ms: at_ms,
            }));
        }
        RuntimeEvent::ExternalRefSet { reference } => {
            if state.external_ref.is_some() {
                return Err("the external reference is written once");
            }
            state.external_ref = Some(reference.clone());
        }
        RuntimeEvent::RetryScheduled { retry_at_ms, error } => {
            require_attempt(state)?;
            if registration.disposition != RecoveryDisposition::Rerunnable {
                return Err("only rerunnable work is tried again");
            }
            state.retries = state.retries.saturating_add(1);
            state.waits.clear();
            state.retry_pause = Some(Arc::new(RetryPause {
                retry_at_ms: *retry_at_ms,
                error: error.clone(),
            }));
        }
        RuntimeEvent::OwnerLost {
            owner,
            fencing_token: _,
            proof: _,
            survivors: _,
        } => {
            require_attempt(state)?;
            if registration.disposition != RecoveryDisposition::Rerunnable {
                return Err("only rerunnable work outlives its owner");
            }
            // Counted here and nowhere else: once, however often recovery is interrupted.
            state.recoveries = state.recoveries.saturating_add(1);
            state.waits.clear();
            state.owner_lost = Some(Arc::new(OwnerLoss {
                at_ms,
                owner: owner.clone(),
            }));
        }
        RuntimeEvent::Completed { authority, .. } => {
            require_authority(registration, authority)?;
            if matches!(authority, TerminalAuthority::Lease { .. }) {
                require_attempt(state)?;
            }
            end_as(registration, state, body)?;
        }
        RuntimeEvent::Failed { authority, .. } | RuntimeEvent::Cancelled { authority, .. } => {
            require_authority(registration, authority)?;
            end_as(registration, state, body)?;
        }
        RuntimeEvent::Abandoned { authority, .. } => {
            require_abandon_authority(registration, authority)?;
            end_as(registration, state, body)?;
        }
    }
    Ok(())
}

fn end_as(
    registration: &Registration,
    state: &mut ProcessState,
    body: &EventBody,
) -> Result<(), &'static str> {
    let output = terminal_output(&registration.event_types, body).ok_or("it says no outcome")?;
    end(state, output);
    Ok(())
}

/// The output that an event says, if it ends its process.
pub(crate) fn terminal_output(
    event_types: &[ProcessEventType],
    body: &EventBody,
) -> Option<ProcessAwaitOutput> {
    match body {
        EventBody::Declared {
            event_type,
            payload,
        } => event_types
            .iter()
            .find(|known| known.name == *event_type)?
            .terminal
            .as_ref()
            .map(|terminal| terminal.output(event_type, payload)),
        EventBody::Runtime(event) => match event {
            RuntimeEvent::Completed { value, .. } => Some(ProcessAwaitOutput::Success {
                value: value.clone(),
            }),
            RuntimeEvent::Failed {
                class,
                code,
                message,
                raw,
                authority: _,
            } => Some(ProcessAwaitOutput::Failure {
                class: *class,
                code: code.clone(),
                message: message.clone(),
                raw: raw.clone(),
            }),
            RuntimeEvent::Cancelled {
                message,
                raw,
                authority: _,
            } => Some(ProcessAwaitOutput::Cancelled {
                message: message.clone(),
                raw: raw.clone(),
            }),
            RuntimeEvent::Abandoned {
                evidence,
                authority: _,
            } => Some(ProcessAwaitOutput::Abandoned {
                evidence: evidence.clone(),
            }),
            RuntimeEvent::Started { .. }
            | RuntimeEvent::Waiting { .. }
            | RuntimeEvent::Resumed { .. }
            | RuntimeEvent::CancelRequested { .. }
            | RuntimeEvent::AbandonRequested { .. }
            | RuntimeEvent::ExternalRefSet { .. }
            | RuntimeEvent::RetryScheduled { .. }
            | RuntimeEvent::OwnerLost { .. } => None,
        },
    }
}

/// What only an execution can say needs one that is going on: started, and not between attempts.
fn require_attempt(state: &ProcessState) -> Result<(), &'static str> {
    if state.attempt == 0 || state.retry_pause.is_some() || state.owner_lost.is_some() {
        return Err("no attempt is going on");
    }
    Ok(())
}

/// Who may end a process in any way but `Abandoned`: the holder of its lease, or whoever executes
/// it elsewhere.
fn require_authority(
    registration: &Registration,
    authority: &TerminalAuthority,
) -> Result<(), &'static str> {
    let elsewhere = registration.disposition == RecoveryDisposition::ExternallyOwned;
    match authority {
        TerminalAuthority::Lease { .. } if elsewhere => {
            Err("externally owned work is never leased here")
        }
        TerminalAuthority::ExternalOwner { .. } | TerminalAuthority::Host { .. } if !elsewhere => {
            Err("only its lease ends what is executed here")
        }
        TerminalAuthority::ReconciledAbandon => Err("the reaper writes nothing but abandoned"),
        TerminalAuthority::Lease { .. }
        | TerminalAuthority::ExternalOwner { .. }
        | TerminalAuthority::Host { .. } => Ok(()),
    }
}

/// Who may write `Abandoned`: the reaper, or the owner that stopped its owner-bound work.
fn require_abandon_authority(
    registration: &Registration,
    authority: &TerminalAuthority,
) -> Result<(), &'static str> {
    match authority {
        TerminalAuthority::ReconciledAbandon => Ok(()),
        TerminalAuthority::Lease { .. }
            if registration.disposition == RecoveryDisposition::OwnerBound =>
        {
            Ok(())
        }
        TerminalAuthority::Lease { .. } => Err("only owner-bound work is abandoned by its owner"),
        TerminalAuthority::ExternalOwner { .. } | TerminalAuthority::Host { .. } => {
            Err("only the runtime can establish that something is abandoned")
        }
    }
}

fn end(state: &mut ProcessState, output: ProcessAwaitOutput) {
    state.waits.clear();
    state.retry_pause = None;
    state.owner_lost = None;
    state.status = Arc::new(ProcessStatus::Terminal { output });
}

fn name_of(body: &EventBody) -> &str {
    match body {
        EventBody::Declared { event_type, .. } => event_type,
        EventBody::Runtime(event) => match event {
            RuntimeEvent::Started { .. } => "process.started",
            RuntimeEvent::Waiting { .. } => "process.waiting",
            RuntimeEvent::Resumed { .. } => "process.resumed",
            RuntimeEvent::CancelRequested { .. } => "process.cancel_requested",
            RuntimeEvent::AbandonRequested { .. } => "process.abandon_requested",
            RuntimeEvent::ExternalRefSet { .. } => "process.external_ref_set",
            RuntimeEvent::RetryScheduled { .. } => "process.retry_scheduled",
            RuntimeEvent::OwnerLost { .. } => "process.owner_lost",
            RuntimeEvent::Completed { .. } => "process.completed",
            RuntimeEvent::Failed { .. } => "process.failed",
            RuntimeEvent::Cancelled { .. } => "process.cancelled",
            RuntimeEvent::Abandoned { .. } => "process.abandoned",
        },
    }
}
