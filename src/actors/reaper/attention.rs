//! What the next sweep has to look at.
//!
//! On a store that nobody else writes to, nothing happens to a process that this runtime does not
//! know of. Whatever may have to be recovered is noted here when it happens, and a sweep by
//! interval costs what was noted, however many processes are parked. Everything is walked through
//! at open, when an owner was lost, on request, and from time to time all the same.

use std::collections::HashSet;
use std::sync::Mutex;

use crate::store::keys::Row;
use crate::store::locks::lock;

/// What is noted until the next sweep takes it.
#[derive(Debug, Default)]
pub(crate) struct Attention {
    noted: Mutex<Noted>,
}

#[derive(Debug, Default)]
struct Noted {
    everything: bool,
    rows: HashSet<Row>,
}

/// What one sweep looks at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// Every process that has not ended.
    Everything,
    /// These, if they have not ended.
    Rows(Vec<Row>),
}

impl Attention {
    /// Notes a process that may have to be recovered.
    pub(crate) fn note(&self, row: Row) {
        lock(&self.noted).rows.insert(row);
    }

    /// Notes that any process may have to be.
    pub(crate) fn note_everything(&self) {
        lock(&self.noted).everything = true;
    }

    /// Takes what was noted.
    pub(super) fn take(&self) -> Scope {
        let mut noted = lock(&self.noted);
        let rows = std::mem::take(&mut noted.rows);
        if std::mem::take(&mut noted.everything) {
            return Scope::Everything;
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
}
