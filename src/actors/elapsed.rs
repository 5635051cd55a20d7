//! For how long processes with a time limit have been started, by a clock that does not jump.
//!
//! Events are stamped by the wall clock, so a stamp and the wall clock of now say little about the
//! time between them. This runtime notes when it started a process, or first saw that somebody had,
//! and counts from there by the monotonic clock. Of the time before it saw it, the stamp is all
//! there is: never less than none, and judged by the wall clock as it was when the store was
//! opened, so that a later jump does not count.

use std::collections::HashSet;
use std::time::Duration;

use dashmap::DashMap;

use super::keeper::millis;
use super::runtime::Shared;
use crate::model::Incarnation;
use crate::model::record::{ProcessState, Registration};

/// When processes were started, as this runtime knows it.
#[derive(Debug, Default)]
pub(super) struct Elapsed {
    marks: DashMap<Incarnation, Mark>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Duration,
    /// For how long it had been started by then.
    had_ms: u64,
}

impl Elapsed {
    /// A process is started for the first time.
    fn begin(&self, incarnation: Incarnation, monotonic: Duration) {
        let mark = Mark {
            at: monotonic,
            had_ms: 0,
        };
        self.marks.insert(incarnation, mark);
    }

    /// It was not started after all, or it has ended.
    fn forget(&self, incarnation: Incarnation) {
        self.marks.remove(&incarnation);
    }

    /// For how long it has been started; `had_ms` is what its stamp says, if nothing is known yet.
    fn ms(
        &self,
        incarnation: Incarnation,
        monotonic: Duration,
        had_ms: impl FnOnce() -> u64,
    ) -> u64 {
        let mark = *self.marks.entry(incarnation).or_insert_with(|| Mark {
            at: monotonic,
            had_ms: had_ms(),
        });
        mark.had_ms
            .saturating_add(millis(monotonic.saturating_sub(mark.at)))
    }
}

impl Shared {
    /// Wall-clock time as it goes on from the open, without jumps: what is compared with times that
    /// this runtime wrote itself.
    pub(crate) fn steady_ms(&self) -> u64 {
        self.lease_clock.now_epoch_ms()
    }

    /// Notes that a process is started for the first time, if that matters.
    pub(crate) fn first_start(&self, registration: &Registration, state: &ProcessState) {
        if registration.timeout.is_some() && state.first_started.is_none() {
            self.elapsed
                .begin(registration.incarnation, self.monotonic());
        }
    }

    /// A first start that was noted did not happen.
    pub(crate) fn no_first_start(&self, incarnation: Incarnation) {
        self.elapsed.forget(incarnation);
    }

    /// For how long a process has been started, where it has a time limit; otherwise nothing.
    pub(crate) fn started_for_ms(&self, registration: &Registration, state: &ProcessState) -> u64 {
        let (Some(_), Some(first)) = (registration.timeout, &state.first_started) else {
            return 0;
        };
        let had_ms = || self.steady_ms().saturating_sub(first.at_ms);
        self.elapsed
            .ms(registration.incarnation, self.monotonic(), had_ms)
    }

    /// The processes of which it is noted since when they have been started.
    pub(super) fn timed(&self) -> HashSet<Incarnation> {
        self.elapsed.marks.iter().map(|mark| *mark.key()).collect()
    }

    /// Forgets those that have ended.
    pub(super) fn forget_timed(&self, ended: &HashSet<Incarnation>) {
        for incarnation in ended {
            self.elapsed.forget(*incarnation);
        }
    }
}
