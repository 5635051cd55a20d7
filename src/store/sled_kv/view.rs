//! Reads: layers over the index, and the pins that keep a view's state where it was.

use std::fmt;
use std::iter::Peekable;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::super::error::StoreError;
use super::super::kv::{KeyRange, KvView, Reader};
use super::super::locks::lock;
use super::events::{self, Enough};
use super::index::{Home, Index, Trees, failed};
use super::inner::Inner;
use super::overlay::{Layer, Pending, Slot};

/// Events that a read makes room for beforehand.
const ROOM_MAX: usize = 64;

/// One state: what is not committed yet, and layers, newest first, over the index.
pub(super) struct Layered<'a> {
    /// On the committer only.
    pub(super) pending: Option<&'a Pending>,
    pub(super) layers: [Option<&'a Layer>; 2],
    pub(super) index: &'a Index,
}

/// What a source says about a key. A stored value is only decoded if it counts: the write-behind
/// may be replacing the parts of one that does not.
enum Found {
    Layer(Slot),
    Stored(sled::IVec),
}

type Source<'a> = Peekable<Box<dyn Iterator<Item = Result<(Bytes, Found), StoreError>> + 'a>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Ascending,
    Descending,
}

impl<'a> Layered<'a> {
    fn layers(&self) -> impl Iterator<Item = &'a Layer> {
        self.layers.into_iter().flatten()
    }

    fn walk(
        &self,
        range: &KeyRange,
        limit: usize,
        direction: Direction,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        if limit == 0 || (!range.end.is_empty() && range.start >= range.end) {
            return Ok(Vec::new());
        }
        let says_nothing =
            |layer: &Layer| layer.keys.range::<_, [u8]>(bounds(range)).next().is_none();
        let pends = |pending: &&Pending| {
            let mut changes = pending.keys.range::<[u8], _>(bounds(range));
            changes.next().is_some()
        };
        let pending = self.pending.filter(pends);
        self.index.with(|trees| {
            // What has come to rest is in the index alone: nothing is to be merged, or compared.
            if pending.is_none() && self.layers().all(says_nothing) {
                return from_index(trees, range, limit, direction);
            }
            let pending = pending.map(|pending| {
                let changes = pending.keys.range::<[u8], _>(bounds(range));
                change_source(changes, direction)
            });
            let layers = self.layers().map(|layer| {
                let changes = layer.keys.range::<_, [u8]>(bounds(range));
                change_source(changes, direction)
            });
            let mut sources: Vec<Source<'_>> = pending.into_iter().chain(layers).collect();
            sources.push(index_source(trees, range, direction));
            merge(trees, &mut sources, limit, direction)
        })
    }
}

fn bounds(range: &KeyRange) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let end = if range.end.is_empty() {
        Bound::Unbounded
    } else {
        Bound::Excluded(&range.end[..])
    };
    (Bound::Included(&range.start[..]), end)
}

fn directed<'a, T>(
    entries: impl DoubleEndedIterator<Item = T> + 'a,
    direction: Direction,
) -> Box<dyn Iterator<Item = T> + 'a> {
    match direction {
        Direction::Ascending => Box::new(entries),
        Direction::Descending => Box::new(entries.rev()),
    }
}

fn change_source<'a>(
    changes: impl DoubleEndedIterator<Item = (&'a Bytes, &'a Slot)> + 'a,
    direction: Direction,
) -> Source<'a> {
    let entries = changes.map(|(key, slot)| Ok((key.clone(), Found::Layer(slot.clone()))));
    directed(entries, direction).peekable()
}

fn index_source<'a>(trees: &'a Trees, range: &'a KeyRange, direction: Direction) -> Source<'a> {
    let entries = trees.keys.range::<&[u8], _>(bounds(range)).map(|entry| {
        let (key, stored) = entry.map_err(failed)?;
        Ok((Bytes::copy_from_slice(&key), Found::Stored(stored)))
    });
    directed(entries, direction).peekable()
}

/// Merges sources in key order; of several that know a key the first one counts.
fn from_index(
    trees: &Trees,
    range: &KeyRange,
    limit: usize,
    direction: Direction,
) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let entries = trees.keys.range::<&[u8], _>(bounds(range));
    directed(entries, direction)
        .take(limit)
        .map(|entry| {
            let (key, stored) = entry.map_err(failed)?;
            let value = trees.value(Home::Keys, &key, &stored)?;
            Ok((Bytes::copy_from_slice(&key), value))
        })
        .collect()
}

fn merge(
    trees: &Trees,
    sources: &mut [Source<'_>],
    limit: usize,
    direction: Direction,
) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
    let mut merged = Vec::new();
    while merged.len() < limit {
        let mut next: Option<Bytes> = None;
        for source in sources.iter_mut() {
            if let Some(Err(_)) = source.peek()
                && let Some(Err(error)) = source.next()
            {
                return Err(error);
            }
            let Some(Ok((key, _))) = source.peek() else {
                continue;
            };
            let comes_first = next.as_ref().is_none_or(|best| match direction {
                Direction::Ascending => key < best,
                Direction::Descending => key > best,
            });
            if comes_first {
                next = Some(key.clone());
            }
        }
        let Some(key) = next else { break };
        let mut counts: Option<Found> = None;
        for source in sources.iter_mut() {
            let same = |entry: &Result<(Bytes, Found), StoreError>| {
                entry.as_ref().is_ok_and(|(other, _)| *other == key)
            };
            if let Some(Ok((_, found))) = source.next_if(same) {
                counts.get_or_insert(found);
            }
        }
        match counts {
            Some(Found::Layer(Slot::Put(value) | Slot::Once(value))) => merged.push((key, value)),
            Some(Found::Stored(stored)) => {
                let value = trees.value(Home::Keys, &key, &stored)?;
                merged.push((key, value));
            }
            Some(Found::Layer(Slot::Gone)) | None => {}
        }
    }
    Ok(merged)
}

/// Collects events and watches that none is missing.
struct Collector {
    incarnation: u64,
    expected: u64,
    limit: usize,
    bytes_max: usize,
    bytes: usize,
    events: Vec<(u64, Bytes)>,
    gap: bool,
}

impl Collector {
    /// Layers and chunks overlap after a crash; what is there already is skipped.
    fn push(&mut self, sequence: u64, value: Bytes) -> Enough {
        if self.is_full() {
            return Enough::Yes;
        }
        if sequence < self.expected {
            return Enough::No;
        }
        if sequence > self.expected {
            self.gap = true;
            return Enough::Yes;
        }
        self.expected += 1;
        self.bytes += value.len();
        self.events.push((sequence, value));
        if self.is_full() {
            Enough::Yes
        } else {
            Enough::No
        }
    }

    fn is_full(&self) -> bool {
        self.gap
            || self.events.len() >= self.limit
            || (self.bytes >= self.bytes_max && !self.events.is_empty())
    }

    fn finish(self) -> Result<Vec<(u64, Bytes)>, StoreError> {
        if self.gap {
            return Err(StoreError::Corrupted {
                what: format!(
                    "event {} of incarnation {} is missing from its log",
                    self.expected, self.incarnation
                ),
            });
        }
        Ok(self.events)
    }
}

impl Reader for Layered<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        let pending = self.pending.and_then(|pending| pending.keys.get(key));
        let in_layers = self.layers().map(|layer| layer.keys.get(key));
        for slot in std::iter::once(pending).chain(in_layers) {
            match slot {
                Some(Slot::Put(value) | Slot::Once(value)) => return Ok(Some(value.clone())),
                Some(Slot::Gone) => return Ok(None),
                None => {}
            }
        }
        self.index.with(|trees| trees.get(key))
    }

    fn scan(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.walk(range, limit, Direction::Ascending)
    }

    fn scan_back(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.walk(range, limit, Direction::Descending)
    }
}

impl Layered<'_> {
    pub(super) fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        let from = from_sequence.max(1);
        // Layers that count, oldest first: nothing below an erasure does.
        let mut layers: Vec<&Layer> = Vec::with_capacity(3);
        let mut erased = false;
        for layer in self.layers() {
            layers.push(layer);
            if layer.erased.contains(&incarnation) {
                erased = true;
                break;
            }
        }
        layers.reverse();
        let range = || (incarnation, from)..=(incarnation, u64::MAX);
        // A log is dense, so the layers hold its tail: below their first event is the index.
        let tail = layers
            .iter()
            .filter_map(|layer| {
                layer
                    .events
                    .range((incarnation, 0)..=(incarnation, u64::MAX))
                    .next()
            })
            .map(|((_, sequence), _)| *sequence)
            .min()
            .unwrap_or(u64::MAX);
        // What is asked for is mostly there: room is made once, where it is little.
        let room = limit.min(ROOM_MAX);
        let mut collector = Collector {
            incarnation,
            expected: from,
            limit,
            bytes_max,
            bytes: 0,
            events: Vec::with_capacity(room),
            gap: false,
        };
        if limit == 0 {
            return Ok(Vec::new());
        }
        if tail > from && !erased {
            self.index.with(|trees| {
                events::read(trees, incarnation, from, tail, |sequence, value| {
                    collector.push(sequence, value)
                })
            })?;
        }
        for layer in layers {
            for ((_, sequence), value) in layer.events.range(range()) {
                if collector.push(*sequence, value.clone()) == Enough::Yes {
                    return collector.finish();
                }
            }
        }
        collector.finish()
    }
}

/// What keeps the write-behind from moving newer changes under a view.
#[derive(Debug)]
pub(super) struct Pin {
    pub(super) commit: u64,
    pub(super) opened_at: Duration,
    /// Set before anything moves that the view must not see.
    pub(super) expired: AtomicBool,
}

/// A pinned state.
pub(super) struct View {
    inner: Arc<Inner>,
    number: u64,
    pin: Arc<Pin>,
    active: Layer,
    frozen: Option<Arc<Layer>>,
}

impl View {
    pub(super) fn open(inner: &Arc<Inner>) -> Result<Self, StoreError> {
        inner.check()?;
        let opened_at = inner.now();
        let mut state = lock(&inner.state);
        if state.stop {
            return Err(StoreError::Closed);
        }
        let pin = Arc::new(Pin {
            commit: state.commit,
            opened_at,
            expired: AtomicBool::new(false),
        });
        let number = state.next_view;
        state.next_view += 1;
        state.views.insert(number, Arc::clone(&pin));
        Ok(Self {
            inner: Arc::clone(inner),
            number,
            pin,
            active: state.active.clone(),
            frozen: state.frozen.clone(),
        })
    }

    fn read<T>(
        &self,
        work: impl FnOnce(Layered<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.check()?;
        self.check_age()?;
        let found = work(Layered {
            pending: None,
            layers: [Some(&self.active), self.frozen.as_deref()],
            index: &self.inner.index,
        });
        // Again, because the index may have moved on during the read.
        self.check_age()?;
        found
    }

    fn check_age(&self) -> Result<(), StoreError> {
        let held = self.inner.now().saturating_sub(self.pin.opened_at);
        if self.pin.expired.load(Ordering::SeqCst) || held >= self.inner.options.bounds.view_age_max
        {
            return Err(StoreError::ViewExpired {
                held_ms: u64::try_from(held.as_millis()).unwrap_or(u64::MAX),
            });
        }
        Ok(())
    }
}

impl Reader for View {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.read(|layered| layered.get(key))
    }

    fn scan(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.read(|layered| layered.scan(range, limit))
    }

    fn scan_back(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.read(|layered| layered.scan_back(range, limit))
    }
}

impl KvView for View {
    fn commit(&self) -> u64 {
        self.pin.commit
    }

    fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        self.read(|layered| layered.events(incarnation, from_sequence, limit, bytes_max))
    }
}

impl fmt::Debug for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View")
            .field("commit", &self.pin.commit)
            .finish_non_exhaustive()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        let mut state = lock(&self.inner.state);
        state.views.remove(&self.number);
        if state.views_awaited {
            self.inner.changed.notify_all();
        }
    }
}
