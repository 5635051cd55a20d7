//! What only the inside can see: actors that panic, and actors that are not there.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::Runtime;
use super::config::RuntimeConfig;
use super::process::{HostCommand, ProcessMsg};
use super::runtime::Shared;
use super::start::StartAs;
use crate::engines::{EngineFailure, EngineResult, ProcessContext, ProcessEngine};
use crate::model::decide::{prepare_event, prepare_signal};
use crate::model::*;
use crate::store::clock::{Clock, SystemClock};
use crate::store::memory_kv::MemoryKv;
use crate::store::process_store::ProcessStore;

mod behind;
mod closing;
mod conditions;
mod fencing;
mod gated;
mod held;
mod in_flight;
mod lapses;
mod liveness;
mod own_end;
mod pruning;
mod reading;
mod sessions;
mod sweeps;
mod telling;
mod together;

/// Longer than anything here takes.
const BOUND: Duration = Duration::from_secs(60);

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, what)
        .await
        .expect("did not happen in time")
}

async fn until(holds: impl Fn() -> bool) {
    within(async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

/// Runs until it is told to stop, but for the second attempt, which is content at once. Notes how
/// its first attempt was let go of.
#[derive(Default)]
struct Work {
    runs: Arc<AtomicU32>,
    dropped: Arc<AtomicU32>,
}

struct Dropped(Arc<AtomicU32>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[async_trait::async_trait]
impl ProcessEngine for Work {
    fn kind(&self) -> &str {
        "work"
    }

    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        self.runs.fetch_add(1, Ordering::SeqCst);
        let _dropped = Dropped(Arc::clone(&self.dropped));
        if cx.attempt() == 2 {
            return Ok(json!(2));
        }
        Err(EngineFailure::cancelled(cx.cancelled().await))
    }
}

async fn open(work: Work) -> Runtime {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kv = MemoryKv::private().open(Arc::clone(&clock)).unwrap();
    let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
    let config = RuntimeConfig {
        sweep_every: Duration::from_millis(100),
        ..RuntimeConfig::default()
    };
    Runtime::open(config, store, clock, vec![Arc::new(work)])
        .await
        .unwrap()
}

fn request(id: &str, disposition: RecoveryDisposition) -> ProcessStartRequest {
    let input = match disposition {
        RecoveryDisposition::ExternallyOwned => ProcessInput::external(1),
        RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound => {
            ProcessInput::engine("work", 1)
        }
    };
    ProcessStartRequest::new(id, input, disposition, ProcessOriginator::host())
        .with_event_type(ProcessEventType::new("note"))
        .with_event_type(ProcessEventType::signal("go"))
}

async fn start(shared: &Arc<Shared>, id: &str, disposition: RecoveryDisposition) -> ProcessRecord {
    let request = request(id, disposition);
    shared.start(request, StartAs::default()).await.unwrap()
}

async fn note(shared: &Arc<Shared>, id: &str, n: usize) -> Result<ProcessEvent> {
    let request = ProcessEventAppendRequest::new("note", n);
    shared.append(id, prepare_event(id, request)?, None).await
}

fn tell(shared: &Shared, id: &str, message: ProcessMsg) {
    let actors = shared.active_actors();
    let (_, actor) = actors.iter().find(|(of, _)| &**of == id).unwrap();
    actor.cast(message).unwrap();
}

async fn shut(runtime: &Runtime) {
    within(runtime.shutdown(Duration::from_secs(5)))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_panic_in_an_actor_stops_its_execution_and_the_process_is_recovered() {
    let work = Work::default();
    let (runs, dropped) = (Arc::clone(&work.runs), Arc::clone(&work.dropped));
    let runtime = open(work).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "again", RecoveryDisposition::Rerunnable).await;
    start(&shared, "bound", RecoveryDisposition::OwnerBound).await;
    start(&shared, "other", RecoveryDisposition::ExternallyOwned).await;
    until(|| runs.load(Ordering::SeqCst) == 2).await;
    let waits = ["again", "bound"].map(|id| {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move { shared.await_output(id).await.unwrap() })
    });
    for id in ["again", "bound"] {
        tell(&shared, id, ProcessMsg::Panic);
    }
    let [again, bound] = waits;
    // Awaiters are not left hanging, and learn what became of it.
    assert_eq!(
        within(again).await.unwrap(),
        ProcessAwaitOutput::success(2),
        "run again, as attempt 2"
    );
    let ProcessAwaitOutput::Abandoned { evidence } = within(bound).await.unwrap() else {
        panic!("not abandoned");
    };
    assert_eq!(evidence.writer, AbandonWriter::Sweep);
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    until(|| dropped.load(Ordering::SeqCst) == 3).await;
    let record = shared.record("again").unwrap().unwrap();
    assert_eq!(
        (record.attempt, record.recoveries, record.retries),
        (2, 1, 0)
    );
    note(&shared, "other", 1).await.unwrap();
    shut(&runtime).await;
}

#[tokio::test]
async fn a_panic_in_an_actor_leaves_commands_answered() {
    let runtime = open(Work::default()).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    note(&shared, "p", 0).await.unwrap();
    let mut commands = JoinSet::new();
    for n in 1..=50 {
        let shared = Arc::clone(&shared);
        commands.spawn(async move { note(&shared, "p", n).await });
    }
    tokio::task::yield_now().await;
    tell(&shared, "p", ProcessMsg::Panic);
    let (mut written, mut unknown) = (0, 0);
    while let Some(answer) = within(commands.join_next()).await {
        match answer.unwrap() {
            Ok(_) => written += 1,
            Err(Error::CommitUnknown { .. }) => unknown += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    let events = shared.events("p", 0).await.unwrap().len();
    assert!((1 + written..=1 + written + unknown).contains(&events));
    assert_eq!(written + unknown, 50);
    shut(&runtime).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_command_is_lost_to_an_actor_that_leaves() {
    let runtime = open(Work::default()).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    let done = Arc::new(AtomicU32::new(0));
    let leaving = {
        let (shared, done) = (Arc::clone(&shared), Arc::clone(&done));
        tokio::spawn(async move {
            while done.load(Ordering::SeqCst) < 8 {
                shared.tell_all(|| ProcessMsg::Passivate);
                tokio::task::yield_now().await;
            }
        })
    };
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let (shared, done) = (Arc::clone(&shared), Arc::clone(&done));
        writers.spawn(async move {
            for n in 0..100 {
                let id = format!("{writer}-{n}");
                let request = ProcessEventAppendRequest::signal("go", n);
                let signal = prepare_signal("p", "go", &id, request).unwrap();
                shared.append("p", signal, None).await.unwrap();
            }
            done.fetch_add(1, Ordering::SeqCst);
        });
    }
    within(async {
        while let Some(writer) = writers.join_next().await {
            writer.unwrap()
        }
    })
    .await;
    within(leaving).await.unwrap();
    let events = shared.events("p", 0).await.unwrap();
    assert_eq!(events.len(), 800);
    shut(&runtime).await;
}

#[tokio::test]
async fn a_turn_that_meets_a_leaving_actor_is_taken_again() {
    let work = Work::default();
    let runs = Arc::clone(&work.runs);
    let runtime = open(work).await;
    let shared = Arc::clone(&runtime.shared);
    for n in 0..50 {
        let id = format!("p{n}");
        // A command gives it an actor; the turn comes while that one is told to go.
        let starts = start(&shared, &id, RecoveryDisposition::Rerunnable);
        let (record, _) = tokio::join!(starts, async {
            shared.tell_all(|| ProcessMsg::Passivate);
        });
        let _ = note(&shared, &record.id, 1).await;
        shared.tell_all(|| ProcessMsg::Passivate);
    }
    until(|| runs.load(Ordering::SeqCst) == 50).await;
    for n in 0..50 {
        let cancel = HostCommand::Cancel { requested_by: None };
        let id = format!("p{n}");
        shared.command(&id, cancel, None).await.unwrap();
        within(shared.await_output(&id)).await.unwrap();
    }
    shut(&runtime).await;
}

#[tokio::test]
async fn ten_thousand_parked_processes_have_no_actors() {
    let runtime = open(Work::default()).await;
    let shared = Arc::clone(&runtime.shared);
    let mut starts = JoinSet::new();
    for n in 0..10_000 {
        let shared = Arc::clone(&shared);
        starts.spawn(async move {
            let id = format!("p{n}");
            start(&shared, &id, RecoveryDisposition::ExternallyOwned).await;
            if n % 10 == 0 {
                note(&shared, &id, n).await.unwrap();
            }
        });
    }
    within(async {
        while let Some(started) = starts.join_next().await {
            started.unwrap()
        }
    })
    .await;
    assert!(shared.active_count() >= 1, "those that were written to");
    shared.passivate_idle(Duration::ZERO).await;
    until(|| shared.active_count() == 0).await;
    // And the next command finds its process all the same.
    note(&shared, "p17", 1).await.unwrap();
    let events = shared.events("p10", 0).await.unwrap();
    assert_eq!(events.len(), 1);
    assert_eq!(shared.hub.listened(), [0; 4]);
    shut(&runtime).await;
}

#[tokio::test]
async fn what_was_refused_is_decided_again_in_its_order() {
    let runtime = open(Work::default()).await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    note(&shared, "p", 0).await.unwrap();
    let nobody = SessionScope::new("nobody");
    let answers = Arc::new(Mutex::new(Vec::new()));
    let mut commands = JoinSet::new();
    for n in 1..=90_usize {
        // Every third is refused inside its commit, with everything that was decided on it.
        let granted_to = (n % 3 == 0).then(|| nobody.clone());
        let (shared, answers) = (Arc::clone(&shared), Arc::clone(&answers));
        commands.spawn(async move {
            let request = ProcessEventAppendRequest::new("note", n);
            let event = prepare_event("p", request).unwrap();
            let answer = shared.append("p", event, granted_to.as_ref()).await;
            answers.lock().unwrap().push((n, answer));
        });
    }
    within(async { while commands.join_next().await.is_some() {} }).await;
    for (n, answer) in answers.lock().unwrap().iter() {
        match answer {
            Ok(event) => {
                assert_ne!(n % 3, 0);
                assert_eq!(*event.payload, json!(n));
            }
            Err(error) => {
                assert_eq!(n % 3, 0);
                assert_eq!(*error, Error::unknown("p"));
            }
        }
    }
    let events = shared.events("p", 0).await.unwrap();
    let payloads: Vec<_> = events.iter().map(|e| e.payload.as_u64().unwrap()).collect();
    let expected: Vec<_> = (0..=90).filter(|n| *n == 0 || n % 3 != 0).collect();
    // One task after the other got to speak, so they were sent in this order.
    assert_eq!(payloads, expected);
    shut(&runtime).await;
}
