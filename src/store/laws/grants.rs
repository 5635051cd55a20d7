//! Grants: a condition of writes, one thing seen from two sides, and moved in one step.

use crate::model::*;
use crate::store::keys;
use crate::store::testing::*;
use crate::store::write_set::{Change, Condition, Refusal};

fn grant(process: &Proc, scope: &SessionScope, label: &str) -> Change {
    Change::Grant {
        row: process.row(),
        scope: scope.clone(),
        descriptor: ProcessHandleDescriptor::label(label),
    }
}

fn revoke(process: &Proc, scope: &SessionScope) -> Change {
    Change::Revoke {
        row: process.row(),
        scope: scope.clone(),
    }
}

fn granted(process: &Proc, scope: &SessionScope) -> Condition {
    Condition::Granted {
        row: process.row(),
        scope: scope.clone(),
    }
}

/// What a scope is told about a process, from its side, and whether the process knows the scope.
fn holds(host: &Host, scope: &SessionScope, process: &Proc) -> (Option<String>, bool) {
    let view = host.view();
    let told = view.grant(scope, process.row()).unwrap();
    let known = view.scopes_granted(process.row()).unwrap().contains(scope);
    (told.and_then(|descriptor| descriptor.label), known)
}

/// `Condition::Granted`.
fn g1_a_write_without_a_grant_is_refused(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(rich_request("p"));
    let root = session("holder");
    let frame = session("holder").with_frame("f");
    let note = process.note(&host);
    for other in [frame, session("holde"), session("stranger")] {
        let refusal = host.refused(vec![granted(&process, &other)], vec![note.clone()]);
        assert_eq!(refusal, Refusal::NotGranted, "{other}");
    }
    host.ok(vec![granted(&process, &root)], vec![note]);
    host.ok(vec![], vec![revoke(&process, &root)]);
    let note = process.note(&host);
    let refusal = host.refused(vec![granted(&process, &root)], vec![note]);
    assert_eq!(refusal, Refusal::NotGranted, "revoked");
    host.store.close().unwrap();
}

/// Both `put`s in `grant`, both `delete`s of `Revoke`.
fn g3_both_directions_change_together(ground: &Ground) {
    let host = ground.open();
    let process = host.start(request("p"));
    let scope = session("s").with_frame("f");
    assert_eq!(holds(&host, &scope, &process), (None, false));
    host.ok(vec![], vec![grant(&process, &scope, "one")]);
    assert_eq!(holds(&host, &scope, &process), (Some("one".into()), true));
    host.assert_clean();
    // One that is there keeps its descriptor, and there is nothing to do.
    let again = host.refused(vec![], vec![grant(&process, &scope, "two")]);
    assert_eq!(again, Refusal::NothingToDo);
    let receipt = host.ok(vec![], vec![revoke(&process, &scope)]);
    assert_eq!(receipt.revoked, [(process.row(), scope.clone())]);
    assert_eq!(holds(&host, &scope, &process), (None, false));
    let again = host.refused(vec![], vec![revoke(&process, &scope)]);
    assert_eq!(again, Refusal::NothingToDo);
    // Within one set each change sees the one before.
    let (a, b) = (grant(&process, &scope, "a"), grant(&process, &scope, "b"));
    host.ok(vec![], vec![a, b.clone()]);
    assert_eq!(holds(&host, &scope, &process), (Some("a".into()), true));
    host.ok(vec![], vec![revoke(&process, &scope), b]);
    assert_eq!(holds(&host, &scope, &process), (Some("b".into()), true));
    host.assert_clean();
    host.store.close().unwrap();
}

fn g2_a_transfer_is_all_or_nothing(ground: &Ground) {
    let host = ground.open();
    let (from, to) = (session("from"), session("to"));
    let processes: Vec<_> = (0..3)
        .map(|n| host.start(request(&format!("p-{n}"))))
        .collect();
    for process in &processes[..2] {
        host.ok(vec![], vec![grant(process, &from, "mine")]);
    }
    let transfer = |processes: &[Proc]| {
        let conditions = processes.iter().map(|it| granted(it, &from)).collect();
        let moves = |it| [revoke(it, &from), grant(it, &to, "yours")];
        (conditions, processes.iter().flat_map(moves).collect())
    };
    // The third one is not the sender's: nothing moves.
    let (conditions, changes) = transfer(&processes);
    assert_eq!(host.refused(conditions, changes), Refusal::NotGranted);
    let (conditions, changes) = transfer(&processes[..2]);
    host.ok(conditions, changes);
    for process in &processes[..2] {
        assert_eq!(holds(&host, &from, process), (None, false));
        assert_eq!(holds(&host, &to, process), (Some("yours".into()), true));
    }
    host.assert_clean();
    host.store.close().unwrap();
}

/// `Condition::GrantIs`: a descriptor that was replaced meanwhile does not go along with what was planned.
fn g2_a_transfer_takes_the_descriptor_that_it_saw(ground: &Ground) {
    let host = ground.open();
    let process = host.start(request("p"));
    let (from, to) = (session("from"), session("to"));
    let seen = Condition::GrantIs {
        row: process.row(),
        scope: from.clone(),
        descriptor: ProcessHandleDescriptor::label("old"),
    };
    let moves = || vec![revoke(&process, &from), grant(&process, &to, "old")];
    host.ok(vec![], vec![grant(&process, &from, "old")]);
    host.ok(vec![], vec![revoke(&process, &from)]);
    let refusal = host.refused(vec![seen.clone()], moves());
    assert_eq!(refusal, Refusal::NotGranted, "it is gone");
    host.ok(vec![], vec![grant(&process, &from, "new")]);
    let refusal = host.refused(vec![seen.clone()], moves());
    assert_eq!(refusal, Refusal::NotGranted, "it is another one");
    assert_eq!(holds(&host, &from, &process), (Some("new".into()), true));
    host.ok(vec![], vec![revoke(&process, &from)]);
    host.ok(vec![], vec![grant(&process, &from, "old")]);
    host.ok(vec![seen], moves());
    assert_eq!(holds(&host, &to, &process), (Some("old".into()), true));
    host.assert_clean();
    host.store.close().unwrap();
}

/// The most that one transfer moves, in one set, which reads what it wrote throughout.
fn g2_the_largest_transfer_is_one_set(ground: &Ground) {
    let host = ground.open();
    let (from, to) = (session("from"), session("to"));
    let processes: Vec<_> = (0..1_000)
        .map(|n| Proc::new(&host, request(&format!("p-{n}")), None))
        .collect();
    let start = |it: &Proc| [it.register(), grant(it, &from, "mine")];
    host.ok(vec![], processes.iter().flat_map(start).collect());
    let moves = |it| [revoke(it, &from), grant(it, &to, "yours")];
    let conditions = processes.iter().map(|it| granted(it, &from)).collect();
    host.ok(conditions, processes.iter().flat_map(moves).collect());
    let view = host.view();
    assert_eq!(view.grants_of_session("from").unwrap().len(), 0);
    assert_eq!(view.grants_of_session("to").unwrap().len(), 1_000);
    let left = host.keys();
    assert!(!left.contains_key(&keys::granted(processes[0].row(), &from)));
    host.store.close().unwrap();
}

held_by_both!(
    g1_a_write_without_a_grant_is_refused,
    g3_both_directions_change_together,
    g2_a_transfer_is_all_or_nothing,
    g2_a_transfer_takes_the_descriptor_that_it_saw,
    g2_the_largest_transfer_is_one_set,
);
