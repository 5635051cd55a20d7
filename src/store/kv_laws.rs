//! The laws of the machine, and both implementations held to them.
//!
//! Each law is a function over something that can be opened again and again.

mod model;
mod threads;

use std::collections::{BTreeMap, HashSet};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use bytes::Bytes;

use super::clock::SystemClock;
use super::error::StoreError;
use super::kv::{
    CommitContext, Counter, KeyRange, Kv, KvView, Op, Outcome, Proposal, Reader, Verdict,
};
use super::memory_kv::{MemoryKv, MemoryStore};
use super::sled_kv::{Options, SledKv};

pub(super) use model::{Model, XorShift};
use threads::commits_of_many_threads_are_all_there;

/// A state that outlives its opens.
pub(super) trait Machine {
    fn open(&self) -> Result<Arc<dyn Kv>, StoreError>;
}

impl Machine for MemoryStore {
    fn open(&self) -> Result<Arc<dyn Kv>, StoreError> {
        let kv = Self::open(self, Arc::new(SystemClock::default()))?;
        Ok(Arc::new(kv))
    }
}

impl Machine for tempfile::TempDir {
    fn open(&self) -> Result<Arc<dyn Kv>, StoreError> {
        let options = Options::new(Arc::new(SystemClock::default()));
        Ok(Arc::new(SledKv::open(&self.path().join("store"), options)?))
    }
}

type Decide = Box<dyn FnMut(&dyn Reader, &mut CommitContext<'_>) -> Verdict + Send>;
type Tell = Box<dyn FnOnce(Outcome) + Send>;

struct Scripted {
    decide: Decide,
    tell: Option<Tell>,
}

impl Proposal for Scripted {
    fn resolve(
        &mut self,
        state: &dyn Reader,
        cx: &mut CommitContext<'_>,
    ) -> Result<Verdict, StoreError> {
        Ok((self.decide)(state, cx))
    }

    fn done(mut self: Box<Self>, outcome: Outcome) {
        if let Some(tell) = self.tell.take() {
            tell(outcome);
        }
    }
}

pub(super) fn scripted(
    decide: impl FnMut(&dyn Reader, &mut CommitContext<'_>) -> Verdict + Send + 'static,
    tell: impl FnOnce(Outcome) + Send + 'static,
) -> Box<dyn Proposal> {
    Box::new(Scripted {
        decide: Box::new(decide),
        tell: Some(Box::new(tell)),
    })
}

pub(super) fn submit(
    kv: &dyn Kv,
    decide: impl FnMut(&dyn Reader, &mut CommitContext<'_>) -> Verdict + Send + 'static,
) -> Receiver<Outcome> {
    let (sender, receiver) = channel();
    kv.submit(scripted(decide, move |outcome| {
        sender.send(outcome).unwrap()
    }));
    receiver
}

pub(super) fn submit_ops(kv: &dyn Kv, ops: Vec<Op>) -> Receiver<Outcome> {
    submit(kv, move |_, cx| {
        cx.ops.extend(ops.iter().cloned());
        Verdict::Accept
    })
}

pub(super) fn commit(kv: &dyn Kv, ops: Vec<Op>) -> u64 {
    let outcome = submit_ops(kv, ops).recv().unwrap();
    let Outcome::Committed { commit } = outcome else {
        panic!("not committed: {outcome:?}");
    };
    commit
}

pub(super) fn put(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    Op::Put {
        key: Bytes::copy_from_slice(key.as_ref()),
        value: Bytes::copy_from_slice(value.as_ref()),
    }
}

pub(super) fn put_once(key: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Op {
    Op::PutOnce {
        key: Bytes::copy_from_slice(key.as_ref()),
        value: Bytes::copy_from_slice(value.as_ref()),
    }
}

pub(super) fn delete(key: impl AsRef<[u8]>) -> Op {
    Op::Delete {
        key: Bytes::copy_from_slice(key.as_ref()),
    }
}

pub(super) fn append(incarnation: u64, sequence: u64, value: impl AsRef<[u8]>) -> Op {
    Op::Append {
        incarnation,
        sequence,
        value: Bytes::copy_from_slice(value.as_ref()),
    }
}

pub(super) fn all() -> KeyRange {
    KeyRange {
        start: Bytes::new(),
        end: Bytes::new(),
    }
}

fn get(kv: &dyn Kv, key: &str) -> Option<Bytes> {
    kv.view().unwrap().get(key.as_bytes()).unwrap()
}

fn sequences(view: &dyn KvView, incarnation: u64, from: u64, limit: usize) -> Vec<u64> {
    let events = view.events(incarnation, from, limit, usize::MAX).unwrap();
    events.into_iter().map(|(sequence, _)| sequence).collect()
}

fn a_commit_is_all_or_nothing_and_visible_once_told(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let first = commit(&*kv, vec![put("a", "1"), put("b", "2"), append(7, 1, "e")]);
    let view = kv.view().unwrap();
    assert!(view.commit() >= first);
    assert_eq!(view.scan(&all(), 9).unwrap().len(), 2);
    assert_eq!(sequences(&*view, 7, 1, 9), [1]);
    let second = commit(&*kv, vec![put("a", "3"), delete("a"), put("a", "4")]);
    assert!(second > first);
    assert_eq!(get(&*kv, "a").unwrap(), "4", "later operations win");
    kv.close().unwrap();
}

fn a_later_proposal_sees_an_accepted_one_and_not_a_refused_one(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let (sender, receiver) = channel();
    let inner = Arc::clone(&kv);
    // From `done`, so that all of them are queued before the committer looks.
    kv.submit(scripted(
        |_, _| Verdict::Accept,
        move |_| {
            let tell = |name: &'static str, sender: &Sender<_>| {
                let sender = sender.clone();
                move |outcome| sender.send((name, outcome)).unwrap()
            };
            inner.submit(scripted(
                |_, cx| {
                    cx.ops.push(put("accepted", "1"));
                    cx.next_position += 2;
                    Verdict::Accept
                },
                tell("accepts", &sender),
            ));
            inner.submit(scripted(
                |_, cx| {
                    cx.ops.push(put("refused", "1"));
                    cx.next_position += 5;
                    Verdict::Refuse
                },
                tell("refuses", &sender),
            ));
            inner.submit(scripted(
                |state, cx| {
                    assert_eq!(state.get(b"accepted").unwrap().unwrap(), "1");
                    assert_eq!(state.get(b"refused").unwrap(), None);
                    assert_eq!(state.scan(&all(), 9).unwrap().len(), 1);
                    assert_eq!(cx.next_position, 3, "only the accepted one took positions");
                    cx.ops.push(put("third", "1"));
                    Verdict::Accept
                },
                tell("sees", &sender),
            ));
        },
    ));
    let told: Vec<_> = (0..3).map(|_| receiver.recv().unwrap()).collect();
    assert!(
        matches!(told[0], ("accepts", Outcome::Committed { .. })),
        "{told:?}"
    );
    assert!(matches!(told[1], ("refuses", Outcome::Refused)), "{told:?}");
    assert!(
        matches!(told[2], ("sees", Outcome::Committed { .. })),
        "{told:?}"
    );
    assert_eq!(get(&*kv, "refused"), None);
    assert_eq!(kv.stats().refusals, 1);
    kv.close().unwrap();
}

fn positions_go_on_after_a_reopen(machine: &dyn Machine) {
    let take = |kv: &dyn Kv, count: u64| {
        let (sender, receiver) = channel();
        submit(kv, move |_, cx| {
            sender.send(cx.next_position).unwrap();
            cx.next_position += count;
            Verdict::Accept
        })
        .recv()
        .unwrap();
        receiver.recv().unwrap()
    };
    let kv = machine.open().unwrap();
    assert_eq!(take(&*kv, 3), 1);
    assert_eq!(take(&*kv, 2), 4);
    drop(kv);
    let kv = machine.open().unwrap();
    assert_eq!(take(&*kv, 1), 6, "replayed from the journal");
    kv.close().unwrap();
    let kv = machine.open().unwrap();
    assert_eq!(take(&*kv, 1), 7, "read beside the low-water mark");
    kv.close().unwrap();
}

fn a_proposal_that_panics_or_breaks_a_limit_harms_only_itself(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let panicking = submit(&*kv, |_, cx| {
        cx.ops.push(put("panicked", "1"));
        panic!("a test's panic in resolve")
    });
    let nameless = submit_ops(&*kv, vec![put("kept", "0"), put("", "1")]);
    for outcome in [panicking, nameless] {
        let outcome = outcome.recv().unwrap();
        assert!(
            matches!(outcome, Outcome::NotWritten(StoreError::Invalid { .. })),
            "{outcome:?}"
        );
    }
    kv.submit(scripted(
        |_, cx| {
            cx.ops.push(put("told", "1"));
            Verdict::Accept
        },
        |_| panic!("a test's panic in done"),
    ));
    commit(&*kv, vec![put("after", "1")]);
    let keys = kv.view().unwrap().scan(&all(), 9).unwrap();
    let keys: Vec<_> = keys.into_iter().map(|(key, _)| key).collect();
    assert_eq!(keys, ["after", "told"]);
    kv.close().unwrap();
}

fn a_view_stays_where_it_was(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    commit(
        &*kv,
        vec![put("k", "old"), put("gone", "1"), append(1, 1, "e1")],
    );
    kv.drain().unwrap();
    commit(&*kv, vec![put("k", "mid"), append(1, 2, "e2")]);
    let view = kv.view().unwrap();
    let writer = {
        let kv = Arc::clone(&kv);
        thread::spawn(move || {
            for round in 0..200_u32 {
                let text = round.to_string();
                commit(
                    &*kv,
                    vec![
                        put("k", &text),
                        put_once(format!("new{round:04}"), &text),
                        delete("gone"),
                        append(1, 3 + u64::from(round), &text),
                    ],
                );
            }
        })
    };
    for _ in 0..200 {
        assert_eq!(view.get(b"k").unwrap().unwrap(), "mid");
        let keys = view.scan(&all(), 99).unwrap();
        assert_eq!(keys.len(), 2);
        assert_eq!(keys[0].0, "gone");
        assert_eq!(sequences(&*view, 1, 1, 99), [1, 2]);
    }
    writer.join().unwrap();
    assert_eq!(view.get(b"k").unwrap().unwrap(), "mid");
    drop(view);
    kv.drain().unwrap();
    assert_eq!(get(&*kv, "k").unwrap(), "199");
    assert_eq!(get(&*kv, "gone"), None);
    kv.close().unwrap();
}

fn scans_merge_what_is_drained_and_what_is_not(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let mut model = BTreeMap::new();
    for number in 0..300_u32 {
        let key = format!("k{number:04}");
        commit(&*kv, vec![put(&key, "drained")]);
        model.insert(key, "drained");
    }
    kv.drain().unwrap();
    for number in (0..300_u32).step_by(3) {
        let key = format!("k{number:04}");
        commit(&*kv, vec![delete(&key)]);
        model.remove(&key);
    }
    for number in (0..300_u32).step_by(7) {
        let key = format!("k{number:04}x");
        commit(&*kv, vec![put(&key, "overlay")]);
        model.insert(key, "overlay");
    }
    let view = kv.view().unwrap();
    for (start, end) in [
        ("", ""),
        ("k0003", "k0200"),
        ("k0299", "z"),
        ("z", ""),
        ("b", "a"),
    ] {
        let range = KeyRange {
            start: Bytes::copy_from_slice(start.as_bytes()),
            end: Bytes::copy_from_slice(end.as_bytes()),
        };
        let within = |key: &str| key >= start && (end.is_empty() || key < end);
        let expected: Vec<(Bytes, Bytes)> = model
            .iter()
            .filter(|(key, _)| within(key))
            .map(|(key, value)| (Bytes::from(key.clone()), Bytes::from(*value)))
            .collect();
        for limit in [0, 1, 10, 1000] {
            let ascending: Vec<_> = expected.iter().take(limit).cloned().collect();
            assert_eq!(view.scan(&range, limit).unwrap(), ascending);
            let descending: Vec<_> = expected.iter().rev().take(limit).cloned().collect();
            assert_eq!(view.scan_back(&range, limit).unwrap(), descending);
        }
    }
    drop(view);
    kv.close().unwrap();
}

fn logs_are_dense_across_layers_and_chunks(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let value = |sequence: u64| {
        // Small ones, some that fill a chunk, and some that need parts.
        let size = match sequence % 50 {
            49 => 20_000,
            20 => 4_000,
            _ => 100,
        };
        vec![sequence.to_le_bytes()[0]; size]
    };
    for sequence in 1..=500 {
        commit(&*kv, vec![append(3, sequence, value(sequence))]);
        commit(&*kv, vec![append(4, sequence, "neighbour")]);
        if sequence % 17 == 0 {
            kv.drain().unwrap();
        }
    }
    let view = kv.view().unwrap();
    let log = view.events(3, 0, usize::MAX, usize::MAX).unwrap();
    assert_eq!(log.len(), 500);
    for (expected, (sequence, event)) in (1..).zip(&log) {
        assert_eq!((*sequence, &event[..]), (expected, &value(expected)[..]));
    }
    let last: Vec<u64> = (469..=500).collect();
    assert_eq!(sequences(&*view, 3, 469, 32), last);
    assert_eq!(sequences(&*view, 3, 200, 3), [200, 201, 202]);
    assert_eq!(sequences(&*view, 3, 501, 3), [0; 0]);
    assert_eq!(sequences(&*view, 9, 1, 3), [0; 0]);
    assert_eq!(
        view.events(3, 1, 9, 0).unwrap().len(),
        1,
        "always at least one"
    );
    assert_eq!(view.events(3, 1, 9, 150).unwrap().len(), 2);
    drop(view);
    kv.close().unwrap();
    let kv = machine.open().unwrap();
    assert_eq!(
        kv.view().unwrap().events(3, 0, 999, usize::MAX).unwrap(),
        log
    );
    kv.close().unwrap();
}

fn an_erased_log_is_gone_for_good(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    for sequence in 1..=300 {
        let size = if sequence % 100 == 0 { 9_000 } else { 300 };
        commit(
            &*kv,
            vec![
                append(5, sequence, vec![1; size]),
                append(6, sequence, "kept"),
            ],
        );
        if sequence == 200 {
            kv.drain().unwrap();
        }
    }
    let before = kv.view().unwrap();
    commit(&*kv, vec![Op::EraseLog { incarnation: 5 }]);
    assert_eq!(before.events(5, 1, 999, usize::MAX).unwrap().len(), 300);
    drop(before);
    assert_eq!(sequences(&*kv.view().unwrap(), 5, 1, 999), [0; 0]);
    kv.drain().unwrap();
    assert_eq!(sequences(&*kv.view().unwrap(), 5, 1, 999), [0; 0]);
    kv.close().unwrap();
    let kv = machine.open().unwrap();
    let view = kv.view().unwrap();
    assert_eq!(sequences(&*view, 5, 1, 999), [0; 0]);
    assert_eq!(sequences(&*view, 6, 1, 999).len(), 300);
    drop(view);
    kv.close().unwrap();
}

fn large_values_are_kept_overwritten_and_removed(machine: &dyn Machine) {
    let mut kv = machine.open().unwrap();
    let sizes = [1 << 20, 4096, 4097, 0, 3 << 20, 10, 70_000, 8 << 20];
    for (round, size) in (0_u8..).zip(sizes) {
        let value = vec![round; size];
        commit(&*kv, vec![put("big", &value), put("beside", "x")]);
        assert_eq!(get(&*kv, "big").unwrap(), value);
        kv.drain().unwrap();
        assert_eq!(get(&*kv, "big").unwrap(), value);
        assert_eq!(kv.view().unwrap().scan_back(&all(), 1).unwrap()[0].1, value);
        if round % 3 == 0 {
            kv.close().unwrap();
            kv = machine.open().unwrap();
            assert_eq!(get(&*kv, "big").unwrap(), value);
        }
    }
    commit(&*kv, vec![delete("big")]);
    kv.drain().unwrap();
    assert_eq!(get(&*kv, "big"), None);
    kv.close().unwrap();
}

fn numbers_and_epochs_never_repeat(machine: &dyn Machine) {
    let mut seen = HashSet::new();
    let mut epoch = 0;
    let mut store_id = None;
    for open in 0..3 {
        let kv = machine.open().unwrap();
        assert!(kv.epoch() > epoch);
        epoch = kv.epoch();
        assert_eq!(*store_id.get_or_insert(kv.store_id()), kv.store_id());
        for _ in 0..1000 {
            assert!(seen.insert(kv.allocate(Counter::FencingToken).unwrap()));
        }
        assert!(kv.allocate(Counter::Incarnation).unwrap() > 0);
        if open == 1 {
            kv.close().unwrap();
        }
    }
}

fn numbers_are_reserved_ahead(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let seen = Mutex::new(HashSet::new());
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut taken = Vec::new();
                while taken.len() < 150_000 {
                    match kv.allocate(Counter::Owner) {
                        Ok(number) => taken.push(number),
                        Err(StoreError::NumbersExhausted { .. }) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                seen.lock().unwrap().extend(taken);
            });
        }
    });
    assert_eq!(seen.into_inner().unwrap().len(), 300_000);
    kv.close().unwrap();
}

fn a_closed_store_says_so(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    let last = submit_ops(&*kv, vec![put("last", "1")]);
    kv.close().unwrap();
    kv.close().unwrap();
    assert!(matches!(last.recv().unwrap(), Outcome::Committed { .. }));
    let late = submit_ops(&*kv, vec![put("late", "1")]).recv().unwrap();
    assert!(
        matches!(late, Outcome::NotWritten(StoreError::Closed)),
        "{late:?}"
    );
    assert!(matches!(kv.view(), Err(StoreError::Closed)));
    let kv = machine.open().unwrap();
    assert_eq!(get(&*kv, "last").unwrap(), "1");
    assert_eq!(get(&*kv, "late"), None);
    kv.close().unwrap();
}

fn one_runtime_at_a_time(machine: &dyn Machine) {
    let kv = machine.open().unwrap();
    assert!(kv.exclusive());
    assert!(matches!(machine.open(), Err(StoreError::Busy { .. })));
    let view = kv.view().unwrap();
    drop(kv);
    let kv = machine.open().unwrap();
    drop(view);
    kv.close().unwrap();
}

macro_rules! laws {
    ($($law:ident),* $(,)?) => {
        mod memory {
            $(#[test]
            fn $law() {
                super::$law(&super::MemoryKv::private());
            })*
        }
        mod sled {
            $(#[test]
            fn $law() {
                super::$law(&tempfile::tempdir().unwrap());
            })*
        }
    };
}

laws!(
    a_commit_is_all_or_nothing_and_visible_once_told,
    a_later_proposal_sees_an_accepted_one_and_not_a_refused_one,
    positions_go_on_after_a_reopen,
    a_proposal_that_panics_or_breaks_a_limit_harms_only_itself,
    a_view_stays_where_it_was,
    scans_merge_what_is_drained_and_what_is_not,
    logs_are_dense_across_layers_and_chunks,
    an_erased_log_is_gone_for_good,
    large_values_are_kept_overwritten_and_removed,
    numbers_and_epochs_never_repeat,
    numbers_are_reserved_ahead,
    a_closed_store_says_so,
    one_runtime_at_a_time,
    commits_of_many_threads_are_all_there,
);

#[test]
fn a_shared_state_is_open_to_several_runtimes() {
    let store = MemoryKv::shared();
    let one = Machine::open(&store).unwrap();
    let other = Machine::open(&store).unwrap();
    assert!(!one.exclusive());
    assert!(other.epoch() > one.epoch());
    assert_ne!(
        one.allocate(Counter::Owner).unwrap(),
        other.allocate(Counter::Owner).unwrap()
    );
    commit(&*one, vec![put("k", "1")]);
    assert_eq!(get(&*other, "k").unwrap(), "1");
    one.close().unwrap();
    commit(&*other, vec![put("k", "2")]);
}
