//! SIGKILL in the middle of `run`, and what comes after.

use serde_json::{Value, json};

use crate::harness::{Place, go_on, group_members, until};

/// A `run` that was killed while its command ran. The command notes each of its executions in
/// `count`, and only the first of them does not end.
fn killed(place: &Place, id: &str, disposition: &str) {
    let mut run = place.spawn(&args(id, disposition));
    let group = run.line().parse().expect("a process group");
    run.kill();
    until("the command is gone with it", || {
        group_members(group).is_empty()
    });
}

const SCRIPT: &str = "echo x >> count; echo $$; [ $(wc -l < count) -gt 1 ] || exec sleep 600";

fn args<'a>(id: &'a str, disposition: &'a str) -> [&'a str; 9] {
    let run = ["run", "--id", id, "--disposition", disposition];
    [
        run[0], run[1], run[2], run[3], run[4], "--", "sh", "-c", SCRIPT,
    ]
}

#[test]
fn a_kill_leaves_a_clean_store_that_shows_the_process() {
    let place = Place::new();
    killed(&place, "p", "owner-bound");
    place.assert_clean();
    let listed = place.json(&["list", "--json"]);
    assert_eq!(listed[0]["process_id"], "p", "{listed}");
    assert_eq!(listed[0]["lifecycle"], "running");
    assert_eq!(listed[0]["attempt"], 1);
    assert_eq!(listed[0]["lease"]["live"], false);
    let events = place.events("p");
    let sequences: Vec<_> = events.iter().map(|event| &event["sequence"]).collect();
    assert_eq!(sequences, [1, 2, 3]);
}

#[test]
fn looking_never_runs_a_command() {
    let place = Place::new();
    killed(&place, "p", "rerunnable");
    for looking in [
        &["list", "--all"][..],
        &["get", "p"],
        &["events", "p"],
        &["verify"],
        &["prune", "--older-than", "0s"],
        &["abandon", "p", "--reason", "looking around"],
        &["cancel", "p"],
    ] {
        let done = place.done(looking);
        assert_eq!(done.code, Some(0), "{looking:?}: {done:?}");
        assert_eq!(place.lines_of("count"), 1, "{looking:?}");
        assert_eq!(place.get("p")["attempt"], 1, "{looking:?}");
    }
    place.assert_clean();
}

#[test]
fn recovery_runs_what_may_run_again() {
    let place = Place::new();
    killed(&place, "p", "rerunnable");
    let report = place.json(&["recover", "--json"]);
    let recovered = &report["processes"][0];
    assert_eq!(recovered["process_id"], "p", "{report}");
    assert_eq!(recovered["process"]["lifecycle"], "completed", "{report}");
    assert_eq!(recovered["process"]["attempt"], 2);
    assert_eq!(place.lines_of("count"), 2);
    place.assert_clean();
    // Nothing is left to do.
    let again = place.json(&["recover", "--json"]);
    assert_eq!(again, json!({ "processes": [] }));
    assert_eq!(place.lines_of("count"), 2);
}

#[test]
fn recovery_abandons_what_may_not() {
    let place = Place::new();
    killed(&place, "p", "owner-bound");
    let report = place.json(&["recover", "--json"]);
    assert_eq!(
        report["processes"][0]["process"]["lifecycle"], "abandoned",
        "{report}"
    );
    assert_eq!(place.lines_of("count"), 1);
    let done = place.done(&args("p", "owner-bound"));
    assert_eq!(done.code, Some(71), "{done:?}");
    assert!(done.stderr.contains("abandoned"), "{done:?}");
    assert_eq!(place.lines_of("count"), 1);
    place.assert_clean();
}

#[test]
fn the_same_run_again_carries_on_with_what_may_run_again() {
    let place = Place::new();
    killed(&place, "p", "rerunnable");
    let done = place.done(&args("p", "rerunnable"));
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(done.stdout.lines().count(), 2, "{done:?}");
    assert_eq!(place.lines_of("count"), 2);
}

#[test]
fn a_cancel_after_a_kill_is_kept_and_nothing_is_run() {
    for (disposition, ends_as) in [("rerunnable", "cancelled"), ("owner-bound", "abandoned")] {
        let place = Place::new();
        killed(&place, "p", disposition);
        let process = place.json(&["cancel", "p", "--json"]);
        assert_ne!(process["cancel_request"], Value::Null, "{process}");
        let report = place.json(&["recover", "--json"]);
        assert_eq!(place.get("p")["lifecycle"], ends_as, "{report}");
        assert_eq!(place.lines_of("count"), 1);
        place.assert_clean();
    }
}

#[test]
fn an_abandon_after_a_kill_waits_for_recovery_and_keeps_its_reason() {
    let place = Place::new();
    killed(&place, "p", "rerunnable");
    let ask = [
        "abandon",
        "p",
        "--reason",
        "disk replaced",
        "--by",
        "ops",
        "--json",
    ];
    let process = place.json(&ask);
    assert_eq!(process["lifecycle"], "running");
    assert_eq!(process["abandon_request"]["reason"], "disk replaced");
    place.json(&["recover", "--json"]);
    assert_eq!(place.get("p")["lifecycle"], "abandoned");
    let events = place.events("p");
    let evidence = &events.last().expect("events")["payload"]["evidence"];
    assert_eq!(evidence["writer"], "reconciled_request", "{evidence}");
    assert_eq!(evidence["requested_by"], "ops");
    assert_eq!(place.lines_of("count"), 1);
    let late = place.done(&ask);
    assert_eq!(late.code, Some(65), "{late:?}");
    assert!(
        late.stderr.contains("already ended as abandoned"),
        "{late:?}"
    );
}

#[test]
fn a_run_recovers_what_an_earlier_one_left() {
    let place = Place::new();
    killed(&place, "p", "owner-bound");
    let fifo = place.fifo("fifo");
    let next = ["run", "--id", "q", "--", "sh", "-c", "read line < fifo"];
    let run = place.spawn_logged(&next, "log");
    place.until_logged("log", "recovered to its end");
    go_on(&fifo);
    assert_eq!(run.end().code, Some(0));
    assert_eq!(place.get("p")["lifecycle"], "abandoned");
    assert_eq!(place.lines_of("count"), 1);
}

#[test]
fn recovery_ends_what_a_killed_command_had_started() {
    let place = Place::new();
    let script = "sleep 600 & echo $$; wait";
    let mut run = place.spawn(&["run", "--id", "p", "--", "sh", "-c", script]);
    let group: u32 = run.line().parse().expect("a process group");
    run.kill();
    // The kernel ends the command itself; what it had started lives on.
    until("the command is gone with it", || {
        let left = group_members(group);
        left.len() == 1 && left != [group]
    });
    let survivor = group_members(group)[0];
    place.json(&["recover", "--json"]);
    assert_eq!(group_members(group), [0; 0]);
    let events = place.events("p");
    let evidence = &events.last().expect("events")["payload"]["evidence"];
    assert_eq!(evidence["writer"], "sweep", "{evidence}");
    let expected = json!([{ "pid": survivor, "ended": true }]);
    assert_eq!(evidence["survivors"], expected, "{evidence}");
}
