//! One walk over the processes that have not ended, in bounded pages.
//!
//! A process that cannot be read, or whose engine does not answer, stands in nobody's way: it is
//! noted as unsettled, and the walk goes on.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tracing::warn;

use super::attention::Scope;
use super::report::{RecoveryReport, RecoveryStep};
use super::settle::{Task, Work, carry_out};
use super::survivors::SlowEngines;
use crate::actors::config::SWEEP_PAGE;
use crate::actors::dispatcher::QueueEntry;
use crate::actors::runtime::Shared;
use crate::model::lease::{self, OwnerStanding};
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, recover};
use crate::model::{Error, Incarnation, LeaveReason, OwnerNumber, Result, StartReason};
use crate::store::codec::stored::{HeadFacts, StateFacts};
use crate::store::keys::Row;
use crate::store::read::{IdEntry, Index, ProcessSummary, View};
use crate::store::write_set::{Change, WriteSet};

/// Processes that are being settled at once: enough to share syncs, few enough to leave room for
/// what else is asked of the store.
const IN_FLIGHT_MAX: usize = 128;

/// How often a page goes on with a new view after one that expired, as when the machine stood still.
const VIEWS_MAX: usize = 3;

/// What is to be done about one process.
pub(super) enum Examined {
    /// Nothing, or it is done.
    Done(String, RecoveryStep),
    /// Something that takes a commit.
    Todo(Task),
}

/// Where a process that is looked at was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// In the index of what has not ended, on the same view.
    Index,
    /// It was noted earlier.
    Note,
}

/// What was found on one page.
#[derive(Default)]
pub(super) struct Page {
    pub(super) found: Vec<Examined>,
    /// Owners that a lease names.
    named: HashSet<OwnerNumber>,
    /// Processes that were looked at.
    met: Vec<Incarnation>,
    /// Of those, the ones that are executed elsewhere.
    elsewhere: Vec<Row>,
    /// Not every process could be read.
    damaged: bool,
    /// Processes at which the next sweep has to look again.
    again: Vec<Row>,
    /// Where the next one begins.
    next: Option<Vec<u8>>,
}

/// One walk over the processes that have not ended.
pub(super) struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    report: RecoveryReport,
    /// Owners that a lease still names.
    named: HashSet<OwnerNumber>,
    /// Processes of which something was noted when it began, and which were not met yet.
    ended: HashSet<Incarnation>,
    damaged: bool,
    slow: SlowEngines,
    running: JoinSet<Result<RecoveryStep>>,
    /// Whom they are about.
    ids: HashMap<tokio::task::Id, (String, Row)>,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            report: RecoveryReport::default(),
            named: HashSet::new(),
            ended: shared.timed().chain(shared.looks.known()).collect(),
            damaged: false,
            slow: SlowEngines::default(),
            running: JoinSet::new(),
            ids: HashMap::new(),
        }
    }

    /// What it did, and whether it came to its end.
    pub(super) async fn run(mut self, scope: Scope) -> (RecoveryReport, Result<()>) {
        let done = match scope {
            Scope::Everything => self.walk(false).await,
            Scope::Walk => self.walk(true).await,
            Scope::Rows(rows) => self.look_at(&rows).await,
        };
        // What was begun when it failed is seen to its end, and counted.
        while self.one_done().await {}
        (self.report, done)
    }

    async fn look_at(&mut self, rows: &[Row]) -> Result<()> {
        for rows in rows.chunks(SWEEP_PAGE) {
            if self.shared.is_shutting_down() {
                return Err(Error::ShuttingDown);
            }
            let (shared, rows) = (Arc::clone(self.shared), rows.to_vec());
            let page = self
                .shared
                .walk(move || shared.examine_rows(shared.view()?, rows, Found::Note))
                .await?;
            self.take(page).await;
        }
        while self.one_done().await {}
        Ok(())
    }

    async fn walk(&mut self, passing_over: bool) -> Result<()> {
        let dead = self.dead_owners().await;
        let mut after: Option<Vec<u8>> = None;
        let mut elsewhere = HashSet::new();
        let mut looked = Duration::ZERO;
        loop {
            if self.shared.is_shutting_down() {
                return Err(Error::ShuttingDown);
            }
            let shared = Arc::clone(self.shared);
            let page = self
                .shared
                .walk(move || {
                    let began = shared.monotonic();
                    let page = shared.recovery_page(after.as_deref(), passing_over)?;
                    Ok((page, shared.monotonic().saturating_sub(began)))
                })
                .await?;
            let (page, took) = page;
            looked += took;
            after = page.next.clone();
            elsewhere.extend(&page.elsewhere);
            self.take(page).await;
            if after.is_none() {
                break;
            }
        }
        while self.one_done().await {}
        self.shared.attention.walked_for(looked);
        self.shared.attention.keep_elsewhere(&elsewhere);
        self.shared.forget_timed(&self.ended);
        for incarnation in &self.ended {
            // Ended by another host, or pruned.
            self.shared.looks.forget(*incarnation, false);
        }
        if !self.damaged {
            self.forget_owners(dead).await;
        }
        Ok(())
    }

    pub(super) async fn take(&mut self, page: Page) {
        self.named.extend(page.named);
        for incarnation in page.met {
            self.ended.remove(&incarnation);
        }
        for row in page.again {
            self.shared.attention.note(row);
        }
        self.damaged |= page.damaged;
        for examined in page.found {
            match examined {
                Examined::Done(id, step) => self.report.note(id, step),
                Examined::Todo(task) => {
                    while self.running.len() >= IN_FLIGHT_MAX {
                        self.one_done().await;
                    }
                    let id = (task.id.clone(), task.row);
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
        let Some((id, row)) = self.ids.remove(&task) else {
            return true;
        };
        let step = step.unwrap_or_else(|error| {
            warn!(process = %id, %error, "not recovered");
            RecoveryStep::Unsettled
        });
        if matches!(step, RecoveryStep::Queued { .. }) {
            // Whoever was only put back into the queue took no commit.
            self.report.since_open.released += 1;
        }
        if matches!(
            step,
            RecoveryStep::Unsettled | RecoveryStep::Overtaken | RecoveryStep::CancelRequested
        ) {
            self.shared.attention.note(row);
        }
        self.report.note(id, step);
        true
    }

    /// Owners that can provably write no more. Read before the first page: who is gone by then names
    /// itself on no lease afterwards, so that the pages meet every lease that names it. Who goes while
    /// they are read may have claimed what they showed as free.
    async fn dead_owners(&self) -> Vec<OwnerNumber> {
        let shared = Arc::clone(self.shared);
        let read = self.shared.walk(move || {
            let owners = shared.view()?.owners()?.into_iter();
            let dead = owners.filter(|(_, record)| {
                let (epoch, now_ms) = (shared.store.exclusive_epoch(), shared.now_ms());
                lease::standing(Some(record), epoch, now_ms) == OwnerStanding::Dead
            });
            Ok(dead.map(|(number, _)| number).collect())
        });
        read.await.unwrap_or_else(|error| {
            warn!(%error, "owners cannot be read");
            Vec::new()
        })
    }

    /// Forgets those dead owners that no lease names any more.
    async fn forget_owners(&self, mut dead: Vec<OwnerNumber>) {
        dead.retain(|number| !self.named.contains(number));
        if dead.is_empty() {
            return;
        }
        let changes = dead
            .into_iter()
            .map(|number| Change::RemoveOwner { number })
            .collect();
        // They were dead before the walk began, and acquire nothing: nobody can have named them meanwhile.
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
    pub(super) fn recovery_page(&self, after: Option<&[u8]>, passing_over: bool) -> Result<Page> {
        let mut expired = 0;
        loop {
            match self.read_page(after, passing_over) {
                Err(Error::Timeout { .. }) if expired < VIEWS_MAX => expired += 1,
                page => return page,
            }
        }
    }

    fn read_page(&self, after: Option<&[u8]>, passing_over: bool) -> Result<Page> {
        let view = self.view()?;
        let rows = view.rows(&Index::Running, after, SWEEP_PAGE)?;
        let next = (rows.len() == SWEEP_PAGE)
            .then(|| rows.last().map(|(key, _)| key.to_vec()))
            .flatten();
        let rows = rows.into_iter().map(|(_, row)| row).collect();
        let (rows, passed_over) = if passing_over {
            self.attention.not_elsewhere(rows)
        } else {
            (rows, Vec::new())
        };
        let mut page = self.examine_rows(view, rows, Found::Index)?;
        page.met
            .extend(passed_over.iter().map(|row| row.incarnation));
        page.elsewhere.extend(passed_over);
        Ok(Page { next, ..page })
    }

    fn examine_rows(&self, view: View, rows: Vec<Row>, from: Found) -> Result<Page> {
        let mut page = Page::default();
        let (mut view, mut from, mut expired) = (view, from, 0);
        for row in rows {
            page.met.push(row.incarnation);
            let mut examined = self.examine_row(&view, row, from, &mut page);
            if matches!(examined, Err(Error::Timeout { .. })) && expired < VIEWS_MAX {
                expired += 1;
                // Not the view on which the index was read any more.
                (view, from) = (self.view()?, Found::Note);
                examined = self.examine_row(&view, row, from, &mut page);
            }
            match examined {
                Ok(examined) => page.found.extend(examined),
                Err(error) => {
                    page.damaged = true;
                    page.again.push(row);
                    if matches!(error, Error::Corrupted { .. }) {
                        // Nobody settles it, here or elsewhere.
                        self.looks.forget(row.incarnation, false);
                    }
                    let id = format!("incarnation {}", row.incarnation);
                    warn!(process = %id, %error, "cannot be read, and is not recovered");
                    page.found.push(Examined::Done(id, RecoveryStep::Unsettled));
                }
            }
        }
        Ok(page)
    }

    fn examine_row(
        &self,
        view: &View,
        row: Row,
        from: Found,
        page: &mut Page,
    ) -> Result<Option<Examined>> {
        let Some(summary) = view.summary(row)? else {
            return match from {
                // Pruned since.
                Found::Note => {
                    self.looks.forget(row.incarnation, false);
                    Ok(None)
                }
                Found::Index => Err(Error::Corrupted {
                    what: "it runs, and nothing is known of it".to_owned(),
                }),
            };
        };
        if let Some(lease) = summary.edges.lease {
            page.named.insert(lease.owner);
        }
        if summary.facts.terminal.is_some() {
            self.looks.forget(row.incarnation, false);
        }
        let token = summary.edges.lease.map(|lease| lease.token);
        self.looks.still_taken(row.incarnation, token);
        let limited = summary.head.timeout.is_some();
        // A child may have to be asked to cancel although nothing is noted of it.
        let alone = summary.head.provenance.parent.is_none();
        let examined = self.examine(view, summary)?;
        if let Examined::Done(_, step) = &examined
            && alone
            && self.store.exclusive_epoch().is_some()
            && *step
                == (RecoveryStep::Left {
                    reason: LeaveReason::ExternallyOwned,
                })
        {
            self.attention.found_elsewhere(row);
            page.elsewhere.push(row);
        }
        if let Examined::Done(_, step) = &examined
            && changes_with_time(*step, limited, self.is_claimed(row.incarnation))
        {
            page.again.push(row);
        }
        Ok(Some(examined))
    }

    fn examine(&self, view: &View, summary: ProcessSummary) -> Result<Examined> {
        let ProcessSummary { head, facts, edges } = summary;
        let (id, row) = (head.id.clone(), head.row);
        let todo = |id, work| Examined::Todo(Task { id, row, work });
        // Its recovery, if it needs any after that, is the next sweep's.
        if let Some(by) = parent_wants_cancel(view, &head, &facts)? {
            return Ok(todo(id, Work::Cancel { by }));
        }
        if self.is_busy(row.incarnation) {
            let reason = LeaveReason::Leased;
            return Ok(Examined::Done(id, RecoveryStep::Left { reason }));
        }
        // Leased by this incarnation, and nothing uses it: what did is gone.
        let own = self.owner().map(|owner| owner.number);
        let orphaned = edges
            .lease
            .filter(|lease| Some(lease.owner) == own)
            .map(|lease| lease.token);
        let standing = match orphaned {
            Some(_) => LeaseStanding::Held(OwnerStanding::Dead),
            None => view.lease_standing(edges.lease)?,
        };
        let kind = head.engine_kind.clone();
        let priority = head.priority;
        let registration = head.without_body();
        let facts_of_it = RecoveryFacts {
            lease: standing,
            engine_registered: kind
                .as_deref()
                .is_some_and(|kind| self.engine(kind).is_some()),
            started_for_ms: self.started_for_ms(&registration, &facts.state),
            pause_ends_ms: self.pause_ends_ms(&registration, &facts.state),
        };
        let action = recover(&registration, &facts.state, facts_of_it);
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

/// Whether there may be something else to do later although nothing is written until then.
fn changes_with_time(step: RecoveryStep, limited: bool, claimed: bool) -> bool {
    match step {
        // The lease of a lost incarnation expires, or code that goes on after its execution was
        // stopped ends. What is in use here is noted when it no longer is.
        RecoveryStep::Left {
            reason: LeaveReason::Leased,
        } => !claimed,
        // Its pause ends, or its time limit passes.
        RecoveryStep::Queued { reason } => {
            reason == StartReason::Retry || (limited && reason != StartReason::First)
        }
        RecoveryStep::Left { reason } => reason == LeaveReason::Stale,
        _ => step == RecoveryStep::Unsettled,
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
