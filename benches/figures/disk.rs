//! Bytes on the disk per event.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use super::setup::{
    MAKERS, NOTE_BYTES, append, close, drain, each, open, place, rounded, runtime, start_some,
};
use super::{Ask, print};

const EVENTS: u64 = 1_000_000;
const EVENTS_QUICK: u64 = 100_000;
const PROCESSES: usize = 100;

pub(crate) fn run(ask: &Ask) {
    let events = if ask.quick { EVENTS_QUICK } else { EVENTS };
    runtime().block_on(async {
        let place = place(ask);
        let supervisor = open(place.path()).await;
        let processes = supervisor.processes();
        start_some(&processes, "p", PROCESSES).await;
        each(MAKERS, 0..events, move |number| {
            let (processes, id) = (
                processes.clone(),
                format!("p-{}", number % PROCESSES as u64),
            );
            async move { append(&processes, &id, number).await }
        })
        .await;
        drain(&supervisor).await;
        say("drained", place.path(), events);
        close(&supervisor).await;
        say("closed", place.path(), events);
    });
}

fn say(state: &str, directory: &Path, events: u64) {
    let journal = used(&directory.join("journal"));
    let index = used(directory).saturating_sub(journal);
    print(
        &json!({ "figure": "disk", "state": state, "compacted": false, "events": events,
        "processes": PROCESSES, "payload_bytes": NOTE_BYTES, "index_bytes": index,
        "journal_bytes": journal, "bytes_per_event": rounded(index as f64 / events as f64),
        "with_journal": rounded((index + journal) as f64 / events as f64) }),
    );
}

/// Bytes that a file, or what is in a directory, takes up on the disk.
fn used(path: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(path) else {
        return std::fs::metadata(path).map_or(0, |file| file.blocks() * 512);
    };
    entries
        .map(|entry| used(&entry.expect("an entry").path()))
        .sum()
}
