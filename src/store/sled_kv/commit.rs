//! The committer: one thread that forms groups, makes each durable with one sync, shows it, and
//! answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::super::error::StoreError;
use super::super::kv::{CommitContext, Counter, Durability, Outcome, Proposal, Reader, Verdict};
use super::super::locks::lock;
use super::super::panics::panic_text;
use super::fault::Step;
use super::frame::length_u32;
use super::inner::{Inner, tally};
use super::journal::{BODY_BYTES_MAX, ENTRY_HEADER_BYTES, EntryHeader, encode_op};
use super::overlay::Pending;
use super::queue::Turn;
use super::view::Layered;

/// What a proposal brings, roughly: room is made for so much at once.
const BODY_BYTES_EXPECTED: usize = 512;

type Backlog = VecDeque<Box<dyn Proposal>>;

/// How a proposal of a group stands before the group is durable.
enum Member {
    Accepted,
    Refused,
    NotWritten(StoreError),
}

/// Proposals that become durable together.
#[derive(Default)]
struct Group {
    members: Vec<(Box<dyn Proposal>, Member)>,
    /// What the accepted ones change.
    pending: Pending,
    /// Their operations in order, encoded.
    body: Vec<u8>,
    /// Whether anything has to be written: an accepted proposal may have changed nothing.
    writes: bool,
    next_position: u64,
}

struct Committer {
    inner: Arc<Inner>,
    /// Only under `Durability::Relaxed`: since when acknowledged groups wait for their sync.
    unsynced_since: Option<Duration>,
}

/// The thread's body.
pub(super) fn run(inner: Arc<Inner>) {
    let mut backlog = Backlog::new();
    let mut committer = Committer {
        inner,
        unsynced_since: None,
    };
    loop {
        let turn = committer
            .inner
            .queue
            .next_turn(&committer.inner, &mut backlog, || committer.sync_due());
        let Turn::Work {
            reservations,
            proposals,
        } = turn
        else {
            break;
        };
        let group = if proposals {
            committer.gather(&mut backlog)
        } else {
            Group::default()
        };
        committer.finish(group, reservations);
    }
    committer.end(&mut backlog);
}

impl Committer {
    fn sync_due(&self) -> Option<Duration> {
        let Durability::Relaxed(interval) = self.inner.options.durability else {
            return None;
        };
        let since = self.unsynced_since?;
        Some(interval.saturating_sub(self.inner.now().saturating_sub(since)))
    }

    /// Resolves proposals from the backlog, in order, up to the bounds of a group.
    fn gather(&self, backlog: &mut Backlog) -> Group {
        let bounds = &self.inner.options.bounds;
        let mut group = Group::default();
        if let Err(error) = self.inner.check() {
            let failed = |proposal| (proposal, Member::NotWritten(error.clone()));
            group.members.extend(backlog.drain(..).map(failed));
            return group;
        }
        // Cloned, so that views and the write-behind go on meanwhile; dropped before the group
        // is published, so that publishing changes the layer in place.
        let (active, frozen) = {
            let state = lock(&self.inner.state);
            group.next_position = state.next_position;
            (state.active.clone(), state.frozen.clone())
        };
        let now_epoch_ms = self.inner.options.clock.now_epoch_ms();
        let mut ops = Vec::new();
        let proposals = backlog.len().min(bounds.group_proposals_max);
        group.members.reserve(proposals);
        group.pending = Pending::with_room(proposals);
        group.body.reserve(BODY_BYTES_EXPECTED * proposals);
        while group.members.len() < bounds.group_proposals_max
            && group.body.len() < bounds.group_bytes_max
        {
            let Some(mut proposal) = backlog.pop_front() else {
                break;
            };
            let mut cx = CommitContext {
                now_epoch_ms,
                next_position: group.next_position,
                ops: &mut ops,
            };
            let state = Layered {
                pending: Some(&group.pending),
                layers: [Some(&active), frozen.as_deref()],
                index: &self.inner.index,
            };
            let verdict = resolve(proposal.as_mut(), &state, &mut cx);
            let next_position = cx.next_position;
            let member = match verdict {
                Err(error) => Member::NotWritten(error),
                Ok(Verdict::Refuse) => Member::Refused,
                Ok(Verdict::Accept) => match ops.iter().find_map(|op| op.check().err()) {
                    Some(error) => Member::NotWritten(error),
                    None => {
                        group.writes |= !ops.is_empty() || next_position != group.next_position;
                        group.next_position = next_position;
                        for op in ops.drain(..) {
                            encode_op(&op, &mut group.body);
                            group.pending.apply(op);
                        }
                        Member::Accepted
                    }
                },
            };
            ops.clear();
            group.members.push((proposal, member));
        }
        group
    }

    /// Makes a group durable, shows it, and answers it.
    fn finish(&mut self, mut group: Group, reservations: [bool; 3]) {
        let members = std::mem::take(&mut group.members);
        let result = if self.inner.has_failed() {
            self.inner.check().map(|()| 0)
        } else {
            let written = catch_unwind(AssertUnwindSafe(|| self.write(group, reservations)));
            written
                .unwrap_or_else(|panic| {
                    Err(StoreError::Failed {
                        cause: format!("the committer panicked: {}", panic_text(panic.as_ref()))
                            .into(),
                    })
                })
                .map_err(|error| self.inner.poison(error))
        };
        for (proposal, member) in members {
            let outcome = match (member, &result) {
                (Member::Accepted, Ok(commit)) => {
                    tally(&self.inner.tallies.commits, 1);
                    Outcome::Committed { commit: *commit }
                }
                (Member::Refused, Ok(_)) => {
                    tally(&self.inner.tallies.refusals, 1);
                    Outcome::Refused
                }
                // Seen before anything of the group is written, and at no other time.
                (Member::Accepted, Err(StoreError::Closed)) => {
                    Outcome::NotWritten(StoreError::Closed)
                }
                (Member::Accepted, Err(error)) => Outcome::Unknown(error.clone()),
                (Member::Refused, Err(error)) => Outcome::NotWritten(error.clone()),
                (Member::NotWritten(error), _) => Outcome::NotWritten(error),
            };
            answer(proposal, outcome);
        }
    }

    /// Returns the commit number that the group's proposals share.
    fn write(&mut self, mut group: Group, reservations: [bool; 3]) -> Result<u64, StoreError> {
        if self.inner.queue.is_stopped() {
            // A proposal dropped the last handle: the lock may be somebody else's by now.
            return Err(StoreError::Closed);
        }
        let reserves = reservations.contains(&true);
        // Marks travel with a group, if need be with one that changes nothing else.
        group.writes |= reserves;
        let header = {
            let state = lock(&self.inner.state);
            EntryHeader {
                sequence: state.journal_next,
                commit: state.commit + u64::from(group.writes),
                next_position: group.next_position.max(state.next_position),
                synced: self.inner.synced_commit.load(Ordering::Acquire),
                marks: self.marks(reservations, state.marks),
                part: 0,
                parts: length_u32(group.body.len().div_ceil(BODY_BYTES_MAX).max(1)),
            }
        };
        if group.writes {
            self.write_entries(&header, &group.body)?;
        }
        if group.writes || self.sync_due().is_some_and(|due| due.is_zero()) {
            self.make_durable(header.commit, group.writes, reserves)?;
        }
        if group.writes {
            self.inner.step(Step::CommitPublish)?;
            self.publish(group, &header);
        }
        for counter in Counter::ALL {
            if reservations[counter.slot()] {
                self.inner.counters[counter.slot()].reserved(header.marks[counter.slot()]);
            }
        }
        Ok(header.commit)
    }

    fn marks(&self, reservations: [bool; 3], mut marks: [u64; 3]) -> [u64; 3] {
        for counter in Counter::ALL {
            if reservations[counter.slot()] {
                marks[counter.slot()] = self.inner.counters[counter.slot()].next_mark();
            }
        }
        marks
    }

    /// A crash between the entries leaves a group that is not whole, which a replay ignores.
    fn write_entries(&self, first: &EntryHeader, body: &[u8]) -> Result<(), StoreError> {
        let mut bodies = body.chunks(BODY_BYTES_MAX);
        let tallies = &self.inner.tallies;
        for part in 0..first.parts {
            self.inner.step(Step::CommitEntry)?;
            let header = EntryHeader {
                sequence: first.sequence + u64::from(part),
                part,
                ..*first
            };
            let body = bodies.next().unwrap_or_default();
            self.inner.journal.write(&header, body)?;
            let bytes = length_u32(ENTRY_HEADER_BYTES + body.len());
            tally(&tallies.journal_bytes, u64::from(bytes));
        }
        tally(&tallies.journal_entries, u64::from(first.parts));
        tally(&tallies.groups, 1);
        Ok(())
    }

    fn make_durable(
        &mut self,
        commit: u64,
        acknowledges: bool,
        forced: bool,
    ) -> Result<(), StoreError> {
        if let Durability::Relaxed(interval) = self.inner.options.durability {
            let now = self.inner.now();
            let since = *self.unsynced_since.get_or_insert(now);
            if !forced && now.saturating_sub(since) < interval {
                return Ok(());
            }
            self.unsynced_since = None;
        }
        self.inner.step(Step::CommitSync)?;
        // The moments themselves: what is late after a sync can be told from a late sync.
        tracing::trace!(name: "group_written", commit);
        self.inner.sync_journal(commit)?;
        tracing::trace!(name: "group_durable", commit);
        tally(&self.inner.tallies.syncs, u64::from(acknowledges));
        Ok(())
    }

    fn publish(&self, group: Group, header: &EntryHeader) {
        let mut state = lock(&self.inner.state);
        state.active.publish(group.pending);
        state.commit = header.commit;
        state.next_position = header.next_position;
        state.journal_next = header.sequence + u64::from(header.parts);
        state.marks = header.marks;
        self.inner.measure_overlay(&state);
        if state.drain_parked || self.inner.is_urgent(&state) {
            self.inner.changed.notify_all();
        }
    }

    /// Answers what is left when the store is dropped, or closed after a failure.
    fn end(&self, backlog: &mut Backlog) {
        self.inner.queue.take_rest(backlog);
        if self.unsynced_since.is_some() && !self.inner.has_failed() {
            let commit = lock(&self.inner.state).commit;
            if let Err(error) = self.inner.sync_journal(commit) {
                self.inner.poison(error);
            }
        }
        let error = self.inner.check().err().unwrap_or(StoreError::Closed);
        for proposal in backlog.drain(..) {
            answer(proposal, Outcome::NotWritten(error.clone()));
        }
    }
}

fn resolve(
    proposal: &mut dyn Proposal,
    state: &dyn Reader,
    cx: &mut CommitContext<'_>,
) -> Result<Verdict, StoreError> {
    catch_unwind(AssertUnwindSafe(|| proposal.resolve(state, cx))).unwrap_or_else(|panic| {
        Err(StoreError::Invalid {
            what: format!(
                "a proposal panicked while it was resolved: {}",
                panic_text(panic.as_ref())
            ),
        })
    })
}

/// Tells a proposal how it ended, and survives what it makes of that.
pub(super) fn answer(proposal: Box<dyn Proposal>, outcome: Outcome) {
    if catch_unwind(AssertUnwindSafe(|| proposal.done(outcome))).is_err() {
        tracing::error!("a proposal panicked while it was told its outcome");
    }
}
