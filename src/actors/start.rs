//! Starting processes: idempotent by id and content, durable when it returns.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::dispatcher::QueueEntry;
use super::errors::commit_error;
use super::runtime::{Admission, ChildOf, Shared};
use crate::engines::PayloadProblem;
use crate::model::record::{ProcessState, Registration, RegistrationFacts, start_hash};
use crate::model::{
    ContentHash, Error, ProcessInput, ProcessParent, ProcessRecord, ProcessStartRequest,
    RecoveryDisposition, Result, SessionScope, ids,
};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::read::{IdEntry, LoadedProcess};
use crate::store::write_set::{CommitError, Condition, Refusal, WriteSet};
use crate::store::writes;

/// How often a start looks again because its id was taken or freed meanwhile.
const TRIES_MAX: u32 = 8;

/// Who starts, beside what the request says.
#[derive(Debug, Default)]
pub(crate) struct StartAs {
    /// The scopes of the session that starts it, one of which must hold the process where it
    /// exists already; empty for the host.
    pub(crate) session: Vec<SessionScope>,
    /// The parent's own side of it.
    pub(crate) parent: Option<ProcessParent>,
    /// What must hold of the parent inside the commit.
    pub(crate) conditions: Vec<Condition>,
}

impl Shared {
    /// Starts a process, or finds the one that the same request started before.
    ///
    /// # Cancel safety
    /// Dropped before it returns, the start may or may not happen; asked again, it is found.
    pub(crate) async fn start(
        self: &Arc<Self>,
        request: ProcessStartRequest,
        start_as: StartAs,
    ) -> Result<ProcessRecord> {
        if self.is_shutting_down() {
            request.dismantle();
            return Err(self.stopped());
        }
        let request = request.checked()?;
        self.check_engine(&request)?;
        let hash = start_hash(&request, start_as.parent.as_ref())?;
        let env = match &request.env_spec {
            Some(spec) => {
                let canonical = spec.canonical()?;
                Some((ContentHash::of(&canonical), canonical))
            }
            None => None,
        };
        // Held by what is in flight too: the caller may be gone before it has committed.
        let admission = Arc::new(self.admit(input_bytes(&request)).await?);
        for _ in 0..TRIES_MAX {
            if let Some(found) = self.started_before(&request.id, hash, &start_as)? {
                return Ok(found);
            }
            let admission = Arc::clone(&admission);
            let tried = self.try_start(&request, hash, env.clone(), &start_as, admission);
            match tried.await {
                Ok(record) => return Ok(record),
                // Somebody else was first: what they started, or pruned, is looked at.
                Err(CommitError::Refused(Refusal::IdTaken(_) | Refusal::Pruned(_))) => {}
                Err(error) => return Err(commit_error(&request.id, error)),
            }
        }
        Err(Error::Overloaded {
            what: format!("concurrent starts of process {}", request.id),
            limit: u64::from(TRIES_MAX),
        })
    }

    fn check_engine(&self, request: &ProcessStartRequest) -> Result<()> {
        let ProcessInput::Engine { kind, payload } = &request.input else {
            return Ok(());
        };
        let Some(entry) = self.engine(kind) else {
            return match request.disposition {
                RecoveryDisposition::ExternallyOwned => Ok(()),
                RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound => {
                    Err(Error::UnknownEngine {
                        process_id: request.id.clone(),
                        kind: kind.clone(),
                    })
                }
            };
        };
        // A host's own code: its panic refuses this start and nothing else.
        std::panic::catch_unwind(AssertUnwindSafe(|| entry.engine.check(payload)))
            .unwrap_or_else(|panic| {
                let panic = super::process::panic_text(&*panic);
                Err(PayloadProblem::new(
                    "",
                    format!("its check panicked: {panic}"),
                ))
            })
            .map_err(|problem| Error::InvalidPayload {
                process_id: request.id.clone(),
                event_type: "input".to_owned(),
                path: problem.path,
                reason: problem.reason,
            })
    }

    /// The process that the same request started before.
    fn started_before(
        &self,
        id: &str,
        hash: ContentHash,
        start_as: &StartAs,
    ) -> Result<Option<ProcessRecord>> {
        let view = self.store.view()?;
        let row = match view.id(id)? {
            None => return Ok(None),
            Some(IdEntry::Live(row)) => row,
            Some(IdEntry::Pruned(tombstone)) if tombstone.registration_hash == hash => {
                // G1: to a session a pruned process looks like one that never was.
                return Err(if start_as.session.is_empty() {
                    Error::NoLongerRetained {
                        process_id: id.to_owned(),
                        status: tombstone.status,
                        pruned_at: tombstone.pruned_at_ms,
                    }
                } else {
                    Error::unknown(id)
                });
            }
            Some(IdEntry::Pruned(_)) => return Ok(None),
        };
        let Some(LoadedProcess {
            registration,
            state,
            ..
        }) = view.load(row)?
        else {
            return Ok(None);
        };
        if registration.hash != hash {
            return Err(Error::Conflict {
                process_id: id.to_owned(),
                what: "the id".to_owned(),
            });
        }
        let mut held = start_as.session.is_empty();
        for scope in &start_as.session {
            held |= view.grant(scope, row)?.is_some();
        }
        if !held {
            return Err(Error::unknown(id));
        }
        Ok(Some(ProcessRecord::assemble(&registration, &state)))
    }

    async fn try_start(
        self: &Arc<Self>,
        request: &ProcessStartRequest,
        hash: ContentHash,
        env: Option<(ContentHash, Vec<u8>)>,
        start_as: &StartAs,
        admission: Arc<Admission>,
    ) -> std::result::Result<ProcessRecord, CommitError> {
        let not_written = CommitError::NotWritten;
        let facts = RegistrationFacts {
            incarnation: self.store.next_incarnation().map_err(not_written)?,
            created_at_ms: self.now_ms(),
            parent: start_as.parent.clone(),
            engine_event_types: request
                .input
                .engine_kind()
                .and_then(|kind| self.engine(kind))
                .map(|entry| entry.event_types.clone())
                .unwrap_or_default(),
        };
        let env_ref = env.as_ref().map(|(hash, _)| *hash);
        let grant = request.grant.clone();
        let granted_to = grant.as_ref().map(|grant| grant.scope.clone());
        let wakes = request.wake_target.clone();
        let registration = Registration::new(request.clone(), hash, env_ref, facts);
        let change = writes::register(&registration, env, grant).map_err(not_written)?;
        let mut conditions = vec![Condition::IdFree {
            id: registration.id.clone(),
            hash,
        }];
        conditions.extend(start_as.conditions.iter().cloned());
        let (shared, incarnation) = (Arc::clone(self), registration.incarnation);
        let entry = QueueEntry::of(&registration, 0);
        let (answer, answered) = oneshot::channel();
        self.store.commit(
            WriteSet::new(conditions, vec![change]),
            // Told here, because the caller may be gone when it commits.
            Box::new(move |result| {
                if result.is_ok() {
                    shared.hub.publish(incarnation, &[], false);
                    for scope in granted_to.iter().chain(&wakes) {
                        shared.hub.scope_changed(scope);
                    }
                    if let Some(entry) = entry {
                        shared.enqueue_entry(entry);
                    }
                }
                drop(admission);
                let _ = answer.send(result);
            }),
        );
        answered
            .await
            .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))?;
        tracing::info!(process = %registration.id, incarnation = registration.incarnation.get(),
            originator = %registration.provenance.originator.scope_id(), "process started");
        let state = ProcessState::initial(registration.created_at_ms);
        Ok(ProcessRecord::assemble(&registration, &state))
    }

    /// Starts a child of a process. Its id derives from the parent's incarnation and the key.
    pub(crate) async fn start_child(
        self: &Arc<Self>,
        child: ChildOf,
        mut request: ProcessStartRequest,
    ) -> Result<ProcessRecord> {
        if let Err(error) = ids::check_id("key", &child.key) {
            request.dismantle();
            return Err(error.for_process(&child.parent.id));
        }
        request.id = child_id(&child);
        let row = Row::of(&child.parent);
        let start_as = StartAs {
            session: Vec::new(),
            parent: Some(ProcessParent {
                process_id: child.parent.id.clone(),
                incarnation: child.parent.incarnation,
                key: child.key.clone(),
                detached: child.detached,
            }),
            conditions: vec![
                Condition::MayStartChild { row },
                Condition::Token {
                    row,
                    token: child.token,
                },
                Condition::OwnerLive { owner: child.owner },
            ],
        };
        let (parent, token) = (child.parent.id.clone(), child.token);
        self.start(request, start_as).await.map_err(|error| {
            if !matches!(error, Error::Superseded { .. }) {
                return error;
            }
            // It is the parent's lease that is gone: the child has none yet.
            Error::Superseded {
                process_id: parent,
                token: token.get(),
            }
        })
    }

    /// Asks the children of a process to cancel, those that were not detached.
    pub(crate) fn cancel_children(self: &Arc<Self>, parent: &Registration) {
        let shared = Arc::clone(self);
        let parent_id = parent.id.clone();
        let incarnation = parent.incarnation;
        tokio::spawn(async move {
            if let Err(error) = shared.cancel_children_of(&parent_id, incarnation).await {
                // The reaper completes it.
                tracing::warn!(process = %parent_id, %error, "children not all cancelled");
                shared.attention.note_everything();
            }
        });
    }

    async fn cancel_children_of(
        self: &Arc<Self>,
        parent_id: &str,
        incarnation: crate::model::Incarnation,
    ) -> Result<()> {
        use crate::store::read::Index;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let mut children = Vec::new();
            {
                let view = self.store.view()?;
                let rows = view.rows(
                    &Index::ChildrenOf(incarnation),
                    after.as_deref(),
                    super::config::SWEEP_PAGE,
                )?;
                let Some((last, _)) = rows.last() else {
                    return Ok(());
                };
                after = Some(last.to_vec());
                for (_, row) in rows {
                    if let Some(summary) = view.summary(row)?
                        && summary.facts.terminal.is_none()
                        && summary.facts.state.cancel_request.is_none()
                        && summary
                            .head
                            .provenance
                            .parent
                            .as_ref()
                            .is_some_and(|parent| !parent.detached)
                    {
                        children.push((summary.head.id, row));
                    }
                }
            }
            for (child, row) in children {
                let by = Some(format!("parent {parent_id}"));
                if let Err(error) = self.cancel(&child, by, None).await {
                    // One that cannot be asked keeps nobody from asking the others.
                    tracing::warn!(process = %child, %error, "child not cancelled");
                    self.attention.note(row);
                }
            }
        }
    }
}

fn input_bytes(request: &ProcessStartRequest) -> usize {
    // An estimate is enough to bound what is in flight: strings are what makes payloads large.
    fn rough(value: &serde_json::Value) -> usize {
        match value {
            serde_json::Value::String(text) => text.len(),
            serde_json::Value::Array(items) => items.iter().map(rough).sum::<usize>() + 8,
            serde_json::Value::Object(map) => map
                .iter()
                .map(|(key, value)| key.len() + rough(value))
                .sum(),
            serde_json::Value::Null | serde_json::Value::Bool(_) | serde_json::Value::Number(_) => {
                8
            }
        }
    }
    match &request.input {
        ProcessInput::Engine { payload, .. } => rough(payload),
        ProcessInput::External { metadata } => rough(metadata),
    }
}

fn child_id(child: &ChildOf) -> String {
    let mut whole = child.parent.incarnation.get().to_be_bytes().to_vec();
    whole.extend_from_slice(child.key.as_bytes());
    format!("child-{}", ContentHash::of(&whole))
}
