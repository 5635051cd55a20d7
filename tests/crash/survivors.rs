//! What commands leave behind when their runtime is killed, looked for outside of the store.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use procession::{ObservedProcessEvent, ProcessAwaitOutput};
use serde_json::{Value, json};

use super::facts::Fact;

/// A command whose company outlives it: the kernel ends the shell with its runtime, and nothing
/// but recovery ends the other.
pub(crate) fn payload(dir: &Path) -> Value {
    json!({ "shell": "sleep 300 > /dev/null 2>&1 & sleep 0.1", "cwd": dir })
}

/// Processes of the machine that work in a directory: their numbers, and the marks of the commands
/// that they belong to.
pub(crate) fn living(dir: &Path) -> Vec<(u32, String)> {
    let dir = dir.canonicalize().unwrap();
    let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let place = fs::read_link(entry.path().join("cwd")).ok()?;
        let environment = fs::read(entry.path().join("environ")).ok()?;
        let mut variables = environment.split(|byte| *byte == 0);
        let mark = variables.find_map(|it| it.strip_prefix(b"PROCESSION_COMMAND="))?;
        (place == dir).then(|| (pid, String::from_utf8_lossy(mark).into_owned()))
    })
    .collect()
}

/// The marks of the commands that a log knows of. A runtime that was killed before it could say
/// what it had spawned leaves company that nobody can know of.
fn marks(log: &[ObservedProcessEvent]) -> impl Iterator<Item = String> {
    let spawned = log
        .iter()
        .filter(|event| event.event_type == "command.spawned");
    spawned.filter_map(|event| event.payload["mark"].as_str().map(str::to_owned))
}

/// Nothing that recovery could know of is left; what it could not know of is ended here.
pub(crate) fn none_is_left<'a>(dir: &Path, facts: impl Iterator<Item = &'a Fact>) {
    let known: BTreeSet<String> = facts.flat_map(|fact| marks(&fact.log)).collect();
    for (pid, mark) in living(dir) {
        let killed = std::process::Command::new("kill")
            .args(["-9", &pid.to_string()])
            .status();
        assert!(killed.is_ok());
        assert!(!known.contains(&mark), "{pid} outlived recovery");
    }
}

/// How many were met alive when this process was recovered.
pub(crate) fn met(fact: &Fact) -> u64 {
    let lost = fact
        .log
        .iter()
        .filter(|event| event.event_type == "process.owner_lost");
    let lost = lost.filter_map(|event| event.payload["survivors"].as_array());
    let mut met: usize = lost.map(Vec::len).sum();
    let output = fact
        .record
        .as_ref()
        .and_then(|record| record.status.output());
    if let Some(ProcessAwaitOutput::Abandoned { evidence }) = output {
        met += evidence.survivors.as_ref().map_or(0, Vec::len);
    }
    met as u64
}
