//! What never changes about a process.

use std::collections::BTreeMap;
use std::time::Duration;

use bincode::{Decode, Encode};
use serde_json::Value;

use super::*;
use crate::model::event_type::SchemaSet;
use crate::model::json;
use crate::model::record::Registration;
use crate::model::{
    Backoff, ContentHash, Incarnation, ProcessEventType, ProcessIdentity, ProcessInput,
    ProcessOriginator, ProcessParent, ProcessProvenance, RecoveryDisposition, RetryPolicy,
    SessionScope,
};
use crate::store::codec::Stored;
use crate::store::error::StoreError;
use crate::store::keys::Row;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredOriginator {
    Host(Option<String>),
    Session(StoredScope),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredDisposition {
    Rerunnable,
    OwnerBound,
    ExternallyOwned,
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredParent {
    pub(crate) process_id: String,
    pub(crate) incarnation: u64,
    pub(crate) key: String,
    pub(crate) detached: bool,
}

#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct StoredRetry {
    pub(crate) attempts: u32,
    pub(crate) initial_ms: u64,
    pub(crate) factor: f64,
    pub(crate) max_ms: u64,
    pub(crate) jitter: f64,
    pub(crate) recoveries_max: u32,
}

/// Input payload and declared event types.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredBody {
    pub(crate) input: Vec<u8>,
    /// Canonical JSON of the list; empty for none.
    pub(crate) event_types: Vec<u8>,
}
stored!(StoredBody, 0x03, 1, "process body");

impl StoredBody {
    /// The declared event types.
    pub(crate) fn event_types(&self) -> Result<Vec<ProcessEventType>, StoreError> {
        if self.event_types.is_empty() {
            return Ok(Vec::new());
        }
        serde_json::from_value(parse("event types", &self.event_types)?).map_err(damaged)
    }
}

/// Everything that never changes about a process, but for what is large.
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub(crate) struct StoredHead {
    pub(crate) id: String,
    pub(crate) hash: [u8; 32],
    pub(crate) disposition: StoredDisposition,
    /// `None` for external input.
    pub(crate) engine_kind: Option<String>,
    pub(crate) kind: Option<String>,
    pub(crate) label: Option<String>,
    pub(crate) definition: Option<String>,
    pub(crate) originator: StoredOriginator,
    pub(crate) caused_by: Option<String>,
    pub(crate) parent: Option<StoredParent>,
    pub(crate) env_ref: Option<[u8; 32]>,
    pub(crate) wake_target: Option<StoredScope>,
    pub(crate) labels: Vec<(String, String)>,
    pub(crate) priority: i32,
    pub(crate) timeout_ms: Option<u64>,
    pub(crate) retry: StoredRetry,
    /// Present where it is small; otherwise it has a key of its own.
    pub(crate) body: Option<StoredBody>,
}
stored!(StoredHead, 0x02, 1, "process head");

/// Longest body that stays in the head, in bytes.
const BODY_INLINE_BYTES_MAX: usize = 1_024;

pub(super) fn ms(duration: Duration) -> u64 {
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
        let event_types = body.event_types()?;
        let mut registration = self.without_body();
        match &mut registration.input {
            ProcessInput::Engine { payload, .. } => *payload = input,
            ProcessInput::External { metadata } => *metadata = input,
        }
        registration.event_types = event_types;
        Ok(registration)
    }
}
