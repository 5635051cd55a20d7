//! The journal: a group's operations as one or more checksummed entries.
//!
//! Entries live in a ring of *slots* that are overwritten and never removed. A key that is
//! inserted once and removed later makes sled split and merge leaves and rewrite their other
//! values again and again (measured: 6.5 bytes written per byte of journal, and values above
//! 7 KiB reach the side files that sled does not sync). Overwriting slots that never share a leaf
//! with more than two others costs 1.7 bytes and half the time, with entries of 32 KiB. An
//! entry's sequence, not its key, says where it belongs; one below the low-water mark is stale.

use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::super::error::StoreError;
use super::super::kv::Op;
use super::super::locks::lock;
use super::frame::{Cursor, checksum, corrupted, length, length_u32};
use super::index::failed;

/// Most bytes of one entry, header included. Three of these fit into a leaf that sled keeps in
/// its log; a leaf holds at most 17 keys, [`SLOT_KEYS`] of them per slot.
pub(super) const ENTRY_BYTES_MAX: usize = 32 << 10;
/// Bytes before an entry's body.
pub(super) const ENTRY_HEADER_BYTES: usize = 44;
/// Keys per slot: the entry's, and empty ones that keep other entries out of its leaf.
const SLOT_KEYS: u8 = 8;

const MAGIC: [u8; 2] = *b"PJ";
const ENTRY_VERSION: u8 = 1;

const OP_PUT: u8 = 1;
const OP_PUT_ONCE: u8 = 2;
const OP_DELETE: u8 = 3;
const OP_APPEND: u8 = 4;
const OP_ERASE_LOG: u8 = 5;

/// What an entry says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct EntryHeader {
    /// Rises by one from entry to entry.
    pub(super) sequence: u64,
    /// Commit number of the group.
    pub(super) commit: u64,
    /// Next free feed position after the group.
    pub(super) next_position: u64,
    /// Which part of the group this is, from 0.
    pub(super) part: u32,
    /// How many parts the group has.
    pub(super) parts: u32,
}

/// Frames one entry.
pub(super) fn encode_entry(header: &EntryHeader, body: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(ENTRY_HEADER_BYTES + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.push(ENTRY_VERSION);
    frame.push(0);
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&header.sequence.to_be_bytes());
    frame.extend_from_slice(&header.commit.to_be_bytes());
    frame.extend_from_slice(&header.next_position.to_be_bytes());
    frame.extend_from_slice(&header.part.to_be_bytes());
    frame.extend_from_slice(&header.parts.to_be_bytes());
    frame.extend_from_slice(&length_u32(body.len()).to_be_bytes());
    frame.extend_from_slice(body);
    let sum = checksum(&[&frame[8..]]);
    frame[4..8].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Reads one entry back.
pub(super) fn decode_entry<'a>(
    key: &[u8],
    frame: &'a [u8],
) -> Result<(EntryHeader, &'a [u8]), StoreError> {
    let damaged = |what| corrupted("journal", key, what);
    let short = || damaged("journal entry is cut short");
    let mut cursor = Cursor::new(frame);
    if cursor.array() != Some(MAGIC) || cursor.array() != Some([ENTRY_VERSION, 0]) {
        return Err(damaged("not a journal entry of a known version"));
    }
    let sum = cursor.u32().ok_or_else(short)?;
    if checksum(&[&frame[8..]]) != sum {
        return Err(damaged("journal entry fails its checksum"));
    }
    let header = EntryHeader {
        sequence: cursor.u64().ok_or_else(short)?,
        commit: cursor.u64().ok_or_else(short)?,
        next_position: cursor.u64().ok_or_else(short)?,
        part: cursor.u32().ok_or_else(short)?,
        parts: cursor.u32().ok_or_else(short)?,
    };
    let body_length = length(cursor.u32().ok_or_else(short)?);
    if header.part >= header.parts || cursor.remaining() != body_length {
        return Err(damaged("journal entry contradicts itself"));
    }
    let body = cursor.take(body_length).ok_or_else(short)?;
    Ok((header, body))
}

/// Appends an operation to a group's body. The operation has passed [`Op::check`].
pub(super) fn encode_op(op: &Op, out: &mut Vec<u8>) {
    match op {
        Op::Put { key, value } => encode_put(OP_PUT, key, value, out),
        Op::PutOnce { key, value } => encode_put(OP_PUT_ONCE, key, value, out),
        Op::Delete { key } => {
            out.push(OP_DELETE);
            encode_key(key, out);
        }
        Op::Append {
            incarnation,
            sequence,
            value,
        } => {
            out.push(OP_APPEND);
            out.extend_from_slice(&incarnation.to_be_bytes());
            out.extend_from_slice(&sequence.to_be_bytes());
            encode_value(value, out);
        }
        Op::EraseLog { incarnation } => {
            out.push(OP_ERASE_LOG);
            out.extend_from_slice(&incarnation.to_be_bytes());
        }
    }
}

fn encode_put(tag: u8, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    encode_key(key, out);
    encode_value(value, out);
}

fn encode_key(key: &[u8], out: &mut Vec<u8>) {
    let key_length = u16::try_from(key.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&key_length.to_be_bytes());
    out.extend_from_slice(key);
}

fn encode_value(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&length_u32(value.len()).to_be_bytes());
    out.extend_from_slice(value);
}

/// Reads a group's operations back. The values share the group's bytes.
pub(super) fn decode_ops(sequence: u64, body: &Bytes) -> Result<Vec<Op>, StoreError> {
    let mut cursor = Cursor::new(body);
    let mut ops = Vec::new();
    while cursor.remaining() > 0 {
        let op = decode_op(body, &mut cursor).filter(|op| op.check().is_ok());
        ops.push(op.ok_or_else(|| {
            corrupted(
                "journal",
                &sequence.to_be_bytes(),
                "journal entry holds an operation that cannot be read",
            )
        })?);
    }
    Ok(ops)
}

fn decode_op(body: &Bytes, cursor: &mut Cursor<'_>) -> Option<Op> {
    let share = |slice: &[u8]| body.slice_ref(slice);
    Some(match cursor.u8()? {
        tag @ (OP_PUT | OP_PUT_ONCE) => {
            let key_length = usize::from(cursor.u16()?);
            let key = share(cursor.take(key_length)?);
            let value_length = length(cursor.u32()?);
            let value = share(cursor.take(value_length)?);
            if tag == OP_PUT {
                Op::Put { key, value }
            } else {
                Op::PutOnce { key, value }
            }
        }
        OP_DELETE => {
            let key_length = usize::from(cursor.u16()?);
            let key = share(cursor.take(key_length)?);
            Op::Delete { key }
        }
        OP_APPEND => {
            let incarnation = cursor.u64()?;
            let sequence = cursor.u64()?;
            let value_length = length(cursor.u32()?);
            let value = share(cursor.take(value_length)?);
            Op::Append {
                incarnation,
                sequence,
                value,
            }
        }
        OP_ERASE_LOG => Op::EraseLog {
            incarnation: cursor.u64()?,
        },
        _ => return None,
    })
}

/// Which slots hold what. Shared by the committer, which fills slots, and the write-behind, which
/// frees them.
#[derive(Debug, Default)]
pub(super) struct Slots {
    inner: Mutex<SlotTable>,
    live_entries: AtomicU64,
    live_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct SlotTable {
    /// Taken from the back, because the slot freed last is the one still in sled's cache.
    free: Vec<u32>,
    /// Slots that exist.
    made: u32,
    /// Slots in use, by rising sequence.
    live: VecDeque<LiveSlot>,
}

/// A slot whose entry is not in the index yet.
#[derive(Debug, Clone, Copy)]
struct LiveSlot {
    sequence: u64,
    slot: u32,
    bytes: u64,
}

impl Slots {
    /// The table after a replay: `live` by rising sequence, everything else is free.
    fn recovered(made: u32, live: VecDeque<LiveSlot>) -> Self {
        let mut used: Vec<u32> = live.iter().map(|entry| entry.slot).collect();
        used.sort_unstable();
        let free = (0..made)
            .rev()
            .filter(|slot| used.binary_search(slot).is_err())
            .collect();
        Self {
            live_entries: AtomicU64::new(live.iter().map(|_| 1).sum()),
            live_bytes: AtomicU64::new(live.iter().map(|entry| entry.bytes).sum()),
            inner: Mutex::new(SlotTable { free, made, live }),
        }
    }

    /// Entries that wait for the write-behind, and their bytes.
    pub(super) fn live(&self) -> (u64, u64) {
        (
            self.live_entries.load(Ordering::Relaxed),
            self.live_bytes.load(Ordering::Relaxed),
        )
    }

    /// Frees the slots of all entries below a mark that is durable.
    pub(super) fn free_below(&self, low_water: u64) {
        let mut table = lock(&self.inner);
        while let Some(entry) = table.live.front().copied() {
            if entry.sequence >= low_water {
                break;
            }
            table.live.pop_front();
            table.free.push(entry.slot);
            self.live_entries.fetch_sub(1, Ordering::Relaxed);
            self.live_bytes.fetch_sub(entry.bytes, Ordering::Relaxed);
        }
    }

    /// Takes a free slot, or a new one, and says whether it is new.
    fn take(&self, sequence: u64, bytes: u64) -> (u32, bool) {
        let mut table = lock(&self.inner);
        let (slot, is_new) = match table.free.pop() {
            Some(slot) => (slot, false),
            None => (table.made, true),
        };
        table.made += u32::from(is_new);
        table.live.push_back(LiveSlot {
            sequence,
            slot,
            bytes,
        });
        self.live_entries.fetch_add(1, Ordering::Relaxed);
        self.live_bytes.fetch_add(bytes, Ordering::Relaxed);
        (slot, is_new)
    }

    /// Writes an entry into a slot.
    pub(super) fn write(
        &self,
        journal: &sled::Tree,
        sequence: u64,
        frame: Vec<u8>,
    ) -> Result<(), StoreError> {
        let (slot, is_new) = self.take(sequence, u64::from(length_u32(frame.len())));
        if is_new {
            // A crash between these leaves a slot without an entry, which is made again.
            for filler in 1..SLOT_KEYS {
                journal
                    .insert(slot_key(slot, filler), &[])
                    .map_err(failed)?;
            }
        }
        journal.insert(slot_key(slot, 0), frame).map_err(failed)?;
        Ok(())
    }
}

fn slot_key(slot: u32, place: u8) -> [u8; 5] {
    let [a, b, c, d] = slot.to_be_bytes();
    [a, b, c, d, place]
}

/// A group that was found whole.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) commit: u64,
    pub(super) next_position: u64,
    pub(super) ops: Vec<Op>,
}

/// What a journal held at open.
#[derive(Debug)]
pub(super) struct Replay {
    /// Whole groups from the low-water mark on, in order.
    pub(super) groups: Vec<Group>,
    /// The sequence the next entry gets.
    pub(super) next_sequence: u64,
    /// The slot table that goes with it.
    pub(super) slots: Slots,
}

struct Found {
    header: EntryHeader,
    slot: u32,
    body: Bytes,
}

/// Reads every group at or above the low-water mark, which follow commit `commit_below`, and empties the slots of a last group that
/// is not whole: it was never acknowledged, and its sequences will be used again.
pub(super) fn replay(
    journal: &sled::Tree,
    low_water: u64,
    commit_below: u64,
) -> Result<Replay, StoreError> {
    let (mut found, made) = read_slots(journal, low_water)?;
    found.sort_unstable_by_key(|entry| entry.header.sequence);
    let mut groups = Vec::new();
    let mut live = VecDeque::new();
    let mut next_sequence = low_water;
    let mut commit = commit_below;
    let mut rest = found.as_slice();
    while let Some(first) = rest.first() {
        let parts = length(first.header.parts);
        let whole = rest.get(..parts).filter(|group| {
            group.iter().zip(0..).all(|(entry, part)| {
                entry.header.sequence == next_sequence + u64::from(part)
                    && entry.header.part == part
                    && entry.header.parts == first.header.parts
                    && entry.header.commit == commit + 1
            })
        });
        let Some(group) = whole else { break };
        groups.push(join(group)?);
        live.extend(group.iter().map(|entry| LiveSlot {
            sequence: entry.header.sequence,
            slot: entry.slot,
            bytes: u64::from(length_u32(ENTRY_HEADER_BYTES + entry.body.len())),
        }));
        next_sequence += u64::from(first.header.parts);
        commit += 1;
        rest = &rest[parts..];
    }
    drop_unfinished(journal, rest, commit + 1)?;
    Ok(Replay {
        groups,
        next_sequence,
        slots: Slots::recovered(made, live),
    })
}

fn read_slots(journal: &sled::Tree, low_water: u64) -> Result<(Vec<Found>, u32), StoreError> {
    let mut found = Vec::new();
    let mut made = 0;
    for entry in journal.iter() {
        let (key, value) = entry.map_err(failed)?;
        let mut cursor = Cursor::new(&key);
        let (Some(slot), Some(place), 0) = (cursor.u32(), cursor.u8(), cursor.remaining()) else {
            return Err(corrupted("journal", &key, "not a key of a journal slot"));
        };
        if place != 0 {
            continue;
        }
        made = made.max(slot.saturating_add(1));
        if value.is_empty() {
            continue;
        }
        let (header, body) = decode_entry(&key, &value)?;
        if header.sequence >= low_water {
            found.push(Found {
                header,
                slot,
                body: Bytes::copy_from_slice(body),
            });
        }
    }
    Ok((found, made))
}

fn join(group: &[Found]) -> Result<Group, StoreError> {
    let Some(first) = group.first() else {
        return Err(corrupted("journal", &[], "journal group without entries"));
    };
    let body = if group.len() == 1 {
        first.body.clone()
    } else {
        let bodies: Vec<&[u8]> = group.iter().map(|entry| &entry.body[..]).collect();
        Bytes::from(bodies.concat())
    };
    Ok(Group {
        commit: first.header.commit,
        next_position: first.header.next_position,
        ops: decode_ops(first.header.sequence, &body)?,
    })
}

/// A group is written only once the one before is durable, so whatever follows the last whole
/// group belongs to one commit. Anything else means that acknowledged entries are missing.
fn drop_unfinished(journal: &sled::Tree, rest: &[Found], commit: u64) -> Result<(), StoreError> {
    let Some(first) = rest.first() else {
        return Ok(());
    };
    let one_commit = rest.iter().all(|entry| entry.header.commit == commit);
    let all_there = rest.len() >= length(first.header.parts);
    if !one_commit || all_there {
        return Err(corrupted(
            "journal",
            &first.header.sequence.to_be_bytes(),
            "journal entries before this sequence are missing",
        ));
    }
    tracing::warn!(
        commit,
        entries = rest.len(),
        "dropped the last group of the journal, which was never wholly written"
    );
    for entry in rest {
        journal
            .insert(slot_key(entry.slot, 0), &[])
            .map_err(failed)?;
    }
    Ok(())
}
