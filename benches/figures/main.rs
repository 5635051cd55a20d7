//! Figures: one line of JSON each.
//!
//! `cargo bench --bench figures -- NAME [--seconds N] [--callers N] [--runs N] [--quick] [--dir DIR]`.
//! Without a name, all of them.
//!
//! With `--runs N` all that was asked for is measured N times, one run after the other. Behind the last
//! one there is another line for each that the runs printed, with `"median_of":N`: the median of every
//! number that differs between the runs, and its lowest and highest beside it (`_lowest`, `_highest`).

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a benchmark prints its figures, and stops where it cannot measure"
)]

mod append;
mod disk;
mod floor;
mod heartbeat;
mod idle;
mod latency;
mod lists;
mod load;
mod memory;
mod prune;
mod recovery;
mod runs;
mod sessions;
mod setup;
mod signal;
mod size;
mod start;
mod subscribers;
mod syncs;

use std::path::PathBuf;
use std::time::Duration;

/// What a figure is asked for with.
#[derive(Debug, Clone)]
pub(crate) struct Ask {
    /// How long each throughput is measured.
    pub(crate) seconds: Duration,
    /// Whether to leave out what takes long to set up.
    pub(crate) quick: bool,
    /// Measure with so many callers only.
    pub(crate) callers: Option<usize>,
    /// On which disk.
    pub(crate) dir: PathBuf,
}

type Figure = (&'static str, fn(&Ask));

const FIGURES: &[Figure] = &[
    ("append", append::run),
    ("start", start::run),
    ("lifecycle", start::lifecycle),
    ("signal", signal::run),
    ("latency", latency::run),
    ("size", size::run),
    ("prune", prune::run),
    ("heartbeat", heartbeat::run),
    ("memory", memory::run),
    ("idle", idle::run),
    ("disk", disk::run),
    ("recovery", recovery::run),
    ("sessions", sessions::run),
    ("subscribers", subscribers::run),
    ("lists", lists::run),
];

fn main() {
    if recovery::prepared() {
        return;
    }
    let mut names = Vec::new();
    let mut child = None;
    let mut runs: usize = 1;
    let mut ask = Ask {
        seconds: Duration::from_secs(30),
        quick: false,
        callers: None,
        // Not the temporary directory: that may be memory.
        dir: std::env::current_dir()
            .expect("a current directory")
            .join("target"),
    };
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            // What cargo passes to every benchmark.
            "--bench" => {}
            "--seconds" => {
                let seconds = args.next().and_then(|text| text.parse().ok());
                ask.seconds = Duration::from_secs_f64(seconds.expect("--seconds takes a number"));
            }
            "--callers" => {
                let callers = args.next().and_then(|text| text.parse().ok());
                ask.callers = Some(callers.expect("--callers takes a number"));
            }
            "--runs" => {
                let times = args.next().and_then(|text| text.parse().ok());
                runs = times.expect("--runs takes a number");
            }
            "--quick" => ask.quick = true,
            "--dir" => ask.dir = PathBuf::from(args.next().expect("--dir takes a directory")),
            // How a figure starts this binary again.
            "--child" => child = args.next(),
            name => names.push(name.to_owned()),
        }
    }
    std::fs::create_dir_all(&ask.dir).expect("a directory to measure in");
    if let Some(case) = child {
        match case.as_str() {
            "sessions" => sessions::child(&ask),
            _ => memory::child(&ask, &case),
        }
        return;
    }
    for name in &names {
        if !FIGURES.iter().any(|(known, _)| known == name) {
            let known: Vec<_> = FIGURES.iter().map(|(name, _)| *name).collect();
            eprintln!("unknown figure {name:?}; there are: {}", known.join(", "));
            std::process::exit(2);
        }
    }
    let mut printed = Vec::new();
    for _ in 0..runs {
        for (name, run) in FIGURES {
            if names.is_empty() || names.iter().any(|asked| asked == name) {
                run(&ask);
            }
        }
        printed.push(runs::take());
    }
    if runs > 1 {
        runs::medians(&printed).iter().for_each(print);
    }
}

/// Prints a figure.
pub(crate) fn print(figure: &serde_json::Value) {
    println!("{figure}");
    runs::keep(figure);
}
