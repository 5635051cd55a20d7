//! Retention: one small commit per process takes it out; its log is erased behind that.

use std::sync::Arc;

use super::reads::blocking;
use super::runtime::Shared;
use crate::model::retention::may_prune;
use crate::model::{Error, ProcessPruneReport, Result};
use crate::store::keys::Row;
use crate::store::read::FeedEntry;
use crate::store::write_set::{Change, CommitError, Refusal, WriteSet};

/// A process that may be pruned.
type Candidate = (String, Row);

/// Feed entries that are looked at on one view.
const FEED_PAGE: usize = 1_000;
/// Processes whose commits are in flight at once: few, so that appends beside them stay fast.
const IN_FLIGHT: usize = 8;

impl Shared {
    /// Deletes what has ended before a cutoff. Restartable at any point.
    pub(crate) async fn prune(
        self: &Arc<Self>,
        cutoff_epoch_ms: u64,
    ) -> Result<ProcessPruneReport> {
        if self.is_shutting_down() {
            return Err(Error::ShuttingDown);
        }
        let mut report = ProcessPruneReport::default();
        let mut after = 0;
        // What changes from here on is newer than any cutoff this call can mean.
        let newest = self.view()?.feed_bounds()?.1;
        while after < newest {
            let shared = Arc::clone(self);
            let (candidates, next) =
                blocking(move || shared.prune_page(after, newest, cutoff_epoch_ms)).await?;
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

    fn prune_page(
        &self,
        after: u64,
        newest: u64,
        cutoff_epoch_ms: u64,
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
                && may_prune(terminal_at_ms, position, cutoff_epoch_ms, None)
                && let Some(summary) = view.summary(row)?
            {
                candidates.push((summary.head.id, row));
            }
        }
        Ok((candidates, next))
    }

    async fn prune_group(&self, group: &[Candidate]) -> Result<ProcessPruneReport> {
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
            waits.push((id, row, self.store.commit_wait(set)));
        }
        let mut report = ProcessPruneReport::default();
        for (id, row, wait) in waits {
            match wait.await {
                Ok(receipt) => {
                    report.add(receipt.pruned);
                    self.hub.nudge(row.incarnation);
                }
                // Another prune was faster.
                Err(CommitError::Refused(Refusal::Gone)) => {}
                Err(error) => return Err(super::errors::commit_error(id, error)),
            }
        }
        Ok(report)
    }
}
