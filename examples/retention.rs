//! How long ended processes are kept, and what is left of them.
//!
//! ```text
//! cargo run --example retention
//! ```
//!
//! History is pruned once it is old enough, admitted by a filter, and read by whoever follows the
//! change feed. A tombstone stays, so that a late question gets an answer and nothing runs twice.
#![expect(
    clippy::print_stdout,
    reason = "printing what happens is what it is for"
)]

use procession::*;
use serde_json::json;

fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("example"))
}

fn ticket(id: &str, team: &str) -> ProcessStartRequest {
    ProcessStartRequest::external(id, ProcessOriginator::host(), json!({ "id": id }))
        .with_label("team", team)
}

async fn ended(processes: &Processes, id: &str, team: &str) -> Result<()> {
    processes.start(ticket(id, team), inline()).await?;
    let by = CompletionAuthority::Host { by: "ops".into() };
    let output = ProcessAwaitOutput::success("answered");
    processes.complete_external(id, output, by).await
}

#[tokio::main]
async fn main() -> Result<()> {
    // A runtime can do it by itself: here for what ended more than a week ago.
    let supervisor = Supervisor::in_memory()
        .retention(RetentionPolicy::parse("7d")?)
        .open()
        .await?;
    let processes = supervisor.processes();
    ended(&processes, "a-1", "a").await?;
    ended(&processes, "b-1", "b").await?;
    processes.start(ticket("a-2", "a"), inline()).await?;

    // A reader of the change feed has seen this much; another process ends behind its back.
    let seen = processes.changes_since(&ChangeCursor::start(), 100).await?;
    println!("the reader has seen {} changes", seen.changes.len());
    ended(&processes, "a-3", "a").await?;

    // By hand: everything of team a that has ended, but nothing that the reader has not seen.
    let mut of_a = ProcessListFilter::any();
    of_a.labels.insert("team".to_owned(), "a".to_owned());
    let selector = PruneSelector::older_than(u64::MAX)
        .with_filter(of_a)
        .with_watermark(Some(seen.next.clone()));
    let report = processes.prune_where(&selector).await?;
    println!(
        "pruned: {} processes, {} events",
        report.pruned_processes, report.pruned_events
    );
    let left = processes.list(&ProcessListFilter::any()).await?;
    let left: Vec<_> = left.iter().map(|kept| kept.process_id.as_str()).collect();
    println!("kept: {left:?}");

    // What is gone says so: to who asks late, to who starts it again, and in the feed.
    for refused in [
        processes.await_output("a-1").await.err(),
        processes.start(ticket("a-1", "a"), inline()).await.err(),
    ] {
        println!(
            "asked for later: {}",
            refused.map_or_else(String::new, |e| e.to_string())
        );
    }
    for change in processes.changes_since(&seen.next, 100).await?.changes {
        match change {
            ProcessChange::Deleted { process_id, .. } => {
                println!("the reader: {process_id} is gone")
            }
            ProcessChange::Changed { record } => println!("the reader: {} changed", record.id),
        }
    }
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}
