//! Time limits and pauses across opens, under wall clocks that jump.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::large_futures,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so"
)]

mod common;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::*;
use procession::*;
use serde_json::json;

/// A machine: its clocks, and how often it was started.
#[derive(Debug, Default)]
struct Machine {
    system: SystemClock,
    moved_ms: AtomicI64,
    /// Where set, what the wall clock shows.
    shows_ms: Mutex<Option<u64>>,
    passed_ms: AtomicU64,
    /// 0 where nobody can tell one start from another.
    boots: AtomicU64,
}

impl Machine {
    fn new(boots: u64) -> Arc<Self> {
        let machine = Self::default();
        machine.boots.store(boots, Ordering::SeqCst);
        Arc::new(machine)
    }

    fn jump(&self, by_ms: i64) {
        self.moved_ms.fetch_add(by_ms, Ordering::SeqCst);
    }

    fn show(&self, ms: Option<u64>) {
        *self.shows_ms.lock().unwrap() = ms;
    }

    /// Time passes, and every clock sees it.
    fn pass(&self, time: Duration) {
        let ms = u64::try_from(time.as_millis()).unwrap();
        self.jump(i64::try_from(ms).unwrap());
        self.passed_ms.fetch_add(ms, Ordering::SeqCst);
    }

    fn boot(&self) {
        self.boots.fetch_add(1, Ordering::SeqCst);
    }
}

impl Clock for Machine {
    fn now_epoch_ms(&self) -> u64 {
        if let Some(shows) = *self.shows_ms.lock().unwrap() {
            return shows;
        }
        let moved = self.moved_ms.load(Ordering::SeqCst);
        self.system.now_epoch_ms().saturating_add_signed(moved)
    }

    fn monotonic(&self) -> Duration {
        let passed = self.passed_ms.load(Ordering::SeqCst);
        self.system.monotonic() + Duration::from_millis(passed)
    }

    fn boot_id(&self) -> Option<String> {
        match self.boots.load(Ordering::SeqCst) {
            0 => None,
            boots => Some(boots.to_string()),
        }
    }
}

const HOUR: Duration = Duration::from_secs(3_600);
const DAY_MS: i64 = 86_400_000;

async fn open(place: &Place, machine: &Arc<Machine>) -> Supervisor {
    let clock: Arc<dyn Clock> = Arc::clone(machine) as _;
    place
        .reopen(|builder| {
            builder
                .engine(engine("work", |cx: ProcessContext, _| async move {
                    tokio::select! {
                        signal = cx.wait_signal("end") => Ok(json!(signal?.payload)),
                        reason = cx.cancelled() => Err(EngineFailure::cancelled(reason)),
                    }
                }))
                .engine(fails_once())
                .sweep_every(Duration::from_millis(50))
                .clock(Arc::clone(&clock))
        })
        .await
}

/// What may run for an hour.
async fn start(supervisor: &Supervisor) {
    let request = rerunnable("p", "work")
        .with_event_type(ProcessEventType::signal("end"))
        .with_timeout(Some(HOUR));
    let processes = supervisor.processes();
    processes.start(request, inline()).await.unwrap();
    until(&processes, "p", |p| p.facets.waiting).await;
}

async fn attempt(supervisor: &Supervisor, number: u32) {
    let again = |p: &ObservedProcess| p.attempt == number && p.facets.waiting;
    until(&supervisor.processes(), "p", again).await;
}

async fn is_timed_out(supervisor: &Supervisor) {
    let ended = output(&supervisor.processes(), "p").await;
    let timed_out = matches!(
        ended,
        ProcessAwaitOutput::Failure {
            class: FailureClass::Timeout,
            ..
        }
    );
    assert!(timed_out, "{ended:?}");
}

#[tokio::test]
async fn l6_no_time_limit_passes_because_a_wall_clock_jumps_before_or_between_opens() {
    for place in Place::both() {
        let machine = Machine::new(1);
        let mut supervisor = open(&place, &machine).await;
        start(&supervisor).await;
        let jumps = [1_000, -1_000, 30_000, -30_000, DAY_MS, -2 * DAY_MS, DAY_MS];
        let mut attempts = 1;
        for jump in jumps {
            // As at a crash.
            machine.jump(jump);
            drop(supervisor);
            machine.jump(jump);
            supervisor = open(&place, &machine).await;
            attempts += 1;
            attempt(&supervisor, attempts).await;
        }
        for shows in [0, u64::MAX] {
            machine.show(Some(shows));
            drop(supervisor);
            supervisor = open(&place, &machine).await;
            attempts += 1;
            attempt(&supervisor, attempts).await;
        }
        machine.show(None);
        // The hour does pass: half of it while the store is open, half of it while it is not.
        machine.pass(HOUR / 2);
        drop(supervisor);
        machine.jump(-3 * DAY_MS);
        supervisor = open(&place, &machine).await;
        attempt(&supervisor, attempts + 1).await;
        drop(supervisor);
        machine.pass(HOUR / 2);
        machine.jump(-DAY_MS);
        supervisor = open(&place, &machine).await;
        is_timed_out(&supervisor).await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn l6_time_in_which_a_store_was_closed_counts_only_where_a_clock_shows_it() {
    for boots in [0, 1] {
        let machine = Machine::new(boots);
        let boot = || {
            if boots > 0 {
                machine.boot();
            }
        };
        let place = Place::memory();
        let mut supervisor = open(&place, &machine).await;
        start(&supervisor).await;
        for (attempts, shows) in [(2, 0), (3, u64::MAX)] {
            close(&supervisor).await;
            boot();
            machine.show(Some(shows));
            supervisor = open(&place, &machine).await;
            attempt(&supervisor, attempts).await;
        }
        machine.show(None);
        // Nothing shows that these hours pass, and the limit is as far away as before.
        for attempts in 4..7 {
            close(&supervisor).await;
            boot();
            machine.jump(DAY_MS);
            machine.pass(HOUR);
            supervisor = open(&place, &machine).await;
            attempt(&supervisor, attempts).await;
        }
        // While it is open the hour does pass.
        machine.pass(HOUR / 2);
        close(&supervisor).await;
        boot();
        supervisor = open(&place, &machine).await;
        attempt(&supervisor, 7).await;
        machine.pass(HOUR / 2);
        close(&supervisor).await;
        boot();
        supervisor = open(&place, &machine).await;
        is_timed_out(&supervisor).await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn l6_a_wall_clock_set_back_between_opens_puts_a_retry_off_by_no_more_than_its_pause() {
    for place in Place::both() {
        let machine = Machine::new(1);
        let mut supervisor = open(&place, &machine).await;
        let policy = RetryPolicy::attempts(2).with_backoff(Backoff::fixed(HOUR));
        let request = rerunnable("p", "fails-once").with_retry(policy);
        let started = supervisor.processes().start(request, inline()).await;
        started.unwrap();
        until(&supervisor.processes(), "p", |p| p.facets.backing_off).await;
        close(&supervisor).await;
        machine.jump(-2 * DAY_MS);
        supervisor = open(&place, &machine).await;
        for passes in [Duration::ZERO, HOUR / 2] {
            machine.pass(passes);
            supervisor.recover().await.unwrap();
            let found = supervisor.processes().get("p").await.unwrap().unwrap();
            assert!(found.facets.backing_off, "{found:?}");
        }
        machine.pass(HOUR / 2);
        let ended = output(&supervisor.processes(), "p").await;
        assert_eq!(ended, ProcessAwaitOutput::success(2));
        close_clean(&supervisor).await;
    }
}
