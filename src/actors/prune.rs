//! Retention: one small commit per process takes it out; its log is erased behind that.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::reads::blocking;
use super::runtime::Shared;
use crate::model::retention::may_prune;
use crate::model::{Error, Incarnation, ProcessPruneReport, PruneSelector, Result};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::read::FeedEntry;
use crate::store::write_set::{Change, CommitError, Refusal, WriteSet};

/// Feed entries that are looked at on one view.
const FEED_PAGE: usize = 1_000;
/// Processes whose commits are in flight at once: few, so that appends beside them stay fast.
const IN_FLIGHT: usize = 8;

/// How far the wall clock may go apart from the steady one between two passes of retention.
const CLOCKS_APART_MAX: Duration = Duration::from_secs(60);
/// A wall clock that has jumped is believed after it has kept its word for so long.
const CLOCK_BELIEVED_AFTER: Duration = Duration::from_secs(60 * 60);

/// A process that may be taken out: its id and where it is.
type Candidate = (String, Row);

/// What was pruned so far.
#[derive(Debug, Default)]
struct Pruned {
    report: ProcessPruneReport,
}

impl Pruned {
    fn log(&self) {
        if self.report.pruned_processes > 0 {
            tracing::info!(
                processes = self.report.pruned_processes,
                events = self.report.pruned_events,
                bytes = self.report.bytes,
                "pruned"
            );
        }
    }
}

/// How far retention has come since the open.
#[derive(Debug)]
pub(super) struct Retention {
    clocks: Clocks,
    /// For each policy, the feed position up to which everything it is about is gone.
    walked_to: Vec<u64>,
}

impl Retention {
    pub(super) fn new(shared: &Shared) -> Self {
        Self {
            clocks: Clocks::new(shared.now_ms(), shared.monotonic()),
            walked_to: vec![0; shared.config.retention.len()],
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
        let too_young = |at_ms: u64| (self.cutoff_ms..=now_ms).contains(&at_ms);
        if ended_at_ms.is_some_and(too_young) {
            self.goes_on = false;
            return false;
        }
        self.walked_to = position;
        ended_at_ms.is_some_and(|at_ms| at_ms < self.cutoff_ms)
    }
}

impl Shared {
    /// Deletes what has ended before a cutoff. Restartable at any point.
    pub(crate) async fn prune_where(
        self: &Arc<Self>,
        selector: &PruneSelector,
    ) -> Result<ProcessPruneReport> {
        selector.filter.check()?;
        if self.is_shutting_down() {
            return Err(Error::ShuttingDown);
        }
        let mut pruned = Pruned::default();
        let mut after = 0;
        // What changes from here on is newer than any cutoff this call can mean.
        let newest = {
            let view = self.view()?;
            let newest = view.feed_bounds()?.1;
            match &selector.not_past {
                // R1: the watermark bounds what is looked at at all.
                Some(cursor) => self.position_of(&view, cursor)?.min(newest),
                None => newest,
            }
        };
        while after < newest {
            let (shared, selecting) = (Arc::clone(self), selector.clone());
            let (candidates, next) =
                blocking(move || shared.prune_page(after, newest, &selecting)).await?;
            self.prune_all(&candidates, &mut pruned).await?;
            match next {
                Some(position) => after = position,
                None => break,
            }
        }
        pruned.log();
        Ok(pruned.report)
    }

    /// Prunes in small groups. After an error the group is seen to its end all the same: what was
    /// pruned stands in the log, if nowhere else.
    async fn prune_all(
        self: &Arc<Self>,
        candidates: &[Candidate],
        pruned: &mut Pruned,
    ) -> Result<()> {
        for group in candidates.chunks(IN_FLIGHT) {
            if let Err(error) = self.prune_group(group, &mut pruned.report).await {
                pruned.log();
                return Err(error);
            }
        }
        Ok(())
    }

    /// Applies the retention policies, and forgets old tombstones. Judged by the wall clock, as the
    /// times in the store are, and only while that clock can be trusted.
    pub(super) async fn retain(self: &Arc<Self>, retention: &mut Retention) -> Result<()> {
        let now_ms = self.now_ms();
        if !retention.clocks.agree(now_ms, self.monotonic()) {
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
        self.apply_policies(retention, cutoffs.collect(), now_ms)
            .await?;
        self.forget_tombstones(before(self.config.keep_tombstones_for))
            .await
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
            let (candidates, walked) =
                blocking(move || shared.retention_page(after, newest, now_ms, walkers)).await?;
            self.prune_all(&candidates, &mut pruned).await?;
            // Only now: what could not be pruned is looked at again.
            walkers = walked;
            retention.walked_to = walkers.iter().map(|walker| walker.walked_to).collect();
        }
        pruned.log();
        Ok(())
    }

    fn retention_page(
        &self,
        after: u64,
        newest: u64,
        now_ms: u64,
        mut walkers: Vec<Walker>,
    ) -> Result<(Vec<Candidate>, Vec<Walker>)> {
        let view = self.view()?;
        let entries = view.feed(after, FEED_PAGE)?;
        let mut candidates = Vec::new();
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
                && let Some(process) = view.observe_row(row)?
                && due.iter().any(|filter| filter.admits(&process))
            {
                candidates.push((process.process_id, row));
            }
        }
        if over {
            walkers.iter_mut().for_each(|walker| walker.goes_on = false);
        }
        Ok((candidates, walkers))
    }

    async fn forget_tombstones(self: &Arc<Self>, cutoff_epoch_ms: u64) -> Result<()> {
        let mut after = Incarnation::default();
        loop {
            let shared = Arc::clone(self);
            let page = blocking(move || Ok(shared.view()?.tombstones(after, FEED_PAGE)?)).await?;
            let Some((last, _)) = page.last() else {
                return Ok(());
            };
            after = *last;
            let changes: Vec<Change> = page
                .into_iter()
                .filter(|(_, pruned_at_ms)| *pruned_at_ms < cutoff_epoch_ms)
                .map(|(incarnation, _)| Change::DropTombstone { incarnation })
                .collect();
            if changes.is_empty() {
                continue;
            }
            match self
                .store
                .commit_wait(WriteSet::new(Vec::new(), changes))
                .await
            {
                Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => {}
                Err(error) => return Err(super::errors::commit_error("(tombstones)", error)),
            }
        }
    }

    fn prune_page(
        &self,
        after: u64,
        newest: u64,
        selector: &PruneSelector,
    ) -> Result<(Vec<Candidate>, Option<u64>)> {
        let view = self.view()?;
        let entries = view.feed(after, FEED_PAGE)?;
        let next = entries.last().map(|(position, _)| *position);
        let mut candidates = Vec::new();
        for (position, entry) in entries {
            if position > newest {
                break;
            }
            if let FeedEntry::Changed {
                row,
                terminal_at_ms,
            } = entry
                && may_prune(
                    terminal_at_ms,
                    position,
                    selector.cutoff_epoch_ms,
                    Some(newest),
                )
                && let Some(process) = view.observe_row(row)?
                && selector.filter.admits(&process)
            {
                candidates.push((process.process_id, row));
            }
        }
        Ok((candidates, next))
    }

    async fn prune_group(
        self: &Arc<Self>,
        group: &[Candidate],
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        let mut waits = Vec::with_capacity(group.len());
        for (id, row) in group {
            let set = WriteSet::new(
                Vec::new(),
                vec![Change::Prune {
                    row: *row,
                    id: id.clone(),
                    at_ms: self.now_ms(),
                }],
            );
            let (answer, wait) = oneshot::channel();
            let (shared, pruned, incarnation) = (Arc::clone(self), id.clone(), row.incarnation);
            self.store.commit(
                set,
                // Told here, because the caller may be gone when it commits.
                Box::new(move |result| {
                    shared.written_by_others(&pruned, incarnation);
                    let _ = answer.send(result);
                }),
            );
            waits.push((id, wait));
        }
        let mut failed = None;
        for (id, wait) in waits {
            let result = wait
                .await
                .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)));
            match result {
                Ok(receipt) => report.add(receipt.pruned),
                // Another prune was faster.
                Err(CommitError::Refused(Refusal::Gone)) => {}
                Err(error) => {
                    failed.get_or_insert(super::errors::commit_error(id, error));
                }
            }
        }
        failed.map_or(Ok(()), Err)
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
        assert!(!walker.passes(3, Some(9_000), 1_000), "from the future");
        assert!(walker.passes(4, Some(99), 1_000));
        assert!(!walker.passes(5, Some(100), 1_000));
        assert!(!walker.passes(6, Some(50), 1_000), "behind it");
        assert_eq!((walker.walked_to, walker.goes_on), (4, false));
    }
}
