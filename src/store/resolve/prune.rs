//! How a process leaves the store, and how what remains of it does.

use super::super::codec;
use super::super::codec::stored::{
    StoredChange, StoredHead, StoredId, StoredNumber, StoredScope, StoredState, StoredTombstone,
    StoredWakeOf,
};
use super::super::keys::{self, Row};
use super::super::kv::Op;
use super::super::write_set::Refusal;
use super::{Resolver, Stop};
use crate::model::{ContentHash, Incarnation, ProcessPruneReport, SessionScope};
use bytes::Bytes;

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
        for (key, _) in self.scan(&keys::scopes_granted(row))? {
            if let Some(scope) = keys::scope_of(&key) {
                self.take(keys::grant(&scope, row), &mut report)?;
            }
            self.take(key, &mut report)?;
            report.grants += 1;
        }
        report.wakes = self.drop_wakes_of(row, &mut report)?;
        for range in [keys::replays(row.incarnation), keys::effects_on(id)] {
            for (key, value) in self.scan(&range)? {
                report.bytes += (key.len() + value.len()) as u64;
                self.delete(key);
            }
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
    fn take(&mut self, key: Bytes, report: &mut ProcessPruneReport) -> Result<(), Stop> {
        if let Some(value) = self.raw(&key)? {
            report.bytes += (key.len() + value.len()) as u64;
            self.delete(key);
        }
        Ok(())
    }

    /// Drops every wake of a process; returns how many were still pending.
    fn drop_wakes_of(&mut self, row: Row, report: &mut ProcessPruneReport) -> Result<u64, Stop> {
        let mut pending = 0;
        for (key, value) in self.scan(&keys::wakes_of_process(row))? {
            let back = codec::decode::<StoredWakeOf>(&value)?;
            let scope = SessionScope::from(back.scope);
            if let Some(position) = keys::number_of(&key) {
                let wake = keys::wake(&scope, position);
                pending += u64::from(self.raw(&wake)?.is_some());
                self.take(wake, report)?;
            }
            if let Some(dedupe) = back.dedupe_key {
                self.take(keys::wake_dedupe(&scope, &dedupe), report)?;
            }
            self.take(key, report)?;
        }
        Ok(pending)
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
            for (key, _) in self.scan(&keys::effects_on(&tombstone.id))? {
                self.delete(key);
            }
        }
        let floor = self
            .get::<StoredNumber>(&keys::feed_floor())?
            .map_or(0, |number| number.0)
            .max(tombstone.feed_position);
        self.put(keys::feed_floor(), codec::encode(&StoredNumber(floor))?);
        Ok(())
    }
}
