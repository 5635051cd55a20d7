//! Sessions as a whole, and their wakes.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::errors::commit_error;
use super::reads::blocking;
use super::registry::taken_away;
use super::runtime::Shared;
use crate::model::limits::LIST_PAGE_MAX;
use crate::model::{
    Error, ProcessWake, Result, RevokedGrant, SessionDeleteReport, SessionScope, ids,
};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::write_set::{Change, CommitError, CommitResult, Refusal, WriteSet};

/// Changes of one commit at the most: a large session goes in several.
const CHANGES_MAX: usize = 500;
/// How often a deletion looks again for grants that were made meanwhile.
const ROUNDS_MAX: usize = 8;

/// What is to be done about a session, as of one look.
#[derive(Default)]
struct Belongings {
    grants: Vec<(SessionScope, Row, String)>,
    scopes: BTreeSet<SessionScope>,
}

impl Shared {
    /// Drops a session's grants, pending wakes and wake targets. Restartable: what one call did not
    /// get to the next one does.
    pub(crate) async fn delete_session(
        self: &Arc<Self>,
        session_id: &str,
    ) -> Result<SessionDeleteReport> {
        ids::check_id("session_id", session_id)?;
        if self.is_shutting_down() {
            return Err(Error::ShuttingDown);
        }
        let mut report = SessionDeleteReport {
            session_id: session_id.to_owned(),
            ..SessionDeleteReport::default()
        };
        let mut rows = BTreeSet::new();
        for _ in 0..ROUNDS_MAX {
            let (shared, id) = (Arc::clone(self), session_id.to_owned());
            let found = blocking(move || shared.belongings(&id)).await?;
            if found.grants.is_empty() && found.scopes.is_empty() {
                break;
            }
            self.drop_belongings(&found, &mut report).await?;
            for (scope, row, process_id) in found.grants {
                rows.insert(row);
                report.revoked.push(RevokedGrant { scope, process_id });
            }
        }
        self.classify(rows, &mut report)?;
        tracing::info!(
            session = session_id,
            revoked = report.revoked.len(),
            orphaned = report.orphaned.len(),
            "session deleted"
        );
        Ok(report)
    }

    fn belongings(&self, session_id: &str) -> Result<Belongings> {
        let view = self.view()?;
        let mut found = Belongings::default();
        for (scope, row, _) in view.grants_of_session(session_id)? {
            let id = view.summary(row)?.map(|summary| summary.head.id);
            found.grants.push((scope, row, id.unwrap_or_default()));
        }
        for (scope, _) in view.watched_by_session(session_id)? {
            found.scopes.insert(scope);
        }
        for wake in view.wakes_of_session(session_id)? {
            found.scopes.insert(wake.scope);
        }
        Ok(found)
    }

    async fn drop_belongings(
        &self,
        found: &Belongings,
        report: &mut SessionDeleteReport,
    ) -> Result<()> {
        let mut changes: Vec<Change> = found
            .grants
            .iter()
            .map(|(scope, row, _)| Change::Revoke {
                row: *row,
                scope: scope.clone(),
            })
            .collect();
        changes.extend(found.scopes.iter().map(|scope| Change::ForgetWakeScope {
            scope: scope.clone(),
        }));
        let mut scopes = found.scopes.clone();
        scopes.extend(found.grants.iter().map(|(scope, ..)| scope.clone()));
        let scopes: Vec<SessionScope> = scopes.into_iter().collect();
        while !changes.is_empty() {
            let rest = changes.split_off(changes.len().min(CHANGES_MAX));
            let changed = std::mem::replace(&mut changes, rest);
            match self.commit_edges(changed, scopes.clone()).await {
                Ok(receipt) => report.wakes_discarded += receipt.wakes_discarded,
                Err(CommitError::Refused(Refusal::NothingToDo)) => {}
                Err(error) => return Err(commit_error("(session)", error)),
            }
        }
        Ok(())
    }

    fn classify(&self, rows: BTreeSet<Row>, report: &mut SessionDeleteReport) -> Result<()> {
        let view = self.view()?;
        for row in rows {
            let Some(summary) = view.summary(row)? else {
                continue;
            };
            if summary.facts.terminal.is_some() {
                continue;
            }
            if view.scopes_granted(row)?.is_empty() {
                report.orphaned.push(summary.head.id);
            } else {
                report.preserved.push(summary.head.id);
            }
        }
        Ok(())
    }

    /// Pending wakes of exactly this scope, oldest first: at most 1,000.
    pub(crate) fn wakes(&self, scope: &SessionScope) -> Result<Vec<ProcessWake>> {
        scope.check("scope")?;
        let pending = self.view()?.wakes(scope, LIST_PAGE_MAX)?;
        Ok(pending
            .into_iter()
            .map(|wake| ProcessWake {
                wake_id: wake.position,
                scope: wake.scope,
                process_id: wake.process_id,
                incarnation: wake.incarnation,
                sequence: wake.sequence,
                event_type: wake.event_type,
                text: wake.text,
                created_at_ms: wake.created_at_ms,
            })
            .collect())
    }

    /// Acknowledges a wake; one that is gone is no error.
    pub(crate) async fn ack_wake(&self, scope: &SessionScope, wake_id: u64) -> Result<()> {
        scope.check("scope")?;
        self.edge_commit(
            "(wake)",
            Change::AckWake {
                scope: scope.clone(),
                position: wake_id,
            },
            vec![scope.clone()],
        )
        .await
        .map(drop)
    }

    /// Sends the wakes of a process to another scope, or to nobody. Says how many pending ones were
    /// discarded for the old target.
    pub(crate) async fn retarget_wakes(
        &self,
        process_id: &str,
        target: Option<&SessionScope>,
    ) -> Result<u64> {
        if let Some(target) = target {
            target.check("scope")?;
        }
        let row = self.row_of(&self.view()?, process_id)?;
        self.edge_commit(
            process_id,
            Change::RetargetWakes {
                row,
                target: target.cloned(),
            },
            target.cloned().into_iter().collect(),
        )
        .await
    }

    async fn edge_commit(
        &self,
        named: &str,
        change: Change,
        scopes: Vec<SessionScope>,
    ) -> Result<u64> {
        if self.is_shutting_down() {
            return Err(Error::ShuttingDown);
        }
        let _admission = self.admit(0).await?;
        match self.commit_edges(vec![change], scopes).await {
            Ok(receipt) => Ok(receipt.wakes_discarded),
            Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(0),
            Err(error) => Err(commit_error(named, error)),
        }
    }

    /// Commits changes of edges. These scopes, and those that the commit found to be concerned, hear
    /// of it before the caller is answered (G5), and also where the caller has gone away.
    async fn commit_edges(&self, changes: Vec<Change>, scopes: Vec<SessionScope>) -> CommitResult {
        let (answer, answered) = oneshot::channel();
        let hub = Arc::clone(&self.hub);
        let taken = taken_away(&changes);
        self.store.commit(
            WriteSet::new(Vec::new(), changes),
            Box::new(move |result| {
                if !matches!(result, Err(CommitError::Refused(_))) {
                    taken.iter().for_each(|grant| hub.revoked(grant));
                }
                let left = result.iter().flat_map(|receipt| &receipt.left);
                for scope in scopes.iter().chain(left) {
                    hub.scope_changed(scope);
                }
                // Nobody waits any more: the commit stands all the same.
                let _ = answer.send(result);
            }),
        );
        answered
            .await
            .unwrap_or(Err(CommitError::Unknown(StoreError::Closed)))
    }
}
