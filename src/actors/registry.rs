//! The registry actor: grants, revocations and transfers, in order.
//!
//! It looks at what is committed, makes one set of it with the conditions that must hold when it
//! commits, and sends it without waiting. A grant and a revocation look at two keys; a transfer may have
//! to look at thousands, and its caller does that, off the async threads: here it is only sent, and what
//! was seen is a condition of its commit. So nothing waits behind a transfer that is still looking.
//! Whoever reads by a grant finds it gone before the caller is answered, so that after a revocation has
//! returned nothing more reaches the scope (G5).
//!
//! The deletion of a session does not come by here: it reads pages from the disk between commits that are
//! safe in any order, since a revocation of a grant that is gone does nothing.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;

use super::errors::{commit_error, not_granted};
use super::hub::GrantOf;
use super::reads::blocking;
use super::runtime::{Admission, Shared};
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
        reply: Reply,
    },
    /// Take one away.
    Revoke {
        scope: SessionScope,
        process_id: String,
        reply: Reply,
    },
    /// Move grants from one scope to another, all or none, as its caller has planned it.
    Transfer {
        set: WriteSet,
        scopes: Vec<SessionScope>,
        reply: Reply,
    },
}

/// Where an answer goes, and the share of what may be in flight that is held until it is given: also
/// where the caller has gone away, what it asked for is still under way.
#[derive(Debug)]
pub(crate) struct Reply {
    done: oneshot::Sender<Sent>,
    _admission: Admission,
}

impl Reply {
    fn answer(self, result: Sent) {
        // Nobody waits any more: what was committed stands all the same.
        let _ = self.done.send(result);
    }
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
        _myself: ActorRef<RegistryMsg>,
        message: RegistryMsg,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            RegistryMsg::Grant {
                scope,
                process_id,
                descriptor,
                reply,
            } => {
                let plan = plan_grant(shared, &scope, &process_id, descriptor);
                send(shared, plan, vec![scope], reply);
            }
            RegistryMsg::Revoke {
                scope,
                process_id,
                reply,
            } => {
                let plan = plan_revoke(shared, &scope, &process_id);
                send(shared, plan, vec![scope], reply);
            }
            RegistryMsg::Transfer { set, scopes, reply } => {
                send(shared, Ok(Some(set)), scopes, reply);
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

/// What became of a plan.
type Sent = std::result::Result<CommitResult, Error>;

/// Sends a plan. What is taken away is gone for its readers before that is answered.
fn send(shared: &Arc<Shared>, plan: Plan, scopes: Vec<SessionScope>, reply: Reply) {
    let set = match plan {
        Ok(Some(set)) => set,
        Ok(None) => return reply.answer(Ok(Ok(Receipt::default()))),
        Err(error) => return reply.answer(Err(error)),
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
            reply.answer(Ok(result));
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

/// What the ids of a transfer weigh while it is in flight, beside what every command does.
fn bytes_of(process_ids: &[String]) -> usize {
    process_ids.iter().map(String::len).sum()
}

impl Shared {
    /// Asks the registry and waits for its answer.
    async fn ask_registry(
        &self,
        admission: Admission,
        message: impl FnOnce(Reply) -> RegistryMsg,
    ) -> Result<Sent> {
        if self.is_shutting_down() {
            return Err(self.stopped());
        }
        let (done, answer) = oneshot::channel();
        let reply = Reply {
            done,
            _admission: admission,
        };
        self.actors()?
            .registry
            .cast(message(reply))
            .map_err(|_| self.stopped())?;
        answer.await.map_err(|_| self.stopped())
    }

    pub(crate) async fn grant(
        &self,
        scope: &SessionScope,
        process_id: &str,
        descriptor: ProcessHandleDescriptor,
    ) -> Result<()> {
        let admission = self.admit(0).await?;
        let sent = self.ask_registry(admission, |reply| RegistryMsg::Grant {
            scope: scope.clone(),
            process_id: process_id.to_owned(),
            descriptor,
            reply,
        });
        answered(process_id, sent.await?)
    }

    pub(crate) async fn revoke(&self, scope: &SessionScope, process_id: &str) -> Result<()> {
        let admission = self.admit(0).await?;
        let sent = self.ask_registry(admission, |reply| RegistryMsg::Revoke {
            scope: scope.clone(),
            process_id: process_id.to_owned(),
            reply,
        });
        answered(process_id, sent.await?)
    }

    /// Moves grants from whichever of these scopes of one session holds each of them.
    pub(crate) async fn transfer(
        self: &Arc<Self>,
        from: &[SessionScope],
        to: &SessionScope,
        process_ids: &[String],
    ) -> Result<()> {
        let first = process_ids.first().map_or("(none)", String::as_str);
        let scopes: Vec<SessionScope> = from.iter().chain([to]).cloned().collect();
        for _ in 0..TRIES_MAX {
            if self.is_shutting_down() {
                return Err(self.stopped());
            }
            // Before it is planned: as much as a plan holds, so few of them there are at once. It stays
            // with the plan, which goes on where its caller has gone away.
            let admission = self.admit(bytes_of(process_ids)).await?;
            let shared = Arc::clone(self);
            let (of, to, ids) = (from.to_vec(), to.clone(), process_ids.to_vec());
            let planning = move || Ok((plan_transfer(&shared, &of, &to, &ids)?, admission));
            let (plan, admission) = blocking(planning).await?;
            let Some(set) = plan else {
                return Ok(());
            };
            let scopes = scopes.clone();
            let sent = self.ask_registry(admission, |reply| RegistryMsg::Transfer {
                set,
                scopes,
                reply,
            });
            let sent = sent.await?;
            // Somebody took a grant away between the look and the commit: the next look says whose.
            if !is_not_granted(&sent) {
                return answered(first, sent);
            }
        }
        // Each look found it possible: it would be wrong to say that it is not.
        Err(Error::Overloaded {
            what: format!("concurrent changes of grants of {}", named(from)),
            limit: u64::from(TRIES_MAX),
        })
    }
}
