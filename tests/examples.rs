//! The examples run to their end and show what they are there to show. `cargo test` builds them.
#![cfg(unix)]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests say what they expect by panicking, in their helpers too"
)]

use std::path::Path;
use std::process::Command;

fn lines(example: &str) -> Vec<String> {
    let test = std::env::current_exe().unwrap();
    let target = test.parent().and_then(Path::parent).unwrap();
    let binary = target.join("examples").join(example);
    let output = Command::new(&binary).output().unwrap_or_else(|error| {
        panic!(
            "{}: {error}: `cargo build --examples` first",
            binary.display()
        )
    });
    let text = String::from_utf8(output.stdout).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{example}: {text}{said}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn resume_after_crash_is_killed_and_finishes() {
    let lines = lines("resume_after_crash");
    let killed = lines.iter().position(|line| line == "  killed").unwrap();
    let again = &lines[killed + 1..];
    assert_eq!(again[0], "the second run:");
    assert_eq!(again[1], "  attempt 2 begins");
    assert!(
        again
            .iter()
            .any(|line| line.starts_with("  it ended: Success"))
    );
    assert_eq!(again.last().unwrap(), "  pages in the log: 4");
}

#[test]
fn abandon_says_who_asked_and_who_decided() {
    let expected = [
        r#"ticket-7 is abandoned by ReconciledRequest on proof Unowned, asked for by Some("ops")"#,
        "call-1 is running, and to be abandoned: true",
        r#"shut down, abandoned: ["call-1"]"#,
        "call-1 is abandoned by OwnerDrain on proof Drain, asked for by None",
    ];
    assert_eq!(lines("abandon"), expected);
}

#[test]
fn retention_prunes_what_it_may_and_remembers_it() {
    let lines = lines("retention");
    let expected = [
        "the reader has seen 3 changes",
        "pruned: 1 processes, 1 events",
        r#"kept: ["b-1", "a-2", "a-3"]"#,
    ];
    assert_eq!(lines[..3], expected);
    for late in &lines[3..5] {
        let said = "asked for later: process a-1 ended as completed and was pruned at ";
        assert!(late.starts_with(said), "{late}");
    }
    assert_eq!(
        lines[5..],
        ["the reader: a-3 changed", "the reader: a-1 is gone"]
    );
}

#[test]
fn subscribe_shows_the_log_and_then_its_end() {
    let lines = lines("subscribe");
    let ended = lines
        .iter()
        .position(|line| line.starts_with("ended after event "))
        .unwrap();
    let sequences: Vec<String> = (1..=ended).map(|n| format!("{n:>2}")).collect();
    let shown: Vec<&str> = lines[..ended].iter().map(|line| &line[..2]).collect();
    assert_eq!(shown, sequences, "no gap and no duplicate");
    let counted = lines.iter().filter(|line| line.contains(" counted "));
    assert_eq!(counted.count(), 5);
    assert_eq!(lines[ended], format!("ended after event {ended}"));
    let late = &lines[ended + 1..];
    assert_eq!(late, ["again: counted", "again: process.completed"]);
}

#[test]
fn transfer_takes_it_from_the_one_and_gives_it_to_the_other() {
    let lines = lines("transfer");
    let expected = [
        "refused: unknown process not-mine",
        "the writer still has 1 of them",
        "the writer lost draft-7f3a",
        "to the writer: unknown process draft-7f3a",
    ];
    assert_eq!(lines[..4], expected);
    assert!(lines[4].starts_with("to the reviewer: ["), "{}", lines[4]);
    assert!(lines[4].contains("looks good"), "{}", lines[4]);
    assert_eq!(lines.len(), 5);
}

#[test]
fn wake_tells_of_each_disk_once() {
    let lines = lines("wake");
    assert!(lines[0].starts_with("backup-1: sda is 97% full (event "));
    assert!(lines[1].starts_with("backup-1: sdb is 98% full (event "));
    assert_eq!(lines[2..], ["0 left"]);
}

#[test]
fn project_changes_resumes_and_learns_of_the_deletion() {
    let expected = [
        r#"projected: {"a": "running", "b": "running", "c": "running"}"#,
        r#"after the restart: {"b": "completed", "c": "running"}"#,
    ];
    assert_eq!(lines("project_changes"), expected);
}
