//! The committer: one thread that forms groups, makes each durable with one sync, shows it, and
//! answers.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use super::super::error::StoreError;
use super::super::kv::{
    CommitContext, Counter, Durability, Op, Outcome, Proposal, Reader, Verdict,
};
use super::super::locks::lock;
use super::fault::Step;
use super::frame::length_u32;
use super::index::{failed, panic_text};
use super::inner::{Inner, tally};
use super::journal::{ENTRY_BYTES_MAX, ENTRY_HEADER_BYTES, EntryHeader, encode_entry, encode_op};
use super::meta;
use super::overlay::{Layer, Pairs};
use super::queue::Turn;
use super::side_files::SideFiles;
use super::view::Layered;

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
    /// Operations of the accepted ones, in order.
    ops: Vec<Op>,
    /// The same, encoded.
    body: Vec<u8>,
    /// Whether anything has to be written: an accepted proposal may have changed nothing.
    writes: bool,
    next_position: u64,
}

struct Committer {
    inner: Arc<Inner>,
    side_files: SideFiles,
    /// Only under `Durability::Relaxed`: since when acknowledged groups wait for their sync.
    unsynced_since: Option<Duration>,
}

/// The thread's body.
pub(super) fn run(inner: Arc<Inner>) {
    let mut backlog = Backlog::new();
    let mut committer = Committer {
        side_files: SideFiles::new(&inner.path),
        inner,
        unsynced_since: None,
    };
    loop {
        let turn = committer
            .inner
            .queue
            .next_turn(&committer.inner, &mut backlog, || committer.sync_due());
        let Turn::Work {
            sync,
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
        committer.finish(group, sync, reservations);
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
        let mut pending = Layer::default();
        let mut ops = Vec::new();
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
                layers: [Some(&pending), Some(&active), frozen.as_deref()],
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
                            pending.apply(op.clone(), Pairs::Keep);
                            group.ops.push(op);
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
    fn finish(&mut self, mut group: Group, sync: Option<u64>, reservations: [bool; 3]) {
        let members = std::mem::take(&mut group.members);
        let result = if self.inner.has_failed() {
            self.inner.check().map(|()| 0)
        } else {
            let written = catch_unwind(AssertUnwindSafe(|| self.write(group, sync, reservations)));
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
                (Member::Accepted, Err(error)) => Outcome::Unknown(error.clone()),
                (Member::Refused, Err(error)) => Outcome::NotWritten(error.clone()),
                (Member::NotWritten(error), _) => Outcome::NotWritten(error),
            };
            answer(proposal, outcome);
        }
    }

    /// Returns the commit number that the group's proposals share.
    fn write(
        &mut self,
        group: Group,
        sync: Option<u64>,
        reservations: [bool; 3],
    ) -> Result<u64, StoreError> {
        let (commit, first_sequence) = {
            let state = lock(&self.inner.state);
            (state.commit + u64::from(group.writes), state.journal_next)
        };
        let mut next_sequence = first_sequence;
        if group.writes {
            next_sequence = self.write_entries(&group, commit, first_sequence)?;
        }
        let marks = self.write_reservations(reservations)?;
        let forced = sync.is_some() || !marks.is_empty();
        if group.writes || forced || self.sync_due().is_some_and(|due| due.is_zero()) {
            self.make_durable(group.writes, forced)?;
        }
        if group.writes {
            self.inner.step(Step::CommitPublish)?;
            self.publish(group, commit, next_sequence);
        }
        for (counter, mark) in marks {
            self.inner.counters[counter.slot()].reserved(mark);
        }
        if let Some(ticket) = sync {
            self.inner.queue.synced(ticket);
        }
        Ok(commit)
    }

    /// A crash between the entries leaves a group that is not whole, which a replay ignores.
    fn write_entries(
        &self,
        group: &Group,
        commit: u64,
        first_sequence: u64,
    ) -> Result<u64, StoreError> {
        let body_max = ENTRY_BYTES_MAX - ENTRY_HEADER_BYTES;
        let parts = length_u32(group.body.len().div_ceil(body_max).max(1));
        let mut bodies = group.body.chunks(body_max);
        for part in 0..parts {
            self.inner.step(Step::CommitEntry)?;
            let header = EntryHeader {
                sequence: first_sequence + u64::from(part),
                commit,
                next_position: group.next_position,
                part,
                parts,
            };
            let frame = encode_entry(&header, bodies.next().unwrap_or_default());
            tally(
                &self.inner.tallies.journal_bytes,
                u64::from(length_u32(frame.len())),
            );
            self.inner.index.with(|trees| {
                self.inner
                    .slots
                    .write(&trees.journal, header.sequence, frame)
            })?;
        }
        tally(&self.inner.tallies.journal_entries, u64::from(parts));
        tally(&self.inner.tallies.groups, 1);
        Ok(first_sequence + u64::from(parts))
    }

    /// A crash before the sync may lose the new marks, and with them nothing that was handed out.
    fn write_reservations(
        &self,
        reservations: [bool; 3],
    ) -> Result<Vec<(Counter, u64)>, StoreError> {
        let mut marks = Vec::new();
        for counter in Counter::ALL {
            if !reservations[counter.slot()] {
                continue;
            }
            let mark = self.inner.counters[counter.slot()].next_mark();
            self.inner.index.with(|trees| {
                meta::put(
                    &trees.meta,
                    &meta::counter_key(counter),
                    &mark.to_be_bytes(),
                )
            })?;
            marks.push((counter, mark));
        }
        Ok(marks)
    }

    fn make_durable(&mut self, acknowledges: bool, forced: bool) -> Result<(), StoreError> {
        self.inner.step(Step::CommitFlush)?;
        self.inner
            .index
            .with(|trees| trees.db.flush().map(drop).map_err(failed))?;
        if let Durability::Relaxed(interval) = self.inner.options.durability {
            let now = self.inner.now();
            let since = *self.unsynced_since.get_or_insert(now);
            if !forced && now.saturating_sub(since) < interval {
                return Ok(());
            }
            self.unsynced_since = None;
        }
        self.inner.step(Step::CommitSync)?;
        self.side_files.sync_new()?;
        self.inner
            .data_file
            .sync_data()
            .map_err(|error| StoreError::Failed {
                cause: format!("data sync: {error}").into(),
            })?;
        tally(&self.inner.tallies.syncs, u64::from(acknowledges));
        Ok(())
    }

    fn publish(&self, group: Group, commit: u64, next_sequence: u64) {
        let mut state = lock(&self.inner.state);
        for op in group.ops {
            state.active.apply(op, Pairs::Forget);
        }
        state.commit = commit;
        state.next_position = group.next_position;
        state.journal_next = next_sequence;
        self.inner.measure_overlay(&state);
        if state.drain_parked || self.inner.is_urgent(&state) {
            self.inner.changed.notify_all();
        }
    }

    /// Answers what is left when the store is dropped, or closed after a failure.
    fn end(&self, backlog: &mut Backlog) {
        self.inner.queue.take_rest(backlog);
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
