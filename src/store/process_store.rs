//! The typed store: what the layers above hold.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::oneshot;

use super::clock::Clock;
use super::error::StoreError;
use super::kv::{Counter, Kv, KvStats};
use super::read::View;
use super::resolve::{Done, Submission};
use super::taken::Taken;
use super::walk_thread::WalkThread;
use super::write_set::{CommitError, CommitResult, Refusal, WriteSet};
use crate::model::{FencingToken, Incarnation, OwnerNumber, StoreEpoch};

/// A store of processes on some key-value machine. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct ProcessStore {
    kv: Arc<dyn Kv>,
    clock: Arc<dyn Clock>,
    lease_clock: Arc<dyn Clock>,
    alarm: Arc<Alarm>,
    taken: Arc<Taken>,
    walk_thread: WalkThread,
    list_thread: WalkThread,
}

/// Told why the store failed.
pub(crate) type OnFailure = Box<dyn Fn(Arc<str>) + Send + Sync>;

/// Says once that the store has failed, to whoever wants to know.
#[derive(Default)]
pub(crate) struct Alarm {
    on_failure: OnceLock<OnFailure>,
    rung: AtomicBool,
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Alarm").field(&self.rung).finish()
    }
}

impl Alarm {
    /// Looks at an error that somebody got.
    pub(crate) fn hear(&self, error: &StoreError) {
        if let StoreError::Failed { cause } = error
            && let Some(on_failure) = self.on_failure.get()
            && !self.rung.swap(true, Ordering::AcqRel)
        {
            on_failure(Arc::clone(cause));
        }
    }
}

impl ProcessStore {
    pub(crate) fn new(kv: Arc<dyn Kv>, clock: Arc<dyn Clock>) -> Self {
        Self {
            kv,
            lease_clock: Arc::clone(&clock),
            clock,
            alarm: Arc::default(),
            taken: Arc::default(),
            walk_thread: WalkThread::default(),
            list_thread: WalkThread::named("procession-list"),
        }
    }

    /// With another clock to judge leases by: the one that the machine judges its commits by.
    pub(crate) fn with_lease_clock(mut self, lease_clock: Arc<dyn Clock>) -> Self {
        self.lease_clock = lease_clock;
        self
    }

    /// With the thread that opened it to walk through it.
    pub(crate) fn with_walk_thread(mut self, walk_thread: WalkThread) -> Self {
        self.walk_thread = walk_thread;
        self
    }

    /// The thread on which to walk through it.
    pub(crate) fn walk_thread(&self) -> &WalkThread {
        &self.walk_thread
    }

    /// The same for lists of everything, which recovery does not wait for.
    pub(crate) fn list_thread(&self) -> &WalkThread {
        &self.list_thread
    }

    /// What was taken away of grants since it was opened here.
    pub(crate) fn taken(&self) -> &Taken {
        &self.taken
    }

    /// The clock that its commits are judged by.
    pub(crate) fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Wall-clock time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_epoch_ms()
    }

    /// Has somebody told, once, when the store fails: by a commit or by a read, whoever's it was. They
    /// are told on the committer, too: it must be quick.
    pub(crate) fn on_failure(&self, on_failure: OnFailure) {
        // The first one stays: a store has one runtime.
        let _ = self.alarm.on_failure.set(on_failure);
    }

    /// Queues a set. `done` is called on the committer once its fate is durable: it must be quick.
    pub(crate) fn commit(&self, set: WriteSet, done: Done) {
        self.kv.submit(Box::new(Submission {
            set,
            exclusive_epoch: self.exclusive_epoch(),
            verdict: Err(Refusal::NothingToDo),
            alarm: Arc::clone(&self.alarm),
            taken: Arc::clone(&self.taken),
            done,
        }));
    }

    /// Commits a set and waits for its fate.
    ///
    /// # Cancel safety
    /// Once called, the set is committed or refused, whether or not the answer is waited for.
    pub(crate) fn commit_wait(
        &self,
        set: WriteSet,
    ) -> impl Future<Output = CommitResult> + Send + use<> {
        // Sent at once, not when it is first polled: several can be sent before one is awaited.
        let (answer, wait) = oneshot::channel();
        self.commit(
            set,
            Box::new(move |result| {
                // Nobody waits any more: the commit stands all the same.
                let _ = answer.send(result);
            }),
        );
        async move {
            wait.await
                .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))
        }
    }

    /// One consistent state, as of now.
    pub(crate) fn view(&self) -> Result<View, StoreError> {
        Ok(View::new(
            self.kv.view().inspect_err(|error| self.alarm.hear(error))?,
            self.store_id(),
            self.exclusive_epoch(),
            self.lease_clock.now_epoch_ms(),
        ))
    }

    pub(crate) fn next_incarnation(&self) -> Result<Incarnation, StoreError> {
        self.kv.allocate(Counter::Incarnation).map(Incarnation)
    }

    pub(crate) fn next_token(&self) -> Result<FencingToken, StoreError> {
        self.kv.allocate(Counter::FencingToken).map(FencingToken)
    }

    pub(crate) fn next_owner(&self) -> Result<OwnerNumber, StoreError> {
        self.kv.allocate(Counter::Owner).map(OwnerNumber)
    }

    /// The epoch that this open raised.
    pub(crate) fn epoch(&self) -> StoreEpoch {
        StoreEpoch(self.kv.epoch())
    }

    /// The epoch, where an earlier one proves that its owners can no longer write.
    pub(crate) fn exclusive_epoch(&self) -> Option<StoreEpoch> {
        self.kv.exclusive().then(|| self.epoch())
    }

    /// The store's own random id.
    pub(crate) fn store_id(&self) -> uuid::Uuid {
        self.kv.store_id()
    }

    pub(crate) fn stats(&self) -> KvStats {
        self.kv.stats()
    }

    /// Waits until everything committed is in the index. Blocks.
    pub(crate) fn drain(&self) -> Result<(), StoreError> {
        self.kv.drain()
    }

    /// Lets go of the store; when this returns, another open succeeds. Blocks. Idempotent.
    pub(crate) fn close(&self) -> Result<(), StoreError> {
        self.kv.close()
    }
}
