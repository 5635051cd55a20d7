//! Follows a process live: its log from the beginning, then every event as it becomes durable, then
//! the end. A subscriber that comes late, or is slow, sees the same.
//!
//! `cargo run --example subscribe`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::pin::Pin;

use futures_core::Stream;
use procession::*;
use serde_json::{Value, json};

struct Count;

#[async_trait::async_trait]
impl ProcessEngine for Count {
    fn kind(&self) -> &str {
        "count"
    }

    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult {
        let to = payload["to"].as_u64().unwrap_or(3);
        for n in 1..=to {
            cx.emit("counted", json!({ "n": n })).await?;
        }
        Ok(json!({ "counted": to }))
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::in_memory().engine(Count).open().await?;
    let processes = supervisor.processes();
    let request = ProcessStartRequest::new(
        "count-1",
        ProcessInput::engine("count", json!({ "to": 5 })),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::host(),
    )
    .with_event_type(ProcessEventType::new("counted"));
    let effects = ScopedEffectController::inline(ExecutionScope::operation("example"));
    processes.start(request, effects).await?;

    // From the beginning, and then live, with no gap and no duplicate in between.
    let mut seen = 0;
    let mut subscription = processes.subscribe("count-1", seen).await?;
    while let Some(event) = next(&mut subscription).await {
        let event = event?;
        println!(
            "{:>2} {} {}",
            event.sequence, event.event_type, event.payload
        );
        // Where to resume, if this stopped here.
        seen = event.sequence;
    }
    println!("ended after event {seen}");
    if seen < 5 {
        return Err(format!("five were counted, and {seen} events seen").into());
    }

    // Late, and only for the last two.
    let mut late = processes.subscribe("count-1", seen - 2).await?;
    while let Some(event) = next(&mut late).await {
        println!("again: {}", event?.event_type);
    }
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}

/// What `StreamExt::next` of the crate `futures` does.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
