//! The machine in memory: the same laws without a disk, for tests and for hosts that want no
//! store, and the only one that several runtimes can share.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::ThreadId;

use bytes::Bytes;
use imbl::OrdMap;

use super::clock::Clock;
use super::error::StoreError;
use super::kv::{
    CommitContext, Counter, KeyRange, Kv, KvStats, KvView, Op, Outcome, Proposal, Reader, Verdict,
};
use super::locks::{lock, wait};

/// A state in memory that outlives the runtimes which open it.
#[derive(Debug, Clone)]
pub(crate) struct MemoryStore {
    shared: Arc<Shared>,
}

/// One runtime's open of a [`MemoryStore`].
pub(crate) struct MemoryKv {
    shared: Arc<Shared>,
    clock: Arc<dyn Clock>,
    epoch: u64,
    closed: AtomicBool,
    commits: AtomicU64,
    refusals: AtomicU64,
}

struct Shared {
    state: Mutex<State>,
    /// Told when the last finished proposal has been answered.
    answered: Condvar,
    store_id: uuid::Uuid,
    exclusive: bool,
    /// Set by a test: nothing works any more.
    #[cfg(test)]
    failed: AtomicBool,
}

struct State {
    data: Data,
    next_position: u64,
    epoch: u64,
    counters: [u64; 3],
    opens: usize,
    /// Resolved proposals in commit order that have not been told yet. They are told outside the
    /// lock, because `done` may submit again.
    finished: VecDeque<(Box<dyn Proposal>, Outcome)>,
    /// Who is telling them: only one thread does, so that they are told in order.
    publisher: Option<ThreadId>,
}

/// One consistent state: cloning it costs nothing, which is what pins a view.
#[derive(Clone, Default)]
struct Data {
    keys: OrdMap<Bytes, Bytes>,
    events: OrdMap<(u64, u64), Bytes>,
    commit: u64,
}

impl MemoryKv {
    /// A state that one runtime at a time can have open, as with a store on disk.
    pub(crate) fn private() -> MemoryStore {
        MemoryStore::new(true)
    }

    /// A state that several runtimes use at once: an earlier epoch proves nothing there.
    pub(crate) fn shared() -> MemoryStore {
        MemoryStore::new(false)
    }

    fn open_state(&self) -> Result<MutexGuard<'_, State>, StoreError> {
        if self.closed.load(Ordering::Acquire) {
            return Err(StoreError::Closed);
        }
        self.shared.sound()?;
        Ok(lock(&self.shared.state))
    }
}

impl MemoryStore {
    fn new(exclusive: bool) -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State {
                    data: Data::default(),
                    next_position: 1,
                    epoch: 0,
                    counters: [1; 3],
                    opens: 0,
                    finished: VecDeque::new(),
                    publisher: None,
                }),
                answered: Condvar::new(),
                store_id: uuid::Uuid::new_v4(),
                exclusive,
                #[cfg(test)]
                failed: AtomicBool::new(false),
            }),
        }
    }

    /// Fails from now on, as a disk does.
    #[cfg(test)]
    pub(crate) fn fail(&self) {
        self.shared.failed.store(true, Ordering::Release);
    }

    /// Opens the state and raises its epoch.
    ///
    /// # Errors
    /// `Busy` if it is private and open already.
    pub(crate) fn open(&self, clock: Arc<dyn Clock>) -> Result<MemoryKv, StoreError> {
        let mut state = lock(&self.shared.state);
        if self.shared.exclusive && state.opens > 0 {
            return Err(StoreError::Busy {
                path: "in memory".to_owned(),
            });
        }
        state.opens += 1;
        state.epoch += 1;
        Ok(MemoryKv {
            shared: Arc::clone(&self.shared),
            clock,
            epoch: state.epoch,
            closed: AtomicBool::new(false),
            commits: AtomicU64::new(0),
            refusals: AtomicU64::new(0),
        })
    }
}

impl State {
    fn resolve(&mut self, proposal: &mut dyn Proposal, now_epoch_ms: u64) -> Outcome {
        let mut ops = Vec::new();
        let mut cx = CommitContext {
            now_epoch_ms,
            next_position: self.next_position,
            ops: &mut ops,
        };
        let data = &self.data;
        let verdict = catch_unwind(AssertUnwindSafe(|| proposal.resolve(data, &mut cx)))
            .unwrap_or_else(|_| {
                Err(StoreError::Invalid {
                    what: "a proposal panicked while it was resolved".to_owned(),
                })
            });
        let next_position = cx.next_position;
        match verdict {
            Ok(Verdict::Refuse) => Outcome::Refused,
            Err(error) => Outcome::NotWritten(error),
            Ok(Verdict::Accept) => {
                if let Some(error) = ops.iter().find_map(|op| op.check().err()) {
                    return Outcome::NotWritten(error);
                }
                self.next_position = next_position;
                self.data.commit += 1;
                for op in ops {
                    self.data.apply(op);
                }
                Outcome::Committed {
                    commit: self.data.commit,
                }
            }
        }
    }
}

impl Shared {
    /// Memory does not fail, but where a test says so.
    #[cfg_attr(
        not(test),
        expect(
            clippy::unused_self,
            clippy::unnecessary_wraps,
            reason = "a test's hook"
        )
    )]
    fn sound(&self) -> Result<(), StoreError> {
        #[cfg(test)]
        if self.failed.load(Ordering::Acquire) {
            return Err(StoreError::Failed {
                cause: "a test said so".into(),
            });
        }
        Ok(())
    }

    /// Tells finished proposals, in order, unless a thread is at it already.
    fn publish<'a>(&'a self, mut state: MutexGuard<'a, State>) {
        if state.publisher.is_some() {
            return;
        }
        state.publisher = Some(std::thread::current().id());
        while let Some((proposal, outcome)) = state.finished.pop_front() {
            drop(state);
            if catch_unwind(AssertUnwindSafe(|| proposal.done(outcome))).is_err() {
                tracing::error!("a proposal panicked while it was told its outcome");
            }
            state = lock(&self.state);
        }
        state.publisher = None;
        self.answered.notify_all();
    }
}

impl Kv for MemoryKv {
    fn submit(&self, mut proposal: Box<dyn Proposal>) {
        let mut state = lock(&self.shared.state);
        // L4: the time at which the conditions are looked at, however long it waited for its turn.
        let now_epoch_ms = self.clock.now_epoch_ms();
        let outcome = if self.closed.load(Ordering::Acquire) {
            Outcome::NotWritten(StoreError::Closed)
        } else if let Err(error) = self.shared.sound() {
            Outcome::Unknown(error)
        } else {
            state.resolve(proposal.as_mut(), now_epoch_ms)
        };
        match outcome {
            Outcome::Committed { .. } => self.commits.fetch_add(1, Ordering::Relaxed),
            Outcome::Refused => self.refusals.fetch_add(1, Ordering::Relaxed),
            Outcome::NotWritten(_) | Outcome::Unknown(_) => 0,
        };
        state.finished.push_back((proposal, outcome));
        self.shared.publish(state);
    }

    fn view(&self) -> Result<Box<dyn KvView>, StoreError> {
        let state = self.open_state()?;
        Ok(Box::new(state.data.clone()))
    }

    fn allocate(&self, counter: Counter) -> Result<u64, StoreError> {
        let mut state = self.open_state()?;
        let next = state.counters[counter.slot()];
        state.counters[counter.slot()] = next + 1;
        Ok(next)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn exclusive(&self) -> bool {
        self.shared.exclusive
    }

    fn store_id(&self) -> uuid::Uuid {
        self.shared.store_id
    }

    fn stats(&self) -> KvStats {
        KvStats {
            commits: self.commits.load(Ordering::Relaxed),
            refusals: self.refusals.load(Ordering::Relaxed),
            ..KvStats::default()
        }
    }

    fn drain(&self) -> Result<(), StoreError> {
        self.open_state().map(drop)
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut state = lock(&self.shared.state);
        if self.closed.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        // A `done` that closes the store would wait for itself.
        let me = std::thread::current().id();
        while state.publisher.is_some_and(|publisher| publisher != me) {
            state = wait(&self.shared.answered, state);
        }
        state.opens -= 1;
        Ok(())
    }
}

impl Drop for MemoryKv {
    fn drop(&mut self) {
        if !self.closed.swap(true, Ordering::AcqRel) {
            lock(&self.shared.state).opens -= 1;
        }
    }
}

impl Data {
    fn apply(&mut self, op: Op) {
        match op {
            Op::Put { key, value } | Op::PutOnce { key, value } => {
                self.keys.insert(key, value);
            }
            Op::Delete { key } => {
                self.keys.remove(&key);
            }
            Op::Append {
                incarnation,
                sequence,
                value,
            } => {
                self.events.insert((incarnation, sequence), value);
            }
            Op::EraseLog { incarnation } => {
                let range = (incarnation, 0)..=(incarnation, u64::MAX);
                let erased: Vec<_> = self.events.range(range).map(|(at, _)| *at).collect();
                for at in erased {
                    self.events.remove(&at);
                }
            }
        }
    }

    fn range<'a>(
        &'a self,
        range: &'a KeyRange,
    ) -> Option<impl DoubleEndedIterator<Item = (Bytes, Bytes)> + 'a> {
        if !range.end.is_empty() && range.start >= range.end {
            return None;
        }
        let end = if range.end.is_empty() {
            Bound::Unbounded
        } else {
            Bound::Excluded(&range.end[..])
        };
        let entries = self
            .keys
            .range::<_, [u8]>((Bound::Included(&range.start[..]), end));
        Some(entries.map(|(key, value)| (key.clone(), value.clone())))
    }
}

impl Reader for Data {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        Ok(self.keys.get(key).cloned())
    }

    fn scan(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let entries = self.range(range).into_iter().flatten();
        Ok(entries.take(limit).collect())
    }

    fn scan_back(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let entries = self.range(range).into_iter().flat_map(Iterator::rev);
        Ok(entries.take(limit).collect())
    }
}

impl KvView for Data {
    fn commit(&self) -> u64 {
        self.commit
    }

    fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let mut found = Vec::new();
        let mut bytes = 0;
        let range = (incarnation, from_sequence)..=(incarnation, u64::MAX);
        for ((_, sequence), value) in self.events.range(range) {
            if found.len() == limit || (bytes >= bytes_max && !found.is_empty()) {
                break;
            }
            bytes += value.len();
            found.push((*sequence, value.clone()));
        }
        Ok(found)
    }
}

impl fmt::Debug for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryView")
            .field("commit", &self.commit)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryState")
            .field("store_id", &self.store_id)
            .field("exclusive", &self.exclusive)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for MemoryKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryKv")
            .field("epoch", &self.epoch)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::OnceLock;
    use std::time::Duration;

    use super::*;

    /// Shows whether somebody else could commit while it is read.
    #[derive(Debug, Default)]
    struct SeesTurns(OnceLock<Arc<Shared>>);

    const IN_TURN: u64 = 7;

    impl Clock for SeesTurns {
        fn now_epoch_ms(&self) -> u64 {
            let shared = self.0.get().unwrap();
            let in_turn = shared.state.try_lock().is_err();
            if in_turn { IN_TURN } else { 0 }
        }
        fn monotonic(&self) -> Duration {
            Duration::ZERO
        }
    }

    /// Says when it was judged.
    struct WhenJudged(Arc<AtomicU64>);

    impl Proposal for WhenJudged {
        fn resolve(
            &mut self,
            _state: &dyn Reader,
            cx: &mut CommitContext<'_>,
        ) -> Result<Verdict, StoreError> {
            self.0.store(cx.now_epoch_ms, Ordering::SeqCst);
            Ok(Verdict::Refuse)
        }
        fn done(self: Box<Self>, _outcome: Outcome) {}
    }

    /// What waits for its turn must not be judged by the time at which it came: a lease may lapse
    /// meanwhile.
    #[test]
    fn l4_a_commit_is_judged_by_the_time_of_its_turn() {
        let clock = Arc::new(SeesTurns::default());
        let kv = MemoryKv::shared().open(Arc::clone(&clock) as _).unwrap();
        clock.0.set(Arc::clone(&kv.shared)).unwrap();
        let judged = Arc::new(AtomicU64::new(0));
        kv.submit(Box::new(WhenJudged(Arc::clone(&judged))));
        assert_eq!(judged.load(Ordering::SeqCst), IN_TURN);
    }
}
