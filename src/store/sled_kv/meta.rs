//! The tree `meta`: what the store knows about itself, one checksummed record per key.

use super::super::error::StoreError;
use super::frame::{Cursor, checksum, corrupted};
use super::index::failed;

/// The format version, in a record whose framing never changes.
pub(super) const FORMAT: &[u8] = b"format";
/// The random id made with the store.
pub(super) const STORE_ID: &[u8] = b"store_id";
/// The number of opens.
pub(super) const EPOCH: &[u8] = b"epoch";
/// See [`LowWater`].
pub(super) const LOW_WATER: &[u8] = b"low_water";

/// Up to where the journal is in the index. One record, so that its numbers never disagree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LowWater {
    /// First journal sequence that is not.
    pub(super) sequence: u64,
    /// Last commit that is.
    pub(super) commit: u64,
    /// Next free feed position after that commit.
    pub(super) next_position: u64,
    /// For each counter, a mark that no number handed out by then reaches.
    pub(super) marks: [u64; 3],
}

impl LowWater {
    /// Of a store without a commit.
    pub(super) const START: Self = Self {
        sequence: 0,
        commit: 0,
        next_position: 1,
        marks: [1; 3],
    };

    pub(super) fn save(self, meta: &sled::Tree) -> Result<(), StoreError> {
        let numbers = [self.sequence, self.commit, self.next_position];
        let body: Vec<u8> = numbers
            .into_iter()
            .chain(self.marks)
            .flat_map(u64::to_be_bytes)
            .collect();
        put(meta, LOW_WATER, &body)
    }

    pub(super) fn load(meta: &sled::Tree) -> Result<Self, StoreError> {
        let Some(body) = get(meta, LOW_WATER)? else {
            return Ok(Self::START);
        };
        Self::decode(&body)
            .ok_or_else(|| corrupted("meta", LOW_WATER, "record of unexpected length"))
    }

    fn decode(body: &[u8]) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        let mark = Self {
            sequence: cursor.u64()?,
            commit: cursor.u64()?,
            next_position: cursor.u64()?,
            marks: [cursor.u64()?, cursor.u64()?, cursor.u64()?],
        };
        (cursor.remaining() == 0).then_some(mark)
    }
}

/// Frames and writes a record.
pub(super) fn put(meta: &sled::Tree, key: &[u8], body: &[u8]) -> Result<(), StoreError> {
    let mut record = checksum(&[key, body]).to_be_bytes().to_vec();
    record.extend_from_slice(body);
    meta.insert(key, record).map_err(failed)?;
    Ok(())
}

/// Reads a record's body.
pub(super) fn get(meta: &sled::Tree, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
    let Some(record) = meta.get(key).map_err(failed)? else {
        return Ok(None);
    };
    let mut cursor = Cursor::new(&record);
    let sum = cursor.u32();
    let body = cursor.take(cursor.remaining()).unwrap_or_default();
    if sum != Some(checksum(&[key, body])) {
        return Err(corrupted("meta", key, "record fails its checksum"));
    }
    Ok(Some(body.to_vec()))
}

/// Reads a record that holds one number.
pub(super) fn get_u64(meta: &sled::Tree, key: &[u8]) -> Result<Option<u64>, StoreError> {
    let Some(body) = get(meta, key)? else {
        return Ok(None);
    };
    let number = body.as_slice().try_into().map(u64::from_be_bytes);
    number
        .map(Some)
        .map_err(|_| corrupted("meta", key, "record of unexpected length"))
}
