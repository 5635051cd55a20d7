//! Shutdown, crashes and recovery: nothing is lost, nothing owner-bound runs twice.
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

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use procession::*;
use serde_json::{Value, json};

/// How often engines ran, by process and attempt.
#[derive(Clone, Default)]
struct Runs(Arc<Mutex<Vec<(String, u32)>>>);

impl Runs {
    fn note(&self, cx: &ProcessContext) {
        let run = (cx.process_id().to_owned(), cx.attempt());
        self.0.lock().unwrap().push(run);
    }

    fn of(&self, id: &str) -> Vec<u32> {
        let runs = self.0.lock().unwrap();
        runs.iter()
            .filter(|(of, _)| of == id)
            .map(|(_, n)| *n)
            .collect()
    }

    /// Runs until it is told to stop; finishes at once from the given attempt on.
    fn until(&self, kind: &'static str, finishes: u32) -> impl ProcessEngine {
        let runs = self.clone();
        engine(kind, move |cx: ProcessContext, _| {
            let runs = runs.clone();
            async move {
                runs.note(&cx);
                if cx.attempt() >= finishes {
                    return Ok(json!(cx.attempt()));
                }
                Err(EngineFailure::cancelled(cx.cancelled().await))
            }
        })
    }
}

fn evidence(output: ProcessAwaitOutput) -> AbandonEvidence {
    match output {
        ProcessAwaitOutput::Abandoned { evidence } => evidence,
        other => panic!("{other:?}"),
    }
}

fn crash(supervisor: Supervisor, processes: Processes) {
    drop((supervisor, processes));
}

#[tokio::test]
async fn a_graceful_shutdown_counts_against_nothing() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 4));
        for attempt in 1..=3 {
            let supervisor = place.reopen(with).await;
            let processes = supervisor.processes();
            let request =
                rerunnable("p", "work").with_retry(RetryPolicy::attempts(1).with_recoveries_max(0));
            processes.start(request, inline()).await.unwrap();
            until(&processes, "p", |p| {
                p.attempt == attempt && p.lease.is_some()
            })
            .await;
            let report = close(&supervisor).await;
            assert_eq!(report.released, ["p"], "{report:?}");
            assert_eq!(close(&supervisor).await, report, "idempotent");
            // Another runtime can open it at once.
            let looking = place.builder().recover(false).open().await.unwrap();
            let found = looking.processes().get("p").await.unwrap().unwrap();
            assert_eq!((found.lifecycle, found.lease), (Lifecycle::Running, None));
            close_clean(&looking).await;
        }
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(4)
        );
        let record = processes.record("p").await.unwrap().unwrap();
        assert_eq!(
            (record.attempt, record.retries, record.recoveries),
            (4, 0, 0)
        );
        assert_eq!(runs.of("p"), [1, 2, 3, 4]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn an_engine_that_fails_because_it_was_shut_down_is_run_again() {
    for place in Place::both() {
        let with = |b: SupervisorBuilder| {
            b.engine(engine("sulks", |cx: ProcessContext, _| async move {
                if cx.attempt() == 2 {
                    return Ok(json!("well"));
                }
                cx.cancelled().await;
                Err(EngineFailure::new("interrupted", "in its own words"))
            }))
        };
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(rerunnable("p", "sulks"), inline())
            .await
            .unwrap();
        until(&processes, "p", |p| p.facets.started).await;
        assert_eq!(close(&supervisor).await.released, ["p"]);
        let supervisor = place.reopen(with).await;
        assert_eq!(
            output(&supervisor.processes(), "p").await,
            ProcessAwaitOutput::success("well")
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn owner_bound_work_gets_its_grace_and_is_abandoned_after_it() {
    for place in Place::both() {
        let runs = Runs::default();
        let finishes = Arc::new(tokio::sync::Notify::new());
        let finish = Arc::clone(&finishes);
        let supervisor = place
            .builder()
            .engine(runs.until("work", 99))
            .engine(engine("nearly", move |_, _| {
                let finish = Arc::clone(&finish);
                async move {
                    finish.notified().await;
                    Ok(json!("just in time"))
                }
            }))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        for (id, kind) in [("bound", "work"), ("nearly", "nearly")] {
            processes
                .start(owner_bound(id, kind), inline())
                .await
                .unwrap();
            until(&processes, id, |p| p.facets.started).await;
        }
        processes.start(external("ext"), inline()).await.unwrap();
        let shutting = {
            let supervisor = supervisor.clone();
            tokio::spawn(async move {
                let grace = ShutdownOptions::grace(Duration::from_millis(300));
                supervisor.shutdown(grace).await.unwrap()
            })
        };
        // Reads go on while work gets its grace; nothing is admitted.
        within(async {
            while processes.observer().is_ok() {
                tokio::task::yield_now().await;
            }
        })
        .await;
        assert_eq!(
            processes.start(external("late"), inline()).await,
            Err(Error::ShuttingDown)
        );
        finishes.notify_one();
        assert_eq!(
            output(&processes, "nearly").await,
            ProcessAwaitOutput::success("just in time")
        );
        let report = within(shutting).await.unwrap();
        assert_eq!(report.abandoned, ["bound"]);
        assert_eq!(report.finished, ["nearly"]);
        assert_eq!(
            (report.released.len(), report.unwritten.len()),
            (0, 0),
            "{report:?}"
        );

        let supervisor = place
            .builder()
            .engine(runs.until("work", 1))
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        let found = evidence(output(&processes, "bound").await);
        assert_eq!(
            (found.writer, found.proof),
            (AbandonWriter::OwnerDrain, AbandonProof::Drain)
        );
        assert_eq!(found.owner.unwrap().owner_id, "procession");
        assert_eq!(runs.of("bound"), [1]);
        let ext = processes.get("ext").await.unwrap().unwrap();
        assert_eq!(ext.lifecycle, Lifecycle::Running);
        assert!(processes.get("late").await.unwrap().is_none());
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn what_ignores_a_shutdown_is_aborted_and_its_store_is_free_all_the_same() {
    for place in Place::both() {
        let with = |b: SupervisorBuilder| b.engine(deaf()).engine(echo());
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(rerunnable("p", "deaf"), inline())
            .await
            .unwrap();
        processes
            .start(owner_bound("q", "deaf"), inline())
            .await
            .unwrap();
        for id in ["p", "q"] {
            until(&processes, id, |p| p.facets.started).await;
        }
        let grace = ShutdownOptions::grace(Duration::from_millis(10));
        let report = within(supervisor.shutdown(grace)).await.unwrap();
        assert_eq!(
            (report.released, report.abandoned),
            (vec!["p".into()], vec!["q".into()])
        );
        let again = place.builder().recover(false).open().await.unwrap();
        close_clean(&again).await;
    }
}

#[tokio::test]
async fn p6_a_started_owner_bound_process_never_runs_twice() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 99)).owner_id("host-a");
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(owner_bound("bound", "work"), inline())
            .await
            .unwrap();
        processes
            .start(rerunnable("again", "work"), inline())
            .await
            .unwrap();
        for id in ["bound", "again"] {
            // Not only durable, but really run.
            until(&processes, id, |_| runs.of(id).last() == Some(&1)).await;
        }
        let owner = processes
            .get("bound")
            .await
            .unwrap()
            .unwrap()
            .lease
            .unwrap()
            .owner;
        crash(supervisor, processes);

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        let found = evidence(output(&processes, "bound").await);
        assert_eq!(
            (found.writer, found.proof),
            (AbandonWriter::Sweep, AbandonProof::StoreEpoch)
        );
        assert_eq!(found.owner, Some(owner.clone()));
        let again = until(&processes, "again", |p| {
            p.attempt == 2 && runs.of("again").last() == Some(&2)
        })
        .await;
        let lease = again.lease.unwrap();
        assert_ne!(lease.owner.incarnation_id, owner.incarnation_id);
        assert!(lease.owner.store_epoch > owner.store_epoch);
        let record = processes.record("again").await.unwrap().unwrap();
        assert_eq!((record.recoveries, record.retries), (1, 0));
        for _ in 0..3 {
            supervisor.recover().await.unwrap();
        }
        assert_eq!(runs.of("bound"), [1]);
        assert_eq!(runs.of("again"), [1, 2]);
        processes.cancel("again", inline()).await.unwrap();
        output(&processes, "again").await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn what_loses_its_owner_too_often_fails_and_says_so() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 99));
        let policy = RetryPolicy::default().with_recoveries_max(2);
        for attempt in 1..=3 {
            let supervisor = place.reopen(with).await;
            let processes = supervisor.processes();
            let request = rerunnable("p", "work").with_retry(policy);
            processes.start(request, inline()).await.unwrap();
            // Not only durable, but really run.
            until(&processes, "p", |_| runs.of("p").last() == Some(&attempt)).await;
            crash(supervisor, processes);
        }
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        let found = output(&processes, "p").await;
        assert!(
            matches!(&found, ProcessAwaitOutput::Failure { code, .. } if code == "recoveries_exhausted"),
            "{found:?}"
        );
        assert_eq!(runs.of("p"), [1, 2, 3]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_store_opened_to_look_claims_runs_and_sweeps_nothing() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 2)).concurrency(1);
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(owner_bound("bound", "work"), inline())
            .await
            .unwrap();
        until(&processes, "bound", |p| p.facets.started).await;
        processes
            .start(rerunnable("queued", "work"), inline())
            .await
            .unwrap();
        crash(supervisor, processes);

        let looking = place.reopen(|b| with(b).recover(false)).await;
        let processes = looking.processes();
        let bound = processes.get("bound").await.unwrap().unwrap();
        assert_eq!(bound.lifecycle, Lifecycle::Running);
        assert!(!bound.lease.unwrap().live, "visibly stale");
        let queued = processes.get("queued").await.unwrap().unwrap();
        assert_eq!(queued.queued_reason, Some(QueuedReason::RecoveryOff));
        processes
            .start(rerunnable("new", "work"), inline())
            .await
            .unwrap();
        let asked = processes
            .request_abandon("bound", "ops", None)
            .await
            .unwrap();
        assert!(asked.facets.abandon_requested);
        let refused = looking.recover().await.unwrap_err();
        assert!(matches!(refused, Error::InvalidInput { .. }), "{refused:?}");
        let waited = processes
            .await_output_timeout("queued", Duration::from_millis(100))
            .await;
        assert!(matches!(waited, Err(Error::Timeout { .. })));
        assert_eq!(runs.of("queued"), Vec::<u32>::new());
        assert_eq!(event_types(&processes, "bound").await.len(), 2);
        close_clean(&looking).await;

        let supervisor = place.reopen(|b| b.engine(runs.until("work", 1))).await;
        let processes = supervisor.processes();
        let found = evidence(output(&processes, "bound").await);
        assert_eq!(found.writer, AbandonWriter::ReconciledRequest);
        assert_eq!(found.requested_by.as_deref(), Some("ops"));
        for id in ["queued", "new"] {
            assert_eq!(output(&processes, id).await, ProcessAwaitOutput::success(1));
        }
        assert_eq!(runs.of("bound"), [1]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_store_opened_to_look_claims_nothing_for_a_cancel_either() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 2));
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes
            .start(rerunnable("p", "work"), inline())
            .await
            .unwrap();
        // Its attempt is durable before the engine is called.
        until(&processes, "p", |_| runs.of("p").last() == Some(&1)).await;
        crash(supervisor, processes);

        let looking = place.reopen(|b| with(b).recover(false)).await;
        let processes = looking.processes();
        let before = processes.get("p").await.unwrap().unwrap();
        let summary = processes.cancel("p", inline()).await.unwrap();
        assert_eq!(summary.status, ProcessStatus::Running);
        let after = processes.get("p").await.unwrap().unwrap();
        assert!(after.facets.cancel_requested);
        assert_eq!(after.lease, before.lease, "it is still named");
        close_clean(&looking).await;

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        let cancelled = output(&processes, "p").await.state();
        assert_eq!(cancelled, TerminalState::Cancelled);
        assert_eq!(runs.of("p"), [1]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_kind_that_nobody_registered_stays_queued_and_says_so() {
    for place in Place::both() {
        let runs = Runs::default();
        let supervisor = place
            .reopen(|b| b.engine(runs.until("work", 99)).concurrency(1))
            .await;
        let processes = supervisor.processes();
        processes
            .start(rerunnable("ran", "work"), inline())
            .await
            .unwrap();
        until(&processes, "ran", |p| p.facets.started).await;
        processes
            .start(owner_bound("never-ran", "work"), inline())
            .await
            .unwrap();
        crash(supervisor, processes);

        let supervisor = place.reopen(|b| b.engine(echo())).await;
        let processes = supervisor.processes();
        let report = supervisor.recover().await.unwrap();
        assert_eq!((report.examined, report.left), (2, 2));
        for id in ["ran", "never-ran"] {
            let found = processes.get(id).await.unwrap().unwrap();
            let kind = "work".to_owned();
            assert_eq!(
                found.queued_reason,
                Some(QueuedReason::UnregisteredEngine { kind })
            );
        }
        close_clean(&supervisor).await;

        let supervisor = place.reopen(|b| b.engine(runs.until("work", 1))).await;
        let processes = supervisor.processes();
        for (id, attempt) in [("ran", 2), ("never-ran", 1)] {
            assert_eq!(
                output(&processes, id).await,
                ProcessAwaitOutput::success(attempt)
            );
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_time_limit_is_enforced_after_a_crash() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 99));
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        let request = rerunnable("p", "work").with_timeout(Some(Duration::from_millis(400)));
        processes.start(request, inline()).await.unwrap();
        until(&processes, "p", |p| p.facets.started).await;
        crash(supervisor, processes);
        let supervisor = place.reopen(with).await;
        let found = output(&supervisor.processes(), "p").await;
        assert!(
            matches!(
                &found,
                ProcessAwaitOutput::Failure {
                    class: FailureClass::Timeout,
                    ..
                }
            ),
            "{found:?}"
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn l2_tokens_only_rise_across_release_restart_and_prune() {
    for place in Place::both() {
        let tokens: Arc<Mutex<Vec<FencingToken>>> = Arc::default();
        let with = |b: SupervisorBuilder| {
            let tokens = Arc::clone(&tokens);
            b.engine(engine("tokens", move |cx: ProcessContext, _| {
                tokens.lock().unwrap().push(cx.fencing_token());
                async move { Ok(json!(cx.fencing_token().get())) }
            }))
        };
        let mut incarnations = Vec::new();
        for round in 0..3 {
            let supervisor = place.reopen(with).await;
            let processes = supervisor.processes();
            for n in 0..3 {
                let request = rerunnable("p", "tokens").with_priority(round * 10 + n);
                let record = processes.start(request, inline()).await.unwrap();
                incarnations.push(record.incarnation);
                output(&processes, "p").await;
                let ended = processes
                    .get("p")
                    .await
                    .unwrap()
                    .unwrap()
                    .terminal_at_ms
                    .unwrap();
                assert_eq!(
                    processes.prune(ended + 1).await.unwrap().pruned_processes,
                    1
                );
            }
            if round == 0 {
                crash(supervisor, processes);
            } else {
                close_clean(&supervisor).await;
            }
        }
        let tokens = tokens.lock().unwrap();
        assert_eq!(tokens.len(), 9);
        assert!(
            tokens.windows(2).all(|pair| pair[0] < pair[1]),
            "{tokens:?}"
        );
        assert!(
            incarnations.windows(2).all(|pair| pair[0] < pair[1]),
            "{incarnations:?}"
        );
    }
}

#[tokio::test]
async fn a_dropped_runtime_is_a_crash_even_while_handles_to_it_live_on() {
    for place in Place::both() {
        let runs = Runs::default();
        let with = |b: SupervisorBuilder| b.engine(runs.until("work", 2));
        let supervisor = place.reopen(with).await;
        let old = supervisor.processes();
        old.start(rerunnable("p", "work"), inline()).await.unwrap();
        until(&old, "p", |p| p.facets.started).await;
        let waiting = {
            let old = old.clone();
            tokio::spawn(async move { old.await_output("p").await })
        };
        tokio::task::yield_now().await;
        drop(supervisor);
        assert_eq!(within(waiting).await.unwrap(), Err(Error::ShuttingDown));
        assert_eq!(old.cancel("p", inline()).await, Err(Error::ShuttingDown));

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        assert_eq!(
            output(&processes, "p").await,
            ProcessAwaitOutput::success(2)
        );
        assert_eq!(old.get("p").await, Err(Error::ShuttingDown));
        let log = [
            "process.started",
            "process.owner_lost",
            "process.started",
            "process.completed",
        ];
        assert_eq!(
            event_types(&processes, "p").await,
            log,
            "the crash wrote nothing"
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_store_is_open_in_one_runtime_at_a_time() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let refused = place.builder().open().await.unwrap_err();
        assert!(matches!(refused, Error::StoreBusy { .. }), "{refused:?}");
        supervisor
            .processes()
            .start(external("p"), inline())
            .await
            .unwrap();
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_shutdown_under_load_answers_every_caller() {
    for place in Place::both() {
        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..16 {
            let (processes, acknowledged) = (processes.clone(), Arc::clone(&acknowledged));
            writers.spawn(async move {
                for n in 0.. {
                    let id = format!("w{writer}-{n}");
                    match processes.start(rerunnable(&id, "echo"), inline()).await {
                        Ok(_) => acknowledged.fetch_add(1, Ordering::SeqCst),
                        Err(Error::ShuttingDown | Error::CommitUnknown { .. }) => return,
                        Err(error) => panic!("{error:?}"),
                    };
                }
            });
        }
        within(async {
            while acknowledged.load(Ordering::SeqCst) < 100 {
                pause().await;
            }
        })
        .await;
        close(&supervisor).await;
        within(async {
            while let Some(writer) = writers.join_next().await {
                writer.unwrap()
            }
        })
        .await;

        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        let found = processes.list(&ProcessListFilter::any()).await.unwrap();
        assert!(found.len() >= acknowledged.load(Ordering::SeqCst));
        for process in &found {
            let done = output(&processes, &process.process_id).await;
            assert_eq!(done, ProcessAwaitOutput::success(Value::Null));
        }
        close_clean(&supervisor).await;
    }
}
