//! What an id stands for, and appending to what it stands for.

use serde_json::json;

use crate::model::decide::{Command, Facts};
use crate::model::*;
use crate::store::keys;
use crate::store::read::IdEntry;
use crate::store::testing::*;
use crate::store::write_set::{Change, Condition, Refusal};

/// `Condition::IdFree`, its arm for a live process.
fn p3_a_registered_id_is_taken_for_any_content(ground: &Ground) {
    let host = ground.open();
    let first = host.start(rich_request("p"));
    for content in [rich_request("p"), request("p").with_priority(9)] {
        let second = Proc::new(&host, content, None);
        let refusal = host.refused(vec![second.id_free()], vec![second.register()]);
        assert_eq!(refusal, Refusal::IdTaken(first.row()));
    }
    host.assert_clean();
    host.store.close().unwrap();
}

/// `Condition::IdFree`, its arm for a tombstone: the filter on the hash.
fn p3_a_pruned_id_is_taken_for_the_same_content_and_free_for_other(ground: &Ground) {
    let host = ground.open();
    let mut first = host.start(request("p"));
    host.finish(&mut first);
    host.prune(&first);
    let late = Proc::new(&host, request("p"), None);
    let refusal = host.refused(vec![late.id_free()], vec![late.register()]);
    let Refusal::Pruned(tombstone) = refusal else {
        panic!("{refusal:?}");
    };
    assert_eq!(tombstone.incarnation, first.registration.incarnation);
    assert_eq!(tombstone.status, TerminalState::Failed);
    assert_eq!(tombstone.events, 1);
    assert_eq!(tombstone.pruned_at_ms, START_MS);
    let other = host.start(request("p").with_priority(9));
    assert!(other.registration.incarnation > first.registration.incarnation);
    assert_eq!(
        host.view().id("p").unwrap(),
        Some(IdEntry::Live(other.row()))
    );
    // R5: what awaits the first incarnation still learns how it ended.
    let kept = host.view().tombstone(first.registration.incarnation);
    assert_eq!(kept.unwrap().unwrap().0, "p");
    host.assert_clean();
    host.store.close().unwrap();
}

/// `Condition::At`.
fn e1_an_append_on_an_older_revision_is_refused(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let stale = process.at();
    host.emit(&mut process, "note", json!(1));
    let late = Change::Append(Box::new(lease_only(&process)));
    assert_eq!(host.refused(vec![stale], vec![late]), Refusal::Moved);
    host.assert_clean();
    host.store.close().unwrap();
}

/// An append without events, so that nothing but the conditions can refuse it.
fn lease_only(process: &Proc) -> crate::store::write_set::Append {
    let release = crate::store::writes::release(process.row(), process.state.last_sequence);
    let Change::Append(append) = release else {
        panic!("a release is an append");
    };
    *append
}

/// The check of the first sequence in `append`, which no condition can be forgotten for.
fn e1_an_append_leaves_no_gap_and_repeats_nothing_whatever_its_conditions_say(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let first = process.note(&host);
    let second = process.note(&host);
    assert_eq!(host.refused(vec![], vec![second.clone()]), Refusal::Moved);
    host.ok(vec![], vec![first.clone()]);
    assert_eq!(host.refused(vec![], vec![first]), Refusal::Moved);
    host.ok(vec![], vec![second]);
    let view = host.view();
    let incarnation = process.registration.incarnation;
    let events = view.events("p", incarnation, 1, 9, usize::MAX).unwrap();
    let sequences: Vec<_> = events.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    drop(view);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The check of the end in `append`.
fn p2_what_has_ended_takes_no_further_event(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    host.ok(vec![], vec![process_note(&host, &mut process)]);
    host.finish(&mut process);
    let release = Change::Append(Box::new(lease_only(&process)));
    assert_eq!(host.refused(vec![], vec![release]), Refusal::Ended);
    // Decided by somebody who does not know that it has ended, and names no condition.
    process.state.status = std::sync::Arc::new(ProcessStatus::Running);
    let note = process.note(&host);
    assert_eq!(host.refused(vec![], vec![note]), Refusal::Ended);
    host.assert_clean();
    host.store.close().unwrap();
}

fn process_note(host: &Host, process: &mut Proc) -> Change {
    process.note(host)
}

/// `Condition::ReplayFree`.
fn p3_a_replay_key_is_taken_once(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let other = host.start(request("other"));
    let free = |of: &Proc| Condition::ReplayFree {
        incarnation: of.registration.incarnation,
        key: "k".into(),
    };
    let command = process.event("note", json!({ "a": 1 }), Some("k"), None);
    let change = process.decide(&host, command, Facts::default());
    host.ok(vec![free(&process)], vec![change]);
    let command = process.event("note", json!({ "a": 2 }), Some("k"), None);
    let change = process.decide(&host, command, Facts::default());
    assert_eq!(
        host.refused(vec![free(&process)], vec![change]),
        Refusal::ReplayTaken
    );
    let known = host.view().replayed(process.registration.incarnation, "k");
    let known = known.unwrap().unwrap();
    assert_eq!(known.sequence, 1);
    // The hash of `note`, a zero byte and `{"a":1}`, by another implementation of SHA-256.
    assert_eq!(
        known.content.to_string(),
        "9235f7e5dd808d2ec28e3342f55a4196102ee3f9d73091562354098cd43a10b8"
    );
    let release = Change::Append(Box::new(lease_only(&other)));
    host.ok(vec![free(&other)], vec![release]);
    host.store.close().unwrap();
}

/// `Condition::MayStartChild`.
fn a_stopping_parent_starts_no_child(ground: &Ground) {
    let host = ground.open();
    let mut parent = host.start(request("parent"));
    let may = Condition::MayStartChild { row: parent.row() };
    let child = Proc::new(&host, request("child"), None);
    host.ok(vec![may.clone()], vec![child.register()]);
    let cancel = Command::RequestCancel { requested_by: None };
    host.step(&mut parent, cancel, Facts::default());
    let child = Proc::new(&host, request("late"), None);
    let refusal = host.refused(vec![may.clone()], vec![child.register()]);
    assert_eq!(refusal, Refusal::ParentStopping, "asked to cancel");
    let mut ended = host.start(request("ended"));
    host.finish(&mut ended);
    let may = Condition::MayStartChild { row: ended.row() };
    let refusal = host.refused(vec![may], vec![child.register()]);
    assert_eq!(refusal, Refusal::ParentStopping, "ended");
    host.store.close().unwrap();
}

/// Every condition that names a process, once that process is gone.
fn p4_nothing_is_written_about_what_is_gone(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let scope = session("s");
    let note = process.note(&host);
    host.ok(vec![], vec![note.clone()]);
    host.finish(&mut process);
    host.prune(&process);
    let row = process.row();
    let bystander = host.beat(OwnerNumber(1));
    for condition in [
        Condition::Exists { row },
        process.at(),
        process.token(FencingToken(1)),
        Condition::LeaseFree { row },
        Condition::LeaseGone { row },
        Condition::MayStartChild { row },
    ] {
        let refusal = host.refused(vec![condition.clone()], vec![bystander.clone()]);
        assert_eq!(refusal, Refusal::Gone, "{condition:?}");
    }
    for change in [
        note,
        host.pruned(&process),
        Change::Grant {
            row,
            scope: scope.clone(),
            descriptor: ProcessHandleDescriptor::default(),
        },
        Change::RetargetWakes {
            from: None,
            after: 0,
            row,
            target: Some(scope),
        },
    ] {
        let refusal = host.refused(vec![], vec![bystander.clone(), change.clone()]);
        assert_eq!(refusal, Refusal::Gone, "{change:?}");
    }
    host.store.close().unwrap();
}

/// A prune names the id; one of another process would leave both damaged.
fn a_prune_under_another_id_is_refused(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    host.finish(&mut process);
    host.start(request("other"));
    let prune = Change::Prune {
        row: process.row(),
        id: "other".into(),
        at_ms: START_MS,
    };
    assert_eq!(host.refused(vec![], vec![prune]), Refusal::Gone);
    assert!(host.keys().contains_key(&keys::id("other")));
    host.store.close().unwrap();
}

held_by_both!(
    p3_a_registered_id_is_taken_for_any_content,
    p3_a_pruned_id_is_taken_for_the_same_content_and_free_for_other,
    e1_an_append_on_an_older_revision_is_refused,
    e1_an_append_leaves_no_gap_and_repeats_nothing_whatever_its_conditions_say,
    p2_what_has_ended_takes_no_further_event,
    p3_a_replay_key_is_taken_once,
    a_stopping_parent_starts_no_child,
    p4_nothing_is_written_about_what_is_gone,
    a_prune_under_another_id_is_refused,
);
