//! What a host is told when its store fails, and what a session is told by a grant that goes.

mod held;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::time::Duration;

use futures_core::Stream;
use tokio::task::JoinSet;

use crate::*;

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what)
        .await
        .expect("did not happen in time")
}

async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}

/// The end of a stream that has nothing to say.
async fn end<T, S: Stream<Item = Result<T>> + Unpin>(mut stream: S) -> Result<()> {
    loop {
        match next(&mut stream).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                assert!(
                    next(&mut stream).await.is_none(),
                    "an error is the last item"
                );
                return Err(error);
            }
            None => return Ok(()),
        }
    }
}

/// Nobody calls anything: the heartbeat finds it, and whoever waits is told.
#[tokio::test]
async fn every_wait_ends_when_the_store_fails() {
    let store = InMemoryStore::new();
    let lease = LeaseTimings::from_ttl(Duration::from_millis(300)).unwrap();
    let supervisor = Supervisor::in_memory_store(&store)
        .lease(lease)
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    let scope = SessionScope::new("s");
    let session = supervisor.session(scope.clone()).processes();
    let request = ProcessStartRequest::external("p", ProcessOriginator::session(scope.clone()), 1);
    let effects = || ScopedEffectController::inline(ExecutionScope::operation("test"));
    session.start(request, effects()).await.unwrap();

    let mut waits: JoinSet<(&str, Result<()>)> = JoinSet::new();
    for (what, subscription) in [
        ("subscription", processes.subscribe("p", 0).await.unwrap()),
        ("its own", session.subscribe("p", 0).await.unwrap()),
    ] {
        waits.spawn(async move { (what, end(subscription).await) });
    }
    for (what, watch) in [
        ("watch", processes.watch_session("s").unwrap()),
        ("its own watch", session.watch_session().unwrap()),
    ] {
        waits.spawn(async move { (what, end(watch).await) });
    }
    let feed = processes.follow_changes(&ChangeCursor::start());
    waits.spawn(async move { ("feed", end(feed).await) });
    let of = processes.clone();
    waits.spawn(async move { ("await", of.await_output("p").await.map(drop)) });
    waits.spawn(async move { ("its own await", session.await_output("p").await.map(drop)) });
    let of = processes.clone();
    waits.spawn(async move { ("wakes", of.next_wakes(&scope).await.map(drop)) });
    let of = processes.clone();
    let cursor = of.changes_since(&ChangeCursor::start(), 9).await.unwrap();
    waits.spawn(async move { ("changes", of.next_changes(&cursor.next, 9).await.map(drop)) });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(waits.try_join_next().is_none(), "all of them wait");

    store.0.fail();
    let mut told = 0;
    while let Some(ended) = within(waits.join_next()).await {
        let (what, ended) = ended.unwrap();
        assert!(
            matches!(ended, Err(Error::StoreFailed { .. })),
            "{what}: {ended:?}"
        );
        told += 1;
    }
    assert_eq!(told, 9);
    let refused = processes.cancel("p", effects()).await;
    assert!(
        matches!(refused, Err(Error::StoreFailed { .. })),
        "{refused:?}"
    );
    // It can be shut down, and says what it must.
    let _ = within(supervisor.shutdown(ShutdownOptions::grace(Duration::ZERO))).await;
}
