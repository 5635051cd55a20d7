//! For how long processes with a time limit have been started, by clocks that do not jump.
//!
//! Events are stamped by the wall clock, so a stamp and the wall clock of now say little about the
//! time between them. Two things count instead. Within an open this runtime notes when it started a
//! process, and counts from there by the monotonic clock. Across opens there is the age of the store
//! (`model/age.rs`): it goes on by the monotonic clock, is made durable with every heartbeat, and is
//! said in the event of such a process's first start. For how long the store was closed while the
//! machine was started anew nothing says but the wall clock, which may have jumped: it counts as no time.
//!
//! A pause before a retry ends by the wall clock as it went on from the open that began it. An open whose
//! wall clock is behind that one goes by the longest that the pause can have been, from when it found it.

use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::Duration;

use dashmap::DashMap;

use tracing::warn;

use super::keeper::millis;
use super::runtime::Shared;
use crate::model::age::AgeMark;
use crate::model::event::{EventBody, RuntimeEvent};
use crate::model::record::{ProcessState, Registration};
use crate::model::{Error, Incarnation, Result};

/// Events of a log that are looked through at once, and their bytes.
const LOG_PAGE: usize = 64;
const LOG_PAGE_BYTES: usize = 64 << 10;

/// When processes were started, as this runtime knows it.
#[derive(Debug, Default)]
pub(super) struct Elapsed {
    marks: DashMap<Incarnation, Mark>,
    /// Pauses before a retry that are known here: by their stamp, when each ends.
    pauses: DashMap<Incarnation, (u64, u64)>,
    /// How old the store was when it was opened, and what the monotonic clock showed then.
    opened: OnceLock<(u64, Duration)>,
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Duration,
    /// For how long it had been started by then.
    had_ms: u64,
}

impl Elapsed {
    fn opened(&self) -> (u64, Duration) {
        self.opened.get().copied().unwrap_or_default()
    }

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
        self.pauses.remove(&incarnation);
    }

    /// When a pause with this stamp ends that may have been as long as that: no later than if it had
    /// begun when it was first heard of here.
    fn pause_ends_ms(
        &self,
        incarnation: Incarnation,
        retry_at_ms: u64,
        longest_ms: u64,
        now_ms: u64,
    ) -> u64 {
        let mut known = self.pauses.entry(incarnation).or_default();
        if known.0 != retry_at_ms {
            *known = (
                retry_at_ms,
                retry_at_ms.min(now_ms.saturating_add(longest_ms)),
            );
        }
        known.1
    }

    /// For how long it has been started; `had_ms` is what its log says, if nothing is known yet.
    /// Noted once that could be read.
    fn ms(
        &self,
        incarnation: Incarnation,
        monotonic: Duration,
        had_ms: impl FnOnce() -> Result<u64>,
    ) -> Result<u64> {
        let mark = *self.marks.entry(incarnation).or_try_insert_with(|| {
            Ok::<_, Error>(Mark {
                at: monotonic,
                had_ms: had_ms()?,
            })
        })?;
        Ok(mark
            .had_ms
            .saturating_add(millis(monotonic.saturating_sub(mark.at))))
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
        let (Some(_), Some(_)) = (registration.timeout, &state.first_started) else {
            return 0;
        };
        let had_ms = || {
            let first = self.first_start_age(registration)?;
            // Where nothing is known but its stamp, which may be of any time, it counts from the open.
            let from_ms = first.unwrap_or_else(|| self.elapsed.opened().0);
            Ok(self.age_ms().saturating_sub(from_ms))
        };
        self.elapsed
            .ms(registration.incarnation, self.monotonic(), had_ms)
            .unwrap_or_else(|error| {
                warn!(process = %registration.id, %error, "its first start cannot be read");
                0
            })
    }

    /// When the pause of a process before its retry ends, by [`Shared::steady_ms`]; 0 where it has none.
    /// Its stamp is by the wall clock of an earlier open, or of another host. One that was far ahead of
    /// the clock here puts the retry off by no more than the pause can have been long.
    pub(crate) fn pause_ends_ms(&self, registration: &Registration, state: &ProcessState) -> u64 {
        let Some(pause) = &state.retry_pause else {
            return 0;
        };
        let longest_ms = registration.retry.backoff.wait_ms(state.retries, 0.0);
        self.elapsed.pause_ends_ms(
            registration.incarnation,
            pause.retry_at_ms,
            longest_ms,
            self.steady_ms(),
        )
    }

    /// It is tried again.
    pub(crate) fn pause_is_over(&self, incarnation: Incarnation) {
        self.elapsed.pauses.remove(&incarnation);
    }

    /// How old the store was when a process was started for the first time, as its log says. What
    /// comes before that in the log is bounded only by who signals a process that has not begun, so
    /// it is read in pages.
    fn first_start_age(&self, registration: &Registration) -> Result<Option<u64>> {
        let view = self.view()?;
        let mut from = 1;
        loop {
            let (id, incarnation) = (&registration.id, registration.incarnation);
            let page = view.events(id, incarnation, from, LOG_PAGE, LOG_PAGE_BYTES)?;
            let Some(last) = page.last() else {
                return Ok(None);
            };
            from = last.sequence + 1;
            for event in &page {
                if let EventBody::Runtime(RuntimeEvent::Started { store_age_ms, .. }) =
                    EventBody::of(event)?
                {
                    return Ok(store_age_ms);
                }
            }
        }
    }

    /// Takes up the age of the store where the last open left it.
    pub(super) fn begin_age(&self) -> Result<()> {
        let clock = self.store.clock();
        let (monotonic, boot_id) = (clock.monotonic(), clock.boot_id());
        let age_ms = self
            .view()?
            .age()?
            .map_or(0, |mark| mark.age_at(millis(monotonic), boot_id.as_deref()));
        // Set once, before anything is executed.
        let _ = self.elapsed.opened.set((age_ms, monotonic));
        Ok(())
    }

    /// How old the store is.
    pub(crate) fn age_ms(&self) -> u64 {
        let now = self.monotonic();
        let (age_ms, at) = self.elapsed.opened.get().copied().unwrap_or((0, now));
        age_ms.saturating_add(millis(now.saturating_sub(at)))
    }

    /// The same, with what the clocks show, to be kept.
    pub(super) fn age_mark(&self) -> AgeMark {
        let clock = self.store.clock();
        AgeMark {
            age_ms: self.age_ms(),
            wall_ms: clock.now_epoch_ms(),
            monotonic_ms: millis(clock.monotonic()),
            boot_id: clock.boot_id(),
        }
    }

    /// The processes of which it is noted since when they have been started, or until when they pause.
    pub(super) fn timed(&self) -> impl Iterator<Item = Incarnation> + '_ {
        let started = self.elapsed.marks.iter().map(|mark| *mark.key());
        let pausing = self.elapsed.pauses.iter().map(|pause| *pause.key());
        started.chain(pausing)
    }

    /// Forgets those that have ended.
    pub(super) fn forget_timed(&self, ended: &HashSet<Incarnation>) {
        for incarnation in ended {
            self.elapsed.forget(*incarnation);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_cannot_be_read_is_read_again() {
        let elapsed = Elapsed::default();
        let ms =
            |at_ms, had_ms| elapsed.ms(Incarnation(1), Duration::from_millis(at_ms), || had_ms);
        assert_eq!(ms(5, Err(Error::ShuttingDown)), Err(Error::ShuttingDown));
        assert_eq!(ms(7, Ok(100)), Ok(100));
        assert_eq!(ms(9, Err(Error::ShuttingDown)), Ok(102), "it is known now");
    }
}
