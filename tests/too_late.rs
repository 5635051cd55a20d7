//! Commands that come too late: to what has ended, or after a shutdown.
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

#[tokio::test]
async fn a_terminal_process_accepts_nothing_and_still_answers_replays() {
    let supervisor = open().await;
    let processes = supervisor.processes();
    parked(&processes, "p").await;
    let go = |percent| ProcessEventAppendRequest::signal("go", json!({ "percent": percent }));
    let keyed = |payload: Value| event("note", payload).with_replay_key(Some("k".into()));
    let signalled = processes
        .signal("p", "go", "1", go(1), inline())
        .await
        .unwrap();
    let noted = processes.append_event("p", keyed(json!(1))).await.unwrap();
    processes
        .set_external_ref("p", json!("job-7"))
        .await
        .unwrap();
    let value = ProcessAwaitOutput::success(json!("done"));
    processes
        .complete_external("p", value.clone(), host())
        .await
        .unwrap();
    let before = whole(&processes).await;

    let refused = [
        processes
            .signal("p", "go", "2", go(1), inline())
            .await
            .unwrap_err(),
        processes
            .append_event("p", event("note", json!(2)))
            .await
            .unwrap_err(),
        processes
            .complete_external("p", value, host())
            .await
            .unwrap_err(),
        processes
            .request_abandon("p", "ops", None)
            .await
            .unwrap_err(),
    ];
    for error in refused {
        assert!(
            matches!(
                &error,
                Error::AlreadyTerminal { process_id, status: TerminalState::Completed }
                    if process_id == "p"
            ),
            "{error:?}"
        );
    }
    let other = [
        processes
            .signal("p", "go", "1", go(2), inline())
            .await
            .unwrap_err(),
        processes
            .append_event("p", keyed(json!(2)))
            .await
            .unwrap_err(),
        processes
            .set_external_ref("p", json!("job-8"))
            .await
            .unwrap_err(),
    ];
    for error in other {
        assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
    }
    assert_eq!(
        processes
            .signal("p", "go", "1", go(1), inline())
            .await
            .unwrap(),
        signalled
    );
    assert_eq!(
        processes.append_event("p", keyed(json!(1))).await.unwrap(),
        noted
    );
    processes
        .set_external_ref("p", json!("job-7"))
        .await
        .unwrap();
    let summary = processes.cancel("p", inline()).await.unwrap();
    assert_eq!(summary.status.terminal(), Some(TerminalState::Completed));
    assert_eq!(whole(&processes).await, before);
    close_clean(&supervisor).await;
}

fn shut<T: std::fmt::Debug>(result: Result<T>) {
    let error = result.unwrap_err();
    assert!(matches!(error, Error::ShuttingDown), "{error:?}");
}

#[tokio::test]
async fn after_a_shutdown_every_call_says_so() {
    for place in Place::both() {
        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        parked(&processes, "p").await;
        let observer = processes.observer().unwrap();
        let journal = supervisor.journaled_effects();
        let scope = SessionScope::new("s");
        let session = supervisor.session(scope.clone()).processes();
        let any = ProcessListFilter::any();
        close(&supervisor).await;
        let go = || ProcessEventAppendRequest::signal("go", json!({ "percent": 1 }));
        let one = ["p".to_owned()];
        let descriptor = ProcessHandleDescriptor::default;
        within(async {
            shut(processes.start(external("q"), inline()).await);
            shut(processes.list(&any).await);
            shut(processes.list_granted_to(&scope, &any).await);
            shut(processes.list_originated_by(&scope, &any).await);
            shut(processes.get("p").await);
            shut(processes.events("p", 0).await);
            shut(processes.await_output("p").await);
            shut(processes.cancel("p", inline()).await);
            shut(processes.signal("p", "go", "1", go(), inline()).await);
            shut(processes.session_snapshot("s").await);
            shut(processes.observer());
            shut(processes.cancel_all(inline()).await);
            shut(processes.transfer(&scope, &scope, &one).await);
            shut(processes.prune(0).await);
            shut(processes.request_abandon("p", "ops", None).await);

            shut(processes.record("p").await);
            shut(processes.grant(&scope, "p", descriptor()).await);
            shut(processes.revoke(&scope, "p").await);
            shut(processes.grants_of("p").await);
            shut(processes.has_grant(&scope, "p").await);
            shut(processes.list_page(&any, &PageRequest::first(1)).await);
            shut(processes.events_page("p", 0, 1).await);
            shut(processes.subscribe("p", 0).await);
            shut(processes.await_output_timeout("p", BOUND).await);
            shut(processes.await_any(&one, None).await);
            shut(processes.await_all(&one, None).await);
            shut(processes.append_event("p", event("note", json!(1))).await);
            shut(processes.set_external_ref("p", json!(1)).await);
            let done = ProcessAwaitOutput::success(1);
            shut(processes.complete_external("p", done, host()).await);
            let journaled =
                || ScopedEffectController::new(&journal, ExecutionScope::operation("o"));
            shut(processes.cancel("p", journaled()).await);
            shut(observer.process("p"));
            shut(observer.list(&any).await);
            shut(session.list().await);
            shut(session.snapshot().await);
            shut(session.cancel("p", inline()).await);
            shut(supervisor.recover().await);
            shut(supervisor.verify().await);
        })
        .await;
        // And it is not the end of the store.
        let again = place.builder().engine(echo()).open().await.unwrap();
        assert!(again.processes().get("p").await.unwrap().is_some());
        assert!(again.processes().get("q").await.unwrap().is_none());
        close(&again).await;
    }
}
