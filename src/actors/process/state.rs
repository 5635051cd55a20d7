//! The state of a process actor, and the way of a command through it.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::execution::Execution;
use super::flight::{Flight, Purpose, Work};
use super::messages::{Answer, CommandCall, HostCommand, ProcessMsg, ShutdownOutcome};
use crate::actors::config::RETRIES_MAX;
use crate::actors::errors::commit_error;
use crate::actors::runtime::Shared;
use crate::engines::CancelReason;
use crate::model::decide::{
    self, Command, Decision, EventDraft, Facts, Finisher, LeaseChange, Replayed, apply_drafts,
};
use crate::model::lease::Lease;
use crate::model::record::{ProcessState, Registration, Writer};
use crate::model::{
    CompletionAuthority, Error, FencingToken, OwnerNumber, ProcessEvent, RecoveryDisposition,
    Result,
};
use crate::store::keys::Row;
use crate::store::read::LoadedProcess;
use crate::store::write_set::{
    Change, CommitError, CommitResult, Condition, Refusal, Ticket, WriteSet,
};
use crate::store::writes;

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
    pub(super) durable: ProcessState,
    durable_lease: Option<Lease>,
    /// What will be, if everything in flight is accepted.
    pub(super) state: ProcessState,
    pub(super) lease: Option<Lease>,
    pub(super) flights: VecDeque<Flight>,
    next_flight: u64,
    last_ticket: Option<Ticket>,
    /// Replay keys of events in flight.
    replays: HashMap<String, Replayed>,
    /// A set was refused: what comes back behind it is collected here and decided anew.
    broken: bool,
    reload: bool,
    backlog: VecDeque<Work>,
    pub(super) execution: Option<Execution>,
    /// An attempt is being prepared: its history is read, or its claim is in flight.
    pub(super) beginning: bool,
    /// What its log says of signals and waits, for the attempt that is being prepared.
    pub(super) pending_history: Option<super::waits::History>,
    pub(super) watchers: Vec<oneshot::Sender<ShutdownOutcome>>,
    pub(super) last_outcome: ShutdownOutcome,
    /// The row is gone from the store: nothing can be done here any more.
    gone: bool,
}

impl Process {
    pub(super) fn new(myself: ActorRef<ProcessMsg>, activation: Activation) -> Self {
        let LoadedProcess {
            row,
            registration,
            state,
            edges,
        } = activation.loaded;
        Self {
            shared: activation.shared,
            myself,
            registration: Arc::new(registration),
            row,
            durable: state.clone(),
            durable_lease: edges.lease,
            state,
            lease: edges.lease,
            flights: VecDeque::new(),
            next_flight: 0,
            last_ticket: None,
            replays: HashMap::new(),
            broken: false,
            reload: false,
            backlog: VecDeque::new(),
            execution: None,
            beginning: false,
            pending_history: None,
            watchers: Vec::new(),
            last_outcome: ShutdownOutcome::Idle,
            gone: false,
        }
    }

    /// Handles a message; `false` when the actor is done and has left the map.
    pub(super) fn handle(&mut self, message: ProcessMsg) -> bool {
        match message {
            ProcessMsg::Command(call) => self.command(*call),
            ProcessMsg::Committed { flight, result } => self.committed(flight, result),
            ProcessMsg::Begin { permit } => self.begin(permit),
            ProcessMsg::HistoryLoaded { permit, history } => self.history_loaded(permit, history),
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
            } => self.wait_begin(token, wait_id, signal_name, timeout, reply),
            ProcessMsg::WaitDropped { wait_id } => self.wait_dropped(wait_id),
            ProcessMsg::WaitTimedOut { wait_id } => self.wait_timed_out(wait_id),
            ProcessMsg::SlotGranted { permit } => self.slot_granted(permit),
            ProcessMsg::Deadline { token } => self.stop_execution(token, CancelReason::TimedOut),
            ProcessMsg::GraceOver { token } => self.grace_over(token),
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
            && !self.beginning
            && self.flights.is_empty()
            && self.backlog.is_empty()
    }

    fn tell_watchers(&mut self) {
        if self.is_idle() {
            for watcher in self.watchers.drain(..) {
                let _ = watcher.send(self.last_outcome);
            }
        }
    }

    fn passivate(&mut self) -> bool {
        if !self.is_idle() {
            return false;
        }
        // Off the map first, by identity: whoever looks now activates another actor. A message
        // that is already in this mailbox was not marked as sent, and is sent again.
        self.shared.leave(&self.registration.id, &self.myself);
        true
    }

    fn command(&mut self, call: CommandCall) {
        if call.incarnation != self.registration.incarnation || self.gone {
            // The id stands for something else by now: the sender looks again.
            drop(call);
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

    fn checked(&self, command: HostCommand) -> Result<Command> {
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
            HostCommand::ExternalRef(reference) => Command::SetExternalRef { reference },
            HostCommand::Complete { output, authority } => Command::Finish {
                output,
                finisher: Finisher::Authority(authority),
            },
        })
    }

    /// Decides some work on the newest state and sends what comes of it.
    pub(super) fn decide(&mut self, mut work: Work) {
        if self.broken || !self.backlog.is_empty() && work.tries == 0 {
            self.backlog.push_back(work);
            return;
        }
        work.tries += 1;
        let answer = match self.decision(&work) {
            Ok(Decision::Commit { events, lease }) => match self.send(work, events, &lease) {
                Ok(()) => return,
                Err((work, error)) => {
                    self.answer(work, Err(error));
                    return;
                }
            },
            Ok(Decision::Replayed { sequence }) => self.event_at(sequence).map(Answer::Event),
            Ok(Decision::Unchanged) => Ok(Answer::Status(Arc::clone(&self.state.status))),
            Err(error) => Err(error),
        };
        self.answer(work, answer);
    }

    fn decision(&mut self, work: &Work) -> Result<Decision> {
        if work.tries > RETRIES_MAX {
            return Err(Error::Overloaded {
                what: format!("concurrent writers of process {}", self.registration.id),
                limit: u64::from(RETRIES_MAX),
            });
        }
        let facts = self.facts(&work.command)?;
        decide::decide(&self.registration, &self.state, work.command.clone(), facts)
    }

    fn facts(&self, command: &Command) -> Result<Facts> {
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
                if self.lease_is_free()? {
                    facts.claim = Some(self.shared.store.next_token()?);
                }
            }
            // Judged claimable right before this, in `next_attempt`; once more inside the commit.
            Command::Begin { token, .. } => facts.claim = Some(*token),
            Command::RequestCancel { .. }
            | Command::RequestAbandon { .. }
            | Command::SetExternalRef { .. }
            | Command::BeginWait { .. }
            | Command::EndWait { .. }
            | Command::ScheduleRetry { .. }
            | Command::Finish { .. } => {}
        }
        Ok(facts)
    }

    fn lease_is_free(&self) -> Result<bool> {
        use crate::model::lease::OwnerStanding;
        use crate::model::recovery::LeaseStanding;
        let standing = self.shared.store.view()?.lease_standing(self.lease)?;
        Ok(standing != LeaseStanding::Held(OwnerStanding::Live))
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

    /// Folds events into the newest state and sends them.
    fn send(
        &mut self,
        work: Work,
        drafts: Vec<EventDraft>,
        change: &LeaseChange,
    ) -> std::result::Result<(), (Work, Error)> {
        let at_ms = self.shared.now_ms();
        let mut after = self.state.clone();
        if let Err(error) = apply_drafts(&self.registration, &mut after, &drafts, at_ms) {
            // P4: the decision was wrong about the state, so it changes nothing.
            return Err((
                work,
                Error::invalid("command", error.to_string(), "legal in this state"),
            ));
        }
        let owner = self.owner_of(&work);
        let write = match writes::append(&self.registration, &drafts, &after, change, owner, at_ms)
        {
            Ok(write) => write,
            Err(error) => return Err((work, error.into())),
        };
        let lease = match change {
            LeaseChange::Keep => self.lease,
            LeaseChange::Acquire(token) => Some(Lease {
                owner,
                token: *token,
            }),
            LeaseChange::Release | LeaseChange::Pass(_) => None,
        };
        let conditions = self.conditions(&work, &drafts, change);
        let events = self.events_of(drafts, at_ms);
        if let Some(execution) = &mut self.execution {
            for (event, _) in &events {
                // A signal that is on its way already ends the wait that it is for.
                if let Err(error) = execution.waits.note(event) {
                    warn!(process = %self.registration.id, %error, "unreadable event");
                }
            }
        }
        self.submit(work, conditions, write, events, after, lease, false);
        self.resolve_ready_waits();
        Ok(())
    }

    fn owner_of(&self, work: &Work) -> OwnerNumber {
        match &work.purpose {
            Purpose::Begin { owner, .. } => owner.number,
            Purpose::Host(_)
            | Purpose::Emit { .. }
            | Purpose::WaitBegun { .. }
            | Purpose::WaitEnded { .. }
            | Purpose::Settle { .. } => self
                .lease
                .map_or(OwnerNumber::default(), |lease| lease.owner),
        }
    }

    fn conditions(
        &self,
        work: &Work,
        drafts: &[EventDraft],
        change: &LeaseChange,
    ) -> Vec<Condition> {
        let row = self.row;
        let mut conditions = vec![Condition::At {
            row,
            last_sequence: self.state.last_sequence,
        }];
        let held = |token: FencingToken, live: bool, conditions: &mut Vec<Condition>| {
            conditions.push(Condition::Token { row, token });
            if let (true, Some(lease)) = (live, self.lease) {
                conditions.push(Condition::OwnerLive { owner: lease.owner });
            }
        };
        match &work.command {
            Command::Append {
                writer: Writer::Owner(token),
                ..
            } => held(*token, *change == LeaseChange::Keep, &mut conditions),
            Command::BeginWait { token, .. } | Command::EndWait { token, .. } => {
                held(*token, true, &mut conditions);
            }
            // A token that lapsed may still write the outcome, nothing else.
            Command::Finish {
                finisher: Finisher::Owner(token),
                ..
            } => held(*token, false, &mut conditions),
            Command::ScheduleRetry { token, .. } => held(*token, true, &mut conditions),
            Command::Begin { .. } => {
                if let Purpose::Begin {
                    owner, takes_over, ..
                } = &work.purpose
                {
                    conditions.push(match takes_over {
                        Some(token) => Condition::Token { row, token: *token },
                        None => Condition::LeaseFree { row },
                    });
                    conditions.push(Condition::OwnerLive {
                        owner: owner.number,
                    });
                }
            }
            Command::Finish {
                finisher: Finisher::Authority(CompletionAuthority::ExternalOwner { granted_to }),
                ..
            } => conditions.push(Condition::Granted {
                row,
                scope: granted_to.clone(),
            }),
            Command::RequestCancel { .. } if matches!(change, LeaseChange::Pass(_)) => {
                conditions.push(Condition::LeaseFree { row });
            }
            Command::Append {
                writer: Writer::Host,
                ..
            }
            | Command::RequestCancel { .. }
            | Command::RequestAbandon { .. }
            | Command::SetExternalRef { .. }
            | Command::Finish { .. } => {}
        }
        for replay in drafts.iter().filter_map(|draft| draft.replay.as_ref()) {
            conditions.push(Condition::ReplayFree {
                incarnation: self.registration.incarnation,
                key: replay.key.clone(),
            });
        }
        if let Some(scope) = &work.granted_to {
            conditions.push(Condition::Granted {
                row,
                scope: scope.clone(),
            });
        }
        conditions
    }

    fn events_of(&self, drafts: Vec<EventDraft>, at_ms: u64) -> Vec<(Arc<ProcessEvent>, usize)> {
        (self.state.last_sequence + 1..)
            .zip(drafts)
            .map(|(sequence, draft)| {
                let event = ProcessEvent {
                    process_id: self.registration.id.clone(),
                    incarnation: self.registration.incarnation,
                    sequence,
                    event_type: draft.event_type,
                    payload: draft.payload,
                    occurred_at_ms: at_ms,
                    replay_key: draft.replay.map(|replay| replay.key),
                };
                (Arc::new(event), draft.canonical.len())
            })
            .collect()
    }

    /// Sends a set, decided on everything that is in flight.
    #[expect(
        clippy::too_many_arguments,
        reason = "each is a part of the flight it becomes"
    )]
    fn submit(
        &mut self,
        work: Work,
        conditions: Vec<Condition>,
        write: Change,
        events: Vec<(Arc<ProcessEvent>, usize)>,
        after: ProcessState,
        lease: Option<Lease>,
        releases: bool,
    ) {
        if let Purpose::Host(reply) = &work.purpose {
            reply.mark_sent();
        }
        if let Command::Append { event, .. } = &work.command
            && let Some(replay) = &event.replay
        {
            self.replays.insert(
                replay.key.clone(),
                Replayed {
                    sequence: after.last_sequence,
                    content: replay.content,
                },
            );
        }
        let mut set = WriteSet::new(conditions, vec![write]);
        set.after = self.last_ticket.take();
        self.last_ticket = Some(set.ticket.clone());
        self.next_flight += 1;
        let number = self.next_flight;
        self.state = after.clone();
        self.lease = lease;
        self.flights.push_back(Flight {
            number,
            work,
            events,
            state: after,
            lease,
            behind: Vec::new(),
            releases,
        });
        let myself = self.myself.clone();
        let shared = Arc::clone(&self.shared);
        let incarnation = self.registration.incarnation;
        self.shared.store.commit(
            set,
            Box::new(move |result| {
                let message = ProcessMsg::Committed {
                    flight: number,
                    result,
                };
                if myself.cast(message).is_err() {
                    // The actor is gone; whoever listens finds what was committed in the store.
                    shared.hub.nudge(incarnation);
                }
            }),
        );
    }

    /// Gives the lease back without an outcome.
    pub(super) fn release(&mut self, token: FencingToken) {
        let row = self.row;
        let conditions = vec![
            Condition::At {
                row,
                last_sequence: self.state.last_sequence,
            },
            Condition::Token { row, token },
        ];
        let write = writes::release(row, self.state.last_sequence);
        let work = Work {
            // Never decided again: a release that is refused is not repeated.
            command: Command::RequestCancel { requested_by: None },
            granted_to: None,
            tries: 1,
            purpose: Purpose::Settle { token },
        };
        let after = self.state.clone();
        self.submit(work, conditions, write, Vec::new(), after, None, true);
    }

    /// Answers some work that wrote nothing, once everything it rests on is durable.
    fn answer(&mut self, work: Work, answer: Result<Answer>) {
        match self.flights.back_mut() {
            Some(flight) => flight.behind.push((work, answer)),
            None => self.conclude(work, answer),
        }
    }

    fn committed(&mut self, number: u64, result: CommitResult) {
        let Some(flight) = self.flights.pop_front() else {
            return;
        };
        debug_assert_eq!(flight.number, number, "the committer answers in order");
        match result {
            Ok(receipt) => self.landed(flight, &receipt.woken),
            Err(error) => self.refused(flight, error),
        }
        if self.flights.is_empty() {
            self.last_ticket = None;
            if self.broken {
                self.mend();
            }
        }
    }

    fn landed(&mut self, flight: Flight, woken: &[crate::model::SessionScope]) {
        let Flight {
            work,
            events,
            state,
            lease,
            behind,
            releases,
            ..
        } = flight;
        self.durable = state;
        self.durable_lease = lease;
        for (event, _) in &events {
            if let Some(key) = &event.replay_key {
                self.replays.remove(key);
            }
            debug!(process = %event.process_id, sequence = event.sequence,
                event_type = %event.event_type, "event committed");
        }
        let ended = self.durable.terminal().is_some();
        self.shared
            .hub
            .publish(self.registration.incarnation, &events, ended);
        for scope in woken {
            self.shared.hub.scope_changed(scope);
        }
        let answer = match (&work.command, events.last()) {
            (Command::Append { .. }, Some((event, _))) => Answer::Event(Arc::clone(event)),
            (_, _) => Answer::Status(Arc::clone(&self.durable.status)),
        };
        if releases {
            self.released();
        } else {
            self.follow_up(work, answer);
        }
        for (work, answer) in behind {
            self.conclude(work, answer);
        }
    }

    fn refused(&mut self, flight: Flight, error: CommitError) {
        self.broken = true;
        let Flight {
            work,
            behind,
            releases,
            ..
        } = flight;
        self.refused_work(work, error, releases);
        // What was decided on it was decided on what did not happen.
        self.backlog
            .extend(behind.into_iter().map(|(work, _)| work));
    }

    fn refused_work(&mut self, work: Work, error: CommitError, releases: bool) {
        if matches!(error, CommitError::Refused(Refusal::Predecessor)) && !releases {
            self.take_back(work);
            return;
        }
        match &error {
            CommitError::Refused(
                Refusal::NotGranted | Refusal::Predecessor | Refusal::ParentStopping,
            ) => {}
            CommitError::Refused(_) | CommitError::NotWritten(_) | CommitError::Unknown(_) => {
                self.reload = true;
            }
        }
        if releases {
            self.released();
            return;
        }
        self.handle_refusal(work, error);
    }

    /// Keeps work whose set was refused with another, to be decided again.
    fn take_back(&mut self, mut work: Work) {
        if let Purpose::WaitEnded { wait_id } = &work.purpose {
            // Its signal may get another sequence: it is found again when the log is settled.
            self.wait_unresolved(*wait_id);
            return;
        }
        work.tries = work.tries.max(1);
        self.backlog.push_back(work);
    }

    fn handle_refusal(&mut self, work: Work, error: CommitError) {
        let retry = matches!(
            error,
            CommitError::Refused(Refusal::Moved | Refusal::Ended | Refusal::ReplayTaken)
        );
        if retry {
            // Somebody else wrote first: decided again on what is there now.
            self.take_back(work);
            return;
        }
        if let CommitError::Refused(Refusal::Gone) = &error {
            self.gone = true;
        }
        if let CommitError::Refused(
            refusal @ (Refusal::Superseded | Refusal::OwnerLapsed | Refusal::Leased),
        ) = &error
        {
            debug!(process = %self.registration.id, ?refusal, "write of an owner refused");
            self.lost(work);
            return;
        }
        let error = match (&error, &work.granted_to) {
            (CommitError::Refused(Refusal::NotGranted), Some(_)) => {
                Error::unknown(&self.registration.id)
            }
            (CommitError::Refused(Refusal::NotGranted), None) => match &work.command {
                Command::Finish {
                    finisher: Finisher::Authority(CompletionAuthority::ExternalOwner { granted_to }),
                    ..
                } => crate::actors::errors::not_granted(
                    granted_to,
                    vec![self.registration.id.clone()],
                ),
                _ => commit_error(&self.registration.id, error),
            },
            (_, _) => commit_error(&self.registration.id, error),
        };
        self.conclude(work, Err(error));
    }

    /// The log is settled after a refusal: goes on from what is durable.
    fn mend(&mut self) {
        self.broken = false;
        self.replays.clear();
        if std::mem::take(&mut self.reload) {
            self.reload_from_store();
        }
        self.state = self.durable.clone();
        self.lease = self.durable_lease;
        let last = self.durable.last_sequence;
        if let Some(execution) = &mut self.execution {
            execution.waits.rewind(last);
        }
        for work in std::mem::take(&mut self.backlog) {
            self.decide(work);
        }
        self.resolve_ready_waits();
    }

    fn reload_from_store(&mut self) {
        let loaded = self
            .shared
            .store
            .view()
            .and_then(|view| view.load(self.row));
        match loaded {
            Ok(Some(loaded)) => {
                self.durable = loaded.state;
                self.durable_lease = loaded.edges.lease;
            }
            Ok(None) => self.gone = true,
            Err(error) => {
                warn!(process = %self.registration.id, %error, "reload failed");
            }
        }
        let holder = self.durable_lease.map(|lease| lease.token);
        let lost = self
            .execution
            .as_ref()
            .is_some_and(|execution| Some(execution.token) != holder && !execution.settled);
        if lost || self.gone {
            self.lose_execution();
        }
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
