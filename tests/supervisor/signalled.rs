//! SIGINT and SIGTERM.

use rustix::process::Signal;
use serde_json::json;

use crate::harness::{Place, go_on, group_members, until};

#[test]
fn an_interrupt_cancels_the_command_and_all_that_it_started() {
    let place = Place::new();
    let script = "echo $$; sleep 600 & sleep 600 & wait";
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", script]);
    let group = run.line().parse().expect("a process group");
    until("all three run", || group_members(group).len() == 3);
    run.signal(Signal::INT);
    assert_eq!(run.end().code, Some(130));
    assert_eq!(group_members(group), [0; 0]);
    let process = place.get("p");
    assert_eq!(process["lifecycle"], "cancelled");
    // Asked again, the same.
    let again = place.done(&["run", "--id", "p", "--", "sh", "-c", script]);
    assert_eq!(again.code, Some(130));
    place.assert_clean();
}

#[test]
fn an_interrupted_command_that_does_not_care_is_killed() {
    let place = Place::new();
    let script = "trap '' TERM; echo $$; exec sleep 600";
    let args = [
        "run", "--id", "p", "--grace", "100ms", "--", "sh", "-c", script,
    ];
    let mut run = place.spawn(&args);
    let group = run.line().parse().expect("a process group");
    run.signal(Signal::INT);
    assert_eq!(run.end().code, Some(130));
    assert_eq!(group_members(group), [0; 0]);
    assert_eq!(place.get("p")["lifecycle"], "cancelled");
}

#[test]
fn what_a_command_says_when_it_is_interrupted_is_shown() {
    let place = Place::new();
    let script = "trap 'echo cleaned up; exit 9' TERM; echo up; while :; do read line < fifo; done";
    let _fifo = place.fifo("fifo");
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", script]);
    assert_eq!(run.line(), "up");
    run.signal(Signal::INT);
    let done = run.end();
    assert_eq!(
        (done.code, done.stdout.as_str()),
        (Some(130), "cleaned up\n")
    );
}

#[test]
fn a_second_signal_leaves_at_once() {
    let place = Place::new();
    let script = "trap '' TERM; echo $$; exec sleep 600";
    let args = [
        "run", "--json", "--id", "p", "--grace", "1h", "--", "sh", "-c", script,
    ];
    let mut run = place.spawn(&args);
    let group = run.event("output.stdout")["payload"]["lines"][0]
        .as_str()
        .and_then(|group| group.parse().ok())
        .expect("a process group");
    run.signal(Signal::INT);
    run.event("process.cancel_requested");
    run.signal(Signal::INT);
    assert_eq!(run.end().code, Some(130));
    // The kernel ends a command whose runtime is gone.
    until("the command is gone", || group_members(group).is_empty());
    place.assert_clean();
    assert_eq!(place.get("p")["lifecycle"], "running");
    place.json(&["recover", "--json"]);
    assert_eq!(place.get("p")["lifecycle"], "abandoned");
}

#[test]
fn a_termination_abandons_what_may_not_run_again() {
    let place = Place::new();
    let script = "echo $$; exec sleep 600";
    let args = [
        "run", "--id", "p", "--grace", "100ms", "--", "sh", "-c", script,
    ];
    let mut run = place.spawn(&args);
    let group = run.line().parse().expect("a process group");
    run.signal(Signal::TERM);
    let done = run.end();
    assert_eq!(done.code, Some(143), "{done:?}");
    assert!(done.stderr.contains("abandoned"), "{done:?}");
    assert_eq!(group_members(group), [0; 0]);
    let events = place.events("p");
    let last = &events.last().expect("events")["payload"];
    assert_eq!(last["evidence"]["writer"], "owner_drain", "{last}");
    // Asked again: nobody knows how it ended.
    assert_eq!(place.done(&args).code, Some(71));
    place.assert_clean();
}

#[test]
fn a_termination_lets_a_command_finish_in_its_grace_period() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let script = "echo up; read line < fifo; echo down";
    let args = [
        "run", "--id", "p", "--grace", "1h", "--", "sh", "-c", script,
    ];
    let mut run = place.spawn_logged(&args, "log");
    assert_eq!(run.line(), "up");
    run.signal(Signal::TERM);
    place.until_logged("log", "shutting down");
    go_on(&fifo);
    let done = run.end();
    assert_eq!(done.code, Some(143), "{done:?}");
    assert_eq!(place.get("p")["lifecycle"], "completed");
}

#[test]
fn a_termination_leaves_what_may_run_again_to_the_next() {
    let place = Place::new();
    let fifo = place.fifo("fifo");
    let script = "echo x >> count; echo up; read line < fifo; echo down";
    let run_args = [
        "run",
        "--id",
        "p",
        "--disposition",
        "rerunnable",
        "--",
        "sh",
        "-c",
        script,
    ];
    let mut run = place.spawn(&run_args);
    assert_eq!(run.line(), "up");
    run.signal(Signal::TERM);
    let done = run.end();
    assert_eq!(done.code, Some(143), "{done:?}");
    assert_eq!(place.get("p")["lifecycle"], "running");
    assert_eq!(place.lines_of("count"), 1);
    // The same again carries on with it, and shows both attempts.
    go_on(&fifo);
    let again = place.done(&run_args);
    assert_eq!(
        (again.code, again.stdout.as_str()),
        (Some(0), "up\nup\ndown\n")
    );
    assert_eq!(place.lines_of("count"), 2);
}

#[test]
fn a_recovery_that_is_terminated_leaves_the_rest_to_the_next() {
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let place = Place::new();
        let fifo = place.fifo("fifo");
        let script = "echo x >> count; echo up; read line < fifo";
        let args = [
            "run",
            "--id",
            "p",
            "--disposition",
            "rerunnable",
            "--",
            "sh",
            "-c",
            script,
        ];
        let mut run = place.spawn(&args);
        assert_eq!(run.line(), "up");
        run.kill();
        let recover = place.spawn(&["recover", "--json"]);
        until("it runs again", || place.lines_of("count") == 2);
        recover.signal(signal);
        let done = recover.end();
        assert_eq!(done.code, Some(code), "{done:?}");
        let report: serde_json::Value = serde_json::from_str(&done.stdout).expect("a report");
        assert_eq!(report["shutdown"]["released"], json!(["p"]), "{report}");
        assert_eq!(place.get("p")["lifecycle"], "running");
        go_on(&fifo);
        assert_eq!(place.done(&["recover"]).code, Some(0));
        assert_eq!(place.get("p")["lifecycle"], "completed");
        assert_eq!(place.lines_of("count"), 3);
    }
}
