//! What a filter admits, and what it refuses to read.

use serde_json::{Value, json};

use super::filter::{ProcessListFilter, StatusFilter};
use super::ids::Incarnation;
use super::observed::{Lifecycle, ObservedProcess};
use super::record::ProcessParent;
use super::scope::{ProcessOriginator, SessionScope};

fn process() -> ObservedProcess {
    serde_json::from_value(json!({
        "process_id": "p-1", "incarnation": 3, "kind": "build", "label": "nightly",
        "definition": "d-1", "lifecycle": "running", "facets": { "waiting": true },
        "disposition": "rerunnable", "attempt": 1, "last_sequence": 2, "created_at_ms": 1_000,
        "updated_at_ms": 2_000, "priority": 0, "caused_by": "m-1", "labels": { "team": "a", "tier": "1" },
        "originator": { "kind": "session", "scope": { "session_id": "s-1" } },
        "parent": { "process_id": "p-0", "incarnation": 1, "key": "k", "detached": false },
    }))
    .unwrap()
}

fn filter(fields: Value) -> ProcessListFilter {
    serde_json::from_value(fields).unwrap()
}

#[test]
fn a_filter_asks_for_running_processes_unless_told_otherwise() {
    assert_eq!(ProcessListFilter::default().status, StatusFilter::Running);
    assert_eq!(filter(json!({})), ProcessListFilter::default());
    assert_eq!(filter(json!({ "status": "any" })), ProcessListFilter::any());
}

#[test]
fn every_status_admits_its_own() {
    use Lifecycle::{Abandoned, Cancelled, Completed, Failed, Running};
    let all = [Running, Completed, Failed, Cancelled, Abandoned];
    for (status, admitted) in [
        ("running", vec![Running]),
        ("completed", vec![Completed]),
        ("failed", vec![Failed]),
        ("cancelled", vec![Cancelled]),
        ("abandoned", vec![Abandoned]),
        ("terminal", vec![Completed, Failed, Cancelled, Abandoned]),
        ("any", all.to_vec()),
    ] {
        let filter = filter(json!({ "status": status }));
        for lifecycle in all {
            let process = ObservedProcess {
                lifecycle,
                ..process()
            };
            let found = filter.admits(&process);
            assert_eq!(found, admitted.contains(&lifecycle), "{status} {lifecycle}");
        }
    }
}

#[test]
fn creation_is_a_half_open_range() {
    for (start, end, admitted) in [
        (None, None, true),
        (Some(1_000), None, true),
        (Some(1_001), None, false),
        (None, Some(1_000), false),
        (None, Some(1_001), true),
        (Some(1_000), Some(1_001), true),
        (Some(1_000), Some(1_000), false),
        (Some(2_000), Some(500), false),
        (Some(0), Some(u64::MAX), true),
    ] {
        let filter = ProcessListFilter {
            created_at_start_ms: start,
            created_at_end_ms: end,
            ..ProcessListFilter::any()
        };
        assert_eq!(filter.admits(&process()), admitted, "{start:?}..{end:?}");
    }
}

#[test]
fn every_condition_must_hold() {
    let matching = json!({
        "status": "running", "waiting": true, "originator_scope_id": "session:s-1",
        "identity_kind": "build", "identity_label": "nightly", "definition": "d-1",
        "caused_by": "m-1", "parent": "p-0", "labels": { "team": "a", "tier": "1" },
        "created_at_start_ms": 1_000, "created_at_end_ms": 1_001,
    });
    assert!(filter(matching.clone()).admits(&process()));
    for (field, other) in [
        ("status", json!("failed")),
        ("waiting", json!(false)),
        ("originator_scope_id", json!("session:s-1/frame:f")),
        ("identity_kind", json!("test")),
        ("identity_label", json!("Nightly")),
        ("definition", json!("d-2")),
        ("caused_by", json!("m-2")),
        ("parent", json!("p-1")),
        ("labels", json!({ "team": "b" })),
        ("labels", json!({ "team": "a", "absent": "" })),
        ("created_at_start_ms", json!(1_001)),
        ("created_at_end_ms", json!(1_000)),
    ] {
        let mut fields = matching.clone();
        fields[field] = other;
        assert!(!filter(fields).admits(&process()), "{field}");
    }
    // What a process does not have meets no condition on it.
    let bare = ObservedProcess {
        kind: None,
        label: None,
        definition: None,
        caused_by: None,
        parent: None,
        labels: std::collections::BTreeMap::new(),
        ..process()
    };
    for field in [
        "identity_kind",
        "identity_label",
        "definition",
        "caused_by",
        "parent",
        "labels",
    ] {
        let only = json!({ "status": "any", field: matching[field] });
        assert!(filter(only.clone()).admits(&process()), "{field}");
        assert!(!filter(only).admits(&bare), "{field}");
    }
}

#[test]
fn a_parent_is_found_by_its_id_in_any_incarnation() {
    let by_parent = filter(json!({ "parent": "p-0" }));
    for incarnation in [1, 2] {
        let parent = Some(ProcessParent {
            process_id: "p-0".into(),
            incarnation: Incarnation(incarnation),
            key: "k".into(),
            detached: true,
        });
        assert!(by_parent.admits(&ObservedProcess {
            parent,
            ..process()
        }));
    }
}

#[test]
fn an_originator_is_asked_for_by_its_text() {
    for originator in [
        ProcessOriginator::host(),
        ProcessOriginator::host_scope("nightly"),
        ProcessOriginator::session(SessionScope::new("s/1").with_frame("f")),
    ] {
        let wanted = ProcessListFilter {
            originator_scope_id: Some(originator.scope_id()),
            ..ProcessListFilter::any()
        };
        assert!(!wanted.admits(&process()));
        assert!(wanted.admits(&ObservedProcess {
            originator,
            ..process()
        }));
    }
}

/// Both ways of reading: from text, and from a value.
fn refusals(text: &str) -> [String; 2] {
    let by_text = serde_json::from_str::<ProcessListFilter>(text).unwrap_err();
    let value: Value = serde_json::from_str(text).unwrap();
    let by_value = serde_json::from_value::<ProcessListFilter>(value).unwrap_err();
    [by_text.to_string(), by_value.to_string()]
}

#[test]
fn what_a_filter_cannot_read_it_refuses_by_name() {
    for (field, text) in [
        ("state", r#"{ "state": "any" }"#),
        ("Status", r#"{ "Status": "any" }"#),
        ("created_after", r#"{ "labels": {}, "created_after": 5 }"#),
        ("status", r#"{ "status": "finished" }"#),
        ("status", r#"{ "status": 3 }"#),
        ("status", r#"{ "status": null }"#),
        ("waiting", r#"{ "waiting": "yes" }"#),
        ("originator_scope_id", r#"{ "originator_scope_id": 1 }"#),
        ("identity_kind", r#"{ "identity_kind": ["a"] }"#),
        ("identity_label", r#"{ "identity_label": {} }"#),
        ("definition", r#"{ "definition": true }"#),
        ("caused_by", r#"{ "caused_by": 1.5 }"#),
        ("parent", r#"{ "parent": { "process_id": "p" } }"#),
        ("labels", r#"{ "labels": ["a"] }"#),
        ("labels", r#"{ "labels": { "team": 1 } }"#),
        ("created_at_start_ms", r#"{ "created_at_start_ms": -1 }"#),
        (
            "created_at_start_ms",
            r#"{ "created_at_start_ms": "2024-01-01" }"#,
        ),
        ("created_at_end_ms", r#"{ "created_at_end_ms": 1.0 }"#),
    ] {
        for message in refusals(text) {
            assert!(message.contains(field), "{text}: {message}");
        }
    }
    let twice = serde_json::from_str::<ProcessListFilter>(r#"{ "parent": "a", "parent": "b" }"#);
    assert!(twice.unwrap_err().to_string().contains("parent"));
    assert!(serde_json::from_str::<ProcessListFilter>("[]").is_err());
    assert!(serde_json::from_str::<ProcessListFilter>("null").is_err());
}

#[test]
fn an_absent_condition_may_be_said_as_null() {
    let text = json!({ "waiting": null, "parent": null, "created_at_end_ms": null });
    assert_eq!(filter(text), ProcessListFilter::default());
}

#[test]
fn a_filter_is_written_without_what_it_does_not_ask() {
    let text = |filter: &ProcessListFilter| serde_json::to_value(filter).unwrap();
    assert_eq!(
        text(&ProcessListFilter::default()),
        json!({ "status": "running" })
    );
    let full = json!({
        "status": "terminal", "waiting": false, "originator_scope_id": "host",
        "identity_kind": "k", "identity_label": "l", "definition": "d", "caused_by": "c",
        "parent": "p", "labels": { "a": "b" }, "created_at_start_ms": 0, "created_at_end_ms": 1,
    });
    assert_eq!(text(&filter(full.clone())), full);
}
