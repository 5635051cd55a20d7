//! A projector: keeps a table of all processes up to date from the change feed, remembers how far it
//! has come, and goes on from there after a restart, deletions included.
//!
//! `cargo run --example project_changes`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::collections::BTreeMap;
use std::pin::Pin;

use futures_core::Stream;
use procession::*;
use serde_json::json;

/// What a projector stores, its cursor in the same write as what it was derived from.
struct Table {
    rows: BTreeMap<String, String>,
    cursor: ChangeCursor,
}

impl Table {
    fn apply(&mut self, page: ChangePage) {
        for change in page.changes {
            match change {
                ProcessChange::Changed { record } => {
                    let ended = record.status.terminal();
                    let status = ended.map_or("running".to_owned(), |it| it.to_string());
                    self.rows.insert(record.id, status);
                }
                ProcessChange::Deleted { process_id, .. } => {
                    self.rows.remove(&process_id);
                }
            }
        }
        self.cursor = page.next;
    }
}

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let store = InMemoryStore::new();
    let mut table = Table {
        rows: BTreeMap::new(),
        cursor: ChangeCursor::start(),
    };
    let supervisor = Supervisor::in_memory_store(&store).open().await?;
    let processes = supervisor.processes();
    for id in ["a", "b", "c"] {
        let request = ProcessStartRequest::external(id, ProcessOriginator::host(), json!({}));
        let effects = ScopedEffectController::inline(ExecutionScope::operation("example"));
        processes.start(request, effects).await?;
    }
    let mut feed = processes.follow_changes(&table.cursor);
    while table.rows.len() < 3 {
        match next(&mut feed).await {
            Some(page) => table.apply(page?),
            None => break,
        }
    }
    println!("projected: {:?}", table.rows);

    // Behind the projector's back: one ends, and one ends and is deleted. What it has not seen of an
    // ended process is kept from pruning by its cursor; here it has fallen behind on purpose.
    for id in ["a", "b"] {
        let by = CompletionAuthority::Host { by: "ops".into() };
        let output = ProcessAwaitOutput::success(json!("done"));
        processes.complete_external(id, output, by).await?;
        if id == "a" {
            processes.prune(u64::MAX).await?;
        }
    }
    supervisor.shutdown(ShutdownOptions::default()).await?;

    let supervisor = Supervisor::in_memory_store(&store).open().await?;
    let processes = supervisor.processes();
    loop {
        let page = processes.changes_since(&table.cursor, 100).await?;
        if page.changes.is_empty() {
            break;
        }
        table.apply(page);
    }
    println!("after the restart: {:?}", table.rows);
    let known: Vec<&str> = table.rows.keys().map(String::as_str).collect();
    if known != ["b", "c"] {
        return Err(format!("a is gone, and the table knows {known:?}").into());
    }
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}

/// What `StreamExt::next` of the crate `futures` does.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
