//! Durable appends of events with 200 bytes of payload, through `Processes`, beside the floor.

use std::sync::Arc;

use procession::{
    ExecutionScope, ProcessEventAppendRequest, ProcessEventType, ProcessOriginator,
    ProcessStartRequest, Processes, ScopedEffectController, ShutdownOptions, Supervisor,
};
use serde_json::json;

use super::floor::{Floor, sync_us};
use super::load::{self, Measured};
use super::{Ask, print};

const CALLERS: [usize; 4] = [1, 16, 64, 256];
/// Callers that all append to one process.
const ONE_PROCESS: usize = 64;

pub(crate) fn run(ask: &Ask) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    print(&json!({ "figure": "fdatasync", "us_median": sync_us(&place.path().join("sync")) }));
    for callers in CALLERS {
        if ask.callers.is_none_or(|only| only == callers) {
            runtime.block_on(floor(ask, callers));
            runtime.block_on(append(ask, callers, callers));
        }
    }
    if ask.callers.is_none_or(|only| only == ONE_PROCESS) {
        runtime.block_on(append(ask, ONE_PROCESS, 1));
    }
}

fn figure(name: &str, callers: usize, processes: usize, measured: &Measured, syncs: u64) {
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    let syncs_per_second = syncs as f64 / measured.elapsed.as_secs_f64();
    print(&json!({
        "figure": name,
        "callers": callers,
        "processes": processes,
        "per_second": measured.per_second().round(),
        "p50_us": measured.quantile_us(500),
        "p99_us": measured.quantile_us(990),
        "p999_us": measured.quantile_us(999),
        "syncs_per_second": syncs_per_second.round(),
        "seconds": measured.elapsed.as_secs_f64(),
    }));
}

async fn floor(ask: &Ask, callers: usize) {
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let floor = Arc::new(Floor::open(&place.path().join("floor")));
    let appending = Arc::clone(&floor);
    let call = move |_, _| {
        let floor = Arc::clone(&appending);
        async move { floor.append(vec![7; 256]).await }
    };
    let measured = load::run(callers, ask.seconds, call, async {}).await;
    figure("floor", callers, 0, &measured, floor.syncs());
}

async fn append(ask: &Ask, callers: usize, spread: usize) {
    let place = tempfile::tempdir_in(&ask.dir).expect("a directory");
    let supervisor = Supervisor::builder(place.path())
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    for number in 0..spread {
        start(&processes, number).await;
    }
    let before = supervisor.stats();
    let appending = processes.clone();
    let text = "x".repeat(188);
    let call = move |caller: usize, number: u64| {
        let processes = appending.clone();
        let request = ProcessEventAppendRequest::new("note", json!({ "n": number, "t": text }));
        async move {
            processes
                .append_event(&format!("p-{}", caller % spread), request)
                .await
                .expect("an append");
        }
    };
    let drained = async { supervisor.drain().await.expect("a drained store") };
    let measured = load::run(callers, ask.seconds, call, drained).await;
    let syncs = supervisor.stats().syncs - before.syncs;
    figure("append", callers, spread, &measured, syncs);
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .expect("a shutdown");
}

async fn start(processes: &Processes, number: usize) {
    let request =
        ProcessStartRequest::external(format!("p-{number}"), ProcessOriginator::host(), json!({}))
            .with_event_type(ProcessEventType::new("note"));
    let scope = ScopedEffectController::inline(ExecutionScope::operation("bench"));
    processes.start(request, scope).await.expect("a start");
}
