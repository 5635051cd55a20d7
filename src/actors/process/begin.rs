//! How an attempt begins: the claim, and the launch of its engine.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::execution::{Execution, Launch};
use super::flight::{Purpose, Work};
use super::messages::ProcessMsg;
use super::state::Process;
use super::waits::{History, Waits};
use crate::actors::config::{NOTED_AGAIN_AFTER, NOTED_AT_ONCE, NOTED_BYTES};
use crate::actors::dispatcher::{SlotPermit, Turn};
use crate::actors::keeper::OwnerHandle;
use crate::actors::runtime::Claimed;
use crate::engines::CancelReason;
use crate::model::decide::Command;
use crate::model::lease::OwnerStanding;
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, recover, time_left_ms};
use crate::model::{Error, FencingToken, ProcessInput, RecoveryDisposition, Result, StartReason};

/// How often the pause before a log is read again is doubled.
const DOUBLED_MAX: u32 = 6;

impl Process {
    /// A slot is free: claims the process, if that is still what is to be done.
    pub(super) fn begin(&mut self, turn: Turn) {
        if self.execution.is_some() || self.reading || self.beginning {
            turn.decline();
            return;
        }
        if !History::concerns(&self.registration) || self.state.last_sequence == 0 {
            self.claim(turn, History::default());
            return;
        }
        // The log may be long: it is read off the actor.
        self.reading = true;
        let store = self.shared.store.clone();
        let registration = Arc::clone(&self.registration);
        let myself = self.myself.clone();
        tokio::spawn(async move {
            let loaded =
                tokio::task::spawn_blocking(move || History::load(&store, &registration)).await;
            let history = loaded.unwrap_or_else(|error| {
                Err(Error::Corrupted {
                    what: error.to_string(),
                })
            });
            let _ = myself.cast(ProcessMsg::HistoryLoaded { turn, history });
        });
    }

    pub(super) fn history_loaded(&mut self, turn: Turn, history: Result<History>) {
        self.reading = false;
        match history {
            Ok(history) => self.claim(turn, history),
            Err(error) => {
                warn!(process = %self.registration.id, %error, "log cannot be read");
                self.look_later();
                turn.decline();
            }
        }
    }

    /// It left the queue without an attempt: the next sweep by interval looks at it. Not at once,
    /// where that would only come back here.
    fn look_later(&self) {
        if self.state.terminal().is_none() {
            self.shared.attention.note(self.row);
        }
    }

    pub(super) fn claim(&mut self, turn: Turn, history: History) {
        let Some(permit) = turn.take() else {
            return;
        };
        if self.shared.is_shutting_down() {
            return;
        }
        let Some(owner) = self.shared.trusted_owner() else {
            // Between two incarnations, or in doubt about this one.
            self.look_later();
            return;
        };
        self.refresh();
        match self.next_attempt(&owner) {
            Ok(Some(reason)) => match self.shared.store.next_token() {
                Ok(token) => {
                    self.beginning = true;
                    self.shared.first_start(&self.registration, &self.state);
                    self.pending_history = Some(history);
                    self.decide(Work {
                        command: Command::Begin {
                            owner: owner.owner.clone(),
                            token,
                            reason,
                        },
                        granted_to: None,
                        tries: 0,
                        purpose: Purpose::Begin {
                            permit,
                            owner,
                            token,
                            claimed: self.shared.claiming(self.row),
                        },
                    });
                }
                Err(error) => {
                    warn!(process = %self.registration.id, %error, "no token");
                    self.look_later();
                }
            },
            Ok(None) => self.look_later(),
            Err(error) => {
                warn!(process = %self.registration.id, %error, "not claimed");
                self.look_later();
            }
        }
    }

    /// Why the next attempt begins; `None` if none is to begin.
    pub(super) fn next_attempt(&mut self, owner: &Arc<OwnerHandle>) -> Result<Option<StartReason>> {
        if self.shared.has_task(self.registration.incarnation) {
            // Code that never yields still runs: nothing is started beside it.
            return Ok(None);
        }
        // A live lease of this same incarnation, and no task: its actor died, which the reaper records.
        // No attempt begins beside a lease, whoever is named there.
        let orphaned = self.lease.is_some_and(|lease| lease.owner == owner.number);
        let lease = if orphaned {
            LeaseStanding::Held(OwnerStanding::Dead)
        } else {
            self.shared.store.view()?.lease_standing(self.lease)?
        };
        let facts = RecoveryFacts {
            lease,
            engine_registered: self.shared.engine_of(&self.registration).is_some(),
            started_for_ms: self.started_for_ms(),
            pause_ends_ms: self.shared.pause_ends_ms(&self.registration, &self.state),
        };
        match recover(&self.registration, &self.state, facts) {
            RecoveryAction::Queue {
                reason,
                not_before_ms,
            } if not_before_ms <= self.shared.steady_ms() => Ok(Some(reason)),
            RecoveryAction::Queue { .. } => {
                // It came too early: it is queued again, for its time.
                self.shared.look_at(self.row);
                Ok(None)
            }
            RecoveryAction::Leave(_) => Ok(None),
            RecoveryAction::Release { .. }
            | RecoveryAction::Abandon { .. }
            | RecoveryAction::Cancel
            | RecoveryAction::ExhaustRecoveries
            | RecoveryAction::TimeOut => {
                self.shared.look_at(self.row);
                Ok(None)
            }
        }
    }

    /// For how long it has been started, where it has a time limit.
    fn started_for_ms(&self) -> u64 {
        self.shared.started_for_ms(&self.registration, &self.state)
    }

    pub(super) fn launch(
        &mut self,
        permit: SlotPermit,
        owner: &Arc<OwnerHandle>,
        token: FencingToken,
        claimed: Claimed,
    ) {
        self.beginning = false;
        self.shared.pause_is_over(self.registration.incarnation);
        let history = self.pending_history.take().unwrap_or_default();
        let Some(engine) = self.shared.engine_of(&self.registration) else {
            return;
        };
        let ProcessInput::Engine { payload, .. } = &self.registration.input else {
            return;
        };
        // Counted first, judged second: the keeper declares an incarnation gone when it counts no
        // task of it, and nothing may begin in its name after that.
        owner.task_began(token);
        if !owner.is_trusted(self.shared.monotonic()) {
            owner.task_ended(token);
            warn!(process = %self.registration.id, fencing_token = token.get(),
                "lease lapsed while it was claimed: not executed");
            return;
        }
        info!(process = %self.registration.id, attempt = self.durable.attempt,
            fencing_token = token.get(), owner = %owner.owner.owner_id, "attempt begins");
        let execution = Execution::launch(Launch {
            shared: Arc::clone(&self.shared),
            actor: self.myself.clone(),
            registration: Arc::clone(&self.registration),
            state: Arc::clone(&self.durable),
            engine,
            payload: payload.clone(),
            owner: Arc::clone(owner),
            token,
            permit,
            waits: Waits::new(history),
            claimed,
        });
        self.execution = Some(execution);
        self.note_since_history();
        let left_ms = time_left_ms(&self.registration, &self.durable, self.started_for_ms());
        if let Some(left_ms) = left_ms {
            let left = Duration::from_millis(left_ms);
            self.after(left, move || ProcessMsg::Deadline { token });
        }
        // A request to cancel that is on its way stops it when it is durable.
        if self.shared.is_shutting_down()
            && self.registration.disposition == RecoveryDisposition::Rerunnable
        {
            self.stop_execution(token, CancelReason::Shutdown);
        }
    }

    /// Takes note of what arrived while the history was read, of what others wrote, and of what is in
    /// flight. That may be much: the rest of it follows page by page, as messages of their own, so that
    /// whatever else runs here has its turn between them.
    pub(super) fn note_since_history(&mut self) {
        let behind = |execution: &Execution| execution.waits.behind.is_some();
        if !self.execution.as_ref().is_some_and(behind) {
            self.note_page();
        }
    }

    /// Goes on with that.
    pub(super) fn note_more(&mut self, token: FencingToken) {
        let current = |execution: &Execution| execution.token == token;
        if self.execution.as_ref().is_some_and(current) {
            self.note_page();
            self.resolve_ready_waits();
        }
    }

    fn note_page(&mut self) {
        let from = self.durable.last_sequence;
        let Some(execution) = &mut self.execution else {
            return;
        };
        let seen = execution.waits.seen();
        if seen < from && History::concerns(&self.registration) {
            let (id, incarnation) = (&self.registration.id, self.registration.incarnation);
            let missed = self.shared.store.view().and_then(|view| {
                view.events(id, incarnation, seen + 1, NOTED_AT_ONCE, NOTED_BYTES)
            });
            match missed {
                Ok(missed) => {
                    for event in &missed {
                        let _ = execution.waits.note(event);
                    }
                    if !missed.is_empty() && execution.waits.seen() < from {
                        execution.waits.behind.get_or_insert_default().failures = 0;
                        let (token, myself) = (execution.token, self.myself.clone());
                        // Not by itself: an actor whose mailbox is not empty goes on and on.
                        tokio::spawn(async move {
                            tokio::task::yield_now().await;
                            let _ = myself.cast(ProcessMsg::NoteLog { token });
                        });
                        return;
                    }
                }
                Err(error) => {
                    // What comes behind it is not taken note of before it: then a later signal would end
                    // a wait that is for one of those.
                    warn!(process = %self.registration.id, %error, "log cannot be read");
                    let behind = execution.waits.behind.get_or_insert_default();
                    let pause = NOTED_AGAIN_AFTER * 2_u32.pow(behind.failures.min(DOUBLED_MAX));
                    behind.failures += 1;
                    let token = execution.token;
                    self.after(pause, move || ProcessMsg::NoteLog { token });
                    return;
                }
            }
        }
        let in_flight = self.flights.iter().flat_map(|flight| &flight.events);
        for (event, _) in in_flight {
            let _ = execution.waits.note(event);
        }
        if let Some(behind) = execution.waits.behind.take() {
            for wait in behind.held {
                self.wait_begin(wait);
            }
        }
    }
}
