//! What a session sees: its own starts, lists, pages, filters, and its work live.

mod common;

use common::*;
use procession::*;
use serde_json::{Value, json};

fn scope(session_id: &str) -> SessionScope {
    SessionScope::new(session_id)
}

fn frame() -> SessionScope {
    scope("s").with_frame("f")
}

fn by(request: ProcessStartRequest, scope: &SessionScope) -> ProcessStartRequest {
    ProcessStartRequest {
        originator: ProcessOriginator::session(scope.clone()),
        ..request
    }
}

fn unknown(id: &str) -> Error {
    Error::UnknownProcess {
        process_id: id.into(),
    }
}

#[tokio::test]
async fn a_start_is_the_sessions_own_and_cannot_be_forged() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(frame()).processes();
        let forged = [
            ("originator", noted("p")),
            ("originator", by(noted("p"), &scope("s"))),
            ("originator", by(noted("p"), &scope("other"))),
            (
                "grant.scope",
                by(noted("p"), &frame())
                    .with_grant(Some(ProcessStartGrant::new(scope("other"), "x"))),
            ),
            (
                "wake_target",
                by(noted("p"), &frame()).with_wake_target(Some(scope("s"))),
            ),
        ];
        for (expected, request) in forged {
            let Err(Error::InvalidInput { field, .. }) = session.start(request, inline()).await
            else {
                panic!("{expected} was accepted");
            };
            assert_eq!(field, expected);
            assert_eq!(processes.get("p").await.unwrap(), None);
        }
        let request = || by(noted("p"), &frame()).with_wake_target(Some(frame()));
        let record = session.start(request(), inline()).await.unwrap();
        assert_eq!(
            record.provenance.originator,
            ProcessOriginator::session(frame())
        );
        assert_eq!(processes.grants_of("p").await.unwrap(), [frame()]);
        assert_eq!(session.start(request(), inline()).await.unwrap(), record);
        // Somebody else's id is the one thing that a session can learn of what it does not hold.
        processes.start(noted("taken"), inline()).await.unwrap();
        let taken = session.start(by(noted("taken"), &frame()), inline()).await;
        assert!(matches!(taken, Err(Error::Conflict { .. })), "{taken:?}");
        // Given away, it is not got back by starting it again; nor when it is gone.
        session.transfer(&scope("t"), &["p".into()]).await.unwrap();
        let again = session.start(request(), inline()).await;
        assert_eq!(again, Err(unknown("p")));
        assert_eq!(processes.grants_of("p").await.unwrap(), [scope("t")]);
        complete(&processes, "p").await;
        processes.prune(u64::MAX).await.unwrap();
        let again = session.start(request(), inline()).await;
        assert_eq!(again, Err(unknown("p")));
        close_clean(&supervisor).await;
    }
}

/// A journal replays an outcome without executing anything: it must not outlive the grant.
#[tokio::test]
async fn g5_a_journaled_answer_rests_on_the_grant_too() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let session = supervisor.session(scope("s")).processes();
    let effects = supervisor.journaled_effects();
    let turn = || ScopedEffectController::new(&effects, ExecutionScope::turn("s", "t-1"));
    let request = || by(noted("p"), &scope("s"));
    let go = || ProcessEventAppendRequest::signal("go", json!({}));
    session.start(request(), turn()).await.unwrap();
    session.signal("p", "go", "g", go(), turn()).await.unwrap();
    session.cancel("p", turn()).await.unwrap();
    assert_eq!(session.cancel_all(turn()).await.unwrap().len(), 1);
    processes.revoke(&scope("s"), "p").await.unwrap();
    let refused = [
        session.start(request(), turn()).await.unwrap_err(),
        session
            .signal("p", "go", "g", go(), turn())
            .await
            .unwrap_err(),
        session.cancel("p", turn()).await.unwrap_err(),
    ];
    assert_eq!(refused, [unknown("p"), unknown("p"), unknown("p")]);
    assert_eq!(session.cancel_all(turn()).await.unwrap(), []);
    close_clean(&supervisor).await;
}

/// The newest snapshot that a watch has by now.
async fn newest(watch: &mut SessionWatch) -> ProcessWorkSnapshot {
    let mut newest = next(watch).await.unwrap().unwrap();
    while let std::task::Poll::Ready(item) = polled(watch) {
        newest = item.unwrap().unwrap();
    }
    newest
}

/// Waits until a watch shows this, in any order.
async fn shows(watch: &mut SessionWatch, expected: &[(&str, usize)]) {
    within(async {
        loop {
            let snapshot = newest(watch).await;
            let mut shown: Vec<_> = snapshot
                .items
                .iter()
                .map(|item| (item.process.process_id.as_str(), item.events.len()))
                .collect();
            shown.sort_unstable();
            if shown == expected {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_watched_session_shows_every_change_of_what_it_sees() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let observer = processes.observer().unwrap();
        let mut host = observer.watch_session("s").unwrap();
        let mut root = supervisor
            .session(scope("s"))
            .processes()
            .watch_session()
            .unwrap();
        let mut framed = supervisor
            .session(frame())
            .processes()
            .watch_session()
            .unwrap();
        for watch in [&mut host, &mut root, &mut framed] {
            shows(watch, &[]).await;
            assert!(polled(watch).is_pending());
        }
        // A grant of a frame that nobody had heard of, and one that comes with a start.
        processes.start(noted("of-frame"), inline()).await.unwrap();
        let descriptor = ProcessHandleDescriptor::label("x");
        processes
            .grant(&frame(), "of-frame", descriptor)
            .await
            .unwrap();
        let grant = Some(ProcessStartGrant::new(scope("s"), "x"));
        let request = noted("of-root").with_grant(grant);
        processes.start(request, inline()).await.unwrap();
        shows(&mut host, &[("of-frame", 0), ("of-root", 0)]).await;
        shows(&mut framed, &[("of-frame", 0), ("of-root", 0)]).await;
        shows(&mut root, &[("of-root", 0)]).await;
        append(&processes, "of-root", "note", json!(1)).await;
        append(&processes, "of-frame", "note", json!(1)).await;
        shows(&mut host, &[("of-frame", 1), ("of-root", 1)]).await;
        shows(&mut framed, &[("of-frame", 1), ("of-root", 1)]).await;
        shows(&mut root, &[("of-root", 1)]).await;
        // What wakes the session is the host's to see, and not the session's.
        let request = noted("wakes").with_wake_target(Some(scope("s")));
        processes.start(request, inline()).await.unwrap();
        shows(&mut host, &[("of-frame", 1), ("of-root", 1), ("wakes", 0)]).await;
        processes
            .retarget_wakes("wakes", Some(&scope("elsewhere")))
            .await
            .unwrap();
        shows(&mut host, &[("of-frame", 1), ("of-root", 1)]).await;
        // Of others it hears nothing.
        let mut undisturbed = supervisor
            .session(scope("s"))
            .processes()
            .watch_session()
            .unwrap();
        shows(&mut undisturbed, &[("of-root", 1)]).await;
        assert!(polled(&mut undisturbed).is_pending());
        processes.start(noted("other"), inline()).await.unwrap();
        append(&processes, "other", "note", json!(1)).await;
        append(&processes, "wakes", "ping", json!({ "text": "hi" })).await;
        append(&processes, "of-frame", "note", json!(2)).await;
        assert!(polled(&mut undisturbed).is_pending());
        // Gone in each way there is.
        complete(&processes, "of-root").await;
        shows(&mut root, &[("of-root", 2)]).await;
        processes.prune(u64::MAX).await.unwrap();
        shows(&mut root, &[]).await;
        shows(&mut framed, &[("of-frame", 2)]).await;
        processes.delete_session("s").await.unwrap();
        shows(&mut framed, &[]).await;
        shows(&mut host, &[]).await;
        close(&supervisor).await;
        // A look that was under way may still come.
        let ended = loop {
            match next(&mut host).await {
                Some(Ok(_)) => {}
                ended => break ended,
            }
        };
        assert_eq!(ended, Some(Err(Error::ShuttingDown)));
        assert_eq!(next(&mut host).await, None);
    }
}

#[tokio::test]
async fn g5_no_snapshot_after_a_revocation_shows_what_it_took_away() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let session = supervisor.session(scope("s")).processes();
    for id in ["kept", "lost"] {
        let grant = Some(ProcessStartGrant::new(scope("s"), "x"));
        let request = noted(id).with_grant(grant);
        processes.start(request, inline()).await.unwrap();
    }
    for _ in 0..50 {
        let mut watch = session.watch_session().unwrap();
        // A look is under way, or done and not yet taken.
        let _ = polled(&mut watch);
        processes.revoke(&scope("s"), "lost").await.unwrap();
        let snapshot = next(&mut watch).await.unwrap().unwrap();
        assert_eq!(snapshot.visible_process_ids, ["kept"]);
        assert_eq!(snapshot.items.len(), 1);
        let descriptor = ProcessHandleDescriptor::default();
        processes
            .grant(&scope("s"), "lost", descriptor)
            .await
            .unwrap();
    }
    close_clean(&supervisor).await;
}

/// A clock that the test sets, for creation times.
#[derive(Debug)]
struct At(std::sync::atomic::AtomicU64, SystemClock);

impl Clock for At {
    fn now_epoch_ms(&self) -> u64 {
        self.0.load(std::sync::atomic::Ordering::SeqCst)
    }
    fn monotonic(&self) -> std::time::Duration {
        self.1.monotonic()
    }
}

async fn listed(processes: &Processes, filter: Value) -> Vec<String> {
    let filter: ProcessListFilter = serde_json::from_value(filter).unwrap();
    let whole = processes.list(&filter).await.unwrap();
    // In pages of one it is the same list.
    let mut paged = Vec::new();
    let mut page = PageRequest::first(1);
    loop {
        let found = processes.list_page(&filter, &page).await.unwrap();
        paged.extend(found.items);
        match found.next {
            Some(cursor) => page = PageRequest::after(cursor, 1),
            None => break,
        }
    }
    assert_eq!(paged, whole, "{filter:?}");
    whole
        .into_iter()
        .map(|process| process.process_id)
        .collect()
}

#[tokio::test]
async fn each_field_of_a_filter_lists_its_own_in_the_order_of_creation() {
    for place in Place::both() {
        let clock = std::sync::Arc::new(At(1_000.into(), SystemClock::default()));
        let waits = engine("waits", |cx: ProcessContext, _| async move {
            cx.wait_signal("go").await?;
            Ok(Value::Null)
        });
        let builder = place.builder().engine(waits).clock(clock.clone());
        let supervisor = builder.open().await.unwrap();
        let processes = supervisor.processes();
        let identity = ProcessIdentity {
            kind: Some("build".into()),
            label: Some("nightly".into()),
            definition: Some("d-1".into()),
        };
        // Names that go down while time goes up: order is not the alphabet's.
        let requests = [
            by(noted("z"), &frame()).with_identity(identity),
            by(noted("y"), &scope("s")).with_caused_by(Some("m-1".into())),
            noted("x").with_label("team", "a").with_label("tier", "1"),
            noted("w").with_label("team", "a"),
            rerunnable("v", "waits").with_event_type(ProcessEventType::signal("go")),
            by(noted("u"), &frame()),
        ];
        for request in requests {
            processes.start(request, inline()).await.unwrap();
            clock
                .0
                .fetch_add(1_000, std::sync::atomic::Ordering::SeqCst);
        }
        until(&processes, "v", |p| p.facets.waiting).await;
        complete(&processes, "w").await;
        let cases: [(Value, &[&str]); 21] = [
            (json!({}), &["z", "y", "x", "v", "u"]),
            (json!({ "status": "any" }), &["z", "y", "x", "w", "v", "u"]),
            (json!({ "status": "completed" }), &["w"]),
            (json!({ "status": "terminal" }), &["w"]),
            (json!({ "status": "failed" }), &[]),
            (json!({ "waiting": true }), &["v"]),
            (json!({ "waiting": false }), &["z", "y", "x", "u"]),
            (json!({ "originator_scope_id": "session:s" }), &["y"]),
            (
                json!({ "originator_scope_id": "session:s/frame:f" }),
                &["z", "u"],
            ),
            (json!({ "originator_scope_id": "host" }), &["x", "v"]),
            (json!({ "identity_kind": "build" }), &["z"]),
            (json!({ "identity_kind": "waits" }), &["v"]),
            (json!({ "identity_label": "nightly" }), &["z"]),
            (json!({ "definition": "d-1" }), &["z"]),
            (json!({ "caused_by": "m-1" }), &["y"]),
            (json!({ "parent": "z" }), &[]),
            (
                json!({ "status": "any", "labels": { "team": "a" } }),
                &["x", "w"],
            ),
            (json!({ "labels": { "team": "a", "tier": "1" } }), &["x"]),
            // Half-open.
            (
                json!({ "created_at_start_ms": 2_000, "created_at_end_ms": 5_000 }),
                &["y", "x"],
            ),
            (
                json!({ "status": "any", "created_at_start_ms": 4_000 }),
                &["w", "v", "u"],
            ),
            (
                json!({ "created_at_start_ms": 5_000, "created_at_end_ms": 2_000 }),
                &[],
            ),
        ];
        for (filter, expected) in cases {
            assert_eq!(
                listed(&processes, filter.clone()).await,
                expected,
                "{filter}"
            );
        }
        // A root stands for its frames, and their processes come in one order of creation.
        let all = ProcessListFilter::any();
        let of_session = processes.list_originated_by(&scope("s"), &all).await;
        assert_eq!(ids(&of_session.unwrap()), ["z", "y", "u"]);
        let of_frame = processes.list_originated_by(&frame(), &all).await.unwrap();
        assert_eq!(ids(&of_frame), ["z", "u"]);
        let (since, until) = (Some(2_000), Some(6_000));
        let between = ProcessListFilter {
            created_at_start_ms: since,
            created_at_end_ms: until,
            ..all
        };
        let of_session = processes.list_originated_by(&scope("s"), &between).await;
        assert_eq!(ids(&of_session.unwrap()), ["y"]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn pages_go_on_while_processes_come_and_go() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        for id in ["a", "b", "c", "d", "e", "f"] {
            processes.start(noted(id), inline()).await.unwrap();
        }
        let any = ProcessListFilter::any();
        let first = processes.list_page(&any, &PageRequest::first(2)).await;
        let first = first.unwrap();
        assert_eq!(ids(&first.items), ["a", "b"]);
        // The one that the cursor stands on goes, the next one too, and one comes.
        for id in ["b", "c"] {
            complete(&processes, id).await;
        }
        processes.prune(u64::MAX).await.unwrap();
        processes.start(noted("g"), inline()).await.unwrap();
        let stored = serde_json::to_string(&first.next).unwrap();
        let cursor: Option<PageCursor> = serde_json::from_str(&stored).unwrap();
        let request = PageRequest { limit: 3, cursor };
        let second = processes.list_page(&any, &request).await.unwrap();
        assert_eq!(ids(&second.items), ["d", "e", "f"]);
        let running = ProcessListFilter::default();
        let other = processes.list_page(&running, &request).await;
        assert!(
            matches!(other, Err(Error::InvalidInput { .. })),
            "{other:?}"
        );
        let request = PageRequest {
            limit: 3,
            cursor: second.next,
        };
        let last = processes.list_page(&any, &request).await.unwrap();
        assert_eq!(ids(&last.items), ["g"]);
        assert_eq!(last.next, None);
        // A log in pages.
        for n in 0..5 {
            append(&processes, "a", "note", json!(n)).await;
        }
        let mut after = 0;
        let mut sequences = Vec::new();
        loop {
            let page = processes.events_page("a", after, 2).await.unwrap();
            let Some(last) = page.last() else { break };
            after = last.sequence;
            sequences.push(page.iter().map(|it| it.sequence).collect::<Vec<_>>());
        }
        assert_eq!(sequences, [vec![1, 2], vec![3, 4], vec![5]]);
        let past_the_end = processes.events_page("a", u64::MAX, 2).await;
        assert_eq!(past_the_end.unwrap(), []);
        close_clean(&supervisor).await;
    }
}

/// The rest of a session's boundary: its lists and snapshots are of what it holds, whoever made it.
#[tokio::test]
async fn a_session_lists_what_it_holds_newest_change_first_in_a_snapshot() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let session = supervisor.session(frame()).processes();
    for id in ["a", "b"] {
        let request = by(noted(id), &frame());
        session.start(request, inline()).await.unwrap();
    }
    processes.start(noted("c"), inline()).await.unwrap();
    for (scope, label) in [(scope("s"), "root's"), (frame(), "frame's")] {
        let descriptor = ProcessHandleDescriptor::label(label);
        processes.grant(&scope, "c", descriptor).await.unwrap();
    }
    append(&processes, "a", "note", json!(1)).await;
    complete(&processes, "b").await;
    assert_eq!(ids(&session.list().await.unwrap()), ["a", "c"]);
    assert_eq!(ids(&session.list_all().await.unwrap()), ["a", "b", "c"]);
    let snapshot = session.snapshot().await.unwrap();
    assert_eq!(snapshot.session_id, "s");
    assert_eq!(snapshot.visible_process_ids, ["b", "a", "c"]);
    assert_eq!(snapshot.items[2].label.as_deref(), Some("frame's"));
    let host = processes.session_snapshot("s").await.unwrap();
    assert_eq!(host.items[2].label.as_deref(), Some("root's"));
    // Its own list, not that of who made it.
    processes.revoke(&frame(), "a").await.unwrap();
    assert_eq!(ids(&session.list_all().await.unwrap()), ["b", "c"]);
    let made = processes
        .list_originated_by(&frame(), &ProcessListFilter::any())
        .await;
    assert_eq!(ids(&made.unwrap()), ["a", "b"]);
    close_clean(&supervisor).await;
}
