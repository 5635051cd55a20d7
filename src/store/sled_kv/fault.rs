//! Where a test can make the store fail or stop as if killed. Nothing outside of tests.

use std::fmt;
use std::fs::File;

use super::super::error::StoreError;
use super::journal::Disk;
#[cfg(test)]
use super::tape::Tape;

/// The steps between which a crash must do no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Step {
    /// Open: sled is open, nothing of ours is written.
    OpenStarted,
    /// Open: the journal is read, an unfinished end overwritten, the rest written again; not synced.
    OpenRewritten,
    /// Open: all of that is synced.
    OpenReplayed,
    /// Open: the epoch is raised, not yet synced.
    OpenRaised,
    /// Commit: before each journal entry.
    CommitEntry,
    /// Commit: entries written, not synced.
    CommitSync,
    /// Commit: durable, not visible.
    CommitPublish,
    /// Open and write-behind: sled's file is to be synced; an error is taken for the sync's.
    IndexSync,
    /// Open and write-behind: sled's file is synced.
    IndexSynced,
    /// Write-behind: a layer is frozen.
    DrainFrozen,
    /// Write-behind: after each slice of index writes.
    DrainSlice,
    /// Write-behind: after a slice of an erasure.
    DrainErased,
    /// Write-behind: the layer is written, not synced.
    DrainWritten,
    /// Write-behind: synced, the low-water mark not advanced.
    DrainSynced,
    /// Write-behind: the mark advanced, not synced.
    DrainMarked,
    /// Write-behind: the mark synced, the regions not freed.
    DrainTrimmed,
}

#[cfg(test)]
type Hook = dyn Fn(Step, &sled::Db) -> Result<(), StoreError> + Send + Sync;

/// What a test does at each step.
#[derive(Clone, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    hook: Option<std::sync::Arc<Hook>>,
    #[cfg(test)]
    tape: Option<std::sync::Arc<Tape>>,
    #[cfg(test)]
    index_tape: Option<std::sync::Arc<Tape>>,
}

impl Faults {
    /// Calls `hook` at every step; its error is taken for the step's.
    #[cfg(test)]
    pub(super) fn new(
        hook: impl Fn(Step, &sled::Db) -> Result<(), StoreError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            hook: Some(std::sync::Arc::new(hook)),
            tape: None,
            index_tape: None,
        }
    }

    /// Notes what becomes of the journal's file, too.
    #[cfg(test)]
    pub(super) fn taped(mut self, tape: &std::sync::Arc<Tape>) -> Self {
        self.tape = Some(std::sync::Arc::clone(tape));
        self
    }

    /// Notes what an open does to sled's file before sled does anything.
    #[cfg(test)]
    pub(super) fn index_taped(mut self, tape: &std::sync::Arc<Tape>) -> Self {
        self.index_tape = Some(std::sync::Arc::clone(tape));
        self
    }

    /// The journal's file.
    #[cfg(test)]
    pub(super) fn disk(&self, file: File) -> Disk {
        Disk::taped(file, self.tape.clone())
    }

    /// sled's file, while sled does not have it.
    #[cfg(test)]
    pub(super) fn index_disk(&self, file: File) -> Disk {
        Disk::taped(file, self.index_tape.clone())
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "a test's tape")]
    pub(super) fn disk(&self, file: File) -> Disk {
        Disk::new(file)
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, reason = "a test's tape")]
    pub(super) fn index_disk(&self, file: File) -> Disk {
        Disk::new(file)
    }

    #[cfg(test)]
    pub(super) fn at(&self, step: Step, db: &sled::Db) -> Result<(), StoreError> {
        self.hook.as_ref().map_or(Ok(()), |hook| hook(step, db))
    }

    #[cfg(not(test))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "a test's hook"
    )]
    pub(super) fn at(&self, _step: Step, _db: &sled::Db) -> Result<(), StoreError> {
        Ok(())
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faults")
    }
}
