//! The one place where logical keys are built.
//!
//! A key starts with a byte for its kind, which is permanent: a retired kind keeps its byte.
//! Numbers are big-endian. Texts carry their length in front, so that no id is a prefix of
//! another's range. See `docs/store-format.md`.

mod parse;

use bytes::Bytes;

use super::kv::KeyRange;
use crate::model::{
    ContentHash, EffectKey, ExecutionScope, Incarnation, OwnerNumber, ProcessOriginator,
    SessionScope,
};

pub(crate) use parse::{Parsed, parse};

/// The address of a process's rows: creation order first, so that every index lists in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Row {
    pub(crate) created_at_ms: u64,
    pub(crate) incarnation: Incarnation,
}

impl Row {
    /// Bytes of an encoded row.
    pub(crate) const LEN: usize = 16;

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let (created, incarnation) = bytes.split_at_mut(8);
        created.copy_from_slice(&self.created_at_ms.to_be_bytes());
        incarnation.copy_from_slice(&self.incarnation.get().to_be_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (created, incarnation) = bytes.split_at_checked(8)?;
        Some(Self {
            created_at_ms: u64::from_be_bytes(created.try_into().ok()?),
            incarnation: Incarnation(u64::from_be_bytes(incarnation.try_into().ok()?)),
        })
    }
}

/// Key kinds. Never renumbered, never reused.
pub(crate) mod kind {
    /// Id to its live process, or to the tombstone of its last incarnation.
    pub(crate) const ID: u8 = 0x01;
    /// What a process is: small, immutable facts.
    pub(crate) const HEAD: u8 = 0x02;
    /// Input and event types, where they are too large for the head.
    pub(crate) const BODY: u8 = 0x03;
    /// What has become of it, and its lease.
    pub(crate) const STATE: u8 = 0x04;
    /// Scope to process.
    pub(crate) const GRANT: u8 = 0x05;
    /// Process to scope.
    pub(crate) const GRANTED: u8 = 0x06;
    /// Originator to process.
    pub(crate) const ORIGINATOR: u8 = 0x07;
    /// Parent to child.
    pub(crate) const PARENT: u8 = 0x08;
    /// Processes that have not ended.
    pub(crate) const RUNNING: u8 = 0x09;
    /// Change feed.
    pub(crate) const FEED: u8 = 0x0a;
    /// Replay keys.
    pub(crate) const REPLAY: u8 = 0x0b;
    /// Owner incarnations.
    pub(crate) const OWNER: u8 = 0x0c;
    /// Environments.
    pub(crate) const ENV: u8 = 0x0d;
    /// Pending wakes of a scope.
    pub(crate) const WAKE: u8 = 0x0e;
    /// Keys of wakes that were made, by scope.
    pub(crate) const WAKE_DEDUPE: u8 = 0x0f;
    /// Process to its wakes.
    pub(crate) const WAKE_OF: u8 = 0x10;
    /// Journaled effects.
    pub(crate) const EFFECT: u8 = 0x11;
    /// Current wake target of a process.
    pub(crate) const WAKE_TARGET: u8 = 0x12;
    /// Wake target to process.
    pub(crate) const WATCHED: u8 = 0x13;
    /// What remains of pruned processes.
    pub(crate) const TOMBSTONE: u8 = 0x14;
    /// Oldest feed position that still knows every deletion.
    pub(crate) const FEED_FLOOR: u8 = 0x15;
    /// How many processes captured an environment.
    pub(crate) const ENV_USERS: u8 = 0x16;
    /// Pruned processes of which something is still to be erased.
    pub(crate) const REMAINS: u8 = 0x17;
    /// Where in the feed each open of the store began.
    pub(crate) const FEED_EPOCH: u8 = 0x18;
    /// How old the store is.
    pub(crate) const AGE: u8 = 0x19;
}

struct Key(Vec<u8>);

impl Key {
    fn new(kind: u8) -> Self {
        Self::with_room(kind, 47)
    }

    /// With room for so many bytes behind the kind: a key of exactly that length is one allocation, any
    /// other two.
    fn with_room(kind: u8, bytes: usize) -> Self {
        let mut key = Vec::with_capacity(1 + bytes);
        key.push(kind);
        Self(key)
    }

    /// For a row and nothing else.
    fn of_row(kind: u8, row: Row) -> Self {
        let row = row.to_bytes();
        Self::with_room(kind, row.len()).raw(&row)
    }

    /// For a number and nothing else.
    fn of_number(kind: u8, number: u64) -> Self {
        Self::with_room(kind, size_of::<u64>()).number(number)
    }

    fn text(mut self, text: &str) -> Self {
        // Every text in a key is bounded by the model's limits. A broken caller's longer one makes
        // a key of more than KEY_BYTES_MAX, which no store takes and no lookup finds: the clamped
        // length is never read back.
        let length = u16::try_from(text.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_be_bytes());
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_be_bytes());
        self
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    fn scope(self, scope: &SessionScope) -> Self {
        let key = self.text(&scope.session_id);
        match &scope.agent_frame_id {
            None => key.byte(0),
            Some(frame) => key.byte(1).text(frame),
        }
    }

    fn row(self, row: Row) -> Self {
        self.raw(&row.to_bytes())
    }

    fn done(self) -> Bytes {
        Bytes::from(self.0)
    }

    /// All keys that start with this one.
    fn range(self) -> KeyRange {
        let mut end = self.0.clone();
        while let Some(last) = end.last_mut() {
            if *last == u8::MAX {
                end.pop();
            } else {
                *last += 1;
                break;
            }
        }
        KeyRange {
            start: Bytes::from(self.0),
            end: Bytes::from(end),
        }
    }
}

/// Every key that starts with this byte, whatever it is.
pub(crate) fn of_kind(kind: u8) -> KeyRange {
    Key::new(kind).range()
}

pub(crate) fn id(id: &str) -> Bytes {
    Key::new(kind::ID).text(id).done()
}

pub(crate) fn head(row: Row) -> Bytes {
    Key::of_row(kind::HEAD, row).done()
}

pub(crate) fn heads() -> KeyRange {
    Key::new(kind::HEAD).range()
}

pub(crate) fn body(row: Row) -> Bytes {
    Key::of_row(kind::BODY, row).done()
}

pub(crate) fn state(row: Row) -> Bytes {
    Key::of_row(kind::STATE, row).done()
}

pub(crate) fn grant(scope: &SessionScope, row: Row) -> Bytes {
    Key::new(kind::GRANT).scope(scope).row(row).done()
}

/// Grants of exactly this scope.
pub(crate) fn grants_of_scope(scope: &SessionScope) -> KeyRange {
    Key::new(kind::GRANT).scope(scope).range()
}

/// Grants of a session's root scope and of all its frames.
pub(crate) fn grants_of_session(session_id: &str) -> KeyRange {
    Key::new(kind::GRANT).text(session_id).range()
}

pub(crate) fn granted(row: Row, scope: &SessionScope) -> Bytes {
    Key::new(kind::GRANTED).row(row).scope(scope).done()
}

pub(crate) fn scopes_granted(row: Row) -> KeyRange {
    Key::new(kind::GRANTED).row(row).range()
}

/// The originator index; a host without a scope is not in it.
pub(crate) fn originator(originator: &ProcessOriginator, row: Row) -> Option<Bytes> {
    match originator {
        ProcessOriginator::Host { scope: None } => None,
        ProcessOriginator::Host { scope: Some(name) } => Some(
            Key::new(kind::ORIGINATOR)
                .byte(b'h')
                .text(name)
                .row(row)
                .done(),
        ),
        ProcessOriginator::Session { scope } => Some(
            Key::new(kind::ORIGINATOR)
                .byte(b's')
                .scope(scope)
                .row(row)
                .done(),
        ),
    }
}

pub(crate) fn originated_by_scope(scope: &SessionScope) -> KeyRange {
    Key::new(kind::ORIGINATOR).byte(b's').scope(scope).range()
}

pub(crate) fn originated_by_session(session_id: &str) -> KeyRange {
    Key::new(kind::ORIGINATOR)
        .byte(b's')
        .text(session_id)
        .range()
}

pub(crate) fn originated_by_host(name: &str) -> KeyRange {
    Key::new(kind::ORIGINATOR).byte(b'h').text(name).range()
}

pub(crate) fn child(parent: Incarnation, row: Row) -> Bytes {
    Key::new(kind::PARENT).number(parent.get()).row(row).done()
}

pub(crate) fn children(parent: Incarnation) -> KeyRange {
    Key::new(kind::PARENT).number(parent.get()).range()
}

pub(crate) fn running(row: Row) -> Bytes {
    Key::of_row(kind::RUNNING, row).done()
}

pub(crate) fn all_running() -> KeyRange {
    Key::new(kind::RUNNING).range()
}

pub(crate) fn feed(position: u64) -> Bytes {
    Key::of_number(kind::FEED, position).done()
}

/// The feed after a position.
pub(crate) fn feed_after(position: u64) -> KeyRange {
    KeyRange {
        start: feed(position.saturating_add(1)),
        end: Key::new(kind::FEED).range().end,
    }
}

pub(crate) fn replay(incarnation: Incarnation, key: &str) -> Bytes {
    Key::new(kind::REPLAY)
        .number(incarnation.get())
        .text(key)
        .done()
}

pub(crate) fn replays(incarnation: Incarnation) -> KeyRange {
    Key::new(kind::REPLAY).number(incarnation.get()).range()
}

pub(crate) fn owner(number: OwnerNumber) -> Bytes {
    Key::of_number(kind::OWNER, number.get()).done()
}

pub(crate) fn owners() -> KeyRange {
    Key::new(kind::OWNER).range()
}

pub(crate) fn env(hash: &ContentHash) -> Bytes {
    Key::new(kind::ENV).raw(&hash.0).done()
}

pub(crate) fn env_users(hash: &ContentHash) -> Bytes {
    Key::new(kind::ENV_USERS).raw(&hash.0).done()
}

pub(crate) fn wake(scope: &SessionScope, position: u64) -> Bytes {
    Key::new(kind::WAKE).scope(scope).number(position).done()
}

pub(crate) fn wakes_of_scope(scope: &SessionScope) -> KeyRange {
    Key::new(kind::WAKE).scope(scope).range()
}

/// The same after a position.
pub(crate) fn wakes_of_scope_after(scope: &SessionScope, position: u64) -> KeyRange {
    KeyRange {
        start: wake(scope, position.saturating_add(1)),
        end: wakes_of_scope(scope).end,
    }
}

pub(crate) fn wakes_of_session(session_id: &str) -> KeyRange {
    Key::new(kind::WAKE).text(session_id).range()
}

pub(crate) fn wake_dedupe(scope: &SessionScope, key: &str) -> Bytes {
    Key::new(kind::WAKE_DEDUPE).scope(scope).text(key).done()
}

pub(crate) fn wake_dedupes_of_session(session_id: &str) -> KeyRange {
    Key::new(kind::WAKE_DEDUPE).text(session_id).range()
}

pub(crate) fn wake_of(row: Row, position: u64) -> Bytes {
    Key::new(kind::WAKE_OF).row(row).number(position).done()
}

pub(crate) fn wakes_of_process(row: Row) -> KeyRange {
    Key::new(kind::WAKE_OF).row(row).range()
}

/// The same after a position.
pub(crate) fn wakes_of_process_after(row: Row, position: u64) -> KeyRange {
    KeyRange {
        start: wake_of(row, position.saturating_add(1)),
        end: wakes_of_process(row).end,
    }
}

pub(crate) fn wake_target(row: Row) -> Bytes {
    Key::of_row(kind::WAKE_TARGET, row).done()
}

pub(crate) fn watched(scope: &SessionScope, row: Row) -> Bytes {
    Key::new(kind::WATCHED).scope(scope).row(row).done()
}

pub(crate) fn watched_by_session(session_id: &str) -> KeyRange {
    Key::new(kind::WATCHED).text(session_id).range()
}

pub(crate) fn tombstone(incarnation: Incarnation) -> Bytes {
    Key::of_number(kind::TOMBSTONE, incarnation.get()).done()
}

pub(crate) fn tombstones() -> KeyRange {
    Key::new(kind::TOMBSTONE).range()
}

pub(crate) fn remains(incarnation: Incarnation) -> Bytes {
    Key::of_number(kind::REMAINS, incarnation.get()).done()
}

pub(crate) fn all_remains() -> KeyRange {
    Key::new(kind::REMAINS).range()
}

pub(crate) fn feed_epoch(epoch: u64) -> Bytes {
    Key::of_number(kind::FEED_EPOCH, epoch).done()
}

/// The epochs after one.
pub(crate) fn feed_epochs_after(epoch: u64) -> KeyRange {
    KeyRange {
        start: feed_epoch(epoch.saturating_add(1)),
        end: Key::new(kind::FEED_EPOCH).range().end,
    }
}

pub(crate) fn age() -> Bytes {
    Key::new(kind::AGE).done()
}

pub(crate) fn feed_floor() -> Bytes {
    Key::new(kind::FEED_FLOOR).done()
}

/// A journaled effect: by process first, so that it goes with its process.
pub(crate) fn effect(scope: &ExecutionScope, effect: &EffectKey) -> Bytes {
    let (scope_kind, first, second) = scope.parts();
    let (operation, name, id) = match effect {
        EffectKey::Start { .. } => ("start", "", ""),
        EffectKey::Cancel { .. } => ("cancel", "", ""),
        EffectKey::CancelAll => ("cancel_all", "", ""),
        EffectKey::Signal {
            signal_name,
            signal_id,
            ..
        } => ("signal", signal_name.as_str(), signal_id.as_str()),
    };
    Key::new(kind::EFFECT)
        .text(effect.process_id().unwrap_or(""))
        .text(scope_kind)
        .text(first)
        .text(second)
        .text(operation)
        .text(name)
        .text(id)
        .done()
}

/// Journaled effects on a process.
pub(crate) fn effects_on(process_id: &str) -> KeyRange {
    Key::new(kind::EFFECT).text(process_id).range()
}

/// The row at the end of an index key.
pub(crate) fn row_of(key: &[u8]) -> Option<Row> {
    Row::from_bytes(key.get(key.len().checked_sub(Row::LEN)?..)?)
}

/// The number at the end of a key.
pub(crate) fn number_of(key: &[u8]) -> Option<u64> {
    let bytes = key.get(key.len().checked_sub(8)?..)?;
    Some(u64::from_be_bytes(bytes.try_into().ok()?))
}

/// The scope in a key of the `GRANT`, `WAKE`, `WAKE_DEDUPE` or `WATCHED` kind (it follows the kind
/// byte), or of the `GRANTED` kind (it follows the row).
pub(crate) fn scope_of(key: &[u8]) -> Option<SessionScope> {
    let at = match key.first()? {
        &kind::GRANTED => 1 + Row::LEN,
        _ => 1,
    };
    let (session_id, rest) = take_text(key.get(at..)?)?;
    let (framed, rest) = rest.split_first()?;
    let agent_frame_id = match framed {
        0 => None,
        _ => Some(take_text(rest)?.0.to_owned()),
    };
    Some(SessionScope {
        session_id: session_id.to_owned(),
        agent_frame_id,
    })
}

fn take_text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (length, rest) = bytes.split_at_checked(2)?;
    let length = usize::from(u16::from_be_bytes(length.try_into().ok()?));
    let (text, rest) = rest.split_at_checked(length)?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: Row = Row {
        created_at_ms: 0x0102,
        incarnation: Incarnation(3),
    };

    #[test]
    fn keys_are_laid_out_as_the_format_says() {
        assert_eq!(&id("ab")[..], b"\x01\x00\x02ab");
        assert_eq!(
            &head(ROW)[..],
            b"\x02\0\0\0\0\0\0\x01\x02\0\0\0\0\0\0\0\x03"
        );
        assert_eq!(
            &grant(&SessionScope::new("s").with_frame("f"), ROW)[..4],
            b"\x05\x00\x01s"
        );
    }

    #[test]
    fn no_id_is_a_prefix_of_another_ids_range() {
        let range = effects_on("a");
        let inside = effect(
            &ExecutionScope::operation("o"),
            &EffectKey::Cancel {
                process_id: "a".into(),
            },
        );
        let outside = effect(
            &ExecutionScope::operation("o"),
            &EffectKey::Cancel {
                process_id: "ab".into(),
            },
        );
        assert!(range.start <= inside && inside < range.end);
        assert!(!(range.start <= outside && outside < range.end));
    }

    #[test]
    fn a_session_covers_its_frames_and_a_scope_does_not() {
        let root = SessionScope::new("s");
        let frame = SessionScope::new("s").with_frame("f");
        let of_frame = grant(&frame, ROW);
        let session = grants_of_session("s");
        assert!(session.start <= of_frame && of_frame < session.end);
        let exact = grants_of_scope(&root);
        assert!(!(exact.start <= of_frame && of_frame < exact.end));
    }

    #[test]
    fn scopes_and_rows_read_back_from_keys() {
        let frame = SessionScope::new("s").with_frame("f");
        assert_eq!(scope_of(&grant(&frame, ROW)), Some(frame.clone()));
        assert_eq!(scope_of(&granted(ROW, &frame)), Some(frame.clone()));
        assert_eq!(row_of(&grant(&frame, ROW)), Some(ROW));
        assert_eq!(number_of(&wake(&frame, 9)), Some(9));
    }
}
