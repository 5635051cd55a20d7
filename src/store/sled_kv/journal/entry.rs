//! Entries: what the journal's file holds, byte by byte.

use bytes::Bytes;

use super::super::super::error::StoreError;
use super::super::super::kv::Op;
use super::super::frame::{Cursor, checksum, corrupted, length, length_u32};

/// Bytes before an entry's body.
pub(in super::super) const ENTRY_HEADER_BYTES: usize = 76;

const MAGIC: [u8; 2] = *b"PJ";
const ENTRY_VERSION: u8 = 2;
/// What the checksum covers begins behind it.
const SUMMED_FROM: usize = 8;

const OP_PUT: u8 = 1;
const OP_PUT_ONCE: u8 = 2;
const OP_DELETE: u8 = 3;
const OP_APPEND: u8 = 4;
const OP_ERASE_LOG: u8 = 5;

/// Random bytes that each journal has of its own, part of every checksum: no payload can be taken
/// for an entry, whoever made it up.
pub(in super::super) type Salt = [u8; 16];

/// What an entry says about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) struct EntryHeader {
    /// Rises by one from entry to entry.
    pub(in super::super) sequence: u64,
    /// Commit number of the group.
    pub(in super::super) commit: u64,
    /// Next free feed position after the group.
    pub(in super::super) next_position: u64,
    /// Last commit that was known to be synced when this entry was written: if the journal ends
    /// before it, something acknowledged is missing.
    pub(in super::super) synced: u64,
    /// For each counter, a mark that no number handed out reaches.
    pub(in super::super) marks: [u64; 3],
    /// Which part of the group this is, from 0.
    pub(in super::super) part: u32,
    /// How many parts the group has.
    pub(in super::super) parts: u32,
}

/// Frames one entry.
pub(in super::super) fn encode_entry(header: &EntryHeader, body: &[u8], salt: &Salt) -> Vec<u8> {
    let mut frame = Vec::with_capacity((ENTRY_HEADER_BYTES + body.len()).next_multiple_of(4096));
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&[ENTRY_VERSION, 0]);
    frame.extend_from_slice(&[0; 4]);
    let numbers = [
        header.sequence,
        header.commit,
        header.next_position,
        header.synced,
    ];
    for number in numbers.into_iter().chain(header.marks) {
        frame.extend_from_slice(&number.to_be_bytes());
    }
    for number in [header.part, header.parts, length_u32(body.len())] {
        frame.extend_from_slice(&number.to_be_bytes());
    }
    frame.extend_from_slice(body);
    let sum = checksum(&[salt, &frame[SUMMED_FROM..]]);
    frame[4..SUMMED_FROM].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// Reads the entry at the front of some bytes; `None` where there is none, or not a whole one.
pub(in super::super) fn decode_entry<'a>(
    bytes: &'a [u8],
    salt: &Salt,
) -> Option<(EntryHeader, &'a [u8])> {
    let mut cursor = Cursor::new(bytes);
    if cursor.array()? != MAGIC || cursor.array()? != [ENTRY_VERSION, 0] {
        return None;
    }
    let sum = cursor.u32()?;
    let header = EntryHeader {
        sequence: cursor.u64()?,
        commit: cursor.u64()?,
        next_position: cursor.u64()?,
        synced: cursor.u64()?,
        marks: [cursor.u64()?, cursor.u64()?, cursor.u64()?],
        part: cursor.u32()?,
        parts: cursor.u32()?,
    };
    let body = length(cursor.u32()?);
    let body = cursor.take(body)?;
    let summed = &bytes[SUMMED_FROM..ENTRY_HEADER_BYTES + body.len()];
    (checksum(&[salt, summed]) == sum && header.part < header.parts).then_some((header, body))
}

/// Appends an operation to a group's body. The operation has passed [`Op::check`].
pub(in super::super) fn encode_op(op: &Op, out: &mut Vec<u8>) {
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
pub(in super::super) fn decode_ops(sequence: u64, body: &Bytes) -> Result<Vec<Op>, StoreError> {
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
