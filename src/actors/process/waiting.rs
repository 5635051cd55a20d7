//! The waits of the running attempt.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use super::flight::{Purpose, Work};
use super::messages::ProcessMsg;
use super::state::Process;
use super::waits::{OpenWait, Phase};
use crate::actors::dispatcher::SlotPermit;
use crate::model::decide::Command;
use crate::model::{Error, FencingToken, ProcessEvent, Result, WaitResult};

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
    pub(super) fn announce_wait(&mut self, wait_id: u64, timeout: Option<Duration>) {
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

    pub(super) fn wait_begun(&mut self, wait_id: u64) {
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

    pub(super) fn end_wait(&mut self, wait_id: u64, result: WaitResult) {
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

    pub(super) fn wait_ended(&mut self, wait_id: u64) {
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

    pub(super) fn forget_wait(&mut self, wait_id: u64, give_back: bool) {
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
    pub(super) fn deliver_waits(&mut self) {
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

    pub(super) fn deliver_wait(&mut self, wait_id: u64) {
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

    pub(super) fn fail_wait(&mut self, wait_id: u64, error: Error) {
        let wait = self
            .execution
            .as_mut()
            .and_then(|execution| execution.waits.open.remove(&wait_id));
        if let Some(reply) = wait.and_then(|wait| wait.reply) {
            let _ = reply.send(Err(error));
        }
    }
}
