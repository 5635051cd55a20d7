//! V1, within one open, by timers alone, and how long a shutdown takes. Time is paused: it passes
//! when nothing is to be done, and every clock of the runtime shows it.

use std::sync::atomic::AtomicU64;

use super::gated::{Does, Gated};
use super::*;
use crate::store::memory_kv::MemoryStore;

const TTL: Duration = Duration::from_secs(30);
const SWEEP_EVERY: Duration = Duration::from_secs(5);
const STEP_MS: u64 = 10;

/// Shows the time that timers see, on every thread.
#[derive(Debug, Default)]
struct Timers(AtomicU64);

impl Timers {
    fn run(self: &Arc<Self>) {
        let clock = Arc::clone(self);
        tokio::spawn(async move {
            let mut every = tokio::time::interval(Duration::from_millis(STEP_MS));
            loop {
                // Each one, also where several are due.
                every.tick().await;
                clock.0.fetch_add(STEP_MS, Ordering::SeqCst);
            }
        });
    }
}

impl Clock for Timers {
    fn now_epoch_ms(&self) -> u64 {
        1_000_000 + self.0.load(Ordering::SeqCst)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(1_000 + self.0.load(Ordering::SeqCst))
    }
}

/// By id: some run for good, some until they are run again, some fail at first.
async fn does(cx: ProcessContext) -> EngineResult {
    let id = cx.process_id().to_owned();
    let attempt = cx.attempt();
    if id.starts_with("again") && attempt > 1 {
        return Ok(json!(attempt));
    }
    if id.starts_with("fails") {
        return match attempt {
            1 => Err(EngineFailure::new("not_yet", "next time").retryable()),
            _ => Ok(json!(attempt)),
        };
    }
    if id.starts_with("slow") {
        tokio::time::sleep(Duration::from_secs(20)).await;
        return Ok(json!(attempt));
    }
    std::future::pending().await
}

async fn open(store: &MemoryStore) -> (Runtime, Arc<Gated>) {
    let timers = Arc::new(Timers::default());
    timers.run();
    let clock: Arc<dyn Clock> = timers;
    let gated = Gated::open(store, &clock);
    let store = ProcessStore::new(Arc::clone(&gated) as _, Arc::clone(&clock));
    let config = RuntimeConfig {
        lease: LeaseTimings::from_ttl(TTL).unwrap(),
        sweep_every: SWEEP_EVERY,
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, clock, vec![Arc::new(Does(does))])
        .await
        .unwrap();
    (runtime, gated)
}

/// Some of everything, named after the round.
async fn start_some(shared: &Arc<Shared>, round: &str, ids: &mut Vec<String>) {
    use RecoveryDisposition::{OwnerBound, Rerunnable};
    for (what, disposition) in [
        ("runs", Rerunnable),
        ("again", Rerunnable),
        ("again-panics", Rerunnable),
        ("fails", Rerunnable),
        ("slow", Rerunnable),
        ("limited", Rerunnable),
        ("asked", Rerunnable),
        ("cancelled", Rerunnable),
        ("bound", OwnerBound),
    ] {
        let id = format!("{what}-{round}");
        let mut request = request(&id, disposition);
        if what == "limited" {
            request = request.with_timeout(Some(Duration::from_secs(40)));
        }
        if what == "fails" {
            let pause = Backoff::fixed(Duration::from_secs(7));
            request = request.with_retry(RetryPolicy::attempts(2).with_backoff(pause));
        }
        // Not waited for: while the gate is shut nothing is answered.
        let shared = Arc::clone(shared);
        tokio::spawn(async move { shared.start(request, StartAs::default()).await });
        ids.push(id);
    }
}

/// What goes wrong while the disk answers nothing.
async fn disturb(shared: &Arc<Shared>, round: &str) {
    for (what, command) in [
        (
            "asked",
            HostCommand::Abandon {
                requested_by: "ops".into(),
                reason: None,
            },
        ),
        ("cancelled", HostCommand::Cancel { requested_by: None }),
    ] {
        let (shared, id) = (Arc::clone(shared), format!("{what}-{round}"));
        tokio::spawn(async move { shared.command(&id, command, None).await });
    }
    let panics = format!("again-panics-{round}");
    {
        let (shared, id) = (Arc::clone(shared), panics.clone());
        tokio::spawn(async move { note(&shared, &id, 1).await });
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    for (id, actor) in shared.active_actors() {
        if *id == *panics {
            actor.cast(ProcessMsg::Panic).unwrap();
        }
    }
}

fn is_leased_or_terminal(shared: &Shared, id: &str) -> bool {
    let process = shared.get(id).unwrap().unwrap();
    process.lifecycle != Lifecycle::Running || process.lease.is_some_and(|lease| lease.live)
}

#[tokio::test(start_paused = true)]
async fn v1_once_faults_stop_everything_is_leased_or_terminal_in_time() {
    let (runtime, gated) = open(&MemoryKv::private()).await;
    let shared = Arc::clone(&runtime.shared);
    let mut ids = Vec::new();
    start_some(&shared, "before", &mut ids).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // How long the disk stalls, and how long it answers before it stalls again: less than a renewal
    // takes, until the lease lapses, until it has lapsed twice; in the middle of what follows.
    let secs = |secs| Duration::from_secs(secs);
    let mut rounds: Vec<String> = Vec::new();
    for (n, (stalls, answers)) in [(5, 1), (26, 2), (31, 6), (100, 0), (33, 0)]
        .into_iter()
        .enumerate()
    {
        gated.shut();
        let round = format!("{n}");
        start_some(&shared, &round, &mut ids).await;
        disturb(&shared, "before").await;
        if let Some(last) = rounds.last() {
            disturb(&shared, last).await;
        }
        tokio::time::sleep(secs(stalls)).await;
        gated.open_gate();
        tokio::time::sleep(secs(answers)).await;
        rounds.push(round);
    }
    let mut waits = JoinSet::new();
    for id in ids.iter().filter(|id| !id.starts_with("runs")) {
        let (shared, id) = (Arc::clone(&shared), id.clone());
        waits.spawn(async move { (id.clone(), shared.await_output(&id).await) });
    }
    tokio::time::sleep(TTL * 2 + SWEEP_EVERY).await;
    for id in &ids {
        assert!(
            is_leased_or_terminal(&shared, id),
            "{id}: {:?}",
            shared.get(id)
        );
    }
    // Each stall but the first outlasted the trust in the heartbeat; the last two were one.
    let record = shared.record("runs-before").unwrap().unwrap();
    assert!(record.recoveries >= 3, "{record:?}");
    // What is satisfiable: what was lost, asked for, failed or limited. What has a live lease and
    // no reason to end goes on.
    while let Some(resolved) = waits.try_join_next() {
        resolved.unwrap().1.unwrap();
    }
    let open: Vec<String> = ids
        .iter()
        .filter(|id| shared.get(id).unwrap().unwrap().lifecycle == Lifecycle::Running)
        .cloned()
        .collect();
    let waiting = open.iter().filter(|id| !id.starts_with("runs")).count();
    assert_eq!(waits.len(), waiting, "{open:?}");
    for id in &open {
        let process = shared.get(id).unwrap().unwrap();
        assert!(
            !id.starts_with("fails") && !id.starts_with("slow") && !id.starts_with("limited"),
            "{process:?}"
        );
        assert_eq!(process.abandon_request, None, "{process:?}");
        assert_eq!(process.cancel_request, None, "{process:?}");
    }
    waits.shutdown().await;
    // A store is closed in real time.
    tokio::time::resume();
    shut(&runtime).await;
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_spends_its_grace_period_once() {
    let (runtime, gated) = open(&MemoryKv::private()).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "bound", RecoveryDisposition::OwnerBound).await;
    while !shared.get("bound").unwrap().unwrap().facets.started {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (stall, stalled) = std::sync::mpsc::channel::<()>();
    let (is_held, held) = tokio::sync::oneshot::channel();
    let closing = {
        let gated = Arc::clone(&gated);
        std::thread::spawn(move || {
            let _held = gated.stalled.lock().unwrap();
            let _ = is_held.send(());
            let _ = stalled.recv();
        })
    };
    held.await.unwrap();
    let (began, grace) = (shared.monotonic(), Duration::from_secs(60));
    let error = runtime.shutdown(grace).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("the store was not closed"), "{text}");
    assert!(text.contains("1 abandoned"), "{text}");
    // All of the grace period, what aborting may take, and the least that a store is given.
    let took = shared.monotonic() - began;
    let most = grace + Duration::from_secs(4) + Duration::from_millis(300);
    assert!(took >= grace && took <= most, "{took:?}");
    assert_eq!(runtime.shutdown(grace).await.unwrap_err(), error);
    assert_eq!(shared.monotonic() - began, took, "the same at once");
    drop(stall);
    tokio::task::spawn_blocking(move || closing.join())
        .await
        .unwrap()
        .unwrap();
}
