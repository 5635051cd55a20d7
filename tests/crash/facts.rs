//! What the parent knows: what was acknowledged to the children, and what it saw in the store after
//! each of them was killed. Neither may ever change again.

use std::collections::{BTreeMap, BTreeSet};

use procession::*;
use serde_json::Value;

use super::line::{Done, Line, Op, Start};
use super::work::{home, request, wake_scope};

/// Whether a process is in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Presence {
    /// Its start was asked for, and no answer came.
    Perhaps,
    There,
    /// It was never there, or it is asked for anew.
    Absent,
    Pruned,
}

/// What is known about one process.
#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) start: Start,
    pub(crate) request: ProcessStartRequest,
    pub(crate) presence: Presence,
    pub(crate) incarnation: Option<Incarnation>,
    pub(crate) scopes: BTreeSet<String>,
    /// Where its wakes go.
    pub(crate) wakes_to: String,
    /// Numbers that a host's event may bear, with the type of that event.
    pub(crate) tried: BTreeMap<u64, String>,
    /// Events that were acknowledged.
    pub(crate) acked: BTreeMap<u64, (String, Payload)>,
    /// The log as it was seen last.
    pub(crate) log: Vec<ObservedProcessEvent>,
    pub(crate) cancel_asked: bool,
    pub(crate) abandon_asked: bool,
    pub(crate) reference: Option<u64>,
    pub(crate) ended_as: Option<TerminalState>,
    pub(crate) output: Option<ProcessAwaitOutput>,
    /// Numbers of the signals whose outcomes were journaled.
    pub(crate) journaled_signals: Vec<u64>,
    pub(crate) start_journaled: bool,
    /// Ids of children whose start was acknowledged to it.
    pub(crate) kids: BTreeSet<String>,
    /// The record as it was seen last.
    pub(crate) record: Option<ProcessRecord>,
}

impl Fact {
    fn new(start: &Start) -> Self {
        Self {
            request: request(start),
            start: start.clone(),
            presence: Presence::Perhaps,
            incarnation: None,
            scopes: BTreeSet::from([home(start.writer)]),
            wakes_to: wake_scope(start.round, start.writer),
            tried: BTreeMap::new(),
            acked: BTreeMap::new(),
            log: Vec::new(),
            cancel_asked: false,
            abandon_asked: false,
            reference: None,
            ended_as: None,
            output: None,
            journaled_signals: Vec::new(),
            start_journaled: false,
            kids: BTreeSet::new(),
            record: None,
        }
    }

    fn acknowledge(&mut self, sequence: u64, event_type: &str, payload: &Payload) {
        let said = (event_type.to_owned(), payload.clone());
        let before = self.acked.insert(sequence, said.clone());
        assert!(
            before.is_none() || before == Some(said),
            "{}: event {sequence} was acknowledged as {before:?} and again as {event_type} {payload}",
            self.start.id
        );
    }

    fn ended(&mut self, output: &ProcessAwaitOutput) {
        self.ended_as = Some(output.state());
        let before = self.output.replace(output.clone());
        assert!(
            before.is_none() || before.as_ref() == Some(output),
            "{}: {before:?} was its outcome, and now it is {output:?}",
            self.start.id
        );
    }
}

/// Everything that is known about one store.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    pub(crate) processes: BTreeMap<String, Fact>,
    /// What each writer asked for and got no answer to.
    pub(crate) pending: BTreeMap<usize, Op>,
    /// Wakes that were acknowledged: scope, process, event.
    pub(crate) woken: BTreeSet<(String, String, u64)>,
    /// The store as a projector sees it that reads the change feed after each kill.
    pub(crate) projected: BTreeMap<String, ProcessRecord>,
    pub(crate) cursor: Option<ChangeCursor>,
    /// Acknowledgements by what was asked for.
    pub(crate) acks: BTreeMap<&'static str, u64>,
    /// Acknowledgements to engines.
    pub(crate) emitted: u64,
}

impl Facts {
    pub(crate) fn fact(&mut self, id: &str) -> &mut Fact {
        self.processes
            .get_mut(id)
            .unwrap_or_else(|| panic!("{id} was never asked for"))
    }

    /// Takes in what a child said.
    pub(crate) fn hear(&mut self, line: Line) {
        match line {
            Line::Opening | Line::Open | Line::Recovered | Line::Said { .. } => {}
            Line::Bad { what } => panic!("the child says: {what}"),
            Line::Try { writer, op } => {
                self.tried(&op);
                let before = self.pending.insert(writer, op);
                assert_eq!(before, None, "writer {writer} does one thing at a time");
            }
            Line::Ack { writer, done } => {
                let op = self.pending.remove(&writer).unwrap();
                *self.acks.entry(op.name()).or_default() += 1;
                self.acknowledged(&op, &done);
            }
            Line::Emitted {
                id,
                event_type,
                sequence,
                payload,
            } => {
                self.emitted += 1;
                // A child of a process has no fact of its own.
                if let Some(fact) = self.processes.get_mut(&id) {
                    fact.acknowledge(sequence, &event_type, &payload);
                }
            }
            Line::Kid { parent, id } => {
                self.fact(&parent).kids.insert(id);
            }
        }
    }

    fn tried(&mut self, op: &Op) {
        match op {
            Op::Start(start) => {
                let fact = self
                    .processes
                    .entry(start.id.clone())
                    .or_insert_with(|| Fact::new(start));
                if fact.presence == Presence::Absent {
                    fact.presence = Presence::Perhaps;
                }
            }
            Op::Append {
                id,
                event_type,
                number,
                ..
            } => {
                self.fact(id).tried.insert(*number, event_type.clone());
            }
            Op::Signal { id, number, .. } => {
                self.fact(id).tried.insert(*number, "signal.go".to_owned());
            }
            _ => {}
        }
    }

    fn acknowledged(&mut self, op: &Op, done: &Done) {
        if let (Done::Ended { status }, [id]) = (done, op.ids().as_slice()) {
            self.fact(id).ended_as = Some(*status);
            return;
        }
        match (op, done) {
            (Op::Start(start), Done::Started { incarnation }) => {
                let fact = self.fact(&start.id);
                assert!(
                    fact.incarnation.is_none_or(|known| known == *incarnation),
                    "{} was started twice",
                    start.id
                );
                fact.incarnation = Some(*incarnation);
                fact.presence = Presence::There;
                fact.start_journaled |= start.journaled;
            }
            (
                Op::Append {
                    id,
                    event_type,
                    number,
                    ..
                },
                Done::Event { sequence, payload },
            ) => {
                assert_eq!(payload["n"], *number);
                self.fact(id).acknowledge(*sequence, event_type, payload);
            }
            (
                Op::Signal {
                    id,
                    number,
                    journaled,
                    ..
                },
                Done::Event { sequence, payload },
            ) => {
                assert_eq!(payload["n"], *number);
                let fact = self.fact(id);
                fact.acknowledge(*sequence, "signal.go", payload);
                if *journaled {
                    fact.journaled_signals.push(*number);
                }
            }
            (Op::Cancel { id }, Done::Asked { ended }) => match ended {
                Some(output) => self.fact(id).ended(output),
                None => self.fact(id).cancel_asked = true,
            },
            (Op::CancelAll { .. }, Done::AskedAll { ended }) => {
                for (id, ended) in ended {
                    // A child of a process has no fact of its own.
                    match (self.processes.get_mut(id), ended) {
                        (Some(fact), Some(output)) => fact.ended(output),
                        (Some(fact), None) => fact.cancel_asked = true,
                        (None, _) => {}
                    }
                }
            }
            (Op::DeleteSession { session }, Done::Fine) => {
                for fact in self.processes.values_mut() {
                    fact.scopes.remove(session);
                }
            }
            (Op::Retarget { id, to }, Done::Fine) => self.fact(id).wakes_to = to.clone(),
            (Op::Await { id }, Done::Output { output }) => self.fact(id).ended(output),
            (Op::Await { .. }, Done::Fine) => {}
            (Op::Grant { .. } | Op::Revoke { .. } | Op::Transfer { .. }, Done::Fine) => {
                for id in op.ids() {
                    let fact = self.fact(id);
                    fact.scopes = scopes_after(&fact.scopes, op);
                }
            }
            (Op::Refer { id, number }, Done::Fine) => self.fact(id).reference = Some(*number),
            (Op::Complete { id, number, .. }, Done::Fine) => {
                let output = ProcessAwaitOutput::success(serde_json::json!({ "n": number }));
                self.fact(id).ended(&output);
            }
            (Op::Abandon { id }, Done::Fine) => self.fact(id).abandon_asked = true,
            (
                Op::AckWake {
                    scope,
                    id,
                    sequence,
                    ..
                },
                Done::Fine,
            ) => {
                self.woken.insert((scope.clone(), id.clone(), *sequence));
            }
            (Op::Prune { ids, events, .. }, Done::Pruned { report }) => {
                for id in ids {
                    self.fact(id).presence = Presence::Pruned;
                }
                let all = ids.len() as u64;
                let found = (report.pruned_processes, report.grants);
                assert_eq!(found, (all, all), "{op:?}: {report:?}");
                // Each may have been asked to cancel meanwhile, with all others.
                let expected = *events..=*events + all;
                assert!(
                    expected.contains(&report.pruned_events),
                    "{op:?}: {report:?}"
                );
            }
            (op, done) => panic!("{op:?} was answered with {done:?}"),
        }
    }
}

/// What a change of grants makes of those of a process.
pub(crate) fn scopes_after(scopes: &BTreeSet<String>, op: &Op) -> BTreeSet<String> {
    let mut scopes = scopes.clone();
    match op {
        Op::Grant { scope, .. } => {
            scopes.insert(scope.clone());
        }
        Op::Revoke { scope, .. } => {
            scopes.remove(scope);
        }
        Op::Transfer { from, to, .. } => {
            scopes.remove(from);
            scopes.insert(to.clone());
        }
        _ => {}
    }
    scopes
}

/// The number that a host's event bears.
pub(crate) fn number_of(payload: &Value) -> Option<u64> {
    payload.get("n").and_then(Value::as_u64)
}
