//! What a start says, and what is asked of lists.

use super::super::effect::ExecutionScope;
use super::super::error::Error;
use super::super::filter::{PageCursor, PageRequest, ProcessListFilter};
use super::super::request::RecoveryDisposition::{ExternallyOwned, OwnerBound, Rerunnable};
use super::super::request::{
    Backoff, ProcessEnvSpec, ProcessHandleDescriptor, ProcessIdentity, ProcessInput,
    ProcessStartGrant, ProcessStartRequest, RetryPolicy,
};
use super::super::scope::{ProcessOriginator, SessionScope};
use super::super::testing::{json_of_bytes, nested, request};
use super::*;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

#[test]
fn ids_have_1_to_256_bytes_and_no_control_characters() {
    let base = || request(Rerunnable);
    let named = |id: &str| ProcessStartRequest {
        id: id.to_owned(),
        ..base()
    };
    for id in ["x", &longest_id(), " ", "a/b%c:d", "🦀", "..", "null"] {
        accepted(named(id).check());
    }
    // The id itself is at fault here, so the error does not repeat it.
    refused_alone(named("").check(), "id", ID);
    refused_alone(named(&"x".repeat(257)).check(), "id", ID_LONG);
    refused_alone(named(&(longest_id() + "x")).check(), "id", ID_LONG);
    for control in ["\u{0}", "\n", "\t", "\u{1b}", "\u{7f}", "\u{85}", "\u{9f}"] {
        refused_alone(named(&format!("a{control}b")).check(), "id", NO_CONTROL);
    }
}

#[test]
fn every_id_like_field_has_the_limits_of_an_id() {
    type With = fn(ProcessStartRequest, &str) -> ProcessStartRequest;
    let fields: [(&str, With); 11] = [
        ("originator.scope", |request, id| ProcessStartRequest {
            originator: ProcessOriginator::host_scope(id),
            ..request
        }),
        ("originator.scope.session_id", |request, id| {
            ProcessStartRequest {
                originator: ProcessOriginator::session(SessionScope::new(id)),
                ..request
            }
        }),
        ("originator.scope.agent_frame_id", |request, id| {
            let scope = SessionScope::new("s").with_frame(id);
            let originator = ProcessOriginator::session(scope);
            ProcessStartRequest {
                originator,
                ..request
            }
        }),
        ("wake_target.session_id", |request, id| {
            request.with_wake_target(Some(SessionScope::new(id)))
        }),
        ("wake_target.agent_frame_id", |request, id| {
            request.with_wake_target(Some(SessionScope::new("s").with_frame(id)))
        }),
        ("grant.scope.session_id", |request, id| {
            request.with_grant(Some(ProcessStartGrant::new(SessionScope::new(id), "l")))
        }),
        ("grant.scope.agent_frame_id", |request, id| {
            let scope = SessionScope::new("s").with_frame(id);
            request.with_grant(Some(ProcessStartGrant::new(scope, "l")))
        }),
        ("grant.descriptor.kind", |request, id| {
            request.with_grant(Some(ProcessStartGrant {
                scope: SessionScope::new("s"),
                descriptor: ProcessHandleDescriptor {
                    kind: Some(id.to_owned()),
                    label: None,
                },
            }))
        }),
        ("identity.kind", |request, id| {
            request.with_identity(ProcessIdentity {
                kind: Some(id.to_owned()),
                ..ProcessIdentity::default()
            })
        }),
        ("identity.definition", |request, id| {
            request.with_identity(ProcessIdentity {
                definition: Some(id.to_owned()),
                ..ProcessIdentity::default()
            })
        }),
        ("caused_by", |request, id| {
            request.with_caused_by(Some(id.to_owned()))
        }),
    ];
    for (field, with) in fields {
        accepted(with(request(Rerunnable), &longest_id()).check());
        refused(with(request(Rerunnable), "").check(), field, ID);
        let long = "x".repeat(257);
        refused(with(request(Rerunnable), &long).check(), field, ID_LONG);
        refused(with(request(Rerunnable), "a\nb").check(), field, NO_CONTROL);
    }
}

#[test]
fn texts_for_people_have_at_most_1024_bytes() {
    for (field, with) in [
        (
            "identity.label",
            (|request: ProcessStartRequest, text: String| {
                request.with_identity(ProcessIdentity {
                    label: Some(text),
                    ..ProcessIdentity::default()
                })
            }) as fn(ProcessStartRequest, String) -> ProcessStartRequest,
        ),
        ("grant.descriptor.label", |request, text| {
            request.with_grant(Some(ProcessStartGrant::new(SessionScope::new("s"), text)))
        }),
    ] {
        let check = |text: String| with(request(Rerunnable), text).check();
        accepted(check(String::new()));
        accepted(check("x".repeat(1_024)));
        refused(check("x".repeat(1_025)), field, "1024 bytes");
        refused(check("a\u{7}".into()), field, NO_CONTROL);
    }
}

#[test]
fn json_of_a_start_has_at_most_1_mib_and_128_levels() {
    type With = fn(Value) -> ProcessStartRequest;
    let engine: With = |value| ProcessStartRequest {
        input: ProcessInput::engine("build", value),
        ..request(Rerunnable)
    };
    let external: With =
        |value| ProcessStartRequest::external("p-1", ProcessOriginator::host(), value);
    let options: With =
        |value| request(Rerunnable).with_env_spec(Some(ProcessEnvSpec::new(value, Value::Null)));
    let policy: With =
        |value| request(Rerunnable).with_env_spec(Some(ProcessEnvSpec::new(Value::Null, value)));
    for (field, with) in [("input.payload", engine), ("input.metadata", external)] {
        accepted(with(json_of_bytes(1 << 20)).check());
        let over = with(json_of_bytes((1 << 20) + 1)).check();
        refused(over, field, "1048576 bytes");
        accepted(with(nested(128)).check());
        refused(with(nested(129)).check(), field, "128 levels");
    }
    // `{"options":…,"policy":null}` adds 26 bytes.
    for (field, with) in [("env_spec.options", options), ("env_spec.policy", policy)] {
        accepted(with(json_of_bytes((1 << 20) - 26)).check());
        let over = with(json_of_bytes((1 << 20) - 25)).check();
        refused(over, "env_spec", "1048576 bytes");
        accepted(with(nested(128)).check());
        refused(with(nested(129)).check(), field, "128 levels");
    }
}

#[test]
fn labels_are_64_names_with_values_of_256_bytes() {
    let check = |labels: BTreeMap<String, String>| request(Rerunnable).with_labels(labels).check();
    let many = |count: usize| {
        (0..count)
            .map(|at| (format!("l{at}"), String::new()))
            .collect()
    };
    let one = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
    accepted(check(many(64)));
    refused(check(many(65)), "labels", "64 entries");
    accepted(check(one(&"x".repeat(128), &"x".repeat(256))));
    refused(check(one("team", &"x".repeat(257))), "labels.team", ID_LONG);
    refused(check(one("team", "a\nb")), "labels.team", NO_CONTROL);
    for name in ["", "a b", "a\n", &"x".repeat(129)] {
        refused(check(one(name, "v")), "labels", EVENT_NAME);
    }
}

#[test]
fn retries_and_backoff_are_bounded() {
    let check = |retry: RetryPolicy| request(Rerunnable).with_retry(retry).check();
    accepted(check(RetryPolicy::attempts(1)));
    accepted(check(RetryPolicy::attempts(10_000)));
    for attempts in [0, 10_001, u32::MAX] {
        refused(
            check(RetryPolicy::attempts(attempts)),
            "retry.attempts",
            "1 to 10000",
        );
    }
    accepted(check(RetryPolicy::attempts(2).with_recoveries_max(0)));
    accepted(check(
        RetryPolicy::attempts(2).with_recoveries_max(u32::MAX),
    ));
    let backoff = |backoff: Backoff| check(RetryPolicy::attempts(2).with_backoff(backoff));
    let base = Backoff::default();
    for factor in [1.0, 1_000.0] {
        accepted(backoff(Backoff { factor, ..base }));
    }
    for factor in [
        0.999,
        1_000.1,
        -2.0,
        0.0,
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
    ] {
        refused(
            backoff(Backoff { factor, ..base }),
            "retry.backoff.factor",
            "1 to 1000",
        );
    }
    for jitter in [0.0, 1.0] {
        accepted(backoff(Backoff { jitter, ..base }));
    }
    for jitter in [-0.001, 1.001, f64::NAN, f64::INFINITY] {
        refused(
            backoff(Backoff { jitter, ..base }),
            "retry.backoff.jitter",
            "0 to 1",
        );
    }
    let longest = Duration::from_millis(316_224_000_000);
    let over = longest + Duration::from_millis(1);
    accepted(backoff(Backoff {
        initial: longest,
        max: longest,
        ..base
    }));
    let limit = "316224000000 ms";
    refused(
        backoff(Backoff {
            initial: over,
            ..base
        }),
        "retry.backoff.initial",
        limit,
    );
    refused(
        backoff(Backoff { max: over, ..base }),
        "retry.backoff.max",
        limit,
    );
    refused(
        backoff(Backoff {
            max: Duration::MAX,
            ..base
        }),
        "retry.backoff.max",
        limit,
    );

    let timeout = |timeout| request(Rerunnable).with_timeout(Some(timeout)).check();
    accepted(timeout(Duration::from_millis(1)));
    accepted(timeout(longest));
    refused(timeout(over), "timeout", limit);
    refused(timeout(Duration::MAX), "timeout", limit);
    for none in [Duration::ZERO, Duration::from_micros(999)] {
        refused(timeout(none), "timeout", "at least 1 ms");
    }
}

#[test]
fn dispositions_fit_their_input() {
    let external = |disposition| {
        let input = ProcessInput::external(json!({}));
        ProcessStartRequest {
            input,
            ..request(disposition)
        }
    };
    accepted(external(ExternallyOwned).check());
    for disposition in [Rerunnable, OwnerBound] {
        refused(
            external(disposition).check(),
            "disposition",
            "external input is externally_owned",
        );
    }
    let engine = ProcessInput::engine("build", json!({}));
    accepted(
        ProcessStartRequest {
            input: engine,
            ..request(ExternallyOwned)
        }
        .check(),
    );
    // P6: what may not run twice cannot be retried either.
    accepted(
        request(OwnerBound)
            .with_retry(RetryPolicy::attempts(1))
            .check(),
    );
    refused(
        request(OwnerBound)
            .with_retry(RetryPolicy::attempts(2))
            .check(),
        "retry.attempts",
        "1: a started owner_bound process is never run again",
    );
}

#[test]
fn pages_filters_and_scopes_are_bounded() {
    for limit in [1, 1_000] {
        accepted(PageRequest::first(limit).check());
    }
    for limit in [0, 1_001, usize::MAX] {
        let cursor = PageCursor("c".into());
        refused_alone(
            PageRequest::after(cursor, limit).check(),
            "page.limit",
            "1 to 1000",
        );
    }
    let any = ProcessListFilter::any;
    for (field, filter) in [
        (
            "filter.identity_kind",
            ProcessListFilter {
                identity_kind: Some(String::new()),
                ..any()
            },
        ),
        (
            "filter.definition",
            ProcessListFilter {
                definition: Some(String::new()),
                ..any()
            },
        ),
        (
            "filter.caused_by",
            ProcessListFilter {
                caused_by: Some(String::new()),
                ..any()
            },
        ),
        (
            "filter.parent",
            ProcessListFilter {
                parent: Some(String::new()),
                ..any()
            },
        ),
    ] {
        refused_alone(filter.check(), field, ID);
    }
    let labels: BTreeMap<String, String> = [("a b".to_owned(), String::new())].into();
    refused_alone(
        ProcessListFilter { labels, ..any() }.check(),
        "filter.labels",
        EVENT_NAME,
    );
    // The longest scope there can be, every byte of it escaped, can be asked for.
    let longest = SessionScope::new("/".repeat(256)).with_frame("%".repeat(256));
    let originator_scope_id = Some(longest.id());
    accepted(
        ProcessListFilter {
            originator_scope_id,
            ..any()
        }
        .check(),
    );

    accepted(ExecutionScope::turn(longest_id(), longest_id()).check());
    for (scope, field) in [
        (ExecutionScope::turn("", "t"), "execution_scope.session_id"),
        (ExecutionScope::turn("s", ""), "execution_scope.turn_id"),
        (ExecutionScope::process(""), "execution_scope.process_id"),
        (ExecutionScope::operation(""), "execution_scope.id"),
    ] {
        refused_alone(scope.check(), field, ID);
    }
}

#[test]
fn an_error_names_an_overlong_process_only_in_part() {
    let id = "é".repeat(1_000);
    assert_eq!(
        Error::unknown(&id),
        Error::UnknownProcess {
            process_id: longest_id()
        }
    );
}
