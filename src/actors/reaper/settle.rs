//! What is done with one process: its owner's loss is recorded, or it is ended, by a commit that
//! claims it.

use std::sync::Arc;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::report::RecoveryStep;
use super::survivors::{Looked, SlowEngines, Turn};
use crate::actors::errors::commit_error;
use crate::actors::runtime::Shared;
use crate::model::decide::{self, Command, Decision, Facts, Finisher, LeaseChange, apply_drafts};
use crate::model::lease::{Lease, OwnerStanding};
use crate::model::record::Registration;
use crate::model::recovery::{LeaseStanding, RecoveryAction};
use crate::model::{
    AbandonEvidence, AbandonProof, CompletionAuthority, FailureClass, FencingToken, OwnerNumber,
    ProcessAwaitOutput, ProcessOwner, RecoveryDisposition, Result, StartReason, Survivor,
};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::read::LoadedProcess;
use crate::store::write_set::{CommitError, CommitResult, Condition, Refusal, WriteSet};
use crate::store::writes;

/// How often a process is settled anew because somebody appended to its log meanwhile.
const TRIES_MAX: usize = 4;

/// What is to be done with one process.
pub(super) struct Task {
    pub(super) id: String,
    pub(super) row: Row,
    pub(super) work: Work,
}

pub(super) enum Work {
    /// Its parent was asked to cancel.
    Cancel { by: String },
    /// It is made ready, or ended.
    Settle {
        action: RecoveryAction,
        /// The lease on which that was decided.
        lease: Option<Lease>,
        /// It names this runtime, which no longer executes the process.
        orphaned: Option<FencingToken>,
    },
}

/// Carries out what is to be done with one process.
pub(super) async fn carry_out(
    shared: &Arc<Shared>,
    task: Task,
    slow: &SlowEngines,
) -> Result<RecoveryStep> {
    match task.work {
        Work::Cancel { by } => {
            shared.cancel(&task.id, Some(by), None).await?;
            Ok(RecoveryStep::CancelRequested)
        }
        Work::Settle {
            action,
            lease,
            orphaned,
        } => {
            let settling = Settling {
                shared,
                row: task.row,
                action,
                lease,
                orphaned,
                taken_from: None,
            };
            let step = settling.settle(&task.id, slow).await;
            if !matches!(step, Err(_) | Ok(RecoveryStep::Unsettled)) {
                let overtaken = matches!(step, Ok(RecoveryStep::Overtaken));
                shared.looks.forget(task.row.incarnation, overtaken);
            }
            step
        }
    }
}

struct Settling<'a> {
    shared: &'a Arc<Shared>,
    row: Row,
    action: RecoveryAction,
    lease: Option<Lease>,
    orphaned: Option<FencingToken>,
    /// From whom the lease was taken before anything was decided.
    taken_from: Option<ProcessOwner>,
}

impl Settling<'_> {
    async fn settle(mut self, id: &str, slow: &SlowEngines) -> Result<RecoveryStep> {
        let Some(mut loaded) = self.still_lost()? else {
            return Ok(RecoveryStep::Overtaken);
        };
        // Before its lease is taken from anybody: what nobody gets to look at now is left whose it is.
        let turn = Turn::of(self.shared, &loaded.registration, &loaded.state, slow).await;
        match turn {
            Turn::Later => return Ok(RecoveryStep::Unsettled),
            Turn::Known(_) => {}
            // As it is now: the turn may have been long in coming.
            Turn::Look(_) => {
                loaded = match self.still_lost()? {
                    Some(loaded) => loaded,
                    None => return Ok(RecoveryStep::Overtaken),
                };
            }
        }
        self.go_on();
        if self.may_be_renewed()? {
            // Touched by nobody before it is durable that its owner has lost it.
            if !self.take_over(&loaded).await? {
                return Ok(RecoveryStep::Overtaken);
            }
            loaded = match self.still_lost()? {
                Some(loaded) => loaded,
                None => return Ok(RecoveryStep::Overtaken),
            };
        }
        // Before the commit: only what it frees may begin another attempt, so that what is looked
        // for and ended here is never that attempt's.
        let survivors = match turn.look(&loaded.registration, &loaded.state).await {
            Looked::Found(survivors) => survivors,
            Looked::Later => return Ok(RecoveryStep::Unsettled),
        };
        for _ in 0..TRIES_MAX {
            match self.write(loaded, survivors.clone()).await {
                Ok(step) => return Ok(step),
                Err(CommitError::Refused(refusal)) => {
                    info!(process = %id, ?refusal, "recovery was overtaken");
                    if refusal != Refusal::Moved {
                        break;
                    }
                }
                Err(error) => return Err(commit_error(id, error)),
            }
            loaded = match self.still_lost()? {
                Some(loaded) => loaded,
                None => break,
            };
        }
        Ok(RecoveryStep::Overtaken)
    }

    /// Goes on with what an earlier sweep took over and did not settle: whose it was, and that nothing
    /// but a lapse spoke against that owner, is not forgotten over that.
    fn go_on(&mut self) {
        // By the token, which is the same where this runtime has another incarnation by now.
        let taken = self.lease.and_then(|lease| {
            let looks = &self.shared.looks;
            looks.taken_from(self.row.incarnation, lease.token)
        });
        if let Some(from) = taken {
            self.taken_from = Some(from);
            if let RecoveryAction::Release { proof } | RecoveryAction::Abandon { proof, .. } =
                &mut self.action
            {
                *proof = AbandonProof::Lapse;
            }
        }
    }

    /// Takes the lease from an owner that has lapsed, for this runtime; whether it had still lapsed. What
    /// is here then is an orphan of this runtime: nothing executes it, nobody else begins anything, and
    /// if this runtime goes as well, the next one recovers it.
    async fn take_over(&mut self, loaded: &LoadedProcess) -> Result<bool> {
        let (Some(lapsed), Some(own)) = (self.lease, self.shared.owner()) else {
            return Ok(false);
        };
        let Some(from) = self.lost_owner()? else {
            return Ok(false);
        };
        let row = self.row;
        let lease = Lease {
            owner: own.number,
            token: self.shared.store.next_token()?,
        };
        let (incarnation, looks) = (row.incarnation, &self.shared.looks);
        looks.taking(incarnation, lease, from.clone());
        if !own.is_trusted(self.shared.monotonic()) {
            looks.not_taken(incarnation, lease.token);
            return Ok(false);
        }
        let conditions = vec![
            Condition::Token {
                row,
                token: lapsed.token,
            },
            Condition::LeaseFree { row },
            Condition::OwnerLive { owner: own.number },
        ];
        let taking = writes::take(row, loaded.state.last_sequence, own.number, lease.token);
        let set = WriteSet::new(conditions, vec![taking]);
        let sent = self.send(&loaded.registration, set).await;
        match sent.unwrap_or(Err(CommitError::Unknown(StoreError::Closed))) {
            Ok(_) => {
                self.lease = Some(lease);
                self.orphaned = Some(lease.token);
                self.taken_from = Some(from);
                Ok(true)
            }
            Err(CommitError::Refused(refusal)) => {
                looks.not_taken(incarnation, lease.token);
                info!(process = %loaded.registration.id, ?refusal, "recovery was overtaken");
                Ok(false)
            }
            // It may have been taken: whoever looks next knows it by its token.
            Err(error) => Err(commit_error(&loaded.registration.id, error)),
        }
    }

    /// Whether nothing but elapsed time speaks against whoever holds the lease (L5): another host, which
    /// may be at work, and renew it before the commit is judged. Earlier incarnations of this runtime
    /// renew nothing, and what runs of them here was looked at.
    fn may_be_renewed(&self) -> Result<bool> {
        let Some(lease) = self.lease else {
            return Ok(false);
        };
        // What claims to rest on more is for the commit to judge.
        if let RecoveryAction::Release { proof } | RecoveryAction::Abandon { proof, .. } =
            self.action
            && proof != AbandonProof::Lapse
        {
            return Ok(false);
        }
        let view = self.shared.view()?;
        let own = view
            .owner(lease.owner)?
            .is_some_and(|record| record.owner.store_epoch == self.shared.store.epoch());
        let dead = LeaseStanding::Held(OwnerStanding::Dead);
        Ok(!own && view.lease_standing(self.lease)? != dead)
    }

    /// The process as it is now, if it is still held by whom it was found to be lost by, and
    /// nothing of it runs or begins here.
    fn still_lost(&self) -> Result<Option<LoadedProcess>> {
        let incarnation = self.row.incarnation;
        let loaded =
            self.shared.view()?.load(self.row)?.filter(|loaded| {
                loaded.edges.lease == self.lease && loaded.state.terminal().is_none()
            });
        // Looked at after the load: whoever claims says so before it commits.
        Ok(loaded.filter(|_| !self.shared.is_busy(incarnation)))
    }

    fn lost_owner(&self) -> Result<Option<ProcessOwner>> {
        if let Some(owner) = &self.taken_from {
            return Ok(Some(owner.clone()));
        }
        let Some(lease) = self.lease else {
            return Ok(None);
        };
        let record = self.shared.view()?.owner(lease.owner)?;
        Ok(record.map(|record| record.owner))
    }

    async fn write(
        &self,
        loaded: LoadedProcess,
        survivors: Option<Vec<Survivor>>,
    ) -> std::result::Result<RecoveryStep, CommitError> {
        let token = match loaded.registration.disposition {
            RecoveryDisposition::ExternallyOwned => None,
            RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound => Some(
                self.shared
                    .store
                    .next_token()
                    .map_err(CommitError::NotWritten)?,
            ),
        };
        let Some((command, step)) = self.command(&loaded, token, survivors) else {
            return Err(CommitError::Refused(Refusal::NothingToDo));
        };
        let registration = Arc::new(loaded.registration.clone());
        self.commit(loaded, command, token).await?;
        if let RecoveryStep::Queued { .. } = step {
            if registration.timeout.is_some() {
                // Its time limit may pass before its turn comes.
                self.shared.attention.note(self.row);
            }
            self.shared.enqueue(&registration, 0);
        }
        Ok(step)
    }

    /// What the rules are asked to allow, and what to call it.
    fn command(
        &self,
        loaded: &LoadedProcess,
        token: Option<FencingToken>,
        survivors: Option<Vec<Survivor>>,
    ) -> Option<(Command, RecoveryStep)> {
        let owner = self.lost_owner().unwrap_or_else(|error| {
            warn!(process = %loaded.registration.id, %error, "its last owner cannot be read");
            None
        });
        if let RecoveryAction::Release { proof } = self.action {
            let command = Command::LoseOwner {
                owner,
                token: token?,
                proof,
                survivors,
            };
            let reason = StartReason::Recovery;
            return Some((command, RecoveryStep::Queued { reason }));
        }
        let (output, step) = self.outcome(loaded, owner, survivors)?;
        let finisher = match token {
            Some(token) => Finisher::Claim(token),
            None => Finisher::Authority(CompletionAuthority::ReconciledAbandon),
        };
        Some((Command::Finish { output, finisher }, step))
    }

    fn outcome(
        &self,
        loaded: &LoadedProcess,
        owner: Option<ProcessOwner>,
        survivors: Option<Vec<Survivor>>,
    ) -> Option<(ProcessAwaitOutput, RecoveryStep)> {
        let failed = |class, code: &str, message: String| {
            let output = ProcessAwaitOutput::Failure {
                class,
                code: code.to_owned(),
                message,
                raw: None,
            };
            Some((output, RecoveryStep::Failed))
        };
        match self.action {
            RecoveryAction::Abandon { writer, proof } => {
                let request = loaded.state.abandon_request.as_ref();
                let evidence = AbandonEvidence {
                    writer,
                    owner,
                    proof,
                    requested_by: request.map(|request| request.requested_by.clone()),
                    survivors,
                    epoch_ms: self.shared.now_ms(),
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
            RecoveryAction::Leave(_)
            | RecoveryAction::Queue { .. }
            | RecoveryAction::Release { .. } => None,
        }
    }

    /// Writes about a process that nobody holds, claiming its lease in the very commit.
    async fn commit(
        &self,
        loaded: LoadedProcess,
        command: Command,
        token: Option<FencingToken>,
    ) -> std::result::Result<(), CommitError> {
        let LoadedProcess {
            row: _,
            registration,
            mut state,
            edges,
        } = loaded;
        let facts = Facts {
            holder: edges.lease.map(|lease| lease.token),
            claim: token,
            ..Facts::default()
        };
        let last_sequence = state.last_sequence;
        let (events, lease) = match decide::decide(&registration, &state, command, facts) {
            Ok(Decision::Commit { events, lease }) => (events, lease),
            Ok(Decision::Replayed { .. } | Decision::Unchanged) => return Ok(()),
            Err(error) => {
                warn!(process = %registration.id, %error, "recovery was refused by the rules");
                return Err(CommitError::Refused(Refusal::NothingToDo));
            }
        };
        let at_ms = self.shared.now_ms();
        if let Err(error) = apply_drafts(&registration, &mut state, &events, at_ms) {
            warn!(process = %registration.id, %error, "recovery does not fit the log");
            return Err(CommitError::Refused(Refusal::NothingToDo));
        }
        let conditions = self.conditions(last_sequence, &lease);
        let nobody = OwnerNumber::default();
        let change = writes::append(&registration, &events, &state, &lease, nobody, at_ms)
            .map_err(CommitError::NotWritten)?;
        self.send(&registration, WriteSet::new(conditions, vec![change]))
            .await
            .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))?;
        match state.terminal() {
            Some(outcome) => {
                info!(process = %registration.id, ?outcome, "recovered to its end");
            }
            None => info!(process = %registration.id, recoveries = state.recoveries,
                "ready for another attempt after it lost its owner"),
        }
        Ok(())
    }

    /// Sends it, and has those told who wait for what it says.
    fn send(&self, registration: &Registration, set: WriteSet) -> oneshot::Receiver<CommitResult> {
        let (answer, wait) = oneshot::channel();
        let shared = Arc::clone(self.shared);
        let (id, incarnation) = (registration.id.clone(), registration.incarnation);
        self.shared.store.commit(
            set,
            // Told here (W2), because the sweep may be gone when it commits. Listeners look at the
            // store themselves: the actor may be publishing at the same time.
            Box::new(move |result| {
                shared.written_by_others(&id, incarnation);
                for scope in result.iter().flat_map(|receipt| &receipt.woken) {
                    shared.hub.scope_changed(scope);
                }
                let _ = answer.send(result);
            }),
        );
        wait
    }

    fn conditions(&self, last_sequence: u64, lease: &LeaseChange) -> Vec<Condition> {
        let row = self.row;
        let mut conditions = vec![Condition::At { row, last_sequence }];
        match (self.orphaned, self.action) {
            (Some(token), _) => conditions.push(Condition::Token { row, token }),
            // L5: what must not run twice is ended only on proof, and the proof is in the commit.
            (
                None,
                RecoveryAction::Abandon {
                    proof: AbandonProof::StoreEpoch | AbandonProof::Unowned,
                    ..
                }
                | RecoveryAction::Release {
                    proof: AbandonProof::StoreEpoch,
                },
            ) => conditions.push(Condition::LeaseGone { row }),
            (None, _) if *lease != LeaseChange::Keep => {
                conditions.push(Condition::LeaseFree { row });
            }
            (None, _) => {}
        }
        conditions
    }
}
