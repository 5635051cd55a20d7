//! What follows on a commit, and how an execution ends.

use std::sync::Arc;

use tracing::{info, warn};

use super::flight::{Purpose, Work};
use super::messages::{Answer, ShutdownOutcome};
use super::state::Process;
use crate::engines::CancelReason;
use crate::model::decide::Command;
use crate::model::{Error, FencingToken, Result, TerminalState};

impl Process {
    /// What a commit leads to beside its answer.
    pub(super) fn follow_up(&mut self, work: Work, answer: Answer) {
        if let Purpose::Release { token } = work.purpose {
            self.goes_on_later();
            self.drop_execution(token);
            return;
        }
        if matches!(work.command, Command::RequestCancel { .. })
            && self.durable.cancel_request.is_some()
        {
            self.heed_cancel_request();
            self.shared.cancel_children(&self.registration);
            if self.durable.terminal().is_none() && self.execution.is_none() {
                // Whoever executed it may be gone: then the reaper ends it.
                self.shared.look_at(self.row);
            }
        }
        if matches!(work.command, Command::RequestAbandon { .. }) {
            // Nobody may hold it: then the request is carried out at once.
            self.shared.look_at(self.row);
        }
        match work.purpose {
            Purpose::Begin {
                permit,
                owner,
                token,
                claimed,
            } => self.launch(permit, &owner, token, claimed),
            Purpose::Settle { token } => self.settled(token),
            Purpose::WaitBegun { wait_id } => self.wait_begun(wait_id),
            Purpose::WaitEnded { wait_id } => self.wait_ended(wait_id),
            Purpose::Emit { .. } | Purpose::Host(_) | Purpose::Release { .. } => {
                self.conclude(work, Ok(answer));
                self.end_if_terminal();
            }
        }
    }

    /// Tells what is executed to stop if that was asked for, here or through another host.
    pub(super) fn heed_cancel_request(&mut self) {
        if let Some(execution) = &self.execution
            && !execution.settled
            && execution.cancel.reason().is_none()
            && let Some(request) = &self.durable.cancel_request
        {
            let requested_by = request.requested_by.clone();
            self.stop_execution(execution.token, CancelReason::Requested { requested_by });
        }
    }

    /// An engine's own event ended the process: whatever it still does is of no account.
    pub(super) fn end_if_terminal(&mut self) {
        if self.durable.terminal().is_some()
            && let Some(execution) = &mut self.execution
            && !execution.settled
        {
            execution.settled = true;
            execution.close();
            let token = execution.token;
            self.stop_execution(token, CancelReason::LeaseLost);
        }
    }

    /// Whether the process has ended whatever became of its execution, by an event of its engine for
    /// one; takes note of how.
    pub(super) fn ended_otherwise(&mut self) -> bool {
        let Some(state) = self.durable.terminal() else {
            return false;
        };
        self.last_outcome = match state {
            TerminalState::Abandoned => ShutdownOutcome::Abandoned,
            TerminalState::Completed | TerminalState::Failed | TerminalState::Cancelled => {
                ShutdownOutcome::Finished
            }
        };
        true
    }

    /// It is durable that an attempt has ended and another may follow: its execution may have been given
    /// up while that was on its way.
    pub(super) fn goes_on_later(&mut self) {
        if !self.ended_otherwise() {
            self.last_outcome = ShutdownOutcome::Released;
        }
    }

    /// Tells whoever waits for some work how it went.
    pub(super) fn conclude(&mut self, work: Work, answer: Result<Answer>) {
        match work.purpose {
            Purpose::Host(reply) => reply.send(answer),
            Purpose::Emit {
                durable,
                token,
                room,
            } => {
                drop(room);
                if let Err(error) = &answer {
                    warn!(process = %self.registration.id, fencing_token = token.get(), %error,
                        "emitted event was not accepted");
                }
                if let Some(durable) = durable {
                    let event = match answer {
                        Ok(Answer::Event(event)) => Ok(Arc::unwrap_or_clone(event)),
                        Ok(Answer::Status(_)) => Err(Error::Corrupted {
                            what: "an emitted event was answered with a status".to_owned(),
                        }),
                        Err(error) => Err(error),
                    };
                    let _ = durable.send(event);
                }
            }
            Purpose::Begin { permit, .. } => {
                self.beginning = false;
                self.pending_history = None;
                drop(permit);
                if self.durable.first_started.is_none() {
                    self.shared.no_first_start(self.registration.incarnation);
                }
                // With its claim goes a note to the reaper, who finds out what is to be done instead.
                if let Err(error) = answer {
                    info!(process = %self.registration.id, %error, "not started");
                }
            }
            Purpose::WaitBegun { wait_id } | Purpose::WaitEnded { wait_id } => {
                if let Err(error) = answer {
                    self.fail_wait(wait_id, error);
                }
            }
            Purpose::Settle { token } | Purpose::Release { token } => {
                if let Err(error) = answer
                    && !self.ended_otherwise()
                {
                    warn!(process = %self.registration.id, %error, "outcome was not written");
                    self.last_outcome = ShutdownOutcome::Unwritten;
                }
                self.drop_execution(token);
            }
        }
    }

    /// A write of the owner was refused: somebody else holds the lease, or it has lapsed.
    pub(super) fn lost(&mut self, work: Work) {
        let token = match &work.purpose {
            Purpose::Emit { token, .. }
            | Purpose::Settle { token }
            | Purpose::Release { token }
            | Purpose::Begin { token, .. } => *token,
            Purpose::Host(_) | Purpose::WaitBegun { .. } | Purpose::WaitEnded { .. } => self
                .execution
                .as_ref()
                .map_or(FencingToken::default(), |execution| execution.token),
        };
        let error = self.superseded(token);
        self.conclude(work, Err(error));
    }

    pub(super) fn superseded(&self, token: FencingToken) -> Error {
        Error::Superseded {
            process_id: self.registration.id.clone(),
            token: token.get(),
        }
    }
}
