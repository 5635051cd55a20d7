//! How the durabilities were checked: the data syncs of each system, counted by strace.
//!
//! With one caller, an answer that survives a loss of power must have had a data sync after the call
//! and before the answer. A mark in the trace separates the calls, so each of them is looked at.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::args::{Args, One};
use crate::measure::{self, quiet};
use crate::systems::{Figure, System};

/// The load begins.
pub const BEGIN: &str = "/mark-of-procession-peers-begin";
/// A call was answered.
pub const ANSWERED: &str = "/mark-of-procession-peers-answered";

/// Leaves a mark in the trace: a look for a file that does not exist.
pub fn mark(name: &str) {
    let _ = std::fs::metadata(name);
}

pub fn run(args: &Args) {
    std::fs::create_dir_all(&args.dir).expect("a directory to measure in");
    for figure in [Figure::Append, Figure::Start, Figure::Lifecycle] {
        for callers in [1, 64] {
            for system in System::ALL {
                if args.wants(figure, callers, system) {
                    count(args, figure, callers, system);
                }
            }
        }
    }
}

fn count(args: &Args, figure: Figure, callers: usize, system: System) {
    let place = tempfile::tempdir_in(&args.dir).expect("a directory");
    let trace = place.path().join("trace");
    let one = One {
        figure,
        callers,
        system,
        time: Duration::from_secs(2),
        dir: place.path().to_owned(),
        marks: true,
    };
    let mut command = Command::new("strace");
    command
        .args(["-f", "-e", "trace=fsync,fdatasync,statx", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this program"))
        .args(one.args());
    let status = quiet(&mut command).stdout(Stdio::null()).status();
    let status = status.expect("strace");
    assert!(status.success(), "{one:?}: {status}");
    let counted = Counted::of(&trace);
    let mut fields = vec![
        ("syncs", json!(figure.to_string())),
        ("callers", json!(callers)),
        ("system", json!(system.to_string())),
        ("answers", json!(counted.answers)),
        ("data_syncs", json!(counted.syncs)),
    ];
    // With several callers a sync is shared, and the order of the marks says nothing.
    if callers == 1 {
        fields.push(("answers_after_a_sync", json!(counted.answers_after_a_sync)));
    }
    measure::print(&fields);
}

#[derive(Default)]
struct Counted {
    answers: u64,
    syncs: u64,
    answers_after_a_sync: u64,
}

impl Counted {
    fn of(trace: &Path) -> Self {
        let trace = std::fs::read_to_string(trace).expect("a trace");
        let mut counted = Self::default();
        let mut synced = false;
        let load = trace.lines().skip_while(|line| !line.contains(BEGIN));
        for line in load {
            // A call that another thread interrupts stands in two lines; the mark is in the first,
            // the result in the last.
            if line.contains(ANSWERED) {
                counted.answers += 1;
                counted.answers_after_a_sync += u64::from(synced);
                synced = false;
            } else if line.contains("sync") && line.trim_end().ends_with("= 0") {
                counted.syncs += 1;
                synced = true;
            }
        }
        counted
    }
}
