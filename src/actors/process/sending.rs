//! What is decided goes to the committer: folded into the newest state, with its conditions.

use std::sync::Arc;

use tracing::warn;

use super::flight::{Flight, Purpose, Work};
use super::messages::ProcessMsg;
use super::state::Process;
use crate::model::decide::{Command, EventDraft, Finisher, LeaseChange, Replayed, apply_drafts};
use crate::model::lease::Lease;
use crate::model::record::{ProcessState, Writer};
use crate::model::{CompletionAuthority, Error, FencingToken, OwnerNumber, ProcessEvent};
use crate::store::write_set::{Change, Condition, WriteSet};
use crate::store::writes;

impl Process {
    /// Folds events into the newest state and sends them.
    #[expect(
        clippy::result_large_err,
        reason = "the work comes back with the refusal, to be answered"
    )]
    pub(super) fn send(
        &mut self,
        work: Work,
        drafts: Vec<EventDraft>,
        change: &LeaseChange,
    ) -> Result<(), (Work, Error)> {
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
        self.submit(work, conditions, write, events, after, lease);
        self.resolve_ready_waits();
        Ok(())
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
            // The reaper's: it sends them itself.
            | Command::LoseOwner { .. }
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

    pub(super) fn events_of(
        &self,
        drafts: Vec<EventDraft>,
        at_ms: u64,
    ) -> Vec<(Arc<ProcessEvent>, usize)> {
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
    pub(super) fn submit(
        &mut self,
        work: Work,
        conditions: Vec<Condition>,
        write: Change,
        events: Vec<(Arc<ProcessEvent>, usize)>,
        after: ProcessState,
        lease: Option<Lease>,
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
                    result,
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
        let after = self.state.clone();
        self.submit(work, conditions, write, Vec::new(), after, None);
    }
}
