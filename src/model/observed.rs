//! A process as observers see it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::event::ObservedProcessEvent;
use super::ids::{FencingToken, Incarnation};
use super::json::{self, ContentHash};
use super::lease::ProcessOwner;
use super::output::{ProcessError, TerminalState};
use super::record::{AbandonRequest, CancelRequest, ProcessParent, ProcessWait};
use super::request::{ProcessHandleDescriptor, RecoveryDisposition};
use super::scope::{ProcessOriginator, SessionScope};

/// Where a process is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lifecycle {
    /// Not ended.
    Running,
    /// Returned a value.
    Completed,
    /// Failed.
    Failed,
    /// Ended because it was asked to.
    Cancelled,
    /// Nobody can know how it ended.
    Abandoned,
}

impl From<Option<TerminalState>> for Lifecycle {
    fn from(state: Option<TerminalState>) -> Self {
        match state {
            None => Self::Running,
            Some(TerminalState::Completed) => Self::Completed,
            Some(TerminalState::Failed) => Self::Failed,
            Some(TerminalState::Cancelled) => Self::Cancelled,
            Some(TerminalState::Abandoned) => Self::Abandoned,
        }
    }
}

impl std::fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Abandoned => "abandoned",
        })
    }
}

/// What more there is to say about a running process. All false once it has ended, but for the
/// requests, which stay as they were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "facets are independent of each other, and each is a yes or a no"
)]
pub struct Facets {
    /// It waits for its turn, a free slot or its engine: nobody executes it.
    pub queued: bool,
    /// It has been started at least once.
    pub started: bool,
    /// Its engine waits for a signal.
    pub waiting: bool,
    /// Somebody asked to cancel it.
    pub cancel_requested: bool,
    /// Somebody asked to give it up.
    pub abandon_requested: bool,
    /// It pauses before its next attempt.
    pub backing_off: bool,
}

/// The lease on a process as an observer sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObservedLease {
    /// Who holds it, or held it last without giving it back.
    pub owner: ProcessOwner,
    /// Under which token.
    pub fencing_token: FencingToken,
    /// When it expires unless it is renewed, milliseconds since the epoch.
    pub expires_at_ms: u64,
    /// Whether it is live: not lapsed, and its owner not known to be gone.
    pub live: bool,
}

/// Why a queued process does not run, where it is more than its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
#[non_exhaustive]
pub enum QueuedReason {
    /// It waits for a free slot, or for its turn.
    Slot,
    /// No engine is registered for its kind: it stays queued until one is.
    UnregisteredEngine {
        /// The kind.
        kind: String,
    },
    /// The store was opened without recovery: nothing is run.
    RecoveryOff,
}

/// A process as observers see it: the facts of its record, and who holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObservedProcess {
    /// The id.
    pub process_id: String,
    /// Which incarnation of that id.
    pub incarnation: Incarnation,
    /// Its class: the identity's kind, or the engine kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The engine that executes it; absent for external work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_kind: Option<String>,
    /// Its name for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Which definition it was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Where it is in its life.
    pub lifecycle: Lifecycle,
    /// What more there is to say about that.
    pub facets: Facets,
    /// Why it does not run, while it is queued.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queued_reason: Option<QueuedReason>,
    /// What recovery may do.
    pub disposition: RecoveryDisposition,
    /// How often it was started.
    pub attempt: u32,
    /// The sequence of its last event.
    pub last_sequence: u64,
    /// When it was created, milliseconds since the epoch.
    pub created_at_ms: u64,
    /// When its last event was accepted.
    pub updated_at_ms: u64,
    /// When it was started for the first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_started_at_ms: Option<u64>,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal_at_ms: Option<u64>,
    /// Until when it pauses before its next attempt; see [`RetryPause`](super::RetryPause).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_at_ms: Option<u64>,
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease: Option<ObservedLease>,
    /// Somebody asked to cancel it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_request: Option<CancelRequest>,
    /// Somebody asked to give it up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandon_request: Option<AbandonRequest>,
    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wait: Option<ProcessWait>,
    /// Who created it.
    pub originator: ProcessOriginator,
    /// What made the originator do so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// The process that started it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<ProcessParent>,
    /// What it is called elsewhere.
    #[serde(
        default,
        deserialize_with = "json::present",
        skip_serializing_if = "Option::is_none"
    )]
    pub external_ref: Option<Value>,
    /// The environment it captured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_ref: Option<ContentHash>,
    /// Whose wakes its events become, now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_target: Option<SessionScope>,
    /// Higher starts earlier.
    pub priority: i32,
    /// Names and values of the host's own.
    pub labels: BTreeMap<String, String>,
    /// How it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ProcessError>,
}

/// A process in a session's snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessWorkItem {
    /// The process.
    pub process: ObservedProcess,
    /// What the session's grant says about it; empty where only its wakes go there.
    pub descriptor: ProcessHandleDescriptor,
    /// Its last events, at most 32, in the order of the log.
    pub events: Vec<ObservedProcessEvent>,
    /// The kind to show: the descriptor's, or the process's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The label to show: the descriptor's, or the process's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl ProcessWorkItem {
    pub(crate) fn new(
        process: ObservedProcess,
        descriptor: ProcessHandleDescriptor,
        events: Vec<ObservedProcessEvent>,
    ) -> Self {
        let mut item = Self {
            process,
            descriptor: ProcessHandleDescriptor::default(),
            events,
            kind: None,
            label: None,
        };
        item.describe(descriptor);
        item
    }

    /// Shows it as a grant says.
    pub(crate) fn describe(&mut self, descriptor: ProcessHandleDescriptor) {
        let Self { process, .. } = self;
        self.kind = descriptor.kind.clone().or_else(|| process.kind.clone());
        self.label = descriptor.label.clone().or_else(|| process.label.clone());
        self.descriptor = descriptor;
    }
}

/// A session's work: every process granted to it, or whose wakes go to it, newest change first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessWorkSnapshot {
    /// The session; all its frames are covered.
    pub session_id: String,
    /// Their ids, in the order of the items.
    pub visible_process_ids: Vec<String>,
    /// The processes.
    pub items: Vec<ProcessWorkItem>,
}

impl ProcessWorkSnapshot {
    pub(crate) fn new(session_id: String, items: Vec<ProcessWorkItem>) -> Self {
        let ids = items.iter().map(|item| item.process.process_id.clone());
        Self {
            session_id,
            visible_process_ids: ids.collect(),
            items,
        }
    }
}
