//! Appends, signals, requests and outcomes.

use super::super::decide::{
    CheckedEvent, Command, Decision, Facts, Finisher, check_event, check_signal, decide,
};
use super::super::error::{Error, Result};
use super::super::event::{CompletionAuthority, ProcessEventAppendRequest, WaitResult};
use super::super::event_type::ProcessEventType;
use super::super::output::{FailureClass, ProcessAwaitOutput};
use super::super::record::Registration;
use super::super::request::RecoveryDisposition::{ExternallyOwned, OwnerBound, Rerunnable};
use super::super::scope::SessionScope;
use super::super::testing::{
    State, json_of_bytes, nested, nested_objects, registration, request, token,
};
use super::*;
use serde_json::{Value, json};

#[test]
fn a_signal_name_may_be_of_full_length_and_has_no_dot() {
    let longest = "x".repeat(128);
    let declared = |name: &str| {
        let event_types = vec![ProcessEventType::signal(name)];
        request(Rerunnable).with_event_types(event_types).check()
    };
    accepted(declared("go"));
    accepted(declared(&longest));
    for name in ["", "a.b", &"x".repeat(129)] {
        let field = format!("event_types[signal.{name}].name");
        refused(declared(name), &field, SIGNAL_NAME);
    }
    let mut of = registration(Rerunnable);
    of.event_types = vec![ProcessEventType::signal(&longest)];
    let signal = |name: &str, id: &str| {
        check_signal(&of, name, id, ProcessEventAppendRequest::signal(name, 1))
    };
    accepted(signal(&longest, &longest_id()));
    for name in ["", "a.b", "a b", &"x".repeat(129)] {
        refused(signal(name, "s-1"), "signal_name", SIGNAL_NAME);
    }
    refused(signal(&longest, ""), "signal_id", ID);
    refused(signal(&longest, &"x".repeat(257)), "signal_id", ID_LONG);
    refused(signal(&longest, "a\u{1}b"), "signal_id", NO_CONTROL);
}

#[test]
fn a_signal_is_identified_by_its_signal_id_alone() {
    let of = registration(Rerunnable);
    let with = |event_type: &str, key: Option<&str>| {
        let request = ProcessEventAppendRequest::new(event_type, json!(1))
            .with_replay_key(key.map(str::to_owned));
        check_signal(&of, "go", "s-1", request)
    };
    let plain = accepted(with("signal.go", None)).replay.unwrap();
    // The signal's own id, and its key as the log shows it, are no other key.
    assert_eq!(
        accepted(with("signal.go", Some("s-1"))).replay.unwrap(),
        plain
    );
    assert_eq!(
        accepted(with("signal.go", Some(&plain.key)))
            .replay
            .unwrap(),
        plain
    );
    refused(
        with("signal.go", Some("other")),
        "request.replay_key",
        "absent",
    );
    for event_type in ["go", "signal.stop", "signal.go.now", "progress", ""] {
        refused(
            with(event_type, None),
            "request.event_type",
            "exactly signal.go",
        );
    }
}

#[test]
fn p3_no_two_signals_and_no_callers_key_share_a_replay_key() {
    let mut of = registration(Rerunnable);
    of.event_types = ["a", "a-b", "b"].map(ProcessEventType::signal).to_vec();
    let mut keys = std::collections::BTreeSet::new();
    for name in ["a", "a-b", "b"] {
        for id in ["a", "b", "-b", "b/a", "a/b", "signal.a"] {
            let request = ProcessEventAppendRequest::signal(name, 1);
            let event = accepted(check_signal(&of, name, id, request));
            let key = event.replay.unwrap().key;
            // No caller can present it: their keys have no control characters.
            let taken =
                ProcessEventAppendRequest::signal(name, 1).with_replay_key(Some(key.clone()));
            refused(check_event(&of, taken), "replay_key", NO_CONTROL);
            assert!(keys.insert(key), "{name} {id}");
        }
    }
    assert_eq!(keys.len(), 18);
}

fn event(of: &Registration, request: ProcessEventAppendRequest) -> Result<CheckedEvent> {
    check_event(of, request)
}

#[test]
fn an_append_is_checked_against_every_limit() {
    let of = registration(Rerunnable);
    let keyed = |key: String| {
        let request = ProcessEventAppendRequest::new("question", json!(1));
        event(&of, request.with_replay_key(Some(key)))
    };
    accepted(keyed(longest_id()));
    refused(keyed(String::new()), "replay_key", ID);
    refused(keyed("x".repeat(257)), "replay_key", ID_LONG);
    refused(keyed("a\u{0}".into()), "replay_key", NO_CONTROL);

    let woken = |scope| {
        let request = ProcessEventAppendRequest::new("question", json!(1));
        event(&of, request.with_wake_target_scope(Some(scope)))
    };
    accepted(woken(SessionScope::new(longest_id())));
    refused(
        woken(SessionScope::new("")),
        "wake_target_scope.session_id",
        ID,
    );
    let frame = SessionScope::new("s").with_frame("");
    refused(woken(frame), "wake_target_scope.agent_frame_id", ID);

    let payload = |value| event(&of, ProcessEventAppendRequest::new("question", value));
    accepted(payload(json_of_bytes(1 << 20)));
    refused(
        payload(json_of_bytes((1 << 20) + 1)),
        "payload",
        "1048576 bytes",
    );
    accepted(payload(nested(128)));
    refused(payload(nested(129)), "payload", "128 levels");
    accepted(payload(nested_objects(128)));
    refused(payload(nested_objects(129)), "payload", "128 levels");

    let typed = |name: &str| event(&of, ProcessEventAppendRequest::new(name, json!({})));
    refused(typed(""), "event_type", EVENT_NAME);
    refused(typed(&"x".repeat(129)), "event_type", EVENT_NAME);
    refused(typed("signal.a.b"), "event_type", SIGNAL_NAME);
    for (name, reason) in [
        ("unheard.of", "was not declared at start"),
        ("signal.stop", "was not declared at start"),
        ("process.completed", "is the runtime's own"),
        ("process.anything", "is the runtime's own"),
    ] {
        assert_eq!(
            typed(name),
            Err(Error::UndeclaredEvent {
                process_id: "p-1".into(),
                event_type: name.into(),
                reason: reason.into(),
            })
        );
    }
    // The fixture declares that progress is an object.
    match event(&of, ProcessEventAppendRequest::new("progress", json!([1]))) {
        Err(Error::InvalidPayload {
            process_id,
            event_type,
            path,
            ..
        }) => assert_eq!(
            (process_id.as_str(), event_type.as_str(), path.as_str()),
            ("p-1", "progress", "")
        ),
        other => panic!("{other:?}"),
    }
}

fn ask(of: &Registration, command: Command) -> Result<Decision> {
    let facts = Facts {
        holder: Some(token(5)),
        ..Facts::default()
    };
    decide(of, &State::fresh().started().0, command, facts)
}

#[test]
fn requests_to_a_process_are_bounded() {
    let of = registration(Rerunnable);
    let cancel = |by: &str| {
        let requested_by = Some(by.to_owned());
        ask(&of, Command::RequestCancel { requested_by })
    };
    accepted(cancel(&"x".repeat(2_048)));
    refused(cancel(&"x".repeat(2_049)), "requested_by", "2048 bytes");
    refused(cancel("a\nb"), "requested_by", NO_CONTROL);

    let abandon = |by: &str, reason: &str| {
        let requested_by = by.to_owned();
        let reason = Some(reason.to_owned());
        ask(
            &of,
            Command::RequestAbandon {
                requested_by,
                reason,
            },
        )
    };
    accepted(abandon(&longest_id(), &"x".repeat(1_024)));
    refused(abandon("", "r"), "requested_by", ID);
    refused(abandon(&"x".repeat(257), "r"), "requested_by", ID_LONG);
    refused(abandon("a\nb", "r"), "requested_by", NO_CONTROL);
    refused(abandon("ops", &"x".repeat(1_025)), "reason", "1024 bytes");
    refused(abandon("ops", "a\u{0}"), "reason", NO_CONTROL);

    let reference = |reference: Value| ask(&of, Command::SetExternalRef { reference });
    accepted(reference(json_of_bytes(4_096)));
    refused(reference(json_of_bytes(4_097)), "reference", "4096 bytes");
    accepted(reference(nested(128)));
    refused(reference(nested(129)), "reference", "128 levels");
}

#[test]
fn outcomes_are_bounded() {
    let of = registration(Rerunnable);
    let finish = |output: ProcessAwaitOutput| {
        let finisher = Finisher::Owner(token(5));
        ask(&of, Command::Finish { output, finisher })
    };
    let failure = |code: &str, message: String, raw: Option<Value>| ProcessAwaitOutput::Failure {
        class: FailureClass::Execution,
        code: code.to_owned(),
        message,
        raw,
    };
    let cancelled = |message: String, raw| ProcessAwaitOutput::Cancelled { message, raw };
    let long = || "x".repeat(4_097);
    accepted(finish(ProcessAwaitOutput::success(json_of_bytes(1 << 20))));
    accepted(finish(ProcessAwaitOutput::success(nested(128))));
    accepted(finish(failure(
        &"x".repeat(128),
        "x".repeat(4_096),
        Some(nested(128)),
    )));
    accepted(finish(failure("", "two\nlines".into(), None)));
    accepted(finish(cancelled(
        "x".repeat(4_096),
        Some(json_of_bytes(1 << 20)),
    )));
    for (output, field, limit) in [
        (
            ProcessAwaitOutput::success(json_of_bytes((1 << 20) + 1)),
            "output.value",
            "1048576 bytes",
        ),
        (
            ProcessAwaitOutput::success(nested(129)),
            "output.value",
            "128 levels",
        ),
        (
            failure(&"x".repeat(129), String::new(), None),
            "output.code",
            "128 bytes",
        ),
        (
            failure("a\nb", String::new(), None),
            "output.code",
            NO_CONTROL,
        ),
        (failure("c", long(), None), "output.message", "4096 bytes"),
        (
            failure("c", String::new(), Some(nested(129))),
            "output.raw",
            "128 levels",
        ),
        (cancelled(long(), None), "output.message", "4096 bytes"),
        (
            cancelled(String::new(), Some(json_of_bytes((1 << 20) + 1))),
            "output.raw",
            "1048576 bytes",
        ),
    ] {
        refused(finish(output), field, limit);
    }
}

#[test]
fn authorities_name_somebody() {
    let of = registration(ExternallyOwned);
    let finish = |authority| {
        let output = ProcessAwaitOutput::success(1);
        let finisher = Finisher::Authority(authority);
        let command = Command::Finish { output, finisher };
        decide(&of, &State::fresh().0, command, Facts::default())
    };
    let host = |by: &str| finish(CompletionAuthority::Host { by: by.to_owned() });
    accepted(host(&longest_id()));
    refused(host(""), "authority.by", ID);
    refused(host(&"x".repeat(257)), "authority.by", ID_LONG);
    let external = |granted_to| finish(CompletionAuthority::ExternalOwner { granted_to });
    accepted(external(SessionScope::new(longest_id())));
    refused(
        external(SessionScope::new("")),
        "authority.granted_to.session_id",
        ID,
    );
}

#[test]
fn waits_are_for_declared_signals_and_bounded_in_number() {
    let of = registration(OwnerBound);
    let wait = |name: &str, number| Command::BeginWait {
        token: token(5),
        signal_name: name.to_owned(),
        number,
        deadline_ms: None,
    };
    let end = |name: &str, number| Command::EndWait {
        token: token(5),
        signal_name: name.to_owned(),
        number,
        result: WaitResult::TimedOut,
    };
    for command in [wait, end as fn(&str, u64) -> Command] {
        accepted(ask(&of, command("go", 1)));
        refused(ask(&of, command("go", 0)), "number", "from 1");
        refused(ask(&of, command("a.b", 1)), "signal_name", SIGNAL_NAME);
        assert_eq!(
            ask(&of, command("stop", 1)),
            Err(Error::UndeclaredEvent {
                process_id: "p-1".into(),
                event_type: "signal.stop".into(),
                reason: "was not declared at start".into(),
            })
        );
    }
    let facts = Facts {
        holder: Some(token(5)),
        ..Facts::default()
    };
    let mut state = State::fresh().started();
    for number in 1..=64 {
        accepted(decide(&of, &state.0, wait("go", number), facts));
        state = state.waiting();
        state.0.waits.last_mut().unwrap().number = number;
    }
    assert_eq!(
        decide(&of, &state.0, wait("go", 65), facts),
        Err(Error::Overloaded {
            what: "open waits of process p-1".into(),
            limit: 64,
        })
    );
}
