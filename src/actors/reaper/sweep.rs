//! One walk over the processes that have not ended, in bounded pages.

use super::report::{RecoveryReport, RecoveryStep};
use super::settle::settle;
use std::collections::HashSet;
use std::sync::Arc;

use tracing::warn;

use crate::actors::config::SWEEP_PAGE;
use crate::actors::dispatcher::QueueEntry;
use crate::actors::runtime::Shared;
use crate::model::lease::OwnerStanding;
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, recover};
use crate::model::{Error, Incarnation, LeaveReason, OwnerNumber, Result, StartReason};
use crate::store::keys::Row;
use crate::store::read::{Index, ProcessSummary, View};
use crate::store::write_set::{Change, WriteSet};

/// One walk over the processes that have not ended.
pub(super) struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    report: RecoveryReport,
    /// Owners that a lease still names.
    named: HashSet<OwnerNumber>,
    /// Processes with a time limit that were known when it began, and were not met yet.
    ended: HashSet<Incarnation>,
}

/// What is to be done with one process.
pub(super) struct Task {
    pub(super) id: String,
    pub(super) row: Row,
    pub(super) action: RecoveryAction,
    /// Its lease names this runtime, which no longer executes it.
    pub(super) orphaned: Option<crate::model::FencingToken>,
    pub(super) cancel_for_parent: Option<String>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            report: RecoveryReport::default(),
            named: HashSet::new(),
            ended: shared.timed(),
        }
    }

    pub(super) async fn run(mut self) -> Result<RecoveryReport> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            if self.shared.is_shutting_down() {
                return Err(Error::ShuttingDown);
            }
            let (tasks, next) = self.page(after.as_deref())?;
            self.carry_out(tasks).await;
            match next {
                Some(key) => after = Some(key),
                None => break,
            }
            // Other calls go first.
            tokio::task::yield_now().await;
        }
        self.shared.forget_timed(&self.ended);
        self.forget_owners().await;
        Ok(self.report)
    }

    fn page(&mut self, after: Option<&[u8]>) -> Result<(Vec<Task>, Option<Vec<u8>>)> {
        let view = self.shared.view()?;
        let rows = view.rows(&Index::Running, after, SWEEP_PAGE)?;
        let next = (rows.len() == SWEEP_PAGE)
            .then(|| rows.last().map(|(key, _)| key.to_vec()))
            .flatten();
        let mut tasks = Vec::new();
        for (_, row) in rows {
            if let Some(summary) = view.summary(row)?
                && let Some(task) = self.examine(&view, summary)?
            {
                tasks.push(task);
            }
        }
        Ok((tasks, next))
    }

    fn examine(&mut self, view: &View, summary: ProcessSummary) -> Result<Option<Task>> {
        let ProcessSummary { head, facts, edges } = summary;
        self.ended.remove(&head.row.incarnation);
        if let Some(lease) = edges.lease {
            self.named.insert(lease.owner);
        }
        let cancel_for_parent = self.parent_wants_cancel(view, &head, &facts)?;
        if self.shared.has_task(head.row.incarnation) {
            // It is executed, or code of a lost execution still runs: nothing is begun beside it.
            return Ok(cancel_for_parent.map(|by| Task {
                id: head.id.clone(),
                row: head.row,
                action: RecoveryAction::Leave(LeaveReason::Leased),
                orphaned: None,
                cancel_for_parent: Some(by),
            }));
        }
        let own = self.shared.owner().map(|owner| owner.number);
        let ours = edges.lease.filter(|lease| Some(lease.owner) == own);
        let claimed = self.shared.is_claimed(head.row.incarnation);
        let orphaned = ours.filter(|_| !claimed).map(|lease| lease.token);
        let lease = match (ours, orphaned) {
            (_, Some(_)) => LeaseStanding::Held(OwnerStanding::Dead),
            // In use here, whatever a wall clock that has jumped says of its expiry.
            (Some(_), None) => LeaseStanding::Held(OwnerStanding::Live),
            (None, None) => view.lease_standing(edges.lease)?,
        };
        let engine_registered = head
            .engine_kind
            .as_deref()
            .is_some_and(|kind| self.shared.engine(kind).is_some());
        let (id, row, priority) = (head.id.clone(), head.row, head.priority);
        let kind = head.engine_kind.clone();
        let registration = head.without_body();
        let action = recover(
            &registration,
            &facts.state,
            RecoveryFacts {
                lease,
                engine_registered,
                started_for_ms: self.shared.started_for_ms(&registration, &facts.state),
            },
        );
        match action {
            RecoveryAction::Leave(reason) => {
                self.report.note(&id, RecoveryStep::Left { reason });
                if cancel_for_parent.is_none() {
                    return Ok(None);
                }
            }
            RecoveryAction::Queue {
                reason,
                not_before_ms,
            } if reason != StartReason::Recovery => {
                if let Some(kind) = kind {
                    self.shared.enqueue_entry(QueueEntry {
                        id: Arc::from(id.as_str()),
                        row,
                        kind: Arc::from(kind),
                        priority,
                        not_before_ms,
                    });
                }
                self.report.note(&id, RecoveryStep::Queued { reason });
                if cancel_for_parent.is_none() {
                    return Ok(None);
                }
            }
            RecoveryAction::Queue { .. }
            | RecoveryAction::Abandon { .. }
            | RecoveryAction::Cancel
            | RecoveryAction::ExhaustRecoveries
            | RecoveryAction::TimeOut => {}
        }
        Ok(Some(Task {
            id,
            row,
            action,
            orphaned,
            cancel_for_parent,
        }))
    }

    /// A tree cancel that a crash interrupted is completed here.
    fn parent_wants_cancel(
        &self,
        view: &View,
        head: &crate::store::codec::stored::HeadFacts,
        facts: &crate::store::codec::stored::StateFacts,
    ) -> Result<Option<String>> {
        let Some(parent) = &head.provenance.parent else {
            return Ok(None);
        };
        if parent.detached || facts.state.cancel_request.is_some() {
            return Ok(None);
        }
        use crate::store::read::IdEntry;
        let cancelled = match view.id(&parent.process_id)? {
            Some(IdEntry::Live(row)) if row.incarnation == parent.incarnation => {
                view.front(row)?.is_some_and(|front| front.cancel_requested)
            }
            Some(_) | None => false,
        };
        Ok(cancelled.then(|| format!("parent {}", parent.process_id)))
    }

    async fn carry_out(&mut self, tasks: Vec<Task>) {
        let mut commits = Vec::new();
        for task in tasks {
            if let Some(by) = task.cancel_for_parent {
                if let Err(error) = self.shared.cancel(&task.id, Some(by), None).await {
                    warn!(process = %task.id, %error, "child not cancelled");
                }
                continue;
            }
            let shared = Arc::clone(self.shared);
            let id = task.id.clone();
            // Sent one after the other and awaited together: they share syncs.
            commits.push((id, tokio::spawn(async move { settle(&shared, task).await })));
        }
        for (id, commit) in commits {
            match commit.await {
                Ok(Ok(Some(step))) => self.report.note(&id, step),
                Ok(Ok(None)) => {}
                Ok(Err(error)) => warn!(process = %id, %error, "not recovered"),
                Err(error) => warn!(process = %id, %error, "recovery of it panicked"),
            }
        }
    }

    /// Forgets owners of earlier opens that no lease names any more.
    async fn forget_owners(&self) {
        let dead: Vec<OwnerNumber> = match self.shared.view().and_then(|view| Ok(view.owners()?)) {
            Ok(owners) => owners
                .into_iter()
                .filter(|(number, record)| {
                    !self.named.contains(number)
                        && crate::model::lease::standing(
                            Some(record),
                            self.shared.store.exclusive_epoch(),
                            self.shared.now_ms(),
                        ) == OwnerStanding::Dead
                })
                .map(|(number, _)| number)
                .collect(),
            Err(error) => {
                warn!(%error, "owners cannot be read");
                return;
            }
        };
        if dead.is_empty() {
            return;
        }
        let changes = dead
            .into_iter()
            .map(|number| Change::RemoveOwner { number })
            .collect();
        // A dead owner acquires nothing, so nobody can have named it meanwhile.
        if let Err(error) = self
            .shared
            .store
            .commit_wait(WriteSet::new(Vec::new(), changes))
            .await
        {
            warn!(?error, "dead owners not forgotten");
        }
    }
}
