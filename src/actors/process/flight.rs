//! Work: what is decided, what is in flight, and where the answer goes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::messages::{Answer, CommandReply, EmitRoom};
use crate::actors::dispatcher::SlotPermit;
use crate::actors::keeper::OwnerHandle;
use crate::actors::runtime::Claimed;
use crate::model::decide::{Command, LeaseChange};
use crate::model::lease::Lease;
use crate::model::record::ProcessState;
use crate::model::{FencingToken, ProcessEvent, Result, SessionScope};
use crate::store::write_set::CommitError;

/// Something to be decided.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) command: Command,
    /// The scope whose grant is a condition of the commit.
    pub(super) granted_to: Option<SessionScope>,
    /// How often it was decided.
    pub(super) tries: u32,
    pub(super) purpose: Purpose,
}

/// Whom the fate of some work concerns.
#[derive(Debug)]
pub(super) enum Purpose {
    /// A host waits for it.
    Host(CommandReply),
    /// An engine emitted it.
    Emit {
        token: FencingToken,
        durable: Option<oneshot::Sender<Result<ProcessEvent>>>,
        room: EmitRoom,
    },
    /// An attempt is to begin.
    Begin {
        permit: SlotPermit,
        owner: Arc<OwnerHandle>,
        token: FencingToken,
        claimed: Claimed,
    },
    /// A wait began.
    WaitBegun { wait_id: u64 },
    /// A wait ended.
    WaitEnded { wait_id: u64 },
    /// An execution's end is recorded: outcome or retry.
    Settle { token: FencingToken },
    /// An execution's lease is given back without an outcome. Its command is never decided.
    Release { token: FencingToken },
}

/// Some work that a set carries out.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) work: Work,
    /// How many of the set's events are its own.
    pub(super) events: usize,
    /// What becomes of the lease by it.
    pub(super) lease: LeaseChange,
}

/// A set that was sent and has not come back.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) number: u64,
    /// What it carries out, in the order of its events; at least one.
    pub(super) members: Vec<Member>,
    /// What it appended, with the bytes of each payload.
    pub(super) events: Vec<(Arc<ProcessEvent>, usize)>,
    /// What is durable once it has come back.
    pub(super) state: Arc<ProcessState>,
    pub(super) lease: Option<Lease>,
    /// Answers that rest on it without having written anything.
    pub(super) behind: Vec<(Work, Result<Answer>)>,
    /// Its fate, where that was told before the fate of one sent earlier.
    pub(super) result: Option<std::result::Result<(), CommitError>>,
}
