//! Appends that arrive together are committed together.
//!
//! An engine that emits ten events and returns, or sixty callers that append to one process, fill the
//! mailbox while the actor is busy. Sent one by one, each would be a set of its own with its own
//! state, conditions and answer, although all of them share a sync anyway. So an engine's append, and a
//! host's while another is on its way, is corked: a message is put behind what is in the mailbox, and whatever of its kind has arrived by
//! then is decided one after the other, each on the state that the one before leads to, and sent as
//! one set. Nothing waits for more to come.
//!
//! A set is accepted or refused as a whole. When one of several is refused, all of them are decided
//! anew, one by one, so that a refusal reaches only the one that it is about.

use std::collections::VecDeque;
use std::sync::Arc;

use super::flight::{Member, Purpose, Work};
use super::messages::ProcessMsg;
use super::state::Process;
use crate::model::decide::{Command, Decision, EventDraft, Finisher, LeaseChange};

/// Most events that are corked.
const EVENTS_MAX: usize = 64;
/// Bytes of payloads above which no more are corked.
const BYTES_MAX: usize = 64 << 10;

/// Whether some work may share a set with other work. Not what needs a session's grant: its refusal
/// is an ordinary answer, and would have the others decided twice.
pub(super) fn joins(work: &Work) -> bool {
    match (&work.command, &work.purpose) {
        (Command::Append { .. }, Purpose::Emit { .. } | Purpose::Host(_)) => {
            work.granted_to.is_none()
        }
        (
            Command::Finish {
                finisher: Finisher::Owner(_),
                ..
            },
            Purpose::Settle { .. },
        ) => true,
        (_, _) => false,
    }
}

/// Whether what is corked stays so while this message is handled: it may join, or has nothing to do
/// with what is decided.
pub(super) fn leaves_corked(message: &ProcessMsg) -> bool {
    matches!(
        message,
        ProcessMsg::Command(_)
            | ProcessMsg::Emit { .. }
            | ProcessMsg::Ended { .. }
            | ProcessMsg::Committed { .. }
            | ProcessMsg::Uncork
    )
}

fn bytes(work: &Work) -> usize {
    match &work.command {
        Command::Append { event, .. } => event.canonical.len(),
        _ => 0,
    }
}

impl Process {
    /// Whether a host's append finds nothing before it that it could share a set with. Most do, and are
    /// spared the message; those that come while it is on its way are corked.
    pub(super) fn is_first_of_a_host(&self, work: &Work) -> bool {
        matches!(work.purpose, Purpose::Host(_))
            && self.flights.is_empty()
            && self.corked.is_empty()
    }

    /// Keeps some work until what is in the mailbox has been looked at.
    pub(super) fn cork(&mut self, work: Work) {
        if self.corked.is_empty() && self.myself.cast(ProcessMsg::Uncork).is_err() {
            // The mailbox is closed: nothing will come after it.
            self.decide_now(work);
            return;
        }
        self.corked_bytes += bytes(&work);
        self.corked.push(work);
        if self.corked.len() >= EVENTS_MAX || self.corked_bytes >= BYTES_MAX {
            self.uncork();
        }
    }

    /// Decides what was corked, and sends it.
    pub(super) fn uncork(&mut self) {
        self.corked_bytes = 0;
        let mut works = VecDeque::from(std::mem::take(&mut self.corked));
        while !works.is_empty() {
            if self.broken {
                self.arrivals.extend(works);
                return;
            }
            if works.len() > 1 && !self.gone {
                self.decide_together(&mut works);
            }
            // Alone, or what did not fit: it may have to wait behind the others for its answer.
            if let Some(work) = works.pop_front() {
                if self.broken {
                    self.arrivals.push_back(work);
                } else {
                    self.decide_now(work);
                }
            }
        }
    }

    /// Sends as one set what of these is a change, up to the first that is not, or that ends the
    /// process.
    fn decide_together(&mut self, works: &mut VecDeque<Work>) {
        let at_ms = self.shared.now_ms();
        let before = Arc::clone(&self.state);
        let mut members: Vec<Member> = Vec::with_capacity(works.len());
        let mut drafts: Vec<EventDraft> = Vec::with_capacity(works.len());
        while let Some(mut work) = works.pop_front() {
            work.tries += 1;
            let Ok(Decision::Commit { events, lease }) = self.decision(&work) else {
                work.tries -= 1;
                works.push_front(work);
                break;
            };
            if self.fold(&events, at_ms).is_err() {
                // The rules contradict each other about this one: it is answered by itself, and the
                // others are decided again without it.
                self.state = before;
                self.take_apart(work, members, works);
                return;
            }
            self.note_replay(&work, self.state.last_sequence);
            let ends = lease != LeaseChange::Keep;
            members.push(Member {
                work,
                events: events.len(),
                lease,
            });
            drafts.extend(events);
            if ends {
                break;
            }
        }
        self.send(members, drafts, &before, at_ms);
    }

    /// Undoes what was decided together: each is decided alone.
    fn take_apart(&mut self, failed: Work, members: Vec<Member>, works: &mut VecDeque<Work>) {
        self.forget_replays(&members);
        for work in members
            .into_iter()
            .map(|member| member.work)
            .chain([failed])
            .chain(std::mem::take(works))
        {
            self.decide_now(work);
        }
    }
}
