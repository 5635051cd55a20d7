//! Who wakes the listeners: never whoever commits.
//!
//! There may be any number of listeners, and to wake one takes time. The committer, on which everybody
//! waits, therefore only notes what there is to tell: one note for each thing that somebody listens to,
//! however often it happens until it is told. A task tells the listeners behind it (E7).
//!
//! Whoever listens first and looks at the store second misses nothing by that (W2): what is committed
//! before they listen they find there, and what is committed later is noted later, when they are known.
//!
//! The task may go: it ends with the runtime it belongs to, in order or because the threads go away that
//! it runs on. What it has not told yet is told as it goes, and from then on whoever would note something
//! tells it.

use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::mpsc;

use super::{GrantOf, Hub, Topic};
use crate::model::{Incarnation, SessionScope};
use crate::store::locks::lock;

/// Something that listeners are to be told.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Note {
    /// Some process changed.
    Changes,
    /// This one did: for its watchers.
    Process(Incarnation),
    /// The readers of a log are to look at the store.
    Log(Incarnation),
    /// Grants or wakes of a scope changed.
    Scope(SessionScope),
    /// A grant was taken away.
    Grant(GrantOf),
}

/// What is still to be told.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<Pending>);

#[derive(Debug, Default)]
struct Pending {
    /// Wakes the task that tells it, while there is one.
    task: Option<mpsc::Sender<()>>,
    notes: HashSet<Note>,
}

impl Hub {
    /// Has listeners told by a task of the async runtime that this is called in, from now on.
    pub(crate) fn tell_by_task(self: &Arc<Self>) {
        let (wake, woken) = mpsc::channel(1);
        lock(&self.notes.0).task = Some(wake);
        let telling = Telling {
            hub: Arc::downgrade(self),
            notes: Vec::new(),
        };
        tokio::spawn(telling.run(woken));
    }

    /// Tells every listener that there is nothing more to wait for; what little happens from now on is
    /// told by whoever does it.
    pub(crate) fn end(&self) {
        self.take_over();
        self.nudge_all();
    }

    /// Has listeners told of it, but not by whoever calls this.
    pub(super) fn note(&self, note: Note) {
        {
            let mut pending = lock(&self.notes.0);
            let is_first = pending.notes.is_empty();
            if let Some(task) = &pending.task {
                if is_first {
                    // Full: it is about to look.
                    let _ = task.try_send(());
                }
                pending.notes.insert(note);
                return;
            }
        }
        self.tell(&note);
    }

    /// What the task is to tell next, each thing once.
    pub(super) fn noted(&self) -> HashSet<Note> {
        std::mem::take(&mut lock(&self.notes.0).notes)
    }

    /// What the task was still to tell; it is given no more.
    fn take_over(&self) -> HashSet<Note> {
        std::mem::take(&mut *lock(&self.notes.0)).notes
    }

    fn tell(&self, note: &Note) {
        match note {
            Note::Changes => self.changes.send_modify(|version| *version += 1),
            Note::Process(incarnation) => self.ring(&Topic::Process(*incarnation)),
            Note::Log(incarnation) => {
                let found = self.logs.get(incarnation).map(|found| Arc::clone(&found));
                if let Some(channel) = found {
                    channel.nudge();
                }
            }
            Note::Scope(scope) => {
                let found = self.scopes.get(scope).map(|found| found.clone());
                if let Some(channel) = found {
                    channel.send_modify(|version| *version += 1);
                }
                Topic::of_scope(scope).iter().for_each(|it| self.ring(it));
            }
            Note::Grant(grant) => {
                let found = self.grants.get(grant).map(|found| Arc::clone(&found));
                if let Some(channel) = found {
                    channel.stir();
                }
            }
        }
    }

    fn ring(&self, topic: &Topic) {
        let bells = self.bells.get(topic).map(|bells| bells.clone());
        bells.iter().flatten().for_each(|bell| bell.ring());
    }

    /// The same where it must not be the end of everything that somebody cannot be woken.
    fn tell_safely(&self, note: &Note) {
        let told = std::panic::catch_unwind(AssertUnwindSafe(|| self.tell(note)));
        if told.is_err() {
            tracing::error!(?note, "a listener panicked as it was woken");
        }
    }
}

/// The task, with what it is telling. However it goes, nobody is left untold.
struct Telling {
    hub: Weak<Hub>,
    notes: Vec<Note>,
}

impl Telling {
    async fn run(mut self, mut woken: mpsc::Receiver<()>) {
        while woken.recv().await.is_some() {
            // Without it there are no listeners either.
            let Some(hub) = self.hub.upgrade() else {
                return;
            };
            self.notes.extend(hub.noted());
            while let Some(note) = self.notes.pop() {
                hub.tell_safely(&note);
                tokio::task::consume_budget().await;
            }
        }
    }
}

impl Drop for Telling {
    fn drop(&mut self) {
        let Some(hub) = self.hub.upgrade() else {
            return;
        };
        let rest = hub.take_over();
        self.notes
            .drain(..)
            .chain(rest)
            .for_each(|note| hub.tell_safely(&note));
    }
}
