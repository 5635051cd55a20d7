//! Grants, wake targets and wakes: what stands between sessions and processes.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::*;
use crate::store::codec::stored::{StoredDedupe, StoredWakeOf};

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

    /// Whether any scope holds a grant on a process.
    pub(crate) fn is_granted(&self, row: Row) -> Result<bool, StoreError> {
        Ok(!self.kv.scan(&keys::scopes_granted(row), 1)?.is_empty())
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
    #[cfg(test)]
    pub(crate) fn wakes(
        &self,
        scope: &SessionScope,
        limit: usize,
    ) -> Result<Vec<PendingWake>, StoreError> {
        self.wakes_after(scope, 0, limit)
    }

    /// The same after a position. Those of processes that were pruned are not shown, erased or not.
    pub(crate) fn wakes_after(
        &self,
        scope: &SessionScope,
        after: u64,
        limit: usize,
    ) -> Result<Vec<PendingWake>, StoreError> {
        let mut range = keys::wakes_of_scope_after(scope, after);
        let mut found = Vec::new();
        let mut there = HashMap::new();
        loop {
            let wanted = limit - found.len();
            let entries = self.kv.scan(&range, wanted)?;
            let exhausted = entries.len() < wanted;
            if let Some((last, _)) = entries.last() {
                range.start = Bytes::from([&last[..], &[0]].concat());
            }
            for (key, value) in entries {
                let stored = codec::decode::<StoredWake>(&value)?;
                let row = Row::from(stored.row);
                let is_there = match there.entry(row) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => *new.insert(self.kv.get(&keys::state(row))?.is_some()),
                };
                if is_there {
                    found.push(PendingWake {
                        scope: scope.clone(),
                        position: keys::number_of(&key).unwrap_or(0),
                        process_id: stored.process_id,
                        incarnation: row.incarnation,
                        sequence: stored.sequence,
                        event_type: stored.event_type,
                        text: stored.text,
                        created_at_ms: stored.created_at_ms,
                    });
                }
            }
            if exhausted || found.len() >= limit {
                return Ok(found);
            }
        }
    }

    /// Wakes that a process made after a position, received ones with a key included: where each is,
    /// and for whom it was.
    pub(crate) fn wakes_made(
        &self,
        row: Row,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, SessionScope)>, StoreError> {
        self.kv
            .scan(&keys::wakes_of_process_after(row, after), limit)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::number_of(&key)?, value)))
            .map(|(position, value)| {
                let back = codec::decode::<StoredWakeOf>(&value)?;
                Ok((position, back.scope.into()))
            })
            .collect()
    }

    /// Where the wakes are that a process made for a scope after a position and that are still pending,
    /// among one page of all that it made; and where the next page begins, if this one is full.
    pub(crate) fn pending_made(
        &self,
        row: Row,
        scope: &SessionScope,
        after: u64,
        limit: usize,
    ) -> Result<(Vec<u64>, Option<u64>), StoreError> {
        let page = self.wakes_made(row, after, limit)?;
        let last = page.last().filter(|_| page.len() == limit);
        let last = last.map(|(position, _)| *position);
        let mut pending = Vec::new();
        for (position, of) in page {
            if of == *scope && self.kv.get(&keys::wake(scope, position))?.is_some() {
                pending.push(position);
            }
        }
        Ok((pending, last))
    }

    /// What a session has, of one kind, its frames included: after a key, and in bounded pages.
    pub(crate) fn of_session(
        &self,
        session_id: &str,
        kind: SessionEdge,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<OfSession>, StoreError> {
        let mut range = match kind {
            SessionEdge::Target => keys::watched_by_session(session_id),
            SessionEdge::Wake => keys::wakes_of_session(session_id),
            SessionEdge::WakeKey => keys::wake_dedupes_of_session(session_id),
            SessionEdge::Grant => keys::grants_of_session(session_id),
        };
        if let Some(after) = after {
            range.start = Bytes::from([after, &[0]].concat());
        }
        self.kv
            .scan(&range, limit)?
            .into_iter()
            .map(|(key, value)| {
                let of = match kind {
                    SessionEdge::Target | SessionEdge::Grant => keys::row_of(&key).zip(Some(0)),
                    SessionEdge::Wake => {
                        let wake = codec::decode::<StoredWake>(&value)?;
                        Some(wake.row.into()).zip(keys::number_of(&key))
                    }
                    SessionEdge::WakeKey => {
                        let made = codec::decode::<StoredDedupe>(&value)?;
                        Some((made.row.into(), made.position))
                    }
                };
                let unread = || StoreError::Corrupted {
                    what: "key of a session without a scope or a row".to_owned(),
                };
                let (row, position) = of.ok_or_else(unread)?;
                Ok(OfSession {
                    scope: keys::scope_of(&key).ok_or_else(unread)?,
                    row,
                    position,
                    key,
                })
            })
            .collect()
    }
}

/// What a session can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEdge {
    /// Processes whose wakes go to it.
    Target,
    /// Pending wakes.
    Wake,
    /// Keys that wakes used.
    WakeKey,
    /// Grants.
    Grant,
}

/// One of them.
#[derive(Debug, Clone)]
pub(crate) struct OfSession {
    pub(crate) key: Bytes,
    pub(crate) scope: SessionScope,
    pub(crate) row: Row,
    /// Of a wake, or of the one that used the key.
    pub(crate) position: u64,
}
