//! A process goes whole, is counted exactly, and what remains of it goes later.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use serde_json::json;

use crate::model::decide::Facts;
use crate::model::*;
use crate::store::keys::{self, kind};
use crate::store::read::FeedEntry;
use crate::store::testing::*;
use crate::store::write_set::{Change, Refusal};
use crate::store::writes;

type Keys = BTreeMap<Bytes, Bytes>;

/// Key sizes and value sizes of what is in one and not in the other, but for ids.
fn bytes_beyond(keys: &Keys, before: &Keys) -> u64 {
    let beyond = keys
        .iter()
        .filter(|(key, _)| !before.contains_key(*key) && key[0] != kind::ID);
    beyond
        .map(|(key, value)| (key.len() + value.len()) as u64)
        .sum()
}

/// A process with a key of every kind that one can have.
fn of_every_kind(host: &Host, id: &str, parent: &Proc) -> Proc {
    let mut request = rich_request(id);
    request.input = ProcessInput::engine("work", json!({ "text": "x".repeat(3_000) }));
    let parent = ProcessParent {
        process_id: parent.registration.id.clone(),
        incarnation: parent.registration.incarnation,
        key: "k".into(),
        detached: true,
    };
    let mut process = Proc::new(host, request, Some(parent));
    host.ok(vec![], vec![process.register()]);
    let row = process.row();
    host.ok(
        vec![],
        vec![Change::Grant {
            row,
            scope: session("holder").with_frame("f"),
            descriptor: ProcessHandleDescriptor::label("second"),
        }],
    );
    for n in 0..3 {
        let command = process.event("note", json!({ "n": n }), Some(&format!("r-{n}")), None);
        host.step(&mut process, command, Facts::default());
    }
    // Two wakes that are received, with a key and without; two that stay.
    for n in 0..2 {
        host.emit(
            &mut process,
            "ask",
            json!({ "text": "?", "key": format!("{id}-{n}") }),
        );
        host.emit(&mut process, "ping", json!({ "text": "!" }));
    }
    let wakes = host.view().wakes(&session("target"), 99).unwrap();
    let own = wakes.iter().filter(|wake| wake.process_id == id);
    for position in own.take(2).map(|wake| wake.position) {
        let scope = session("target");
        host.ok(vec![], vec![Change::AckWake { scope, position }]);
    }
    let signal = EffectKey::Signal {
        process_id: id.into(),
        signal_name: "go".into(),
        signal_id: "1".into(),
    };
    for turn in ["t-1", "t-2"] {
        let scope = ExecutionScope::turn("s", turn);
        let effect = writes::record_effect(&scope, &signal, b"1".to_vec(), b"2".to_vec());
        host.ok(vec![], vec![effect.unwrap()]);
    }
    process
}

fn r2_a_prune_leaves_the_id_the_tombstone_and_the_deletion_and_counts_all_else(ground: &Ground) {
    let host = ground.open();
    let parent = host.start(request("parent"));
    let owner = host.owner();
    let before = host.keys();
    let mut process = of_every_kind(&host, "p", &parent);
    host.begin(&mut process, owner);
    // Ends under its lease, and keeps it: the report counts it.
    let end = process.event("done", json!({}), None, None);
    let decide::Command::Append { event: end, .. } = end else {
        panic!("an event is appended");
    };
    let token = host.view().front(process.row()).unwrap().unwrap().token;
    let facts = Facts {
        holder: Some(FencingToken(token)),
        ..Facts::default()
    };
    let writer = record::Writer::Owner(FencingToken(token));
    let at = process.at();
    let change = process.decide(&host, decide::Command::Append { event: end, writer }, facts);
    let Change::Append(mut append) = change else {
        panic!("an event is appended");
    };
    append.lease = crate::store::write_set::LeaseWrite::Keep;
    host.ok(vec![at], vec![Change::Append(append)]);
    host.assert_clean();

    let (whole, logs) = host.dump();
    let kinds: BTreeSet<u8> = whole.keys().map(|key| key[0]).collect();
    let of_ended = (kind::ID..=kind::WATCHED).filter(|it| *it != kind::RUNNING);
    assert!(
        of_ended
            .chain([kind::ENV_USERS])
            .all(|it| kinds.contains(&it)),
        "{kinds:?}"
    );
    let log: Vec<_> = logs
        .iter()
        .filter(|(incarnation, ..)| *incarnation == process.registration.incarnation.get())
        .collect();
    let log_bytes: u64 = log.iter().map(|(.., value)| value.len() as u64).sum();
    let receipt = host.prune(&process);
    assert_eq!(
        receipt.pruned,
        ProcessPruneReport {
            pruned_processes: 1,
            // Three notes, four wakes, started, done.
            pruned_events: 9,
            grants: 2,
            leases: 1,
            wakes: 2,
            bytes: bytes_beyond(&whole, &before) + log_bytes,
        }
    );
    let mut left = host.keys();
    left.retain(|key, _| !before.contains_key(key));
    let kinds: Vec<u8> = left.keys().map(|key| key[0]).collect();
    assert_eq!(kinds, [kind::ID, kind::FEED, kind::TOMBSTONE], "{left:?}");
    assert!(
        before
            .iter()
            .all(|(key, value)| host.keys().get(key) == Some(value))
    );
    host.assert_clean();
    // R4: pruning it again finds nothing.
    assert_eq!(
        host.refused(vec![], vec![host.pruned(&process)]),
        Refusal::Gone
    );
    host.store.close().unwrap();
}

/// The check of the end in `prune`.
fn r1_what_runs_is_never_pruned(ground: &Ground) {
    let host = ground.open();
    let process = host.start(request("p"));
    assert_eq!(
        host.refused(vec![], vec![host.pruned(&process)]),
        Refusal::Moved
    );
    host.store.close().unwrap();
}

/// `leave_env` and the counting in `register`.
fn an_environment_stays_as_long_as_somebody_uses_it(ground: &Ground) {
    let host = ground.open();
    let mut processes: Vec<_> = ["a", "b", "c"]
        .map(|id| Proc::new(&host, rich_request(id), None))
        .into();
    // Two of them in one set.
    let both = processes[..2].iter().map(Proc::register).collect();
    host.ok(vec![], both);
    host.ok(vec![], vec![processes[2].register()]);
    let hash = processes[0].registration.env_ref.unwrap();
    let canonical = br#"{"options":{"shell":"sh"},"policy":{}}"#;
    host.assert_clean();
    for process in &mut processes {
        host.finish(process);
    }
    // Two again, in one set; then the last one.
    let both = processes[..2].iter().map(|it| host.pruned(it)).collect();
    assert_eq!(host.ok(vec![], both).pruned.pruned_processes, 2);
    assert_eq!(
        host.view().env(&hash).unwrap().as_deref(),
        Some(&canonical[..])
    );
    host.assert_clean();
    host.prune(&processes[2]);
    assert_eq!(host.view().env(&hash).unwrap(), None);
    let kinds = host.keys();
    assert!(
        kinds
            .keys()
            .all(|key| key[0] != kind::ENV && key[0] != kind::ENV_USERS)
    );
    host.assert_clean();
    host.store.close().unwrap();
}

/// A process that is started anew shares nothing with the one before it.
fn a_pruned_id_begins_a_new_incarnation(ground: &Ground) {
    let host = ground.open();
    let mut first = host.start(rich_request("p"));
    let command = first.event("note", json!(1), Some("r"), None);
    host.step(&mut first, command, Facts::default());
    host.finish(&mut first);
    host.prune(&first);
    let mut second = host.start(request("p").with_priority(1));
    assert_eq!(second.state.last_sequence, 0);
    let view = host.view();
    let incarnation = second.registration.incarnation;
    assert_eq!(view.replayed(incarnation, "r").unwrap(), None);
    assert_eq!(view.events("p", incarnation, 1, 9, 999).unwrap(), []);
    assert_eq!(view.scopes_granted(second.row()).unwrap(), []);
    assert_eq!(view.wake_target(second.row()).unwrap(), None);
    drop(view);
    host.emit(&mut second, "note", json!(2));
    // The first one's tombstone can go without the second one noticing.
    let incarnation = first.registration.incarnation;
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    let loaded = host.view().process("p").unwrap().unwrap();
    assert_eq!(loaded.state.last_sequence, 1);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The floor rises with what is forgotten, and never falls.
fn a_dropped_tombstone_takes_its_id_and_its_deletion_along_and_raises_the_floor(ground: &Ground) {
    let host = ground.open();
    let mut dropped = Vec::new();
    for id in ["a", "b"] {
        let mut process = host.start(request(id));
        host.finish(&mut process);
        host.prune(&process);
        dropped.push(process.registration.incarnation);
    }
    let view = host.view();
    let positions: Vec<_> = view.feed(0, 9).unwrap().iter().map(|it| it.0).collect();
    // Each took a position to start, to end and to go.
    assert_eq!(positions, [3, 6]);
    assert_eq!(view.feed_bounds().unwrap(), (0, 6));
    drop(view);
    // The younger one first: the floor stays where it is when the older one follows.
    for incarnation in dropped.iter().rev() {
        let incarnation = *incarnation;
        host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
        assert_eq!(host.view().feed_bounds().unwrap(), (6, 6));
    }
    let again = vec![Change::DropTombstone {
        incarnation: dropped[0],
    }];
    assert_eq!(host.refused(vec![], again), Refusal::NothingToDo);
    assert_eq!(host.view().feed(0, 9).unwrap(), []);
    assert_eq!(host.view().id("a").unwrap(), None);
    let left: Vec<_> = host.keys().into_keys().collect();
    assert_eq!(left, [keys::feed_floor()]);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The scan of effects in `drop_tombstone`.
fn r2_an_effect_on_what_is_gone_goes_with_its_tombstone(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    host.finish(&mut process);
    host.prune(&process);
    for id in ["p", "pp"] {
        let cancel = EffectKey::Cancel {
            process_id: id.into(),
        };
        let scope = ExecutionScope::operation("late");
        let effect = writes::record_effect(&scope, &cancel, b"1".to_vec(), b"2".to_vec());
        host.ok(vec![], vec![effect.unwrap()]);
    }
    let incarnation = process.registration.incarnation;
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    let scope = ExecutionScope::operation("late");
    let other = EffectKey::Cancel {
        process_id: "pp".into(),
    };
    let left: Vec<_> = host.keys().into_keys().collect();
    assert_eq!(left, [keys::effect(&scope, &other), keys::feed_floor()]);
    host.store.close().unwrap();
}

/// What the same set did before counts in the report.
fn a_prune_sees_what_its_own_set_changed(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(rich_request("p"));
    host.emit(&mut process, "ping", json!({ "text": "!" }));
    host.finish(&mut process);
    let revoke = Change::Revoke {
        row: process.row(),
        scope: session("holder"),
    };
    let target = session("target");
    let ack = Change::AckWake {
        scope: target.clone(),
        position: host.view().wakes(&target, 1).unwrap()[0].position,
    };
    let late = Change::Grant {
        row: process.row(),
        scope: session("late"),
        descriptor: ProcessHandleDescriptor::default(),
    };
    let receipt = host.ok(vec![], vec![revoke, ack, late, host.pruned(&process)]);
    assert_eq!((receipt.pruned.grants, receipt.pruned.wakes), (1, 0));
    let deletion = FeedEntry::Pruned {
        id: "p".into(),
        incarnation: process.registration.incarnation,
    };
    let feed = host.view().feed(0, 9).unwrap();
    assert_eq!(
        feed.into_iter().map(|it| it.1).collect::<Vec<_>>(),
        [deletion]
    );
    host.assert_clean();
    host.store.close().unwrap();
}

/// `drop_some`, `drop_remains` and what hides what they left.
fn r2_what_is_too_much_for_one_commit_is_gone_at_once_and_erased_behind_it(ground: &Ground) {
    let host = ground.open();
    let target = session("target");
    let mut other = host.start(request("other").with_wake_target(Some(target.clone())));
    let before = host.keys();
    let mut process = host.start(request("p").with_wake_target(Some(target.clone())));
    let (row, incarnation) = (process.row(), process.registration.incarnation);
    for n in 0..1_100 {
        let (event, payload) = match n % 2 {
            0 => ("ask", json!({ "text": "?", "key": format!("k-{n}") })),
            _ => ("ping", json!({ "text": "!" })),
        };
        let command = process.event(event, payload, Some(&format!("r-{n}")), None);
        host.step(&mut process, command, Facts::default());
    }
    for position in host.view().wakes(&target, 10).unwrap() {
        let (scope, position) = (target.clone(), position.position);
        host.ok(vec![], vec![Change::AckWake { scope, position }]);
    }
    host.finish(&mut process);
    let (whole, logs) = host.dump();
    let log = logs.iter().filter(|(of, ..)| *of == incarnation.get());
    let log_bytes: u64 = log.map(|(.., value)| value.len() as u64).sum();
    let beyond = bytes_beyond(&whole, &before);

    let receipt = host.prune(&process);
    assert_eq!(receipt.remains, [row]);
    let mut report = receipt.pruned;
    let left = |host: &Host, kind: u8| host.keys().keys().filter(|key| key[0] == kind).count();
    assert_eq!(
        (left(&host, kind::WAKE_OF), left(&host, kind::REPLAY)),
        (595, 600)
    );
    // Gone in that commit, for all that can be seen of it.
    assert_eq!(host.view().wakes(&target, 9).unwrap(), []);
    assert!(host.view().process("p").unwrap().is_none());
    host.assert_clean();
    // A key that it used is free, and stays with whoever took it.
    let key = json!({ "text": "mine", "key": "k-1098" });
    assert_eq!(host.emit(&mut other, "ask", key).woken, [target.clone()]);
    assert_eq!(host.view().wakes(&target, 9).unwrap().len(), 1);
    host.assert_clean();

    // R4: from any point on, by whoever comes first, and each counts what it erased.
    let mut slices = 0;
    while let Some(found) = host
        .view()
        .unerased(Incarnation::default(), 9)
        .unwrap()
        .first()
    {
        assert_eq!(*found, row);
        let remains = host.view().remains(row).unwrap();
        let erase = || vec![Change::DropRemains(Box::new(remains.clone()))];
        report.add(host.ok(vec![], erase()).pruned);
        if remains.is_all {
            assert_eq!(host.refused(vec![], erase()), Refusal::NothingToDo);
        } else {
            host.assert_clean();
        }
        slices += 1;
    }
    assert_eq!(slices, 2);
    // The key that another took meanwhile went with it, and its note came and went beside.
    let taken = whole.iter().find(|(key, _)| {
        key[0] == kind::WAKE_DEDUPE && host.keys().contains_key(*key) && !before.contains_key(*key)
    });
    let (key, value) = taken.unwrap();
    assert_eq!(
        report,
        ProcessPruneReport {
            pruned_processes: 1,
            pruned_events: 1_101,
            grants: 0,
            leases: 0,
            wakes: 1_090,
            bytes: beyond + log_bytes - (key.len() + value.len()) as u64,
        }
    );
    let kinds: Vec<u8> = host
        .keys()
        .keys()
        .filter(|key| !before.contains_key(*key))
        .map(|key| key[0])
        .collect();
    let of_both = [
        kind::ID,
        kind::FEED,
        kind::FEED,
        kind::WAKE,
        kind::WAKE_DEDUPE,
    ];
    assert_eq!(
        kinds,
        [&of_both[..], &[kind::WAKE_OF, kind::TOMBSTONE]].concat()
    );
    assert_eq!(host.view().wakes(&target, 9).unwrap().len(), 1);
    host.assert_clean();
    host.store.close().unwrap();
}

/// `is_there` in `Revoke`, `ack_wake` and `discard_wakes`.
fn r4_what_a_pruned_process_left_is_erased_and_counted_by_prunes_alone(ground: &Ground) {
    let host = ground.open();
    let target = session("target");
    let before = host.keys();
    let mut process = host.start(request("p").with_wake_target(Some(target.clone())));
    let row = process.row();
    let granted: Vec<_> = (0..600).map(|n| session(&format!("s-{n:03}"))).collect();
    let grants = granted.iter().map(|scope| Change::Grant {
        row,
        scope: scope.clone(),
        descriptor: ProcessHandleDescriptor::default(),
    });
    host.ok(vec![], grants.collect());
    for n in 0..600 {
        let payload = json!({ "text": "?", "key": format!("k-{n}") });
        host.emit(&mut process, "ask", payload);
    }
    host.finish(&mut process);
    let wakes = host.view().wakes(&target, 999).unwrap();
    let (whole, logs) = host.dump();
    let log_bytes: u64 = logs.iter().map(|(.., value)| value.len() as u64).sum();
    let receipt = host.prune(&process);
    assert_eq!(receipt.remains, [row]);
    let mut report = receipt.pruned;
    assert_eq!((report.grants, report.wakes), (500, 500));

    let revoked = granted.iter().map(|scope| Change::Revoke {
        row,
        scope: scope.clone(),
    });
    let discarded = vec![Change::DiscardWakes {
        wakes: wakes.iter().map(|wake| (row, wake.position)).collect(),
        received_too: true,
    }];
    let acked = wakes.iter().map(|wake| Change::AckWake {
        scope: target.clone(),
        position: wake.position,
    });
    for changes in [revoked.collect(), discarded, acked.collect()] {
        assert_eq!(host.refused(vec![], changes), Refusal::NothingToDo);
    }
    let remains = host.view().remains(row).unwrap();
    report.add(
        host.ok(vec![], vec![Change::DropRemains(Box::new(remains))])
            .pruned,
    );
    assert_eq!(
        report,
        ProcessPruneReport {
            pruned_processes: 1,
            pruned_events: 601,
            grants: 600,
            leases: 0,
            wakes: 600,
            bytes: bytes_beyond(&whole, &before) + log_bytes,
        }
    );
    host.assert_clean();
    host.store.close().unwrap();
}

/// The bound in `drop_effects`, and whose effects `forget_effects` forgets.
fn r2_effects_that_are_too_many_go_before_their_process(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    host.finish(&mut process);
    let cancel = EffectKey::Cancel {
        process_id: "p".into(),
    };
    let record = |turn: usize| {
        let scope = ExecutionScope::turn("s", turn.to_string());
        writes::record_effect(&scope, &cancel, b"1".to_vec(), b"2".to_vec()).unwrap()
    };
    host.ok(vec![], (0..1_001).map(record).collect());
    let refused = host.refused(vec![], vec![host.pruned(&process)]);
    assert_eq!(refused, Refusal::TooMany);
    let keys = host.view().effects_on("p", 600).unwrap();
    let forget = |incarnation| Change::ForgetEffects {
        id: "p".into(),
        incarnation,
        keys: keys.clone(),
    };
    let incarnation = process.registration.incarnation;
    let of_another = forget(Incarnation(incarnation.get() + 1));
    assert_eq!(host.refused(vec![], vec![of_another]), Refusal::Gone);
    let bytes = host.ok(vec![], vec![forget(incarnation)]).pruned.bytes;
    assert!(bytes > 0);
    host.prune(&process);
    assert_eq!(host.view().effects_on("p", 9).unwrap(), Vec::<Bytes>::new());
    host.assert_clean();
    host.store.close().unwrap();
}

held_by_both!(
    r4_what_a_pruned_process_left_is_erased_and_counted_by_prunes_alone,
    r2_what_is_too_much_for_one_commit_is_gone_at_once_and_erased_behind_it,
    r2_effects_that_are_too_many_go_before_their_process,
    r2_a_prune_leaves_the_id_the_tombstone_and_the_deletion_and_counts_all_else,
    r1_what_runs_is_never_pruned,
    an_environment_stays_as_long_as_somebody_uses_it,
    a_pruned_id_begins_a_new_incarnation,
    a_dropped_tombstone_takes_its_id_and_its_deletion_along_and_raises_the_floor,
    r2_an_effect_on_what_is_gone_goes_with_its_tombstone,
    a_prune_sees_what_its_own_set_changed,
);
