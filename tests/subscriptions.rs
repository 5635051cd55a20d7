//! Live subscriptions to one process's log.

mod common;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use common::*;
use futures_core::Stream;
use procession::*;
use serde_json::json;

async fn notes(processes: &Processes, id: &str, count: u64) {
    for n in 0..count {
        append(processes, id, "note", json!({ "n": n })).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e6_a_subscription_is_contiguous_from_any_cursor_while_writers_go_on() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(noted("p"), inline()).await.unwrap();
        notes(&processes, "p", 50).await;
        let mut reading = tokio::task::JoinSet::new();
        for after in 0..40 {
            let mut subscription = processes.subscribe("p", after).await.unwrap();
            reading.spawn(async move { (after, drain(&mut subscription).await) });
        }
        let mut writing = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let processes = processes.clone();
            writing.spawn(async move { notes(&processes, "p", 50 + writer).await });
            // Some come in the middle of it: the seam between the log and what is live.
            let mut subscription = supervisor.processes().subscribe("p", 30).await.unwrap();
            reading.spawn(async move { (30, drain(&mut subscription).await) });
        }
        while let Some(written) = within(writing.join_next()).await {
            written.unwrap();
        }
        complete(&processes, "p").await;
        // 50 before, eight times 50 and 0 + 1 + .. + 7 beside, and the end.
        let last = 50 + 400 + 28 + 1;
        while let Some(read) = within(reading.join_next()).await {
            let (after, sequences) = read.unwrap();
            assert_eq!(sequences, (after + 1..=last).collect::<Vec<u64>>());
        }
        // Late, past the end, and where nothing can ever be.
        for after in [0, last - 1, last, last + 7, u64::MAX] {
            let mut late = processes.subscribe("p", after).await.unwrap();
            let expected: Vec<u64> = (after.saturating_add(1)..=last).collect();
            assert_eq!(drain(&mut late).await, expected, "after {after}");
        }
        close_clean(&supervisor).await;
    }
}

/// A long log is read in pages, off the thread that polls, and others get their turn in between.
#[tokio::test]
async fn a_long_replay_leaves_time_for_other_work() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        processes.start(noted("p"), inline()).await.unwrap();
        notes(&processes, "p", 2_000).await;
        complete(&processes, "p").await;
        let turns = Arc::new(AtomicUsize::new(0));
        let beside = tokio::spawn({
            let turns = Arc::clone(&turns);
            async move {
                loop {
                    turns.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            }
        });
        let mut replay = processes.subscribe("p", 0).await.unwrap();
        let mut sequences = Vec::new();
        // Polled as a plain loop does, with nothing in it that yields by itself.
        while let Some(event) = std::future::poll_fn(|cx| Pin::new(&mut replay).poll_next(cx)).await
        {
            sequences.push(event.unwrap().sequence);
        }
        assert_eq!(sequences, (1..=2_001).collect::<Vec<u64>>());
        // Thirty pages and more, each of them read while others went on.
        let turns = turns.load(Ordering::Relaxed);
        assert!(turns >= 30, "{turns} turns");
        beside.abort();
        close_clean(&supervisor).await;
    }
}

/// What it cannot go on with it says, and where to resume is known.
#[tokio::test]
async fn e6_a_subscription_that_ends_early_can_be_resumed() {
    let place = Place::disk();
    let supervisor = place.builder().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    notes(&processes, "p", 3).await;
    let mut subscription = processes.subscribe("p", 0).await.unwrap();
    for sequence in 1..=3 {
        let event = next(&mut subscription).await.unwrap().unwrap();
        assert_eq!(event.sequence, sequence);
    }
    assert!(polled(&mut subscription).is_pending());
    close(&supervisor).await;
    assert_eq!(
        next(&mut subscription).await,
        Some(Err(Error::ShuttingDown))
    );
    assert_eq!(next(&mut subscription).await, None);
    let supervisor = place.builder().open().await.unwrap();
    let processes = supervisor.processes();
    let mut resumed = processes.subscribe("p", 3).await.unwrap();
    complete(&processes, "p").await;
    assert_eq!(drain(&mut resumed).await, [4]);
    close_clean(&supervisor).await;
}

/// Bound to the incarnation it began with: another process under the same id is another one.
#[tokio::test]
async fn a_subscription_never_goes_over_to_another_incarnation() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    let mut subscription = processes.subscribe("p", 0).await.unwrap();
    assert!(polled(&mut subscription).is_pending());
    complete(&processes, "p").await;
    processes.prune(u64::MAX).await.unwrap();
    let other = noted("p").with_label("another", "content");
    processes.start(other, inline()).await.unwrap();
    notes(&processes, "p", 2).await;
    // What was on its way to it before it was pruned may come; nothing of the other one may.
    let mut seen = Vec::new();
    let ended = loop {
        match next(&mut subscription).await {
            Some(Ok(event)) => seen.push(event.event_type),
            ended => break ended,
        }
    };
    assert!(!seen.contains(&"note".to_owned()), "{seen:?}");
    assert!(
        matches!(ended, None | Some(Err(Error::NoLongerRetained { .. }))),
        "{ended:?}"
    );
    close_clean(&supervisor).await;
}

/// Nobody who reads nothing holds a writer up: all of it happens on one thread, where whoever waited
/// for a reader would wait for good.
#[tokio::test]
async fn e7_readers_that_never_read_delay_no_commit() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let scope = SessionScope::new("s");
        let request = noted("p").with_grant(Some(ProcessStartGrant::new(scope.clone(), "p")));
        processes.start(request, inline()).await.unwrap();
        let session = supervisor.session(scope).processes();
        let mut stalled = Vec::new();
        let mut watching = Vec::new();
        let mut following = Vec::new();
        for _ in 0..20 {
            stalled.push(processes.subscribe("p", 0).await.unwrap());
            stalled.push(session.subscribe("p", 0).await.unwrap());
            watching.push(session.watch_session().unwrap());
            following.push(processes.follow_changes(&ChangeCursor::start()));
        }
        // Half of them have begun to wait, half have never been looked at.
        for subscription in stalled.iter_mut().take(20) {
            assert!(polled(subscription).is_pending());
        }
        for watch in watching.iter_mut().take(10) {
            assert!(next(watch).await.unwrap().is_ok());
            assert!(polled(watch).is_pending());
        }
        let count = 600;
        notes(&processes, "p", count).await;
        // Everything is there for them when they come, and a watcher is told once.
        for watch in &mut watching {
            let snapshot = next(watch).await.unwrap().unwrap();
            let events = &snapshot.items[0].events;
            assert_eq!(events.last().map(|it| it.sequence), Some(count));
            assert_eq!(events.len(), 32);
            let again = polled(watch);
            assert!(
                again.is_pending(),
                "one notice at the most: {again:?} {snapshot:?}"
            );
        }
        for follow in &mut following {
            let page = next(follow).await.unwrap().unwrap();
            assert_eq!(page.changes.len(), 1);
        }
        complete(&processes, "p").await;
        for subscription in &mut stalled {
            let buffered = |of: &Subscription| -> usize {
                let shown = format!("{of:?}");
                let digits: String = shown.chars().filter(char::is_ascii_digit).collect();
                digits.parse().unwrap()
            };
            // What a reader holds is bounded while it reads nothing, and while it reads.
            assert_eq!(buffered(subscription), 0);
            for sequence in 1..=100 {
                let event = next(subscription).await.unwrap().unwrap();
                assert_eq!(event.sequence, sequence);
                assert!(buffered(subscription) < 64, "{subscription:?}");
            }
        }
        for mut subscription in stalled {
            assert_eq!(
                drain(&mut subscription).await,
                (101..=count + 1).collect::<Vec<_>>()
            );
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn awaits_of_several_answer_in_the_order_of_their_ids() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let all: Vec<String> = ["b", "a", "b"].map(str::to_owned).into();
    for id in ["a", "b", "never"] {
        processes.start(external(id), inline()).await.unwrap();
    }
    let outputs = tokio::spawn({
        let (processes, all) = (processes.clone(), all.clone());
        async move { processes.await_all(&all, None).await }
    });
    for (id, value) in [("a", 1), ("b", 2)] {
        let authority = CompletionAuthority::Host { by: "test".into() };
        let output = ProcessAwaitOutput::success(value);
        let ended = processes.complete_external(id, output, authority).await;
        ended.unwrap();
    }
    let outputs = within(outputs).await.unwrap().unwrap();
    let expected = [2, 1, 2].map(ProcessAwaitOutput::success);
    assert_eq!(outputs, expected);
    let any = ["never".to_owned(), "b".to_owned()];
    let (id, output) = within(processes.await_any(&any, None)).await.unwrap();
    assert_eq!((id.as_str(), output), ("b", ProcessAwaitOutput::success(2)));
    // A limit changes nothing about what is waited for.
    let moment = Some(Duration::from_millis(1));
    let only = ["never".to_owned()];
    let timed_out = [
        processes.await_any(&only, moment).await.unwrap_err(),
        processes.await_all(&only, moment).await.unwrap_err(),
        processes
            .await_output_timeout("never", Duration::ZERO)
            .await
            .unwrap_err(),
    ];
    for error in timed_out {
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
    let absent = ["absent".to_owned()];
    for error in [
        processes.await_any(&absent, None).await.unwrap_err(),
        processes.await_all(&absent, None).await.unwrap_err(),
    ] {
        assert!(matches!(error, Error::UnknownProcess { .. }), "{error}");
    }
    assert!(processes.await_all(&[], None).await.is_err());
    assert_eq!(
        processes.get("never").await.unwrap().unwrap().lifecycle,
        Lifecycle::Running
    );
    close_clean(&supervisor).await;
}

/// What is shown is what was said, whether it comes from the tail or from the log.
#[tokio::test]
async fn a_subscriber_is_shown_what_the_log_holds() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    let mut live = processes.subscribe("p", 0).await.unwrap();
    assert!(polled(&mut live).is_pending());
    let mut said = BTreeMap::new();
    for n in 0..5 {
        let payload = json!({ "n": n, "text": "x".repeat(n) });
        let sequence = append(&processes, "p", "note", payload.clone()).await;
        said.insert(sequence, payload);
    }
    let mut replayed = processes.subscribe("p", 0).await.unwrap();
    for (sequence, payload) in said {
        for subscription in [&mut live, &mut replayed] {
            let event = next(subscription).await.unwrap().unwrap();
            assert_eq!(event.sequence, sequence);
            assert_eq!(event.payload, payload);
            assert_eq!(event.event_type, "note");
        }
    }
    assert!(matches!(polled(&mut live), Poll::Pending));
    close_clean(&supervisor).await;
}

/// What may happen between the terminal event and the next poll.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Then {
    Prune,
    Revoke,
    Delete,
    Close,
}

#[tokio::test]
async fn e6_what_has_yielded_the_terminal_event_ends_without_an_error_whatever_follows() {
    let scope = SessionScope::new("s");
    for then in [Then::Prune, Then::Revoke, Then::Delete, Then::Close] {
        for place in Place::both() {
            let supervisor = place.builder().open().await.unwrap();
            let processes = supervisor.processes();
            let session = supervisor.session(scope.clone()).processes();
            let grant = ProcessStartGrant::new(scope.clone(), "p");
            let request = noted("p").with_grant(Some(grant));
            processes.start(request, inline()).await.unwrap();
            notes(&processes, "p", 2).await;
            // Two that are told of the end, and two that read it.
            let mut open = Vec::new();
            for from_log in [false, true] {
                if from_log {
                    complete(&processes, "p").await;
                }
                let mut host = processes.subscribe("p", 2).await.unwrap();
                let mut own = session.subscribe("p", 2).await.unwrap();
                if !from_log {
                    assert!(polled(&mut host).is_pending() && polled(&mut own).is_pending());
                }
                open.extend([(host, false), (own, true)]);
            }
            for (subscription, _) in &mut open {
                assert_eq!(next(subscription).await.unwrap().unwrap().sequence, 3);
            }
            // These have it at hand and have not shown it.
            let mut shown_one = processes.subscribe("p", 1).await.unwrap();
            let mut own_shown_one = session.subscribe("p", 1).await.unwrap();
            for subscription in [&mut shown_one, &mut own_shown_one] {
                assert_eq!(next(subscription).await.unwrap().unwrap().sequence, 2);
            }
            match then {
                Then::Prune => drop(processes.prune(u64::MAX).await.unwrap()),
                Then::Revoke => processes.revoke(&scope, "p").await.unwrap(),
                Then::Delete => drop(processes.delete_session("s").await.unwrap()),
                Then::Close => drop(close(&supervisor).await),
            }
            for (subscription, own) in &mut open {
                let end = next(subscription).await;
                assert!(end.is_none(), "{then:?}, own: {own}: {end:?}");
            }
            assert_eq!(next(&mut shown_one).await.unwrap().unwrap().sequence, 3);
            assert!(next(&mut shown_one).await.is_none());
            let rest = next(&mut own_shown_one).await;
            if then != Then::Close {
                // To a session what was pruned is not granted any more.
                let refused = matches!(rest, Some(Err(Error::NotGranted { .. })));
                assert!(refused, "{then:?}: {rest:?}");
            } else {
                assert_eq!(rest.unwrap().unwrap().sequence, 3, "{then:?}");
            }
            assert!(next(&mut own_shown_one).await.is_none());
            if then != Then::Close {
                close_clean(&supervisor).await;
            }
        }
    }
}

/// What is taken at a time is bounded in bytes, and one event however large it is: from the log, and
/// from what is kept for those who wait for news.
#[tokio::test]
async fn e6_a_subscriber_holds_few_large_events_at_a_time() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        for parked in [false, true] {
            let id = format!("parked-{parked}");
            processes.start(noted(&id), inline()).await.unwrap();
            let mut waiting = processes.subscribe(&id, 0).await.unwrap();
            assert!(polled(&mut waiting).is_pending());
            for bytes in [100_000, 100_000, 100_000, 100_000, 600_000, 1] {
                append(&processes, &id, "note", json!("x".repeat(bytes))).await;
            }
            let mut subscription = match parked {
                true => waiting,
                false => {
                    // With the last one who waits goes what is kept for them.
                    drop(waiting);
                    processes.subscribe(&id, 0).await.unwrap()
                }
            };
            for sequence in 1..=6 {
                let event = next(&mut subscription).await.unwrap().unwrap();
                assert_eq!(event.sequence, sequence);
                let shown = format!("{subscription:?}");
                let buffered = ["buffered: 0", "buffered: 1", "buffered: 2"];
                assert!(
                    buffered.iter().any(|few| shown.contains(few)),
                    "{id}: {shown}"
                );
            }
        }
        close_clean(&supervisor).await;
    }
}
