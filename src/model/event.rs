//! Events: the facts in a process's log.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Result};
use super::ids::{FencingToken, Incarnation};
use super::json::{self, Payload};
use super::lease::ProcessOwner;
use super::limits::{RUNTIME_EVENT_PREFIX, SIGNAL_EVENT_PREFIX};
use super::output::{
    AbandonEvidence, AbandonProof, FailureClass, ProcessAwaitOutput, ProcessError, Survivor,
};
use super::scope::SessionScope;

/// A fact in one process's log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessEvent {
    /// Whose log.
    pub process_id: String,
    /// Which incarnation of that id.
    pub incarnation: Incarnation,
    /// From 1, without gaps, never reused.
    pub sequence: u64,
    /// What happened.
    pub event_type: String,
    /// What there is to say about it.
    pub payload: Payload,
    /// When it was accepted, milliseconds since the epoch by the runtime's wall clock.
    pub occurred_at_ms: u64,
    /// The key that made its append idempotent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_key: Option<String>,
}

impl ProcessEvent {
    /// What observers see of it.
    #[must_use]
    pub fn observed(&self) -> ObservedProcessEvent {
        ObservedProcessEvent {
            sequence: self.sequence,
            event_type: self.event_type.clone(),
            payload: self.payload.clone(),
            occurred_at_ms: self.occurred_at_ms,
        }
    }
}

/// An event as observers see it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedProcessEvent {
    /// From 1, without gaps.
    pub sequence: u64,
    /// What happened.
    pub event_type: String,
    /// What there is to say about it.
    pub payload: Payload,
    /// When it was accepted, milliseconds since the epoch.
    pub occurred_at_ms: u64,
}

/// An event to append.
///
/// ```
/// use procession::ProcessEventAppendRequest;
/// use serde_json::json;
/// let request = ProcessEventAppendRequest::new("progress", json!({ "percent": 10 }))
///     .with_replay_key(Some("turn-7/10".into()));
/// # let _ = request;
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessEventAppendRequest {
    /// A type that the process declared.
    pub event_type: String,
    /// At most 1 MiB of JSON, by the type's schema.
    pub payload: Value,
    /// Makes the append idempotent: the same key and content returns the first event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_key: Option<String>,
    /// Whom this event wakes, instead of the process's wake target.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_target_scope: Option<SessionScope>,
}

impl ProcessEventAppendRequest {
    /// An event of a declared type.
    #[must_use]
    pub fn new(event_type: impl Into<String>, payload: impl Into<Value>) -> Self {
        Self {
            event_type: event_type.into(),
            payload: payload.into(),
            replay_key: None,
            wake_target_scope: None,
        }
    }

    /// The event that a signal of this name appends.
    #[must_use]
    pub fn signal(signal_name: &str, payload: impl Into<Value>) -> Self {
        Self::new(format!("{SIGNAL_EVENT_PREFIX}{signal_name}"), payload)
    }

    /// Drops it without recursion, however deep its payload is.
    pub(crate) fn dismantle(self) {
        json::dismantle(self.payload);
    }

    /// With a replay key.
    #[must_use]
    pub fn with_replay_key(mut self, replay_key: Option<String>) -> Self {
        self.replay_key = replay_key;
        self
    }

    /// With a wake target of its own.
    #[must_use]
    pub fn with_wake_target_scope(mut self, scope: Option<SessionScope>) -> Self {
        self.wake_target_scope = scope;
        self
    }
}

/// Why an attempt was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StartReason {
    /// It had never been started.
    First,
    /// The attempt before had failed in a way that may be retried.
    Retry,
    /// The attempt before had lost its owner.
    Recovery,
    /// The attempt before had been stopped by a graceful shutdown.
    Released,
}

/// How a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum WaitResult {
    /// The signal that this wait takes.
    Signal {
        /// Its sequence in the log.
        sequence: u64,
    },
    /// Its time was over first.
    TimedOut,
    /// The engine stopped waiting: its number is given back.
    Dropped,
}

/// Who may end a process without its lease, and who did.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum CompletionAuthority {
    /// Whoever executes `ExternallyOwned` work; must hold a grant when it commits.
    ExternalOwner {
        /// The scope that holds the grant.
        granted_to: SessionScope,
    },
    /// The host, on its own word.
    Host {
        /// Who in the host, 1 to 256 bytes.
        by: String,
    },
    /// The reaper; writes only `Abandoned`.
    ReconciledAbandon,
}

/// Who ended a process, as recorded on the terminal event.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum TerminalAuthority {
    /// The holder of the lease.
    Lease {
        /// Its fencing token.
        fencing_token: FencingToken,
    },
    /// Whoever executed it elsewhere.
    ExternalOwner {
        /// The scope that held the grant.
        granted_to: SessionScope,
    },
    /// The host.
    Host {
        /// Who in the host.
        by: String,
    },
    /// The reaper.
    ReconciledAbandon,
}

impl From<CompletionAuthority> for TerminalAuthority {
    fn from(authority: CompletionAuthority) -> Self {
        match authority {
            CompletionAuthority::ExternalOwner { granted_to } => Self::ExternalOwner { granted_to },
            CompletionAuthority::Host { by } => Self::Host { by },
            CompletionAuthority::ReconciledAbandon => Self::ReconciledAbandon,
        }
    }
}

/// The runtime's own events, by type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event_type", content = "payload")]
pub(crate) enum RuntimeEvent {
    #[serde(rename = "process.started")]
    Started {
        owner: ProcessOwner,
        attempt: u32,
        fencing_token: FencingToken,
        reason: StartReason,
        /// Of the first start of what has a time limit: its time counts from there, and the
        /// stamp of the event is by a clock that may jump.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        store_age_ms: Option<u64>,
    },
    #[serde(rename = "process.waiting")]
    Waiting {
        signal_name: String,
        number: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        deadline_ms: Option<u64>,
    },
    #[serde(rename = "process.resumed")]
    Resumed {
        signal_name: String,
        number: u64,
        #[serde(flatten)]
        result: WaitResult,
    },
    #[serde(rename = "process.cancel_requested")]
    CancelRequested {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        requested_by: Option<String>,
    },
    #[serde(rename = "process.abandon_requested")]
    AbandonRequested {
        requested_by: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<String>,
    },
    #[serde(rename = "process.external_ref_set")]
    ExternalRefSet { reference: Value },
    #[serde(rename = "process.retry_scheduled")]
    RetryScheduled {
        retry_at_ms: u64,
        error: ProcessError,
    },
    #[serde(rename = "process.owner_lost")]
    OwnerLost {
        /// Absent where nothing is known of it but that it is gone.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        owner: Option<ProcessOwner>,
        /// The token under which the lease was taken from it.
        fencing_token: FencingToken,
        proof: AbandonProof,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        survivors: Option<Vec<Survivor>>,
    },
    #[serde(rename = "process.completed")]
    Completed {
        value: Value,
        authority: TerminalAuthority,
    },
    #[serde(rename = "process.failed")]
    Failed {
        class: FailureClass,
        code: String,
        message: String,
        #[serde(
            default,
            deserialize_with = "json::present",
            skip_serializing_if = "Option::is_none"
        )]
        raw: Option<Value>,
        authority: TerminalAuthority,
    },
    #[serde(rename = "process.cancelled")]
    Cancelled {
        message: String,
        #[serde(
            default,
            deserialize_with = "json::present",
            skip_serializing_if = "Option::is_none"
        )]
        raw: Option<Value>,
        authority: TerminalAuthority,
    },
    #[serde(rename = "process.abandoned")]
    Abandoned {
        evidence: AbandonEvidence,
        authority: TerminalAuthority,
    },
}

impl RuntimeEvent {
    /// The terminal event that says this outcome.
    pub(crate) fn terminal(output: ProcessAwaitOutput, authority: TerminalAuthority) -> Self {
        match output {
            ProcessAwaitOutput::Success { value } => Self::Completed { value, authority },
            ProcessAwaitOutput::Failure {
                class,
                code,
                message,
                raw,
            } => Self::Failed {
                class,
                code,
                message,
                raw,
                authority,
            },
            ProcessAwaitOutput::Cancelled { message, raw } => Self::Cancelled {
                message,
                raw,
                authority,
            },
            ProcessAwaitOutput::Abandoned { evidence } => Self::Abandoned {
                evidence,
                authority,
            },
        }
    }

    /// The event type and payload as they stand in the log.
    pub(crate) fn into_parts(self) -> Result<(String, Value)> {
        match serde_json::to_value(self) {
            Ok(Value::Object(mut whole)) => {
                match (whole.remove("event_type"), whole.remove("payload")) {
                    (Some(Value::String(event_type)), Some(payload)) => Ok((event_type, payload)),
                    _ => Err(unreadable("event without type or payload")),
                }
            }
            Ok(_) => Err(unreadable("event is no object")),
            Err(error) => Err(unreadable(&error.to_string())),
        }
    }

    /// Reads a runtime event back from the log.
    pub(crate) fn from_parts(event_type: &str, payload: &Value) -> Result<Self> {
        serde_json::from_value(serde_json::json!({
            "event_type": event_type,
            "payload": payload,
        }))
        .map_err(|error| unreadable(&format!("{event_type}: {error}")))
    }
}

fn unreadable(what: &str) -> Error {
    Error::Corrupted {
        what: format!("runtime event: {what}"),
    }
}

/// An event in the form that `apply` folds.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum EventBody {
    /// One of the runtime's own.
    Runtime(RuntimeEvent),
    /// One of a declared type.
    Declared {
        event_type: String,
        payload: Payload,
    },
}

impl EventBody {
    /// Reads the body of a stored event.
    pub(crate) fn of(event: &ProcessEvent) -> Result<Self> {
        if event.event_type.starts_with(RUNTIME_EVENT_PREFIX) {
            return RuntimeEvent::from_parts(&event.event_type, &event.payload).map(Self::Runtime);
        }
        Ok(Self::Declared {
            event_type: event.event_type.clone(),
            payload: event.payload.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn runtime_events_read_back_as_they_were_written() {
        let event = RuntimeEvent::Resumed {
            signal_name: "go".into(),
            number: 2,
            result: WaitResult::Signal { sequence: 7 },
        };
        let (event_type, payload) = event.clone().into_parts().unwrap();
        assert_eq!(event_type, "process.resumed");
        assert_eq!(
            payload,
            json!({ "signal_name": "go", "number": 2, "result": "signal", "sequence": 7 })
        );
        assert_eq!(
            RuntimeEvent::from_parts(&event_type, &payload).unwrap(),
            event
        );
    }

    #[test]
    fn an_unknown_runtime_event_is_an_error_and_not_a_guess() {
        assert!(RuntimeEvent::from_parts("process.exploded", &json!({})).is_err());
    }
}
