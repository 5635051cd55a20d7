//! What a command prints and reads.

use super::*;
use crate::engines::command::lines::{BATCH_LINES, LINE_BYTES_MAX};

#[tokio::test]
async fn a_command_says_who_it_is_before_it_says_anything_else() {
    let attempt = Attempt::new();
    let result = attempt
        .run(json!({ "program": "/bin/sh", "args": ["-c", "echo $$; echo two"] }))
        .await;
    assert_eq!(result, Ok(json!({ "exit_code": 0 })));
    let spawned = &attempt.events()[0];
    assert_eq!(spawned.event_type, "command.spawned");
    assert_eq!(spawned.replay_key.as_deref(), Some("command.spawned/1"));
    assert_eq!(
        attempt.text("output.stdout"),
        format!("{}\ntwo\n", attempt.pid())
    );
    #[cfg(target_os = "linux")]
    {
        assert!(spawned.payload["start_time_ticks"].as_u64() > Some(0));
        assert_eq!(spawned.payload["boot_id"].as_str().map(str::len), Some(36));
    }
}

#[tokio::test]
async fn each_stream_keeps_its_order() {
    let attempt = Attempt::new();
    let script = "i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo $i; echo e$i >&2; done";
    assert!(attempt.run(json!({ "shell": script })).await.is_ok());
    let expected =
        |prefix: &str| -> String { (1..=3000).map(|i| format!("{prefix}{i}\n")).collect() };
    assert_eq!(attempt.text("output.stdout"), expected(""));
    assert_eq!(attempt.text("output.stderr"), expected("e"));
}

#[tokio::test]
async fn a_line_is_said_while_the_command_runs_on() {
    let attempt = Attempt::new();
    let run = attempt.start(json!({ "shell": "echo ready; exec sleep 300" }));
    attempt.until_line("ready").await;
    attempt.cancel();
    assert!(ended(run).await.is_err());
}

#[tokio::test]
async fn input_of_any_length_reaches_the_command() {
    let attempt = Attempt::new();
    let line = "0123456789abcde\n";
    let stdin = line.repeat(40_000);
    let payload = json!({ "program": "cat", "stdin": stdin });
    assert!(attempt.run(payload).await.is_ok());
    assert_eq!(attempt.text("output.stdout"), stdin);
}

#[tokio::test]
async fn a_command_may_ignore_its_input_and_has_none_unless_given() {
    let stdin = "x".repeat(600_000);
    for payload in [
        json!({ "program": "true", "stdin": stdin }),
        json!({ "program": "cat" }),
    ] {
        let attempt = Attempt::new();
        assert!(attempt.run(payload).await.is_ok());
        assert_eq!(attempt.events().len(), 1);
    }
}

#[tokio::test]
async fn the_environment_is_inherited_and_changed_as_asked() {
    let attempt = Attempt::new();
    let payload = json!({
        "shell": "echo \"$A-${HOME-unset}-${PATH:+path}-${#PROCESSION_COMMAND}\"",
        "env": { "A": "a b", "HOME": null },
    });
    assert!(attempt.run(payload).await.is_ok());
    assert_eq!(attempt.text("output.stdout"), "a b-unset-path-32\n");
}

#[tokio::test]
async fn it_runs_where_it_was_told_to() {
    let attempt = Attempt::new();
    let place = tempfile::tempdir().expect("a directory");
    let place = place.path().canonicalize().expect("it is there");
    let payload = json!({ "program": "pwd", "cwd": place });
    assert!(attempt.run(payload).await.is_ok());
    assert_eq!(
        attempt.text("output.stdout"),
        format!("{}\n", place.display())
    );
}

#[tokio::test]
async fn bytes_that_are_no_utf8_are_replaced_and_marked() {
    let attempt = Attempt::new();
    let payload = json!({ "program": "printf", "args": ["a\\377b\\n"] });
    assert!(attempt.run(payload).await.is_ok());
    let said = &attempt.events()[1].payload;
    assert_eq!(
        *said,
        json!({ "lines": ["a\u{fffd}b"], "invalid_utf8": true })
    );
}

#[tokio::test]
async fn a_last_line_without_newline_is_said_and_marked() {
    let attempt = Attempt::new();
    assert!(
        attempt
            .run(json!({ "shell": "printf 'a\\nb'" }))
            .await
            .is_ok()
    );
    assert_eq!(attempt.text("output.stdout"), "a\nb");
    let last = attempt.events().pop().expect("some output");
    assert_eq!(last.payload["partial"], true);
}

#[tokio::test]
async fn a_long_line_comes_in_bounded_pieces() {
    let attempt = Attempt::new();
    let script = "head -c 1000000 /dev/zero | tr '\\0' x; echo; echo end";
    assert!(attempt.run(json!({ "shell": script })).await.is_ok());
    let expected = format!("{}\nend\n", "x".repeat(1_000_000));
    assert!(attempt.text("output.stdout") == expected);
    for event in attempt.events() {
        assert!(
            lines(&event)
                .iter()
                .all(|line| line.len() <= LINE_BYTES_MAX)
        );
    }
}

#[tokio::test]
async fn past_its_limit_output_is_cut_once_and_the_command_runs_on() {
    for (max, kept) in [(100_000, 100_000), (1, 1), (0, 0)] {
        let attempt = Attempt::new();
        let place = tempfile::tempdir().expect("a directory");
        let script = "yes | head -c 2000000; echo more >&2; echo ran on > mark";
        let payload = json!({
            "shell": script, "cwd": place.path(), "max_output_bytes": max,
        });
        assert_eq!(attempt.run(payload).await, Ok(json!({ "exit_code": 0 })));
        let truncated = attempt.of_type("output.truncated");
        assert_eq!(truncated.len(), 1);
        assert_eq!(truncated[0].payload, json!({ "max_output_bytes": max }));
        assert_eq!(attempt.text("output.stdout").len(), kept);
        assert_eq!(attempt.text("output.stderr"), "");
        assert!(place.path().join("mark").exists());
    }
}

#[tokio::test]
async fn output_that_just_fits_is_not_truncated() {
    let attempt = Attempt::new();
    let payload = json!({ "shell": "echo 1234567", "max_output_bytes": 8 });
    assert!(attempt.run(payload).await.is_ok());
    assert_eq!(attempt.text("output.stdout"), "1234567\n");
    assert!(attempt.of_type("output.truncated").is_empty());
}

/// Bytes that a process has written so far.
#[cfg(target_os = "linux")]
fn written(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).expect("it lives");
    let written = io.lines().find_map(|line| line.strip_prefix("wchar: "));
    written.expect("linux").parse().expect("a number")
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_command_that_prints_faster_than_the_log_grows_waits() {
    // Room for the announcement and ten events.
    let attempt = Attempt::with_room(11).with_kill_grace(PATIENCE);
    let run = attempt.start(json!({ "program": "yes" }));
    attempt
        .until("eleven events", |events| events.len() == 11)
        .await;
    let (mut last, mut quiet) = (0, 0);
    until("it has stopped printing", || {
        let now = written(attempt.pid());
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        quiet == 20
    })
    .await;
    let said = attempt.text("output.stdout").len() as u64;
    // A pipe of 64 KiB, a read, a batch, a line; twice that, for nobody counts this closely.
    assert!(
        last - said <= 2 * (64 + 16 + 16 + 16) * 1024,
        "{last} {said}"
    );
    // Under load an event has many lines.
    let most = attempt
        .events()
        .iter()
        .map(|event| lines(event).len())
        .max();
    assert_eq!(most, Some(BATCH_LINES));
    // With room again, it goes on.
    attempt.port.room.add_permits(10);
    attempt.until("more", |events| events.len() == 21).await;
    attempt.cancel();
    attempt.port.room.add_permits(100_000);
    let failure = ended(run).await.expect_err("it was cancelled");
    assert_eq!(failure.raw, Some(json!({ "signal": 15, "sigkill": false })));
}
