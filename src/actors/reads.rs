//! Reads and waits. They go straight to a view of the store: no actor is woken to be looked at.

use std::sync::Arc;

use super::hub::LogListener;
use super::process::{Answer, HostCommand};
use super::runtime::Shared;
use crate::model::limits::EVENTS_PAGE_MAX;
use crate::model::{
    CompletionAuthority, Error, Lifecycle, ObservedProcess, Page, PageRequest, ProcessAwaitOutput,
    ProcessCancelSummary, ProcessEvent, ProcessListFilter, ProcessRecord, ProcessStatus,
    QueuedReason, RecoveryDisposition, Result, SessionScope, ids,
};
use crate::store::keys::Row;
use crate::store::query::goes_through_all;
use crate::store::read::{IdEntry, Index, LoadedProcess, StoredOutcome, View};

/// Bytes of events that one page of a log holds at the most, but for a single larger one.
const EVENTS_PAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of an outcome, as it is stored, that are gone through on the thread of whoever waits for it.
const OUTCOME_HERE_BYTES_MAX: usize = 64 << 10;

/// Which processes a list is about.
#[derive(Debug, Clone)]
pub(crate) enum ListScope {
    /// All.
    All,
    /// Those granted to exactly this scope.
    GrantedTo(SessionScope),
    /// Those created by this scope; a root scope stands for all frames of its session.
    OriginatedBy(SessionScope),
}

impl ListScope {
    fn index(&self) -> Option<Index> {
        match self {
            Self::All => None,
            Self::GrantedTo(scope) => Some(Index::GrantedTo(scope.clone())),
            Self::OriginatedBy(scope) if scope.agent_frame_id.is_none() => {
                Some(Index::OriginatedBySession(scope.session_id.clone()))
            }
            Self::OriginatedBy(scope) => Some(Index::OriginatedByScope(scope.clone())),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::All => Ok(()),
            Self::GrantedTo(scope) | Self::OriginatedBy(scope) => scope.check("session_scope"),
        }
    }
}

impl Shared {
    /// Makes a part of a walk through the whole store on the thread that is there for that.
    pub(super) async fn walk<T: Send + 'static>(
        &self,
        part: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.store.walk_thread().walk(part).await?
    }

    pub(crate) fn view(&self) -> Result<View> {
        Ok(self.store.view()?)
    }

    /// What an id stands for now; the errors of everything but `get`.
    pub(crate) fn row_of(&self, view: &View, id: &str) -> Result<Row> {
        ids::check_id("process_id", id)?;
        match view.id(id)? {
            Some(IdEntry::Live(row)) => Ok(row),
            Some(IdEntry::Pruned(tombstone)) => Err(Error::NoLongerRetained {
                process_id: id.to_owned(),
                status: tombstone.status,
                pruned_at: tombstone.pruned_at_ms,
            }),
            None => Err(Error::unknown(id)),
        }
    }

    /// Adds what only the runtime knows about a process.
    pub(super) fn complete(&self, process: &mut ObservedProcess) {
        let unregistered = |kind: &String| self.engine(kind).is_none();
        if process.lifecycle == Lifecycle::Running
            && process.disposition == RecoveryDisposition::OwnerBound
            && process.engine_kind.as_ref().is_some_and(unregistered)
            && !process.lease.as_ref().is_some_and(|lease| lease.live)
        {
            // Started or not, recovery leaves it to the runtime that has its engine.
            process.facets.queued = true;
        }
        if process.facets.queued {
            process.queued_reason = match &process.engine_kind {
                Some(kind) if self.engine(kind).is_none() => {
                    Some(QueuedReason::UnregisteredEngine { kind: kind.clone() })
                }
                _ if !self.config.recover => Some(QueuedReason::RecoveryOff),
                // Its time has not come yet, whatever slots are free.
                _ if process.facets.backing_off => None,
                _ => Some(QueuedReason::Slot),
            };
        }
    }

    pub(crate) fn get(&self, id: &str) -> Result<Option<ObservedProcess>> {
        ids::check_id("process_id", id)?;
        let view = self.view()?;
        match view.id(id)? {
            Some(IdEntry::Live(row)) => {
                let mut found = view.observe_row(row)?;
                if let Some(process) = &mut found {
                    self.complete(process);
                }
                Ok(found)
            }
            Some(IdEntry::Pruned(_)) | None => Ok(None),
        }
    }

    /// The whole record of a process.
    pub(crate) fn record(&self, id: &str) -> Result<Option<ProcessRecord>> {
        ids::check_id("process_id", id)?;
        Ok(self.view()?.process(id)?.map(
            |LoadedProcess {
                 registration,
                 state,
                 ..
             }| ProcessRecord::assemble(&registration, &state),
        ))
    }

    /// A whole list, from one consistent state; off the caller's thread, since it may be long. One that
    /// goes through the whole store does so on a thread of its own, as walks do, one after the other: none
    /// holds a view while it waits for its turn.
    pub(crate) async fn list(
        self: &Arc<Self>,
        scope: ListScope,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        scope.check()?;
        filter.check()?;
        let goes_through_all = scope.index().is_none() && goes_through_all(filter);
        let (shared, filter) = (Arc::clone(self), filter.clone());
        let read = move || {
            let mut listed = shared.view()?.list(scope.index().as_ref(), &filter)?;
            // This one index goes by scope first: a session's frames come one after the other.
            if let Some(Index::OriginatedBySession(_)) = scope.index() {
                listed.sort_by_key(|process| (process.created_at_ms, process.incarnation));
            }
            for process in &mut listed {
                shared.complete(process);
            }
            Ok(listed)
        };
        if goes_through_all {
            self.store.list_thread().walk(read).await?
        } else {
            blocking(read).await
        }
    }

    pub(crate) async fn list_page(
        self: &Arc<Self>,
        scope: ListScope,
        filter: &ProcessListFilter,
        page: &PageRequest,
    ) -> Result<Page<ObservedProcess>> {
        scope.check()?;
        filter.check()?;
        page.check()?;
        let (shared, filter, page) = (Arc::clone(self), filter.clone(), page.clone());
        blocking(move || {
            on_a_view(|| {
                let view = shared.view()?;
                let mut found =
                    view.list_page(scope.index(), &filter, page.cursor.as_ref(), page.limit)?;
                for process in &mut found.items {
                    shared.complete(process);
                }
                Ok(found)
            })
        })
        .await
    }

    /// One page of the log of an incarnation, of at most so many events and bytes of them, but of one
    /// event at least; from one state in which it is there: what is left of a pruned log is being
    /// erased and not to be read.
    pub(crate) fn log_page(
        view: &View,
        id: &str,
        row: Row,
        after_sequence: u64,
        (limit, bytes_max): (usize, usize),
    ) -> Result<Vec<ProcessEvent>> {
        if view.front(row)?.is_none() {
            return Err(gone(view, id, row)?);
        }
        Ok(view.events(
            id,
            row.incarnation,
            after_sequence.saturating_add(1),
            limit,
            bytes_max,
        )?)
    }

    /// One page of the log of a process after a sequence.
    pub(crate) async fn events_page(
        self: &Arc<Self>,
        id: &str,
        after_sequence: u64,
        limit: usize,
    ) -> Result<Vec<ProcessEvent>> {
        let (shared, id) = (Arc::clone(self), id.to_owned());
        blocking(move || {
            let view = shared.view()?;
            let row = shared.row_of(&view, &id)?;
            let most = (limit, EVENTS_PAGE_BYTES_MAX);
            Self::log_page(&view, &id, row, after_sequence, most)
        })
        .await
    }

    /// The scopes that hold a grant on a process.
    pub(crate) async fn grants_of(self: &Arc<Self>, id: &str) -> Result<Vec<SessionScope>> {
        let (shared, id) = (Arc::clone(self), id.to_owned());
        blocking(move || {
            let view = shared.view()?;
            let row = shared.row_of(&view, &id)?;
            Ok(view.scopes_granted(row)?)
        })
        .await
    }

    /// A whole log after a sequence, as far as it had come when it was asked for.
    pub(crate) async fn events(
        self: &Arc<Self>,
        id: &str,
        after_sequence: u64,
    ) -> Result<Vec<ProcessEvent>> {
        let (row, last) = {
            let view = self.view()?;
            let row = self.row_of(&view, id)?;
            let last = view.front(row)?.map_or(0, |front| front.last_sequence);
            (row, last)
        };
        let shared = Arc::clone(self);
        let id = id.to_owned();
        blocking(move || {
            let mut events: Vec<ProcessEvent> = Vec::new();
            let mut after = after_sequence;
            while after < last {
                let most = (EVENTS_PAGE_MAX, EVENTS_PAGE_BYTES_MAX);
                let page = Self::log_page(&shared.view()?, &id, row, after, most)?;
                let Some(newest) = page.last().map(|event| event.sequence) else {
                    break;
                };
                after = newest;
                events.extend(page.into_iter().filter(|event| event.sequence <= last));
            }
            Ok(events)
        })
        .await
    }

    /// Looks for the outcome of an incarnation: the front of its state, and then its last event, with
    /// what declares that event's type where it is not the runtime's own. On the caller's thread, since
    /// every wait ends here and a turn on another thread would cost it more than they do; what is large
    /// is gone through on another one.
    async fn outcome(&self, id: &str, row: Row) -> Result<Option<ProcessAwaitOutput>> {
        let stored = match self.stored_outcome(id, row)? {
            Some(stored) => stored,
            None => return Ok(None),
        };
        if stored.bytes() <= OUTCOME_HERE_BYTES_MAX {
            return Ok(Some(stored.read()?));
        }
        blocking(move || Ok(stored.read()?)).await.map(Some)
    }

    fn stored_outcome(&self, id: &str, row: Row) -> Result<Option<StoredOutcome>> {
        let view = self.view()?;
        let Some(front) = view.front(row)? else {
            return Err(gone(&view, id, row)?);
        };
        if front.terminal_at_ms().is_none() {
            return Ok(None);
        }
        Ok(Some(view.outcome(id, row, front.last_sequence)?))
    }

    /// Waits for the outcome of a process, bound to the incarnation that the id stands for now.
    ///
    /// # Cancel safety
    /// Safe to drop: nothing is left behind (W4).
    pub(crate) async fn await_output(self: &Arc<Self>, id: &str) -> Result<ProcessAwaitOutput> {
        let row = {
            let view = self.view()?;
            self.row_of(&view, id)?
        };
        let mut listener = self.hub.listen(row.incarnation);
        self.await_listened(id, row, &mut listener).await
    }

    /// The same on a registration that the caller holds.
    pub(crate) async fn await_listened(
        &self,
        id: &str,
        row: Row,
        listener: &mut LogListener,
    ) -> Result<ProcessAwaitOutput> {
        loop {
            // Registered first, looked second: what commits in between is heard (W2).
            listener.seen();
            if let Some(output) = self.outcome(id, row).await? {
                return Ok(output);
            }
            if self.is_closed() {
                return Err(self.stopped());
            }
            loop {
                if !listener.changed().await {
                    return Err(self.stopped());
                }
                let progress = listener.seen();
                // Only an end, or something the store alone can tell, is worth a look.
                if progress.ended || progress.nudges > 0 {
                    break;
                }
            }
        }
    }

    pub(crate) async fn cancel(
        self: &Arc<Self>,
        id: &str,
        requested_by: Option<String>,
        granted_to: Option<&SessionScope>,
    ) -> Result<ProcessCancelSummary> {
        match self
            .command(id, HostCommand::Cancel { requested_by }, granted_to)
            .await?
        {
            Answer::Status(status) => Ok(ProcessCancelSummary {
                process_id: id.to_owned(),
                status: ProcessStatus::clone(&status),
            }),
            Answer::Event(_) => Err(unexpected(id)),
        }
    }

    pub(crate) async fn append(
        self: &Arc<Self>,
        id: &str,
        event: crate::model::decide::PreparedEvent,
        granted_to: Option<&SessionScope>,
    ) -> Result<ProcessEvent> {
        match self
            .command(id, HostCommand::Append(event), granted_to)
            .await?
        {
            Answer::Event(event) => Ok(Arc::unwrap_or_clone(event)),
            Answer::Status(_) => Err(unexpected(id)),
        }
    }

    pub(crate) async fn complete_external(
        self: &Arc<Self>,
        id: &str,
        output: ProcessAwaitOutput,
        authority: CompletionAuthority,
    ) -> Result<()> {
        let bytes = match output.check() {
            Ok(bytes) => bytes,
            Err(error) => {
                output.dismantle();
                return Err(error.for_process(id));
            }
        };
        let command = HostCommand::Complete {
            output,
            bytes,
            authority,
        };
        self.command(id, command, None).await.map(drop)
    }

    /// An environment by its hash.
    pub(crate) fn env(
        &self,
        hash: &crate::model::ContentHash,
    ) -> Result<Option<crate::model::ProcessEnvSpec>> {
        let Some(canonical) = self.view()?.env(hash)? else {
            return Ok(None);
        };
        serde_json::from_slice(&canonical)
            .map(Some)
            .map_err(|error| Error::Corrupted {
                what: format!("environment {hash}: {error}"),
            })
    }
}

/// What became of an incarnation that is not there any more.
pub(crate) fn gone(view: &View, id: &str, row: Row) -> Result<Error> {
    Ok(match view.tombstone(row.incarnation)? {
        Some((_, tombstone)) => Error::NoLongerRetained {
            process_id: id.to_owned(),
            status: tombstone.status,
            pruned_at: tombstone.pruned_at_ms,
        },
        None => Error::unknown(id),
    })
}

fn unexpected(id: &str) -> Error {
    Error::Corrupted {
        what: format!("process {id} was answered with something else than it was asked"),
    }
}

/// How often a read begins anew because the view that it looked at was kept no longer.
const VIEWS_MAX: u32 = 3;

/// Makes a read that takes a view of its own, and makes it anew on a later one where the store has
/// let go of its view meanwhile: bounded, and then it is the caller who is told.
pub(crate) fn on_a_view<T>(mut read: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..VIEWS_MAX {
        match read() {
            // What a view that was kept no longer comes to.
            Err(Error::Timeout { .. }) => {}
            done => return done,
        }
    }
    read()
}

/// Runs a read that may take a while off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(read).await {
        Ok(result) => result,
        Err(error) if error.is_panic() => Err(Error::Corrupted {
            what: format!("a read panicked: {error}"),
        }),
        Err(_) => Err(Error::ShuttingDown),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::on_a_view;
    use crate::model::{Error, Result};
    use crate::store::error::StoreError;

    #[test]
    fn a_read_whose_view_expired_is_made_anew_a_few_times() {
        let reads = Cell::new(0);
        let read = |expire: u32| {
            reads.set(0);
            on_a_view(|| -> Result<u32> {
                reads.set(reads.get() + 1);
                if reads.get() <= expire {
                    return Err(StoreError::ViewExpired { held_ms: 5 }.into());
                }
                Ok(reads.get())
            })
        };
        assert_eq!(read(0).unwrap(), 1);
        assert_eq!(read(2).unwrap(), 3);
        assert!(matches!(read(9), Err(Error::Timeout { .. })));
        assert_eq!(reads.get(), 3);
        let closed = on_a_view(|| -> Result<()> {
            reads.set(reads.get() + 1);
            Err(StoreError::Closed.into())
        });
        assert!(matches!(closed, Err(Error::ShuttingDown)));
        assert_eq!(reads.get(), 4);
    }
}
