//! `decide`: what a command does to a process in some state, as events or as a refusal.
//!
//! Pure. What only a commit can check (that a token is still current, that a grant is held, that a
//! replay key is new) is checked here against the state at hand and once more inside the commit.

use bytes::Bytes;
use serde_json::Value;

#[cfg(test)]
pub(crate) use super::append::check_signal;
pub(crate) use super::append::{
    CheckedEvent, PreparedEvent, ReplayKey, Replayed, WakeDraft, check_event, check_prepared,
    content_of, prepare_event, prepare_signal,
};
use super::attempt::{begin, require_lost, schedule_retry};
use super::error::{Error, Result};
use super::event::{
    CompletionAuthority, EventBody, RuntimeEvent, StartReason, TerminalAuthority, WaitResult,
};
use super::finish::finish;
use super::fold::{self, FoldError};
use super::ids::{FencingToken, check_id, check_signal_name, check_text};
use super::json::{self, Payload};
use super::lease::ProcessOwner;
use super::limits::{EXTERNAL_REF_BYTES_MAX, OPEN_WAITS_MAX, SIGNAL_EVENT_PREFIX, TEXT_BYTES_MAX};
use super::output::{AbandonProof, ProcessAwaitOutput, ProcessError, Survivor};
use super::record::{ProcessState, Registration, Writer};
use super::request::RecoveryDisposition;

/// What somebody wants of a process.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Command {
    /// Append an event of a declared type, a signal's included.
    Append { event: CheckedEvent, writer: Writer },
    /// Ask it to stop.
    RequestCancel { requested_by: Option<String> },
    /// Ask that it be given up.
    RequestAbandon {
        requested_by: String,
        reason: Option<String>,
    },
    /// Say what it is called elsewhere.
    SetExternalRef { reference: Value },
    /// Claim it and start an attempt.
    Begin {
        owner: ProcessOwner,
        token: FencingToken,
        reason: StartReason,
    },
    /// Begin to wait.
    BeginWait {
        token: FencingToken,
        signal_name: String,
        number: u64,
        deadline_ms: Option<u64>,
    },
    /// End a wait.
    EndWait {
        token: FencingToken,
        signal_name: String,
        number: u64,
        result: WaitResult,
    },
    /// Try again later.
    ScheduleRetry {
        token: FencingToken,
        retry_at_ms: u64,
        error: ProcessError,
    },
    /// Record that its owner is gone, and make it ready for another.
    LoseOwner {
        owner: Option<ProcessOwner>,
        token: FencingToken,
        proof: AbandonProof,
        survivors: Option<Vec<Survivor>>,
    },
    /// End it.
    Finish {
        output: ProcessAwaitOutput,
        finisher: Finisher,
    },
}

/// Who ends a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Finisher {
    /// The holder of its lease.
    Owner(FencingToken),
    /// The reaper or a canceller, which claims a free lease in the very commit that ends it.
    Claim(FencingToken),
    /// Somebody without a lease.
    Authority(CompletionAuthority),
}

/// What a decision must know beside the state.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Facts {
    /// What the command's replay key already stands for.
    pub(crate) replayed: Option<Replayed>,
    /// The token of the lease as it is stored, lapsed or not.
    pub(crate) holder: Option<FencingToken>,
    /// A token with which the process can be claimed now: given where its lease is free.
    pub(crate) claim: Option<FencingToken>,
    /// How old the store is: to be said of the first start of what has a time limit.
    pub(crate) store_age_ms: Option<u64>,
}

/// What becomes of the lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeaseChange {
    /// Nothing.
    Keep,
    /// It is acquired under this token.
    Acquire(FencingToken),
    /// It is given back.
    Release,
    /// It is acquired and given back at once: the commit that ends a process nobody holds.
    Pass(FencingToken),
}

/// An event to be appended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EventDraft {
    pub(crate) body: EventBody,
    pub(crate) event_type: String,
    pub(crate) payload: Payload,
    pub(crate) canonical: Bytes,
    pub(crate) replay: Option<ReplayKey>,
    pub(crate) wake: Option<WakeDraft>,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Decision {
    /// These events are appended, together.
    Commit {
        events: Vec<EventDraft>,
        lease: LeaseChange,
    },
    /// It was done before: this is the event.
    Replayed { sequence: u64 },
    /// There is nothing to do.
    Unchanged,
}

/// Decides a command.
///
/// # Errors
/// The refusal, as the caller gets it.
pub(crate) fn decide(
    registration: &Registration,
    state: &ProcessState,
    command: Command,
    facts: Facts,
) -> Result<Decision> {
    match command {
        Command::Append { event, writer } => append(registration, state, event, writer, facts),
        Command::RequestCancel { requested_by } => cancel(registration, state, requested_by, facts),
        Command::RequestAbandon {
            requested_by,
            reason,
        } => request_abandon(registration, state, requested_by, reason),
        Command::SetExternalRef { reference } => external_ref(registration, state, reference),
        Command::Begin {
            owner,
            token,
            reason,
        } => begin(registration, state, owner, token, reason, facts),
        Command::BeginWait {
            token,
            signal_name,
            number,
            deadline_ms,
        } => {
            require_holder(registration, state, facts, token)?;
            begin_wait(registration, state, signal_name, number, deadline_ms)
        }
        Command::EndWait {
            token,
            signal_name,
            number,
            result,
        } => {
            require_holder(registration, state, facts, token)?;
            end_wait(registration, state, signal_name, number, result)
        }
        Command::ScheduleRetry {
            token,
            retry_at_ms,
            error,
        } => {
            require_holder(registration, state, facts, token)?;
            schedule_retry(registration, state, retry_at_ms, &error)
        }
        Command::LoseOwner {
            owner,
            token,
            proof,
            survivors,
        } => {
            require_lost(registration, state, facts, token, proof)?;
            let loss = RuntimeEvent::OwnerLost {
                owner,
                fencing_token: token,
                proof,
                survivors,
            };
            commit(loss, LeaseChange::Pass(token))
        }
        Command::Finish { output, finisher } => {
            finish(registration, state, output, finisher, facts)
        }
    }
}

fn append(
    registration: &Registration,
    state: &ProcessState,
    event: CheckedEvent,
    writer: Writer,
    facts: Facts,
) -> Result<Decision> {
    if let (Some(key), Some(replayed)) = (&event.replay, facts.replayed) {
        // Answered before anything else, so that a late retry learns what became of it (P3).
        if key.content == replayed.content {
            return Ok(Decision::Replayed {
                sequence: replayed.sequence,
            });
        }
        return Err(Error::Conflict {
            process_id: registration.id.clone(),
            what: describe_key(&key.key),
        });
    }
    require_running(registration, state)?;
    if let Writer::Owner(token) = writer {
        require_holder(registration, state, facts, token)?;
    }
    let lease = match (event.is_terminal, writer) {
        (false, _) => LeaseChange::Keep,
        (true, Writer::Owner(_)) => LeaseChange::Release,
        (true, Writer::Host) => {
            return Err(Error::invalid(
                "event_type",
                format!("{} ends the process", event.event_type),
                "only the lease holder appends terminal events",
            )
            .for_process(&registration.id));
        }
    };
    let draft = EventDraft {
        body: EventBody::Declared {
            event_type: event.event_type.clone(),
            payload: event.payload.clone(),
        },
        event_type: event.event_type,
        payload: event.payload,
        canonical: event.canonical,
        replay: event.replay,
        wake: event.wake,
    };
    Ok(Decision::Commit {
        events: vec![draft],
        lease,
    })
}

fn describe_key(key: &str) -> String {
    match key.strip_prefix("\u{1}signal\u{1}") {
        Some(signal) => format!("signal {}", signal.replace('\u{1}', "/")),
        None => format!("replay key {key:?}"),
    }
}

fn cancel(
    registration: &Registration,
    state: &ProcessState,
    requested_by: Option<String>,
    facts: Facts,
) -> Result<Decision> {
    if let Some(by) = &requested_by {
        // Also the id of any session's scope: two ids, each three times as long where it is escaped.
        check_text("requested_by", by, 2 * TEXT_BYTES_MAX)
            .map_err(|error| error.for_process(&registration.id))?;
    }
    if state.terminal().is_some() {
        return Ok(Decision::Unchanged);
    }
    let mut events = Vec::new();
    if state.cancel_request.is_none() {
        events.push(runtime_draft(RuntimeEvent::CancelRequested {
            requested_by,
        })?);
    }
    // What nobody executes, and nobody has executed in a way that could matter, ends at once.
    let endable = match registration.disposition {
        RecoveryDisposition::Rerunnable => true,
        RecoveryDisposition::OwnerBound => state.attempt == 0,
        RecoveryDisposition::ExternallyOwned => false,
    };
    if let (true, Some(token)) = (endable, facts.claim) {
        let message = if state.attempt == 0 {
            "cancelled before it was started"
        } else {
            "cancelled between two attempts"
        };
        events.push(runtime_draft(RuntimeEvent::Cancelled {
            message: message.to_owned(),
            raw: None,
            authority: TerminalAuthority::Lease {
                fencing_token: token,
            },
        })?);
        return Ok(Decision::Commit {
            events,
            lease: LeaseChange::Pass(token),
        });
    }
    if events.is_empty() {
        return Ok(Decision::Unchanged);
    }
    Ok(Decision::Commit {
        events,
        lease: LeaseChange::Keep,
    })
}

fn request_abandon(
    registration: &Registration,
    state: &ProcessState,
    requested_by: String,
    reason: Option<String>,
) -> Result<Decision> {
    let of_process = |error: Error| error.for_process(&registration.id);
    check_id("requested_by", &requested_by).map_err(of_process)?;
    if let Some(reason) = &reason {
        check_text("reason", reason, TEXT_BYTES_MAX).map_err(of_process)?;
    }
    require_running(registration, state)?;
    if state.abandon_request.is_some() {
        // A1: the first writer wins, and a repetition is no error.
        return Ok(Decision::Unchanged);
    }
    commit(
        RuntimeEvent::AbandonRequested {
            requested_by,
            reason,
        },
        LeaseChange::Keep,
    )
}

fn external_ref(
    registration: &Registration,
    state: &ProcessState,
    reference: Value,
) -> Result<Decision> {
    if let Err(error) = json::bounded_bytes("reference", &reference, EXTERNAL_REF_BYTES_MAX) {
        json::dismantle(reference);
        return Err(error.for_process(&registration.id));
    }
    match &state.external_ref {
        Some(known) if *known == reference => Ok(Decision::Unchanged),
        Some(_) => Err(Error::Conflict {
            process_id: registration.id.clone(),
            what: "external reference".to_owned(),
        }),
        None => {
            require_running(registration, state)?;
            commit(
                RuntimeEvent::ExternalRefSet { reference },
                LeaseChange::Keep,
            )
        }
    }
}

fn begin_wait(
    registration: &Registration,
    state: &ProcessState,
    signal_name: String,
    number: u64,
    deadline_ms: Option<u64>,
) -> Result<Decision> {
    check_wait(registration, &signal_name, number)?;
    if state.open_wait(&signal_name, number).is_some() {
        return Err(Error::invalid(
            "number",
            format!("is {number}, and that wait for {signal_name} is open already"),
            "each wait once",
        )
        .for_process(&registration.id));
    }
    if state.waits.len() >= OPEN_WAITS_MAX {
        return Err(Error::Overloaded {
            what: format!("open waits of process {}", registration.id),
            limit: OPEN_WAITS_MAX as u64,
        });
    }
    commit(
        RuntimeEvent::Waiting {
            signal_name,
            number,
            deadline_ms,
        },
        LeaseChange::Keep,
    )
}

fn end_wait(
    registration: &Registration,
    state: &ProcessState,
    signal_name: String,
    number: u64,
    result: WaitResult,
) -> Result<Decision> {
    check_wait(registration, &signal_name, number)?;
    let refused = |reason: String, limit: &str| {
        Error::invalid("result", reason, limit).for_process(&registration.id)
    };
    match result {
        WaitResult::Signal { sequence } if sequence == 0 || sequence > state.last_sequence => {
            return Err(refused(
                format!("is event {sequence}, which the log does not have"),
                "an event of the log",
            ));
        }
        WaitResult::Dropped if state.open_wait(&signal_name, number).is_none() => {
            return Err(refused(
                format!("drops wait {number} for {signal_name}, which is not open"),
                "an open wait",
            ));
        }
        WaitResult::Signal { .. } | WaitResult::TimedOut | WaitResult::Dropped => {}
    }
    commit(
        RuntimeEvent::Resumed {
            signal_name,
            number,
            result,
        },
        LeaseChange::Keep,
    )
}

/// Waits are for declared signals and are counted from 1.
fn check_wait(registration: &Registration, signal_name: &str, number: u64) -> Result<()> {
    let of_process = |error: Error| error.for_process(&registration.id);
    check_signal_name("signal_name", signal_name).map_err(of_process)?;
    let event_type = format!("{SIGNAL_EVENT_PREFIX}{signal_name}");
    if registration.event_type(&event_type).is_none() {
        return Err(Error::UndeclaredEvent {
            process_id: registration.id.clone(),
            event_type,
            reason: "was not declared at start".to_owned(),
        });
    }
    if number == 0 {
        return Err(of_process(Error::invalid("number", "is 0", "from 1")));
    }
    Ok(())
}

pub(super) fn require_running(registration: &Registration, state: &ProcessState) -> Result<()> {
    match state.terminal() {
        None => Ok(()),
        Some(status) => Err(Error::AlreadyTerminal {
            process_id: registration.id.clone(),
            status,
        }),
    }
}

/// A write of an owner needs a running process and the token that is current.
pub(super) fn require_holder(
    registration: &Registration,
    state: &ProcessState,
    facts: Facts,
    token: FencingToken,
) -> Result<()> {
    require_running(registration, state)?;
    if facts.holder == Some(token) {
        return Ok(());
    }
    Err(Error::Superseded {
        process_id: registration.id.clone(),
        token: token.get(),
    })
}

/// A claim needs a lease that is free now, and a token that rises above the last holder's (L1, L2).
pub(super) fn require_claim(
    registration: &Registration,
    facts: Facts,
    token: FencingToken,
) -> Result<()> {
    if facts.claim == Some(token) && facts.holder.is_none_or(|held| held < token) {
        return Ok(());
    }
    Err(Error::Superseded {
        process_id: registration.id.clone(),
        token: token.get(),
    })
}

pub(super) fn illegal(registration: &Registration, reason: &str) -> Error {
    Error::invalid("disposition", reason, "see the recovery dispositions")
        .for_process(&registration.id)
}

pub(super) fn commit(event: RuntimeEvent, lease: LeaseChange) -> Result<Decision> {
    Ok(Decision::Commit {
        events: vec![runtime_draft(event)?],
        lease,
    })
}

fn runtime_draft(event: RuntimeEvent) -> Result<EventDraft> {
    let (event_type, payload) = event.clone().into_parts()?;
    let canonical = Bytes::from(json::canonical_bytes(&payload));
    Ok(EventDraft {
        body: EventBody::Runtime(event),
        event_type,
        payload: Payload::from(payload),
        canonical,
        replay: None,
        wake: None,
    })
}

/// Folds drafts into a state, as the store will after it has saved them.
pub(crate) fn apply_drafts(
    registration: &Registration,
    state: &mut ProcessState,
    events: &[EventDraft],
    occurred_at_ms: u64,
) -> std::result::Result<(), FoldError> {
    events.iter().try_for_each(|draft| {
        let sequence = state.last_sequence + 1;
        fold::apply(registration, state, sequence, occurred_at_ms, &draft.body)
    })
}
