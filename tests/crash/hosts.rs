//! Several runtimes on one store: what an exclusive store on disk cannot show.
//!
//! Each has a clock of its own that stands still, so that a host whose lease has lapsed by the
//! clock of another goes on believing in itself: a revenant. It is refused several times over: by
//! the sequence it decided on, by the rules once it has looked again, and by its token. That each
//! check inside the commit is needed is tested where nothing stands before it, in
//! `src/store/laws/leases.rs`; here it is that all of them together leave it no way.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use procession::*;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use super::common::*;

pub(crate) const TTL: Duration = Duration::from_secs(60 * 60);
pub(crate) const TTL_MS: u64 = 60 * 60 * 1_000;
/// Somewhere in 2026.
pub(crate) const NOON_MS: u64 = 1_795_435_200_000;

/// A wall clock that is set by hand, and time that passes only where it is told to.
#[derive(Debug)]
pub(crate) struct HandClock {
    wall_ms: AtomicU64,
    runs_since: Option<std::time::Instant>,
}

impl HandClock {
    pub(crate) fn at(wall_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            wall_ms: AtomicU64::new(wall_ms),
            runs_since: None,
        })
    }

    /// One by which time passes, whatever the wall clock does.
    pub(crate) fn running(wall_ms: u64) -> Arc<Self> {
        Arc::new(Self {
            wall_ms: AtomicU64::new(wall_ms),
            runs_since: Some(std::time::Instant::now()),
        })
    }

    pub(crate) fn set(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for HandClock {
    fn now_epoch_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
    fn monotonic(&self) -> Duration {
        let passed = self.runs_since.map(|since| since.elapsed());
        Duration::from_secs(1) + passed.unwrap_or_default()
    }
}

/// An attempt that has begun, in the hands of the test.
pub(crate) struct Attempt {
    pub(crate) cx: ProcessContext,
    pub(crate) finish: oneshot::Sender<Value>,
}

/// A look for what an attempt left behind, which goes on until the test answers.
struct Look {
    process_id: String,
    _goes_on: oneshot::Sender<()>,
}

/// Hands its attempts to the test, and ends as that says; and what it looks for, where they said what
/// they might leave.
struct Puppet {
    begun: mpsc::UnboundedSender<Attempt>,
    looks: mpsc::UnboundedSender<Look>,
}

#[async_trait::async_trait]
impl ProcessEngine for Puppet {
    fn kind(&self) -> &str {
        "puppet"
    }
    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        let (finish, value) = oneshot::channel();
        self.begun.send(Attempt { cx, finish }).unwrap();
        match value.await {
            Ok(value) => Ok(value),
            Err(_) => std::future::pending().await,
        }
    }
    fn survivor_key(&self, record: &ProcessRecord) -> Option<String> {
        Some(left(record.attempt))
    }
    async fn end_survivors(&self, event: &ProcessEvent) -> Vec<Survivor> {
        let (goes_on, answered) = oneshot::channel();
        let look = Look {
            process_id: event.process_id.clone(),
            _goes_on: goes_on,
        };
        self.looks.send(look).unwrap();
        let _ = answered.await;
        Vec::new()
    }
}

pub(crate) struct Host {
    pub(crate) supervisor: Supervisor,
    pub(crate) processes: Processes,
    attempts: Mutex<mpsc::UnboundedReceiver<Attempt>>,
    looks: Mutex<mpsc::UnboundedReceiver<Look>>,
}

impl Host {
    pub(crate) async fn open(
        store: &InMemoryStore,
        name: &str,
        clock: Arc<HandClock>,
        lease: LeaseTimings,
    ) -> Self {
        Self::sweeping(store, name, clock, lease, Duration::from_millis(100)).await
    }

    /// One that does not look by itself at what others wrote: it goes on believing in itself.
    async fn revenant(store: &InMemoryStore) -> Self {
        Self::sweeping(store, "one", HandClock::at(NOON_MS), hour(), TTL).await
    }

    async fn sweeping(
        store: &InMemoryStore,
        name: &str,
        clock: Arc<HandClock>,
        lease: LeaseTimings,
        every: Duration,
    ) -> Self {
        let (begun, attempts) = mpsc::unbounded_channel();
        let (looking, looks) = mpsc::unbounded_channel();
        let puppet = Puppet {
            begun,
            looks: looking,
        };
        let supervisor = Supervisor::in_memory_store(store)
            .owner_id(name)
            .clock(clock)
            .lease(lease)
            .engine(puppet)
            .sweep_every(every)
            .open()
            .await
            .unwrap();
        Self {
            processes: supervisor.processes(),
            supervisor,
            attempts: Mutex::new(attempts),
            looks: Mutex::new(looks),
        }
    }

    pub(crate) async fn attempt(&self) -> Attempt {
        let mut attempts = self.attempts.lock().unwrap();
        within(attempts.recv()).await.unwrap()
    }

    pub(crate) fn no_attempt(&self) {
        assert!(self.attempts.lock().unwrap().try_recv().is_err());
    }

    async fn step(&self, id: &str) -> Option<RecoveryStep> {
        let report = self.supervisor.recover().await.unwrap();
        let mut steps = report.processes.into_iter().filter(|(of, _)| of == id);
        steps.next().map(|(_, step)| step)
    }

    pub(crate) async fn get(&self, id: &str) -> ObservedProcess {
        self.processes.get(id).await.unwrap().unwrap()
    }
}

pub(crate) fn puppet(id: &str, disposition: RecoveryDisposition) -> ProcessStartRequest {
    work(id, "puppet", disposition).with_event_type(ProcessEventType::new("said"))
}

fn left(attempt: u32) -> String {
    format!("left/{attempt}")
}

fn said(by: &str) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new("said", json!({ "by": by }))
}

fn hour() -> LeaseTimings {
    LeaseTimings::from_ttl(TTL).unwrap()
}

async fn close_all<const N: usize>(hosts: [Host; N]) {
    for host in hosts {
        let report = host.supervisor.verify().await.unwrap();
        assert!(report.is_clean(), "{report:?}");
        close(&host.supervisor).await;
    }
}

#[tokio::test]
async fn a_second_host_takes_over_a_lapsed_lease_and_the_revenant_is_refused() {
    let store = InMemoryStore::shared();
    let one = Host::revenant(&store).await;
    let request = puppet("p", RecoveryDisposition::Rerunnable);
    one.processes.start(request, inline()).await.unwrap();
    let first = one.attempt().await;
    first.cx.emit_durable(said("one")).await.unwrap();

    // While the lease is live, nobody else touches it.
    let just_before = HandClock::at(NOON_MS + TTL_MS - 1);
    let patient = Host::open(&store, "patient", just_before, hour()).await;
    let step = patient.step("p").await;
    let leased = LeaveReason::Leased;
    assert_eq!(step, Some(RecoveryStep::Left { reason: leased }));
    assert!(patient.get("p").await.lease.unwrap().live);
    patient.no_attempt();

    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    let second = two.attempt().await;
    assert_eq!(second.cx.attempt(), 2);
    assert!(second.cx.fencing_token() > first.cx.fencing_token(), "L2");
    let lease = two.get("p").await.lease.unwrap();
    assert_eq!(lease.fencing_token, second.cx.fencing_token());
    assert_eq!(lease.owner.owner_id, "two");

    // The revenant: by its own clock it is alive.
    assert_eq!(first.cx.cancel_reason(), None);
    let refused = first.cx.emit_durable(said("revenant")).await.unwrap_err();
    assert!(matches!(refused, Error::Superseded { .. }), "{refused:?}");
    first.cx.lease_lost().await;

    second.cx.emit_durable(said("two")).await.unwrap();
    assert_eq!(two.get("p").await.lifecycle, Lifecycle::Running);
    second.finish.send(json!("two")).unwrap();
    assert_eq!(
        output(&two.processes, "p").await,
        ProcessAwaitOutput::success("two")
    );
    let seen = one.processes.events("p", 0).await.unwrap();
    let by: Vec<_> = seen
        .iter()
        .filter_map(|e| e.payload["by"].as_str())
        .collect();
    assert_eq!(by, ["one", "two"], "nothing of the revenant: {seen:?}");
    close_all([one, patient, two]).await;
}

#[tokio::test]
async fn the_outcome_of_a_revenant_does_not_land() {
    let store = InMemoryStore::shared();
    let one = Host::revenant(&store).await;
    let request = puppet("p", RecoveryDisposition::Rerunnable);
    one.processes.start(request, inline()).await.unwrap();
    let first = one.attempt().await;
    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    let second = two.attempt().await;

    first.finish.send(json!("revenant")).unwrap();
    // Refused, it gives the process up; only then is the question how it stands worth asking.
    within(first.cx.lease_lost()).await;
    assert_eq!(two.get("p").await.lifecycle, Lifecycle::Running);
    assert_eq!(
        event_types(&two.processes, "p").await,
        ["process.started", "process.owner_lost", "process.started"]
    );
    second.finish.send(json!("two")).unwrap();
    for host in [&two, &one] {
        let ended = output(&host.processes, "p").await;
        assert_eq!(ended, ProcessAwaitOutput::success("two"));
    }
    close_all([one, two]).await;
}

/// L5: elapsed time proves nothing.
#[tokio::test]
async fn an_owner_bound_lapse_without_proof_is_left_stale_until_somebody_asks() {
    let store = InMemoryStore::shared();
    let one = Host::revenant(&store).await;
    let request = puppet("p", RecoveryDisposition::OwnerBound);
    one.processes.start(request, inline()).await.unwrap();
    let first = one.attempt().await;

    // A1: a request ends nothing while the lease lives, and a lapse alone ends nothing either.
    let other = puppet("q", RecoveryDisposition::OwnerBound);
    one.processes.start(other, inline()).await.unwrap();
    let asked = one.attempt().await;
    one.processes
        .request_abandon("q", "ops", None)
        .await
        .unwrap();
    let just_before = HandClock::at(NOON_MS + TTL_MS - 1);
    let patient = Host::open(&store, "patient", just_before, hour()).await;
    let leased = LeaveReason::Leased;
    assert_eq!(
        patient.step("q").await,
        Some(RecoveryStep::Left { reason: leased })
    );
    close_all([patient]).await;
    assert_eq!(
        one.step("q").await,
        Some(RecoveryStep::Left { reason: leased }),
        "it runs here"
    );
    asked.cx.emit_durable(said("one")).await.unwrap();

    let year_ms = 365 * 24 * TTL_MS;
    for later_ms in [TTL_MS, year_ms] {
        let two = Host::open(&store, "two", HandClock::at(NOON_MS + later_ms), hour()).await;
        let stale = LeaveReason::Stale;
        assert_eq!(
            two.step("p").await,
            Some(RecoveryStep::Left { reason: stale })
        );
        let seen = two.get("p").await;
        assert_eq!(seen.lifecycle, Lifecycle::Running);
        let lease = seen.lease.unwrap();
        assert!(!lease.live, "visibly stale: {lease:?}");
        assert_eq!(lease.owner.owner_id, "one");
        two.no_attempt();
        close_all([two]).await;
    }

    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    two.processes
        .request_abandon("p", "ops", Some("the machine burnt down".into()))
        .await
        .unwrap();
    for id in ["p", "q"] {
        let ProcessAwaitOutput::Abandoned { evidence } = output(&two.processes, id).await else {
            panic!("{id} was not abandoned");
        };
        assert_eq!(evidence.writer, AbandonWriter::ReconciledRequest);
        assert_eq!(evidence.proof, AbandonProof::Lapse);
        assert_eq!(evidence.requested_by.as_deref(), Some("ops"));
        assert_eq!(evidence.owner.unwrap().owner_id, "one");
    }
    // A3: it returns, and is fenced.
    for attempt in [first, asked] {
        attempt.finish.send(json!("revenant")).unwrap();
        within(attempt.cx.lease_lost()).await;
    }
    let types = event_types(&two.processes, "p").await;
    let expected = [
        "process.started",
        "process.abandon_requested",
        "process.abandoned",
    ];
    assert_eq!(types, expected);
    two.no_attempt();
    close_all([one, two]).await;
}

/// L5: what the owner may still be at work on is touched only once it has lost its lease for good. That
/// the commit before may be refused is tested in `src/actors/tests/lapses.rs`.
#[tokio::test]
async fn what_a_lapsed_owner_left_is_looked_for_when_its_loss_is_durable() {
    let store = InMemoryStore::shared();
    let one = Host::revenant(&store).await;
    let mut attempts = Vec::new();
    for (id, disposition) in [
        ("again", RecoveryDisposition::Rerunnable),
        ("given up", RecoveryDisposition::OwnerBound),
    ] {
        let request = puppet(id, disposition);
        one.processes.start(request, inline()).await.unwrap();
        let attempt = one.attempt().await;
        let event = said("one").with_replay_key(Some(left(1)));
        attempt.cx.emit_durable(event).await.unwrap();
        attempts.push(attempt);
    }
    let abandon = one.processes.request_abandon("given up", "ops", None);
    abandon.await.unwrap();

    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    let mut looked_for = Vec::new();
    for _ in 0..2 {
        let look = within(two.looks.lock().unwrap().recv()).await.unwrap();
        let seen = two.get(&look.process_id).await;
        assert_eq!(seen.lease.unwrap().owner.owner_id, "two");
        assert_eq!(seen.lifecycle, Lifecycle::Running);
        two.no_attempt();
        looked_for.push(look.process_id);
    }
    looked_for.sort_unstable();
    assert_eq!(looked_for, ["again", "given up"]);
    assert_eq!(two.attempt().await.cx.attempt(), 2);
    for attempt in attempts {
        attempt.finish.send(json!("revenant")).unwrap();
        within(attempt.cx.lease_lost()).await;
    }
    close_all([one, two]).await;
}

/// A lapse that nobody acted on: the outcome may still be written, and is.
#[tokio::test]
async fn a_lapsed_owner_that_nobody_replaced_still_writes_its_outcome() {
    let store = InMemoryStore::shared();
    let one = Host::revenant(&store).await;
    let request = puppet("p", RecoveryDisposition::OwnerBound);
    one.processes.start(request, inline()).await.unwrap();
    let first = one.attempt().await;
    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    two.step("p").await;
    first.finish.send(json!("late")).unwrap();
    for host in [&one, &two] {
        let ended = output(&host.processes, "p").await;
        assert_eq!(ended, ProcessAwaitOutput::success("late"));
    }
    close_all([one, two]).await;
}

/// What another host was asked, and what it took over, reaches what is executed here although nothing
/// is written here: by the next sweep.
#[tokio::test]
async fn what_other_hosts_wrote_reaches_what_is_executed() {
    let store = InMemoryStore::shared();
    let one = Host::open(&store, "one", HandClock::at(NOON_MS), hour()).await;
    let mut attempts = Vec::new();
    for (id, disposition) in [
        ("asked", RecoveryDisposition::Rerunnable),
        ("taken", RecoveryDisposition::Rerunnable),
        ("given up", RecoveryDisposition::OwnerBound),
    ] {
        let request = puppet(id, disposition).with_event_type(ProcessEventType::signal("go"));
        one.processes.start(request, inline()).await.unwrap();
        attempts.push(one.attempt().await);
    }
    let [asked, taken, given_up] = attempts.try_into().ok().unwrap();

    let two = Host::open(&store, "two", HandClock::at(NOON_MS), hour()).await;
    let waits = asked.cx.clone();
    let waiting = tokio::spawn(async move { waits.wait_signal("go").await });
    until(&two.processes, "asked", |p| p.facets.waiting).await;
    let go = ProcessEventAppendRequest::signal("go", 7);
    let sent = two.processes.signal("asked", "go", "1", go, inline());
    let sent = sent.await.unwrap();
    assert_eq!(within(waiting).await.unwrap().unwrap(), sent);

    assert_eq!(asked.cx.cancel_reason(), None);
    two.processes.cancel("asked", inline()).await.unwrap();
    let reason = within(asked.cx.cancelled()).await;
    assert!(
        matches!(reason, CancelReason::Requested { .. }),
        "{reason:?}"
    );
    asked.finish.send(json!("done all the same")).unwrap();
    let ended = output(&two.processes, "asked").await;
    assert_eq!(ended, ProcessAwaitOutput::success("done all the same"));

    two.processes
        .request_abandon("given up", "ops", None)
        .await
        .unwrap();
    let late = HandClock::at(NOON_MS + TTL_MS);
    let three = Host::open(&store, "three", late, hour()).await;
    let again = three.attempt().await;
    assert_eq!(again.cx.process_id(), "taken");
    for attempt in [taken, given_up] {
        within(attempt.cx.lease_lost()).await;
    }
    again.finish.send(json!("taken over")).unwrap();
    let ended = output(&one.processes, "taken").await;
    assert_eq!(ended, ProcessAwaitOutput::success("taken over"));
    let ended = output(&one.processes, "given up").await;
    assert_eq!(ended.state(), TerminalState::Abandoned);
    close_all([one, two, three]).await;
}

#[tokio::test]
async fn a_shutdown_says_of_what_another_host_ended_meanwhile_how_it_ended() {
    let store = InMemoryStore::shared();
    let one = Host::open(&store, "one", HandClock::at(NOON_MS), hour()).await;
    let request = puppet("p", RecoveryDisposition::OwnerBound);
    one.processes.start(request, inline()).await.unwrap();
    let attempt = one.attempt().await;
    let two = Host::open(&store, "two", HandClock::at(NOON_MS + TTL_MS), hour()).await;
    let (report, ()) = tokio::join!(close(&one.supervisor), async {
        within(async {
            while one.processes.cancel("none", inline()).await != Err(Error::ShuttingDown) {
                pause().await;
            }
        })
        .await;
        let asked = two.processes.request_abandon("p", "ops", None).await;
        asked.unwrap();
    });
    assert_eq!(report.abandoned, ["p"], "{report:?}");
    assert_eq!(attempt.cx.cancel_reason(), Some(CancelReason::LeaseLost));
    close_all([two]).await;
}
