//! What is still to be erased of processes that were pruned.

use super::*;

use crate::store::resolve::prune::{KEYS_MAX, keys_to};
use crate::store::write_set::Remains;

impl View {
    /// Pruned processes of which something is left, after one of them.
    pub(crate) fn unerased(
        &self,
        after: Incarnation,
        limit: usize,
    ) -> Result<Vec<Row>, StoreError> {
        let mut range = keys::all_remains();
        range.start = keys::remains(Incarnation(after.get().saturating_add(1)));
        self.kv
            .scan(&range, limit)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::number_of(&key)?, value)))
            .map(|(incarnation, value)| {
                Ok(Row {
                    created_at_ms: codec::decode::<StoredNumber>(&value)?.0,
                    incarnation: Incarnation(incarnation),
                })
            })
            .collect()
    }

    /// As much of what a pruned process left as one commit may erase.
    pub(crate) fn remains(&self, row: Row) -> Result<Remains, StoreError> {
        let grants = self.kv.scan(&keys::scopes_granted(row), KEYS_MAX)?;
        let wakes = self.kv.scan(&keys::wakes_of_process(row), KEYS_MAX)?;
        let replays = self.kv.scan(&keys::replays(row.incarnation), KEYS_MAX)?;
        let is_all = [&grants, &wakes, &replays]
            .iter()
            .all(|found| found.len() < KEYS_MAX);
        Ok(Remains {
            row,
            scopes: keys_to(&grants, keys::scope_of),
            wakes: keys_to(&wakes, keys::number_of),
            replays: replays.into_iter().map(|(key, _)| key).collect(),
            is_all,
        })
    }

    /// Effects that were journaled on an id, some of them.
    pub(crate) fn effects_on(&self, id: &str, limit: usize) -> Result<Vec<Bytes>, StoreError> {
        let effects = self.kv.scan(&keys::effects_on(id), limit)?;
        Ok(effects.into_iter().map(|(key, _)| key).collect())
    }
}
