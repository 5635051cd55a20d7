//! `decide`: what a command does to a process in some state, as events or as a refusal.
//!
//! Pure. What only a commit can check (that a token is still current, that a grant is held, that a
//! replay key is new) is checked here against the state at hand and once more inside the commit.

use bytes::Bytes;
use serde_json::Value;

use super::error::{Error, Result};
use super::event::{
    CompletionAuthority, EventBody, ProcessEventAppendRequest, RuntimeEvent, StartReason,
    TerminalAuthority, WaitResult,
};
use super::event_type::WakeNotice;
use super::fold::{self, FoldError};
use super::ids::{FencingToken, check_event_name, check_id, check_signal_name, check_text};
use super::json::{self, ContentHash, Payload};
use super::lease::ProcessOwner;
use super::limits::{
    EXTERNAL_REF_BYTES_MAX, OPEN_WAITS_MAX, PAYLOAD_BYTES_MAX, REPLAY_KEY_BYTES_MAX,
    RUNTIME_EVENT_PREFIX, SIGNAL_EVENT_PREFIX, TEXT_BYTES_MAX,
};
use super::output::{ProcessAwaitOutput, ProcessError};
use super::record::{ProcessState, Registration, Writer};
use super::request::RecoveryDisposition;
use super::scope::SessionScope;

/// An event of a declared type, checked and in the form in which it is stored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct CheckedEvent {
    pub(crate) event_type: String,
    pub(crate) payload: Payload,
    /// The payload's canonical bytes.
    pub(crate) canonical: Bytes,
    pub(crate) replay: Option<ReplayKey>,
    pub(crate) wake: Option<WakeDraft>,
    /// Whether an event of this type ends the process.
    pub(crate) is_terminal: bool,
}

/// A replay key and what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ReplayKey {
    pub(crate) key: String,
    pub(crate) content: ContentHash,
}

/// A wake that an event makes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WakeDraft {
    pub(crate) notice: WakeNotice,
    /// Whom it wakes, if not the process's wake target.
    pub(crate) target: Option<SessionScope>,
}

/// The event that a replay key already stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replayed {
    pub(crate) sequence: u64,
    pub(crate) content: ContentHash,
}

/// Checks an event that somebody wants to append, everything about it that needs no state.
pub(crate) fn check_event(
    registration: &Registration,
    request: ProcessEventAppendRequest,
) -> Result<CheckedEvent> {
    let checked = check_event_fields(registration, &request);
    match checked {
        Ok((canonical, wake, is_terminal)) => {
            let replay = request.replay_key.map(|key| ReplayKey {
                content: content_of(&request.event_type, &canonical),
                key,
            });
            Ok(CheckedEvent {
                event_type: request.event_type,
                payload: Payload::from(request.payload),
                canonical: Bytes::from(canonical),
                replay,
                wake,
                is_terminal,
            })
        }
        Err(error) => {
            json::dismantle(request.payload);
            Err(error.for_process(&registration.id))
        }
    }
}

type CheckedFields = (Vec<u8>, Option<WakeDraft>, bool);

fn check_event_fields(
    registration: &Registration,
    request: &ProcessEventAppendRequest,
) -> Result<CheckedFields> {
    check_event_name("event_type", &request.event_type)?;
    let undeclared = |reason: &str| Error::UndeclaredEvent {
        process_id: registration.id.clone(),
        event_type: request.event_type.clone(),
        reason: reason.to_owned(),
    };
    if request.event_type.starts_with(RUNTIME_EVENT_PREFIX) {
        return Err(undeclared("is the runtime's own"));
    }
    if let Some(key) = &request.replay_key {
        check_id("replay_key", key)?;
        check_text("replay_key", key, REPLAY_KEY_BYTES_MAX)?;
    }
    if let Some(scope) = &request.wake_target_scope {
        scope.check("wake_target_scope")?;
    }
    let canonical = json::bounded_bytes("payload", &request.payload, PAYLOAD_BYTES_MAX)?;
    let declared = registration
        .event_type(&request.event_type)
        .ok_or_else(|| undeclared("was not declared at start"))?;
    declared.check_payload(&registration.id, &request.payload)?;
    let wake = declared
        .wake
        .as_ref()
        .and_then(|wake| wake.notice(&request.payload))
        .map(|notice| WakeDraft {
            notice,
            target: request.wake_target_scope.clone(),
        });
    Ok((canonical, wake, declared.terminal.is_some()))
}

/// Checks a signal and gives its event the replay key that makes it idempotent.
pub(crate) fn check_signal(
    registration: &Registration,
    signal_name: &str,
    signal_id: &str,
    mut request: ProcessEventAppendRequest,
) -> Result<CheckedEvent> {
    let of_process = |error: Error| error.for_process(&registration.id);
    check_signal_name("signal_name", signal_name).map_err(of_process)?;
    check_id("signal_id", signal_id).map_err(of_process)?;
    if request.event_type != format!("{SIGNAL_EVENT_PREFIX}{signal_name}") {
        return Err(of_process(Error::invalid(
            "request.event_type",
            format!("is {:?}", super::error::clip(&request.event_type, 160)),
            format!("exactly {SIGNAL_EVENT_PREFIX}{signal_name}"),
        )));
    }
    let key = signal_replay_key(signal_name, signal_id);
    if request
        .replay_key
        .as_ref()
        .is_some_and(|given| *given != key)
    {
        return Err(of_process(Error::invalid(
            "request.replay_key",
            "is set, but a signal is identified by its signal_id",
            "absent",
        )));
    }
    request.replay_key = None;
    let mut checked = check_event(registration, request)?;
    checked.replay = Some(ReplayKey {
        content: content_of(&checked.event_type, &checked.canonical),
        key,
    });
    Ok(checked)
}

/// The replay key of a signal. Control characters are refused in callers' keys, so none of theirs
/// can be the same.
pub(crate) fn signal_replay_key(signal_name: &str, signal_id: &str) -> String {
    format!("\u{1}signal\u{1}{signal_name}\u{1}{signal_id}")
}

/// What a replay key stands for, as a hash: the event's type and payload.
pub(crate) fn content_of(event_type: &str, canonical: &[u8]) -> ContentHash {
    let mut whole = Vec::with_capacity(event_type.len() + 1 + canonical.len());
    whole.extend_from_slice(event_type.as_bytes());
    whole.push(0);
    whole.extend_from_slice(canonical);
    ContentHash::of(&whole)
}

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
        } => begin(registration, state, owner, token, reason),
        Command::BeginWait {
            token,
            signal_name,
            number,
            deadline_ms,
        } => {
            require_holder(registration, state, facts, token)?;
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
        Command::EndWait {
            token,
            signal_name,
            number,
            result,
        } => {
            require_holder(registration, state, facts, token)?;
            commit(
                RuntimeEvent::Resumed {
                    signal_name,
                    number,
                    result,
                },
                LeaseChange::Keep,
            )
        }
        Command::ScheduleRetry {
            token,
            retry_at_ms,
            error,
        } => {
            require_holder(registration, state, facts, token)?;
            if registration.disposition != RecoveryDisposition::Rerunnable {
                return Err(illegal(registration, "only rerunnable work is tried again"));
            }
            commit(
                RuntimeEvent::RetryScheduled { retry_at_ms, error },
                LeaseChange::Release,
            )
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
        check_text("requested_by", by, TEXT_BYTES_MAX)
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

fn begin(
    registration: &Registration,
    state: &ProcessState,
    owner: ProcessOwner,
    token: FencingToken,
    reason: StartReason,
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
    commit(
        RuntimeEvent::Started {
            owner,
            attempt: state.attempt + 1,
            fencing_token: token,
            reason,
        },
        LeaseChange::Acquire(token),
    )
}

fn finish(
    registration: &Registration,
    state: &ProcessState,
    output: ProcessAwaitOutput,
    finisher: Finisher,
    facts: Facts,
) -> Result<Decision> {
    output
        .check()
        .map_err(|error| error.for_process(&registration.id))?;
    let (authority, lease) = match finisher {
        Finisher::Owner(token) => {
            require_holder(registration, state, facts, token)?;
            (
                TerminalAuthority::Lease {
                    fencing_token: token,
                },
                LeaseChange::Release,
            )
        }
        Finisher::Claim(token) => {
            require_running(registration, state)?;
            let authority = match &output {
                ProcessAwaitOutput::Abandoned { .. } => TerminalAuthority::ReconciledAbandon,
                ProcessAwaitOutput::Success { .. }
                | ProcessAwaitOutput::Failure { .. }
                | ProcessAwaitOutput::Cancelled { .. } => TerminalAuthority::Lease {
                    fencing_token: token,
                },
            };
            (authority, LeaseChange::Pass(token))
        }
        Finisher::Authority(authority) => {
            require_running(registration, state)?;
            check_authority(registration, &output, &authority)
                .map_err(|error| error.for_process(&registration.id))?;
            (authority.into(), LeaseChange::Keep)
        }
    };
    commit(RuntimeEvent::terminal(output, authority), lease)
}

fn check_authority(
    registration: &Registration,
    output: &ProcessAwaitOutput,
    authority: &CompletionAuthority,
) -> Result<()> {
    let abandons = matches!(output, ProcessAwaitOutput::Abandoned { .. });
    match authority {
        CompletionAuthority::ReconciledAbandon if abandons => return Ok(()),
        CompletionAuthority::ReconciledAbandon => {
            return Err(Error::invalid(
                "authority",
                "reconciled_abandon writes nothing but abandoned",
                "abandoned",
            ));
        }
        CompletionAuthority::ExternalOwner { granted_to } => {
            granted_to.check("authority.granted_to")?;
        }
        CompletionAuthority::Host { by } => check_id("authority.by", by)?,
    }
    if abandons {
        return Err(Error::invalid(
            "output",
            "is abandoned, which only the runtime can establish",
            "success, failure or cancelled",
        ));
    }
    if registration.disposition != RecoveryDisposition::ExternallyOwned {
        return Err(Error::invalid(
            "authority",
            "ends only externally owned processes",
            "disposition externally_owned",
        ));
    }
    Ok(())
}

fn require_running(registration: &Registration, state: &ProcessState) -> Result<()> {
    match state.terminal() {
        None => Ok(()),
        Some(status) => Err(Error::AlreadyTerminal {
            process_id: registration.id.clone(),
            status,
        }),
    }
}

/// A write of an owner needs a running process and the token that is current.
fn require_holder(
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

fn illegal(registration: &Registration, reason: &str) -> Error {
    Error::invalid("disposition", reason, "see the recovery dispositions")
        .for_process(&registration.id)
}

fn commit(event: RuntimeEvent, lease: LeaseChange) -> Result<Decision> {
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
