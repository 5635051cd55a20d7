//! What a runtime with many parked processes costs while nothing happens.

use std::time::{Duration, Instant};

use serde_json::json;

use super::setup::{
    MAKERS, PASSIVATED_AFTER, close, drain, each, external, open, place, rounded, runtime, start,
};
use super::{Ask, print};

const PARKED: u64 = 100_000;
const WATCHED: Duration = Duration::from_secs(10);
/// What the system counts processor time in, for every program, on every machine it matters on.
const TICKS_PER_SECOND: f64 = 100.0;

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        let place = place(ask);
        let supervisor = open(place.path()).await;
        let processes = supervisor.processes();
        let parking = move |number: u64| {
            let processes = processes.clone();
            let request = external(format!("p-{number}"), &format!("s-{}", number / 50));
            async move { start(&processes, request).await }
        };
        each(MAKERS, 0..PARKED, parking).await;
        drain(&supervisor).await;
        tokio::time::sleep(PASSIVATED_AFTER).await;
        let (began, before, stats) = (Instant::now(), ticks(), supervisor.stats());
        tokio::time::sleep(WATCHED).await;
        let (elapsed, after) = (began.elapsed().as_secs_f64(), ticks());
        let share = before
            .zip(after)
            .map(|(before, after)| (after - before) / TICKS_PER_SECOND / elapsed);
        let now = supervisor.stats();
        print(
            &json!({ "figure": "idle", "parked": PARKED, "seconds": rounded(elapsed),
            "cpu_percent": share.map(|share| rounded(share * 100.0)),
            "commits": now.commits - stats.commits,
            "index_keys": now.index_keys_written - stats.index_keys_written }),
        );
        close(&supervisor).await;
    });
}

/// Processor time of this program so far, where the system tells.
fn ticks() -> Option<f64> {
    let told = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name, in parentheses, may hold anything; user and system time are 14th and 15th.
    let (_, fields) = told.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<f64>);
    Some(times.next()?.ok()? + times.next()?.ok()?)
}
