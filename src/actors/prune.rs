//! Retention: one small commit per process takes it out; its log is erased behind that, and so is
//! what else it had too much of for that commit. Whoever prunes next, the reaper for one, goes on
//! where one stopped.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::errors::commit_error;
use super::reads::{blocking, on_a_view};
use super::runtime::Shared;
use crate::model::retention::may_prune;
use crate::model::{Error, Incarnation, ProcessPruneReport, PruneSelector, Result};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::read::FeedEntry;
use crate::store::resolve::prune::{EFFECTS_MAX, LATE_EFFECTS_MAX};
use crate::store::write_set::{Change, CommitError, CommitResult, Refusal, WriteSet};

/// Feed entries that are looked at on one view.
pub(super) const FEED_PAGE: usize = 250;
/// Processes whose commits are in flight at once: few, so that appends beside them stay fast.
const IN_FLIGHT: usize = 8;
/// Longest pause between two groups: one group that a stall held up is no reason to stand still.
const PAUSE_MAX: Duration = Duration::from_millis(20);

/// A process that may be taken out: its id and where it is.
pub(super) type Candidate = (String, Row);

/// What was found on one page of the feed.
#[derive(Debug, Default)]
pub(super) struct PrunePage {
    pub(super) candidates: Vec<Candidate>,
    /// Where the next one begins.
    pub(super) next: Option<u64>,
    /// Why one of them could not be read.
    pub(super) unreadable: Option<Error>,
}

impl PrunePage {
    /// What was read of a process. One that is damaged is passed over: it holds up no other.
    pub(super) fn readable<T>(
        &mut self,
        row: Row,
        read: std::result::Result<Option<T>, StoreError>,
    ) -> Result<Option<T>> {
        if let Err(StoreError::Corrupted { what }) = read {
            let what = format!(
                "incarnation {}, which is not pruned: {what}",
                row.incarnation
            );
            tracing::warn!(%what, "cannot be read");
            self.unreadable.get_or_insert(Error::Corrupted { what });
            return Ok(None);
        }
        Ok(read?)
    }
}

/// What was pruned so far. It is in the log however the call ends, also where its caller has gone
/// away: a later one reports only what it erases itself.
#[derive(Debug, Default)]
pub(super) struct Pruned {
    pub(super) report: ProcessPruneReport,
}

impl Drop for Pruned {
    fn drop(&mut self) {
        if self.report != ProcessPruneReport::default() {
            tracing::info!(
                processes = self.report.pruned_processes,
                events = self.report.pruned_events,
                grants = self.report.grants,
                leases = self.report.leases,
                wakes = self.report.wakes,
                bytes = self.report.bytes,
                "pruned"
            );
        }
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
            return Err(self.stopped());
        }
        let mut pruned = Pruned::default();
        let mut unreadable = None;
        match self.erase_remains(&mut pruned.report).await {
            Err(error @ Error::Corrupted { .. }) => unreadable = Some(error),
            erased => erased?,
        }
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
        let parent = match &selector.filter.parent {
            None => None,
            Some(id) => match self.view()?.incarnation_of(id)? {
                // Nobody's children.
                None => return unreadable.map_or(Ok(pruned.report), Err),
                known => known,
            },
        };
        while after < newest {
            let (shared, selecting) = (Arc::clone(self), selector.clone());
            let page = self
                .walk(move || on_a_view(|| shared.prune_page(after, newest, &selecting, parent)))
                .await?;
            if let Some(error) = page.unreadable {
                unreadable.get_or_insert(error);
            }
            match self.prune_all(&page.candidates, &mut pruned).await {
                Ok(()) => {}
                Err(error @ Error::Corrupted { .. }) => {
                    unreadable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
            match page.next {
                Some(position) => after = position,
                None => break,
            }
        }
        match unreadable {
            // The others were pruned all the same.
            Some(error) => Err(error),
            None => Ok(pruned.report),
        }
    }

    /// Prunes in small groups. After an error the group is seen to its end all the same, so that what
    /// was pruned is counted. What cannot be read stands in nobody's way: it is told of at the end.
    pub(super) async fn prune_all(
        self: &Arc<Self>,
        candidates: &[Candidate],
        pruned: &mut Pruned,
    ) -> Result<()> {
        let mut unreadable = None;
        for group in candidates.chunks(IN_FLIGHT) {
            let (began, commits) = (self.monotonic(), self.store.stats().commits);
            match self.prune_group(group, &mut pruned.report).await {
                Ok(()) => {}
                Err(error @ Error::Corrupted { .. }) => {
                    unreadable.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
            let own = group.len() as u64;
            if self.store.stats().commits - commits > own {
                // Others write as well: two thirds of the time are theirs.
                let took = self.monotonic().saturating_sub(began);
                tokio::time::sleep((took * 2).min(PAUSE_MAX)).await;
            }
        }
        unreadable.map_or(Ok(()), Err)
    }

    /// Forgets some tombstones; whether it could. One that cannot be read holds up no other.
    pub(super) async fn drop_tombstones(
        self: &Arc<Self>,
        due: Vec<(Incarnation, String)>,
    ) -> Result<bool> {
        match self.drop_together(&due).await {
            Err(Error::Corrupted { .. }) => {}
            done => return done,
        }
        let mut all = true;
        for one in due {
            match self.drop_together(std::slice::from_ref(&one)).await {
                Err(Error::Corrupted { what }) => {
                    tracing::warn!(process = %one.1, %what, "its tombstone is not forgotten");
                }
                done => all &= done?,
            }
        }
        Ok(all)
    }

    async fn drop_together(self: &Arc<Self>, due: &[(Incarnation, String)]) -> Result<bool> {
        let mut changes = Vec::with_capacity(due.len());
        for (incarnation, id) in due {
            let incarnation = *incarnation;
            // With a tombstone goes what no report counts: the process was counted before.
            let mut uncounted = ProcessPruneReport::default();
            self.forget_effects(id, incarnation, LATE_EFFECTS_MAX, &mut uncounted)
                .await?;
            changes.push(Change::DropTombstone { incarnation });
        }
        if changes.is_empty() {
            return Ok(true);
        }
        match self
            .store
            .commit_wait(WriteSet::new(Vec::new(), changes))
            .await
        {
            Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(true),
            // Somebody journaled many effects in between: the next look forgets those.
            Err(CommitError::Refused(Refusal::TooMany)) => Ok(false),
            Err(error) => Err(commit_error("(tombstones)", error)),
        }
    }

    fn prune_page(
        &self,
        after: u64,
        newest: u64,
        selector: &PruneSelector,
        parent: Option<Incarnation>,
    ) -> Result<PrunePage> {
        let view = self.view()?;
        let entries = view.feed(after, FEED_PAGE)?;
        let mut page = PrunePage {
            next: entries.last().map(|(position, _)| *position),
            ..PrunePage::default()
        };
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
                && let Some(process) = page.readable(row, view.observe_row(row))?
                && selector.filter.admits(&process)
                && parent.is_none_or(|parent| {
                    let of = process.parent.as_ref();
                    of.is_some_and(|of| of.incarnation == parent)
                })
            {
                page.candidates.push((process.process_id, row));
            }
        }
        Ok(page)
    }

    async fn prune_group(
        self: &Arc<Self>,
        group: &[Candidate],
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        let waits: Vec<_> = group
            .iter()
            .map(|candidate| (candidate, self.send_prune(candidate)))
            .collect();
        let mut failed = None;
        for (candidate, wait) in waits {
            if let Err(error) = self.see_pruned(candidate, wait, report).await {
                // That one cannot be read is the least of what can be told of a group.
                if failed.is_none() || matches!(failed, Some(Error::Corrupted { .. })) {
                    failed = Some(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }

    async fn see_pruned(
        self: &Arc<Self>,
        candidate: &Candidate,
        wait: oneshot::Receiver<CommitResult>,
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        let mut result = told(wait).await;
        while matches!(result, Err(CommitError::Refused(Refusal::TooMany))) {
            let (id, row) = candidate;
            self.forget_effects(id, row.incarnation, EFFECTS_MAX, report)
                .await?;
            result = told(self.send_prune(candidate)).await;
        }
        match result {
            Ok(receipt) => {
                report.add(receipt.pruned);
                for row in receipt.remains {
                    self.erase_remains_of(row, report).await?;
                }
                Ok(())
            }
            // Another prune was faster.
            Err(CommitError::Refused(Refusal::Gone)) => Ok(()),
            Err(error) => Err(commit_error(&candidate.0, error)),
        }
    }

    fn send_prune(self: &Arc<Self>, (id, row): &Candidate) -> oneshot::Receiver<CommitResult> {
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
                if matches!(result, Ok(_) | Err(CommitError::Unknown(_))) {
                    // With it every grant on it, those too whose keys are erased later.
                    shared.hub.pruned(incarnation);
                }
                shared.written_by_others(&pruned, incarnation);
                let _ = answer.send(result);
            }),
        );
        wait
    }

    /// Erases what earlier prunes left, as far as they got. What cannot be read of one holds up no other, and is
    /// told of at the end; a damaged note that there is anything left ends it there.
    pub(super) async fn erase_remains(
        self: &Arc<Self>,
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        let mut unreadable = None;
        let mut after = Incarnation::default();
        loop {
            let shared = Arc::clone(self);
            let page = self
                .walk(move || Ok(shared.view()?.unerased(after, IN_FLIGHT)?))
                .await?;
            for row in &page {
                match self.erase_remains_of(*row, report).await {
                    Err(error @ Error::Corrupted { .. }) => {
                        unreadable.get_or_insert(error);
                    }
                    erased => erased?,
                }
            }
            match page.last() {
                Some(row) => after = row.incarnation,
                None => return unreadable.map_or(Ok(()), Err),
            }
        }
    }

    async fn erase_remains_of(
        self: &Arc<Self>,
        row: Row,
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        loop {
            let shared = Arc::clone(self);
            let remains = blocking(move || Ok(shared.view()?.remains(row)?)).await?;
            let is_all = remains.is_all;
            let set = WriteSet::new(Vec::new(), vec![Change::DropRemains(Box::new(remains))]);
            match self.store.commit_wait(set).await {
                Ok(receipt) => report.add(receipt.pruned),
                // Another prune was faster.
                Err(CommitError::Refused(Refusal::NothingToDo)) => return Ok(()),
                Err(error) => return Err(commit_error("(pruned)", error)),
            }
            if is_all {
                return Ok(());
            }
        }
    }

    /// Forgets effects on an id, as long as it stands for this incarnation, until there are no more
    /// of them than a commit may drop with something else.
    async fn forget_effects(
        self: &Arc<Self>,
        id: &str,
        incarnation: Incarnation,
        leave: usize,
        report: &mut ProcessPruneReport,
    ) -> Result<()> {
        loop {
            let (shared, of) = (Arc::clone(self), id.to_owned());
            let keys = blocking(move || Ok(shared.view()?.effects_on(&of, FEED_PAGE)?)).await?;
            if keys.len() <= leave && keys.len() < FEED_PAGE {
                return Ok(());
            }
            let change = Change::ForgetEffects {
                id: id.to_owned(),
                incarnation,
                keys,
            };
            match self
                .store
                .commit_wait(WriteSet::new(Vec::new(), vec![change]))
                .await
            {
                Ok(receipt) => report.bytes += receipt.pruned.bytes,
                Err(CommitError::Refused(Refusal::Gone | Refusal::NothingToDo)) => {
                    return Ok(());
                }
                Err(error) => return Err(commit_error(id, error)),
            }
        }
    }
}

/// What became of a set.
async fn told(wait: oneshot::Receiver<CommitResult>) -> CommitResult {
    wait.await
        .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))
}
