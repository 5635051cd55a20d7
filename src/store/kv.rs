//! The ordered key-value machine below the typed store: atomic, conditional, group-committed
//! batches, and reads on a pinned view.
//!
//! Two implementations keep these laws: `sled_kv` (durable: journal, overlay, write-behind
//! index) and `memory_kv` (a persistent map behind a mutex). What a proposal means is not known
//! here: it is asked for its operations when its turn comes.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::error::StoreError;

/// One change to the key space. Within one commit, later operations win.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Op {
    /// Sets a key.
    Put {
        /// Key, at most [`KEY_BYTES_MAX`].
        key: Bytes,
        /// Value, of any size up to [`VALUE_BYTES_MAX`].
        value: Bytes,
    },
    /// Like `Put`, for a key that is written once in its life and never again after its
    /// `Delete`: lets the overlay forget a pair of them without telling the index.
    PutOnce {
        /// Key.
        key: Bytes,
        /// Value.
        value: Bytes,
    },
    /// Removes a key, present or not.
    Delete {
        /// Key.
        key: Bytes,
    },
    /// Appends an event to the log of an incarnation. Sequences of an incarnation arrive dense
    /// and rising, because the conditions of the proposals say so.
    Append {
        /// Whose log.
        incarnation: u64,
        /// From 1.
        sequence: u64,
        /// The encoded event.
        value: Bytes,
    },
    /// Erases a whole log, now or some time after the commit, in bounded steps. Nothing appends to
    /// that incarnation afterwards and no reader that began later asks for it.
    EraseLog {
        /// Whose log.
        incarnation: u64,
    },
}

impl Op {
    /// Checks the limits that the physical formats rely on.
    ///
    /// # Errors
    /// `Invalid`, naming the limit.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        let (key_bytes, value_bytes) = match self {
            Self::Put { key, value } | Self::PutOnce { key, value } => (key.len(), value.len()),
            Self::Delete { key } => (key.len(), 0),
            Self::Append {
                sequence, value, ..
            } => {
                if *sequence == 0 {
                    return Err(StoreError::Invalid {
                        what: "event sequence 0, sequences start at 1".to_owned(),
                    });
                }
                (1, value.len())
            }
            Self::EraseLog { .. } => (1, 0),
        };
        if key_bytes == 0 || key_bytes > KEY_BYTES_MAX {
            return Err(StoreError::Invalid {
                what: format!("key of {key_bytes} bytes, limits are 1 and {KEY_BYTES_MAX}"),
            });
        }
        if value_bytes > VALUE_BYTES_MAX {
            return Err(StoreError::Invalid {
                what: format!("value of {value_bytes} bytes, limit is {VALUE_BYTES_MAX}"),
            });
        }
        Ok(())
    }
}

/// Longest key.
pub(crate) const KEY_BYTES_MAX: usize = 2048;
/// Longest value: a payload at its limit, with its envelope, and room to spare.
pub(crate) const VALUE_BYTES_MAX: usize = 8 << 20;

/// A half-open range of keys, `start..end`, in unsigned byte order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRange {
    /// First key of the range.
    pub(crate) start: Bytes,
    /// First key after the range; empty for "to the end".
    pub(crate) end: Bytes,
}

/// Reads of one consistent state, logs excepted: what a proposal is decided on.
pub(crate) trait Reader {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError>;

    /// The first `limit` entries of a range, ascending.
    fn scan(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError>;

    /// The last `limit` entries of a range, descending.
    fn scan_back(&self, range: &KeyRange, limit: usize) -> Result<Vec<(Bytes, Bytes)>, StoreError>;
}

/// A reader pinned to one commit: it sees everything up to that commit and nothing after it.
/// Bounded in time: a view held longer than the store's limit answers `ViewExpired`.
pub(crate) trait KvView: Reader + Send + Sync + fmt::Debug {
    /// The number of the commit this view sees last.
    fn commit(&self) -> u64;

    /// Events of a log from a sequence on, ascending and dense: at most `limit` of them, and no
    /// further one once `bytes_max` is reached (but always at least one, if there is one).
    fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> Result<Vec<(u64, Bytes)>, StoreError>;
}

/// A store-wide number that only rises, handed out from durably reserved blocks; gaps are normal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Counter {
    /// Incarnations of processes.
    Incarnation,
    /// Fencing tokens.
    FencingToken,
    /// Owner incarnations.
    Owner,
}

impl Counter {
    /// Every counter, in the order of [`Counter::slot`].
    pub(crate) const ALL: [Self; 3] = [Self::Incarnation, Self::FencingToken, Self::Owner];

    /// A dense number, for tables with an entry per counter.
    pub(crate) fn slot(self) -> usize {
        match self {
            Self::Incarnation => 0,
            Self::FencingToken => 1,
            Self::Owner => 2,
        }
    }

    /// The word used in errors.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Incarnation => "incarnation",
            Self::FencingToken => "fencing_token",
            Self::Owner => "owner",
        }
    }
}

/// What the committer gives a proposal, and takes from it.
pub(crate) struct CommitContext<'a> {
    /// Wall-clock time at which the conditions are checked.
    pub(crate) now_epoch_ms: u64,
    /// The next free feed position. A proposal that takes some advances it; what a refused
    /// proposal took is taken back.
    pub(crate) next_position: u64,
    /// Operations of the accepted proposal, in order.
    pub(crate) ops: &'a mut Vec<Op>,
}

/// The answer of a proposal to its conditions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Conditions hold: the operations in the context are to be committed together.
    Accept,
    /// They do not: nothing of it is written.
    Refuse,
}

/// How a proposal ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// Durable (by the store's durability setting) and visible to every later view.
    Committed {
        /// Its commit number; proposals of one group may share one.
        commit: u64,
    },
    /// Refused. Told only once everything its refusal rested on is durable.
    Refused,
    /// It provably never reached the journal.
    NotWritten(StoreError),
    /// It may or may not be found after a reopen.
    Unknown(StoreError),
}

/// A commit in the making. `resolve` runs on the committer, in queue order, against committed
/// state plus what the same group has accepted so far; it must be quick and must not block.
pub(crate) trait Proposal: Send {
    /// Checks the conditions and, if they hold, pushes the operations.
    ///
    /// # Errors
    /// A store failure while reading. The proposal is then `NotWritten`.
    fn resolve(
        &mut self,
        state: &dyn Reader,
        cx: &mut CommitContext<'_>,
    ) -> Result<Verdict, StoreError>;

    /// Called exactly once, on the committer, after the group is durable and visible. Must not
    /// block or panic.
    fn done(self: Box<Self>, outcome: Outcome);
}

/// How much a commit survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Durability {
    /// Acknowledged after a data sync: survives power loss.
    #[default]
    Durable,
    /// Acknowledged after the write, synced at this interval: survives a crash of the process;
    /// power loss may take what was acknowledged within the last interval.
    Relaxed(Duration),
}

/// Counters of work done, for benchmarks, the operation-count guard and `tracing`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KvStats {
    /// Proposals accepted.
    pub(crate) commits: u64,
    /// Proposals refused.
    pub(crate) refusals: u64,
    /// Groups made durable.
    pub(crate) groups: u64,
    /// Data syncs on the acknowledged path.
    pub(crate) syncs: u64,
    /// Journal entries written.
    pub(crate) journal_entries: u64,
    /// Bytes of journal values written.
    pub(crate) journal_bytes: u64,
    /// Keys written into the index behind the journal.
    pub(crate) index_keys_written: u64,
    /// Entries that wait in the overlay.
    pub(crate) overlay_entries: u64,
    /// Bytes that wait in the overlay.
    pub(crate) overlay_bytes: u64,
    /// Low-water mark: journal entries below it are in the index.
    pub(crate) journal_low_water: u64,
    /// Next journal entry.
    pub(crate) journal_next: u64,
}

/// The machine.
pub(crate) trait Kv: Send + Sync + fmt::Debug {
    /// Queues a proposal. Returns at once; `done` is called later, in any case. Callers bound
    /// what they have in flight; the queue itself takes what it is given.
    fn submit(&self, proposal: Box<dyn Proposal>);

    /// Pins the newest committed state. Cheap.
    ///
    /// # Errors
    /// `Failed` or `Closed`.
    fn view(&self) -> Result<Box<dyn KvView>, StoreError>;

    /// The next number of a counter. Never blocks.
    ///
    /// # Errors
    /// `NumbersExhausted` when a block ran out before the next was durable.
    fn allocate(&self, counter: Counter) -> Result<u64, StoreError>;

    /// The epoch that this open raised.
    fn epoch(&self) -> u64;

    /// Whether only one runtime at a time can have the store open, so that an earlier epoch
    /// proves its owner can no longer write.
    fn exclusive(&self) -> bool;

    /// A random id, made when the store was made.
    fn store_id(&self) -> uuid::Uuid;

    /// Work done since open.
    fn stats(&self) -> KvStats;

    /// Waits until everything committed so far is in the index and the journal is trimmed.
    ///
    /// # Errors
    /// `Failed` or `Closed`.
    fn drain(&self) -> Result<(), StoreError>;

    /// Finishes what was queued, drains, and lets go of the store: when this returns, another
    /// open succeeds. Idempotent. Blocks.
    ///
    /// # Errors
    /// `Failed` if the last sync failed.
    fn close(&self) -> Result<(), StoreError>;
}
