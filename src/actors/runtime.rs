//! What all actors share, and how a command finds its actor.

mod rounds;
mod stop;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dashmap::DashMap;
use ractor::{Actor, ActorCell, ActorRef};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, oneshot};

use rounds::Rounds;

use super::config::{COMMAND_KIB_MAX, RETRIES_MAX, RuntimeConfig};
use super::dispatcher::{DispatchMsg, QueueEntry, Turn};
use super::elapsed::Elapsed;
use super::hub::Hub;
use super::owning::Owning;
use super::process::{Activation, Answer, CommandCall, HostCommand, ProcessActor, ProcessMsg};
use super::reaper::{Attention, Looks, ReaperMsg};
use super::registry::RegistryMsg;
use crate::engines::ProcessEngine;
use crate::model::record::Registration;
use crate::model::{
    Error, FencingToken, Incarnation, OwnerNumber, ProcessEventType, Result, SessionScope,
};
use crate::store::clock::Clock;
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::process_store::ProcessStore;
use crate::store::read::IdEntry;
use crate::store::write_set::{Change, CommitError, WriteSet};

/// The long-lived actors.
#[derive(Debug)]
pub(crate) struct Actors {
    pub(crate) root: ActorCell,
    /// None without recovery.
    pub(crate) keeper: Option<ActorCell>,
    pub(crate) registry: ActorRef<RegistryMsg>,
    pub(crate) dispatcher: ActorRef<DispatchMsg>,
    pub(crate) reaper: ActorRef<ReaperMsg>,
}

/// An engine as it was registered.
pub(crate) struct EngineEntry {
    pub(crate) engine: Arc<dyn ProcessEngine>,
    pub(crate) event_types: Vec<ProcessEventType>,
}

/// An active process.
#[derive(Debug, Default)]
pub(crate) struct ActorSlot {
    cell: OnceCell<(ActorRef<ProcessMsg>, Incarnation)>,
    /// When it was last sent something, in milliseconds of the monotonic clock.
    last_used_ms: AtomicU64,
}

/// A share of what may be in flight.
#[derive(Debug)]
pub(crate) struct Admission {
    _command: OwnedSemaphorePermit,
    _bytes: Option<OwnedSemaphorePermit>,
}

/// Says that a lease is being claimed here, or is in use. While that is so no sweep looks at the
/// process; when it no longer is, the next one does, unless the process is known to have ended.
#[derive(Debug)]
pub(crate) struct Claimed {
    shared: Arc<Shared>,
    row: Row,
    ended: bool,
}

impl Claimed {
    /// The process has ended: there is nothing more to be looked at.
    pub(crate) fn ended(&mut self) {
        self.ended = true;
    }
}

impl Drop for Claimed {
    fn drop(&mut self) {
        let incarnation = self.row.incarnation;
        if let Some(mut count) = self.shared.claims.get_mut(&incarnation) {
            *count = count.saturating_sub(1);
        }
        self.shared
            .claims
            .remove_if(&incarnation, |_, count| *count == 0);
        // After that, so that whoever takes the note finds it unclaimed. However it came about: a
        // claim that was refused, an attempt that was dropped, an actor that failed.
        if !self.ended {
            self.shared.look_at(self.row);
        }
    }
}

/// A child that an engine starts.
#[derive(Debug)]
pub(crate) struct ChildOf {
    pub(crate) parent: Arc<Registration>,
    pub(crate) token: FencingToken,
    pub(crate) owner: OwnerNumber,
    pub(crate) key: String,
    pub(crate) detached: bool,
}

/// What all actors of a runtime share.
pub(crate) struct Shared {
    pub(crate) config: RuntimeConfig,
    pub(crate) store: ProcessStore,
    /// The clock by which the store judges leases.
    pub(crate) lease_clock: Arc<dyn Clock>,
    pub(crate) hub: Arc<Hub>,
    engines: HashMap<String, EngineEntry>,
    pub(super) owning: Owning,
    active: DashMap<Arc<str>, Arc<ActorSlot>>,
    /// Incarnations whose engine task has not ended.
    tasks: DashMap<Incarnation, ()>,
    /// Incarnations whose lease is being claimed or is in use here, and how often.
    claims: DashMap<Incarnation, usize>,
    pub(super) elapsed: Elapsed,
    pub(super) attention: Attention,
    pub(super) looks: Looks,
    actors: OnceLock<Actors>,
    commands: Arc<Semaphore>,
    command_kib: Arc<Semaphore>,
    rounds: Rounds,
    shutting_down: AtomicBool,
    closed: AtomicBool,
    /// Why the store failed, if it did.
    failure: OnceLock<Arc<str>>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("owner_id", &self.config.owner_id)
            .field("active", &self.active.len())
            .finish_non_exhaustive()
    }
}

impl Shared {
    pub(super) fn new(
        config: RuntimeConfig,
        store: ProcessStore,
        lease_clock: Arc<dyn Clock>,
        engines: HashMap<String, EngineEntry>,
    ) -> Self {
        Self {
            commands: Arc::new(Semaphore::new(config.commands_max)),
            command_kib: Arc::new(Semaphore::new(COMMAND_KIB_MAX)),
            config,
            store,
            lease_clock,
            hub: Arc::new(Hub::default()),
            engines,
            owning: Owning::default(),
            active: DashMap::new(),
            tasks: DashMap::new(),
            claims: DashMap::new(),
            elapsed: Elapsed::default(),
            attention: Attention::default(),
            looks: Looks::default(),
            actors: OnceLock::new(),
            rounds: Rounds::default(),
            shutting_down: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    pub(super) fn set_actors(&self, actors: Actors) {
        // Set once, right after they were spawned.
        let _ = self.actors.set(actors);
    }

    pub(crate) fn actors(&self) -> Result<&Actors> {
        self.actors.get().ok_or(Error::ShuttingDown)
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.store.now_ms()
    }

    pub(crate) fn monotonic(&self) -> Duration {
        self.store.clock().monotonic()
    }

    /// A number in `0.0..1.0`, for jitter.
    #[expect(clippy::unused_self, reason = "the one place where jitter comes from")]
    pub(crate) fn random(&self) -> f64 {
        let (high, _) = uuid::Uuid::new_v4().as_u64_pair();
        f64::from(u32::try_from(high >> 32).unwrap_or(0)) / f64::from(u32::MAX)
    }

    pub(super) fn tell_all(&self, message: impl Fn() -> ProcessMsg) {
        for slot in &self.active {
            if let Some((actor, _)) = slot.cell.get() {
                let _ = actor.cast(message());
            }
        }
    }

    /// The actors that are active now.
    pub(super) fn active_actors(&self) -> Vec<(Arc<str>, ActorRef<ProcessMsg>)> {
        self.active
            .iter()
            .filter_map(|slot| {
                let (actor, _) = slot.cell.get()?;
                Some((Arc::clone(slot.key()), actor.clone()))
            })
            .collect()
    }

    pub(crate) fn task_began(&self, incarnation: Incarnation) {
        self.tasks.insert(incarnation, ());
    }

    pub(crate) fn task_ended(&self, incarnation: Incarnation) {
        self.tasks.remove(&incarnation);
    }

    /// Whether a task of this process has not ended yet.
    pub(crate) fn has_task(&self, incarnation: Incarnation) -> bool {
        self.tasks.contains_key(&incarnation)
    }

    /// Says that a lease is being claimed here, or is in use, until what is returned is dropped.
    pub(crate) fn claiming(self: &Arc<Self>, row: Row) -> Claimed {
        *self.claims.entry(row.incarnation).or_insert(0) += 1;
        Claimed {
            shared: Arc::clone(self),
            row,
            ended: false,
        }
    }

    /// Whether a lease is being claimed here, or is in use. A lease in this runtime's name without
    /// that is an orphan: whatever used it is gone.
    pub(crate) fn is_claimed(&self, incarnation: Incarnation) -> bool {
        self.claims.contains_key(&incarnation)
    }

    /// Whether a process is executed here or about to be, or code of a lost execution of it still
    /// runs: nothing is begun or settled beside that. A claim on its way counts like the lease that
    /// comes of it.
    pub(crate) fn is_busy(&self, incarnation: Incarnation) -> bool {
        self.has_task(incarnation) || self.is_claimed(incarnation)
    }

    /// Processes that have an actor.
    #[cfg(test)]
    pub(crate) fn active_count(&self) -> usize {
        self.active.len()
    }

    pub(crate) fn engine(&self, kind: &str) -> Option<&EngineEntry> {
        self.engines.get(kind)
    }

    pub(crate) fn engine_of(&self, registration: &Registration) -> Option<Arc<dyn ProcessEngine>> {
        let kind = registration.input.engine_kind()?;
        self.engine(kind).map(|entry| Arc::clone(&entry.engine))
    }

    pub(crate) fn slots_of(&self, kind: &str) -> usize {
        self.config
            .slots_by_kind
            .get(kind)
            .copied()
            .unwrap_or(self.config.slots)
    }

    /// Queues a process for its next attempt.
    pub(crate) fn enqueue(&self, registration: &Registration, not_before_ms: u64) {
        if let Some(entry) = QueueEntry::of(registration, not_before_ms) {
            self.enqueue_entry(entry);
        }
    }

    pub(crate) fn enqueue_entry(&self, entry: QueueEntry) {
        if !self.config.recover || self.is_shutting_down() {
            return;
        }
        if let Ok(actors) = self.actors() {
            let _ = actors.dispatcher.cast(DispatchMsg::Enqueue(entry));
        }
    }

    /// Asks for a slot for an attempt that gave its own up while it waited.
    pub(crate) fn ask_for_slot(&self, registration: &Registration, actor: &ActorRef<ProcessMsg>) {
        let (Some(kind), Ok(actors)) = (registration.input.engine_kind(), self.actors()) else {
            return;
        };
        let (grant, granted) = oneshot::channel();
        let _ = actors.dispatcher.cast(DispatchMsg::Resume {
            kind: Arc::from(kind),
            grant,
        });
        let actor = actor.clone();
        tokio::spawn(async move {
            if let Ok(permit) = granted.await {
                let _ = actor.cast(ProcessMsg::SlotGranted { permit });
            }
        });
    }

    /// Has the reaper look at one process, soon.
    pub(crate) fn look_at(&self, row: Row) {
        self.attention.note(row);
        self.wake_reaper();
    }

    /// Has the reaper look at every process that has not ended, soon.
    pub(crate) fn sweep_soon(&self) {
        self.attention.note_everything();
        self.wake_reaper();
    }

    fn wake_reaper(&self) {
        if let Some(actors) = self.actors.get() {
            let _ = actors.reaper.cast(ReaperMsg::SweepSoon);
        }
    }

    /// Gives a queued process its turn.
    pub(crate) async fn begin(self: &Arc<Self>, turn: Turn) {
        let id = Arc::clone(&turn.entry.id);
        match self.actor(&id).await {
            Ok((actor, incarnation)) if incarnation == turn.entry.row.incarnation => {
                // A turn that does not arrive goes back into the queue.
                if actor.cast(ProcessMsg::Begin { turn }).is_err() {
                    self.leave(&id, &actor);
                }
            }
            Ok((actor, incarnation)) if incarnation < turn.entry.row.incarnation => {
                // The actor of a process that was pruned since: it makes room for the new one.
                self.leave(&id, &actor);
                let _ = actor.cast(ProcessMsg::Passivate);
            }
            Ok(_) => turn.decline(),
            Err(error) => {
                tracing::info!(process = %id, %error, "queued process is gone, or has no actor");
                self.attention.note(turn.entry.row);
                turn.decline();
            }
        }
    }

    /// The actor of a process, activated if it has none.
    async fn actor(self: &Arc<Self>, id: &str) -> Result<(ActorRef<ProcessMsg>, Incarnation)> {
        loop {
            let slot = match self.active.get(id) {
                Some(slot) => Arc::clone(&slot),
                None => Arc::clone(&self.active.entry(Arc::from(id)).or_default()),
            };
            slot.last_used_ms
                .store(self.monotonic_ms(), Ordering::Relaxed);
            // Exactly one caller activates; the others wait for it here, and try themselves if it
            // fails.
            let activated = slot.cell.get_or_try_init(|| self.activate(id)).await;
            match activated {
                Ok(actor) if self.is_on_the_map(id, &slot) => return Ok(actor.clone()),
                Ok((actor, _)) => {
                    // Somebody whose own try had failed took the slot off the map: an actor that is
                    // not there would miss what all of them are told.
                    let _ = actor.cast(ProcessMsg::Passivate);
                }
                Err(error) => {
                    self.active.remove_if(id, |_, known| {
                        Arc::ptr_eq(known, &slot) && known.cell.get().is_none()
                    });
                    return Err(error);
                }
            }
        }
    }

    fn is_on_the_map(&self, id: &str, slot: &Arc<ActorSlot>) -> bool {
        self.active
            .get(id)
            .is_some_and(|known| Arc::ptr_eq(&known, slot))
    }

    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    async fn activate(self: &Arc<Self>, id: &str) -> Result<(ActorRef<ProcessMsg>, Incarnation)> {
        let view = self.store.view()?;
        let loaded = match view.id(id)? {
            Some(IdEntry::Live(row)) => view.load(row)?,
            Some(IdEntry::Pruned(tombstone)) => {
                return Err(Error::NoLongerRetained {
                    process_id: id.to_owned(),
                    status: tombstone.status,
                    pruned_at: tombstone.pruned_at_ms,
                });
            }
            None => None,
        };
        drop(view);
        let Some(loaded) = loaded else {
            return Err(Error::unknown(id));
        };
        let incarnation = loaded.registration.incarnation;
        let activation = Box::new(Activation {
            shared: Arc::clone(self),
            loaded,
        });
        let root = self.actors()?.root.clone();
        match ProcessActor::spawn_linked(None, ProcessActor, activation, root).await {
            Ok((actor, _)) => Ok((actor, incarnation)),
            Err(error) => {
                tracing::error!(process = id, %error, "actor could not be spawned");
                Err(Error::ShuttingDown)
            }
        }
    }

    /// Takes an actor off the map, by identity.
    pub(crate) fn leave(&self, id: &str, actor: &ActorRef<ProcessMsg>) {
        self.leave_cell(id, &actor.get_cell());
    }

    fn leave_cell(&self, id: &str, cell: &ActorCell) {
        self.active.remove_if(id, |_, slot| {
            slot.cell
                .get()
                .is_some_and(|(known, _)| known.get_id() == cell.get_id())
        });
    }

    /// Has the actor of an incarnation, if it has one, look at what somebody else wrote.
    pub(super) fn written_by_others(&self, id: &str, incarnation: Incarnation) {
        self.hub.nudge(incarnation);
        if let Some(slot) = self.active.get(id)
            && let Some((actor, known)) = slot.cell.get()
            && *known == incarnation
        {
            let _ = actor.cast(ProcessMsg::Look);
        }
    }

    /// Whether an actor is one of those without which there is no going on. Not so that of a process,
    /// on the map or, once something else has its place there, off it.
    pub(super) fn is_long_lived(&self, cell: &ActorCell) -> bool {
        let Some(actors) = self.actors.get() else {
            // Processes get actors only after these.
            return true;
        };
        let id = cell.get_id();
        [
            actors.registry.get_id(),
            actors.dispatcher.get_id(),
            actors.reaper.get_id(),
        ]
        .contains(&id)
            || actors.keeper.as_ref().is_some_and(|it| it.get_id() == id)
    }

    /// Takes the actor of a process that failed off the map; its process, if it was still there.
    pub(super) fn forget_failed(&self, cell: &ActorCell) -> Option<(Arc<str>, Incarnation)> {
        let found = self.active.iter().find_map(|slot| {
            let (actor, incarnation) = slot.cell.get()?;
            (actor.get_id() == cell.get_id()).then(|| (Arc::clone(slot.key()), *incarnation))
        });
        if let Some((id, _)) = &found {
            self.leave_cell(id, cell);
        }
        found
    }

    /// A share of what may be in flight: waits until there is room.
    pub(crate) async fn admit(&self, bytes: usize) -> Result<Admission> {
        let bytes = self.admit_bytes(bytes).await?;
        let command = Arc::clone(&self.commands)
            .acquire_owned()
            .await
            .map_err(|_| self.stopped())?;
        Ok(Admission {
            _command: command,
            _bytes: bytes,
        })
    }

    /// Room for a payload among those in flight, of hosts and of engines together. Small ones, which
    /// are nearly all, need none: they are bounded by their number alone.
    pub(crate) async fn admit_bytes(&self, bytes: usize) -> Result<Option<OwnedSemaphorePermit>> {
        let kib = u32::try_from((bytes >> 10).min(COMMAND_KIB_MAX)).unwrap_or(u32::MAX);
        if kib == 0 {
            return Ok(None);
        }
        let room = Arc::clone(&self.command_kib).acquire_many_owned(kib).await;
        room.map(Some).map_err(|_| self.stopped())
    }

    /// Records an effect's outcome, which takes so many bytes.
    ///
    /// # Cancel safety
    /// Once sent it is recorded, whether or not that is waited for, and holds its share of what may be
    /// in flight until then.
    pub(crate) async fn record_effect(
        &self,
        process_id: &str,
        change: Change,
        bytes: usize,
    ) -> Result<()> {
        let admission = self.admit(bytes).await?;
        let (answer, answered) = oneshot::channel();
        self.store.commit(
            WriteSet::new(Vec::new(), vec![change]),
            Box::new(move |result| {
                drop(admission);
                // Nobody waits any more: it is recorded all the same.
                let _ = answer.send(result);
            }),
        );
        answered
            .await
            .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))
            .map(drop)
            .map_err(|error| super::errors::commit_error(process_id, error))
    }

    /// Sends a command to a process and waits for its answer.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the command may or may not happen; it is idempotent by its keys.
    pub(crate) async fn command(
        self: &Arc<Self>,
        id: &str,
        command: HostCommand,
        granted_to: Option<&SessionScope>,
    ) -> Result<Answer> {
        crate::model::ids::check_id("process_id", id)?;
        for _ in 0..RETRIES_MAX {
            if self.is_shutting_down() {
                return Err(self.stopped());
            }
            let admission = self.admit(command.bytes()).await?;
            let (actor, incarnation) = self.actor(id).await?;
            let sent = Arc::new(AtomicBool::new(false));
            let (answer, wait) = oneshot::channel();
            let call = CommandCall {
                command: command.clone(),
                granted_to: granted_to.cloned(),
                incarnation,
                reply: super::process::CommandReply {
                    answer,
                    sent: Arc::clone(&sent),
                    admission,
                },
            };
            if actor.cast(ProcessMsg::Command(Box::new(call))).is_err() {
                self.leave(id, &actor);
                continue;
            }
            match wait.await {
                Ok(answer) => return answer,
                // The actor was leaving, or died before it sent anything for this command.
                Err(_) if !sent.load(Ordering::Acquire) => self.leave(id, &actor),
                Err(_) => {
                    return Err(Error::CommitUnknown {
                        process_id: id.to_owned(),
                        cause: "its actor stopped".to_owned(),
                    });
                }
            }
        }
        Err(Error::Overloaded {
            what: format!("activations of process {id}"),
            limit: u64::from(RETRIES_MAX),
        })
    }
}
