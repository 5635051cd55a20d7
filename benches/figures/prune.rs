//! Appends beside a prune, against the same appends without one.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use procession::{ProcessPruneReport, Supervisor};
use serde_json::json;

use super::setup::{
    MAKERS, append, close, complete, drain, each, external, figure, open, place, rounded, runtime,
    start, start_some,
};
use super::{Ask, load, print, syncs};

/// Ended processes that are pruned, and events of each beside its end.
const ENDED: u64 = 10_000;
const EVENTS: u64 = 10;
const CALLERS: usize = 64;
/// The part of the peak at which is appended.
const PACE: f64 = 0.5;
/// A sync of more than this is a long one.
const LONG: Duration = Duration::from_millis(10);

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(prune(ask));
}

async fn prune(ask: &Ask) {
    let place = place(ask);
    let supervisor = open(place.path()).await;
    end_some(&supervisor).await;
    start_some(&supervisor.processes(), "p", CALLERS).await;
    drain(&supervisor).await;
    let part = ask.seconds.div_f64(3.0);
    let appending = appends(&supervisor);
    let peak = load::run(CALLERS, part, appending, drain(&supervisor)).await;
    let pace = peak.per_second() * PACE;
    let (alone, disk) = paced(&supervisor, pace, tokio::time::sleep(part)).await;
    let more = json!({ "prune": false, "callers": CALLERS, "peak_per_second": peak.per_second().round(),
            "disk": disk });
    print(&figure("prune", &alone, more));
    let mut pruned = (
        ProcessPruneReport::default(),
        Duration::ZERO,
        Duration::ZERO,
    );
    let pruning = async { pruned = prune_all(&supervisor).await };
    let (beside, disk) = paced(&supervisor, pace, pruning).await;
    let (report, took, erased) = pruned;
    assert_eq!(report.pruned_processes, ENDED);
    let more = json!({ "prune": true, "callers": CALLERS, "pruned": report, "disk": disk,
        "prune_seconds": rounded(took.as_secs_f64()),
        "erased_after_seconds": rounded(erased.as_secs_f64()) });
    print(&figure("prune", &beside, more));
    let ratio = beside.quantile_us(999) as f64 / alone.quantile_us(999).max(1) as f64;
    print(&json!({ "ratio": "prune", "of": "p999_us", "to": "without", "value": rounded(ratio) }));
    close(&supervisor).await;
}

/// Appends at a pace, and what became of the journal's syncs meanwhile: the longest of them, what share of
/// the time was within syncs of more than ten milliseconds, whoever kept the disk busy, and the p99.9 of the
/// calls that had nothing to do with those. It tells what is slow for other reasons; it is no measure of a prune
/// where there are more such syncs beside it than without it. At half of the peak a backlog takes as long to be
/// worked off as it took to grow.
async fn paced(
    supervisor: &Supervisor,
    per_second: f64,
    until: impl Future<Output = ()>,
) -> (load::Measured, serde_json::Value) {
    syncs::listen();
    let measured = load::paced(CALLERS, per_second, until, appends(supervisor)).await;
    let syncs = syncs::take();
    drain(supervisor).await;
    let took = |sync: &syncs::Sync| sync.ended - sync.began;
    let longest = syncs.iter().map(took).max().unwrap_or_default();
    let long_syncs: Vec<_> = syncs.iter().filter(|sync| took(sync) > LONG).collect();
    let in_long: Duration = long_syncs.iter().map(|sync| took(sync)).sum();
    let times: Vec<_> = long_syncs
        .iter()
        .map(|sync| (sync.began, sync.ended + took(sync)))
        .collect();
    let apart = measured.but_for(&times);
    let of_disk = json!({
        "sync_max_us": longest.as_micros(),
        "percent_in_long_syncs": rounded(in_long.as_secs_f64() / measured.elapsed.as_secs_f64() * 100.0),
        "calls_apart_percent": rounded(apart.calls as f64 / measured.calls as f64 * 100.0),
        "p999_us_apart": apart.quantile_us(999),
    });
    (measured, of_disk)
}

type Appending = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

fn appends(supervisor: &Supervisor) -> impl Fn(usize, u64) -> Appending + Send + Sync + use<> {
    let processes = supervisor.processes();
    move |caller, number| {
        let processes = processes.clone();
        Box::pin(async move { append(&processes, &format!("p-{caller}"), number).await })
    }
}

async fn end_some(supervisor: &Supervisor) {
    let processes = supervisor.processes();
    each(MAKERS, 0..ENDED, move |number| {
        let (processes, id) = (processes.clone(), format!("e-{number}"));
        async move {
            start(&processes, external(id.as_str(), "some")).await;
            for event in 0..EVENTS {
                append(&processes, &id, event).await;
            }
            complete(&processes, &id).await;
        }
    })
    .await;
    drain(supervisor).await;
}

/// Prunes all that ended, and waits until their logs are erased as well.
async fn prune_all(supervisor: &Supervisor) -> (ProcessPruneReport, Duration, Duration) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let cutoff = now.expect("a time after 1970").as_millis() + 1_000;
    let cutoff = u64::try_from(cutoff).expect("a time of this age");
    let began = Instant::now();
    let report = supervisor.processes().prune(cutoff).await.expect("a prune");
    let took = began.elapsed();
    drain(supervisor).await;
    (report, took, began.elapsed())
}
