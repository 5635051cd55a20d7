//! Real kills: another process writes, this one ends it at some moment and looks.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use super::super::super::clock::SystemClock;
use super::super::super::kv::Kv;
use super::super::super::kv_laws::{Model, XorShift, commit};
use super::super::{Options, SledKv};

const DIRECTORY: &str = "PROCESSION_KILLED_STORE";
const SEED: u64 = 0x5851_F42D_4C95_7F2D;

pub(super) fn busy_options() -> Options {
    let mut options = Options::new(Arc::new(SystemClock::default()));
    options.bounds.drain_interval = Duration::from_millis(3);
    options
}

/// The history up to a commit: every commit of it is a group of its own.
pub(super) fn history(commits: u64) -> (Model, XorShift) {
    let mut model = Model::default();
    let mut random = XorShift(SEED);
    for _ in 0..commits {
        model.step(&mut random);
    }
    (model, random)
}

#[test]
#[ignore = "what the test below kills"]
fn the_victim() {
    let path = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let kv = SledKv::open(&path, busy_options()).unwrap();
    let commits = kv.view().unwrap().commit();
    let (mut model, mut random) = history(commits);
    loop {
        println!("acknowledged {}", commit(&kv, model.step(&mut random)));
    }
}

/// Runs the victim until it has acknowledged so much, and kills it then.
fn kill_after(store: &Path, acknowledgements: u64) -> u64 {
    let mut victim = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::sled_kv::tests::kill::the_victim"])
        .args(["--ignored", "--nocapture"])
        .env(DIRECTORY, store)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut last = 0;
    let mut seen = 0;
    for line in BufReader::new(victim.stdout.take().unwrap()).lines() {
        // The harness puts its own text before the first one.
        if let Some((_, number)) = line.unwrap().split_once("acknowledged ") {
            last = number.parse().unwrap();
            seen += 1;
        }
        if seen == acknowledgements {
            // What was printed before the kill is still read.
            victim.kill().unwrap();
        }
    }
    victim.wait().unwrap();
    last
}

#[test]
fn what_was_acknowledged_survives_kills() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    for acknowledgements in [1, 40, 7, 333, 100, 150, 61, 500] {
        let acknowledged = kill_after(&store, acknowledgements);
        let kv = SledKv::open(&store, busy_options()).unwrap();
        let view = kv.view().unwrap();
        assert!(
            view.commit() >= acknowledged,
            "{} of {acknowledged}",
            view.commit()
        );
        assert!(view.commit() <= acknowledged + 1);
        history(view.commit()).0.check(&*view);
        // Dropped: the next victim replays.
    }
    let kv = SledKv::open(&store, busy_options()).unwrap();
    let model = history(kv.view().unwrap().commit()).0;
    kv.drain().unwrap();
    kv.close().unwrap();
    super::audit::audit(&store, &model);
}
