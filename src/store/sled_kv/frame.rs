//! What all stored frames share: checksums, bounded decoding, and how damage is reported.

use std::fmt::Write as _;

use super::super::error::StoreError;

/// The format of everything below the typed store. See `docs/store-format.md` for what may change
/// without raising it.
pub(super) const FORMAT_VERSION: u32 = 2;

/// Most bytes of a value stored under one key.
///
/// sled rewrites a leaf of up to 20 entries as one message, and moves a message above 128 KiB to a
/// side file that it never syncs. 20 values of 4 KiB under keys of 2 KiB stay below that.
pub(super) const INLINE_BYTES_MAX: usize = 4 << 10;

/// CRC-32 over several slices as if they were one.
pub(super) fn checksum(parts: &[&[u8]]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for part in parts {
        hasher.update(part);
    }
    hasher.finalize()
}

/// The error for stored bytes that are not what was written.
pub(super) fn corrupted(tree: &str, key: &[u8], what: &str) -> StoreError {
    let mut hex = String::with_capacity(key.len() * 2);
    for byte in key {
        // Writing into a string cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    StoreError::Corrupted {
        what: format!("{what}, tree {tree}, key {hex}"),
    }
}

/// A length that is known to fit because its limit does.
pub(super) fn length_u32(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

/// Takes fields off the front of stored bytes; `None` once they run out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cursor<'a> {
    rest: &'a [u8],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(super) fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(head)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array::<1>().map(|[byte]| byte)
    }

    pub(super) fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_be_bytes)
    }
}

/// A length field, as the `usize` it stands for.
pub(super) fn length(field: u32) -> usize {
    usize::try_from(field).unwrap_or(usize::MAX)
}
