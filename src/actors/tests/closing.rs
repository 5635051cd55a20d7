//! Shutdowns that nobody waits for to their end.

use tokio::sync::Semaphore;

use super::conditions::Ground;
use super::*;

/// One process that runs until it is given its cue.
async fn on_cue() -> (Ground, Arc<Semaphore>) {
    let cue = Arc::new(Semaphore::new(0));
    let cued = Arc::clone(&cue);
    let ground = Ground::open(1, move |_: ProcessContext| {
        let cue = Arc::clone(&cued);
        async move {
            cue.acquire().await.unwrap().forget();
            Ok(json!(1))
        }
    })
    .await;
    let shared = &ground.shared;
    start(shared, "p", RecoveryDisposition::OwnerBound).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    (ground, cue)
}

#[tokio::test]
async fn a_shutdown_that_is_dropped_goes_on_and_tells_whoever_asks_again() {
    let (ground, cue) = on_cue().await;
    let shared = Arc::clone(&ground.shared);
    let row = ground.row("p");
    tokio::select! {
        done = ground.runtime.shutdown(BOUND) => panic!("{done:?}"),
        () = until(|| shared.is_shutting_down()) => {}
    }
    cue.add_permits(1);
    until(|| ground.loaded(row).state.terminal().is_some()).await;
    // Each gets all of the report, however it asks.
    let (again, twice) = within(async {
        let again = ground.runtime.shutdown(Duration::ZERO);
        tokio::join!(again, ground.runtime.shutdown(BOUND))
    })
    .await;
    assert_eq!(again.as_ref().unwrap().finished, ["p"]);
    assert_eq!(again, twice);
}

#[tokio::test]
async fn a_runtime_that_goes_away_while_it_is_shut_down_comes_to_its_end_in_order() {
    let (ground, cue) = on_cue().await;
    let shared = Arc::clone(&ground.shared);
    let row = ground.row("p");
    tokio::select! {
        done = ground.runtime.shutdown(BOUND) => panic!("{done:?}"),
        () = until(|| shared.is_shutting_down()) => {}
    }
    drop(ground.runtime);
    cue.add_permits(1);
    until(|| shared.is_closed()).await;
    let state = ground
        .other
        .view()
        .unwrap()
        .load(row)
        .unwrap()
        .unwrap()
        .state;
    assert_eq!(state.terminal(), Some(TerminalState::Completed));
}
