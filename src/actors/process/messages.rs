//! What a process actor is told, and what it answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use serde_json::Value;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::waits::History;
use crate::actors::dispatcher::{SlotPermit, Turn};
use crate::actors::runtime::Admission;
use crate::engines::{CancelReason, EngineResult};
use crate::model::decide::{CheckedEvent, PreparedEvent};
use crate::model::{
    CompletionAuthority, FencingToken, Incarnation, OwnerNumber, ProcessAwaitOutput, ProcessEvent,
    ProcessStatus, Result, SessionScope,
};
use crate::store::write_set::CommitError;

/// What a host asks of a process. Cheap to clone where it is small, or an event: their payloads are
/// shared.
#[derive(Debug, Clone)]
pub(crate) enum HostCommand {
    /// An event or a signal.
    Append(PreparedEvent),
    Cancel {
        requested_by: Option<String>,
    },
    Abandon {
        requested_by: String,
        reason: Option<String>,
    },
    ExternalRef {
        reference: Value,
        bytes: usize,
    },
    Complete {
        output: ProcessAwaitOutput,
        bytes: usize,
        authority: CompletionAuthority,
    },
}

impl HostCommand {
    /// Bytes of payload that it holds.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Append(event) => event.bytes(),
            Self::ExternalRef { bytes, .. } | Self::Complete { bytes, .. } => *bytes,
            Self::Cancel { .. } | Self::Abandon { .. } => 0,
        }
    }
}

/// What a host is answered.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// The event that stands for it.
    Event(Arc<ProcessEvent>),
    /// The status of the process when it was recorded.
    Status(Arc<ProcessStatus>),
}

/// A host's command on its way.
#[derive(Debug)]
pub(crate) struct CommandCall {
    pub(crate) command: HostCommand,
    /// The scope whose grant is a condition of the commit.
    pub(crate) granted_to: Option<SessionScope>,
    /// The incarnation it is meant for.
    pub(crate) incarnation: Incarnation,
    pub(crate) reply: CommandReply,
}

/// Where a command's answer goes. Holds its share of what may be in flight.
#[derive(Debug)]
pub(crate) struct CommandReply {
    pub(crate) answer: oneshot::Sender<Result<Answer>>,
    /// Set before a set is sent for it: a command without the mark can be sent again if its actor
    /// is gone, one with it may or may not have happened.
    pub(crate) sent: Arc<AtomicBool>,
    pub(crate) admission: Admission,
}

impl CommandReply {
    pub(super) fn mark_sent(&self) {
        self.sent.store(true, Ordering::Release);
    }

    /// Has the caller look for the process again: nothing was written for it here.
    pub(super) fn look_again(self) {
        self.sent.store(false, Ordering::Release);
    }

    pub(super) fn send(self, answer: Result<Answer>) {
        // Room first, answer second: the caller may come back at once.
        drop(self.admission);
        // Nobody waits any more: what was committed stands all the same.
        let _ = self.answer.send(answer);
    }
}

/// A share of what an attempt may have emitted that is not durable yet, and of the bytes in flight.
#[derive(Debug)]
pub(crate) struct EmitRoom {
    pub(super) _event: OwnedSemaphorePermit,
    pub(super) _bytes: Option<OwnedSemaphorePermit>,
}

/// Where the end of a wait goes.
pub(crate) type WaitReply = oneshot::Sender<Result<Delivered>>;

/// The end of a wait on its way to the engine. Dropped without having been taken, it says so.
#[derive(Debug)]
pub(crate) struct Delivered {
    event: Option<ProcessEvent>,
    unseen: Option<(ActorRef<ProcessMsg>, FencingToken, String, u64)>,
}

impl Delivered {
    pub(super) fn new(
        event: Option<ProcessEvent>,
        actor: ActorRef<ProcessMsg>,
        token: FencingToken,
        signal_name: String,
        number: u64,
    ) -> Self {
        Self {
            event,
            unseen: Some((actor, token, signal_name, number)),
        }
    }

    /// What the wait returned: a signal, or `None` for a timeout.
    pub(super) fn take(mut self) -> Option<ProcessEvent> {
        self.unseen = None;
        self.event.take()
    }
}

impl Drop for Delivered {
    fn drop(&mut self) {
        if let Some((actor, token, signal_name, number)) = self.unseen.take() {
            // The actor is gone only when the attempt is over.
            let _ = actor.cast(ProcessMsg::WaitUnseen {
                token,
                signal_name,
                number,
            });
        }
    }
}

/// How a process came through a graceful shutdown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ShutdownOutcome {
    /// Nothing of it was running.
    Idle,
    /// It ended by itself.
    Finished,
    /// Its lease was given back without an outcome: the next open runs it again.
    Released,
    /// It was stopped and ended as abandoned.
    Abandoned,
    /// What became of it could not be written.
    Unwritten,
}

/// What a process actor is told.
#[derive(Debug)]
pub(crate) enum ProcessMsg {
    /// A host's command.
    Command(Box<CommandCall>),
    /// What was in the mailbox when the first append was corked has been looked at.
    Uncork,
    /// The fate of a set.
    Committed {
        flight: u64,
        result: std::result::Result<(), CommitError>,
    },
    /// A slot is free for it.
    Begin { turn: Turn },
    /// What its log says of signals and waits.
    HistoryLoaded {
        turn: Turn,
        history: Result<History>,
    },
    /// The task of an execution has ended; `None` when it was aborted.
    Ended {
        token: FencingToken,
        result: Option<EngineResult>,
    },
    /// The engine emits an event.
    Emit {
        token: FencingToken,
        event: Box<CheckedEvent>,
        durable: Option<oneshot::Sender<Result<ProcessEvent>>>,
        room: EmitRoom,
    },
    /// The engine begins to wait.
    WaitBegin {
        token: FencingToken,
        wait_id: u64,
        signal_name: String,
        timeout: Option<Duration>,
        reply: WaitReply,
    },
    /// The engine no longer waits.
    WaitDropped { wait_id: u64 },
    /// The engine was told how a wait ended, but had dropped it by then.
    WaitUnseen {
        token: FencingToken,
        signal_name: String,
        number: u64,
    },
    /// A wait's time is over.
    WaitTimedOut { wait_id: u64 },
    /// A slot, for going on after a wait.
    SlotGranted { permit: SlotPermit },
    /// The time limit of the process has passed.
    Deadline { token: FencingToken },
    /// An execution that was told to stop has had its time.
    GraceOver { token: FencingToken },
    /// An execution that was aborted has had its time too.
    AbortOver { token: FencingToken },
    /// An owner's leases are no longer trusted.
    LeaseLost { owner: OwnerNumber },
    /// The runtime shuts down: stop what can be run again.
    Drain,
    /// Stop what is executed, for this reason.
    Stop { reason: CancelReason },
    /// Stop it now: the time for that is over.
    Abort,
    /// Tell when nothing is executed any more, and how that came about.
    Watch {
        settled: oneshot::Sender<ShutdownOutcome>,
    },
    /// There is more of the log to take note of.
    NoteLog { token: FencingToken },
    /// Somebody else may have written to the process, or taken it out: look at the store.
    Look,
    /// Go if there is nothing to do.
    Passivate,
    /// Panic, for tests of what happens then.
    #[cfg(test)]
    Panic,
}
