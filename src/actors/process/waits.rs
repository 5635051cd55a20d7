//! Signals and waits of one attempt.
//!
//! The n-th wait for a name takes the n-th signal of that name. What a wait returned is in the log
//! before the engine sees it, and is returned again when the process is run again.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::messages::WaitReply;
use crate::model::event::{EventBody, RuntimeEvent};
use crate::model::limits::{EVENTS_PAGE_MAX, RUNTIME_EVENT_PREFIX, SIGNAL_EVENT_PREFIX};
use crate::model::record::Registration;
use crate::model::{FencingToken, ProcessEvent, Result, WaitResult};
use crate::store::process_store::ProcessStore;

/// Bytes of events that are read at a time.
const PAGE_BYTES_MAX: usize = 1 << 20;

/// What a log says of signals and waits, up to some sequence.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct History {
    /// Sequences of signals by name, in the order of the log.
    signals: HashMap<String, Vec<u64>>,
    /// What waits returned, each with the sequence that says so; the last word counts.
    results: HashMap<(String, u64), (u64, WaitResult)>,
    through: u64,
}

impl History {
    /// Whether a process can have one at all.
    pub(super) fn concerns(registration: &Registration) -> bool {
        registration
            .event_types
            .iter()
            .any(|declared| declared.name.starts_with(SIGNAL_EVENT_PREFIX))
    }

    /// Reads it from the log. Blocks.
    pub(super) fn load(store: &ProcessStore, registration: &Registration) -> Result<Self> {
        let mut history = Self::default();
        loop {
            let page = store.view()?.events(
                &registration.id,
                registration.incarnation,
                history.through + 1,
                EVENTS_PAGE_MAX,
                PAGE_BYTES_MAX,
            )?;
            if page.is_empty() {
                return Ok(history);
            }
            for event in &page {
                history.note(event)?;
            }
        }
    }

    /// Takes note of an event that follows on those seen so far.
    pub(super) fn note(&mut self, event: &ProcessEvent) -> Result<()> {
        if event.sequence <= self.through {
            return Ok(());
        }
        self.through = event.sequence;
        if let Some(name) = event.event_type.strip_prefix(SIGNAL_EVENT_PREFIX) {
            self.signals
                .entry(name.to_owned())
                .or_default()
                .push(event.sequence);
        } else if event.event_type.starts_with(RUNTIME_EVENT_PREFIX)
            && let EventBody::Runtime(RuntimeEvent::Resumed {
                signal_name,
                number,
                result,
            }) = EventBody::of(event)?
            && result != WaitResult::Dropped
        {
            self.results
                .insert((signal_name, number), (event.sequence, result));
        }
        Ok(())
    }

    /// Forgets what turned out not to have happened.
    fn truncate(&mut self, last_sequence: u64) {
        self.through = self.through.min(last_sequence);
        for sequences in self.signals.values_mut() {
            sequences.retain(|sequence| *sequence <= last_sequence);
        }
        self.results
            .retain(|_, (sequence, _)| *sequence <= last_sequence);
    }
}

/// Where a wait stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing has been said of it yet.
    New,
    /// The record says that the process waits.
    Begun,
    /// Its end is on its way to the log.
    Ending(WaitResult),
    /// Its end is in the log; it waits for a slot.
    Ended(WaitResult),
}

#[derive(Debug)]
pub(super) struct OpenWait {
    pub(super) signal_name: String,
    pub(super) number: u64,
    pub(super) phase: Phase,
    /// Whether `process.waiting` was said for it.
    pub(super) announced: bool,
    pub(super) deadline_ms: Option<u64>,
    /// The id by which the engine knows it.
    pub(super) listener: u64,
    /// `None` once the engine has dropped it.
    pub(super) reply: Option<WaitReply>,
}

/// Open waits by their ids: an attempt seldom has more than one, so a list that takes no more room
/// than that.
#[derive(Debug, Default)]
pub(super) struct OpenWaits(Vec<(u64, OpenWait)>);

impl OpenWaits {
    pub(super) fn insert(&mut self, wait_id: u64, wait: OpenWait) {
        self.0.reserve_exact(1);
        self.0.push((wait_id, wait));
    }

    pub(super) fn get_mut(&mut self, wait_id: u64) -> Option<&mut OpenWait> {
        let found = self.0.iter_mut().find(|(id, _)| *id == wait_id);
        found.map(|(_, wait)| wait)
    }

    pub(super) fn remove(&mut self, wait_id: u64) -> Option<OpenWait> {
        let at = self.0.iter().position(|(id, _)| *id == wait_id)?;
        Some(self.0.swap_remove(at).1)
    }
}

/// A wait that is to begin.
#[derive(Debug)]
pub(super) struct NewWait {
    pub(super) token: FencingToken,
    pub(super) wait_id: u64,
    pub(super) signal_name: String,
    pub(super) timeout: Option<Duration>,
    pub(super) reply: WaitReply,
}

/// More of the log is being taken note of.
#[derive(Debug, Default)]
pub(super) struct Behind {
    /// Waits that begin once that is done.
    pub(super) held: Vec<NewWait>,
    /// How often it could not be read, one time after the other.
    pub(super) failures: u32,
}

#[derive(Debug)]
struct Numbers {
    signal_name: String,
    next: u64,
    /// Given back by waits that were dropped; taken again first.
    returned: BTreeSet<u64>,
}

/// The waits of one attempt.
#[derive(Debug, Default)]
pub(super) struct Waits {
    history: History,
    /// By name; few, as names are declared.
    numbers: Vec<Numbers>,
    pub(super) open: OpenWaits,
    /// Of the log not everything that is durable has been taken note of.
    pub(super) behind: Option<Box<Behind>>,
}

impl Waits {
    pub(super) fn new(history: History) -> Self {
        Self {
            history,
            ..Self::default()
        }
    }

    /// Takes note of events, durable or on their way.
    pub(super) fn note(&mut self, event: &ProcessEvent) -> Result<()> {
        self.history.note(event)
    }

    /// The sequence through which the log has been taken note of.
    pub(super) fn seen(&self) -> u64 {
        self.history.through
    }

    /// Forgets events that turned out not to have happened.
    pub(super) fn rewind(&mut self, last_sequence: u64) {
        self.history.truncate(last_sequence);
    }

    /// Gives a new wait its number.
    pub(super) fn take_number(&mut self, signal_name: &str) -> u64 {
        let known = self.numbers_of(signal_name);
        if let Some(numbers) = known {
            return numbers.returned.pop_first().unwrap_or_else(|| {
                numbers.next += 1;
                numbers.next
            });
        }
        self.numbers.reserve_exact(1);
        self.numbers.push(Numbers {
            signal_name: signal_name.to_owned(),
            next: 1,
            returned: BTreeSet::new(),
        });
        1
    }

    /// Takes a number back.
    pub(super) fn return_number(&mut self, signal_name: &str, number: u64) {
        if let Some(numbers) = self.numbers_of(signal_name) {
            numbers.returned.insert(number);
        }
    }

    fn numbers_of(&mut self, signal_name: &str) -> Option<&mut Numbers> {
        self.numbers
            .iter_mut()
            .find(|numbers| numbers.signal_name == signal_name)
    }

    /// What a wait of this number returned in an earlier attempt.
    pub(super) fn recorded(&self, signal_name: &str, number: u64) -> Option<WaitResult> {
        self.history
            .results
            .get(&(signal_name.to_owned(), number))
            .map(|(_, result)| *result)
    }

    /// Forgets that a wait timed out whose engine never heard of it: the next one of its number
    /// waits anew, and what that returns is the last word.
    pub(super) fn forget_timeout(&mut self, signal_name: &str, number: u64) {
        let key = (signal_name.to_owned(), number);
        if let Some((_, WaitResult::TimedOut)) = self.history.results.get(&key) {
            self.history.results.remove(&key);
        }
    }

    /// The open wait that an engine knows by this id.
    pub(super) fn heard_by(&self, wait_id: u64) -> Option<u64> {
        self.open
            .0
            .iter()
            .find(|(_, wait)| wait.listener == wait_id)
            .map(|(key, _)| *key)
    }

    /// An open wait that nobody listens to any more and whose signal is on its way to the log: the
    /// next wait of its number takes its place.
    pub(super) fn adoptable(&mut self, signal_name: &str, number: u64) -> Option<&mut OpenWait> {
        self.open.0.iter_mut().map(|(_, wait)| wait).find(|wait| {
            wait.reply.is_none()
                && wait.number == number
                && wait.signal_name == signal_name
                && matches!(wait.phase, Phase::Ending(WaitResult::Signal { .. }))
        })
    }

    /// The signal that a wait of this number takes, if it has arrived.
    pub(super) fn signal(&self, signal_name: &str, number: u64) -> Option<u64> {
        let at = usize::try_from(number.checked_sub(1)?).ok()?;
        self.history.signals.get(signal_name)?.get(at).copied()
    }

    /// Waits whose signal has arrived and whose end is not on its way.
    pub(super) fn ready(&self) -> Vec<(u64, u64)> {
        let mut ready: Vec<_> = self
            .open
            .0
            .iter()
            .filter(|(_, wait)| matches!(wait.phase, Phase::New | Phase::Begun))
            .filter_map(|(id, wait)| Some((*id, self.signal(&wait.signal_name, wait.number)?)))
            .collect();
        ready.sort_unstable();
        ready
    }

    /// Waits that their engine listens to and of which nothing has been said.
    pub(super) fn unsaid(&self) -> Vec<u64> {
        let unsaid = self.open.0.iter().filter(|(_, wait)| {
            wait.phase == Phase::New && !wait.announced && wait.reply.is_some()
        });
        unsaid.map(|(id, _)| *id).collect()
    }

    /// Whether the engine waits for something that has not come.
    pub(super) fn is_waiting(&self) -> bool {
        self.open
            .0
            .iter()
            .any(|(_, wait)| wait.phase == Phase::Begun)
    }

    /// Waits that have ended and whose engine has not been told.
    pub(super) fn ended(&self) -> Vec<u64> {
        let mut ended: Vec<_> = self
            .open
            .0
            .iter()
            .filter(|(_, wait)| matches!(wait.phase, Phase::Ended(_)))
            .map(|(id, _)| *id)
            .collect();
        ended.sort_unstable();
        ended
    }
}
