//! Sweeps that do not come to their end, and what they had begun.

use super::conditions::Ground;
use super::gated::{Gated, Put, idle, open_at};
use super::*;
use crate::actors::reaper::end_by_proof;
use crate::store::read::IdEntry;

/// W2: by the commit itself, because the sweep may have failed while that was on its way.
#[tokio::test]
async fn w2_awaiters_hear_of_what_a_sweep_committed_that_is_gone() {
    let (place, put) = (MemoryKv::private(), Arc::new(Put::default()));
    let (first, _) = open_at(&place, &put, idle).await;
    start(&first.shared, "p", RecoveryDisposition::OwnerBound).await;
    until(|| first.shared.get("p").unwrap().unwrap().facets.started).await;
    drop(first);
    let clock: Arc<dyn Clock> = Arc::clone(&put) as _;
    until(|| place.open(Arc::clone(&clock)).is_ok()).await;
    let gated = Gated::open(&place, &clock);
    let store = ProcessStore::new(Arc::clone(&gated) as _, Arc::clone(&clock));
    // Nothing sweeps but the test.
    let config = RuntimeConfig {
        recover: false,
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, clock, Vec::new())
        .await
        .unwrap();
    let shared = Arc::clone(&runtime.shared);
    let waiting = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.await_output("p").await })
    };
    until(|| shared.hub.listened() != [0; 4]).await;
    gated.shut();
    let row = match shared.view().unwrap().id("p").unwrap() {
        Some(IdEntry::Live(row)) => row,
        found => panic!("{found:?}"),
    };
    let settling = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { end_by_proof(&shared, "p", row).await })
    };
    until(|| gated.count() == 1).await;
    settling.abort();
    assert!(settling.await.unwrap_err().is_cancelled());
    assert!(!waiting.is_finished());
    gated.open_gate();
    let output = within(waiting).await.unwrap().unwrap();
    assert!(
        matches!(output, ProcessAwaitOutput::Abandoned { .. }),
        "{output:?}"
    );
    shut(&runtime).await;
}

#[tokio::test]
async fn a_sweep_goes_on_after_a_view_that_expired() {
    let ground = Ground::open(0, idle).await;
    let shared = &ground.shared;
    start(shared, "p", RecoveryDisposition::Rerunnable).await;
    // One of them is the one on which owners are read.
    ground.gated.expired.store(4, Ordering::SeqCst);
    assert_eq!(shared.recover_now().await.unwrap().examined, 1);
    // But not for ever: the next sweep tries again.
    ground.gated.expired.store(5, Ordering::SeqCst);
    let failed = shared.recover_now().await;
    assert!(matches!(failed, Err(Error::Timeout { .. })), "{failed:?}");
    assert_eq!(shared.recover_now().await.unwrap().examined, 1);
    shut(&ground.runtime).await;
}

/// As an earlier release began it: nothing says when by a clock that does not jump.
#[tokio::test]
async fn l6_a_start_without_an_age_counts_from_the_open_whatever_its_stamp_says() {
    let ground = Ground::open(0, idle).await;
    start(&ground.shared, "p", RecoveryDisposition::Rerunnable).await;
    let mut loaded = ground.loaded(ground.row("p"));
    loaded.registration.timeout = Some(Duration::from_secs(1));
    let owner = ground.shared.owner().unwrap().owner.clone();
    loaded.state.first_started = Some(Arc::new(FirstStart { at_ms: 1, owner }));
    ground.put.0.fetch_add(700, Ordering::SeqCst);
    let started_for_ms = ground
        .shared
        .started_for_ms(&loaded.registration, &loaded.state);
    assert_eq!(started_for_ms, 700);
    shut(&ground.runtime).await;
}

/// A2: what an owner has claimed that died while a sweep walked says about whom it is.
#[tokio::test]
async fn a_sweep_forgets_no_owner_that_claimed_and_died_while_it_walked() {
    let ground = Ground::open(0, idle).await;
    let shared = &ground.shared;
    for id in ["free", "lost"] {
        start(shared, id, RecoveryDisposition::Rerunnable).await;
    }
    let (free, lost) = (ground.row("free"), ground.row("lost"));
    // From here on nothing sweeps but what is called here.
    shared.recover_now().await.unwrap();
    let claims = async |row| {
        let owner = ground.host(true).await;
        let token = ground.other.next_token().unwrap();
        let lease = ground.give(row, owner, token).await;
        ground.retire(owner).await;
        lease
    };
    ground.ask_to_abandon(lost).await;
    let gone = claims(lost).await.owner;
    ground.gated.shut();
    let sweeping = {
        let shared = Arc::clone(shared);
        tokio::spawn(async move { shared.recover_now().await })
    };
    // The last page has been read, and the walk waits for what it had to end.
    ground.held(1).await;
    let lease = claims(free).await;
    ground.gated.open_gate();
    assert_eq!(within(sweeping).await.unwrap().unwrap().abandoned, 1);
    assert_eq!(ground.loaded(free).edges.lease, Some(lease));
    let known = |number| {
        let view = ground.other.view().unwrap();
        view.owner(number).unwrap().is_some()
    };
    assert!(known(lease.owner), "a lease names it");
    let report = crate::store::verify::verify(&shared.store).unwrap();
    assert!(report.is_clean(), "{report:?}");
    // Whom no lease names any more is forgotten, by a walk that begins after that.
    assert!(known(gone));
    shared.recover_now().await.unwrap();
    assert!(!known(gone));
    shut(&ground.runtime).await;
}
