//! Signals and waits: the n-th wait takes the n-th signal, across drops, crashes and slots.
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
use tokio::sync::{Notify, mpsc};

fn declared(id: &str, kind: &str) -> ProcessStartRequest {
    rerunnable(id, kind)
        .with_event_type(ProcessEventType::signal("a"))
        .with_event_type(ProcessEventType::signal("b"))
        .with_event_type(ProcessEventType::new("said"))
}

async fn send(processes: &Processes, id: &str, name: &str, n: u64) -> ProcessEvent {
    let request = ProcessEventAppendRequest::signal(name, n);
    processes
        .signal(id, name, format!("{name}-{n}"), request, inline())
        .await
        .unwrap()
}

fn number(event: &ProcessEvent) -> u64 {
    event.payload.as_u64().unwrap()
}

/// Crashes: nothing more is written, the store is let go of.
fn crash(supervisor: Supervisor, processes: Processes) {
    drop((supervisor, processes));
}

#[tokio::test]
async fn the_nth_wait_takes_the_nth_signal_before_or_after_it_began() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("five", |cx: ProcessContext, _| async move {
                let mut taken = Vec::new();
                for _ in 0..5 {
                    taken.push(number(&cx.wait_signal("a").await?));
                }
                Ok(json!(taken))
            }))
            .concurrency(1)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(declared("p", "five"), inline())
            .await
            .unwrap();
        // Some before it can wait, in whatever order it gets to run; some after it surely waits.
        send(&processes, "p", "a", 1).await;
        send(&processes, "p", "a", 2).await;
        send(&processes, "p", "b", 9).await;
        until(&processes, "p", |p| p.facets.waiting).await;
        for n in 3..=5 {
            send(&processes, "p", "a", n).await;
        }
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(json!([1, 2, 3, 4, 5]))
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_wait_is_visible_and_its_slot_is_free_meanwhile() {
    for place in Place::both() {
        let (resumed, mut resumes) = mpsc::unbounded_channel();
        let hold = Arc::new(Notify::new());
        let held = Arc::clone(&hold);
        let supervisor = place
            .builder()
            .engine(engine("waits", move |cx: ProcessContext, _| {
                let resumed = resumed.clone();
                async move {
                    let signal = cx.wait_signal("a").await?;
                    let _ = resumed.send(());
                    Ok(json!(number(&signal)))
                }
            }))
            .engine(engine("holds", move |_, _| {
                let held = Arc::clone(&held);
                async move {
                    held.notified().await;
                    Ok(Value::Null)
                }
            }))
            .concurrency(1)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(declared("p", "waits"), inline())
            .await
            .unwrap();
        let waiting = until(&processes, "p", |p| p.facets.waiting).await;
        let wait = &waiting.wait.as_ref().unwrap().signals[0];
        assert_eq!((wait.signal_name.as_str(), wait.number), ("a", 1));
        assert!(waiting.lease.as_ref().unwrap().live, "it keeps its lease");
        let filter = ProcessListFilter {
            waiting: Some(true),
            ..ProcessListFilter::default()
        };
        assert_eq!(processes.list(&filter).await.unwrap().len(), 1);

        processes
            .start(rerunnable("q", "holds"), inline())
            .await
            .unwrap();
        until(&processes, "q", |p| p.facets.started).await;
        send(&processes, "p", "a", 7).await;
        until(&processes, "p", |p| !p.facets.waiting).await;
        // The other one has the slot: the engine is not told before it can go on.
        assert!(resumes.try_recv().is_err());
        hold.notify_one();
        output(&processes, "q").await;
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(7)
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn what_a_wait_returned_it_returns_again_after_a_crash() {
    for place in Place::both() {
        let attempts: Arc<Mutex<Vec<Vec<Value>>>> = Arc::default();
        let with = |builder: SupervisorBuilder| {
            let attempts = Arc::clone(&attempts);
            builder.engine(engine("replays", move |cx: ProcessContext, _| {
                let attempts = Arc::clone(&attempts);
                let attempt = cx.attempt() as usize;
                attempts.lock().unwrap().resize(attempt, Vec::new());
                async move {
                    let short = Duration::from_millis(1);
                    for step in 0..4 {
                        let signal = match step {
                            1 => cx.wait_signal_timeout("b", short).await?,
                            _ => Some(cx.wait_signal("a").await?),
                        };
                        let seen = signal.map_or(Value::Null, |s| json!(number(&s)));
                        attempts.lock().unwrap()[attempt - 1].push(seen);
                    }
                    Ok(json!(attempts.lock().unwrap()[attempt - 1]))
                }
            }))
        };
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(declared("p", "replays"), inline())
            .await
            .unwrap();
        send(&processes, "p", "a", 1).await;
        send(&processes, "p", "a", 2).await;
        until(&processes, "p", |p| {
            p.wait.as_ref().is_some_and(|w| w.signals[0].number == 3)
        })
        .await;
        crash(supervisor, processes);

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        until(&processes, "p", |p| p.attempt == 2 && p.facets.waiting).await;
        // The timeout is recorded: this signal came too late for it, in the second attempt too.
        send(&processes, "p", "b", 99).await;
        send(&processes, "p", "a", 3).await;
        let expected = json!([1, null, 2, 3]);
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(expected)
        );
        assert_eq!(
            attempts.lock().unwrap()[0],
            [json!(1), Value::Null, json!(2)]
        );
        let record = processes.record("p").await.unwrap().unwrap();
        assert_eq!((record.attempt, record.recoveries), (2, 1));
        let resumed = event_types(&processes, "p").await;
        let resumed = resumed.iter().filter(|t| *t == "process.resumed").count();
        assert_eq!(resumed, 4, "what was recorded is not recorded twice");
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_wait_that_loses_a_race_gives_its_number_back() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine(
                "races",
                |cx: ProcessContext, payload: Value| async move {
                    let (mut a, mut b) = (Vec::new(), Vec::new());
                    while a.len() + b.len() < payload.as_u64().unwrap_or(0) as usize {
                        tokio::select! {
                            signal = cx.wait_signal("a") => a.push(number(&signal?)),
                            signal = cx.wait_signal("b") => b.push(number(&signal?)),
                        }
                    }
                    Ok(json!([a, b]))
                },
            ))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        const EACH: u64 = 40;
        let mut request = declared("p", "races");
        request.input = ProcessInput::engine("races", 2 * EACH);
        processes.start(request, inline()).await.unwrap();
        let sends = |name: &'static str| {
            let processes = processes.clone();
            tokio::spawn(async move {
                for n in 1..=EACH {
                    send(&processes, "p", name, n).await;
                    if n % 8 == 0 {
                        // Now and then it really waits.
                        until(&processes, "p", |p| {
                            p.facets.waiting || p.lifecycle != Lifecycle::Running
                        })
                        .await;
                    }
                }
            })
        };
        let (a, b) = (sends("a"), sends("b"));
        within(async {
            a.await.unwrap();
            b.await.unwrap();
        })
        .await;
        let all: Vec<u64> = (1..=EACH).collect();
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(json!([all, all]))
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_wait_that_was_dropped_takes_no_signal_from_the_next() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("drops", |cx: ProcessContext, _| async move {
                // Polled once, so that it has begun, and dropped.
                for _ in 0..10 {
                    tokio::select! {
                        biased;
                        _ = cx.wait_signal("a") => return Ok(json!("too early")),
                        () = tokio::task::yield_now() => {}
                    }
                }
                cx.emit_durable(ProcessEventAppendRequest::new("said", 1))
                    .await?;
                let first = cx.wait_signal("a").await?;
                Ok(json!(number(&first)))
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(declared("p", "drops"), inline())
            .await
            .unwrap();
        until(&processes, "p", |p| {
            p.wait
                .as_ref()
                .is_some_and(|w| w.signals.iter().all(|s| s.number == 1))
        })
        .await;
        within(async {
            while !event_types(&processes, "p")
                .await
                .iter()
                .any(|t| t == "said")
            {
                pause().await;
            }
        })
        .await;
        send(&processes, "p", "a", 1).await;
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(1)
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_wait_that_times_out_says_so_and_is_no_longer_open() {
    let supervisor = Supervisor::in_memory()
        .engine(engine("times", |cx: ProcessContext, _| async move {
            let nothing = cx
                .wait_signal_timeout("a", Duration::from_millis(5))
                .await?;
            assert_eq!(nothing, None);
            let something = cx.wait_signal_timeout("b", BOUND).await?;
            Ok(json!(something.map(|signal| number(&signal))))
        }))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    processes
        .start(declared("p", "times"), inline())
        .await
        .unwrap();
    let waiting = until(&processes, "p", |p| {
        p.wait
            .as_ref()
            .is_some_and(|w| w.signals[0].signal_name == "b")
    })
    .await;
    let wait = waiting.wait.unwrap();
    assert_eq!(wait.signals.len(), 1);
    assert!(wait.signals[0].deadline_ms.is_some());
    send(&processes, "p", "b", 5).await;
    assert_eq!(
        output(&processes, "p").await,
        ProcessAwaitOutput::success(5)
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn waits_want_a_declared_signal_and_are_bounded() {
    let supervisor = Supervisor::in_memory()
        .engine(engine("asks", |cx: ProcessContext, _| async move {
            let undeclared = cx.wait_signal("c").await.unwrap_err();
            assert!(
                matches!(undeclared, Error::UndeclaredEvent { .. }),
                "{undeclared:?}"
            );
            let bad = cx.wait_signal("a.b").await.unwrap_err();
            assert!(matches!(bad, Error::InvalidInput { .. }), "{bad:?}");
            let mut waits = tokio::task::JoinSet::new();
            for _ in 0..=limits::OPEN_WAITS_MAX {
                let cx = cx.clone();
                waits.spawn(async move { cx.wait_signal("a").await });
            }
            let first = waits.join_next().await.unwrap().unwrap();
            assert!(matches!(first, Err(Error::Overloaded { .. })), "{first:?}");
            Ok(Value::Null)
        }))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    processes
        .start(declared("p", "asks"), inline())
        .await
        .unwrap();
    assert_eq!(
        output(&processes, "p").await,
        ProcessAwaitOutput::success(Value::Null)
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn two_waits_at_once_each_take_one_signal() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(engine("joins", |cx: ProcessContext, _| async move {
                let (one, two, other) = tokio::join!(
                    cx.wait_signal("a"),
                    cx.wait_signal("a"),
                    cx.wait_signal("b")
                );
                Ok(json!([number(&one?), number(&two?), number(&other?)]))
            }))
            .concurrency(1)
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes
            .start(declared("p", "joins"), inline())
            .await
            .unwrap();
        until(&processes, "p", |p| {
            p.wait.as_ref().is_some_and(|w| w.signals.len() == 3)
        })
        .await;
        send(&processes, "p", "b", 3).await;
        send(&processes, "p", "a", 1).await;
        send(&processes, "p", "a", 2).await;
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(json!([1, 2, 3]))
        );
        close_clean(&supervisor).await;
    }
}
