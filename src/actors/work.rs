//! A session's work: what it sees at a glance, once or each time something of it changed.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

use super::hub::{Topic, Watcher};
use super::reads::{blocking, on_a_view};
use super::runtime::Shared;
use crate::model::{
    Incarnation, ObservedProcess, ProcessCancelSummary, ProcessHandleDescriptor, ProcessListFilter,
    ProcessWorkItem, ProcessWorkSnapshot, Result, SessionScope, ids,
};
use crate::store::keys::Row;
use crate::store::read::{IdEntry, Index, View};

/// How often one look starts over because new processes came into view meanwhile.
const ROUNDS_MAX: usize = 4;
/// How often what was found is looked at again off the executor, because something of it was taken away.
const RECHECKS_MAX: usize = 4;

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

/// What was found for a session, as of which commit, and how many grants had been taken away before
/// anybody looked.
struct Found<T> {
    items: Vec<T>,
    commit: u64,
    taken: u64,
}

/// Something that a session is shown of a process, for as long as one of its scopes holds it.
trait Shown: Send + 'static {
    fn row(&self) -> Row;

    /// The grant that it is shown by is another one by now.
    fn shown_by(&mut self, _descriptor: ProcessHandleDescriptor) {}
}

impl Shown for ObservedProcess {
    fn row(&self) -> Row {
        Row {
            created_at_ms: self.created_at_ms,
            incarnation: self.incarnation,
        }
    }
}

impl Shown for ProcessWorkItem {
    fn row(&self) -> Row {
        self.process.row()
    }

    fn shown_by(&mut self, descriptor: ProcessHandleDescriptor) {
        self.describe(descriptor);
    }
}

impl Shown for (Row, ProcessCancelSummary) {
    fn row(&self) -> Row {
        self.0
    }
}

impl Shared {
    /// A session's work, newest change first.
    pub(crate) async fn work(self: &Arc<Self>, whose: Whose) -> Result<ProcessWorkSnapshot> {
        whose.check()?;
        let (shared, of) = (Arc::clone(self), whose.clone());
        let look = move || {
            let (taken, view) = shared.sight()?;
            let visible = of.visible(&view)?;
            shared.snapshot_on((taken, &view), visible)
        };
        let found = blocking(move || on_a_view(look)).await?;
        self.still_visible(whose, found).await
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
            Ok((watcher, Ok(found))) => (watcher, self.still_visible(whose, found).await),
            Ok((watcher, Err(error))) => (watcher, Err(error)),
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

    fn look(&self, whose: &Whose, watcher: &mut Watcher) -> Result<Found<ProcessWorkItem>> {
        let mut rounds = 0;
        loop {
            let (taken, view) = self.sight()?;
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
            return self.snapshot_on((taken, &view), visible);
        }
    }

    fn snapshot_on(
        &self,
        (taken, view): (u64, &View),
        visible: Vec<(Row, ProcessHandleDescriptor)>,
    ) -> Result<Found<ProcessWorkItem>> {
        let mut items = view.snapshot_of(visible)?;
        for item in &mut items {
            self.complete(&mut item.process);
        }
        Ok(Found {
            items,
            commit: view.commit(),
            taken,
        })
    }

    /// What was found, as far as it may be shown by now.
    async fn still_visible(
        self: &Arc<Self>,
        whose: Whose,
        found: Found<ProcessWorkItem>,
    ) -> Result<ProcessWorkSnapshot> {
        let session_id = whose.session_id().to_owned();
        let items = match whose {
            Whose::Session(_) => found.items,
            Whose::Granted(scopes) => self.held_now(scopes, found).await?,
        };
        Ok(ProcessWorkSnapshot::new(session_id, items))
    }

    /// What is granted to any of these scopes of one session, in the order of creation, all from
    /// one consistent state.
    pub(crate) async fn list_granted(
        self: &Arc<Self>,
        scopes: Vec<SessionScope>,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        let (shared, of, filter) = (Arc::clone(self), scopes.clone(), filter.clone());
        let look = move || {
            let (taken, view) = shared.sight()?;
            let mut items: Vec<ObservedProcess> = Vec::new();
            for scope in &of {
                items.extend(view.list(Some(&Index::GrantedTo(scope.clone())), &filter)?);
            }
            items.sort_by_key(|process| (process.created_at_ms, process.incarnation));
            items.dedup_by_key(|process| process.incarnation);
            for process in &mut items {
                shared.complete(process);
            }
            Ok(Found {
                items,
                commit: view.commit(),
                taken,
            })
        };
        let found = blocking(move || on_a_view(look)).await?;
        self.held_now(scopes, found).await
    }

    /// Of what a session's cancel of all came to, or a journal says that it did, what these scopes of it
    /// hold now.
    pub(crate) async fn cancelled_of(
        self: &Arc<Self>,
        scopes: Vec<SessionScope>,
        summaries: Vec<ProcessCancelSummary>,
    ) -> Result<Vec<ProcessCancelSummary>> {
        let (shared, of) = (Arc::clone(self), scopes.clone());
        let look = move || {
            let (taken, view) = shared.sight()?;
            let mut items = Vec::with_capacity(summaries.len());
            for summary in &summaries {
                if let Some(IdEntry::Live(row)) = view.id(&summary.process_id)?
                    && grant_of(&view, &of, row)?.is_some()
                {
                    items.push((row, summary.clone()));
                }
            }
            Ok(Found {
                items,
                commit: view.commit(),
                taken,
            })
        };
        let found = blocking(move || on_a_view(look)).await?;
        let held = self.held_now(scopes, found).await?;
        Ok(held.into_iter().map(|(_, summary)| summary).collect())
    }

    /// The newest state, and how many grants had been taken away before it was looked at.
    fn sight(&self) -> Result<(u64, View)> {
        let taken = self.store.taken().count();
        Ok((taken, self.view()?))
    }

    /// What a session was shown is looked at again after it was read: what these scopes of it have lost
    /// meanwhile is not given out, and what another of them holds still is shown by that one's grant (G5).
    ///
    /// Nearly always nothing of it was taken away, and to know that costs no look at the store. Where
    /// something was, the store is looked at off the executor, and then all is as before: the last thing
    /// before this returns is that nothing was taken away since.
    async fn held_now<T: Shown>(
        self: &Arc<Self>,
        scopes: Vec<SessionScope>,
        mut found: Found<T>,
    ) -> Result<Vec<T>> {
        for _ in 0..RECHECKS_MAX {
            let Some(doubtful) = self.doubtful(&mut found)? else {
                return Ok(found.items);
            };
            let (shared, of) = (Arc::clone(self), scopes.clone());
            found = blocking(move || shared.look_again(&of, &doubtful, found)).await?;
        }
        // Something is taken away over and over. Here no other task comes between the look and the answer.
        while let Some(doubtful) = self.doubtful(&mut found)? {
            found = self.look_again(&scopes, &doubtful, found)?;
            if self.store.exclusive_epoch().is_none() {
                // Other hosts commit all the time, and whatever they do: this is as of now.
                break;
            }
        }
        Ok(found.items)
    }

    /// Which of what was found may be lost by now; `None` where nothing is.
    fn doubtful<T: Shown>(&self, found: &mut Found<T>) -> Result<Option<Doubtful>> {
        if self.store.exclusive_epoch().is_none() {
            // Another host may have taken something away.
            let moved = self.view()?.commit() != found.commit;
            return Ok(moved.then_some(Doubtful::All));
        }
        let (now, whose) = self.store.taken().since(found.taken);
        found.taken = now;
        let Some(mut whose) = whose else {
            return Ok(Some(Doubtful::All));
        };
        if whose.is_empty() {
            return Ok(None);
        }
        let shown = found.items.iter().map(|item| item.row().incarnation);
        whose = shown.filter(|it| whose.contains(it)).collect();
        Ok((!whose.is_empty()).then_some(Doubtful::These(whose)))
    }

    fn look_again<T: Shown>(
        &self,
        scopes: &[SessionScope],
        doubtful: &Doubtful,
        mut found: Found<T>,
    ) -> Result<Found<T>> {
        let (commit, mut looked) = on_a_view(|| {
            let view = self.view()?;
            let mut looked = VecDeque::new();
            for item in found.items.iter().filter(|item| doubtful.has(*item)) {
                looked.push_back(grant_of(&view, scopes, item.row())?);
            }
            Ok((view.commit(), looked))
        })?;
        found.commit = commit;
        found.items.retain_mut(|item| {
            if !doubtful.has(item) {
                return true;
            }
            let Some(descriptor) = looked.pop_front().flatten() else {
                return false;
            };
            item.shown_by(descriptor);
            true
        });
        Ok(found)
    }
}

/// What has to be looked at again.
enum Doubtful {
    All,
    These(HashSet<Incarnation>),
}

impl Doubtful {
    fn has(&self, item: &impl Shown) -> bool {
        match self {
            Self::All => true,
            Self::These(these) => these.contains(&item.row().incarnation),
        }
    }
}

/// What the grant says by which these scopes of one session hold a process: a frame's own goes before its
/// session's. What was pruned nobody holds, though a grant may be left of it for a while.
fn grant_of(
    view: &View,
    scopes: &[SessionScope],
    row: Row,
) -> Result<Option<ProcessHandleDescriptor>> {
    if view.front(row)?.is_none() {
        return Ok(None);
    }
    for scope in scopes.iter().rev() {
        if let Some(descriptor) = view.grant(scope, row)? {
            return Ok(Some(descriptor));
        }
    }
    Ok(None)
}
