//! The shortest way through everything.

use std::time::Duration;

use procession::*;
use serde_json::{Value, json};

struct Double;

#[async_trait::async_trait]
impl ProcessEngine for Double {
    fn kind(&self) -> &str {
        "double"
    }
    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult {
        cx.emit("progress", json!({ "percent": 50 })).await?;
        Ok(json!(payload.as_i64().unwrap_or(0) * 2))
    }
}

async fn through(supervisor: Supervisor) {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .try_init();
    let processes = supervisor.processes();
    let request = ProcessStartRequest::new(
        "p",
        ProcessInput::engine("double", json!(21)),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    )
    .with_event_type(ProcessEventType::new("progress"));
    let scope = || ScopedEffectController::inline(ExecutionScope::operation("test"));
    let record = processes.start(request.clone(), scope()).await.unwrap();
    let output = processes
        .await_output_timeout(&record.id, Duration::from_secs(10))
        .await
        .unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(42));
    let events = processes.events("p", 0).await.unwrap();
    let types: Vec<_> = events
        .iter()
        .map(|event| event.event_type.as_str())
        .collect();
    assert_eq!(types, ["process.started", "progress", "process.completed"]);
    let again = processes.start(request, scope()).await.unwrap();
    assert_eq!(again.incarnation, record.incarnation);
    let report = supervisor.verify().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_process_runs_in_memory() {
    through(Supervisor::in_memory().engine(Double).open().await.unwrap()).await;
}

#[tokio::test]
async fn a_process_runs_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    through(
        Supervisor::builder(dir.path())
            .engine(Double)
            .open()
            .await
            .unwrap(),
    )
    .await;
}
