//! The files to which sled moves messages above 128 KiB, and which it never syncs.
//!
//! Values are kept small enough for that not to happen. What remains are sled's inner nodes, of up
//! to 256 keys and more: with keys of several hundred bytes one of those can get there.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::super::error::StoreError;

/// Syncs side files as they appear, before the sync that makes what points to them durable.
#[derive(Debug)]
pub(super) struct SideFiles {
    directory: PathBuf,
    synced: HashSet<OsString>,
}

impl SideFiles {
    /// Files that are there already are synced once more: who knows who wrote them.
    pub(super) fn new(store: &Path) -> Self {
        Self {
            directory: store.join("blobs"),
            synced: HashSet::new(),
        }
    }

    /// Costs a look into a directory that is all but always empty.
    pub(super) fn sync_new(&mut self) -> Result<(), StoreError> {
        self.try_sync_new().map_err(|error| StoreError::Failed {
            cause: format!("sync sled's side files: {error}").into(),
        })
    }

    fn try_sync_new(&mut self) -> io::Result<()> {
        let mut present = HashSet::new();
        let mut is_new = false;
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            if !self.synced.contains(&name) {
                match File::open(self.directory.join(&name)) {
                    Ok(file) => file.sync_all()?,
                    // sled removes what it has replaced, whenever it likes.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                }
                is_new = true;
            }
            present.insert(name);
        }
        self.synced = present;
        if is_new {
            File::open(&self.directory)?.sync_all()?;
        }
        Ok(())
    }
}
