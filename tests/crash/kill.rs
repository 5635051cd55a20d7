//! The one who kills.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use procession::*;

use super::check::{Found, check};
use super::child::ORDERS;
use super::facts::{Facts, Presence};
use super::line::{Dice, Held, Line, Op, Orders, WRITERS};
use super::survivors;
use super::work::{builder, runs};

/// How long a child may take to get where it is to be killed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A store is given up after so many kills, so that each check stays short.
const KILLS_PER_STORE: u64 = 20;

/// How long the writers are let work, at most: a build with debug assertions is slower.
const WORK_US_MAX: u64 = if cfg!(debug_assertions) {
    250_000
} else {
    60_000
};

/// How many processes of the killed child a writer goes on with.
const HELD_MAX: usize = 4;

/// Starts this very test binary again, as another process.
pub(crate) fn again(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    command
}

/// A child that is ended with this value.
pub(crate) struct Victim {
    child: Child,
    heard: Receiver<Line>,
}

impl Victim {
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stdout = child.stdout.take().unwrap();
        let (say, heard) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                // Cut off in the middle, or said by the test harness.
                let Ok(line) = serde_json::from_str(&line.unwrap_or_default()) else {
                    continue;
                };
                if say.send(line).is_err() {
                    break;
                }
            }
        });
        Self { child, heard }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Takes in lines until one is what is waited for.
    pub(crate) fn until(&self, lines: &mut Vec<(Instant, Line)>, wanted: impl Fn(&Line) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = match self.heard.recv_timeout(left) {
                Ok(line) => line,
                Err(RecvTimeoutError::Timeout) => panic!("the child hangs: {:?}", lines.last()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the child has gone: {:?}", lines.last())
                }
            };
            if let Line::Bad { what } = &line {
                panic!("the child says: {what}");
            }
            let found = wanted(&line);
            lines.push((Instant::now(), line));
            if found {
                return;
            }
        }
    }

    /// SIGKILL, and everything that it had said.
    pub(crate) fn kill(mut self) -> Vec<Line> {
        use std::os::unix::process::ExitStatusExt;
        self.child.kill().unwrap();
        let status = self.child.wait().unwrap();
        let rest: Vec<_> = self.heard.iter().collect();
        assert_eq!(
            status.signal(),
            Some(9),
            "it ended by itself: {:?}",
            rest.last()
        );
        rest
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        // Killed and reaped already, or a test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When a child is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Recovery,
    Work,
}

/// What came of it all.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) kills: u64,
    /// Kills before the store was open, and before the sweep at open was over.
    pub(crate) in_open: u64,
    pub(crate) in_recovery: u64,
    pub(crate) stores: u64,
    pub(crate) acks: std::collections::BTreeMap<&'static str, u64>,
    pub(crate) emitted: u64,
    pub(crate) landed: u64,
    pub(crate) lost: u64,
    pub(crate) processes: u64,
    pub(crate) events: u64,
    /// Processes that ran more than once, those that were abandoned by a sweep, by request.
    pub(crate) reran: u64,
    pub(crate) swept: u64,
    pub(crate) reconciled: u64,
    pub(crate) owner_bound_ran: u64,
    /// Processes of killed runtimes' commands that recovery met alive.
    pub(crate) survivors: u64,
}

impl Tally {
    /// Aims at the open and at recovery until one in ten hit each.
    fn phase(&self) -> Phase {
        let due = self.kills + 10;
        if self.in_open * 10 < due {
            Phase::Open
        } else if self.in_recovery * 10 < due {
            Phase::Recovery
        } else {
            Phase::Work
        }
    }

    fn is_done(&self, kills: u64) -> bool {
        self.kills >= kills
            && self.in_open * 10 >= self.kills
            && self.in_recovery * 10 >= self.kills
    }
}

/// How long something takes, so that a kill can be aimed into the middle of it.
#[derive(Debug, Clone, Copy)]
struct Usual(Duration);

impl Usual {
    fn learn(&mut self, took: Duration) {
        self.0 = (self.0 * 3 + took) / 4;
    }

    fn within(self, dice: &mut Dice) -> Duration {
        let us = u64::try_from(self.0.as_micros()).unwrap();
        Duration::from_micros(dice.below(us.max(1)))
    }
}

/// A store, and what is known about it. Kept where it is if a check of it fails.
struct Ground {
    dir: PathBuf,
    facts: Facts,
}

impl Ground {
    fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("procession-crash-")
            .tempdir()
            .unwrap()
            .keep();
        std::fs::create_dir(dir.join("runs")).unwrap();
        Self {
            dir,
            facts: Facts::default(),
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the store is left in {}", self.dir.display());
        } else {
            std::fs::remove_dir_all(&self.dir).unwrap();
        }
    }
}

pub(crate) struct Killer {
    dice: Dice,
    open: Usual,
    sweep: Usual,
    tally: Tally,
    runtime: tokio::runtime::Runtime,
}

impl Killer {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            open: Usual(Duration::from_millis(10)),
            sweep: Usual(Duration::from_millis(10)),
            tally: Tally::default(),
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap(),
        }
    }

    pub(crate) fn kills(mut self, kills: u64) -> Tally {
        let mut ground: Option<Ground> = None;
        for kill in 0.. {
            if self.tally.is_done(kills) {
                break;
            }
            if kill % KILLS_PER_STORE == 0
                && let Some(ground) = ground.take()
            {
                self.settle(ground);
            }
            let ground = ground.get_or_insert_with(Ground::new);
            self.kill(kill, ground);
        }
        if let Some(ground) = ground.take() {
            self.settle(ground);
        }
        self.tally
    }

    fn kill(&mut self, kill: u64, ground: &mut Ground) {
        let phase = self.tally.phase();
        let repeat = std::mem::take(&mut ground.facts.pending)
            .into_iter()
            .filter(|(_, op)| op.may_repeat())
            .collect();
        let orders = Orders {
            dir: ground.dir.clone(),
            seed: self.dice.next(),
            round: kill,
            recover_first: phase == Phase::Recovery,
            held: held(&ground.facts),
            repeat,
        };
        let mut command = again("child");
        command.env(ORDERS, serde_json::to_string(&orders).unwrap());
        let victim = Victim::spawn(command);
        let mut lines = Vec::new();
        victim.until(&mut lines, |line| *line == Line::Opening);
        let moment = match phase {
            Phase::Open => self.open.within(&mut self.dice),
            Phase::Recovery | Phase::Work => {
                victim.until(&mut lines, |line| *line == Line::Open);
                match phase {
                    Phase::Recovery => self.sweep.within(&mut self.dice),
                    _ => Duration::from_micros(2_000 + self.dice.below(WORK_US_MAX)),
                }
            }
        };
        // The moment of the kill: the one wait here that is for no event.
        std::thread::sleep(moment);
        let rest = victim.kill();
        self.note_times(phase, &lines, &rest);
        self.tally.kills += 1;
        for line in lines.into_iter().map(|(_, line)| line).chain(rest) {
            ground.facts.hear(line);
        }
        let found = self.checked(ground);
        self.tally.landed += found.landed;
        self.tally.lost += found.lost;
    }

    fn note_times(&mut self, phase: Phase, lines: &[(Instant, Line)], rest: &[Line]) {
        let at = |wanted: &Line| {
            let mut found = lines.iter().filter(|(_, line)| line == wanted);
            found.next().map(|(at, _)| *at)
        };
        let (opening, open) = (at(&Line::Opening), at(&Line::Open));
        if let (Some(opening), Some(open)) = (opening, open) {
            self.open.learn(open - opening);
        }
        if open.is_none() && !rest.contains(&Line::Open) {
            self.tally.in_open += 1;
        } else if phase == Phase::Recovery && !rest.contains(&Line::Recovered) {
            self.tally.in_recovery += 1;
            // Aimed too short is learnt from those that were over in time.
            self.sweep.0 += self.sweep.0 / 16;
        } else if phase == Phase::Recovery {
            self.sweep.0 -= self.sweep.0 / 3;
        }
    }

    fn checked(&mut self, ground: &mut Ground) -> Found {
        let (dir, facts) = (ground.dir.as_path(), &mut ground.facts);
        self.runtime.block_on(check(dir, facts))
    }

    /// Lets a store come to rest: everything that runs here comes to its end, and what was
    /// acknowledged still stands.
    fn settle(&mut self, mut ground: Ground) {
        ground.facts.pending.clear();
        let heard = self.runtime.block_on(finish(&ground.dir));
        for line in heard {
            ground.facts.hear(line);
        }
        let found = self.checked(&mut ground);
        survivors::none_is_left(&ground.dir, ground.facts.processes.values());
        let tally = &mut self.tally;
        tally.stores += 1;
        tally.processes += found.processes;
        tally.events += found.events;
        tally.emitted += ground.facts.emitted;
        for (name, acks) in &ground.facts.acks {
            *tally.acks.entry(name).or_default() += acks;
        }
        for fact in ground.facts.processes.values() {
            let Some(record) = &fact.record else {
                assert_ne!(fact.presence, Presence::There);
                continue;
            };
            let engine = fact.start.disposition != RecoveryDisposition::ExternallyOwned;
            let over = record.status.terminal().is_some();
            if fact.presence == Presence::There && (engine || record.abandon_request.is_some()) {
                assert!(over, "V1: {record:?}");
            }
            tally.survivors += survivors::met(fact);
            let runs = runs(&ground.dir, &fact.start.id).len() as u64;
            tally.reran += u64::from(runs > 1 && record.recoveries > 0);
            if fact.start.disposition == RecoveryDisposition::OwnerBound {
                tally.owner_bound_ran += runs;
            }
            if let Some(ProcessAwaitOutput::Abandoned { evidence }) = record.status.output() {
                match evidence.writer {
                    AbandonWriter::Sweep => tally.swept += 1,
                    AbandonWriter::ReconciledRequest => tally.reconciled += 1,
                    AbandonWriter::OwnerDrain => {}
                }
            }
        }
    }
}

/// What still runs, for the next child to go on with: the last few of each writer.
fn held(facts: &Facts) -> Vec<(usize, Held)> {
    let mut held = Vec::new();
    for writer in 0..WRITERS {
        let running = facts.processes.values().filter(|fact| {
            let record = fact.record.as_ref();
            fact.start.writer == writer
                && fact.start.batch.is_none()
                && fact.presence == Presence::There
                && record.is_some_and(|record| record.status.terminal().is_none())
        });
        let mut running: Vec<_> = running.collect();
        running.sort_by_key(|fact| std::cmp::Reverse(fact.incarnation));
        held.extend(running.into_iter().take(HELD_MAX).map(|fact| {
            let record = fact.record.as_ref();
            let held = Held {
                id: fact.start.id.clone(),
                round: fact.start.round,
                disposition: fact.start.disposition,
                scopes: fact.scopes.clone(),
                referred: record.is_some_and(|record| record.external_ref.is_some()),
                cancelled: record.is_some_and(|record| record.cancel_request.is_some()),
            };
            (writer, held)
        }));
    }
    held
}

/// Opens the store as a host does, and waits until nothing is left to be done there.
async fn finish(dir: &Path) -> Vec<Line> {
    let (say, heard) = channel();
    let say = std::sync::Arc::new(move |line| {
        let _ = say.send(line);
    });
    let supervisor = builder(dir, say).open().await.unwrap();
    let processes = supervisor.processes();
    let running = processes.list(&ProcessListFilter::default()).await.unwrap();
    let awaited: Vec<_> = running
        .into_iter()
        .filter(|process| {
            process.disposition != RecoveryDisposition::ExternallyOwned
                || process.facets.abandon_requested
        })
        .map(|process| process.process_id)
        .collect();
    for ids in awaited.chunks(500) {
        processes.await_all(ids, Some(PATIENCE)).await.unwrap();
    }
    let kids = processes.list(&ProcessListFilter::default()).await.unwrap();
    for kid in kids.iter().filter(|kid| kid.parent.is_some()) {
        processes
            .await_output_timeout(&kid.process_id, PATIENCE)
            .await
            .unwrap();
    }
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
    heard.try_iter().collect()
}

/// The writers that got an answer to everything they are expected to ask for.
pub(crate) fn every_operation(tally: &Tally) -> Vec<&'static str> {
    let asked = Op::NAMES.into_iter();
    asked
        .filter(|name| !tally.acks.contains_key(name))
        .collect()
}
