//! What a write set means in keys: its conditions, checked against the state it commits on, and
//! its operations. Both stores run this same code, inside their commit.

mod keyed;
pub(crate) mod prune;
mod wakes;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;

use super::codec;
use super::codec::stored::{
    NOTHING, StateFront, StoredAge, StoredChange, StoredEnv, StoredFeedEpoch, StoredGrant,
    StoredId, StoredNumber, StoredOwner, StoredReplay, StoredScope, StoredState, StoredTombstone,
};
use super::error::StoreError;
use super::keys::{self, Row};
use super::kv::{CommitContext, Op, Outcome, Proposal, Reader, Verdict};
use super::process_store::Alarm;
use super::taken::Taken;
use super::write_set::{
    Append, Change, CommitError, CommitResult, Condition, LeaseWrite, Receipt, Refusal, Register,
    WriteSet,
};
use crate::model::lease::{self, OwnerRecord, OwnerStanding};
use crate::model::{
    FencingToken, Incarnation, OwnerNumber, ProcessHandleDescriptor, SessionScope, StoreEpoch,
};

/// Called with a set's fate, on the committer.
pub(crate) type Done = Box<dyn FnOnce(CommitResult) + Send>;

/// A write set on its way through the committer.
pub(crate) struct Submission {
    pub(crate) set: WriteSet,
    /// The epoch, where only one runtime can have the store open.
    pub(crate) exclusive_epoch: Option<StoreEpoch>,
    pub(crate) verdict: Result<Receipt, Refusal>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) taken: Arc<Taken>,
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
            own: reads_own(&self.set.changes).then(BTreeMap::new),
            known: RefCell::default(),
        };
        let WriteSet {
            conditions,
            changes,
            ..
        } = &mut self.set;
        self.verdict = match resolver.run(conditions, changes) {
            Ok(()) => Ok(resolver.receipt),
            Err(Stop::Refused(refusal)) => Err(refusal),
            Err(Stop::Failed(error)) => return Err(error),
        };
        if self.verdict.is_err() {
            return Ok(Verdict::Refuse);
        }
        // The machine checks this too, but only after the ticket could have been read by a set of
        // the same group: what breaks a limit must never look accepted.
        if let Some(error) = cx.ops.iter().find_map(|op| op.check().err()) {
            return Err(error);
        }
        self.set.ticket.accept();
        Ok(Verdict::Accept)
    }

    fn done(self: Box<Self>, outcome: Outcome) {
        if let Outcome::NotWritten(error) | Outcome::Unknown(error) = &outcome {
            self.alarm.hear(error);
        }
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
        if !matches!(result, Err(CommitError::Refused(_))) {
            // Before anybody is told that it is done.
            self.taken.note(&self.set.changes);
        }
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
    /// What the set has written so far, where one of its changes may rest on an earlier one:
    /// `None` behind a key that it deleted.
    own: Option<BTreeMap<Bytes, Option<Bytes>>>,
    /// The state that was looked at last, since conditions and changes of a set are nearly always about
    /// one process.
    known: RefCell<Option<KnownState>>,
}

/// A state as it is, checked and taken apart.
struct KnownState {
    row: Row,
    key: Bytes,
    front: StateFront,
    body: Bytes,
}

impl Resolver<'_, '_> {
    /// What goes into the operations whole is moved out of the changes.
    fn run(&mut self, conditions: &[Condition], changes: &mut [Change]) -> Result<(), Stop> {
        for condition in conditions {
            self.check(condition)?;
        }
        for change in changes {
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
            Condition::GrantIs {
                row,
                scope,
                descriptor,
            } => {
                let found = self.get::<StoredGrant>(&keys::grant(scope, *row))?;
                let expected = StoredGrant::from(descriptor.clone());
                require(found == Some(expected), Refusal::NotGranted)
            }
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

    fn change(&mut self, change: &mut Change) -> Result<(), Stop> {
        match change {
            Change::Register(register) => self.register(register),
            Change::Append(append) => self.append(append),
            Change::Grant {
                row,
                scope,
                descriptor,
            } => {
                // A grant on what was pruned meanwhile would stay for good.
                self.front(*row)?;
                self.grant(*row, scope, descriptor)
            }
            Change::Revoke { row, scope } => {
                let key = keys::grant(scope, *row);
                if self.raw(&key)?.is_some() && self.is_there(*row)? {
                    self.delete(key);
                    self.delete(keys::granted(*row, scope));
                    self.receipt.revoked.push((*row, scope.clone()));
                }
                Ok(())
            }
            Change::PutOwner { number, record } => {
                let value = codec::encode(&StoredOwner::from(record.clone()))?;
                self.put(keys::owner(*number), value);
                Ok(())
            }
            Change::PutAge(mark) => {
                let known = self.get::<StoredAge>(&keys::age())?;
                if known.is_none_or(|known| known.age_ms <= mark.age_ms) {
                    self.put(keys::age(), codec::encode(&StoredAge::from(mark.clone()))?);
                }
                Ok(())
            }
            Change::RemoveOwner { number } => {
                // An owner that is unknown reads as dead: only what is dead may be forgotten (L5).
                require(
                    self.standing(*number)? == OwnerStanding::Dead,
                    Refusal::Leased,
                )?;
                self.delete(keys::owner(*number));
                Ok(())
            }
            Change::BeginFeed { epoch, nonce } => {
                let key = keys::feed_epoch(epoch.get());
                if self.raw(&key)?.is_none() {
                    let begins = StoredFeedEpoch {
                        first_position: self.cx.next_position,
                        nonce: *nonce,
                    };
                    self.put(key, codec::encode(&begins)?);
                }
                Ok(())
            }
            Change::RecordEffect { key, value } => {
                self.put(key.clone(), value.clone());
                Ok(())
            }
            Change::Prune { row, id, at_ms } => self.prune(*row, id, *at_ms),
            Change::DropTombstone { incarnation } => self.drop_tombstone(*incarnation),
            Change::AckWake { scope, position } => self.ack_wake(scope, *position),
            Change::DropRemains(remains) => self.drop_remains(remains),
            Change::ForgetEffects {
                id,
                incarnation,
                keys,
            } => self.forget_effects(id, *incarnation, keys),
            Change::RetargetWakes {
                row,
                from,
                target,
                after,
            } => self.retarget_wakes(*row, from.as_ref(), target.as_ref(), *after),
            Change::DropWakeTarget { row, scope } => self.leave_wake_target(*row, scope),
            Change::DiscardWakes {
                wakes,
                received_too,
            } => self.discard_wakes(wakes, *received_too),
        }
    }

    fn register(&mut self, new: &mut Register) -> Result<(), Stop> {
        let row = new.row;
        self.put(
            keys::id(&new.id),
            codec::encode(&StoredId::Live(row.into()))?,
        );
        self.put(keys::head(row), std::mem::take(&mut new.head));
        if let Some(body) = new.body.take() {
            self.put(keys::body(row), body);
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
            // The count has a key of its own, so that the environment is written once only.
            let key = keys::env_users(hash);
            let users = self.get::<StoredNumber>(&key)?.map_or(0, |users| users.0);
            if users == 0 {
                let env = StoredEnv {
                    canonical: canonical.to_vec(),
                };
                self.put(keys::env(hash), codec::encode(&env)?);
            }
            self.put(key, codec::encode(&StoredNumber(users + 1))?);
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

    fn append(&mut self, append: &mut Append) -> Result<(), Stop> {
        let row = append.row;
        let (mut front, body) = self.state_value(row)?;
        // P2 and E1 do not rest on the conditions that a set happens to name. What has ended is not
        // leased either.
        require(front.terminal_at_ms().is_none(), Refusal::Ended)?;
        if !append.events.is_empty() {
            require(
                append.first_sequence == front.last_sequence + 1,
                Refusal::Moved,
            )?;
        }
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
        for (sequence, value) in (append.first_sequence..).zip(append.events.drain(..)) {
            front.last_sequence = sequence;
            front.log_bytes += value.len() as u64;
            self.cx.ops.push(Op::Append {
                incarnation: row.incarnation.get(),
                sequence,
                value,
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

    fn state_value(&self, row: Row) -> Result<(StateFront, Bytes), Stop> {
        self.known(row, |known| (known.front, known.body.clone()))
    }

    /// Shows the state of a process, read if it is not the one that was looked at last.
    fn known<T>(&self, row: Row, show: impl FnOnce(&KnownState) -> T) -> Result<T, Stop> {
        let mut known = self.known.borrow_mut();
        if let Some(known) = known.as_ref().filter(|known| known.row == row) {
            return Ok(show(known));
        }
        let key = keys::state(row);
        let bytes = self.raw(&key)?.ok_or(Refusal::Gone)?;
        let opened = codec::open::<StoredState>(&bytes)?;
        let (front, body) = StateFront::split(opened)?;
        let body = bytes.slice_ref(body);
        Ok(show(known.insert(KnownState {
            row,
            key,
            front,
            body,
        })))
    }

    /// Whether a process is there. What a pruned one left is for the prune to erase, and to count:
    /// where anybody else took of it, no report would have it (R4).
    fn is_there(&self, row: Row) -> Result<bool, StoreError> {
        Ok(self.raw(&keys::state(row))?.is_some())
    }

    fn front(&self, row: Row) -> Result<StateFront, Stop> {
        self.known(row, |known| known.front)
    }

    fn put_state(&mut self, row: Row, front: StateFront, body: &[u8]) -> Result<(), Stop> {
        let value = codec::seal::<StoredState>(&front.to_bytes(), body)?;
        let known = self.known.take().filter(|known| known.row == row);
        self.put(
            known.map_or_else(|| keys::state(row), |known| known.key),
            value,
        );
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
