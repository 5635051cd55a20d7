//! Commands that really run, with a port that stands in for the runtime.

mod ending;
mod failing;
mod output;
mod recovery;

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, test_kill_process, test_kill_process_group};
use serde_json::{Value, json};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::CommandEngine;
use super::procfs::group_members;
use crate::engines::{
    AttemptRecord, CancelReason, CancelSignal, EngineResult, ExecutionPort, ProcessContext,
    ProcessEngine,
};
use crate::model::event_type::SchemaSet;
use crate::model::record::{ProcessState, Registration, RegistrationFacts};
use crate::model::{
    ContentHash, Error, FencingToken, Incarnation, ProcessEvent, ProcessEventAppendRequest,
    ProcessInput, ProcessOriginator, ProcessRecord, ProcessStartRequest, RecoveryDisposition,
    Result,
};

/// Far more than anything here takes, so that a hang is a failure and not a hang.
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits until something is so, by looking.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let looking = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, looking)
        .await
        .unwrap_or_else(|_| panic!("never happened: {what}"));
}

/// A zombie that init has yet to reap is gone, too.
async fn until_group_is_gone(group: u32) {
    let number = Pid::from_raw(i32::try_from(group).expect("a pid")).expect("a pid");
    until("the group is gone", || {
        test_kill_process_group(number) == Err(Errno::SRCH)
            || group_members(group).is_some_and(|alive| alive.is_empty())
    })
    .await;
}

/// Waits until a child of this process is gone for good.
async fn until_reaped(pid: u32) {
    let pid = Pid::from_raw(i32::try_from(pid).expect("a pid")).expect("a pid");
    until("it is reaped", || {
        test_kill_process(pid) == Err(Errno::SRCH)
    })
    .await;
}

fn record(attempt: u32) -> AttemptRecord {
    let request = ProcessStartRequest::new(
        "p",
        ProcessInput::command(json!({})),
        RecoveryDisposition::OwnerBound,
        ProcessOriginator::Host { scope: None },
    );
    let facts = RegistrationFacts {
        engine_event_types: CommandEngine::new().event_types(),
        ..RegistrationFacts::default()
    };
    let registration = Registration::new(request, ContentHash::of(b""), None, facts);
    let state = ProcessState {
        attempt,
        ..ProcessState::initial(0)
    };
    AttemptRecord::new(Arc::new(registration), Arc::new(state))
}

fn event(sequence: u64, request: ProcessEventAppendRequest) -> ProcessEvent {
    ProcessEvent {
        process_id: "p".to_owned(),
        incarnation: Incarnation(1),
        sequence,
        event_type: request.event_type,
        payload: request.payload.into(),
        occurred_at_ms: 0,
        replay_key: request.replay_key,
    }
}

/// Takes events as the runtime does, as long as there is room, and keeps them.
struct FakePort {
    events: watch::Sender<Vec<ProcessEvent>>,
    room: Semaphore,
    refusal: Mutex<Option<Error>>,
}

impl FakePort {
    async fn append(&self, request: ProcessEventAppendRequest) -> Result<ProcessEvent> {
        self.room.acquire().await.expect("never closed").forget();
        if let Some(refusal) = self.refusal.lock().expect("not poisoned").clone() {
            return Err(refusal);
        }
        let declared = record(1)
            .whole()
            .clone()
            .event_types
            .into_iter()
            .find(|known| known.name == request.event_type)
            .unwrap_or_else(|| panic!("{} is not declared", request.event_type));
        declared.check().expect("a sound declaration");
        SchemaSet::default()
            .check("p", &declared, &request.payload)
            .expect("by its schema");
        let mut appended = None;
        self.events.send_modify(|events| {
            let event = event(events.len() as u64 + 1, request);
            appended = Some(event.clone());
            events.push(event);
        });
        Ok(appended.expect("just now"))
    }
}

#[async_trait::async_trait]
impl ExecutionPort for FakePort {
    async fn emit(&self, request: ProcessEventAppendRequest) -> Result<()> {
        self.append(request).await.map(drop)
    }

    async fn emit_durable(&self, request: ProcessEventAppendRequest) -> Result<ProcessEvent> {
        self.append(request).await
    }

    async fn wait_signal(&self, _: &str, _: Option<Duration>) -> Result<Option<ProcessEvent>> {
        Ok(None)
    }

    async fn start_child(&self, _: &str, _: bool, _: ProcessStartRequest) -> Result<ProcessRecord> {
        Err(Error::ShuttingDown)
    }

    async fn heartbeat(&self) -> Result<()> {
        Ok(())
    }
}

/// One attempt at a command.
struct Attempt {
    port: Arc<FakePort>,
    cancel: CancelSignal,
    engine: CommandEngine,
}

impl Attempt {
    fn new() -> Self {
        Self::with_room(Semaphore::MAX_PERMITS)
    }

    fn with_room(events: usize) -> Self {
        Self {
            port: Arc::new(FakePort {
                events: watch::Sender::new(Vec::new()),
                room: Semaphore::new(events),
                refusal: Mutex::new(None),
            }),
            cancel: CancelSignal::default(),
            engine: CommandEngine::new(),
        }
    }

    fn with_kill_grace(mut self, grace: Duration) -> Self {
        self.engine = self.engine.with_kill_grace(grace);
        self
    }

    fn start(&self, payload: Value) -> JoinHandle<EngineResult> {
        let cx = ProcessContext::new(
            record(1),
            FencingToken(7),
            self.cancel.clone(),
            self.port.clone(),
        );
        let engine = self.engine.clone();
        tokio::spawn(async move { engine.run(cx, payload).await })
    }

    async fn run(&self, payload: Value) -> EngineResult {
        ended(self.start(payload)).await
    }

    fn cancel(&self) {
        self.cancel
            .fire(CancelReason::Requested { requested_by: None });
    }

    /// Waits until the events so far are enough.
    async fn until(&self, what: &str, enough: impl FnMut(&Vec<ProcessEvent>) -> bool) {
        let mut events = self.port.events.subscribe();
        let _ = tokio::time::timeout(PATIENCE, events.wait_for(enough))
            .await
            .unwrap_or_else(|_| panic!("never happened: {what}; {:?}", self.events()));
    }

    /// Waits until a line was said.
    async fn until_line(&self, line: &str) {
        self.until(line, |events| {
            events.iter().any(|event| lines(event).contains(&line))
        })
        .await;
    }

    fn events(&self) -> Vec<ProcessEvent> {
        self.port.events.borrow().clone()
    }

    fn of_type(&self, event_type: &str) -> Vec<ProcessEvent> {
        let mut events = self.events();
        events.retain(|event| event.event_type == event_type);
        events
    }

    fn pid(&self) -> u32 {
        let pid = self.events()[0].payload["pid"].as_u64();
        u32::try_from(pid.expect("a number")).expect("a pid")
    }

    /// What a reader of the log puts together.
    fn text(&self, event_type: &str) -> String {
        let mut text = String::new();
        for event in self.of_type(event_type) {
            text += &lines(&event).join("\n");
            if event.payload["partial"] != true {
                text.push('\n');
            }
        }
        text
    }
}

async fn ended(run: JoinHandle<EngineResult>) -> EngineResult {
    tokio::time::timeout(PATIENCE, run)
        .await
        .expect("it ends")
        .expect("it does not panic")
}

fn lines(event: &ProcessEvent) -> Vec<&str> {
    let lines = event.payload["lines"].as_array();
    lines
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect()
}
