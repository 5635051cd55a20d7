//! Starts: externally owned, with a grant; and whole lifecycles.

use procession::{EngineFailure, ProcessContext, ProcessEventType, Supervisor};
use serde_json::{Value, json};

use super::setup::{
    close, drain, engine, external, figure, note_payload, open, open_with, place, runtime, start,
    work,
};
use super::{Ask, load, print};

const CALLERS: [usize; 3] = [1, 64, 256];
const LIFECYCLE_CALLERS: usize = 64;
/// Events of each lifecycle.
const EVENTS: u64 = 10;

pub(crate) fn run(ask: &Ask) {
    let runtime = runtime();
    for callers in CALLERS {
        if ask.callers.is_none_or(|only| only == callers) {
            runtime.block_on(starts(ask, callers));
        }
    }
}

async fn starts(ask: &Ask, callers: usize) {
    let place = place(ask);
    let supervisor = open(place.path()).await;
    let processes = supervisor.processes();
    let before = supervisor.stats();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        let request = external(format!("p-{caller}-{number}"), &format!("s-{caller}"));
        async move { start(&processes, request).await }
    };
    let measured = load::run(callers, ask.seconds, call, drain(&supervisor)).await;
    let more = json!({ "callers": callers, "disposition": "externally_owned", "granted": true,
        "syncs": supervisor.stats().syncs - before.syncs });
    print(&figure("start", &measured, more));
    close(&supervisor).await;
}

/// Start with a grant, claim, started, ten events, completed; each caller awaits the output.
pub(crate) fn lifecycle(ask: &Ask) {
    runtime().block_on(async {
        let place = place(ask);
        let note = vec![ProcessEventType::new("note")];
        let ten = engine("ten", note, |cx, _| ten(cx));
        let supervisor = open_with(place.path(), |builder| builder.engine(ten)).await;
        lifecycles(ask, &supervisor).await;
        close(&supervisor).await;
    });
}

/// Emits ten events. Each is accepted when `emit` returns; all are durable before the outcome is.
async fn ten(cx: ProcessContext) -> Result<Value, EngineFailure> {
    for number in 0..EVENTS {
        cx.emit("note", note_payload(number)).await?;
    }
    Ok(EVENTS.into())
}

async fn lifecycles(ask: &Ask, supervisor: &Supervisor) {
    let callers = ask.callers.unwrap_or(LIFECYCLE_CALLERS);
    let processes = supervisor.processes();
    let before = supervisor.stats();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        let id = format!("p-{caller}-{number}");
        async move {
            start(&processes, work(id.as_str(), "ten", &format!("s-{caller}"))).await;
            let output = processes.await_output(&id).await.expect("an output");
            assert_eq!(output.state(), procession::TerminalState::Completed);
        }
    };
    let measured = load::run(callers, ask.seconds, call, drain(supervisor)).await;
    let after = supervisor.stats();
    let more = json!({ "callers": callers, "events": EVENTS,
        "emit": "accepted; durable before the outcome",
        "commits": after.commits - before.commits, "syncs": after.syncs - before.syncs });
    print(&figure("lifecycle", &measured, more));
}
