//! What comes back from the committer: landed, or refused with everything decided on it.

use std::sync::Arc;

use tracing::{debug, warn};

use super::flight::{Flight, Purpose, Work};
use super::messages::Answer;
use super::state::Process;
use crate::actors::errors::commit_error;
use crate::model::decide::{Command, Finisher};
use crate::model::{CompletionAuthority, Error, Result};
use crate::store::write_set::{CommitError, CommitResult, Refusal};

impl Process {
    /// Answers some work that wrote nothing, once everything it rests on is durable.
    pub(super) fn answer(&mut self, work: Work, answer: Result<Answer>) {
        match self.flights.back_mut() {
            Some(flight) => flight.behind.push((work, answer)),
            None => self.conclude(work, answer),
        }
    }

    pub(super) fn committed(&mut self, number: u64, result: CommitResult) {
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

    pub(super) fn landed(&mut self, flight: Flight, woken: &[crate::model::SessionScope]) {
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

    pub(super) fn refused(&mut self, flight: Flight, error: CommitError) {
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

    pub(super) fn refused_work(&mut self, work: Work, error: CommitError, releases: bool) {
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
    pub(super) fn take_back(&mut self, mut work: Work) {
        if let Purpose::WaitEnded { wait_id } = &work.purpose {
            // Its signal may get another sequence: it is found again when the log is settled.
            self.wait_unresolved(*wait_id);
            return;
        }
        work.tries = work.tries.max(1);
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
    pub(super) fn mend(&mut self) {
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

    pub(super) fn reload_from_store(&mut self) {
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
}
