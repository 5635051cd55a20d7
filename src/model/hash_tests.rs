//! The start hash: it covers everything that a start says, but for the grant.

use std::time::Duration;

use serde_json::{Value, json};

use super::event_type::{ProcessEventType, WakeSemantics};
use super::ids::Incarnation;
use super::json::ContentHash;
use super::record::{ProcessParent, start_hash};
use super::request::RecoveryDisposition::{ExternallyOwned, Rerunnable};
use super::request::{
    Backoff, ProcessEnvSpec, ProcessHandleDescriptor, ProcessIdentity, ProcessInput,
    ProcessStartGrant, ProcessStartRequest, RetryPolicy,
};
use super::scope::{ProcessOriginator, SessionScope};
use super::selector::Selector;

fn base() -> ProcessStartRequest {
    ProcessStartRequest::new(
        "p-1",
        ProcessInput::engine("build", json!({ "a": 1, "b": [1, 2] })),
        Rerunnable,
        ProcessOriginator::session(SessionScope::new("s-1")),
    )
}

fn hash(request: &ProcessStartRequest) -> ContentHash {
    request.check().unwrap();
    start_hash(request, None).unwrap()
}

fn read(value: Value) -> ProcessStartRequest {
    serde_json::from_value(value).unwrap()
}

type Change = fn(&mut ProcessStartRequest);

#[test]
fn whatever_a_start_says_changes_its_hash() {
    // Fails to compile when a field is added, so that it gets its lines below.
    let ProcessStartRequest {
        id: _,
        input: _,
        disposition: _,
        env_spec: _,
        originator: _,
        wake_target: _,
        grant: _,
        event_types: _,
        identity: _,
        caused_by: _,
        timeout: _,
        retry: _,
        priority: _,
        labels: _,
    } = base();
    let changes: [(&str, Change); 34] = [
        ("id", |r| r.id = "p-2".into()),
        ("kind", |r| {
            r.input = ProcessInput::engine("test", json!({ "a": 1, "b": [1, 2] }))
        }),
        ("payload", |r| {
            r.input = ProcessInput::engine("build", json!({ "a": 2, "b": [1, 2] }))
        }),
        ("order in an array", |r| {
            r.input = ProcessInput::engine("build", json!({ "a": 1, "b": [2, 1] }))
        }),
        ("1 is not 1.0", |r| {
            r.input = ProcessInput::engine("build", json!({ "a": 1.0, "b": [1, 2] }))
        }),
        ("null is not absent", |r| {
            r.input = ProcessInput::engine("build", json!({ "a": 1, "b": [1, 2], "c": null }))
        }),
        ("disposition", |r| r.disposition = ExternallyOwned),
        ("external input", |r| {
            r.input = ProcessInput::external(json!({ "a": 1, "b": [1, 2] }));
            r.disposition = ExternallyOwned;
        }),
        ("env", |r| {
            r.env_spec = Some(ProcessEnvSpec::new(Value::Null, Value::Null))
        }),
        ("env options", |r| {
            r.env_spec = Some(ProcessEnvSpec::new(1, Value::Null))
        }),
        ("env policy", |r| {
            r.env_spec = Some(ProcessEnvSpec::new(Value::Null, 1))
        }),
        ("originator", |r| r.originator = ProcessOriginator::host()),
        ("host scope", |r| {
            r.originator = ProcessOriginator::host_scope("s-1")
        }),
        ("session", |r| {
            r.originator = ProcessOriginator::session(SessionScope::new("s-2"))
        }),
        ("frame", |r| {
            r.originator = ProcessOriginator::session(SessionScope::new("s-1").with_frame("f"))
        }),
        ("wake target", |r| {
            r.wake_target = Some(SessionScope::new("s-1"))
        }),
        ("wake target's frame", |r| {
            r.wake_target = Some(SessionScope::new("s-1").with_frame("f"))
        }),
        ("event type", |r| {
            r.event_types = vec![ProcessEventType::new("e")]
        }),
        ("schema", |r| {
            r.event_types = vec![ProcessEventType::new("e").with_schema(json!({}))]
        }),
        ("wake", |r| {
            let wake = WakeSemantics::new(Selector::Payload);
            r.event_types = vec![ProcessEventType::new("e").with_wake(wake)];
        }),
        ("identity kind", |r| r.identity.kind = Some("k".into())),
        ("identity label", |r| r.identity.label = Some("k".into())),
        ("definition", |r| r.identity.definition = Some("k".into())),
        ("cause", |r| r.caused_by = Some("k".into())),
        ("timeout", |r| r.timeout = Some(Duration::from_secs(1))),
        ("timeout, longer", |r| {
            r.timeout = Some(Duration::from_millis(1_001))
        }),
        ("attempts", |r| r.retry = RetryPolicy::attempts(2)),
        ("recoveries", |r| r.retry.recoveries_max = 15),
        ("initial wait", |r| {
            r.retry.backoff.initial = Duration::from_millis(999)
        }),
        ("factor", |r| r.retry.backoff.factor = 2.5),
        ("longest wait", |r| {
            r.retry.backoff.max = Duration::from_secs(299)
        }),
        ("jitter", |r| {
            r.retry.backoff = Backoff {
                jitter: 0.0,
                ..Backoff::default()
            }
        }),
        ("priority", |r| r.priority = -1),
        ("label", |r| drop(r.labels.insert("a".into(), "b".into()))),
    ];
    let mut seen = vec![("nothing", hash(&base()))];
    for (what, change) in changes {
        let mut request = base();
        change(&mut request);
        let found = hash(&request);
        for (other, known) in &seen {
            assert_ne!(found, *known, "{what} is the same as {other}");
        }
        seen.push((what, found));
    }
}

#[test]
fn the_grant_does_not_change_the_hash() {
    let scope = || SessionScope::new("s-9").with_frame("f");
    let wanted = hash(&base());
    for grant in [
        None,
        Some(ProcessStartGrant::new(scope(), "label")),
        Some(ProcessStartGrant::new(SessionScope::new("s-1"), "")),
        Some(ProcessStartGrant {
            scope: scope(),
            descriptor: ProcessHandleDescriptor {
                kind: Some("k".into()),
                label: None,
            },
        }),
    ] {
        assert_eq!(hash(&base().with_grant(grant)), wanted);
    }
}

#[test]
fn the_parent_is_part_of_what_was_started() {
    let parent = |incarnation, key: &str, detached| ProcessParent {
        process_id: "parent".into(),
        incarnation: Incarnation(incarnation),
        key: key.into(),
        detached,
    };
    let mut seen = vec![start_hash(&base(), None).unwrap()];
    for parent in [
        parent(1, "a", false),
        parent(2, "a", false),
        parent(1, "b", false),
        parent(1, "a", true),
    ] {
        let found = start_hash(&base(), Some(&parent)).unwrap();
        assert!(!seen.contains(&found), "{parent:?}");
        seen.push(found);
    }
}

#[test]
fn the_order_of_keys_does_not_matter() {
    let one: ProcessStartRequest = serde_json::from_str(
        r#"{ "id": "p", "input": { "type": "engine", "kind": "k", "payload": { "x": { "b": 1, "a": 2 }, "w": 3 } },
             "disposition": "rerunnable", "originator": { "kind": "host" },
             "labels": { "l2": "b", "l1": "a" } }"#,
    )
    .unwrap();
    let other: ProcessStartRequest = serde_json::from_str(
        r#"{ "labels": { "l1": "a", "l2": "b" }, "originator": { "kind": "host" },
             "disposition": "rerunnable",
             "input": { "payload": { "w": 3, "x": { "a": 2, "b": 1 } }, "kind": "k", "type": "engine" },
             "id": "p" }"#,
    )
    .unwrap();
    assert_eq!(hash(&one), hash(&other));
}

#[test]
fn what_is_absent_is_its_default() {
    let short = json!({
        "id": "p", "disposition": "rerunnable", "originator": { "kind": "host" },
        "input": { "type": "engine", "kind": "k", "payload": 1 },
    });
    let mut long = short.clone();
    for (field, value) in [
        ("env_spec", json!(null)),
        ("wake_target", json!(null)),
        ("grant", json!(null)),
        ("event_types", json!([])),
        ("identity", json!({ "kind": null })),
        ("caused_by", json!(null)),
        ("timeout", json!(null)),
        (
            "retry",
            json!({ "attempts": 1, "recoveries_max": 16,
                    "backoff": { "initial": "1000ms", "factor": 2.0, "max": "5m", "jitter": 0.2 } }),
        ),
        ("priority", json!(0)),
        ("labels", json!({})),
    ] {
        long[field] = value;
    }
    assert_eq!(hash(&read(short.clone())), hash(&read(long)));
    let built = ProcessStartRequest::new(
        "p",
        ProcessInput::engine("k", 1),
        Rerunnable,
        ProcessOriginator::host(),
    )
    .with_identity(ProcessIdentity::default());
    assert_eq!(hash(&built), hash(&read(short)));
}

/// A stored hash is compared with one of a later release: its bytes are a format.
#[test]
fn the_hash_is_that_of_the_canonical_text() {
    let request = ProcessStartRequest::new(
        "p",
        ProcessInput::engine("k", json!({ "b": 1, "a": "é" })),
        Rerunnable,
        ProcessOriginator::host(),
    )
    .with_timeout(Some(Duration::from_secs(90)))
    .with_grant(Some(ProcessStartGrant::new(SessionScope::new("s"), "l")));
    let text = concat!(
        r#"{"disposition":"rerunnable","id":"p","identity":{},"#,
        r#""input":{"kind":"k","payload":{"a":"é","b":1},"type":"engine"},"#,
        r#""originator":{"kind":"host"},"priority":0,"#,
        r#""retry":{"attempts":1,"backoff":{"factor":2.0,"initial":"1s","jitter":0.2,"max":"5m"},"#,
        r#""recoveries_max":16},"timeout":"1m 30s"}"#,
    );
    assert_eq!(hash(&request), ContentHash::of(text.as_bytes()));
}

#[test]
fn an_environment_is_shared_by_whoever_captured_the_same() {
    let bytes = |options: Value, policy: Value| ProcessEnvSpec::new(options, policy).canonical();
    let one = bytes(json!({ "b": 1, "a": 2 }), json!(null)).unwrap();
    assert_eq!(
        String::from_utf8(one.clone()).unwrap(),
        r#"{"options":{"a":2,"b":1},"policy":null}"#
    );
    assert_eq!(one, bytes(json!({ "a": 2, "b": 1 }), json!(null)).unwrap());
    assert_ne!(one, bytes(json!(null), json!({ "a": 2, "b": 1 })).unwrap());
}
