//! The durable machine: a journal in a file of its own, and behind it an index inside sled.
//!
//! A commit is one journal entry and one data sync; it is visible from an overlay in
//! memory at once, and reaches the index later, coalesced. `docs/store-format.md` has the bytes.

mod commit;
mod drain;
mod events;
mod fault;
mod frame;
mod index;
mod inner;
mod journal;
mod meta;
mod open;
mod overlay;
mod queue;
mod settle;
mod side_files;
#[cfg(test)]
mod tape;
#[cfg(test)]
mod tests;
mod view;

use std::fmt;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::clock::Clock;
use super::error::StoreError;
use super::kv::{Counter, Durability, Kv, KvStats, KvView, Outcome, Proposal};
use super::locks::lock;
use fault::Faults;
use inner::Inner;
use view::View;

/// How long `close` waits for sled to let go of its file.
const RELEASE_WAIT_MAX: Duration = Duration::from_secs(10);
const RELEASE_POLL: Duration = Duration::from_millis(1);

/// How to open a store.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// What an acknowledgement survives.
    pub(crate) durability: Durability,
    /// sled's cache. It uses about twice as much memory as is set here.
    pub(crate) cache_capacity_bytes: u64,
    /// Where time is read.
    pub(crate) clock: Arc<dyn Clock>,
    /// Limits of what is in the making.
    pub(crate) bounds: Bounds,
    faults: Faults,
}

/// Limits of what is in the making.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Most proposals of one group.
    pub(crate) group_proposals_max: usize,
    /// Bytes of operations after which a group takes no further proposal.
    pub(crate) group_bytes_max: usize,
    /// Changes in the overlay above which the committer waits for the write-behind.
    pub(crate) overlay_entries_max: u64,
    /// The same in bytes.
    pub(crate) overlay_bytes_max: u64,
    /// Journal that waits for the write-behind, in bytes, above which the committer waits as well:
    /// a few keys that change all the time fill the journal, not the overlay. The journal takes
    /// that much of the disk for good.
    pub(crate) journal_bytes_max: u64,
    /// How long changes wait for more of their kind before they go into the index.
    pub(crate) drain_interval: Duration,
    /// How long a view may hold up the write-behind.
    pub(crate) view_age_max: Duration,
    /// The same while commits wait for the write-behind: whoever reads much at once is told to do it
    /// again, rather than that everybody who writes stands still.
    pub(crate) view_age_pressed_max: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            group_proposals_max: 4096,
            group_bytes_max: 1 << 20,
            overlay_entries_max: 400_000,
            overlay_bytes_max: 64 << 20,
            journal_bytes_max: 64 << 20,
            drain_interval: Duration::from_millis(50),
            view_age_max: Duration::from_secs(5),
            view_age_pressed_max: Duration::from_millis(500),
        }
    }
}

impl Options {
    /// Full durability, a cache of 64 MiB, and the default bounds.
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self {
            durability: Durability::default(),
            cache_capacity_bytes: 64 << 20,
            clock,
            bounds: Bounds::default(),
            faults: Faults::default(),
        }
    }
}

/// An open store.
pub(crate) struct SledKv {
    inner: Arc<Inner>,
    epoch: u64,
    store_id: uuid::Uuid,
    /// What an open store has running and locked, until it is closed.
    running: Mutex<Option<Running>>,
}

struct Running {
    committer: JoinHandle<()>,
    write_behind: JoinHandle<()>,
    lock: File,
}

impl SledKv {
    /// Opens the store in a directory, making it if it is not there. Blocks, but never for
    /// another holder.
    ///
    /// # Errors
    /// `Busy`, `TooNew`, `TooOld`, `Corrupted`, or `Failed`.
    pub(crate) fn open(path: &Path, options: Options) -> Result<Self, StoreError> {
        let (opened, lock) = open::open(path, options)?;
        let inner = Arc::new(opened.inner);
        let committer = spawn("procession-commit", {
            let inner = Arc::clone(&inner);
            move || commit::run(inner)
        })?;
        let write_behind = spawn("procession-index", {
            let inner = Arc::clone(&inner);
            move || drain::run(&inner)
        });
        let write_behind = match write_behind {
            Ok(handle) => handle,
            Err(error) => {
                inner.queue.stop();
                join(committer);
                return Err(error);
            }
        };
        Ok(Self {
            inner,
            epoch: opened.epoch,
            store_id: opened.store_id,
            running: Mutex::new(Some(Running {
                committer,
                write_behind,
                lock,
            })),
        })
    }

    /// Ends the threads and lets go of sled and of the lock.
    fn stop(&self, running: Running) -> Result<(), StoreError> {
        lock(&self.inner.state).stop = true;
        self.inner.changed.notify_all();
        self.inner.queue.stop();
        join(running.write_behind);
        join(running.committer);
        if !self.inner.index.shut() {
            settle::distrust(&self.inner.path);
        }
        let released = wait_for_release(&self.inner.path);
        drop(running.lock);
        released
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StoreError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| StoreError::Failed {
            cause: format!("start thread {name}: {error}").into(),
        })
}

/// Joins a thread, unless it is the one that is running: the last handle may be dropped by a
/// proposal.
fn join(thread: JoinHandle<()>) {
    if thread.thread().id() != thread::current().id() && thread.join().is_err() {
        tracing::error!("a thread of the store panicked");
    }
}

/// sled's file is closed by whichever of its threads holds it last, some time after the last
/// handle is gone; until then another open would be refused.
fn wait_for_release(path: &Path) -> Result<(), StoreError> {
    let failed = |what: String| StoreError::Failed { cause: what.into() };
    let file = File::open(path.join(open::SLED_FILE))
        .map_err(|error| failed(format!("open sled's file after closing it: {error}")))?;
    let mut waited = Duration::ZERO;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) if waited < RELEASE_WAIT_MAX => {
                thread::sleep(RELEASE_POLL);
                waited += RELEASE_POLL;
            }
            Err(TryLockError::WouldBlock) => {
                return Err(failed("sled did not let go of its file".to_owned()));
            }
            Err(TryLockError::Error(error)) => {
                return Err(failed(format!(
                    "lock sled's file after closing it: {error}"
                )));
            }
        }
    }
}

impl Kv for SledKv {
    fn submit(&self, proposal: Box<dyn Proposal>) {
        let refused = match self.inner.check() {
            Ok(()) => match self.inner.queue.push(proposal) {
                Ok(()) => return,
                Err(proposal) => (proposal, StoreError::Closed),
            },
            Err(error) => (proposal, error),
        };
        commit::answer(refused.0, Outcome::NotWritten(refused.1));
    }

    fn view(&self) -> Result<Box<dyn KvView>, StoreError> {
        Ok(Box::new(View::open(&self.inner)?))
    }

    fn allocate(&self, counter: Counter) -> Result<u64, StoreError> {
        self.inner.allocate(counter)
    }

    fn epoch(&self) -> u64 {
        self.epoch
    }

    fn exclusive(&self) -> bool {
        true
    }

    fn store_id(&self) -> uuid::Uuid {
        self.store_id
    }

    fn stats(&self) -> KvStats {
        self.inner.stats()
    }

    fn drain(&self) -> Result<(), StoreError> {
        self.inner.drain(true)
    }

    fn close(&self) -> Result<(), StoreError> {
        let mut slot = lock(&self.running);
        let Some(running) = slot.take() else {
            return Ok(());
        };
        let me = thread::current().id();
        if [&running.committer, &running.write_behind]
            .iter()
            .any(|it| it.thread().id() == me)
        {
            *slot = Some(running);
            return Err(StoreError::Invalid {
                what: "the store cannot be closed by a proposal".to_owned(),
            });
        }
        // `running` stays locked: a second caller returns only when the store is closed.
        self.inner.queue.finish();
        // What is left of erased logs is for the next open.
        let drained = self.inner.drain(false);
        let stopped = self.stop(running);
        drained.and(stopped)
    }
}

impl Drop for SledKv {
    fn drop(&mut self) {
        let running = lock(&self.running).take();
        if let Some(running) = running
            && let Err(error) = self.stop(running)
        {
            tracing::warn!(%error, "a store that was not closed did not stop cleanly");
        }
    }
}

impl fmt::Debug for SledKv {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SledKv")
            .field("path", &self.inner.path)
            .field("epoch", &self.epoch)
            .field("store_id", &self.store_id)
            .finish_non_exhaustive()
    }
}
