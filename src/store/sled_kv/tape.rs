//! For tests: what was written to the journal's file, apart from what was synced.
//!
//! A killed process leaves its writes in the system's cache, so no kill ever shows a sync that is
//! missing. A tape does: it holds every change of the file and says which of them a sync made
//! durable, and from that it makes the files that a loss of power may leave. (redb's tests keep
//! the two apart in their storage backend for the same reason.)

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::super::kv_laws::XorShift;
use super::super::locks::lock;

/// What a disk writes as a whole or not at all.
const SECTOR_BYTES: u64 = 512;
const PAGE_BYTES: u64 = 4096;

#[derive(Debug, Clone)]
enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

/// A moment, as the tape knows it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    changes: usize,
    /// Changes that are durable.
    synced: usize,
    /// What was acknowledged before the sync that made them durable.
    pub(super) acknowledged: usize,
}

/// What a loss of power does to the changes that no sync covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Loss {
    /// None is there.
    All,
    /// All of them are: the disk had got round to it.
    None,
    /// They are there up to some sector, in the order in which they were made.
    Torn,
    /// Any pages of them are.
    Pages,
    /// Any sectors of them are.
    Sectors,
}

impl Loss {
    pub(super) const ALL: [Self; 5] = [
        Self::All,
        Self::None,
        Self::Torn,
        Self::Pages,
        Self::Sectors,
    ];
}

type Halfway = dyn Fn() + Send + Sync;

/// Changes of one file, over as many opens as a test makes of it.
#[derive(Default)]
pub(super) struct Tape {
    /// The file before the first change; durable.
    before: Vec<u8>,
    reel: Mutex<Reel>,
    /// Proposals that were acknowledged, as the test counts them.
    pub(super) acknowledged: AtomicUsize,
    /// Called in the middle of each write.
    halfway: Option<Box<Halfway>>,
}

#[derive(Default)]
struct Reel {
    changes: Vec<Change>,
    synced: usize,
    /// How often the file was synced.
    syncs: usize,
    acknowledged: usize,
}

impl Tape {
    /// Of a file that is there.
    pub(super) fn of(before: Vec<u8>) -> Self {
        Self {
            before,
            ..Self::default()
        }
    }

    /// Calls `halfway` after the first half of each write.
    pub(super) fn halfway(halfway: impl Fn() + Send + Sync + 'static) -> Self {
        Self {
            halfway: Some(Box::new(halfway)),
            ..Self::default()
        }
    }

    pub(super) fn write(
        &self,
        offset: u64,
        bytes: &[u8],
        put: impl Fn(u64, &[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        if let Some(halfway) = &self.halfway {
            let (first, second) = bytes.split_at(bytes.len() / 2);
            put(offset, first)?;
            halfway();
            put(offset + bytes_u64(first.len()), second)?;
        } else {
            put(offset, bytes)?;
        }
        lock(&self.reel).changes.push(Change::Write {
            offset,
            bytes: bytes.to_vec(),
        });
        Ok(())
    }

    pub(super) fn set_len(&self, length: u64) {
        lock(&self.reel).changes.push(Change::SetLen(length));
    }

    /// A sync covers what was written before it began.
    pub(super) fn sync(&self, sync: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let acknowledged = self.acknowledged.load(Ordering::SeqCst);
        let covered = lock(&self.reel).changes.len();
        sync()?;
        let mut reel = lock(&self.reel);
        reel.syncs += 1;
        reel.synced = reel.synced.max(covered);
        reel.acknowledged = reel.acknowledged.max(acknowledged);
        Ok(())
    }

    pub(super) fn now(&self) -> Moment {
        let reel = lock(&self.reel);
        Moment {
            changes: reel.changes.len(),
            synced: reel.synced,
            acknowledged: reel.acknowledged,
        }
    }

    pub(super) fn syncs(&self) -> usize {
        lock(&self.reel).syncs
    }

    /// Every write so far: where it went, and whether it was all zeros.
    pub(super) fn writes(&self) -> Vec<(Range<u64>, bool)> {
        let reel = lock(&self.reel);
        let writes = reel.changes.iter().filter_map(|change| match change {
            Change::Write { offset, bytes } => {
                let zeros = bytes.iter().all(|byte| *byte == 0);
                Some((*offset..*offset + bytes_u64(bytes.len()), zeros))
            }
            Change::SetLen(_) => None,
        });
        writes.collect()
    }

    /// A file that a loss of power at a moment may leave.
    pub(super) fn image(&self, at: Moment, loss: Loss, random: &mut XorShift) -> Vec<u8> {
        let reel = lock(&self.reel);
        let mut image = self.before.clone();
        for change in &reel.changes[..at.synced] {
            apply(&mut image, change);
        }
        let unsynced = &reel.changes[at.synced..at.changes];
        let grain = if loss == Loss::Pages {
            PAGE_BYTES
        } else {
            SECTOR_BYTES
        };
        let pieces: Vec<Change> = unsynced.iter().flat_map(|it| split(it, grain)).collect();
        let torn_at = random.below(bytes_u64(pieces.len()) + 1);
        for (number, piece) in (0..).zip(&pieces) {
            let is_there = match loss {
                Loss::All => false,
                Loss::None => true,
                Loss::Torn => number < torn_at,
                Loss::Pages | Loss::Sectors => random.below(2) == 0,
            };
            if is_there {
                apply(&mut image, piece);
            }
        }
        // The new length may be there without the bytes: they read as zeros then.
        if loss != Loss::All && random.below(2) == 0 {
            let ends = unsynced.iter().map(|change| match change {
                Change::Write { offset, bytes } => offset + bytes_u64(bytes.len()),
                Change::SetLen(length) => *length,
            });
            let length = ends.max().unwrap_or(0).max(bytes_u64(image.len()));
            image.resize(usize::try_from(length).unwrap(), 0);
        }
        image
    }
}

fn apply(image: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Write { offset, bytes } => {
            let start = usize::try_from(*offset).unwrap();
            let end = start + bytes.len();
            if image.len() < end {
                image.resize(end, 0);
            }
            image[start..end].copy_from_slice(bytes);
        }
        Change::SetLen(length) => image.resize(usize::try_from(*length).unwrap(), 0),
    }
}

/// Cuts a change where the disk may have stopped.
fn split(change: &Change, grain: u64) -> Vec<Change> {
    let Change::Write { offset, bytes } = change else {
        return vec![change.clone()];
    };
    let grain = usize::try_from(grain).unwrap();
    let chunks = (0..).zip(bytes.chunks(grain));
    // The journal writes whole pages to where pages begin.
    let pieces = chunks.map(|(number, chunk)| Change::Write {
        offset: offset + number * bytes_u64(grain),
        bytes: chunk.to_vec(),
    });
    pieces.collect()
}

fn bytes_u64(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap()
}

impl fmt::Debug for Tape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").finish_non_exhaustive()
    }
}
