//! The round trip of a signal: into an engine that waits, and back as an event.

use std::pin::Pin;
use std::sync::Arc;

use futures_core::Stream;
use procession::{
    EngineFailure, ProcessContext, ProcessEventAppendRequest, ProcessEventType, Processes,
    Subscription, Supervisor,
};
use serde_json::{Value, json};
use tokio::sync::Mutex;

use super::setup::{
    close, drain, engine, figure, inline, open_with, place, runtime, signal, start, work,
};
use super::{Ask, load, print};

/// Processes, each with one caller.
const PROCESSES: [usize; 2] = [1, 64];

pub(crate) fn run(ask: &Ask) {
    let runtime = runtime();
    for processes in PROCESSES {
        if ask.callers.is_none_or(|only| only == processes) {
            runtime.block_on(round_trips(ask, processes));
        }
    }
}

/// Answers each `ask` with an event, for ever.
async fn answer(cx: ProcessContext) -> Result<Value, EngineFailure> {
    loop {
        let asked = signal(&cx, "ask").await?;
        cx.emit("answer", json!({ "to": asked.sequence })).await?;
    }
}

async fn round_trips(ask: &Ask, count: usize) {
    let place = place(ask);
    let types = vec![
        ProcessEventType::signal("ask"),
        ProcessEventType::new("answer"),
    ];
    let answering = engine("answer", types, |cx, _| answer(cx));
    let supervisor = open_with(place.path(), |builder| builder.engine(answering)).await;
    let processes = supervisor.processes();
    let listening = Arc::new(listen(&processes, count).await);
    let before = supervisor.stats();
    let asking = processes.clone();
    let call = move |caller: usize, number: u64| {
        let (processes, listening) = (asking.clone(), Arc::clone(&listening));
        async move {
            let mut subscription = listening[caller].lock().await;
            round_trip(&processes, caller, number, &mut subscription).await;
        }
    };
    let measured = load::run(count, ask.seconds, call, drain(&supervisor)).await;
    say(&supervisor, count, &measured, before.syncs);
    close(&supervisor).await;
}

fn say(supervisor: &Supervisor, count: usize, measured: &load::Measured, syncs_before: u64) {
    let more = json!({ "processes": count, "callers": count,
        "round_trip": "signal, wait, event emitted, subscriber has it",
        "syncs": supervisor.stats().syncs - syncs_before });
    print(&figure("signal", measured, more));
}

async fn listen(processes: &Processes, count: usize) -> Vec<Mutex<Subscription>> {
    let mut listening = Vec::new();
    for number in 0..count {
        let id = format!("a-{number}");
        start(processes, work(id.as_str(), "answer", "some")).await;
        let subscription = processes.subscribe(&id, 0).await.expect("a subscription");
        listening.push(Mutex::new(subscription));
    }
    listening
}

async fn round_trip(
    processes: &Processes,
    caller: usize,
    number: u64,
    subscription: &mut Subscription,
) {
    let (id, signal_id) = (format!("a-{caller}"), format!("s-{number}"));
    let request = ProcessEventAppendRequest::signal("ask", json!({ "n": number }));
    let signalled = processes.signal(&id, "ask", signal_id, request, inline());
    signalled.await.expect("a signal");
    loop {
        let next = std::future::poll_fn(|cx| Pin::new(&mut *subscription).poll_next(cx)).await;
        let event = next.expect("a live log").expect("an event");
        if event.event_type == "answer" {
            return;
        }
    }
}
