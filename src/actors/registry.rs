//! The registry actor: grants, revocations and transfers, in order.
//!
//! It looks at what is committed, makes one set of it with the conditions that must hold when it
//! commits, and sends it without waiting. A grant and a revocation look at two keys; a transfer may have
//! to look at thousands, and does so off the async threads. Scopes hear of a change before the caller is answered,
//! so that after a revocation has returned nothing more reaches the scope (G5).

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::errors::{commit_error, not_granted};
use super::hub::GrantOf;
use super::reads::blocking;
use super::runtime::Shared;
use crate::model::limits::TRANSFER_IDS_MAX;
use crate::model::{Error, ProcessHandleDescriptor, Result, SessionScope};
use crate::store::write_set::{
    Change, CommitError, CommitResult, Condition, Receipt, Refusal, WriteSet,
};
use crate::store::writes::{self, Transfer};

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
        /// How often it was refused although the look before had found it possible.
        tries: u32,
        done: oneshot::Sender<Result<()>>,
    },
}

/// How often a transfer looks again because somebody else moved a grant meanwhile.
const TRIES_MAX: u32 = 16;

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
        myself: ActorRef<RegistryMsg>,
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
                let answer = move |result| drop(done.send(answered(&process_id, result)));
                send(shared, plan, vec![scope], answer);
            }
            RegistryMsg::Revoke {
                scope,
                process_id,
                done,
            } => {
                let plan = plan_revoke(shared, &scope, &process_id);
                let answer = move |result| drop(done.send(answered(&process_id, result)));
                send(shared, plan, vec![scope], answer);
            }
            RegistryMsg::Transfer {
                from,
                to,
                process_ids,
                tries,
                done,
            } => {
                let plan = planned_transfer(shared, &from, &to, &process_ids).await;
                let scopes = from.iter().chain([&to]).cloned().collect();
                send(shared, plan, scopes, move |result| {
                    if tries < TRIES_MAX && is_not_granted(&result) {
                        // Somebody took a grant away between the look and the commit: the next
                        // look says whose.
                        let again = RegistryMsg::Transfer {
                            from,
                            to,
                            process_ids,
                            tries: tries + 1,
                            done,
                        };
                        // Where the registry is gone, its caller hears that from the channel.
                        let _ = myself.cast(again);
                        return;
                    }
                    if is_not_granted(&result) {
                        // Each look found it possible: it would be wrong to say that it is not.
                        let _ = done.send(Err(Error::Overloaded {
                            what: format!("concurrent changes of grants of {}", named(&from)),
                            limit: u64::from(TRIES_MAX),
                        }));
                        return;
                    }
                    let named = process_ids.first().map_or("(none)", String::as_str);
                    let _ = done.send(answered(named, result));
                });
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
    for id in process_ids {
        crate::model::ids::check_id("process_ids", id)?;
    }
    let Transfer { missing, set } = writes::transfer(&shared.view()?, from, to, process_ids)?;
    if !missing.is_empty() {
        return Err(not_granted(named(from), missing));
    }
    Ok(set)
}

/// The same off the async threads: what it reads of up to 1,000 ids may come from the disk. The registry
/// waits for it, so that what it is asked for stays in order.
async fn planned_transfer(
    shared: &Arc<Shared>,
    from: &[SessionScope],
    to: &SessionScope,
    process_ids: &[String],
) -> Plan {
    let shared = Arc::clone(shared);
    let (from, to, ids) = (from.to_vec(), to.clone(), process_ids.to_vec());
    blocking(move || plan_transfer(&shared, &from, &to, &ids)).await
}

/// What became of a plan.
type Sent = std::result::Result<CommitResult, Error>;

/// Sends a plan. Scopes hear of it before it is answered, so that what their subscribers are given
/// after the answer knows of it.
fn send(
    shared: &Arc<Shared>,
    plan: Plan,
    scopes: Vec<SessionScope>,
    answer: impl FnOnce(Sent) + Send + 'static,
) {
    let set = match plan {
        Ok(Some(set)) => set,
        Ok(None) => return answer(Ok(Ok(Receipt::default()))),
        Err(error) => return answer(Err(error)),
    };
    let hub = Arc::clone(&shared.hub);
    let taken = taken_away(&set.changes);
    shared.store.commit(
        set,
        Box::new(move |result| {
            if !matches!(result, Err(CommitError::Refused(_))) {
                taken.iter().for_each(|grant| hub.revoked(grant));
            }
            for scope in &scopes {
                hub.scope_changed(scope);
            }
            answer(Ok(result));
        }),
    );
}

/// The grants that changes take away.
pub(super) fn taken_away(changes: &[Change]) -> Vec<GrantOf> {
    let taken = changes.iter().filter_map(|change| {
        let Change::Revoke { row, scope } = change else {
            return None;
        };
        Some((scope.clone(), row.incarnation))
    });
    taken.collect()
}

/// Refused for a grant that is gone, or that is only left of a pruned process.
fn is_not_granted(sent: &Sent) -> bool {
    matches!(
        sent,
        Ok(Err(CommitError::Refused(
            Refusal::NotGranted | Refusal::Gone
        )))
    )
}

fn answered(process_id: &str, sent: Sent) -> Result<()> {
    match sent? {
        // Revoked before: as it should be.
        Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(()),
        Err(error) => Err(commit_error(process_id, error)),
    }
}

impl Shared {
    /// Asks the registry and waits for its answer.
    async fn ask_registry(
        &self,
        message: impl FnOnce(oneshot::Sender<Result<()>>) -> RegistryMsg,
    ) -> Result<()> {
        if self.is_shutting_down() {
            return Err(self.stopped());
        }
        let _admission = self.admit(0).await?;
        let (done, answer) = oneshot::channel();
        self.actors()?
            .registry
            .cast(message(done))
            .map_err(|_| self.stopped())?;
        answer.await.unwrap_or_else(|_| Err(self.stopped()))
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
            tries: 0,
            done,
        })
        .await
    }
}
