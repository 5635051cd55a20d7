//! The read side.

use std::sync::Arc;

use super::following::{ChangeFeed, SessionWatch};
use super::subscription::Subscription;
use crate::actors::reads::ListScope;
use crate::actors::runtime::Shared;
use crate::actors::work::Whose;
use crate::model::{
    ChangeCursor, ObservedProcess, ObservedProcessEvent, ProcessListFilter, ProcessWorkSnapshot,
    Result, SessionScope,
};

/// The read side of [`Processes`](super::Processes): cheap to clone, holds no lock, and cannot
/// change anything. Every read sees one consistent state of the store, and only what is durable.
#[derive(Debug, Clone)]
pub struct ProcessWorkObserver {
    shared: Arc<Shared>,
}

impl ProcessWorkObserver {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A process, or `None` where the id stands for nothing or for something pruned.
    ///
    /// # Errors
    /// `InvalidInput`, `ShuttingDown`, or a failure of the store.
    pub fn process(&self, process_id: &str) -> Result<Option<ObservedProcess>> {
        self.shared.get(process_id)
    }

    /// Processes that a filter admits, in the order of their creation.
    ///
    /// # Errors
    /// As [`ProcessWorkObserver::process`].
    pub async fn list(&self, filter: &ProcessListFilter) -> Result<Vec<ObservedProcess>> {
        self.shared.list(ListScope::All, filter).await
    }

    /// Those granted to exactly this scope.
    ///
    /// # Errors
    /// As [`ProcessWorkObserver::process`].
    pub async fn list_granted_to(
        &self,
        session_scope: &SessionScope,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        self.shared
            .list(ListScope::GrantedTo(session_scope.clone()), filter)
            .await
    }

    /// Those created by this scope; a root scope stands for all frames of its session.
    ///
    /// # Errors
    /// As [`ProcessWorkObserver::process`].
    pub async fn list_originated_by(
        &self,
        session_scope: &SessionScope,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        self.shared
            .list(ListScope::OriginatedBy(session_scope.clone()), filter)
            .await
    }

    /// The log of a process after a sequence.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, and as [`ProcessWorkObserver::process`].
    pub async fn events_after(
        &self,
        process_id: &str,
        after_sequence: u64,
    ) -> Result<Vec<ObservedProcessEvent>> {
        let events = self.shared.events(process_id, after_sequence).await?;
        Ok(events
            .iter()
            .map(crate::model::ProcessEvent::observed)
            .collect())
    }

    /// A session's work, newest change first.
    ///
    /// # Errors
    /// As [`ProcessWorkObserver::process`].
    pub async fn snapshot_for_session(
        &self,
        session_id: impl Into<String>,
    ) -> Result<ProcessWorkSnapshot> {
        self.shared.work(Whose::Session(session_id.into())).await
    }

    /// A session's work, live: everything granted to it or waking it, of all its frames.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn watch_session(&self, session_id: impl Into<String>) -> Result<SessionWatch> {
        SessionWatch::new(&self.shared, Whose::Session(session_id.into()))
    }

    /// The change feed from a cursor on, and then live. What is wrong with the cursor is said by
    /// its first item.
    #[must_use]
    pub fn changes(&self, cursor: &ChangeCursor) -> ChangeFeed {
        ChangeFeed::new(&self.shared, cursor.clone())
    }

    /// The log of a process after a sequence, and then live.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, and as [`ProcessWorkObserver::process`].
    pub fn subscribe(&self, process_id: &str, after_sequence: u64) -> Result<Subscription> {
        let row = self.shared.row_of(&self.shared.view()?, process_id)?;
        Ok(Subscription::new(
            &self.shared,
            process_id,
            row,
            after_sequence,
            None,
        ))
    }
}
