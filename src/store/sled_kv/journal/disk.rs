//! The journal's file, as far as the journal uses one: places that are written, a length, a sync.
//!
//! Everything that changes the file goes through here, so that a test can keep what was written
//! apart from what was synced, and see what a loss of power would leave of it.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
#[cfg(test)]
use std::sync::Arc;

#[cfg(test)]
use super::super::tape::Tape;

#[derive(Debug)]
pub(in super::super) struct Disk {
    file: File,
    #[cfg(test)]
    tape: Option<Arc<Tape>>,
}

impl Disk {
    #[cfg(not(test))]
    pub(in super::super) fn new(file: File) -> Self {
        Self { file }
    }

    /// A file whose changes are noted.
    #[cfg(test)]
    pub(in super::super) fn taped(file: File, tape: Option<Arc<Tape>>) -> Self {
        Self { file, tape }
    }

    pub(in super::super) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fills the bytes from a place on.
    pub(in super::super) fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.read_exact(bytes)
    }

    pub(in super::super) fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        if let Some(tape) = &self.tape {
            return tape.write(offset, bytes, |offset, bytes| self.put(offset, bytes));
        }
        self.put(offset, bytes)
    }

    fn put(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = &self.file;
        file.seek(SeekFrom::Start(offset))?;
        file.write_all(bytes)
    }

    pub(in super::super) fn set_len(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)?;
        #[cfg(test)]
        if let Some(tape) = &self.tape {
            tape.set_len(length);
        }
        Ok(())
    }

    /// Makes durable whatever was written before the call, and the length.
    pub(in super::super) fn sync_data(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(tape) = &self.tape {
            return tape.sync(|| self.file.sync_data());
        }
        self.file.sync_data()
    }

    /// The same, and whatever else the system keeps about the file.
    pub(in super::super) fn sync_all(&self) -> io::Result<()> {
        #[cfg(test)]
        if let Some(tape) = &self.tape {
            return tape.sync(|| self.file.sync_all());
        }
        self.file.sync_all()
    }
}
