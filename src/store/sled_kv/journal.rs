//! The journal: each group's operations as one or more checksummed entries, in a file of its own.
//!
//! An entry's sequence, not its place, says where it belongs; one below the low-water mark is
//! stale. `docs/store-format.md` has the bytes.

mod disk;
mod entry;
mod file;
mod replay;

pub(super) use disk::Disk;
pub(super) use entry::{ENTRY_HEADER_BYTES, EntryHeader, encode_op};
#[cfg(test)]
pub(super) use entry::{Salt, decode_entry, decode_ops, encode_entry};
pub(super) use file::{BODY_BYTES_MAX, JOURNAL_FILE, Journal};
#[cfg(test)]
pub(super) use file::{PAGE_BYTES, REGION_BYTES};
pub(super) use replay::{Replay, replay};
