//! What hosts are told about sessions, wakes and changes.

use serde::{Deserialize, Serialize};

use super::ids::Incarnation;
use super::record::ProcessRecord;
use super::scope::SessionScope;

/// A grant that was taken away.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RevokedGrant {
    /// The scope that held it.
    pub scope: SessionScope,
    /// The process.
    pub process_id: String,
}

/// What the deletion of a session did. No process is ever cancelled by it, and no log is edited.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDeleteReport {
    /// The session.
    pub session_id: String,
    /// The grants that were taken away, of all its frames.
    pub revoked: Vec<RevokedGrant>,
    /// Running processes that nobody holds a grant on any more.
    pub orphaned: Vec<String>,
    /// Running processes that are still granted elsewhere.
    pub preserved: Vec<String>,
    /// Pending wakes that were discarded.
    pub wakes_discarded: u64,
}

/// A durable notice to a session that one of its processes has something to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessWake {
    /// Its number, by which it is acknowledged: rises in the order of delivery.
    pub wake_id: u64,
    /// Whom it wakes.
    pub scope: SessionScope,
    /// The process that says it.
    pub process_id: String,
    /// Which incarnation of that id.
    pub incarnation: Incarnation,
    /// The event that says it.
    pub sequence: u64,
    /// The type of that event.
    pub event_type: String,
    /// What it says.
    pub text: String,
    /// When, milliseconds since the epoch.
    pub created_at_ms: u64,
}

/// Where a reader of the change feed is. Opaque; belongs to one store.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChangeCursor(pub(crate) String);

impl ChangeCursor {
    /// Before the first change there ever was, in any store.
    #[must_use]
    pub fn start() -> Self {
        Self("0".to_owned())
    }
}

/// A change in the feed: compacted to the last one of each process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
pub enum ProcessChange {
    /// A process is now like this.
    Changed {
        /// Its record.
        record: Box<ProcessRecord>,
    },
    /// A process was deleted.
    Deleted {
        /// Its id.
        process_id: String,
        /// Which incarnation of it.
        incarnation: Incarnation,
    },
}

/// A page of the change feed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ChangePage {
    /// Changes, in the order of their commits.
    pub changes: Vec<ProcessChange>,
    /// Where to go on. Equal to the cursor that was given where there is nothing new.
    pub next: ChangeCursor,
}
