//! Fan-out: who wants to know of what, and what they are told.
//!
//! Nothing here is ever waited for by a writer: a publisher sets a number and leaves the last few
//! events in a short tail. A reader that has fallen behind the tail reads the log. So a slow or
//! stalled subscriber costs a commit nothing (E7) and holds no more memory than a fast one. Nor does
//! the committer wake anybody: what there is to tell is noted, and a task tells it (`notifier.rs`). Those
//! who wait for the next event of a log are woken by the actor of its process, in one go for all that
//! it was told together.

mod grants;
mod notifier;
mod watcher;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use dashmap::DashMap;
use tokio::sync::watch;

use crate::model::{Incarnation, ProcessEvent, SessionScope};
use crate::store::locks::lock;

use grants::GrantChannel;
pub(crate) use grants::{GrantListener, GrantOf, GrantStirs};
use notifier::{Note, Notes};
use watcher::Bell;
pub(crate) use watcher::Watcher;

/// Most events that a tail keeps.
const TAIL_EVENTS_MAX: usize = 256;
/// Most bytes of payload that a tail keeps; a single larger event empties it.
const TAIL_BYTES_MAX: usize = 1 << 20;

/// How far a log has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Progress {
    pub(crate) last_sequence: u64,
    /// The last event is terminal.
    pub(crate) ended: bool,
    /// Rises whenever something happened that only a look at the store can tell.
    pub(crate) nudges: u64,
}

#[derive(Debug, Default)]
struct Tail {
    /// Listeners that read it: without one nothing is kept.
    readers: usize,
    events: VecDeque<(Arc<ProcessEvent>, usize)>,
    bytes: usize,
    /// The newest event is terminal.
    ended: bool,
}

/// Events that a tail still had.
#[derive(Debug)]
pub(crate) struct FromTail {
    pub(crate) events: Vec<Arc<ProcessEvent>>,
    /// The last of them is terminal: nothing comes after it.
    pub(crate) ended: bool,
}

#[derive(Debug)]
struct LogChannel {
    progress: watch::Sender<Progress>,
    tail: Mutex<Tail>,
    /// It was pruned here. No incarnation comes back from that.
    pruned: AtomicBool,
}

/// What a watcher can be told of.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Topic {
    /// Any change of a process.
    Process(Incarnation),
    /// The grants and wakes of exactly this scope.
    Scope(SessionScope),
    /// The same of a session, its frames included, those yet unknown too.
    Session(String),
}

impl Topic {
    /// What a scope's grants and wakes belong to.
    fn of_scope(scope: &SessionScope) -> [Self; 2] {
        [
            Self::Scope(scope.clone()),
            Self::Session(scope.session_id.clone()),
        ]
    }
}

/// What the subscribers of all processes and scopes listen to.
#[derive(Debug)]
pub(crate) struct Hub {
    logs: DashMap<Incarnation, Arc<LogChannel>>,
    scopes: DashMap<SessionScope, watch::Sender<u64>>,
    /// What became of each grant that somebody reads by.
    grants: DashMap<GrantOf, Arc<GrantChannel>>,
    /// The bells of watchers, by what each watches.
    bells: DashMap<Topic, Vec<Arc<Bell>>>,
    /// How many watchers there are: without one, a publisher looks nowhere.
    watchers: AtomicUsize,
    /// Rises with every change of any process.
    changes: watch::Sender<u64>,
    /// What listeners are still to be told.
    notes: Notes,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            logs: DashMap::new(),
            scopes: DashMap::new(),
            grants: DashMap::new(),
            bells: DashMap::new(),
            watchers: AtomicUsize::new(0),
            changes: watch::Sender::new(0),
            notes: Notes::default(),
        }
    }
}

impl Hub {
    /// Tells the listeners of a log what has become durable.
    pub(crate) fn publish(
        &self,
        incarnation: Incarnation,
        events: &[(Arc<ProcessEvent>, usize)],
        ended: bool,
    ) {
        self.changed(incarnation);
        let Some(last) = events.last().map(|(event, _)| event.sequence) else {
            return;
        };
        let Some(channel) = self.logs.get(&incarnation).map(|found| Arc::clone(&found)) else {
            return;
        };
        {
            let mut tail = channel.tail();
            if tail.readers > 0 {
                for (event, bytes) in events {
                    tail.push(event, *bytes);
                }
                tail.ended |= ended;
            }
        }
        channel.progress.send_modify(|progress| {
            progress.last_sequence = progress.last_sequence.max(last);
            progress.ended |= ended;
        });
    }

    /// Tells the listeners of a log to look at the store themselves.
    pub(crate) fn nudge(&self, incarnation: Incarnation) {
        self.changed(incarnation);
        if self.logs.contains_key(&incarnation) {
            self.note(Note::Log(incarnation));
        }
    }

    /// Whoever listens to a log finds it pruned from here on (G5). Those who wait are to be told
    /// besides.
    pub(crate) fn pruned(&self, incarnation: Incarnation) {
        if let Some(channel) = self.logs.get(&incarnation) {
            channel.pruned.store(true, Ordering::Release);
        }
    }

    /// Tells every listener to look at the store, or to find that it is closed.
    pub(crate) fn nudge_all(&self) {
        for channel in all_of(&self.logs) {
            channel.nudge();
        }
        for scope in all_of(&self.scopes) {
            scope.send_modify(|version| *version += 1);
        }
        for grant in all_of(&self.grants) {
            grant.stir();
        }
        for bell in all_of(&self.bells).iter().flatten() {
            bell.ring();
        }
        self.changes.send_modify(|version| *version += 1);
    }

    fn changed(&self, incarnation: Incarnation) {
        if self.changes.receiver_count() > 0 {
            self.note(Note::Changes);
        }
        self.process_changed(incarnation);
    }

    /// Tells the watchers of a process, and nobody else. It is shown with its wake target, and that another one
    /// is set there is no event and no change of the feed.
    pub(crate) fn process_changed(&self, incarnation: Incarnation) {
        if self.is_watched() && self.bells.contains_key(&Topic::Process(incarnation)) {
            self.note(Note::Process(incarnation));
        }
    }

    /// A watcher that is counted after this looked sees in the store what this is about: the store
    /// shows a commit before anybody is told of it.
    fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) > 0
    }

    /// Tells the listeners of a scope that its grants or wakes changed.
    pub(crate) fn scope_changed(&self, scope: &SessionScope) {
        let is_watched = || {
            let topics = Topic::of_scope(scope);
            self.is_watched() && topics.iter().any(|topic| self.bells.contains_key(topic))
        };
        if self.scopes.contains_key(scope) || is_watched() {
            self.note(Note::Scope(scope.clone()));
        }
    }

    /// Listens to a log. What is durable before this call is in the store, what becomes durable
    /// after it is told here: registering first and reading then loses nothing (W2, E6).
    pub(crate) fn listen(self: &Arc<Self>, incarnation: Incarnation) -> LogListener {
        self.listen_as(incarnation, false)
    }

    /// The same for somebody who wants the events themselves: from now on the newest of them are
    /// kept in a tail.
    pub(crate) fn read_log(self: &Arc<Self>, incarnation: Incarnation) -> LogListener {
        self.listen_as(incarnation, true)
    }

    fn listen_as(self: &Arc<Self>, incarnation: Incarnation, reads: bool) -> LogListener {
        let entry = self.logs.entry(incarnation).or_insert_with(|| {
            Arc::new(LogChannel {
                progress: watch::Sender::new(Progress::default()),
                tail: Mutex::default(),
                pruned: AtomicBool::new(false),
            })
        });
        // Counted while the entry is held: the last listener before this one, on its way out,
        // would otherwise take the channel off the map, and nobody would ever be told anything.
        let progress = Some(entry.progress.subscribe());
        let channel = Arc::clone(&entry);
        drop(entry);
        if reads {
            channel.tail().readers += 1;
        }
        LogListener {
            hub: Arc::clone(self),
            incarnation,
            progress,
            channel,
            reads,
        }
    }

    /// Listens to the grants and wakes of a scope.
    pub(crate) fn listen_scope(self: &Arc<Self>, scope: &SessionScope) -> ScopeListener {
        let version = self
            .scopes
            .entry(scope.clone())
            .or_insert_with(|| watch::Sender::new(0))
            .subscribe();
        ScopeListener {
            hub: Arc::clone(self),
            scope: scope.clone(),
            version: Some(version),
        }
    }

    /// Listens to changes of any process.
    pub(crate) fn listen_changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Logs, scopes and grants that somebody listens to, and topics that somebody watches.
    #[cfg(test)]
    pub(crate) fn listened(&self) -> [usize; 4] {
        [
            self.logs.len(),
            self.scopes.len(),
            self.grants.len(),
            self.bells.len(),
        ]
    }
}

/// All that a map holds now. A part of it is locked only while it is looked through: whoever is woken
/// may come back to it at once.
fn all_of<K: Eq + std::hash::Hash, V: Clone>(map: &DashMap<K, V>) -> Vec<V> {
    map.iter().map(|entry| entry.value().clone()).collect()
}

impl LogChannel {
    fn nudge(&self) {
        self.progress.send_modify(|progress| progress.nudges += 1);
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        lock(&self.tail)
    }
}

impl Tail {
    fn push(&mut self, event: &Arc<ProcessEvent>, bytes: usize) {
        // Of the newest here, which this becomes: also behind a terminal one that was published first.
        self.ended = false;
        let follows = self
            .events
            .back()
            .is_none_or(|(last, _)| last.sequence + 1 == event.sequence);
        if !follows {
            // Two writers published out of order: whoever needs the gap finds it in the log.
            self.events.clear();
            self.bytes = 0;
        }
        self.events.push_back((Arc::clone(event), bytes));
        self.bytes += bytes;
        while self.events.len() > TAIL_EVENTS_MAX || self.bytes > TAIL_BYTES_MAX {
            match self.events.pop_front() {
                Some((_, bytes)) => self.bytes -= bytes,
                None => break,
            }
        }
    }

    fn after(&self, sequence: u64, limit: usize, bytes_max: usize) -> Option<FromTail> {
        let first = self.events.front()?.0.sequence;
        let skip = usize::try_from(sequence.checked_add(1)?.checked_sub(first)?).ok()?;
        if skip >= self.events.len() {
            return None;
        }
        let mut total = 0;
        let mut events = Vec::new();
        for (event, bytes) in self.events.iter().skip(skip).take(limit) {
            total += bytes;
            // The first one however large it is: without it nobody would come any further.
            if total > bytes_max && !events.is_empty() {
                break;
            }
            events.push(Arc::clone(event));
        }
        let ended = self.ended && skip + events.len() == self.events.len();
        Some(FromTail { events, ended })
    }
}

/// A registration with the log of one incarnation; dropping it ends it.
#[derive(Debug)]
pub(crate) struct LogListener {
    hub: Arc<Hub>,
    incarnation: Incarnation,
    channel: Arc<LogChannel>,
    /// Taken when it is dropped, so that the channel can be counted without it.
    progress: Option<watch::Receiver<Progress>>,
    /// It reads the tail.
    reads: bool,
}

impl LogListener {
    /// Waits for the next news; `false` when there will be none.
    ///
    /// # Cancel safety
    /// Safe: news that came while nobody waited are seen by the next call.
    pub(crate) async fn changed(&mut self) -> bool {
        match &mut self.progress {
            Some(progress) => progress.changed().await.is_ok(),
            None => false,
        }
    }

    /// The newest news; from now on only later ones count as changes.
    pub(crate) fn seen(&mut self) -> Progress {
        self.progress
            .as_mut()
            .map(|progress| *progress.borrow_and_update())
            .unwrap_or_default()
    }

    /// Whether its process was pruned here since this listens.
    pub(crate) fn is_pruned(&self) -> bool {
        self.channel.pruned.load(Ordering::Acquire)
    }

    /// Events after a sequence, if the tail still has the next one: at most `limit`, and of no more
    /// bytes of payload than that, but for a single larger one.
    pub(crate) fn tail_after(
        &self,
        sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Option<FromTail> {
        self.channel.tail().after(sequence, limit, bytes_max)
    }
}

impl Drop for LogListener {
    fn drop(&mut self) {
        self.progress = None;
        if self.reads {
            let mut tail = self.channel.tail();
            tail.readers -= 1;
            if tail.readers == 0 {
                // Whoever only waits for the end holds no events.
                *tail = Tail::default();
            }
        }
        self.hub.logs.remove_if(&self.incarnation, |_, channel| {
            channel.progress.receiver_count() == 0
        });
    }
}

/// A registration with a scope; dropping it ends it.
#[derive(Debug)]
pub(crate) struct ScopeListener {
    hub: Arc<Hub>,
    scope: SessionScope,
    version: Option<watch::Receiver<u64>>,
}

impl ScopeListener {
    /// Waits until the scope's grants or wakes may have changed.
    ///
    /// # Cancel safety
    /// Safe: a change that came while nobody waited is seen by the next call.
    pub(crate) async fn changed(&mut self) -> bool {
        match &mut self.version {
            Some(version) => version.changed().await.is_ok(),
            None => false,
        }
    }
}

impl Drop for ScopeListener {
    fn drop(&mut self) {
        self.version = None;
        self.hub
            .scopes
            .remove_if(&self.scope, |_, channel| channel.receiver_count() == 0);
    }
}

#[cfg(test)]
mod tests;
