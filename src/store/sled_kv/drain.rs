//! The write-behind: moves what is committed from the overlay into the index, then trims the
//! journal.
//!
//! A pass freezes the overlay's newest layer, waits until no view is older, and writes the layer.
//! A crash before the low-water mark is durable makes the next open replay the journal from the
//! old mark: every write of the pass comes again, and none does harm twice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::error::StoreError;
use super::super::locks::{lock, wait, wait_for};
use super::events;
use super::fault::Step;
use super::index::{Home, Trees, Wrote, failed};
use super::inner::{Inner, tally};
use super::meta::LowWater;
use super::overlay::{Layer, Slot};
use super::settle;
use super::side_files::SideFiles;

/// Index writes between two looks at whether to stop.
const SLICE_KEYS: usize = 128;
/// Bytes given to sled after which its file is synced, in the middle of a pass and of a value as well. sled uses a
/// segment of 512 KiB again once what replaces it is *written*: without a sync in between, a loss
/// of power could take the new place of a leaf and leave the old one overwritten. sled writes a
/// few times what it is given.
const UNSYNCED_BYTES_MAX: usize = 128 << 10;
/// What sled writes beside a key and its value, roughly.
const KEY_OVERHEAD_BYTES: usize = 64;
/// Chunks of erased logs that one pass removes.
const ERASE_CHUNKS_MAX: usize = 512;
/// Longest wait for a view before its age is looked at again: the clock may be a test's.
const VIEW_WAIT_MAX: Duration = Duration::from_millis(100);

/// The thread's body.
pub(super) fn run(inner: &Inner) {
    let mut side_files = SideFiles::new(&inner.path);
    while wait_for_work(inner) {
        if let Err(error) = pass(inner, &mut side_files) {
            // Whatever of sled's file failed; not what failed before, elsewhere.
            if !inner.has_failed() && matches!(error, StoreError::Failed { .. }) {
                settle::distrust(&inner.path);
            }
            inner.poison(error);
            return;
        }
    }
}

/// Whether there is a pass to make; not, once the store stops or has failed.
fn wait_for_work(inner: &Inner) -> bool {
    let mut pending_since = None;
    let mut state = lock(&inner.state);
    loop {
        if state.stop || inner.has_failed() {
            return false;
        }
        if state.is_drained() {
            state.drain_parked = true;
            state = wait(&inner.changed, state);
            state.drain_parked = false;
            continue;
        }
        let now = inner.now();
        let since = *pending_since.get_or_insert(now);
        let rest = inner
            .options
            .bounds
            .drain_interval
            .saturating_sub(now.saturating_sub(since));
        if rest.is_zero() || inner.is_urgent(&state) {
            return true;
        }
        state = wait_for(&inner.changed, state, rest);
    }
}

/// Slices of one pass.
struct Slices<'a> {
    inner: &'a Inner,
    unsynced_bytes: usize,
}

impl Slices<'_> {
    /// Takes note of a write to the index.
    fn wrote(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.unsynced_bytes += bytes + KEY_OVERHEAD_BYTES;
        if self.unsynced_bytes >= UNSYNCED_BYTES_MAX {
            self.unsynced_bytes = 0;
            sync_data_file(self.inner)?;
            // Within a slice there may be many of these.
            self.goes_on()?;
        }
        Ok(())
    }

    fn goes_on(&self) -> Result<(), StoreError> {
        self.inner.check()?;
        if lock(&self.inner.state).stop {
            return Err(StoreError::Closed);
        }
        Ok(())
    }

    /// Writes to the index; each write is taken note of.
    fn write<T>(
        &mut self,
        work: impl FnOnce(&Trees, &mut Wrote<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let inner = self.inner;
        inner
            .index
            .with(|trees| work(trees, &mut |bytes| self.wrote(bytes)))
    }

    /// Between slices of work: makes room for the committer, and ends early when told to.
    fn end(&mut self, keys_written: u64) -> Result<(), StoreError> {
        tally(&self.inner.tallies.index_keys_written, keys_written);
        self.inner.step(Step::DrainSlice)?;
        self.goes_on()?;
        std::thread::yield_now();
        Ok(())
    }
}

fn pass(inner: &Inner, side_files: &mut SideFiles) -> Result<(), StoreError> {
    let (layer, mark) = freeze(inner);
    inner.step(Step::DrainFrozen)?;
    if inner.synced_commit.load(Ordering::Acquire) < mark.commit {
        // Under `Durability::Relaxed`: the index never holds what the journal may lose.
        inner.sync_journal(mark.commit)?;
    }
    wait_for_views(inner, mark.commit)?;
    let mut slices = Slices {
        inner,
        unsynced_bytes: 0,
    };
    write_keys(&mut slices, &layer)?;
    write_events(&mut slices, &layer)?;
    // After the events: once a log is queued for erasure, nothing of it is written any more.
    for incarnation in &layer.erased {
        inner.index.with(|trees| trees.add_garbage(*incarnation))?;
    }
    let erased = erase_logs(&mut slices)?;
    inner.step(Step::DrainWritten)?;
    sync_index(inner, side_files)?;
    inner.step(Step::DrainSynced)?;
    inner.index.with(|trees| {
        // Only now: had the entry gone before its chunks, a crash would leave them for good.
        for incarnation in &erased {
            trees.remove_garbage(*incarnation)?;
        }
        mark.save(&trees.meta)
    })?;
    inner.step(Step::DrainMarked)?;
    // Before any region is used again: a crash must not find the old mark and new entries in it.
    sync_index(inner, side_files)?;
    inner.step(Step::DrainTrimmed)?;
    inner.journal.free_below(mark.sequence);
    let has_garbage = inner.index.with(|trees| {
        // The first pass wrote whatever the last open left half-written.
        trees.may_have_orphans.store(false, Ordering::Relaxed);
        Ok(trees.next_garbage(0)?.is_some())
    })?;
    let mut state = lock(&inner.state);
    state.frozen = None;
    state.low_water = mark;
    state.has_garbage = has_garbage;
    inner.measure_overlay(&state);
    drop(state);
    inner.changed.notify_all();
    inner.queue.wake_all();
    Ok(())
}

/// The only place that flushes sled while the store is open: two flushes at once can stop sled for
/// good. Its flush is no sync.
fn sync_index(inner: &Inner, side_files: &mut SideFiles) -> Result<(), StoreError> {
    inner
        .index
        .with(|trees| trees.db.flush().map(drop).map_err(failed))?;
    side_files.sync_new()?;
    sync_data_file(inner)
}

fn sync_data_file(inner: &Inner) -> Result<(), StoreError> {
    inner.step(Step::IndexSync)?;
    inner
        .data_file
        .sync_data()
        .map_err(|error| StoreError::Failed {
            cause: format!("data sync: {error}").into(),
        })?;
    inner.step(Step::IndexSynced)
}

fn freeze(inner: &Inner) -> (Arc<Layer>, LowWater) {
    let mut state = lock(&inner.state);
    let layer = Arc::new(std::mem::take(&mut state.active));
    state.frozen = Some(Arc::clone(&layer));
    let mark = LowWater {
        sequence: state.journal_next,
        commit: state.commit,
        next_position: state.next_position,
        marks: state.marks,
    };
    (layer, mark)
}

/// Waits until every view sees the frozen layer. A view that is too old is told so instead.
fn wait_for_views(inner: &Inner, commit: u64) -> Result<(), StoreError> {
    let bounds = &inner.options.bounds;
    let mut state = lock(&inner.state);
    loop {
        inner.check()?;
        if state.stop {
            return Err(StoreError::Closed);
        }
        let oldest = state
            .views
            .first_key_value()
            .filter(|(_, pin)| pin.commit < commit)
            .map(|(number, pin)| (*number, Arc::clone(pin)));
        let Some((number, pin)) = oldest else {
            return Ok(());
        };
        let age_max = if inner.over_bound() {
            bounds.view_age_max.min(bounds.view_age_pressed_max)
        } else {
            bounds.view_age_max
        };
        let rest = age_max.saturating_sub(inner.now().saturating_sub(pin.opened_at));
        if rest.is_zero() {
            pin.expired.store(true, Ordering::SeqCst);
            state.views.remove(&number);
            continue;
        }
        state.views_awaited = true;
        state = wait_for(&inner.changed, state, rest.min(VIEW_WAIT_MAX));
        state.views_awaited = false;
    }
}

fn write_keys(slices: &mut Slices<'_>, layer: &Layer) -> Result<(), StoreError> {
    let mut changes = layer.keys.iter().peekable();
    while changes.peek().is_some() {
        let written = slices.write(|trees, wrote| {
            let mut written = 0;
            for (key, slot) in changes.by_ref().take(SLICE_KEYS) {
                write_key(trees, key, slot, wrote)?;
                written += 1;
            }
            Ok(written)
        })?;
        slices.end(written)?;
    }
    Ok(())
}

fn write_key(
    trees: &Trees,
    key: &[u8],
    slot: &Slot,
    wrote: &mut Wrote<'_>,
) -> Result<(), StoreError> {
    match slot {
        Slot::Put(value) => trees.put(Home::Keys, key, value, wrote),
        Slot::Once(value) => trees.put_new(key, value, wrote),
        Slot::Gone => trees.delete(Home::Keys, key, wrote),
    }
}

fn write_events(slices: &mut Slices<'_>, layer: &Layer) -> Result<(), StoreError> {
    let mut pending = layer.events.iter().peekable();
    let mut written = 0;
    let mut run: Vec<(u64, &[u8])> = Vec::new();
    while let Some(((incarnation, sequence), value)) = pending.next() {
        run.push((*sequence, value));
        let continues = pending
            .peek()
            .is_some_and(|((next, _), _)| next == incarnation);
        if continues && run.len() < SLICE_KEYS {
            continue;
        }
        written += slices.write(|trees, wrote| events::append(trees, *incarnation, &run, wrote))?;
        run.clear();
        if written >= 32 {
            slices.end(std::mem::take(&mut written))?;
        }
    }
    slices.end(written)
}

/// Removes chunks of erased logs, up to a bound, and returns the logs that are gone. A crash
/// leaves the rest of a log, and its entry in the queue, to the next open.
fn erase_logs(slices: &mut Slices<'_>) -> Result<Vec<u64>, StoreError> {
    let inner = slices.inner;
    let mut gone = Vec::new();
    let mut budget = ERASE_CHUNKS_MAX;
    let mut from = 0;
    while budget > 0 {
        let Some(incarnation) = inner.index.with(|trees| trees.next_garbage(from))? else {
            break;
        };
        let slice = budget.min(SLICE_KEYS);
        let erased = slices.write(|trees, wrote| trees.erase_chunks(incarnation, slice, wrote))?;
        inner.step(Step::DrainErased)?;
        if erased < slice {
            slices.write(|trees, wrote| trees.remove_orphans_of(incarnation, wrote))?;
            gone.push(incarnation);
            let Some(next) = incarnation.checked_add(1) else {
                break;
            };
            from = next;
        }
        // A log costs its entry in the queue, even if it has no chunk left.
        budget = budget.saturating_sub(erased.max(1));
        slices.end(0)?;
    }
    Ok(gone)
}
