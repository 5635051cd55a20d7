//! How an execution is stopped, and what its end means.

use tracing::{info, warn};

use super::flight::{Purpose, Work};
use super::messages::{ProcessMsg, ShutdownOutcome};
use super::state::Process;
use crate::engines::{CancelReason, EngineFailure, EngineResult};
use crate::model::decide::{Command, Finisher};
use crate::model::error::clip;
use crate::model::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX};
use crate::model::{
    AbandonEvidence, AbandonProof, AbandonWriter, FailureClass, FencingToken, OwnerNumber,
    ProcessAwaitOutput, ProcessError, RecoveryDisposition,
};

/// How long an aborted task may take to end before its process is ended without it.
const ABORT_WAIT: std::time::Duration = std::time::Duration::from_secs(1);

impl Process {
    pub(super) fn stop_execution(&mut self, token: FencingToken, reason: CancelReason) {
        let grace = self.shared.config.cancel_grace;
        let myself = self.myself.clone();
        if let Some(execution) = &mut self.execution
            && execution.token == token
        {
            info!(process = %self.registration.id, %reason, "attempt is told to stop");
            execution.stop(&myself, reason, grace);
        }
    }

    pub(super) fn grace_over(&mut self, token: FencingToken) {
        if let Some(execution) = &mut self.execution
            && execution.token == token
        {
            warn!(process = %self.registration.id, "attempt did not stop in time: aborted");
            execution.abort();
            // Code that never yields does not notice: its process ends all the same, and nothing
            // new is started beside it until its task has ended.
            let myself = self.myself.clone();
            execution.after(&myself, ABORT_WAIT, move || ProcessMsg::AbortOver { token });
        }
    }

    pub(super) fn abort_over(&mut self, token: FencingToken) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        if execution.token != token || execution.settled {
            return;
        }
        execution.settled = true;
        let reason = execution.cancel.reason();
        warn!(process = %self.registration.id, "attempt runs on after it was aborted: it is ended");
        let ending = self.stopped(reason, true, None);
        self.settle(token, ending);
    }

    pub(super) fn lease_lost(&mut self, owner: OwnerNumber) {
        let lost = self
            .execution
            .as_ref()
            .is_some_and(|execution| execution.owner.number == owner);
        if lost {
            self.lose_execution();
        }
    }

    pub(super) fn lose_execution(&mut self) {
        if let Some(execution) = &mut self.execution {
            warn!(process = %self.registration.id, fencing_token = execution.token.get(),
                "lease lost: execution stopped");
            execution.lose();
            if !self.ended_otherwise() {
                self.last_outcome = ShutdownOutcome::Unwritten;
            }
        }
    }

    /// The task of an execution has ended.
    pub(super) fn ended(&mut self, token: FencingToken, result: Option<EngineResult>) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        if execution.token != token {
            return;
        }
        execution.close();
        if execution.settled {
            // Its end may not have been written yet, and is nobody else's to write until then.
            if !self.is_settling(token) {
                self.drop_execution(token);
            }
            return;
        }
        execution.settled = true;
        let reason = execution.cancel.reason();
        let forced = execution.forced;
        let ending = self.ending(reason, forced, result);
        self.settle(token, ending);
    }

    /// Whether the end of an execution is decided, and not yet written.
    fn is_settling(&self, token: FencingToken) -> bool {
        let in_flight = self.flights.iter().flat_map(|flight| &flight.members);
        let mut works = in_flight
            .map(|member| &member.work)
            .chain(&self.corked)
            .chain(&self.backlog)
            .chain(&self.arrivals);
        works.any(|work| matches!(work.purpose, Purpose::Settle { token: of } if of == token))
    }

    fn settle(&mut self, token: FencingToken, ending: Ending) {
        let command = match ending {
            Ending::Lost => {
                self.last_outcome = ShutdownOutcome::Unwritten;
                self.drop_execution(token);
                return;
            }
            Ending::Release => {
                self.last_outcome = ShutdownOutcome::Released;
                self.decide(Work {
                    // Stands in for none: giving a lease back is no event.
                    command: Command::RequestCancel { requested_by: None },
                    granted_to: None,
                    tries: 0,
                    purpose: Purpose::Release { token },
                });
                return;
            }
            Ending::Outcome(output) => {
                self.last_outcome = match output {
                    ProcessAwaitOutput::Abandoned { .. } => ShutdownOutcome::Abandoned,
                    ProcessAwaitOutput::Success { .. }
                    | ProcessAwaitOutput::Failure { .. }
                    | ProcessAwaitOutput::Cancelled { .. } => ShutdownOutcome::Finished,
                };
                Command::Finish {
                    output,
                    finisher: Finisher::Owner(token),
                }
            }
            Ending::Retry { error, retry_at_ms } => {
                // The attempt has ended, the process has not.
                self.last_outcome = ShutdownOutcome::Released;
                Command::ScheduleRetry {
                    token,
                    retry_at_ms,
                    error,
                }
            }
        };
        self.decide(Work {
            command,
            granted_to: None,
            tries: 0,
            purpose: Purpose::Settle { token },
        });
    }

    /// What the end of a task means.
    fn ending(
        &self,
        reason: Option<CancelReason>,
        forced: bool,
        result: Option<EngineResult>,
    ) -> Ending {
        match result {
            // Also of a lost lease: as long as nobody else has claimed it, the outcome counts.
            Some(Ok(value)) => Ending::Outcome(ProcessAwaitOutput::Success { value }),
            // That it failed once it was stopped says nothing.
            Some(Err(_)) if reason == Some(CancelReason::LeaseLost) => Ending::Lost,
            Some(Err(failure)) => self.failed(reason, failure),
            None => self.stopped(reason, forced, None),
        }
    }

    fn failed(&self, reason: Option<CancelReason>, failure: EngineFailure) -> Ending {
        if let Some(told) = failure.cancelled {
            // What was really asked for counts, not what the engine makes of it.
            if told == CancelReason::LeaseLost {
                return Ending::Lost;
            }
            if reason.is_some() {
                return self.stopped(reason, false, failure.raw);
            }
        }
        // An engine that is told to stop may say so in words of its own.
        let stopped = match reason {
            Some(CancelReason::TimedOut) => true,
            Some(CancelReason::Shutdown) => {
                self.registration.disposition == RecoveryDisposition::Rerunnable
            }
            Some(CancelReason::Requested { .. } | CancelReason::LeaseLost) | None => false,
        };
        if stopped {
            return self.stopped(reason, false, failure.raw);
        }
        let code = clip(&failure.code, NAME_BYTES_MAX);
        let message = clip(&failure.message, MESSAGE_BYTES_MAX);
        let may_retry = failure.retryable
            && reason.is_none()
            && self.state.cancel_request.is_none()
            && self.registration.disposition == RecoveryDisposition::Rerunnable
            && self.state.retries + 1 < self.registration.retry.attempts;
        if may_retry {
            let wait = self
                .registration
                .retry
                .backoff
                .wait_ms(self.state.retries + 1, self.shared.random());
            return Ending::Retry {
                error: ProcessError {
                    class: failure.class,
                    code: code.to_owned(),
                    message: message.to_owned(),
                },
                // Not by the wall clock: a jump would bring it forward, or put it off for good.
                retry_at_ms: self.shared.steady_ms().saturating_add(wait),
            };
        }
        Ending::Outcome(failure_output(failure.class, code, message, failure.raw))
    }

    /// It stopped because it was told to, or was made to.
    fn stopped(
        &self,
        reason: Option<CancelReason>,
        forced: bool,
        raw: Option<serde_json::Value>,
    ) -> Ending {
        let how = if forced {
            format!(
                " (forced: it had not stopped {} after it was told to)",
                humantime::format_duration(self.shared.config.cancel_grace)
            )
        } else {
            String::new()
        };
        match reason {
            Some(CancelReason::LeaseLost) | None => Ending::Lost,
            Some(CancelReason::TimedOut) => Ending::Outcome(failure_output(
                FailureClass::Timeout,
                "timeout",
                &format!("{}{how}", CancelReason::TimedOut),
                raw,
            )),
            Some(reason @ CancelReason::Requested { .. }) => {
                Ending::Outcome(ProcessAwaitOutput::Cancelled {
                    message: clip(&format!("{reason}{how}"), MESSAGE_BYTES_MAX).to_owned(),
                    raw,
                })
            }
            Some(CancelReason::Shutdown) => match self.registration.disposition {
                RecoveryDisposition::Rerunnable => Ending::Release,
                RecoveryDisposition::OwnerBound | RecoveryDisposition::ExternallyOwned => {
                    Ending::Outcome(ProcessAwaitOutput::Abandoned {
                        evidence: AbandonEvidence {
                            writer: AbandonWriter::OwnerDrain,
                            owner: self
                                .execution
                                .as_ref()
                                .map(|execution| execution.owner.owner.clone()),
                            proof: AbandonProof::Drain,
                            requested_by: None,
                            survivors: None,
                            epoch_ms: self.shared.now_ms(),
                        },
                    })
                }
            },
        }
    }

    /// The end of an execution is durable.
    pub(super) fn settled(&mut self, token: FencingToken) {
        info!(process = %self.registration.id, fencing_token = token.get(),
            outcome = ?self.durable.terminal(), "attempt ended");
        self.goes_on_later();
        self.drop_execution(token);
        if let Some(pause) = &self.durable.retry_pause {
            self.shared.enqueue(&self.registration, pause.retry_at_ms);
        }
    }

    /// Lets go of an execution. Whatever it left undone, the reaper looks at: something else may
    /// have been asked for meanwhile, its time limit may pass, or its lease may still name this
    /// runtime, which no longer executes it.
    pub(super) fn drop_execution(&mut self, token: FencingToken) {
        let Some(mut execution) = self.execution.take_if(|it| it.token == token) else {
            return;
        };
        if self.durable.terminal().is_some() {
            execution.process_ended();
        }
    }
}

/// How an execution ends.
pub(super) enum Ending {
    /// Whatever it did, its lease is not ours any more.
    Lost,
    /// Without an outcome: it is to be run again.
    Release,
    /// With this outcome.
    Outcome(ProcessAwaitOutput),
    /// With another attempt to follow.
    Retry {
        error: ProcessError,
        retry_at_ms: u64,
    },
}

fn failure_output(
    class: FailureClass,
    code: &str,
    message: &str,
    raw: Option<serde_json::Value>,
) -> ProcessAwaitOutput {
    let code: String = code.chars().filter(|c| !c.is_control()).collect();
    ProcessAwaitOutput::Failure {
        class,
        code: if code.is_empty() {
            "unspecified".to_owned()
        } else {
            code
        },
        message: clip(message, MESSAGE_BYTES_MAX).to_owned(),
        raw,
    }
}
