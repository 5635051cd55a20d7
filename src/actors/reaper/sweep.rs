//! One walk over the processes that have not ended, in bounded pages.
//!
//! A process that cannot be read, or whose engine does not answer, stands in nobody's way: it is
//! noted as unsettled, and the walk goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::task::JoinSet;
use tracing::warn;

use super::report::{RecoveryReport, RecoveryStep};
use super::settle::{Task, Work, carry_out};
use super::survivors::SlowEngines;
use crate::actors::config::SWEEP_PAGE;
use crate::actors::dispatcher::QueueEntry;
use crate::actors::reads::blocking;
use crate::actors::runtime::Shared;
use crate::model::lease::OwnerStanding;
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, recover};
use crate::model::{Error, LeaveReason, OwnerNumber, Result};
use crate::store::codec::stored::{HeadFacts, StateFacts};
use crate::store::keys::Row;
use crate::store::read::{IdEntry, Index, ProcessSummary, View};
use crate::store::write_set::{Change, WriteSet};

/// Processes that are being settled at once: enough to share syncs, few enough to leave room for
/// what else is asked of the store.
const IN_FLIGHT_MAX: usize = 128;

/// What is to be done about one process.
pub(super) enum Examined {
    /// Nothing, or it is done.
    Done(String, RecoveryStep),
    /// Something that takes a commit.
    Todo(Task),
}

/// What was found on one page.
#[derive(Default)]
pub(super) struct Page {
    pub(super) found: Vec<Examined>,
    /// Owners that a lease names.
    named: HashSet<OwnerNumber>,
    /// Not every process could be read.
    damaged: bool,
    /// Where the next one begins.
    next: Option<Vec<u8>>,
}

/// One walk over the processes that have not ended.
pub(super) struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    report: RecoveryReport,
    /// Owners that a lease still names.
    named: HashSet<OwnerNumber>,
    damaged: bool,
    slow: SlowEngines,
    running: JoinSet<Result<RecoveryStep>>,
    /// Whom they are about.
    ids: HashMap<tokio::task::Id, String>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            report: RecoveryReport::default(),
            named: HashSet::new(),
            damaged: false,
            slow: SlowEngines::default(),
            running: JoinSet::new(),
            ids: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self) -> Result<RecoveryReport> {
        let mut after: Option<Vec<u8>> = None;
        loop {
            if self.shared.is_shutting_down() {
                return Err(Error::ShuttingDown);
            }
            let shared = Arc::clone(self.shared);
            let page = blocking(move || shared.recovery_page(after.as_deref())).await?;
            after = page.next.clone();
            self.take(page).await;
            if after.is_none() {
                break;
            }
        }
        while self.one_done().await {}
        if !self.damaged {
            self.forget_owners().await;
        }
        Ok(self.report)
    }

    async fn take(&mut self, page: Page) {
        self.named.extend(page.named);
        self.damaged |= page.damaged;
        for examined in page.found {
            match examined {
                Examined::Done(id, step) => self.report.note(id, step),
                Examined::Todo(task) => {
                    while self.running.len() >= IN_FLIGHT_MAX {
                        self.one_done().await;
                    }
                    let id = task.id.clone();
                    let (shared, slow) = (Arc::clone(self.shared), self.slow.clone());
                    let handle = self
                        .running
                        .spawn(async move { carry_out(&shared, task, &slow).await });
                    self.ids.insert(handle.id(), id);
                }
            }
        }
    }

    /// Waits for one of those that are being settled; whether there was one.
    async fn one_done(&mut self) -> bool {
        let Some(done) = self.running.join_next_with_id().await else {
            return false;
        };
        let (task, step) = match done {
            Ok((task, Ok(step))) => (task, Ok(step)),
            Ok((task, Err(error))) => (task, Err(error.to_string())),
            Err(error) => (error.id(), Err(error.to_string())),
        };
        let id = self.ids.remove(&task).unwrap_or_default();
        let step = step.unwrap_or_else(|error| {
            warn!(process = %id, %error, "not recovered");
            RecoveryStep::Unsettled
        });
        if matches!(step, RecoveryStep::Queued { .. }) {
            // Whoever was only put back into the queue took no commit.
            self.report.since_open.released += 1;
        }
        self.report.note(id, step);
        true
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

impl Shared {
    /// Looks at one page of the processes that have not ended. Blocks.
    pub(super) fn recovery_page(&self, after: Option<&[u8]>) -> Result<Page> {
        let view = self.view()?;
        let rows = view.rows(&Index::Running, after, SWEEP_PAGE)?;
        let mut page = Page {
            next: (rows.len() == SWEEP_PAGE)
                .then(|| rows.last().map(|(key, _)| key.to_vec()))
                .flatten(),
            ..Page::default()
        };
        for (_, row) in rows {
            let examined = self.examine_row(&view, row, &mut page.named);
            page.found.push(examined.unwrap_or_else(|error| {
                page.damaged = true;
                let id = format!("incarnation {}", row.incarnation);
                warn!(process = %id, %error, "cannot be read, and is not recovered");
                Examined::Done(id, RecoveryStep::Unsettled)
            }));
        }
        Ok(page)
    }

    fn examine_row(
        &self,
        view: &View,
        row: Row,
        named: &mut HashSet<OwnerNumber>,
    ) -> Result<Examined> {
        let summary = view.summary(row)?.ok_or_else(|| Error::Corrupted {
            what: "it runs, and nothing is known of it".to_owned(),
        })?;
        if let Some(lease) = summary.edges.lease {
            named.insert(lease.owner);
        }
        self.examine(view, summary)
    }

    fn examine(&self, view: &View, summary: ProcessSummary) -> Result<Examined> {
        let ProcessSummary { head, facts, edges } = summary;
        let (id, row) = (head.id.clone(), head.row);
        let todo = |id, work| Examined::Todo(Task { id, row, work });
        // Its recovery, if it needs any after that, is the next sweep's.
        if let Some(by) = parent_wants_cancel(view, &head, &facts)? {
            return Ok(todo(id, Work::Cancel { by }));
        }
        if self.has_task(row.incarnation) {
            // It is executed, or code of a lost execution still runs: nothing is begun beside it.
            let reason = LeaveReason::Leased;
            return Ok(Examined::Done(id, RecoveryStep::Left { reason }));
        }
        let own = self.owner().map(|owner| owner.number);
        let ours = edges.lease.filter(|lease| Some(lease.owner) == own);
        let claimed = self.is_claimed(row.incarnation);
        let orphaned = ours.filter(|_| !claimed).map(|lease| lease.token);
        let standing = match (ours, orphaned) {
            (_, Some(_)) => LeaseStanding::Held(OwnerStanding::Dead),
            // In use here, whatever a wall clock that has jumped says of its expiry.
            (Some(_), None) => LeaseStanding::Held(OwnerStanding::Live),
            (None, None) => view.lease_standing(edges.lease)?,
        };
        let kind = head.engine_kind.clone();
        let priority = head.priority;
        let facts_of_it = RecoveryFacts {
            lease: standing,
            engine_registered: kind
                .as_deref()
                .is_some_and(|kind| self.engine(kind).is_some()),
            now_ms: view.now_ms(),
        };
        let action = recover(&head.without_body(), &facts.state, facts_of_it);
        Ok(match action {
            RecoveryAction::Leave(reason) => Examined::Done(id, RecoveryStep::Left { reason }),
            RecoveryAction::Queue {
                reason,
                not_before_ms,
            } => {
                if let Some(kind) = kind {
                    self.enqueue_entry(QueueEntry {
                        id: Arc::from(id.as_str()),
                        row,
                        kind: Arc::from(kind),
                        priority,
                        not_before_ms,
                    });
                }
                Examined::Done(id, RecoveryStep::Queued { reason })
            }
            RecoveryAction::Release { .. }
            | RecoveryAction::Abandon { .. }
            | RecoveryAction::Cancel
            | RecoveryAction::ExhaustRecoveries
            | RecoveryAction::TimeOut => {
                let work = Work::Settle {
                    action,
                    lease: edges.lease,
                    orphaned,
                };
                todo(id, work)
            }
        })
    }
}

/// A tree cancel that a crash interrupted is completed here.
fn parent_wants_cancel(
    view: &View,
    head: &HeadFacts,
    facts: &StateFacts,
) -> Result<Option<String>> {
    let Some(parent) = &head.provenance.parent else {
        return Ok(None);
    };
    if parent.detached || facts.state.cancel_request.is_some() {
        return Ok(None);
    }
    let cancelled = match view.id(&parent.process_id)? {
        Some(IdEntry::Live(row)) if row.incarnation == parent.incarnation => {
            view.front(row)?.is_some_and(|front| front.cancel_requested)
        }
        Some(_) | None => false,
    };
    Ok(cancelled.then(|| format!("parent {}", parent.process_id)))
}
