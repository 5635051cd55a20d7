//! Bad input: refused by name before anything is written, and nothing panics.
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

use std::time::Duration;

use common::refusals::*;
use common::*;
use procession::*;
use serde_json::{Value, json};

#[tokio::test]
async fn ids_are_1_to_256_bytes_without_control_characters() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    let longest = "x".repeat(256);
    processes.start(external(&longest), inline()).await.unwrap();
    processes
        .start(external("ünïcode ✓ / : %"), inline())
        .await
        .unwrap();
    let before = whole(&processes).await;
    let scope = SessionScope::new("s");
    for bad in [
        String::new(),
        "x".repeat(257),
        "a\nb".into(),
        "a\0".into(),
        "\u{85}".into(),
    ] {
        let refused = [
            processes.start(external(&bad), inline()).await.unwrap_err(),
            processes.get(&bad).await.unwrap_err(),
            processes.record(&bad).await.unwrap_err(),
            processes.events(&bad, 0).await.unwrap_err(),
            processes.await_output(&bad).await.unwrap_err(),
            processes.cancel(&bad, inline()).await.unwrap_err(),
            processes
                .request_abandon(&bad, "ops", None)
                .await
                .unwrap_err(),
            processes.session_snapshot(bad.clone()).await.unwrap_err(),
            processes
                .signal(
                    &bad,
                    "go",
                    "1",
                    ProcessEventAppendRequest::signal("go", 1),
                    inline(),
                )
                .await
                .unwrap_err(),
            processes
                .transfer(
                    &scope,
                    &scope.clone().with_frame("f"),
                    std::slice::from_ref(&bad),
                )
                .await
                .unwrap_err(),
            processes
                .transfer(&SessionScope::new(bad.clone()), &scope, &[])
                .await
                .unwrap_err(),
            processes
                .grant(&scope, &bad, ProcessHandleDescriptor::default())
                .await
                .unwrap_err(),
            processes
                .grant(
                    &SessionScope::new(&bad),
                    &longest,
                    ProcessHandleDescriptor::default(),
                )
                .await
                .unwrap_err(),
            processes
                .list_granted_to(&SessionScope::new(&bad), &ProcessListFilter::any())
                .await
                .unwrap_err(),
            processes
                .list_originated_by(&scope.clone().with_frame(&bad), &ProcessListFilter::any())
                .await
                .unwrap_err(),
            processes.subscribe(&bad, 0).await.unwrap_err(),
            processes
                .complete_external(&bad, ProcessAwaitOutput::success(1), host())
                .await
                .unwrap_err(),
            processes
                .append_event(&bad, event("note", json!(1)))
                .await
                .unwrap_err(),
            processes
                .set_external_ref(&bad, json!(1))
                .await
                .unwrap_err(),
            processes
                .cancel(
                    &longest,
                    ScopedEffectController::inline(ExecutionScope::operation(bad.clone())),
                )
                .await
                .unwrap_err(),
        ];
        for error in refused {
            assert!(
                matches!(error, Error::InvalidInput { .. }),
                "{bad:?}: {error:?}"
            );
            assert!(error.to_string().len() < 1_000, "{error}");
        }
    }
    assert_eq!(whole(&processes).await, before);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn an_id_that_is_a_prefix_of_another_has_nothing_of_it() {
    for place in Place::both() {
        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        let ids = ["a", "ab", "abc", "a/", "a/b", "a:b"];
        for id in ids {
            let scope = SessionScope::new(id);
            let request = external(id)
                .with_event_type(ProcessEventType::new("note"))
                .with_grant(Some(ProcessStartGrant::new(scope, id)));
            processes.start(request, inline()).await.unwrap();
            let note = event("note", json!(id)).with_replay_key(Some("k".into()));
            processes.append_event(id, note).await.unwrap();
        }
        for id in ids {
            let events = processes.events(id, 0).await.unwrap();
            assert_eq!(events.len(), 1);
            assert_eq!(*events[0].payload, json!(id));
            let scope = SessionScope::new(id);
            let granted = processes
                .list_granted_to(&scope, &ProcessListFilter::any())
                .await
                .unwrap();
            assert_eq!(granted.len(), 1);
            assert_eq!(granted[0].process_id, id);
            let snapshot = processes.session_snapshot(id).await.unwrap();
            assert_eq!(snapshot.visible_process_ids, [id]);
        }
        processes
            .complete_external("a", ProcessAwaitOutput::success(1), host())
            .await
            .unwrap();
        let ended = processes
            .get("a")
            .await
            .unwrap()
            .unwrap()
            .terminal_at_ms
            .unwrap();
        let report = processes.prune(ended + 1).await.unwrap();
        assert_eq!((report.pruned_processes, report.grants), (1, 1));
        for id in &ids[1..] {
            assert_eq!(processes.events(id, 0).await.unwrap().len(), 1, "{id}");
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn undeclared_events_and_payloads_that_break_their_schema_change_nothing() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    parked(&processes, "p").await;
    let before = whole(&processes).await;
    for undeclared in [
        "other",
        "process.completed",
        "process.anything",
        "signal.stop",
    ] {
        let error = processes
            .append_event("p", event(undeclared, json!({})))
            .await
            .unwrap_err();
        let Error::UndeclaredEvent {
            process_id,
            event_type,
            ..
        } = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!(
            (process_id.as_str(), event_type.as_str()),
            ("p", undeclared)
        );
    }
    let stop = ProcessEventAppendRequest::signal("stop", json!({}));
    let error = processes
        .signal("p", "stop", "1", stop, inline())
        .await
        .unwrap_err();
    assert!(matches!(error, Error::UndeclaredEvent { .. }), "{error:?}");

    for (payload, at) in [(json!({ "percent": 101 }), "/percent"), (json!({}), "")] {
        let append = processes
            .append_event("p", event("progress", payload.clone()))
            .await;
        let go = ProcessEventAppendRequest::signal("go", payload);
        let signal = processes.signal("p", "go", "1", go, inline()).await;
        for error in [append.unwrap_err(), signal.unwrap_err()] {
            let Error::InvalidPayload {
                process_id, path, ..
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!((process_id.as_str(), path.as_str()), ("p", at));
            assert!(error.to_string().contains(&format!("{at:?}")), "{error}");
        }
    }
    let terminal = processes
        .append_event("p", event("done", json!({ "value": 1 })))
        .await
        .unwrap_err();
    names(&terminal, "event_type", "p");
    let bad_names = processes
        .append_event("p", event("no space", json!(1)))
        .await
        .unwrap_err();
    names(&bad_names, "event_type", "p");
    assert_eq!(whole(&processes).await, before);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn a_signal_is_exactly_what_its_name_says() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    parked(&processes, "p").await;
    let before = whole(&processes).await;
    let go = || ProcessEventAppendRequest::signal("go", json!({ "percent": 1 }));
    let long = "x".repeat(129);
    for (name, id, request, field) in [
        ("g.o", "1", go(), "signal_name"),
        ("", "1", go(), "signal_name"),
        (long.as_str(), "1", go(), "signal_name"),
        ("go", "", go(), "signal_id"),
        ("go", "a\tb", go(), "signal_id"),
        (
            "go",
            "1",
            event("progress", json!({ "percent": 1 })),
            "request.event_type",
        ),
        (
            "go",
            "1",
            go().with_replay_key(Some("mine".into())),
            "request.replay_key",
        ),
    ] {
        let error = processes
            .signal("p", name, id, request, inline())
            .await
            .unwrap_err();
        names(&error, field, "p");
    }
    assert_eq!(whole(&processes).await, before);
    processes
        .signal("p", "go", "1", go(), inline())
        .await
        .unwrap();
    let other = ProcessEventAppendRequest::signal("go", json!({ "percent": 2 }));
    let error = processes
        .signal("p", "go", "1", other, inline())
        .await
        .unwrap_err();
    assert!(
        matches!(&error, Error::Conflict { process_id, .. } if process_id == "p"),
        "{error:?}"
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn an_unknown_engine_kind_is_refused_unless_somebody_else_executes_it() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    let before = whole(&processes).await;
    for request in [rerunnable("p", "nobody"), owner_bound("p", "nobody")] {
        let error = processes.start(request, inline()).await.unwrap_err();
        let Error::UnknownEngine { process_id, kind } = &error else {
            panic!("{error:?}");
        };
        assert_eq!((process_id.as_str(), kind.as_str()), ("p", "nobody"));
    }
    let mut here = external("p");
    here.disposition = RecoveryDisposition::Rerunnable;
    names(
        &processes.start(here, inline()).await.unwrap_err(),
        "disposition",
        "p",
    );
    assert_eq!(whole(&processes).await, before);
    let elsewhere = work("p", "nobody", RecoveryDisposition::ExternallyOwned);
    processes.start(elsewhere, inline()).await.unwrap();
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn the_same_id_with_other_content_is_a_conflict_and_changes_nothing() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    processes.start(external("p"), inline()).await.unwrap();
    processes
        .start(rerunnable("done", "echo"), inline())
        .await
        .unwrap();
    output(&processes, "done").await;
    let before = whole(&processes).await;
    let other = [
        external("p").with_priority(1),
        external("p").with_label("a", "b"),
        external("p").with_caused_by(Some("x".into())),
        external("p").with_timeout(Some(Duration::from_secs(1))),
        external("p").with_event_type(ProcessEventType::new("note")),
        external("p").with_env_spec(Some(ProcessEnvSpec::new(1, 2))),
        external("p").with_wake_target(Some(SessionScope::new("s"))),
        external("p").with_retry(RetryPolicy::attempts(2)),
        rerunnable("p", "echo"),
        rerunnable("done", "polite"),
    ];
    for request in other {
        let id = request.id.clone();
        let error = processes.start(request, inline()).await.unwrap_err();
        assert!(
            matches!(&error, Error::Conflict { process_id, .. } if *process_id == id),
            "{error:?}"
        );
    }
    // A grant is no content, and is not made anew either: it may have been transferred since.
    let granted =
        external("p").with_grant(Some(ProcessStartGrant::new(SessionScope::new("s"), "")));
    processes.start(granted, inline()).await.unwrap();
    assert_eq!(whole(&processes).await, before);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn every_limit_of_a_start_names_its_field() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    let before = whole(&processes).await;
    let long = "x".repeat(2_000);
    let types = (0..65)
        .map(|n| ProcessEventType::new(format!("e{n}")))
        .collect();
    let mut kind = rerunnable("p", "echo");
    kind.input = ProcessInput::engine("no kind", Value::Null);
    let labels = (0..65).map(|n| (format!("l{n}"), String::new())).collect();
    let cases = [
        ("input.kind", kind),
        ("event_types", external("p").with_event_types(types)),
        (
            "event_types",
            external("p").with_event_type(ProcessEventType::new("process.mine")),
        ),
        (
            "event_types",
            external("p").with_event_type(ProcessEventType::new(long.clone())),
        ),
        (
            "event_types",
            external("p").with_event_type(
                ProcessEventType::new("e").with_schema(json!({ "$ref": "https://example.com/s" })),
            ),
        ),
        ("labels", external("p").with_labels(labels)),
        ("labels", external("p").with_label("a", &long)),
        (
            "caused_by",
            external("p").with_caused_by(Some(String::new())),
        ),
        (
            "identity",
            external("p").with_identity(ProcessIdentity {
                label: Some(long.clone()),
                ..ProcessIdentity::default()
            }),
        ),
        (
            "grant",
            external("p").with_grant(Some(ProcessStartGrant::new(SessionScope::new(""), ""))),
        ),
        (
            "wake_target",
            external("p").with_wake_target(Some(SessionScope::new("\u{7}"))),
        ),
        ("retry", external("p").with_retry(RetryPolicy::attempts(0))),
        (
            "timeout",
            external("p").with_timeout(Some(Duration::from_secs(u64::MAX / 2))),
        ),
    ];
    for (field, request) in cases {
        let error = processes.start(request, inline()).await.unwrap_err();
        assert!(field_of(&error).starts_with(field), "{field}: {error}");
        names(&error, field_of(&error), "p");
    }
    assert_eq!(whole(&processes).await, before);
    let too_many = vec!["p".to_owned(); 1_001];
    let scope = SessionScope::new("s");
    let error = processes
        .transfer(&scope, &scope, &too_many)
        .await
        .unwrap_err();
    assert_eq!(field_of(&error), "process_ids");
    for limit in [0, 1_001] {
        let page = PageRequest::first(limit);
        assert!(
            processes
                .list_page(&ProcessListFilter::any(), &page)
                .await
                .is_err()
        );
        assert!(processes.events_page("p", 0, limit).await.is_err());
    }
    let far = ProcessListFilter {
        created_at_start_ms: Some(u64::MAX),
        created_at_end_ms: Some(0),
        ..ProcessListFilter::any()
    };
    // Nonsense of a range: refused or empty, but no panic.
    assert!(processes.list(&far).await.unwrap_or_default().is_empty());
    parked(&processes, "q").await;
    assert_eq!(processes.events("q", u64::MAX).await.unwrap(), []);
    assert_eq!(processes.events_page("q", u64::MAX, 10).await.unwrap(), []);
    assert_eq!(processes.prune(u64::MAX).await.unwrap().pruned_processes, 0);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn a_panic_in_an_engines_check_refuses_the_start_and_nothing_else() {
    struct Fragile;
    #[async_trait::async_trait]
    impl ProcessEngine for Fragile {
        fn kind(&self) -> &str {
            "fragile"
        }
        fn check(&self, payload: &Value) -> std::result::Result<(), PayloadProblem> {
            assert!(payload.is_null(), "only null");
            Ok(())
        }
        async fn run(&self, _cx: ProcessContext, payload: Value) -> EngineResult {
            Ok(payload)
        }
    }
    let supervisor = Supervisor::in_memory()
        .engine(Fragile)
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    let mut request = rerunnable("p", "fragile");
    request.input = ProcessInput::engine("fragile", 1);
    let error = processes.start(request, inline()).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidPayload { process_id, .. } if process_id == "p"));
    processes
        .start(rerunnable("p", "fragile"), inline())
        .await
        .unwrap();
    output(&processes, "p").await;
    close_clean(&supervisor).await;
}
