//! Sessions: grants, the boundary they draw, and what ends with them.

mod common;

use std::pin::pin;
use std::task::Poll;

use common::*;
use futures_core::Stream;
use procession::*;
use tokio::task::JoinSet;

fn scope() -> SessionScope {
    SessionScope::new("s")
}

fn other() -> SessionScope {
    SessionScope::new("other")
}

fn request(id: &str) -> ProcessStartRequest {
    ProcessStartRequest::external(id, ProcessOriginator::session(scope()), 1)
        .with_event_type(ProcessEventType::new("note"))
        .with_event_type(ProcessEventType::signal("go"))
}

fn note(n: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("note", n)
}

fn go() -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::signal("go", 1)
}

fn ids(processes: &[ObservedProcess]) -> Vec<&str> {
    processes.iter().map(|p| p.process_id.as_str()).collect()
}

fn any() -> ProcessListFilter {
    ProcessListFilter::any()
}

fn label(text: &str) -> ProcessHandleDescriptor {
    ProcessHandleDescriptor::label(text)
}

/// Every call of a session about one process, as the text of its refusal.
async fn refusals(session: &SessionProcessAdmin, id: &str) -> Vec<String> {
    let one = [id.to_owned()];
    assert_eq!(session.get(id).await.unwrap(), None);
    [
        session.events(id, 0).await.map(drop),
        session.subscribe(id, 0).await.map(drop),
        session.await_output(id).await.map(drop),
        session
            .signal(id, "go", "1", go(), inline())
            .await
            .map(drop),
        session.cancel(id, inline()).await.map(drop),
        session.transfer(&other(), &one).await,
        session.request_abandon(id, "me", None).await.map(drop),
    ]
    .into_iter()
    .map(|refused| {
        let error = refused.unwrap_err();
        assert!(matches!(error, Error::UnknownProcess { .. }), "{error:?}");
        error.to_string().replace(id, "ID")
    })
    .collect()
}

#[tokio::test]
async fn g1_absent_pruned_and_ungranted_look_the_same() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(scope()).processes();
        processes
            .start(external("not-mine"), inline())
            .await
            .unwrap();
        session.start(request("pruned"), inline()).await.unwrap();
        let host = CompletionAuthority::Host { by: "ops".into() };
        let good = ProcessAwaitOutput::success(1);
        processes
            .complete_external("pruned", good, host)
            .await
            .unwrap();
        let ended = processes
            .get("pruned")
            .await
            .unwrap()
            .unwrap()
            .terminal_at_ms
            .unwrap();
        processes.prune(ended + 1).await.unwrap();
        session.start(request("revoked"), inline()).await.unwrap();
        processes.revoke(&scope(), "revoked").await.unwrap();
        let before = processes.events("not-mine", 0).await.unwrap();

        let absent = refusals(&session, "absent").await;
        assert_eq!(absent[0], "unknown process ID");
        for id in ["not-mine", "pruned", "revoked"] {
            assert_eq!(refusals(&session, id).await, absent, "{id}");
        }
        assert_eq!(processes.events("not-mine", 0).await.unwrap(), before);
        assert_eq!(session.list_all().await.unwrap(), []);
        assert_eq!(session.snapshot().await.unwrap().items, []);
        assert_eq!(session.cancel_all(inline()).await.unwrap(), []);

        // Started again: the session's own are unknown, somebody else's id is the one exception.
        for id in ["pruned", "revoked"] {
            let error = session.start(request(id), inline()).await.unwrap_err();
            assert_eq!(error.to_string(), format!("unknown process {id}"));
        }
        let error = session
            .start(request("not-mine"), inline())
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Conflict { .. }), "{error:?}");
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_session_cannot_forge_where_its_work_comes_from_or_goes_to() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let session = supervisor.session(scope().with_frame("f")).processes();
    let own = || {
        let mut request = request("p");
        request.originator = ProcessOriginator::session(scope().with_frame("f"));
        request
    };
    let mut host = own();
    host.originator = ProcessOriginator::host();
    let mut root = own();
    root.originator = ProcessOriginator::session(scope());
    let forged = [
        ("originator", host),
        ("originator", root),
        (
            "grant.scope",
            own().with_grant(Some(ProcessStartGrant::new(other(), "x"))),
        ),
        ("wake_target", own().with_wake_target(Some(other()))),
    ];
    for (field, request) in forged {
        let error = session.start(request, inline()).await.unwrap_err();
        assert!(
            matches!(&error, Error::InvalidInput { field: found, process_id, .. }
                if found == field && process_id.as_deref() == Some("p")),
            "{error:?}"
        );
    }
    assert_eq!(processes.list(&any()).await.unwrap(), []);

    let described = own().with_grant(Some(ProcessStartGrant::new(
        scope().with_frame("f"),
        "mine",
    )));
    session.start(described, inline()).await.unwrap();
    assert_eq!(
        processes.grants_of("p").await.unwrap(),
        [scope().with_frame("f")]
    );
    let snapshot = session.snapshot().await.unwrap();
    assert_eq!(snapshot.items[0].descriptor, label("mine"));
    // The root's handle does not cover a frame, and the frame's covers the root.
    let at_root = supervisor.session(scope()).processes();
    assert_eq!(at_root.list().await.unwrap(), []);
    at_root.start(request("q"), inline()).await.unwrap();
    assert_eq!(ids(&session.list().await.unwrap()), ["p", "q"]);
    close_clean(&supervisor).await;
}

/// A signal may be declared to wake somebody: whom, a session may not choose. A wake is text in the
/// target's inbox, and takes the target's keys.
#[tokio::test]
async fn g1_a_session_cannot_forge_whom_a_signal_wakes() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(scope().with_frame("f")).processes();
        let wake = WakeSemantics::new(Selector::pointer("/text"))
            .with_dedupe_key(Selector::pointer("/text"));
        let mut request =
            ProcessStartRequest::external("p", ProcessOriginator::session(scope()), 1)
                .with_event_type(ProcessEventType::signal("go").with_wake(wake))
                .with_grant(Some(ProcessStartGrant::new(scope().with_frame("f"), "p")));
        request.wake_target = Some(other());
        processes.start(request, inline()).await.unwrap();
        let said = |target| {
            ProcessEventAppendRequest::signal("go", serde_json::json!({ "text": "hi" }))
                .with_wake_target_scope(target)
        };
        // Whatever the id stands for, and whoever it is that is not the session itself.
        for id in ["p", "absent"] {
            for victim in [other(), scope(), scope().with_frame("g")] {
                let forged = said(Some(victim.clone()));
                let refused = session.signal(id, "go", "1", forged, inline()).await;
                let error = refused.unwrap_err();
                assert!(
                    matches!(&error, Error::InvalidInput { field, process_id, .. }
                        if field == "wake_target_scope" && process_id.as_deref() == Some(id)),
                    "{error:?}"
                );
                assert_eq!(processes.wakes(&victim).await.unwrap(), []);
            }
        }
        assert_eq!(processes.events("p", 0).await.unwrap(), []);
        // Its own inbox is its own affair, and what the host declared goes where the host said: the
        // key is not used up.
        let own = scope().with_frame("f");
        for (signal_id, target, inbox) in [("1", Some(own.clone()), own), ("2", None, other())] {
            session
                .signal("p", "go", signal_id, said(target), inline())
                .await
                .unwrap();
            assert_eq!(processes.wakes(&inbox).await.unwrap().len(), 1);
        }
        close_clean(&supervisor).await;
    }
}

/// A session that holds a process twice can do what it may by either grant, also where the one that
/// it was about to use goes away before the commit.
#[tokio::test]
async fn a_write_falls_back_to_the_other_grant_of_a_session() {
    let frame = || scope().with_frame("f");
    for call in 0..3 {
        let supervisor = Supervisor::in_memory().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(frame()).processes();
        let mut request = request("p");
        request.originator = ProcessOriginator::session(frame());
        session.start(request, inline()).await.unwrap();
        processes.grant(&scope(), "p", label("p")).await.unwrap();
        let writing = async {
            match call {
                0 => session
                    .signal("p", "go", "1", go(), inline())
                    .await
                    .map(drop),
                1 => session.cancel("p", inline()).await.map(drop),
                _ => session.request_abandon("p", "me", None).await.map(drop),
            }
        };
        let mut writing = std::pin::pin!(writing);
        let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
        // The revocation is on its way, and before it is done the session looks for its grant: its
        // write is sent behind the revocation, under a grant that is gone by then.
        let revoked = frame();
        let mut revoking = std::pin::pin!(processes.revoke(&revoked, "p"));
        assert!(revoking.as_mut().poll(&mut cx).is_pending());
        assert!(writing.as_mut().poll(&mut cx).is_pending());
        within(revoking).await.unwrap();
        within(writing).await.unwrap();
        assert_eq!(processes.events("p", 0).await.unwrap().len(), 1, "{call}");
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_session_works_with_what_it_was_granted() {
    for place in Place::both() {
        let supervisor = place.builder().engine(polite()).open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(scope()).processes();
        session.start(request("p"), inline()).await.unwrap();
        let mut run = request("run");
        run.input = ProcessInput::engine("polite", 1);
        run.disposition = RecoveryDisposition::Rerunnable;
        session.start(run, inline()).await.unwrap();
        processes
            .start(rerunnable("alien", "polite"), inline())
            .await
            .unwrap();
        session
            .signal("p", "go", "1", go(), inline())
            .await
            .unwrap();
        assert_eq!(session.events("p", 0).await.unwrap().len(), 1);
        let asked = session
            .request_abandon("p", "me", Some("enough".into()))
            .await
            .unwrap();
        assert_eq!(asked.abandon_request.unwrap().requested_by, "me");
        let ended = within(session.await_output("p")).await.unwrap();
        assert_eq!(ended.state(), TerminalState::Abandoned);
        let summaries = session.cancel_all(inline()).await.unwrap();
        let cancelled: Vec<_> = summaries.iter().map(|s| s.process_id.as_str()).collect();
        assert_eq!(cancelled, ["run"], "only granted running ones");
        within(session.await_output("run")).await.unwrap();
        assert_eq!(ids(&session.list_all().await.unwrap()), ["p", "run"]);
        assert_eq!(session.list().await.unwrap(), []);
        processes.cancel("alien", inline()).await.unwrap();
        output(&processes, "alien").await;
        close_clean(&supervisor).await;
    }
}

/// Waits until something, a tick for one, has had a stream look anew and find nothing.
async fn stirred(stream: &mut Subscription) {
    let mut polls = 0;
    within(std::future::poll_fn(|cx| {
        assert!(std::pin::Pin::new(&mut *stream).poll_next(cx).is_pending());
        polls += 1;
        if polls > 1 {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    }))
    .await;
}

/// On a store that several hosts share, a revocation by one of them ends what another one reads.
#[tokio::test]
async fn g5_a_revocation_by_another_host_ends_what_this_one_reads() {
    let store = InMemoryStore::shared();
    let open = |owner: &str| {
        Supervisor::in_memory_store(&store)
            .owner_id(owner)
            .sweep_every(std::time::Duration::from_millis(50))
            .open()
    };
    let (here, there) = (open("here").await.unwrap(), open("there").await.unwrap());
    let (processes, elsewhere) = (here.processes(), there.processes());
    let session = here.session(scope()).processes();
    for (id, transfers) in [("p", false), ("q", true)] {
        session.start(request(id), inline()).await.unwrap();
        for n in 0..10 {
            processes.append_event(id, note(n)).await.unwrap();
        }
        let mut buffered = session.subscribe(id, 0).await.unwrap();
        let mut parked = session.subscribe(id, 10).await.unwrap();
        assert_eq!(next(&mut buffered).await.unwrap().unwrap().sequence, 1);
        assert!(polled(&mut parked).is_pending());
        let waiting = {
            let (session, id) = (session.clone(), id.to_owned());
            tokio::spawn(async move { session.await_output(&id).await })
        };
        tokio::task::yield_now().await;
        if transfers {
            let one = [id.to_owned()];
            elsewhere.transfer(&scope(), &other(), &one).await.unwrap();
        } else {
            elsewhere.revoke(&scope(), id).await.unwrap();
        }
        // Nothing that was buffered, and nothing that happens now.
        processes.append_event(id, note(11)).await.unwrap();
        for mut subscription in [buffered, parked] {
            let end = next(&mut subscription).await;
            assert!(
                matches!(end, Some(Err(Error::NotGranted { .. }))),
                "{end:?}"
            );
            assert!(next(&mut subscription).await.is_none());
        }
        let waited = within(waiting).await.unwrap();
        assert!(
            matches!(waited, Err(Error::UnknownProcess { .. })),
            "{waited:?}"
        );
    }
    // Neither does a tick end what is still held, nor does it keep a reader busy.
    session.start(request("kept"), inline()).await.unwrap();
    let mut kept = session.subscribe("kept", 0).await.unwrap();
    for n in 0..5 {
        stirred(&mut kept).await;
        elsewhere.append_event("kept", note(n)).await.unwrap();
        assert_eq!(next(&mut kept).await.unwrap().unwrap().sequence, n + 1);
    }
    close(&here).await;
    close(&there).await;
}

/// Also while a grant of it is left, because it had more than a commit erases.
#[tokio::test]
async fn g5_a_prune_by_another_host_ends_what_this_one_reads() {
    let store = InMemoryStore::shared();
    let open = || Supervisor::in_memory_store(&store).open();
    let (here, there) = (open().await.unwrap(), open().await.unwrap());
    let (processes, elsewhere) = (here.processes(), there.processes());
    // The longest name, whose grant is erased last.
    let last = SessionScope::new("the-last-one");
    let session = here.session(last.clone()).processes();
    let granted = ProcessStartGrant::new(last.clone(), "p");
    let request = noted("p").with_grant(Some(granted));
    processes.start(request, inline()).await.unwrap();
    for n in 0..500 {
        let of = SessionScope::new(format!("s-{n}"));
        let descriptor = ProcessHandleDescriptor::default();
        processes.grant(&of, "p", descriptor).await.unwrap();
    }
    for n in 0..10 {
        processes.append_event("p", note(n)).await.unwrap();
    }
    complete(&processes, "p").await;
    let mut buffered = session.subscribe("p", 0).await.unwrap();
    assert_eq!(next(&mut buffered).await.unwrap().unwrap().sequence, 1);
    let mut pruning = Box::pin(elsewhere.prune(u64::MAX));
    // Looked at as soon as the commit is there that takes it out, before anything else happens.
    let end = within(std::future::poll_fn(|cx| {
        assert!(pruning.as_mut().poll(cx).is_pending());
        let Poll::Ready(found) = pin!(processes.get("p")).poll(cx) else {
            panic!("looks at once");
        };
        match found.unwrap() {
            Some(_) => Poll::Pending,
            None => Poll::Ready(polled(&mut buffered)),
        }
    }))
    .await;
    assert!(
        matches!(end, Poll::Ready(Some(Err(Error::NotGranted { .. })))),
        "{end:?}"
    );
    drop(pruning);
    close(&here).await;
    close(&there).await;
}

#[tokio::test]
async fn g5_after_a_revocation_or_transfer_nothing_more_arrives() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(scope()).processes();
        for (id, transfers) in [("p", false), ("q", true)] {
            session.start(request(id), inline()).await.unwrap();
            for n in 0..10 {
                processes.append_event(id, note(n)).await.unwrap();
            }
            let mut buffered = session.subscribe(id, 0).await.unwrap();
            let mut fresh = session.subscribe(id, 0).await.unwrap();
            let mut parked = session.subscribe(id, 10).await.unwrap();
            assert_eq!(next(&mut buffered).await.unwrap().unwrap().sequence, 1);
            let waiting = {
                let session = session.clone();
                let id = id.to_owned();
                tokio::spawn(async move { session.await_output(&id).await })
            };
            let ends = tokio::spawn(async move { next(&mut parked).await });
            tokio::task::yield_now().await;
            if transfers {
                let one = [id.to_owned()];
                processes.transfer(&scope(), &other(), &one).await.unwrap();
            } else {
                processes.revoke(&scope(), id).await.unwrap();
            }
            for subscription in [&mut buffered, &mut fresh] {
                let end = next(subscription).await;
                let Some(Err(Error::NotGranted { ids, .. })) = &end else {
                    panic!("{end:?}");
                };
                assert_eq!(ids, &[id]);
                assert!(next(subscription).await.is_none());
            }
            let end = within(ends).await.unwrap();
            assert!(
                matches!(end, Some(Err(Error::NotGranted { .. }))),
                "{end:?}"
            );
            let waited = within(waiting).await.unwrap();
            assert_eq!(
                waited,
                Err(Error::UnknownProcess {
                    process_id: id.into()
                })
            );
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_prune_ends_a_sessions_subscription_as_a_revocation_does() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let session = supervisor.session(scope()).processes();
    session.start(request("p"), inline()).await.unwrap();
    let mut beyond = session.subscribe("p", 50).await.unwrap();
    let host = CompletionAuthority::Host { by: "ops".into() };
    processes
        .complete_external("p", ProcessAwaitOutput::success(1), host)
        .await
        .unwrap();
    let ended = processes
        .get("p")
        .await
        .unwrap()
        .unwrap()
        .terminal_at_ms
        .unwrap();
    processes.prune(ended + 1).await.unwrap();
    let end = next(&mut beyond).await;
    assert!(
        matches!(end, Some(Err(Error::NotGranted { .. }))),
        "{end:?}"
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn g2_a_transfer_is_all_or_nothing() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        for id in ["a", "b", "c"] {
            processes.start(external(id), inline()).await.unwrap();
        }
        processes
            .grant(&scope(), "a", label("first"))
            .await
            .unwrap();
        processes
            .grant(&scope(), "a", label("second"))
            .await
            .unwrap();
        processes.grant(&scope(), "b", label("b")).await.unwrap();
        processes.grant(&other(), "b", label("kept")).await.unwrap();
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();

        let refused = processes
            .transfer(&scope(), &other(), &list(&["a", "c", "nobody", "b"]))
            .await
            .unwrap_err();
        let Error::NotGranted { scope: named, ids } = &refused else {
            panic!("{refused:?}");
        };
        assert_eq!(named, "session:s");
        assert_eq!(ids, &["c", "nobody"]);
        assert!(processes.has_grant(&scope(), "a").await.unwrap());
        assert!(!processes.has_grant(&other(), "a").await.unwrap());

        let session = supervisor.session(scope()).processes();
        let refused = session
            .transfer(&other(), &list(&["a", "c"]))
            .await
            .unwrap_err();
        assert_eq!(refused.to_string(), "unknown process c");

        processes.transfer(&scope(), &other(), &[]).await.unwrap();
        processes
            .transfer(&scope(), &scope(), &list(&["a"]))
            .await
            .unwrap();
        assert!(processes.has_grant(&scope(), "a").await.unwrap());
        let frame = scope().with_frame("f");
        let refused = processes.transfer(&frame, &other(), &list(&["a"])).await;
        assert!(
            matches!(refused, Err(Error::NotGranted { .. })),
            "a frame is another scope"
        );

        processes
            .transfer(&scope(), &other(), &list(&["a", "b", "a"]))
            .await
            .unwrap();
        assert_eq!(processes.grants_of("a").await.unwrap(), [other()]);
        assert_eq!(processes.grants_of("b").await.unwrap(), [other()]);
        let snapshot = processes.session_snapshot("other").await.unwrap();
        let descriptor = |id: &str| {
            let item = snapshot
                .items
                .iter()
                .find(|item| item.process.process_id == id);
            item.unwrap().descriptor.clone()
        };
        assert_eq!(
            descriptor("a"),
            label("first"),
            "a second grant keeps the first descriptor"
        );
        assert_eq!(descriptor("b"), label("kept"), "so does a transfer");
        assert_eq!(
            processes.list_granted_to(&scope(), &any()).await.unwrap(),
            []
        );
        processes.revoke(&scope(), "a").await.unwrap();
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn g3_racing_transfers_leave_each_grant_at_one_place() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let all: Vec<String> = (0..10).map(|n| format!("p{n}")).collect();
        let scopes: Vec<_> = (0..4).map(|n| SessionScope::new(format!("s{n}"))).collect();
        for id in &all {
            let grant = ProcessStartGrant::new(scopes[0].clone(), "x");
            processes
                .start(external(id).with_grant(Some(grant)), inline())
                .await
                .unwrap();
        }
        let mut moves = JoinSet::new();
        for n in 0..100 {
            let (processes, all) = (processes.clone(), all.clone());
            let (from, to) = (scopes[n % 4].clone(), scopes[(n * 7 + 1) % 4].clone());
            moves.spawn(async move { processes.transfer(&from, &to, &all).await });
        }
        while let Some(moved) = within(moves.join_next()).await {
            match moved.unwrap() {
                Ok(()) => {}
                Err(Error::NotGranted { ids, .. }) => assert_eq!(ids, all),
                Err(error) => panic!("{error:?}"),
            }
        }
        let holders = processes.grants_of("p0").await.unwrap();
        assert_eq!(holders.len(), 1);
        for id in &all {
            assert_eq!(processes.grants_of(id).await.unwrap(), holders);
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_sessions_write_that_races_with_a_revocation_is_written_or_unknown() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let session = supervisor.session(scope()).processes();
        for round in 0..50 {
            let id = format!("p{round}");
            session.start(request(&id), inline()).await.unwrap();
            let mine = scope();
            let (sent, revoked, kept) = within(async {
                tokio::join!(
                    session.signal(&id, "go", "1", go(), inline()),
                    processes.revoke(&mine, &id),
                    // Goes through, whatever is refused in front of it.
                    processes.append_event(&id, note(1)),
                )
            })
            .await;
            revoked.unwrap();
            kept.unwrap();
            let types = event_types(&processes, &id).await;
            match sent {
                Ok(_) => assert!(types.contains(&"signal.go".to_owned())),
                // It may have been written before the revocation that the answer rests on.
                Err(error) => assert_eq!(error.to_string(), format!("unknown process {id}")),
            }
            assert_eq!(types.iter().filter(|t| *t == "note").count(), 1);
        }
        close_clean(&supervisor).await;
    }
}
