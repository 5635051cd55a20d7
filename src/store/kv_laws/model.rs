//! What the machine should hold, and random histories to compare it by.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::kv::{KvView, Op};
use super::super::memory_kv::MemoryKv;
use super::{Machine, all, commit};

/// Not a generator to be proud of, but its seed is all there is to a failure.
pub(in crate::store) struct XorShift(pub(in crate::store) u64);

impl XorShift {
    pub(in crate::store) fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// What the machine should hold.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::store) struct Model {
    pub(in crate::store) keys: BTreeMap<Bytes, Bytes>,
    pub(in crate::store) logs: BTreeMap<u64, Vec<Bytes>>,
    once: u64,
    pub(in crate::store) erased: u64,
}

impl Model {
    /// One commit's worth of operations, applied to the model.
    pub(in crate::store) fn step(&mut self, random: &mut XorShift) -> Vec<Op> {
        let mut ops = Vec::new();
        for _ in 0..=random.below(5) {
            let size = match random.below(40) {
                0 => 30_000,
                1..=3 => 5_000,
                _ => 1 + random.below(60),
            };
            let value = Bytes::from(vec![
                u8::try_from(random.below(256)).unwrap();
                usize::try_from(size).unwrap()
            ]);
            let key = Bytes::from(format!("k{:03}", random.below(150)));
            let op = match random.below(12) {
                0..=3 => Op::Put { key, value },
                4..=5 => Op::Delete { key },
                6 => {
                    self.once += 1;
                    let key = Bytes::from(format!("once{:08}", self.once));
                    Op::PutOnce { key, value }
                }
                7 if self.once > 0 => {
                    let number = self.once - random.below(self.once.min(8));
                    let key = Bytes::from(format!("once{number:08}"));
                    Op::Delete { key }
                }
                8 if random.below(4) == 0 => {
                    self.erased += 1;
                    Op::EraseLog {
                        incarnation: self.erased,
                    }
                }
                _ => {
                    let incarnation = self.erased + 1 + random.below(6);
                    let log = self.logs.entry(incarnation).or_default();
                    let sequence = u64::try_from(log.len()).unwrap() + 1;
                    Op::Append {
                        incarnation,
                        sequence,
                        value,
                    }
                }
            };
            self.apply(&op);
            ops.push(op);
        }
        ops
    }

    fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::Put { key, value } | Op::PutOnce { key, value } => {
                self.keys.insert(key, value);
            }
            Op::Delete { key } => {
                self.keys.remove(&key);
            }
            Op::Append {
                incarnation, value, ..
            } => self.logs.entry(incarnation).or_default().push(value),
            Op::EraseLog { incarnation } => {
                self.logs.remove(&incarnation);
            }
        }
    }

    pub(in crate::store) fn check(&self, view: &dyn KvView) {
        let keys: Vec<_> = self.keys.clone().into_iter().collect();
        assert!(view.scan(&all(), usize::MAX).unwrap() == keys);
        let mut backwards = view.scan_back(&all(), usize::MAX).unwrap();
        backwards.reverse();
        assert!(backwards == keys);
        for (key, value) in self.keys.iter().step_by(5) {
            assert_eq!(view.get(key).unwrap().as_ref(), Some(value));
        }
        for incarnation in 1..self.erased + 8 {
            let expected = self.logs.get(&incarnation).cloned().unwrap_or_default();
            if incarnation <= self.erased {
                continue;
            }
            let expected: Vec<_> = (1..).zip(expected).collect();
            let found = view.events(incarnation, 1, usize::MAX, usize::MAX).unwrap();
            assert!(found == expected, "log {incarnation}");
        }
    }
}

/// A history of random commits, reads, drains, reopens and drops.
fn a_random_history(machine: &dyn Machine, seed: u64) {
    let mut random = XorShift(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    let mut model = Model::default();
    let mut kv = machine.open().unwrap();
    let mut pinned: Option<(Box<dyn KvView>, Model)> = None;
    for _ in 0..600 {
        let ops = model.step(&mut random);
        commit(&*kv, ops);
        match random.below(60) {
            0..=3 => model.check(&*kv.view().unwrap()),
            4 => {
                if let Some((view, model)) = pinned.take() {
                    model.check(&*view);
                }
                pinned = Some((kv.view().unwrap(), model.clone()));
            }
            5..=7 => {
                pinned = None;
                kv.drain().unwrap();
            }
            8 => {
                pinned = None;
                kv.close().unwrap();
                kv = machine.open().unwrap();
            }
            9 => {
                // Dropped without a close: the next open replays.
                pinned = None;
                drop(kv);
                kv = machine.open().unwrap();
            }
            _ => {}
        }
    }
    model.check(&*kv.view().unwrap());
    drop(pinned);
    kv.close().unwrap();
}

#[test]
fn a_random_history_in_memory_equals_its_model() {
    for seed in 1..=6 {
        a_random_history(&MemoryKv::private(), seed);
    }
}

#[test]
fn a_random_history_on_disk_equals_its_model() {
    for seed in 1..=6 {
        a_random_history(&tempfile::tempdir().unwrap(), seed);
    }
}
