//! What `apply` does: legal and illegal pairs of state and event, and the record as a fold.

mod histories;

use std::sync::Arc;

use serde_json::json;

use super::event::{EventBody, RuntimeEvent, StartReason, TerminalAuthority, WaitResult};
use super::fold::{FoldError, apply};
use super::json::Payload;
use super::output::{
    AbandonEvidence, AbandonProof, AbandonWriter, FailureClass, ProcessAwaitOutput, TerminalState,
};
use super::record::{
    AbandonRequest, CancelRequest, FirstStart, OwnerLoss, ProcessState, Registration, RetryPause,
    SignalWait,
};
use super::request::RecoveryDisposition::{self, ExternallyOwned, OwnerBound, Rerunnable};
use super::testing::{State, error, owner, registration, scope, token};

/// When the events of these tests happen.
const AT_MS: u64 = 6_000;

/// The states that some event tells apart.
fn states() -> Vec<(&'static str, RecoveryDisposition, ProcessState)> {
    let new = State::fresh;
    let live = || State::fresh().started();
    vec![
        ("rerun new", Rerunnable, new().0),
        ("rerun live", Rerunnable, live().0),
        ("rerun waiting", Rerunnable, live().waiting().0),
        ("rerun pause", Rerunnable, live().backing_off().0),
        ("bound new", OwnerBound, new().0),
        ("bound live", OwnerBound, live().0),
        ("external", ExternallyOwned, new().0),
        (
            "asked",
            Rerunnable,
            live().cancel_asked().abandon_asked().known_as(&json!(1)).0,
        ),
        (
            "ended",
            Rerunnable,
            live().ended(ProcessAwaitOutput::success(1)).0,
        ),
    ]
}

fn declared(event_type: &str) -> EventBody {
    EventBody::Declared {
        event_type: event_type.into(),
        payload: Payload::from(json!({ "value": 42, "why": "enough" })),
    }
}

fn started(attempt: u32, reason: StartReason) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Started {
        owner: owner(),
        attempt,
        fencing_token: token(5),
        reason,
        store_age_ms: None,
    })
}

fn owner_lost() -> EventBody {
    EventBody::Runtime(RuntimeEvent::OwnerLost {
        owner: Some(owner()),
        fencing_token: token(6),
        proof: AbandonProof::StoreEpoch,
        survivors: Some(Vec::new()),
    })
}

fn waiting(number: u64) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Waiting {
        signal_name: "go".into(),
        number,
        deadline_ms: Some(7_000),
    })
}

fn resumed(result: WaitResult) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Resumed {
        signal_name: "go".into(),
        number: 1,
        result,
    })
}

fn lease() -> TerminalAuthority {
    TerminalAuthority::Lease {
        fencing_token: token(5),
    }
}

fn external() -> TerminalAuthority {
    TerminalAuthority::ExternalOwner {
        granted_to: scope(),
    }
}

fn completed(authority: TerminalAuthority) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Completed {
        value: json!(1),
        authority,
    })
}

fn failed(authority: TerminalAuthority) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Failed {
        class: FailureClass::Execution,
        code: "c".into(),
        message: "m".into(),
        raw: None,
        authority,
    })
}

fn stopped(authority: TerminalAuthority) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Cancelled {
        message: "m".into(),
        raw: None,
        authority,
    })
}

fn abandoned(authority: TerminalAuthority) -> EventBody {
    EventBody::Runtime(RuntimeEvent::Abandoned {
        evidence: AbandonEvidence {
            writer: AbandonWriter::Sweep,
            owner: None,
            proof: AbandonProof::StoreEpoch,
            requested_by: None,
            survivors: None,
            epoch_ms: AT_MS,
        },
        authority,
    })
}

/// For every event, the states in which it is legal: `y`, `-` where it is not. In the order of
/// [`states`]: rerun new, live, waiting, pause; bound new, live; external; asked; ended.
#[rustfmt::skip]
fn events() -> Vec<(&'static str, EventBody, &'static str)> {
    use StartReason::{First, Recovery, Released, Retry};
    use TerminalAuthority::ReconciledAbandon;
    let host = || TerminalAuthority::Host { by: "ops".into() };
    let asked_to_cancel = RuntimeEvent::CancelRequested { requested_by: None };
    let asked_to_abandon =
        RuntimeEvent::AbandonRequested { requested_by: "ops".into(), reason: None };
    let reference = RuntimeEvent::ExternalRefSet { reference: json!("job-1") };
    let later = RuntimeEvent::RetryScheduled { retry_at_ms: 9_000, error: error() };
    vec![
        //                                                          rerun  bound ext ask end
        ("progress",            declared("progress"),              "yyyy   yy    y   y   -"),
        ("undeclared",          declared("nobody.said.so"),        "----   --    -   -   -"),
        ("done",                declared("done"),                  "-yy-   -y    -   y   -"),
        ("first start",         started(1, First),                 "y---   y-    -   -   -"),
        ("first, as a retry",   started(1, Retry),                 "----   --    -   -   -"),
        ("second, retry",       started(2, Retry),                 "-yyy   --    -   y   -"),
        ("second, recovery",    started(2, Recovery),              "----   --    -   -   -"),
        ("second, released",    started(2, Released),              "-yyy   --    -   y   -"),
        ("second, as first",    started(2, First),                 "----   --    -   -   -"),
        ("third start",         started(3, Retry),                 "----   --    -   -   -"),
        ("attempt 0",           started(0, First),                 "----   --    -   -   -"),
        ("wait 1",              waiting(1),                        "-y--   -y    -   y   -"),
        ("wait 2",              waiting(2),                        "-yy-   -y    -   y   -"),
        ("signal 1",            resumed(WaitResult::Signal { sequence: 1 }), "-yy- -y - y -"),
        ("signal 0",            resumed(WaitResult::Signal { sequence: 0 }), "---- -- - - -"),
        ("signal to come",      resumed(WaitResult::Signal { sequence: 9 }), "---- -- - - -"),
        ("timed out",           resumed(WaitResult::TimedOut),     "-yy-   -y    -   y   -"),
        ("dropped",             resumed(WaitResult::Dropped),      "--y-   --    -   -   -"),
        ("cancel asked",        EventBody::Runtime(asked_to_cancel),  "yyyy yy   y   -   -"),
        ("abandon asked",       EventBody::Runtime(asked_to_abandon), "yyyy yy   y   -   -"),
        ("reference",           EventBody::Runtime(reference),     "yyyy   yy    y   -   -"),
        ("retry later",         EventBody::Runtime(later),         "-yy-   --    -   y   -"),
        ("owner lost",          owner_lost(),                      "-yy-   --    -   y   -"),
        ("completed",           completed(lease()),                "-yy-   -y    -   y   -"),
        ("completed elsewhere", completed(external()),             "----   --    y   -   -"),
        ("completed by host",   completed(host()),                 "----   --    y   -   -"),
        ("completed by reaper", completed(ReconciledAbandon),      "----   --    -   -   -"),
        ("failed",              failed(lease()),                   "yyyy   yy    -   y   -"),
        ("failed elsewhere",    failed(external()),                "----   --    y   -   -"),
        ("failed by reaper",    failed(ReconciledAbandon),         "----   --    -   -   -"),
        ("cancelled",           stopped(lease()),                  "yyyy   yy    -   y   -"),
        ("cancelled elsewhere", stopped(external()),               "----   --    y   -   -"),
        ("cancelled by reaper", stopped(ReconciledAbandon),        "----   --    -   -   -"),
        ("abandoned by owner",  abandoned(lease()),                "----   yy    -   -   -"),
        ("abandoned",           abandoned(ReconciledAbandon),      "yyyy   yy    y   y   -"),
        ("abandoned elsewhere", abandoned(external()),             "----   --    -   -   -"),
        ("abandoned by host",   abandoned(host()),                 "----   --    -   -   -"),
    ]
}

#[test]
fn p1_every_event_is_legal_where_the_table_says_and_refused_elsewhere() {
    let states = states();
    for (event, body, legal) in events() {
        let cells: Vec<char> = legal.chars().filter(|c| !c.is_whitespace()).collect();
        assert_eq!(cells.len(), states.len(), "cells of {event}");
        for (cell, (name, disposition, before)) in cells.iter().zip(&states) {
            let mut state = before.clone();
            let next = before.last_sequence + 1;
            let found = apply(&registration(*disposition), &mut state, next, AT_MS, &body);
            assert_eq!(found.is_ok(), *cell == 'y', "{event} on {name}: {found:?}");
            if found.is_ok() {
                assert_eq!(state.last_sequence, next, "E1: {event} on {name}");
                assert_eq!(state.updated_at_ms, AT_MS, "{event} on {name}");
            } else {
                assert_eq!(state, *before, "P4: {event} on {name}");
            }
        }
    }
}

#[test]
fn e1_a_sequence_that_does_not_follow_is_refused_whatever_the_event() {
    for (name, disposition, before) in states() {
        let last = before.last_sequence;
        for found in [0, last, last + 2, u64::MAX] {
            let mut state = before.clone();
            let refused = apply(
                &registration(disposition),
                &mut state,
                found,
                AT_MS,
                &declared("progress"),
            );
            let wanted = FoldError::OutOfSequence {
                process_id: "p-1".into(),
                last,
                found,
            };
            assert_eq!(refused, Err(wanted), "{name}");
            assert_eq!(state, before, "{name}");
        }
    }
    // What a corrupted state claims is refused and does not overflow.
    let mut state = State::fresh().0;
    state.last_sequence = u64::MAX;
    assert!(
        apply(
            &registration(Rerunnable),
            &mut state,
            0,
            AT_MS,
            &declared("progress")
        )
        .is_err()
    );
}

fn after(registration: &Registration, before: State, body: &EventBody) -> ProcessState {
    let mut state = before.0;
    let next = state.last_sequence + 1;
    apply(registration, &mut state, next, AT_MS, body).unwrap();
    state
}

#[test]
fn a_start_counts_the_attempt_and_keeps_the_first_one() {
    let of = registration(Rerunnable);
    let state = after(&of, State::fresh(), &started(1, StartReason::First));
    let first = FirstStart {
        at_ms: AT_MS,
        owner: owner(),
    };
    assert_eq!(state.first_started, Some(Arc::new(first)));
    assert_eq!((state.attempt, state.retries, state.recoveries), (1, 0, 0));

    let again = after(
        &of,
        State::fresh().started().waiting().backing_off(),
        &started(2, StartReason::Retry),
    );
    assert_eq!(again.first_started.unwrap().at_ms, 2_000);
    assert_eq!((again.attempt, again.retries, again.recoveries), (2, 1, 0));
    assert!(again.waits.is_empty() && again.retry_pause.is_none());
}

#[test]
fn only_a_lost_owner_counts_as_a_recovery() {
    let of = registration(Rerunnable);
    for reason in [StartReason::Retry, StartReason::Released] {
        let state = after(&of, State::fresh().started(), &started(2, reason));
        assert_eq!(state.recoveries, 0, "{reason:?}");
    }
    let lost = after(&of, State::fresh().started().waiting(), &owner_lost());
    let loss = OwnerLoss {
        at_ms: AT_MS,
        owner: Some(owner()),
    };
    assert_eq!(
        (lost.recoveries, lost.owner_lost.clone()),
        (1, Some(Arc::new(loss)))
    );
    assert!(lost.waits.is_empty());
    let again = after(&of, State(lost), &started(2, StartReason::Recovery));
    assert_eq!((again.recoveries, again.owner_lost), (1, None));
}

#[test]
fn a_lost_owner_is_followed_by_a_recovery_or_an_end_and_is_lost_once() {
    let of = registration(Rerunnable);
    let legal = |body: &EventBody| {
        let mut state = State::fresh().started().owner_lost().0;
        let next = state.last_sequence + 1;
        apply(&of, &mut state, next, AT_MS, body).is_ok()
    };
    for body in [
        declared("progress"),
        started(2, StartReason::Recovery),
        failed(lease()),
        stopped(lease()),
        abandoned(TerminalAuthority::ReconciledAbandon),
    ] {
        assert!(legal(&body), "{body:?}");
    }
    for body in [
        owner_lost(),
        started(2, StartReason::Retry),
        started(2, StartReason::Released),
        declared("done"),
        waiting(1),
        completed(lease()),
    ] {
        assert!(!legal(&body), "{body:?}");
    }
}

#[test]
fn waits_open_and_close_one_by_one() {
    let of = registration(OwnerBound);
    let state = after(&of, State::fresh().started().waiting(), &waiting(2));
    let numbers: Vec<u64> = state.waits.iter().map(|wait| wait.number).collect();
    assert_eq!(numbers, [1, 2]);
    assert_eq!(
        state.waits.last(),
        Some(&SignalWait {
            signal_name: "go".into(),
            number: 2,
            since_ms: AT_MS,
            deadline_ms: Some(7_000),
        })
    );
    let got = after(
        &of,
        State(state),
        &resumed(WaitResult::Signal { sequence: 1 }),
    );
    let numbers: Vec<u64> = got.waits.iter().map(|wait| wait.number).collect();
    assert_eq!(numbers, [2]);
}

#[test]
fn requests_and_references_are_kept_as_they_were_made() {
    let of = registration(Rerunnable);
    let body = EventBody::Runtime(RuntimeEvent::CancelRequested {
        requested_by: Some("ops".into()),
    });
    assert_eq!(
        after(&of, State::fresh(), &body).cancel_request,
        Some(Arc::new(CancelRequest {
            requested_by: Some("ops".into()),
            requested_at_ms: AT_MS,
        }))
    );
    let body = EventBody::Runtime(RuntimeEvent::AbandonRequested {
        requested_by: "ops".into(),
        reason: Some("gone".into()),
    });
    assert_eq!(
        after(&of, State::fresh(), &body).abandon_request,
        Some(Arc::new(AbandonRequest {
            requested_by: "ops".into(),
            reason: Some("gone".into()),
            requested_at_ms: AT_MS,
        }))
    );
    let body = EventBody::Runtime(RuntimeEvent::ExternalRefSet {
        reference: json!({ "job": 1 }),
    });
    assert_eq!(
        after(&of, State::fresh(), &body).external_ref,
        Some(json!({ "job": 1 }))
    );
    let body = EventBody::Runtime(RuntimeEvent::RetryScheduled {
        retry_at_ms: 9_000,
        error: error(),
    });
    let state = after(&of, State::fresh().started().waiting(), &body);
    assert_eq!(
        state.retry_pause,
        Some(Arc::new(RetryPause {
            retry_at_ms: 9_000,
            error: error(),
        }))
    );
    assert!(state.waits.is_empty());
    assert_eq!(state.retries, 1);
}

#[test]
fn p2_every_end_closes_what_was_open() {
    let of = registration(Rerunnable);
    for (body, status) in [
        (completed(lease()), TerminalState::Completed),
        (failed(lease()), TerminalState::Failed),
        (stopped(lease()), TerminalState::Cancelled),
        (
            abandoned(TerminalAuthority::ReconciledAbandon),
            TerminalState::Abandoned,
        ),
        (declared("done"), TerminalState::Completed),
        (declared("broke"), TerminalState::Failed),
        (declared("stopped"), TerminalState::Cancelled),
    ] {
        let state = after(&of, State::fresh().started().waiting(), &body);
        assert_eq!(state.terminal(), Some(status), "{body:?}");
        assert!(state.waits.is_empty() && state.retry_pause.is_none());
        // How often it was tried stays to be seen.
        assert_eq!(state.attempt, 1);
    }
}

#[test]
fn a_declared_end_takes_its_output_from_the_payload() {
    let of = registration(OwnerBound);
    let output = |event_type: &str, payload: serde_json::Value| {
        let body = EventBody::Declared {
            event_type: event_type.into(),
            payload: Payload::from(payload),
        };
        after(&of, State::fresh().started(), &body)
            .status
            .output()
            .cloned()
    };
    assert_eq!(
        output("done", json!({ "value": [1, 2] })),
        Some(ProcessAwaitOutput::Success {
            value: json!([1, 2])
        })
    );
    assert_eq!(
        output("done", json!({ "other": 1 })),
        Some(ProcessAwaitOutput::Success { value: json!(null) }),
        "a pointer that leads nowhere selects null"
    );
    assert_eq!(
        output("broke", json!({ "code": "e7", "message": "no", "at": 3 })),
        Some(ProcessAwaitOutput::Failure {
            class: FailureClass::Execution,
            code: "e7".into(),
            message: "no".into(),
            raw: Some(json!({ "code": "e7", "message": "no", "at": 3 })),
        })
    );
    assert_eq!(
        output("broke", json!(3)),
        Some(ProcessAwaitOutput::Failure {
            class: FailureClass::Execution,
            code: "broke".into(),
            message: "broke".into(),
            raw: Some(json!(3)),
        })
    );
    assert_eq!(
        output("stopped", json!({ "why": "enough" })),
        Some(ProcessAwaitOutput::Cancelled {
            message: "enough".into(),
            raw: Some(json!("enough")),
        })
    );
}
