//! Wakes: in order, once for each key within a scope, until they are received or discarded.

use serde_json::{Value, json};

use crate::model::decide::Facts;
use crate::model::*;
use crate::store::keys::kind;
use crate::store::read::{OfSession, SessionEdge};
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

fn retarget(host: &Host, process: &Proc, to: Option<&SessionScope>) -> Change {
    Change::RetargetWakes {
        row: process.row(),
        from: host.view().wake_target(process.row()).unwrap(),
        target: to.cloned(),
        after: 0,
    }
}

/// What a session has of one kind.
fn edges(host: &Host, session: &str, edge: SessionEdge) -> Vec<OfSession> {
    let view = host.view();
    let all = view.of_session(session, edge, None, 99).unwrap();
    // The same in pages.
    let (mut paged, mut after) = (Vec::new(), None);
    loop {
        let page = view.of_session(session, edge, after.as_deref(), 1).unwrap();
        let Some(one) = page.into_iter().next() else {
            break;
        };
        after = Some(one.key.clone());
        paged.push(one.key);
    }
    assert_eq!(
        paged,
        all.iter().map(|it| it.key.clone()).collect::<Vec<_>>()
    );
    all
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
    assert_eq!(edges(&host, "target", SessionEdge::Wake).len(), 2);
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
    let receipt = host.ok(vec![], vec![retarget(&host, &one, Some(&other))]);
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
    let same = retarget(&host, &one, Some(&other));
    assert_eq!(host.refused(vec![], vec![same]), Refusal::NothingToDo);
    host.emit(&mut one, "ask", ask("received"));
    assert_eq!(pending(&host, &other), ["ask received"]);
    // Back again: what it had received it has had; what was discarded it has not.
    host.ok(vec![], vec![retarget(&host, &one, Some(&target()))]);
    assert_eq!(host.emit(&mut one, "ask", ask("received")).woken, []);
    assert_eq!(host.emit(&mut one, "ask", ask("pending")).woken, [target()]);
    let receipt = host.ok(vec![], vec![retarget(&host, &one, None)]);
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
        vec![asks, retarget(&host, &process, Some(&session("other")))],
    );
    assert_eq!(receipt.wakes_discarded, 1);
    assert_eq!(pending(&host, &target()), Vec::<String>::new());
    host.assert_clean();
    host.store.close().unwrap();
}

/// `from` and `after` in `retarget_wakes`.
fn a_new_target_rests_on_what_was_looked_at(ground: &Ground) {
    let host = ground.open();
    let mut process = started(&host, "p");
    for n in 0..3 {
        host.emit(&mut process, "ping", json!({ "text": format!("{n}") }));
    }
    let made = host.view().wakes_made(process.row(), 0, 9).unwrap();
    let second = made[1].0;
    assert_eq!(
        host.view().wakes_made(process.row(), second, 9).unwrap(),
        made[2..]
    );
    let stale = Change::RetargetWakes {
        row: process.row(),
        from: Some(session("somebody else")),
        target: None,
        after: 0,
    };
    assert_eq!(host.refused(vec![], vec![stale]), Refusal::Moved);
    let rest = Change::RetargetWakes {
        row: process.row(),
        from: Some(target()),
        target: None,
        after: second,
    };
    // What was made before that is somebody else's to discard.
    assert_eq!(host.ok(vec![], vec![rest]).wakes_discarded, 1);
    assert_eq!(pending(&host, &target()), ["0", "1"]);
    let rest = |received_too| Change::DiscardWakes {
        wakes: made
            .iter()
            .map(|(position, _)| (process.row(), *position))
            .collect(),
        received_too,
    };
    assert_eq!(host.ok(vec![], vec![rest(false)]).wakes_discarded, 2);
    assert_eq!(host.refused(vec![], vec![rest(true)]), Refusal::NothingToDo);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The bound in `discard_pending`.
fn a_new_target_never_looks_through_more_wakes_than_it_may(ground: &Ground) {
    let host = ground.open();
    let mut process = started(&host, "p");
    for _ in 0..2_001 {
        host.emit(&mut process, "ping", json!({ "text": "!" }));
    }
    let away = retarget(&host, &process, None);
    assert_eq!(host.refused(vec![], vec![away]), Refusal::TooMany);
    let first = host.view().wakes_made(process.row(), 0, 1).unwrap()[0].0;
    let slice = Change::DiscardWakes {
        wakes: vec![(process.row(), first)],
        received_too: false,
    };
    assert_eq!(host.ok(vec![], vec![slice]).wakes_discarded, 1);
    let away = retarget(&host, &process, None);
    assert_eq!(host.ok(vec![], vec![away]).wakes_discarded, 2_000);
    host.store.close().unwrap();
}

/// What a deletion of a session is made of.
fn g4_a_session_that_goes_takes_its_wakes_and_targets_and_no_event(ground: &Ground) {
    let host = ground.open();
    let (mut one, mut two) = (started(&host, "one"), started(&host, "two"));
    let frame = session("other").with_frame("f");
    host.ok(vec![], vec![retarget(&host, &two, Some(&frame))]);
    host.emit(&mut one, "ask", ask("received"));
    ack(&host, &target(), 0);
    host.emit(&mut one, "ask", ask("a"));
    host.emit(&mut two, "ask", ask("a"));
    let (_, logs) = host.dump();
    let targets = edges(&host, "target", SessionEdge::Target);
    let leaves = targets.iter().map(|it| Change::DropWakeTarget {
        row: it.row,
        scope: it.scope.clone(),
    });
    host.ok(vec![], leaves.collect());
    assert_eq!(host.view().wake_target(one.row()).unwrap(), None);
    assert_eq!(
        host.view().wake_target(two.row()).unwrap(),
        Some(frame.clone())
    );
    let discard = |edge| Change::DiscardWakes {
        wakes: edges(&host, "target", edge)
            .iter()
            .map(|it| (it.row, it.position))
            .collect(),
        received_too: true,
    };
    let receipt = host.ok(vec![], vec![discard(SessionEdge::Wake)]);
    assert_eq!(receipt.wakes_discarded, 1);
    assert_eq!(pending(&host, &target()), Vec::<String>::new());
    // The key of what was received goes too: whoever has that id next has not had it.
    assert_eq!(edges(&host, "target", SessionEdge::WakeKey).len(), 1);
    let receipt = host.ok(vec![], vec![discard(SessionEdge::WakeKey)]);
    assert_eq!(receipt.wakes_discarded, 0);
    for edge in [SessionEdge::Target, SessionEdge::Wake, SessionEdge::WakeKey] {
        assert!(edges(&host, "target", edge).is_empty());
    }
    assert_eq!(host.dump().1, logs);
    assert_eq!(pending(&host, &frame), ["ask a"], "another scope");
    host.assert_clean();
    assert_eq!(host.emit(&mut one, "ask", ask("b")).woken, []);
    host.ok(vec![], vec![retarget(&host, &one, Some(&target()))]);
    let again = host.emit(&mut one, "ask", ask("received"));
    assert_eq!(again.woken, [target()]);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The scope of a wake in `discard_pending`, and that of the target in `leave_wake_target`.
fn g4_a_target_that_goes_takes_nothing_of_another_scope(ground: &Ground) {
    let host = ground.open();
    let mut process = started(&host, "p");
    let other = session("other");
    host.emit(&mut process, "ask", ask("a"));
    let command = process.event("ask", ask("b"), None, Some(other.clone()));
    host.step(&mut process, command, Facts::default());
    let leave = Change::DropWakeTarget {
        row: process.row(),
        scope: other.clone(),
    };
    assert_eq!(host.refused(vec![], vec![leave]), Refusal::NothingToDo);
    assert_eq!(
        host.view().wake_target(process.row()).unwrap(),
        Some(target())
    );
    let set = retarget(&host, &process, None);
    assert_eq!(host.ok(vec![], vec![set]).wakes_discarded, 1);
    assert_eq!(pending(&host, &target()), [""; 0]);
    assert_eq!(pending(&host, &other), ["ask b"]);
    host.assert_clean();
    host.store.close().unwrap();
}

held_by_both!(
    wakes_wait_in_order_until_they_are_received,
    a_key_wakes_a_scope_once_whoever_uses_it,
    a_key_wakes_once_within_one_set_too,
    without_a_target_the_event_is_logged_and_nobody_woken,
    a_new_target_discards_what_the_old_one_has_not_received,
    a_new_target_discards_what_the_same_set_delivered,
    a_new_target_rests_on_what_was_looked_at,
    a_new_target_never_looks_through_more_wakes_than_it_may,
    g4_a_session_that_goes_takes_its_wakes_and_targets_and_no_event,
    g4_a_target_that_goes_takes_nothing_of_another_scope,
);
