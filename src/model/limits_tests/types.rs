//! Names, event types, schemas and selectors.

use super::super::decide::check_event;
use super::super::event::ProcessEventAppendRequest;
use super::super::event_type::{MappedState, ProcessEventType, TerminalSemantics, WakeSemantics};
use super::super::request::ProcessInput;
use super::super::request::RecoveryDisposition::Rerunnable;
use super::super::selector::Selector;
use super::super::testing::{json_of_bytes, nested, registration, request};
use super::*;
use serde_json::{Value, json};

#[test]
fn kinds_and_event_names_are_names() {
    let kind = |kind: &str| {
        let mut request = request(Rerunnable);
        request.input = ProcessInput::engine(kind, json!(null));
        request.check()
    };
    let declares = |name: &str| {
        let event_types = vec![ProcessEventType::new(name)];
        request(Rerunnable).with_event_types(event_types).check()
    };
    for name in ["a", "A-z_0.9", &"x".repeat(128)] {
        accepted(kind(name));
        accepted(declares(name));
    }
    for name in ["", "a b", "é", "a/b", "a\n", &"x".repeat(129)] {
        refused(kind(name), "input.kind", EVENT_NAME);
    }
    refused(declares(""), "event_types[].name", EVENT_NAME);
    refused(declares("a b"), "event_types[a b].name", EVENT_NAME);
    let long = "x".repeat(129);
    refused(
        declares(&long),
        &format!("event_types[{long}].name"),
        EVENT_NAME,
    );
    // A control character does not reach the message as one.
    refused(declares("a\nb"), "event_types[a\\nb].name", EVENT_NAME);
    refused(
        declares("process.mine"),
        "event_types[process.mine].name",
        "not process.*",
    );
    accepted(declares("processing"));
}

#[test]
fn a_process_declares_at_most_64_event_types_each_once() {
    let types = |count: usize| -> Vec<ProcessEventType> {
        (0..count)
            .map(|at| ProcessEventType::new(format!("e{at}")))
            .collect()
    };
    let check = |types| request(Rerunnable).with_event_types(types).check();
    accepted(check(types(64)));
    refused(check(types(65)), "event_types", "64 entries");
    let twice = vec![ProcessEventType::new("a"), ProcessEventType::new("a")];
    refused(check(twice), "event_types", "each name once");
}

#[test]
fn a_schema_has_at_most_64_kib_and_128_levels() {
    let check = |schema: Value| {
        let declared = ProcessEventType::new("e").with_schema(schema);
        request(Rerunnable).with_event_types(vec![declared]).check()
    };
    // `{"title":"…"}` adds 12 bytes to the text.
    accepted(check(json!({ "title": "x".repeat((64 << 10) - 12) })));
    let over = check(json!({ "title": "x".repeat((64 << 10) - 11) }));
    refused(over, "event_types[e].schema", "65536 bytes");
    let deep = |levels| json!({ "default": nested(levels) });
    accepted(check(deep(127)));
    refused(check(deep(128)), "event_types[e].schema", "128 levels");
    let broken = "a self-contained JSON Schema with linear-time patterns";
    for schema in [
        json!({ "type": "nonsense" }),
        json!({ "pattern": "(?=a)b" }),
        json!({ "patternProperties": { "(a)\\1": true } }),
        json!({ "properties": { "a": { "$ref": "other.json" } } }),
        json!({ "$schema": "https://schemas.invalid/mine" }),
        json!(null),
        json!(7),
    ] {
        refused(check(schema), "event_types[e].schema", broken);
    }
    // A schema may refer to itself without end; the payload ends it.
    let tree = json!({ "type": "array", "items": { "$ref": "#" } });
    accepted(check(tree.clone()));
    let append = |schema: Value, payload: Value| {
        let mut of = registration(Rerunnable);
        of.event_types = vec![ProcessEventType::new("e").with_schema(schema)];
        check_event(&of, ProcessEventAppendRequest::new("e", payload))
    };
    let deepest = (0..127).fold(json!([]), |inner, _| json!([inner]));
    accepted(append(tree, deepest));
    for endless in [
        json!({ "$ref": "#" }),
        json!({ "allOf": [{ "$ref": "#" }] }),
    ] {
        // Whatever it answers, it comes back.
        let _ = append(endless, json!(1));
    }
}

#[test]
fn selectors_are_bounded() {
    let check = |selector: Selector| {
        let declared = ProcessEventType::new("e").with_wake(WakeSemantics::new(selector));
        request(Rerunnable).with_event_types(vec![declared]).check()
    };
    let field = |part: &str| format!("event_types[e].wake.text.{part}");
    accepted(check(Selector::pointer(
        "/".to_owned() + &"x".repeat(4_095),
    )));
    accepted(check(Selector::pointer("")));
    let long = Selector::pointer("/".to_owned() + &"x".repeat(4_096));
    refused(check(long), &field("pointer"), "4096 bytes");
    let loose = "empty, or starting with a slash";
    refused(check(Selector::pointer("a/b")), &field("pointer"), loose);
    refused(check(Selector::present("a/b")), &field("pointer"), loose);
    accepted(check(Selector::constant(json_of_bytes(1 << 20))));
    let large = Selector::constant(json_of_bytes((1 << 20) + 1));
    refused(check(large), &field("value"), "1048576 bytes");
    accepted(check(Selector::constant(nested(128))));
    refused(
        check(Selector::constant(nested(129))),
        &field("value"),
        "128 levels",
    );

    let none: [(&str, &str); 0] = [];
    accepted(check(Selector::template("x".repeat(4_096), none)));
    let long = Selector::template("x".repeat(4_097), none);
    refused(check(long), &field("template"), "4096 bytes");
    let fields = |count: usize| (0..count).map(|at| (format!("f{at}"), "/a".to_owned()));
    accepted(check(Selector::template("", fields(64))));
    let many = Selector::template("", fields(65));
    refused(check(many), &field("fields"), "64 entries");
    refused(
        check(Selector::template("", [("a b", "/a")])),
        &field("fields"),
        EVENT_NAME,
    );
    let lame = Selector::template("", [("a", "b")]);
    refused(check(lame), &field("fields.a.pointer"), loose);

    // The other places of a selector are checked as well.
    let bad = || Selector::pointer("x");
    let wake = || WakeSemantics::new(Selector::Payload);
    let terminal = TerminalSemantics::new(MappedState::Completed, bad());
    for (declared, place) in [
        (
            ProcessEventType::new("e").with_wake(wake().with_condition(bad())),
            "wake.when",
        ),
        (
            ProcessEventType::new("e").with_wake(wake().with_dedupe_key(bad())),
            "wake.dedupe_key",
        ),
        (
            ProcessEventType::new("e").with_terminal(terminal),
            "terminal.output",
        ),
    ] {
        let found = request(Rerunnable).with_event_types(vec![declared]).check();
        refused(found, &format!("event_types[e].{place}.pointer"), loose);
    }
}

#[test]
fn a_template_cannot_grow_past_what_a_payload_may_be() {
    // 1,365 times 60,000 bytes would be 82 MB.
    let selector = Selector::template("{a}".repeat(1_365), [("a", "/a")]);
    let payload = json!({ "a": "é".repeat(30_000) });
    let text = selector.select(&payload);
    assert_eq!(text.as_str().map(str::len), Some(1 << 20));
    let wake = WakeSemantics::new(selector);
    assert_eq!(wake.notice(&payload).unwrap().text.len(), 4_096);
}
