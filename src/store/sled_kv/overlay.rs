//! What is committed but not yet in the index: layers of changes over it, and who still reads them.

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
    /// crash after the index write makes the `PutOnce` repeat, and in a group's own layer, which
    /// lies over the layer that has the `PutOnce`.
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
