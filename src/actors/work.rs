//! A session's work: what it sees at a glance, once or each time something of it changed.

use std::sync::Arc;

use super::hub::{Topic, Watcher};
use super::reads::{blocking, on_a_view};
use super::runtime::Shared;
use crate::model::{
    ObservedProcess, ProcessHandleDescriptor, ProcessListFilter, ProcessWorkSnapshot, Result,
    SessionScope, ids,
};
use crate::store::keys::Row;
use crate::store::read::{Index, View};

/// How often one look starts over because new processes came into view meanwhile.
const ROUNDS_MAX: usize = 4;

/// Whose work.
#[derive(Debug, Clone)]
pub(crate) enum Whose {
    /// A session's, with the host's authority: everything granted to it or waking it, all frames.
    Session(String),
    /// What is granted to these scopes of one session, and nothing else: root first, then frame.
    Granted(Vec<SessionScope>),
}

impl Whose {
    fn session_id(&self) -> &str {
        match self {
            Self::Session(session_id) => session_id,
            Self::Granted(scopes) => scopes.first().map_or("", |scope| scope.session_id.as_str()),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Session(session_id) => ids::check_id("session_id", session_id),
            Self::Granted(scopes) => scopes.iter().try_for_each(|scope| scope.check("scope")),
        }
    }

    fn visible(&self, view: &View) -> Result<Vec<(Row, ProcessHandleDescriptor)>> {
        let mut visible = match self {
            Self::Session(session_id) => view.visible_to_session(session_id)?,
            Self::Granted(scopes) => {
                let mut granted = Vec::new();
                // A frame's own descriptor goes before its session's.
                for scope in scopes.iter().rev() {
                    granted.extend(view.grants_of_scope(scope)?);
                }
                granted
            }
        };
        visible.sort_by_key(|(row, _)| *row);
        visible.dedup_by_key(|(row, _)| *row);
        Ok(visible)
    }
}

/// What a read found, and as of which commit.
struct Found<T> {
    found: T,
    commit: u64,
}

impl Shared {
    /// A session's work, newest change first.
    pub(crate) async fn work(self: &Arc<Self>, whose: Whose) -> Result<ProcessWorkSnapshot> {
        whose.check()?;
        let (shared, of) = (Arc::clone(self), whose.clone());
        let snapshot = blocking(move || {
            let view = shared.view()?;
            let visible = of.visible(&view)?;
            shared.snapshot_on(&view, &of, visible)
        })
        .await?;
        self.still_visible(&whose, snapshot)
    }

    /// The same as soon as something of it may have changed since the last look.
    ///
    /// # Cancel safety
    /// A look that is dropped is lost; the next one shows what is then.
    pub(crate) async fn watched_work(
        self: &Arc<Self>,
        whose: Whose,
        mut watcher: Watcher,
    ) -> (Watcher, Result<ProcessWorkSnapshot>) {
        watcher.rung().await;
        if self.is_closed() {
            return (watcher, Err(self.stopped()));
        }
        let (shared, of) = (Arc::clone(self), whose.clone());
        let looked = blocking(move || {
            let found = on_a_view(|| shared.look(&of, &mut watcher));
            Ok((watcher, found))
        })
        .await;
        match looked {
            Ok((watcher, found)) => (
                watcher,
                found.and_then(|found| self.still_visible(&whose, found)),
            ),
            Err(error) => (self.hub.watcher(), Err(error)),
        }
    }

    /// A watcher of somebody's work, whose first look is due.
    pub(crate) fn watch_work(self: &Arc<Self>, whose: &Whose) -> Result<Watcher> {
        whose.check()?;
        let mut watcher = self.hub.watcher();
        match whose {
            Whose::Session(session_id) => {
                watcher.hear(Topic::Session(session_id.clone()));
            }
            Whose::Granted(scopes) => {
                for scope in scopes {
                    watcher.hear(Topic::Scope(scope.clone()));
                }
            }
        }
        watcher.look_again();
        Ok(watcher)
    }

    fn look(&self, whose: &Whose, watcher: &mut Watcher) -> Result<Found<ProcessWorkSnapshot>> {
        let mut rounds = 0;
        loop {
            let view = self.view()?;
            let visible = whose.visible(&view)?;
            // Watched first, looked at second: a change in between is in a later view.
            let is_new = watcher.follow(visible.iter().map(|(row, _)| row.incarnation));
            if is_new && rounds < ROUNDS_MAX {
                rounds += 1;
                continue;
            }
            if is_new {
                watcher.look_again();
            }
            return self.snapshot_on(&view, whose, visible);
        }
    }

    fn snapshot_on(
        &self,
        view: &View,
        whose: &Whose,
        visible: Vec<(Row, ProcessHandleDescriptor)>,
    ) -> Result<Found<ProcessWorkSnapshot>> {
        let mut snapshot = view.snapshot_of(whose.session_id(), visible)?;
        for item in &mut snapshot.items {
            self.complete(&mut item.process);
        }
        Ok(Found {
            found: snapshot,
            commit: view.commit(),
        })
    }

    /// What a session was shown is looked at again after it was read: what it has lost meanwhile is
    /// not given out (G5).
    fn still_visible(
        &self,
        whose: &Whose,
        found: Found<ProcessWorkSnapshot>,
    ) -> Result<ProcessWorkSnapshot> {
        let Found {
            found: mut snapshot,
            commit,
        } = found;
        if let Whose::Granted(scopes) = whose
            && let Some(view) = self.newer_than(commit)?
        {
            retain_held(&view, scopes, &mut snapshot.items, |item| &item.process)?;
            snapshot.visible_process_ids = snapshot
                .items
                .iter()
                .map(|item| item.process.process_id.clone())
                .collect();
        }
        Ok(snapshot)
    }

    /// A view of now; `None` where nothing has been committed since.
    fn newer_than(&self, commit: u64) -> Result<Option<View>> {
        let view = self.view()?;
        Ok((view.commit() != commit).then_some(view))
    }

    /// What is granted to any of these scopes of one session, in the order of creation, all from
    /// one consistent state.
    pub(crate) async fn list_granted(
        self: &Arc<Self>,
        scopes: Vec<SessionScope>,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        let (shared, of, filter) = (Arc::clone(self), scopes.clone(), filter.clone());
        let Found { mut found, commit } = blocking(move || {
            let view = shared.view()?;
            let mut found: Vec<ObservedProcess> = Vec::new();
            for scope in of {
                found.extend(view.list(Some(&Index::GrantedTo(scope)), &filter)?);
            }
            found.sort_by_key(|process| (process.created_at_ms, process.incarnation));
            found.dedup_by_key(|process| process.incarnation);
            for process in &mut found {
                shared.complete(process);
            }
            Ok(Found {
                found,
                commit: view.commit(),
            })
        })
        .await?;
        if let Some(view) = self.newer_than(commit)? {
            retain_held(&view, &scopes, &mut found, |process| process)?;
        }
        Ok(found)
    }
}

/// Keeps of what was found what one of these scopes holds: a look for each, however much they hold
/// besides.
fn retain_held<T>(
    view: &View,
    scopes: &[SessionScope],
    found: &mut Vec<T>,
    of: impl Fn(&T) -> &ObservedProcess,
) -> Result<()> {
    let mut held = Vec::with_capacity(found.len());
    for item in found.drain(..) {
        let process = of(&item);
        let row = Row {
            created_at_ms: process.created_at_ms,
            incarnation: process.incarnation,
        };
        for scope in scopes {
            if view.grant(scope, row)?.is_some() {
                held.push(item);
                break;
            }
        }
    }
    *found = held;
    Ok(())
}
