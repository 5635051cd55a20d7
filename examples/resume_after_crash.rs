//! A process that outlives the operating-system process which started it.
//!
//! ```text
//! cargo run --example resume_after_crash
//! ```
//!
//! The program runs itself as a child on a store of its own, kills it (SIGKILL) in the middle of
//! its work, and runs it again on the same store. The second run starts nothing: it awaits the
//! process by its id, and what was done under a replay key before the crash is not done twice.
#![expect(
    clippy::print_stdout,
    reason = "printing what happens is what it is for"
)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use procession::*;
use serde_json::{Value, json};

const STEPS: u64 = 4;

/// Copies so many pages, a step at a time. A page is copied once, however often it is run.
struct Copy;

#[async_trait::async_trait]
impl ProcessEngine for Copy {
    fn kind(&self) -> &str {
        "copy"
    }
    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        println!("  attempt {} begins", cx.attempt());
        for page in 1..=STEPS {
            let copied = ProcessEventAppendRequest::new("copied", json!({ "page": page }))
                .with_replay_key(Some(format!("page-{page}")));
            let event = cx.emit_durable(copied).await?;
            println!(
                "  page {page} stands in the log as event {}",
                event.sequence
            );
            if cx.attempt() == 1 && page == STEPS / 2 {
                println!("  half is done");
                // Hangs here, until it is killed.
                std::future::pending::<()>().await;
            }
        }
        Ok(json!({ "pages": STEPS }))
    }
}

async fn work(store: String) -> Result<()> {
    let supervisor = Supervisor::builder(store).engine(Copy).open().await?;
    let processes = supervisor.processes();
    let request = ProcessStartRequest::new(
        "copy-1",
        ProcessInput::engine("copy", Value::Null),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    )
    .with_event_type(ProcessEventType::new("copied"));
    // Started again with the same content, it is found and not started twice.
    let scope = ExecutionScope::operation("example");
    processes
        .start(request, ScopedEffectController::inline(scope))
        .await?;
    let limit = Duration::from_secs(60);
    let output = processes.await_output_timeout("copy-1", limit).await?;
    println!("  it ended: {output:?}");
    let copied = processes.events("copy-1", 0).await?;
    let copied = copied.iter().filter(|event| event.event_type == "copied");
    println!("  pages in the log: {}", copied.count());
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(store) = std::env::args().nth(1) {
        return Ok(work(store).await?);
    }
    let dir = tempfile::tempdir()?;
    for run in ["the first run", "the second run"] {
        println!("{run}:");
        let mut child = Command::new(std::env::current_exe()?)
            .arg(dir.path().join("store"))
            .stdout(Stdio::piped())
            .spawn()?;
        for line in BufReader::new(child.stdout.take().ok_or("no pipe")?).lines() {
            let line = line?;
            println!("{line}");
            if line.ends_with("half is done") {
                println!("  killed");
                child.kill()?;
            }
        }
        child.wait()?;
    }
    Ok(())
}
