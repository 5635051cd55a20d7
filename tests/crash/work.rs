//! What the child runs: one engine that does a bit of everything and notes each of its executions
//! outside the store, and the requests that start it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use procession::*;
use serde_json::{Value, json};

use super::line::{Line, Start, Task};

pub(crate) const KIND: &str = "work";

/// Where a writer grants what is soon taken away again, all at once.
pub(crate) fn brief(writer: usize) -> String {
    format!("brief-{writer}")
}

/// Where the wakes of a process go whose target was changed.
pub(crate) fn moved_scope(round: u64, writer: usize) -> String {
    format!("moved-{round}-{writer}")
}

/// Where the engine says what it was acknowledged.
pub(crate) type Say = Arc<dyn Fn(Line) + Send + Sync>;

pub(crate) fn store_dir(dir: &Path) -> PathBuf {
    dir.join("store")
}

fn runs_of(dir: &Path, id: &str) -> PathBuf {
    dir.join("runs").join(id)
}

/// One execution, as it noted itself before it did anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) attempt: u32,
    pub(crate) token: u64,
}

/// The executions of a process, counted outside the store.
pub(crate) fn runs(dir: &Path, id: &str) -> Vec<Run> {
    let text = fs::read_to_string(runs_of(dir, id)).unwrap_or_default();
    text.lines()
        .map(|line| {
            let mut numbers = line.split(' ').map(|n| n.parse::<u64>().unwrap());
            Run {
                attempt: u32::try_from(numbers.next().unwrap()).unwrap(),
                token: numbers.next().unwrap(),
            }
        })
        .collect()
}

pub(crate) struct Work {
    pub(crate) dir: PathBuf,
    pub(crate) say: Say,
}

/// Notes an execution: in one write at the end of the file, before anything else.
pub(crate) fn note(dir: &Path, cx: &ProcessContext) {
    let path = runs_of(dir, cx.process_id());
    let line = format!("{} {}\n", cx.attempt(), cx.fencing_token().get());
    let mut file = OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .unwrap();
    file.write_all(line.as_bytes()).unwrap();
}

impl Work {
    async fn emit(
        &self,
        cx: &ProcessContext,
        kind: &str,
        payload: Value,
        key: String,
    ) -> Result<()> {
        let request = ProcessEventAppendRequest::new(kind, payload).with_replay_key(Some(key));
        let event = cx.emit_durable(request).await?;
        (self.say)(Line::Emitted {
            id: event.process_id,
            event_type: event.event_type,
            sequence: event.sequence,
            payload: event.payload,
        });
        Ok(())
    }

    async fn steps(&self, cx: &ProcessContext, task: &Task) -> EngineResult {
        for step in 0..task.steps {
            cx.emit("progress", json!({ "run": cx.attempt(), "step": step }))
                .await?;
            self.emit(cx, "step", json!({ "step": step }), format!("step-{step}"))
                .await?;
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(task.pause_ms)) => {}
                reason = cx.cancelled() => return Err(EngineFailure::cancelled(reason)),
            }
        }
        if task.asks {
            self.emit(cx, "ask", json!({ "text": "well?" }), "ask".to_owned())
                .await?;
        }
        if task.kid {
            let kid = cx.start_child("kid", kid_request(cx.process_id())).await?;
            (self.say)(Line::Kid {
                parent: cx.process_id().to_owned(),
                id: kid.id,
            });
        }
        if task.waits {
            cx.wait_signal_timeout("go", Duration::from_millis(10))
                .await?;
        }
        if cx.record().retries < task.fails {
            return Err(EngineFailure::new("flaky", "not yet").retryable());
        }
        if task.panics {
            std::panic::resume_unwind(Box::new("a panic without a message on stderr"));
        }
        if task.says_done {
            self.emit(cx, "done", json!({ "value": 7 }), "done".to_owned())
                .await?;
        }
        Ok(json!({ "attempt": cx.attempt(), "steps": task.steps }))
    }
}

#[async_trait::async_trait]
impl ProcessEngine for Work {
    fn kind(&self) -> &str {
        KIND
    }
    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult {
        note(&self.dir, &cx);
        let task: Task = serde_json::from_value(payload).unwrap();
        self.steps(&cx, &task).await
    }
}

/// `a` is a session, `a/b` a frame of it.
pub(crate) fn scope(name: &str) -> SessionScope {
    match name.split_once('/') {
        Some((session, frame)) => SessionScope::new(session).with_frame(frame),
        None => SessionScope::new(name),
    }
}

/// Where a writer holds its processes at first.
pub(crate) fn home(writer: usize) -> String {
    format!("w{writer}")
}

/// Where the wakes of a writer's processes go.
pub(crate) fn wake_scope(round: u64, writer: usize) -> String {
    format!("wakes-{round}-{writer}")
}

fn declared(request: ProcessStartRequest) -> ProcessStartRequest {
    let value = Selector::pointer("/value");
    request
        .with_event_type(ProcessEventType::new("note").with_schema(
            json!({ "type": "object", "required": ["n"], "properties": { "n": { "type": "integer" } } }),
        ))
        .with_event_type(
            ProcessEventType::new("ask").with_wake(WakeSemantics::new(Selector::pointer("/text"))),
        )
        .with_event_type(ProcessEventType::new("progress"))
        .with_event_type(ProcessEventType::new("step"))
        .with_event_type(ProcessEventType::signal("go"))
        .with_event_type(
            ProcessEventType::new("done")
                .with_terminal(TerminalSemantics::new(MappedState::Completed, value)),
        )
}

fn kid_request(parent: &str) -> ProcessStartRequest {
    let task = Task {
        steps: 1,
        ..Task::default()
    };
    let input = ProcessInput::engine(KIND, serde_json::to_value(task).unwrap());
    let originator = ProcessOriginator::host();
    let request =
        ProcessStartRequest::new("kid", input, RecoveryDisposition::Rerunnable, originator);
    declared(request).with_caused_by(Some(parent.to_owned()))
}

pub(crate) fn env_of(start: &Start) -> ProcessEnvSpec {
    ProcessEnvSpec::new(
        json!({ "shell": start.writer % 3 }),
        json!({ "net": false }),
    )
}

/// The request behind a start, the same whenever it is asked for.
pub(crate) fn request(start: &Start) -> ProcessStartRequest {
    let session = scope(&home(start.writer));
    let originator = ProcessOriginator::session(session.clone());
    let request = match start.disposition {
        RecoveryDisposition::ExternallyOwned => {
            ProcessStartRequest::external(&start.id, originator, json!({ "ticket": start.id }))
        }
        disposition => {
            let input = if start.task.command {
                ProcessInput::command(super::survivors::payload(&start.dir))
            } else {
                ProcessInput::engine(KIND, serde_json::to_value(&start.task).unwrap())
            };
            ProcessStartRequest::new(&start.id, input, disposition, originator)
        }
    };
    let request = match start.disposition {
        RecoveryDisposition::Rerunnable => request.with_retry(
            RetryPolicy::attempts(3)
                .with_backoff(Backoff::fixed(Duration::from_millis(5)))
                .with_recoveries_max(1_000),
        ),
        _ => request,
    };
    let request = match &start.batch {
        Some(batch) => request.with_label("batch", batch),
        None => request,
    };
    declared(request)
        .with_grant(Some(ProcessStartGrant::new(session, &start.id)))
        .with_env_spec(Some(env_of(start)))
        .with_wake_target(Some(scope(&wake_scope(start.round, start.writer))))
        .with_label("writer", home(start.writer))
}

/// Where effects about a process are journaled, beside what tells them apart.
pub(crate) fn effect_scope(id: &str, what: &str) -> ExecutionScope {
    ExecutionScope::operation(format!("{what} of {id}"))
}

pub(crate) fn signal_payload(number: u64) -> Value {
    json!({ "n": number })
}

/// A store under test, opened as the child opens it.
pub(crate) fn builder(dir: &Path, say: Say) -> SupervisorBuilder {
    Supervisor::builder(store_dir(dir))
        .cache_capacity(8 << 20)
        .cancel_grace(Duration::from_millis(500))
        .engine(CommandEngine::new())
        .engine(Work {
            dir: dir.to_owned(),
            say,
        })
}
