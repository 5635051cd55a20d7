//! Wakes: made with their event, received, sent elsewhere, forgotten.
//!
//! Three keys stand for a wake. `WAKE` is the pending delivery and goes when it is received.
//! `WAKE_OF` leads from the process to it. `WAKE_DEDUPE` says that its key has been used within
//! the target scope. A wake with a key keeps the last two when it is received, so that the key
//! stays used until the process goes.

use super::super::codec;
use super::super::codec::stored::{NOTHING, StoredDedupe, StoredScope, StoredWake, StoredWakeOf};
use super::super::keys::{self, Row};
use super::super::write_set::WakeWrite;
use super::{Resolver, Stop};
use crate::model::SessionScope;
use bytes::Bytes;

impl Resolver<'_, '_> {
    pub(super) fn deliver(&mut self, row: Row, wake: &WakeWrite) -> Result<(), Stop> {
        let target = match &wake.target {
            Some(target) => Some(target.clone()),
            None => self
                .get::<StoredScope>(&keys::wake_target(row))?
                .map(SessionScope::from),
        };
        // A process with no target still logs the event.
        let Some(target) = target else {
            return Ok(());
        };
        let dedupe = wake
            .dedupe_key
            .as_ref()
            .map(|key| keys::wake_dedupe(&target, key));
        if let Some(key) = &dedupe
            && self.raw(key)?.is_some()
        {
            return Ok(());
        }
        let position = self.next_position();
        if let Some(key) = dedupe {
            let made = StoredDedupe {
                row: row.into(),
                position,
            };
            self.put(key, codec::encode(&made)?);
        }
        let stored = StoredWake {
            process_id: wake.process_id.clone(),
            row: row.into(),
            sequence: wake.sequence,
            event_type: wake.event_type.clone(),
            text: wake.text.clone(),
            created_at_ms: wake.at_ms,
        };
        self.put(keys::wake(&target, position), codec::encode(&stored)?);
        let back = StoredWakeOf {
            scope: target.clone().into(),
            dedupe_key: wake.dedupe_key.clone(),
        };
        self.put(keys::wake_of(row, position), codec::encode(&back)?);
        self.receipt.woken.push(target);
        Ok(())
    }

    pub(super) fn ack_wake(&mut self, scope: &SessionScope, position: u64) -> Result<(), Stop> {
        let key = keys::wake(scope, position);
        let Some(wake) = self.get::<StoredWake>(&key)? else {
            return Ok(());
        };
        self.delete(key);
        // A wake with a key leaves its way back, so that the key goes with the process.
        let back_key = keys::wake_of(wake.row.into(), position);
        let keyed = self
            .get::<StoredWakeOf>(&back_key)?
            .is_some_and(|back| back.dedupe_key.is_some());
        if !keyed {
            self.delete(back_key);
        }
        Ok(())
    }

    pub(super) fn retarget_wakes(
        &mut self,
        row: Row,
        target: Option<&SessionScope>,
    ) -> Result<(), Stop> {
        self.front(row)?;
        let old = self
            .get::<StoredScope>(&keys::wake_target(row))?
            .map(SessionScope::from);
        if old.as_ref() == target {
            return Ok(());
        }
        if let Some(old) = old {
            self.delete(keys::watched(&old, row));
            self.discard_pending(row, &old)?;
            self.receipt.left.push(old);
        }
        match target {
            Some(target) => {
                self.put(
                    keys::wake_target(row),
                    codec::encode(&StoredScope::from(target.clone()))?,
                );
                self.put(keys::watched(target, row), Bytes::from_static(NOTHING));
            }
            None => self.delete(keys::wake_target(row)),
        }
        Ok(())
    }

    /// Discards what is pending for a scope from one process.
    fn discard_pending(&mut self, row: Row, scope: &SessionScope) -> Result<(), Stop> {
        for (key, value) in self.scan(&keys::wakes_of_process(row))? {
            let back = codec::decode::<StoredWakeOf>(&value)?;
            if SessionScope::from(back.scope) != *scope {
                continue;
            }
            let Some(position) = keys::number_of(&key) else {
                continue;
            };
            let wake = keys::wake(scope, position);
            if self.raw(&wake)?.is_none() {
                // It was received: its key stays used.
                continue;
            }
            self.delete(wake);
            self.receipt.wakes_discarded += 1;
            if let Some(dedupe) = back.dedupe_key {
                self.delete(keys::wake_dedupe(scope, &dedupe));
            }
            self.delete(key);
        }
        Ok(())
    }

    pub(super) fn forget_wake_scope(&mut self, scope: &SessionScope) -> Result<(), Stop> {
        for (key, value) in self.scan(&keys::wakes_of_scope(scope))? {
            let wake = codec::decode::<StoredWake>(&value)?;
            let position = keys::number_of(&key).unwrap_or(0);
            let back_key = keys::wake_of(wake.row.into(), position);
            if let Some(back) = self.get::<StoredWakeOf>(&back_key)?
                && let Some(dedupe) = back.dedupe_key
            {
                self.delete(keys::wake_dedupe(scope, &dedupe));
            }
            self.delete(back_key);
            self.delete(key);
            self.receipt.wakes_discarded += 1;
        }
        for (key, _) in self.scan(&keys::watched_by_scope(scope))? {
            if let Some(row) = keys::row_of(&key) {
                self.delete(keys::wake_target(row));
            }
            self.delete(key);
        }
        Ok(())
    }
}
