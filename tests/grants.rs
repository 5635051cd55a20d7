//! Grants: what a session may see and do, and what is left when it may no longer.

mod common;

use std::task::Poll;

use common::*;
use procession::*;
use serde_json::json;

fn scope(session_id: &str) -> SessionScope {
    SessionScope::new(session_id)
}

fn label(text: &str) -> ProcessHandleDescriptor {
    ProcessHandleDescriptor::label(text)
}

fn any() -> ProcessListFilter {
    ProcessListFilter::any()
}

fn owned(ids: &[&str]) -> Vec<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

async fn open(place: &Place) -> Supervisor {
    place.builder().open().await.unwrap()
}

/// Starts work and grants it.
async fn started(processes: &Processes, id: &str, scopes: &[&SessionScope]) {
    processes.start(noted(id), inline()).await.unwrap();
    for scope in scopes {
        let granted = processes.grant(scope, id, label("granted")).await;
        granted.unwrap();
    }
}

/// Everything a session can ask about one process: what it is refused with.
async fn refusals(session: &SessionProcessAdmin, id: &str) -> Vec<Error> {
    let go = ProcessEventAppendRequest::signal("go", json!({}));
    vec![
        session.events(id, 0).await.unwrap_err(),
        session.subscribe(id, 0).await.unwrap_err(),
        within(session.await_output(id)).await.unwrap_err(),
        session
            .signal(id, "go", "g-1", go, inline())
            .await
            .unwrap_err(),
        session.cancel(id, inline()).await.unwrap_err(),
        session
            .transfer(&scope("elsewhere"), &owned(&[id]))
            .await
            .unwrap_err(),
        session.request_abandon(id, "me", None).await.unwrap_err(),
    ]
}

async fn unknown_to(session: &SessionProcessAdmin, id: &str) {
    assert_eq!(session.get(id).await.unwrap(), None, "{id}");
    for refused in refusals(session, id).await {
        let expected = Error::UnknownProcess {
            process_id: id.into(),
        };
        assert_eq!(refused, expected);
        assert_eq!(refused.to_string(), expected.to_string());
    }
}

#[tokio::test]
async fn g1_without_a_grant_a_session_reads_and_does_nothing() {
    for place in Place::both() {
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        let (holder, frame) = (scope("s-1"), scope("s-1").with_frame("f-1"));
        started(&processes, "pruned", &[&holder]).await;
        complete(&processes, "pruned").await;
        processes.prune(u64::MAX).await.unwrap();
        started(&processes, "others", &[&frame, &scope("s-2")]).await;
        append(&processes, "others", "note", json!({})).await;
        processes
            .retarget_wakes("others", Some(&holder))
            .await
            .unwrap();
        let before = (
            processes.record("others").await.unwrap(),
            processes.events("others", 0).await.unwrap(),
        );
        // A root sees nothing of a frame's, nor one session anything of another's.
        let session = supervisor.session(holder.clone()).processes();
        for id in ["absent", "pruned", "others"] {
            unknown_to(&session, id).await;
        }
        assert_eq!(session.list_all().await.unwrap(), []);
        // It wakes the session, which the host may know and the session may not.
        assert_eq!(session.snapshot().await.unwrap().items, []);
        let host = processes.session_snapshot("s-1").await.unwrap();
        assert_eq!(host.visible_process_ids, ["others"]);
        assert_eq!(session.cancel_all(inline()).await.unwrap(), []);
        let after = (
            processes.record("others").await.unwrap(),
            processes.events("others", 0).await.unwrap(),
        );
        assert_eq!(after, before, "nothing of this wrote anything");
        // A handle on the frame covers it.
        let session = supervisor.session(frame).processes();
        assert!(session.get("others").await.unwrap().is_some());
        assert_eq!(session.events("others", 0).await.unwrap().len(), 1);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn g2_a_transfer_moves_all_or_nothing() {
    for place in Place::both() {
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        let (from, to) = (scope("from"), scope("to"));
        for id in ["a", "b", "c"] {
            started(&processes, id, &[&from]).await;
        }
        started(&processes, "d", &[]).await;
        // What the source does not hold is named, in the order it was asked for.
        let asked = owned(&["c", "gone", "a", "d", "gone"]);
        let refused = processes.transfer(&from, &to, &asked).await.unwrap_err();
        let expected = Error::NotGranted {
            scope: "session:from".into(),
            ids: owned(&["gone", "d"]),
        };
        assert_eq!(refused, expected);
        assert_eq!(
            ids(&processes.list_granted_to(&from, &any()).await.unwrap()),
            ["a", "b", "c"]
        );
        assert_eq!(processes.list_granted_to(&to, &any()).await.unwrap(), []);
        // Nothing, and to oneself.
        processes.transfer(&from, &to, &[]).await.unwrap();
        processes
            .transfer(&from, &from, &owned(&["a"]))
            .await
            .unwrap();
        let to_itself = processes.transfer(&from, &from, &owned(&["d"])).await;
        assert!(matches!(to_itself, Err(Error::NotGranted { .. })));
        // Twice the same, and a receiver that has a descriptor of its own.
        processes.grant(&to, "b", label("mine")).await.unwrap();
        processes
            .transfer(&from, &to, &owned(&["b", "a", "b"]))
            .await
            .unwrap();
        assert_eq!(
            ids(&processes.list_granted_to(&from, &any()).await.unwrap()),
            ["c"]
        );
        let snapshot = processes.session_snapshot("to").await.unwrap();
        let mut labels: Vec<_> = snapshot
            .items
            .iter()
            .map(|item| (item.process.process_id.as_str(), item.label.as_deref()))
            .collect();
        labels.sort_unstable();
        assert_eq!(labels, [("a", Some("granted")), ("b", Some("mine"))]);
        let many: Vec<_> = (0..1_001).map(|n| format!("p-{n}")).collect();
        let refused = processes.transfer(&from, &to, &many).await.unwrap_err();
        assert!(matches!(refused, Error::InvalidInput { .. }), "{refused}");
        close_clean(&supervisor).await;
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        assert_eq!(processes.grants_of("b").await.unwrap(), [to]);
        assert_eq!(processes.grants_of("c").await.unwrap(), [from]);
        close(&supervisor).await;
    }
}

/// A session's own transfer: the same, with a frame, and with another word for what is not held.
#[tokio::test]
async fn g2_a_session_gives_all_that_it_holds_of_a_process() {
    let supervisor = open(&Place::memory()).await;
    let processes = supervisor.processes();
    let (root, frame, to) = (
        scope("s"),
        scope("s").with_frame("f"),
        scope("to").with_frame("g"),
    );
    started(&processes, "both", &[&root, &frame]).await;
    started(&processes, "root", &[&root]).await;
    started(&processes, "other", &[&scope("x")]).await;
    let session = supervisor.session(frame.clone()).processes();
    let refused = session
        .transfer(&to, &owned(&["both", "other", "gone"]))
        .await
        .unwrap_err();
    assert_eq!(
        refused,
        Error::UnknownProcess {
            process_id: "other".into()
        }
    );
    session
        .transfer(&to, &owned(&["both", "root"]))
        .await
        .unwrap();
    unknown_to(&session, "both").await;
    unknown_to(&session, "root").await;
    assert_eq!(
        processes.grants_of("both").await.unwrap(),
        std::slice::from_ref(&to)
    );
    // Back to the root: a frame that takes what its root has leaves the root without.
    processes
        .transfer(&to, &root, &owned(&["both"]))
        .await
        .unwrap();
    session.transfer(&frame, &owned(&["both"])).await.unwrap();
    assert_eq!(processes.grants_of("both").await.unwrap(), [frame]);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn g3_both_directions_agree_whatever_happened() {
    for place in Place::both() {
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        let (a, b) = (scope("a"), scope("b").with_frame("f"));
        for id in ["p", "q", "r"] {
            started(&processes, id, &[&a, &b]).await;
        }
        processes.revoke(&a, "p").await.unwrap();
        processes.revoke(&a, "p").await.unwrap();
        processes.transfer(&b, &a, &owned(&["q"])).await.unwrap();
        complete(&processes, "r").await;
        assert_eq!(processes.prune(u64::MAX).await.unwrap().grants, 2);
        // By hand: which scope holds what.
        let expected = [("p", vec![b.clone()]), ("q", vec![a.clone()])];
        for (id, scopes) in &expected {
            assert_eq!(processes.grants_of(id).await.unwrap(), *scopes, "{id}");
            for scope in [&a, &b] {
                let has = processes.has_grant(scope, id).await.unwrap();
                assert_eq!(has, scopes.contains(scope), "{id} {scope}");
            }
        }
        let of_a = processes.list_granted_to(&a, &any()).await.unwrap();
        assert_eq!(ids(&of_a), ["q"]);
        let of_b = processes.list_granted_to(&b, &any()).await.unwrap();
        assert_eq!(ids(&of_b), ["p"]);
        let root = processes.list_granted_to(&scope("b"), &any()).await;
        assert_eq!(root.unwrap(), [], "a frame is not its root");
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn g4_deleting_a_session_edits_no_log() {
    for place in Place::both() {
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        let (root, frame, other) = (
            scope("s"),
            scope("s").with_frame("f"),
            // Its id begins with the other's.
            scope("s2"),
        );
        started(&processes, "orphan", &[&root, &frame]).await;
        started(&processes, "kept", &[&frame, &other]).await;
        started(&processes, "ended", &[&root]).await;
        for id in ["orphan", "ended"] {
            processes.retarget_wakes(id, Some(&frame)).await.unwrap();
            append(&processes, id, "ping", json!({ "text": "hello" })).await;
        }
        processes
            .retarget_wakes("kept", Some(&other))
            .await
            .unwrap();
        append(&processes, "kept", "ping", json!({ "text": "hello" })).await;
        complete(&processes, "ended").await;
        let logs = async |processes: &Processes| {
            let mut logs = Vec::new();
            for id in ["orphan", "kept", "ended"] {
                let record = processes.record(id).await.unwrap();
                logs.push((record, processes.events(id, 0).await.unwrap()));
            }
            logs
        };
        let before = logs(&processes).await;
        let mut report = processes.delete_session("s").await.unwrap();
        report
            .revoked
            .sort_by_key(|it| (it.process_id.clone(), it.scope.id()));
        let revoked = |scope: &SessionScope, id: &str| RevokedGrant {
            scope: scope.clone(),
            process_id: id.into(),
        };
        assert_eq!(
            report.revoked,
            [
                revoked(&root, "ended"),
                revoked(&frame, "kept"),
                revoked(&root, "orphan"),
                revoked(&frame, "orphan"),
            ]
        );
        assert_eq!(report.orphaned, ["orphan"]);
        assert_eq!(report.preserved, ["kept"]);
        assert_eq!(report.wakes_discarded, 2);
        assert_eq!(logs(&processes).await, before);
        for id in ["orphan", "ended"] {
            assert_eq!(processes.grants_of(id).await.unwrap(), []);
        }
        let running = processes.get("orphan").await.unwrap().unwrap();
        assert_eq!(running.lifecycle, Lifecycle::Running);
        assert_eq!(running.wake_target, None);
        assert_eq!(processes.wakes(&frame).await.unwrap(), []);
        assert_eq!(processes.wakes(&other).await.unwrap().len(), 1);
        let again = processes.delete_session("s").await.unwrap();
        let nothing = SessionDeleteReport {
            session_id: "s".into(),
            ..SessionDeleteReport::default()
        };
        assert_eq!(again, nothing);
        close_clean(&supervisor).await;
    }
}

/// What takes a session's grant away.
#[derive(Debug, Clone, Copy)]
enum Loss {
    Revoke,
    /// And gives it back, before anybody looks.
    RevokeAndGrant,
    Transfer,
    DeleteSession,
}

async fn lose(processes: &Processes, of: &SessionScope, id: &str, loss: Loss) {
    match loss {
        Loss::Revoke => processes.revoke(of, id).await.unwrap(),
        Loss::RevokeAndGrant => {
            processes.revoke(of, id).await.unwrap();
            processes.grant(of, id, label("again")).await.unwrap();
        }
        Loss::Transfer => {
            let to = scope("elsewhere");
            processes.transfer(of, &to, &owned(&[id])).await.unwrap();
        }
        Loss::DeleteSession => {
            processes.delete_session(&of.session_id).await.unwrap();
        }
    }
}

const LOSSES: [Loss; 4] = [
    Loss::Revoke,
    Loss::RevokeAndGrant,
    Loss::Transfer,
    Loss::DeleteSession,
];

#[tokio::test]
async fn g5_after_a_revocation_an_open_subscription_yields_its_end_and_nothing_else() {
    for place in Place::both() {
        let supervisor = open(&place).await;
        let processes = supervisor.processes();
        for (number, loss) in LOSSES.into_iter().enumerate() {
            let (id, of) = (format!("p-{number}"), scope("s").with_frame("f"));
            started(&processes, &id, &[&of]).await;
            let session = supervisor.session(of.clone()).processes();
            for n in 0..10 {
                append(&processes, &id, "note", json!(n)).await;
            }
            let mut buffered = session.subscribe(&id, 0).await.unwrap();
            let first = next(&mut buffered).await.unwrap().unwrap();
            assert_eq!(first.sequence, 1, "the other nine are buffered");
            let mut unread = session.subscribe(&id, 0).await.unwrap();
            let mut waiting = session.subscribe(&id, 10).await.unwrap();
            assert!(polled(&mut waiting).is_pending());
            lose(&processes, &of, &id, loss).await;
            append(&processes, &id, "note", json!("secret")).await;
            for subscription in [&mut buffered, &mut unread, &mut waiting] {
                // No waiting: the very first look says so.
                let Poll::Ready(Some(Err(error))) = polled(subscription) else {
                    panic!("{loss:?}: not ended");
                };
                let expected = Error::NotGranted {
                    scope: of.id(),
                    ids: vec![id.clone()],
                };
                assert_eq!(error, expected, "{loss:?}");
                assert!(matches!(polled(subscription), Poll::Ready(None)));
            }
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn g5_a_revocation_wakes_whoever_waits() {
    for loss in LOSSES {
        let supervisor = open(&Place::memory()).await;
        let processes = supervisor.processes();
        let of = scope("s");
        started(&processes, "p", &[&of]).await;
        let session = supervisor.session(of.clone()).processes();
        let mut subscription = session.subscribe("p", 0).await.unwrap();
        let awaiting = tokio::spawn({
            let session = session.clone();
            async move { session.await_output("p").await }
        });
        let reading = tokio::spawn(async move { next(&mut subscription).await });
        // Both wait: let them come that far.
        tokio::task::yield_now().await;
        lose(&processes, &of, "p", loss).await;
        let output = within(awaiting).await.unwrap();
        if !matches!(loss, Loss::RevokeAndGrant) || output.is_err() {
            let unknown = Error::UnknownProcess {
                process_id: "p".into(),
            };
            assert_eq!(output, Err(unknown), "{loss:?}");
        }
        let ended = within(reading).await.unwrap();
        assert!(
            matches!(ended, Some(Err(Error::NotGranted { .. }))),
            "{loss:?}: {ended:?}"
        );
        close_clean(&supervisor).await;
    }
}

/// Pruned while it is read: to a session that is no other end than a revocation.
#[tokio::test]
async fn g1_a_pruned_process_ends_a_subscription_like_a_revoked_one() {
    let supervisor = open(&Place::memory()).await;
    let processes = supervisor.processes();
    started(&processes, "p", &[&scope("s")]).await;
    for n in 0..300 {
        append(&processes, "p", "note", json!(n)).await;
    }
    complete(&processes, "p").await;
    let session = supervisor.session(scope("s")).processes();
    let mut of_session = session.subscribe("p", 0).await.unwrap();
    let mut of_host = processes.subscribe("p", 0).await.unwrap();
    processes.prune(u64::MAX).await.unwrap();
    assert!(matches!(
        next(&mut of_session).await,
        Some(Err(Error::NotGranted { .. }))
    ));
    assert!(matches!(
        next(&mut of_host).await,
        Some(Err(Error::NoLongerRetained { .. }))
    ));
    unknown_to(&session, "p").await;
    close_clean(&supervisor).await;
}

/// What it has buffered is not given out either, nor what comes of a deletion of the session that finds
/// nothing more to revoke. A host is given what it has.
#[tokio::test]
async fn g5_after_a_prune_an_open_subscription_of_a_session_yields_its_end_and_nothing_else() {
    for place in Place::both() {
        for deleted in [false, true] {
            let supervisor = open(&place).await;
            let processes = supervisor.processes();
            let (id, of) = (format!("p-{deleted}"), scope("s").with_frame("f"));
            // Held by both of the scopes that it reads by.
            started(&processes, &id, &[&of, &scope("s")]).await;
            for n in 0..10 {
                append(&processes, &id, "note", json!(n)).await;
            }
            complete(&processes, &id).await;
            let session = supervisor.session(of.clone()).processes();
            let mut of_host = processes.subscribe(&id, 0).await.unwrap();
            let mut buffered = session.subscribe(&id, 0).await.unwrap();
            let mut unread = session.subscribe(&id, 0).await.unwrap();
            for subscription in [&mut of_host, &mut buffered] {
                assert_eq!(next(subscription).await.unwrap().unwrap().sequence, 1);
            }
            processes.prune(u64::MAX).await.unwrap();
            if deleted {
                let report = processes.delete_session("s").await.unwrap();
                assert!(report.revoked.is_empty());
            }
            for subscription in [&mut buffered, &mut unread] {
                // No waiting: the very first look says so.
                let Poll::Ready(Some(Err(error))) = polled(subscription) else {
                    panic!("not ended");
                };
                let expected = Error::NotGranted {
                    scope: of.id(),
                    ids: vec![id.clone()],
                };
                assert_eq!(error, expected);
                assert!(matches!(polled(subscription), Poll::Ready(None)));
            }
            let rest: Vec<u64> = drain(&mut of_host).await;
            assert_eq!(rest, (2..=11).collect::<Vec<_>>());
            close_clean(&supervisor).await;
        }
    }
}

/// Many at once: in every interleaving a process is held by exactly one of two sides.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn g2_transfers_that_race_leave_exactly_one_holder() {
    let supervisor = open(&Place::memory()).await;
    let processes = supervisor.processes();
    let sides = [scope("left"), scope("right")];
    let all = owned(&["a", "b", "c", "d"]);
    for id in &all {
        started(&processes, id, &[&sides[0]]).await;
    }
    let mut racing = tokio::task::JoinSet::new();
    for number in 0..200_usize {
        let (processes, sides) = (processes.clone(), sides.clone());
        let moved = all[number % 3..].to_vec();
        racing.spawn(async move {
            let (from, to) = (&sides[number % 2], &sides[(number + 1) % 2]);
            match processes.transfer(from, to, &moved).await {
                Ok(()) => {}
                // Some of it was on the other side: all of those are named, and no others.
                Err(Error::NotGranted { ids, .. }) => {
                    assert!(!ids.is_empty() && ids.iter().all(|id| moved.contains(id)));
                }
                Err(other) => panic!("{other:?}"),
            }
        });
        racing.spawn({
            let processes = supervisor.processes();
            async move {
                assert_eq!(processes.grants_of("d").await.unwrap().len(), 1);
            }
        });
    }
    while let Some(raced) = within(racing.join_next()).await {
        raced.unwrap();
    }
    for id in &all {
        assert_eq!(processes.grants_of(id).await.unwrap().len(), 1, "{id}");
    }
    close_clean(&supervisor).await;
}
