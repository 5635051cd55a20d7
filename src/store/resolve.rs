//! What a write set means in keys: its conditions, checked against the state it commits on, and
//! its operations. Both stores run this same code, inside their commit.

use bytes::Bytes;

use super::codec::stored::{
    NOTHING, StateFront, StoredChange, StoredEnv, StoredGrant, StoredHead, StoredId, StoredNumber,
    StoredOwner, StoredReplay, StoredScope, StoredState, StoredTombstone, StoredWake, StoredWakeOf,
};
use super::codec::{self, Stored};
use super::error::StoreError;
use super::keys::{self, Row};
use super::kv::{CommitContext, Op, Outcome, Proposal, Reader, Verdict};
use super::write_set::{
    Append, Change, CommitError, CommitResult, Condition, LeaseWrite, Receipt, Refusal, Register,
    WakeWrite, WriteSet,
};
use crate::model::lease::{self, OwnerRecord, OwnerStanding};
use crate::model::{
    FencingToken, Incarnation, OwnerNumber, ProcessHandleDescriptor, ProcessPruneReport,
    SessionScope, StoreEpoch,
};

/// Called with a set's fate, on the committer.
pub(crate) type Done = Box<dyn FnOnce(CommitResult) + Send>;

/// A write set on its way through the committer.
pub(crate) struct Submission {
    pub(crate) set: WriteSet,
    /// The epoch, where only one runtime can have the store open.
    pub(crate) exclusive_epoch: Option<StoreEpoch>,
    pub(crate) verdict: Result<Receipt, Refusal>,
    pub(crate) done: Done,
}

impl Proposal for Submission {
    fn resolve(
        &mut self,
        state: &dyn Reader,
        cx: &mut CommitContext<'_>,
    ) -> Result<Verdict, StoreError> {
        // Refused until proven otherwise: an error on the way refuses what was decided on it.
        self.set.ticket.refuse();
        if self
            .set
            .after
            .as_ref()
            .is_some_and(|before| !before.is_accepted())
        {
            self.verdict = Err(Refusal::Predecessor);
            return Ok(Verdict::Refuse);
        }
        let mut resolver = Resolver {
            state,
            cx,
            exclusive_epoch: self.exclusive_epoch,
            receipt: Receipt::default(),
            reads_own: reads_own(&self.set.changes),
        };
        self.verdict = match resolver.run(&self.set) {
            Ok(()) => Ok(resolver.receipt),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Failed(error)) => return Err(error),
        };
        if self.verdict.is_err() {
            return Ok(Verdict::Refuse);
        }
        self.set.ticket.accept();
        Ok(Verdict::Accept)
    }

    fn done(self: Box<Self>, outcome: Outcome) {
        let result = match (outcome, self.verdict) {
            (Outcome::Committed { commit }, Ok(mut receipt)) => {
                receipt.commit = commit;
                Ok(receipt)
            }
            (Outcome::Refused | Outcome::Committed { .. }, Err(refusal)) => {
                Err(CommitError::Refused(refusal))
            }
            (Outcome::Refused, Ok(_)) => Err(CommitError::Refused(Refusal::Predecessor)),
            (Outcome::NotWritten(error), _) => {
                self.set.ticket.refuse();
                Err(CommitError::NotWritten(error))
            }
            (Outcome::Unknown(error), _) => Err(CommitError::Unknown(error)),
        };
        (self.done)(result);
    }
}

enum Stop {
    Refused(Refusal),
    Failed(StoreError),
}

impl From<StoreError> for Stop {
    fn from(error: StoreError) -> Self {
        Self::Failed(error)
    }
}

impl From<Refusal> for Stop {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

struct Resolver<'a, 'b> {
    state: &'a dyn Reader,
    cx: &'a mut CommitContext<'b>,
    exclusive_epoch: Option<StoreEpoch>,
    receipt: Receipt,
    /// Whether a change of the set may rest on an earlier one of the same set.
    reads_own: bool,
}

impl Resolver<'_, '_> {
    fn run(&mut self, set: &WriteSet) -> Result<(), Stop> {
        for condition in &set.conditions {
            self.check(condition)?;
        }
        for change in &set.changes {
            self.change(change)?;
        }
        if self.cx.ops.is_empty() {
            return Err(Refusal::NothingToDo.into());
        }
        Ok(())
    }

    fn check(&self, condition: &Condition) -> Result<(), Stop> {
        match condition {
            Condition::IdFree { id, hash } => match self.get::<StoredId>(&keys::id(id))? {
                None => Ok(()),
                Some(StoredId::Live(row)) => Err(Refusal::IdTaken(row.into()).into()),
                Some(StoredId::Pruned(incarnation)) => {
                    let incarnation = Incarnation(incarnation);
                    let tombstone = self
                        .get::<StoredTombstone>(&keys::tombstone(incarnation))?
                        .map(|stored| stored.facts(incarnation))
                        .filter(|tombstone| tombstone.registration_hash == *hash);
                    match tombstone {
                        Some(tombstone) => Err(Refusal::Pruned(tombstone).into()),
                        None => Ok(()),
                    }
                }
            },
            Condition::Exists { row } => self.front(*row).map(drop),
            Condition::At { row, last_sequence } => require(
                self.front(*row)?.last_sequence == *last_sequence,
                Refusal::Moved,
            ),
            Condition::Running { row } => {
                require(self.front(*row)?.terminal_at_ms().is_none(), Refusal::Ended)
            }
            // L3: the fence. Without this check a returning owner writes over its successor.
            Condition::Token { row, token } => {
                let front = self.front(*row)?;
                require(
                    front.owner != 0 && front.token == token.get(),
                    Refusal::Superseded,
                )
            }
            // L4 and L8: a lapsed heartbeat, or one of an earlier epoch, writes nothing more.
            Condition::OwnerLive { owner } => require(
                self.standing(*owner)? == OwnerStanding::Live,
                Refusal::OwnerLapsed,
            ),
            // L1: a live lease is not taken from its owner.
            Condition::LeaseFree { row } => {
                let front = self.front(*row)?;
                require(
                    front.owner == 0
                        || self.standing(OwnerNumber(front.owner))? != OwnerStanding::Live,
                    Refusal::Leased,
                )
            }
            // L5: elapsed time proves nothing about an owner.
            Condition::LeaseGone { row } => {
                let front = self.front(*row)?;
                require(
                    front.owner == 0
                        || self.standing(OwnerNumber(front.owner))? == OwnerStanding::Dead,
                    Refusal::Leased,
                )
            }
            // G1: the grant is a condition of the write.
            Condition::Granted { row, scope } => require(
                self.raw(&keys::grant(scope, *row))?.is_some(),
                Refusal::NotGranted,
            ),
            Condition::MayStartChild { row } => {
                let front = self.front(*row)?;
                require(
                    front.terminal_at_ms().is_none() && !front.cancel_requested,
                    Refusal::ParentStopping,
                )
            }
            // P3 with several writers: the key is taken once.
            Condition::ReplayFree { incarnation, key } => require(
                self.raw(&keys::replay(*incarnation, key))?.is_none(),
                Refusal::ReplayTaken,
            ),
        }
    }

    fn change(&mut self, change: &Change) -> Result<(), Stop> {
        match change {
            Change::Register(register) => self.register(register),
            Change::Append(append) => self.append(append),
            Change::Grant {
                row,
                scope,
                descriptor,
            } => self.grant(*row, scope, descriptor),
            Change::Revoke { row, scope } => {
                let key = keys::grant(scope, *row);
                if self.raw(&key)?.is_some() {
                    self.delete(key);
                    self.delete(keys::granted(*row, scope));
                }
                Ok(())
            }
            Change::PutOwner { number, record } => {
                let value = codec::encode(&StoredOwner::from(record.clone()))?;
                self.put(keys::owner(*number), value);
                Ok(())
            }
            Change::RemoveOwner { number } => {
                self.delete(keys::owner(*number));
                Ok(())
            }
            Change::RecordEffect { key, value } => {
                self.put(key.clone(), value.clone());
                Ok(())
            }
            Change::Prune { row, id, at_ms } => self.prune(*row, id, *at_ms),
            Change::DropTombstone { incarnation } => self.drop_tombstone(*incarnation),
            Change::AckWake { scope, position } => self.ack_wake(scope, *position),
            Change::RetargetWakes { row, target } => self.retarget_wakes(*row, target.as_ref()),
            Change::ForgetWakeScope { scope } => self.forget_wake_scope(scope),
        }
    }

    fn register(&mut self, new: &Register) -> Result<(), Stop> {
        let row = new.row;
        self.put(
            keys::id(&new.id),
            codec::encode(&StoredId::Live(row.into()))?,
        );
        self.put(keys::head(row), new.head.clone());
        if let Some(body) = &new.body {
            self.put(keys::body(row), body.clone());
        }
        self.put_once(keys::running(row), Bytes::from_static(NOTHING));
        let position = self.next_position();
        self.put_state(
            row,
            StateFront {
                feed_position: position,
                ..StateFront::default()
            },
            &new.state,
        )?;
        self.put_feed(position, row, None)?;
        if let Some((hash, canonical)) = &new.env {
            let key = keys::env(hash);
            let mut env = self.get::<StoredEnv>(&key)?.unwrap_or_else(|| StoredEnv {
                users: 0,
                canonical: canonical.to_vec(),
            });
            env.users += 1;
            self.put(key, codec::encode(&env)?);
        }
        if let Some((scope, descriptor)) = &new.grant {
            self.grant(row, scope, descriptor)?;
        }
        if let Some(key) = keys::originator(&new.originator, row) {
            self.put(key, Bytes::from_static(NOTHING));
        }
        if let Some(parent) = new.parent {
            self.put(keys::child(parent, row), Bytes::from_static(NOTHING));
        }
        if let Some(target) = &new.wake_target {
            self.put(
                keys::wake_target(row),
                codec::encode(&StoredScope::from(target.clone()))?,
            );
            self.put(keys::watched(target, row), Bytes::from_static(NOTHING));
        }
        Ok(())
    }

    fn append(&mut self, append: &Append) -> Result<(), Stop> {
        let row = append.row;
        let (mut front, body) = self.state_value(row)?;
        match append.lease {
            LeaseWrite::Keep => {}
            LeaseWrite::Acquire { owner, token } => {
                rise(&mut front, token)?;
                front.owner = owner.get();
            }
            LeaseWrite::Release => front.owner = 0,
            LeaseWrite::Pass { token } => {
                rise(&mut front, token)?;
                front.owner = 0;
            }
        }
        for (sequence, value) in (append.first_sequence..).zip(&append.events) {
            front.last_sequence = sequence;
            front.log_bytes += value.len() as u64;
            self.cx.ops.push(Op::Append {
                incarnation: row.incarnation.get(),
                sequence,
                value: value.clone(),
            });
        }
        if let Some(at_ms) = append.terminal_at_ms {
            front.terminal_at_plus_one = at_ms.saturating_add(1);
            self.delete(keys::running(row));
        }
        front.cancel_requested |= append.cancel_requested;
        for replay in &append.replays {
            self.put(
                keys::replay(row.incarnation, &replay.key),
                codec::encode(&StoredReplay {
                    sequence: replay.sequence,
                    content: replay.content.0,
                })?,
            );
        }
        // The feed knows a process by its last change only.
        self.delete(keys::feed(front.feed_position));
        front.feed_position = self.next_position();
        self.put_feed(front.feed_position, row, front.terminal_at_ms())?;
        self.put_state(row, front, append.state.as_deref().unwrap_or(&body))?;
        for wake in &append.wakes {
            self.deliver(row, wake)?;
        }
        Ok(())
    }

    fn deliver(&mut self, row: Row, wake: &WakeWrite) -> Result<(), Stop> {
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
        if let Some(key) = &wake.dedupe_key {
            let key = keys::wake_dedupe(&target, key);
            if self.raw(&key)?.is_some() {
                return Ok(());
            }
            self.put(key, Bytes::from_static(NOTHING));
        }
        let position = self.next_position();
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

    fn grant(
        &mut self,
        row: Row,
        scope: &SessionScope,
        descriptor: &ProcessHandleDescriptor,
    ) -> Result<(), Stop> {
        let key = keys::grant(scope, row);
        if self.raw(&key)?.is_none() {
            let value = codec::encode(&StoredGrant::from(descriptor.clone()))?;
            self.put(key, value);
            // G3: both directions in the same commit.
            self.put(keys::granted(row, scope), Bytes::from_static(NOTHING));
        }
        Ok(())
    }

    fn prune(&mut self, row: Row, id: &str, at_ms: u64) -> Result<(), Stop> {
        let head_key = keys::head(row);
        let head_bytes = self.raw(&head_key)?.ok_or(Refusal::Gone)?;
        let (facts, _) = codec::decode::<StoredHead>(&head_bytes)?.facts(row);
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
        for (key, _) in self.state.scan(&keys::scopes_granted(row), usize::MAX)? {
            if let Some(scope) = keys::scope_of(&key) {
                self.take(keys::grant(&scope, row), &mut report)?;
            }
            self.take(key, &mut report)?;
            report.grants += 1;
        }
        report.wakes = self.drop_wakes_of(row, &mut report)?;
        for range in [keys::replays(row.incarnation), keys::effects_on(id)] {
            for (key, _) in self.state.scan(&range, usize::MAX)? {
                self.take(key, &mut report)?;
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
            self.leave_env(&keys::env(&hash), &mut report)?;
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
        for (key, value) in self.state.scan(&keys::wakes_of_process(row), usize::MAX)? {
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

    fn leave_env(&mut self, key: &Bytes, report: &mut ProcessPruneReport) -> Result<(), Stop> {
        let Some(mut env) = self.get::<StoredEnv>(key)? else {
            return Ok(());
        };
        env.users = env.users.saturating_sub(1);
        if env.users == 0 {
            return self.take(key.clone(), report);
        }
        self.put(key.clone(), codec::encode(&env)?);
        Ok(())
    }

    fn drop_tombstone(&mut self, incarnation: Incarnation) -> Result<(), Stop> {
        let key = keys::tombstone(incarnation);
        let Some(tombstone) = self.get::<StoredTombstone>(&key)? else {
            return Ok(());
        };
        self.delete(key);
        self.delete(keys::feed(tombstone.feed_position));
        let id = keys::id(&tombstone.id);
        if self.get::<StoredId>(&id)? == Some(StoredId::Pruned(incarnation.get())) {
            self.delete(id);
        }
        let floor = self
            .get::<StoredNumber>(&keys::feed_floor())?
            .map_or(0, |number| number.0)
            .max(tombstone.feed_position);
        self.put(keys::feed_floor(), codec::encode(&StoredNumber(floor))?);
        Ok(())
    }

    fn ack_wake(&mut self, scope: &SessionScope, position: u64) -> Result<(), Stop> {
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

    fn retarget_wakes(&mut self, row: Row, target: Option<&SessionScope>) -> Result<(), Stop> {
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
        for (key, value) in self.state.scan(&keys::wakes_of_process(row), usize::MAX)? {
            let back = codec::decode::<StoredWakeOf>(&value)?;
            if SessionScope::from(back.scope) != *scope {
                continue;
            }
            let Some(position) = keys::number_of(&key) else {
                continue;
            };
            let wake = keys::wake(scope, position);
            if self.raw(&wake)?.is_some() {
                self.delete(wake);
                self.receipt.wakes_discarded += 1;
            }
            if let Some(dedupe) = back.dedupe_key {
                self.delete(keys::wake_dedupe(scope, &dedupe));
            }
            self.delete(key);
        }
        Ok(())
    }

    fn forget_wake_scope(&mut self, scope: &SessionScope) -> Result<(), Stop> {
        for (key, value) in self.state.scan(&keys::wakes_of_scope(scope), usize::MAX)? {
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
        for (key, _) in self
            .state
            .scan(&keys::watched_by_scope(scope), usize::MAX)?
        {
            if let Some(row) = keys::row_of(&key) {
                self.delete(keys::wake_target(row));
            }
            self.delete(key);
        }
        Ok(())
    }

    fn state_value(&self, row: Row) -> Result<(StateFront, Bytes), Stop> {
        let bytes = self.raw(&keys::state(row))?.ok_or(Refusal::Gone)?;
        let opened = codec::open::<StoredState>(&bytes)?;
        let (front, body) = StateFront::split(opened)?;
        let body = bytes.slice_ref(body);
        Ok((front, body))
    }

    fn front(&self, row: Row) -> Result<StateFront, Stop> {
        self.state_value(row).map(|(front, _)| front)
    }

    fn put_state(&mut self, row: Row, front: StateFront, body: &[u8]) -> Result<(), Stop> {
        let value = codec::seal::<StoredState>(&front.to_bytes(), body)?;
        self.put(keys::state(row), value);
        Ok(())
    }

    fn put_feed(
        &mut self,
        position: u64,
        row: Row,
        terminal_at_ms: Option<u64>,
    ) -> Result<(), Stop> {
        let change = StoredChange::Changed {
            row: row.into(),
            terminal_at_ms,
        };
        let value = codec::encode(&change)?;
        self.put_once(keys::feed(position), value);
        Ok(())
    }

    fn standing(&self, owner: OwnerNumber) -> Result<OwnerStanding, Stop> {
        let record = self
            .get::<StoredOwner>(&keys::owner(owner))?
            .map(OwnerRecord::from);
        Ok(lease::standing(
            record.as_ref(),
            self.exclusive_epoch,
            self.cx.now_epoch_ms,
        ))
    }

    fn next_position(&mut self) -> u64 {
        let position = self.cx.next_position;
        self.cx.next_position += 1;
        position
    }

    /// The value of a key as this set's earlier changes leave it.
    fn raw(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        if self.reads_own {
            for op in self.cx.ops.iter().rev() {
                match op {
                    Op::Put { key: own, value } | Op::PutOnce { key: own, value } if own == key => {
                        return Ok(Some(value.clone()));
                    }
                    Op::Delete { key: own } if own == key => return Ok(None),
                    Op::Put { .. }
                    | Op::PutOnce { .. }
                    | Op::Delete { .. }
                    | Op::Append { .. }
                    | Op::EraseLog { .. } => {}
                }
            }
        }
        self.state.get(key)
    }

    fn get<T: Stored>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.raw(key)? {
            Some(bytes) => codec::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.cx.ops.push(Op::Put { key, value });
    }

    fn put_once(&mut self, key: Bytes, value: Bytes) {
        self.cx.ops.push(Op::PutOnce { key, value });
    }

    fn delete(&mut self, key: Bytes) {
        self.cx.ops.push(Op::Delete { key });
    }
}

fn reads_own(changes: &[Change]) -> bool {
    match changes {
        [Change::Append(append)] => append.wakes.len() > 1,
        [_] | [] => false,
        _ => true,
    }
}

/// L2: a token strictly rises at every acquisition.
fn rise(front: &mut StateFront, token: FencingToken) -> Result<(), Stop> {
    require(token.get() > front.token, Refusal::Superseded)?;
    front.token = token.get();
    Ok(())
}

fn require(holds: bool, refusal: Refusal) -> Result<(), Stop> {
    if holds { Ok(()) } else { Err(refusal.into()) }
}
