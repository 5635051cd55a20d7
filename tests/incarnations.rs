//! An id that was pruned and started again is another process.

mod common;

use procession::{
    Error, ExecutionScope, ProcessAwaitOutput, ProcessInput, ProcessOriginator,
    ProcessStartRequest, RecoveryDisposition, ScopedEffectController, ShutdownOptions, Supervisor,
};
use serde_json::json;

fn scope() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("test"))
}

fn request(payload: i64) -> ProcessStartRequest {
    ProcessStartRequest::new(
        "p",
        ProcessInput::engine("echo", json!(payload)),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    )
}

#[tokio::test]
async fn a_pruned_process_answers_no_more_and_its_id_starts_anew() {
    let supervisor = Supervisor::in_memory()
        .engine(common::echo())
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    let first = processes.start(request(1), scope()).await.unwrap();
    processes.await_output("p").await.unwrap();
    // Its actor is active: it has just been asked something.
    processes.cancel("p", scope()).await.unwrap();
    let report = processes.prune(u64::MAX).await.unwrap();
    assert_eq!((report.pruned_processes, report.pruned_events), (1, 2));
    for refused in [
        processes.cancel("p", scope()).await.map(drop),
        processes.request_abandon("p", "me", None).await.map(drop),
        processes.await_output("p").await.map(drop),
    ] {
        assert!(
            matches!(refused, Err(Error::NoLongerRetained { .. })),
            "{refused:?}"
        );
    }
    let again = processes.start(request(1), scope()).await;
    assert!(
        matches!(again, Err(Error::NoLongerRetained { .. })),
        "{again:?}"
    );
    let second = processes.start(request(2), scope()).await.unwrap();
    assert!(second.incarnation > first.incarnation);
    let output = processes
        .await_output_timeout("p", common::BOUND)
        .await
        .unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(2));
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
}
