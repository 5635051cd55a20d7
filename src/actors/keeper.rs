//! The keeper: this runtime's incarnation as an owner, and its heartbeat.
//!
//! One durable write per interval renews every lease, however many there are. A heartbeat is
//! trusted only for a part of the time to live, by the monotonic clock, from before the write was
//! sent: at that moment the fence stops every execution (L7). The keeper then begins a new
//! incarnation, and, once the old one's tasks have ended, says durably that the old one is gone.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tracing::{info, warn};

use super::process::Brake;
use super::runtime::Shared;
use crate::model::lease::OwnerRecord;
use crate::model::{FencingToken, OwnerNumber, ProcessOwner, Result};
use crate::store::clock::Clock;
use crate::store::write_set::{Change, CommitResult, Condition, WriteSet};

/// The clock by which leases are judged: the wall clock as it was at the open, carried on by the
/// monotonic one. A wall clock that jumps ends nothing then. Where one runtime alone has the store,
/// an expiry means nothing to the next open: its epoch is proof enough. Hosts that share a store
/// compare what their wall clocks showed when they opened it; where that is wrong, work is taken
/// over late or early, which delays it or fences one of them: whatever a lapse leads to is decided by a
/// commit that finds the lease lapsed, and nothing of the attempt is touched before that.
#[derive(Debug)]
pub(crate) struct SteadyClock {
    inner: Arc<dyn Clock>,
    opened_at_ms: u64,
    opened_at: Duration,
}

/// Time has to go on from the open, or no lease would ever be live.
const OPENED_AT_MS_MAX: u64 = u64::MAX / 2;

impl SteadyClock {
    pub(crate) fn new(inner: Arc<dyn Clock>) -> Self {
        Self {
            opened_at_ms: inner.now_epoch_ms().min(OPENED_AT_MS_MAX),
            opened_at: inner.monotonic(),
            inner,
        }
    }
}

impl Clock for SteadyClock {
    fn now_epoch_ms(&self) -> u64 {
        let since = self.monotonic().saturating_sub(self.opened_at);
        self.opened_at_ms.saturating_add(millis(since))
    }

    fn monotonic(&self) -> Duration {
        self.inner.monotonic()
    }

    fn boot_id(&self) -> Option<String> {
        self.inner.boot_id()
    }
}

/// One incarnation of this runtime as an owner.
#[derive(Debug)]
pub(crate) struct OwnerHandle {
    pub(crate) number: OwnerNumber,
    pub(crate) owner: ProcessOwner,
    /// Until when the last heartbeat is trusted, in milliseconds of the monotonic clock.
    trusted_until_ms: AtomicU64,
    lost: AtomicBool,
    /// Its executions whose task has not ended, by their token, and how each is stopped: not known
    /// yet while it is being launched.
    tasks: Mutex<HashMap<FencingToken, Option<Brake>>>,
}

impl OwnerHandle {
    pub(super) fn new(number: OwnerNumber, owner: ProcessOwner) -> Self {
        Self {
            number,
            owner,
            trusted_until_ms: AtomicU64::new(0),
            lost: AtomicBool::new(false),
            tasks: Mutex::default(),
        }
    }

    /// Whether it may still begin and go on, judged by the monotonic clock.
    pub(crate) fn is_trusted(&self, monotonic: Duration) -> bool {
        !self.trust_left(monotonic).is_zero()
    }

    /// For how long it may still go on, unless a renewal is acknowledged.
    pub(super) fn trust_left(&self, monotonic: Duration) -> Duration {
        if self.lost.load(Ordering::SeqCst) {
            return Duration::ZERO;
        }
        let until = self.trusted_until_ms.load(Ordering::Acquire);
        Duration::from_millis(until.saturating_sub(millis(monotonic)))
    }

    pub(super) fn trust(&self, sent_at: Duration, for_how_long: Duration) {
        self.trusted_until_ms
            .fetch_max(millis(sent_at + for_how_long), Ordering::AcqRel);
    }

    fn tasks(&self) -> MutexGuard<'_, HashMap<FencingToken, Option<Brake>>> {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a task of an execution. Whoever begins one counts it before it looks whether the
    /// incarnation is lost; the keeper looks at the count after it has said so. One of the two sees
    /// the other: nothing begins in the name of an incarnation that was declared gone.
    pub(crate) fn task_began(&self, token: FencingToken) {
        self.tasks().insert(token, None);
    }

    /// Hands over how a task that was counted is stopped, which is done at once if it is too late.
    pub(crate) fn task_stops_by(&self, token: FencingToken, brake: &Brake) {
        if let Some(task) = self.tasks().get_mut(&token) {
            *task = Some(brake.clone());
        }
        // Either this sees that it is lost, or whoever said so sees the brake.
        if self.lost.load(Ordering::SeqCst) {
            brake.lose();
        }
    }

    /// The counterpart of [`OwnerHandle::task_began`].
    pub(crate) fn task_ended(&self, token: FencingToken) {
        self.tasks().remove(&token);
    }

    pub(super) fn has_tasks(&self) -> bool {
        !self.tasks().is_empty()
    }

    /// Ends the trust in it for good, and stops everything that it executes. Can be called from
    /// any thread, and again.
    pub(super) fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
        let brakes: Vec<Brake> = self.tasks().values().flatten().cloned().collect();
        for brake in brakes {
            brake.lose();
        }
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn record(handle: &OwnerHandle, expires_at_ms: u64, retired: bool) -> OwnerRecord {
    OwnerRecord {
        owner: handle.owner.clone(),
        expires_at_ms,
        retired,
    }
}

/// Begins a new incarnation, durably.
pub(super) async fn begin_incarnation(shared: &Shared) -> Result<Arc<OwnerHandle>> {
    let (store, lease) = (&shared.store, shared.config.lease);
    let number = store.next_owner()?;
    let handle = OwnerHandle::new(
        number,
        ProcessOwner {
            owner_id: shared.config.owner_id.clone(),
            incarnation_id: uuid::Uuid::new_v4().to_string(),
            store_epoch: store.epoch(),
        },
    );
    let sent_at = shared.monotonic();
    let expires_at_ms = shared.steady_ms().saturating_add(millis(lease.ttl()));
    store
        .commit_wait(WriteSet::new(
            Vec::new(),
            vec![
                Change::PutOwner {
                    number,
                    record: record(&handle, expires_at_ms, false),
                },
                Change::PutAge(shared.age_mark()),
            ],
        ))
        .await
        .map_err(|error| super::errors::commit_error("(owner)", error))?;
    handle.trust(sent_at, lease.trusted_for());
    info!(owner = %handle.owner.owner_id, incarnation = %handle.owner.incarnation_id,
        epoch = %handle.owner.store_epoch, "owner incarnation began");
    Ok(Arc::new(handle))
}

/// What the keeper is told.
#[derive(Debug)]
pub(crate) enum KeeperMsg {
    /// It is time to renew.
    Renew,
    /// A renewal that was sent then has come back.
    Renewed {
        number: OwnerNumber,
        sent_at: Duration,
        result: CommitResult,
    },
    /// The trust in the last heartbeat may be over.
    CheckTrust,
    /// A new incarnation has begun, or could not.
    Began(Result<Arc<OwnerHandle>>),
}

pub(crate) struct Keeper;

pub(crate) struct KeeperState {
    shared: Arc<Shared>,
    /// A renewal is on its way: no second one is sent behind it.
    renewing: bool,
    /// A new incarnation is on its way.
    beginning: bool,
}

impl Actor for Keeper {
    type Msg = KeeperMsg;
    type State = KeeperState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<KeeperMsg>,
        shared: Arc<Shared>,
    ) -> Result<KeeperState, ActorProcessingErr> {
        let every = shared.config.lease.renew_every();
        // The fence says when trust has ended; this finds what could not be done about it then.
        myself.send_interval(every / 2, || KeeperMsg::CheckTrust);
        myself.send_interval(every, || KeeperMsg::Renew);
        Ok(KeeperState {
            shared,
            renewing: false,
            beginning: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<KeeperMsg>,
        message: KeeperMsg,
        state: &mut KeeperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            KeeperMsg::Renew => state.renew(&myself),
            KeeperMsg::Renewed {
                number,
                sent_at,
                result,
            } => state.renewed(&myself, number, sent_at, result),
            KeeperMsg::CheckTrust => {
                state.check_trust(&myself);
                state.retire();
            }
            KeeperMsg::Began(began) => {
                state.beginning = false;
                match began {
                    Ok(handle) => state.shared.set_owner(handle),
                    // Tried again at the next look: a stalled disk may come back.
                    Err(error) => warn!(%error, "no new owner incarnation yet"),
                }
            }
        }
        Ok(())
    }
}

impl KeeperState {
    fn renew(&mut self, myself: &ActorRef<KeeperMsg>) {
        let Some(handle) = self.shared.owner() else {
            return;
        };
        let sent_at = self.shared.monotonic();
        if self.renewing || !handle.is_trusted(sent_at) {
            return;
        }
        self.renewing = true;
        let ttl = millis(self.shared.config.lease.ttl());
        let expires_at_ms = self.shared.steady_ms().saturating_add(ttl);
        let number = handle.number;
        let myself = myself.clone();
        self.shared.store.commit(
            WriteSet::new(
                // L4: a heartbeat commits only if the one before has not lapsed.
                vec![Condition::OwnerLive { owner: number }],
                vec![
                    Change::PutOwner {
                        number,
                        record: record(&handle, expires_at_ms, false),
                    },
                    Change::PutAge(self.shared.age_mark()),
                ],
            ),
            Box::new(move |result| {
                let _ = myself.cast(KeeperMsg::Renewed {
                    number,
                    sent_at,
                    result,
                });
            }),
        );
    }

    fn renewed(
        &mut self,
        myself: &ActorRef<KeeperMsg>,
        number: OwnerNumber,
        sent_at: Duration,
        result: CommitResult,
    ) {
        self.renewing = false;
        let Some(handle) = self.shared.owner().filter(|owner| owner.number == number) else {
            return;
        };
        match result {
            Ok(_) => handle.trust(sent_at, self.shared.config.lease.trusted_for()),
            Err(error) => {
                warn!(owner = %handle.owner.owner_id, ?error, "heartbeat was not accepted");
                self.lapse(myself, &handle);
            }
        }
    }

    fn check_trust(&mut self, myself: &ActorRef<KeeperMsg>) {
        match self.shared.owner() {
            Some(handle) if handle.is_trusted(self.shared.monotonic()) => {}
            Some(handle) => self.lapse(myself, &handle),
            None => self.begin(myself),
        }
    }

    /// Stops everything that this incarnation executes, and begins another.
    fn lapse(&mut self, myself: &ActorRef<KeeperMsg>, handle: &Arc<OwnerHandle>) {
        warn!(owner = %handle.owner.owner_id, incarnation = %handle.owner.incarnation_id,
            "lease lapsed: stopping its executions");
        self.shared.lose_owner(handle);
        self.begin(myself);
    }

    fn begin(&mut self, myself: &ActorRef<KeeperMsg>) {
        if self.beginning || self.shared.is_shutting_down() {
            return;
        }
        self.beginning = true;
        let shared = Arc::clone(&self.shared);
        let myself = myself.clone();
        tokio::spawn(async move {
            let began = begin_incarnation(&shared).await;
            let _ = myself.cast(KeeperMsg::Began(began));
        });
    }

    /// Says of incarnations whose last task has ended that they are gone: that is the proof by
    /// which their processes are recovered.
    fn retire(&self) {
        for handle in self.shared.take_gone() {
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move {
                match shared.store.commit_wait(retired(&shared, &handle)).await {
                    Ok(_) => shared.sweep_soon(),
                    Err(error) => {
                        warn!(?error, "a lost incarnation could not be retired");
                        // Tried again at the next look: without it nothing of its is recovered.
                        shared.retire_later(handle);
                    }
                }
            });
        }
    }
}

/// Says of an incarnation that it is gone.
fn retired(shared: &Shared, handle: &OwnerHandle) -> WriteSet {
    WriteSet::new(
        Vec::new(),
        vec![
            Change::PutOwner {
                number: handle.number,
                record: record(handle, 0, true),
            },
            // At a shutdown the last that is said: what passes from then on is told by other clocks.
            Change::PutAge(shared.age_mark()),
        ],
    )
}

/// Gives up every incarnation that is left at a graceful shutdown: nothing of theirs runs any more.
/// Where code that never yields still does, saying that they are gone would be no proof; where they took
/// something over that is not settled, it would be one of more than is known. Those are left to lapse.
pub(super) async fn retire_at_shutdown(shared: &Shared) {
    if let Some(owner) = shared.owner() {
        shared.lose_owner(&owner);
    }
    for handle in shared.take_gone() {
        if let Err(error) = shared.store.commit_wait(retired(shared, &handle)).await {
            warn!(incarnation = %handle.owner.incarnation_id, ?error, "owner was not retired");
        }
    }
}
