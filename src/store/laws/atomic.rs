//! Sets happen as a whole, and together with what they were decided on.

use bytes::Bytes;
use serde_json::json;

use crate::model::decide::Facts;
use crate::model::*;
use crate::store::error::StoreError;
use crate::store::testing::*;
use crate::store::write_set::{Change, CommitError, Condition, Refusal, WriteSet};

/// A process that only this set's own earlier changes make possible, with all there is to it.
fn e4_a_set_of_many_keys_is_seen_as_a_whole_or_not_at_all(ground: &Ground) {
    let host = ground.open();
    let mut process = Proc::new(&host, rich_request("p"), None);
    let start = process.register();
    let command = process.event(
        "ask",
        json!({ "text": "?", "key": "k" }),
        Some("replay"),
        None,
    );
    let ask = process.decide(&host, command, Facts::default());
    let second = session("second");
    let grant = Change::Grant {
        row: process.row(),
        scope: second.clone(),
        descriptor: ProcessHandleDescriptor::default(),
    };
    let all = vec![start, ask, grant];
    // Refused at its very end: the last change is about what is not there.
    let mut too_much = all.clone();
    too_much.push(Change::Prune {
        row: crate::store::keys::Row {
            created_at_ms: 0,
            incarnation: Incarnation(999),
        },
        id: "nobody".into(),
        at_ms: 0,
    });
    assert_eq!(
        host.refused(vec![process.id_free()], too_much),
        Refusal::Gone
    );
    assert!(host.keys().is_empty());
    let receipt = host.ok(vec![process.id_free()], all);
    assert_eq!(receipt.woken, [session("target")]);
    for _ in 0..2 {
        let view = host.view();
        let loaded = view.process("p").unwrap().unwrap();
        assert_eq!(loaded.registration, process.registration);
        assert_eq!(loaded.state, process.state);
        assert_eq!(
            view.feed(0, 9).unwrap().len(),
            1,
            "one entry, of the last change"
        );
        assert_eq!(view.wakes(&session("target"), 9).unwrap().len(), 1);
        let incarnation = process.registration.incarnation;
        assert!(view.replayed(incarnation, "replay").unwrap().is_some());
        assert_eq!(
            view.scopes_granted(process.row()).unwrap(),
            [session("holder"), second.clone()]
        );
        drop(view);
        host.assert_clean();
        host.store.drain().unwrap();
    }
    host.store.close().unwrap();
}

/// The check of `after` in `Submission::resolve`.
fn a_set_decided_on_a_refused_one_is_refused_with_it(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let mut other = Proc::new(&host, request("p"), None);
    other.registration = process.registration.clone();
    // Refused for its own reason; the next two were decided on it.
    let first = WriteSet::new(
        vec![
            process.at(),
            Condition::Granted {
                row: process.row(),
                scope: session("stranger"),
            },
        ],
        vec![process.note(&host)],
    );
    let at = process.at();
    let second = after(&first.ticket, vec![at], vec![process.note(&host)]);
    let at = process.at();
    let third = after(&second.ticket, vec![at], vec![process.note(&host)]);
    // Somebody else's event makes the revision what the second one expects.
    let unrelated = WriteSet::new(vec![other.at()], vec![other.note(&host)]);
    let gate = Gate::close(ground, &host);
    let answers: Vec<_> = [first, unrelated, second, third]
        .into_iter()
        .map(|set| host.submit(set))
        .collect();
    if let Some(gate) = gate {
        gate.open();
    }
    let results: Vec<_> = answers.into_iter().map(|it| it.recv().unwrap()).collect();
    assert!(
        matches!(results[0], Err(CommitError::Refused(Refusal::NotGranted))),
        "{results:?}"
    );
    assert!(results[1].is_ok(), "{results:?}");
    for result in &results[2..] {
        assert!(
            matches!(result, Err(CommitError::Refused(Refusal::Predecessor))),
            "{results:?}"
        );
    }
    let loaded = host.view().load(process.row()).unwrap().unwrap();
    assert_eq!(loaded.state.last_sequence, 1);
    host.assert_clean();
    host.store.close().unwrap();
}

/// The check of the operations in `Submission::resolve`: a set that the machine would not take
/// must not look accepted to the next one of its group.
fn a_set_decided_on_one_that_could_not_be_written_is_refused(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let first = WriteSet::new(
        vec![],
        vec![Change::RecordEffect {
            key: Bytes::from(vec![0x11; 4_000]),
            value: Bytes::new(),
        }],
    );
    let at = process.at();
    let second = after(&first.ticket, vec![at], vec![process.note(&host)]);
    let gate = Gate::close(ground, &host);
    let (first, second) = (host.submit(first), host.submit(second));
    if let Some(gate) = gate {
        gate.open();
    }
    let (first, second) = (first.recv().unwrap(), second.recv().unwrap());
    assert!(
        matches!(
            first,
            Err(CommitError::NotWritten(StoreError::Invalid { .. }))
        ),
        "{first:?}"
    );
    assert!(
        matches!(second, Err(CommitError::Refused(Refusal::Predecessor))),
        "{second:?}"
    );
    host.store.close().unwrap();
}

/// The same check, for one that was never handed in.
fn a_set_decided_on_one_that_was_never_committed_is_refused(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let never = WriteSet::default();
    let at = process.at();
    let set = after(&never.ticket, vec![at], vec![process.note(&host)]);
    let result = host.submit(set).recv().unwrap();
    assert!(
        matches!(result, Err(CommitError::Refused(Refusal::Predecessor))),
        "{result:?}"
    );
    host.store.close().unwrap();
}

fn sets_decided_one_on_another_commit_in_order_without_waiting(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(request("p"));
    let mut ticket: Option<crate::store::write_set::Ticket> = None;
    let mut answers = Vec::new();
    for _ in 0..200 {
        let at = process.at();
        let mut set = WriteSet::new(vec![at], vec![process.note(&host)]);
        set.after = ticket.take();
        ticket = Some(set.ticket.clone());
        answers.push(host.submit(set));
    }
    let mut commit = 0;
    for answer in answers {
        let receipt = answer.recv().unwrap().unwrap();
        assert!(receipt.commit >= commit, "told in order");
        commit = receipt.commit;
    }
    let loaded = host.view().load(process.row()).unwrap().unwrap();
    assert_eq!(loaded.state, process.state);
    assert_eq!(host.view().feed(0, 9).unwrap().len(), 1);
    host.assert_clean();
    host.store.close().unwrap();
}

/// E3: what was refused is not there after an open either, and what was accepted is whole.
fn e3_an_open_finds_what_was_acknowledged_and_nothing_else(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(rich_request("p"));
    host.emit(&mut process, "ask", json!({ "text": "?", "key": "k" }));
    let stranger = Condition::Granted {
        row: process.row(),
        scope: session("stranger"),
    };
    let late = Proc::new(&host, request("late"), None);
    host.refused(vec![stranger], vec![late.register()]);
    let before = host.dump();
    host.store.close().unwrap();
    let host = ground.open();
    assert_eq!(host.dump(), before);
    let loaded = host.view().process("p").unwrap().unwrap();
    assert_eq!(loaded.registration, process.registration);
    assert_eq!(loaded.state, process.state);
    host.assert_clean();
    host.store.close().unwrap();
}

held_by_both!(
    e4_a_set_of_many_keys_is_seen_as_a_whole_or_not_at_all,
    a_set_decided_on_a_refused_one_is_refused_with_it,
    a_set_decided_on_one_that_could_not_be_written_is_refused,
    a_set_decided_on_one_that_was_never_committed_is_refused,
    sets_decided_one_on_another_commit_in_order_without_waiting,
    e3_an_open_finds_what_was_acknowledged_and_nothing_else,
);
