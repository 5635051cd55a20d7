//! Two operating-system processes race to open one store: one wins, the other is told so at once,
//! and after the winner was killed the next open succeeds.
//!
//! This binary runs itself again as each of the two.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    reason = "tests say what they expect by panicking, in their helpers too"
)]

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use procession::*;

const ROUNDS: u32 = 200;
/// Within this the loser has its answer.
const BUSY_MAX: Duration = Duration::from_secs(1);
/// Within this the store can be opened after its owner was killed.
const REOPEN_MAX: Duration = Duration::from_secs(2);

/// The variable in which a contestant finds the store.
const STORE: &str = "PROCESSION_RACE_STORE";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// Not a test: one of the two. A line on its input is the start; its answer is a line on its output.
#[test]
fn contestant() {
    let Ok(store) = std::env::var(STORE) else {
        return;
    };
    let mut out = OpenOptions::new().write(true).open("/dev/stdout").unwrap();
    let runtime = runtime();
    let mut say = |line: String| out.write_all(format!("\n{line}\n").as_bytes()).unwrap();
    say("answer ready".to_owned());
    let mut winner = None;
    for _ in std::io::stdin().lock().lines() {
        let began = Instant::now();
        let opened = runtime.block_on(Supervisor::builder(&store).open());
        let took_ms = began.elapsed().as_millis();
        match opened {
            Ok(supervisor) => {
                winner = Some(supervisor);
                say(format!("answer won {took_ms}"));
            }
            Err(Error::StoreBusy { .. }) => say(format!("answer busy {took_ms}")),
            Err(error) => say(format!("answer {error}")),
        }
    }
    drop(winner);
}

struct Contestant {
    child: Child,
    starter: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Contestant {
    fn new(store: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "contestant", "--nocapture", "--test-threads=1"])
            .env(STORE, store)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let starter = child.stdin.take().unwrap();
        let answers = BufReader::new(child.stdout.take().unwrap());
        let mut new = Self {
            child,
            starter,
            answers,
        };
        assert_eq!(new.answer(), "ready");
        new
    }

    fn start(&mut self) {
        self.starter.write_all(b"go\n").unwrap();
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.answers.read_line(&mut line).unwrap(), 0, "it is gone");
            if let Some(answer) = line.strip_prefix("answer ") {
                return answer.trim_end().to_owned();
            }
        }
    }

    /// Whether it won, and how long it took to know.
    fn result(&mut self) -> (bool, Duration) {
        let answer = self.answer();
        let (what, took_ms) = answer.split_once(' ').unwrap();
        assert!(what == "won" || what == "busy", "{answer}");
        let took = Duration::from_millis(took_ms.parse().expect(&answer));
        (what == "won", took)
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        // SIGKILL: what it had open is let go of by the system and by nobody else.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn of_two_that_open_one_wins_and_after_its_death_the_next_open_succeeds() {
    let place = tempfile::tempdir().unwrap();
    let store = place.path().join("store");
    let runtime = runtime();
    let mut pair = [Contestant::new(&store), Contestant::new(&store)];
    let mut won = [0_u32; 2];
    for round in 0..ROUNDS {
        let first = usize::try_from(round % 2).unwrap();
        pair[first].start();
        pair[1 - first].start();
        let results = [pair[0].result(), pair[1].result()];
        let winners = results.iter().filter(|(won, _)| *won).count();
        assert_eq!(winners, 1, "round {round}: {results:?}");
        let winner = usize::from(results[1].0);
        let (_, told_after) = results[1 - winner];
        assert!(told_after < BUSY_MAX, "round {round}: {told_after:?}");
        won[winner] += 1;

        // The winner is killed; the loser takes part in the next round.
        let killed = std::mem::replace(&mut pair[winner], Contestant::new(&store));
        drop(killed);
        let began = Instant::now();
        let supervisor = runtime
            .block_on(Supervisor::builder(&store).open())
            .unwrap();
        let took = began.elapsed();
        assert!(took < REOPEN_MAX, "round {round}: {took:?}");
        let report = runtime
            .block_on(supervisor.shutdown(ShutdownOptions::default()))
            .unwrap();
        assert_eq!(report, ShutdownReport::default());
    }
    assert!(won.iter().all(|won| *won > 0), "it was a race: {won:?}");
}
