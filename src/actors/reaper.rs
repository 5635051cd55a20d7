//! The reaper: recovery, and what is to be cleaned up.
//!
//! It walks the processes that have not ended in bounded pages, each on a view of its own, and does
//! what the pure rules of `model::recovery` say. What it ends it ends by a commit that carries its
//! own conditions, so that it need not know what actors are doing meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::config::{PASSIVATE_AFTER, SWEEP_PAGE};
use super::dispatcher::QueueEntry;
use super::errors::commit_error;
use super::runtime::Shared;
use crate::model::decide::{self, Command, Decision, Facts, Finisher, LeaseChange, apply_drafts};
use crate::model::lease::OwnerStanding;
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, recover};
use crate::model::{
    AbandonEvidence, AbandonProof, CompletionAuthority, Error, FailureClass, LeaveReason,
    OwnerNumber, ProcessAwaitOutput, ProcessEvent, ProcessRecord, RecoveryDisposition, Result,
    StartReason, Survivor,
};
use crate::store::keys::Row;
use crate::store::read::{Index, LoadedProcess, ProcessSummary, View};
use crate::store::write_set::{Change, CommitError, Condition, Refusal, WriteSet};
use crate::store::writes;

/// What recovery did with one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
#[non_exhaustive]
pub enum RecoveryStep {
    /// It was put into the queue of its engine.
    Queued {
        /// Why its next attempt begins.
        reason: StartReason,
    },
    /// It was ended as abandoned.
    Abandoned,
    /// It was ended as cancelled: that had been asked for, and nothing ran any more.
    Cancelled,
    /// It was ended as failed: it lost its owner too often, or its time limit had passed.
    Failed,
    /// It was left as it is.
    Left {
        /// Why.
        reason: LeaveReason,
    },
}

/// What recovery did, process by process.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoveryReport {
    /// Processes that were looked at.
    pub examined: u64,
    /// Put into the queue of their engine.
    pub queued: u64,
    /// Ended as abandoned.
    pub abandoned: u64,
    /// Ended as cancelled.
    pub cancelled: u64,
    /// Ended as failed.
    pub failed: u64,
    /// Left as they are.
    pub left: u64,
    /// The first 10,000 of them: id and what was done.
    pub processes: Vec<(String, RecoveryStep)>,
}

/// Most processes that a report names.
const REPORT_MAX: usize = 10_000;

impl RecoveryReport {
    fn note(&mut self, id: &str, step: RecoveryStep) {
        self.examined += 1;
        match step {
            RecoveryStep::Queued { .. } => self.queued += 1,
            RecoveryStep::Abandoned => self.abandoned += 1,
            RecoveryStep::Cancelled => self.cancelled += 1,
            RecoveryStep::Failed => self.failed += 1,
            RecoveryStep::Left { .. } => self.left += 1,
        }
        if self.processes.len() < REPORT_MAX {
            self.processes.push((id.to_owned(), step));
        }
    }
}

/// What the reaper is told.
#[derive(Debug)]
pub(crate) enum ReaperMsg {
    /// It is time for a sweep.
    Tick,
    /// Something may have to be recovered.
    SweepSoon,
    /// Enough time has passed since that was said.
    SweepDelayed,
    /// Sweep now, and say what was done.
    SweepNow {
        report: oneshot::Sender<Result<RecoveryReport>>,
    },
    /// A sweep is over.
    Swept,
    /// Actors with nothing to do may go.
    Passivate,
}

pub(crate) struct Reaper;

pub(crate) struct ReaperState {
    shared: Arc<Shared>,
    sweeping: bool,
    /// Asked for while a sweep was going on, or too soon after one.
    again: bool,
    /// A timer for that is set.
    delayed: bool,
    waiting: Vec<oneshot::Sender<Result<RecoveryReport>>>,
}

impl Actor for Reaper {
    type Msg = ReaperMsg;
    type State = ReaperState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<ReaperMsg>,
        shared: Arc<Shared>,
    ) -> Result<ReaperState, ActorProcessingErr> {
        myself.send_interval(shared.config.sweep_every, || ReaperMsg::Tick);
        myself.send_interval(PASSIVATE_AFTER / 2, || ReaperMsg::Passivate);
        Ok(ReaperState {
            shared,
            sweeping: false,
            again: false,
            delayed: false,
            waiting: Vec::new(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ReaperMsg>,
        message: ReaperMsg,
        state: &mut ReaperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReaperMsg::Tick => state.sweep(&myself),
            ReaperMsg::SweepSoon => state.sweep_soon(&myself),
            ReaperMsg::SweepDelayed => {
                state.delayed = false;
                state.sweep(&myself);
            }
            ReaperMsg::SweepNow { report } => {
                state.waiting.push(report);
                state.sweep(&myself);
            }
            ReaperMsg::Swept => {
                state.sweeping = false;
                if !state.waiting.is_empty() {
                    state.sweep(&myself);
                } else if std::mem::take(&mut state.again) {
                    state.sweep_soon(&myself);
                }
            }
            ReaperMsg::Passivate => state.shared.passivate_idle(PASSIVATE_AFTER),
        }
        Ok(())
    }
}

/// Time over which requests for a sweep are gathered: a process that cannot be claimed must not
/// keep the reaper, and the disk, busy.
const GATHER: Duration = Duration::from_millis(50);

impl ReaperState {
    fn sweep_soon(&mut self, myself: &ActorRef<ReaperMsg>) {
        if !std::mem::replace(&mut self.delayed, true) {
            myself.send_after(GATHER, || ReaperMsg::SweepDelayed);
        }
    }

    fn sweep(&mut self, myself: &ActorRef<ReaperMsg>) {
        if !self.shared.config.recover || self.shared.is_shutting_down() {
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(Err(Error::ShuttingDown));
            }
            return;
        }
        if self.sweeping {
            self.again = true;
            return;
        }
        self.sweeping = true;
        let shared = Arc::clone(&self.shared);
        let waiting = std::mem::take(&mut self.waiting);
        let myself = myself.clone();
        tokio::spawn(async move {
            let report = Sweep::new(&shared).run().await;
            match &report {
                Ok(report) if report.examined > report.left => {
                    info!(
                        examined = report.examined,
                        queued = report.queued,
                        abandoned = report.abandoned,
                        cancelled = report.cancelled,
                        failed = report.failed,
                        "recovery sweep"
                    );
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "recovery sweep failed"),
            }
            for waiting in waiting {
                let _ = waiting.send(report.clone());
            }
            let _ = myself.cast(ReaperMsg::Swept);
        });
    }
}

impl Shared {
    /// Sweeps now and says what was done.
    pub(crate) async fn recover_now(&self) -> Result<RecoveryReport> {
        let (report, wait) = oneshot::channel();
        self.actors()?
            .reaper
            .cast(ReaperMsg::SweepNow { report })
            .map_err(|_| Error::ShuttingDown)?;
        wait.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

/// One walk over the processes that have not ended.
struct Sweep<'a> {
    shared: &'a Arc<Shared>,
    report: RecoveryReport,
    /// Owners that a lease still names.
    named: HashSet<OwnerNumber>,
}

/// What is to be done with one process.
struct Task {
    id: String,
    row: Row,
    action: RecoveryAction,
    /// Its lease names this runtime, which no longer executes it.
    orphaned: Option<crate::model::FencingToken>,
    cancel_for_parent: Option<String>,
}

impl<'a> Sweep<'a> {
    fn new(shared: &'a Arc<Shared>) -> Self {
        Self {
            shared,
            report: RecoveryReport::default(),
            named: HashSet::new(),
        }
    }

    async fn run(mut self) -> Result<RecoveryReport> {
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
        if let Some(lease) = edges.lease {
            self.named.insert(lease.owner);
        }
        if self.shared.has_task(head.row.incarnation) {
            // It is executed, or code of a lost execution still runs: nothing is begun beside it.
            return Ok(None);
        }
        let own = self.shared.owner().map(|owner| owner.number);
        let orphaned = edges
            .lease
            .filter(|lease| Some(lease.owner) == own && !self.shared.is_active(&head.id))
            .map(|lease| lease.token);
        let lease = match orphaned {
            Some(_) => LeaseStanding::Held(OwnerStanding::Dead),
            None => view.lease_standing(edges.lease)?,
        };
        let cancel_for_parent = self.parent_wants_cancel(view, &head, &facts)?;
        let engine_registered = head
            .engine_kind
            .as_deref()
            .is_some_and(|kind| self.shared.engine(kind).is_some());
        let (id, row, priority) = (head.id.clone(), head.row, head.priority);
        let kind = head.engine_kind.clone();
        let action = recover(
            &head.without_body(),
            &facts.state,
            RecoveryFacts {
                lease,
                engine_registered,
                now_ms: view.now_ms(),
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

/// Carries out what is to be done with one process.
async fn settle(shared: &Arc<Shared>, task: Task) -> Result<Option<RecoveryStep>> {
    let Some(loaded) = shared.view()?.load(task.row)? else {
        return Ok(None);
    };
    let survivors = end_survivors(shared, &loaded).await;
    if let RecoveryAction::Queue {
        reason,
        not_before_ms,
    } = task.action
    {
        shared.enqueue(&loaded.registration, not_before_ms);
        return Ok(Some(RecoveryStep::Queued { reason }));
    }
    let Some((output, step)) = outcome_of(shared, &loaded, task.action, survivors)? else {
        return Ok(None);
    };
    match end(shared, loaded, output, task.action, task.orphaned).await {
        Ok(()) => Ok(Some(step)),
        // Somebody was faster: the next sweep sees what is left to do.
        Err(CommitError::Refused(refusal)) => {
            info!(process = %task.id, ?refusal, "recovery was overtaken");
            Ok(None)
        }
        Err(error) => Err(commit_error(&task.id, error)),
    }
}

/// Ends what a lost attempt left behind outside of this runtime.
async fn end_survivors(shared: &Arc<Shared>, loaded: &LoadedProcess) -> Vec<Survivor> {
    if loaded.state.attempt == 0 || loaded.edges.lease.is_none() {
        return Vec::new();
    }
    let Some(engine) = shared.engine_of(&loaded.registration) else {
        return Vec::new();
    };
    let record = ProcessRecord::assemble(&loaded.registration, &loaded.state);
    let Some(key) = engine.survivor_key(&record) else {
        return Vec::new();
    };
    match find_event(shared, loaded, &key) {
        Ok(Some(event)) => engine.end_survivors(&event).await,
        Ok(None) => Vec::new(),
        Err(error) => {
            warn!(process = %record.id, %error, "survivors cannot be looked for");
            Vec::new()
        }
    }
}

fn find_event(
    shared: &Shared,
    loaded: &LoadedProcess,
    replay_key: &str,
) -> Result<Option<ProcessEvent>> {
    let registration = &loaded.registration;
    let view = shared.view()?;
    let Some(replayed) = view.replayed(registration.incarnation, replay_key)? else {
        return Ok(None);
    };
    let found = view.events(
        &registration.id,
        registration.incarnation,
        replayed.sequence,
        1,
        usize::MAX,
    )?;
    Ok(found.into_iter().next())
}

fn outcome_of(
    shared: &Shared,
    loaded: &LoadedProcess,
    action: RecoveryAction,
    survivors: Vec<Survivor>,
) -> Result<Option<(ProcessAwaitOutput, RecoveryStep)>> {
    let failed = |class, code: &str, message: String| {
        let output = ProcessAwaitOutput::Failure {
            class,
            code: code.to_owned(),
            message,
            raw: None,
        };
        Some((output, RecoveryStep::Failed))
    };
    Ok(match action {
        RecoveryAction::Abandon { writer, proof } => {
            let owner = match loaded.edges.lease {
                Some(lease) => shared
                    .view()?
                    .owner(lease.owner)?
                    .map(|record| record.owner),
                None => None,
            };
            let evidence = AbandonEvidence {
                writer,
                owner,
                proof,
                requested_by: loaded
                    .state
                    .abandon_request
                    .as_ref()
                    .map(|request| request.requested_by.clone()),
                survivors,
                epoch_ms: shared.now_ms(),
            };
            Some((
                ProcessAwaitOutput::Abandoned { evidence },
                RecoveryStep::Abandoned,
            ))
        }
        RecoveryAction::Cancel => Some((
            ProcessAwaitOutput::Cancelled {
                message: "cancelled while nobody executed it".to_owned(),
                raw: None,
            },
            RecoveryStep::Cancelled,
        )),
        RecoveryAction::ExhaustRecoveries => failed(
            FailureClass::Internal,
            "recoveries_exhausted",
            format!(
                "lost its owner more than {} times",
                loaded.registration.retry.recoveries_max
            ),
        ),
        RecoveryAction::TimeOut => failed(
            FailureClass::Timeout,
            "timeout",
            "its time limit passed while nobody executed it".to_owned(),
        ),
        RecoveryAction::Leave(_) | RecoveryAction::Queue { .. } => None,
    })
}

/// Ends a process that nobody holds, claiming its lease in the very commit.
async fn end(
    shared: &Arc<Shared>,
    loaded: LoadedProcess,
    output: ProcessAwaitOutput,
    action: RecoveryAction,
    orphaned: Option<crate::model::FencingToken>,
) -> std::result::Result<(), CommitError> {
    let LoadedProcess {
        row,
        registration,
        mut state,
        edges,
    } = loaded;
    let mut facts = Facts {
        holder: edges.lease.map(|lease| lease.token),
        ..Facts::default()
    };
    let finisher = match registration.disposition {
        RecoveryDisposition::ExternallyOwned => {
            Finisher::Authority(CompletionAuthority::ReconciledAbandon)
        }
        RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound => {
            let token = shared.store.next_token().map_err(CommitError::NotWritten)?;
            facts.claim = Some(token);
            Finisher::Claim(token)
        }
    };
    let command = Command::Finish { output, finisher };
    let last_sequence = state.last_sequence;
    let decision = decide::decide(&registration, &state, command, facts);
    let (events, lease) = match decision {
        Ok(Decision::Commit { events, lease }) => (events, lease),
        Ok(Decision::Replayed { .. } | Decision::Unchanged) => return Ok(()),
        Err(error) => {
            warn!(process = %registration.id, %error, "recovery was refused by the rules");
            return Err(CommitError::Refused(Refusal::NothingToDo));
        }
    };
    let at_ms = shared.now_ms();
    if let Err(error) = apply_drafts(&registration, &mut state, &events, at_ms) {
        warn!(process = %registration.id, %error, "recovery does not fit the log");
        return Err(CommitError::Refused(Refusal::NothingToDo));
    }
    let mut conditions = vec![Condition::At { row, last_sequence }];
    match (orphaned, action) {
        (Some(token), _) => conditions.push(Condition::Token { row, token }),
        // L5: what must not run twice is ended only on proof, and the proof is in the commit.
        (
            None,
            RecoveryAction::Abandon {
                proof: AbandonProof::StoreEpoch | AbandonProof::Unowned,
                ..
            },
        ) => conditions.push(Condition::LeaseGone { row }),
        (None, _) if lease != LeaseChange::Keep => conditions.push(Condition::LeaseFree { row }),
        (None, _) => {}
    }
    let change = writes::append(
        &registration,
        &events,
        &state,
        &lease,
        OwnerNumber::default(),
        at_ms,
    )
    .map_err(CommitError::NotWritten)?;
    let receipt = shared
        .store
        .commit_wait(WriteSet::new(conditions, vec![change]))
        .await?;
    info!(process = %registration.id, outcome = ?state.terminal(), "recovered to its end");
    // Listeners look at the store themselves: the actor may be publishing at the same time.
    shared.hub.nudge(registration.incarnation);
    for scope in &receipt.woken {
        shared.hub.scope_changed(scope);
    }
    Ok(())
}

/// The shortest interval of sweeps.
pub(crate) const SWEEP_EVERY_MIN: Duration = Duration::from_millis(50);
