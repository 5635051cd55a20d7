//! Damage to what leads to processes, and to what stands beside them.

use super::damage::*;
use crate::model::lease::OwnerRecord;
use crate::model::*;
use crate::store::codec;
use crate::store::codec::stored::*;
use crate::store::keys;
use crate::store::kv::Op;
use crate::store::kv_laws::{delete, put};
use crate::store::testing::*;

#[test]
fn g3_and_every_other_index_is_checked_from_both_sides() {
    each_is_found(
        Ground::memory,
        &[
            ("is not known to the process", RICH, |s| {
                vec![delete(keys::granted(s.rich.row(), &s.holder))]
            }),
            ("is not known to the scope", RICH, |s| {
                vec![delete(keys::grant(&s.holder, s.rich.row()))]
            }),
            ("grant of a process that is not there", None, |s| {
                let value = s.value(&keys::grant(&s.holder, s.rich.row()));
                vec![
                    put(keys::grant(&s.holder, nowhere()), value),
                    put(keys::granted(nowhere(), &s.holder), ""),
                ]
            }),
            ("grant: ", None, |s| {
                vec![put(keys::grant(&s.holder, s.rich.row()), "damaged")]
            }),
            ("is a key only", RICH, |s| {
                vec![put(keys::granted(s.rich.row(), &s.holder), "something")]
            }),
            ("it runs, but is not among the running", RICH, |s| {
                vec![delete(keys::running(s.rich.row()))]
            }),
            ("running entry of a process that has ended", ENDED, |s| {
                vec![put(keys::running(s.ended.row()), "")]
            }),
            ("running entry of a process that is not there", None, |_| {
                vec![put(keys::running(nowhere()), "")]
            }),
            ("its originator does not know it", RICH, |s| {
                let originator = &s.rich.registration.provenance.originator;
                vec![delete(keys::originator(originator, s.rich.row()).unwrap())]
            }),
            ("names another originator", RICH, |s| {
                let other = ProcessOriginator::host_scope("other");
                vec![put(keys::originator(&other, s.rich.row()).unwrap(), "")]
            }),
            (
                "originator entry of a process that is not there",
                None,
                |_| {
                    let other = ProcessOriginator::host_scope("other");
                    vec![put(keys::originator(&other, nowhere()).unwrap(), "")]
                },
            ),
            ("its parent does not know it", Some("child"), |s| {
                vec![delete(keys::child(
                    s.rich.registration.incarnation,
                    s.child.row(),
                ))]
            }),
            ("names another parent", RICH, |s| {
                vec![put(
                    keys::child(s.child.registration.incarnation, s.rich.row()),
                    "",
                )]
            }),
            ("parent entry of a process that is not there", None, |s| {
                vec![put(
                    keys::child(s.rich.registration.incarnation, nowhere()),
                    "",
                )]
            }),
            ("of no known kind and layout", None, |_| {
                vec![put([0x17], "")]
            }),
            ("of no known kind and layout", None, |_| {
                vec![put([0xff, 1], "")]
            }),
            ("of no known kind and layout", None, |_| {
                vec![put([keys::kind::HEAD, 1], "")]
            }),
        ],
    );
}

#[test]
fn the_feed_and_the_tombstones_are_checked_from_both_sides() {
    each_is_found(
        Ground::memory,
        &[
            ("its last change is not in the feed", RICH, |s| {
                vec![delete(keys::feed(s.front(&s.rich).feed_position))]
            }),
            ("but the last change is at", RICH, |s| {
                let entry = StoredChange::Changed {
                    row: s.rich.row().into(),
                    terminal_at_ms: None,
                };
                vec![put(keys::feed(8_000), encoded(&entry))]
            }),
            ("feed entry says another end", ENDED, |s| {
                let entry = StoredChange::Changed {
                    row: s.ended.row().into(),
                    terminal_at_ms: None,
                };
                vec![put(
                    keys::feed(s.front(&s.ended).feed_position),
                    encoded(&entry),
                )]
            }),
            ("feed entry of a process that is not there", None, |_| {
                let entry = StoredChange::Changed {
                    row: nowhere().into(),
                    terminal_at_ms: None,
                };
                vec![put(keys::feed(8_000), encoded(&entry))]
            }),
            ("feed entry: ", None, |_| {
                vec![put(keys::feed(8_000), "damaged")]
            }),
            ("has no tombstone", Some("pruned"), |s| {
                vec![delete(keys::tombstone(s.pruned))]
            }),
            (
                "id stands for a tombstone that is not there",
                Some("pruned"),
                |s| vec![delete(keys::tombstone(s.pruned))],
            ),
            ("tombstone: ", None, |s| {
                vec![put(keys::tombstone(s.pruned), "damaged")]
            }),
            ("id does not know its tombstone", Some("pruned"), |_| {
                vec![delete(keys::id("pruned"))]
            }),
            (
                "id stands for a tombstone of another id",
                Some("rich"),
                |s| {
                    vec![put(
                        keys::id("rich"),
                        encoded(&StoredId::Pruned(s.pruned.get())),
                    )]
                },
            ),
            ("which is not there", Some("pruned"), |s| {
                let at = s.host.view().feed(0, 999).unwrap().into_iter().find_map(|(at, entry)| {
                matches!(&entry, crate::store::read::FeedEntry::Pruned { id, .. } if id == "pruned")
                    .then_some(at)
            });
                vec![delete(keys::feed(at.unwrap()))]
            }),
            ("number: ", None, |_| {
                vec![put(keys::feed_floor(), "damaged")]
            }),
        ],
    );
}

#[test]
fn replay_keys_owners_and_environments_are_checked() {
    each_is_found(
        Ground::memory,
        &[
            ("replay key of event 3 does not lead to it", RICH, |s| {
                vec![delete(keys::replay(
                    s.rich.registration.incarnation,
                    "replay",
                ))]
            }),
            ("of event 2, which has another", None, |s| {
                replays(s, "replay", 2, 3)
            }),
            ("stands for other content than event 2", None, |s| {
                replays(s, "replay", 2, 3)
            }),
            ("of event 99, which is not there", None, |s| {
                replays(s, "extra", 99, 3)
            }),
            ("of a process that was pruned", None, |s| {
                let value = s.value(&keys::replay(s.rich.registration.incarnation, "replay"));
                vec![put(keys::replay(s.pruned, "replay"), value)]
            }),
            ("replay key: ", None, |s| {
                vec![put(
                    keys::replay(s.rich.registration.incarnation, "replay"),
                    "damaged",
                )]
            }),
            ("its lease names owner 1, who is not known", RICH, |_| {
                vec![delete(keys::owner(OwnerNumber(1)))]
            }),
            ("owner: ", None, |_| {
                vec![put(keys::owner(OwnerNumber(1)), "damaged")]
            }),
            ("owner 1 is of epoch 9, which is to come", None, |s| {
                let record = OwnerRecord {
                    owner: ProcessOwner {
                        store_epoch: StoreEpoch(9),
                        ..s.host.named(OwnerNumber(1))
                    },
                    expires_at_ms: 0,
                    retired: false,
                };
                vec![put(
                    keys::owner(OwnerNumber(1)),
                    encoded(&StoredOwner::from(record)),
                )]
            }),
            ("is not there", RICH, |s| vec![delete(keys::env(&env(s)))]),
            ("is counted, but not there", None, |s| {
                vec![delete(keys::env(&env(s)))]
            }),
            ("has no count of its users", None, |s| {
                vec![delete(keys::env_users(&env(s)))]
            }),
            ("counts 4 users and has 3", None, |s| {
                vec![put(keys::env_users(&env(s)), encoded(&StoredNumber(4)))]
            }),
            ("has other content", None, |s| {
                let other = StoredEnv {
                    canonical: b"{}".to_vec(),
                };
                vec![put(keys::env(&env(s)), encoded(&other))]
            }),
            ("environment: ", None, |s| {
                vec![put(keys::env(&env(s)), "damaged")]
            }),
        ],
    );
}

fn env(scene: &Scene) -> ContentHash {
    scene.rich.registration.env_ref.unwrap()
}

/// A replay key that leads to `sequence` with the content of another event's.
fn replays(scene: &Scene, key: &str, sequence: u64, content_of: usize) -> Vec<Op> {
    let event = scene.event(&scene.rich, content_of);
    let content = decide::content_of(&event.event_type, &event.payload).0;
    let entry = StoredReplay { sequence, content };
    vec![put(
        keys::replay(scene.rich.registration.incarnation, key),
        encoded(&entry),
    )]
}

#[test]
fn wakes_are_checked_from_all_three_sides() {
    each_is_found(
        Ground::memory,
        &[
            ("is not known to the process", RICH, |s| {
                vec![delete(keys::wake_of(s.rich.row(), s.wake(1)))]
            }),
            ("is not pending any more", RICH, |s| {
                vec![delete(keys::wake(&s.target, s.wake(1)))]
            }),
            ("has a key that is not taken", ENDED, |s| {
                let back = s
                    .host
                    .keys()
                    .into_keys()
                    .find(|key| key[0] == keys::kind::WAKE_DEDUPE);
                vec![delete(back.unwrap())]
            }),
            ("which does not have it", RICH, |s| {
                let made = StoredDedupe {
                    row: s.rich.row().into(),
                    position: s.wake(1),
                };
                vec![put(keys::wake_dedupe(&s.target, "other"), encoded(&made))]
            }),
            ("wake key: ", None, |s| {
                vec![put(keys::wake_dedupe(&s.target, "other"), "damaged")]
            }),
            ("says another event than 5", RICH, |s| {
                let key = keys::wake(&s.target, s.wake(1));
                let mut wake: StoredWake = codec::decode(&s.value(&key)).unwrap();
                wake.event_type = "note".into();
                vec![put(key, encoded(&wake))]
            }),
            ("wake of a process that is not there", None, |s| {
                let mut wake: StoredWake =
                    codec::decode(&s.value(&keys::wake(&s.target, s.wake(1)))).unwrap();
                wake.row = nowhere().into();
                vec![put(keys::wake(&s.target, 8_000), encoded(&wake))]
            }),
            ("wake: ", None, |s| {
                vec![put(keys::wake(&s.target, s.wake(1)), "damaged")]
            }),
            ("wake of a process: ", None, |s| {
                vec![put(keys::wake_of(s.rich.row(), s.wake(1)), "damaged")]
            }),
            ("does not watch the process", RICH, |s| {
                vec![delete(keys::watched(&s.target, s.rich.row()))]
            }),
            ("watches a process whose wakes go elsewhere", RICH, |s| {
                vec![delete(keys::wake_target(s.rich.row()))]
            }),
            ("wake target of a process that is not there", None, |s| {
                let value = s.value(&keys::wake_target(s.rich.row()));
                vec![put(keys::wake_target(nowhere()), value)]
            }),
            ("wake target: ", None, |s| {
                vec![put(keys::wake_target(s.rich.row()), "damaged")]
            }),
            ("journaled effect: ", RICH, |s| {
                let effect = s
                    .host
                    .keys()
                    .into_keys()
                    .find(|key| key[0] == keys::kind::EFFECT);
                vec![put(effect.unwrap(), "damaged")]
            }),
            ("outcome of a journaled effect is no JSON", RICH, |s| {
                let effect = s
                    .host
                    .keys()
                    .into_keys()
                    .find(|key| key[0] == keys::kind::EFFECT);
                let value = StoredEffect {
                    content: b"{}".to_vec(),
                    outcome: b"{".to_vec(),
                };
                vec![put(effect.unwrap(), encoded(&value))]
            }),
        ],
    );
}
