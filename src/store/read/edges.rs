//! Grants, wake targets and wakes: what stands between sessions and processes.

use super::*;

impl View {
    /// What a grant says, where the scope holds one.
    pub(crate) fn grant(
        &self,
        scope: &SessionScope,
        row: Row,
    ) -> Result<Option<ProcessHandleDescriptor>, StoreError> {
        Ok(self
            .get::<StoredGrant>(&keys::grant(scope, row))?
            .map(ProcessHandleDescriptor::from))
    }

    /// The scopes that hold a grant on a process.
    pub(crate) fn scopes_granted(&self, row: Row) -> Result<Vec<SessionScope>, StoreError> {
        let entries = self.kv.scan(&keys::scopes_granted(row), usize::MAX)?;
        Ok(entries
            .iter()
            .filter_map(|(key, _)| keys::scope_of(key))
            .collect())
    }

    /// Every grant of a session, its frames included.
    pub(crate) fn grants_of_session(
        &self,
        session_id: &str,
    ) -> Result<Vec<(SessionScope, Row, ProcessHandleDescriptor)>, StoreError> {
        self.kv
            .scan(&keys::grants_of_session(session_id), usize::MAX)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::scope_of(&key)?, keys::row_of(&key)?, value)))
            .map(|(scope, row, value)| {
                let stored = codec::decode::<StoredGrant>(&value)?;
                Ok((scope, row, stored.into()))
            })
            .collect()
    }

    /// The grants of exactly this scope, in the order of creation.
    pub(crate) fn grants_of_scope(
        &self,
        scope: &SessionScope,
    ) -> Result<Vec<(Row, ProcessHandleDescriptor)>, StoreError> {
        self.kv
            .scan(&keys::grants_of_scope(scope), usize::MAX)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::row_of(&key)?, value)))
            .map(|(row, value)| Ok((row, codec::decode::<StoredGrant>(&value)?.into())))
            .collect()
    }

    /// Processes whose wakes go to a session, its frames included.
    pub(crate) fn watched_by_session(
        &self,
        session_id: &str,
    ) -> Result<Vec<(SessionScope, Row)>, StoreError> {
        let entries = self
            .kv
            .scan(&keys::watched_by_session(session_id), usize::MAX)?;
        Ok(entries
            .iter()
            .filter_map(|(key, _)| Some((keys::scope_of(key)?, keys::row_of(key)?)))
            .collect())
    }

    /// The current wake target of a process.
    pub(crate) fn wake_target(&self, row: Row) -> Result<Option<SessionScope>, StoreError> {
        Ok(self
            .get::<StoredScope>(&keys::wake_target(row))?
            .map(SessionScope::from))
    }

    /// Pending wakes of a scope, in order.
    pub(crate) fn wakes(
        &self,
        scope: &SessionScope,
        limit: usize,
    ) -> Result<Vec<PendingWake>, StoreError> {
        self.pending_wakes(&keys::wakes_of_scope(scope), limit)
    }

    /// Pending wakes of a session, its frames included.
    pub(crate) fn wakes_of_session(
        &self,
        session_id: &str,
    ) -> Result<Vec<PendingWake>, StoreError> {
        self.pending_wakes(&keys::wakes_of_session(session_id), usize::MAX)
    }

    fn pending_wakes(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<PendingWake>, StoreError> {
        self.kv
            .scan(range, limit)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::scope_of(&key)?, keys::number_of(&key)?, value)))
            .map(|(scope, position, value)| {
                let stored = codec::decode::<StoredWake>(&value)?;
                Ok(PendingWake {
                    scope,
                    position,
                    process_id: stored.process_id,
                    incarnation: Row::from(stored.row).incarnation,
                    sequence: stored.sequence,
                    event_type: stored.event_type,
                    text: stored.text,
                    created_at_ms: stored.created_at_ms,
                })
            })
            .collect()
    }
}
