//! The committer's inbox: proposals, and the reservations of numbers that other threads ask of it.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use super::super::error::StoreError;
use super::super::kv::{Counter, Proposal};
use super::super::locks::{lock, wait, wait_for};
use super::inner::Inner;

#[derive(Debug, Default)]
pub(super) struct Queue {
    inbox: Mutex<Inbox>,
    /// The committer waits here.
    work: Condvar,
    /// Everybody else waits here for the committer.
    progress: Condvar,
}

#[derive(Default)]
struct Inbox {
    proposals: VecDeque<Box<dyn Proposal>>,
    reservations: [bool; 3],
    phase: Phase,
    /// Whether the committer sleeps and has to be woken.
    parked: bool,
    /// Whether proposals were taken that are not answered yet.
    busy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    /// Proposals are taken.
    #[default]
    Open,
    /// What is queued is finished, nothing new is taken.
    Closing,
    /// The committer ends, whatever is queued.
    Stopped,
}

/// What the committer is to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Proposals and reservations, or just the sync that is due.
    Work {
        /// Counters that need a block.
        reservations: [bool; 3],
        /// Whether proposals may be taken.
        proposals: bool,
    },
    /// To end.
    Stop,
}

impl Queue {
    /// Queues a proposal, or gives it back.
    pub(super) fn push(&self, proposal: Box<dyn Proposal>) -> Result<(), Box<dyn Proposal>> {
        let mut inbox = lock(&self.inbox);
        if inbox.phase != Phase::Open {
            return Err(proposal);
        }
        inbox.proposals.push_back(proposal);
        self.unpark(&mut inbox);
        Ok(())
    }

    fn unpark(&self, inbox: &mut Inbox) {
        if std::mem::take(&mut inbox.parked) {
            self.work.notify_one();
        }
    }

    pub(super) fn ask_reservation(&self, counter: Counter) -> Result<(), StoreError> {
        let mut inbox = lock(&self.inbox);
        if inbox.phase == Phase::Stopped {
            return Err(StoreError::Closed);
        }
        inbox.reservations[counter.slot()] = true;
        self.unpark(&mut inbox);
        Ok(())
    }

    /// The committer's wait. With `backlog` empty it takes everything that is queued.
    pub(super) fn next_turn(
        &self,
        inner: &Inner,
        backlog: &mut VecDeque<Box<dyn Proposal>>,
        sync_due: impl Fn() -> Option<Duration>,
    ) -> Turn {
        let mut inbox = lock(&self.inbox);
        loop {
            if backlog.is_empty() {
                std::mem::swap(backlog, &mut inbox.proposals);
                let was_busy = inbox.busy;
                inbox.busy = !backlog.is_empty();
                if was_busy && !inbox.busy {
                    self.progress.notify_all();
                }
            }
            if inbox.phase == Phase::Stopped {
                return Turn::Stop;
            }
            let proposals = !backlog.is_empty() && (inner.has_failed() || !inner.over_bound());
            let due = sync_due();
            if proposals
                || (!inner.has_failed()
                    && (inbox.reservations.contains(&true) || due.is_some_and(|due| due.is_zero())))
            {
                return Turn::Work {
                    reservations: std::mem::take(&mut inbox.reservations),
                    proposals,
                };
            }
            inbox.parked = true;
            inbox = match due.filter(|_| !inner.has_failed()) {
                Some(due) => wait_for(&self.work, inbox, due),
                None => wait(&self.work, inbox),
            };
            inbox.parked = false;
        }
    }

    /// Everything that is still queued, to be answered by a committer that ends.
    pub(super) fn take_rest(&self, backlog: &mut VecDeque<Box<dyn Proposal>>) {
        let mut inbox = lock(&self.inbox);
        backlog.append(&mut inbox.proposals);
    }

    /// Takes no more proposals, and waits until those that were taken are answered.
    pub(super) fn finish(&self) {
        let mut inbox = lock(&self.inbox);
        if inbox.phase == Phase::Open {
            inbox.phase = Phase::Closing;
        }
        self.unpark(&mut inbox);
        while inbox.phase == Phase::Closing && (inbox.busy || !inbox.proposals.is_empty()) {
            inbox = wait(&self.progress, inbox);
        }
    }

    pub(super) fn stop(&self) {
        lock(&self.inbox).phase = Phase::Stopped;
        self.wake_all();
    }

    pub(super) fn is_stopped(&self) -> bool {
        lock(&self.inbox).phase == Phase::Stopped
    }

    /// Makes every waiter look again: at a failure, or at room in the overlay.
    pub(super) fn wake_all(&self) {
        lock(&self.inbox).parked = false;
        self.work.notify_all();
        self.progress.notify_all();
    }
}

impl std::fmt::Debug for Inbox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inbox")
            .field("proposals", &self.proposals.len())
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
