//! The record of a process: the fold of its registration and its log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration;
use super::error::Result;
use super::event_type::{ProcessEventType, SchemaSet};
use super::ids::{FencingToken, Incarnation};
use super::json::{self, ContentHash};
use super::lease::ProcessOwner;
use super::output::{ProcessAwaitOutput, ProcessError, TerminalState};
use super::request::{
    ProcessIdentity, ProcessInput, ProcessStartRequest, RecoveryDisposition, RetryPolicy,
};
use super::scope::{ProcessOriginator, SessionScope};

/// The process that started a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessParent {
    /// Its id.
    pub process_id: String,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The key under which it started this child.
    pub key: String,
    /// A detached child outlives the cancellation of its parent.
    pub detached: bool,
}

/// Where a process comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessProvenance {
    /// Who created it.
    pub originator: ProcessOriginator,
    /// What made the originator do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// The process that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ProcessParent>,
}

/// What a process is and was from its start on: never changes.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Registration {
    pub(crate) id: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) hash: ContentHash,
    pub(crate) input: ProcessInput,
    pub(crate) disposition: RecoveryDisposition,
    pub(crate) identity: ProcessIdentity,
    /// What the request declared, then what its engine declares.
    pub(crate) event_types: Vec<ProcessEventType>,
    pub(crate) provenance: ProcessProvenance,
    pub(crate) env_ref: Option<ContentHash>,
    pub(crate) wake_target: Option<SessionScope>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) priority: i32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
    pub(crate) created_at_ms: u64,
    pub(crate) schemas: SchemaSet,
}

/// What a start needs beside its request.
#[derive(Debug, Clone, Default)]
pub(crate) struct RegistrationFacts {
    pub(crate) incarnation: Incarnation,
    pub(crate) created_at_ms: u64,
    pub(crate) parent: Option<ProcessParent>,
    /// Event types of the engine that is registered for the kind.
    pub(crate) engine_event_types: Vec<ProcessEventType>,
}

/// The hash of everything a start says, but for the grant. The request has been checked: a deep one
/// would overflow the stack here.
pub(crate) fn start_hash(
    request: &ProcessStartRequest,
    parent: Option<&ProcessParent>,
) -> Result<ContentHash> {
    let mut whole = serde_json::to_value(request).map_err(|error| {
        super::Error::invalid("request", error.to_string(), "representable as JSON")
    })?;
    if let Value::Object(fields) = &mut whole {
        fields.remove("grant");
        if let Some(parent) = parent {
            fields.insert("parent".to_owned(), serde_json::json!(parent));
        }
    }
    Ok(ContentHash::of(&json::canonical_bytes(&whole)))
}

impl Registration {
    /// Makes the registration of a checked request.
    pub(crate) fn new(
        request: ProcessStartRequest,
        hash: ContentHash,
        env_ref: Option<ContentHash>,
        facts: RegistrationFacts,
    ) -> Self {
        let mut event_types = request.event_types;
        event_types.reserve_exact(facts.engine_event_types.len());
        for engine_type in facts.engine_event_types {
            if !event_types.iter().any(|own| own.name == engine_type.name) {
                event_types.push(engine_type);
            }
        }
        Self {
            id: request.id,
            incarnation: facts.incarnation,
            hash,
            input: request.input,
            disposition: request.disposition,
            identity: request.identity,
            event_types,
            provenance: ProcessProvenance {
                originator: request.originator,
                caused_by: request.caused_by,
                parent: facts.parent,
            },
            env_ref,
            wake_target: request.wake_target,
            labels: request.labels,
            priority: request.priority,
            timeout: request.timeout,
            retry: request.retry,
            created_at_ms: facts.created_at_ms,
            schemas: SchemaSet::default(),
        }
    }

    /// A declared event type.
    pub(crate) fn event_type(&self, name: &str) -> Option<&ProcessEventType> {
        self.event_types.iter().find(|known| known.name == name)
    }
}

/// A request to cancel, as recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CancelRequest {
    /// Who asked, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
    /// When, milliseconds since the epoch.
    pub requested_at_ms: u64,
}

/// A request to give a process up, as recorded: the first one made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AbandonRequest {
    /// Who asked.
    pub requested_by: String,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// When, milliseconds since the epoch.
    pub requested_at_ms: u64,
}

/// A wait that is going on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignalWait {
    /// The name of the signal.
    pub signal_name: String,
    /// It takes the so-manieth signal of that name, from 1.
    pub number: u64,
    /// Since when, milliseconds since the epoch.
    pub since_ms: u64,
    /// Until when, where it has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
}

/// What a process waits for: one signal, or the first of several.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessWait {
    /// The open waits, oldest first; at least one.
    pub signals: Vec<SignalWait>,
}

/// When a process was started for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FirstStart {
    /// When, milliseconds since the epoch: time limits count from here.
    pub at_ms: u64,
    /// By whom.
    pub owner: ProcessOwner,
}

/// The pause before a retry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RetryPause {
    /// Not before, milliseconds since the epoch: by the wall clock as it goes on, without jumps, from
    /// the open in which this was written. An open whose wall clock is behind that one's goes by the
    /// longest that the pause can have been.
    pub retry_at_ms: u64,
    /// The failure that led to it.
    pub error: ProcessError,
}

/// The loss of an owner, as recorded: the process waits for its next attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerLoss {
    /// When it was recorded, milliseconds since the epoch.
    pub at_ms: u64,
    /// Who was lost; absent where nothing was known of it but that it was gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<ProcessOwner>,
}

/// Running, or how it ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum ProcessStatus {
    /// Not ended. Queued, started, waiting and so on are facets of running.
    Running,
    /// Ended, for good.
    Terminal {
        /// The outcome.
        output: ProcessAwaitOutput,
    },
}

impl ProcessStatus {
    /// How it ended, if it has.
    #[must_use]
    pub const fn terminal(&self) -> Option<TerminalState> {
        match self {
            Self::Running => None,
            Self::Terminal { output } => Some(output.state()),
        }
    }

    /// Its outcome, if it has ended.
    #[must_use]
    pub const fn output(&self) -> Option<&ProcessAwaitOutput> {
        match self {
            Self::Running => None,
            Self::Terminal { output } => Some(output),
        }
    }
}

/// What has become of a process: the part of its record that events change. Copied for every set that
/// is decided, so what is large, or seldom there, is shared.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ProcessState {
    pub(crate) updated_at_ms: u64,
    pub(crate) last_sequence: u64,
    pub(crate) attempt: u32,
    /// Attempts that ended in a failure that was retried.
    pub(crate) retries: u32,
    /// Attempts that lost their owner and may be followed by another.
    pub(crate) recoveries: u32,
    pub(crate) first_started: Option<Arc<FirstStart>>,
    pub(crate) cancel_request: Option<Arc<CancelRequest>>,
    pub(crate) abandon_request: Option<Arc<AbandonRequest>>,
    pub(crate) waits: Vec<SignalWait>,
    pub(crate) retry_pause: Option<Arc<RetryPause>>,
    /// The last attempt lost its owner, and no other has begun since.
    pub(crate) owner_lost: Option<Arc<OwnerLoss>>,
    pub(crate) external_ref: Option<Value>,
    pub(crate) status: Arc<ProcessStatus>,
}

impl ProcessState {
    /// The state before the first event.
    pub(crate) fn initial(created_at_ms: u64) -> Self {
        Self {
            updated_at_ms: created_at_ms,
            last_sequence: 0,
            attempt: 0,
            retries: 0,
            recoveries: 0,
            first_started: None,
            cancel_request: None,
            abandon_request: None,
            waits: Vec::new(),
            retry_pause: None,
            owner_lost: None,
            external_ref: None,
            status: Arc::new(ProcessStatus::Running),
        }
    }

    pub(crate) fn terminal(&self) -> Option<TerminalState> {
        self.status.terminal()
    }

    /// Where an open wait stands among the open ones.
    pub(crate) fn open_wait(&self, signal_name: &str, number: u64) -> Option<usize> {
        self.waits
            .iter()
            .position(|wait| wait.signal_name == signal_name && wait.number == number)
    }
}

/// The fold of a process's registration and log: what is true of it. It holds nothing that an
/// event did not say.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessRecord {
    /// The id, global to the store.
    pub id: String,
    /// Which incarnation of that id.
    pub incarnation: Incarnation,
    /// The hash of what the start said.
    pub registration_hash: ContentHash,
    /// What it does.
    pub input: ProcessInput,
    /// What recovery may do.
    pub disposition: RecoveryDisposition,
    /// What it is called.
    pub identity: ProcessIdentity,
    /// The event types it declared, and those of its engine.
    pub event_types: Vec<ProcessEventType>,
    /// Where it comes from.
    pub provenance: ProcessProvenance,
    /// The environment it captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_ref: Option<ContentHash>,
    /// The wake target it was started with; the current one is on
    /// [`ObservedProcess`](super::ObservedProcess).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_target: Option<SessionScope>,
    /// Names and values of the host's own.
    pub labels: BTreeMap<String, String>,
    /// Higher starts earlier.
    pub priority: i32,
    /// Time from its first start to its forced end.
    #[serde(
        default,
        with = "duration::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
    /// How often it is tried.
    pub retry: RetryPolicy,
    /// When it was created, milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When its last event was accepted, milliseconds since the epoch.
    pub updated_at_ms: u64,
    /// The sequence of its last event; 0 before the first.
    pub last_sequence: u64,
    /// How often it was started.
    pub attempt: u32,
    /// How often a failed attempt was followed by a retry.
    pub retries: u32,
    /// How often an attempt lost its owner and the process was made ready for another.
    pub recoveries: u32,
    /// When it was started for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_started: Option<FirstStart>,
    /// Somebody asked to cancel it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_request: Option<CancelRequest>,
    /// Somebody asked to give it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandon_request: Option<AbandonRequest>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<ProcessWait>,
    /// The pause before its next attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_pause: Option<RetryPause>,
    /// Its last attempt lost its owner, and no other has begun since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_lost: Option<OwnerLoss>,
    /// What it is called elsewhere.
    #[serde(
        default,
        deserialize_with = "json::present",
        skip_serializing_if = "Option::is_none"
    )]
    pub external_ref: Option<Value>,
    /// Running, or how it ended.
    pub status: ProcessStatus,
}

impl ProcessRecord {
    /// The record, put together from its two halves.
    pub(crate) fn assemble(registration: &Registration, state: &ProcessState) -> Self {
        let registration = registration.clone();
        let state = state.clone();
        Self {
            id: registration.id,
            incarnation: registration.incarnation,
            registration_hash: registration.hash,
            input: registration.input,
            disposition: registration.disposition,
            identity: registration.identity,
            event_types: registration.event_types,
            provenance: registration.provenance,
            env_ref: registration.env_ref,
            wake_target: registration.wake_target,
            labels: registration.labels,
            priority: registration.priority,
            timeout: registration.timeout,
            retry: registration.retry,
            created_at_ms: registration.created_at_ms,
            updated_at_ms: state.updated_at_ms,
            last_sequence: state.last_sequence,
            attempt: state.attempt,
            retries: state.retries,
            recoveries: state.recoveries,
            first_started: state.first_started.map(Arc::unwrap_or_clone),
            cancel_request: state.cancel_request.map(Arc::unwrap_or_clone),
            abandon_request: state.abandon_request.map(Arc::unwrap_or_clone),
            wait: wait_of(state.waits),
            retry_pause: state.retry_pause.map(Arc::unwrap_or_clone),
            owner_lost: state.owner_lost.map(Arc::unwrap_or_clone),
            external_ref: state.external_ref,
            status: Arc::unwrap_or_clone(state.status),
        }
    }
}

pub(crate) fn wait_of(signals: Vec<SignalWait>) -> Option<ProcessWait> {
    (!signals.is_empty()).then_some(ProcessWait { signals })
}

/// What a cancel found and did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessCancelSummary {
    /// The process.
    pub process_id: String,
    /// Its status when the request was recorded.
    pub status: ProcessStatus,
}

/// A token that somebody presents with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writer {
    /// The host or a session: may not end anything.
    Host,
    /// The holder of a lease.
    Owner(FencingToken),
}
