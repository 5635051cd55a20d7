//! What follows on a commit, and how an execution ends.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tracing::{info, warn};

use super::execution::{Execution, Launch};
use super::flight::{Purpose, Work};
use super::messages::{Answer, ProcessMsg, ShutdownOutcome};
use super::state::Process;
use super::waits::{History, OpenWait, Phase, Waits};
use crate::actors::dispatcher::SlotPermit;
use crate::actors::keeper::OwnerHandle;
use crate::engines::{CancelReason, EngineFailure, EngineResult};
use crate::model::decide::{Command, Finisher};
use crate::model::error::clip;
use crate::model::lease::OwnerStanding;
use crate::model::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX};
use crate::model::recovery::{LeaseStanding, RecoveryAction, RecoveryFacts, deadline_ms, recover};
use crate::model::{
    AbandonEvidence, AbandonProof, AbandonWriter, Error, FailureClass, FencingToken, OwnerNumber,
    ProcessAwaitOutput, ProcessError, ProcessEvent, ProcessInput, ProcessRecord,
    RecoveryDisposition, Result, WaitResult, json,
};

impl Process {
    /// A slot is free: claims the process, if that is still what is to be done.
    pub(super) fn begin(&mut self, permit: SlotPermit) {
        if self.execution.is_some() || self.beginning || self.shared.is_shutting_down() {
            return;
        }
        if !History::concerns(&self.registration) || self.state.last_sequence == 0 {
            self.claim(permit, History::default());
            return;
        }
        // The log may be long: it is read off the actor.
        self.beginning = true;
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
            let _ = myself.cast(ProcessMsg::HistoryLoaded { permit, history });
        });
    }

    pub(super) fn history_loaded(&mut self, permit: SlotPermit, history: Result<History>) {
        self.beginning = false;
        match history {
            Ok(history) => self.claim(permit, history),
            Err(error) => warn!(process = %self.registration.id, %error, "log cannot be read"),
        }
    }

    fn claim(&mut self, permit: SlotPermit, history: History) {
        let Some(owner) = self.shared.trusted_owner() else {
            // Between two incarnations: the sweep after the next one began finds it again.
            return;
        };
        match self.next_attempt(&owner) {
            Ok(Some((reason, takes_over))) => match self.shared.store.next_token() {
                Ok(token) => {
                    self.beginning = true;
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
                            takes_over,
                        },
                    });
                }
                Err(error) => warn!(process = %self.registration.id, %error, "no token"),
            },
            Ok(None) => {}
            Err(error) => warn!(process = %self.registration.id, %error, "not claimed"),
        }
    }

    /// Why the next attempt begins, and whose lease it takes over; `None` if none is to begin.
    fn next_attempt(
        &mut self,
        owner: &Arc<OwnerHandle>,
    ) -> Result<Option<(crate::model::StartReason, Option<FencingToken>)>> {
        if self.shared.has_task(self.registration.incarnation) {
            // Code that never yields still runs: nothing is started beside it.
            return Ok(None);
        }
        // A live lease of this same incarnation, and no task: its actor died, and it may be
        // taken over under a new token.
        let orphaned = self
            .lease
            .filter(|lease| lease.owner == owner.number)
            .map(|lease| lease.token);
        let lease = match orphaned {
            Some(_) => LeaseStanding::Held(OwnerStanding::Dead),
            None => self.shared.store.view()?.lease_standing(self.lease)?,
        };
        let now_ms = self.shared.now_ms();
        let facts = RecoveryFacts {
            lease,
            engine_registered: self.shared.engine_of(&self.registration).is_some(),
            now_ms,
        };
        match recover(&self.registration, &self.state, facts) {
            RecoveryAction::Queue {
                reason,
                not_before_ms,
            } if not_before_ms <= now_ms => Ok(Some((reason, orphaned))),
            RecoveryAction::Queue { .. } => Ok(None),
            RecoveryAction::Leave(_) => Ok(None),
            RecoveryAction::Abandon { .. }
            | RecoveryAction::Cancel
            | RecoveryAction::ExhaustRecoveries
            | RecoveryAction::TimeOut => {
                self.shared.sweep_soon();
                Ok(None)
            }
        }
    }

    /// What a commit leads to beside its answer.
    pub(super) fn follow_up(&mut self, work: Work, answer: Answer) {
        let cancel_requested = self.durable.cancel_request.clone();
        if let (Command::RequestCancel { .. }, Some(request)) = (&work.command, cancel_requested) {
            if let Some(token) = self.execution.as_ref().map(|running| running.token) {
                self.stop_execution(
                    token,
                    CancelReason::Requested {
                        requested_by: request.requested_by,
                    },
                );
            }
            self.shared.cancel_children(&self.registration);
        }
        match work.purpose {
            Purpose::Begin {
                permit,
                owner,
                token,
                ..
            } => self.launch(permit, owner, token),
            Purpose::Settle { token } => self.settled(token),
            Purpose::WaitBegun { wait_id } => self.wait_begun(wait_id),
            Purpose::WaitEnded { wait_id } => self.wait_ended(wait_id),
            Purpose::Emit { .. } | Purpose::Host(_) => {
                self.conclude(work, Ok(answer));
                self.end_if_terminal();
            }
        }
    }

    /// An engine's own event ended the process: whatever it still does is of no account.
    fn end_if_terminal(&mut self) {
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
                if let Err(error) = answer {
                    info!(process = %self.registration.id, %error, "not started");
                    // What is to be done instead is the reaper's to find out.
                    self.shared.sweep_soon();
                }
            }
            Purpose::WaitBegun { wait_id } | Purpose::WaitEnded { wait_id } => {
                if let Err(error) = answer {
                    self.fail_wait(wait_id, error);
                }
            }
            Purpose::Settle { token } => {
                if let Err(error) = answer {
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

    fn launch(&mut self, permit: SlotPermit, owner: Arc<OwnerHandle>, token: FencingToken) {
        self.beginning = false;
        let history = self.pending_history.take().unwrap_or_default();
        let Some(engine) = self.shared.engine_of(&self.registration) else {
            return;
        };
        let ProcessInput::Engine { payload, .. } = &self.registration.input else {
            return;
        };
        info!(process = %self.registration.id, attempt = self.durable.attempt,
            fencing_token = token.get(), owner = %owner.owner.owner_id, "attempt begins");
        let record = ProcessRecord::assemble(&self.registration, &self.durable);
        let execution = Execution::launch(Launch {
            shared: Arc::clone(&self.shared),
            actor: self.myself.clone(),
            registration: Arc::clone(&self.registration),
            record,
            engine,
            payload: payload.clone(),
            owner: Arc::clone(&owner),
            token,
            permit,
            waits: Waits::new(history),
        });
        self.execution = Some(execution);
        self.note_since_history();
        if let Some(deadline) = deadline_ms(&self.registration, &self.durable) {
            let left = Duration::from_millis(deadline.saturating_sub(self.shared.now_ms()));
            self.after(left, move || ProcessMsg::Deadline { token });
        }
        if let Some(request) = self.state.cancel_request.clone() {
            self.stop_execution(
                token,
                CancelReason::Requested {
                    requested_by: request.requested_by,
                },
            );
        } else if self.shared.is_shutting_down() {
            self.stop_execution(token, CancelReason::Shutdown);
        } else if !owner.is_trusted(self.shared.monotonic()) {
            // The claim came back after the trust in its heartbeat was over.
            self.lease_lost(owner.number);
        }
    }

    /// Signals that arrived while the history was read, or are in flight.
    fn note_since_history(&mut self) {
        let from = self.durable.last_sequence;
        let events: Vec<Arc<ProcessEvent>> = self
            .flights
            .iter()
            .flat_map(|flight| &flight.events)
            .map(|(event, _)| Arc::clone(event))
            .collect();
        let Some(execution) = &mut self.execution else {
            return;
        };
        let seen = execution.waits.seen();
        if seen < from && History::concerns(&self.registration) {
            let missed = self.shared.store.view().and_then(|view| {
                view.events(
                    &self.registration.id,
                    self.registration.incarnation,
                    seen + 1,
                    usize::MAX,
                    usize::MAX,
                )
            });
            match missed {
                Ok(missed) => {
                    for event in &missed {
                        let _ = execution.waits.note(event);
                    }
                }
                Err(error) => {
                    warn!(process = %self.registration.id, %error, "log cannot be read");
                }
            }
        }
        for event in &events {
            let _ = execution.waits.note(event);
        }
    }

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
        }
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
            self.drop_execution(token);
            return;
        }
        execution.settled = true;
        let reason = execution.cancel.reason();
        let forced = execution.forced;
        let ending = self.ending(reason, forced, result);
        self.settle(token, ending);
    }

    fn settle(&mut self, token: FencingToken, ending: Ending) {
        let command = match ending {
            Ending::Lost => {
                self.drop_execution(token);
                return;
            }
            Ending::Release => {
                self.last_outcome = ShutdownOutcome::Released;
                self.release(token);
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
                self.last_outcome = ShutdownOutcome::Finished;
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
            Some(Ok(value)) => Ending::Outcome(self.success(value)),
            Some(Err(failure)) => self.failed(reason, failure),
            None => self.stopped(reason, forced, None),
        }
    }

    fn success(&self, value: serde_json::Value) -> ProcessAwaitOutput {
        match json::bounded_bytes("output.value", &value, PAYLOAD_BYTES_MAX) {
            Ok(_) => ProcessAwaitOutput::Success { value },
            Err(error) => {
                json::dismantle(value);
                failure_output(
                    FailureClass::Internal,
                    "output_refused",
                    &error.to_string(),
                    None,
                )
            }
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
        if reason == Some(CancelReason::TimedOut) {
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
                retry_at_ms: self.shared.now_ms().saturating_add(wait),
            };
        }
        let raw =
            failure.raw.and_then(
                |raw| match json::bounded_bytes("raw", &raw, PAYLOAD_BYTES_MAX) {
                    Ok(_) => Some(raw),
                    Err(_) => {
                        json::dismantle(raw);
                        None
                    }
                },
            );
        Ending::Outcome(failure_output(failure.class, code, message, raw))
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
                            survivors: Vec::new(),
                            epoch_ms: self.shared.now_ms(),
                        },
                    })
                }
            },
        }
    }

    /// The end of an execution is durable.
    fn settled(&mut self, token: FencingToken) {
        info!(process = %self.registration.id, fencing_token = token.get(),
            outcome = ?self.durable.terminal(), "attempt ended");
        self.drop_execution(token);
        if let Some(pause) = &self.durable.retry_pause {
            self.shared.enqueue(&self.registration, pause.retry_at_ms);
        }
    }

    pub(super) fn released(&mut self) {
        if let Some(token) = self.execution.as_ref().map(|execution| execution.token) {
            self.drop_execution(token);
        }
    }

    fn drop_execution(&mut self, token: FencingToken) {
        if self
            .execution
            .as_ref()
            .is_some_and(|execution| execution.token == token)
        {
            self.execution = None;
        }
    }
}

/// How an execution ends.
enum Ending {
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
    ProcessAwaitOutput::Failure {
        class,
        code: if code.is_empty() { "unspecified" } else { code }
            .chars()
            .filter(|c| !c.is_control())
            .collect(),
        message: clip(message, MESSAGE_BYTES_MAX).to_owned(),
        raw,
    }
}

// Waits.
impl Process {
    pub(super) fn wait_begin(
        &mut self,
        token: FencingToken,
        wait_id: u64,
        signal_name: String,
        timeout: Option<Duration>,
        reply: oneshot::Sender<Result<Option<ProcessEvent>>>,
    ) {
        let now_ms = self.shared.now_ms();
        let Some(execution) = &mut self.execution else {
            let _ = reply.send(Err(self.superseded(token)));
            return;
        };
        if execution.token != token {
            let _ = reply.send(Err(self.superseded(token)));
            return;
        }
        let number = execution.waits.take_number(&signal_name);
        let recorded = execution.waits.recorded(&signal_name, number);
        let deadline_ms = timeout.map(|timeout| {
            now_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
        });
        execution.waits.open.insert(
            wait_id,
            OpenWait {
                signal_name: signal_name.clone(),
                number,
                phase: recorded.map_or(Phase::New, Phase::Ended),
                announced: false,
                deadline_ms,
                reply: Some(reply),
            },
        );
        if recorded.is_some() {
            self.deliver_waits();
            return;
        }
        self.resolve_ready_waits();
        self.announce_wait(wait_id, timeout);
    }

    /// Says that the process waits, unless its signal was there already.
    fn announce_wait(&mut self, wait_id: u64, timeout: Option<Duration>) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let token = execution.token;
        let Some(wait) = execution.waits.open.get_mut(&wait_id) else {
            return;
        };
        if wait.phase != Phase::New {
            return;
        }
        wait.announced = true;
        let command = Command::BeginWait {
            token,
            signal_name: wait.signal_name.clone(),
            number: wait.number,
            deadline_ms: wait.deadline_ms,
        };
        if let Some(timeout) = timeout {
            self.after(timeout, move || ProcessMsg::WaitTimedOut { wait_id });
        }
        self.decide(Work {
            command,
            granted_to: None,
            tries: 0,
            purpose: Purpose::WaitBegun { wait_id },
        });
    }

    fn wait_begun(&mut self, wait_id: u64) {
        if let Some(execution) = &mut self.execution {
            if let Some(wait) = execution.waits.open.get_mut(&wait_id)
                && wait.phase == Phase::New
            {
                wait.phase = Phase::Begun;
            }
            if execution.waits.is_waiting() {
                // Its slot is free for others while it waits.
                execution.permit = None;
            }
        }
        self.resolve_ready_waits();
    }

    /// Ends every wait whose signal has arrived.
    pub(super) fn resolve_ready_waits(&mut self) {
        let ready = match &self.execution {
            Some(execution) if !execution.settled => execution.waits.ready(),
            Some(_) | None => return,
        };
        for (wait_id, sequence) in ready {
            self.end_wait(wait_id, WaitResult::Signal { sequence });
        }
    }

    fn end_wait(&mut self, wait_id: u64, result: WaitResult) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let token = execution.token;
        let Some(wait) = execution.waits.open.get_mut(&wait_id) else {
            return;
        };
        if !matches!(wait.phase, Phase::New | Phase::Begun) {
            return;
        }
        wait.phase = Phase::Ending(result);
        let command = Command::EndWait {
            token,
            signal_name: wait.signal_name.clone(),
            number: wait.number,
            result,
        };
        self.decide(Work {
            command,
            granted_to: None,
            tries: 0,
            purpose: Purpose::WaitEnded { wait_id },
        });
    }

    /// The set that ended a wait was refused with another: it is open again.
    pub(super) fn wait_unresolved(&mut self, wait_id: u64) {
        if let Some(execution) = &mut self.execution
            && let Some(wait) = execution.waits.open.get_mut(&wait_id)
        {
            wait.phase = if wait.announced {
                Phase::Begun
            } else {
                Phase::New
            };
        }
    }

    pub(super) fn wait_timed_out(&mut self, wait_id: u64) {
        self.end_wait(wait_id, WaitResult::TimedOut);
    }

    pub(super) fn wait_dropped(&mut self, wait_id: u64) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let Some(wait) = execution.waits.open.get_mut(&wait_id) else {
            return;
        };
        wait.reply = None;
        match wait.phase {
            Phase::New if !wait.announced => {
                self.forget_wait(wait_id, true);
            }
            Phase::New | Phase::Begun => self.end_wait(wait_id, WaitResult::Dropped),
            // What it would have returned is recorded: the next attempt gets it there.
            Phase::Ending(_) => {}
            Phase::Ended(_) => self.forget_wait(wait_id, false),
        }
    }

    fn wait_ended(&mut self, wait_id: u64) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let Some(wait) = execution.waits.open.get_mut(&wait_id) else {
            return;
        };
        let Phase::Ending(result) = wait.phase else {
            return;
        };
        wait.phase = Phase::Ended(result);
        if result == WaitResult::Dropped {
            self.forget_wait(wait_id, true);
        }
        self.deliver_waits();
    }

    fn forget_wait(&mut self, wait_id: u64, give_back: bool) {
        if let Some(execution) = &mut self.execution
            && let Some(wait) = execution.waits.open.remove(&wait_id)
            && give_back
        {
            execution
                .waits
                .return_number(&wait.signal_name, wait.number);
        }
        self.deliver_waits();
    }

    pub(super) fn slot_granted(&mut self, permit: SlotPermit) {
        if let Some(execution) = &mut self.execution {
            execution.asked_for_slot = false;
            execution.permit.get_or_insert(permit);
        }
        self.deliver_waits();
    }

    /// Tells the engine of waits that have ended, once it has a slot.
    fn deliver_waits(&mut self) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let ended = execution.waits.ended();
        let nothing_open = execution.waits.open.is_empty();
        if execution.permit.is_none() && (!ended.is_empty() || nothing_open) {
            if !execution.asked_for_slot {
                execution.asked_for_slot = true;
                self.shared.ask_for_slot(&self.registration, &self.myself);
            }
            return;
        }
        for wait_id in ended {
            self.deliver_wait(wait_id);
        }
    }

    fn deliver_wait(&mut self, wait_id: u64) {
        let wait = self
            .execution
            .as_mut()
            .and_then(|execution| execution.waits.open.remove(&wait_id));
        let Some(OpenWait {
            phase: Phase::Ended(result),
            reply: Some(reply),
            ..
        }) = wait
        else {
            return;
        };
        let answer = match result {
            WaitResult::Signal { sequence } => self
                .event_at(sequence)
                .map(|event| Some(Arc::unwrap_or_clone(event))),
            WaitResult::TimedOut | WaitResult::Dropped => Ok(None),
        };
        let _ = reply.send(answer);
    }

    fn fail_wait(&mut self, wait_id: u64, error: Error) {
        let wait = self
            .execution
            .as_mut()
            .and_then(|execution| execution.waits.open.remove(&wait_id));
        if let Some(reply) = wait.and_then(|wait| wait.reply) {
            let _ = reply.send(Err(error));
        }
    }
}
