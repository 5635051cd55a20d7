//! The host's calls about sessions, wakes and changes.

use super::Processes;
use super::following::{ChangeFeed, SessionWatch};
use crate::actors::work::Whose;
use crate::model::{
    ChangeCursor, ChangePage, ProcessPruneReport, ProcessWake, PruneSelector, Result,
    SessionDeleteReport, SessionScope,
};

impl Processes {
    /// Deletes a session: drops its grants, of all its frames, its pending wakes and its wake
    /// targets. Never cancels a process; says which running ones are left with no grant, and which
    /// are still granted elsewhere, both as of one state. Durable when it returns.
    ///
    /// A large session goes in several commits, each of up to 500 grants. After an error or a crash in
    /// the middle, call it again: what was done stays done, and each report says what its own call did.
    /// What a call did that failed, or whose future was dropped, is logged, also what was on its way then,
    /// with the ids of up to 1,000 of the processes: [`Processes::grants_of`] tells whether one of them is
    /// left with no grant.
    ///
    /// # Errors
    /// `InvalidInput`, `CommitUnknown`; `Overloaded` where others grant to the session faster than
    /// this revokes; `Timeout` where what it has could not be read from one state, tried again.
    pub async fn delete_session(&self, session_id: &str) -> Result<SessionDeleteReport> {
        self.shared.delete_session(session_id).await
    }

    /// Pending wakes of exactly this scope, oldest first, at most 1,000: of the processes whose wake target
    /// it is, and of events that named it, whether it holds a grant on them or not. A revocation or a
    /// transfer takes away none of them, nor later ones: see [`Processes::retarget_wakes`].
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn wakes(&self, scope: &SessionScope) -> Result<Vec<ProcessWake>> {
        self.shared.wakes(scope, 0).await
    }

    /// The same, only those that came after one of them, which need not be there any more. Ids of
    /// wakes rise: with the last one of a page this is the next page, and with 0 the first one.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn wakes_after(
        &self,
        scope: &SessionScope,
        wake_id: u64,
    ) -> Result<Vec<ProcessWake>> {
        self.shared.wakes(scope, wake_id).await
    }

    /// Waits until a scope has pending wakes, and returns them. Those that were returned before and
    /// are not acknowledged yet are returned again at once: see [`Processes::next_wakes_after`].
    ///
    /// # Cancel safety
    /// Safe to drop: wakes stay until they are acknowledged.
    ///
    /// # Errors
    /// `InvalidInput`, `ShuttingDown`, `StoreFailed`.
    pub async fn next_wakes(&self, scope: &SessionScope) -> Result<Vec<ProcessWake>> {
        self.shared.next_wakes(scope, 0).await
    }

    /// Waits until a scope has pending wakes that came after one of them: so a session that puts some
    /// off can wait for new ones.
    ///
    /// # Cancel safety
    /// Safe to drop: wakes stay until they are acknowledged.
    ///
    /// # Errors
    /// `InvalidInput`, `ShuttingDown`, `StoreFailed`.
    pub async fn next_wakes_after(
        &self,
        scope: &SessionScope,
        wake_id: u64,
    ) -> Result<Vec<ProcessWake>> {
        self.shared.next_wakes(scope, wake_id).await
    }

    /// Acknowledges a wake: it is not delivered again. One that is gone already is no error.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn ack_wake(&self, scope: &SessionScope, wake_id: u64) -> Result<()> {
        self.shared.ack_wake(scope, wake_id).await
    }

    /// Sends the wakes of a process to another scope from now on, or to nobody. What was pending
    /// for the old target is discarded; says how many those were. Neither scope needs a grant.
    ///
    /// Where very many were pending they go in several commits, before the target changes. After an
    /// error in the middle call it again: it counts what it discards itself, and what the one that
    /// failed had discarded is logged.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `InvalidInput`, `CommitUnknown`; `Overloaded` where
    /// others change the target as fast.
    pub async fn retarget_wakes(
        &self,
        process_id: &str,
        scope: Option<&SessionScope>,
    ) -> Result<u64> {
        self.shared.retarget_wakes(process_id, scope).await
    }

    /// Changes after a cursor, in the order of their commits: the last one of each process, and
    /// every deletion. Nothing is missed, whoever writes. A page has at most `limit` of them, and ends
    /// early behind about 4 MiB of records ([`limits`](crate::model::limits)); only one without any
    /// means that there are none.
    ///
    /// # Errors
    /// `CursorTooOld` where deletions after the cursor are no longer known; `InvalidInput` for a
    /// cursor of another store, one from the future, or a limit outside 1 to 1,000; `Timeout` where a
    /// page could not be read from one state, tried again: ask for less at a time.
    pub async fn changes_since(&self, cursor: &ChangeCursor, limit: usize) -> Result<ChangePage> {
        self.shared.changes_since(cursor, limit).await
    }

    /// The same, and where there is nothing new, waits until there is.
    ///
    /// # Cancel safety
    /// Safe to drop.
    ///
    /// # Errors
    /// As [`Processes::changes_since`].
    pub async fn next_changes(&self, cursor: &ChangeCursor, limit: usize) -> Result<ChangePage> {
        self.shared.changes_after(cursor, limit).await
    }

    /// The change feed from a cursor on, and then live. What is wrong with the cursor is said by
    /// its first item.
    #[must_use]
    pub fn follow_changes(&self, cursor: &ChangeCursor) -> ChangeFeed {
        ChangeFeed::new(&self.shared, cursor.clone())
    }

    /// A session's work, live: everything granted to it or waking it, of all its frames.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub fn watch_session(&self, session_id: impl Into<String>) -> Result<SessionWatch> {
        SessionWatch::new(&self.shared, Whose::Session(session_id.into()))
    }

    /// Deletes what has ended, as [`Processes::prune`], but only what a filter admits, and nothing
    /// that changed past a cursor of the change feed: history nobody has projected yet is kept.
    /// Where it fails in the middle, as [`Processes::prune`].
    ///
    /// # Errors
    /// `InvalidInput`, `CursorTooOld`.
    pub async fn prune_where(&self, selector: &PruneSelector) -> Result<ProcessPruneReport> {
        self.shared.prune_where(selector).await
    }
}
