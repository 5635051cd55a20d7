//! JSON that is too deep or too large: refused in every entry, by hosts and by engines.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so, and runs on a machine of today"
)]

mod common;

use common::refusals::*;
use common::*;
use procession::*;
use serde_json::{Value, json};

const DEEP: usize = 200_000;

/// An array in an array in an array. Neither cloned nor dropped here: both would overflow.
fn deep() -> Value {
    (0..DEEP).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

/// One byte more of JSON than a payload may have.
fn huge() -> Value {
    Value::String("x".repeat(limits::PAYLOAD_BYTES_MAX - 1))
}

fn with_payload(payload: Value) -> ProcessStartRequest {
    let mut request = rerunnable("deep", "echo");
    request.input = ProcessInput::Engine {
        kind: "echo".into(),
        payload,
    };
    request
}

/// Every place of a start request that holds JSON.
fn starts(bad: fn() -> Value) -> Vec<(&'static str, ProcessStartRequest)> {
    let mut metadata = external("deep");
    metadata.input = ProcessInput::External { metadata: bad() };
    let spec = |options, policy| ProcessEnvSpec { options, policy };
    let declared = |event_type| external("deep").with_event_type(event_type);
    let constant = || Selector::Constant { value: bad() };
    vec![
        ("input.payload", with_payload(bad())),
        ("input.metadata", metadata),
        (
            "env_spec",
            external("deep").with_env_spec(Some(spec(bad(), Value::Null))),
        ),
        (
            "env_spec",
            external("deep").with_env_spec(Some(spec(Value::Null, bad()))),
        ),
        (
            "event_types",
            declared(ProcessEventType::new("e").with_schema(bad())),
        ),
        (
            "event_types",
            declared(ProcessEventType::new("e").with_wake(WakeSemantics::new(constant()))),
        ),
        (
            "event_types",
            declared(
                ProcessEventType::new("e")
                    .with_terminal(TerminalSemantics::new(MappedState::Failed, constant())),
            ),
        ),
    ]
}

#[tokio::test]
async fn deep_and_huge_json_is_refused_in_every_entry() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    let session = supervisor.session(SessionScope::new("s")).processes();
    parked(&processes, "p").await;
    let before = whole(&processes).await;
    for bad in [deep as fn() -> Value, huge] {
        for (field, request) in starts(bad) {
            let error = processes.start(request, inline()).await.unwrap_err();
            assert!(field_of(&error).starts_with(field), "{field}: {error}");
            assert!(error.to_string().contains("deep"), "{error}");
        }
        let journal = supervisor.journaled_effects();
        for (_, request) in starts(bad) {
            let journaled =
                ScopedEffectController::new(&journal, ExecutionScope::operation("deep"));
            let error = processes.start(request, journaled).await.unwrap_err();
            assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
        }
        for (_, request) in starts(bad) {
            let error = session.start(request, inline()).await.unwrap_err();
            assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
        }
        let mut note = event("note", Value::Null);
        note.payload = bad();
        names(
            &processes.append_event("p", note).await.unwrap_err(),
            "payload",
            "p",
        );
        let mut go = ProcessEventAppendRequest::signal("go", Value::Null);
        go.payload = bad();
        let error = processes
            .signal("p", "go", "1", go, inline())
            .await
            .unwrap_err();
        names(&error, "payload", "p");
        let mut go = ProcessEventAppendRequest::signal("go", Value::Null);
        go.payload = bad();
        let error = session
            .signal("p", "go", "1", go, inline())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::UnknownProcess { .. }), "{error:?}");
        names(
            &processes.set_external_ref("p", bad()).await.unwrap_err(),
            "reference",
            "p",
        );
        let success = || ProcessAwaitOutput::Success { value: bad() };
        let failure = ProcessAwaitOutput::Failure {
            class: FailureClass::External,
            code: "c".into(),
            message: String::new(),
            raw: Some(bad()),
        };
        let cancelled = ProcessAwaitOutput::Cancelled {
            message: String::new(),
            raw: Some(bad()),
        };
        for output in [success(), failure, cancelled] {
            let error = processes
                .complete_external("p", output, host())
                .await
                .unwrap_err();
            assert!(field_of(&error).starts_with("output."), "{error}");
        }
        let reaper = CompletionAuthority::ReconciledAbandon;
        let error = processes
            .complete_external("p", success(), reaper)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
        let error = processes
            .complete_external("", success(), host())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
    }
    assert_eq!(whole(&processes).await, before);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn deep_and_huge_json_of_an_engine_is_refused_to_it() {
    let bad = |name: &str| if name == "deep" { deep() } else { huge() };
    let supervisor = Supervisor::in_memory()
        .engine(engine(
            "emits",
            move |cx: ProcessContext, payload| async move {
                let mut request = ProcessEventAppendRequest::new("note", Value::Null);
                request.payload = bad(payload.as_str().unwrap());
                cx.emit_durable(request)
                    .await
                    .map(|_| Value::Null)
                    .map_err(|error| EngineFailure::new("refused", error.to_string()))
            },
        ))
        .engine(engine(
            "emits_late",
            move |cx: ProcessContext, payload| async move {
                // Its lease is given up first: the way out must take the payload apart as well.
                cx.emit_durable(ProcessEventAppendRequest::new(
                    "done",
                    json!({ "value": 7 }),
                ))
                .await?;
                let name = payload.as_str().unwrap().to_owned();
                let mut request = ProcessEventAppendRequest::new("note", Value::Null);
                request.payload = bad(&name);
                assert!(cx.emit_durable(request).await.is_err());
                let mut child = rerunnable("child", "returns");
                child.input = ProcessInput::Engine {
                    kind: "returns".into(),
                    payload: bad(&name),
                };
                assert!(cx.start_child("c", child).await.is_err());
                Ok(bad(&name))
            },
        ))
        .engine(engine("returns", move |_, payload| async move {
            Ok(bad(payload.as_str().unwrap()))
        }))
        .engine(engine("fails", move |_, payload| async move {
            let mut failure = EngineFailure::new("broken", "as asked");
            failure.raw = Some(bad(payload.as_str().unwrap()));
            Err(failure)
        }))
        .engine(engine(
            "stops",
            move |cx: ProcessContext, payload| async move {
                let mut failure = EngineFailure::cancelled(cx.cancelled().await);
                failure.raw = Some(bad(payload.as_str().unwrap()));
                Err(failure)
            },
        ))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    for payload in ["deep", "huge"] {
        for kind in ["emits", "emits_late", "returns", "fails", "stops"] {
            let id = format!("{kind}-{payload}");
            let mut request = rerunnable(&id, kind)
                .with_event_type(ProcessEventType::new("note"))
                .with_event_type(ProcessEventType::new("done").with_terminal(
                    TerminalSemantics::new(MappedState::Completed, Selector::pointer("/value")),
                ));
            request.input = ProcessInput::engine(kind, payload);
            processes.start(request, inline()).await.unwrap();
            if kind == "stops" {
                until(&processes, &id, |p| p.facets.started).await;
                processes.cancel(&id, inline()).await.unwrap();
            }
            let found = output(&processes, &id).await;
            match (kind, &found) {
                ("emits", ProcessAwaitOutput::Failure { code, .. }) => assert_eq!(code, "refused"),
                ("emits_late", ProcessAwaitOutput::Success { value }) => {
                    assert_eq!(value, &json!(7))
                }
                ("returns", ProcessAwaitOutput::Failure { code, class, .. }) => {
                    assert_eq!(
                        (code.as_str(), *class),
                        ("output_refused", FailureClass::Internal)
                    );
                }
                ("fails", ProcessAwaitOutput::Failure { code, raw, .. }) => {
                    assert_eq!((code.as_str(), raw), ("broken", &None));
                }
                ("stops", ProcessAwaitOutput::Cancelled { raw, .. }) => assert_eq!(raw, &None),
                other => panic!("{other:?}"),
            }
        }
    }
    close_clean(&supervisor).await;
}
