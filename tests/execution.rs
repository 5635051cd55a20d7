//! How attempts begin, end and are ended, on both stores.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so, and runs on a machine of today"
)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use procession::*;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};

/// Long enough never to be over in a test.
const LONG: Duration = Duration::from_secs(600);

fn failure(output: ProcessAwaitOutput) -> (FailureClass, String, String) {
    match output {
        ProcessAwaitOutput::Failure {
            class,
            code,
            message,
            ..
        } => (class, code, message),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_panic_in_an_engine_is_its_own_processs_failure_and_nobody_elses() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("panics", |_, payload: Value| async move {
                assert!(payload.is_string(), "boom");
                Ok(Value::Null)
            }))
            .engine(polite())
            .engine(echo())
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(rerunnable("other", "polite"), inline())
            .await
            .unwrap();
        until(&processes, "other", |p| p.facets.started).await;
        processes
            .start(rerunnable("p", "panics"), inline())
            .await
            .unwrap();
        let (class, code, message) = failure(output(&processes, "p").await);
        assert_eq!(
            (class, code.as_str()),
            (FailureClass::Internal, "engine_panicked")
        );
        assert_eq!(message, "boom");
        assert_eq!(
            event_types(&processes, "p").await,
            ["process.started", "process.failed"]
        );
        let other = processes.get("other").await.unwrap().unwrap();
        assert_eq!(other.lifecycle, Lifecycle::Running);
        processes
            .start(rerunnable("next", "echo"), inline())
            .await
            .unwrap();
        output(&processes, "next").await;
        processes.cancel("other", inline()).await.unwrap();
        output(&processes, "other").await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn an_attempt_is_durable_before_engine_code_runs() {
    for place in Place::both() {
        let (seen, mut sees) = mpsc::unbounded_channel();
        let processes: Arc<Mutex<Option<Processes>>> = Arc::default();
        let inside = Arc::clone(&processes);
        let supervisor = place
            .builder()
            .engine(engine("looks", move |cx: ProcessContext, _| {
                let processes = inside.lock().unwrap().clone().unwrap();
                let seen = seen.clone();
                async move {
                    let found = processes.get(cx.process_id()).await?.unwrap();
                    let _ = seen.send((found, cx.attempt(), cx.fencing_token()));
                    Ok(Value::Null)
                }
            }))
            .owner_id("host-a")
            .open()
            .await
            .unwrap();
        *processes.lock().unwrap() = Some(supervisor.processes());
        let host = supervisor.processes();
        host.start(owner_bound("p", "looks"), inline())
            .await
            .unwrap();
        let (found, attempt, token) = within(sees.recv()).await.unwrap();
        assert_eq!((attempt, found.attempt), (1, 1));
        assert!(found.facets.started && !found.facets.queued);
        let lease = found.lease.unwrap();
        assert!(lease.live);
        assert_eq!(lease.owner.owner_id, "host-a");
        assert_eq!(lease.fencing_token, token);
        output(&host, "p").await;
        let ended = host.get("p").await.unwrap().unwrap();
        assert_eq!(ended.lease, None, "given back with the outcome");
        *processes.lock().unwrap() = None;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_timeout_is_a_failure_of_its_own_class() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(polite())
            .engine(deaf())
            .cancel_grace(Duration::from_millis(10))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        for (id, kind) in [("p", "polite"), ("q", "deaf")] {
            let request = owner_bound(id, kind).with_timeout(Some(Duration::from_millis(20)));
            processes.start(request, inline()).await.unwrap();
            let (class, code, message) = failure(output(&processes, id).await);
            assert_eq!((class, code.as_str()), (FailureClass::Timeout, "timeout"));
            assert_eq!(message.contains("forced"), kind == "deaf", "{message}");
            let observed = processes.get(id).await.unwrap().unwrap();
            assert_eq!(observed.error.unwrap().class, FailureClass::Timeout);
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_time_limit_also_ends_what_backs_off() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("flaky", |_, _| async move {
                Err(EngineFailure::new("down", "not there").retryable())
            }))
            .sweep_every(Duration::from_millis(50))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let request = rerunnable("p", "flaky")
            .with_timeout(Some(Duration::from_millis(100)))
            .with_retry(RetryPolicy::attempts(5).with_backoff(Backoff::fixed(LONG)));
        processes.start(request, inline()).await.unwrap();
        let (class, code, _) = failure(output(&processes, "p").await);
        assert_eq!((class, code.as_str()), (FailureClass::Timeout, "timeout"));
        assert_eq!(processes.get("p").await.unwrap().unwrap().attempt, 1);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_retryable_failure_is_tried_as_often_as_the_policy_says() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine(
                "flaky",
                |cx: ProcessContext, payload: Value| async move {
                    if payload == json!(cx.attempt()) {
                        return Ok(json!("at last"));
                    }
                    Err(EngineFailure::new("down", format!("attempt {}", cx.attempt())).retryable())
                },
            ))
            .engine(engine("broken", |_, _| async move {
                Err(EngineFailure::new("broken", "for good"))
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let policy =
            RetryPolicy::attempts(3).with_backoff(Backoff::fixed(Duration::from_millis(1)));
        let flaky = |id: &str, good: u32| {
            let mut request = rerunnable(id, "flaky").with_retry(policy);
            request.input = ProcessInput::engine("flaky", good);
            request
        };
        processes.start(flaky("third", 3), inline()).await.unwrap();
        assert_eq!(
            output(&processes, "third").await,
            ProcessAwaitOutput::success("at last")
        );
        let log = [
            "process.started",
            "process.retry_scheduled",
            "process.started",
            "process.retry_scheduled",
            "process.started",
        ];
        let mut completed = log.to_vec();
        completed.push("process.completed");
        assert_eq!(event_types(&processes, "third").await, completed);

        processes.start(flaky("never", 4), inline()).await.unwrap();
        let (class, code, message) = failure(output(&processes, "never").await);
        assert_eq!(class, FailureClass::Execution);
        assert_eq!(
            (code.as_str(), message.as_str()),
            ("down", "attempt 3"),
            "the last one's own"
        );
        let record = processes.record("never").await.unwrap().unwrap();
        assert_eq!(
            (record.attempt, record.retries, record.recoveries),
            (3, 2, 0)
        );

        let broken = rerunnable("broken", "broken").with_retry(policy);
        processes.start(broken, inline()).await.unwrap();
        assert_eq!(failure(output(&processes, "broken").await).1, "broken");
        assert_eq!(processes.get("broken").await.unwrap().unwrap().attempt, 1);

        let bound = work("bound", "flaky", RecoveryDisposition::OwnerBound);
        let refused = processes
            .start(bound.clone().with_retry(policy), inline())
            .await;
        let started = match refused {
            Ok(_) => true,
            Err(error) => {
                assert!(matches!(error, Error::InvalidInput { .. }), "{error:?}");
                false
            }
        };
        if !started {
            processes.start(bound, inline()).await.unwrap();
        }
        assert_eq!(failure(output(&processes, "bound").await).1, "down");
        let bound = processes.get("bound").await.unwrap().unwrap();
        assert_eq!(
            bound.attempt, 1,
            "started owner-bound work is never run again"
        );
        close_clean(&supervisor).await;
    }
}

/// Clocks that stand still.
#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now_epoch_ms(&self) -> u64 {
        1_700_000_000_000
    }
    fn monotonic(&self) -> Duration {
        Duration::from_secs(1)
    }
}

#[tokio::test]
async fn what_backs_off_says_so_and_can_be_cancelled_between_attempts() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            // By two clocks of the system the stamps would be milliseconds apart.
            .clock(Arc::new(Stopped))
            .engine(engine("flaky", |_, _| async move {
                Err(EngineFailure::new("down", "not there").retryable())
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let request = rerunnable("p", "flaky")
            .with_retry(RetryPolicy::attempts(2).with_backoff(Backoff::fixed(LONG)));
        processes.start(request, inline()).await.unwrap();
        let found = until(&processes, "p", |p| p.facets.backing_off).await;
        assert!(found.facets.started);
        assert_eq!(found.queued_reason, None);
        assert_eq!(found.retry_at_ms, Some(found.created_at_ms + 600_000));
        assert_eq!(found.lease, None);
        let record = processes.record("p").await.unwrap().unwrap();
        assert_eq!(record.retry_pause.unwrap().error.code, "down");
        let summary = processes.cancel("p", inline()).await.unwrap();
        assert_eq!(summary.status.terminal(), Some(TerminalState::Cancelled));
        close_clean(&supervisor).await;
    }
}

/// An engine that says in which order it was run, and waits to be let go on.
fn gated(
    order: &Arc<Mutex<Vec<String>>>,
    gate: &Arc<Semaphore>,
    kind: &'static str,
) -> impl ProcessEngine {
    let (order, gate) = (Arc::clone(order), Arc::clone(gate));
    engine(kind, move |cx: ProcessContext, _| {
        let (order, gate) = (Arc::clone(&order), Arc::clone(&gate));
        async move {
            order.lock().unwrap().push(cx.process_id().to_owned());
            gate.acquire().await.unwrap().forget();
            Ok(Value::Null)
        }
    })
}

#[tokio::test]
async fn the_queue_goes_by_priority_and_then_by_creation() {
    for place in Place::both() {
        let (order, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
        let supervisor = place
            .builder()
            .engine(gated(&order, &gate, "a"))
            .engine(gated(&order, &gate, "b"))
            .concurrency(1)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let started = [
            ("first", "a", 0),
            ("low", "a", -1),
            ("one", "a", 0),
            ("two", "b", 0),
            ("high", "b", 7),
            ("three", "a", 0),
        ];
        for (id, kind, priority) in started {
            let request = rerunnable(id, kind).with_priority(priority);
            processes.start(request, inline()).await.unwrap();
            if id == "first" {
                until(&processes, id, |p| p.facets.started).await;
            }
        }
        gate.add_permits(started.len());
        for (id, ..) in started {
            output(&processes, id).await;
        }
        let order = order.lock().unwrap().clone();
        assert_eq!(order, ["first", "high", "one", "two", "three", "low"]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_full_kind_does_not_keep_others_from_running() {
    let (order, gate) = (Arc::default(), Arc::new(Semaphore::new(0)));
    let supervisor = Supervisor::in_memory()
        .engine(gated(&order, &gate, "narrow"))
        .engine(echo())
        .concurrency_of("narrow", 2)
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    for n in 0..5 {
        let request = rerunnable(&format!("n{n}"), "narrow").with_priority(9);
        processes.start(request, inline()).await.unwrap();
    }
    for id in ["n0", "n1"] {
        until(&processes, id, |p| p.facets.started).await;
    }
    processes
        .start(rerunnable("wide", "echo"), inline())
        .await
        .unwrap();
    output(&processes, "wide").await;
    for id in ["n2", "n3", "n4"] {
        assert!(processes.get(id).await.unwrap().unwrap().facets.queued);
    }
    gate.add_permits(5);
    for n in 0..5 {
        output(&processes, &format!("n{n}")).await;
    }
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn events_of_an_engine_stand_in_its_order_and_before_its_outcome() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("emits", |cx: ProcessContext, _| async move {
                for n in 0..500 {
                    cx.emit("n", n).await?;
                }
                let keyed =
                    || ProcessEventAppendRequest::new("n", 500).with_replay_key(Some("k".into()));
                let event = cx.emit_durable(keyed()).await?;
                let again = cx.emit_durable(keyed()).await?;
                assert_eq!(event, again);
                let other =
                    ProcessEventAppendRequest::new("n", 501).with_replay_key(Some("k".into()));
                let conflict = cx.emit_durable(other).await;
                assert!(
                    matches!(conflict, Err(Error::Conflict { .. })),
                    "{conflict:?}"
                );
                let undeclared = cx.emit("m", 1).await;
                assert!(matches!(undeclared, Err(Error::UndeclaredEvent { .. })));
                let schema = cx.emit("n", "text").await;
                assert!(
                    matches!(schema, Err(Error::InvalidPayload { .. })),
                    "{schema:?}"
                );
                let own = cx.emit("process.completed", 1).await;
                assert!(matches!(own, Err(Error::UndeclaredEvent { .. })));
                Ok(json!(event.sequence))
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let number = ProcessEventType::new("n").with_schema(json!({ "type": "integer" }));
        let request = rerunnable("p", "emits").with_event_type(number);
        processes.start(request, inline()).await.unwrap();
        let found = output(&processes, "p").await;
        assert_eq!(
            found,
            ProcessAwaitOutput::success(502),
            "started, and 501 before it"
        );
        let events = processes.events("p", 1).await.unwrap();
        for (n, event) in events[..501].iter().enumerate() {
            assert_eq!((event.sequence, &*event.payload), (n as u64 + 2, &json!(n)));
        }
        assert_eq!(events.len(), 502);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_declared_terminal_event_ends_the_process_and_the_engine() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("done", |cx: ProcessContext, _| async move {
                let answer = json!({ "answer": 42 });
                cx.emit_durable(ProcessEventAppendRequest::new("done", answer))
                    .await?;
                let late = cx.emit("done", json!({})).await;
                assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");
                cx.cancelled().await;
                Ok(json!("of no account"))
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let done = ProcessEventType::new("done").with_terminal(TerminalSemantics::new(
            MappedState::Completed,
            Selector::pointer("/answer"),
        ));
        processes
            .start(owner_bound("p", "done").with_event_type(done), inline())
            .await
            .unwrap();
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(42)
        );
        assert_eq!(
            event_types(&processes, "p").await,
            ["process.started", "done"]
        );
        assert_eq!(processes.get("p").await.unwrap().unwrap().lease, None);
        let report = close(&supervisor).await;
        assert_eq!(report.abandoned, Vec::<String>::new());
        assert_eq!(report.unwritten, Vec::<String>::new());
    }
}
