//! What comes back from the committer: landed, or refused with everything decided on it.

use std::sync::Arc;

use tracing::{debug, warn};

use super::flight::{Flight, Member, Purpose, Work};
use super::messages::{Answer, ShutdownOutcome};
use super::state::Process;
use crate::actors::errors::{commit_error, not_granted};
use crate::model::decide::{Command, Finisher};
use crate::model::{CompletionAuthority, Error, Result, SessionScope, WaitResult};
use crate::store::write_set::{CommitError, Refusal};

impl Process {
    /// Answers some work that wrote nothing, once everything it rests on is durable.
    pub(super) fn answer(&mut self, work: Work, answer: Result<Answer>) {
        match self.flights.back_mut() {
            Some(flight) => flight.behind.push((work, answer)),
            None => self.conclude(work, answer),
        }
    }

    /// Takes note of a fate. A store that is being closed may tell one before an earlier one.
    pub(super) fn committed(&mut self, number: u64, result: std::result::Result<(), CommitError>) {
        if let Some(flight) = self.flights.iter_mut().find(|one| one.number == number) {
            flight.result = Some(result);
        }
        while let Some(result) = self
            .flights
            .front_mut()
            .and_then(|flight| flight.result.take())
        {
            let Some(flight) = self.flights.pop_front() else {
                break;
            };
            match result {
                Ok(_) => self.landed(flight),
                Err(error) => self.refused(flight, error),
            }
        }
        if self.flights.is_empty() {
            // An actor may be idle for long.
            self.flights.shrink_to(0);
            self.last_ticket = None;
            if self.broken {
                self.mend();
            }
        }
    }

    pub(super) fn landed(&mut self, flight: Flight) {
        let Flight {
            members,
            events,
            state,
            lease,
            behind,
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
        if ended && (self.execution.is_some() || self.last_outcome != ShutdownOutcome::Idle) {
            // Its execution may have been given up while this was on its way.
            self.ended_otherwise();
        }
        self.shared
            .hub
            .publish(self.registration.incarnation, &events, ended);
        // Given away: a caller who is the only one to hold its event need not copy it.
        let mut rest = events.into_iter();
        for Member { work, events, .. } in members {
            let own = rest.by_ref().take(events).last();
            let answer = match (&work.command, own) {
                (Command::Append { .. }, Some((event, _))) => Answer::Event(event),
                (_, _) => Answer::Status(Arc::clone(&self.durable.status)),
            };
            self.follow_up(work, answer);
        }
        for (work, answer) in behind {
            self.conclude(work, answer);
        }
    }

    pub(super) fn refused(&mut self, flight: Flight, error: CommitError) {
        if !std::mem::replace(&mut self.broken, true) {
            // They were to be decided on what did not happen.
            self.arrivals.extend(std::mem::take(&mut self.corked));
        }
        let Flight {
            members, behind, ..
        } = flight;
        self.refused_members(members, error);
        // What was decided on it was decided on what did not happen.
        self.backlog
            .extend(behind.into_iter().map(|(work, _)| work));
    }

    /// What was sent together is decided again one by one, if a condition of one of them failed, or one
    /// could not be written: it shows whose that was.
    fn refused_members(&mut self, mut members: Vec<Member>, error: CommitError) {
        let one_is_to_blame = match &error {
            CommitError::Refused(refusal) => *refusal != Refusal::Predecessor,
            CommitError::NotWritten(_) => true,
            CommitError::Unknown(_) => false,
        };
        if members.len() > 1 && one_is_to_blame {
            self.reload = true;
            self.backlog
                .extend(members.into_iter().map(|member| member.work));
            return;
        }
        let last = members.pop();
        for member in members {
            self.refused_work(member.work, error.clone());
        }
        if let Some(last) = last {
            self.refused_work(last.work, error);
        }
    }

    pub(super) fn refused_work(&mut self, mut work: Work, error: CommitError) {
        match &error {
            CommitError::Refused(Refusal::Predecessor) => {
                // Not its own doing: it is not counted as a try of its own.
                work.tries = work.tries.saturating_sub(1);
                self.take_back(work);
                return;
            }
            CommitError::Refused(Refusal::NotGranted | Refusal::ParentStopping) => {}
            CommitError::Refused(_) | CommitError::NotWritten(_) | CommitError::Unknown(_) => {
                self.reload = true;
            }
        }
        self.handle_refusal(work, error);
    }

    /// Keeps work whose set was refused, to be decided again in its turn.
    pub(super) fn take_back(&mut self, work: Work) {
        if let (Purpose::WaitEnded { wait_id }, Command::EndWait { result, .. }) =
            (&work.purpose, &work.command)
            && matches!(result, WaitResult::Signal { .. })
        {
            // Its signal may get another sequence: it is found again when the log is settled.
            let wait_id = *wait_id;
            if let Some(dropped) = self.wait_unresolved(wait_id, work) {
                self.backlog.push_back(dropped);
            }
            return;
        }
        self.backlog.push_back(work);
    }

    pub(super) fn handle_refusal(&mut self, work: Work, error: CommitError) {
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
            self.conclude_gone(work);
            return;
        }
        if let CommitError::Refused(
            refusal @ (Refusal::Superseded | Refusal::OwnerLapsed | Refusal::Leased),
        ) = &error
        {
            debug!(process = %self.registration.id, ?refusal, "write of an owner refused");
            self.lost(work);
            return;
        }
        let ungranted = matches!(error, CommitError::Refused(Refusal::NotGranted));
        let error = match (ungranted, &work.granted_to, external_owner(&work.command)) {
            (true, Some(_), _) => Error::unknown(&self.registration.id),
            (true, None, Some(scope)) => not_granted(scope, vec![self.registration.id.clone()]),
            (_, _, _) => commit_error(&self.registration.id, error),
        };
        self.conclude(work, Err(error));
    }

    /// The row is gone: a host looks again at what its id stands for now.
    pub(super) fn conclude_gone(&mut self, work: Work) {
        if let Purpose::Host(reply) = work.purpose {
            reply.look_again();
            return;
        }
        let unknown = Error::unknown(&self.registration.id);
        self.conclude(work, Err(unknown));
    }

    /// The log is settled after a refusal: goes on from what is durable.
    pub(super) fn mend(&mut self) {
        self.broken = false;
        self.replays.clear();
        let last = self.durable.last_sequence;
        if let Some(execution) = &mut self.execution {
            // Before anything else is read: somebody else's events may stand in their place.
            execution.waits.rewind(last);
        }
        if std::mem::take(&mut self.reload) {
            self.adopt_store();
        } else {
            self.state = Arc::clone(&self.durable);
            self.lease = self.durable_lease;
        }
        let mut works = std::mem::take(&mut self.backlog);
        works.append(&mut self.arrivals);
        for work in works {
            self.decide_now(work);
        }
        self.resolve_ready_waits();
        self.announce_waits();
        // A wait whose signal turned out not to be there waits again.
        self.free_slot();
    }

    /// Takes what is in the store for the newest state. Nothing is in flight.
    pub(super) fn adopt_store(&mut self) {
        let loaded = self
            .shared
            .store
            .view()
            .and_then(|view| view.load(self.row));
        match loaded {
            Ok(Some(loaded)) => {
                self.durable = Arc::new(loaded.state);
                self.durable_lease = loaded.edges.lease;
            }
            Ok(None) => self.gone = true,
            Err(error) => {
                warn!(process = %self.registration.id, %error, "reload failed");
            }
        }
        self.state = Arc::clone(&self.durable);
        self.lease = self.durable_lease;
        let holder = self.durable_lease.map(|lease| lease.token);
        let lost = self
            .execution
            .as_ref()
            .is_some_and(|execution| Some(execution.token) != holder && !execution.settled);
        if lost || self.gone {
            self.lose_execution();
        }
        self.note_since_history();
        self.heed_cancel_request();
    }
}

/// The scope on whose authority a command ends externally owned work.
fn external_owner(command: &Command) -> Option<&SessionScope> {
    match command {
        Command::Finish {
            finisher: Finisher::Authority(CompletionAuthority::ExternalOwner { granted_to }),
            ..
        } => Some(granted_to),
        Command::Append { .. }
        | Command::RequestCancel { .. }
        | Command::RequestAbandon { .. }
        | Command::SetExternalRef { .. }
        | Command::Begin { .. }
        | Command::BeginWait { .. }
        | Command::EndWait { .. }
        | Command::ScheduleRetry { .. }
        | Command::LoseOwner { .. }
        | Command::Finish { .. } => None,
    }
}
