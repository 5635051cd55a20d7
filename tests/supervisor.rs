//! The supervisor binary does what its help says. Every test spawns it on a store of its own.
#![cfg(all(feature = "command", target_os = "linux"))]
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "tests say what they expect by panicking, in their helpers too"
)]

#[path = "supervisor/harness.rs"]
mod harness;
#[path = "supervisor/killed.rs"]
mod killed;
#[path = "supervisor/signalled.rs"]
mod signalled;

use std::io::Write;
use std::process::Stdio;

use harness::{Place, Running, go_on, group_members, json_lines, output_of};
use serde_json::{Value, json};

#[test]
fn a_command_ends_with_its_own_output_and_exit_code_and_is_found_later() {
    let place = Place::new();
    let script = "echo one; echo two >&2; exit 3";
    let done = place.done(&["run", "--id", "p", "--", "sh", "-c", script]);
    assert_eq!(done.code, Some(3));
    assert_eq!(done.stdout, "one\n");
    assert_eq!(done.stderr, "two\n");

    let listed = place.json(&["list", "--all", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1), "{listed}");
    assert_eq!(listed[0]["process_id"], "p");
    assert_eq!(listed[0]["lifecycle"], "failed");
    assert_eq!(listed[0]["error"]["message"], "exited with 3");
    let events = place.events("p");
    let sequences: Vec<_> = events.iter().map(|event| &event["sequence"]).collect();
    assert_eq!(sequences, [1, 2, 3, 4, 5]);
    assert_eq!(events[0]["event_type"], "process.started");
    assert_eq!(events[4]["event_type"], "process.failed");
    assert_eq!(events[4]["payload"]["raw"], json!({ "exit_code": 3 }));
    let last = place.done(&["events", "p", "--after", "4", "--json"]);
    assert_eq!(json_lines(&last.stdout), events[4..]);
    assert_eq!(place.json(&["list", "--json"]), json!([]));
    place.assert_clean();
}

#[test]
fn what_nobody_named_gets_an_id_that_stderr_says() {
    let place = Place::new();
    let done = place.done(&["run", "--", "true"]);
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""));
    let id = done.stderr.trim_end().strip_prefix("supervisor: process ");
    let id = id.expect("one line with the id");
    assert_eq!(id.len(), 36, "{id}");
    assert_eq!(place.get(id)["lifecycle"], "completed");
}

#[test]
fn output_is_shown_as_it_was_written() {
    let place = Place::new();
    for (id, format, expected) in [
        ("partial", "a\\n\\nb", "a\n\nb".to_owned()),
        ("empty", "", String::new()),
        ("newlines", "\\n\\n", "\n\n".to_owned()),
        ("tabs", "\\tä\\r\\n", "\tä\r\n".to_owned()),
        ("long", "%040000d\\nend", "0".repeat(40_000) + "\nend"),
    ] {
        let done = place.done(&["run", "--id", id, "--", "printf", format, "0"]);
        // Without a conversion printf leaves its argument out.
        assert_eq!((done.code, done.stdout), (Some(0), expected), "{id}");
    }
    let many = place.done(&["run", "--id", "many", "--", "seq", "20000"]);
    let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    assert!(many.stdout == expected, "{} bytes", many.stdout.len());
}

#[test]
fn output_is_followed_while_the_command_runs() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let script = "echo first; read line < fifo; echo second";
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", script]);
    // The command goes on only after this was seen.
    assert_eq!(run.line(), "first");
    go_on(&fifo);
    let done = run.end();
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), "second\n"));
}

#[test]
fn events_are_followed_as_lines_of_json() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let script = "echo first; read line < fifo; echo second >&2";
    let mut run = place.spawn(&["run", "--json", "--id", "p", "--", "sh", "-c", script]);
    let first = run.event("output.stdout");
    assert_eq!(first["payload"], json!({ "lines": ["first"] }));
    go_on(&fifo);
    let done = run.end();
    assert_eq!((done.code, done.stderr.as_str()), (Some(0), ""));
    let rest = json_lines(&done.stdout);
    assert_eq!(rest.len(), 2);
    assert_eq!(place.events("p")[3..], rest);
}

#[test]
fn a_command_gets_no_input() {
    let place = Place::new();
    let mut command = place.command(&["run", "--id", "p", "--", "cat"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may be gone by now: it does not read.
    let _ = stdin.write_all(b"unread\n");
    let done = Running::new(child).end();
    assert_eq!((done.code, done.stdout.as_str()), (Some(0), ""));
}

#[test]
fn how_a_command_ended_is_an_exit_code() {
    let place = Place::new();
    let script = |script: &'static str| vec!["sh", "-c", script];
    for (id, command, code, remark) in [
        ("well", script("exit 0"), 0, ""),
        ("high", script("exit 255"), 255, ""),
        ("killed", script("kill -9 $$"), 137, "killed"),
        ("terminated", script("kill -15 $$"), 143, "killed"),
        ("nowhere", vec!["./no-such-program"], 127, "cannot start"),
        ("directory", vec!["/"], 126, "cannot start"),
    ] {
        let mut args = vec!["run", "--id", id, "--"];
        args.extend(command);
        let done = place.done(&args);
        assert_eq!(done.code, Some(code), "{id}: {done:?}");
        assert!(done.stderr.contains(remark), "{id}: {done:?}");
        // Asked again, the same.
        assert_eq!(place.done(&args).code, Some(code), "{id}");
    }
}

#[test]
fn a_command_that_takes_too_long_is_ended() {
    let place = Place::new();
    let script = "echo $$; sleep 600 & exec sleep 600";
    let args = ["run", "--id", "p", "--timeout", "1s"];
    let done = place.done(&[&args[..], &["--", "sh", "-c", script]].concat());
    assert_eq!(done.code, Some(124), "{done:?}");
    let group = done.stdout.trim().parse().expect("a process group");
    assert_eq!(group_members(group), [0; 0]);
    assert_eq!(place.get("p")["error"]["class"], "timeout");
}

#[test]
fn asked_again_a_command_is_shown_and_not_executed() {
    let place = Place::new();
    let script = "echo x >> count; printf 'out\\nput'; echo err >&2; exit 5";
    let args = ["run", "--id", "p", "--", "sh", "-c", script];
    let (first, again) = (place.done(&args), place.done(&args));
    assert_eq!((first.code, again.code), (Some(5), Some(5)));
    assert_eq!(first.stdout, "out\nput");
    assert_eq!(again.stdout, first.stdout);
    assert!(again.stderr.ends_with("err\n"), "{again:?}");
    assert!(again.stderr.contains("started before"), "{again:?}");
    assert_eq!(place.lines_of("count"), 1);

    let other = place.done(&["run", "--id", "p", "--", "true"]);
    assert_eq!(other.code, Some(65));
    assert!(other.stderr.contains("process p"), "{other:?}");
    assert!(other.stderr.contains("other content"), "{other:?}");
}

#[test]
fn a_store_in_use_is_said_by_every_command() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let script = "echo up; read line < fifo";
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", script]);
    assert_eq!(run.line(), "up");
    for args in [
        &["run", "--id", "q", "--", "true"][..],
        &["recover"],
        &["list"],
        &["get", "p"],
        &["events", "p"],
        &["cancel", "p"],
        &["abandon", "p", "--reason", "why not"],
        &["prune", "--older-than", "7d"],
        &["verify"],
    ] {
        let done = place.done(args);
        assert_eq!(done.code, Some(75), "{args:?}: {done:?}");
        assert_eq!(done.stdout, "", "{args:?}");
        assert!(done.stderr.contains("is in use"), "{args:?}: {done:?}");
        assert!(done.stderr.contains("--store"), "{args:?}: {done:?}");
    }
    go_on(&fifo);
    assert_eq!(run.end().code, Some(0));
    assert_eq!(place.done(&["list"]).code, Some(0));
}

#[test]
fn an_unknown_process_is_said() {
    let place = Place::new();
    for args in [
        &["get", "p"][..],
        &["events", "p"],
        &["cancel", "p"],
        &["abandon", "p", "--reason", "why not"],
    ] {
        let done = place.done(args);
        assert_eq!((done.code, done.stdout.as_str()), (Some(4), ""), "{args:?}");
        assert!(done.stderr.contains("unknown process p"), "{done:?}");
    }
}

#[test]
fn a_pruned_process_is_unknown_and_says_why() {
    let place = Place::new();
    let run = ["run", "--id", "p", "--", "sh", "-c", "echo x >> count"];
    assert_eq!(place.done(&run).code, Some(0));
    let kept = place.json(&["prune", "--older-than", "1h", "--json"]);
    assert_eq!(kept["pruned_processes"], 0);
    let pruned = place.json(&["prune", "--older-than", "0s", "--json"]);
    assert_eq!(
        (&pruned["pruned_processes"], &pruned["pruned_events"]),
        (&json!(1), &json!(3))
    );
    for args in [&["get", "p"][..], &["events", "p"], &["cancel", "p"], &run] {
        let done = place.done(args);
        assert_eq!(done.code, Some(4), "{args:?}: {done:?}");
        assert!(done.stderr.contains("completed and was pruned"), "{done:?}");
    }
    assert_eq!(place.lines_of("count"), 1);
    place.assert_clean();
}

#[test]
fn bad_input_is_refused_and_writes_nothing() {
    let place = Place::new();
    let long = "x".repeat(257);
    for (args, code) in [
        (&["run"][..], 2),
        (&["run", "--"], 2),
        (&["run", "--timeout", "soon", "--", "true"], 2),
        (&["run", "--timeout", "0s", "--", "true"], 2),
        (
            &["run", "--disposition", "externally-owned", "--", "true"],
            2,
        ),
        (&["list", "--all", "--status", "failed"], 2),
        (&["abandon", "p"], 2),
        (&["prune"], 2),
        (&["frobnicate"], 2),
        (&["run", "--id", "", "--", "true"], 64),
        (&["run", "--id", &long, "--", "true"], 64),
        (&["run", "--id", "a\nb", "--", "true"], 64),
        (&["run", "--session", "", "--", "true"], 64),
        (&["run", "--id", "p", "--", ""], 64),
        (
            &[
                "run",
                "--id",
                "p",
                "--max-output-bytes",
                "2000000000",
                "--",
                "true",
            ],
            64,
        ),
        (&["list", "--session", ""], 64),
    ] {
        let done = place.done(args);
        assert_eq!(done.code, Some(code), "{args:?}: {done:?}");
        assert_ne!(done.stderr, "", "{args:?}");
    }
    assert_eq!(place.json(&["list", "--all", "--json"]), json!([]));
}

#[test]
fn a_store_that_cannot_be_opened_is_an_error_of_its_own() {
    let place = Place::new();
    std::fs::write(place.path("store"), "no store").expect("a file");
    let done = place.done(&["list"]);
    assert_eq!(done.code, Some(74), "{done:?}");
}

#[test]
fn a_session_sees_what_it_started() {
    let place = Place::new();
    let run = |id, session| place.done(&["run", "--id", id, "--session", session, "--", "true"]);
    assert_eq!(run("p", "s").code, Some(0));
    assert_eq!(run("q", "t").code, Some(0));
    let listed = place.json(&["list", "--all", "--session", "s", "--json"]);
    assert_eq!(listed.as_array().map(Vec::len), Some(1));
    assert_eq!(listed[0]["process_id"], "p");
    assert_eq!(
        listed[0]["originator"]["scope"],
        json!({ "session_id": "s" })
    );
    assert_eq!(place.json(&["list", "--session", "s", "--json"]), json!([]));
}

#[test]
fn a_list_shows_the_status_that_is_asked_for() {
    let place = Place::new();
    for (id, program) in [("good", "true"), ("bad", "false")] {
        place.done(&["run", "--id", id, "--", program]);
    }
    for (status, expected) in [
        ("running", &[][..]),
        ("completed", &["good"]),
        ("failed", &["bad"]),
        ("cancelled", &[]),
        ("abandoned", &[]),
        ("terminal", &["good", "bad"]),
        ("any", &["good", "bad"]),
    ] {
        let listed = place.json(&["list", "--status", status, "--json"]);
        let ids: Vec<&Value> = listed
            .as_array()
            .expect("an array")
            .iter()
            .map(|p| &p["process_id"])
            .collect();
        assert_eq!(ids, expected, "{status}");
    }
}

#[test]
fn tables_are_aligned_and_drive_no_terminal() {
    let place = Place::new();
    let id = "ä".repeat(12);
    place.done(&[
        "run",
        "--id",
        &id,
        "--",
        "sh",
        "-c",
        "printf '\\033[2J'; exit 1\n",
    ]);
    place.done(&["run", "--id", "p", "--", "true"]);
    let listed = place.done(&["list", "--all"]).stdout;
    let lines: Vec<&str> = listed.lines().collect();
    let column = |line: &str, word: &str| {
        let at = line
            .find(word)
            .unwrap_or_else(|| panic!("{word} in {listed}"));
        line[..at].chars().count()
    };
    assert_eq!(lines.len(), 3, "{listed}");
    let status = column(lines[0], "STATUS");
    assert_eq!(column(lines[1], "failed"), status);
    assert_eq!(column(lines[2], "completed"), status);
    for args in [&["list", "--all"][..], &["get", &id], &["events", &id]] {
        let shown = place.done(args).stdout;
        assert!(!shown.contains('\u{1b}'), "{args:?}: {shown}");
        assert!(shown.lines().all(|line| !line.ends_with(' ')), "{shown:?}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_the_command_and_causes_no_panic() {
    let place = Place::new();
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", "echo $$; exec yes"]);
    let group = run.line().parse().expect("a process group");
    run.close_stdout();
    let done = run.end();
    assert_eq!((done.code, done.stderr.as_str()), (Some(141), ""));
    assert_eq!(group_members(group), [0; 0]);
    assert_eq!(place.get("p")["lifecycle"], "cancelled");
    for args in [
        &["list", "--all"][..],
        &["events", "p"],
        &["get", "p"],
        &["verify"],
        &["recover"],
    ] {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = place.command(args);
        command.stdout(writer);
        let output = output_of(command);
        assert_eq!(output.status.code(), Some(141), "{args:?}: {output:?}");
        assert!(output.stderr.is_empty(), "{args:?}: {output:?}");
    }
}

#[test]
fn output_beyond_the_bound_is_said_to_be_left_out() {
    let place = Place::new();
    let args = [
        "run",
        "--id",
        "p",
        "--max-output-bytes",
        "10",
        "--",
        "seq",
        "1000",
    ];
    let done = place.done(&args);
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(0), "1\n2\n3\n4\n5\n")
    );
    assert!(done.stderr.contains("beyond 10 bytes"), "{done:?}");
}

#[test]
fn help_says_what_the_exit_codes_mean() {
    let place = Place::new();
    let done = place.done(&["--help"]);
    assert_eq!(done.code, Some(0));
    for said in ["Exit codes:", "124", "75", "Examples:", "PROCESSION_STORE"] {
        assert!(done.stdout.contains(said), "{said}");
    }
    for command in [
        "run", "list", "get", "events", "cancel", "abandon", "prune", "verify", "recover",
    ] {
        assert_eq!(place.done(&[command, "--help"]).code, Some(0), "{command}");
    }
}
