//! `WriteSet`: changes that happen together, and what must hold when they do.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use bytes::Bytes;

use super::error::StoreError;
use super::keys::Row;
use crate::model::age::AgeMark;
use crate::model::lease::OwnerRecord;
use crate::model::retention::Tombstone;
use crate::model::{
    ContentHash, FencingToken, Incarnation, OwnerNumber, ProcessHandleDescriptor,
    ProcessOriginator, ProcessPruneReport, SessionScope, StoreEpoch,
};

/// What must hold when a set is applied. Checked by the committer, in queue order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Condition {
    /// The id stands for nothing, or for a tombstone of other content.
    IdFree { id: String, hash: ContentHash },
    /// The process is there.
    Exists { row: Row },
    /// The process is there, and this is its last event.
    At { row: Row, last_sequence: u64 },
    /// Its lease is held under this token.
    Token { row: Row, token: FencingToken },
    /// The owner's heartbeat has not lapsed, and its epoch is not over.
    OwnerLive { owner: OwnerNumber },
    /// Nobody holds its lease, or whoever did has lapsed or is known to be gone.
    LeaseFree { row: Row },
    /// Nobody holds its lease, or whoever did is known to be gone; a lapse is not enough.
    LeaseGone { row: Row },
    /// The scope holds a grant on it.
    Granted { row: Row, scope: SessionScope },
    /// The scope holds a grant on it, with this descriptor.
    GrantIs {
        row: Row,
        scope: SessionScope,
        descriptor: ProcessHandleDescriptor,
    },
    /// It runs and was not asked to cancel.
    MayStartChild { row: Row },
    /// The replay key stands for nothing yet.
    ReplayFree {
        incarnation: Incarnation,
        key: String,
    },
}

/// Which condition did not hold, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The id stands for a process.
    IdTaken(Row),
    /// The id was pruned with the same content.
    Pruned(Tombstone),
    /// The process is not there any more.
    Gone,
    /// Somebody else wrote to it.
    Moved,
    /// It has ended.
    Ended,
    /// The token is not current, or a new one would not rise.
    Superseded,
    /// The owner's heartbeat has lapsed, or its epoch is over.
    OwnerLapsed,
    /// Somebody holds the lease.
    Leased,
    /// The scope holds no grant.
    NotGranted,
    /// The parent has ended or was asked to cancel.
    ParentStopping,
    /// The replay key stands for an event already.
    ReplayTaken,
    /// The set it was decided on was refused.
    Predecessor,
    /// More belongs to it than one commit may touch: some of it is to be dropped first.
    TooMany,
    /// There is nothing to change.
    NothingToDo,
}

/// What becomes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeaseWrite {
    /// Nothing.
    Keep,
    /// It is acquired.
    Acquire {
        owner: OwnerNumber,
        token: FencingToken,
    },
    /// It is given back.
    Release,
    /// It is acquired and given back in one.
    Pass { token: FencingToken },
}

/// A new process with everything that is made together with it.
#[derive(Debug, Clone)]
pub(crate) struct Register {
    pub(crate) row: Row,
    pub(crate) id: String,
    pub(crate) head: Bytes,
    pub(crate) body: Option<Bytes>,
    /// The body of its state value.
    pub(crate) state: Bytes,
    /// Hash and canonical bytes of the environment it captured.
    pub(crate) env: Option<(ContentHash, Bytes)>,
    pub(crate) grant: Option<(SessionScope, ProcessHandleDescriptor)>,
    pub(crate) originator: ProcessOriginator,
    pub(crate) parent: Option<Incarnation>,
    pub(crate) wake_target: Option<SessionScope>,
}

/// A wake that an event makes.
#[derive(Debug, Clone)]
pub(crate) struct WakeWrite {
    pub(crate) process_id: String,
    pub(crate) sequence: u64,
    pub(crate) event_type: String,
    pub(crate) text: String,
    pub(crate) dedupe_key: Option<String>,
    /// Whom it wakes, if not the process's wake target.
    pub(crate) target: Option<SessionScope>,
    pub(crate) at_ms: u64,
}

/// A replay key that an event takes.
#[derive(Debug, Clone)]
pub(crate) struct ReplayWrite {
    pub(crate) key: String,
    pub(crate) sequence: u64,
    pub(crate) content: ContentHash,
}

/// Events of one process, and what they make of it. With no events, only its lease changes.
#[derive(Debug, Clone)]
pub(crate) struct Append {
    pub(crate) row: Row,
    pub(crate) first_sequence: u64,
    pub(crate) events: Vec<Bytes>,
    /// The body of its state value; `None` where no event changes it.
    pub(crate) state: Option<Bytes>,
    pub(crate) terminal_at_ms: Option<u64>,
    pub(crate) cancel_requested: bool,
    pub(crate) lease: LeaseWrite,
    pub(crate) replays: Vec<ReplayWrite>,
    pub(crate) wakes: Vec<WakeWrite>,
}

/// One change of a set.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// A new process.
    Register(Box<Register>),
    /// Events, and what they make of their process.
    Append(Box<Append>),
    /// A grant; one that is there keeps its descriptor.
    Grant {
        row: Row,
        scope: SessionScope,
        descriptor: ProcessHandleDescriptor,
    },
    /// The end of a grant, whether there is one or not.
    Revoke { row: Row, scope: SessionScope },
    /// An owner's heartbeat.
    PutOwner {
        number: OwnerNumber,
        record: OwnerRecord,
    },
    /// How old the store is, with what the clocks show. It never gets younger.
    PutAge(AgeMark),
    /// An owner that nobody names any more.
    RemoveOwner { number: OwnerNumber },
    /// The feed of an epoch begins, once.
    BeginFeed { epoch: StoreEpoch, nonce: u64 },
    /// An effect's recorded outcome.
    RecordEffect { key: Bytes, value: Bytes },
    /// A process is taken out and a tombstone put in its place. Of what is keyed by its incarnation,
    /// where that is much, the rest is named in the receipt and goes with [`Change::DropRemains`].
    Prune { row: Row, id: String, at_ms: u64 },
    /// Some of what a pruned process left.
    DropRemains(Box<Remains>),
    /// Effects that were journaled on an id, as long as it stands for this incarnation.
    ForgetEffects {
        id: String,
        incarnation: Incarnation,
        keys: Vec<Bytes>,
    },
    /// A tombstone is forgotten.
    DropTombstone { incarnation: Incarnation },
    /// A wake has been received.
    AckWake { scope: SessionScope, position: u64 },
    /// The wakes of a process go to another scope than `from`, or to nobody. What is pending for
    /// that and was made after a position is discarded; what was made before was discarded before.
    RetargetWakes {
        row: Row,
        from: Option<SessionScope>,
        target: Option<SessionScope>,
        after: u64,
    },
    /// The wakes of a process no longer go to this scope.
    DropWakeTarget { row: Row, scope: SessionScope },
    /// Wakes are discarded, each by its process and position, with the keys they used. Of those that
    /// were received only the key is left, which goes as well if that is said.
    DiscardWakes {
        wakes: Vec<(Row, u64)>,
        received_too: bool,
    },
}

/// Some of what a pruned process left, as a view found it: few enough for one commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remains {
    pub(crate) row: Row,
    pub(crate) scopes: Vec<SessionScope>,
    pub(crate) wakes: Vec<u64>,
    pub(crate) replays: Vec<Bytes>,
    /// There was no more. Nothing is added to what is gone.
    pub(crate) is_all: bool,
}

/// What an accepted set did beside what it was asked to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Receipt {
    /// The commit.
    pub(crate) commit: u64,
    /// What its prunes took out.
    pub(crate) pruned: ProcessPruneReport,
    /// Pending wakes that it discarded.
    pub(crate) wakes_discarded: u64,
    /// Grants that it took away: those that were still there.
    pub(crate) revoked: Vec<(Row, SessionScope)>,
    /// Scopes that it delivered wakes to.
    pub(crate) woken: Vec<SessionScope>,
    /// Pruned processes of which something is still to be erased.
    pub(crate) remains: Vec<Row>,
    /// Scopes that the wakes of a process no longer go to.
    pub(crate) left: Vec<SessionScope>,
}

/// How a set failed.
#[derive(Debug, Clone)]
pub(crate) enum CommitError {
    /// A condition did not hold: nothing was written.
    Refused(Refusal),
    /// It provably was not written.
    NotWritten(StoreError),
    /// It may or may not be found after a reopen.
    Unknown(StoreError),
}

pub(crate) type CommitResult = Result<Receipt, CommitError>;

/// A set's fate, by which a later set names the one it was decided on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ticket(Arc<AtomicU8>);

const ACCEPTED: u8 = 1;
const REFUSED: u8 = 2;

impl Ticket {
    pub(crate) fn accept(&self) {
        self.0.store(ACCEPTED, Ordering::Release);
    }

    pub(crate) fn refuse(&self) {
        self.0.store(REFUSED, Ordering::Release);
    }

    pub(crate) fn is_accepted(&self) -> bool {
        self.0.load(Ordering::Acquire) == ACCEPTED
    }
}

/// Changes that happen together, or not at all.
#[derive(Debug, Default)]
pub(crate) struct WriteSet {
    pub(crate) conditions: Vec<Condition>,
    pub(crate) changes: Vec<Change>,
    /// The set that this one was decided on: refused together with it.
    pub(crate) after: Option<Ticket>,
    /// This set's own fate.
    pub(crate) ticket: Ticket,
}

impl WriteSet {
    /// A set with these conditions and changes.
    pub(crate) fn new(conditions: Vec<Condition>, changes: Vec<Change>) -> Self {
        Self {
            conditions,
            changes,
            after: None,
            ticket: Ticket::default(),
        }
    }
}
