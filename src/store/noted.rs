//! A machine that notes how it is read, for tests of what a read costs and where it is made.

use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, ThreadId};

use bytes::Bytes;

use super::error::StoreError;
use super::kv::{Counter, KeyRange, Kv, KvStats, KvView, Proposal, Reader};
use super::locks::lock;

/// A key or a range that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Read {
    /// By the name of its thread.
    pub(crate) on: String,
    /// What all keys of its sort begin with; of a log, nothing.
    pub(crate) sort: Option<u8>,
}

/// Everything that was read since this was last asked.
#[derive(Debug, Clone, Default)]
pub(crate) struct Notes(Arc<Noting>);

#[derive(Debug, Default)]
struct Noting {
    reads: Mutex<Vec<Read>>,
    /// Who lets nobody else read for now.
    alone: Mutex<Option<ThreadId>>,
    let_on: Condvar,
}

impl Notes {
    fn note(&self, key: Option<&[u8]>) {
        let on = thread::current().name().unwrap_or_default().to_owned();
        let sort = key.and_then(|key| key.first()).copied();
        let mut alone = lock(&self.0.alone);
        while alone.is_some_and(|by| by != thread::current().id()) {
            alone = self.0.let_on.wait(alone).unwrap();
        }
        drop(alone);
        lock(&self.0.reads).push(Read { on, sort });
    }

    /// Does something while other threads wait before they read.
    pub(crate) fn alone<T>(&self, does: impl FnOnce() -> T) -> T {
        *lock(&self.0.alone) = Some(thread::current().id());
        let done = does();
        *lock(&self.0.alone) = None;
        self.0.let_on.notify_all();
        done
    }

    pub(crate) fn take(&self) -> Vec<Read> {
        std::mem::take(&mut lock(&self.0.reads))
    }

    /// How much of it was on this thread.
    pub(crate) fn take_here(&self) -> usize {
        let here = thread::current().name().unwrap_or_default().to_owned();
        self.take().iter().filter(|read| read.on == here).count()
    }
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Noted {
    kv: Arc<dyn Kv>,
    notes: Notes,
}

impl Noted {
    pub(crate) fn over(kv: Arc<dyn Kv>) -> (Arc<Self>, Notes) {
        let notes = Notes::default();
        let noted = Self {
            kv,
            notes: notes.clone(),
        };
        (Arc::new(noted), notes)
    }
}

impl Kv for Noted {
    fn submit(&self, proposal: Box<dyn Proposal>) {
        self.kv.submit(proposal);
    }
    fn view(&self) -> Result<Box<dyn KvView>, StoreError> {
        let view = self.kv.view()?;
        let notes = self.notes.clone();
        Ok(Box::new(NotedView { view, notes }))
    }
    fn allocate(&self, counter: Counter) -> Result<u64, StoreError> {
        self.kv.allocate(counter)
    }
    fn epoch(&self) -> u64 {
        self.kv.epoch()
    }
    fn exclusive(&self) -> bool {
        self.kv.exclusive()
    }
    fn store_id(&self) -> uuid::Uuid {
        self.kv.store_id()
    }
    fn stats(&self) -> KvStats {
        self.kv.stats()
    }
    fn drain(&self) -> Result<(), StoreError> {
        self.kv.drain()
    }
    fn close(&self) -> Result<(), StoreError> {
        self.kv.close()
    }
}

#[derive(Debug)]
struct NotedView {
    view: Box<dyn KvView>,
    notes: Notes,
}

impl Reader for NotedView {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.notes.note(Some(key));
        self.view.get(key)
    }
    fn scan(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.notes.note(Some(&range.start));
        self.view.scan(range, limit)
    }
    fn scan_back(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        self.notes.note(Some(&range.start));
        self.view.scan_back(range, limit)
    }
}

impl KvView for NotedView {
    fn commit(&self) -> u64 {
        self.view.commit()
    }
    fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError> {
        self.notes.note(None);
        self.view
            .events(incarnation, from_sequence, limit, bytes_max)
    }
}
