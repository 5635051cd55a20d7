//! Opening and closing a runtime.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ractor::{Actor, ActorCell, ActorRef};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tracing::{info, warn};

use super::config::RuntimeConfig;
use super::dispatcher::{DispatchMsg, Dispatcher};
use super::fence::Fence;
use super::keeper::{self, Keeper};
use super::process::{ProcessMsg, ShutdownOutcome};
use super::reaper::Reaper;
use super::registry::Registry;
use super::root::Root;
use super::runtime::{Actors, EngineEntry, Shared};
use crate::engines::{CancelReason, ProcessEngine};
use crate::model::{Error, Result};
use crate::store::clock::Clock;
use crate::store::locks::lock;
use crate::store::process_store::ProcessStore;

/// What became of the work that was running when the runtime shut down.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ShutdownReport {
    /// Ended by itself within the grace period.
    pub finished: Vec<String>,
    /// Without an outcome, lease given back: the next open runs it again. It was stopped, or its
    /// attempt failed and another is to follow.
    pub released: Vec<String>,
    /// Stopped and ended as abandoned: it may not be run again.
    pub abandoned: Vec<String>,
    /// Stopped, but what became of it could not be written: the next open recovers it.
    pub unwritten: Vec<String>,
}

/// How long stopped work may take beyond the grace period before it is aborted.
const STOP_MAX: Duration = Duration::from_secs(1);
/// How long an aborted task may take to end: code that never yields is left behind.
const ABORT_MAX: Duration = Duration::from_secs(1);

/// How long letting go of the store may take where less than that is left of the grace period: a
/// disk that stalls must not hold up a shutdown for good.
const CLOSE_MIN: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 10_000 });

/// How long the fence sleeps at the most: so long may go on what was lost while the machine slept.
const FENCE_LOOK_MAX: Duration = Duration::from_secs(1);

/// Most processes that the error of a shutdown names.
const NAMED_MAX: usize = 20;

/// An open runtime.
#[derive(Debug)]
pub(crate) struct Runtime {
    pub(crate) shared: Arc<Shared>,
    root: ActorRef<()>,
    /// What comes of the one shutdown there is, once it has begun: every call gets the same.
    closed: Mutex<Option<watch::Receiver<Closed>>>,
}

/// What came of a shutdown, as soon as it is over.
type Closed = Option<Result<ShutdownReport>>;

fn spawn_failed(error: &ractor::SpawnErr) -> Error {
    Error::Overloaded {
        what: format!("actor system: {error}"),
        limit: 0,
    }
}

/// Has the runtime stop when its store fails.
fn watch_store(shared: &Arc<Shared>) {
    let (runtime, weak) = (tokio::runtime::Handle::current(), Arc::downgrade(shared));
    shared.store.on_failure(Box::new(move |cause| {
        let weak = weak.clone();
        // Told on the committer, which must not wait for anything.
        runtime.spawn(async move {
            if let Some(shared) = weak.upgrade() {
                shared.store_failed(cause);
            }
        });
    }));
}

impl Runtime {
    /// Starts the actors on an open store.
    pub(crate) async fn open(
        config: RuntimeConfig,
        store: ProcessStore,
        lease_clock: Arc<dyn Clock>,
        engines: Vec<Arc<dyn ProcessEngine>>,
    ) -> Result<Self> {
        let engines: HashMap<String, EngineEntry> = engines
            .into_iter()
            .map(|engine| {
                let entry = EngineEntry {
                    event_types: engine.event_types(),
                    engine: Arc::clone(&engine),
                };
                (engine.kind().to_owned(), entry)
            })
            .collect();
        let recover = config.recover;
        let shared = Arc::new(Shared::new(config, store, lease_clock, engines));
        shared.hub.tell_by_task();
        watch_store(&shared);
        shared.begin_feed().await?;
        shared.begin_age()?;
        let (root, _) = Root::spawn(None, Root, Arc::clone(&shared))
            .await
            .map_err(|error| spawn_failed(&error))?;
        let opened = Self::start_children(&shared, root.get_cell(), recover).await;
        if let Err(error) = opened {
            root.stop(None);
            return Err(error);
        }
        shared.sweep_soon();
        Ok(Self {
            shared,
            root,
            closed: Mutex::new(None),
        })
    }

    async fn start_children(shared: &Arc<Shared>, root: ActorCell, recover: bool) -> Result<()> {
        let failed = |error: ractor::SpawnErr| spawn_failed(&error);
        let args = || Arc::clone(shared);
        let (registry, _) = Registry::spawn_linked(None, Registry, args(), root.clone())
            .await
            .map_err(failed)?;
        let (dispatcher, _) = Dispatcher::spawn_linked(None, Dispatcher, args(), root.clone())
            .await
            .map_err(failed)?;
        let (reaper, _) = Reaper::spawn_linked(None, Reaper, args(), root.clone())
            .await
            .map_err(failed)?;
        let keeper = if recover {
            Some(Self::start_owner(shared, root.clone()).await?)
        } else {
            None
        };
        shared.set_actors(Actors {
            root,
            keeper,
            registry,
            dispatcher,
            reaper,
        });
        Ok(())
    }

    /// Begins an incarnation, and starts whoever renews and watches it.
    async fn start_owner(shared: &Arc<Shared>, root: ActorCell) -> Result<ActorCell> {
        let lease = shared.config.lease;
        let owner = keeper::begin_incarnation(shared).await?;
        shared.set_owner(owner);
        let (keeper, _) = Keeper::spawn_linked(None, Keeper, Arc::clone(shared), root)
            .await
            .map_err(|error| spawn_failed(&error))?;
        let clock = Arc::clone(shared.store.clock());
        // A thread's sleep stands still while the machine does, the clock does not.
        let look_every = (lease.renew_every() / 2).min(FENCE_LOOK_MAX);
        let fence =
            Fence::start(clock, look_every, keeper.clone()).map_err(|error| Error::Overloaded {
                what: format!("threads: {error}"),
                limit: 0,
            })?;
        shared.set_fence(fence);
        Ok(keeper.get_cell())
    }

    /// Stops admitting, gives started work its grace period, and lets go of the store. When it
    /// returns, another runtime can open the store. Idempotent: the first call's grace period counts.
    ///
    /// # Cancel safety
    /// Once begun it goes on in a task of its own; whoever calls again waits for the same report.
    pub(crate) async fn shutdown(&self, grace: Duration) -> Result<ShutdownReport> {
        let mut closed = lock(&self.closed)
            .get_or_insert_with(|| {
                let closing = Closing {
                    shared: Arc::clone(&self.shared),
                    root: self.root.clone(),
                    done: false,
                };
                let (said, closed) = watch::channel(None);
                tokio::spawn(async move { said.send(Some(closing.shutdown(grace).await)) });
                closed
            })
            .clone();
        let done = closed.wait_for(Option::is_some).await;
        done.ok()
            .and_then(|done| done.clone())
            .unwrap_or_else(|| Err(self.shared.stopped()))
    }
}

/// Who takes a runtime to its end, in order or, let go of before that, without a word.
struct Closing {
    shared: Arc<Shared>,
    root: ActorRef<()>,
    done: bool,
}

impl Closing {
    async fn shutdown(mut self, grace: Duration) -> Result<ShutdownReport> {
        self.shared.begin_shutdown();
        info!(grace = %humantime::format_duration(grace), "shutting down");
        let began = self.shared.monotonic();
        let report = self.drain(grace).await;
        if tokio::time::timeout(STOP_MAX, self.shared.commands_done())
            .await
            .is_err()
        {
            warn!("commands were still in flight at the end of the shutdown");
        }
        self.shared.end_admission();
        self.root
            .get_cell()
            .stop_children_and_wait(None, Some(ABORT_MAX))
            .await;
        // The grace period is spent once: what the work has left of it is the store's.
        let spent = self.shared.monotonic().saturating_sub(began);
        let left = grace.saturating_sub(spent);
        let let_go = self.let_go(left.max(CLOSE_MIN)).await;
        self.root.stop(None);
        // Whoever still waits finds the store closed.
        self.shared.abandon_waits();
        self.done = true;
        match let_go {
            Ok(()) => Ok(report),
            Err(cause) => Err(Error::StoreFailed {
                cause: format!("{cause}; {}", left_over(&report)),
            }),
        }
    }

    /// Says that this owner is gone, and closes the store; what takes longer than there is time is
    /// left behind, and said.
    async fn let_go(&self, time: Duration) -> std::result::Result<(), String> {
        let late = |what: &str| {
            let time = humantime::format_duration(time);
            Err(format!("{what} within {time}: the store may still be held"))
        };
        let mut time_over = std::pin::pin!(tokio::time::sleep(time));
        let mut answered = true;
        tokio::select! {
            () = keeper::retire_at_shutdown(&self.shared) => {}
            () = &mut time_over => answered = false,
        }
        let shared = Arc::clone(&self.shared);
        let (said, closed) = oneshot::channel();
        // A thread of its own, because both block: the async runtime waits for its blocking ones when
        // it goes away.
        std::thread::spawn(move || {
            let closed = shared.store.close();
            shared.end_fence();
            let _ = said.send(closed);
        });
        if !answered {
            return late("the last commit was not answered");
        }
        tokio::select! {
            closed = closed => match closed {
                Ok(closed) => closed.map_err(|error| error.to_string()),
                Err(_) => Err("closing the store panicked".to_owned()),
            },
            () = &mut time_over => late("the store was not closed"),
        }
    }

    async fn drain(&self, grace: Duration) -> ShutdownReport {
        if let Ok(actors) = self.shared.actors() {
            let _ = actors.dispatcher.cast(DispatchMsg::Stop);
        }
        let mut watched = JoinSet::new();
        let mut silent = BTreeSet::new();
        for (id, actor) in self.shared.active_actors() {
            let (settled, wait) = oneshot::channel();
            let _ = actor.cast(ProcessMsg::Watch { settled });
            let _ = actor.cast(ProcessMsg::Drain);
            silent.insert(Arc::clone(&id));
            watched.spawn(async move { (id, wait.await.unwrap_or(ShutdownOutcome::Idle)) });
        }
        let mut report = ShutdownReport::default();
        if !collect(&mut watched, &mut silent, &mut report, grace).await {
            self.shared.tell_all(|| ProcessMsg::Stop {
                reason: CancelReason::Shutdown,
            });
            if !collect(&mut watched, &mut silent, &mut report, STOP_MAX).await {
                self.shared.tell_all(|| ProcessMsg::Abort);
                collect(&mut watched, &mut silent, &mut report, ABORT_MAX).await;
            }
        }
        if !silent.is_empty() {
            warn!(
                executions = silent.len(),
                "some executions did not stop: the next open recovers them"
            );
        }
        report
            .unwritten
            .extend(silent.iter().map(|id| id.to_string()));
        report
    }
}

/// What a shutdown that failed has to say of the work it stopped.
fn left_over(report: &ShutdownReport) -> String {
    let mut unwritten = report.unwritten.clone();
    unwritten.truncate(NAMED_MAX);
    format!(
        "{} processes finished, {} were released, {} abandoned; not written: {} ({})",
        report.finished.len(),
        report.released.len(),
        report.abandoned.len(),
        report.unwritten.len(),
        unwritten.join(", ")
    )
}

/// Takes answers until all are there, or the time is over; says which it was.
async fn collect(
    watched: &mut JoinSet<(Arc<str>, ShutdownOutcome)>,
    silent: &mut BTreeSet<Arc<str>>,
    report: &mut ShutdownReport,
    time: Duration,
) -> bool {
    let all = async {
        while let Some(answer) = watched.join_next().await {
            let Ok((id, outcome)) = answer else {
                continue;
            };
            silent.remove(&id);
            let list = match outcome {
                ShutdownOutcome::Idle => continue,
                ShutdownOutcome::Finished => &mut report.finished,
                ShutdownOutcome::Released => &mut report.released,
                ShutdownOutcome::Abandoned => &mut report.abandoned,
                ShutdownOutcome::Unwritten => &mut report.unwritten,
            };
            list.push(id.to_string());
        }
    };
    tokio::time::timeout(time, all).await.is_ok()
}

impl Drop for Runtime {
    fn drop(&mut self) {
        if lock(&self.closed).is_some() {
            // That goes on, or came to its end.
            return;
        }
        drop(Closing {
            shared: Arc::clone(&self.shared),
            root: self.root.clone(),
            done: false,
        });
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // Without a shutdown nothing more is written in its name: what it executed is recovered
        // by the next open, as after a crash.
        self.shared.begin_shutdown();
        self.shared.end_admission();
        self.root.get_cell().kill();
        let shared = Arc::clone(&self.shared);
        // Handles that hosts still hold must not keep the store from the next open; letting go of
        // it blocks, and there may be no async runtime left to do that on.
        std::thread::spawn(move || {
            if let Err(error) = shared.store.close() {
                warn!(%error, "store was not closed in order");
            }
            // Whoever still waits finds the store closed.
            shared.abandon_waits();
            shared.end_fence();
        });
    }
}
