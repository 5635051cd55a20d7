//! JSON that is deeper than the stack, wherever a caller can hand it in: it is refused, and the
//! refused request can be dropped.

use serde_json::{Value, json};

use super::decide::{Command, Facts, Finisher, check_event, check_signal, decide};
use super::error::{Error, Result};
use super::event::{CompletionAuthority, ProcessEventAppendRequest};
use super::event_type::{MappedState, ProcessEventType, TerminalSemantics, WakeSemantics};
use super::output::{FailureClass, ProcessAwaitOutput};
use super::request::RecoveryDisposition::{ExternallyOwned, Rerunnable};
use super::request::{ProcessEnvSpec, ProcessInput, ProcessStartRequest};
use super::scope::ProcessOriginator;
use super::selector::Selector;
use super::testing::{HOSTILE_DEPTH, State, nested, nested_objects, registration, request, token};

fn hostile() -> [Value; 2] {
    [nested(HOSTILE_DEPTH), nested_objects(HOSTILE_DEPTH)]
}

#[track_caller]
fn too_deep<T: std::fmt::Debug>(found: Result<T>, field: &str) {
    match found {
        Err(Error::InvalidInput {
            field: named,
            limit,
            process_id,
            ..
        }) => assert_eq!(
            (named.as_str(), limit.as_str(), process_id.as_deref()),
            (field, "128 levels", Some("p-1"))
        ),
        Ok(_) => panic!("{field} is accepted"),
        Err(other) => panic!("{field}: {other}"),
    }
}

#[test]
fn a_start_with_deep_json_anywhere_is_refused() {
    let typed = |event_type| request(Rerunnable).with_event_types(vec![event_type]);
    let declared = || ProcessEventType::new("e");
    let wake = || WakeSemantics::new(Selector::Payload);
    type Build<'a> = &'a dyn Fn(Value) -> ProcessStartRequest;
    let places: [(&str, Build<'_>); 11] = [
        ("input.payload", &|deep| ProcessStartRequest {
            input: ProcessInput::engine("build", deep),
            ..request(Rerunnable)
        }),
        ("input.payload", &|deep| ProcessStartRequest {
            input: ProcessInput::tool_call("read", deep),
            ..request(Rerunnable)
        }),
        ("input.payload", &|deep| ProcessStartRequest {
            input: ProcessInput::session_turn("s-1", deep),
            ..request(Rerunnable)
        }),
        ("input.metadata", &|deep| {
            ProcessStartRequest::external("p-1", ProcessOriginator::host(), deep)
        }),
        ("env_spec.options", &|deep| {
            request(Rerunnable).with_env_spec(Some(ProcessEnvSpec::new(deep, Value::Null)))
        }),
        ("env_spec.policy", &|deep| {
            request(Rerunnable).with_env_spec(Some(ProcessEnvSpec::new(Value::Null, deep)))
        }),
        ("event_types[e].schema", &|deep| {
            typed(declared().with_schema(deep))
        }),
        ("event_types[e].wake.when.value", &|deep| {
            typed(declared().with_wake(wake().with_condition(Selector::constant(deep))))
        }),
        ("event_types[e].wake.text.value", &|deep| {
            typed(declared().with_wake(WakeSemantics::new(Selector::constant(deep))))
        }),
        ("event_types[e].wake.dedupe_key.value", &|deep| {
            typed(declared().with_wake(wake().with_dedupe_key(Selector::constant(deep))))
        }),
        ("event_types[e].terminal.output.value", &|deep| {
            let output = Selector::constant(deep);
            typed(declared().with_terminal(TerminalSemantics::new(MappedState::Completed, output)))
        }),
    ];
    for (field, build) in &places {
        too_deep(build(nested(HOSTILE_DEPTH)).checked(), field);
        // A request that is refused for another reason, before its JSON is looked at.
        let refused = ProcessStartRequest {
            id: String::new(),
            ..build(nested(HOSTILE_DEPTH))
        };
        assert!(refused.checked().is_err(), "{field}");
    }
    let (_, of_objects) = &places[0];
    too_deep(
        of_objects(nested_objects(HOSTILE_DEPTH)).checked(),
        "input.payload",
    );
    // And one that is never looked at.
    of_objects(nested_objects(HOSTILE_DEPTH)).dismantle();
}

#[test]
fn a_checked_start_is_the_request_itself() {
    assert_eq!(request(Rerunnable).checked().unwrap(), request(Rerunnable));
}

#[test]
fn an_event_with_a_deep_payload_is_refused() {
    let of = registration(Rerunnable);
    for event_type in ["progress", "done"] {
        for deep in hostile() {
            let request = ProcessEventAppendRequest::new(event_type, deep);
            too_deep(check_event(&of, request), "payload");
        }
    }
    // Refusals that come before the payload's.
    let deep = || nested(HOSTILE_DEPTH);
    for event_type in ["", "process.completed", "process.started"] {
        let request = ProcessEventAppendRequest::new(event_type, deep());
        assert!(check_event(&of, request).is_err(), "{event_type}");
    }
    let keyed = ProcessEventAppendRequest::new("question", deep()).with_replay_key(Some("".into()));
    assert!(check_event(&of, keyed).is_err());
    ProcessEventAppendRequest::new("question", deep()).dismantle();
}

#[test]
fn a_signal_with_a_deep_payload_is_refused() {
    let of = registration(Rerunnable);
    for deep in hostile() {
        let request = ProcessEventAppendRequest::signal("go", deep);
        too_deep(check_signal(&of, "go", "s-1", request), "payload");
    }
    for (name, id, event_type, key) in [
        ("g.o", "s-1", "signal.go", None),
        ("go", "", "signal.go", None),
        ("go", "s-1", "signal.other", None),
        ("go", "s-1", "signal.go", Some("other".to_owned())),
    ] {
        let request =
            ProcessEventAppendRequest::new(event_type, nested(HOSTILE_DEPTH)).with_replay_key(key);
        assert!(check_signal(&of, name, id, request).is_err(), "{name} {id}");
    }
}

#[test]
fn a_deep_external_reference_is_refused() {
    let of = registration(ExternallyOwned);
    let ended = State::fresh().ended(ProcessAwaitOutput::success(1));
    for state in [State::fresh(), State::fresh().known_as(&json!(1)), ended] {
        let reference = nested(HOSTILE_DEPTH);
        let command = Command::SetExternalRef { reference };
        let found = decide(&of, &state.0, command, Facts::default());
        too_deep(found, "reference");
    }
}

#[test]
fn a_deep_outcome_is_refused() {
    let of = registration(Rerunnable);
    let held = Facts {
        holder: Some(token(5)),
        ..Facts::default()
    };
    let outputs = |deep: [Value; 2]| {
        let [arrays, objects] = deep;
        [
            (
                "output.value",
                ProcessAwaitOutput::Success { value: arrays },
            ),
            (
                "output.raw",
                ProcessAwaitOutput::Failure {
                    class: FailureClass::Execution,
                    code: "c".into(),
                    message: "m".into(),
                    raw: Some(objects),
                },
            ),
            (
                "output.raw",
                ProcessAwaitOutput::Cancelled {
                    message: "m".into(),
                    raw: Some(nested(HOSTILE_DEPTH)),
                },
            ),
        ]
    };
    for state in [
        State::fresh().started(),
        State::fresh()
            .started()
            .ended(ProcessAwaitOutput::success(1)),
    ] {
        for finisher in [
            Finisher::Owner(token(5)),
            Finisher::Authority(CompletionAuthority::Host { by: "ops".into() }),
        ] {
            for (field, output) in outputs(hostile()) {
                let finisher = finisher.clone();
                let command = Command::Finish { output, finisher };
                too_deep(decide(&of, &state.0, command, held), field);
            }
        }
    }
    for (_, output) in outputs(hostile()) {
        output.dismantle();
    }
}
