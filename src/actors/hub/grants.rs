//! Whether what somebody reads by was taken away.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::Hub;
use super::notifier::Note;
use crate::model::{Incarnation, SessionScope};

/// A scope's grant on a process.
pub(crate) type GrantOf = (SessionScope, Incarnation);

/// What became of a grant.
#[derive(Debug)]
pub(super) struct GrantChannel {
    /// How often it was taken away here.
    taken: AtomicU64,
    /// Rises whenever that did, and whenever only a look at the store can tell whether it is still
    /// there.
    stirs: watch::Sender<u64>,
}

impl GrantChannel {
    pub(super) fn stir(&self) {
        self.stirs.send_modify(|times| *times += 1);
    }

    fn taken(&self) -> u64 {
        self.taken.load(Ordering::Acquire)
    }
}

impl Hub {
    /// Whoever reads by a grant finds it taken away from here on (G5), even if it was given again
    /// since; those who wait are told of it.
    pub(crate) fn revoked(&self, grant: &GrantOf) {
        let Some(channel) = self.grants.get(grant) else {
            return;
        };
        channel.taken.fetch_add(1, Ordering::AcqRel);
        drop(channel);
        self.note(Note::Grant(grant.clone()));
    }

    /// Listens to the end of a grant.
    pub(crate) fn listen_grant(self: &Arc<Self>, grant: GrantOf) -> GrantListener {
        let entry = self.grants.entry(grant.clone()).or_insert_with(|| {
            Arc::new(GrantChannel {
                taken: AtomicU64::new(0),
                stirs: watch::Sender::new(0),
            })
        });
        // All while the entry is held: nothing is taken away in between.
        let channel = Arc::clone(&entry);
        let stirs = channel.stirs.subscribe();
        let taken_before = channel.taken();
        drop(entry);
        GrantListener {
            hub: Arc::clone(self),
            grant,
            channel,
            taken_before,
            stirs: Some(stirs),
        }
    }
}

/// A registration with a grant; dropping it ends it.
#[derive(Debug)]
pub(crate) struct GrantListener {
    hub: Arc<Hub>,
    grant: GrantOf,
    channel: Arc<GrantChannel>,
    /// How often it had been taken away when this began to listen.
    taken_before: u64,
    /// Taken when it is dropped, so that the channel can be counted without it.
    stirs: Option<watch::Receiver<u64>>,
}

impl GrantListener {
    /// Whether it was taken away since this listens. Never becomes false again.
    pub(crate) fn is_lost(&self) -> bool {
        self.channel.taken() != self.taken_before
    }

    /// What hears of it from now on, and possibly once of what was before.
    pub(crate) fn stirs(&self) -> GrantStirs {
        GrantStirs(self.stirs.clone())
    }

    pub(crate) fn scope(&self) -> &SessionScope {
        &self.grant.0
    }
}

impl Clone for GrantListener {
    fn clone(&self) -> Self {
        Self {
            hub: Arc::clone(&self.hub),
            grant: self.grant.clone(),
            channel: Arc::clone(&self.channel),
            taken_before: self.taken_before,
            stirs: self.stirs.clone(),
        }
    }
}

impl Drop for GrantListener {
    fn drop(&mut self) {
        self.stirs = None;
        self.hub.grants.remove_if(&self.grant, |_, channel| {
            channel.stirs.receiver_count() == 0
        });
    }
}

/// Hears whenever a grant was taken away or is to be looked for.
#[derive(Debug)]
pub(crate) struct GrantStirs(Option<watch::Receiver<u64>>);

impl GrantStirs {
    /// Waits for the next time.
    ///
    /// # Cancel safety
    /// Safe: what happens while nobody waits is seen by the next call.
    pub(crate) async fn next(&mut self) {
        if let Some(stirs) = &mut self.0
            && stirs.changed().await.is_ok()
        {
            return;
        }
        std::future::pending().await
    }
}
