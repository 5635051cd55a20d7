//! Nothing is lost and nothing runs twice, whenever the runtime is killed.
//!
//! This binary runs itself again as the child that is killed; see `crash/kill.rs` for who kills,
//! `crash/child.rs` for who is killed, and `crash/check.rs` for what must hold after that.
#![cfg(all(feature = "command", target_os = "linux"))]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests say what they expect by panicking, in their helpers too"
)]

#[path = "crash/check.rs"]
mod check;
#[path = "crash/child.rs"]
mod child;
#[path = "crash/clocks.rs"]
mod clocks;
mod common;
#[path = "crash/facts.rs"]
mod facts;
#[path = "crash/hosts.rs"]
mod hosts;
#[path = "crash/kill.rs"]
mod kill;
#[path = "crash/line.rs"]
mod line;
#[path = "crash/outcome.rs"]
mod outcome;
#[path = "crash/stopped.rs"]
mod stopped;
#[path = "crash/survivors.rs"]
mod survivors;
#[path = "crash/work.rs"]
mod work;

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use kill::{Killer, Tally, every_operation};

/// `PROCESSION_SEED` repeats a run as far as timing allows.
fn seed() -> u64 {
    match std::env::var("PROCESSION_SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
            now.as_secs() << 20 | u64::from(now.subsec_micros())
        }
    }
}

fn kills(kills: u64) -> Tally {
    let seed = seed();
    eprintln!("PROCESSION_SEED={seed} PROCESSION_KILLS={kills}");
    let began = Instant::now();
    let tally = Killer::new(seed).kills(kills);
    eprintln!("{:.1} s: {tally:#?}", began.elapsed().as_secs_f64());
    assert!(tally.kills >= kills);
    // That it all happened, and is not only not wrong.
    assert!(tally.in_open * 10 >= tally.kills, "{tally:?}");
    assert!(tally.in_recovery * 10 >= tally.kills, "{tally:?}");
    assert!(tally.survivors > 0, "{tally:?}");
    assert_eq!(every_operation(&tally), [""; 0], "{tally:?}");
    assert!(tally.acks.values().sum::<u64>() >= 10 * kills, "{tally:?}");
    assert!(tally.emitted >= kills, "{tally:?}");
    assert!(tally.landed + tally.lost >= kills, "{tally:?}");
    assert!(tally.reran >= kills / 4, "{tally:?}");
    assert!(tally.swept >= kills / 4, "{tally:?}");
    assert!(tally.reconciled >= kills / 10, "{tally:?}");
    assert!(tally.owner_bound_ran >= kills, "{tally:?}");
    tally
}

#[test]
fn a_hundred_kills_lose_nothing_and_run_nothing_twice() {
    kills(100);
}

/// `PROCESSION_KILLS` says how many; 2,000 by default.
#[test]
#[ignore = "takes minutes: the ordinary suite kills a hundred times"]
fn as_many_kills_as_are_asked_for_lose_nothing_and_run_nothing_twice() {
    let asked = std::env::var("PROCESSION_KILLS");
    kills(asked.map_or(2_000, |kills| kills.parse().unwrap()));
}

/// Not a test: the process that the others kill.
#[test]
fn child() {
    let Ok(orders) = std::env::var(child::ORDERS) else {
        return;
    };
    let orders = serde_json::from_str(&orders).unwrap();
    in_runtime(child::run(orders));
}

#[test]
fn a_runtime_that_was_stopped_too_long_fences_itself_and_goes_on() {
    stopped::a_runtime_that_was_stopped_too_long_fences_itself_and_goes_on();
}

/// Not a test: the process that is stopped.
#[test]
fn stopped_child() {
    if let Ok(dir) = std::env::var(stopped::PLACE) {
        in_runtime(stopped::run(dir.into()));
    }
}

fn in_runtime(work: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.unwrap().block_on(work);
}
