//! All fifteen calls against a store on disk; after a reopen each gives the same answer.
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

use common::*;
use procession::*;
use serde_json::json;

fn session() -> SessionScope {
    SessionScope::new("s-1")
}

fn frame() -> SessionScope {
    SessionScope::new("s-1").with_frame("f-1")
}

fn all() -> ProcessListFilter {
    ProcessListFilter::any()
}

fn builder(builder: SupervisorBuilder) -> SupervisorBuilder {
    builder
        .engine(engine("double", |cx: ProcessContext, payload| async move {
            cx.emit("progress", json!({ "percent": 50 })).await?;
            let go = cx.wait_signal("go").await?;
            let by = go.payload["by"].as_i64().unwrap_or(0);
            Ok(json!(payload.as_i64().unwrap_or(0) * by))
        }))
        .engine(polite())
}

fn double(id: &str) -> ProcessStartRequest {
    ProcessStartRequest::new(
        id,
        ProcessInput::engine("double", json!(21)),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::session(session()),
    )
    .with_grant(Some(ProcessStartGrant::new(session(), "doubles")))
    .with_wake_target(Some(session()))
    .with_env_spec(Some(ProcessEnvSpec::new(
        json!({ "lang": "en" }),
        json!({}),
    )))
    .with_event_type(ProcessEventType::new("progress"))
    .with_event_type(ProcessEventType::signal("go"))
    .with_label("team", "a")
}

/// What stands in the store, as the read calls show it.
#[derive(Debug, PartialEq)]
struct Answers {
    record: Option<ProcessRecord>,
    got: Option<ObservedProcess>,
    listed: Vec<ObservedProcess>,
    granted: Vec<ObservedProcess>,
    granted_to_frame: Vec<ObservedProcess>,
    originated: Vec<ObservedProcess>,
    events: Vec<ObservedProcessEvent>,
    output: ProcessAwaitOutput,
    cancelled: ProcessAwaitOutput,
    snapshot: ProcessWorkSnapshot,
    observed: ProcessWorkSnapshot,
    pruned: Error,
    abandoned: ProcessAwaitOutput,
}

async fn answers(processes: &Processes) -> Answers {
    let observer = processes.observer().unwrap();
    Answers {
        record: processes.record("double-1").await.unwrap(),
        got: processes.get("double-1").await.unwrap(),
        listed: processes.list(&all()).await.unwrap(),
        granted: processes.list_granted_to(&session(), &all()).await.unwrap(),
        granted_to_frame: processes.list_granted_to(&frame(), &all()).await.unwrap(),
        originated: processes
            .list_originated_by(&session(), &all())
            .await
            .unwrap(),
        events: processes.events("double-1", 0).await.unwrap(),
        output: output(processes, "double-1").await,
        cancelled: output(processes, "stopped").await,
        snapshot: processes.session_snapshot("s-1").await.unwrap(),
        observed: observer.snapshot_for_session("s-1").await.unwrap(),
        pruned: processes.await_output("old").await.unwrap_err(),
        abandoned: output(processes, "given-up").await,
    }
}

#[tokio::test]
async fn every_call_answers_the_same_after_a_reopen() {
    let place = Place::disk();
    let supervisor = builder(place.builder()).open().await.unwrap();
    let processes = supervisor.processes();

    // start, await_output, prune: first, so that only this one is old enough.
    processes.start(external("old"), inline()).await.unwrap();
    let host = CompletionAuthority::Host { by: "ops".into() };
    let done = ProcessAwaitOutput::success(json!("done"));
    processes
        .complete_external("old", done, host)
        .await
        .unwrap();
    let ended = processes
        .get("old")
        .await
        .unwrap()
        .unwrap()
        .terminal_at_ms
        .unwrap();
    assert_eq!(
        processes.prune(ended).await.unwrap().pruned_processes,
        0,
        "not older than itself"
    );
    let pruned = processes.prune(ended + 1).await.unwrap();
    assert_eq!((pruned.pruned_processes, pruned.pruned_events), (1, 1));
    assert_eq!(processes.get("old").await.unwrap(), None);

    // start, signal
    let started = processes.start(double("double-1"), inline()).await.unwrap();
    assert_eq!(
        started.last_sequence, 0,
        "acknowledged as it was registered"
    );
    let go = || ProcessEventAppendRequest::signal("go", json!({ "by": 2 }));
    let signal = processes
        .signal("double-1", "go", "g-1", go(), inline())
        .await
        .unwrap();
    assert_eq!(signal.event_type, "signal.go");
    assert_eq!(
        output(&processes, "double-1").await,
        ProcessAwaitOutput::success(42)
    );
    let again = processes
        .signal("double-1", "go", "g-1", go(), inline())
        .await
        .unwrap();
    assert_eq!(again, signal, "the same signal again is the same event");

    // cancel, cancel_all
    for id in ["stopped", "stopped-too"] {
        processes
            .start(rerunnable(id, "polite"), inline())
            .await
            .unwrap();
        until(&processes, id, |p| p.facets.started).await;
    }
    let summary = processes.cancel("stopped", inline()).await.unwrap();
    assert_eq!(summary.process_id, "stopped");
    output(&processes, "stopped").await;
    let summaries = processes.cancel_all(inline()).await.unwrap();
    assert_eq!(summaries.len(), 1);
    assert_eq!(summaries[0].process_id, "stopped-too");
    assert_eq!(
        output(&processes, "stopped-too").await.state(),
        TerminalState::Cancelled
    );

    // request_abandon
    processes
        .start(external("given-up"), inline())
        .await
        .unwrap();
    let asked = processes
        .request_abandon("given-up", "ops", Some("nobody answers".into()))
        .await
        .unwrap();
    assert_eq!(asked.process_id, "given-up");
    assert_eq!(
        output(&processes, "given-up").await.state(),
        TerminalState::Abandoned
    );

    // transfer
    processes
        .transfer(&session(), &frame(), &["double-1".to_owned()])
        .await
        .unwrap();

    let before = answers(&processes).await;
    check(&before);
    let kept = processes.start(double("double-1"), inline()).await.unwrap();
    assert_eq!(Some(&kept), before.record.as_ref());
    close_clean(&supervisor).await;

    let supervisor = builder(place.builder()).open().await.unwrap();
    let processes = supervisor.processes();
    assert_eq!(answers(&processes).await, before);
    assert_eq!(
        processes.start(double("double-1"), inline()).await.unwrap(),
        kept
    );
    let summary = processes.cancel("double-1", inline()).await.unwrap();
    assert_eq!(summary.status.terminal(), Some(TerminalState::Completed));
    let replayed = processes
        .signal("double-1", "go", "g-1", go(), inline())
        .await
        .unwrap();
    assert_eq!(replayed, signal);
    assert_eq!(processes.cancel_all(inline()).await.unwrap(), []);
    let refused = processes
        .request_abandon("double-1", "ops", None)
        .await
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Error::AlreadyTerminal {
                status: TerminalState::Completed,
                ..
            }
        ),
        "{refused:?}"
    );
    assert_eq!(
        answers(&processes).await,
        before,
        "nothing of this wrote anything"
    );
    close_clean(&supervisor).await;
}

fn check(found: &Answers) {
    assert_eq!(
        ids(&found.listed),
        ["double-1", "stopped", "stopped-too", "given-up"]
    );
    assert_eq!(ids(&found.originated), ["double-1"]);
    assert_eq!(
        ids(&found.granted),
        Vec::<&str>::new(),
        "it was transferred"
    );
    assert_eq!(ids(&found.granted_to_frame), ["double-1"]);
    let types: Vec<_> = found
        .events
        .iter()
        .map(|event| event.event_type.as_str())
        .collect();
    // Whether the signal came before or after the wait, it is there once, and the wait's end too.
    for expected in [
        "process.started",
        "progress",
        "signal.go",
        "process.resumed",
    ] {
        assert_eq!(
            types.iter().filter(|t| **t == expected).count(),
            1,
            "{types:?}"
        );
    }
    assert_eq!(types.last(), Some(&"process.completed"));
    let sequences: Vec<_> = found.events.iter().map(|event| event.sequence).collect();
    assert_eq!(
        sequences,
        (1..=found.events.len() as u64).collect::<Vec<_>>()
    );
    assert_eq!(found.output, ProcessAwaitOutput::success(42));
    assert_eq!(found.cancelled.state(), TerminalState::Cancelled);
    assert_eq!(found.snapshot.visible_process_ids, ["double-1"]);
    assert_eq!(found.snapshot.items[0].events, found.events);
    assert_eq!(
        found.snapshot.items[0].descriptor.label.as_deref(),
        Some("doubles")
    );
    assert_eq!(found.observed, found.snapshot);
    assert!(
        matches!(
            found.pruned,
            Error::NoLongerRetained {
                status: TerminalState::Completed,
                ..
            }
        ),
        "{:?}",
        found.pruned
    );
    let ProcessAwaitOutput::Abandoned { evidence } = &found.abandoned else {
        panic!("{:?}", found.abandoned);
    };
    assert_eq!(evidence.writer, AbandonWriter::ReconciledRequest);
    assert_eq!(evidence.requested_by.as_deref(), Some("ops"));
    let record = found.record.as_ref().unwrap();
    assert_eq!(record.labels["team"], "a");
    assert_eq!(record.attempt, 1);
}
