//! What callers hand in.

use super::super::event::{ProcessEvent, ProcessEventAppendRequest};
use super::super::event_type::{MappedState, ProcessEventType, TerminalSemantics, WakeSemantics};
use super::super::ids::Incarnation;
use super::super::request::{
    Backoff, ProcessEnvSpec, ProcessHandleDescriptor, ProcessIdentity, ProcessInput,
    ProcessStartGrant, ProcessStartRequest, RecoveryDisposition, RetryPolicy,
};
use super::super::scope::ProcessOriginator;
use super::super::selector::Selector;
use super::{is, is_refused, scope};
use serde_json::{Value, json};
use std::time::Duration;

#[test]
fn there_is_no_default_disposition() {
    let mut text = json!({
        "id": "p", "disposition": "rerunnable", "originator": { "kind": "host" },
        "input": { "type": "external", "metadata": null },
    });
    text.as_object_mut().unwrap().remove("disposition");
    is_refused::<ProcessStartRequest>(&text, "disposition");
}

#[test]
fn inputs_and_environments() {
    is(
        ProcessInput::engine("build", json!({ "a": null })),
        json!({ "type": "engine", "kind": "build", "payload": { "a": null } }),
    );
    is(
        ProcessInput::external(Value::Null),
        json!({ "type": "external", "metadata": null }),
    );
    is(
        ProcessInput::tool_call("read", json!({ "path": "a" })),
        json!({ "type": "engine", "kind": "tool_call",
                "payload": { "tool": "read", "arguments": { "path": "a" } } }),
    );
    is(
        ProcessInput::session_turn("s-1", json!("hi")),
        json!({ "type": "engine", "kind": "session_turn",
                "payload": { "session_id": "s-1", "input": "hi" } }),
    );
    is(
        ProcessInput::command(json!({ "shell": "true" })),
        json!({ "type": "engine", "kind": "command", "payload": { "shell": "true" } }),
    );
    is(
        ProcessEnvSpec::new(json!({ "a": 1 }), Value::Null),
        json!({ "options": { "a": 1 }, "policy": null }),
    );
    is_refused::<ProcessInput>(&json!({ "type": "engine", "kind": "k" }), "payload");
    is_refused::<ProcessInput>(&json!({ "type": "robot" }), "robot");
    let more = json!({ "type": "external", "metadata": 1, "kind": "k" });
    is_refused::<ProcessInput>(&more, "kind");
}

#[test]
fn identities_grants_and_descriptors() {
    is(ProcessIdentity::default(), json!({}));
    is(
        ProcessIdentity {
            kind: Some("k".into()),
            label: Some("l".into()),
            definition: Some("d".into()),
        },
        json!({ "kind": "k", "label": "l", "definition": "d" }),
    );
    is(ProcessHandleDescriptor::default(), json!({}));
    is(
        ProcessStartGrant::new(scope(), "l"),
        json!({ "scope": { "session_id": "s-1" }, "descriptor": { "label": "l" } }),
    );
    let bare: ProcessStartGrant =
        serde_json::from_value(json!({ "scope": { "session_id": "s-1" } })).unwrap();
    assert_eq!(bare.descriptor, ProcessHandleDescriptor::default());
    is_refused::<ProcessStartGrant>(&json!({ "scop": {} }), "scop");
}

#[test]
fn retry_policies_say_durations_as_people_do() {
    is(
        RetryPolicy::default(),
        json!({ "attempts": 1, "recoveries_max": 16,
                "backoff": { "initial": "1s", "factor": 2.0, "max": "5m", "jitter": 0.2 } }),
    );
    let read = |text: Value| serde_json::from_value::<RetryPolicy>(text).unwrap();
    assert_eq!(read(json!({})), RetryPolicy::default());
    assert_eq!(read(json!({ "attempts": 3 })), RetryPolicy::attempts(3));
    let backoff = read(json!({ "backoff": { "initial": "1m 30s 5ms" } })).backoff;
    assert_eq!(backoff.initial, Duration::from_millis(90_005));
    assert_eq!(backoff.max, Backoff::default().max);
    for broken in [
        json!({ "backoff": { "initial": 5 } }),
        json!({ "backoff": { "initial": "5" } }),
        json!({ "backoff": { "initial": "" } }),
        json!({ "backoff": { "max": "99999999999999999999y" } }),
        json!({ "backoff": { "factor": "NaN" } }),
        json!({ "backoff": { "jitter": null } }),
        json!({ "attempts": -1 }),
        json!({ "attempts": 4_294_967_296_u64 }),
    ] {
        assert!(
            serde_json::from_value::<RetryPolicy>(broken.clone()).is_err(),
            "{broken}"
        );
    }
    is_refused::<RetryPolicy>(&json!({ "retries": 1 }), "retries");
    is_refused::<RetryPolicy>(&json!({ "backoff": { "min": "1s" } }), "min");
}

#[test]
fn event_types_and_selectors() {
    is(ProcessEventType::new("e"), json!({ "name": "e" }));
    is(
        ProcessEventType::new("e")
            .with_schema(json!({ "type": "object" }))
            .with_wake(
                WakeSemantics::new(Selector::pointer("/text"))
                    .with_condition(Selector::present("/text"))
                    .with_dedupe_key(Selector::constant(json!(null))),
            )
            .with_terminal(TerminalSemantics::new(
                MappedState::Failed,
                Selector::template("{a}", [("a", "/a")]),
            )),
        json!({
            "name": "e",
            "schema": { "type": "object" },
            "wake": {
                "when": { "select": "present", "pointer": "/text" },
                "text": { "select": "pointer", "pointer": "/text" },
                "dedupe_key": { "select": "constant", "value": null },
            },
            "terminal": {
                "state": "failed",
                "output": { "select": "template", "template": "{a}", "fields": { "a": "/a" } },
            },
        }),
    );
    is(Selector::Payload, json!({ "select": "payload" }));
    is_refused::<ProcessEventType>(&json!({ "name": "e", "shema": {} }), "shema");
    is_refused::<Selector>(&json!({ "select": "path" }), "path");
    is_refused::<TerminalSemantics>(
        &json!({ "state": "abandoned", "output": { "select": "payload" } }),
        "abandoned",
    );
}

#[test]
fn start_requests() {
    let short = json!({
        "id": "p", "disposition": "owner_bound", "originator": { "kind": "host" },
        "input": { "type": "engine", "kind": "k", "payload": 1 },
        "identity": {}, "priority": 0,
        "retry": { "attempts": 1, "recoveries_max": 16,
                   "backoff": { "initial": "1s", "factor": 2.0, "max": "5m", "jitter": 0.2 } },
    });
    let request = ProcessStartRequest::new(
        "p",
        ProcessInput::engine("k", 1),
        RecoveryDisposition::OwnerBound,
        ProcessOriginator::host(),
    );
    is(request.clone(), short.clone());
    let mut long = short;
    for (field, value) in [
        ("env_spec", json!({ "options": 1, "policy": 2 })),
        ("wake_target", json!({ "session_id": "s-1" })),
        (
            "grant",
            json!({ "scope": { "session_id": "s-1" }, "descriptor": { "label": "l" } }),
        ),
        ("event_types", json!([{ "name": "signal.go" }])),
        ("identity", json!({ "kind": "x" })),
        ("caused_by", json!("m-1")),
        ("timeout", json!("10m")),
        ("priority", json!(-3)),
        ("labels", json!({ "a": "b" })),
    ] {
        long[field] = value;
    }
    is(
        request
            .with_env_spec(Some(ProcessEnvSpec::new(1, 2)))
            .with_wake_target(Some(scope()))
            .with_grant(Some(ProcessStartGrant::new(scope(), "l")))
            .with_event_type(ProcessEventType::signal("go"))
            .with_identity(ProcessIdentity {
                kind: Some("x".into()),
                ..ProcessIdentity::default()
            })
            .with_caused_by(Some("m-1".into()))
            .with_timeout(Some(Duration::from_secs(600)))
            .with_priority(-3)
            .with_label("a", "b"),
        long.clone(),
    );
    long["timeuot"] = json!("10m");
    is_refused::<ProcessStartRequest>(&long, "timeuot");
}

#[test]
fn events_and_appends() {
    let mut event = ProcessEvent {
        process_id: "p".into(),
        incarnation: Incarnation(3),
        sequence: 1,
        event_type: "progress".into(),
        payload: json!({ "percent": 1 }).into(),
        occurred_at_ms: 5,
        replay_key: None,
    };
    let text = json!({ "process_id": "p", "incarnation": 3, "sequence": 1,
        "event_type": "progress", "payload": { "percent": 1 }, "occurred_at_ms": 5 });
    is(event.clone(), text.clone());
    is(
        event.observed(),
        json!({ "sequence": 1, "event_type": "progress", "payload": { "percent": 1 },
                "occurred_at_ms": 5 }),
    );
    event.replay_key = Some("k".into());
    let mut keyed = text;
    keyed["replay_key"] = json!("k");
    is(event, keyed);
    is(
        ProcessEventAppendRequest::signal("go", Value::Null),
        json!({ "event_type": "signal.go", "payload": null }),
    );
    is(
        ProcessEventAppendRequest::new("e", 1)
            .with_replay_key(Some("k".into()))
            .with_wake_target_scope(Some(scope())),
        json!({ "event_type": "e", "payload": 1, "replay_key": "k",
                "wake_target_scope": { "session_id": "s-1" } }),
    );
    is_refused::<ProcessEventAppendRequest>(
        &json!({ "event_type": "e", "payload": 1, "key": "k" }),
        "key",
    );
}

/// Whatever length a duration has, its text reads back as the same.
#[test]
fn durations_survive_their_text() {
    for ms in [
        1,
        999,
        1_000,
        60_001,
        86_400_000,
        2_629_800_000,
        31_557_600_123,
        316_224_000_000,
    ] {
        let timeout = Duration::from_millis(ms);
        let policy = RetryPolicy::default().with_backoff(Backoff::fixed(timeout));
        let text = serde_json::to_string(&policy).unwrap();
        let read: RetryPolicy = serde_json::from_str(&text).unwrap();
        assert_eq!(read.backoff.initial, timeout, "{text}");
    }
}
