//! Leases under clocks that jump and owners that stall.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so, and runs on a machine of today"
)]

mod common;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use procession::*;
use serde_json::json;

/// The system's clocks, moved.
#[derive(Debug, Default)]
struct Moved {
    system: SystemClock,
    wall_ms: AtomicI64,
    /// Where set, what the wall clock shows.
    shows_ms: Mutex<Option<u64>>,
    monotonic_ms: AtomicU64,
}

impl Moved {
    fn wall(&self, by_ms: i64) {
        self.wall_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    fn show(&self, ms: Option<u64>) {
        *self.shows_ms.lock().unwrap() = ms;
    }

    /// Time passes for everybody, and nobody was there to see it.
    fn stall(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap();
        self.wall(i64::try_from(ms).unwrap());
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for Moved {
    fn now_epoch_ms(&self) -> u64 {
        if let Some(shows) = *self.shows_ms.lock().unwrap() {
            return shows;
        }
        let moved = self.wall_ms.load(Ordering::SeqCst);
        self.system.now_epoch_ms().saturating_add_signed(moved)
    }

    fn monotonic(&self) -> Duration {
        let moved = self.monotonic_ms.load(Ordering::SeqCst);
        self.system.monotonic() + Duration::from_millis(moved)
    }
}

const TTL: Duration = Duration::from_millis(1_200);

fn timings() -> LeaseTimings {
    LeaseTimings::from_ttl(TTL).unwrap()
}

/// Counts runs, and refuses to run beside itself.
#[derive(Clone, Default)]
struct Runs(
    Arc<Mutex<HashMap<String, Vec<FencingToken>>>>,
    Arc<Mutex<HashMap<String, u32>>>,
);

impl Runs {
    fn tokens(&self, id: &str) -> Vec<FencingToken> {
        self.0.lock().unwrap().get(id).cloned().unwrap_or_default()
    }

    fn engine(&self) -> impl ProcessEngine {
        let runs = self.clone();
        engine("work", move |cx: ProcessContext, _| {
            let runs = runs.clone();
            async move {
                let id = cx.process_id().to_owned();
                runs.0
                    .lock()
                    .unwrap()
                    .entry(id.clone())
                    .or_default()
                    .push(cx.fencing_token());
                let _alone = Alone::new(&runs, &id);
                let signal = cx.wait_signal("end").await?;
                Ok(json!([cx.attempt(), signal.payload]))
            }
        })
    }
}

struct Alone(Runs, String);

impl Alone {
    fn new(runs: &Runs, id: &str) -> Self {
        let mut at_once = runs.1.lock().unwrap();
        let count = at_once.entry(id.to_owned()).or_default();
        *count += 1;
        assert_eq!(*count, 1, "{id} is executed twice at once");
        Self(runs.clone(), id.to_owned())
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        *self.0.1.lock().unwrap().get_mut(&self.1).unwrap() -= 1;
    }
}

fn with_end(request: ProcessStartRequest) -> ProcessStartRequest {
    request.with_event_type(ProcessEventType::signal("end"))
}

async fn end(processes: &Processes, id: &str) {
    let request = ProcessEventAppendRequest::signal("end", 1);
    processes
        .signal(id, "end", "1", request, inline())
        .await
        .unwrap();
}

async fn open(place: &Place, runs: &Runs, clock: &Arc<Moved>) -> Supervisor {
    let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
    place
        .builder()
        .engine(runs.engine())
        .lease(timings())
        .sweep_every(Duration::from_millis(50))
        .clock(clock)
        .open()
        .await
        .unwrap()
}

#[tokio::test]
async fn l6_nothing_ends_and_nothing_runs_twice_because_a_wall_clock_jumps() {
    for place in Place::both() {
        let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
        let supervisor = open(&place, &runs, &clock).await;
        let processes = supervisor.processes();
        processes
            .start(with_end(owner_bound("bound", "work")), inline())
            .await
            .unwrap();
        processes
            .start(with_end(rerunnable("again", "work")), inline())
            .await
            .unwrap();
        for id in ["bound", "again"] {
            until(&processes, id, |p| p.facets.waiting).await;
        }
        const DAY: i64 = 86_400_000;
        let ttl = i64::try_from(TTL.as_millis()).unwrap();
        let jumps = [1_000, -1_000, ttl, -ttl, DAY, -DAY];
        for jump in jumps {
            clock.wall(jump);
            // Two renewals come and go.
            tokio::time::sleep(TTL / 3 * 2).await;
            supervisor.recover().await.unwrap();
        }
        for shows in [0, u64::MAX] {
            clock.show(Some(shows));
            tokio::time::sleep(TTL / 3 * 2).await;
            supervisor.recover().await.unwrap();
        }
        clock.show(None);
        for id in ["bound", "again"] {
            end(&processes, id).await;
            assert_eq!(
                output(&processes, id).await,
                ProcessAwaitOutput::success(json!([1, 1]))
            );
            assert_eq!(runs.tokens(id).len(), 1);
        }
        close_clean(&supervisor).await;
    }
}

const HOUR: Duration = Duration::from_secs(3_600);

/// To be tried again an hour after its failure, and ended three hours after its start.
fn tried_again(id: &str) -> ProcessStartRequest {
    rerunnable(id, "fails-once")
        .with_retry(RetryPolicy::attempts(2).with_backoff(Backoff::fixed(HOUR)))
        .with_timeout(Some(HOUR * 3))
}

async fn open_timed(place: &Place, runs: &Runs, clock: &Arc<Moved>) -> Supervisor {
    place
        .reopen(|builder| {
            builder
                .engine(runs.engine())
                .engine(fails_once())
                .lease(timings())
                .sweep_every(Duration::from_millis(50))
                .clock(Arc::clone(clock) as Arc<dyn Clock>)
        })
        .await
}

/// Starts one that runs, limited to an hour, and one that pauses for an hour.
async fn start_timed(processes: &Processes, n: usize) {
    let runs = with_end(rerunnable(&format!("runs-{n}"), "work")).with_timeout(Some(HOUR));
    let pauses = tried_again(&format!("pauses-{n}"));
    for request in [runs, pauses] {
        processes.start(request, inline()).await.unwrap();
    }
    until(processes, &format!("runs-{n}"), |p| p.facets.waiting).await;
    until(processes, &format!("pauses-{n}"), |p| p.facets.backing_off).await;
}

#[tokio::test]
async fn l6_no_time_limit_passes_and_no_pause_ends_because_a_wall_clock_jumps() {
    const DAY: i64 = 86_400_000;
    let ttl = i64::try_from(TTL.as_millis()).unwrap();
    for place in Place::both() {
        let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
        let supervisor = open_timed(&place, &runs, &clock).await;
        let processes = supervisor.processes();
        // Some of each are started under every reading that the clock has.
        start_timed(&processes, 0).await;
        let mut started = 1;
        for jump in [1_000, -1_000, ttl, -ttl, DAY, -2 * DAY, DAY] {
            clock.wall(jump);
            start_timed(&processes, started).await;
            started += 1;
            supervisor.recover().await.unwrap();
        }
        for shows in [0, u64::MAX] {
            clock.show(Some(shows));
            start_timed(&processes, started).await;
            started += 1;
            supervisor.recover().await.unwrap();
        }
        clock.wall(DAY);
        clock.show(None);
        // What ran loses its owner, and would be ended now if its limit had passed.
        clock.stall(TTL * 3);
        for n in 0..started {
            let again = |p: &ObservedProcess| p.attempt == 2 && p.facets.waiting;
            until(&processes, &format!("runs-{n}"), again).await;
        }
        supervisor.recover().await.unwrap();
        for n in 0..started {
            let pauses = processes.get(&format!("pauses-{n}")).await;
            let pauses = pauses.unwrap().unwrap();
            assert_eq!(pauses.attempt, 1, "{n}: not before its time");
            assert!(pauses.facets.backing_off, "{n}");
        }
        // The hour does pass.
        clock.stall(HOUR);
        for n in 0..started {
            let ended = output(&processes, &format!("runs-{n}")).await;
            assert!(
                matches!(
                    ended,
                    ProcessAwaitOutput::Failure {
                        class: FailureClass::Timeout,
                        ..
                    }
                ),
                "{n}: {ended:?}"
            );
            let ended = output(&processes, &format!("pauses-{n}")).await;
            assert_eq!(ended, ProcessAwaitOutput::success(2), "{n}");
        }
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn across_opens_a_start_that_lies_in_the_future_counts_from_the_open() {
    for place in Place::both() {
        let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
        clock.show(Some(u64::MAX));
        let supervisor = open_timed(&place, &runs, &clock).await;
        let processes = supervisor.processes();
        let request = with_end(rerunnable("p", "work")).with_timeout(Some(HOUR));
        processes.start(request, inline()).await.unwrap();
        until(&processes, "p", |p| p.facets.waiting).await;
        drop((supervisor, processes));
        clock.show(None);
        let supervisor = open_timed(&place, &runs, &clock).await;
        let processes = supervisor.processes();
        until(&processes, "p", |p| p.attempt == 2 && p.facets.waiting).await;
        clock.stall(HOUR);
        let ended = output(&processes, "p").await;
        assert!(
            matches!(ended, ProcessAwaitOutput::Failure { .. }),
            "{ended:?}"
        );
        close_clean(&supervisor).await;
    }
}

#[tokio::test(start_paused = true)]
async fn renewing_costs_one_commit_per_interval_however_many_processes_are_owned() {
    const OWNED: usize = 200;
    let supervisor = Supervisor::in_memory()
        .engine(polite())
        .lease(LeaseTimings::default())
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    for n in 0..OWNED {
        let request = rerunnable(&format!("p{n}"), "polite");
        processes.start(request, inline()).await.unwrap();
    }
    for n in 0..OWNED {
        let live = |p: &ObservedProcess| p.lease.as_ref().is_some_and(|lease| lease.live);
        until(&processes, &format!("p{n}"), live).await;
    }
    let before = supervisor.stats().commits;
    // The timers' time, which passes when nothing else is to be done.
    let intervals = 60;
    tokio::time::sleep(LeaseTimings::default().renew_every() * intervals).await;
    let renewals = supervisor.stats().commits - before;
    let intervals = u64::from(intervals);
    assert!(
        (intervals - 1..=intervals + 1).contains(&renewals),
        "{renewals} commits in {intervals} intervals"
    );
    // A store is closed in real time: paused timers would not wait for it.
    tokio::time::resume();
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn l7_an_owner_that_stalled_fences_itself_and_goes_on_as_another() {
    for place in Place::both() {
        let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
        let supervisor = open(&place, &runs, &clock).await;
        let processes = supervisor.processes();
        processes
            .start(with_end(owner_bound("bound", "work")), inline())
            .await
            .unwrap();
        processes
            .start(with_end(rerunnable("again", "work")), inline())
            .await
            .unwrap();
        processes.start(external("ext"), inline()).await.unwrap();
        for id in ["bound", "again"] {
            until(&processes, id, |p| p.facets.waiting).await;
        }
        let before = processes
            .get("again")
            .await
            .unwrap()
            .unwrap()
            .lease
            .unwrap();
        clock.stall(TTL * 3);

        let ProcessAwaitOutput::Abandoned { evidence } = output(&processes, "bound").await else {
            panic!("not abandoned");
        };
        assert_eq!(evidence.writer, AbandonWriter::Sweep);
        assert_eq!(evidence.owner.as_ref(), Some(&before.owner));
        let again = until(&processes, "again", |p| p.attempt == 2 && p.facets.waiting).await;
        let after = again.lease.unwrap();
        assert!(after.live && after.fencing_token > before.fencing_token);
        assert_ne!(after.owner.incarnation_id, before.owner.incarnation_id);
        assert_eq!(
            after.owner.store_epoch, before.owner.store_epoch,
            "in the same epoch"
        );
        end(&processes, "again").await;
        assert_eq!(
            output(&processes, "again").await,
            ProcessAwaitOutput::success(json!([2, 1]))
        );
        assert_eq!(runs.tokens("bound").len(), 1);
        assert_eq!(runs.tokens("again").len(), 2);
        let record = processes.record("again").await.unwrap().unwrap();
        assert_eq!((record.recoveries, record.retries), (1, 0));
        let ext = processes.get("ext").await.unwrap().unwrap();
        assert_eq!(ext.lifecycle, Lifecycle::Running);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn many_stalls_in_a_row_lose_no_process() {
    let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
    let supervisor = open(&Place::memory(), &runs, &clock).await;
    let processes = supervisor.processes();
    let ids: Vec<String> = (0..20).map(|n| format!("p{n}")).collect();
    for id in &ids {
        processes
            .start(with_end(rerunnable(id, "work")), inline())
            .await
            .unwrap();
    }
    for round in 1..=5 {
        for id in &ids {
            until(&processes, id, |p| p.attempt >= round && p.facets.waiting).await;
        }
        // At once, or while claims are under way.
        clock.stall(TTL * 2);
        for _ in 0..round {
            tokio::task::yield_now().await;
        }
        clock.stall(TTL * 2);
    }
    for id in &ids {
        end(&processes, id).await;
        assert_eq!(
            output(&processes, id).await.state(),
            TerminalState::Completed,
            "{id}"
        );
        let tokens = runs.tokens(id);
        assert!(
            tokens.windows(2).all(|pair| pair[0] < pair[1]),
            "{tokens:?}"
        );
    }
    close_clean(&supervisor).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_attempt_begins_beside_code_that_never_yields() {
    let clock = Arc::new(Moved::default());
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Arc::new(Mutex::new(held));
    let (says, mut said) = tokio::sync::mpsc::unbounded_channel();
    let shared: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let supervisor = Supervisor::in_memory()
        .engine(engine("blocks", move |cx: ProcessContext, _| {
            let (held, says) = (Arc::clone(&held), says.clone());
            async move {
                let _ = says.send(cx.attempt());
                if cx.attempt() == 1 {
                    // Does not yield, whatever it is told.
                    let _ = held.lock().unwrap().recv();
                    let late = cx.emit("said", 1).await;
                    assert!(matches!(late, Err(Error::Superseded { .. })), "{late:?}");
                }
                Ok(json!(cx.attempt()))
            }
        }))
        .lease(timings())
        .sweep_every(Duration::from_millis(50))
        .clock(shared)
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    let request = rerunnable("p", "blocks").with_event_type(ProcessEventType::new("said"));
    processes.start(request, inline()).await.unwrap();
    assert_eq!(within(said.recv()).await, Some(1));
    let first = processes.get("p").await.unwrap().unwrap().lease.unwrap();
    clock.stall(TTL * 3);
    // Until a new owner is there, and for some sweeps more.
    tokio::time::sleep(TTL).await;
    for _ in 0..3 {
        supervisor.recover().await.unwrap();
    }
    let found = processes.get("p").await.unwrap().unwrap();
    assert_eq!(found.attempt, 1);
    let lease = found.lease.unwrap();
    assert_eq!(
        (lease.fencing_token, lease.live),
        (first.fencing_token, false)
    );
    assert!(said.try_recv().is_err());
    release.send(()).unwrap();
    assert_eq!(within(said.recv()).await, Some(2));
    assert_eq!(
        output(&processes, "p").await,
        ProcessAwaitOutput::success(2)
    );
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn in_a_shared_store_a_lapse_is_no_proof_and_a_revenant_is_refused() {
    let place = Place::Memory(InMemoryStore::shared());
    let (runs, clock) = (Runs::default(), Arc::new(Moved::default()));
    let supervisor = open(&place, &runs, &clock).await;
    let processes = supervisor.processes();
    processes
        .start(with_end(owner_bound("bound", "work")), inline())
        .await
        .unwrap();
    processes
        .start(with_end(rerunnable("again", "work")), inline())
        .await
        .unwrap();
    for id in ["bound", "again"] {
        until(&processes, id, |p| p.facets.waiting).await;
    }
    let first = processes
        .get("bound")
        .await
        .unwrap()
        .unwrap()
        .lease
        .unwrap();
    // The first host is gone, and says nothing of it; the second one judges by its own clock.
    drop((supervisor, processes));
    let late = Arc::new(Moved::default());
    let second = open(&place, &runs, &late).await;
    let others = second.processes();
    late.stall(TTL * 3);
    let again = until(&others, "again", |p| p.attempt == 2).await;
    assert!(again.lease.unwrap().fencing_token > first.fencing_token);
    second.recover().await.unwrap();
    let bound = others.get("bound").await.unwrap().unwrap();
    assert_eq!(
        bound.lifecycle,
        Lifecycle::Running,
        "L5: elapsed time is no evidence"
    );
    let lease = bound.lease.unwrap();
    assert_eq!(
        (lease.owner, lease.live),
        (first.owner, false),
        "visibly stale"
    );
    others.request_abandon("bound", "ops", None).await.unwrap();
    let ProcessAwaitOutput::Abandoned { evidence } = output(&others, "bound").await else {
        panic!("not abandoned");
    };
    assert_eq!(evidence.writer, AbandonWriter::ReconciledRequest);
    assert_eq!(evidence.proof, AbandonProof::Lapse);
    assert_eq!(runs.tokens("bound").len(), 1);
    end(&others, "again").await;
    assert_eq!(
        output(&others, "again").await,
        ProcessAwaitOutput::success(json!([2, 1]))
    );
    close(&second).await;
}
