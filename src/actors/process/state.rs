//! The state of a process actor, and the way of a command through it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;

use super::batch::{joins, leaves_corked};
use super::execution::Execution;
use super::flight::{Flight, Purpose, Work};
use super::messages::{Answer, CommandCall, HostCommand, ProcessMsg, ShutdownOutcome};
use super::waits::NewWait;
use crate::actors::config::RETRIES_MAX;
use crate::actors::runtime::Shared;
use crate::engines::CancelReason;
use crate::model::decide::{self, Command, Decision, Facts, Finisher, Replayed};
use crate::model::lease::Lease;
use crate::model::record::{ProcessState, Registration, Writer};
use crate::model::{Error, ProcessEvent, RecoveryDisposition, Result};
use crate::store::keys::Row;
use crate::store::read::LoadedProcess;
use crate::store::write_set::Ticket;

/// What an actor is made from.
pub(crate) struct Activation {
    pub(crate) shared: Arc<Shared>,
    pub(crate) loaded: LoadedProcess,
}

/// One active process.
pub(crate) struct Process {
    pub(super) shared: Arc<Shared>,
    pub(super) myself: ActorRef<ProcessMsg>,
    pub(super) registration: Arc<Registration>,
    pub(super) row: Row,
    /// What is in the store.
    pub(super) durable: Arc<ProcessState>,
    pub(super) durable_lease: Option<Lease>,
    /// What will be, if everything in flight is accepted.
    pub(super) state: Arc<ProcessState>,
    pub(super) lease: Option<Lease>,
    pub(super) flights: VecDeque<Flight>,
    /// Appends that are decided together once what else is in the mailbox has been looked at.
    pub(super) corked: Vec<Work>,
    /// Bytes of their payloads.
    pub(super) corked_bytes: usize,
    pub(super) next_flight: u64,
    pub(super) last_ticket: Option<Ticket>,
    /// Replay keys of events in flight.
    pub(super) replays: HashMap<String, Replayed>,
    /// A set was refused: what comes back behind it is collected here and decided anew.
    pub(super) broken: bool,
    pub(super) reload: bool,
    pub(super) backlog: VecDeque<Work>,
    /// What came while that went on: decided behind it, so that nothing overtakes.
    pub(super) arrivals: VecDeque<Work>,
    pub(super) execution: Option<Execution>,
    /// The log is being read for an attempt.
    pub(super) reading: bool,
    /// The claim of an attempt is in flight.
    pub(super) beginning: bool,
    /// What its log says of signals and waits, for the attempt that is being prepared.
    pub(super) pending_history: Option<super::waits::History>,
    pub(super) watchers: Vec<oneshot::Sender<ShutdownOutcome>>,
    pub(super) last_outcome: ShutdownOutcome,
    /// The row is gone from the store: nothing can be done here any more.
    pub(super) gone: bool,
}

impl Process {
    pub(super) fn new(myself: ActorRef<ProcessMsg>, activation: Activation) -> Self {
        let LoadedProcess {
            row,
            registration,
            state,
            edges,
        } = activation.loaded;
        let state = Arc::new(state);
        Self {
            shared: activation.shared,
            myself,
            registration: Arc::new(registration),
            row,
            durable: Arc::clone(&state),
            durable_lease: edges.lease,
            state,
            lease: edges.lease,
            flights: VecDeque::new(),
            corked: Vec::new(),
            corked_bytes: 0,
            next_flight: 0,
            last_ticket: None,
            replays: HashMap::new(),
            broken: false,
            reload: false,
            backlog: VecDeque::new(),
            arrivals: VecDeque::new(),
            execution: None,
            reading: false,
            beginning: false,
            pending_history: None,
            watchers: Vec::new(),
            last_outcome: ShutdownOutcome::Idle,
            gone: false,
        }
    }

    /// Handles a message; `false` when the actor is done and has left the map.
    pub(super) fn handle(&mut self, message: ProcessMsg) -> bool {
        if !leaves_corked(&message) {
            // What came first is decided first: a signal before the wait that it ends.
            self.uncork();
        }
        match message {
            ProcessMsg::Command(call) => self.command(*call),
            ProcessMsg::Committed { flight, result } => self.committed(flight, result),
            ProcessMsg::Uncork => self.uncork(),
            ProcessMsg::Begin { turn } => self.begin(turn),
            ProcessMsg::HistoryLoaded { turn, history } => self.history_loaded(turn, history),
            ProcessMsg::Ended { token, result } => self.ended(token, result),
            ProcessMsg::Emit {
                token,
                event,
                durable,
                room,
            } => self.decide(Work {
                command: Command::Append {
                    event: *event,
                    writer: Writer::Owner(token),
                },
                granted_to: None,
                tries: 0,
                purpose: Purpose::Emit {
                    token,
                    durable,
                    room,
                },
            }),
            ProcessMsg::WaitBegin {
                token,
                wait_id,
                signal_name,
                timeout,
                reply,
            } => self.wait_begin(NewWait {
                token,
                wait_id,
                signal_name,
                timeout,
                reply,
            }),
            ProcessMsg::NoteLog { token } => self.note_more(token),
            ProcessMsg::WaitDropped { wait_id } => self.wait_dropped(wait_id),
            ProcessMsg::WaitUnseen {
                token,
                signal_name,
                number,
            } => self.wait_unseen(token, &signal_name, number),
            ProcessMsg::WaitTimedOut { wait_id } => self.wait_timed_out(wait_id),
            ProcessMsg::SlotGranted { permit } => self.slot_granted(permit),
            ProcessMsg::Deadline { token } => self.stop_execution(token, CancelReason::TimedOut),
            ProcessMsg::GraceOver { token } => self.grace_over(token),
            ProcessMsg::AbortOver { token } => self.abort_over(token),
            ProcessMsg::LeaseLost { owner } => self.lease_lost(owner),
            ProcessMsg::Stop { reason } => {
                if let Some(token) = self.execution.as_ref().map(|running| running.token) {
                    self.stop_execution(token, reason);
                }
            }
            ProcessMsg::Abort => {
                if let Some(execution) = &mut self.execution {
                    execution.cancel.fire(CancelReason::Shutdown);
                    execution.abort();
                }
            }
            ProcessMsg::Drain => {
                // Work that can be run again stops at once; other work gets the grace period.
                if self.registration.disposition == RecoveryDisposition::Rerunnable
                    && let Some(token) = self.execution.as_ref().map(|running| running.token)
                {
                    self.stop_execution(token, CancelReason::Shutdown);
                }
            }
            ProcessMsg::Watch { settled } => {
                if self.is_idle() {
                    self.last_outcome = ShutdownOutcome::Idle;
                }
                self.watchers.push(settled);
            }
            ProcessMsg::Look => {
                self.refresh();
            }
            ProcessMsg::Passivate => {
                self.tell_watchers();
                return !self.passivate();
            }
            #[cfg(test)]
            ProcessMsg::Panic => panic!("asked to"),
        }
        self.tell_watchers();
        !(self.gone && self.passivate())
    }

    /// Nothing runs, nothing is in flight, nothing waits to be decided.
    pub(super) fn is_idle(&self) -> bool {
        self.execution.is_none()
            && !self.reading
            && !self.beginning
            && self.flights.is_empty()
            && self.corked.is_empty()
            && self.backlog.is_empty()
            && self.arrivals.is_empty()
    }

    pub(super) fn tell_watchers(&mut self) {
        if self.is_idle() {
            for watcher in self.watchers.drain(..) {
                let _ = watcher.send(self.last_outcome);
            }
        }
    }

    pub(super) fn passivate(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        // Off the map first, by identity: whoever looks now activates another actor. A message
        // that is already in this mailbox was not marked as sent, and is sent again.
        self.shared.leave(&self.registration.id, &self.myself);
        true
    }

    pub(super) fn command(&mut self, call: CommandCall) {
        if call.incarnation != self.registration.incarnation || self.gone {
            // The id stands for something else by now.
            call.reply.look_again();
            return;
        }
        let CommandCall {
            command,
            granted_to,
            reply,
            ..
        } = call;
        let command = match self.checked(command) {
            Ok(command) => command,
            Err(error) => {
                reply.send(Err(error));
                return;
            }
        };
        self.decide(Work {
            command,
            granted_to,
            tries: 0,
            purpose: Purpose::Host(reply),
        });
    }

    pub(super) fn checked(&self, command: HostCommand) -> Result<Command> {
        Ok(match command {
            HostCommand::Append(event) => Command::Append {
                event: decide::check_prepared(&self.registration, event)?,
                writer: Writer::Host,
            },
            HostCommand::Cancel { requested_by } => Command::RequestCancel { requested_by },
            HostCommand::Abandon {
                requested_by,
                reason,
            } => Command::RequestAbandon {
                requested_by,
                reason,
            },
            HostCommand::ExternalRef { reference, .. } => Command::SetExternalRef { reference },
            HostCommand::Complete {
                output, authority, ..
            } => Command::Finish {
                output,
                finisher: Finisher::Authority(authority),
            },
        })
    }

    /// Decides some work on the newest state, or keeps it until there is one again.
    pub(super) fn decide(&mut self, work: Work) {
        if self.broken {
            self.arrivals.push_back(work);
        } else if joins(&work) && !self.is_first_of_a_host(&work) {
            self.cork(work);
        } else {
            self.uncork();
            if self.broken {
                self.arrivals.push_back(work);
            } else {
                self.decide_now(work);
            }
        }
    }

    /// Decides some work and sends what comes of it.
    pub(super) fn decide_now(&mut self, mut work: Work) {
        loop {
            if self.gone {
                self.conclude_gone(work);
                return;
            }
            if let Purpose::WaitBegun { wait_id } = work.purpose
                && self.has_been_resolved(wait_id)
            {
                // Its signal came before it could be said that the process waits.
                self.wait_unsaid(wait_id);
                return;
            }
            if let Purpose::Release { token } = work.purpose {
                self.release(work, token);
                return;
            }
            work.tries += 1;
            let answer = match self.decision(&work) {
                Ok(Decision::Commit { events, lease }) => {
                    self.send_alone(work, events, lease);
                    return;
                }
                Ok(Decision::Replayed { sequence }) => self.event_at(sequence).map(Answer::Event),
                Ok(Decision::Unchanged) => Ok(Answer::Status(Arc::clone(&self.state.status))),
                Err(error) => Err(error),
            };
            // An answer that no commit stands for is only as good as the state it rests on, which
            // the reaper, a prune or another runtime may have left behind.
            if work.tries <= RETRIES_MAX && self.refresh() {
                continue;
            }
            self.answer(work, answer);
            return;
        }
    }

    /// Loads what is in the store if somebody else wrote there; whether that was so.
    pub(super) fn refresh(&mut self) -> bool {
        if !self.flights.is_empty() {
            // Their own conditions tell.
            return false;
        }
        let front = self
            .shared
            .store
            .view()
            .and_then(|view| view.front(self.row));
        let as_known = match front {
            Ok(Some(front)) => {
                let (owner, token) = self.durable_lease.map_or((0, front.token), |lease| {
                    (lease.owner.get(), lease.token.get())
                });
                (front.last_sequence, front.owner, front.token)
                    == (self.durable.last_sequence, owner, token)
            }
            Ok(None) => self.gone,
            // The answer stands as it is: the store will say so itself.
            Err(_) => true,
        };
        if !as_known {
            self.adopt_store();
            self.resolve_ready_waits();
        }
        !as_known
    }

    pub(super) fn decision(&mut self, work: &Work) -> Result<Decision> {
        if work.tries > RETRIES_MAX {
            return Err(Error::Overloaded {
                what: format!("concurrent writers of process {}", self.registration.id),
                limit: u64::from(RETRIES_MAX),
            });
        }
        let facts = self.facts(&work.command)?;
        decide::decide(&self.registration, &self.state, work.command.clone(), facts)
    }

    pub(super) fn facts(&self, command: &Command) -> Result<Facts> {
        let mut facts = Facts {
            holder: self.lease.map(|lease| lease.token),
            ..Facts::default()
        };
        match command {
            Command::Append { event, .. } => {
                if let Some(replay) = &event.replay {
                    facts.replayed = match self.replays.get(&replay.key) {
                        Some(replayed) => Some(*replayed),
                        None => self
                            .shared
                            .store
                            .view()?
                            .replayed(self.registration.incarnation, &replay.key)?,
                    };
                }
            }
            Command::RequestCancel { .. } if self.execution.is_none() && !self.beginning => {
                if self.may_end_at_once()? {
                    facts.claim = Some(self.shared.store.next_token()?);
                }
            }
            // Judged claimable right before this, in `next_attempt`; once more inside the commit.
            Command::Begin { token, .. } => {
                facts.claim = Some(*token);
                let limited = self.registration.timeout.is_some();
                if limited && self.state.first_started.is_none() {
                    facts.store_age_ms = Some(self.shared.age_ms());
                }
            }
            Command::RequestCancel { .. }
            | Command::RequestAbandon { .. }
            | Command::SetExternalRef { .. }
            | Command::BeginWait { .. }
            | Command::EndWait { .. }
            | Command::ScheduleRetry { .. }
            | Command::LoseOwner { .. }
            | Command::Finish { .. } => {}
        }
        Ok(facts)
    }

    /// Whether a canceller may claim it and end it in the same commit: not where a lease is still
    /// named. What lost its owner may have left something behind that only the reaper looks for, and
    /// without recovery nobody's lease is claimed.
    fn may_end_at_once(&self) -> Result<bool> {
        use crate::model::recovery::LeaseStanding;
        let standing = self.shared.store.view()?.lease_standing(self.lease)?;
        Ok(standing == LeaseStanding::Free)
    }

    /// An event that is in flight or in the log.
    pub(super) fn event_at(&self, sequence: u64) -> Result<Arc<ProcessEvent>> {
        let in_flight = self
            .flights
            .iter()
            .flat_map(|flight| &flight.events)
            .find(|(event, _)| event.sequence == sequence)
            .map(|(event, _)| Arc::clone(event));
        if let Some(event) = in_flight {
            return Ok(event);
        }
        let page = self.shared.store.view()?.events(
            &self.registration.id,
            self.registration.incarnation,
            sequence,
            1,
            usize::MAX,
        )?;
        page.into_iter()
            .next()
            .map(Arc::new)
            .ok_or_else(|| Error::Corrupted {
                what: format!(
                    "event {sequence} of process {} is gone",
                    self.registration.id
                ),
            })
    }

    pub(super) fn after(
        &mut self,
        wait: Duration,
        message: impl FnOnce() -> ProcessMsg + Send + 'static,
    ) {
        let myself = self.myself.clone();
        if let Some(execution) = &mut self.execution {
            execution.after(&myself, wait, message);
        }
    }
}
