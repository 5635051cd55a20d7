//! A store's files between two opens: what is in the system's cache must be on the disk before
//! anything is built on it.
//!
//! A killed process leaves writes that no sync covers. A sync that failed is worse: the system tells
//! of it once, and then takes what it could not write for written, so that the next sync has nothing
//! to do and succeeds. Whoever saw it fail leaves a note, and the next open writes everything again.
//! The note itself need not survive a loss of power: neither does the cache.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

use super::super::error::StoreError;
use super::fault::Faults;
use super::journal::{Disk, JOURNAL_FILE};
use super::open::SLED_FILE;

/// The note, in the store's directory.
pub(super) const NOTE_FILE: &str = "unsynced";

const BLOCK_BYTES: usize = 1 << 20;

/// Leaves the note that a sync failed, or may have.
pub(super) fn distrust(directory: &Path) {
    if let Err(error) = File::create(directory.join(NOTE_FILE)) {
        tracing::error!(%error, "a sync failed, and no note of it could be left for the next open");
    }
}

/// Makes durable what earlier opens left, before sled reads its file: sled may make a snapshot of
/// it, which it syncs. If the power took the file behind that, the store would open and only some
/// reads fail. The journal has a sync of its own, once it is replayed.
///
/// # Errors
/// `Failed`, and the note stays.
pub(super) fn settle(directory: &Path, faults: &Faults) -> Result<(), StoreError> {
    let settled = || {
        let note = directory.join(NOTE_FILE);
        let is_distrusted = note.try_exists()?;
        let index = open(&directory.join(SLED_FILE))?.map(|file| faults.index_disk(file));
        let journal = open(&directory.join(JOURNAL_FILE))?.map(|file| faults.disk(file));
        if is_distrusted {
            for disk in index.iter().chain(&journal) {
                write_again(disk)?;
                disk.sync_all()?;
            }
            tracing::warn!(
                path = %directory.display(),
                "a sync had failed: the store's files were written again"
            );
            fs::remove_file(note)?;
        } else if let Some(disk) = index {
            disk.sync_data()?;
        }
        Ok(())
    };
    settled().map_err(|error: io::Error| StoreError::Failed {
        cause: format!("sync what was left at {}: {error}", directory.display()).into(),
    })
}

fn open(path: &Path) -> io::Result<Option<File>> {
    match OpenOptions::new().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        opened => opened.map(Some),
    }
}

fn write_again(disk: &Disk) -> io::Result<()> {
    let mut rest = disk.len()?;
    let mut block = vec![0; BLOCK_BYTES];
    let mut offset = 0;
    while rest > 0 {
        let bytes = usize::try_from(rest).map_or(BLOCK_BYTES, |rest| rest.min(BLOCK_BYTES));
        let block = &mut block[..bytes];
        disk.read_at(offset, block)?;
        disk.write_at(offset, block)?;
        let bytes = u64::try_from(bytes).unwrap_or(rest);
        offset += bytes;
        rest -= bytes;
    }
    Ok(())
}
