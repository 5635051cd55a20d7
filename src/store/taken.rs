//! Which processes a grant was taken away of lately.

use std::collections::{HashSet, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::locks::lock;
use super::write_set::Change;
use crate::model::Incarnation;

/// Most that are kept: some more than one transfer takes away.
const KEPT_MAX: usize = 4_096;

/// Counts the grants that are taken away here, by whatever commit, and keeps of which processes the
/// newest of them were. Whoever asks for one is answered after it is noted: what a reader notes down
/// before it looks tells it at the end, with no look at the store, what it may not give out any more (G5).
#[derive(Debug, Default)]
pub(crate) struct Taken {
    count: AtomicU64,
    newest: Mutex<VecDeque<Incarnation>>,
}

impl Taken {
    /// Notes what changes take away.
    pub(super) fn note(&self, changes: &[Change]) {
        self.add(changes.iter().filter_map(|change| {
            let (Change::Revoke { row, .. } | Change::Prune { row, .. }) = change else {
                return None;
            };
            Some(row.incarnation)
        }));
    }

    fn add(&self, taken: impl Iterator<Item = Incarnation>) {
        let mut taken = taken.peekable();
        if taken.peek().is_none() {
            return;
        }
        let mut newest = lock(&self.newest);
        let mut added = 0;
        for incarnation in taken {
            newest.push_back(incarnation);
            added += 1;
        }
        let over = newest.len().saturating_sub(KEPT_MAX);
        newest.drain(..over);
        self.count.fetch_add(added, Ordering::SeqCst);
    }

    /// How many there have been.
    pub(crate) fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// How many there have been by now, and whose those are since a count; `None` where they are more
    /// than are kept.
    pub(crate) fn since(&self, count: u64) -> (u64, Option<HashSet<Incarnation>>) {
        if self.count() == count {
            return (count, Some(HashSet::new()));
        }
        let newest = lock(&self.newest);
        let now = self.count();
        let since = usize::try_from(now - count).unwrap_or(usize::MAX);
        let begins = newest.len().checked_sub(since);
        (
            now,
            begins.map(|begins| newest.iter().skip(begins).copied().collect()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_since_is_told_as_long_as_it_is_kept() {
        let taken = Taken::default();
        let of = |since: u64| {
            let (now, whose) = taken.since(since);
            let mut whose: Vec<_> = whose?.into_iter().map(Incarnation::get).collect();
            whose.sort_unstable();
            Some((now, whose))
        };
        assert_eq!(of(0), Some((0, vec![])));
        taken.add([7, 8].into_iter().map(Incarnation));
        taken.add([7].into_iter().map(Incarnation));
        assert_eq!(of(0), Some((3, vec![7, 8])));
        assert_eq!(of(2), Some((3, vec![7])));
        assert_eq!(of(3), Some((3, vec![])));
        let many = KEPT_MAX as u64;
        taken.add((0..many).map(Incarnation));
        assert_eq!(of(2), None);
        assert_eq!(of(3).unwrap().1.len(), KEPT_MAX);
        assert_eq!(of(many), Some((many + 3, (many - 3..many).collect())));
    }
}
