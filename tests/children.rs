//! Children: started once per key, cancelled with their parent unless detached.
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

use common::*;
use procession::*;
use serde_json::{Value, json};

/// Starts children, and says their ids in events.
fn parent() -> impl ProcessEngine {
    engine("parent", |cx: ProcessContext, _| async move {
        let plain = cx.start_child("plain", rerunnable("-", "polite")).await?;
        let again = cx
            .start_child("plain", rerunnable("other", "polite"))
            .await?;
        assert_eq!(plain.id, again.id, "the id in the request is not used");
        let other = cx.start_child("plain", rerunnable("-", "parent")).await;
        assert!(matches!(other, Err(Error::Conflict { .. })), "{other:?}");
        let detached = cx
            .start_detached_child("loose", rerunnable("-", "polite"))
            .await?;
        let ids = json!([plain.id, detached.id]);
        cx.emit_durable(ProcessEventAppendRequest::new("children", ids))
            .await?;
        let reason = cx.cancelled().await;
        let late = cx.start_child("late", rerunnable("-", "polite")).await;
        let refused = late.is_err();
        Err(EngineFailure::cancelled(reason).with_raw(refused))
    })
}

fn request(id: &str) -> ProcessStartRequest {
    rerunnable(id, "parent").with_event_type(ProcessEventType::new("children"))
}

/// The ids that the last attempt said.
async fn children(processes: &Processes, id: &str, attempt: usize) -> [String; 2] {
    within(async {
        loop {
            let events = processes.events(id, 0).await.unwrap();
            let said: Vec<_> = events
                .iter()
                .filter(|e| e.event_type == "children")
                .collect();
            if said.len() == attempt {
                let ids = said[attempt - 1].payload.clone().into_value();
                return serde_json::from_value(ids).unwrap();
            }
            pause().await;
        }
    })
    .await
}

#[tokio::test]
async fn a_cancel_reaches_the_children_but_for_detached_ones() {
    for place in Place::both() {
        let supervisor = place
            .builder()
            .engine(parent())
            .engine(polite())
            .open()
            .await
            .unwrap();
        let processes = supervisor.processes();
        processes.start(request("p"), inline()).await.unwrap();
        let [plain, loose] = children(&processes, "p", 1).await;
        for id in [&plain, &loose] {
            let found = until(&processes, id, |p| p.facets.started).await;
            let of = found.parent.unwrap();
            assert_eq!((of.process_id.as_str(), of.detached), ("p", *id == loose));
        }
        let filter = ProcessListFilter {
            parent: Some("p".into()),
            ..ProcessListFilter::any()
        };
        assert_eq!(processes.list(&filter).await.unwrap().len(), 2);

        processes.cancel("p", inline()).await.unwrap();
        let ProcessAwaitOutput::Cancelled { raw, .. } = output(&processes, "p").await else {
            panic!("not cancelled");
        };
        assert_eq!(raw, Some(json!(true)), "a cancelled parent starts no child");
        let ProcessAwaitOutput::Cancelled { message, .. } = output(&processes, &plain).await else {
            panic!("not cancelled");
        };
        assert_eq!(message, "cancelled by parent p");
        let found = processes.get(&loose).await.unwrap().unwrap();
        assert_eq!(found.lifecycle, Lifecycle::Running);
        assert_eq!(found.cancel_request, None);
        assert_eq!(
            processes.list(&filter).await.unwrap().len(),
            2,
            "and no third"
        );
        processes.cancel(&loose, inline()).await.unwrap();
        output(&processes, &loose).await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn an_attempt_that_is_run_again_finds_its_children() {
    for place in Place::both() {
        let with = |b: SupervisorBuilder| b.engine(parent()).engine(polite());
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes.start(request("p"), inline()).await.unwrap();
        let before = children(&processes, "p", 1).await;
        drop((supervisor, processes));

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        assert_eq!(children(&processes, "p", 2).await, before);
        assert_eq!(
            processes
                .list(&ProcessListFilter::any())
                .await
                .unwrap()
                .len(),
            3
        );
        processes.cancel_all(inline()).await.unwrap();
        for id in before {
            output(&processes, &id).await;
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_tree_cancel_goes_all_the_way_down() {
    let supervisor = Supervisor::in_memory()
        .engine(engine(
            "tree",
            |cx: ProcessContext, depth: Value| async move {
                let depth = depth.as_u64().unwrap_or(0);
                for n in 0..2 {
                    if depth > 0 {
                        let mut child = rerunnable("-", "tree");
                        child.input = ProcessInput::engine("tree", depth - 1);
                        cx.start_child(&format!("c{n}"), child).await?;
                    }
                }
                Err(EngineFailure::cancelled(cx.cancelled().await))
            },
        ))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    let mut root = rerunnable("root", "tree");
    root.input = ProcessInput::engine("tree", 3);
    processes.start(root, inline()).await.unwrap();
    let started = within(async {
        loop {
            let all = processes.list(&ProcessListFilter::default()).await.unwrap();
            if all.len() == 15 && all.iter().all(|p| p.facets.started) {
                return all;
            }
            pause().await;
        }
    })
    .await;
    processes.cancel("root", inline()).await.unwrap();
    for process in started {
        let found = output(&processes, &process.process_id).await;
        assert_eq!(
            found.state(),
            TerminalState::Cancelled,
            "{}",
            process.process_id
        );
    }
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn the_reaper_completes_a_tree_cancel_that_a_crash_interrupted() {
    for place in Place::both() {
        let ids: Arc<Mutex<Option<[String; 2]>>> = Arc::default();
        // The parent ends well although it was asked to cancel; its children hear nothing of it,
        // because the runtime that would have told them was gone.
        let with = |b: SupervisorBuilder| b.engine(parent()).engine(polite());
        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        processes.start(request("p"), inline()).await.unwrap();
        *ids.lock().unwrap() = Some(children(&processes, "p", 1).await);
        drop((supervisor, processes));

        // A runtime that executes and sweeps nothing records the request, and tells nobody.
        let looking = place.reopen(|b| b.recover(false)).await;
        looking.processes().cancel("p", inline()).await.unwrap();
        drop(looking);

        let supervisor = place.reopen(with).await;
        let processes = supervisor.processes();
        let [plain, loose] = ids.lock().unwrap().clone().unwrap();
        for id in ["p", plain.as_str()] {
            assert_eq!(
                output(&processes, id).await.state(),
                TerminalState::Cancelled,
                "{id}"
            );
        }
        let found = processes.get(&loose).await.unwrap().unwrap();
        assert_eq!(
            (found.lifecycle, found.cancel_request),
            (Lifecycle::Running, None)
        );
        processes.cancel(&loose, inline()).await.unwrap();
        output(&processes, &loose).await;
        close_clean(&supervisor).await;
    }
}
