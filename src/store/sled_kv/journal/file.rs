//! The journal's file: regions that are filled one after the other, and filled again once what
//! they held is in the index.
//!
//! It is a file of its own, beside sled's. Inside sled an entry cost a write and a wait in sled's
//! thread pool before the data sync, and every group waited for whatever the write-behind had put
//! into sled's buffers (`docs/performance.md` has the figures). Here a group is one write into
//! bytes that exist already, and one data sync that changes no metadata.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::super::super::error::StoreError;
use super::super::super::locks::lock;
use super::super::fault::Faults;
use super::super::frame::{Cursor, checksum};
use super::disk::Disk;
use super::entry::{ENTRY_HEADER_BYTES, EntryHeader, Salt, encode_entry};

/// The file's name in the store's directory.
pub(in super::super) const JOURNAL_FILE: &str = "journal";

/// An entry begins on a page of its own: writing one never touches a page that holds another,
/// which may have been acknowledged.
pub(in super::super) const PAGE_BYTES: usize = 4 << 10;
/// Bytes of a region. The file grows by one at a time, and never shrinks.
pub(in super::super) const REGION_BYTES: usize = 1 << 20;
/// Most bytes of operations in one entry.
pub(in super::super) const BODY_BYTES_MAX: usize = REGION_BYTES - ENTRY_HEADER_BYTES;

const HEADER_MAGIC: [u8; 4] = *b"PJRN";
const HEADER_VERSION: u32 = 1;

/// The file, and which regions hold what. Written by the committer only; the write-behind frees
/// regions.
#[derive(Debug)]
pub(in super::super) struct Journal {
    disk: Disk,
    salt: Salt,
    regions: Mutex<Regions>,
    live_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Regions {
    /// Taken from the back, because the one freed last is still in the system's cache.
    free: Vec<u32>,
    /// Regions that exist.
    made: u32,
    /// Regions with entries that are not in the index yet, by rising sequence.
    live: VecDeque<Live>,
}

#[derive(Debug, Clone, Copy)]
struct Live {
    region: u32,
    last_sequence: u64,
    used: usize,
}

/// Where an entry goes.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    region: u32,
    offset: usize,
    is_new: bool,
}

impl Regions {
    fn take(&mut self, sequence: u64, bytes: usize) -> Place {
        if let Some(last) = self.live.back_mut()
            && last.used + bytes <= REGION_BYTES
        {
            let offset = last.used;
            last.used += bytes;
            last.last_sequence = sequence;
            return Place {
                region: last.region,
                offset,
                is_new: false,
            };
        }
        let freed = self.free.pop();
        let region = freed.unwrap_or(self.made);
        self.made += u32::from(freed.is_none());
        self.live.push_back(Live {
            region,
            last_sequence: sequence,
            used: bytes,
        });
        Place {
            region,
            offset: 0,
            is_new: freed.is_none(),
        }
    }

    fn free_below(&mut self, low_water: u64) {
        while let Some(first) = self.live.front()
            && first.last_sequence < low_water
        {
            self.free.push(first.region);
            self.live.pop_front();
        }
    }

    fn live_bytes(&self) -> u64 {
        u64::try_from(self.live.len() * REGION_BYTES).unwrap_or(u64::MAX)
    }
}

impl Journal {
    /// Makes the file, durably, its directory entry excepted. It is made again where a first open
    /// was cut short.
    ///
    /// # Errors
    /// `Corrupted` where it holds more than a first open writes: then it is the store's other part
    /// that is missing.
    pub(in super::super) fn create(
        directory: &Path,
        store_id: uuid::Uuid,
        faults: &Faults,
    ) -> Result<Self, StoreError> {
        let page_bytes = u64::try_from(PAGE_BYTES).unwrap_or(u64::MAX);
        if std::fs::metadata(path(directory)).is_ok_and(|it| it.len() > page_bytes) {
            return Err(StoreError::Corrupted {
                what: format!(
                    "there is a journal {}, but sled's part of the store is empty",
                    path(directory).display()
                ),
            });
        }
        let salt = uuid::Uuid::new_v4().into_bytes();
        let made = || {
            let disk = faults.disk(options().create(true).open(path(directory))?);
            disk.set_len(0)?;
            disk.write_at(0, &encode_header(store_id, &salt))?;
            disk.sync_all()?;
            Ok(disk)
        };
        let disk = made().map_err(|error| failed("make the journal", &error))?;
        Ok(Self::new(disk, salt))
    }

    /// Opens the file of a store that has one.
    ///
    /// # Errors
    /// `Corrupted` where it is missing, damaged, or another store's.
    pub(in super::super) fn open(
        directory: &Path,
        store_id: uuid::Uuid,
        faults: &Faults,
    ) -> Result<Self, StoreError> {
        let path = path(directory);
        let damaged = |what: &str| StoreError::Corrupted {
            what: format!("the journal {} {what}", path.display()),
        };
        let file = match options().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(damaged("is missing"));
            }
            opened => opened.map_err(|error| failed("open the journal", &error))?,
        };
        let disk = faults.disk(file);
        let mut header = vec![0; PAGE_BYTES];
        match disk.read_at(0, &mut header) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(damaged("is cut short"));
            }
            read => read.map_err(|error| failed("read the journal", &error))?,
        }
        let (owner, salt) = decode_header(&header).ok_or_else(|| damaged("has no sound header"))?;
        if owner != store_id {
            return Err(damaged("belongs to another store"));
        }
        Ok(Self::new(disk, salt))
    }

    fn new(disk: Disk, salt: Salt) -> Self {
        Self {
            disk,
            salt,
            regions: Mutex::default(),
            live_bytes: AtomicU64::new(0),
        }
    }

    pub(in super::super) fn salt(&self) -> &Salt {
        &self.salt
    }

    /// Regions that hold something that waits for the write-behind, in bytes.
    pub(in super::super) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Frees the regions whose entries are all below a mark that is durable.
    pub(in super::super) fn free_below(&self, low_water: u64) {
        let mut regions = lock(&self.regions);
        regions.free_below(low_water);
        self.live_bytes
            .store(regions.live_bytes(), Ordering::Relaxed);
    }

    /// Writes an entry. Durable with the next sync.
    pub(in super::super) fn write(
        &self,
        header: &EntryHeader,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let frame = self.frame(header, body);
        let place = {
            let mut regions = lock(&self.regions);
            let place = regions.take(header.sequence, frame.len());
            self.live_bytes
                .store(regions.live_bytes(), Ordering::Relaxed);
            place
        };
        let written = || {
            if place.is_new {
                // Written out, so that no later write has to find room for it.
                self.disk
                    .write_at(offset(place.region, 0), &vec![0; REGION_BYTES])?;
            }
            self.disk
                .write_at(offset(place.region, place.offset), &frame)
        };
        written().map_err(|error| failed("write to the journal", &error))
    }

    /// Writes an entry again where it is.
    pub(super) fn rewrite(
        &self,
        region: u32,
        at: usize,
        header: &EntryHeader,
        body: &[u8],
    ) -> Result<(), StoreError> {
        self.disk
            .write_at(offset(region, at), &self.frame(header, body))
            .map_err(|error| failed("write to the journal", &error))
    }

    fn frame(&self, header: &EntryHeader, body: &[u8]) -> Vec<u8> {
        let mut frame = encode_entry(header, body, &self.salt);
        frame.resize(frame.len().next_multiple_of(PAGE_BYTES), 0);
        frame
    }

    /// Makes durable whatever was written before the call.
    pub(in super::super) fn sync(&self) -> Result<(), StoreError> {
        self.disk
            .sync_data()
            .map_err(|error| failed("sync the journal", &error))
    }

    /// Shows each whole region to `look`, which is told the region's number. A region that was
    /// being added when the store stopped holds nothing that was acknowledged, and is cut off: what
    /// is in it must not turn up later.
    pub(super) fn scan(&self, mut look: impl FnMut(u32, &[u8])) -> Result<(), StoreError> {
        let mut scanned = || {
            let region_bytes = u64::try_from(REGION_BYTES).unwrap_or(u64::MAX);
            let bytes = self.disk.len()?.saturating_sub(offset(0, 0));
            let made = u32::try_from(bytes / region_bytes).unwrap_or(u32::MAX);
            if !bytes.is_multiple_of(region_bytes) {
                self.disk.set_len(offset(made, 0))?;
                self.disk.sync_all()?;
            }
            let mut region = vec![0; REGION_BYTES];
            for number in 0..made {
                self.disk.read_at(offset(number, 0), &mut region)?;
                look(number, &region);
            }
            lock(&self.regions).made = made;
            Ok(())
        };
        scanned().map_err(|error| failed("read the journal", &error))
    }

    /// Overwrites the start of an entry, so that it is none any more.
    pub(super) fn erase(&self, region: u32, at: usize) -> Result<(), StoreError> {
        self.disk
            .write_at(offset(region, at), &[0; PAGE_BYTES])
            .map_err(|error| failed("write to the journal", &error))
    }

    /// Takes note of the regions in use after a replay: `live` has each once, with the last
    /// sequence in it, by rising sequence. Nothing is added to those.
    pub(super) fn recovered(&self, live: impl Iterator<Item = (u32, u64)>) {
        let mut regions = lock(&self.regions);
        regions.live = live
            .map(|(region, last_sequence)| Live {
                region,
                last_sequence,
                used: REGION_BYTES,
            })
            .collect();
        let mut used: Vec<u32> = regions.live.iter().map(|live| live.region).collect();
        used.sort_unstable();
        regions.free = (0..regions.made)
            .rev()
            .filter(|region| used.binary_search(region).is_err())
            .collect();
        self.live_bytes
            .store(regions.live_bytes(), Ordering::Relaxed);
    }
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    options
}

fn path(directory: &Path) -> std::path::PathBuf {
    directory.join(JOURNAL_FILE)
}

fn offset(region: u32, at: usize) -> u64 {
    let before = PAGE_BYTES + at;
    let region_bytes = u64::try_from(REGION_BYTES).unwrap_or(u64::MAX);
    u64::from(region) * region_bytes + u64::try_from(before).unwrap_or(u64::MAX)
}

fn failed(what: &str, error: &io::Error) -> StoreError {
    StoreError::Failed {
        cause: format!("{what}: {error}").into(),
    }
}

fn encode_header(store_id: uuid::Uuid, salt: &Salt) -> Vec<u8> {
    let version = HEADER_VERSION.to_be_bytes();
    let sum = checksum(&[&version, store_id.as_bytes(), salt]).to_be_bytes();
    let parts: [&[u8]; 5] = [&HEADER_MAGIC, &version, &sum, store_id.as_bytes(), salt];
    let mut page = parts.concat();
    page.resize(PAGE_BYTES, 0);
    page
}

fn decode_header(page: &[u8]) -> Option<(uuid::Uuid, Salt)> {
    let mut cursor = Cursor::new(page);
    let sound = cursor.array()? == HEADER_MAGIC && cursor.u32()? == HEADER_VERSION;
    let sum = cursor.u32()?;
    let (store_id, salt) = (cursor.array()?, cursor.array()?);
    let expected = checksum(&[&HEADER_VERSION.to_be_bytes(), &store_id, &salt]);
    (sound && sum == expected).then_some((uuid::Uuid::from_bytes(store_id), salt))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: usize = REGION_BYTES / 2;

    #[test]
    fn entries_fill_a_region_before_they_take_another() {
        let mut regions = Regions::default();
        let places: Vec<_> = (0..3)
            .map(|sequence| regions.take(sequence, HALF))
            .collect();
        let at = |region, offset, is_new| Place {
            region,
            offset,
            is_new,
        };
        assert_eq!(places, [at(0, 0, true), at(0, HALF, false), at(1, 0, true)]);
    }

    #[test]
    fn a_region_is_used_again_only_once_all_of_it_is_below_the_mark() {
        let mut regions = Regions::default();
        for sequence in 0..3 {
            regions.take(sequence, HALF);
        }
        regions.free_below(1);
        assert!(regions.free.is_empty());
        regions.free_below(2);
        assert_eq!(regions.free, [0]);
        regions.take(3, HALF);
        let again = regions.take(4, HALF);
        assert_eq!((again.region, again.is_new), (0, false));
        assert_eq!(regions.made, 2);
    }
}
