//! What the next sweep has to look at.
//!
//! On a store that nobody else writes to, nothing happens to a process that this runtime does not
//! know of. Whatever may have to be recovered is noted here when it happens, and a sweep by
//! interval costs what was noted, however many processes are parked. Everything is walked through
//! at open, when an owner was lost, on request, and once in a time to live all the same, or as seldom
//! as makes it a small part of the time, so that nothing is forgotten for good (V1); such a walk passes
//! over what somebody else executes and nobody has asked for.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::store::keys::Row;
use crate::store::locks::lock;

/// What is noted until the next sweep takes it.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    noted: Mutex<Noted>,
    /// For how long the last walk looked at processes, in microseconds.
    walk_took_us: AtomicU64,
}

#[derive(Debug, Default)]
struct Noted {
    everything: bool,
    walk: bool,
    rows: HashSet<Row>,
    /// What the last walk found to be executed elsewhere: nothing is to be done about those until
    /// they are noted.
    elsewhere: HashSet<Row>,
}

/// What one sweep looks at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every process that has not ended.
    Everything,
    /// The same, but for those that are known to be executed elsewhere.
    Walk,
    /// These, if they have not ended.
    Rows(Vec<Row>),
}

impl Attention {
    /// Notes a process that may have to be recovered.
    pub(crate) fn note(&self, row: Row) {
        let mut noted = lock(&self.noted);
        noted.elsewhere.remove(&row);
        noted.rows.insert(row);
    }

    /// Notes that any process may have to be.
    pub(crate) fn note_everything(&self) {
        lock(&self.noted).everything = true;
    }

    /// Notes that it is time for a walk.
    pub(super) fn note_walk(&self) {
        lock(&self.noted).walk = true;
    }

    /// Notes for how long a walk looked at processes.
    pub(super) fn walked_for(&self, looked: Duration) {
        let looked_us = u64::try_from(looked.as_micros()).unwrap_or(u64::MAX);
        self.walk_took_us.store(looked_us, Ordering::Relaxed);
    }

    /// For how long the last walk looked at processes.
    pub(super) fn walk_took(&self) -> Duration {
        Duration::from_micros(self.walk_took_us.load(Ordering::Relaxed))
    }

    /// Of some processes, those that a walk has to look at, and the others.
    pub(super) fn not_elsewhere(&self, rows: Vec<Row>) -> (Vec<Row>, Vec<Row>) {
        let noted = lock(&self.noted);
        rows.into_iter()
            .partition(|row| !noted.elsewhere.contains(row))
    }

    /// Notes of a process that somebody else executes it; not if it was noted meanwhile.
    pub(super) fn found_elsewhere(&self, row: Row) {
        let mut noted = lock(&self.noted);
        if !noted.rows.contains(&row) {
            noted.elsewhere.insert(row);
        }
    }

    /// Forgets those of which a walk has seen nothing any more.
    pub(super) fn keep_elsewhere(&self, seen: &HashSet<Row>) {
        lock(&self.noted).elsewhere.retain(|row| seen.contains(row));
    }

    /// Takes what was noted.
    pub(super) fn take(&self) -> Scope {
        let mut noted = lock(&self.noted);
        let rows = std::mem::take(&mut noted.rows);
        let walk = std::mem::take(&mut noted.walk);
        if std::mem::take(&mut noted.everything) {
            return Scope::Everything;
        }
        if walk {
            return Scope::Walk;
        }
        Scope::Rows(rows.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Incarnation;

    fn row(incarnation: u64) -> Row {
        Row {
            created_at_ms: 1,
            incarnation: Incarnation(incarnation),
        }
    }

    #[test]
    fn what_was_noted_is_taken_once() {
        let attention = Attention::default();
        attention.note(row(1));
        attention.note(row(1));
        assert_eq!(attention.take(), Scope::Rows(vec![row(1)]));
        assert_eq!(attention.take(), Scope::Rows(Vec::new()));
        attention.note(row(2));
        attention.note_everything();
        assert_eq!(attention.take(), Scope::Everything);
        assert_eq!(attention.take(), Scope::Rows(Vec::new()));
    }

    #[test]
    fn what_is_executed_elsewhere_is_passed_over_until_it_is_noted() {
        let attention = Attention::default();
        let look_at = || attention.not_elsewhere(vec![row(1), row(2)]).0;
        attention.found_elsewhere(row(1));
        assert_eq!(look_at(), [row(2)]);
        attention.note(row(1));
        assert_eq!(look_at(), [row(1), row(2)]);
        // Found so on a view that is older than the note.
        attention.found_elsewhere(row(1));
        assert_eq!(look_at(), [row(1), row(2)]);
        attention.take();
        attention.found_elsewhere(row(1));
        attention.keep_elsewhere(&HashSet::from([row(1)]));
        assert_eq!(look_at(), [row(2)]);
        attention.keep_elsewhere(&HashSet::new());
        assert_eq!(look_at(), [row(1), row(2)]);
    }
}
