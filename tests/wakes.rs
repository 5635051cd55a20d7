//! The wake inbox.

mod common;

use common::*;
use procession::*;
use serde_json::{Value, json};

fn scope(session_id: &str) -> SessionScope {
    SessionScope::new(session_id)
}

fn text(text: &str) -> Value {
    json!({ "text": text, "key": text })
}

async fn woken(processes: &Processes, scope: &SessionScope) -> Vec<String> {
    let wakes = processes.wakes(scope).await.unwrap();
    wakes.into_iter().map(|wake| wake.text).collect()
}

async fn started(processes: &Processes, id: &str, target: &SessionScope) {
    let request = noted(id).with_wake_target(Some(target.clone()));
    processes.start(request, inline()).await.unwrap();
}

#[tokio::test]
async fn wakes_wait_in_order_until_they_are_acknowledged() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let target = scope("s").with_frame("f");
        started(&processes, "p", &target).await;
        started(&processes, "q", &target).await;
        for (id, said) in [("p", "one"), ("q", "two"), ("p", "three")] {
            append(&processes, id, "ping", text(said)).await;
        }
        append(&processes, "p", "note", text("not a wake")).await;
        let wakes = processes.wakes(&target).await.unwrap();
        let shown: Vec<_> = wakes
            .iter()
            .map(|wake| (wake.process_id.as_str(), wake.sequence, wake.text.as_str()))
            .collect();
        assert_eq!(shown, [("p", 1, "one"), ("q", 1, "two"), ("p", 2, "three")]);
        assert!(wakes.windows(2).all(|two| two[0].wake_id < two[1].wake_id));
        assert_eq!(woken(&processes, &scope("s")).await, [""; 0], "its root");
        processes.ack_wake(&target, wakes[1].wake_id).await.unwrap();
        // Again, and in somebody else's name.
        processes.ack_wake(&target, wakes[1].wake_id).await.unwrap();
        processes
            .ack_wake(&scope("s"), wakes[0].wake_id)
            .await
            .unwrap();
        close_clean(&supervisor).await;
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        assert_eq!(woken(&processes, &target).await, ["one", "three"]);
        close(&supervisor).await;
    }
}

/// E4: the event and its delivery are one commit. Whoever is told of the event finds the wake.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_is_there_as_soon_as_its_event_is() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        started(&processes, "p", &scope("s")).await;
        let mut subscription = processes.subscribe("p", 0).await.unwrap();
        let writing = tokio::spawn({
            let processes = processes.clone();
            async move {
                for n in 0..100 {
                    append(&processes, "p", "ping", text(&n.to_string())).await;
                }
            }
        });
        for _ in 0..100 {
            let event = next(&mut subscription).await.unwrap().unwrap();
            let wakes = processes.wakes(&scope("s")).await.unwrap();
            assert!(wakes.iter().any(|wake| wake.sequence == event.sequence));
        }
        within(writing).await.unwrap();
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_key_wakes_a_scope_once() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    started(&processes, "p", &scope("s")).await;
    started(&processes, "q", &scope("s")).await;
    started(&processes, "r", &scope("other")).await;
    for id in ["p", "p", "q", "r"] {
        append(&processes, id, "ask", text("may I?")).await;
    }
    assert_eq!(woken(&processes, &scope("s")).await, ["may I?"]);
    assert_eq!(woken(&processes, &scope("other")).await, ["may I?"]);
    // Acknowledged is not forgotten.
    let wake = processes.wakes(&scope("s")).await.unwrap().remove(0);
    processes.ack_wake(&scope("s"), wake.wake_id).await.unwrap();
    append(&processes, "q", "ask", text("may I?")).await;
    assert_eq!(woken(&processes, &scope("s")).await, [""; 0]);
    append(&processes, "q", "ask", text("and now?")).await;
    assert_eq!(woken(&processes, &scope("s")).await, ["and now?"]);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn an_event_may_name_its_own_target_and_without_any_it_is_logged_only() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    assert_eq!(append(&processes, "p", "ping", text("nobody")).await, 1);
    let request = ProcessEventAppendRequest::new("ping", text("you"))
        .with_wake_target_scope(Some(scope("s")));
    processes.append_event("p", request).await.unwrap();
    assert_eq!(woken(&processes, &scope("s")).await, ["you"]);
    assert_eq!(processes.events("p", 0).await.unwrap().len(), 2);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn a_session_can_be_watched_for_wakes() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let target = scope("s");
    started(&processes, "p", &target).await;
    for said in ["one", "two"] {
        let watching = tokio::spawn({
            let (processes, target) = (processes.clone(), target.clone());
            async move { processes.next_wakes(&target).await }
        });
        tokio::task::yield_now().await;
        append(&processes, "p", "ping", text(said)).await;
        let wakes = within(watching).await.unwrap().unwrap();
        let texts: Vec<_> = wakes.iter().map(|wake| wake.text.as_str()).collect();
        assert_eq!(texts, [said]);
        // What is pending already is not waited for.
        assert_eq!(within(processes.next_wakes(&target)).await.unwrap(), wakes);
        processes.ack_wake(&target, wakes[0].wake_id).await.unwrap();
    }
    let watching = tokio::spawn(async move { processes.next_wakes(&target).await });
    tokio::task::yield_now().await;
    close(&supervisor).await;
    assert_eq!(within(watching).await.unwrap(), Err(Error::ShuttingDown));
}

#[tokio::test]
async fn what_was_pending_for_a_replaced_target_is_discarded_and_counted() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let (old, new) = (scope("old"), scope("new").with_frame("f"));
        started(&processes, "p", &old).await;
        started(&processes, "q", &old).await;
        for (id, said) in [("p", "one"), ("q", "two"), ("p", "three")] {
            append(&processes, id, "ping", text(said)).await;
        }
        let retarget = async |target| processes.retarget_wakes("p", target).await.unwrap();
        assert_eq!(retarget(Some(&new)).await, 2);
        assert_eq!(retarget(Some(&new)).await, 0);
        assert_eq!(woken(&processes, &old).await, ["two"]);
        append(&processes, "p", "ping", text("four")).await;
        assert_eq!(woken(&processes, &new).await, ["four"]);
        // The registration keeps the original; the edge is what counts.
        let seen = processes.get("p").await.unwrap().unwrap();
        assert_eq!(seen.wake_target, Some(new.clone()));
        assert_eq!(retarget(None).await, 1);
        append(&processes, "p", "ping", text("five")).await;
        assert_eq!(woken(&processes, &new).await, [""; 0]);
        let report = processes.delete_session("old").await.unwrap();
        assert_eq!(report.wakes_discarded, 1);
        assert_eq!(woken(&processes, &old).await, [""; 0]);
        for id in ["absent", ""] {
            assert!(processes.retarget_wakes(id, None).await.is_err());
        }
        // A pruned process takes what is pending of it along, and says so.
        retarget(Some(&new)).await;
        append(&processes, "p", "ping", text("six")).await;
        complete(&processes, "p").await;
        assert_eq!(processes.prune(u64::MAX).await.unwrap().wakes, 1);
        assert_eq!(woken(&processes, &new).await, [""; 0]);
        close_clean(&supervisor).await;
    }
}

/// The wake target is an edge of its own: what takes a grant away leaves it as it is, and what was pending.
#[tokio::test]
async fn wakes_go_on_to_their_target_until_they_are_retargeted_whoever_holds_the_process() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let (old, new) = (scope("old"), scope("new").with_frame("f"));
    for id in ["revoked", "transferred"] {
        started(&processes, id, &old).await;
        let granted = processes.grant(&old, id, ProcessHandleDescriptor::default());
        granted.await.unwrap();
        append(&processes, id, "ping", text("before")).await;
    }
    processes.revoke(&old, "revoked").await.unwrap();
    let moved = ["transferred".to_owned()];
    processes.transfer(&old, &new, &moved).await.unwrap();
    for id in ["revoked", "transferred"] {
        append(&processes, id, "ping", text("after")).await;
        let seen = processes.get(id).await.unwrap().unwrap();
        assert_eq!(seen.wake_target.as_ref(), Some(&old), "{id}");
        assert!(!processes.has_grant(&old, id).await.unwrap(), "{id}");
    }
    assert_eq!(
        woken(&processes, &old).await,
        ["before", "before", "after", "after"]
    );
    assert_eq!(woken(&processes, &new).await, [""; 0]);
    for (id, target) in [("revoked", None), ("transferred", Some(&new))] {
        let discarded = processes.retarget_wakes(id, target).await.unwrap();
        assert_eq!(discarded, 2, "{id}");
        append(&processes, id, "ping", text("then")).await;
    }
    assert_eq!(woken(&processes, &old).await, [""; 0]);
    assert_eq!(woken(&processes, &new).await, ["then"]);
    close_clean(&supervisor).await;
}

/// However many wakes there are, they go in commits of bounded size, and each counts.
#[tokio::test]
async fn many_wakes_are_discarded_in_bounded_commits() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let (old, new) = (scope("old"), scope("new").with_frame("f"));
        started(&processes, "p", &old).await;
        started(&processes, "q", &old).await;
        append(&processes, "q", "ping", text("of q")).await;
        let many = async |id: &'static str| {
            let mut appends = tokio::task::JoinSet::new();
            for n in 0..1_300_u32 {
                let processes = processes.clone();
                // Every other one uses a key.
                let event_type = if n % 2 == 0 { "ping" } else { "ask" };
                let said = text(&format!("{id} {n}"));
                appends.spawn(async move { append(&processes, id, event_type, said).await });
            }
            while let Some(appended) = within(appends.join_next()).await {
                appended.unwrap();
            }
        };
        many("p").await;
        let commits = || supervisor.stats().commits;
        let before = commits();
        let moved = processes.retarget_wakes("p", Some(&new)).await.unwrap();
        assert_eq!(moved, 1_300);
        assert!(commits() >= before + 3, "in several");
        assert_eq!(woken(&processes, &old).await, ["of q"]);

        many("p").await;
        let report = processes.delete_session("new").await.unwrap();
        assert_eq!(report.wakes_discarded, 1_300);
        assert_eq!(woken(&processes, &new).await, [""; 0]);
        let seen = processes.get("p").await.unwrap().unwrap();
        assert_eq!(seen.wake_target, None);

        // What a prune cannot take out in one commit goes behind it, and is counted.
        many("q").await;
        complete(&processes, "q").await;
        assert_eq!(processes.prune(u64::MAX).await.unwrap().wakes, 1_301);
        assert_eq!(woken(&processes, &old).await, [""; 0]);
        assert_eq!(processes.prune(u64::MAX).await.unwrap().bytes, 0);
        close_clean(&supervisor).await;
    }
}

/// Whoever gets the id of a deleted session has had none of its wakes.
#[tokio::test]
async fn a_deleted_session_leaves_no_key_behind() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    started(&processes, "p", &scope("s")).await;
    append(&processes, "p", "ask", text("may I?")).await;
    let wake = processes.wakes(&scope("s")).await.unwrap().remove(0);
    processes.ack_wake(&scope("s"), wake.wake_id).await.unwrap();
    let report = processes.delete_session("s").await.unwrap();
    assert_eq!(report.wakes_discarded, 0, "it had been received");
    processes
        .retarget_wakes("p", Some(&scope("s")))
        .await
        .unwrap();
    append(&processes, "p", "ask", text("may I?")).await;
    assert_eq!(woken(&processes, &scope("s")).await, ["may I?"]);
    close_clean(&supervisor).await;
}

/// A session that puts some off can look at the rest, and wait for new ones.
#[tokio::test]
async fn wakes_that_are_put_off_do_not_hide_new_ones() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let target = scope("s");
    started(&processes, "p", &target).await;
    for n in 0..1_001 {
        append(&processes, "p", "ping", text(&n.to_string())).await;
    }
    let first = processes.next_wakes(&target).await.unwrap();
    assert_eq!(first.len(), 1_000);
    let last = first.last().unwrap().wake_id;
    let second = processes.wakes_after(&target, last).await.unwrap();
    assert_eq!(second.len(), 1);
    assert_eq!(second[0].text, "1000");
    assert_eq!(processes.wakes_after(&target, 0).await.unwrap(), first);
    let seen = second[0].wake_id;
    // Polled first: it waits when the other begins.
    let (new, ()) = within(async {
        tokio::join!(processes.next_wakes_after(&target, seen), async {
            // One that goes away makes no difference to where it goes on.
            processes.ack_wake(&target, seen).await.unwrap();
            append(&processes, "p", "ping", text("new")).await;
        })
    })
    .await;
    let new = new.unwrap();
    assert_eq!(new.len(), 1);
    assert_eq!(new[0].text, "new");
    for after in [new[0].wake_id, u64::MAX] {
        assert_eq!(processes.wakes_after(&target, after).await.unwrap(), []);
    }
    close_clean(&supervisor).await;
}
