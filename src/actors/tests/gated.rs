//! A store whose commits wait until the test lets them go: what is in flight, refused, lapsed or
//! dropped meanwhile.

use std::collections::VecDeque;

use tokio::sync::Semaphore;

use super::behind::{LogReads, Noting};
use super::*;
use crate::store::error::StoreError;
use crate::store::kv::{Counter, Kv, KvStats, KvView, Proposal};
use crate::store::memory_kv::MemoryStore;

/// The machine in memory behind a gate.
#[derive(Debug)]
pub(super) struct Gated {
    kv: MemoryKv,
    held: Mutex<Held>,
    /// Closing it takes until this is let go of.
    pub(super) stalled: Mutex<()>,
    /// So many views have expired before anything is read on them.
    pub(super) expired: AtomicU32,
    /// What is asked of logs.
    pub(super) log: Arc<LogReads>,
}

#[derive(Default)]
struct Held {
    shut: bool,
    proposals: VecDeque<Box<dyn Proposal>>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} held", self.proposals.len())
    }
}

impl Gated {
    pub(super) fn open(store: &MemoryStore, clock: &Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self {
            kv: store.open(Arc::clone(clock)).unwrap(),
            held: Mutex::default(),
            stalled: Mutex::default(),
            expired: AtomicU32::default(),
            log: Arc::default(),
        })
    }

    pub(super) fn shut(&self) {
        self.held.lock().unwrap().shut = true;
    }

    pub(super) fn count(&self) -> usize {
        self.held.lock().unwrap().proposals.len()
    }

    /// Lets so many of them go, in their order.
    pub(super) fn pass(&self, count: usize) {
        for _ in 0..count {
            let next = self.held.lock().unwrap().proposals.pop_front();
            if let Some(next) = next {
                self.kv.submit(next);
            }
        }
    }

    /// Lets one of them go before others.
    fn pass_at(&self, index: usize) {
        let held = self.held.lock().unwrap().proposals.remove(index);
        self.kv.submit(held.unwrap());
    }

    pub(super) fn open_gate(&self) {
        loop {
            let mut held = self.held.lock().unwrap();
            let Some(next) = held.proposals.pop_front() else {
                held.shut = false;
                return;
            };
            drop(held);
            self.kv.submit(next);
        }
    }
}

impl Kv for Gated {
    fn submit(&self, proposal: Box<dyn Proposal>) {
        let mut held = self.held.lock().unwrap();
        if held.shut {
            held.proposals.push_back(proposal);
            return;
        }
        drop(held);
        self.kv.submit(proposal);
    }
    fn view(&self) -> std::result::Result<Box<dyn KvView>, StoreError> {
        let fewer = |left: u32| left.checked_sub(1);
        let expired = self
            .expired
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer);
        if expired.is_ok() {
            return Err(StoreError::ViewExpired { held_ms: 5_000 });
        }
        Ok(Noting::over(self.kv.view()?, &self.log))
    }
    fn allocate(&self, counter: Counter) -> std::result::Result<u64, StoreError> {
        self.kv.allocate(counter)
    }
    fn epoch(&self) -> u64 {
        self.kv.epoch()
    }
    fn exclusive(&self) -> bool {
        self.kv.exclusive()
    }
    fn store_id(&self) -> uuid::Uuid {
        self.kv.store_id()
    }
    fn stats(&self) -> KvStats {
        self.kv.stats()
    }
    fn drain(&self) -> std::result::Result<(), StoreError> {
        self.kv.drain()
    }
    fn close(&self) -> std::result::Result<(), StoreError> {
        let _stalled = self.stalled.lock().unwrap();
        self.kv.close()
    }
}

/// Does what a closure says.
pub(super) struct Does<F>(pub(super) F);

#[async_trait::async_trait]
impl<F, R> ProcessEngine for Does<F>
where
    F: Fn(ProcessContext) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    fn kind(&self) -> &str {
        "work"
    }
    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        (self.0)(cx).await
    }
}

/// Clocks that stand where the test puts them.
#[derive(Debug, Default)]
pub(super) struct Put(pub(super) std::sync::atomic::AtomicU64);

impl Clock for Put {
    fn now_epoch_ms(&self) -> u64 {
        1_000_000 + self.0.load(Ordering::SeqCst)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(1_000 + self.0.load(Ordering::SeqCst))
    }
}

pub(super) async fn open<F, R>(does: F) -> (Runtime, Arc<Gated>, Arc<Put>)
where
    F: Fn(ProcessContext) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    let put = Arc::new(Put::default());
    let (runtime, gated) = open_at(&MemoryKv::private(), &put, does).await;
    (runtime, gated, put)
}

pub(super) async fn open_at<F, R>(
    store: &MemoryStore,
    put: &Arc<Put>,
    does: F,
) -> (Runtime, Arc<Gated>)
where
    F: Fn(ProcessContext) -> R + Send + Sync + 'static,
    R: Future<Output = EngineResult> + Send + 'static,
{
    let clock: Arc<dyn Clock> = Arc::clone(put) as _;
    let gated = Gated::open(store, &clock);
    let store = ProcessStore::new(Arc::clone(&gated) as _, Arc::clone(&clock));
    let config = RuntimeConfig {
        lease: LeaseTimings::from_ttl(Duration::from_millis(300)).unwrap(),
        sweep_every: Duration::from_millis(100),
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, clock, vec![Arc::new(Does(does))])
        .await
        .unwrap();
    (runtime, gated)
}

pub(super) async fn idle(_cx: ProcessContext) -> EngineResult {
    std::future::pending().await
}

/// Heartbeats go through the gate as well, but never while it is open: the clock stands still, so
/// there is at the most one on its way.
async fn send_notes(
    shared: &Arc<Shared>,
    gated: &Gated,
    refused: usize,
) -> JoinSet<(usize, Result<ProcessEvent>)> {
    let nobody = SessionScope::new("nobody");
    let mut commands = JoinSet::new();
    for n in 1..=9_usize {
        let granted_to = (n == refused).then(|| nobody.clone());
        let before = gated.count();
        let shared = Arc::clone(shared);
        commands.spawn(async move {
            let request = ProcessEventAppendRequest::new("note", n);
            let event = prepare_event("p", request).unwrap();
            (n, shared.append("p", event, granted_to.as_ref()).await)
        });
        until(|| gated.count() > before).await;
    }
    commands
}

async fn payloads(shared: &Arc<Shared>) -> Vec<u64> {
    let events = shared.events("p", 0).await.unwrap();
    events
        .iter()
        .filter_map(|event| event.payload.as_u64())
        .collect()
}

#[tokio::test]
async fn nothing_overtakes_what_was_refused_with_another() {
    for passed_before_more in 0..9 {
        let (runtime, gated, _) = open(idle).await;
        let shared = Arc::clone(&runtime.shared);
        start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
        gated.shut();
        let mut commands = send_notes(&shared, &gated, 3).await;
        // Some come back, and more arrives while the others have not.
        gated.pass(passed_before_more);
        tokio::time::sleep(Duration::from_millis(5)).await;
        let late = {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { note(&shared, "p", 10).await })
        };
        tokio::time::sleep(Duration::from_millis(5)).await;
        gated.open_gate();
        while let Some(answer) = within(commands.join_next()).await {
            let (n, answer) = answer.unwrap();
            assert_eq!(answer.is_err(), n == 3, "{n}: {answer:?}");
        }
        within(late).await.unwrap().unwrap();
        assert_eq!(payloads(&shared).await, [1, 2, 4, 5, 6, 7, 8, 9, 10]);
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn an_answer_that_rests_on_what_is_in_flight_waits_for_it() {
    let (runtime, gated, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    note(&shared, "p", 0).await.unwrap();
    gated.shut();
    let send = |content: usize, granted_to: Option<SessionScope>| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let request =
                ProcessEventAppendRequest::new("note", content).with_replay_key(Some("k".into()));
            let event = prepare_event("p", request).unwrap();
            shared.append("p", event, granted_to.as_ref()).await
        })
    };
    // The first is refused in its commit; the others rest on it: a replay, and a conflict.
    let first = send(1, Some(SessionScope::new("nobody")));
    until(|| gated.count() > 0).await;
    let replay = send(1, None);
    tokio::time::sleep(Duration::from_millis(5)).await;
    let conflict = send(2, None);
    tokio::time::sleep(Duration::from_millis(5)).await;
    assert!(!replay.is_finished() && !conflict.is_finished());
    gated.open_gate();
    assert_eq!(within(first).await.unwrap(), Err(Error::unknown("p")));
    assert_eq!(within(replay).await.unwrap().unwrap().sequence, 2);
    let conflict = within(conflict).await.unwrap();
    assert!(
        matches!(conflict, Err(Error::Conflict { .. })),
        "{conflict:?}"
    );
    assert_eq!(payloads(&shared).await, [0, 1]);
    shut(&runtime).await;
}

#[tokio::test]
async fn an_engines_events_keep_their_order_when_a_hosts_write_is_refused_among_them() {
    for passed in 0..12 {
        let steps = Arc::new(Semaphore::new(0));
        let step = Arc::clone(&steps);
        let (runtime, gated, _) = open(move |cx: ProcessContext| {
            let step = Arc::clone(&step);
            async move {
                for n in 100..110 {
                    cx.emit("note", n).await?;
                    if n == 104 {
                        // The rest comes while some of this is refused with another.
                        step.acquire().await.unwrap().forget();
                    }
                }
                step.acquire().await.unwrap().forget();
                Ok(Value::Null)
            }
        })
        .await;
        let shared = Arc::clone(&runtime.shared);
        gated.shut();
        let record = {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { start(&shared, "p", RecoveryDisposition::Rerunnable).await })
        };
        until(|| gated.count() > 0).await;
        gated.pass(1);
        within(record).await.unwrap();
        until(|| gated.count() > 0).await;
        gated.pass(1);
        // The claim has landed; what the attempt says is held.
        until(|| gated.count() > 0).await;
        let mut commands = send_notes(&shared, &gated, 1).await;
        gated.pass(passed);
        tokio::time::sleep(Duration::from_millis(5)).await;
        steps.add_permits(1);
        tokio::time::sleep(Duration::from_millis(5)).await;
        gated.open_gate();
        while let Some(answer) = within(commands.join_next()).await {
            let (n, answer) = answer.unwrap();
            assert_eq!(answer.is_err(), n == 1, "{n}: {answer:?}");
        }
        steps.add_permits(1);
        within(shared.await_output("p")).await.unwrap();
        let (emitted, sent): (Vec<_>, Vec<_>) =
            payloads(&shared).await.into_iter().partition(|n| *n >= 100);
        assert_eq!(emitted, (100..110).collect::<Vec<_>>());
        assert_eq!(sent, (2..=9).collect::<Vec<_>>());
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn a_claim_that_comes_back_after_the_lapse_runs_nothing_in_its_name() {
    for disposition in [
        RecoveryDisposition::Rerunnable,
        RecoveryDisposition::OwnerBound,
    ] {
        let runs = Arc::new(Mutex::new(Vec::new()));
        let ran = Arc::clone(&runs);
        let (runtime, gated, put) = open(move |cx: ProcessContext| {
            ran.lock().unwrap().push(cx.attempt());
            async move { Ok(json!(cx.attempt())) }
        })
        .await;
        let shared = Arc::clone(&runtime.shared);
        let owner = shared.owner().unwrap();
        gated.shut();
        let record = {
            let shared = Arc::clone(&shared);
            tokio::spawn(async move { start(&shared, "p", disposition).await })
        };
        until(|| gated.count() > 0).await;
        gated.pass(1);
        within(record).await.unwrap();
        // The claim is on its way when trust in the heartbeat ends, which is before the lease does:
        // it is accepted all the same, and comes back too late.
        until(|| gated.count() > 0).await;
        put.0.fetch_add(290, Ordering::SeqCst);
        until(|| shared.owner().is_none_or(|now| now.number != owner.number)).await;
        gated.open_gate();
        let found = within(shared.await_output("p")).await.unwrap();
        let runs = runs.lock().unwrap().clone();
        match disposition {
            RecoveryDisposition::Rerunnable => {
                assert_eq!(found, ProcessAwaitOutput::success(2));
                assert_eq!(runs, [2]);
            }
            RecoveryDisposition::OwnerBound | RecoveryDisposition::ExternallyOwned => {
                assert_eq!(found.state(), TerminalState::Abandoned);
                assert_eq!(runs, Vec::<u32>::new());
            }
        }
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn a_wait_dropped_while_its_end_is_in_flight_loses_no_signal() {
    let drop_it = Arc::new(Semaphore::new(0));
    let dropped = Arc::clone(&drop_it);
    let (runtime, gated, _) = open(move |cx: ProcessContext| {
        let dropped = Arc::clone(&dropped);
        async move {
            tokio::select! {
                _ = cx.wait_signal("go") => return Ok(json!("seen too early")),
                permit = dropped.acquire() => drop(permit),
            }
            let first = cx.wait_signal("go").await?;
            let second = cx.wait_signal("go").await?;
            Ok(json!([first.payload, second.payload]))
        }
    })
    .await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.waiting).await;
    gated.shut();
    let send = |n: u64| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let request = ProcessEventAppendRequest::signal("go", n);
            let signal = prepare_signal("p", "go", &n.to_string(), request).unwrap();
            shared.append("p", signal, None).await
        })
    };
    let one = send(1);
    // The signal, and the end of the wait that it is for, are both on their way.
    until(|| gated.count() >= 2).await;
    drop_it.add_permits(1);
    tokio::time::sleep(Duration::from_millis(10)).await;
    gated.open_gate();
    within(one).await.unwrap().unwrap();
    within(send(2)).await.unwrap().unwrap();
    let found = within(shared.await_output("p")).await.unwrap();
    assert_eq!(found, ProcessAwaitOutput::success(json!([1, 2])));
    shut(&runtime).await;
}

#[tokio::test]
async fn a_shutdown_with_commands_in_flight_answers_them() {
    let (runtime, gated, _) = open(idle).await;
    let runtime = Arc::new(runtime);
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    gated.shut();
    let mut commands = send_notes(&shared, &gated, 0).await;
    let shutting = {
        let runtime = Arc::clone(&runtime);
        tokio::spawn(async move { runtime.shutdown(Duration::from_secs(5)).await })
    };
    until(|| shared.is_shutting_down()).await;
    gated.open_gate();
    while let Some(answer) = within(commands.join_next()).await {
        let (n, answer) = answer.unwrap();
        assert_eq!(*answer.unwrap().payload, json!(n));
    }
    within(shutting).await.unwrap().unwrap();
    assert_eq!(note(&shared, "p", 1).await, Err(Error::ShuttingDown));
}

/// The heartbeat that is on its way while the clock stands still: no other one follows it.
async fn hold_heartbeat(gated: &Gated) {
    gated.shut();
    until(|| gated.count() == 1).await;
}

#[tokio::test]
async fn a_wake_is_announced_although_its_actor_is_gone() {
    let (runtime, gated, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    let target = SessionScope::new("s");
    let wake = WakeSemantics::new(Selector::constant("hi"));
    let request = request("p", RecoveryDisposition::ExternallyOwned)
        .with_event_type(ProcessEventType::new("ping").with_wake(wake))
        .with_wake_target(Some(target.clone()));
    shared.start(request, StartAs::default()).await.unwrap();
    note(&shared, "p", 0).await.unwrap();
    let waiting = {
        let (shared, target) = (Arc::clone(&shared), target.clone());
        tokio::spawn(async move { shared.next_wakes(&target, 0).await })
    };
    hold_heartbeat(&gated).await;
    let sending = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let ping = ProcessEventAppendRequest::new("ping", "hi");
            shared
                .append("p", prepare_event("p", ping).unwrap(), None)
                .await
        })
    };
    until(|| gated.count() == 2).await;
    tell(&shared, "p", ProcessMsg::Panic);
    let sent = within(sending).await.unwrap();
    assert!(matches!(sent, Err(Error::CommitUnknown { .. })), "{sent:?}");
    assert!(!waiting.is_finished());
    gated.open_gate();
    let wakes = within(waiting).await.unwrap().unwrap();
    assert_eq!(wakes.len(), 1);
    shut(&runtime).await;
}

/// Whoever asked may be gone by the time it is committed.
#[tokio::test]
async fn a_start_that_nobody_waits_for_any_more_runs_all_the_same() {
    let (runtime, gated, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    hold_heartbeat(&gated).await;
    let starting = {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { start(&shared, "p", RecoveryDisposition::Rerunnable).await })
    };
    until(|| gated.count() == 2).await;
    starting.abort();
    let _ = starting.await;
    gated.open_gate();
    until(|| {
        let found = shared.get("p").unwrap();
        found.is_some_and(|p| p.facets.started)
    })
    .await;
    shut(&runtime).await;
}

/// Whoever is overtaken each time is told that, and not that there is nothing to give.
#[tokio::test]
async fn a_transfer_that_is_always_overtaken_says_so() {
    let (runtime, gated, _) = open(idle).await;
    let shared = Arc::clone(&runtime.shared);
    let (from, to) = (SessionScope::new("from"), SessionScope::new("to"));
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    let descriptor = ProcessHandleDescriptor::default();
    shared.grant(&from, "p", descriptor.clone()).await.unwrap();
    hold_heartbeat(&gated).await;
    let transferring = {
        let (shared, from) = (Arc::clone(&shared), from.clone());
        tokio::spawn(async move { shared.transfer(&[from], &to, &["p".to_owned()]).await })
    };
    for _ in 0..16 {
        until(|| gated.count() == 2).await;
        let revoking = {
            let (shared, from) = (Arc::clone(&shared), from.clone());
            tokio::spawn(async move { shared.revoke(&from, "p").await })
        };
        until(|| gated.count() == 3).await;
        gated.pass_at(2);
        within(revoking).await.unwrap().unwrap();
        let granting = {
            let (shared, from, descriptor) =
                (Arc::clone(&shared), from.clone(), descriptor.clone());
            tokio::spawn(async move { shared.grant(&from, "p", descriptor).await })
        };
        until(|| gated.count() == 3).await;
        // Revoked, refused, granted: the next look finds it possible again.
        gated.pass_at(1);
        gated.pass_at(1);
        within(granting).await.unwrap().unwrap();
    }
    let overtaken = within(transferring).await.unwrap();
    assert!(
        matches!(overtaken, Err(Error::Overloaded { limit: 16, .. })),
        "{overtaken:?}"
    );
    gated.open_gate();
    shut(&runtime).await;
}

#[tokio::test]
async fn a_disk_that_stalls_does_not_hold_up_a_shutdown_for_good() {
    for commits_stall in [true, false] {
        let (runtime, gated, _) = open(idle).await;
        let shared = Arc::clone(&runtime.shared);
        start(&shared, "p", RecoveryDisposition::OwnerBound).await;
        until(|| shared.get("p").unwrap().unwrap().facets.started).await;
        let (locked, lock) = tokio::sync::oneshot::channel();
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let stalls = {
            let gated = Arc::clone(&gated);
            std::thread::spawn(move || {
                let _stalled = gated.stalled.lock().unwrap();
                locked.send(()).unwrap();
                gone.recv().unwrap();
            })
        };
        lock.await.unwrap();
        if commits_stall {
            gated.shut();
        }
        let failed = within(runtime.shutdown(Duration::ZERO)).await.unwrap_err();
        let text = failed.to_string();
        assert!(text.contains("may still be held"), "{text}");
        // What could not be written is named.
        assert_eq!(text.contains("not written: 1 (p)"), commits_stall, "{text}");
        assert_eq!(
            within(runtime.shutdown(Duration::ZERO)).await,
            Err(failed),
            "the same for every later call"
        );
        go.send(()).unwrap();
        stalls.join().unwrap();
    }
}
