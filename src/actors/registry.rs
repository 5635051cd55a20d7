//! The registry actor: grants, revocations and transfers, in order.
//!
//! It looks at what is committed, makes one set of it with the conditions that must hold when it
//! commits, and sends it without waiting. Scopes hear of a change before the caller is answered,
//! so that after a revocation has returned nothing more reaches the scope (G5).

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::config::RETRIES_MAX;
use super::errors::{commit_error, not_granted};
use super::runtime::Shared;
use crate::model::limits::TRANSFER_IDS_MAX;
use crate::model::{Error, ProcessHandleDescriptor, Result, SessionScope};
use crate::store::read::IdEntry;
use crate::store::write_set::{Change, CommitError, Condition, Refusal, WriteSet};

/// What the registry is told.
#[derive(Debug)]
pub(crate) enum RegistryMsg {
    /// Give a scope a grant.
    Grant {
        scope: SessionScope,
        process_id: String,
        descriptor: ProcessHandleDescriptor,
        done: oneshot::Sender<Result<()>>,
    },
    /// Take one away.
    Revoke {
        scope: SessionScope,
        process_id: String,
        done: oneshot::Sender<Result<()>>,
    },
    /// Move grants from one scope to another, all or none.
    Transfer {
        from: Vec<SessionScope>,
        to: SessionScope,
        process_ids: Vec<String>,
        done: oneshot::Sender<Result<()>>,
    },
}

pub(crate) struct Registry;

impl Actor for Registry {
    type Msg = RegistryMsg;
    type State = Arc<Shared>;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<RegistryMsg>,
        shared: Arc<Shared>,
    ) -> Result<Arc<Shared>, ActorProcessingErr> {
        Ok(shared)
    }

    async fn handle(
        &self,
        _myself: ActorRef<RegistryMsg>,
        message: RegistryMsg,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RegistryMsg::Grant {
                scope,
                process_id,
                descriptor,
                done,
            } => {
                let plan = plan_grant(shared, &scope, &process_id, descriptor);
                send(shared, plan, vec![scope], process_id, done);
            }
            RegistryMsg::Revoke {
                scope,
                process_id,
                done,
            } => {
                let plan = plan_revoke(shared, &scope, &process_id);
                send(shared, plan, vec![scope], process_id, done);
            }
            RegistryMsg::Transfer {
                from,
                to,
                process_ids,
                done,
            } => {
                let plan = plan_transfer(shared, &from, &to, &process_ids);
                send_transfer(shared, plan, from, to, process_ids, done);
            }
        }
        Ok(())
    }
}

/// The scope that an error names: the narrowest.
fn named(scopes: &[SessionScope]) -> &SessionScope {
    const NOBODY: &SessionScope = &SessionScope {
        session_id: String::new(),
        agent_frame_id: None,
    };
    scopes.last().unwrap_or(NOBODY)
}

/// A set, or nothing to do.
type Plan = Result<Option<WriteSet>>;

fn plan_grant(
    shared: &Shared,
    scope: &SessionScope,
    process_id: &str,
    descriptor: ProcessHandleDescriptor,
) -> Plan {
    scope.check("scope")?;
    descriptor.check("descriptor")?;
    let view = shared.view()?;
    let row = shared.row_of(&view, process_id)?;
    if view.grant(scope, row)?.is_some() {
        // A scope that holds a grant keeps its own descriptor.
        return Ok(None);
    }
    Ok(Some(WriteSet::new(
        vec![Condition::Exists { row }],
        vec![Change::Grant {
            row,
            scope: scope.clone(),
            descriptor,
        }],
    )))
}

fn plan_revoke(shared: &Shared, scope: &SessionScope, process_id: &str) -> Plan {
    scope.check("scope")?;
    let view = shared.view()?;
    let row = shared.row_of(&view, process_id)?;
    Ok(Some(WriteSet::new(
        Vec::new(),
        vec![Change::Revoke {
            row,
            scope: scope.clone(),
        }],
    )))
}

fn plan_transfer(
    shared: &Shared,
    from: &[SessionScope],
    to: &SessionScope,
    process_ids: &[String],
) -> Plan {
    for scope in from {
        scope.check("from_scope")?;
    }
    to.check("to_scope")?;
    if process_ids.len() > TRANSFER_IDS_MAX {
        return Err(Error::invalid(
            "process_ids",
            format!("has {} entries", process_ids.len()),
            format!("{TRANSFER_IDS_MAX} entries"),
        ));
    }
    let view = shared.view()?;
    let mut ids: Vec<&String> = process_ids.iter().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut missing = Vec::new();
    let mut conditions = Vec::new();
    let mut changes = Vec::new();
    for id in ids {
        crate::model::ids::check_id("process_ids", id)?;
        let mut held = None;
        if let Some(IdEntry::Live(row)) = view.id(id)? {
            // A frame's own grant goes before its session's.
            for scope in from.iter().rev() {
                if let Some(descriptor) = view.grant(scope, row)? {
                    held = Some((row, scope, descriptor));
                    break;
                }
            }
        }
        let Some((row, holder, descriptor)) = held else {
            missing.push(id.clone());
            continue;
        };
        if holder == to {
            continue;
        }
        conditions.push(Condition::Granted {
            row,
            scope: holder.clone(),
        });
        changes.push(Change::Revoke {
            row,
            scope: holder.clone(),
        });
        changes.push(Change::Grant {
            row,
            scope: to.clone(),
            descriptor,
        });
    }
    if !missing.is_empty() {
        return Err(not_granted(named(from), missing));
    }
    if changes.is_empty() {
        return Ok(None);
    }
    Ok(Some(WriteSet::new(conditions, changes)))
}

fn send(
    shared: &Arc<Shared>,
    plan: Plan,
    scopes: Vec<SessionScope>,
    process_id: String,
    done: oneshot::Sender<Result<()>>,
) {
    let set = match plan {
        Ok(Some(set)) => set,
        Ok(None) => {
            let _ = done.send(Ok(()));
            return;
        }
        Err(error) => {
            let _ = done.send(Err(error));
            return;
        }
    };
    let hub = Arc::clone(&shared.hub);
    shared.store.commit(
        set,
        Box::new(move |result| {
            for scope in &scopes {
                hub.scope_changed(scope);
            }
            let answer = match result {
                // Revoked before: as it should be.
                Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(()),
                Err(error) => Err(commit_error(&process_id, error)),
            };
            let _ = done.send(answer);
        }),
    );
}

fn send_transfer(
    shared: &Arc<Shared>,
    plan: Plan,
    from: Vec<SessionScope>,
    to: SessionScope,
    process_ids: Vec<String>,
    done: oneshot::Sender<Result<()>>,
) {
    let (answer, answered) = oneshot::channel();
    let retry = Arc::clone(shared);
    let scopes: Vec<SessionScope> = from.iter().chain([&to]).cloned().collect();
    send(shared, plan, scopes.clone(), String::new(), answer);
    tokio::spawn(async move {
        let mut result = answered.await.unwrap_or(Err(Error::ShuttingDown));
        for _ in 0..RETRIES_MAX {
            // Somebody took a grant, or a process, away between the look and the commit: looks
            // again, and says which, or goes on with what is there now.
            let overtaken = matches!(&result, Err(Error::NotGranted { scope, .. }) if scope.is_empty())
                || matches!(result, Err(Error::UnknownProcess { .. }));
            if !overtaken {
                break;
            }
            let plan = plan_transfer(&retry, &from, &to, &process_ids);
            if plan.is_err() {
                result = plan.map(drop);
                break;
            }
            let (answer, answered) = oneshot::channel();
            send(&retry, plan, scopes.clone(), String::new(), answer);
            result = answered.await.unwrap_or(Err(Error::ShuttingDown));
        }
        let _ = done.send(result);
    });
}

impl Shared {
    /// Asks the registry and waits for its answer.
    async fn ask_registry(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<()>>) -> RegistryMsg,
    ) -> Result<()> {
        if self.is_shutting_down() {
            return Err(Error::ShuttingDown);
        }
        let _admission = self.admit(0).await?;
        let (done, answer) = oneshot::channel();
        self.actors()?
            .registry
            .cast(message(done))
            .map_err(|_| Error::ShuttingDown)?;
        answer.await.unwrap_or(Err(Error::ShuttingDown))
    }

    pub(crate) async fn grant(
        &self,
        scope: &SessionScope,
        process_id: &str,
        descriptor: ProcessHandleDescriptor,
    ) -> Result<()> {
        self.ask_registry(|done| RegistryMsg::Grant {
            scope: scope.clone(),
            process_id: process_id.to_owned(),
            descriptor,
            done,
        })
        .await
    }

    pub(crate) async fn revoke(&self, scope: &SessionScope, process_id: &str) -> Result<()> {
        self.ask_registry(|done| RegistryMsg::Revoke {
            scope: scope.clone(),
            process_id: process_id.to_owned(),
            done,
        })
        .await
    }

    pub(crate) async fn transfer(
        &self,
        from: &SessionScope,
        to: &SessionScope,
        process_ids: &[String],
    ) -> Result<()> {
        self.transfer_any(std::slice::from_ref(from), to, process_ids)
            .await
    }

    /// The same from whichever of these scopes holds each of them.
    pub(crate) async fn transfer_any(
        &self,
        from: &[SessionScope],
        to: &SessionScope,
        process_ids: &[String],
    ) -> Result<()> {
        self.ask_registry(|done| RegistryMsg::Transfer {
            from: from.to_vec(),
            to: to.clone(),
            process_ids: process_ids.to_vec(),
            done,
        })
        .await
    }
}
