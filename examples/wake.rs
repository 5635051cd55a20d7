//! Wakes a session when one of its processes has something to say: durably, in order, once for each
//! key, until the session says that it has been told.
//!
//! `cargo run --example wake`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use procession::*;
use serde_json::{Value, json};

struct Backup;

#[async_trait::async_trait]
impl ProcessEngine for Backup {
    fn kind(&self) -> &str {
        "backup"
    }

    fn event_types(&self) -> Vec<ProcessEventType> {
        let text = Selector::template(
            "{disk} is {percent}% full",
            [("disk", "/disk"), ("percent", "/percent")],
        );
        // Once for each disk, however often it is said.
        let wake = WakeSemantics::new(text).with_dedupe_key(Selector::pointer("/disk"));
        vec![ProcessEventType::new("disk_full").with_wake(wake)]
    }

    async fn run(&self, cx: ProcessContext, _: Value) -> EngineResult {
        for (disk, percent) in [("sda", 97), ("sdb", 98), ("sda", 99)] {
            let payload = json!({ "disk": disk, "percent": percent });
            cx.emit("disk_full", payload).await?;
        }
        Ok(Value::Null)
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::in_memory().engine(Backup).open().await?;
    let processes = supervisor.processes();
    let session = SessionScope::new("ops");
    let request = ProcessStartRequest::new(
        "backup-1",
        ProcessInput::engine("backup", json!({})),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    )
    .with_wake_target(Some(session.clone()));
    let effects = ScopedEffectController::inline(ExecutionScope::operation("example"));
    processes.start(request, effects).await?;

    let mut told = 0;
    while told < 2 {
        // Waits for the next one, also for one that came while nobody looked.
        for wake in processes.next_wakes(&session).await? {
            println!(
                "{}: {} (event {})",
                wake.process_id, wake.text, wake.sequence
            );
            // Only now: a crash before this shows it again.
            processes.ack_wake(&session, wake.wake_id).await?;
            told += 1;
        }
    }
    processes.await_output("backup-1").await?;
    let left = processes.wakes(&session).await?.len();
    println!("{left} left");
    if left > 0 {
        return Err(format!("{left} wakes more than there are disks").into());
    }
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}
