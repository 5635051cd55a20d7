//! The waits of the running attempt.
//!
//! A wait that its engine drops gives its number back at that very moment, before the engine can
//! begin another: what was said of it in the log goes its own way. So no signal is lost between a
//! wait that lost a race and the one that follows it.

use std::sync::Arc;
use std::time::Duration;

use super::execution::Execution;
use super::flight::{Purpose, Work};
use super::messages::{Delivered, ProcessMsg};
use super::state::Process;
use super::waits::{NewWait, OpenWait, Phase};
use crate::actors::dispatcher::SlotPermit;
use crate::model::decide::Command;
use crate::model::{Error, FencingToken, WaitResult};

impl Process {
    pub(super) fn wait_begin(&mut self, wait: NewWait) {
        let now_ms = self.shared.now_ms();
        let current = |execution: &&mut Execution| execution.token == wait.token;
        let Some(execution) = self.execution.as_mut().filter(current) else {
            let _ = wait.reply.send(Err(self.superseded(wait.token)));
            return;
        };
        if let Some(behind) = &mut execution.waits.behind {
            // What it returned in an earlier attempt, on another host, may still have to be read.
            behind.held.push(wait);
            return;
        }
        let NewWait {
            wait_id,
            signal_name,
            timeout,
            reply,
            ..
        } = wait;
        let number = execution.waits.take_number(&signal_name);
        if let Some(wait) = execution.waits.adoptable(&signal_name, number) {
            wait.listener = wait_id;
            wait.reply = Some(reply);
            self.limit_wait(wait_id, timeout);
            return;
        }
        let recorded = execution.waits.recorded(&signal_name, number);
        let deadline_ms = timeout.map(|timeout| {
            now_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
        });
        execution.waits.open.insert(
            wait_id,
            OpenWait {
                signal_name,
                number,
                phase: recorded.map_or(Phase::New, Phase::Ended),
                announced: false,
                deadline_ms,
                listener: wait_id,
                reply: Some(reply),
            },
        );
        if recorded.is_some() {
            self.deliver_waits();
            return;
        }
        self.resolve_ready_waits();
        self.announce_wait(wait_id);
        self.limit_wait(wait_id, timeout);
    }

    /// Ends a wait when its time is over.
    fn limit_wait(&mut self, wait_id: u64, timeout: Option<Duration>) {
        if let Some(timeout) = timeout {
            self.after(timeout, move || ProcessMsg::WaitTimedOut { wait_id });
        }
    }

    /// Says that the process waits, unless its signal was there already.
    fn announce_wait(&mut self, wait_id: u64) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let token = execution.token;
        let Some(wait) = execution.waits.open.get_mut(wait_id) else {
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
        self.decide(Work {
            command,
            granted_to: None,
            tries: 0,
            purpose: Purpose::WaitBegun { wait_id },
        });
    }

    /// Says of each open wait that nobody has said it of, its signal having turned out not to be there,
    /// that the process waits.
    pub(super) fn announce_waits(&mut self) {
        let unsaid = match &self.execution {
            Some(execution) if !execution.settled && !self.broken => execution.waits.unsaid(),
            Some(_) | None => return,
        };
        for wait_id in unsaid {
            self.announce_wait(wait_id);
        }
    }

    /// It was not said after all that the process waits.
    pub(super) fn wait_unsaid(&mut self, wait_id: u64) {
        let waits = self
            .execution
            .as_mut()
            .map(|execution| &mut execution.waits);
        if let Some(wait) = waits.and_then(|waits| waits.open.get_mut(wait_id)) {
            wait.announced = false;
        }
    }

    /// Whether the signal of a wait is on its way to its engine already.
    pub(super) fn has_been_resolved(&mut self, wait_id: u64) -> bool {
        let waits = self
            .execution
            .as_mut()
            .map(|execution| &mut execution.waits);
        let wait = waits.and_then(|waits| waits.open.get_mut(wait_id));
        wait.is_some_and(|wait| {
            matches!(
                wait.phase,
                Phase::Ending(WaitResult::Signal { .. }) | Phase::Ended(WaitResult::Signal { .. })
            )
        })
    }

    pub(super) fn wait_begun(&mut self, wait_id: u64) {
        if let Some(execution) = &mut self.execution
            && let Some(wait) = execution.waits.open.get_mut(wait_id)
            && wait.phase == Phase::New
        {
            wait.phase = Phase::Begun;
        }
        self.free_slot();
        self.resolve_ready_waits();
    }

    /// An attempt's slot is free for others while it waits.
    pub(super) fn free_slot(&mut self) {
        if let Some(execution) = &mut self.execution
            && execution.waits.is_waiting()
            && execution.waits.ended().is_empty()
        {
            execution.permit = None;
        }
    }

    /// Ends every wait whose signal has arrived.
    pub(super) fn resolve_ready_waits(&mut self) {
        let ready = match &self.execution {
            // While the log is unsettled, what has arrived may turn out not to have.
            Some(execution) if !execution.settled && !self.broken => execution.waits.ready(),
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
        let Some(wait) = execution.waits.open.get_mut(wait_id) else {
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

    /// The set that ended a wait with a signal was refused: the wait is open again. What its
    /// engine has dropped meanwhile ends as dropped instead: that is returned.
    pub(super) fn wait_unresolved(&mut self, wait_id: u64, mut work: Work) -> Option<Work> {
        let waits = &mut self.execution.as_mut()?.waits;
        let wait = waits.open.get_mut(wait_id)?;
        if wait.reply.is_some() {
            wait.phase = if wait.announced {
                Phase::Begun
            } else {
                Phase::New
            };
            return None;
        }
        if !wait.announced {
            waits.open.remove(wait_id);
            return None;
        }
        wait.phase = Phase::Ending(WaitResult::Dropped);
        if let Command::EndWait { result, .. } = &mut work.command {
            *result = WaitResult::Dropped;
        }
        Some(work)
    }

    pub(super) fn wait_timed_out(&mut self, listener: u64) {
        let wait_id = self
            .execution
            .as_ref()
            .and_then(|execution| execution.waits.heard_by(listener));
        if let Some(wait_id) = wait_id {
            self.end_wait(wait_id, WaitResult::TimedOut);
        }
    }

    /// The engine has dropped a wait before it was told anything.
    pub(super) fn wait_dropped(&mut self, listener: u64) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        let waits = &mut execution.waits;
        if let Some(behind) = &mut waits.behind {
            // One that was not begun has no number to give back.
            behind.held.retain(|wait| wait.wait_id != listener);
        }
        let Some(wait_id) = waits.heard_by(listener) else {
            return;
        };
        let Some(wait) = waits.open.get_mut(wait_id) else {
            return;
        };
        wait.reply = None;
        let (name, number, phase) = (wait.signal_name.clone(), wait.number, wait.phase);
        let announced = wait.announced;
        waits.return_number(&name, number);
        waits.forget_timeout(&name, number);
        match phase {
            Phase::New | Phase::Begun if announced => self.end_wait(wait_id, WaitResult::Dropped),
            Phase::New | Phase::Begun | Phase::Ended(_) => {
                waits.open.remove(wait_id);
            }
            // Its end goes on into the log; the entry goes when that is there.
            Phase::Ending(_) => {}
        }
        self.deliver_waits();
    }

    /// The engine was told how a wait ended, and had dropped it by then.
    pub(super) fn wait_unseen(&mut self, token: FencingToken, signal_name: &str, number: u64) {
        if let Some(execution) = &mut self.execution
            && execution.token == token
        {
            execution.waits.return_number(signal_name, number);
            execution.waits.forget_timeout(signal_name, number);
        }
    }

    pub(super) fn wait_ended(&mut self, wait_id: u64) {
        let Some(execution) = &mut self.execution else {
            return;
        };
        if let Some(wait) = execution.waits.open.get_mut(wait_id)
            && let Phase::Ending(result) = wait.phase
        {
            if wait.reply.is_some() {
                wait.phase = Phase::Ended(result);
            } else {
                execution.waits.open.remove(wait_id);
            }
        }
        self.deliver_waits();
    }

    pub(super) fn slot_granted(&mut self, permit: SlotPermit) {
        if let Some(execution) = &mut self.execution {
            execution.asked_for_slot = false;
            if execution.waits.ended().is_empty() && execution.waits.is_waiting() {
                // What it was asked for was dropped, and it waits again.
                return;
            }
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
        if execution.permit.is_none() && (!ended.is_empty() || !execution.waits.is_waiting()) {
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
        let Some(execution) = &mut self.execution else {
            return;
        };
        let token = execution.token;
        let Some(OpenWait {
            signal_name,
            number,
            phase: Phase::Ended(result),
            reply: Some(reply),
            ..
        }) = execution.waits.open.remove(wait_id)
        else {
            return;
        };
        let event = match result {
            WaitResult::Signal { sequence } => self
                .event_at(sequence)
                .map(|event| Some(Arc::unwrap_or_clone(event))),
            WaitResult::TimedOut | WaitResult::Dropped => Ok(None),
        };
        let actor = self.myself.clone();
        let delivered =
            event.map(|event| Delivered::new(event, actor, token, signal_name.clone(), number));
        if let Err(Ok(unsent)) = reply.send(delivered) {
            // Dropped just now. Given back here and not by a message, which the engine's next wait
            // might overtake.
            let _ = unsent.take();
            self.wait_unseen(token, &signal_name, number);
        }
    }

    pub(super) fn fail_wait(&mut self, wait_id: u64, error: Error) {
        let wait = self
            .execution
            .as_mut()
            .and_then(|execution| execution.waits.open.remove(wait_id));
        if let Some(reply) = wait.and_then(|wait| wait.reply) {
            let _ = reply.send(Err(error));
        }
        // It goes on, and needs a slot for that.
        self.deliver_waits();
    }
}
