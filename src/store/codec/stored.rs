//! Stored types, and how the model's types become them.
//!
//! They are apart from the public types because bincode can read back neither tagged enums nor
//! skipped fields, and because what is stored must not change when a public type does. JSON values
//! are stored as their canonical bytes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bincode::{Decode, Encode};
use serde_json::Value;

use super::Stored;
use crate::model::event_type::SchemaSet;
use crate::model::json;
use crate::model::lease::OwnerRecord;
use crate::model::record::{ProcessState, Registration};
use crate::model::retention::Tombstone;
use crate::model::{
    AbandonRequest, Backoff, CancelRequest, ContentHash, FailureClass, FirstStart, Incarnation,
    Payload, ProcessAwaitOutput, ProcessError, ProcessEvent, ProcessEventType,
    ProcessHandleDescriptor, ProcessIdentity, ProcessInput, ProcessOriginator, ProcessOwner,
    ProcessParent, ProcessProvenance, ProcessStatus, RecoveryDisposition, RetryPause, RetryPolicy,
    SessionScope, SignalWait, StoreEpoch, TerminalState,
};
use crate::store::error::StoreError;
use crate::store::keys::Row;

macro_rules! stored {
    ($name:ident, $kind:expr, $version:expr, $text:expr) => {
        impl Stored for $name {
            const KIND: u8 = $kind;
            const VERSION: u8 = $version;
            const NAME: &'static str = $text;
        }
    };
}

fn damaged(what: impl std::fmt::Display) -> StoreError {
    StoreError::Corrupted {
        what: what.to_string(),
    }
}

fn parse(what: &str, bytes: &[u8]) -> Result<Value, StoreError> {
    json::parse(bytes).map_err(|error| damaged(format!("{what}: {error}")))
}

/// Row of a process, as an index value holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredRow {
    created_at_ms: u64,
    incarnation: u64,
}

impl From<Row> for StoredRow {
    fn from(row: Row) -> Self {
        Self {
            created_at_ms: row.created_at_ms,
            incarnation: row.incarnation.get(),
        }
    }
}

impl From<StoredRow> for Row {
    fn from(row: StoredRow) -> Self {
        Self {
            created_at_ms: row.created_at_ms,
            incarnation: Incarnation(row.incarnation),
        }
    }
}

/// What an id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredId {
    /// A process.
    Live(StoredRow),
    /// The incarnation that was pruned last.
    Pruned(u64),
}
stored!(StoredId, 0x01, 1, "id entry");

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredScope {
    session_id: String,
    agent_frame_id: Option<String>,
}
stored!(StoredScope, 0x12, 1, "wake target");

impl From<SessionScope> for StoredScope {
    fn from(scope: SessionScope) -> Self {
        Self {
            session_id: scope.session_id,
            agent_frame_id: scope.agent_frame_id,
        }
    }
}

impl From<StoredScope> for SessionScope {
    fn from(scope: StoredScope) -> Self {
        Self {
            session_id: scope.session_id,
            agent_frame_id: scope.agent_frame_id,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
enum StoredOriginator {
    Host(Option<String>),
    Session(StoredScope),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
enum StoredDisposition {
    Rerunnable,
    OwnerBound,
    ExternallyOwned,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct StoredParent {
    process_id: String,
    incarnation: u64,
    key: String,
    detached: bool,
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
struct StoredRetry {
    attempts: u32,
    initial_ms: u64,
    factor: f64,
    max_ms: u64,
    jitter: f64,
    recoveries_max: u32,
}

/// Input payload and declared event types.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredBody {
    input: Vec<u8>,
    /// Canonical JSON of the list; empty for none.
    event_types: Vec<u8>,
}
stored!(StoredBody, 0x03, 1, "process body");

/// Everything that never changes about a process, but for what is large.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct StoredHead {
    pub(crate) id: String,
    hash: [u8; 32],
    disposition: StoredDisposition,
    /// `None` for external input.
    engine_kind: Option<String>,
    kind: Option<String>,
    label: Option<String>,
    definition: Option<String>,
    originator: StoredOriginator,
    caused_by: Option<String>,
    parent: Option<StoredParent>,
    env_ref: Option<[u8; 32]>,
    wake_target: Option<StoredScope>,
    labels: Vec<(String, String)>,
    priority: i32,
    timeout_ms: Option<u64>,
    retry: StoredRetry,
    /// Present where it is small; otherwise it has a key of its own.
    body: Option<StoredBody>,
}
stored!(StoredHead, 0x02, 1, "process head");

/// Longest body that stays in the head, in bytes.
const BODY_INLINE_BYTES_MAX: usize = 1_024;

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl StoredHead {
    /// Splits a registration into its head and, where it is large, its body.
    pub(crate) fn split(
        registration: &Registration,
    ) -> Result<(Self, Option<StoredBody>), StoreError> {
        let (engine_kind, input) = match &registration.input {
            ProcessInput::Engine { kind, payload } => (Some(kind.clone()), payload),
            ProcessInput::External { metadata } => (None, metadata),
        };
        let event_types = if registration.event_types.is_empty() {
            Vec::new()
        } else {
            let value = serde_json::to_value(&registration.event_types).map_err(damaged)?;
            json::canonical_bytes(&value)
        };
        let body = StoredBody {
            input: json::canonical_bytes(input),
            event_types,
        };
        let inline = body.input.len() + body.event_types.len() <= BODY_INLINE_BYTES_MAX;
        let (inside, outside) = if inline {
            (Some(body), None)
        } else {
            (None, Some(body))
        };
        Ok((Self::of(registration, engine_kind, inside), outside))
    }

    fn of(
        registration: &Registration,
        engine_kind: Option<String>,
        body: Option<StoredBody>,
    ) -> Self {
        let provenance = &registration.provenance;
        Self {
            id: registration.id.clone(),
            hash: registration.hash.0,
            disposition: match registration.disposition {
                RecoveryDisposition::Rerunnable => StoredDisposition::Rerunnable,
                RecoveryDisposition::OwnerBound => StoredDisposition::OwnerBound,
                RecoveryDisposition::ExternallyOwned => StoredDisposition::ExternallyOwned,
            },
            engine_kind,
            kind: registration.identity.kind.clone(),
            label: registration.identity.label.clone(),
            definition: registration.identity.definition.clone(),
            originator: match &provenance.originator {
                ProcessOriginator::Host { scope } => StoredOriginator::Host(scope.clone()),
                ProcessOriginator::Session { scope } => {
                    StoredOriginator::Session(scope.clone().into())
                }
            },
            caused_by: provenance.caused_by.clone(),
            parent: provenance.parent.clone().map(|parent| StoredParent {
                process_id: parent.process_id,
                incarnation: parent.incarnation.get(),
                key: parent.key,
                detached: parent.detached,
            }),
            env_ref: registration.env_ref.map(|hash| hash.0),
            wake_target: registration.wake_target.clone().map(StoredScope::from),
            labels: registration.labels.clone().into_iter().collect(),
            priority: registration.priority,
            timeout_ms: registration.timeout.map(ms),
            retry: StoredRetry {
                attempts: registration.retry.attempts,
                initial_ms: ms(registration.retry.backoff.initial),
                factor: registration.retry.backoff.factor,
                max_ms: ms(registration.retry.backoff.max),
                jitter: registration.retry.backoff.jitter,
                recoveries_max: registration.retry.recoveries_max,
            },
            body,
        }
    }

    /// The facts, without input and event types.
    pub(crate) fn facts(self, row: Row) -> (HeadFacts, Option<StoredBody>) {
        let facts = HeadFacts {
            id: self.id,
            row,
            hash: ContentHash(self.hash),
            disposition: match self.disposition {
                StoredDisposition::Rerunnable => RecoveryDisposition::Rerunnable,
                StoredDisposition::OwnerBound => RecoveryDisposition::OwnerBound,
                StoredDisposition::ExternallyOwned => RecoveryDisposition::ExternallyOwned,
            },
            engine_kind: self.engine_kind,
            identity: ProcessIdentity {
                kind: self.kind,
                label: self.label,
                definition: self.definition,
            },
            provenance: ProcessProvenance {
                originator: match self.originator {
                    StoredOriginator::Host(scope) => ProcessOriginator::Host { scope },
                    StoredOriginator::Session(scope) => ProcessOriginator::Session {
                        scope: scope.into(),
                    },
                },
                caused_by: self.caused_by,
                parent: self.parent.map(|parent| ProcessParent {
                    process_id: parent.process_id,
                    incarnation: Incarnation(parent.incarnation),
                    key: parent.key,
                    detached: parent.detached,
                }),
            },
            env_ref: self.env_ref.map(ContentHash),
            wake_target: self.wake_target.map(SessionScope::from),
            labels: self.labels.into_iter().collect(),
            priority: self.priority,
            timeout: self.timeout_ms.map(Duration::from_millis),
            retry: RetryPolicy {
                attempts: self.retry.attempts,
                backoff: Backoff {
                    initial: Duration::from_millis(self.retry.initial_ms),
                    factor: self.retry.factor,
                    max: Duration::from_millis(self.retry.max_ms),
                    jitter: self.retry.jitter,
                },
                recoveries_max: self.retry.recoveries_max,
            },
        };
        (facts, self.body)
    }
}

/// The immutable facts of a process, without input and event types.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HeadFacts {
    pub(crate) id: String,
    pub(crate) row: Row,
    pub(crate) hash: ContentHash,
    pub(crate) disposition: RecoveryDisposition,
    pub(crate) engine_kind: Option<String>,
    pub(crate) identity: ProcessIdentity,
    pub(crate) provenance: ProcessProvenance,
    pub(crate) env_ref: Option<ContentHash>,
    pub(crate) wake_target: Option<SessionScope>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) priority: i32,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: RetryPolicy,
}

impl HeadFacts {
    /// The registration without its input and event types, for rules that look at neither.
    pub(crate) fn without_body(self) -> Registration {
        let input = match self.engine_kind {
            Some(kind) => ProcessInput::Engine {
                kind,
                payload: Value::Null,
            },
            None => ProcessInput::External {
                metadata: Value::Null,
            },
        };
        Registration {
            input,
            id: self.id,
            incarnation: self.row.incarnation,
            hash: self.hash,
            disposition: self.disposition,
            identity: self.identity,
            event_types: Vec::new(),
            provenance: self.provenance,
            env_ref: self.env_ref,
            wake_target: self.wake_target,
            labels: self.labels,
            priority: self.priority,
            timeout: self.timeout,
            retry: self.retry,
            created_at_ms: self.row.created_at_ms,
            schemas: SchemaSet::default(),
        }
    }

    /// The whole registration, with its body.
    pub(crate) fn with_body(self, body: &StoredBody) -> Result<Registration, StoreError> {
        let input = parse("input", &body.input)?;
        let event_types: Vec<ProcessEventType> = if body.event_types.is_empty() {
            Vec::new()
        } else {
            serde_json::from_value(parse("event types", &body.event_types)?).map_err(damaged)?
        };
        let mut registration = self.without_body();
        match &mut registration.input {
            ProcessInput::Engine { payload, .. } => *payload = input,
            ProcessInput::External { metadata } => *metadata = input,
        }
        registration.event_types = event_types;
        Ok(registration)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct StoredOwnerName {
    owner_id: String,
    incarnation_id: String,
    store_epoch: u64,
}

impl From<ProcessOwner> for StoredOwnerName {
    fn from(owner: ProcessOwner) -> Self {
        Self {
            owner_id: owner.owner_id,
            incarnation_id: owner.incarnation_id,
            store_epoch: owner.store_epoch.get(),
        }
    }
}

impl From<StoredOwnerName> for ProcessOwner {
    fn from(owner: StoredOwnerName) -> Self {
        Self {
            owner_id: owner.owner_id,
            incarnation_id: owner.incarnation_id,
            store_epoch: StoreEpoch(owner.store_epoch),
        }
    }
}

/// An owner incarnation and its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredOwner {
    name: StoredOwnerName,
    expires_at_ms: u64,
    retired: bool,
}
stored!(StoredOwner, 0x0c, 1, "owner");

impl From<OwnerRecord> for StoredOwner {
    fn from(record: OwnerRecord) -> Self {
        Self {
            name: record.owner.into(),
            expires_at_ms: record.expires_at_ms,
            retired: record.retired,
        }
    }
}

impl From<StoredOwner> for OwnerRecord {
    fn from(stored: StoredOwner) -> Self {
        Self {
            owner: stored.name.into(),
            expires_at_ms: stored.expires_at_ms,
            retired: stored.retired,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredTerminalState {
    Completed,
    Failed,
    Cancelled,
    Abandoned,
}

impl From<TerminalState> for StoredTerminalState {
    fn from(state: TerminalState) -> Self {
        match state {
            TerminalState::Completed => Self::Completed,
            TerminalState::Failed => Self::Failed,
            TerminalState::Cancelled => Self::Cancelled,
            TerminalState::Abandoned => Self::Abandoned,
        }
    }
}

impl From<StoredTerminalState> for TerminalState {
    fn from(state: StoredTerminalState) -> Self {
        match state {
            StoredTerminalState::Completed => Self::Completed,
            StoredTerminalState::Failed => Self::Failed,
            StoredTerminalState::Cancelled => Self::Cancelled,
            StoredTerminalState::Abandoned => Self::Abandoned,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct StoredError {
    class: u8,
    code: String,
    message: String,
}

impl From<ProcessError> for StoredError {
    fn from(error: ProcessError) -> Self {
        Self {
            class: match error.class {
                FailureClass::Execution => 0,
                FailureClass::Timeout => 1,
                FailureClass::InvalidInput => 2,
                FailureClass::External => 3,
                FailureClass::Internal => 4,
            },
            code: error.code,
            message: error.message,
        }
    }
}

impl StoredError {
    fn into_model(self) -> Result<ProcessError, StoreError> {
        Ok(ProcessError {
            class: match self.class {
                0 => FailureClass::Execution,
                1 => FailureClass::Timeout,
                2 => FailureClass::InvalidInput,
                3 => FailureClass::External,
                4 => FailureClass::Internal,
                other => return Err(damaged(format!("failure class {other}"))),
            },
            code: self.code,
            message: self.message,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
struct StoredWait {
    signal_name: String,
    number: u64,
    since_ms: u64,
    deadline_ms: Option<u64>,
}

/// The body of a state value: what events have said, but for the output, which stands in the
/// terminal event and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredState {
    updated_at_ms: u64,
    attempt: u32,
    retries: u32,
    recoveries: u32,
    first_started: Option<(u64, StoredOwnerName)>,
    cancel_request: Option<(u64, Option<String>)>,
    abandon_request: Option<(u64, String, Option<String>)>,
    waits: Vec<StoredWait>,
    retry_pause: Option<(u64, StoredError)>,
    external_ref: Option<Vec<u8>>,
    terminal: Option<(StoredTerminalState, Option<StoredError>)>,
}
stored!(StoredState, 0x04, 1, "process state");

impl From<&ProcessState> for StoredState {
    fn from(state: &ProcessState) -> Self {
        let state = state.clone();
        let terminal = state.status.output().map(|output| {
            (
                StoredTerminalState::from(output.state()),
                output.error().map(StoredError::from),
            )
        });
        Self {
            updated_at_ms: state.updated_at_ms,
            attempt: state.attempt,
            retries: state.retries,
            recoveries: state.recoveries,
            first_started: state
                .first_started
                .map(|first| (first.at_ms, first.owner.into())),
            cancel_request: state
                .cancel_request
                .map(|request| (request.requested_at_ms, request.requested_by)),
            abandon_request: state.abandon_request.map(|request| {
                (
                    request.requested_at_ms,
                    request.requested_by,
                    request.reason,
                )
            }),
            waits: state
                .waits
                .into_iter()
                .map(|wait| StoredWait {
                    signal_name: wait.signal_name,
                    number: wait.number,
                    since_ms: wait.since_ms,
                    deadline_ms: wait.deadline_ms,
                })
                .collect(),
            retry_pause: state
                .retry_pause
                .map(|pause| (pause.retry_at_ms, pause.error.into())),
            external_ref: state.external_ref.as_ref().map(json::canonical_bytes),
            terminal,
        }
    }
}

/// What a state value says of a process: its state without the output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StateFacts {
    /// The state; its status is `Running` even where the process has ended.
    pub(crate) state: ProcessState,
    /// How it ended.
    pub(crate) terminal: Option<(TerminalState, Option<ProcessError>)>,
}

impl StateFacts {
    /// The whole state, with the output that its terminal event says.
    pub(crate) fn with_output(mut self, output: Option<ProcessAwaitOutput>) -> ProcessState {
        if let Some(output) = output {
            self.state.status = Arc::new(ProcessStatus::Terminal { output });
        }
        self.state
    }
}

impl StoredState {
    pub(crate) fn facts(self, last_sequence: u64) -> Result<StateFacts, StoreError> {
        let state = ProcessState {
            updated_at_ms: self.updated_at_ms,
            last_sequence,
            attempt: self.attempt,
            retries: self.retries,
            recoveries: self.recoveries,
            first_started: self.first_started.map(|(at_ms, owner)| FirstStart {
                at_ms,
                owner: owner.into(),
            }),
            cancel_request: self.cancel_request.map(|(requested_at_ms, requested_by)| {
                CancelRequest {
                    requested_by,
                    requested_at_ms,
                }
            }),
            abandon_request: self
                .abandon_request
                .map(|(requested_at_ms, requested_by, reason)| AbandonRequest {
                    requested_by,
                    reason,
                    requested_at_ms,
                }),
            waits: self
                .waits
                .into_iter()
                .map(|wait| SignalWait {
                    signal_name: wait.signal_name,
                    number: wait.number,
                    since_ms: wait.since_ms,
                    deadline_ms: wait.deadline_ms,
                })
                .collect(),
            retry_pause: match self.retry_pause {
                Some((retry_at_ms, error)) => Some(RetryPause {
                    retry_at_ms,
                    error: error.into_model()?,
                }),
                None => None,
            },
            external_ref: match self.external_ref {
                Some(bytes) => Some(parse("external reference", &bytes)?),
                None => None,
            },
            status: Arc::new(ProcessStatus::Running),
        };
        let terminal = match self.terminal {
            Some((state, error)) => Some((
                state.into(),
                error.map(StoredError::into_model).transpose()?,
            )),
            None => None,
        };
        Ok(StateFacts { state, terminal })
    }
}

/// An event; whose it is and its sequence stand in its key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredEvent {
    pub(crate) event_type: String,
    pub(crate) occurred_at_ms: u64,
    pub(crate) replay_key: Option<String>,
    pub(crate) payload: Vec<u8>,
}
stored!(StoredEvent, 0x20, 1, "event");

impl StoredEvent {
    pub(crate) fn into_event(
        self,
        process_id: &str,
        incarnation: Incarnation,
        sequence: u64,
    ) -> Result<ProcessEvent, StoreError> {
        Ok(ProcessEvent {
            process_id: process_id.to_owned(),
            incarnation,
            sequence,
            payload: Payload::from(parse("event payload", &self.payload)?),
            event_type: self.event_type,
            occurred_at_ms: self.occurred_at_ms,
            replay_key: self.replay_key,
        })
    }
}

/// What a grant says to its holder.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredGrant {
    kind: Option<String>,
    label: Option<String>,
}
stored!(StoredGrant, 0x05, 1, "grant");

impl From<ProcessHandleDescriptor> for StoredGrant {
    fn from(descriptor: ProcessHandleDescriptor) -> Self {
        Self {
            kind: descriptor.kind,
            label: descriptor.label,
        }
    }
}

impl From<StoredGrant> for ProcessHandleDescriptor {
    fn from(stored: StoredGrant) -> Self {
        Self {
            kind: stored.kind,
            label: stored.label,
        }
    }
}

/// The last change of a process, or its deletion.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredChange {
    /// It changed; when it ended, if it has.
    Changed {
        row: StoredRow,
        terminal_at_ms: Option<u64>,
    },
    /// It was pruned.
    Pruned { id: String, incarnation: u64 },
}
stored!(StoredChange, 0x0a, 1, "feed entry");

/// What a replay key stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredReplay {
    pub(crate) sequence: u64,
    pub(crate) content: [u8; 32],
}
stored!(StoredReplay, 0x0b, 1, "replay key");

/// An environment.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredEnv {
    pub(crate) canonical: Vec<u8>,
}
stored!(StoredEnv, 0x0d, 1, "environment");

/// A pending wake.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredWake {
    pub(crate) process_id: String,
    pub(crate) row: StoredRow,
    pub(crate) sequence: u64,
    pub(crate) event_type: String,
    pub(crate) text: String,
    pub(crate) created_at_ms: u64,
}
stored!(StoredWake, 0x0e, 1, "wake");

/// The wake that used a key within a scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredDedupe {
    pub(crate) row: StoredRow,
    pub(crate) position: u64,
}
stored!(StoredDedupe, 0x0f, 1, "wake key");

/// Whom a wake of a process went to, and under which key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredWakeOf {
    pub(crate) scope: StoredScope,
    pub(crate) dedupe_key: Option<String>,
}
stored!(StoredWakeOf, 0x10, 1, "wake of a process");

/// An effect's recorded content and outcome.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredEffect {
    pub(crate) content: Vec<u8>,
    pub(crate) outcome: Vec<u8>,
}
stored!(StoredEffect, 0x11, 1, "journaled effect");

/// What remains of a pruned process.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredTombstone {
    pub(crate) id: String,
    hash: [u8; 32],
    status: StoredTerminalState,
    pub(crate) pruned_at_ms: u64,
    pub(crate) events: u64,
    pub(crate) feed_position: u64,
}
stored!(StoredTombstone, 0x14, 1, "tombstone");

impl StoredTombstone {
    pub(crate) fn new(
        id: &str,
        hash: ContentHash,
        status: TerminalState,
        pruned_at_ms: u64,
        events: u64,
    ) -> Self {
        Self {
            id: id.to_owned(),
            hash: hash.0,
            status: status.into(),
            pruned_at_ms,
            events,
            feed_position: 0,
        }
    }

    pub(crate) fn facts(&self, incarnation: Incarnation) -> Tombstone {
        Tombstone {
            incarnation,
            registration_hash: ContentHash(self.hash),
            status: self.status.into(),
            pruned_at_ms: self.pruned_at_ms,
            events: self.events,
        }
    }
}

/// A bare number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredNumber(pub(crate) u64);
stored!(StoredNumber, 0x15, 1, "number");

/// Nothing: the key says it all. Kept empty instead of enveloped, because it is most of what the
/// indexes hold.
pub(crate) const NOTHING: &[u8] = &[];

/// The front of a state value, in a layout of its own: the committer reads and rewrites it without
/// touching the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StateFront {
    /// Position of the last change in the feed.
    pub(crate) feed_position: u64,
    /// Sequence of the last event.
    pub(crate) last_sequence: u64,
    /// When it ended, plus one; zero while it runs.
    pub(crate) terminal_at_plus_one: u64,
    /// Whether cancellation was asked for: a parent that was asked to stop starts no child.
    pub(crate) cancel_requested: bool,
    /// The highest token its lease ever had; zero for none.
    pub(crate) token: u64,
    /// Who holds the lease under that token; zero for nobody.
    pub(crate) owner: u64,
    /// Bytes of events so far, as they were encoded.
    pub(crate) log_bytes: u64,
}

impl StateFront {
    /// Bytes of the layout.
    pub(crate) const LEN: usize = 7 * 8;

    pub(crate) fn terminal_at_ms(self) -> Option<u64> {
        self.terminal_at_plus_one.checked_sub(1)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let numbers = [
            self.feed_position,
            self.last_sequence,
            self.terminal_at_plus_one,
            u64::from(self.cancel_requested),
            self.token,
            self.owner,
            self.log_bytes,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// Cuts an opened state value into its front and its body.
    pub(crate) fn split(opened: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        let (front, body) = opened
            .split_at_checked(Self::LEN)
            .ok_or_else(|| damaged("process state: shorter than its front"))?;
        let mut numbers = front.chunks_exact(8).map(|bytes| {
            bytes
                .iter()
                .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte))
        });
        let mut next = || numbers.next().unwrap_or(0);
        Ok((
            Self {
                feed_position: next(),
                last_sequence: next(),
                terminal_at_plus_one: next(),
                cancel_requested: next() != 0,
                token: next(),
                owner: next(),
                log_bytes: next(),
            },
            body,
        ))
    }
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_of_a_state_is_laid_out_as_the_format_says() {
        let front = StateFront {
            feed_position: 1,
            last_sequence: 2,
            terminal_at_plus_one: 3,
            cancel_requested: true,
            token: 5,
            owner: 6,
            log_bytes: 0x0102,
        };
        let bytes = front.to_bytes();
        assert_eq!(&bytes[..16], b"\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0\x02");
        assert_eq!(&bytes[48..], b"\0\0\0\0\0\0\x01\x02");
        assert_eq!(StateFront::split(&bytes).unwrap(), (front, &[][..]));
    }
}
