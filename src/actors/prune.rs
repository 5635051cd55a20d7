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

/// A process that may be taken out: its id and where it is.
type Candidate = (String, Row);

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
        let mut report = ProcessPruneReport::default();
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
            for group in candidates.chunks(IN_FLIGHT) {
                report.add(self.prune_group(group).await?);
            }
            match next {
                Some(position) => after = position,
                None => break,
            }
        }
        tracing::info!(
            processes = report.pruned_processes,
            events = report.pruned_events,
            bytes = report.bytes,
            "pruned"
        );
        Ok(report)
    }

    /// Applies the retention policies, and forgets old tombstones.
    pub(super) async fn retain(self: &Arc<Self>) -> Result<()> {
        let now_ms = self.now_ms();
        let before = |keep: Duration| {
            now_ms.saturating_sub(u64::try_from(keep.as_millis()).unwrap_or(u64::MAX))
        };
        for policy in &self.config.retention {
            let selector = PruneSelector::older_than(before(policy.keep_terminal_for))
                .with_filter(policy.filter.clone());
            self.prune_where(&selector).await?;
        }
        self.forget_tombstones(before(self.config.keep_tombstones_for))
            .await
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

    async fn prune_group(self: &Arc<Self>, group: &[(String, Row)]) -> Result<ProcessPruneReport> {
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
        let mut report = ProcessPruneReport::default();
        for (id, wait) in waits {
            let result = wait
                .await
                .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)));
            match result {
                Ok(receipt) => report.add(receipt.pruned),
                // Another prune was faster.
                Err(CommitError::Refused(Refusal::Gone)) => {}
                Err(error) => return Err(super::errors::commit_error(id, error)),
            }
        }
        Ok(report)
    }
}
