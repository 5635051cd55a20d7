//! Keys as a set's earlier changes leave them: what it reads, and what it writes.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::codec::{self, Stored};
use super::super::error::StoreError;
use super::super::kv::{KeyRange, Op};
use super::Resolver;

impl Resolver<'_, '_> {
    /// The value of a key as this set's earlier changes leave it.
    pub(super) fn raw(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        match self.own.as_ref().and_then(|own| own.get(key)) {
            Some(written) => Ok(written.clone()),
            None => self.state.get(key),
        }
    }

    /// Entries of a range as this set's earlier changes leave them, at most `limit`, and whether
    /// there are more: the committer never looks through a range to its end.
    pub(super) fn scan_some(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<(Vec<(Bytes, Bytes)>, bool), StoreError> {
        let mut entries = self.scan(range, limit.saturating_add(1))?;
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok((entries, more))
    }

    /// At least the first `limit` entries, if there are so many.
    pub(super) fn scan(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, StoreError> {
        let Some(own) = &self.own else {
            return self.state.scan(range, limit);
        };
        let written: Vec<_> = own
            .range(range.start.clone()..)
            .take_while(|(key, _)| range.end.is_empty() || **key < range.end)
            .collect();
        // As many more as this set may have deleted.
        let stored = self
            .state
            .scan(range, limit.saturating_add(written.len()))?;
        let mut entries: BTreeMap<Bytes, Bytes> = stored.into_iter().collect();
        for (key, written) in written {
            match written {
                Some(value) => entries.insert(key.clone(), value.clone()),
                None => entries.remove(key),
            };
        }
        Ok(entries.into_iter().collect())
    }

    pub(super) fn get<T: Stored>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.raw(key)? {
            Some(bytes) => codec::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    pub(super) fn put(&mut self, key: Bytes, value: Bytes) {
        self.remember(&key, Some(&value));
        self.cx.ops.push(Op::Put { key, value });
    }

    pub(super) fn put_once(&mut self, key: Bytes, value: Bytes) {
        self.remember(&key, Some(&value));
        self.cx.ops.push(Op::PutOnce { key, value });
    }

    pub(super) fn delete(&mut self, key: Bytes) {
        self.remember(&key, None);
        self.cx.ops.push(Op::Delete { key });
    }

    pub(super) fn remember(&mut self, key: &Bytes, value: Option<&Bytes>) {
        // What was read of a state that changes is no longer so.
        let known = self.known.get_mut();
        if known.as_ref().is_some_and(|known| known.key == *key) {
            *known = None;
        }
        if let Some(own) = &mut self.own {
            own.insert(key.clone(), value.cloned());
        }
    }
}
