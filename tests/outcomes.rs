//! How outcomes and events reach whoever waits for them: awaits, subscriptions, completions.
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

use std::time::Duration;

use common::*;
use procession::*;
use serde_json::{Value, json};
use tokio::task::JoinSet;

fn host() -> CompletionAuthority {
    CompletionAuthority::Host { by: "ops".into() }
}

fn noted(id: &str) -> ProcessStartRequest {
    external(id).with_event_type(ProcessEventType::new("note"))
}

fn note(n: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", n)
}

#[tokio::test]
async fn every_waiter_gets_the_same_answer_before_and_after_a_restart() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(external("p"), inline()).await.unwrap();
        let mut waiters = JoinSet::new();
        for _ in 0..100 {
            let processes = processes.clone();
            waiters.spawn(async move { processes.await_output("p").await.unwrap() });
        }
        // W4: some give up, which is nobody else's business.
        for _ in 0..20 {
            let wait = processes.await_output_timeout("p", Duration::from_millis(1));
            assert!(matches!(wait.await, Err(Error::Timeout { .. })));
        }
        assert_eq!(
            processes.get("p").await.unwrap().unwrap().lifecycle,
            Lifecycle::Running
        );
        let answer = ProcessAwaitOutput::success(json!({ "deep": [1, 2, { "x": null }] }));
        processes
            .complete_external("p", answer.clone(), host())
            .await
            .unwrap();
        within(async {
            while let Some(found) = waiters.join_next().await {
                assert_eq!(found.unwrap(), answer);
            }
        })
        .await;
        close_clean(&supervisor).await;
        let supervisor = place.builder().open().await.unwrap();
        assert_eq!(output(&supervisor.processes(), "p").await, answer);
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn w2_no_wake_up_is_lost_whenever_a_waiter_registers() {
    for place in Place::both() {
        let supervisor = place.builder().engine(echo()).open().await.unwrap();
        let processes = supervisor.processes();
        for round in 0..200 {
            let id = format!("p{round}");
            processes.start(external(&id), inline()).await.unwrap();
            let ends = {
                let (processes, id) = (processes.clone(), id.clone());
                tokio::spawn(async move {
                    processes
                        .complete_external(&id, ProcessAwaitOutput::success(1), host())
                        .await
                })
            };
            let (one, two) = within(async {
                tokio::join!(processes.await_output(&id), processes.await_output(&id))
            })
            .await;
            assert_eq!(one.unwrap(), two.unwrap());
            within(ends).await.unwrap().unwrap();
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn awaits_of_several_and_of_nobody() {
    let supervisor = Supervisor::in_memory().engine(echo()).open().await.unwrap();
    let processes = supervisor.processes();
    for id in ["a", "b", "c"] {
        processes.start(external(id), inline()).await.unwrap();
    }
    let ids = ["a", "b", "c", "b"].map(str::to_owned);
    let short = Some(Duration::from_millis(1));
    for refused in [
        processes.await_any(&ids, short).await.map(drop),
        processes.await_all(&ids, short).await.map(drop),
    ] {
        assert!(matches!(refused, Err(Error::Timeout { .. })), "{refused:?}");
    }
    processes
        .complete_external("b", ProcessAwaitOutput::success(2), host())
        .await
        .unwrap();
    let (first, found) = within(processes.await_any(&ids, None)).await.unwrap();
    assert_eq!(
        (first.as_str(), found),
        ("b", ProcessAwaitOutput::success(2))
    );
    for (id, n) in [("a", 1), ("c", 3)] {
        processes
            .complete_external(id, ProcessAwaitOutput::success(n), host())
            .await
            .unwrap();
    }
    let all = within(processes.await_all(&ids, None)).await.unwrap();
    assert_eq!(all, [1, 2, 3, 2].map(ProcessAwaitOutput::success));

    assert_eq!(
        processes.await_output("nobody").await,
        Err(Error::UnknownProcess {
            process_id: "nobody".into()
        })
    );
    let ended = processes
        .get("c")
        .await
        .unwrap()
        .unwrap()
        .terminal_at_ms
        .unwrap();
    processes.prune(ended + 1).await.unwrap();
    for refused in [
        processes.await_output("a").await.map(drop),
        processes.events("a", 0).await.map(drop),
        processes.cancel("a", inline()).await.map(drop),
        processes.request_abandon("a", "ops", None).await.map(drop),
        processes.start(external("a"), inline()).await.map(drop),
        processes.subscribe("a", 0).await.map(drop),
    ] {
        assert!(
            matches!(
                refused,
                Err(Error::NoLongerRetained {
                    status: TerminalState::Completed,
                    ..
                })
            ),
            "{refused:?}"
        );
    }
    assert_eq!(processes.get("a").await.unwrap(), None);
    // Other content begins a new incarnation, which has nothing of the old one.
    let again = processes.start(noted("a"), inline()).await.unwrap();
    assert_eq!(processes.events("a", 0).await.unwrap(), []);
    processes.append_event("a", note(1)).await.unwrap();
    processes
        .complete_external("a", ProcessAwaitOutput::success(9), host())
        .await
        .unwrap();
    assert_eq!(
        output(&processes, "a").await,
        ProcessAwaitOutput::success(9)
    );
    assert!(again.incarnation > Incarnation(3));
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn a_pruned_id_is_used_again_while_its_old_actor_is_still_there() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(echo())
            .engine(polite())
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        for round in 0..5 {
            // The actor of the last round has just ended, and is idle.
            let request = rerunnable("p", "polite").with_priority(round);
            processes.start(request, inline()).await.unwrap();
            until(&processes, "p", |p| p.facets.started).await;
            processes.cancel("p", inline()).await.unwrap();
            assert_eq!(
                output(&processes, "p").await.state(),
                TerminalState::Cancelled
            );
            let ended = processes
                .get("p")
                .await
                .unwrap()
                .unwrap()
                .terminal_at_ms
                .unwrap();
            let report = processes.prune(ended + 1).await.unwrap();
            assert_eq!((report.pruned_processes, report.pruned_events), (1, 3));
            let gone = processes.cancel("p", inline()).await.unwrap_err();
            assert!(matches!(gone, Error::NoLongerRetained { .. }), "{gone:?}");
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn e6_a_subscription_is_contiguous_at_the_seam_under_concurrent_writes() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(noted("p"), inline()).await.unwrap();
        const WRITERS: u64 = 8;
        const EACH: u64 = 100;
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let processes = processes.clone();
            writers.spawn(async move {
                for n in 0..EACH {
                    processes.append_event("p", note(n)).await.unwrap();
                }
            });
        }
        let mut readers = JoinSet::new();
        let (written, all_written) = tokio::sync::watch::channel(false);
        for n in 0..20 {
            let after = n * 40;
            let mut subscription = processes.subscribe("p", after).await.unwrap();
            let mut all_written = all_written.clone();
            readers.spawn(async move {
                if n % 4 == 0 {
                    // A slow one: all is written when it begins to read.
                    all_written.wait_for(|all| *all).await.unwrap();
                }
                (after, drain(&mut subscription).await)
            });
            pause().await;
        }
        within(async { while writers.join_next().await.is_some() {} }).await;
        processes
            .complete_external("p", ProcessAwaitOutput::success(1), host())
            .await
            .unwrap();
        written.send(true).unwrap();
        let last = WRITERS * EACH + 1;
        while let Some(read) = within(readers.join_next()).await {
            let (after, sequences) = read.unwrap();
            assert_eq!(sequences, (after + 1..=last).collect::<Vec<_>>());
        }
        // And what comes too late finds the whole log, or its end.
        let mut late = processes.subscribe("p", last - 1).await.unwrap();
        assert_eq!(drain(&mut late).await, [last]);
        for beyond in [last, last + 1, u64::MAX] {
            let mut beyond = processes.subscribe("p", beyond).await.unwrap();
            assert!(next(&mut beyond).await.is_none());
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_subscription_from_beyond_the_end_begins_there_when_it_comes() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    let mut early = processes.subscribe("p", 3).await.unwrap();
    let mut never = processes.subscribe("p", u64::MAX).await.unwrap();
    let reads = tokio::spawn(async move { (drain(&mut early).await, next(&mut never).await) });
    for n in 1..=5 {
        processes.append_event("p", note(n)).await.unwrap();
    }
    processes
        .complete_external("p", ProcessAwaitOutput::success(1), host())
        .await
        .unwrap();
    let (early, never) = within(reads).await.unwrap();
    assert_eq!(early, [4, 5, 6]);
    assert!(never.is_none());
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn open_waits_and_subscriptions_end_with_the_runtime_and_with_a_prune() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(noted("p"), inline()).await.unwrap();
        processes.start(noted("q"), inline()).await.unwrap();
        let mut of_q = processes.subscribe("q", 100).await.unwrap();
        processes
            .complete_external("q", ProcessAwaitOutput::success(1), host())
            .await
            .unwrap();
        let ended = processes
            .get("q")
            .await
            .unwrap()
            .unwrap()
            .terminal_at_ms
            .unwrap();
        processes.prune(ended + 1).await.unwrap();
        let last = next(&mut of_q).await;
        assert!(
            matches!(last, Some(Err(Error::NoLongerRetained { .. }))),
            "{last:?}"
        );
        assert!(next(&mut of_q).await.is_none());

        let mut subscription = processes.subscribe("p", 0).await.unwrap();
        let waits = {
            let processes = processes.clone();
            tokio::spawn(async move { processes.await_output("p").await })
        };
        let reads = tokio::spawn(async move { next(&mut subscription).await });
        tokio::task::yield_now().await;
        close(&supervisor).await;
        assert_eq!(within(waits).await.unwrap(), Err(Error::ShuttingDown));
        assert!(matches!(
            within(reads).await.unwrap(),
            Some(Err(Error::ShuttingDown))
        ));
    }
}

#[tokio::test]
async fn external_work_is_ended_by_who_may_and_how() {
    for place in Place::both() {
        let supervisor = place.builder().engine(polite()).open().await.unwrap();
        let processes = supervisor.processes();
        let scope = SessionScope::new("worker");
        let owner = CompletionAuthority::ExternalOwner {
            granted_to: scope.clone(),
        };
        let good = || ProcessAwaitOutput::success(1);
        processes.start(external("p"), inline()).await.unwrap();
        let refused = processes
            .complete_external("p", good(), owner.clone())
            .await
            .unwrap_err();
        let Error::NotGranted { scope: named, ids } = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(
            (named.as_str(), ids.as_slice()),
            ("session:worker", ["p".to_owned()].as_slice())
        );
        let reaper = CompletionAuthority::ReconciledAbandon;
        let refused = processes
            .complete_external("p", good(), reaper)
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::InvalidInput { .. }), "{refused:?}");
        let given_up = ProcessAwaitOutput::Abandoned {
            evidence: AbandonEvidence {
                writer: AbandonWriter::Sweep,
                owner: None,
                proof: AbandonProof::Unowned,
                requested_by: None,
                survivors: None,
                epoch_ms: 0,
            },
        };
        let refused = processes
            .complete_external("p", given_up, host())
            .await
            .unwrap_err();
        assert!(matches!(refused, Error::InvalidInput { .. }), "{refused:?}");
        assert_eq!(processes.events("p", 0).await.unwrap(), []);

        let descriptor = ProcessHandleDescriptor::default();
        processes.grant(&scope, "p", descriptor).await.unwrap();
        processes
            .complete_external("p", good(), owner.clone())
            .await
            .unwrap();
        let events = processes.events("p", 0).await.unwrap();
        assert_eq!(events[0].payload["authority"]["kind"], "external_owner");
        assert_eq!(
            events[0].payload["authority"]["granted_to"]["session_id"],
            "worker"
        );

        processes.start(external("q"), inline()).await.unwrap();
        let failed = ProcessAwaitOutput::Failure {
            class: FailureClass::External,
            code: "gone".into(),
            message: "the worker said so".into(),
            raw: Some(json!({ "exit": 3 })),
        };
        processes
            .complete_external("q", failed.clone(), host())
            .await
            .unwrap();
        assert_eq!(output(&processes, "q").await, failed);
        let events = processes.events("q", 0).await.unwrap();
        assert_eq!(
            events[0].payload["authority"],
            json!({ "kind": "host", "by": "ops" })
        );

        // What is executed here is ended by its engine alone.
        processes
            .start(rerunnable("r", "polite"), inline())
            .await
            .unwrap();
        until(&processes, "r", |p| p.facets.started).await;
        for authority in [host(), owner] {
            let refused = processes
                .complete_external("r", good(), authority)
                .await
                .unwrap_err();
            assert!(matches!(refused, Error::InvalidInput { .. }), "{refused:?}");
        }
        processes.cancel("r", inline()).await.unwrap();
        output(&processes, "r").await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn an_external_reference_is_written_once() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(external("p"), inline()).await.unwrap();
        let job = json!({ "job": 7 });
        let found = processes.set_external_ref("p", job.clone()).await.unwrap();
        assert_eq!(found.external_ref, Some(job.clone()));
        processes.set_external_ref("p", job.clone()).await.unwrap();
        let other = processes
            .set_external_ref("p", json!({ "job": 8 }))
            .await
            .unwrap_err();
        assert!(matches!(other, Error::Conflict { .. }), "{other:?}");
        assert_eq!(
            event_types(&processes, "p").await,
            ["process.external_ref_set"]
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn p3_a_replay_key_stands_for_one_event_however_many_ask_at_once() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(noted("p"), inline()).await.unwrap();
        let mut asks = JoinSet::new();
        for n in 0..64 {
            let processes = processes.clone();
            asks.spawn(async move {
                let keyed = note(n % 2).with_replay_key(Some("k".into()));
                (n % 2, processes.append_event("p", keyed).await)
            });
        }
        let mut accepted = Vec::new();
        while let Some(asked) = within(asks.join_next()).await {
            match asked.unwrap() {
                (content, Ok(event)) => accepted.push((content, event)),
                (_, Err(error)) => assert!(matches!(error, Error::Conflict { .. }), "{error:?}"),
            }
        }
        assert_eq!(accepted.len(), 32);
        let first = &accepted[0];
        assert!(accepted.iter().all(|found| found == first));
        assert_eq!(processes.events("p", 0).await.unwrap().len(), 1);
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a4_completion_and_abandonment_race_and_both_callers_learn_which_won() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        for round in 0..60 {
            let id = format!("p{round}");
            processes.start(external(&id), inline()).await.unwrap();
            let (completed, asked) = within(async {
                tokio::join!(
                    processes.complete_external(&id, ProcessAwaitOutput::success(1), host()),
                    processes.request_abandon(&id, "ops", None)
                )
            })
            .await;
            let found = output(&processes, &id).await.state();
            match completed {
                Ok(()) => assert_eq!(found, TerminalState::Completed),
                Err(Error::AlreadyTerminal { status, .. }) => {
                    assert_eq!(
                        (status, found),
                        (TerminalState::Abandoned, TerminalState::Abandoned)
                    );
                }
                Err(error) => panic!("{error:?}"),
            }
            match asked {
                Ok(_) => {}
                Err(Error::AlreadyTerminal { status, .. }) => {
                    assert_eq!(
                        (status, found),
                        (TerminalState::Completed, TerminalState::Completed)
                    );
                }
                Err(error) => panic!("{error:?}"),
            }
            let types = event_types(&processes, &id).await;
            let ends = ["process.completed", "process.abandoned"];
            assert_eq!(
                types.iter().filter(|t| ends.contains(&t.as_str())).count(),
                1
            );
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn values_come_back_as_they_were_given() {
    let supervisor = Supervisor::in_memory().engine(echo()).open().await.unwrap();
    let processes = supervisor.processes();
    let values = [
        Value::Null,
        json!(u64::MAX),
        json!(i64::MIN),
        json!(0.1),
        json!("ünïcode \u{0} \u{7f} ✓"),
        json!({ "b": 1, "a": { "": [] } }),
    ];
    for (n, value) in values.into_iter().enumerate() {
        let id = format!("p{n}");
        let mut request = rerunnable(&id, "echo");
        request.input = ProcessInput::engine("echo", value.clone());
        processes.start(request, inline()).await.unwrap();
        assert_eq!(
            output(&processes, &id).await,
            ProcessAwaitOutput::Success { value }
        );
    }
    close_clean(&supervisor).await;
}
