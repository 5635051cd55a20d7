//! What is asked for on the command line.

use std::path::PathBuf;
use std::time::Duration;

use crate::systems::{Figure, System};

pub const HELP: &str = "\
The same durable work on Procession, on its peers and on the floor, in one run.

Usage: cargo run --release --manifest-path benches/peers/Cargo.toml -- [OPTIONS]

  --quick            5 rounds of 2 s each (about seven minutes) instead of 5 rounds of 30 s
  --rounds N         how many rounds
  --seconds N        how long each system is measured in a round
  --figure NAME      only append, start or lifecycle
  --callers N        only with so many callers
  --systems A,B,..   only these: procession, procession-each, floor, sled, sqlite, lash, lash-full,
                     duroxide
  --dir DIR          on which disk; by default the crate's target directory (a temporary directory
                     may be memory)
  --syncs            counts the data syncs of each system instead, with strace, which must be
                     installed: how the durabilities were checked

Work, from one closed loop per caller:
  append     an event of 200 bytes in the log of the caller's own process (1, 64 and 256 callers)
  start      registers a process of an external owner, with a grant (64 callers)
  lifecycle  start with a grant, claim, started, ten events, completed (64 callers)

procession emits a lifecycle's events without waiting for each one; procession-each waits until each
is durable, as lash's interface does. duroxide has no append to a log from outside; its start is the
message that asks for an orchestration, with no runtime at work; its lifecycle is an orchestration
with one activity, and no events.";

/// A run over many measurements.
#[derive(Debug, Clone)]
pub struct Args {
    pub rounds: usize,
    pub time: Duration,
    pub figure: Option<Figure>,
    pub callers: Option<usize>,
    pub systems: Option<Vec<System>>,
    pub dir: PathBuf,
}

/// One measurement, in a process of its own.
#[derive(Debug, Clone)]
pub struct One {
    pub figure: Figure,
    pub callers: usize,
    pub system: System,
    pub time: Duration,
    pub dir: PathBuf,
    /// Leave marks for the tracer.
    pub marks: bool,
}

#[derive(Debug, Clone)]
pub enum Task {
    Help,
    Measure(Args),
    Syncs(Args),
    One(One),
}

impl Args {
    pub fn parse(mut given: impl Iterator<Item = String>) -> Result<Task, String> {
        let mut args = Self {
            rounds: 5,
            time: Duration::from_secs(30),
            figure: None,
            callers: None,
            systems: None,
            dir: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target"),
        };
        let mut syncs = false;
        while let Some(arg) = given.next() {
            let mut value = || given.next().ok_or(format!("{arg} takes a value"));
            match arg.as_str() {
                "--help" | "-h" => return Ok(Task::Help),
                "--one" => return One::parse(given).map(Task::One),
                "--quick" => (args.rounds, args.time) = (5, Duration::from_secs(2)),
                "--rounds" => args.rounds = number::<usize>(&value()?)?.max(1),
                "--seconds" => args.time = seconds(&value()?)?,
                "--figure" => args.figure = Some(value()?.parse()?),
                "--callers" => args.callers = Some(number(&value()?)?),
                "--systems" => {
                    let systems: Result<_, _> = value()?.split(',').map(str::parse).collect();
                    args.systems = Some(systems?);
                }
                "--dir" => args.dir = PathBuf::from(value()?),
                "--syncs" => syncs = true,
                _ => return Err(format!("unknown argument {arg:?}")),
            }
        }
        Ok(if syncs {
            Task::Syncs(args)
        } else {
            Task::Measure(args)
        })
    }

    /// Whether a system takes part in a figure, and is asked for.
    pub fn wants(&self, figure: Figure, callers: usize, system: System) -> bool {
        system.does(figure)
            && self.figure.is_none_or(|only| only == figure)
            && self.callers.is_none_or(|only| only == callers)
            && self
                .systems
                .as_ref()
                .is_none_or(|only| only.contains(&system))
    }
}

impl One {
    /// The arguments that ask for this measurement.
    pub fn args(&self) -> Vec<String> {
        vec![
            "--one".to_owned(),
            self.figure.to_string(),
            self.callers.to_string(),
            self.system.to_string(),
            self.time.as_secs_f64().to_string(),
            self.dir.display().to_string(),
            self.marks.to_string(),
        ]
    }

    fn parse(mut given: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut value = || given.next().ok_or("--one takes six values".to_owned());
        Ok(Self {
            figure: value()?.parse()?,
            callers: number(&value()?)?,
            system: value()?.parse()?,
            time: seconds(&value()?)?,
            dir: PathBuf::from(value()?),
            marks: value()? == "true",
        })
    }
}

fn number<N: std::str::FromStr>(text: &str) -> Result<N, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

fn seconds(text: &str) -> Result<Duration, String> {
    Duration::try_from_secs_f64(number(text)?).map_err(|error| format!("{text:?}: {error}"))
}
