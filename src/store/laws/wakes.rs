//! Wakes: in order, once for each key within a scope, until they are received or discarded.

use serde_json::{Value, json};

use crate::model::decide::Facts;
use crate::model::*;
use crate::store::keys::kind;
use crate::store::testing::*;
use crate::store::write_set::{Change, Refusal};

fn ask(key: &str) -> Value {
    json!({ "text": format!("ask {key}"), "key": key })
}

fn target() -> SessionScope {
    session("target")
}

/// What waits for a scope, in order.
fn pending(host: &Host, scope: &SessionScope) -> Vec<String> {
    let wakes = host.view().wakes(scope, 99).unwrap();
    wakes.into_iter().map(|wake| wake.text).collect()
}

fn ack(host: &Host, scope: &SessionScope, number: usize) {
    let position = host.view().wakes(scope, 99).unwrap()[number].position;
    let scope = scope.clone();
    host.ok(vec![], vec![Change::AckWake { scope, position }]);
}

fn retarget(process: &Proc, to: Option<&SessionScope>) -> Change {
    Change::RetargetWakes {
        row: process.row(),
        target: to.cloned(),
    }
}

fn started(host: &Host, id: &str) -> Proc {
    host.start(request(id).with_wake_target(Some(target())))
}

fn wakes_wait_in_order_until_they_are_received(ground: &Ground) {
    let host = ground.open();
    let (mut one, mut two) = (started(&host, "one"), started(&host, "two"));
    for n in 0..3 {
        host.emit(&mut one, "ping", json!({ "text": format!("one {n}") }));
        let receipt = host.emit(&mut two, "ping", json!({ "text": format!("two {n}") }));
        assert_eq!(receipt.woken, [target()]);
    }
    let all = ["one 0", "two 0", "one 1", "two 1", "one 2", "two 2"];
    assert_eq!(pending(&host, &target()), all);
    let first = &host.view().wakes(&target(), 1).unwrap()[0];
    assert_eq!((first.process_id.as_str(), first.sequence), ("one", 1));
    assert_eq!(first.event_type, "ping");
    ack(&host, &target(), 1);
    assert_eq!(pending(&host, &target())[..2], ["one 0", "one 1"]);
    let stale = Change::AckWake {
        scope: target(),
        position: 9_999,
    };
    assert_eq!(host.refused(vec![], vec![stale]), Refusal::NothingToDo);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The check of the dedupe key in `deliver`.
fn a_key_wakes_a_scope_once_whoever_uses_it(ground: &Ground) {
    let host = ground.open();
    let (mut one, mut two) = (started(&host, "one"), started(&host, "two"));
    host.emit(&mut one, "ask", ask("a"));
    for process in [&mut one, &mut two] {
        let receipt = host.emit(process, "ask", ask("a"));
        assert_eq!(receipt.woken, []);
    }
    host.emit(&mut two, "ask", ask("b"));
    assert_eq!(pending(&host, &target()), ["ask a", "ask b"]);
    // Received is not forgotten.
    ack(&host, &target(), 0);
    assert_eq!(host.emit(&mut two, "ask", ask("a")).woken, []);
    // Another scope has not had it.
    let other = session("target").with_frame("f");
    let command = one.event("ask", ask("a"), None, Some(other.clone()));
    assert_eq!(
        host.step(&mut one, command, Facts::default()).woken,
        vec![other.clone()]
    );
    assert_eq!(pending(&host, &other), ["ask a"]);
    assert_eq!(host.view().wakes_of_session("target").unwrap().len(), 2);
    // The key goes with the process that used it.
    host.finish(&mut one);
    host.prune(&one);
    assert_eq!(host.emit(&mut two, "ask", ask("a")).woken, [target()]);
    host.assert_clean();
    host.store.close().unwrap();
}

/// `reads_own` for an append with several wakes.
fn a_key_wakes_once_within_one_set_too(ground: &Ground) {
    let host = ground.open();
    let mut process = started(&host, "p");
    let at = process.at();
    let mut decided = ["a", "a", "b"].into_iter().map(|key| {
        let command = process.event("ask", ask(key), None, None);
        let change = process.decide(&host, command, Facts::default());
        let Change::Append(append) = change else {
            panic!("an event is appended");
        };
        *append
    });
    let mut whole = decided.next().unwrap();
    for next in decided {
        whole.events.extend(next.events);
        whole.wakes.extend(next.wakes);
        whole.state = next.state;
    }
    let receipt = host.ok(vec![at], vec![Change::Append(Box::new(whole))]);
    assert_eq!(receipt.woken.len(), 2);
    assert_eq!(pending(&host, &target()), ["ask a", "ask b"]);
    host.assert_clean();
    host.store.close().unwrap();
}

fn without_a_target_the_event_is_logged_and_nobody_woken(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let receipt = host.emit(&mut process, "ask", ask("a"));
    assert_eq!(receipt.woken, []);
    let loaded = host.view().process("p").unwrap().unwrap();
    assert_eq!(loaded.state.last_sequence, 1);
    let keys = host.keys();
    let wakes = [kind::WAKE, kind::WAKE_OF, kind::WAKE_DEDUPE];
    assert!(keys.keys().all(|key| !wakes.contains(&key[0])));
    host.assert_clean();
    host.store.close().unwrap();
}

/// `retarget_wakes` and `discard_pending`.
fn a_new_target_discards_what_the_old_one_has_not_received(ground: &Ground) {
    let host = ground.open();
    let (mut one, mut two) = (started(&host, "one"), started(&host, "two"));
    for key in ["received", "pending"] {
        host.emit(&mut one, "ask", ask(key));
    }
    host.emit(&mut one, "ping", json!({ "text": "ping" }));
    host.emit(&mut two, "ping", json!({ "text": "of two" }));
    ack(&host, &target(), 0);
    let other = session("other");
    let receipt = host.ok(vec![], vec![retarget(&one, Some(&other))]);
    assert_eq!(receipt.wakes_discarded, 2);
    assert_eq!(pending(&host, &target()), ["of two"]);
    assert_eq!(
        host.view().wake_target(one.row()).unwrap(),
        Some(other.clone())
    );
    let watched = |host: &Host, session: &str| {
        let found = host.view().watched_by_session(session).unwrap();
        found.into_iter().map(|it| it.1).collect::<Vec<_>>()
    };
    assert_eq!(watched(&host, "target"), [two.row()]);
    assert_eq!(watched(&host, "other"), [one.row()]);
    host.assert_clean();
    let same = retarget(&one, Some(&other));
    assert_eq!(host.refused(vec![], vec![same]), Refusal::NothingToDo);
    host.emit(&mut one, "ask", ask("received"));
    assert_eq!(pending(&host, &other), ["ask received"]);
    // Back again: what it had received it has had; what was discarded it has not.
    host.ok(vec![], vec![retarget(&one, Some(&target()))]);
    assert_eq!(host.emit(&mut one, "ask", ask("received")).woken, []);
    assert_eq!(host.emit(&mut one, "ask", ask("pending")).woken, [target()]);
    let receipt = host.ok(vec![], vec![retarget(&one, None)]);
    assert_eq!(receipt.wakes_discarded, 1);
    assert_eq!(host.view().wake_target(one.row()).unwrap(), None);
    assert_eq!(host.emit(&mut one, "ask", ask("nobody")).woken, []);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The scans that look through the set's own writes.
fn a_new_target_discards_what_the_same_set_delivered(ground: &Ground) {
    let host = ground.open();
    let mut process = started(&host, "p");
    let command = process.event("ask", ask("a"), None, None);
    let asks = process.decide(&host, command, Facts::default());
    let receipt = host.ok(
        vec![],
        vec![asks, retarget(&process, Some(&session("other")))],
    );
    assert_eq!(receipt.wakes_discarded, 1);
    assert_eq!(pending(&host, &target()), Vec::<String>::new());
    host.assert_clean();
    host.store.close().unwrap();
}

/// `forget_wake_scope`.
fn g4_a_session_that_goes_takes_its_wakes_and_targets_and_no_event(ground: &Ground) {
    let host = ground.open();
    let (mut one, mut two) = (started(&host, "one"), started(&host, "two"));
    let frame = target().with_frame("f");
    host.ok(vec![], vec![retarget(&two, Some(&frame))]);
    host.emit(&mut one, "ask", ask("received"));
    ack(&host, &target(), 0);
    host.emit(&mut one, "ask", ask("a"));
    host.emit(&mut two, "ask", ask("a"));
    let (_, logs) = host.dump();
    let scope = target();
    let receipt = host.ok(vec![], vec![Change::ForgetWakeScope { scope }]);
    assert_eq!(receipt.wakes_discarded, 1);
    assert_eq!(host.dump().1, logs);
    assert_eq!(host.view().wake_target(one.row()).unwrap(), None);
    assert_eq!(pending(&host, &target()), Vec::<String>::new());
    assert_eq!(pending(&host, &frame), ["ask a"], "another scope");
    host.assert_clean();
    assert_eq!(host.emit(&mut one, "ask", ask("b")).woken, []);
    let scope = target();
    let again = host.refused(vec![], vec![Change::ForgetWakeScope { scope }]);
    assert_eq!(again, Refusal::NothingToDo);
    host.store.close().unwrap();
}

held_by_both!(
    wakes_wait_in_order_until_they_are_received,
    a_key_wakes_a_scope_once_whoever_uses_it,
    a_key_wakes_once_within_one_set_too,
    without_a_target_the_event_is_logged_and_nobody_woken,
    a_new_target_discards_what_the_old_one_has_not_received,
    a_new_target_discards_what_the_same_set_delivered,
    g4_a_session_that_goes_takes_its_wakes_and_targets_and_no_event,
);
