//! How the durabilities were checked: the data syncs of each system, counted by strace.
//!
//! With one caller, an answer that survives a loss of power must have had a data sync after the call
//! and before the answer, and of the file that the answer is in. A mark in the trace separates the calls,
//! so each of them is looked at; a sync counts for an answer if it began and ended since the mark before
//! it. Syncs of any other file (an index behind a log, a directory) count for nothing.

use std::collections::HashMap;
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
        .args(["-f", "-y", "-e", "trace=fsync,fdatasync,statx", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().expect("this program"))
        .args(one.args());
    let status = quiet(&mut command).stdout(Stdio::null()).status();
    let status = status.expect("strace");
    assert!(status.success(), "{one:?}: {status}");
    let trace = std::fs::read_to_string(&trace).expect("a trace");
    let counted = Counted::of(&trace, logs(system));
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

/// The files that hold what a system acknowledged, by the end of their paths.
fn logs(system: System) -> &'static [&'static str] {
    match system {
        System::Procession | System::ProcessionEach => &["/procession/journal"],
        System::Floor => &["/floor"],
        System::Sled => &["/sled/db"],
        System::Sqlite => &["/sqlite", "/sqlite-wal"],
        System::Lash | System::LashFull => &["/lash", "/lash-wal"],
        System::Duroxide => &["/duroxide", "/duroxide-wal"],
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counted {
    answers: u64,
    syncs: u64,
    answers_after_a_sync: u64,
}

impl Counted {
    fn of(trace: &str, logs: &[&str]) -> Self {
        let mut counted = Self::default();
        let mut synced = false;
        // By thread, and whether the sync began since the last answer.
        let mut going_on: HashMap<&str, bool> = HashMap::new();
        let load = trace.lines().skip_while(|line| !line.contains(BEGIN));
        for line in load {
            // A call that another thread interrupts stands in two lines: the file, or the mark, is in
            // the first, the result in the last.
            let (thread, call) = line.split_once(' ').unwrap_or((line, ""));
            let call = call.trim();
            let mut ended = None;
            if call.contains(ANSWERED) {
                counted.answers += 1;
                counted.answers_after_a_sync += u64::from(synced);
                synced = false;
                for began_since in going_on.values_mut() {
                    *began_since = false;
                }
            } else if is_sync_of(call, logs) {
                if call.ends_with("<unfinished ...>") {
                    going_on.insert(thread, true);
                } else {
                    ended = Some(true);
                }
            } else if call.contains("sync resumed>") {
                ended = going_on.remove(thread);
            }
            if let Some(began_since) = ended
                && call.ends_with("= 0")
            {
                counted.syncs += 1;
                synced |= began_since;
            }
        }
        counted
    }
}

/// Whether a line says that a sync of one of these files was called: `fdatasync(9</a/path>) = 0`.
fn is_sync_of(call: &str, logs: &[&str]) -> bool {
    let called = ["fsync(", "fdatasync("];
    let of = called.iter().find_map(|name| call.strip_prefix(name));
    let path = of.and_then(|of| Some(of.split_once('<')?.1.split_once('>')?.0));
    path.is_some_and(|path| logs.iter().any(|log| path.ends_with(log)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGS: &[&str] = &["/procession/journal"];

    fn counted(lines: &[&str]) -> Counted {
        let begin = format!("1 statx(AT_FDCWD</d>, \"{BEGIN}\", 0) = -1 ENOENT");
        Counted::of(&format!("{begin}\n{}", lines.join("\n")), LOGS)
    }

    fn answered() -> String {
        format!("1 statx(AT_FDCWD</d>, \"{ANSWERED}\",  <unfinished ...>")
    }

    #[test]
    fn only_syncs_of_the_log_count() {
        let found = counted(&[
            "2 fdatasync(9</d/procession/db>)        = 0",
            "3 fsync(5</d/procession>)               = 0",
            &answered(),
            "2 fdatasync(8</d/procession/journal>)   = 0",
            &answered(),
            "2 fdatasync(8</d/procession/journal>)   = -1 EIO (Input/output error)",
            &answered(),
        ]);
        let expected = Counted {
            answers: 3,
            syncs: 1,
            answers_after_a_sync: 1,
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn a_sync_that_began_before_the_call_does_not_count_for_its_answer() {
        let found = counted(&[
            "2 fdatasync(8</d/procession/journal> <unfinished ...>",
            &answered(),
            "3 fdatasync(9</d/procession/db> <unfinished ...>",
            "2 <... fdatasync resumed>)              = 0",
            "3 <... fdatasync resumed>)              = 0",
            &answered(),
            "2 fdatasync(8</d/procession/journal> <unfinished ...>",
            "2 <... fdatasync resumed>)              = 0",
            &answered(),
        ]);
        let expected = Counted {
            answers: 3,
            syncs: 2,
            answers_after_a_sync: 1,
        };
        assert_eq!(found, expected);
    }
}
