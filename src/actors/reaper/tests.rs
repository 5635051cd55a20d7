//! What recovery does and leaves alone, seen from inside: stale looks, interruptions, bad rows,
//! engines that do not answer.

use bytes::Bytes;
use serde_json::Value;

use super::settle::carry_out;
use super::survivors::SlowEngines;
use super::sweep::Examined;
use super::*;
use crate::actors::config::RuntimeConfig;
use crate::actors::open::Runtime;
use crate::actors::start::StartAs;
use crate::engines::{EngineFailure, EngineResult, ProcessContext, ProcessEngine};
use crate::model::*;
use crate::store::clock::{Clock, SystemClock};
use crate::store::keys;
use crate::store::memory_kv::{MemoryKv, MemoryStore};
use crate::store::process_store::ProcessStore;
use crate::store::read::IdEntry;
use crate::store::write_set::{Change, WriteSet};

/// Longer than anything here takes.
const BOUND: Duration = Duration::from_secs(60);

/// Says in an event what could outlive it unless it is mute, runs until it is told to stop, and keeps a
/// list of the events by which it was asked to look for survivors.
struct Leaves {
    kind: &'static str,
    asked: Arc<Mutex<Vec<String>>>,
}

#[async_trait::async_trait]
impl ProcessEngine for Leaves {
    fn kind(&self) -> &str {
        self.kind
    }

    fn event_types(&self) -> Vec<ProcessEventType> {
        vec![ProcessEventType::new("spawned")]
    }

    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        if self.kind != "mute" {
            let key = format!("spawned/{}", cx.attempt());
            let spawned = ProcessEventAppendRequest::new("spawned", cx.attempt());
            cx.emit_durable(spawned.with_replay_key(Some(key))).await?;
        }
        Err(EngineFailure::cancelled(cx.cancelled().await))
    }

    fn survivor_key(&self, record: &ProcessRecord) -> Option<String> {
        Some(format!("spawned/{}", record.attempt))
    }

    async fn end_survivors(&self, event: &ProcessEvent) -> Vec<Survivor> {
        let asked = format!("{} {}", event.process_id, *event.payload);
        self.asked.lock().unwrap().push(asked);
        match self.kind {
            "stuck" => std::future::pending().await,
            "panics" => panic!("an engine that cannot look"),
            _ => Vec::new(),
        }
    }
}

/// A store, and what its engines were asked.
struct Ground {
    store: MemoryStore,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Ground {
    fn new() -> Self {
        Self {
            store: MemoryKv::private(),
            asked: Arc::default(),
        }
    }

    fn asked(&self) -> Vec<String> {
        let mut asked = self.asked.lock().unwrap().clone();
        asked.sort_unstable();
        asked
    }

    /// Opens it as soon as a runtime before has let go of it.
    async fn open(&self, kinds: &[&'static str], slots: usize) -> Runtime {
        let config = RuntimeConfig {
            slots,
            ..RuntimeConfig::default()
        };
        self.open_as(kinds, config).await
    }

    async fn open_as(&self, kinds: &[&'static str], config: RuntimeConfig) -> Runtime {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
        let kv = until(|| self.store.open(Arc::clone(&clock)).ok()).await;
        let engines = kinds.iter().map(|kind| {
            let asked = Arc::clone(&self.asked);
            Arc::new(Leaves { kind, asked }) as Arc<dyn ProcessEngine>
        });
        let config = RuntimeConfig {
            sweep_every: Duration::from_secs(3_600),
            ..config
        };
        let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
        Runtime::open(config, store, clock, engines.collect())
            .await
            .unwrap()
    }
}

async fn until<T>(found: impl Fn() -> Option<T>) -> T {
    let looking = async {
        loop {
            if let Some(found) = found() {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(BOUND, looking)
        .await
        .expect("did not happen in time")
}

async fn start(shared: &Arc<Shared>, id: &str, kind: &str, disposition: RecoveryDisposition) {
    let input = ProcessInput::engine(kind, Value::Null);
    let request = ProcessStartRequest::new(id, input, disposition, ProcessOriginator::host());
    shared.start(request, StartAs::default()).await.unwrap();
}

/// Waits until an attempt has said what could outlive it.
async fn said(shared: &Arc<Shared>, id: &str, attempt: u32) {
    until(|| {
        let record = shared.record(id).unwrap()?;
        let spoke = shared
            .view()
            .unwrap()
            .replayed(record.incarnation, &format!("spawned/{attempt}"));
        spoke.unwrap()
    })
    .await;
}

fn types(shared: &Shared, record: &ProcessRecord) -> Vec<String> {
    let view = shared.view().unwrap();
    let events = view.events(&record.id, record.incarnation, 1, 99, usize::MAX);
    let events = events.unwrap().into_iter();
    events.map(|event| event.event_type).collect()
}

fn survivors(record: &ProcessRecord) -> Option<Vec<Survivor>> {
    match record.status.output() {
        Some(ProcessAwaitOutput::Abandoned { evidence }) => evidence.survivors.clone(),
        other => panic!("{}: {other:?}", record.id),
    }
}

async fn verified_and_shut(runtime: &Runtime) {
    let report = crate::store::verify::verify(&runtime.shared.store).unwrap();
    assert!(report.is_clean(), "{report:?}");
    runtime.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn recovery_that_comes_late_leaves_the_attempt_alone_that_began_meanwhile() {
    use RecoveryDisposition::Rerunnable;
    let ground = Ground::new();
    let runtime = ground.open(&["work"], 9).await;
    start(&runtime.shared, "p", "work", Rerunnable).await;
    said(&runtime.shared, "p", 1).await;
    drop(runtime);

    let runtime = ground.open(&["work"], 9).await;
    let shared = Arc::clone(&runtime.shared);
    // What a sweep found before another one, that of the open, made it ready.
    let page = shared.recovery_page(None, false).unwrap();
    let stale = page.found.into_iter().find_map(|examined| match examined {
        Examined::Todo(task) => Some(task),
        Examined::Done(..) => None,
    });
    said(&shared, "p", 2).await;
    assert_eq!(ground.asked(), ["p 1"]);
    let step = carry_out(&shared, stale.unwrap(), &SlowEngines::default()).await;
    assert_eq!(step.unwrap(), RecoveryStep::Overtaken);
    assert_eq!(
        ground.asked(),
        ["p 1"],
        "attempt 2 lives, and nobody ends it"
    );
    let record = shared.record("p").unwrap().unwrap();
    assert_eq!((record.attempt, record.recoveries), (2, 1));
    verified_and_shut(&runtime).await;
}

#[tokio::test]
async fn the_loss_of_an_owner_is_durable_before_a_slot_is_free_and_counted_once() {
    use RecoveryDisposition::Rerunnable;
    let ground = Ground::new();
    let runtime = ground.open(&["work"], 9).await;
    start(&runtime.shared, "p", "work", Rerunnable).await;
    said(&runtime.shared, "p", 1).await;
    let owner = runtime.shared.owner().unwrap().owner.clone();
    drop(runtime);

    let recovery = RecoveryStep::Queued {
        reason: StartReason::Recovery,
    };
    // Interrupted again and again before any attempt can begin.
    for open in 0..3 {
        let runtime = ground.open(&["work"], 0).await;
        let shared = Arc::clone(&runtime.shared);
        let report = shared.recover_now().await.unwrap();
        assert_eq!(report.processes, [("p".to_owned(), recovery)]);
        assert_eq!((report.examined, report.queued), (1, 1));
        assert_eq!(report.since_open.released, u64::from(open == 0));
        let record = shared.record("p").unwrap().unwrap();
        assert_eq!((record.attempt, record.recoveries), (1, 1), "open {open}");
        assert_eq!(
            record.owner_lost.as_ref().unwrap().owner,
            Some(owner.clone())
        );
        assert_eq!(
            types(&shared, &record),
            ["process.started", "spawned", "process.owner_lost"]
        );
        let observed = shared.get("p").unwrap().unwrap();
        assert!(observed.lease.is_none() && observed.facets.queued);
        drop(runtime);
    }
    let runtime = ground.open(&["work"], 9).await;
    said(&runtime.shared, "p", 2).await;
    let record = runtime.shared.record("p").unwrap().unwrap();
    assert_eq!((record.attempt, record.recoveries), (2, 1));
    assert_eq!(record.owner_lost, None);
    verified_and_shut(&runtime).await;
}

#[tokio::test]
async fn a_row_that_cannot_be_read_and_an_engine_that_does_not_answer_stop_nothing_else() {
    use RecoveryDisposition::OwnerBound;
    let kinds = ["work", "stuck", "panics"];
    let ground = Ground::new();
    let runtime = ground.open(&kinds, 9).await;
    let shared = Arc::clone(&runtime.shared);
    for (id, kind) in [
        ("bad", "work"),
        ("stuck", "stuck"),
        ("panics", "panics"),
        ("good", "work"),
    ] {
        start(&shared, id, kind, OwnerBound).await;
        said(&shared, id, 1).await;
    }
    let Some(IdEntry::Live(row)) = shared.view().unwrap().id("bad").unwrap() else {
        panic!("it lives");
    };
    let damage = Change::RecordEffect {
        key: keys::head(row),
        value: Bytes::from_static(b"no head"),
    };
    let set = WriteSet::new(Vec::new(), vec![damage]);
    shared.store.commit_wait(set).await.unwrap();
    drop((runtime, shared));

    let runtime = ground.open(&kinds, 9).await;
    let shared = Arc::clone(&runtime.shared);
    // The open's own sweep is one of those that find nobody who can look.
    let mut report = shared.recover_now().await.unwrap();
    for sweep in 2..=4 {
        let record = shared.record("stuck").unwrap().unwrap();
        assert!(
            record.status.output().is_none(),
            "not given up before sweep {sweep}"
        );
        report = shared.recover_now().await.unwrap();
        if report.since_open.abandoned == 3 {
            break;
        }
    }
    assert_eq!(
        (report.since_open.abandoned, report.unsettled),
        (3, 1),
        "{report:?}"
    );
    let bad = (
        format!("incarnation {}", row.incarnation),
        RecoveryStep::Unsettled,
    );
    assert!(report.processes.contains(&bad), "{report:?}");
    // What was not looked at is not said to be nothing.
    for (id, found) in [("stuck", None), ("panics", None), ("good", Some(vec![]))] {
        let record = shared.record(id).unwrap().unwrap();
        assert_eq!(survivors(&record), found, "{id}");
    }
    runtime.shutdown(Duration::from_secs(5)).await.unwrap();
}

/// Its runtime may have gone after it left something and before it could say so.
#[tokio::test]
async fn of_an_attempt_that_did_not_say_what_it_could_leave_nobody_knows_what_lives() {
    let ground = Ground::new();
    let runtime = ground.open(&["mute"], 9).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", "mute", RecoveryDisposition::OwnerBound).await;
    until(|| (shared.record("p").unwrap()?.attempt == 1).then_some(())).await;
    drop((runtime, shared));
    let runtime = ground.open(&["mute"], 9).await;
    let shared = Arc::clone(&runtime.shared);
    shared.recover_now().await.unwrap();
    let record = shared.record("p").unwrap().unwrap();
    assert_eq!(survivors(&record), None);
    assert!(ground.asked().is_empty());
    verified_and_shut(&runtime).await;
}

/// A process whose survivors may still live is neither run again nor abandoned at once.
#[tokio::test]
async fn who_cannot_look_is_asked_again_and_waited_for_once_in_a_sweep() {
    use RecoveryDisposition::{OwnerBound, Rerunnable};
    let ground = Ground::new();
    let runtime = ground.open(&["stuck"], 99).await;
    let ids: Vec<String> = (0..30).map(|n| format!("p{n}")).collect();
    for (n, id) in ids.iter().enumerate() {
        let disposition = if n % 2 == 0 { OwnerBound } else { Rerunnable };
        start(&runtime.shared, id, "stuck", disposition).await;
    }
    for id in &ids {
        said(&runtime.shared, id, 1).await;
    }
    drop(runtime);
    // Nothing but what is called here sweeps.
    let config = RuntimeConfig {
        recover: false,
        ..RuntimeConfig::default()
    };
    let runtime = ground.open_as(&["stuck"], config).await;
    let mut asked = 0;
    for sweep in 1..=4 {
        let (report, done) = Sweep::new(&runtime.shared).run(Scope::Everything).await;
        done.unwrap();
        let now = ground.asked().len();
        // Those that were asked together waited together; the rest is a later sweep's.
        assert_eq!(now - asked, 8, "sweep {sweep}");
        asked = now;
        assert_eq!(report.examined, 30);
        let settled = report.queued + report.abandoned;
        assert_eq!(report.unsettled + settled, 30, "{report:?}");
        // An engine that does not answer holds nothing up for good.
        let expected = if sweep <= 3 { 0 } else { 30 };
        assert_eq!(settled, expected, "{report:?}");
    }
    runtime.shutdown(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn what_a_sweep_had_begun_that_fails_is_seen_to_its_end_and_counted() {
    let ground = Ground::new();
    let runtime = ground.open(&["work"], 9).await;
    start(
        &runtime.shared,
        "p",
        "work",
        RecoveryDisposition::OwnerBound,
    )
    .await;
    said(&runtime.shared, "p", 1).await;
    drop(runtime);
    let config = RuntimeConfig {
        recover: false,
        ..RuntimeConfig::default()
    };
    let runtime = ground.open_as(&["work"], config).await;
    let shared = &runtime.shared;
    let mut sweep = Sweep::new(shared);
    sweep.take(shared.recovery_page(None, false).unwrap()).await;
    shared.begin_shutdown();
    let (report, done) = sweep.run(Scope::Everything).await;
    assert_eq!(done, Err(Error::ShuttingDown));
    assert_eq!((report.examined, report.abandoned), (1, 1), "{report:?}");
    verified_and_shut(&runtime).await;
}

#[tokio::test]
async fn a_report_counts_every_process_once_whatever_was_done_with_it() {
    use RecoveryDisposition::{OwnerBound, Rerunnable};
    let ground = Ground::new();
    let runtime = ground.open(&["work", "other"], 9).await;
    let shared = Arc::clone(&runtime.shared);
    for (id, kind, disposition) in [
        ("again", "work", Rerunnable),
        ("bound", "work", OwnerBound),
        ("stranded", "other", OwnerBound),
        ("stranded-asked", "other", OwnerBound),
    ] {
        start(&shared, id, kind, disposition).await;
        said(&shared, id, 1).await;
    }
    drop((runtime, shared));

    let runtime = ground.open(&["work"], 9).await;
    let shared = Arc::clone(&runtime.shared);
    shared
        .cancel("stranded-asked", Some("ops".into()), None)
        .await
        .unwrap();
    let report = shared.recover_now().await.unwrap();
    let counted = (
        report.examined,
        report.queued,
        report.abandoned,
        report.left,
    );
    assert_eq!(counted, (4, 1, 2, 1), "{report:?}");
    // SPEC §3.8: neither claimed nor ended, and it says so; nobody looked for what a person
    // wanted ended.
    let stranded = shared.get("stranded").unwrap().unwrap();
    let kind = "other".to_owned();
    assert_eq!(
        stranded.queued_reason,
        Some(QueuedReason::UnregisteredEngine { kind })
    );
    assert!(stranded.facets.queued && stranded.lifecycle == Lifecycle::Running);
    let asked = shared.record("stranded-asked").unwrap().unwrap();
    assert_eq!(survivors(&asked), None);
    let bound = shared.record("bound").unwrap().unwrap();
    assert_eq!(survivors(&bound), Some(Vec::new()));

    said(&shared, "again", 2).await;
    let report = shared.recover_now().await.unwrap();
    let reason = LeaveReason::Leased;
    let running = ("again".to_owned(), RecoveryStep::Left { reason });
    assert!(report.processes.contains(&running), "{report:?}");
    assert_eq!((report.examined, report.left), (2, 2));
    let totals = report.since_open;
    assert_eq!((totals.released, totals.abandoned), (1, 2));
    assert!(totals.sweeps >= 2);
    verified_and_shut(&runtime).await;
}

/// A process that waits for a slot which never comes, and nothing noted of it.
async fn queued(shared: &Arc<Shared>) -> keys::Row {
    start(shared, "p", "leaves", RecoveryDisposition::Rerunnable).await;
    shared.recover_now().await.unwrap();
    shared.attention.take();
    let Some(IdEntry::Live(row)) = shared.view().unwrap().id("p").unwrap() else {
        panic!("not there");
    };
    row
}

async fn is_left(shared: &Arc<Shared>) {
    let report = shared.recover_now().await.unwrap();
    let reason = LeaveReason::Leased;
    let left = ("p".to_owned(), RecoveryStep::Left { reason });
    assert_eq!(report.processes, [left]);
}

#[tokio::test]
async fn a_claim_on_its_way_counts_as_a_lease_and_is_looked_at_when_it_fails() {
    let runtime = Ground::new().open(&["leaves"], 0).await;
    let shared = Arc::clone(&runtime.shared);
    let row = queued(&shared).await;
    let claimed = shared.claiming(row);
    is_left(&shared).await;
    assert_eq!(shared.attention.take(), Scope::Rows(Vec::new()));
    drop(claimed);
    assert_eq!(shared.attention.take(), Scope::Rows(vec![row]));
    let mut claimed = shared.claiming(row);
    claimed.ended();
    drop(claimed);
    assert_eq!(shared.attention.take(), Scope::Rows(Vec::new()));
    runtime.shutdown(BOUND).await.unwrap();
}

#[tokio::test]
async fn what_waits_for_code_that_goes_on_is_looked_at_by_every_sweep() {
    let runtime = Ground::new().open(&["leaves"], 0).await;
    let shared = Arc::clone(&runtime.shared);
    let row = queued(&shared).await;
    shared.task_began(row.incarnation);
    is_left(&shared).await;
    assert_eq!(shared.attention.take(), Scope::Rows(vec![row]));
    shared.task_ended(row.incarnation);
    let report = shared.recover_now().await.unwrap();
    assert_eq!(report.queued, 1);
    runtime.shutdown(BOUND).await.unwrap();
}
