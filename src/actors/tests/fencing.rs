//! Owners whose leases lapse: what is stopped, and when, and what they may still write.
//!
//! Where a test is about a condition that a caller puts into its commit, it says so: without that
//! condition it fails.

use std::pin::pin;
use std::sync::OnceLock;
use std::sync::mpsc;
use std::task::{Context, Wake, Waker};

use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::gated::{Does, Gated, Put, idle, open, open_at};
use super::*;
use crate::actors::RecoveryStep;
use crate::actors::keeper::SteadyClock;
use crate::actors::process::ShutdownOutcome;
use crate::actors::runtime::ChildOf;
use crate::engines::CancelReason;
use crate::model::lease::OwnerRecord;
use crate::store::memory_kv::MemoryStore;
use crate::store::read::Index;

/// The time to live that the gated runtimes have, past its end.
const LAPSED_MS: u64 = 310;

fn record_of(store: &ProcessStore, owner: OwnerNumber) -> OwnerRecord {
    store.view().unwrap().owner(owner).unwrap().unwrap()
}

fn lease(shared: &Arc<Shared>, id: &str) -> ObservedLease {
    shared.get(id).unwrap().unwrap().lease.unwrap()
}

/// No renewal is sent behind one that has not come back: whatever comes to the gate from here on is
/// the test's own.
async fn hold_renewal(gated: &Gated) {
    gated.shut();
    until(|| gated.count() == 1).await;
}

/// Notes when the task that holds it is aborted, and what it had been told by then.
struct Stops(
    ProcessContext,
    Arc<Put>,
    Arc<OnceLock<(Option<CancelReason>, u64)>>,
);

impl Drop for Stops {
    fn drop(&mut self) {
        let _ = self.2.set((self.0.cancel_reason(), self.1.now_epoch_ms()));
    }
}

#[tokio::test]
async fn l7_what_runs_is_stopped_before_its_lease_expires() {
    let put = Arc::new(Put::default());
    let stopped = Arc::new(OnceLock::new());
    let (stops, clock) = (Arc::clone(&stopped), Arc::clone(&put));
    let (runtime, gated) = open_at(&MemoryKv::private(), &put, move |cx: ProcessContext| {
        let stops = Stops(cx.clone(), Arc::clone(&clock), Arc::clone(&stops));
        async move {
            let _stops = stops;
            idle(cx).await
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::OwnerBound).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let owner = shared.owner().unwrap();
    // The disk stalls: no renewal comes back. Up to here they were all sent at one moment.
    gated.shut();
    put.0.store(249, Ordering::SeqCst);
    assert!(owner.is_trusted(put.monotonic()));
    put.0.store(250, Ordering::SeqCst);
    until(|| stopped.get().is_some()).await;
    let (reason, at_ms) = stopped.get().unwrap();
    assert_eq!(*reason, Some(CancelReason::LeaseLost));
    let expires_at_ms = record_of(&shared.store, owner.number).expires_at_ms;
    assert!(
        *at_ms < expires_at_ms,
        "{at_ms} is not before {expires_at_ms}"
    );
    gated.open_gate();
    let output = within(shared.await_output("p")).await.unwrap();
    assert_eq!(output.state(), TerminalState::Abandoned);
    shut(&runtime).await;
}

/// Notes what a clock shows when it is woken.
struct Woken {
    clock: Arc<dyn Clock>,
    at_ms: OnceLock<u64>,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        let _ = self.at_ms.set(self.clock.now_epoch_ms());
    }
}

/// Waits without the runtime: its threads are all taken.
fn wait_outside(holds: impl Fn() -> bool) {
    for _ in 0..BOUND.as_millis() {
        if holds() {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    panic!("did not happen in time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn l7_the_token_fires_before_the_lease_expires_where_engines_hold_every_thread() {
    let (says, said) = mpsc::channel::<CancellationToken>();
    let (release, held) = mpsc::channel::<()>();
    let (held, holding) = (Mutex::new(held), Arc::new(AtomicU32::new(0)));
    let (held, holds) = (Arc::new(held), Arc::clone(&holding));
    let engine = Does(move |cx: ProcessContext| {
        let (says, held, holds) = (says.clone(), Arc::clone(&held), Arc::clone(&holds));
        async move {
            if cx.process_id() == "watched" {
                says.send(cx.cancellation_token()).unwrap();
                return idle(cx).await;
            }
            // Does not yield, whatever it is told.
            holds.fetch_add(1, Ordering::SeqCst);
            let _ = held.lock().unwrap().recv();
            Ok(Value::Null)
        }
    });
    let system: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let steady: Arc<dyn Clock> = Arc::new(SteadyClock::new(Arc::clone(&system)));
    let kv = MemoryKv::private().open(Arc::clone(&steady)).unwrap();
    let store = ProcessStore::new(Arc::new(kv), system).with_lease_clock(Arc::clone(&steady));
    let config = RuntimeConfig {
        lease: LeaseTimings::from_ttl(Duration::from_secs(4)).unwrap(),
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, Arc::clone(&steady), vec![Arc::new(engine)])
        .await
        .unwrap();
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "watched", RecoveryDisposition::OwnerBound).await;
    let token = said.recv_timeout(BOUND).unwrap();
    let woken = Arc::new(Woken {
        clock: steady,
        at_ms: OnceLock::new(),
    });
    let waker = Waker::from(Arc::clone(&woken));
    let mut fired = pin!(token.cancelled());
    let pending = fired.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(pending.is_pending());
    for (n, id) in [(1, "holds-1"), (2, "holds-2")] {
        start(&shared, id, RecoveryDisposition::OwnerBound).await;
        wait_outside(|| holding.load(Ordering::SeqCst) == n);
    }
    let owner = shared.owner().unwrap().number;
    wait_outside(|| woken.at_ms.get().is_some());
    // Nobody has renewed it meanwhile: there is no thread to do that on.
    let (at_ms, record) = (woken.at_ms.get().unwrap(), record_of(&shared.store, owner));
    assert!(*at_ms < record.expires_at_ms, "{at_ms}, {record:?}");
    drop(release);
    shut(&runtime).await;
}

#[tokio::test]
async fn the_fence_ends_with_its_runtime() {
    let (runtime, _, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    assert!(shared.is_watched());
    shut(&runtime).await;
    assert!(!shared.is_watched());
    let (runtime, _, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    drop(runtime);
    until(|| !shared.is_watched()).await;
}

#[tokio::test]
async fn a_claim_that_is_in_flight_when_the_runtime_stops_itself_runs_nothing() {
    let runs = Arc::new(AtomicU32::new(0));
    let ran = Arc::clone(&runs);
    let (runtime, gated, _) = open(move |cx| {
        ran.fetch_add(1, Ordering::SeqCst);
        idle(cx)
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "first", RecoveryDisposition::ExternallyOwned).await;
    hold_renewal(&gated).await;
    let record = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { start(&shared, "p", RecoveryDisposition::OwnerBound).await })
    };
    until(|| gated.count() == 2).await;
    gated.pass(2);
    within(record).await.unwrap();
    until(|| gated.count() > 0).await;
    shared.fail_stop();
    let (settled, outcome) = oneshot::channel();
    gated.open_gate();
    until(|| shared.get("p").unwrap().unwrap().attempt == 1).await;
    tell(&shared, "p", ProcessMsg::Watch { settled });
    // It is idle: its claim has come back, and nothing came of it.
    assert_eq!(within(outcome).await.unwrap(), ShutdownOutcome::Idle);
    assert_eq!(runs.load(Ordering::SeqCst), 0);
    shut(&runtime).await;
}

#[tokio::test]
async fn what_runs_is_stopped_when_the_runtime_stops_itself() {
    let dropped = Arc::new(AtomicU32::new(0));
    let drops = Arc::clone(&dropped);
    let (runtime, _, _) = open(move |cx| {
        let dropped = Dropped(Arc::clone(&drops));
        async move {
            let _dropped = dropped;
            idle(cx).await
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::OwnerBound).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let owner = shared.owner().unwrap();
    shared.fail_stop();
    assert!(!owner.is_trusted(Duration::ZERO), "lost for good");
    until(|| dropped.load(Ordering::SeqCst) == 1).await;
    shut(&runtime).await;
}

#[tokio::test]
async fn an_actor_that_panics_off_the_map_takes_nothing_down() {
    let runtime = super::open(Work::default()).await;
    let shared = Arc::clone(&runtime.shared);
    for id in ["left", "there", "other"] {
        start(&shared, id, RecoveryDisposition::ExternallyOwned).await;
        note(&shared, id, 0).await.unwrap();
    }
    let actors = shared.active_actors();
    let (id, left) = actors.iter().find(|(id, _)| &**id == "left").unwrap();
    shared.leave(id, left);
    left.cast(ProcessMsg::Panic).unwrap();
    // The supervisor hears of them in their order: when it has dealt with the second one, it has
    // with the first.
    until(|| left.get_status() == ractor::ActorStatus::Stopped).await;
    tell(&shared, "there", ProcessMsg::Panic);
    until(|| {
        let actors = shared.active_actors();
        actors.iter().all(|(id, _)| &**id != "there")
    })
    .await;
    assert!(!shared.is_shutting_down());
    for id in ["left", "there", "other"] {
        note(&shared, id, 1).await.unwrap();
        assert_eq!(payloads_of(&shared, id).await, [0, 1]);
    }
    shut(&runtime).await;
}

async fn payloads_of(shared: &Arc<Shared>, id: &str) -> Vec<u64> {
    let events = shared.events(id, 0).await.unwrap();
    let numbers = events.iter().filter_map(|event| event.payload.as_u64());
    numbers.collect()
}

/// An attempt that waits for its cue, does something that is written, and is content when it is
/// run again.
async fn on_cue(what: &'static str) -> (Runtime, Arc<Gated>, Arc<Put>, Arc<Semaphore>) {
    let cue = Arc::new(Semaphore::new(0));
    let cues = Arc::clone(&cue);
    let (runtime, gated, put) = open(move |cx: ProcessContext| {
        let cue = Arc::clone(&cues);
        async move {
            if cx.attempt() > 1 {
                return Ok(json!(cx.attempt()));
            }
            cue.acquire().await.unwrap().forget();
            match what {
                "outcome" => return Ok(json!("done")),
                "emits and outcome" => {
                    cx.emit("note", 1).await?;
                    cx.emit("note", 2).await?;
                    return Ok(json!("done"));
                }
                "retry" => return Err(EngineFailure::new("again", "it may work").retryable()),
                "release" => return Err(EngineFailure::cancelled(cx.cancelled().await)),
                "emit" => cx.emit("note", 1).await?,
                "wait" | "wait ends" => drop(cx.wait_signal("go").await?),
                other => panic!("{other}"),
            }
            idle(cx).await
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    let retry = RetryPolicy::attempts(3);
    let request = request("p", RecoveryDisposition::Rerunnable).with_retry(retry);
    shared.start(request, StartAs::default()).await.unwrap();
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    (runtime, gated, put, cue)
}

/// What the first attempt was about to write came to the gate, its lease lapsed, and then that was
/// let through, before anybody could claim it.
async fn lapsed_at_the_gate(what: &'static str) -> (Runtime, Arc<Gated>) {
    let (runtime, gated, put, cue) = on_cue(what).await;
    let shared = Arc::clone(&runtime.shared);
    if what == "wait ends" {
        cue.add_permits(1);
        until(|| shared.get("p").unwrap().unwrap().facets.waiting).await;
    }
    hold_renewal(&gated).await;
    let mut writes = 2;
    match what {
        "wait ends" => {
            writes = 3;
            let shared = Arc::clone(&shared);
            let request = ProcessEventAppendRequest::signal("go", 7);
            let signal = prepare_signal("p", "go", "1", request).unwrap();
            tokio::spawn(async move { shared.append("p", signal, None).await });
        }
        "release" => {
            let reason = CancelReason::Shutdown;
            tell(&shared, "p", ProcessMsg::Stop { reason });
            cue.add_permits(1);
        }
        _ => cue.add_permits(1),
    }
    until(|| gated.count() == writes).await;
    put.0.fetch_add(LAPSED_MS, Ordering::SeqCst);
    gated.pass(writes);
    (runtime, gated)
}

/// `Condition::OwnerLive` beside the token, in `Process::conditions_of` for what an engine emits, for
/// waits and for another attempt, and in `Process::release`.
#[tokio::test]
async fn an_owner_that_lapsed_writes_nothing_but_an_outcome() {
    for what in ["emit", "wait", "wait ends", "retry", "release"] {
        let (runtime, gated) = lapsed_at_the_gate(what).await;
        let shared = Arc::clone(&runtime.shared);
        let found = shared.get("p").unwrap().unwrap();
        // Nothing but its start, and its wait with the signal.
        let events = shared.events("p", 0).await.unwrap();
        assert_eq!(events.len(), if what == "wait ends" { 3 } else { 1 });
        assert_eq!(found.facets.waiting, what == "wait ends", "{what}");
        assert!(!found.facets.backing_off, "{what}");
        assert!(!found.lease.unwrap().live, "{what}: it is not given back");
        gated.open_gate();
        let output = within(shared.await_output("p")).await.unwrap();
        assert_eq!(output, ProcessAwaitOutput::success(2), "{what}");
        let record = shared.record("p").unwrap().unwrap();
        let counted = (record.recoveries, record.retries);
        assert_eq!(counted, (1, 0), "{what}: the loss counts");
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn an_owner_that_lapsed_may_write_its_outcome_while_nobody_has_claimed_its_process() {
    let (runtime, gated) = lapsed_at_the_gate("outcome").await;
    let shared = Arc::clone(&runtime.shared);
    let found = shared.get("p").unwrap().unwrap();
    assert_eq!(found.lifecycle, Lifecycle::Completed);
    gated.open_gate();
    shut(&runtime).await;
}

/// What was sent in one set is taken apart: its outcome is the only thing that counts.
#[tokio::test]
async fn of_what_an_owner_that_lapsed_sends_together_only_the_outcome_is_written() {
    let (runtime, gated) = lapsed_at_the_gate("emits and outcome").await;
    let shared = Arc::clone(&runtime.shared);
    until(|| {
        gated.pass(1);
        shared.get("p").unwrap().unwrap().lifecycle == Lifecycle::Completed
    })
    .await;
    let events = shared.events("p", 0).await.unwrap();
    let types: Vec<_> = events.iter().map(|event| &*event.event_type).collect();
    assert_eq!(types, ["process.started", "process.completed"]);
    gated.open_gate();
    shut(&runtime).await;
}

/// `Condition::OwnerLive` in `KeeperState::renew`.
#[tokio::test]
async fn l4_a_renewal_that_comes_after_the_lapse_revives_nothing() {
    let (runtime, gated, put) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    let owner = shared.owner().unwrap().number;
    hold_renewal(&gated).await;
    let expires_at_ms = record_of(&shared.store, owner).expires_at_ms;
    // The next one is sent while the lease is live, and would make it last longer.
    put.0.store(200, Ordering::SeqCst);
    gated.pass(1);
    until(|| gated.count() == 1).await;
    put.0.store(LAPSED_MS, Ordering::SeqCst);
    gated.pass(1);
    let found = record_of(&shared.store, owner);
    assert_eq!(
        (found.expires_at_ms, found.retired),
        (expires_at_ms, false),
        "it has lapsed, and stays so"
    );
    gated.open_gate();
    until(|| shared.owner().is_some_and(|now| now.number != owner)).await;
    shut(&runtime).await;
}

/// `p` runs, and a child of it is about to be started.
async fn child_of(shared: &Arc<Shared>) -> ChildOf {
    start(shared, "p", RecoveryDisposition::OwnerBound).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let view = shared.store.view().unwrap();
    let Some(crate::store::read::IdEntry::Live(row)) = view.id("p").unwrap() else {
        panic!("p is there");
    };
    let loaded = view.load(row).unwrap().unwrap();
    let lease = loaded.edges.lease.unwrap();
    ChildOf {
        parent: Arc::new(loaded.registration),
        token: lease.token,
        owner: lease.owner,
        key: "child".into(),
        detached: false,
    }
}

fn children(shared: &Shared, parent: Incarnation) -> usize {
    let view = shared.store.view().unwrap();
    let rows = view.rows(&Index::ChildrenOf(parent), None, usize::MAX);
    rows.unwrap().len()
}

/// `Condition::Token` in `Shared::start_child`.
#[tokio::test]
async fn l3_an_attempt_without_the_current_token_starts_no_child() {
    let (runtime, _, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    let mut child = child_of(&shared).await;
    let (parent, token) = (child.parent.incarnation, child.token.get());
    child.token = FencingToken(token - 1);
    let request = request("unused", RecoveryDisposition::OwnerBound);
    let refused = shared.start_child(child, request).await.unwrap_err();
    assert!(
        matches!(refused, Error::Superseded { .. }),
        "{refused:?}, not under {token}"
    );
    assert_eq!(children(&shared, parent), 0);
    shut(&runtime).await;
}

/// `Condition::OwnerLive` in `Shared::start_child`.
#[tokio::test]
async fn an_owner_that_lapsed_starts_no_child() {
    let (runtime, gated, put) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    let child = child_of(&shared).await;
    let parent = child.parent.incarnation;
    hold_renewal(&gated).await;
    let starting = {
        let shared = Arc::clone(&shared);
        let request = request("unused", RecoveryDisposition::OwnerBound);
        tokio::spawn(async move { shared.start_child(child, request).await })
    };
    until(|| gated.count() == 2).await;
    put.0.fetch_add(LAPSED_MS, Ordering::SeqCst);
    gated.pass(2);
    let refused = within(starting).await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::Superseded { .. }), "{refused:?}");
    assert_eq!(children(&shared, parent), 0);
    gated.open_gate();
    shut(&runtime).await;
}

/// `Condition::LeaseGone`, and not `LeaseFree`, in `Settling::conditions`. The rules never ask
/// for an end by proof where there is none: this is for the day on which they err.
#[tokio::test]
async fn l5_the_reaper_ends_nothing_by_a_proof_that_is_none() {
    let (place, put) = (MemoryKv::shared(), Arc::new(Put::default()));
    let (first, gated) = open_at(&place, &put, idle).await;
    start(&first.shared, "p", RecoveryDisposition::OwnerBound).await;
    let shared = Arc::clone(&first.shared);
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    // The first host says nothing more, and the second one finds its lease lapsed.
    gated.shut();
    put.0.fetch_add(LAPSED_MS, Ordering::SeqCst);
    let (second, _) = open_at(&place, &put, idle).await;
    let standing = lease(&second.shared, "p");
    assert!(!standing.live);
    let view = second.shared.store.view().unwrap();
    let Some(crate::store::read::IdEntry::Live(row)) = view.id("p").unwrap() else {
        panic!("p is there");
    };
    drop(view);
    let ended = crate::actors::reaper::end_by_proof(&second.shared, "p", row).await;
    assert_eq!(ended.unwrap(), RecoveryStep::Overtaken, "refused");
    let found = second.shared.get("p").unwrap().unwrap();
    assert_eq!(found.lifecycle, Lifecycle::Running);
    shut(&second).await;
    gated.open_gate();
    shut(&first).await;
}

#[tokio::test]
async fn an_attempt_that_is_to_be_made_again_is_not_reported_as_finished() {
    let (runtime, gated, _, cue) = on_cue("retry").await;
    let shared = Arc::clone(&runtime.shared);
    hold_renewal(&gated).await;
    cue.add_permits(1);
    until(|| gated.count() == 2).await;
    let (settled, outcome) = oneshot::channel();
    tell(&shared, "p", ProcessMsg::Watch { settled });
    gated.open_gate();
    assert_eq!(within(outcome).await.unwrap(), ShutdownOutcome::Released);
    shut(&runtime).await;
}

#[tokio::test]
async fn a_shutdown_says_of_every_incarnation_that_it_is_gone_where_that_is_so() {
    let place: MemoryStore = MemoryKv::shared();
    let put = Arc::new(Put::default());
    let (runtime, _) = open_at(&place, &put, idle).await;
    let shared = Arc::clone(&runtime.shared);
    let mut owners = Vec::new();
    for n in 1..=2 {
        let owner = shared.owner().unwrap();
        // Something runs of it that does not yield.
        owner.task_began(FencingToken(n));
        shared.lose_owner(&owner);
        until(|| shared.owner().is_some_and(|now| now.number != owner.number)).await;
        owners.push(owner);
    }
    owners.push(shared.owner().unwrap());
    // Its task ends only now, and nobody looks before the runtime shuts down.
    owners[0].task_ended(FencingToken(1));
    shut(&runtime).await;
    let clock: Arc<dyn Clock> = Arc::clone(&put) as _;
    let after = ProcessStore::new(Gated::open(&place, &clock), clock);
    let gone = owners.iter().map(|owner| {
        let record = after.view().unwrap().owner(owner.number).unwrap();
        // One that a sweep has forgotten by now was gone before.
        record.is_none_or(|record| record.retired)
    });
    assert_eq!(gone.collect::<Vec<_>>(), [true, false, true]);
}
