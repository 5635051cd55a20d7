//! One key at a time: what it stands for must be there and say the same.

use super::super::codec::stored::{
    HeadFacts, StoredAge, StoredBody, StoredChange, StoredDedupe, StoredEffect, StoredEnv,
    StoredEvent, StoredFeedEpoch, StoredGrant, StoredHead, StoredId, StoredNumber, StoredOwner,
    StoredReplay, StoredScope, StoredState, StoredTombstone, StoredWake, StoredWakeOf,
};
use super::super::codec::{self, Stored};
use super::super::error::StoreError;
use super::super::keys::{self, Parsed, Row};
use super::super::read::View;
use super::Findings;
use crate::model::decide::content_of;
use crate::model::lease::OwnerRecord;
use crate::model::{ContentHash, Incarnation, SessionScope, StoreEpoch, json};

/// A key, its value, and the view that both are of.
pub(super) struct Entry<'a> {
    pub(super) view: &'a View,
    /// The epoch, where no other runtime can have one that is newer.
    pub(super) exclusive_epoch: Option<StoreEpoch>,
    pub(super) key: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) findings: &'a mut Findings,
}

type Checked = Result<(), StoreError>;

impl Entry<'_> {
    pub(super) fn check(&mut self, parsed: Parsed) -> Checked {
        match parsed {
            Parsed::Id(id) => self.id(&id),
            // Checked as a process.
            Parsed::Head(_) => Ok(()),
            Parsed::Body(row) => self.body(row),
            Parsed::State(row) => self.state(row),
            Parsed::Grant { scope, row } => self.grant(&scope, row),
            Parsed::Granted { row, scope } => self.granted(row, &scope),
            Parsed::Originator { row, .. } => self.originator(row),
            Parsed::Parent { parent, row } => self.parent(parent, row),
            Parsed::Running(row) => self.running(row),
            Parsed::Feed(position) => self.feed(position),
            Parsed::Replay { incarnation, key } => self.replay(incarnation, &key),
            Parsed::Owner(number) => {
                self.findings.highest.owner(number.get());
                self.owner(number.get())
            }
            Parsed::Env(hash) => self.env(&hash),
            Parsed::EnvUsers(hash) => self.env_users(&hash),
            Parsed::Wake { scope, position } => self.wake(&scope, position),
            Parsed::WakeDedupe { scope, key } => self.wake_dedupe(&scope, &key),
            Parsed::WakeOf { row, position } => self.wake_of(row, position),
            Parsed::Effect(process_id) => self.effect(&process_id),
            Parsed::WakeTarget(row) => self.wake_target(row),
            Parsed::Watched { scope, row } => self.watched(&scope, row),
            Parsed::Tombstone(incarnation) => self.tombstone(incarnation),
            Parsed::FeedFloor => self.value::<StoredNumber>().map(drop),
            Parsed::Remains(incarnation) => self.remains(incarnation),
            Parsed::FeedEpoch(_) => self.value::<StoredFeedEpoch>().map(drop),
            Parsed::Age => self.value::<StoredAge>().map(drop),
        }
    }

    /// The value of this key.
    fn value<T: Stored>(&mut self) -> Result<Option<T>, StoreError> {
        self.findings.decoded(None, T::NAME, self.value)
    }

    fn stored<T: Stored>(&mut self, key: &[u8]) -> Result<Option<T>, StoreError> {
        self.findings.stored(self.view, None, key)
    }

    fn has(&mut self, key: &[u8]) -> Result<bool, StoreError> {
        self.findings.has(self.view, key)
    }

    /// Index keys say all there is to say.
    fn holds_nothing(&mut self, what: &str, row: Row) -> Checked {
        if self.value.is_empty() {
            return Ok(());
        }
        self.note(row, format!("{what} has a value, but is a key only"))
    }

    /// Notes a problem of a process, by its id where that can be read.
    fn note(&mut self, row: Row, what: impl Into<String>) -> Checked {
        let head = self.view.raw().get(&keys::head(row));
        // A head that cannot be read is a problem of its own.
        let id = match head {
            Ok(Some(bytes)) => codec::decode::<StoredHead>(&bytes).ok().map(|head| head.id),
            Ok(None) | Err(StoreError::Corrupted { .. }) => None,
            Err(error) => return Err(error),
        };
        match id {
            Some(id) => self.findings.note(Some(&id), what),
            None => self.findings.note(
                None,
                format!("incarnation {}: {}", row.incarnation, what.into()),
            ),
        }
        Ok(())
    }

    /// Notes what belongs to a process that is not there; says whether it is. What is left of one
    /// that was pruned is still there for a while.
    fn lives(&mut self, what: &str, row: Row) -> Result<bool, StoreError> {
        let lives = self.has(&keys::head(row))?;
        if !lives && !self.has(&keys::remains(row.incarnation))? {
            self.note(row, format!("{what} of a process that is not there"))?;
        }
        Ok(lives)
    }

    fn id(&mut self, id: &str) -> Checked {
        match self.value::<StoredId>()? {
            None => {}
            Some(StoredId::Live(row)) => {
                let row = Row::from(row);
                match self.stored::<StoredHead>(&keys::head(row))? {
                    Some(head) if head.id == id => {}
                    Some(_) => self
                        .findings
                        .note(Some(id), "id stands for a process of another id"),
                    None => self
                        .findings
                        .note(Some(id), "id stands for a process that is not there"),
                }
            }
            Some(StoredId::Pruned(incarnation)) => {
                let key = keys::tombstone(Incarnation(incarnation));
                match self.stored::<StoredTombstone>(&key)? {
                    Some(tombstone) if tombstone.id == id => {}
                    Some(_) => self
                        .findings
                        .note(Some(id), "id stands for a tombstone of another id"),
                    None => self
                        .findings
                        .note(Some(id), "id stands for a tombstone that is not there"),
                }
            }
        }
        Ok(())
    }

    fn body(&mut self, row: Row) -> Checked {
        self.value::<StoredBody>()?;
        self.lives("body", row).map(drop)
    }

    fn state(&mut self, row: Row) -> Checked {
        // Where there is a head, the value is looked at together with the process.
        if self.lives("state", row)? {
            return Ok(());
        }
        let opened = codec::open::<StoredState>(self.value).map(drop);
        self.findings.sound(None, StoredState::NAME, opened)?;
        Ok(())
    }

    /// G3, from the scope's side.
    fn grant(&mut self, scope: &SessionScope, row: Row) -> Checked {
        self.value::<StoredGrant>()?;
        if !self.has(&keys::granted(row, scope))? {
            self.note(row, format!("grant to {scope} is not known to the process"))?;
        }
        self.lives("grant", row).map(drop)
    }

    /// G3, from the process's side.
    fn granted(&mut self, row: Row, scope: &SessionScope) -> Checked {
        self.holds_nothing("grant, as the process knows it,", row)?;
        if !self.has(&keys::grant(scope, row))? {
            self.note(row, format!("grant to {scope} is not known to the scope"))?;
        }
        self.lives("grant, as the process knows it,", row).map(drop)
    }

    fn originator(&mut self, row: Row) -> Checked {
        self.holds_nothing("originator entry", row)?;
        let Some(head) = self.head("originator entry", row)? else {
            return Ok(());
        };
        if keys::originator(&head.provenance.originator, row).as_deref() != Some(self.key) {
            self.findings.note(
                Some(&head.id),
                "originator entry names another originator than the process",
            );
        }
        Ok(())
    }

    fn parent(&mut self, parent: Incarnation, row: Row) -> Checked {
        self.holds_nothing("parent entry", row)?;
        let Some(head) = self.head("parent entry", row)? else {
            return Ok(());
        };
        if head.provenance.parent.map(|parent| parent.incarnation) != Some(parent) {
            self.findings.note(
                Some(&head.id),
                "parent entry names another parent than the process",
            );
        }
        Ok(())
    }

    fn head(&mut self, what: &str, row: Row) -> Result<Option<HeadFacts>, StoreError> {
        if !self.lives(what, row)? {
            return Ok(None);
        }
        let head = self.stored::<StoredHead>(&keys::head(row))?;
        Ok(head.map(|head| head.facts(row).0))
    }

    fn running(&mut self, row: Row) -> Checked {
        self.holds_nothing("running entry", row)?;
        let front = self.view.front(row);
        match self.findings.sound(None, "process state", front)? {
            None => Ok(()),
            Some(None) => self.note(row, "running entry of a process that is not there"),
            Some(Some(front)) if front.terminal_at_ms().is_some() => {
                self.note(row, "running entry of a process that has ended")
            }
            Some(Some(_)) => Ok(()),
        }
    }

    fn feed(&mut self, position: u64) -> Checked {
        match self.value::<StoredChange>()? {
            None => Ok(()),
            Some(StoredChange::Changed {
                row,
                terminal_at_ms,
            }) => {
                let row = Row::from(row);
                let front = self.view.front(row);
                let Some(front) = self.findings.sound(None, "process state", front)? else {
                    return Ok(());
                };
                match front {
                    None => self.note(row, "feed entry of a process that is not there"),
                    Some(front) if front.feed_position != position => self.note(
                        row,
                        format!(
                            "feed entry at {position}, but the last change is at {}",
                            front.feed_position
                        ),
                    ),
                    Some(front) if front.terminal_at_ms() != terminal_at_ms => {
                        self.note(row, "feed entry says another end than the process")
                    }
                    Some(_) => Ok(()),
                }
            }
            Some(StoredChange::Pruned { id, incarnation }) => {
                let key = keys::tombstone(Incarnation(incarnation));
                let tombstone = self.stored::<StoredTombstone>(&key)?;
                let agrees =
                    tombstone.is_some_and(|it| it.id == id && it.feed_position == position);
                if !agrees {
                    self.findings.note(
                        Some(&id),
                        format!("deletion at {position} in the feed has no tombstone"),
                    );
                }
                Ok(())
            }
        }
    }

    fn replay(&mut self, incarnation: Incarnation, key: &str) -> Checked {
        let note = |findings: &mut Findings, what: &str| {
            findings.note(
                None,
                format!("incarnation {incarnation}: replay key {what}"),
            );
        };
        let Some(stored) = self.value::<StoredReplay>()? else {
            return Ok(());
        };
        // Some may be there for a while yet, as the log may.
        if self.has(&keys::remains(incarnation))? {
            return Ok(());
        }
        if self.has(&keys::tombstone(incarnation))? {
            note(self.findings, "of a process that was pruned");
            return Ok(());
        }
        let Some(event) = self.event(incarnation, stored.sequence)? else {
            note(
                self.findings,
                &format!("of event {}, which is not there", stored.sequence),
            );
            return Ok(());
        };
        if event.replay_key.as_deref() != Some(key) {
            note(
                self.findings,
                &format!("of event {}, which has another", stored.sequence),
            );
        }
        if content_of(&event.event_type, &event.payload) != ContentHash(stored.content) {
            note(
                self.findings,
                &format!("stands for other content than event {}", stored.sequence),
            );
        }
        Ok(())
    }

    /// One event of a log.
    fn event(
        &mut self,
        incarnation: Incarnation,
        sequence: u64,
    ) -> Result<Option<StoredEvent>, StoreError> {
        let read = self
            .view
            .raw()
            .events(incarnation.get(), sequence, 1, usize::MAX);
        let found = self.findings.sound(None, "log", read)?.unwrap_or_default();
        match found.first() {
            Some((found, bytes)) if *found == sequence => {
                self.findings.decoded(None, StoredEvent::NAME, bytes)
            }
            Some(_) | None => Ok(None),
        }
    }

    fn owner(&mut self, number: u64) -> Checked {
        let Some(stored) = self.value::<StoredOwner>()? else {
            return Ok(());
        };
        let epoch = OwnerRecord::from(stored).owner.store_epoch;
        if self.exclusive_epoch.is_some_and(|newest| epoch > newest) {
            self.findings.note(
                None,
                format!("owner {number} is of epoch {epoch}, which is to come"),
            );
        }
        if number == 0 {
            self.findings.note(None, "owner 0, which stands for nobody");
        }
        Ok(())
    }

    fn env(&mut self, hash: &ContentHash) -> Checked {
        self.findings.captured = true;
        if let Some(env) = self.value::<StoredEnv>()?
            && ContentHash::of(&env.canonical) != *hash
        {
            self.findings
                .note(None, format!("environment {hash} has other content"));
        }
        if !self.has(&keys::env_users(hash))? {
            self.findings.note(
                None,
                format!("environment {hash} has no count of its users"),
            );
        }
        Ok(())
    }

    fn env_users(&mut self, hash: &ContentHash) -> Checked {
        self.findings.captured = true;
        self.value::<StoredNumber>()?;
        if !self.has(&keys::env(hash))? {
            self.findings.note(
                None,
                format!("environment {hash} is counted, but not there"),
            );
        }
        Ok(())
    }

    fn wake(&mut self, scope: &SessionScope, position: u64) -> Checked {
        let Some(wake) = self.value::<StoredWake>()? else {
            return Ok(());
        };
        let row = Row::from(wake.row);
        let back = self.stored::<StoredWakeOf>(&keys::wake_of(row, position))?;
        if back.map(|back| SessionScope::from(back.scope)).as_ref() != Some(scope) {
            self.note(row, format!("wake {position} is not known to the process"))?;
        }
        let Some(head) = self.head("wake", row)? else {
            return Ok(());
        };
        let event = self.event(row.incarnation, wake.sequence)?;
        if head.id != wake.process_id
            || event.is_none_or(|event| event.event_type != wake.event_type)
        {
            self.note(
                row,
                format!("wake {position} says another event than {}", wake.sequence),
            )?;
        }
        Ok(())
    }

    fn wake_of(&mut self, row: Row, position: u64) -> Checked {
        let Some(back) = self.value::<StoredWakeOf>()? else {
            return Ok(());
        };
        if !self.lives("wake, as the process knows it,", row)? {
            // The key of one that is gone may have been taken by another.
            return Ok(());
        }
        let scope = SessionScope::from(back.scope);
        match back.dedupe_key {
            // It goes when the wake is received.
            None => {
                if !self.has(&keys::wake(&scope, position))? {
                    self.note(row, format!("wake {position} is not pending any more"))?;
                }
            }
            Some(key) => {
                let made = self.stored::<StoredDedupe>(&keys::wake_dedupe(&scope, &key))?;
                if made.is_none_or(|made| Row::from(made.row) != row || made.position != position) {
                    self.note(row, format!("wake {position} has a key that is not taken"))?;
                }
            }
        }
        Ok(())
    }

    fn wake_dedupe(&mut self, scope: &SessionScope, key: &str) -> Checked {
        let Some(made) = self.value::<StoredDedupe>()? else {
            return Ok(());
        };
        let row = Row::from(made.row);
        let back = self.stored::<StoredWakeOf>(&keys::wake_of(row, made.position))?;
        let agrees = back.is_some_and(|back| {
            back.dedupe_key.as_deref() == Some(key) && SessionScope::from(back.scope) == *scope
        });
        if !agrees {
            self.note(
                row,
                format!(
                    "wake key within {scope} is taken by wake {}, which does not have it",
                    made.position
                ),
            )?;
        }
        Ok(())
    }

    fn effect(&mut self, process_id: &str) -> Checked {
        let who = (!process_id.is_empty()).then_some(process_id);
        let Some(effect) =
            self.findings
                .decoded::<StoredEffect>(who, StoredEffect::NAME, self.value)?
        else {
            return Ok(());
        };
        for (what, bytes) in [("content", &effect.content), ("outcome", &effect.outcome)] {
            if json::parse(bytes).is_err() {
                self.findings
                    .note(who, format!("{what} of a journaled effect is no JSON"));
            }
        }
        Ok(())
    }

    fn wake_target(&mut self, row: Row) -> Checked {
        if let Some(target) = self.value::<StoredScope>()? {
            let target = SessionScope::from(target);
            if !self.has(&keys::watched(&target, row))? {
                self.note(
                    row,
                    format!("wake target {target} does not watch the process"),
                )?;
            }
        }
        self.lives("wake target", row).map(drop)
    }

    fn watched(&mut self, scope: &SessionScope, row: Row) -> Checked {
        self.holds_nothing("watch", row)?;
        let target = self.stored::<StoredScope>(&keys::wake_target(row))?;
        if target.map(SessionScope::from).as_ref() != Some(scope) {
            self.note(
                row,
                format!("{scope} watches a process whose wakes go elsewhere"),
            )?;
        }
        self.lives("watch", row).map(drop)
    }

    fn remains(&mut self, incarnation: Incarnation) -> Checked {
        let Some(created_at) = self.value::<StoredNumber>()? else {
            return Ok(());
        };
        let row = Row {
            created_at_ms: created_at.0,
            incarnation,
        };
        if self.has(&keys::head(row))? {
            self.note(row, "is there, but said to be erased")?;
        }
        Ok(())
    }

    fn tombstone(&mut self, incarnation: Incarnation) -> Checked {
        self.findings.tombstones += 1;
        self.findings.highest.incarnation(incarnation.get());
        let Some(tombstone) = self.value::<StoredTombstone>()? else {
            return Ok(());
        };
        let id = tombstone.id.as_str();
        let entry = self.stored::<StoredChange>(&keys::feed(tombstone.feed_position))?;
        let deletion = StoredChange::Pruned {
            id: id.to_owned(),
            incarnation: incarnation.get(),
        };
        if entry != Some(deletion) {
            self.findings.note(
                Some(id),
                format!(
                    "tombstone names a deletion at {} in the feed, which is not there",
                    tombstone.feed_position
                ),
            );
        }
        // An id that was started again stands for what came later.
        let stands = match self.stored::<StoredId>(&keys::id(id))? {
            Some(StoredId::Pruned(newest)) => newest >= incarnation.get(),
            Some(StoredId::Live(row)) => Row::from(row).incarnation > incarnation,
            None => false,
        };
        if !stands {
            self.findings.note(
                Some(id),
                format!("id does not know its tombstone of incarnation {incarnation}"),
            );
        }
        Ok(())
    }
}
