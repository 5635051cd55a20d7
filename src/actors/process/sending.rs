//! What is decided goes to the committer: folded into the newest state, with its conditions.

use std::sync::Arc;

use tracing::warn;

use super::flight::{Flight, Member, Purpose, Work};
use super::messages::ProcessMsg;
use super::state::Process;
use super::waits::History;
use crate::model::decide::{Command, EventDraft, Finisher, LeaseChange, Replayed, apply_drafts};
use crate::model::lease::Lease;
use crate::model::record::{ProcessState, Writer};
use crate::model::{CompletionAuthority, Error, FencingToken, OwnerNumber, ProcessEvent, Result};
use crate::store::write_set::{Change, Condition, WriteSet};
use crate::store::writes;

impl Process {
    /// Folds the events of some work into the newest state and sends them.
    pub(super) fn send_alone(&mut self, work: Work, drafts: Vec<EventDraft>, lease: LeaseChange) {
        let at_ms = self.shared.now_ms();
        let before = Arc::clone(&self.state);
        let events = drafts.len();
        if let Err(error) = self.fold(&drafts, at_ms) {
            self.state = before;
            self.answer(work, Err(error));
            return;
        }
        let member = Member {
            work,
            events,
            lease,
        };
        self.send(vec![member], drafts, &before, at_ms);
    }

    /// Folds events into the newest state. After an error that is half done.
    pub(super) fn fold(&mut self, drafts: &[EventDraft], at_ms: u64) -> Result<()> {
        let state = Arc::make_mut(&mut self.state);
        apply_drafts(&self.registration, state, drafts, at_ms).map_err(|error| {
            // P4: the decision was wrong about the state, so it changes nothing.
            Error::invalid("command", error.to_string(), "legal in this state")
        })
    }

    /// Sends events that are folded into the newest state already, `before` being the state without
    /// them, as one set. Only the last member may change the lease.
    pub(super) fn send(
        &mut self,
        members: Vec<Member>,
        drafts: Vec<EventDraft>,
        before: &Arc<ProcessState>,
        at_ms: u64,
    ) {
        let Some(last) = members.last() else {
            return;
        };
        let owner = self.owner_of(&last.work);
        let lease = match &last.lease {
            LeaseChange::Keep => self.lease,
            LeaseChange::Acquire(token) => Some(Lease {
                owner,
                token: *token,
            }),
            LeaseChange::Release | LeaseChange::Pass(_) => None,
        };
        let written = writes::append(
            &self.registration,
            &drafts,
            &self.state,
            &last.lease,
            owner,
            at_ms,
        );
        let write = match written {
            Ok(write) => write,
            Err(error) => {
                self.state = Arc::clone(before);
                self.forget_replays(&members);
                for member in members {
                    self.answer(member.work, Err(error.clone().into()));
                }
                return;
            }
        };
        let conditions = self.conditions(&members, &drafts, before.last_sequence);
        let events = self.events_of(drafts, before.last_sequence, at_ms);
        if let Some(execution) = &mut self.execution
            && History::concerns(&self.registration)
            // Otherwise taken note of with what comes before it.
            && execution.waits.behind.is_none()
        {
            for (event, _) in &events {
                // A signal that is on its way already ends the wait that it is for.
                if let Err(error) = execution.waits.note(event) {
                    warn!(process = %self.registration.id, %error, "unreadable event");
                }
            }
        }
        self.submit(members, conditions, write, events, lease);
        self.resolve_ready_waits();
    }

    pub(super) fn owner_of(&self, work: &Work) -> OwnerNumber {
        match &work.purpose {
            Purpose::Begin { owner, .. } => owner.number,
            Purpose::Host(_)
            | Purpose::Emit { .. }
            | Purpose::WaitBegun { .. }
            | Purpose::WaitEnded { .. }
            | Purpose::Settle { .. }
            | Purpose::Release { .. } => self
                .lease
                .map_or(OwnerNumber::default(), |lease| lease.owner),
        }
    }

    pub(super) fn conditions(
        &self,
        members: &[Member],
        drafts: &[EventDraft],
        last_sequence: u64,
    ) -> Vec<Condition> {
        let row = self.row;
        let mut conditions = vec![Condition::At { row, last_sequence }];
        for member in members {
            for condition in self.conditions_of(member) {
                // What several owe to the same token is checked once.
                if !conditions.contains(&condition) {
                    conditions.push(condition);
                }
            }
        }
        for replay in drafts.iter().filter_map(|draft| draft.replay.as_ref()) {
            conditions.push(Condition::ReplayFree {
                incarnation: self.registration.incarnation,
                key: replay.key.clone(),
            });
        }
        conditions
    }

    fn conditions_of(&self, member: &Member) -> Vec<Condition> {
        let row = self.row;
        let mut conditions = Vec::new();
        let held = |token: FencingToken, live: bool, conditions: &mut Vec<Condition>| {
            conditions.push(Condition::Token { row, token });
            if let (true, Some(lease)) = (live, self.lease) {
                conditions.push(Condition::OwnerLive { owner: lease.owner });
            }
        };
        let work = &member.work;
        match &work.command {
            Command::Append {
                writer: Writer::Owner(token),
                ..
            } => held(*token, member.lease == LeaseChange::Keep, &mut conditions),
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
                if let Purpose::Begin { owner, .. } = &work.purpose {
                    conditions.push(Condition::LeaseFree { row });
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
            Command::RequestCancel { .. } if matches!(member.lease, LeaseChange::Pass(_)) => {
                conditions.push(Condition::LeaseFree { row });
            }
            Command::Append {
                writer: Writer::Host,
                ..
            }
            | Command::RequestCancel { .. }
            | Command::RequestAbandon { .. }
            | Command::SetExternalRef { .. }
            // The reaper's: it sends them itself.
            | Command::LoseOwner { .. }
            | Command::Finish { .. } => {}
        }
        if let Some(scope) = &work.granted_to {
            conditions.push(Condition::Granted {
                row,
                scope: scope.clone(),
            });
        }
        conditions
    }

    fn events_of(
        &self,
        drafts: Vec<EventDraft>,
        last_sequence: u64,
        at_ms: u64,
    ) -> Vec<(Arc<ProcessEvent>, usize)> {
        (last_sequence + 1..)
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

    /// Sends a set, decided on everything that is in flight, that leads to the newest state.
    fn submit(
        &mut self,
        members: Vec<Member>,
        conditions: Vec<Condition>,
        write: Change,
        events: Vec<(Arc<ProcessEvent>, usize)>,
        lease: Option<Lease>,
    ) {
        let mut last = self.state.last_sequence - events.len() as u64;
        for Member { work, events, .. } in &members {
            last += *events as u64;
            if let Purpose::Host(reply) = &work.purpose {
                reply.mark_sent();
            }
            self.note_replay(work, last);
        }
        let mut set = WriteSet::new(conditions, vec![write]);
        set.after = self.last_ticket.take();
        self.last_ticket = Some(set.ticket.clone());
        self.next_flight += 1;
        let number = self.next_flight;
        self.lease = lease;
        self.flights.push_back(Flight {
            number,
            members,
            events,
            state: Arc::clone(&self.state),
            lease,
            behind: Vec::new(),
            result: None,
        });
        let myself = self.myself.clone();
        let shared = Arc::clone(&self.shared);
        let incarnation = self.registration.incarnation;
        self.shared.store.commit(
            set,
            Box::new(move |result| {
                // Here and not by the actor, which may be gone: a session that waits for a wake hears
                // of it all the same.
                for scope in result.iter().flat_map(|receipt| &receipt.woken) {
                    shared.hub.scope_changed(scope);
                }
                let message = ProcessMsg::Committed {
                    flight: number,
                    result: result.map(drop),
                };
                if myself.cast(message).is_err() {
                    // The actor is gone; whoever listens finds what was committed in the store, and
                    // what should have followed on it, for children as well, is the reaper's.
                    shared.hub.nudge(incarnation);
                    shared.sweep_soon();
                }
            }),
        );
    }

    /// Remembers the replay key of an event that is in flight.
    pub(super) fn note_replay(&mut self, work: &Work, sequence: u64) {
        if let Command::Append { event, .. } = &work.command
            && let Some(replay) = &event.replay
        {
            let content = replay.content;
            self.replays
                .insert(replay.key.clone(), Replayed { sequence, content });
        }
    }

    /// Forgets the replay keys of what was not sent.
    pub(super) fn forget_replays(&mut self, members: &[Member]) {
        for Member { work, .. } in members {
            if let Command::Append { event, .. } = &work.command
                && let Some(replay) = &event.replay
            {
                self.replays.remove(&replay.key);
            }
        }
    }

    /// Gives the lease back without an outcome.
    pub(super) fn release(&mut self, work: Work, token: FencingToken) {
        let Some(lease) = self.lease.filter(|lease| lease.token == token) else {
            let error = self.superseded(token);
            self.answer(work, Err(error));
            return;
        };
        let row = self.row;
        let conditions = vec![
            Condition::At {
                row,
                last_sequence: self.state.last_sequence,
            },
            Condition::Token { row, token },
            // What lapsed was lost, and counts as that.
            Condition::OwnerLive { owner: lease.owner },
        ];
        let write = writes::release(row, self.state.last_sequence);
        let member = Member {
            work,
            events: 0,
            lease: LeaseChange::Release,
        };
        self.submit(vec![member], conditions, write, Vec::new(), None);
    }
}
