//! What is done with one process: it is queued, or ended by a commit that claims it.

use super::report::RecoveryStep;
use super::sweep::Task;
use std::sync::Arc;

use tracing::{info, warn};

use crate::actors::errors::commit_error;
use crate::actors::runtime::Shared;
use crate::model::decide::{self, Command, Decision, Facts, Finisher, LeaseChange, apply_drafts};
use crate::model::recovery::RecoveryAction;
use crate::model::{
    AbandonEvidence, AbandonProof, CompletionAuthority, FailureClass, OwnerNumber,
    ProcessAwaitOutput, ProcessEvent, ProcessRecord, RecoveryDisposition, Result, Survivor,
};
use crate::store::read::LoadedProcess;
use crate::store::write_set::{CommitError, Condition, Refusal, WriteSet};
use crate::store::writes;

/// Carries out what is to be done with one process.
pub(super) async fn settle(shared: &Arc<Shared>, task: Task) -> Result<Option<RecoveryStep>> {
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
    shared.written_by_others(&registration.id, registration.incarnation);
    for scope in &receipt.woken {
        shared.hub.scope_changed(scope);
    }
    Ok(())
}
