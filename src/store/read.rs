//! Reads of one consistent state, in the model's types.

mod edges;
mod observe;
mod outcome;
mod remains;

use bytes::Bytes;

pub(crate) use edges::{OfSession, SessionEdge};
pub(crate) use outcome::StoredOutcome;
use outcome::{read_terminal, said};

use super::codec::stored::{
    EventRef, HeadFacts, StateFacts, StateFront, StoredAge, StoredBody, StoredChange, StoredEffect,
    StoredEnv, StoredFeedEpoch, StoredGrant, StoredHead, StoredId, StoredNumber, StoredOwner,
    StoredReplay, StoredScope, StoredState, StoredTombstone, StoredWake,
};
use super::codec::{self, Stored};
use super::error::StoreError;
use super::keys::{self, Row};
use super::kv::{KeyRange, KvView};
use crate::model::age::AgeMark;
use crate::model::decide::Replayed;
use crate::model::lease::{self, Lease, OwnerRecord};
use crate::model::record::{ProcessState, Registration};
use crate::model::recovery::LeaseStanding;
use crate::model::retention::Tombstone;
use crate::model::{
    ContentHash, EffectKey, ExecutionScope, FencingToken, Incarnation, OwnerNumber, ProcessEvent,
    ProcessHandleDescriptor, ProcessOriginator, SessionScope, StoreEpoch,
};

/// What an id stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum IdEntry {
    /// A process.
    Live(Row),
    /// What remains of one.
    Pruned(Tombstone),
}

/// A process with everything that is kept of it but its log.
#[derive(Debug, Clone)]
pub(crate) struct LoadedProcess {
    pub(crate) row: Row,
    pub(crate) registration: Registration,
    pub(crate) state: ProcessState,
    pub(crate) edges: Edges,
}

/// What stands beside a process's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Edges {
    pub(crate) lease: Option<Lease>,
    /// The highest token it ever had.
    pub(crate) token: FencingToken,
    pub(crate) feed_position: u64,
}

impl From<StateFront> for Edges {
    fn from(front: StateFront) -> Self {
        Self {
            lease: (front.owner != 0).then_some(Lease {
                owner: OwnerNumber(front.owner),
                token: FencingToken(front.token),
            }),
            token: FencingToken(front.token),
            feed_position: front.feed_position,
        }
    }
}

/// A process as lists see it: no input, no event types, no output.
#[derive(Debug, Clone)]
pub(crate) struct ProcessSummary {
    pub(crate) head: HeadFacts,
    pub(crate) facts: StateFacts,
    pub(crate) edges: Edges,
}

/// An entry of the change feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FeedEntry {
    /// A process changed last at this position.
    Changed {
        row: Row,
        terminal_at_ms: Option<u64>,
    },
    /// A process was pruned.
    Pruned {
        id: String,
        incarnation: Incarnation,
    },
}

/// A pending wake, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PendingWake {
    pub(crate) scope: SessionScope,
    pub(crate) position: u64,
    pub(crate) process_id: String,
    pub(crate) incarnation: Incarnation,
    pub(crate) sequence: u64,
    pub(crate) event_type: String,
    pub(crate) text: String,
    pub(crate) created_at_ms: u64,
}

/// An effect's content and outcome, both as canonical JSON.
pub(crate) type RecordedEffect = (Vec<u8>, Vec<u8>);

/// A way to walk processes in the order of their creation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Index {
    /// Granted to exactly this scope.
    GrantedTo(SessionScope),
    /// Created by exactly this scope.
    OriginatedByScope(SessionScope),
    /// Created by any scope of this session.
    OriginatedBySession(String),
    /// Created by the host under this name.
    OriginatedByHost(String),
    /// Started by this process.
    ChildrenOf(Incarnation),
    /// Not ended.
    Running,
    /// All.
    Created,
}

/// When something was created: half-open, in milliseconds since the epoch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Created {
    pub(crate) start_ms: Option<u64>,
    pub(crate) end_ms: Option<u64>,
}

impl Index {
    /// Whether a key is one of this index.
    pub(crate) fn contains(&self, key: &[u8]) -> bool {
        let range = self.range();
        key >= &range.start[..] && (range.end.is_empty() || key < &range.end[..])
    }

    /// What all its keys begin with, and those of no other index do.
    pub(crate) fn prefix(&self) -> Bytes {
        self.range().start
    }

    /// Its keys; of an index whose keys end in nothing but the row, those in a range of creation.
    fn range_of(&self, created: &Created) -> KeyRange {
        let mut range = self.range();
        if matches!(self, Self::OriginatedBySession(_)) {
            // Goes by scope first.
            return range;
        }
        let prefix = range.start.clone();
        let at = |ms: u64| Bytes::from([&prefix[..], &ms.to_be_bytes()].concat());
        if let Some(start_ms) = created.start_ms {
            range.start = at(start_ms);
        }
        if let Some(end_ms) = created.end_ms {
            range.end = at(end_ms);
        }
        range
    }

    fn range(&self) -> KeyRange {
        match self {
            Self::GrantedTo(scope) => keys::grants_of_scope(scope),
            Self::OriginatedByScope(scope) => keys::originated_by_scope(scope),
            Self::OriginatedBySession(session_id) => keys::originated_by_session(session_id),
            Self::OriginatedByHost(name) => keys::originated_by_host(name),
            Self::ChildrenOf(parent) => keys::children(*parent),
            Self::Running => keys::all_running(),
            Self::Created => keys::heads(),
        }
    }
}

/// One consistent state of the store.
#[derive(Debug)]
pub(crate) struct View {
    kv: Box<dyn KvView>,
    /// The store's own random id.
    store_id: uuid::Uuid,
    exclusive_epoch: Option<StoreEpoch>,
    /// When it was taken, by the clock that leases are judged by.
    lease_now_ms: u64,
}

impl View {
    pub(crate) fn new(
        kv: Box<dyn KvView>,
        store_id: uuid::Uuid,
        exclusive_epoch: Option<StoreEpoch>,
        lease_now_ms: u64,
    ) -> Self {
        Self {
            kv,
            store_id,
            exclusive_epoch,
            lease_now_ms,
        }
    }

    pub(crate) const fn store_id(&self) -> uuid::Uuid {
        self.store_id
    }

    /// The commit it sees last.
    pub(crate) fn commit(&self) -> u64 {
        self.kv.commit()
    }

    pub(crate) fn raw(&self) -> &dyn KvView {
        &*self.kv
    }

    fn get<T: Stored>(&self, key: &[u8]) -> Result<Option<T>, StoreError> {
        match self.kv.get(key)? {
            Some(bytes) => codec::decode(&bytes).map(Some),
            None => Ok(None),
        }
    }

    /// What an id stands for.
    pub(crate) fn id(&self, id: &str) -> Result<Option<IdEntry>, StoreError> {
        match self.get::<StoredId>(&keys::id(id))? {
            None => Ok(None),
            Some(StoredId::Live(row)) => Ok(Some(IdEntry::Live(row.into()))),
            Some(StoredId::Pruned(incarnation)) => Ok(self
                .tombstone(Incarnation(incarnation))?
                .map(|(_, tombstone)| IdEntry::Pruned(tombstone))),
        }
    }

    /// What remains of a pruned incarnation, and its id.
    pub(crate) fn tombstone(
        &self,
        incarnation: Incarnation,
    ) -> Result<Option<(String, Tombstone)>, StoreError> {
        Ok(self
            .get::<StoredTombstone>(&keys::tombstone(incarnation))?
            .map(|stored| (stored.id.clone(), stored.facts(incarnation))))
    }

    /// A process by id, whole.
    pub(crate) fn process(&self, id: &str) -> Result<Option<LoadedProcess>, StoreError> {
        match self.id(id)? {
            Some(IdEntry::Live(row)) => self.load(row),
            Some(IdEntry::Pruned(_)) | None => Ok(None),
        }
    }

    /// A process by row, whole.
    pub(crate) fn load(&self, row: Row) -> Result<Option<LoadedProcess>, StoreError> {
        Ok(self.load_sized(row)?.map(|(loaded, _)| loaded))
    }

    /// The same, and the bytes of what may be large in it: what it was started with, and its outcome.
    pub(crate) fn load_sized(
        &self,
        row: Row,
    ) -> Result<Option<(LoadedProcess, usize)>, StoreError> {
        let Some(head) = self.kv.get(&keys::head(row))? else {
            return Ok(None);
        };
        let mut bytes = head.len();
        let (facts, inline) = codec::decode::<StoredHead>(&head)?.facts(row);
        let body = match inline {
            Some(body) => body,
            None => {
                let body = self
                    .kv
                    .get(&keys::body(row))?
                    .ok_or_else(|| missing("body", &facts.id))?;
                bytes += body.len();
                codec::decode::<StoredBody>(&body)?
            }
        };
        let registration = facts.with_body(&body)?;
        let (state, front) = self
            .state(row)?
            .ok_or_else(|| missing("state", &registration.id))?;
        let output = match &state.terminal {
            Some(_) => {
                let of = (&registration.id[..], registration.incarnation);
                let event = self.terminal_event(of, front.last_sequence)?;
                bytes += event.len();
                let event = read_terminal(of, front.last_sequence, &event)?;
                Some(said(&registration.id, &event, &registration.event_types)?)
            }
            None => None,
        };
        let loaded = LoadedProcess {
            row,
            registration,
            state: state.with_output(output),
            edges: front.into(),
        };
        Ok(Some((loaded, bytes)))
    }

    fn state(&self, row: Row) -> Result<Option<(StateFacts, StateFront)>, StoreError> {
        let Some(bytes) = self.kv.get(&keys::state(row))? else {
            return Ok(None);
        };
        let (front, body) = StateFront::split(codec::open::<StoredState>(&bytes)?)?;
        let facts = codec::decode_body::<StoredState>(body)?.facts(front.last_sequence)?;
        Ok(Some((facts, front)))
    }

    /// A process as lists see it.
    pub(crate) fn summary(&self, row: Row) -> Result<Option<ProcessSummary>, StoreError> {
        self.summary_if(row, |_| true)
    }

    /// The same where the front of its state is such as is wanted; of another nothing else is read.
    pub(crate) fn summary_if(
        &self,
        row: Row,
        wanted: impl FnOnce(&StateFront) -> bool,
    ) -> Result<Option<ProcessSummary>, StoreError> {
        let state = self.kv.get(&keys::state(row))?;
        let state = match &state {
            Some(bytes) => Some(StateFront::split(codec::open::<StoredState>(bytes)?)?),
            None => None,
        };
        if state.as_ref().is_some_and(|(front, _)| !wanted(front)) {
            return Ok(None);
        }
        let Some(head) = self.get::<StoredHead>(&keys::head(row))? else {
            return Ok(None);
        };
        let (head, _) = head.facts(row);
        let (front, body) = state.ok_or_else(|| missing("state", &head.id))?;
        Ok(Some(ProcessSummary {
            head,
            facts: codec::decode_body::<StoredState>(body)?.facts(front.last_sequence)?,
            edges: front.into(),
        }))
    }

    /// The revision and edges of a process, and nothing else: cheap.
    pub(crate) fn front(&self, row: Row) -> Result<Option<StateFront>, StoreError> {
        let Some(bytes) = self.kv.get(&keys::state(row))? else {
            return Ok(None);
        };
        StateFront::split(codec::open::<StoredState>(&bytes)?).map(|(front, _)| Some(front))
    }

    /// Events of an incarnation from a sequence on, ascending: at most `limit`, about `bytes_max`.
    pub(crate) fn events(
        &self,
        process_id: &str,
        incarnation: Incarnation,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<ProcessEvent>, StoreError> {
        let stored = self
            .kv
            .events(incarnation.get(), from_sequence, limit, bytes_max)?;
        let mut events = Vec::with_capacity(stored.len());
        for (sequence, bytes) in stored {
            events.push(EventRef::read(&bytes)?.to_event(process_id, incarnation, sequence)?);
        }
        Ok(events)
    }

    /// What a replay key of an incarnation stands for.
    pub(crate) fn replayed(
        &self,
        incarnation: Incarnation,
        key: &str,
    ) -> Result<Option<Replayed>, StoreError> {
        Ok(self
            .get::<StoredReplay>(&keys::replay(incarnation, key))?
            .map(|stored| Replayed {
                sequence: stored.sequence,
                content: ContentHash(stored.content),
            }))
    }

    /// An owner incarnation.
    pub(crate) fn owner(&self, number: OwnerNumber) -> Result<Option<OwnerRecord>, StoreError> {
        Ok(self
            .get::<StoredOwner>(&keys::owner(number))?
            .map(OwnerRecord::from))
    }

    /// All owner incarnations that are known.
    pub(crate) fn owners(&self) -> Result<Vec<(OwnerNumber, OwnerRecord)>, StoreError> {
        self.kv
            .scan(&keys::owners(), usize::MAX)?
            .into_iter()
            .filter_map(|(key, value)| Some((keys::number_of(&key)?, value)))
            .map(|(number, value)| {
                let record = codec::decode::<StoredOwner>(&value)?;
                Ok((OwnerNumber(number), record.into()))
            })
            .collect()
    }

    /// The standing of a lease at the time of this view.
    pub(crate) fn lease_standing(&self, lease: Option<Lease>) -> Result<LeaseStanding, StoreError> {
        match lease {
            None => Ok(LeaseStanding::Free),
            Some(lease) => {
                let record = self.owner(lease.owner)?;
                Ok(LeaseStanding::Held(lease::standing(
                    record.as_ref(),
                    self.exclusive_epoch,
                    self.lease_now_ms,
                )))
            }
        }
    }

    /// An environment's canonical bytes.
    pub(crate) fn env(&self, hash: &ContentHash) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self
            .get::<StoredEnv>(&keys::env(hash))?
            .map(|stored| stored.canonical))
    }

    /// The recorded content and outcome of an effect.
    pub(crate) fn effect(
        &self,
        scope: &ExecutionScope,
        key: &EffectKey,
    ) -> Result<Option<RecordedEffect>, StoreError> {
        Ok(self
            .get::<StoredEffect>(&keys::effect(scope, key))?
            .map(|stored| (stored.content, stored.outcome)))
    }

    /// Rows of an index after one of them, in the order of the index, with the key that continues.
    pub(crate) fn rows(
        &self,
        index: &Index,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, StoreError> {
        self.rows_created(index, &Created::default(), after, limit)
    }

    /// The same of what was created within a range, as far as the index goes by creation.
    pub(crate) fn rows_created(
        &self,
        index: &Index,
        created: &Created,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Row)>, StoreError> {
        let mut range = index.range_of(created);
        if let Some(after) = after {
            // The smallest key after another is that key with a zero byte behind it.
            let next = Bytes::from([after, &[0]].concat());
            range.start = range.start.max(next);
        }
        self.kv
            .scan(&range, limit)?
            .into_iter()
            .map(|(key, _)| {
                let row = keys::row_of(&key).ok_or_else(|| StoreError::Corrupted {
                    what: "index key without a row".to_owned(),
                })?;
                Ok((key, row))
            })
            .collect()
    }

    /// The change feed after a position.
    pub(crate) fn feed(
        &self,
        after: u64,
        limit: usize,
    ) -> Result<Vec<(u64, FeedEntry)>, StoreError> {
        self.kv
            .scan(&keys::feed_after(after), limit)?
            .into_iter()
            .map(|(key, value)| {
                let position = keys::number_of(&key).unwrap_or(0);
                let entry = match codec::decode::<StoredChange>(&value)? {
                    StoredChange::Changed {
                        row,
                        terminal_at_ms,
                    } => FeedEntry::Changed {
                        row: row.into(),
                        terminal_at_ms,
                    },
                    StoredChange::Pruned { id, incarnation } => FeedEntry::Pruned {
                        id,
                        incarnation: Incarnation(incarnation),
                    },
                };
                Ok((position, entry))
            })
            .collect()
    }

    /// How old the store was when that was last written.
    pub(crate) fn age(&self) -> Result<Option<AgeMark>, StoreError> {
        Ok(self.get::<StoredAge>(&keys::age())?.map(AgeMark::from))
    }

    /// An epoch of the feed.
    pub(crate) fn feed_epoch(&self, epoch: u64) -> Result<Option<StoredFeedEpoch>, StoreError> {
        self.get::<StoredFeedEpoch>(&keys::feed_epoch(epoch))
    }

    /// The first epoch of the feed after another.
    pub(crate) fn feed_epoch_after(
        &self,
        epoch: u64,
    ) -> Result<Option<StoredFeedEpoch>, StoreError> {
        match self.kv.scan(&keys::feed_epochs_after(epoch), 1)?.first() {
            Some((_, value)) => codec::decode(value).map(Some),
            None => Ok(None),
        }
    }

    /// The newest epoch of the feed, and its number.
    pub(crate) fn newest_feed_epoch(&self) -> Result<Option<(u64, StoredFeedEpoch)>, StoreError> {
        let newest = self.kv.scan_back(&keys::feed_epochs_after(0), 1)?;
        let Some((key, value)) = newest.first() else {
            return Ok(None);
        };
        let Some(number) = keys::number_of(key) else {
            return Ok(None);
        };
        Ok(Some((number, codec::decode(value)?)))
    }

    /// The oldest position from which every deletion is still known, and the newest position.
    pub(crate) fn feed_bounds(&self) -> Result<(u64, u64), StoreError> {
        let floor = self
            .get::<StoredNumber>(&keys::feed_floor())?
            .map_or(0, |number| number.0);
        let newest = self
            .kv
            .scan_back(&keys::feed_after(0), 1)?
            .first()
            .and_then(|(key, _)| keys::number_of(key))
            .unwrap_or(0);
        Ok((floor, newest.max(floor)))
    }

    /// Whether any process was pruned of which that is still known.
    pub(crate) fn has_tombstones(&self) -> Result<bool, StoreError> {
        match self.kv.scan(&keys::tombstones(), 1) {
            Err(StoreError::Corrupted { .. }) => Ok(true),
            found => Ok(!found?.is_empty()),
        }
    }

    /// When a process was pruned, as its tombstone says.
    pub(crate) fn pruned_at_ms(&self, incarnation: Incarnation) -> Result<Option<u64>, StoreError> {
        let stored = self.get::<StoredTombstone>(&keys::tombstone(incarnation))?;
        Ok(stored.map(|stored| stored.pruned_at_ms))
    }
}

/// The index that an originator filter can use.
pub(crate) fn index_of_originator(originator: &ProcessOriginator) -> Option<Index> {
    match originator {
        ProcessOriginator::Host { scope: None } => None,
        ProcessOriginator::Host { scope: Some(name) } => {
            Some(Index::OriginatedByHost(name.clone()))
        }
        ProcessOriginator::Session { scope } => Some(Index::OriginatedByScope(scope.clone())),
    }
}

fn missing(what: &str, id: &str) -> StoreError {
    StoreError::Corrupted {
        what: format!("process {id} has no {what}"),
    }
}
