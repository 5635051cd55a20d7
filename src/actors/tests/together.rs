//! Appends that arrive together, and are committed together.

use super::conditions::Ground;
use super::gated::{idle, open, open_at};
use super::*;
use crate::store::kv::Kv;
use tokio::sync::Semaphore;

/// Sends appends so that all of them are in the mailbox before the actor looks at the first: the test
/// and the actor share a thread.
fn send_at_once(shared: &Arc<Shared>, notes: [(usize, Option<&str>); 3]) -> Vec<Pending> {
    notes
        .map(|(content, key)| {
            let request = ProcessEventAppendRequest::new("note", content)
                .with_replay_key(key.map(str::to_owned));
            let event = prepare_event("p", request).unwrap();
            let shared = Arc::clone(shared);
            tokio::spawn(async move { shared.append("p", event, None).await })
        })
        .into()
}

type Pending = tokio::task::JoinHandle<Result<ProcessEvent>>;

async fn told(pending: Vec<Pending>) -> Vec<(u64, Value)> {
    let mut told = Vec::new();
    for one in pending {
        let event = within(one).await.unwrap().unwrap();
        told.push((event.sequence, (*event.payload).clone()));
    }
    told
}

#[tokio::test]
async fn what_an_engine_says_at_once_is_one_commit_with_its_outcome() {
    let (runtime, gated, _) = open(|cx: ProcessContext| async move {
        for n in 0..10 {
            cx.emit("note", n).await?;
        }
        Ok(json!("done"))
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    let before = gated.stats().commits;
    start(&shared, "p", RecoveryDisposition::Rerunnable).await;
    let output = within(shared.await_output("p")).await.unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(json!("done")));
    // The start, the claim, and all the rest.
    assert_eq!(gated.stats().commits - before, 3);
    let log = shared.events("p", 0).await.unwrap();
    let sequences: Vec<u64> = log.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, (1..=12).collect::<Vec<_>>());
    shut(&runtime).await;
}

#[tokio::test]
async fn appends_that_arrive_together_share_a_commit_and_get_each_their_own_answer() {
    let (runtime, gated, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    note(&shared, "p", 0).await.unwrap();
    let before = gated.stats().commits;
    // The first goes at once, the others together behind it. The third repeats the first, which is not
    // committed yet.
    let pending = send_at_once(&shared, [(7, Some("k")), (8, None), (7, Some("k"))]);
    let first = (2, json!(7));
    assert_eq!(told(pending).await, [first.clone(), (3, json!(8)), first]);
    assert_eq!(gated.stats().commits - before, 2);
    shut(&runtime).await;
}

#[tokio::test]
async fn appends_that_were_refused_together_are_decided_anew_one_by_one() {
    let store = MemoryKv::shared();
    let put = Arc::default();
    let (here, gated) = open_at(&store, &put, idle).await;
    let (there, _) = open_at(&store, &put, idle).await;
    let shared = Arc::clone(&here.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    note(&shared, "p", 0).await.unwrap();
    gated.shut();
    let pending = send_at_once(&shared, [(1, None), (2, Some("k")), (3, None)]);
    until(|| gated.count() == 2).await;
    // The first, which went alone, lands.
    gated.pass(1);
    // Another host takes the replay key of the second, with the same content.
    let request = ProcessEventAppendRequest::new("note", 2_usize).with_replay_key(Some("k".into()));
    let event = prepare_event("p", request).unwrap();
    let other = within(there.shared.append("p", event, None)).await.unwrap();
    assert_eq!(other.sequence, 3);
    gated.open_gate();
    let expected = [(2, json!(1)), (3, json!(2)), (4, json!(3))];
    assert_eq!(told(pending).await, expected);
    shut(&here).await;
    shut(&there).await;
}

/// A signal and the wait that it ends come in this order, before the actor looks at either.
#[tokio::test]
async fn a_wait_whose_signal_came_just_before_it_is_never_said_to_have_begun() {
    let go = Arc::new(Semaphore::new(0));
    let going = Arc::clone(&go);
    let (runtime, _gated, _) = open(move |cx: ProcessContext| {
        let go = Arc::clone(&going);
        async move {
            for _ in 0..2 {
                go.acquire().await.unwrap().forget();
                cx.wait_signal("go").await?;
            }
            idle(cx).await
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    for number in 1..=2 {
        let request = ProcessEventAppendRequest::signal("go", number);
        let signal = prepare_signal("p", "go", &number.to_string(), request).unwrap();
        let sender = Arc::clone(&shared);
        let sent = tokio::spawn(async move { sender.append("p", signal, None).await });
        go.add_permits(1);
        within(sent).await.unwrap().unwrap();
        let resumed = || shared.get("p").unwrap().unwrap().last_sequence == 1 + 2 * number;
        until(resumed).await;
    }
    let log = shared.events("p", 0).await.unwrap();
    let types: Vec<_> = log.iter().map(|event| &*event.event_type).collect();
    let (signal, resumed) = ("signal.go", "process.resumed");
    assert_eq!(types, ["process.started", signal, resumed, signal, resumed]);
    assert!(!shared.get("p").unwrap().unwrap().facets.waiting);
    shut(&runtime).await;
}

/// An engine's wait that counted on a signal which was refused waits, and says so.
#[tokio::test]
async fn a_wait_whose_signal_was_refused_is_said_to_have_begun() {
    let go = Arc::new(Semaphore::new(0));
    let going = Arc::clone(&go);
    let (runtime, gated, _) = open(move |cx: ProcessContext| {
        let go = Arc::clone(&going);
        async move {
            go.acquire().await.unwrap().forget();
            let signal = cx.wait_signal("go").await?;
            Ok((*signal.payload).clone())
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    gated.shut();
    let send = |number: u64, granted_to: Option<SessionScope>| {
        let request = ProcessEventAppendRequest::signal("go", number);
        let signal = prepare_signal("p", "go", &number.to_string(), request).unwrap();
        let sender = Arc::clone(&shared);
        tokio::spawn(async move { sender.append("p", signal, granted_to.as_ref()).await })
    };
    let refused = send(1, Some(SessionScope::new("nobody")));
    until(|| gated.count() == 1).await;
    go.add_permits(1);
    // The end of the wait rests on the signal that is on its way.
    until(|| gated.count() == 2).await;
    gated.open_gate();
    assert_eq!(within(refused).await.unwrap(), Err(Error::unknown("p")));
    until(|| shared.get("p").unwrap().unwrap().facets.waiting).await;
    within(send(2, None)).await.unwrap().unwrap();
    let output = within(shared.await_output("p")).await.unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(2));
    shut(&runtime).await;
}

/// It is said that a wait has begun while its signal is on its way. Refused, that leaves a wait that
/// goes on, and whose slot is for others.
#[tokio::test]
async fn a_wait_whose_signal_was_refused_behind_its_beginning_gives_its_slot_to_others() {
    let go = Arc::new(Semaphore::new(0));
    let going = Arc::clone(&go);
    let ground = Ground::open(1, move |cx: ProcessContext| {
        let go = Arc::clone(&going);
        async move {
            if cx.process_id() == "q" {
                return Ok(Value::Null);
            }
            go.acquire().await.unwrap().forget();
            let signal = cx.wait_signal("go").await?;
            Ok((*signal.payload).clone())
        }
    })
    .await;
    let (shared, gated) = (&ground.shared, &ground.gated);
    let session = SessionScope::new("s");
    start(shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let descriptor = ProcessHandleDescriptor::default();
    shared.grant(&session, "p", descriptor).await.unwrap();
    gated.shut();
    let revoking = {
        let (shared, session) = (Arc::clone(shared), session.clone());
        tokio::spawn(async move { shared.revoke(&session, "p").await })
    };
    until(|| gated.count() == 1).await;
    go.add_permits(1);
    until(|| gated.count() == 2).await;
    let send = |number: u64, granted_to: Option<SessionScope>| {
        let request = ProcessEventAppendRequest::signal("go", number);
        let signal = prepare_signal("p", "go", &number.to_string(), request).unwrap();
        let shared = Arc::clone(shared);
        tokio::spawn(async move { shared.append("p", signal, granted_to.as_ref()).await })
    };
    let refused = send(1, Some(session));
    // The signal, and the end of the wait.
    until(|| gated.count() == 4).await;
    gated.open_gate();
    within(revoking).await.unwrap().unwrap();
    assert_eq!(within(refused).await.unwrap(), Err(Error::unknown("p")));
    // The one slot there is.
    start(shared, "q", RecoveryDisposition::Rerunnable).await;
    within(shared.await_output("q")).await.unwrap();
    let found = shared.get("p").unwrap().unwrap();
    assert!(found.facets.waiting, "{found:?}");
    let record = shared.record("p").unwrap().unwrap();
    assert_eq!(record.wait.unwrap().signals.len(), 1);
    within(send(2, None)).await.unwrap().unwrap();
    let output = within(shared.await_output("p")).await.unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(2));
    let log = shared.events("p", 0).await.unwrap();
    let types: Vec<_> = log.iter().map(|event| &*event.event_type).collect();
    let waited = ["process.waiting", "signal.go", "process.resumed"];
    assert_eq!(types[1..4], waited);
    shut(&ground.runtime).await;
}
