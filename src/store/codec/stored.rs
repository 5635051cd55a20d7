//! Stored types, and how the model's types become them.
//!
//! They are apart from the public types because bincode can read back neither tagged enums nor
//! skipped fields, and because what is stored must not change when a public type does. JSON values
//! are stored as their canonical bytes.

use bincode::{BorrowDecode, Decode, Encode};
use serde_json::Value;

use super::{Stored, Written};
use crate::model::age::AgeMark;
use crate::model::json;
use crate::model::retention::Tombstone;
use crate::model::{
    ContentHash, Incarnation, ObservedProcessEvent, Payload, ProcessEvent, ProcessHandleDescriptor,
    SessionScope, TerminalState,
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

mod head;
mod state;

pub(crate) use head::*;
pub(crate) use state::*;

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
    pub(crate) created_at_ms: u64,
    pub(crate) incarnation: u64,
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

/// An event; whose it is and its sequence stand in its key.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredEvent {
    pub(crate) event_type: String,
    pub(crate) occurred_at_ms: u64,
    pub(crate) replay_key: Option<String>,
    pub(crate) payload: Vec<u8>,
}
stored!(StoredEvent, 0x20, 1, "event");

/// The bytes of a [`StoredEvent`], borrowed: written from where an event's parts are, and read without a
/// copy of what is about to be parsed.
#[derive(Debug, Encode, BorrowDecode)]
pub(crate) struct EventRef<'a> {
    pub(crate) event_type: &'a str,
    pub(crate) occurred_at_ms: u64,
    pub(crate) replay_key: Option<&'a str>,
    pub(crate) payload: &'a [u8],
}

impl Written for EventRef<'_> {
    type As = StoredEvent;
}

impl StoredEvent {
    pub(crate) fn borrowed(&self) -> EventRef<'_> {
        EventRef {
            event_type: &self.event_type,
            occurred_at_ms: self.occurred_at_ms,
            replay_key: self.replay_key.as_deref(),
            payload: &self.payload,
        }
    }
}

impl<'a> EventRef<'a> {
    /// Reads one from its envelope.
    pub(crate) fn read(bytes: &'a [u8]) -> Result<Self, StoreError> {
        super::read_body::<StoredEvent, Self>(super::open::<StoredEvent>(bytes)?)
    }

    fn payload(&self) -> Result<Payload, StoreError> {
        parse("event payload", self.payload).map(Payload::from)
    }

    pub(crate) fn to_event(
        &self,
        process_id: &str,
        incarnation: Incarnation,
        sequence: u64,
    ) -> Result<ProcessEvent, StoreError> {
        Ok(ProcessEvent {
            process_id: process_id.to_owned(),
            incarnation,
            sequence,
            event_type: self.event_type.to_owned(),
            occurred_at_ms: self.occurred_at_ms,
            replay_key: self.replay_key.map(str::to_owned),
            payload: self.payload()?,
        })
    }

    /// The same as observers see it.
    pub(crate) fn to_observed(&self, sequence: u64) -> Result<ObservedProcessEvent, StoreError> {
        Ok(ObservedProcessEvent {
            sequence,
            event_type: self.event_type.to_owned(),
            occurred_at_ms: self.occurred_at_ms,
            payload: self.payload()?,
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

/// Where in the change feed an open of the store began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredFeedEpoch {
    /// No position below it was taken in this epoch, and none from it on before.
    pub(crate) first_position: u64,
    /// Tells it from the epoch of the same number of a copy.
    pub(crate) nonce: u64,
}
stored!(StoredFeedEpoch, 0x18, 1, "epoch of the feed");

/// How old the store was, and what the clocks showed then.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredAge {
    pub(crate) age_ms: u64,
    pub(crate) wall_ms: u64,
    pub(crate) monotonic_ms: u64,
    pub(crate) boot_id: Option<String>,
}
stored!(StoredAge, 0x19, 1, "age of the store");

impl From<AgeMark> for StoredAge {
    fn from(mark: AgeMark) -> Self {
        Self {
            age_ms: mark.age_ms,
            wall_ms: mark.wall_ms,
            monotonic_ms: mark.monotonic_ms,
            boot_id: mark.boot_id,
        }
    }
}

impl From<StoredAge> for AgeMark {
    fn from(stored: StoredAge) -> Self {
        Self {
            age_ms: stored.age_ms,
            wall_ms: stored.wall_ms,
            monotonic_ms: stored.monotonic_ms,
            boot_id: stored.boot_id,
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
