//! The process that is killed: writers that ask for everything there is to ask for, each one thing
//! at a time, and say what was acknowledged as soon as it was.

use std::collections::{BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use procession::*;
use serde_json::json;

use super::line::{Dice, Done, Held, Line, Op, Orders, Start, Task, WRITERS};
use super::work::{
    Say, brief, builder, effect_scope, home, moved_scope, request, scope, signal_payload,
    wake_scope,
};

/// The variable in which a child finds its orders.
pub(crate) const ORDERS: &str = "PROCESSION_CRASH_ORDERS";

/// A pipe to the parent: one line is one write.
pub(crate) fn mouth() -> Say {
    let mut pipe = OpenOptions::new().write(true).open("/dev/stdout").unwrap();
    // The test harness has begun a line of its own.
    pipe.write_all(b"\n").unwrap();
    let pipe: Mutex<File> = Mutex::new(pipe);
    Arc::new(move |line| {
        let mut text = serde_json::to_string(&line).unwrap();
        text.push('\n');
        pipe.lock().unwrap().write_all(text.as_bytes()).unwrap();
    })
}

/// Runs until it is killed.
pub(crate) async fn run(orders: Orders) {
    let say = mouth();
    say(Line::Opening);
    let supervisor = match builder(&orders.dir, Arc::clone(&say)).open().await {
        Ok(supervisor) => supervisor,
        Err(error) => {
            say(Line::Bad {
                what: format!("open: {error}"),
            });
            return;
        }
    };
    say(Line::Open);
    let sweep = {
        let (supervisor, say) = (supervisor.clone(), Arc::clone(&say));
        tokio::spawn(async move {
            match supervisor.recover().await {
                Ok(_) => say(Line::Recovered),
                Err(error) => say(Line::Bad {
                    what: format!("recover: {error}"),
                }),
            }
        })
    };
    if orders.recover_first {
        sweep.await.unwrap();
    }
    let mut dice = Dice::new(orders.seed);
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let held = orders.held.iter().filter(|(of, _)| *of == number);
        let held = held.map(|(_, held)| held.clone());
        let mut writer = Writer {
            number,
            round: orders.round,
            dir: orders.dir.clone(),
            dice: Dice::new(dice.next()),
            say: Arc::clone(&say),
            supervisor: supervisor.clone(),
            processes: supervisor.processes(),
            effects: supervisor.journaled_effects(),
            agenda: VecDeque::new(),
            held: held.collect(),
            made: 0,
            numbers: 0,
        };
        for (_, op) in orders.repeat.iter().filter(|(of, _)| *of == number) {
            writer.agenda.push_back(op.clone());
        }
        writers.spawn(async move { writer.run().await });
    }
    while let Some(ended) = writers.join_next().await {
        say(Line::Bad {
            what: format!("a writer ended: {ended:?}"),
        });
    }
}

struct Writer {
    number: usize,
    round: u64,
    dir: std::path::PathBuf,
    dice: Dice,
    say: Say,
    supervisor: Supervisor,
    processes: Processes,
    effects: JournaledEffects,
    /// What is to be done next, where it has been decided already.
    agenda: VecDeque<Op>,
    held: Vec<Held>,
    made: u64,
    numbers: u64,
}

impl Writer {
    async fn run(&mut self) {
        loop {
            let op = match self.agenda.pop_front() {
                Some(op) => op,
                None => self.choose().await,
            };
            (self.say)(Line::Try {
                writer: self.number,
                op: op.clone(),
            });
            match self.perform(&op).await {
                Ok(done) => {
                    (self.say)(Line::Ack {
                        writer: self.number,
                        done: done.clone(),
                    });
                    self.learn(&op, &done);
                }
                Err(error) => {
                    (self.say)(Line::Bad {
                        what: format!("{op:?}: {error}"),
                    });
                    return;
                }
            }
        }
    }

    async fn perform(&self, op: &Op) -> Result<Done> {
        let done = self.ask(op).await;
        match done {
            Err(Error::AlreadyTerminal { status, .. }) => Ok(Done::Ended { status }),
            other => other,
        }
    }

    async fn ask(&self, op: &Op) -> Result<Done> {
        let processes = &self.processes;
        Ok(match op {
            Op::Start(start) => {
                let record = processes
                    .start(
                        request(start),
                        self.controller(&start.id, "start", start.journaled),
                    )
                    .await?;
                Done::Started {
                    incarnation: record.incarnation,
                }
            }
            Op::Append {
                id,
                event_type,
                number,
                replay_key,
            } => {
                let payload = json!({ "n": number, "text": format!("number {number}") });
                let request = ProcessEventAppendRequest::new(event_type, payload)
                    .with_replay_key(replay_key.clone());
                event(processes.append_event(id, request).await?)
            }
            Op::Signal {
                id,
                number,
                journaled,
                by_session,
            } => {
                let request = ProcessEventAppendRequest::signal("go", signal_payload(*number));
                let what = format!("signal {number}");
                let controller = self.controller(id, &what, *journaled);
                if let Some(session) = by_session {
                    let session = self.supervisor.session(scope(session)).processes();
                    let signal_id = format!("id-{number}");
                    let signalled = session.signal(id, "go", signal_id, request, controller);
                    return signalled.await.map(event);
                }
                event(
                    processes
                        .signal(id, "go", format!("id-{number}"), request, controller)
                        .await?,
                )
            }
            Op::Cancel { id } => {
                let summary = processes
                    .cancel(id, self.controller(id, "cancel", false))
                    .await?;
                Done::Asked {
                    ended: summary.status.output().cloned(),
                }
            }
            Op::CancelAll { session } => {
                let what = format!("cancel all {}", self.numbers);
                let controller = self.controller(&home(self.number), &what, false);
                let summaries = match session {
                    Some(name) => {
                        let session = self.supervisor.session(scope(name)).processes();
                        session.cancel_all(controller).await?
                    }
                    None => processes.cancel_all(controller).await?,
                };
                let ended = summaries.into_iter().map(|summary| {
                    let output = summary.status.output().cloned();
                    (summary.process_id, output)
                });
                Done::AskedAll {
                    ended: ended.collect(),
                }
            }
            Op::DeleteSession { session } => {
                processes.delete_session(session).await?;
                Done::Fine
            }
            Op::Retarget { id, to } => {
                processes.retarget_wakes(id, Some(&scope(to))).await?;
                Done::Fine
            }
            Op::Await { id } => {
                let wait = Duration::from_millis(20);
                match processes.await_output_timeout(id, wait).await {
                    Ok(output) => Done::Output { output },
                    Err(Error::Timeout { .. }) => Done::Fine,
                    Err(error) => return Err(error),
                }
            }
            Op::Grant { id, scope: to } => {
                let descriptor = ProcessHandleDescriptor::label(to);
                processes.grant(&scope(to), id, descriptor).await?;
                Done::Fine
            }
            Op::Revoke { id, scope: from } => {
                processes.revoke(&scope(from), id).await?;
                Done::Fine
            }
            Op::Transfer { ids, from, to } => {
                processes.transfer(&scope(from), &scope(to), ids).await?;
                Done::Fine
            }
            Op::Refer { id, number } => {
                processes
                    .set_external_ref(id, json!({ "number": number }))
                    .await?;
                Done::Fine
            }
            Op::Complete {
                id,
                number,
                by_owner,
            } => {
                let authority = match by_owner {
                    Some(name) => CompletionAuthority::ExternalOwner {
                        granted_to: scope(name),
                    },
                    None => CompletionAuthority::Host { by: "ops".into() },
                };
                let output = ProcessAwaitOutput::success(json!({ "n": number }));
                processes.complete_external(id, output, authority).await?;
                Done::Fine
            }
            Op::Abandon { id } => {
                processes
                    .request_abandon(id, home(self.number), Some("no answer".into()))
                    .await?;
                Done::Fine
            }
            Op::AckWake {
                scope: of, wake_id, ..
            } => {
                processes.ack_wake(&scope(of), *wake_id).await?;
                Done::Fine
            }
            Op::Prune { batch, .. } => {
                let mut filter = ProcessListFilter::any();
                filter.labels.insert("batch".to_owned(), batch.clone());
                let selector = PruneSelector::older_than(u64::MAX).with_filter(filter);
                Done::Pruned {
                    report: processes.prune_where(&selector).await?,
                }
            }
        })
    }

    fn controller(&self, id: &str, what: &str, journaled: bool) -> ScopedEffectController<'_> {
        let scope = effect_scope(id, what);
        if journaled {
            ScopedEffectController::new(&self.effects, scope)
        } else {
            ScopedEffectController::inline(scope)
        }
    }

    fn learn(&mut self, op: &Op, done: &Done) {
        if let Op::Start(start) = op
            && start.round == self.round
        {
            self.held.push(Held {
                id: start.id.clone(),
                round: start.round,
                disposition: start.disposition,
                scopes: BTreeSet::from([home(self.number)]),
                referred: false,
                cancelled: false,
            });
            return;
        }
        if let Op::DeleteSession { session } = op {
            for held in &mut self.held {
                held.scopes.remove(session);
            }
        }
        let over = matches!(done, Done::Ended { .. } | Done::Output { .. })
            || matches!(
                op,
                Op::Complete { .. } | Op::Abandon { .. } | Op::Prune { .. }
            );
        for id in op.ids() {
            let Some(at) = self.held.iter().position(|held| held.id == id) else {
                continue;
            };
            let held = &mut self.held[at];
            match op {
                Op::Grant { scope, .. } => drop(held.scopes.insert(scope.clone())),
                Op::Revoke { scope, .. } => drop(held.scopes.remove(scope)),
                Op::Transfer { from, to, .. } => {
                    held.scopes.remove(from);
                    held.scopes.insert(to.clone());
                }
                Op::Refer { .. } => held.referred = true,
                Op::Cancel { .. } => held.cancelled = true,
                _ => {}
            }
            if over {
                self.held.swap_remove(at);
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.round * 1_000_000 + self.number as u64 * 10_000 + self.numbers
    }

    fn start(&mut self, disposition: RecoveryDisposition, batch: Option<&str>) -> Start {
        self.made += 1;
        let dice = &mut self.dice;
        let rerunnable = disposition == RecoveryDisposition::Rerunnable;
        let task = match disposition {
            RecoveryDisposition::ExternallyOwned => Task::default(),
            _ => Task {
                steps: u32::try_from(dice.below(5)).unwrap(),
                pause_ms: dice.below(8),
                asks: dice.chance(25),
                waits: dice.chance(30),
                kid: dice.chance(15),
                fails: if rerunnable && dice.chance(30) {
                    u32::try_from(dice.below(4)).unwrap()
                } else {
                    0
                },
                panics: dice.chance(5),
                says_done: dice.chance(15),
                command: batch.is_none() && dice.chance(12),
            },
        };
        Start {
            id: format!("r{}-w{}-{}", self.round, self.number, self.made),
            writer: self.number,
            round: self.round,
            disposition,
            task,
            batch: batch.map(str::to_owned),
            journaled: batch.is_none() && self.dice.chance(25),
            dir: self.dir.clone(),
        }
    }

    /// A few processes that are made, ended, and pruned together.
    fn plan_batch(&mut self) {
        let batch = format!("b{}-{}-{}", self.round, self.number, self.made);
        let mut ids = Vec::new();
        let mut events = 0;
        for _ in 0..1 + self.dice.below(3) {
            let start = self.start(RecoveryDisposition::ExternallyOwned, Some(&batch));
            let id = start.id.clone();
            self.agenda.push_back(Op::Start(Box::new(start)));
            for _ in 0..self.dice.below(3) {
                let number = self.number();
                self.agenda.push_back(append(&id, "note", number, None));
                events += 1;
            }
            let number = self.number();
            self.agenda.push_back(Op::Complete {
                id: id.clone(),
                number,
                by_owner: None,
            });
            events += 1;
            ids.push(id);
        }
        self.agenda.push_back(Op::Prune { batch, ids, events });
    }

    async fn choose(&mut self) -> Op {
        if self.dice.chance(8)
            && let Some(op) = self.some_wake().await
        {
            return op;
        }
        if self.held.len() < 3 || self.dice.chance(20) {
            if self.dice.chance(20) {
                self.plan_batch();
            } else {
                let disposition = match self.dice.below(10) {
                    0..4 => RecoveryDisposition::Rerunnable,
                    4..7 => RecoveryDisposition::OwnerBound,
                    _ => RecoveryDisposition::ExternallyOwned,
                };
                let start = self.start(disposition, None);
                let external = disposition == RecoveryDisposition::ExternallyOwned;
                let id = start.id.clone();
                self.agenda.push_back(Op::Start(Box::new(start)));
                if external && self.dice.chance(30) {
                    let to = moved_scope(self.round, self.number);
                    self.agenda.push_back(Op::Retarget { id, to });
                }
            }
            return self.agenda.pop_front().unwrap();
        }
        let at = usize::try_from(self.dice.below(self.held.len() as u64)).unwrap();
        self.about(at)
    }

    async fn some_wake(&self) -> Option<Op> {
        let round = self.held.first().map_or(self.round, |held| held.round);
        let name = wake_scope(round, self.number);
        let pending = self.processes.wakes(&scope(&name)).await.ok()?;
        let wake = pending.into_iter().next()?;
        Some(Op::AckWake {
            scope: name,
            wake_id: wake.wake_id,
            id: wake.process_id,
            sequence: wake.sequence,
        })
    }

    /// Something about one process that it holds.
    fn about(&mut self, at: usize) -> Op {
        let number = self.number();
        let external = self.held[at].disposition == RecoveryDisposition::ExternallyOwned;
        let id = self.held[at].id.clone();
        let other = match self.dice.below(4) {
            0 | 1 => format!("{}/{}", home(self.number), self.dice.below(2)),
            _ => brief(self.number),
        };
        if let Some(op) = self.about_all() {
            return op;
        }
        let scopes = self.held[at].scopes.clone();
        match self.dice.below(100) {
            0..18 => append(&id, "note", number, None),
            18..30 => append(&id, "note", number, Some(format!("key-{number}"))),
            30..36 => append(&id, "ask", number, None),
            36..40 if !scopes.is_empty() => Op::Signal {
                id,
                number,
                journaled: false,
                by_session: scopes.into_iter().next(),
            },
            36..48 => Op::Signal {
                id,
                number,
                journaled: self.dice.chance(40),
                by_session: None,
            },
            48..56 if !scopes.contains(&other) => Op::Grant { id, scope: other },
            56..62 if !scopes.is_empty() => Op::Revoke {
                id,
                scope: scopes.into_iter().next().unwrap(),
            },
            62..72 if !scopes.is_empty() => {
                let from = scopes.into_iter().next().unwrap();
                self.transfer(from, other)
            }
            72..77 if !self.held[at].referred => Op::Refer { id, number },
            77..84 if !self.held[at].cancelled => Op::Cancel { id },
            84..87 => Op::Abandon { id },
            87..94 if external => Op::Complete {
                id,
                number,
                by_owner: scopes.into_iter().next(),
            },
            94.. if external => Op::Complete {
                id,
                number,
                by_owner: None,
            },
            _ if external => append(&id, "note", number, None),
            _ => Op::Await { id },
        }
    }

    /// Now and then something about many at once.
    fn about_all(&mut self) -> Option<Op> {
        let session = brief(self.number);
        match self.dice.below(200) {
            0 => Some(Op::CancelAll { session: None }),
            1..5 => Some(Op::CancelAll {
                session: Some(session),
            }),
            5..11 => Some(Op::DeleteSession { session }),
            _ => None,
        }
    }

    /// Everything that stands in one scope goes to another, in one commit.
    fn transfer(&self, from: String, to: String) -> Op {
        let to = if from == to { home(self.number) } else { to };
        let ids = self
            .held
            .iter()
            .filter(|held| held.scopes.contains(&from) && !held.scopes.contains(&to))
            .map(|held| held.id.clone())
            .collect::<Vec<_>>();
        if ids.is_empty() || from == to {
            let id = self.held[0].id.clone();
            return Op::Await { id };
        }
        Op::Transfer { ids, from, to }
    }
}

fn append(id: &str, event_type: &str, number: u64, replay_key: Option<String>) -> Op {
    Op::Append {
        id: id.to_owned(),
        event_type: event_type.to_owned(),
        number,
        replay_key,
    }
}

fn event(event: ProcessEvent) -> Done {
    Done::Event {
        sequence: event.sequence,
        payload: event.payload,
    }
}
