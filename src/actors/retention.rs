//! Retention policies: what has ended long enough ago is pruned, and what was pruned long enough ago
//! is forgotten.

use std::sync::Arc;
use std::time::Duration;

use super::prune::{FEED_PAGE, PrunePage, Pruned};
use super::runtime::Shared;
use crate::model::{Error, Incarnation, Result};
use crate::store::error::StoreError;
use crate::store::read::FeedEntry;

/// How far the wall clock may go apart from the steady one between two passes of retention.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);
/// A wall clock that has jumped is believed after it has kept its word for so long.
const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(60 * 60);

/// How far retention has come since the open.
#[derive(Debug)]
pub(super) struct Retention {
    clocks: Clocks,
    /// For each policy, the feed position up to which everything it is about is gone.
    walked_to: Vec<u64>,
    /// The feed position up to which no tombstone is left.
    forgotten_to: u64,
}

impl Retention {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            clocks: Clocks::new(shared.now_ms(), shared.monotonic()),
            walked_to: vec![0; shared.config.retention.len()],
            forgotten_to: 0,
        }
    }
}

/// The wall clock, held against the steady one since a moment at which it was believed. A jump that
/// happened while the store was closed cannot be seen.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    wall_ms: u64,
    steady: Duration,
    /// The same of a wall clock that has jumped, as it was when that was noticed.
    jumped: Option<(u64, Duration)>,
}

impl Clocks {
    const fn new(wall_ms: u64, steady: Duration) -> Self {
        Self {
            wall_ms,
            steady,
            jumped: None,
        }
    }

    /// Whether both clocks have gone the same way since the wall clock was last believed.
    fn agree(&mut self, wall_ms: u64, steady: Duration) -> bool {
        if together((self.wall_ms, self.steady), (wall_ms, steady)) {
            *self = Self::new(wall_ms, steady);
            return true;
        }
        match self.jumped {
            Some(since) if together(since, (wall_ms, steady)) => {
                let believed = steady.saturating_sub(since.1) >= CLOCK_BELIEVED_AFTER;
                if believed {
                    *self = Self::new(wall_ms, steady);
                }
                believed
            }
            Some(_) | None => {
                self.jumped = Some((wall_ms, steady));
                false
            }
        }
    }
}

fn together(then: (u64, Duration), now: (u64, Duration)) -> bool {
    let steady = now.1.saturating_sub(then.1).as_millis();
    let expected = u128::from(then.0) + steady;
    expected.abs_diff(u128::from(now.0)) <= CLOCKS_APART_MAX.as_millis()
}

/// One policy on its way through the feed.
#[derive(Debug, Clone, Copy)]
struct Walker {
    walked_to: u64,
    cutoff_ms: u64,
    goes_on: bool,
}

impl Walker {
    /// Goes past an entry; says whether what ended there is old enough. At the first that is too
    /// young it stops for this time: what ended later stands behind it.
    fn passes(&mut self, position: u64, ended_at_ms: Option<u64>, now_ms: u64) -> bool {
        if !self.goes_on || position <= self.walked_to {
            return false;
        }
        // What a clock that was ahead has stamped holds up nothing: the next open finds it.
        let apart_ms = u64::try_from(CLOCKS_APART_MAX.as_millis()).unwrap_or(u64::MAX);
        let newest_ms = now_ms.saturating_add(apart_ms);
        let too_young = |at_ms: u64| (self.cutoff_ms..=newest_ms).contains(&at_ms);
        if ended_at_ms.is_some_and(too_young) {
            self.goes_on = false;
            return false;
        }
        self.walked_to = position;
        ended_at_ms.is_some_and(|at_ms| at_ms < self.cutoff_ms)
    }
}

impl Shared {
    /// Applies the retention policies, and forgets old tombstones. Judged by the wall clock, as the
    /// times in the store are, and only while that clock can be trusted.
    pub(super) async fn retain(self: &Arc<Self>, retention: &mut Retention) -> Result<()> {
        match self.erase_remains(&mut Pruned::default().report).await {
            Err(error @ Error::Corrupted { .. }) => {
                tracing::warn!(%error, "what a prune left cannot be erased");
            }
            erased => erased?,
        }
        let now_ms = self.now_ms();
        if !retention.clocks.agree(now_ms, self.monotonic()) {
            // What it stamped meanwhile may stand before what is due.
            retention.forgotten_to = 0;
            retention.walked_to.fill(0);
            tracing::warn!(
                now_ms,
                "the wall clock has jumped: nothing is pruned by its age for now"
            );
            return Ok(());
        }
        let before = |keep: Duration| {
            now_ms.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        let policies = self.config.retention.iter();
        let cutoffs = policies.map(|policy| before(policy.keep_terminal_for));
        let applied = self
            .apply_policies(retention, cutoffs.collect(), now_ms)
            .await;
        let cutoff_ms = before(self.config.keep_tombstones_for);
        let forgotten = self.forget_tombstones(retention, cutoff_ms, now_ms).await;
        applied.and(forgotten)
    }

    /// Forgets the tombstones that are old enough, in the order of the feed, which is that in which they
    /// were made. The first time of an open goes through the feed to the first that is kept; after that it
    /// costs what is forgotten, however many are kept.
    async fn forget_tombstones(
        self: &Arc<Self>,
        retention: &mut Retention,
        cutoff_ms: u64,
        now_ms: u64,
    ) -> Result<()> {
        let newest = {
            let view = self.view()?;
            if !view.has_tombstones()? {
                return Ok(());
            }
            view.feed_bounds()?.1
        };
        let mut walker = Walker {
            walked_to: retention.forgotten_to,
            cutoff_ms,
            goes_on: true,
        };
        while walker.goes_on {
            let shared = Arc::clone(self);
            let (due, walked) = self
                .walk(move || shared.tombstone_page(newest, now_ms, walker))
                .await?;
            if !self.drop_tombstones(due).await? {
                break;
            }
            walker = walked;
            retention.forgotten_to = walker.walked_to;
        }
        Ok(())
    }

    fn tombstone_page(
        &self,
        newest: u64,
        now_ms: u64,
        mut walker: Walker,
    ) -> Result<(Vec<(Incarnation, String)>, Walker)> {
        let view = self.view()?;
        let entries = view.feed(walker.walked_to, FEED_PAGE)?;
        let mut due = Vec::new();
        let mut over = entries.len() < FEED_PAGE;
        for (position, entry) in entries {
            if position > newest {
                over = true;
                break;
            }
            match entry {
                FeedEntry::Changed { .. } => {
                    walker.passes(position, None, now_ms);
                }
                FeedEntry::Pruned { id, incarnation } => {
                    let pruned_at_ms = match view.pruned_at_ms(incarnation) {
                        Err(error @ StoreError::Corrupted { .. }) => {
                            tracing::warn!(process = %id, %error, "its tombstone cannot be read");
                            None
                        }
                        read => read?,
                    };
                    if walker.passes(position, pruned_at_ms, now_ms) {
                        due.push((incarnation, id));
                    }
                }
            }
            if !walker.goes_on {
                break;
            }
        }
        walker.goes_on &= !over;
        Ok((due, walker))
    }

    /// One walk for all policies, each from where it has come to.
    async fn apply_policies(
        self: &Arc<Self>,
        retention: &mut Retention,
        cutoffs: Vec<u64>,
        now_ms: u64,
    ) -> Result<()> {
        let newest = self.view()?.feed_bounds()?.1;
        let walkers = retention.walked_to.iter().zip(cutoffs);
        let mut walkers: Vec<Walker> = walkers
            .map(|(walked_to, cutoff_ms)| Walker {
                walked_to: *walked_to,
                cutoff_ms,
                goes_on: true,
            })
            .collect();
        let mut pruned = Pruned::default();
        loop {
            let going_on = walkers.iter().filter(|walker| walker.goes_on);
            let Some(after) = going_on.map(|walker| walker.walked_to).min() else {
                break;
            };
            let shared = Arc::clone(self);
            let (page, walked) = self
                .walk(move || shared.retention_page(after, newest, now_ms, walkers))
                .await?;
            match self.prune_all(&page.candidates, &mut pruned).await {
                Ok(()) => {}
                // The others were pruned; the next open tries this one again.
                Err(error @ Error::Corrupted { .. }) => {
                    tracing::warn!(%error, "not pruned");
                }
                Err(error) => return Err(error),
            }
            // Only now: what could not be pruned is looked at again.
            walkers = walked;
            retention.walked_to = walkers.iter().map(|walker| walker.walked_to).collect();
        }
        Ok(())
    }

    fn retention_page(
        &self,
        after: u64,
        newest: u64,
        now_ms: u64,
        mut walkers: Vec<Walker>,
    ) -> Result<(PrunePage, Vec<Walker>)> {
        let view = self.view()?;
        let entries = view.feed(after, FEED_PAGE)?;
        let mut page = PrunePage::default();
        let mut over = entries.len() < FEED_PAGE;
        for (position, entry) in entries {
            if position > newest {
                over = true;
                break;
            }
            let ended = match entry {
                FeedEntry::Changed {
                    row,
                    terminal_at_ms: Some(at_ms),
                } => Some((row, at_ms)),
                // Whatever changes a running process moves it to the end of the feed.
                FeedEntry::Changed { .. } | FeedEntry::Pruned { .. } => None,
            };
            let mut due = Vec::new();
            for (policy, walker) in self.config.retention.iter().zip(&mut walkers) {
                if walker.passes(position, ended.map(|(_, at_ms)| at_ms), now_ms) {
                    due.push(&policy.filter);
                }
            }
            if let (Some((row, _)), false) = (ended, due.is_empty())
                && let Some(process) = page.readable(row, view.observe_row(row))?
            {
                for filter in due {
                    let admits = view.admits(filter, &process).map(Some);
                    if page.readable(row, admits)?.unwrap_or(false) {
                        page.candidates.push((process.process_id, row));
                        break;
                    }
                }
            }
        }
        if over {
            walkers.iter_mut().for_each(|walker| walker.goes_on = false);
        }
        Ok((page, walkers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 60 * 60 * 1_000;

    #[test]
    fn a_wall_clock_that_jumps_is_not_believed_until_it_keeps_its_word() {
        let at = |minutes: u64| Duration::from_secs(60 * minutes);
        let mut clocks = Clocks::new(HOUR_MS, at(0));
        assert!(clocks.agree(HOUR_MS + 60_000, at(1)));
        assert!(!clocks.agree(u64::MAX, at(2)), "the end of time");
        assert!(!clocks.agree(u64::MAX, at(3)));
        assert!(!clocks.agree(0, at(4)), "the beginning");
        assert!(clocks.agree(HOUR_MS + 5 * 60_000, at(5)), "back again");
        let year = 365 * 24 * HOUR_MS;
        for minute in 0..60 {
            assert!(!clocks.agree(year + minute * 60_000, at(6 + minute)));
        }
        assert!(clocks.agree(year + HOUR_MS, at(66)), "it was set");
    }

    #[test]
    fn a_policy_stops_at_the_first_that_is_too_young_and_goes_on_from_there() {
        let mut walker = Walker {
            walked_to: 0,
            cutoff_ms: 100,
            goes_on: true,
        };
        assert!(walker.passes(1, Some(50), 1_000));
        assert!(!walker.passes(2, None, 1_000), "it runs");
        assert!(!walker.passes(3, Some(90_000), 1_000), "from the future");
        assert!(walker.passes(4, Some(99), 1_000));
        assert!(!walker.passes(5, Some(100), 1_000));
        assert!(!walker.passes(6, Some(50), 1_000), "behind it");
        assert_eq!((walker.walked_to, walker.goes_on), (4, false));
    }
}
