//! Sessions as a whole, and their wakes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use super::errors::commit_error;
use super::reads::{blocking, on_a_view};
use super::registry::taken_away;
use super::runtime::Shared;
use crate::model::limits::LIST_PAGE_MAX;
use crate::model::{
    Error, Incarnation, ProcessWake, Result, RevokedGrant, SessionDeleteReport, SessionScope, ids,
};
use crate::store::error::StoreError;
use crate::store::keys::Row;
use crate::store::read::{OfSession, SessionEdge, View};
use crate::store::write_set::{Change, CommitError, CommitResult, Refusal, WriteSet};

/// Changes of one commit at the most: a large session goes in several.
const CHANGES_MAX: usize = 500;
/// How often a deletion goes through what the session has, and finds what came meanwhile.
const ROUNDS_MAX: u32 = 64;
/// How often a new target of wakes is set anew because somebody else set one, or many came.
const RETARGETS_MAX: u32 = 16;
/// Processes that the log names of a deletion that did not get to its end.
const LOGGED_MAX: usize = 1_000;

/// A deletion as far as it has come. What it did is in the log however it ends, also where its caller
/// has gone away: a later one reports only what it does itself.
struct Deletion {
    report: SessionDeleteReport,
    /// What was granted: whom it leaves with no grant is seen at the end. Noted before it is taken.
    granted: BTreeMap<Row, String>,
    /// Grants and wakes of a commit on its way, whose fate is not known.
    under_way: usize,
    is_done: bool,
}

impl Deletion {
    fn of(session_id: &str) -> Self {
        Self {
            report: SessionDeleteReport {
                session_id: session_id.to_owned(),
                ..SessionDeleteReport::default()
            },
            granted: BTreeMap::new(),
            under_way: 0,
            is_done: false,
        }
    }
}

impl Drop for Deletion {
    fn drop(&mut self) {
        let (session, revoked) = (&self.report.session_id, self.report.revoked.len());
        let (wakes_discarded, under_way) = (self.report.wakes_discarded, self.under_way);
        if self.is_done {
            let orphaned = self.report.orphaned.len();
            tracing::info!(
                session,
                revoked,
                wakes_discarded,
                orphaned,
                "session deleted"
            );
        } else if revoked > 0 || wakes_discarded > 0 || under_way > 0 {
            let processes: Vec<_> = self.granted.values().take(LOGGED_MAX).collect();
            tracing::warn!(
                session,
                revoked,
                wakes_discarded,
                under_way,
                ?processes,
                "session deleted in part"
            );
        }
    }
}

/// What a session has of one kind, as of one look.
struct EdgesPage {
    /// With the ids of what is granted.
    edges: Vec<(OfSession, Option<String>)>,
    /// Where the next page begins; `None` behind the last one.
    last: Option<Bytes>,
}

impl Shared {
    /// Drops a session's wake targets, so that nothing new arrives, its pending wakes and the keys
    /// that wakes of its used, and its grants. Restartable: what one call did not get to the next
    /// one does. What pruned processes left is not the session's any more, and left to the prune.
    pub(crate) async fn delete_session(
        self: &Arc<Self>,
        session_id: &str,
    ) -> Result<SessionDeleteReport> {
        ids::check_id("session_id", session_id)?;
        let mut deletion = Deletion::of(session_id);
        for _ in 0..ROUNDS_MAX {
            let mut found = false;
            for edge in [
                SessionEdge::Target,
                SessionEdge::Wake,
                SessionEdge::WakeKey,
                SessionEdge::Grant,
            ] {
                found |= self.drop_edges(edge, &mut deletion).await?;
            }
            if !found {
                self.classify(&mut deletion).await?;
                deletion.is_done = true;
                return Ok(std::mem::take(&mut deletion.report));
            }
        }
        // Somebody grants faster than this revokes: it would be wrong to say that nothing is left.
        Err(Error::Overloaded {
            what: format!("grants and wakes of session {session_id} made while it is deleted"),
            limit: u64::from(ROUNDS_MAX),
        })
    }

    /// Drops what a session has of one kind, in bounded commits; whether there was any.
    async fn drop_edges(
        self: &Arc<Self>,
        edge: SessionEdge,
        deletion: &mut Deletion,
    ) -> Result<bool> {
        let mut after: Option<Bytes> = None;
        let mut found = false;
        loop {
            if self.is_shutting_down() {
                return Err(self.stopped());
            }
            let (shared, id, from) = (
                Arc::clone(self),
                deletion.report.session_id.clone(),
                after.clone(),
            );
            let look = move || shared.edges_page(&id, edge, from.as_deref());
            let page = blocking(move || on_a_view(look)).await?;
            if page.last.is_none() {
                return Ok(found);
            }
            after = page.last;
            if page.edges.is_empty() {
                continue;
            }
            found = true;
            let (changes, scopes) = dropping(edge, &page.edges);
            deletion.under_way = page.edges.len();
            let ids = page.edges.into_iter();
            deletion
                .granted
                .extend(ids.filter_map(|(grant, id)| Some((grant.row, id?))));
            let sent = self.commit_edges(changes, scopes).await?;
            if !matches!(sent, Err(CommitError::Unknown(_))) {
                deletion.under_way = 0;
            }
            let receipt = match sent {
                Ok(receipt) => receipt,
                Err(CommitError::Refused(Refusal::NothingToDo)) => continue,
                Err(error) => return Err(commit_error("(session)", error)),
            };
            deletion.report.wakes_discarded += receipt.wakes_discarded;
            // Those that were still there: what somebody else took meanwhile is theirs to tell of.
            for (row, scope) in receipt.revoked {
                if let Some(process_id) = deletion.granted.get(&row).cloned() {
                    let revoked = RevokedGrant { scope, process_id };
                    deletion.report.revoked.push(revoked);
                }
            }
        }
    }

    fn edges_page(
        &self,
        session_id: &str,
        edge: SessionEdge,
        after: Option<&[u8]>,
    ) -> Result<EdgesPage> {
        let view = self.view()?;
        let found = view.of_session(session_id, edge, after, CHANGES_MAX)?;
        let last = found.last().map(|it| it.key.clone());
        let mut there: BTreeMap<Row, bool> = BTreeMap::new();
        let mut edges = Vec::new();
        for found in found {
            let row = found.row;
            if edge == SessionEdge::Grant {
                if let Some(summary) = view.summary(row)? {
                    edges.push((found, Some(summary.head.id)));
                }
                continue;
            }
            let is_there = match there.get(&row) {
                Some(known) => *known,
                None => {
                    let is_there = view.front(row)?.is_some();
                    there.insert(row, is_there);
                    is_there
                }
            };
            if is_there {
                edges.push((found, None));
            }
        }
        Ok(EdgesPage { edges, last })
    }

    /// Says of the running processes among those that were granted which are left with no grant, all
    /// as of one state.
    async fn classify(self: &Arc<Self>, deletion: &mut Deletion) -> Result<()> {
        let revoked = &deletion.report.revoked;
        let taken: BTreeSet<&str> = revoked.iter().map(|it| it.process_id.as_str()).collect();
        let mut rows = deletion.granted.clone();
        rows.retain(|_, id| taken.contains(id.as_str()));
        let shared = Arc::clone(self);
        let look = move || Ok(orphans(&shared.view()?, &rows)?);
        let (orphaned, preserved) = blocking(move || on_a_view(look)).await?;
        deletion.report.orphaned = orphaned;
        deletion.report.preserved = preserved;
        Ok(())
    }

    /// Pending wakes of exactly this scope after one of them, oldest first: at most 1,000.
    pub(crate) async fn wakes(
        self: &Arc<Self>,
        scope: &SessionScope,
        after: u64,
    ) -> Result<Vec<ProcessWake>> {
        scope.check("scope")?;
        let (shared, of) = (Arc::clone(self), scope.clone());
        let pending =
            blocking(move || Ok(shared.view()?.wakes_after(&of, after, LIST_PAGE_MAX)?)).await?;
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

    /// The same, and where there are none, waits for the first one.
    pub(crate) async fn next_wakes(
        self: &Arc<Self>,
        scope: &SessionScope,
        after: u64,
    ) -> Result<Vec<ProcessWake>> {
        // Listened to first, looked at second.
        let mut news = self.hub.listen_scope(scope);
        loop {
            let pending = self.wakes(scope, after).await?;
            if !pending.is_empty() {
                return Ok(pending);
            }
            if self.is_closed() || !news.changed().await {
                return Err(self.stopped());
            }
        }
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
    }

    /// Sends the wakes of a process to another scope, or to nobody. Says how many pending ones were
    /// discarded for the old target. Many are discarded before the target changes, in commits of
    /// bounded size: whoever is interrupted there calls again.
    pub(crate) async fn retarget_wakes(
        self: &Arc<Self>,
        process_id: &str,
        target: Option<&SessionScope>,
    ) -> Result<u64> {
        if let Some(target) = target {
            target.check("scope")?;
        }
        if self.is_shutting_down() {
            return Err(self.stopped());
        }
        let row = self.row_of(&self.view()?, process_id)?;
        let mut discarded = 0;
        let retargeted = self
            .retarget_row(process_id, row, target, &mut discarded)
            .await;
        if retargeted.is_err() && discarded > 0 {
            // Nobody else is told of them: the next call counts what it discards itself.
            tracing::warn!(process = process_id, discarded, "wakes retargeted in part");
        }
        retargeted.map(|()| discarded)
    }

    async fn retarget_row(
        self: &Arc<Self>,
        process_id: &str,
        row: Row,
        target: Option<&SessionScope>,
        discarded: &mut u64,
    ) -> Result<()> {
        for _ in 0..RETARGETS_MAX {
            let from = self.view()?.wake_target(row)?;
            let after = match &from {
                Some(from) if Some(from) != target => {
                    self.discard_many(process_id, row, from, discarded).await?
                }
                Some(_) | None => 0,
            };
            let change = Change::RetargetWakes {
                row,
                from,
                target: target.cloned(),
                after,
            };
            let scopes = target.cloned().into_iter().collect();
            match self.commit_edges(vec![change], scopes).await? {
                Ok(receipt) => {
                    *discarded += receipt.wakes_discarded;
                    return Ok(());
                }
                Err(CommitError::Refused(Refusal::NothingToDo)) => return Ok(()),
                // Somebody else set a target meanwhile, or very many wakes came.
                Err(CommitError::Refused(Refusal::Moved | Refusal::TooMany)) => {}
                Err(error) => return Err(commit_error(process_id, error)),
            }
        }
        Err(Error::Overloaded {
            what: format!("changes of the wake target of process {process_id}"),
            limit: u64::from(RETARGETS_MAX),
        })
    }

    /// Discards what is pending for a scope from a process, as far as it comes in whole pages; the
    /// position behind which the last few are.
    async fn discard_many(
        self: &Arc<Self>,
        process_id: &str,
        row: Row,
        scope: &SessionScope,
        discarded: &mut u64,
    ) -> Result<u64> {
        let mut after = 0;
        loop {
            let (shared, of) = (Arc::clone(self), scope.clone());
            let look = move || Ok(shared.view()?.pending_made(row, &of, after, CHANGES_MAX)?);
            let (pending, last) = blocking(move || on_a_view(look)).await?;
            let Some(last) = last else {
                return Ok(after);
            };
            after = last;
            if pending.is_empty() {
                continue;
            }
            let change = Change::DiscardWakes {
                wakes: pending.into_iter().map(|at| (row, at)).collect(),
                received_too: false,
            };
            match self.commit_edges(vec![change], vec![scope.clone()]).await? {
                Ok(receipt) => *discarded += receipt.wakes_discarded,
                Err(CommitError::Refused(Refusal::NothingToDo)) => {}
                Err(error) => return Err(commit_error(process_id, error)),
            }
        }
    }

    async fn edge_commit(
        &self,
        named: &str,
        change: Change,
        scopes: Vec<SessionScope>,
    ) -> Result<()> {
        if self.is_shutting_down() {
            return Err(self.stopped());
        }
        match self.commit_edges(vec![change], scopes).await? {
            Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(()),
            Err(error) => Err(commit_error(named, error)),
        }
    }

    /// Commits changes of edges. What is taken away is gone for its readers before the caller is
    /// answered (G5); these scopes, those that the commit found to be concerned, and whoever watches a
    /// process whose wakes go elsewhere by it, hear of it, also where the caller has gone away. Each commit
    /// has its own share of what may be in flight, for as long as it is.
    async fn commit_edges(
        &self,
        changes: Vec<Change>,
        scopes: Vec<SessionScope>,
    ) -> Result<CommitResult> {
        let admission = self.admit(0).await?;
        let (answer, answered) = oneshot::channel();
        let hub = Arc::clone(&self.hub);
        let taken = taken_away(&changes);
        let retargeted = retargeted(&changes);
        self.store.commit(
            WriteSet::new(Vec::new(), changes),
            Box::new(move |result| {
                if !matches!(result, Err(CommitError::Refused(_))) {
                    taken.iter().for_each(|grant| hub.revoked(grant));
                    retargeted.iter().for_each(|it| hub.process_changed(*it));
                }
                let left = result.iter().flat_map(|receipt| &receipt.left);
                for scope in scopes.iter().chain(left) {
                    hub.scope_changed(scope);
                }
                drop(admission);
                // Nobody waits any more: the commit stands all the same.
                let _ = answer.send(result);
            }),
        );
        Ok(answered
            .await
            .unwrap_or(Err(CommitError::Unknown(StoreError::Closed))))
    }
}

/// The processes whose wakes changes send elsewhere.
fn retargeted(changes: &[Change]) -> Vec<Incarnation> {
    let retargeted = changes.iter().filter_map(|change| {
        let (Change::RetargetWakes { row, .. } | Change::DropWakeTarget { row, .. }) = change
        else {
            return None;
        };
        Some(row.incarnation)
    });
    retargeted.collect()
}

/// The running ones of these, and which of them nobody holds and somebody holds.
fn orphans(
    view: &View,
    rows: &BTreeMap<Row, String>,
) -> std::result::Result<(Vec<String>, Vec<String>), StoreError> {
    let (mut orphaned, mut preserved) = (Vec::new(), Vec::new());
    for (row, id) in rows {
        let front = view.front(*row)?;
        if front.is_none_or(|front| front.terminal_at_ms().is_some()) {
            continue;
        }
        if view.is_granted(*row)? {
            preserved.push(id.clone());
        } else {
            orphaned.push(id.clone());
        }
    }
    Ok((orphaned, preserved))
}

/// What drops these, and whom it concerns.
fn dropping(
    edge: SessionEdge,
    page: &[(OfSession, Option<String>)],
) -> (Vec<Change>, Vec<SessionScope>) {
    let edges = page.iter().map(|(found, _)| found);
    let scopes: BTreeSet<SessionScope> = edges.clone().map(|it| it.scope.clone()).collect();
    let changes = match edge {
        SessionEdge::Target => edges
            .map(|it| Change::DropWakeTarget {
                row: it.row,
                scope: it.scope.clone(),
            })
            .collect(),
        SessionEdge::Grant => edges
            .map(|it| Change::Revoke {
                row: it.row,
                scope: it.scope.clone(),
            })
            .collect(),
        SessionEdge::Wake | SessionEdge::WakeKey => vec![Change::DiscardWakes {
            wakes: edges.map(|it| (it.row, it.position)).collect(),
            received_too: true,
        }],
    };
    (changes, scopes.into_iter().collect())
}
