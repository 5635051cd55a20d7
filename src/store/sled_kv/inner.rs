//! What the handle, the committer, the write-behind and the views share.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::Duration;

use super::super::error::StoreError;
use super::super::kv::{Counter, KvStats};
use super::super::locks::{lock, wait};
use super::fault::Step;
use super::index::Index;
use super::journal::Journal;
use super::meta::LowWater;
use super::overlay::Layer;
use super::queue::Queue;
use super::{Options, view::Pin};

/// Numbers per durable reservation.
pub(super) const COUNTER_BLOCK: u64 = 65_536;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) path: PathBuf,
    pub(super) options: Options,
    pub(super) index: Index,
    pub(super) journal: Journal,
    /// Last commit that is known to be durable in the journal.
    pub(super) synced_commit: AtomicU64,
    /// The first failure of a sync of the journal: the system tells it to one caller only.
    journal_failure: Mutex<Option<StoreError>>,
    /// Our own descriptor of sled's file: sled's flush is no sync.
    pub(super) data_file: File,
    pub(super) state: Mutex<State>,
    /// Told of whatever the write-behind or a caller of `drain` may wait for.
    pub(super) changed: Condvar,
    pub(super) queue: Queue,
    pub(super) counters: [Block; 3],
    pub(super) tallies: Tallies,
    /// The first failure. Once set, nothing is acknowledged and nothing is read any more.
    failure: OnceLock<StoreError>,
}

/// What is committed, as new views see it.
#[derive(Debug)]
pub(super) struct State {
    /// Newest changes.
    pub(super) active: Layer,
    /// The changes that the write-behind is moving into the index.
    pub(super) frozen: Option<Arc<Layer>>,
    pub(super) commit: u64,
    pub(super) next_position: u64,
    /// Sequence of the next journal entry.
    pub(super) journal_next: u64,
    /// For each counter, the mark that the journal's last entry says.
    pub(super) marks: [u64; 3],
    /// Up to where the index has everything, durably.
    pub(super) low_water: LowWater,
    /// Open views by age.
    pub(super) views: BTreeMap<u64, Arc<Pin>>,
    pub(super) next_view: u64,
    /// Whether erased logs wait for the write-behind.
    pub(super) has_garbage: bool,
    /// Callers that wait for the write-behind to catch up.
    pub(super) drain_waiters: usize,
    /// Whether the write-behind sleeps until it is told otherwise.
    pub(super) drain_parked: bool,
    /// Whether the write-behind waits for old views to go.
    pub(super) views_awaited: bool,
    /// Whether the write-behind is to stop.
    pub(super) stop: bool,
}

impl State {
    pub(super) fn is_drained(&self) -> bool {
        self.low_water.commit >= self.commit && !self.has_garbage
    }
}

/// Numbers of one counter that are reserved durably.
#[derive(Debug)]
pub(super) struct Block {
    next: AtomicU64,
    /// First number that is not reserved.
    limit: AtomicU64,
    /// Whether the next block has been asked for.
    asked: AtomicBool,
}

/// Work done, for [`KvStats`].
#[derive(Debug, Default)]
pub(super) struct Tallies {
    pub(super) commits: AtomicU64,
    pub(super) refusals: AtomicU64,
    pub(super) groups: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) journal_entries: AtomicU64,
    pub(super) journal_bytes: AtomicU64,
    pub(super) index_keys_written: AtomicU64,
    /// Of both layers; kept here so that the committer's bound costs no lock.
    pub(super) overlay_entries: AtomicU64,
    pub(super) overlay_bytes: AtomicU64,
}

/// Adds to a tally.
pub(super) fn tally(of: &AtomicU64, amount: u64) {
    of.fetch_add(amount, Ordering::Relaxed);
}

impl Block {
    pub(super) fn new(next: u64, limit: u64) -> Self {
        Self {
            next: AtomicU64::new(next),
            limit: AtomicU64::new(limit),
            asked: AtomicBool::new(false),
        }
    }

    /// The mark that the next reservation makes durable.
    pub(super) fn next_mark(&self) -> u64 {
        self.limit.load(Ordering::Acquire) + COUNTER_BLOCK
    }

    /// Hands out numbers up to a mark that is durable now.
    pub(super) fn reserved(&self, mark: u64) {
        self.limit.store(mark, Ordering::Release);
        self.asked.store(false, Ordering::Release);
    }
}

impl Inner {
    pub(super) fn new(
        path: PathBuf,
        options: Options,
        index: Index,
        journal: Journal,
        data_file: File,
        state: State,
        counters: [Block; 3],
    ) -> Self {
        let inner = Self {
            path,
            options,
            index,
            journal,
            synced_commit: AtomicU64::new(state.commit),
            journal_failure: Mutex::new(None),
            data_file,
            state: Mutex::new(state),
            changed: Condvar::new(),
            queue: Queue::default(),
            counters,
            tallies: Tallies::default(),
            failure: OnceLock::new(),
        };
        inner.measure_overlay(&lock(&inner.state));
        inner
    }

    /// Keeps the first failure, and wakes everybody who waits for something that will not happen.
    pub(super) fn poison(&self, error: StoreError) -> StoreError {
        if matches!(error, StoreError::Closed) {
            return error;
        }
        let error = if matches!(error, StoreError::Failed { .. }) {
            error
        } else {
            StoreError::Failed {
                cause: error.to_string().into(),
            }
        };
        if self.failure.set(error.clone()).is_ok() {
            tracing::error!(%error, "the store failed");
        }
        self.queue.wake_all();
        drop(lock(&self.state));
        self.changed.notify_all();
        self.failure.get().cloned().unwrap_or(error)
    }

    /// # Errors
    /// The first failure, if there was one.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        self.failure.get().cloned().map_or(Ok(()), Err)
    }

    pub(super) fn has_failed(&self) -> bool {
        self.failure.get().is_some()
    }

    pub(super) fn step(&self, step: Step) -> Result<(), StoreError> {
        if cfg!(test) {
            return self
                .index
                .with(|trees| self.options.faults.at(step, &trees.db));
        }
        Ok(())
    }

    pub(super) fn now(&self) -> Duration {
        self.options.clock.monotonic()
    }

    /// Whether so much waits for the write-behind that the committer has to wait too.
    pub(super) fn over_bound(&self) -> bool {
        let entries = self.tallies.overlay_entries.load(Ordering::Relaxed);
        let bytes = self.tallies.overlay_bytes.load(Ordering::Relaxed);
        self.fills_more_than(1, entries, bytes)
    }

    /// Whether enough waits that the write-behind had better not wait for its interval.
    pub(super) fn is_urgent(&self, state: &State) -> bool {
        state.drain_waiters > 0
            || self.fills_more_than(4, state.active.entries(), state.active.bytes())
    }

    /// Whether an overlay of this size, or the journal, takes up more than a share of its bounds.
    fn fills_more_than(&self, share: u64, overlay_entries: u64, overlay_bytes: u64) -> bool {
        let bounds = &self.options.bounds;
        overlay_entries > bounds.overlay_entries_max / share
            || overlay_bytes > bounds.overlay_bytes_max / share
            || self.journal.live_bytes() > bounds.journal_bytes_max / share
    }

    pub(super) fn measure_overlay(&self, state: &State) {
        let (entries, bytes) = state
            .frozen
            .as_ref()
            .map_or((0, 0), |layer| (layer.entries(), layer.bytes()));
        let tallies = &self.tallies;
        tallies
            .overlay_entries
            .store(state.active.entries() + entries, Ordering::Relaxed);
        tallies
            .overlay_bytes
            .store(state.active.bytes() + bytes, Ordering::Relaxed);
    }

    pub(super) fn allocate(&self, counter: Counter) -> Result<u64, StoreError> {
        self.check()?;
        let block = &self.counters[counter.slot()];
        let limit = block.limit.load(Ordering::Acquire);
        let taken = block
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |next| {
                (next < limit).then(|| next + 1)
            });
        let runs_low = taken.map_or(true, |number| limit - number < COUNTER_BLOCK / 2);
        if runs_low && !block.asked.swap(true, Ordering::AcqRel) {
            self.queue.ask_reservation(counter)?;
        }
        taken.map_err(|_| StoreError::NumbersExhausted {
            counter: counter.name(),
        })
    }

    /// Makes durable whatever the journal was given before the call.
    pub(super) fn sync_journal(&self, commit: u64) -> Result<(), StoreError> {
        let mut failure = lock(&self.journal_failure);
        if let Some(error) = &*failure {
            return Err(error.clone());
        }
        if let Err(error) = self.journal.sync() {
            *failure = Some(error.clone());
            return Err(error);
        }
        self.synced_commit.fetch_max(commit, Ordering::AcqRel);
        Ok(())
    }

    /// Waits until everything committed before the call is in the index and, if asked for, no
    /// erased log is left there.
    pub(super) fn drain(&self, erased_too: bool) -> Result<(), StoreError> {
        let mut state = lock(&self.state);
        let target = state.commit;
        state.drain_waiters += 1;
        self.changed.notify_all();
        let result = loop {
            if let Err(error) = self.check() {
                break Err(error);
            }
            if state.low_water.commit >= target && !(erased_too && state.has_garbage) {
                break Ok(());
            }
            if state.stop {
                break Err(StoreError::Closed);
            }
            state = wait(&self.changed, state);
        };
        state.drain_waiters -= 1;
        result
    }

    pub(super) fn stats(&self) -> KvStats {
        let tallies = &self.tallies;
        let of = |tally: &AtomicU64| tally.load(Ordering::Relaxed);
        let state = lock(&self.state);
        KvStats {
            commits: of(&tallies.commits),
            refusals: of(&tallies.refusals),
            groups: of(&tallies.groups),
            syncs: of(&tallies.syncs),
            journal_entries: of(&tallies.journal_entries),
            journal_bytes: of(&tallies.journal_bytes),
            index_keys_written: of(&tallies.index_keys_written),
            overlay_entries: of(&tallies.overlay_entries),
            overlay_bytes: of(&tallies.overlay_bytes),
            journal_low_water: state.low_water.sequence,
            journal_next: state.journal_next,
        }
    }
}
