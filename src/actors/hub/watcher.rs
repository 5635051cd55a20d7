//! A watcher of many processes and scopes at once.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::watch;

use super::{Hub, Topic};
use crate::model::Incarnation;

impl Hub {
    /// A watcher of any number of processes and scopes, of none to begin with.
    pub(crate) fn watcher(self: &Arc<Self>) -> Watcher {
        self.watchers.fetch_add(1, Ordering::SeqCst);
        let bell = Arc::new(Bell(watch::Sender::new(0)));
        Watcher {
            hub: Arc::clone(self),
            news: bell.0.subscribe(),
            bell,
            topics: HashSet::new(),
        }
    }
}

/// A number that rises: however often it did since somebody looked, they look once.
#[derive(Debug)]
pub(super) struct Bell(watch::Sender<u64>);

impl Bell {
    pub(super) fn ring(&self) {
        self.0.send_modify(|times| *times += 1);
    }
}

/// Hears of many things, with one notice pending at the most; dropping it ends it. What it costs a
/// publisher is to look whether somebody watches, and a notice that is not waited for.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    bell: Arc<Bell>,
    news: watch::Receiver<u64>,
    topics: HashSet<Topic>,
}

impl Watcher {
    /// Watches a topic from now on; `false` if it did before.
    pub(crate) fn hear(&mut self, topic: Topic) -> bool {
        if self.topics.contains(&topic) {
            return false;
        }
        self.hub
            .bells
            .entry(topic.clone())
            .or_default()
            .push(Arc::clone(&self.bell));
        self.topics.insert(topic)
    }

    /// Watches these processes and no others; whether one of them is new.
    pub(crate) fn follow(&mut self, processes: impl Iterator<Item = Incarnation>) -> bool {
        let wanted: HashSet<Topic> = processes.map(Topic::Process).collect();
        let gone: Vec<Topic> = self
            .topics
            .iter()
            .filter(|topic| matches!(topic, Topic::Process(_)) && !wanted.contains(topic))
            .cloned()
            .collect();
        for topic in gone {
            self.forget(&topic);
            self.topics.remove(&topic);
        }
        let mut is_new = false;
        for topic in wanted {
            is_new |= self.hear(topic);
        }
        is_new
    }

    /// Waits until something happened since this last returned.
    ///
    /// # Cancel safety
    /// Safe: what happens while nobody waits is seen by the next call.
    pub(crate) async fn rung(&mut self) {
        // It holds a sender of its own: there is always one.
        let _ = self.news.changed().await;
    }

    /// Has the next wait return at once.
    pub(crate) fn look_again(&self) {
        self.bell.ring();
    }

    fn forget(&self, topic: &Topic) {
        self.hub.bells.remove_if_mut(topic, |_, bells| {
            bells.retain(|bell| !Arc::ptr_eq(bell, &self.bell));
            bells.is_empty()
        });
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        for topic in &self.topics {
            self.forget(topic);
        }
        self.hub.watchers.fetch_sub(1, Ordering::SeqCst);
    }
}
