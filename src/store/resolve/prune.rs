//! How a process leaves the store, and how what remains of it does.
//!
//! One commit takes it out (R2): its id then stands for the tombstone, its record and its state are
//! gone. A process may have been granted to any number of scopes, made any number of wakes and used
//! any number of replay keys, and a commit may not take long. So that commit erases as many of those
//! as [`KEYS_MAX`] allows, and where there are more it leaves a note of it. The rest is erased behind
//! it in sets of bounded size, as the log is, and whoever prunes next goes on where one stopped (R4).
//! Nothing sees the rest: a grant or a replay key is found by way of the id, a wake whose process is
//! gone is not shown, and a key that it used is free. Each key counts in the report of the set that
//! erased it.
//!
//! Effects are found by id, which may be started again: the commit takes all of them, and is refused
//! where that is too many. They are forgotten before, then, in sets of bounded size: asked again,
//! what they recorded is found to have happened by its own keys.

use super::super::codec;
use super::super::codec::stored::{
    StoredChange, StoredHead, StoredId, StoredNumber, StoredScope, StoredState, StoredTombstone,
};
use super::super::keys::{self, Row};
use super::super::kv::Op;
use super::super::write_set::{Refusal, Remains};
use super::{Resolver, Stop, require};
use crate::model::{ContentHash, Incarnation, ProcessPruneReport};
use bytes::Bytes;

/// Grants, wakes and replay keys, of each, that one commit erases at the most.
pub(crate) const KEYS_MAX: usize = 500;
/// Effects on a process that go in the commit that takes it out.
pub(crate) const EFFECTS_MAX: usize = 1_000;
/// Effects on what is gone that go in the commit that forgets its tombstone, one of many in a set.
pub(crate) const LATE_EFFECTS_MAX: usize = 16;

/// What keys say, of those that say it.
pub(crate) fn keys_to<T>(entries: &[(Bytes, Bytes)], says: impl Fn(&[u8]) -> Option<T>) -> Vec<T> {
    entries.iter().filter_map(|(key, _)| says(key)).collect()
}

impl Resolver<'_, '_> {
    pub(super) fn prune(&mut self, row: Row, id: &str, at_ms: u64) -> Result<(), Stop> {
        let head_key = keys::head(row);
        let head_bytes = self.raw(&head_key)?.ok_or(Refusal::Gone)?;
        let (facts, _) = codec::decode::<StoredHead>(&head_bytes)?.facts(row);
        if facts.id != id {
            return Err(Refusal::Gone.into());
        }
        let (front, state_body) = self.state_value(row)?;
        let terminal = codec::decode_body::<StoredState>(&state_body)?
            .facts(front.last_sequence)?
            .terminal;
        let Some((status, _)) = terminal else {
            return Err(Refusal::Moved.into());
        };
        let mut report = ProcessPruneReport {
            pruned_processes: 1,
            pruned_events: front.last_sequence,
            leases: u64::from(front.owner != 0),
            bytes: front.log_bytes,
            ..ProcessPruneReport::default()
        };
        self.drop_effects(id, EFFECTS_MAX, &mut report)?;
        if self.drop_some(row, &mut report)? {
            let note = StoredNumber(row.created_at_ms);
            self.put_once(keys::remains(row.incarnation), codec::encode(&note)?);
            self.receipt.remains.push(row);
        }
        for key in [
            Some(head_key),
            Some(keys::body(row)),
            Some(keys::state(row)),
            Some(keys::feed(front.feed_position)),
            keys::originator(&facts.provenance.originator, row),
            facts
                .provenance
                .parent
                .as_ref()
                .map(|parent| keys::child(parent.incarnation, row)),
        ]
        .into_iter()
        .flatten()
        {
            self.take(key, &mut report)?;
        }
        self.drop_wake_target(row, &mut report)?;
        if let Some(hash) = facts.env_ref {
            self.leave_env(&hash, &mut report)?;
        }
        self.cx.ops.push(Op::EraseLog {
            incarnation: row.incarnation.get(),
        });
        let position = self.next_position();
        let mut tombstone =
            StoredTombstone::new(id, facts.hash, status, at_ms, front.last_sequence);
        tombstone.feed_position = position;
        self.put(keys::tombstone(row.incarnation), codec::encode(&tombstone)?);
        self.put(
            keys::id(id),
            codec::encode(&StoredId::Pruned(row.incarnation.get()))?,
        );
        let gone = StoredChange::Pruned {
            id: id.to_owned(),
            incarnation: row.incarnation.get(),
        };
        self.put_once(keys::feed(position), codec::encode(&gone)?);
        self.receipt.pruned.add(report);
        Ok(())
    }

    /// Deletes a key and counts what it held.
    pub(super) fn take(&mut self, key: Bytes, report: &mut ProcessPruneReport) -> Result<(), Stop> {
        if let Some(value) = self.raw(&key)? {
            report.bytes += (key.len() + value.len()) as u64;
            self.delete(key);
        }
        Ok(())
    }

    /// Drops as much as one commit may of what can be any number; whether there is more.
    fn drop_some(&mut self, row: Row, report: &mut ProcessPruneReport) -> Result<bool, Stop> {
        let (grants, more_grants) = self.scan_some(&keys::scopes_granted(row), KEYS_MAX)?;
        let (wakes, more_wakes) = self.scan_some(&keys::wakes_of_process(row), KEYS_MAX)?;
        let (replays, more_replays) = self.scan_some(&keys::replays(row.incarnation), KEYS_MAX)?;
        self.erase(
            &Remains {
                row,
                scopes: keys_to(&grants, keys::scope_of),
                wakes: keys_to(&wakes, keys::number_of),
                replays: replays.into_iter().map(|(key, _)| key).collect(),
                is_all: false,
            },
            report,
        )?;
        Ok(more_grants || more_wakes || more_replays)
    }

    /// Erases keys by name. What somebody else has erased meanwhile counts with them.
    fn erase(&mut self, of: &Remains, report: &mut ProcessPruneReport) -> Result<(), Stop> {
        for scope in &of.scopes {
            let key = keys::granted(of.row, scope);
            report.grants += u64::from(self.raw(&key)?.is_some());
            self.take(keys::grant(scope, of.row), report)?;
            self.take(key, report)?;
        }
        for position in &of.wakes {
            let pending = self.drop_wake(of.row, *position, true, report)?;
            report.wakes += u64::from(pending);
        }
        for key in &of.replays {
            self.take(key.clone(), report)?;
        }
        Ok(())
    }

    pub(super) fn drop_remains(&mut self, remains: &Remains) -> Result<(), Stop> {
        let note = keys::remains(remains.row.incarnation);
        if self.raw(&note)?.is_none() {
            // Somebody else was faster.
            return Ok(());
        }
        let mut report = ProcessPruneReport::default();
        self.erase(remains, &mut report)?;
        if remains.is_all {
            self.delete(note);
        }
        self.receipt.pruned.add(report);
        Ok(())
    }

    /// Drops all effects on an id; refused where they are more than one commit may drop.
    fn drop_effects(
        &mut self,
        id: &str,
        limit: usize,
        report: &mut ProcessPruneReport,
    ) -> Result<(), Stop> {
        let (effects, more) = self.scan_some(&keys::effects_on(id), limit)?;
        require(!more, Refusal::TooMany)?;
        for (key, value) in effects {
            report.bytes += (key.len() + value.len()) as u64;
            self.delete(key);
        }
        Ok(())
    }

    pub(super) fn forget_effects(
        &mut self,
        id: &str,
        incarnation: Incarnation,
        keys: &[Bytes],
    ) -> Result<(), Stop> {
        let stands_for = match self.get::<StoredId>(&keys::id(id))? {
            Some(StoredId::Live(row)) => Some(Row::from(row).incarnation),
            Some(StoredId::Pruned(incarnation)) => Some(Incarnation(incarnation)),
            None => None,
        };
        // An id that was started again has effects of its own.
        require(stands_for == Some(incarnation), Refusal::Gone)?;
        let mut report = ProcessPruneReport::default();
        for key in keys {
            self.take(key.clone(), &mut report)?;
        }
        self.receipt.pruned.add(report);
        Ok(())
    }

    fn drop_wake_target(&mut self, row: Row, report: &mut ProcessPruneReport) -> Result<(), Stop> {
        let key = keys::wake_target(row);
        if let Some(target) = self.get::<StoredScope>(&key)? {
            self.take(keys::watched(&target.into(), row), report)?;
            self.take(key, report)?;
        }
        Ok(())
    }

    /// The last one who uses an environment takes it along.
    fn leave_env(
        &mut self,
        hash: &ContentHash,
        report: &mut ProcessPruneReport,
    ) -> Result<(), Stop> {
        let key = keys::env_users(hash);
        let users = self.get::<StoredNumber>(&key)?.map_or(0, |users| users.0);
        if users > 1 {
            self.put(key, codec::encode(&StoredNumber(users - 1))?);
            return Ok(());
        }
        self.take(keys::env(hash), report)?;
        self.take(key, report)
    }

    pub(super) fn drop_tombstone(&mut self, incarnation: Incarnation) -> Result<(), Stop> {
        let key = keys::tombstone(incarnation);
        let Some(tombstone) = self.get::<StoredTombstone>(&key)? else {
            return Ok(());
        };
        self.delete(key);
        self.delete(keys::feed(tombstone.feed_position));
        let id = keys::id(&tombstone.id);
        if self.get::<StoredId>(&id)? == Some(StoredId::Pruned(incarnation.get())) {
            self.delete(id);
            // R2: effects that were journaled on it after it was gone go with the last that
            // remembers it.
            let mut report = ProcessPruneReport::default();
            self.drop_effects(&tombstone.id, LATE_EFFECTS_MAX, &mut report)?;
        }
        let floor = self
            .get::<StoredNumber>(&keys::feed_floor())?
            .map_or(0, |number| number.0)
            .max(tombstone.feed_position);
        self.put(keys::feed_floor(), codec::encode(&StoredNumber(floor))?);
        Ok(())
    }
}
