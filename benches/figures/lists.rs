//! Appends beside somebody who lists everything, over and over, against the same appends alone.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use procession::{Error, ProcessListFilter, Processes, Supervisor};
use serde_json::json;

use super::setup::{
    MAKERS, append, close, drain, each, external, figure, median, open, place, rounded, runtime,
    start, start_some,
};
use super::{Ask, load, print};

/// Stored processes, beside those that are appended to.
const STORED: u64 = 100_000;
const STORED_QUICK: u64 = 10_000;
const CALLERS: usize = 64;
/// Pairs of runs, one after the other, of which the median ratio counts.
const PAIRS: u32 = 5;

/// What became of the lists.
#[derive(Debug, Default)]
struct Lists {
    took_ms: Vec<f64>,
    /// Those that failed, by the error.
    failed: BTreeMap<String, u64>,
}

/// Appends a second, until they are in the index, and until they are answered.
struct Written {
    per_second: f64,
    answered_per_second: f64,
}

pub(crate) fn run(ask: &Ask) {
    runtime().block_on(async {
        let stored = if ask.quick { STORED_QUICK } else { STORED };
        let callers = ask.callers.unwrap_or(CALLERS);
        let place = place(ask);
        make(place.path(), stored, callers).await;
        let supervisor = open(place.path()).await;
        // The look at every process that follows an open is another figure's.
        supervisor.recover().await.expect("a recovery");
        let (mut slower, mut slower_answered) = (Vec::new(), Vec::new());
        for pair in 0..PAIRS {
            let run = |listing| written(ask, &supervisor, stored, callers, listing);
            // Each goes first in turn: a machine that gets slower favours neither.
            let (alone, beside) = if pair % 2 == 0 {
                let alone = run(false).await;
                (alone, run(true).await)
            } else {
                let beside = run(true).await;
                (run(false).await, beside)
            };
            slower.push(alone.per_second / beside.per_second);
            slower_answered.push(alone.answered_per_second / beside.answered_per_second);
        }
        close(&supervisor).await;
        slower.sort_by(f64::total_cmp);
        let (lowest, highest) = (slower[0], slower[slower.len() - 1]);
        print(
            &json!({ "ratio": "lists", "call": "append_event", "stored": stored,
            "callers": callers, "to": "alone", "slower": true, "value": rounded(median(slower)),
            "lowest": rounded(lowest), "highest": rounded(highest),
            "answered": rounded(median(slower_answered)), "pairs": PAIRS }),
        );
    });
}

async fn make(store: &Path, stored: u64, callers: usize) {
    let supervisor = open(store).await;
    let processes = supervisor.processes();
    each(MAKERS, 0..stored, move |number| {
        let processes = processes.clone();
        let request = external(format!("p-{number}"), &format!("s-{}", number / 50));
        async move { start(&processes, request).await }
    })
    .await;
    start_some(&supervisor.processes(), "written", callers).await;
    drain(&supervisor).await;
    close(&supervisor).await;
}

async fn written(
    ask: &Ask,
    supervisor: &Supervisor,
    stored: u64,
    callers: usize,
    listing: bool,
) -> Written {
    let over = Arc::new(AtomicBool::new(!listing));
    let all = usize::try_from(stored).expect("a machine of today") + callers;
    let lists = tokio::spawn(list(supervisor.processes(), all, Arc::clone(&over)));
    let processes = supervisor.processes();
    let call = move |caller: usize, number: u64| {
        let processes = processes.clone();
        async move { append(&processes, &format!("written-{caller}"), number).await }
    };
    // A list that goes on holds back what came after it began.
    let mut drained = Duration::ZERO;
    let draining = async {
        let began = Instant::now();
        drain(supervisor).await;
        drained = began.elapsed();
    };
    let measured = load::run(callers, ask.seconds / PAIRS, call, draining).await;
    over.store(true, Ordering::Relaxed);
    let lists = lists.await.expect("whoever lists");
    let more = json!({ "call": "append_event", "stored": stored, "callers": callers,
        "listing": listing, "max_us": measured.quantile_us(1_000),
        "drain_seconds": rounded(drained.as_secs_f64()), "lists": lists.took_ms.len(),
        "list_ms_median": rounded(median(lists.took_ms)),
        "lists_failed": lists.failed.values().sum::<u64>(), "errors": lists.failed });
    print(&figure("lists", &measured, more));
    let answering = (measured.elapsed - drained).as_secs_f64();
    Written {
        per_second: measured.per_second(),
        answered_per_second: measured.calls as f64 / answering,
    }
}

/// Lists everything until it is over, one list after the other.
async fn list(processes: Processes, all: usize, over: Arc<AtomicBool>) -> Lists {
    let mut lists = Lists::default();
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        match processes.list(&ProcessListFilter::any()).await {
            Ok(listed) => {
                assert_eq!(listed.len(), all, "a list of everything");
                lists.took_ms.push(began.elapsed().as_secs_f64() * 1e3);
            }
            Err(error) => *lists.failed.entry(name(&error)).or_default() += 1,
        }
    }
    lists
}

/// The name of an error, without what it says of this one.
fn name(error: &Error) -> String {
    let told = format!("{error:?}");
    let name = told.split(|it: char| !it.is_alphanumeric()).next();
    name.unwrap_or_default().to_owned()
}
