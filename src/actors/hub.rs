//! Fan-out: who wants to know of what, and what they are told.
//!
//! Nothing here is ever waited for by a writer: a publisher sets a number and leaves the last few
//! events in a short tail. A reader that has fallen behind the tail reads the log. So a slow or
//! stalled subscriber costs a commit nothing (E7) and holds no more memory than a fast one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use dashmap::DashMap;
use tokio::sync::watch;

use crate::model::{Incarnation, ProcessEvent, SessionScope};

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
    events: VecDeque<(Arc<ProcessEvent>, usize)>,
    bytes: usize,
}

#[derive(Debug)]
struct LogChannel {
    progress: watch::Sender<Progress>,
    tail: Mutex<Tail>,
}

/// What the subscribers of all processes and scopes listen to.
#[derive(Debug)]
pub(crate) struct Hub {
    logs: DashMap<Incarnation, Arc<LogChannel>>,
    scopes: DashMap<SessionScope, watch::Sender<u64>>,
    /// Rises with every change of any process.
    changes: watch::Sender<u64>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            logs: DashMap::new(),
            scopes: DashMap::new(),
            changes: watch::Sender::new(0),
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
        self.changed();
        let Some(last) = events.last().map(|(event, _)| event.sequence) else {
            return;
        };
        let Some(channel) = self.logs.get(&incarnation).map(|found| Arc::clone(&found)) else {
            return;
        };
        {
            let mut tail = channel.tail.lock().unwrap_or_else(PoisonError::into_inner);
            for (event, bytes) in events {
                tail.push(event, *bytes);
            }
        }
        channel.progress.send_modify(|progress| {
            progress.last_sequence = progress.last_sequence.max(last);
            progress.ended |= ended;
        });
    }

    /// Tells the listeners of a log to look at the store themselves.
    pub(crate) fn nudge(&self, incarnation: Incarnation) {
        self.changed();
        if let Some(channel) = self.logs.get(&incarnation) {
            channel
                .progress
                .send_modify(|progress| progress.nudges += 1);
        }
    }

    /// Tells every listener to look at the store, or to find that it is closed.
    pub(crate) fn nudge_all(&self) {
        for channel in &self.logs {
            channel
                .progress
                .send_modify(|progress| progress.nudges += 1);
        }
        for scope in &self.scopes {
            scope.send_modify(|version| *version += 1);
        }
        self.changed();
    }

    fn changed(&self) {
        if self.changes.receiver_count() > 0 {
            self.changes.send_modify(|version| *version += 1);
        }
    }

    /// Tells the listeners of a scope that its grants or wakes changed.
    pub(crate) fn scope_changed(&self, scope: &SessionScope) {
        if let Some(channel) = self.scopes.get(scope) {
            channel.send_modify(|version| *version += 1);
        }
    }

    /// Listens to a log. What is durable before this call is in the store, what becomes durable
    /// after it is told here: registering first and reading then loses nothing (W2, E6).
    pub(crate) fn listen(self: &Arc<Self>, incarnation: Incarnation) -> LogListener {
        let entry = self.logs.entry(incarnation).or_insert_with(|| {
            Arc::new(LogChannel {
                progress: watch::Sender::new(Progress::default()),
                tail: Mutex::default(),
            })
        });
        // Subscribed while the entry is held: the last listener that goes meanwhile would otherwise
        // find nobody, and take the channel away from under this one.
        let progress = entry.progress.subscribe();
        let channel = Arc::clone(&entry);
        drop(entry);
        LogListener {
            hub: Arc::clone(self),
            incarnation,
            progress: Some(progress),
            channel,
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

    /// Logs and scopes that somebody listens to.
    #[cfg(test)]
    pub(crate) fn listened(&self) -> (usize, usize) {
        (self.logs.len(), self.scopes.len())
    }
}

impl Tail {
    fn push(&mut self, event: &Arc<ProcessEvent>, bytes: usize) {
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

    fn after(&self, sequence: u64, limit: usize) -> Option<Vec<Arc<ProcessEvent>>> {
        let first = self.events.front()?.0.sequence;
        let skip = usize::try_from(sequence.checked_add(1)?.checked_sub(first)?).ok()?;
        if skip >= self.events.len() {
            return None;
        }
        Some(
            self.events
                .iter()
                .skip(skip)
                .take(limit)
                .map(|(event, _)| Arc::clone(event))
                .collect(),
        )
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

    /// Events after a sequence, if the tail still has the next one.
    pub(crate) fn tail_after(&self, sequence: u64, limit: usize) -> Option<Vec<Arc<ProcessEvent>>> {
        self.channel
            .tail
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .after(sequence, limit)
    }
}

impl Drop for LogListener {
    fn drop(&mut self) {
        self.progress = None;
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
mod tests {
    use super::*;
    use crate::model::Payload;

    fn event(sequence: u64) -> (Arc<ProcessEvent>, usize) {
        let event = ProcessEvent {
            process_id: "p".into(),
            incarnation: Incarnation(1),
            sequence,
            event_type: "e".into(),
            payload: Payload::default(),
            occurred_at_ms: 0,
            replay_key: None,
        };
        (Arc::new(event), 4)
    }

    fn sequences(found: Option<Vec<Arc<ProcessEvent>>>) -> Option<Vec<u64>> {
        found.map(|events| events.iter().map(|event| event.sequence).collect())
    }

    #[test]
    fn a_tail_is_contiguous_and_bounded() {
        let hub = Arc::new(Hub::default());
        let mut listener = hub.listen(Incarnation(1));
        for sequence in 1..=300 {
            hub.publish(Incarnation(1), &[event(sequence)], false);
        }
        assert_eq!(listener.seen().last_sequence, 300);
        assert_eq!(
            sequences(listener.tail_after(297, 9)),
            Some(vec![298, 299, 300])
        );
        assert_eq!(
            sequences(listener.tail_after(43, 9)),
            None,
            "fell out of the tail"
        );
        assert_eq!(sequences(listener.tail_after(300, 9)), None);
        hub.publish(Incarnation(1), &[event(302)], false);
        assert_eq!(
            sequences(listener.tail_after(299, 9)),
            None,
            "a gap is never bridged"
        );
    }

    #[test]
    fn w2_a_listener_is_not_lost_to_one_that_leaves() {
        let hub = Arc::new(Hub::default());
        let leaving = Arc::clone(&hub);
        let others = std::thread::spawn(move || {
            for _ in 0..200_000 {
                drop(leaving.listen(Incarnation(1)));
            }
        });
        let mut lost = 0;
        while !others.is_finished() {
            let mut listener = hub.listen(Incarnation(1));
            hub.nudge(Incarnation(1));
            lost += u32::from(listener.seen().nudges == 0);
        }
        others.join().unwrap();
        assert_eq!(lost, 0, "listeners that heard nothing");
    }

    #[test]
    fn a_cursor_at_the_end_of_all_numbers_is_no_overflow() {
        let hub = Arc::new(Hub::default());
        let listener = hub.listen(Incarnation(1));
        hub.publish(Incarnation(1), &[event(1)], false);
        assert_eq!(sequences(listener.tail_after(u64::MAX, 9)), None);
    }

    #[test]
    fn w4_dropping_the_last_listener_leaves_nothing_behind() {
        let hub = Arc::new(Hub::default());
        let first = hub.listen(Incarnation(1));
        let second = hub.listen(Incarnation(1));
        let scope = hub.listen_scope(&SessionScope::new("s"));
        assert_eq!(hub.listened(), (1, 1));
        drop(first);
        assert_eq!(hub.listened(), (1, 1));
        drop((second, scope));
        assert_eq!(hub.listened(), (0, 0));
    }
}
