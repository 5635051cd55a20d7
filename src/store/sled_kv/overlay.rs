//! What is committed but not yet in the index: layers of changes over it, and who still reads them.

use std::collections::BTreeMap;

use bytes::Bytes;
use imbl::{OrdMap, OrdSet};

use super::super::kv::Op;

/// Memory an entry takes beyond its bytes, roughly.
const ENTRY_OVERHEAD_BYTES: u64 = 96;

/// What a layer says about a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    /// It has this value; layers below may have another.
    Put(Bytes),
    /// It has this value, and no layer below knows the key.
    Once(Bytes),
    /// It was removed; layers below may still have it.
    Gone,
}

impl Slot {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Put(value) | Self::Once(value) => value.len(),
            Self::Gone => 0,
        }
    }
}

/// How a layer treats pairs of `PutOnce` and `Delete`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    /// Forget them: the index never heard of the key.
    Forget,
    /// Keep the tombstone, because the index may have heard of the key: in a replay, where a
    /// crash after the index write makes the `PutOnce` repeat.
    Keep,
}

/// A set of changes. Cloning it costs nothing, changing an unshared one copies nothing.
#[derive(Debug, Clone, Default)]
pub(super) struct Layer {
    pub(super) keys: OrdMap<Bytes, Slot>,
    pub(super) events: OrdMap<(u64, u64), Bytes>,
    /// Logs that were erased: nothing of them in layers below or in the index counts.
    pub(super) erased: OrdSet<u64>,
    bytes: u64,
}

impl Layer {
    /// Applies one operation.
    pub(super) fn apply(&mut self, op: Op, pairs: Pairs) {
        match op {
            Op::Put { key, value } => self.set(key, Slot::Put(value)),
            Op::PutOnce { key, value } => {
                let slot = match pairs {
                    Pairs::Forget => Slot::Once(value),
                    Pairs::Keep => Slot::Put(value),
                };
                self.set(key, slot);
            }
            Op::Delete { key } => {
                if pairs == Pairs::Forget
                    && let Some(Slot::Once(value)) = self.keys.get(&key)
                {
                    self.bytes -= cost(key.len() + value.len());
                    self.keys.remove(&key);
                } else {
                    self.set(key, Slot::Gone);
                }
            }
            Op::Append {
                incarnation,
                sequence,
                value,
            } => {
                let bytes = cost(16 + value.len());
                self.bytes += bytes;
                if let Some(old) = self.events.insert((incarnation, sequence), value) {
                    self.bytes -= cost(16 + old.len());
                }
            }
            Op::EraseLog { incarnation } => self.erase(incarnation),
        }
    }

    /// Takes over what a group has changed.
    pub(super) fn publish(&mut self, pending: Pending) {
        for op in pending.logs {
            self.apply(op, Pairs::Forget);
        }
        for (key, slot) in pending.keys {
            match slot {
                Slot::Gone => self.apply(Op::Delete { key }, Pairs::Forget),
                Slot::Put(_) | Slot::Once(_) => self.set(key, slot),
            }
        }
    }

    fn set(&mut self, key: Bytes, slot: Slot) {
        let key_length = key.len();
        self.bytes += cost(key_length + slot.len());
        if let Some(old) = self.keys.insert(key, slot) {
            self.bytes -= cost(key_length + old.len());
        }
    }

    fn erase(&mut self, incarnation: u64) {
        let range = (incarnation, 0)..=(incarnation, u64::MAX);
        let erased: Vec<_> = self.events.range(range).map(|(at, _)| *at).collect();
        for at in erased {
            if let Some(value) = self.events.remove(&at) {
                self.bytes -= cost(16 + value.len());
            }
        }
        if self.erased.insert(incarnation).is_none() {
            self.bytes += cost(8);
        }
    }

    /// Changes held.
    pub(super) fn entries(&self) -> u64 {
        let entries = self.keys.len() + self.events.len() + self.erased.len();
        u64::try_from(entries).unwrap_or(u64::MAX)
    }

    /// Memory held, roughly.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// What a group in the making has changed so far, over the layers: its later proposals read it, and once
/// it is durable the newest layer takes it over. Of a key that changed several times only the last
/// change is left.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) keys: BTreeMap<Bytes, Slot>,
    /// What concerns logs, which no proposal reads: in order.
    logs: Vec<Op>,
}

impl Pending {
    /// With room for so many changes of logs.
    pub(super) fn with_room(logs: usize) -> Self {
        Self {
            logs: Vec::with_capacity(logs),
            ..Self::default()
        }
    }

    /// Applies one operation.
    pub(super) fn apply(&mut self, op: Op) {
        match op {
            Op::Put { key, value } => {
                self.keys.insert(key, Slot::Put(value));
            }
            Op::PutOnce { key, value } => {
                self.keys.insert(key, Slot::Once(value));
            }
            Op::Delete { key } => {
                // A pair within the group: nobody else ever hears of the key.
                if let Some(Slot::Once(_)) = self.keys.get(&key) {
                    self.keys.remove(&key);
                } else {
                    self.keys.insert(key, Slot::Gone);
                }
            }
            Op::Append { .. } | Op::EraseLog { .. } => self.logs.push(op),
        }
    }
}

fn cost(bytes: usize) -> u64 {
    u64::try_from(bytes).unwrap_or(u64::MAX) + ENTRY_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_once(key: &'static str) -> Op {
        Op::PutOnce {
            key: Bytes::from(key),
            value: Bytes::from_static(b"value"),
        }
    }

    fn delete(key: &'static str) -> Op {
        Op::Delete {
            key: Bytes::from(key),
        }
    }

    #[test]
    fn a_pair_within_a_layer_is_forgotten_and_costs_nothing() {
        let mut layer = Layer::default();
        layer.apply(put_once("a"), Pairs::Forget);
        layer.apply(delete("a"), Pairs::Forget);
        assert_eq!((layer.entries(), layer.bytes()), (0, 0));
    }

    #[test]
    fn a_replayed_pair_leaves_its_tombstone() {
        let mut layer = Layer::default();
        layer.apply(put_once("a"), Pairs::Keep);
        layer.apply(delete("a"), Pairs::Forget);
        assert_eq!(layer.keys.get(&b"a"[..]), Some(&Slot::Gone));
    }

    fn published(before: &[Op], group: &[Op]) -> Layer {
        let mut layer = Layer::default();
        let apply = |op: &Op| layer.apply(op.clone(), Pairs::Forget);
        before.iter().for_each(apply);
        let mut pending = Pending::default();
        group.iter().for_each(|op| pending.apply(op.clone()));
        layer.publish(pending);
        layer
    }

    /// A group leaves what its operations leave, one by one.
    #[test]
    fn a_published_group_leaves_what_its_operations_leave() {
        let put = |key: &'static str, value: &'static str| Op::Put {
            key: Bytes::from(key),
            value: Bytes::from(value),
        };
        let append = Op::Append {
            incarnation: 1,
            sequence: 1,
            value: Bytes::from_static(b"event"),
        };
        let erase = Op::EraseLog { incarnation: 1 };
        for (before, group) in [
            (vec![], vec![put("a", "1"), put("a", "2"), put("b", "1")]),
            (vec![put("a", "1")], vec![put("a", "2"), delete("a")]),
            (vec![put("a", "1")], vec![delete("a"), put("a", "2")]),
            (vec![], vec![put_once("a"), delete("a")]),
            (vec![put_once("a")], vec![delete("a"), put_once("b")]),
            (vec![append.clone()], vec![erase.clone(), append.clone()]),
            (vec![], vec![append.clone(), erase, put("a", "1")]),
        ] {
            let all = [before.as_slice(), group.as_slice()].concat();
            let one_by_one = published(&all, &[]);
            let together = published(&before, &group);
            assert_eq!(together.keys, one_by_one.keys, "{before:?} {group:?}");
            assert_eq!(together.events, one_by_one.events, "{before:?} {group:?}");
            assert_eq!(together.erased, one_by_one.erased, "{before:?} {group:?}");
            assert_eq!(together.bytes(), one_by_one.bytes(), "{before:?} {group:?}");
        }
    }

    #[test]
    fn erasing_drops_the_events_of_that_log_only() {
        let mut layer = Layer::default();
        for incarnation in 1..=2 {
            layer.apply(
                Op::Append {
                    incarnation,
                    sequence: 1,
                    value: Bytes::from_static(b"event"),
                },
                Pairs::Forget,
            );
        }
        layer.apply(Op::EraseLog { incarnation: 1 }, Pairs::Forget);
        assert!(!layer.events.contains_key(&(1, 1)));
        assert!(layer.events.contains_key(&(2, 1)));
        assert!(layer.erased.contains(&1));
    }
}
