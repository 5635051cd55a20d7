//! Wakes: made with their event, received, sent elsewhere, forgotten.
//!
//! Three keys stand for a wake. `WAKE` is the pending delivery and goes when it is received.
//! `WAKE_OF` leads from the process to it. `WAKE_DEDUPE` says that its key has been used within
//! the target scope. A wake with a key keeps the last two when it is received, so that the key
//! stays used until the process goes.
//!
//! A scope may have any number of wakes pending, and a process may have made any number. So nothing
//! here walks them: who discards many names them in sets of bounded size, and only what came since
//! their last look is looked for within the commit. Of what a pruned process left nobody takes
//! anything but the prune that goes on with it, so that its report has all of it.

use super::super::codec;
use super::super::codec::stored::{NOTHING, StoredDedupe, StoredScope, StoredWake, StoredWakeOf};
use super::super::keys::{self, Row};
use super::super::write_set::{Refusal, WakeWrite};
use super::{Resolver, Stop, require};
use crate::model::{ProcessPruneReport, SessionScope};
use bytes::Bytes;

/// Wakes that one change of targets looks at the most.
const WAKES_PER_COMMIT_MAX: usize = 2_000;

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
            && let Some(made) = self.get::<StoredDedupe>(key)?
            // A key of what was pruned is free, erased or not.
            && self.is_there(made.row.into())?
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
        if !self.is_there(wake.row.into())? {
            return Ok(());
        }
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
        from: Option<&SessionScope>,
        target: Option<&SessionScope>,
        after: u64,
    ) -> Result<(), Stop> {
        self.front(row)?;
        let old = self
            .get::<StoredScope>(&keys::wake_target(row))?
            .map(SessionScope::from);
        if old.as_ref() == target {
            return Ok(());
        }
        require(old.as_ref() == from, Refusal::Moved)?;
        if let Some(old) = old {
            self.delete(keys::watched(&old, row));
            self.discard_pending(row, &old, after)?;
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

    /// Discards what is pending for a scope from one process and was made after a position.
    fn discard_pending(&mut self, row: Row, scope: &SessionScope, after: u64) -> Result<(), Stop> {
        let made = keys::wakes_of_process_after(row, after);
        let (made, more) = self.scan_some(&made, WAKES_PER_COMMIT_MAX)?;
        require(!more, Refusal::TooMany)?;
        for (key, value) in made {
            let back = codec::decode::<StoredWakeOf>(&value)?;
            if SessionScope::from(back.scope) == *scope
                && let Some(position) = keys::number_of(&key)
            {
                self.discard_wakes(&[(row, position)], false)?;
            }
        }
        Ok(())
    }

    pub(super) fn discard_wakes(
        &mut self,
        wakes: &[(Row, u64)],
        received_too: bool,
    ) -> Result<(), Stop> {
        for (row, position) in wakes {
            if !self.is_there(*row)? {
                continue;
            }
            let mut report = ProcessPruneReport::default();
            let pending = self.drop_wake(*row, *position, received_too, &mut report)?;
            self.receipt.wakes_discarded += u64::from(pending);
        }
        Ok(())
    }

    /// Drops one wake of a process, with the key it used; whether it was still pending. One that was
    /// received stays as it is, unless that one goes too.
    pub(super) fn drop_wake(
        &mut self,
        row: Row,
        position: u64,
        received_too: bool,
        report: &mut ProcessPruneReport,
    ) -> Result<bool, Stop> {
        let back_key = keys::wake_of(row, position);
        let Some(back) = self.get::<StoredWakeOf>(&back_key)? else {
            return Ok(false);
        };
        let scope = SessionScope::from(back.scope);
        let wake = keys::wake(&scope, position);
        let pending = self.raw(&wake)?.is_some();
        if !pending && !received_too {
            return Ok(false);
        }
        self.take(wake, report)?;
        if let Some(dedupe) = back.dedupe_key {
            let key = keys::wake_dedupe(&scope, &dedupe);
            // Another process may have taken the key of one that is gone.
            let own = StoredDedupe {
                row: row.into(),
                position,
            };
            if self.get::<StoredDedupe>(&key)? == Some(own) {
                self.take(key, report)?;
            }
        }
        self.take(back_key, report)?;
        Ok(pending)
    }

    pub(super) fn leave_wake_target(&mut self, row: Row, scope: &SessionScope) -> Result<(), Stop> {
        let key = keys::wake_target(row);
        let target = self.get::<StoredScope>(&key)?.map(SessionScope::from);
        if target.as_ref() == Some(scope) {
            self.delete(key);
            self.delete(keys::watched(scope, row));
        }
        Ok(())
    }
}
