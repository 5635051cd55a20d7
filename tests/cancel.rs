//! Cancelling: cooperative, durable, idempotent, and forced where it must be.
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

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use procession::*;
use serde_json::{Value, json};

#[tokio::test]
async fn a_queued_process_is_cancelled_at_once_and_never_runs() {
    for place in Place::both() {
        let runs = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&runs);
        let supervisor = place
            .builder()
            .engine(engine("counts", move |cx: ProcessContext, _| {
                count.fetch_add(1, Ordering::SeqCst);
                async move { Err(EngineFailure::cancelled(cx.cancelled().await)) }
            }))
            .concurrency(1)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(rerunnable("first", "counts"), inline())
            .await
            .unwrap();
        until(&processes, "first", |p| p.facets.started).await;
        for request in [
            rerunnable("queued", "counts"),
            owner_bound("bound", "counts"),
        ] {
            let id = request.id.clone();
            processes.start(request, inline()).await.unwrap();
            let found = processes.get(&id).await.unwrap().unwrap();
            assert!(found.facets.queued);
            assert_eq!(found.queued_reason, Some(QueuedReason::Slot));
            let summary = processes.cancel(&id, inline()).await.unwrap();
            assert_eq!(summary.status.terminal(), Some(TerminalState::Cancelled));
            assert_eq!(
                event_types(&processes, &id).await,
                ["process.cancel_requested", "process.cancelled"]
            );
        }
        processes.cancel("first", inline()).await.unwrap();
        output(&processes, "first").await;
        // Were one of them still queued, its turn would come before this one's.
        processes
            .start(rerunnable("last", "counts"), inline())
            .await
            .unwrap();
        // The attempt is durable a moment before its engine runs.
        until(&processes, "last", |_| runs.load(Ordering::SeqCst) >= 2).await;
        assert_eq!(runs.load(Ordering::SeqCst), 2);
        processes.cancel("last", inline()).await.unwrap();
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_running_engine_sees_its_token_and_who_asked() {
    let supervisor = Supervisor::in_memory()
        .engine(engine("asks", |cx: ProcessContext, _| async move {
            let reason = cx.cancelled().await;
            assert_eq!(cx.cancel_reason(), Some(reason.clone()));
            assert!(cx.cancellation_token().is_cancelled());
            Err(EngineFailure::cancelled(reason).with_raw(json!({ "left": "tidy" })))
        }))
        .open()
        .await
        .unwrap();
    let scope = SessionScope::new("s");
    let session = supervisor.session(scope.clone()).processes();
    let mut request = rerunnable("p", "asks");
    request.originator = ProcessOriginator::session(scope);
    session.start(request, inline()).await.unwrap();
    let processes = supervisor.processes();
    until(&processes, "p", |p| p.facets.started).await;
    let summary = session.cancel("p", inline()).await.unwrap();
    assert_eq!(
        summary.status,
        ProcessStatus::Running,
        "the status at that moment"
    );
    let expected = ProcessAwaitOutput::Cancelled {
        message: "cancelled by session:s".into(),
        raw: Some(json!({ "left": "tidy" })),
    };
    assert_eq!(output(&processes, "p").await, expected);
    let record = processes.record("p").await.unwrap().unwrap();
    assert_eq!(
        record.cancel_request.unwrap().requested_by.as_deref(),
        Some("session:s")
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn what_does_not_stop_within_the_grace_period_is_forced_and_says_so() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(deaf())
            .cancel_grace(Duration::from_millis(20))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        for request in [rerunnable("p", "deaf"), owner_bound("q", "deaf")] {
            let id = request.id.clone();
            processes.start(request, inline()).await.unwrap();
            until(&processes, &id, |p| p.facets.started).await;
            processes.cancel(&id, inline()).await.unwrap();
            let ProcessAwaitOutput::Cancelled { message, .. } = output(&processes, &id).await
            else {
                panic!("not cancelled");
            };
            assert!(message.contains("forced"), "{message}");
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn an_engine_that_succeeds_although_asked_to_cancel_is_completed() {
    let supervisor = Supervisor::in_memory()
        .engine(engine("stubborn", |cx: ProcessContext, _| async move {
            cx.cancelled().await;
            Ok(json!("done all the same"))
        }))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    processes
        .start(owner_bound("p", "stubborn"), inline())
        .await
        .unwrap();
    until(&processes, "p", |p| p.facets.started).await;
    processes.cancel("p", inline()).await.unwrap();
    assert_eq!(
        output(&processes, "p").await,
        ProcessAwaitOutput::success("done all the same")
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn cancelling_is_recorded_once_and_never_on_what_has_ended() {
    for place in Place::both() {
        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(external("ext"), inline()).await.unwrap();
        for _ in 0..3 {
            let summary = processes.cancel("ext", inline()).await.unwrap();
            assert_eq!(
                summary.status,
                ProcessStatus::Running,
                "its external owner acts on it"
            );
        }
        assert_eq!(
            event_types(&processes, "ext").await,
            ["process.cancel_requested"]
        );
        let found = processes.get("ext").await.unwrap().unwrap();
        assert!(found.facets.cancel_requested);

        processes
            .start(rerunnable("done", "echo"), inline())
            .await
            .unwrap();
        output(&processes, "done").await;
        let before = event_types(&processes, "done").await;
        let summary = processes.cancel("done", inline()).await.unwrap();
        assert_eq!(
            summary.status.output(),
            Some(&ProcessAwaitOutput::success(Value::Null))
        );
        assert_eq!(event_types(&processes, "done").await, before);
        let error = processes.cancel("nobody", inline()).await.unwrap_err();
        assert_eq!(error.to_string(), "unknown process nobody");
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn cancel_all_has_one_summary_for_each_running_process() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(polite())
            .engine(echo())
            .concurrency_of("polite", 50)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(rerunnable("ended", "echo"), inline())
            .await
            .unwrap();
        output(&processes, "ended").await;
        let mut expected = Vec::new();
        for n in 0..150 {
            let id = format!("p{n:03}");
            let request = match n % 3 {
                0 => external(&id),
                1 => rerunnable(&id, "polite"),
                _ => owner_bound(&id, "polite"),
            };
            processes.start(request, inline()).await.unwrap();
            expected.push(id);
        }
        let summaries = processes.cancel_all(inline()).await.unwrap();
        let ids: Vec<_> = summaries.iter().map(|s| s.process_id.clone()).collect();
        assert_eq!(ids, expected);
        for (n, id) in expected.iter().enumerate() {
            if n % 3 == 0 {
                assert_eq!(
                    event_types(&processes, id).await,
                    ["process.cancel_requested"]
                );
            } else {
                let found = output(&processes, id).await;
                assert_eq!(found.state(), TerminalState::Cancelled);
            }
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_session_cancels_however_long_its_id_is() {
    let supervisor = Place::memory().builder().open().await.unwrap();
    let scope = SessionScope::new("/".repeat(256)).with_frame("%".repeat(256));
    let session = supervisor.session(scope.clone()).processes();
    for id in ["one", "other"] {
        let originator = ProcessOriginator::session(scope.clone());
        let request = ProcessStartRequest::external(id, originator, 1);
        session.start(request, inline()).await.unwrap();
    }
    session.cancel("one", inline()).await.unwrap();
    assert_eq!(session.cancel_all(inline()).await.unwrap().len(), 2);
    for id in ["one", "other"] {
        let shown = supervisor.processes().get(id).await.unwrap().unwrap();
        assert_eq!(shown.cancel_request.unwrap().requested_by, Some(scope.id()));
    }
    close_clean(&supervisor).await;
}
