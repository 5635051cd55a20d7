//! What a shutdown is told of work that its engine ends by an event of its own, and of work whose
//! execution is given up while what became of it is on its way.

use tokio::sync::{Semaphore, oneshot};

use super::conditions::Ground;
use super::*;
use crate::actors::process::ShutdownOutcome;

/// Owner-bound work that says on a cue that it is done, without waiting until that is durable, and
/// then returns, fails or goes on, by its id.
async fn ends_itself(id: &str) -> (Ground, Arc<Semaphore>) {
    let cue = Arc::new(Semaphore::new(0));
    let cued = Arc::clone(&cue);
    let ground = Ground::open(1, move |cx: ProcessContext| {
        let cue = Arc::clone(&cued);
        async move {
            cue.acquire().await.unwrap().forget();
            cx.emit("done", 7).await?;
            match cx.process_id() {
                "returns" => Ok(Value::Null),
                "fails" => Err(EngineFailure::new("stopped", "it had to")),
                _ => std::future::pending().await,
            }
        }
    })
    .await;
    let ends = TerminalSemantics::new(MappedState::Completed, Selector::Payload);
    let request = request(id, RecoveryDisposition::OwnerBound)
        .with_event_type(ProcessEventType::new("done").with_terminal(ends));
    let shared = &ground.shared;
    shared.start(request, StartAs::default()).await.unwrap();
    until(|| shared.get(id).unwrap().unwrap().facets.started).await;
    (ground, cue)
}

fn is_done(ground: &Ground, id: &str) {
    let loaded = ground.loaded(ground.row(id));
    assert_eq!(loaded.state.terminal(), Some(TerminalState::Completed));
}

#[tokio::test]
async fn what_ended_by_its_own_event_during_a_shutdown_is_reported_as_finished() {
    for id in ["returns", "fails"] {
        let (ground, cue) = ends_itself(id).await;
        let shared = &ground.shared;
        let (report, ()) = tokio::join!(ground.runtime.shutdown(BOUND), async {
            until(|| shared.is_shutting_down()).await;
            cue.add_permits(1);
        });
        let expected = crate::actors::ShutdownReport {
            finished: vec![id.to_owned()],
            ..Default::default()
        };
        assert_eq!(report.unwrap(), expected);
        is_done(&ground, id);
    }
}

/// Its execution is given up while the event that ends it is on its way, which is accepted all the same.
#[tokio::test]
async fn what_ends_by_its_own_event_after_its_lease_was_given_up_is_reported_as_finished() {
    let (ground, cue) = ends_itself("goes on").await;
    let shared = &ground.shared;
    ground.gated.shut();
    cue.add_permits(1);
    until(|| ground.gated.count() == 1).await;
    let owner = shared.owner().unwrap().number;
    tell(shared, "goes on", ProcessMsg::LeaseLost { owner });
    let incarnation = ground.row("goes on").incarnation;
    until(|| !shared.has_task(incarnation)).await;
    let (settled, outcome) = oneshot::channel();
    tell(shared, "goes on", ProcessMsg::Watch { settled });
    ground.gated.open_gate();
    assert_eq!(within(outcome).await.unwrap(), ShutdownOutcome::Finished);
    is_done(&ground, "goes on");
    shut(&ground.runtime).await;
}

/// Its lease is given back, or its next attempt put down for later, and that is accepted.
#[tokio::test]
async fn what_may_go_on_after_its_lease_was_given_up_is_reported_as_released() {
    for id in ["is stopped", "fails"] {
        let cue = Arc::new(Semaphore::new(0));
        let cued = Arc::clone(&cue);
        let ground = Ground::open(1, move |cx: ProcessContext| {
            let cue = Arc::clone(&cued);
            async move {
                tokio::select! {
                    _ = cue.acquire() => {
                        Err(EngineFailure::new("busy", "later").retryable())
                    }
                    reason = cx.cancelled() => Err(EngineFailure::cancelled(reason)),
                }
            }
        })
        .await;
        let shared = &ground.shared;
        let request = request(id, RecoveryDisposition::Rerunnable).with_retry(RetryPolicy {
            attempts: 2,
            ..RetryPolicy::default()
        });
        shared.start(request, StartAs::default()).await.unwrap();
        until(|| shared.get(id).unwrap().unwrap().facets.started).await;
        let owner = shared.owner().unwrap().number;
        ground.gated.shut();
        if id == "fails" {
            cue.add_permits(1);
            ground.held(1).await;
        }
        let (report, ()) = tokio::join!(ground.runtime.shutdown(BOUND), async {
            until(|| shared.is_shutting_down()).await;
            ground.held(1).await;
            tell(shared, id, ProcessMsg::LeaseLost { owner });
            ground.gated.open_gate();
        });
        let expected = crate::actors::ShutdownReport {
            released: vec![id.to_owned()],
            ..Default::default()
        };
        assert_eq!(report.unwrap(), expected, "{id}");
        let loaded = ground.loaded(ground.row(id));
        assert_eq!((loaded.edges.lease, loaded.state.terminal()), (None, None));
        assert_eq!(loaded.state.retry_pause.is_some(), id == "fails");
    }
}
