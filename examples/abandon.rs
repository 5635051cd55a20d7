//! Work whose owner will not come back, and how it is given up honestly.
//!
//! ```text
//! cargo run --example abandon
//! ```
//!
//! A request to abandon ends nothing while somebody holds a live lease; once nobody does, recovery
//! carries it out, and the outcome says who asked, who decided, and on what proof.
#![expect(
    clippy::print_stdout,
    reason = "printing what happens is what it is for"
)]

use std::time::Duration;

use procession::*;
use serde_json::{Value, json};

/// Calls somebody who never answers.
struct Call;

#[async_trait::async_trait]
impl ProcessEngine for Call {
    fn kind(&self) -> &str {
        "call"
    }
    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        // It was told to stop, and stops: what became of the call is not known here either.
        Err(EngineFailure::cancelled(cx.cancelled().await))
    }
}

fn inline() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("example"))
}

fn told(id: &str, output: &ProcessAwaitOutput) {
    match output {
        ProcessAwaitOutput::Abandoned { evidence } => println!(
            "{id} is abandoned by {:?} on proof {:?}, asked for by {:?}",
            evidence.writer, evidence.proof, evidence.requested_by
        ),
        other => println!("{id}: {other:?}"),
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let store = InMemoryStore::new();
    let open = || Supervisor::in_memory_store(&store).engine(Call).open();
    let supervisor = open().await?;
    let processes = supervisor.processes();

    // Somebody else executes this one, and nobody holds a lease: it is given up at once.
    let ticket = json!({ "ticket": 7 });
    let request = ProcessStartRequest::external("ticket-7", ProcessOriginator::host(), ticket);
    processes.start(request, inline()).await?;
    let why = Some("closed without an answer".to_owned());
    processes.request_abandon("ticket-7", "ops", why).await?;
    let limit = Duration::from_secs(60);
    told(
        "ticket-7",
        &processes.await_output_timeout("ticket-7", limit).await?,
    );

    // This one runs here, under a live lease: the request stays visible and ends nothing.
    let input = ProcessInput::engine("call", Value::Null);
    let bound = RecoveryDisposition::OwnerBound;
    let request = ProcessStartRequest::new("call-1", input, bound, ProcessOriginator::host());
    processes.start(request, inline()).await?;
    while processes
        .get("call-1")
        .await?
        .is_some_and(|call| !call.facets.started)
    {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    processes.request_abandon("call-1", "ops", None).await?;
    supervisor.recover().await?;
    if let Some(call) = processes.get("call-1").await? {
        let pending = call.facets.abandon_requested;
        println!(
            "call-1 is {}, and to be abandoned: {pending}",
            call.lifecycle
        );
    }

    // A shutdown that it does not outlast: it must not be run again, and says what it knows.
    let grace = ShutdownOptions::grace(Duration::from_millis(50));
    let report = supervisor.shutdown(grace).await?;
    println!("shut down, abandoned: {:?}", report.abandoned);
    let supervisor = open().await?;
    told(
        "call-1",
        &supervisor.processes().await_output("call-1").await?,
    );
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}
