//! Logs in the index: consecutive events of an incarnation share a chunk.
//!
//! sled's cost is per key, so a chunk is worth a rewrite: new events are merged into the last
//! chunk while that is below [`MERGE_BELOW_BYTES`]. A log that grows by one small event per
//! write-behind then costs one key per 2 KiB instead of one per event, for rewriting 1 KiB on
//! average; sled's own rewriting of leaves costs more than that either way.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::super::error::StoreError;
use super::frame::{Cursor, INLINE_BYTES_MAX, checksum, corrupted, length, length_u32};
use super::index::{Home, TAG_PARTS, Trees, Wrote, failed};

/// First byte of a chunk.
const TAG_CHUNK: u8 = b'C';
/// Bytes before a chunk's events.
const CHUNK_HEADER_BYTES: usize = 7;
/// A last chunk at least this large is left alone.
const MERGE_BELOW_BYTES: usize = 2 << 10;

/// The key of the chunk that starts with this event.
pub(super) fn chunk_key(incarnation: u64, first_sequence: u64) -> [u8; 16] {
    (u128::from(incarnation) << 64 | u128::from(first_sequence)).to_be_bytes()
}

fn parse_chunk_key(key: &[u8]) -> Result<(u64, u64), StoreError> {
    let mut cursor = Cursor::new(key);
    match (cursor.u64(), cursor.u64(), cursor.remaining()) {
        (Some(incarnation), Some(first), 0) => Ok((incarnation, first)),
        _ => Err(corrupted("events", key, "not a key of a chunk")),
    }
}

/// A chunk in the making.
#[derive(Debug)]
pub(super) struct ChunkWriter {
    first_sequence: u64,
    count: u16,
    body: Vec<u8>,
}

impl ChunkWriter {
    pub(super) fn new(first_sequence: u64) -> Self {
        Self {
            first_sequence,
            count: 0,
            body: Vec::new(),
        }
    }

    fn next_sequence(&self) -> u64 {
        self.first_sequence + u64::from(self.count)
    }

    /// Whether another event still belongs into this chunk.
    fn takes(&self, sequence: u64, value: &[u8]) -> bool {
        sequence == self.next_sequence()
            && CHUNK_HEADER_BYTES + self.body.len() + 4 + value.len() <= INLINE_BYTES_MAX
    }

    pub(super) fn push(&mut self, value: &[u8]) {
        self.body
            .extend_from_slice(&length_u32(value.len()).to_be_bytes());
        self.body.extend_from_slice(value);
        self.count += 1;
    }

    /// The stored bytes. The checksum covers the key, so that a chunk is never taken for another.
    pub(super) fn encode(&self, incarnation: u64) -> ([u8; 16], Vec<u8>) {
        let key = chunk_key(incarnation, self.first_sequence);
        let count = self.count.to_be_bytes();
        let mut stored = Vec::with_capacity(CHUNK_HEADER_BYTES + self.body.len());
        stored.push(TAG_CHUNK);
        stored.extend_from_slice(&count);
        stored.extend_from_slice(&checksum(&[&key, &count, &self.body]).to_be_bytes());
        stored.extend_from_slice(&self.body);
        (key, stored)
    }
}

/// The events of one stored chunk, in order.
fn decode_chunk(trees: &Trees, key: &[u8], stored: &[u8]) -> Result<Vec<Bytes>, StoreError> {
    if stored.first() == Some(&TAG_PARTS) {
        return Ok(vec![trees.value(Home::Events, key, stored)?]);
    }
    decode_inline_chunk(key, stored)
}

fn decode_inline_chunk(key: &[u8], stored: &[u8]) -> Result<Vec<Bytes>, StoreError> {
    let damaged = |what| corrupted("events", key, what);
    let mut cursor = Cursor::new(stored);
    let fields = (cursor.u8(), cursor.u16(), cursor.u32());
    let (Some(TAG_CHUNK), Some(count), Some(sum)) = fields else {
        return Err(damaged("not a chunk of events"));
    };
    let body = &stored[CHUNK_HEADER_BYTES..];
    if checksum(&[key, &count.to_be_bytes(), body]) != sum {
        return Err(damaged("chunk of events fails its checksum"));
    }
    let shared = Bytes::copy_from_slice(body);
    let mut cursor = Cursor::new(&shared);
    let mut values = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let value = cursor.u32().and_then(|field| cursor.take(length(field)));
        let value = value.ok_or_else(|| damaged("chunk of events is cut short"))?;
        values.push(shared.slice_ref(value));
    }
    if cursor.remaining() > 0 || values.is_empty() {
        return Err(damaged("chunk of events contradicts itself"));
    }
    Ok(values)
}

/// Writes events of one log, rising by sequence. Those that are stored already are skipped: a
/// crash before the low-water mark makes them come again.
///
/// Returns how many keys it wrote.
pub(super) fn append(
    trees: &Trees,
    incarnation: u64,
    events: &[(u64, &[u8])],
    wrote: &mut Wrote<'_>,
) -> Result<u64, StoreError> {
    let mut writer: Option<ChunkWriter> = None;
    let mut next_sequence = 0;
    // A log that begins has no chunk, and to look for one costs sled the copy of a node. Not so in the
    // first pass of an open, which may write again what an earlier open has written.
    let begins = events.first().is_some_and(|(first, _)| *first == 1)
        && !trees.may_have_orphans.load(Ordering::Relaxed);
    let last = if begins {
        None
    } else {
        last_chunk(trees, incarnation)?
    };
    if let Some((key, stored)) = last {
        let (_, first_sequence) = parse_chunk_key(&key)?;
        if stored.first() == Some(&TAG_PARTS) {
            next_sequence = first_sequence + 1;
        } else {
            match decode_inline_chunk(&key, &stored) {
                Ok(values) => {
                    let mut last = ChunkWriter::new(first_sequence);
                    values.iter().for_each(|value| last.push(value));
                    next_sequence = last.next_sequence();
                    writer = (stored.len() < MERGE_BELOW_BYTES).then_some(last);
                }
                // Its readers are told. The other logs of the store go on, and so does this one.
                Err(error) => tracing::error!(%error, incarnation, "a log is damaged"),
            }
        }
    }
    let mut keys_written = 0;
    let mut dirty = false;
    for (sequence, value) in events.iter().filter(|(at, _)| *at >= next_sequence) {
        if let Some(chunk) = writer
            .as_mut()
            .filter(|chunk| chunk.takes(*sequence, value))
        {
            chunk.push(value);
            dirty = true;
            continue;
        }
        if let Some(full) = writer.take().filter(|_| dirty) {
            keys_written += write_chunk(trees, incarnation, &full, wrote)?;
        }
        dirty = false;
        let mut chunk = ChunkWriter::new(*sequence);
        if chunk.takes(*sequence, value) {
            chunk.push(value);
            writer = Some(chunk);
            dirty = true;
        } else {
            let key = chunk_key(incarnation, *sequence);
            let head = trees.put_parts(Home::Events, &key, value, wrote)?;
            trees.events.insert(key, head).map_err(failed)?;
            wrote(key.len())?;
            keys_written += 1;
        }
    }
    if let Some(last) = writer.filter(|_| dirty) {
        keys_written += write_chunk(trees, incarnation, &last, wrote)?;
    }
    Ok(keys_written)
}

fn write_chunk(
    trees: &Trees,
    incarnation: u64,
    chunk: &ChunkWriter,
    wrote: &mut Wrote<'_>,
) -> Result<u64, StoreError> {
    let (key, stored) = chunk.encode(incarnation);
    let bytes = key.len() + stored.len();
    trees.events.insert(key, stored).map_err(failed)?;
    wrote(bytes)?;
    Ok(1)
}

fn last_chunk(
    trees: &Trees,
    incarnation: u64,
) -> Result<Option<(sled::IVec, sled::IVec)>, StoreError> {
    let range = chunk_key(incarnation, 0)..=chunk_key(incarnation, u64::MAX);
    trees
        .events
        .range(range)
        .next_back()
        .transpose()
        .map_err(failed)
}

/// Events of one log from `from` up to but not including `to`, into a collector that says when it
/// has enough. Chunks follow one another without a gap, so that each leads to the next: a lookup
/// of one key costs sled much less than a walk, for which it copies a node.
pub(super) fn read(
    trees: &Trees,
    incarnation: u64,
    from: u64,
    to: u64,
    mut collect: impl FnMut(u64, Bytes) -> Enough,
) -> Result<(), StoreError> {
    let mut next = first_chunk(trees, incarnation, from)?;
    while next < to {
        let key = chunk_key(incarnation, next);
        let Some(stored) = trees.events.get(key).map_err(failed)? else {
            break;
        };
        for value in decode_chunk(trees, &key, &stored)? {
            if next >= to {
                return Ok(());
            }
            if next >= from && collect(next, value) == Enough::Yes {
                return Ok(());
            }
            next += 1;
        }
    }
    if next >= to {
        return Ok(());
    }
    // The end of the log, or a gap: whoever collects must see what is behind it.
    let range = chunk_key(incarnation, next)..=chunk_key(incarnation, u64::MAX);
    for entry in trees.events.range(range) {
        let (key, stored) = entry.map_err(failed)?;
        let (_, first_sequence) = parse_chunk_key(&key)?;
        if first_sequence >= to {
            break;
        }
        for (sequence, value) in (first_sequence..).zip(decode_chunk(trees, &key, &stored)?) {
            if sequence >= to {
                return Ok(());
            }
            if sequence >= from && collect(sequence, value) == Enough::Yes {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Where the chunk starts that holds an event, or would.
fn first_chunk(trees: &Trees, incarnation: u64, sequence: u64) -> Result<u64, StoreError> {
    if sequence <= 1 {
        return Ok(1);
    }
    let range = chunk_key(incarnation, 0)..=chunk_key(incarnation, sequence);
    let before = trees.events.range(range).keys().next_back();
    match before.transpose().map_err(failed)? {
        Some(key) => parse_chunk_key(&key).map(|(_, first)| first),
        None => Ok(sequence),
    }
}

/// Whether a collector wants another event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enough {
    /// It has what was asked for.
    Yes,
    /// It wants more.
    No,
}
