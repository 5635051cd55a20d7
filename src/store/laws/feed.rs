//! The change feed: one entry for each process, at its last change, and one for each deletion.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::Incarnation;
use crate::store::read::FeedEntry;
use crate::store::testing::*;
use crate::store::write_set::{Change, Refusal};

/// What a consumer knows: the last event of each process, or that it is gone.
type Known = BTreeMap<Incarnation, Option<u64>>;

/// Numbers that look random and are the same every time (Marsaglia's xorshift).
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }

    fn pick<'a, T>(&mut self, from: &'a mut [T]) -> Option<&'a mut T> {
        let at = usize::try_from(self.below(from.len().max(1) as u64)).unwrap();
        from.get_mut(at)
    }
}

struct Consumer {
    cursor: u64,
    known: Known,
}

impl Consumer {
    /// Reads one page; whether there was one.
    fn read(&mut self, host: &Host, limit: usize) -> bool {
        let view = host.view();
        let page = view.feed(self.cursor, limit).unwrap();
        for (position, entry) in &page {
            assert!(*position > self.cursor, "positions rise");
            self.cursor = *position;
            match entry {
                FeedEntry::Changed { row, .. } => {
                    let loaded = view.load(*row).unwrap().unwrap();
                    let last = Some(loaded.state.last_sequence);
                    self.known.insert(row.incarnation, last);
                }
                FeedEntry::Pruned { incarnation, .. } => {
                    self.known.insert(*incarnation, None);
                }
            }
        }
        !page.is_empty()
    }
}

/// Forgets a tombstone; how many consumers are too far behind then. Those are refused: they could not
/// know what they missed.
fn forget(host: &Host, incarnation: Incarnation, consumers: &mut Vec<Consumer>) -> usize {
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    let floor = host.view().feed_bounds().unwrap().0;
    let before = consumers.len();
    consumers.retain(|consumer| consumer.cursor >= floor);
    before - consumers.len()
}

fn known_anew(host: &Host) -> Known {
    let mut anew = Consumer {
        cursor: 0,
        known: Known::new(),
    };
    while anew.read(host, 5) {}
    anew.known
}

fn e5_from_any_cursor_a_consumer_learns_every_final_state_and_every_deletion(ground: &Ground) {
    let host = ground.open();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut running: Vec<Proc> = Vec::new();
    let mut ended: Vec<Proc> = Vec::new();
    let mut truth = Known::new();
    let mut consumers: Vec<Consumer> = Vec::new();
    let (mut pruned, mut forgotten) = (Vec::new(), BTreeSet::new());
    let mut too_old = 0;
    for step in 0..600 {
        match dice.below(11) {
            0 | 1 => {
                let id = format!("p-{step}");
                let process = host.start(request(&id).with_wake_target(Some(session("t"))));
                truth.insert(process.registration.incarnation, Some(0));
                running.push(process);
            }
            2 if !running.is_empty() => {
                let at = usize::try_from(dice.below(running.len() as u64)).unwrap();
                let mut process = running.swap_remove(at);
                host.finish(&mut process);
                let last = Some(process.state.last_sequence);
                truth.insert(process.registration.incarnation, last);
                ended.push(process);
            }
            3 if !ended.is_empty() => {
                let process = ended.remove(0);
                host.prune(&process);
                truth.insert(process.registration.incarnation, None);
                pruned.push(process.registration.incarnation);
            }
            6 if pruned.len() > 12 => {
                let incarnation = pruned.remove(usize::try_from(dice.below(3)).unwrap());
                too_old += forget(&host, incarnation, &mut consumers);
                forgotten.insert(incarnation);
            }
            4 => consumers.push(Consumer {
                // From here on, knowing what is true now.
                cursor: host.view().feed_bounds().unwrap().1,
                known: truth.clone(),
            }),
            5 => {
                let limit = usize::try_from(1 + dice.below(7)).unwrap();
                if let Some(consumer) = dice.pick(&mut consumers) {
                    consumer.read(&host, limit);
                }
            }
            _ => {
                if let Some(process) = dice.pick(&mut running) {
                    // Some of them wake somebody, which takes a position of its own.
                    let kind = if step % 2 == 0 { "note" } else { "ping" };
                    host.emit(process, kind, serde_json::json!({ "text": "t" }));
                    let last = Some(process.state.last_sequence);
                    truth.insert(process.registration.incarnation, last);
                }
            }
        }
    }
    assert!(consumers.len() > 10 && too_old > 0 && !pruned.is_empty());
    for mut consumer in consumers {
        while consumer.read(&host, 5) {}
        assert_eq!(consumer.known, truth);
    }
    // One that begins anew knows nothing of what was forgotten, and needs to know nothing.
    truth.retain(|incarnation, _| !forgotten.contains(incarnation));
    assert_eq!(known_anew(&host), truth);
    assert_eq!(host.view().feed(0, 9_999).unwrap().len(), truth.len());
    host.assert_clean();
    host.store.close().unwrap();
}

/// A consumer at or past the floor misses no deletion.
fn e5_a_cursor_from_the_floor_on_still_learns_every_deletion(ground: &Ground) {
    let host = ground.open();
    let mut processes: Vec<_> = ["a", "b", "c"].map(|id| host.start(request(id))).into();
    let mut positions = Vec::new();
    for process in &mut processes {
        host.finish(process);
        host.prune(process);
        positions.push(host.view().feed_bounds().unwrap().1);
    }
    let incarnation = processes[0].registration.incarnation;
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    let (floor, newest) = host.view().feed_bounds().unwrap();
    assert_eq!((floor, newest), (positions[0], positions[2]));
    let gone: Vec<_> = host.view().feed(floor, 9).unwrap();
    let gone: Vec<_> = gone.into_iter().map(|(position, _)| position).collect();
    assert_eq!(gone, positions[1..]);
    host.store.close().unwrap();
}

/// `BeginFeed`: a second host of the same epoch, or a call that is made again.
fn e5_the_feed_of_an_epoch_begins_once(ground: &Ground) {
    let host = ground.open();
    let begin = |nonce| Change::BeginFeed {
        epoch: host.store.epoch(),
        nonce,
    };
    host.ok(vec![], vec![begin(1)]);
    let begun = host.view().newest_feed_epoch().unwrap();
    assert_eq!(host.refused(vec![], vec![begin(2)]), Refusal::NothingToDo);
    assert_eq!(host.view().newest_feed_epoch().unwrap(), begun);
    host.store.close().unwrap();
}

held_by_both!(
    e5_from_any_cursor_a_consumer_learns_every_final_state_and_every_deletion,
    e5_a_cursor_from_the_floor_on_still_learns_every_deletion,
    e5_the_feed_of_an_epoch_begins_once,
);
