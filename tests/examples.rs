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
