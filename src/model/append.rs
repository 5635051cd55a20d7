//! Events that somebody wants to append: everything about them that needs no state.

use bytes::Bytes;

use super::error::{Error, Result};
use super::event::ProcessEventAppendRequest;
use super::event_type::WakeNotice;
use super::ids::{check_event_type_name, check_id, check_signal_name};
use super::json::{self, ContentHash, Payload};
use super::limits::{PAYLOAD_BYTES_MAX, RUNTIME_EVENT_PREFIX, SIGNAL_EVENT_PREFIX};
use super::record::Registration;
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

/// An event that somebody wants to append, bounded and in its canonical form: what can be said of
/// it before its process is known.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct PreparedEvent {
    event_type: String,
    payload: Payload,
    canonical: Bytes,
    replay_key: Option<String>,
    wake_target: Option<SessionScope>,
}

impl PreparedEvent {
    /// Bytes of its payload.
    pub(crate) fn bytes(&self) -> usize {
        self.canonical.len()
    }

    /// Everything that it says, as JSON.
    pub(crate) fn content(&self) -> serde_json::Value {
        serde_json::json!({
            "event_type": self.event_type,
            "payload": self.payload,
            "wake_target_scope": self.wake_target,
        })
    }
}

/// Checks an event as far as that goes without its process. The costly part, on the caller's task.
pub(crate) fn prepare_event(
    process_id: &str,
    request: ProcessEventAppendRequest,
) -> Result<PreparedEvent> {
    match prepare_fields(&request) {
        Ok(canonical) => Ok(PreparedEvent {
            event_type: request.event_type,
            payload: Payload::from(request.payload),
            canonical: Bytes::from(canonical),
            replay_key: request.replay_key,
            wake_target: request.wake_target_scope,
        }),
        Err(error) => {
            request.dismantle();
            Err(error.for_process(process_id))
        }
    }
}

fn prepare_fields(request: &ProcessEventAppendRequest) -> Result<Vec<u8>> {
    check_event_type_name("event_type", &request.event_type)?;
    if let Some(key) = &request.replay_key {
        check_id("replay_key", key)?;
    }
    if let Some(scope) = &request.wake_target_scope {
        scope.check("wake_target_scope")?;
    }
    json::bounded_bytes("payload", &request.payload, PAYLOAD_BYTES_MAX)
}

/// Checks an event that somebody wants to append, everything about it that needs no state.
pub(crate) fn check_event(
    registration: &Registration,
    request: ProcessEventAppendRequest,
) -> Result<CheckedEvent> {
    check_prepared(registration, prepare_event(&registration.id, request)?)
}

/// Checks a prepared event against what its process declared.
pub(crate) fn check_prepared(
    registration: &Registration,
    event: PreparedEvent,
) -> Result<CheckedEvent> {
    let undeclared = |reason: &str| Error::UndeclaredEvent {
        process_id: registration.id.clone(),
        event_type: event.event_type.clone(),
        reason: reason.to_owned(),
    };
    if event.event_type.starts_with(RUNTIME_EVENT_PREFIX) {
        return Err(undeclared("is the runtime's own"));
    }
    let declared = registration
        .event_type(&event.event_type)
        .ok_or_else(|| undeclared("was not declared at start"))?;
    registration
        .schemas
        .check(&registration.id, declared, &event.payload)?;
    let wake = declared
        .wake
        .as_ref()
        .and_then(|wake| wake.notice(&event.payload))
        .map(|notice| WakeDraft {
            notice,
            target: event.wake_target.clone(),
        });
    let replay = event.replay_key.map(|key| ReplayKey {
        content: content_of(&event.event_type, &event.canonical),
        key,
    });
    Ok(CheckedEvent {
        is_terminal: declared.terminal.is_some(),
        event_type: event.event_type,
        payload: event.payload,
        canonical: event.canonical,
        replay,
        wake,
    })
}

/// Prepares the event of a signal: with the replay key that makes it idempotent.
pub(crate) fn prepare_signal(
    process_id: &str,
    signal_name: &str,
    signal_id: &str,
    mut request: ProcessEventAppendRequest,
) -> Result<PreparedEvent> {
    if let Err(error) = check_signal_fields(signal_name, signal_id, &request) {
        request.dismantle();
        return Err(error.for_process(process_id));
    }
    request.replay_key = None;
    let mut prepared = prepare_event(process_id, request)?;
    prepared.replay_key = Some(signal_replay_key(signal_name, signal_id));
    Ok(prepared)
}

/// Checks a signal and gives its event the replay key that makes it idempotent.
#[cfg(test)]
pub(crate) fn check_signal(
    registration: &Registration,
    signal_name: &str,
    signal_id: &str,
    request: ProcessEventAppendRequest,
) -> Result<CheckedEvent> {
    check_prepared(
        registration,
        prepare_signal(&registration.id, signal_name, signal_id, request)?,
    )
}

fn check_signal_fields(
    signal_name: &str,
    signal_id: &str,
    request: &ProcessEventAppendRequest,
) -> Result<()> {
    check_signal_name("signal_name", signal_name)?;
    check_id("signal_id", signal_id)?;
    if request.event_type != format!("{SIGNAL_EVENT_PREFIX}{signal_name}") {
        return Err(Error::invalid(
            "request.event_type",
            format!("is {:?}", super::error::clip(&request.event_type, 160)),
            format!("exactly {SIGNAL_EVENT_PREFIX}{signal_name}"),
        ));
    }
    // The signal's own key, as the caller gave it or as the log shows it, is no other key.
    let own = |key: &String| key == signal_id || *key == signal_replay_key(signal_name, signal_id);
    if request.replay_key.as_ref().is_some_and(|key| !own(key)) {
        return Err(Error::invalid(
            "request.replay_key",
            "is set, but a signal is identified by its signal_id",
            "absent",
        ));
    }
    Ok(())
}

/// The replay key of a signal. Control characters are refused in callers' keys, so none of theirs
/// can be the same.
pub(crate) fn signal_replay_key(signal_name: &str, signal_id: &str) -> String {
    format!("\u{1}signal\u{1}{signal_name}\u{1}{signal_id}")
}

pub(crate) fn content_of(event_type: &str, canonical: &[u8]) -> ContentHash {
    let mut whole = Vec::with_capacity(event_type.len() + 1 + canonical.len());
    whole.extend_from_slice(event_type.as_bytes());
    whole.push(0);
    whole.extend_from_slice(canonical);
    ContentHash::of(&whole)
}
