//! Procession, through what hosts call.

use std::path::Path;

use procession::{
    Durability, EngineResult, ExecutionScope, ProcessAwaitOutput, ProcessContext, ProcessEngine,
    ProcessEventAppendRequest, ProcessEventType, ProcessInput, ProcessOriginator,
    ProcessStartGrant, ProcessStartRequest, Processes, RecoveryDisposition, ScopedEffectController,
    SessionScope, Supervisor,
};
use serde_json::{Value, json};

use super::{EVENT_TYPE, EVENTS, Figure, SESSION, Store, payload};

pub struct Procession {
    supervisor: Supervisor,
    processes: Processes,
}

/// An engine that emits ten events.
struct Ten {
    /// Whether it waits until each is durable.
    each: bool,
}

#[async_trait::async_trait]
impl ProcessEngine for Ten {
    fn kind(&self) -> &str {
        "ten"
    }

    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        for number in 0..EVENTS {
            let request = ProcessEventAppendRequest::new(EVENT_TYPE, payload(number));
            if self.each {
                cx.emit_durable(request).await?;
            } else {
                cx.emit(request.event_type, request.payload).await?;
            }
        }
        Ok(json!({ "events": EVENTS }))
    }
}

pub async fn open(dir: &Path, figure: Figure, callers: usize, each: bool) -> Procession {
    let supervisor = Supervisor::builder(dir.join("procession"))
        .durability(Durability::Durable)
        .engine(Ten { each })
        .open()
        .await
        .expect("a store");
    let processes = supervisor.processes();
    let procession = Procession {
        supervisor,
        processes,
    };
    if figure == Figure::Append {
        for caller in 0..callers {
            let process = format!("p-{caller}");
            procession.begin(external(&process)).await;
        }
    }
    procession
}

impl Procession {
    async fn begin(&self, request: ProcessStartRequest) {
        let grant = ProcessStartGrant::new(SessionScope::new(SESSION), "bench");
        let request = request
            .with_event_type(ProcessEventType::new(EVENT_TYPE))
            .with_grant(Some(grant));
        let scope = ScopedEffectController::inline(ExecutionScope::operation("bench"));
        let started = self.processes.start(request, scope).await;
        started.expect("a start");
    }
}

fn external(process: &str) -> ProcessStartRequest {
    ProcessStartRequest::external(process, ProcessOriginator::host(), json!({}))
}

#[async_trait::async_trait]
impl Store for Procession {
    async fn append(&self, caller: usize, number: u64) {
        let request = ProcessEventAppendRequest::new(EVENT_TYPE, payload(number));
        let process = format!("p-{caller}");
        let appended = self.processes.append_event(&process, request).await;
        appended.expect("an append");
    }

    async fn start(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        self.begin(external(&process)).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        let request = ProcessStartRequest::new(
            process.as_str(),
            ProcessInput::engine("ten", json!({})),
            RecoveryDisposition::Rerunnable,
            ProcessOriginator::host(),
        );
        self.begin(request).await;
        let output = self.processes.await_output(&process).await;
        let output = output.expect("an outcome");
        assert!(
            matches!(output, ProcessAwaitOutput::Success { .. }),
            "{output:?}"
        );
    }

    async fn drain(&self) {
        self.supervisor.drain().await.expect("a drained store");
    }
}
