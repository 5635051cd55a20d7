//! Each kind of damage, done to a busy store and found by its own words.

use bytes::Bytes;

use super::clean::busy;
use crate::model::record::ProcessState;
use crate::model::*;
use crate::store::codec;
use crate::store::codec::stored::*;
use crate::store::keys::{self, Row};
use crate::store::kv::Op;
use crate::store::kv_laws::{append, put};
use crate::store::read::IdEntry;
use crate::store::testing::*;

/// What damages need to know of the busy store.
pub(super) struct Scene {
    pub(super) host: Host,
    pub(super) rich: Proc,
    pub(super) child: Proc,
    pub(super) ended: Proc,
    pub(super) again: Proc,
    pub(super) big: Row,
    pub(super) pruned: Incarnation,
    pub(super) target: SessionScope,
    pub(super) holder: SessionScope,
}

impl Scene {
    pub(super) fn new(ground: &Ground) -> Self {
        let host = ground.open();
        let mut processes = busy(&host).into_iter();
        let mut next = || processes.next().unwrap();
        let (rich, child, ended, _failed, again) = (next(), next(), next(), next(), next());
        let view = host.view();
        let big = match view.id("big").unwrap() {
            Some(IdEntry::Live(row)) => row,
            other => panic!("{other:?}"),
        };
        let pruned = match view.id("pruned").unwrap() {
            Some(IdEntry::Pruned(tombstone)) => tombstone.incarnation,
            other => panic!("{other:?}"),
        };
        drop(view);
        Self {
            host,
            rich,
            child,
            ended,
            again,
            big,
            pruned,
            target: session("target"),
            holder: session("holder"),
        }
    }

    pub(super) fn value(&self, key: &[u8]) -> Bytes {
        self.host.view().raw().get(key).unwrap().unwrap()
    }

    pub(super) fn front(&self, process: &Proc) -> StateFront {
        self.host.view().front(process.row()).unwrap().unwrap()
    }

    /// The process's state with another front.
    pub(super) fn with_front(&self, process: &Proc, change: impl Fn(&mut StateFront)) -> Vec<Op> {
        let mut front = self.front(process);
        change(&mut front);
        vec![put_state(process.row(), front, &process.state)]
    }

    /// The process's state with another body.
    pub(super) fn with_state(&self, process: &Proc, change: impl Fn(&mut ProcessState)) -> Vec<Op> {
        let mut state = process.state.clone();
        change(&mut state);
        vec![put_state(process.row(), self.front(process), &state)]
    }

    pub(super) fn log(&self, process: &Proc) -> Vec<Bytes> {
        let incarnation = process.registration.incarnation.get();
        let events = self
            .host
            .view()
            .raw()
            .events(incarnation, 1, usize::MAX, usize::MAX);
        events
            .unwrap()
            .into_iter()
            .map(|(_, bytes)| bytes)
            .collect()
    }

    pub(super) fn event(&self, process: &Proc, sequence: usize) -> StoredEvent {
        codec::decode(&self.log(process)[sequence - 1]).unwrap()
    }

    /// One event of the process's log replaced.
    pub(super) fn with_event(
        &self,
        process: &Proc,
        sequence: usize,
        change: impl Fn(&mut StoredEvent),
    ) -> Vec<Op> {
        let mut event = self.event(process, sequence);
        change(&mut event);
        vec![append(
            process.registration.incarnation.get(),
            sequence as u64,
            codec::encode(&event).unwrap(),
        )]
    }

    /// The position of the process's pending wake with that many before it.
    pub(super) fn wake(&self, number: usize) -> u64 {
        let wakes = self.host.view().wakes(&self.target, 9).unwrap();
        wakes[number].position
    }
}

pub(super) fn put_state(row: Row, front: StateFront, state: &ProcessState) -> Op {
    let body = codec::encode_body(&StoredState::from(state)).unwrap();
    let value = codec::seal::<StoredState>(&front.to_bytes(), &body).unwrap();
    put(keys::state(row), value)
}

pub(super) fn encoded<T: codec::Stored>(value: &T) -> Bytes {
    codec::encode(value).unwrap()
}

/// The row of a process that is not there.
pub(super) fn nowhere() -> Row {
    Row {
        created_at_ms: 1,
        incarnation: Incarnation(5_000),
    }
}

/// Damage, whose process it is, and words that must be said of it.
pub(super) type Damage = (&'static str, Option<&'static str>, fn(&Scene) -> Vec<Op>);

#[track_caller]
pub(super) fn each_is_found(ground: impl Fn() -> Ground, damages: &[Damage]) {
    for (words, process_id, damage) in damages {
        let ground = ground();
        let scene = Scene::new(&ground);
        scene.host.damage(damage(&scene));
        let report = scene.host.verified();
        let found = report.problems.iter().any(|problem| {
            problem.what.contains(words) && problem.process_id.as_deref() == *process_id
        });
        assert!(found, "{words:?} of {process_id:?}: {report:#?}");
        scene.host.store.close().unwrap();
    }
}

pub(super) const RICH: Option<&str> = Some("rich");
pub(super) const ENDED: Option<&str> = Some("ended");

#[test]
fn damage_is_found_in_sled_too_and_after_a_reopen() {
    let ground = Ground::sled();
    let scene = Scene::new(&ground);
    scene
        .host
        .damage(scene.with_front(&scene.rich, |it| it.log_bytes += 1));
    assert_eq!(scene.host.verified().problems.len(), 1);
    scene.host.store.close().unwrap();
    let host = ground.open();
    let report = host.verified();
    assert_eq!(report.problems.len(), 1, "{report:#?}");
    assert_eq!(report.problems[0].process_id.as_deref(), RICH);
    host.store.close().unwrap();
}

#[test]
fn a_store_full_of_damage_gives_a_bounded_report() {
    let ground = Ground::memory();
    let host = ground.open();
    let junk = (0..1_500_u64).map(|n| put([&[0xee][..], &n.to_be_bytes()].concat(), ""));
    host.damage(junk.collect());
    let report = host.verified();
    assert_eq!(
        (report.problems.len(), report.problems_left_out),
        (1_000, 500)
    );
}
