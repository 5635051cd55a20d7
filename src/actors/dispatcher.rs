//! The dispatcher: which queued process runs next, and who holds a slot.
//!
//! A slot is a right to execute: so many in all, so many per engine kind. An attempt that waits
//! for a signal gives its slot back and takes one again before it goes on; those come first.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::runtime::Shared;
use crate::model::RecoveryDisposition;
use crate::model::record::Registration;
use crate::store::keys::Row;

/// A queued process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct QueueEntry {
    pub(crate) id: Arc<str>,
    pub(crate) row: Row,
    pub(crate) kind: Arc<str>,
    pub(crate) priority: i32,
    /// Time before which it is not started, by the steady clock.
    pub(crate) not_before_ms: u64,
}

impl QueueEntry {
    /// The entry of a process that is executed here; none for one that is not.
    pub(crate) fn of(registration: &Registration, not_before_ms: u64) -> Option<Self> {
        if registration.disposition == RecoveryDisposition::ExternallyOwned {
            return None;
        }
        Some(Self {
            id: Arc::from(registration.id.as_str()),
            row: Row::of(registration),
            kind: Arc::from(registration.input.engine_kind()?),
            priority: registration.priority,
            not_before_ms,
        })
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked {
    priority: i32,
    /// Earlier rows first.
    row: Reverse<(u64, u64)>,
    id: Arc<str>,
}

/// What the dispatcher is told.
#[derive(Debug)]
pub(crate) enum DispatchMsg {
    /// A process may be started when its turn comes.
    Enqueue(QueueEntry),
    /// A slot is free again.
    Freed { kind: Arc<str> },
    /// An attempt that gave up its slot wants one again.
    Resume {
        kind: Arc<str>,
        grant: oneshot::Sender<SlotPermit>,
    },
    /// A pause may be over.
    Wake,
    /// Nothing is started any more.
    Stop,
}

/// A slot, held. Dropping it frees it.
#[derive(Debug)]
pub(crate) struct SlotPermit {
    kind: Arc<str>,
    dispatcher: ActorRef<DispatchMsg>,
}

impl Drop for SlotPermit {
    fn drop(&mut self) {
        // The dispatcher is gone only when the runtime is: then nobody counts.
        let _ = self.dispatcher.cast(DispatchMsg::Freed {
            kind: Arc::clone(&self.kind),
        });
    }
}

/// A process's turn to begin. Dropped on the way to its actor, it goes back into the queue: an actor
/// may leave with it in its mailbox.
#[derive(Debug)]
pub(crate) struct Turn {
    permit: Option<SlotPermit>,
    pub(crate) entry: QueueEntry,
    shared: Arc<Shared>,
}

impl Turn {
    /// The slot, for whoever takes care of the process from here on.
    pub(crate) fn take(mut self) -> Option<SlotPermit> {
        self.permit.take()
    }

    /// Nothing is to begin.
    pub(crate) fn decline(mut self) {
        self.permit = None;
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(permit) = self.permit.take() {
            drop(permit);
            self.shared.enqueue_entry(self.entry.clone());
        }
    }
}

#[derive(Debug, Default)]
struct Kind {
    queue: BinaryHeap<Ranked>,
    resuming: VecDeque<oneshot::Sender<SlotPermit>>,
    running: usize,
}

pub(crate) struct Dispatcher;

pub(crate) struct DispatcherState {
    shared: Arc<Shared>,
    kinds: HashMap<Arc<str>, Kind>,
    /// Queued or pausing, so that nothing is queued twice.
    known: HashSet<Row>,
    pausing: BTreeSet<(u64, Row)>,
    paused: HashMap<Row, QueueEntry>,
    /// The one timer for the earliest pause.
    timer: Option<tokio::task::AbortHandle>,
    running: usize,
    stopped: bool,
}

impl Actor for Dispatcher {
    type Msg = DispatchMsg;
    type State = DispatcherState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<DispatchMsg>,
        shared: Arc<Shared>,
    ) -> Result<DispatcherState, ActorProcessingErr> {
        Ok(DispatcherState {
            shared,
            kinds: HashMap::new(),
            known: HashSet::new(),
            pausing: BTreeSet::new(),
            paused: HashMap::new(),
            timer: None,
            running: 0,
            stopped: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<DispatchMsg>,
        message: DispatchMsg,
        state: &mut DispatcherState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            DispatchMsg::Enqueue(entry) => state.enqueue(&myself, entry),
            DispatchMsg::Freed { kind } => {
                state.running = state.running.saturating_sub(1);
                if let Some(kind) = state.kinds.get_mut(&kind) {
                    kind.running = kind.running.saturating_sub(1);
                }
            }
            DispatchMsg::Resume { kind, grant } => {
                state
                    .kinds
                    .entry(kind)
                    .or_default()
                    .resuming
                    .push_back(grant);
            }
            DispatchMsg::Wake => state.wake(&myself),
            DispatchMsg::Stop => {
                state.stopped = true;
                state.kinds.values_mut().for_each(|kind| kind.queue.clear());
            }
        }
        state.dispatch(&myself);
        Ok(())
    }
}

impl DispatcherState {
    fn enqueue(&mut self, myself: &ActorRef<DispatchMsg>, entry: QueueEntry) {
        if self.stopped {
            return;
        }
        let now_ms = self.shared.steady_ms();
        if !self.known.insert(entry.row) {
            // A timer stands still where the machine does: its pause may be over.
            if self.pausing.first().is_some_and(|(at, _)| *at <= now_ms) {
                self.wake(myself);
            }
            return;
        }
        if entry.not_before_ms > now_ms {
            let earliest = self.pausing.first().map(|(at, _)| *at);
            self.pausing.insert((entry.not_before_ms, entry.row));
            if earliest.is_none_or(|earliest| entry.not_before_ms < earliest) {
                self.wake_in(myself, entry.not_before_ms - now_ms);
            }
            self.paused.insert(entry.row, entry);
            return;
        }
        self.rank(entry);
    }

    fn rank(&mut self, entry: QueueEntry) {
        self.kinds
            .entry(entry.kind)
            .or_default()
            .queue
            .push(Ranked {
                priority: entry.priority,
                row: Reverse((entry.row.created_at_ms, entry.row.incarnation.get())),
                id: entry.id,
            });
    }

    fn wake(&mut self, myself: &ActorRef<DispatchMsg>) {
        let now_ms = self.shared.steady_ms();
        while let Some((at, row)) = self.pausing.first().copied() {
            if at > now_ms {
                self.wake_in(myself, at - now_ms);
                break;
            }
            self.pausing.pop_first();
            if let Some(entry) = self.paused.remove(&row) {
                self.rank(entry);
            }
        }
    }

    fn wake_in(&mut self, myself: &ActorRef<DispatchMsg>, wait_ms: u64) {
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        let myself = myself.clone();
        // A pause of an earlier open may be far off: looked at again every minute, as a clock that
        // was injected need not go as the timer does.
        let wait = Duration::from_millis(wait_ms.clamp(1, 60_000));
        let timer = tokio::spawn(async move {
            tokio::time::sleep(wait).await;
            let _ = myself.cast(DispatchMsg::Wake);
        });
        self.timer = Some(timer.abort_handle());
    }

    /// Hands out every slot that somebody can use.
    fn dispatch(&mut self, myself: &ActorRef<DispatchMsg>) {
        while self.running < self.shared.config.slots {
            let free = |name: &Arc<str>, kind: &Kind| kind.running < self.shared.slots_of(name);
            // Waiting attempts first: they hold memory, a lease and a caller's patience.
            let resuming = self
                .kinds
                .iter()
                .find(|(name, kind)| !kind.resuming.is_empty() && free(name, kind))
                .map(|(name, _)| Arc::clone(name));
            if let Some(name) = resuming {
                self.resume(myself, &name);
                continue;
            }
            let next = self
                .kinds
                .iter()
                .filter(|(name, kind)| !self.stopped && free(name, kind))
                .filter_map(|(name, kind)| Some((kind.queue.peek()?, name)))
                .max()
                .map(|(_, name)| Arc::clone(name));
            match next {
                Some(name) => self.start(myself, &name),
                None => break,
            }
        }
    }

    fn permit(&mut self, myself: &ActorRef<DispatchMsg>, name: &Arc<str>) -> SlotPermit {
        self.running += 1;
        if let Some(kind) = self.kinds.get_mut(name) {
            kind.running += 1;
        }
        SlotPermit {
            kind: Arc::clone(name),
            dispatcher: myself.clone(),
        }
    }

    fn resume(&mut self, myself: &ActorRef<DispatchMsg>, name: &Arc<str>) {
        let waiting = self
            .kinds
            .get_mut(name)
            .and_then(|kind| kind.resuming.pop_front());
        if let Some(waiting) = waiting {
            let permit = self.permit(myself, name);
            // An attempt that ended meanwhile drops the permit, which frees the slot again.
            let _ = waiting.send(permit);
        }
    }

    fn start(&mut self, myself: &ActorRef<DispatchMsg>, name: &Arc<str>) {
        let Some(ranked) = self.kinds.get_mut(name).and_then(|kind| kind.queue.pop()) else {
            return;
        };
        let Reverse((created_at_ms, incarnation)) = ranked.row;
        let row = Row {
            created_at_ms,
            incarnation: crate::model::Incarnation(incarnation),
        };
        self.known.remove(&row);
        let turn = Turn {
            permit: Some(self.permit(myself, name)),
            entry: QueueEntry {
                id: ranked.id,
                row,
                kind: Arc::clone(name),
                priority: ranked.priority,
                not_before_ms: 0,
            },
            shared: Arc::clone(&self.shared),
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.begin(turn).await });
    }
}
