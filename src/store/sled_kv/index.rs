//! The index: sled's trees, and everything that is written into them behind the journal.
//!
//! Every write here is idempotent: it is made for a change that the journal still holds, and a
//! crash before the low-water mark passes that change makes the write repeat at the next open.

use std::ops::RangeInclusive;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use bytes::Bytes;

use super::super::error::StoreError;
use super::super::panics::panic_text;
use super::events;
use super::frame::{Cursor, INLINE_BYTES_MAX, checksum, corrupted, length, length_u32};

/// sled's handles. While any clone of them lives, sled keeps its lock.
#[derive(Debug)]
pub(super) struct Trees {
    pub(super) db: sled::Db,
    pub(super) meta: sled::Tree,
    pub(super) keys: sled::Tree,
    pub(super) events: sled::Tree,
    pub(super) parts: sled::Tree,
    pub(super) garbage: sled::Tree,
    /// Whether the tree `parts` may hold anything: most stores never have a large value, and then
    /// an overwrite needs no read before it.
    pub(super) has_parts: AtomicBool,
    /// Whether there may be parts without a head: a crash between the two leaves them, until what
    /// was to be written then is written again.
    pub(super) may_have_orphans: AtomicBool,
}

/// The trees, until the store is closed.
#[derive(Debug)]
pub(super) struct Index {
    trees: RwLock<Option<Trees>>,
}

/// Which tree a value's head is in. The numbers are part of stored keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Home {
    /// Tree `index`.
    Keys,
    /// Tree `events`.
    Events,
}

/// First byte of a value that follows as it is. No flip of one bit makes one tag of another.
const TAG_INLINE: u8 = b'I';
/// First byte of a head whose value is in the tree `parts`.
pub(super) const TAG_PARTS: u8 = b'P';
const PARTS_HEAD_BYTES: usize = 13;

impl Home {
    fn tag(self) -> u8 {
        match self {
            Self::Keys => 1,
            Self::Events => 2,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Keys => "index",
            Self::Events => "events",
        }
    }

    fn tree(self, trees: &Trees) -> &sled::Tree {
        match self {
            Self::Keys => &trees.keys,
            Self::Events => &trees.events,
        }
    }
}

/// An error of sled, in our words.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the shape that map_err takes"
)]
pub(super) fn failed(error: sled::Error) -> StoreError {
    if let sled::Error::Corruption { .. } = error {
        return StoreError::Corrupted {
            what: error.to_string(),
        };
    }
    StoreError::Failed {
        cause: error.to_string().into(),
    }
}

impl Index {
    pub(super) fn new(trees: Trees) -> Self {
        Self {
            trees: RwLock::new(Some(trees)),
        }
    }

    /// Uses the trees. sled panics on some damage: that is an answer here too. Never nested,
    /// because a close waits for the outer use and keeps the inner one out (but for what a test does at a
    /// step of the write-behind, which a close waits for first).
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Trees) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let guard = self.trees.read().unwrap_or_else(PoisonError::into_inner);
        let trees = guard.as_ref().ok_or(StoreError::Closed)?;
        catch_unwind(AssertUnwindSafe(|| work(trees))).unwrap_or_else(|panic| {
            Err(StoreError::Corrupted {
                what: format!("sled panicked: {}", panic_text(panic.as_ref())),
            })
        })
    }

    /// Lets go of sled, once no use is left, and says whether sled could write what it had left.
    pub(super) fn shut(&self) -> bool {
        let trees = self
            .trees
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // sled syncs once more when its last handle goes, and panics if that fails.
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(trees))) {
            tracing::error!(
                what = panic_text(panic.as_ref()),
                "sled panicked while it was closed"
            );
            return false;
        }
        true
    }
}

/// Told of each write, with the bytes of its key and value, right after it: syncs what was written when
/// that has become enough. Between the parts of one large value as well.
pub(super) type Wrote<'a> = dyn FnMut(usize) -> Result<(), StoreError> + 'a;

impl Trees {
    /// Writes a value, in parts if it is large.
    ///
    /// Parts of the old value go first and the head comes last: at a crash in between the old or
    /// no head is there, and the repeated write removes what the old head stands for. Nobody
    /// reads the key meanwhile, the overlay lies over it.
    pub(super) fn put(
        &self,
        home: Home,
        key: &[u8],
        value: &[u8],
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        self.remove_parts(home, key, wrote)?;
        let stored = if value.len() <= INLINE_BYTES_MAX {
            let mut stored = Vec::with_capacity(1 + value.len());
            stored.push(TAG_INLINE);
            stored.extend_from_slice(value);
            stored
        } else {
            self.put_parts(home, key, value, wrote)?
        };
        let bytes = key.len() + stored.len();
        home.tree(self).insert(key, stored).map_err(failed)?;
        wrote(bytes)
    }

    /// Writes a value under a key that never had one: nothing of an old one can be there.
    pub(super) fn put_new(
        &self,
        key: &[u8],
        value: &[u8],
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        if value.len() > INLINE_BYTES_MAX {
            return self.put(Home::Keys, key, value, wrote);
        }
        let mut stored = Vec::with_capacity(1 + value.len());
        stored.push(TAG_INLINE);
        stored.extend_from_slice(value);
        self.keys.insert(key, stored).map_err(failed)?;
        wrote(key.len() + value.len())
    }

    /// Removes a key, parts first: a crash in between leaves the head, which a repetition finds.
    pub(super) fn delete(
        &self,
        home: Home,
        key: &[u8],
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        self.remove_parts(home, key, wrote)?;
        home.tree(self).remove(key).map_err(failed)?;
        wrote(key.len())
    }

    /// Writes the parts of a value and returns its head.
    pub(super) fn put_parts(
        &self,
        home: Home,
        key: &[u8],
        value: &[u8],
        wrote: &mut Wrote<'_>,
    ) -> Result<Vec<u8>, StoreError> {
        self.has_parts.store(true, Ordering::Relaxed);
        for (part, bytes) in (0..).zip(value.chunks(INLINE_BYTES_MAX)) {
            self.parts
                .insert(part_key(home, key, part), bytes)
                .map_err(failed)?;
            wrote(key.len() + bytes.len())?;
        }
        Ok(encode_parts_head(home, key, value))
    }

    /// Removes the parts of the value that a key has now, if it has any.
    fn remove_parts(
        &self,
        home: Home,
        key: &[u8],
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        if !self.has_parts.load(Ordering::Relaxed) {
            return Ok(());
        }
        if !self.may_have_orphans.load(Ordering::Relaxed) {
            let head = home.tree(self).get(key).map_err(failed)?;
            if head.is_none_or(|head| head.first() != Some(&TAG_PARTS)) {
                return Ok(());
            }
        }
        let parts = part_key(home, key, 0)..=part_key(home, key, u32::MAX);
        self.remove_parts_in(parts, wrote)
    }

    fn remove_parts_in(
        &self,
        range: RangeInclusive<Vec<u8>>,
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        for entry in self.parts.range(range).keys() {
            self.parts.remove(entry.map_err(failed)?).map_err(failed)?;
            // sled writes what stays of the leaf: as much as the part was.
            wrote(INLINE_BYTES_MAX)?;
        }
        Ok(())
    }

    /// Removes what a crash left of a log whose chunks are gone: parts that never got their head.
    pub(super) fn remove_orphans_of(
        &self,
        incarnation: u64,
        wrote: &mut Wrote<'_>,
    ) -> Result<(), StoreError> {
        if !self.has_parts.load(Ordering::Relaxed) {
            return Ok(());
        }
        let part = |sequence, part| {
            let chunk = events::chunk_key(incarnation, sequence);
            part_key(Home::Events, &chunk, part)
        };
        self.remove_parts_in(part(0, 0)..=part(u64::MAX, u32::MAX), wrote)
    }

    /// The value that a stored head stands for.
    pub(super) fn value(&self, home: Home, key: &[u8], stored: &[u8]) -> Result<Bytes, StoreError> {
        match stored.split_first() {
            Some((&TAG_INLINE, value)) => Ok(Bytes::copy_from_slice(value)),
            Some((&TAG_PARTS, _)) => self.join_parts(home, key, stored),
            _ => Err(corrupted(home.name(), key, "stored value of unknown kind")),
        }
    }

    fn join_parts(&self, home: Home, key: &[u8], head: &[u8]) -> Result<Bytes, StoreError> {
        let (value_length, sum) = decode_parts_head(home, key, head)?;
        let damaged = |what| corrupted(home.name(), key, what);
        // The capacity is bounded by what is there, not by what the head claims.
        let mut value = Vec::new();
        let range = part_key(home, key, 0)..=part_key(home, key, u32::MAX);
        for (part, entry) in (0..).zip(self.parts.range(range)) {
            let (found, bytes) = entry.map_err(failed)?;
            if found[..] != part_key(home, key, part)[..]
                || value.len() + bytes.len() > value_length
            {
                return Err(damaged("parts do not fit their head"));
            }
            value.extend_from_slice(&bytes);
        }
        if value.len() != value_length || checksum(&[&value]) != sum {
            return Err(damaged("parts fail their checksum"));
        }
        Ok(Bytes::from(value))
    }

    /// The value of a key, by the index alone.
    pub(super) fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.keys.get(key).map_err(failed)? {
            Some(stored) => self.value(Home::Keys, key, &stored).map(Some),
            None => Ok(None),
        }
    }

    /// Queues a log for erasure. Repeated by a crash before the low-water mark.
    pub(super) fn add_garbage(&self, incarnation: u64) -> Result<(), StoreError> {
        self.garbage
            .insert(incarnation.to_be_bytes(), &[])
            .map_err(failed)?;
        Ok(())
    }

    /// A log whose erasure is queued, from `after` on.
    pub(super) fn next_garbage(&self, from: u64) -> Result<Option<u64>, StoreError> {
        let Some(entry) = self.garbage.range(from.to_be_bytes()..).next() else {
            return Ok(None);
        };
        let (key, _) = entry.map_err(failed)?;
        match key[..].try_into() {
            Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
            Err(_) => Err(corrupted("garbage", &key, "not an incarnation")),
        }
    }

    /// Erases the last chunks of a log, at most `limit`, and says how many there were. From the
    /// end, so that what is left at any time is a log without gaps.
    pub(super) fn erase_chunks(
        &self,
        incarnation: u64,
        limit: usize,
        wrote: &mut Wrote<'_>,
    ) -> Result<usize, StoreError> {
        let mut erased = 0;
        let range = events::chunk_key(incarnation, 0)..=events::chunk_key(incarnation, u64::MAX);
        for key in self.events.range(range).keys().rev().take(limit) {
            self.delete(Home::Events, &key.map_err(failed)?, wrote)?;
            wrote(INLINE_BYTES_MAX)?;
            erased += 1;
        }
        Ok(erased)
    }

    /// Takes a log off the queue, once its erasure is durable.
    pub(super) fn remove_garbage(&self, incarnation: u64) -> Result<(), StoreError> {
        self.garbage
            .remove(incarnation.to_be_bytes())
            .map_err(failed)?;
        Ok(())
    }
}

/// The key of a part: which tree, the length-safe key, and the part's number.
pub(super) fn part_key(home: Home, key: &[u8], part: u32) -> Vec<u8> {
    let mut part_key = Vec::with_capacity(7 + key.len());
    part_key.push(home.tag());
    part_key.extend_from_slice(&u16::try_from(key.len()).unwrap_or(u16::MAX).to_be_bytes());
    part_key.extend_from_slice(key);
    part_key.extend_from_slice(&part.to_be_bytes());
    part_key
}

/// The head of a value in parts: its length and checksum, and a checksum of the head itself.
pub(super) fn encode_parts_head(home: Home, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut head = Vec::with_capacity(PARTS_HEAD_BYTES);
    head.push(TAG_PARTS);
    head.extend_from_slice(&length_u32(value.len()).to_be_bytes());
    head.extend_from_slice(&checksum(&[value]).to_be_bytes());
    let sum = checksum(&[&[home.tag()], key, &head]);
    head.extend_from_slice(&sum.to_be_bytes());
    head
}

fn decode_parts_head(home: Home, key: &[u8], head: &[u8]) -> Result<(usize, u32), StoreError> {
    let damaged = |what| corrupted(home.name(), key, what);
    let mut cursor = Cursor::new(head);
    let fields = (cursor.u8(), cursor.u32(), cursor.u32(), cursor.u32());
    let (Some(TAG_PARTS), Some(value_length), Some(value_sum), Some(sum)) = fields else {
        return Err(damaged("head of parts is cut short"));
    };
    if cursor.remaining() != 0 || checksum(&[&[home.tag()], key, &head[..9]]) != sum {
        return Err(damaged("head of parts fails its checksum"));
    }
    Ok((length(value_length), value_sum))
}
