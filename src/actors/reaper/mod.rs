//! The reaper: recovery, and what is to be cleaned up.
//!
//! It walks the processes that have not ended, or those of them that were noted (`attention.rs`), in
//! bounded pages, each on a view of its own, and does
//! what the pure rules of `model::recovery` say. What it ends it ends by a commit that carries its
//! own conditions, so that it need not know what actors are doing meanwhile.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ractor::{Actor, ActorProcessingErr, ActorRef};
use tokio::sync::oneshot;
use tracing::{info, warn};

mod attention;
mod report;
mod settle;
mod survivors;
mod sweep;
#[cfg(test)]
mod tests;

pub(crate) use attention::Attention;
pub use report::{RecoveryReport, RecoveryStep, RecoveryTotals};
pub(crate) use survivors::Looks;

use attention::Scope;
use sweep::Sweep;

use super::config::PASSIVATE_AFTER;
use super::retention::Retention;
use super::runtime::Shared;
use crate::model::{Error, Result};

/// What the reaper is told.
#[derive(Debug)]
pub(crate) enum ReaperMsg {
    /// It is time for a sweep.
    Tick,
    /// Something may have to be recovered.
    SweepSoon,
    /// Enough time has passed since that was said.
    SweepDelayed,
    /// Sweep now, and say what was done.
    SweepNow {
        report: oneshot::Sender<Result<RecoveryReport>>,
    },
    /// A sweep is over.
    Swept,
    /// Actors with nothing to do may go.
    Passivate,
    /// What is kept longer than it should be may go.
    Retain,
    /// That is done.
    Retained,
}

pub(crate) struct Reaper;

pub(crate) struct ReaperState {
    shared: Arc<Shared>,
    sweeping: bool,
    retaining: bool,
    ticks: u32,
    /// The tick at which the last walk was due.
    walked_at: u32,
    /// Asked for while a sweep was going on, or too soon after one.
    again: bool,
    /// A timer for that is set.
    delayed: bool,
    waiting: Vec<oneshot::Sender<Result<RecoveryReport>>>,
    /// What the sweeps of this open have done.
    totals: Arc<Mutex<RecoveryTotals>>,
    /// How far retention has come.
    retention: Arc<tokio::sync::Mutex<Retention>>,
}

impl Actor for Reaper {
    type Msg = ReaperMsg;
    type State = ReaperState;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        myself: ActorRef<ReaperMsg>,
        shared: Arc<Shared>,
    ) -> Result<ReaperState, ActorProcessingErr> {
        myself.send_interval(shared.config.sweep_every, || ReaperMsg::Tick);
        myself.send_interval(shared.config.retain_every, || ReaperMsg::Retain);
        // What was due while the store was closed does not wait for an interval more.
        let _ = myself.cast(ReaperMsg::Retain);
        myself.send_interval(PASSIVATE_AFTER / 2, || ReaperMsg::Passivate);
        let retention = Retention::new(&shared);
        Ok(ReaperState {
            shared,
            retention: Arc::new(tokio::sync::Mutex::new(retention)),
            sweeping: false,
            retaining: false,
            ticks: 0,
            walked_at: 0,
            again: false,
            delayed: false,
            waiting: Vec::new(),
            totals: Arc::default(),
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<ReaperMsg>,
        message: ReaperMsg,
        state: &mut ReaperState,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            ReaperMsg::Tick => {
                state.ticks = state.ticks.wrapping_add(1);
                if state.shared.store.exclusive_epoch().is_none() {
                    // V1: what another host committed, nobody here was told of.
                    state.shared.hub.nudge_all();
                    state.shared.look_soon();
                    state.shared.attention.note_everything();
                } else if state.ticks.wrapping_sub(state.walked_at) >= state.walk_every() {
                    state.walked_at = state.ticks;
                    state.shared.attention.note_walk();
                }
                state.sweep(&myself);
            }
            ReaperMsg::SweepSoon => state.sweep_soon(&myself),
            ReaperMsg::SweepDelayed => {
                state.delayed = false;
                state.sweep(&myself);
            }
            ReaperMsg::SweepNow { report } => {
                state.waiting.push(report);
                state.shared.attention.note_everything();
                state.sweep(&myself);
            }
            ReaperMsg::Swept => {
                state.sweeping = false;
                if !state.waiting.is_empty() {
                    state.sweep(&myself);
                } else if std::mem::take(&mut state.again) {
                    state.sweep_soon(&myself);
                }
            }
            ReaperMsg::Retain => state.retain(&myself),
            ReaperMsg::Retained => state.retaining = false,
            ReaperMsg::Passivate => state.shared.passivate_soon(PASSIVATE_AFTER),
        }
        Ok(())
    }
}

/// Tells the reaper that a task of its own is over, however it came to be.
struct Over {
    reaper: ActorRef<ReaperMsg>,
    message: Option<ReaperMsg>,
}

impl Drop for Over {
    fn drop(&mut self) {
        if let Some(message) = self.message.take() {
            let _ = self.reaper.cast(message);
        }
    }
}

/// What a sweep took upon itself is everybody's again unless it was looked at to the end, also when
/// the sweep panics.
struct Looking {
    shared: Arc<Shared>,
    done: bool,
}

impl Drop for Looking {
    fn drop(&mut self) {
        if !self.done {
            self.shared.attention.note_everything();
        }
    }
}

/// There is one in so many times to live, whatever the last one took.
const WALK_WITHIN: u32 = 100;
/// A walk through everything reads for no more than one of so many parts of the time.
const WALK_IN_PARTS: u32 = 400;

/// Time over which requests for a sweep are gathered: a process that cannot be claimed must not
/// keep the reaper, and the disk, busy.
const GATHER: Duration = Duration::from_millis(50);

impl ReaperState {
    /// Of so many sweeps by interval one walks through everything, whatever was noted: as many as fit
    /// into a time to live, or into what keeps a walk that takes long a small part of the time. It only
    /// makes sure: whatever it might find was noted when it happened.
    fn walk_every(&self) -> u32 {
        let config = &self.shared.config;
        let rest = self
            .shared
            .attention
            .walk_took()
            .saturating_mul(WALK_IN_PARTS);
        let ttl = config.lease.ttl();
        // What stood still in the middle of a walk made it look long.
        let every = ttl
            .max(rest.min(ttl.saturating_mul(WALK_WITHIN)))
            .as_millis();
        u32::try_from(every / config.sweep_every.as_millis().max(1))
            .unwrap_or(u32::MAX)
            .max(1)
    }

    fn retain(&mut self, myself: &ActorRef<ReaperMsg>) {
        if self.retaining || !self.shared.config.recover || self.shared.is_shutting_down() {
            return;
        }
        self.retaining = true;
        let shared = Arc::clone(&self.shared);
        let retention = Arc::clone(&self.retention);
        let over = Over {
            reaper: myself.clone(),
            message: Some(ReaperMsg::Retained),
        };
        tokio::spawn(async move {
            let _over = over;
            let mut retention = retention.lock().await;
            if let Err(error) = shared.retain(&mut retention).await {
                warn!(%error, "retention failed");
            }
        });
    }

    fn sweep_soon(&mut self, myself: &ActorRef<ReaperMsg>) {
        if !std::mem::replace(&mut self.delayed, true) {
            myself.send_after(GATHER, || ReaperMsg::SweepDelayed);
        }
    }

    fn sweep(&mut self, myself: &ActorRef<ReaperMsg>) {
        if !self.shared.config.recover || self.shared.is_shutting_down() {
            let error = if self.shared.is_shutting_down() {
                Error::ShuttingDown
            } else {
                Error::invalid("recover", "is switched off", "a store opened with recovery")
            };
            for waiting in self.waiting.drain(..) {
                let _ = waiting.send(Err(error.clone()));
            }
            return;
        }
        if self.sweeping {
            self.again = true;
            return;
        }
        let scope = self.shared.attention.take();
        if scope == Scope::Rows(Vec::new()) {
            return;
        }
        self.sweeping = true;
        let shared = Arc::clone(&self.shared);
        let waiting = std::mem::take(&mut self.waiting);
        let totals = Arc::clone(&self.totals);
        let over = Over {
            reaper: myself.clone(),
            message: Some(ReaperMsg::Swept),
        };
        tokio::spawn(async move {
            let _over = over;
            let mut looking = Looking {
                shared: Arc::clone(&shared),
                done: false,
            };
            let (mut report, done) = Sweep::new(&shared).run(scope).await;
            looking.done = done.is_ok();
            drop(looking);
            {
                let mut totals = totals.lock().unwrap_or_else(PoisonError::into_inner);
                *totals = report.sum_up(*totals, done.is_ok());
            }
            let report = done.map(|()| report);
            match &report {
                Ok(report) if report.examined > report.left => {
                    info!(
                        examined = report.examined,
                        queued = report.queued,
                        abandoned = report.abandoned,
                        cancelled = report.cancelled,
                        failed = report.failed,
                        overtaken = report.overtaken,
                        unsettled = report.unsettled,
                        "recovery sweep"
                    );
                }
                Ok(_) => {}
                Err(error) => warn!(%error, "recovery sweep failed"),
            }
            for waiting in waiting {
                let _ = waiting.send(report.clone());
            }
        });
    }
}

impl Shared {
    /// Sweeps now and says what was done.
    pub(crate) async fn recover_now(&self) -> Result<RecoveryReport> {
        let (report, wait) = oneshot::channel();
        self.actors()?
            .reaper
            .cast(ReaperMsg::SweepNow { report })
            .map_err(|_| Error::ShuttingDown)?;
        wait.await.unwrap_or(Err(Error::ShuttingDown))
    }
}

/// Ends a process as it is ended where its owner is proven to be gone, whether that is so or not.
#[cfg(test)]
pub(crate) async fn end_by_proof(
    shared: &Arc<Shared>,
    id: &str,
    row: crate::store::keys::Row,
) -> Result<RecoveryStep> {
    use crate::model::recovery::RecoveryAction;
    use crate::model::{AbandonProof, AbandonWriter};
    let lease = shared.view()?.load(row)?.and_then(|it| it.edges.lease);
    let task = settle::Task {
        id: id.to_owned(),
        row,
        work: settle::Work::Settle {
            action: RecoveryAction::Abandon {
                writer: AbandonWriter::Sweep,
                proof: AbandonProof::StoreEpoch,
            },
            lease,
            orphaned: None,
        },
    };
    settle::carry_out(shared, task, &survivors::SlowEngines::default()).await
}

/// The shortest interval of sweeps.
pub(crate) const SWEEP_EVERY_MIN: Duration = Duration::from_millis(50);
