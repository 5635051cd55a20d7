//! What the child and its parent say to each other, and where chance comes from.

use std::collections::BTreeSet;

use procession::{
    Incarnation, Payload, ProcessAwaitOutput, ProcessPruneReport, RecoveryDisposition,
    TerminalState,
};
use serde::{Deserialize, Serialize};

/// What the engine of the child does, step by step.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Task {
    pub(crate) steps: u32,
    /// Milliseconds that a step takes.
    pub(crate) pause_ms: u64,
    /// Wakes its target.
    pub(crate) asks: bool,
    /// Waits for a signal, not for long.
    pub(crate) waits: bool,
    /// Starts a child.
    pub(crate) kid: bool,
    /// So many attempts fail, and may be tried again.
    pub(crate) fails: u32,
    pub(crate) panics: bool,
    /// Ends itself by an event.
    pub(crate) says_done: bool,
    /// It is none of this but a command of the operating system.
    pub(crate) command: bool,
}

/// A start: everything that its request is made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Start {
    pub(crate) id: String,
    pub(crate) writer: usize,
    pub(crate) round: u64,
    pub(crate) disposition: RecoveryDisposition,
    pub(crate) task: Task,
    pub(crate) batch: Option<String>,
    pub(crate) journaled: bool,
    /// Where the store and all that belongs to it is.
    pub(crate) dir: std::path::PathBuf,
}

/// What a writer asks for. A number is in one event only, so that it can be counted in the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub(crate) enum Op {
    Start(Box<Start>),
    Append {
        id: String,
        event_type: String,
        number: u64,
        replay_key: Option<String>,
    },
    Signal {
        id: String,
        number: u64,
        journaled: bool,
        /// With the rights of this session.
        by_session: Option<String>,
    },
    Cancel {
        id: String,
    },
    /// Of all that runs, or of what a session holds.
    CancelAll {
        session: Option<String>,
    },
    DeleteSession {
        session: String,
    },
    /// Where the wakes of a process go that has not woken anybody yet.
    Retarget {
        id: String,
        to: String,
    },
    Await {
        id: String,
    },
    Grant {
        id: String,
        scope: String,
    },
    Revoke {
        id: String,
        scope: String,
    },
    Transfer {
        ids: Vec<String>,
        from: String,
        to: String,
    },
    Refer {
        id: String,
        number: u64,
    },
    Complete {
        id: String,
        number: u64,
        by_owner: Option<String>,
    },
    Abandon {
        id: String,
    },
    AckWake {
        scope: String,
        wake_id: u64,
        id: String,
        sequence: u64,
    },
    Prune {
        batch: String,
        ids: Vec<String>,
        events: u64,
    },
}

impl Op {
    /// What it is counted as.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Start(start) => match (start.disposition, start.journaled) {
                (_, true) => "start through a journal",
                (RecoveryDisposition::Rerunnable, false) => "start rerunnable",
                (RecoveryDisposition::OwnerBound, false) => "start owner-bound",
                (RecoveryDisposition::ExternallyOwned, false) => "start externally owned",
            },
            Self::Append {
                replay_key: Some(_),
                ..
            } => "append with a replay key",
            Self::Append { event_type, .. } if event_type == "ask" => "append a wake",
            Self::Append { .. } => "append",
            Self::Signal {
                journaled: true, ..
            } => "signal through a journal",
            Self::Signal {
                by_session: Some(_),
                ..
            } => "signal as a session",
            Self::Signal { .. } => "signal",
            Self::Cancel { .. } => "cancel",
            Self::CancelAll { session: None } => "cancel all",
            Self::CancelAll { .. } => "cancel all as a session",
            Self::DeleteSession { .. } => "delete a session",
            Self::Retarget { .. } => "retarget wakes",
            Self::Await { .. } => "await",
            Self::Grant { .. } => "grant",
            Self::Revoke { .. } => "revoke",
            Self::Transfer { .. } => "transfer",
            Self::Refer { .. } => "external reference",
            Self::Complete {
                by_owner: Some(_), ..
            } => "complete as its owner",
            Self::Complete { .. } => "complete as host",
            Self::Abandon { .. } => "abandon request",
            Self::AckWake { .. } => "acknowledge a wake",
            Self::Prune { .. } => "prune",
        }
    }

    /// Everything that a child is expected to get acknowledged.
    pub(crate) const NAMES: [&str; 25] = [
        "start through a journal",
        "start rerunnable",
        "start owner-bound",
        "start externally owned",
        "append with a replay key",
        "append a wake",
        "append",
        "signal through a journal",
        "signal",
        "signal as a session",
        "cancel",
        "cancel all",
        "cancel all as a session",
        "delete a session",
        "retarget wakes",
        "await",
        "grant",
        "revoke",
        "transfer",
        "external reference",
        "complete as its owner",
        "complete as host",
        "abandon request",
        "acknowledge a wake",
        "prune",
    ];

    /// Whether a client that does not know what became of it may simply ask again.
    pub(crate) fn may_repeat(&self) -> bool {
        match self {
            Self::Start(_) | Self::Signal { .. } | Self::Refer { .. } => true,
            Self::Append { replay_key, .. } => replay_key.is_some(),
            _ => false,
        }
    }

    /// The processes it is about.
    pub(crate) fn ids(&self) -> Vec<&str> {
        match self {
            Self::Start(start) => vec![&start.id],
            Self::Transfer { ids, .. } | Self::Prune { ids, .. } => {
                ids.iter().map(String::as_str).collect()
            }
            Self::CancelAll { .. } | Self::DeleteSession { .. } => Vec::new(),
            Self::Append { id, .. }
            | Self::Retarget { id, .. }
            | Self::Signal { id, .. }
            | Self::Cancel { id }
            | Self::Await { id }
            | Self::Grant { id, .. }
            | Self::Revoke { id, .. }
            | Self::Refer { id, .. }
            | Self::Complete { id, .. }
            | Self::Abandon { id }
            | Self::AckWake { id, .. } => vec![id],
        }
    }
}

/// What was acknowledged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "done", rename_all = "snake_case")]
pub(crate) enum Done {
    Started {
        incarnation: Incarnation,
    },
    Event {
        sequence: u64,
        payload: Payload,
    },
    /// A cancel: what it had ended as by then.
    Asked {
        ended: Option<ProcessAwaitOutput>,
    },
    /// The same for each.
    AskedAll {
        ended: Vec<(String, Option<ProcessAwaitOutput>)>,
    },
    Output {
        output: ProcessAwaitOutput,
    },
    Pruned {
        report: ProcessPruneReport,
    },
    /// Refused because the process has ended, which is a fact as well.
    Ended {
        status: TerminalState,
    },
    Fine,
}

/// A line of the child.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
pub(crate) enum Line {
    /// It is about to open the store.
    Opening,
    /// It has opened it.
    Open,
    /// A sweep that it asked for is over.
    Recovered,
    /// A writer is about to ask for this.
    Try { writer: usize, op: Op },
    /// It has its answer.
    Ack { writer: usize, done: Done },
    /// An engine was told that its event is durable.
    Emitted {
        id: String,
        event_type: String,
        sequence: u64,
        payload: Payload,
    },
    /// An engine was told that its child is durable.
    Kid { parent: String, id: String },
    /// Something else that the test waits for.
    Said { what: String },
    /// Something that must not happen.
    Bad { what: String },
}

/// A process as its writer knows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Held {
    pub(crate) id: String,
    pub(crate) round: u64,
    pub(crate) disposition: RecoveryDisposition,
    pub(crate) scopes: BTreeSet<String>,
    pub(crate) referred: bool,
    pub(crate) cancelled: bool,
}

/// What the parent tells the child.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) dir: std::path::PathBuf,
    pub(crate) seed: u64,
    pub(crate) round: u64,
    /// The writers wait until recovery is through.
    pub(crate) recover_first: bool,
    /// What the killed one did not get an answer to.
    pub(crate) repeat: Vec<(usize, Op)>,
    /// What is left of the killed one for its writers to go on with.
    pub(crate) held: Vec<(usize, Held)>,
}

/// Writers of a child.
pub(crate) const WRITERS: usize = 10;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014).
#[derive(Debug, Clone)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `0..bound`.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// So many times in a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
