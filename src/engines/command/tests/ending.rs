//! How a command and its group are brought to an end.

use super::*;

const SHORT: Duration = Duration::from_millis(100);

#[tokio::test]
async fn a_cancelled_command_is_told_to_end_and_may_still_speak() {
    let attempt = Attempt::new().with_kill_grace(PATIENCE);
    let script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.05; done";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    attempt.cancel();
    let failure = ended(run).await.expect_err("cancelled");
    assert!(matches!(
        failure.cancelled,
        Some(CancelReason::Requested { .. })
    ));
    assert_eq!(
        failure.raw,
        Some(json!({ "exit_code": 7, "sigkill": false }))
    );
    assert_eq!(attempt.text("output.stdout"), "ready\nbye\n");
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn a_command_that_succeeds_although_cancelled_has_succeeded() {
    let attempt = Attempt::new().with_kill_grace(PATIENCE);
    let script = "trap 'exit 0' TERM; echo ready; while :; do sleep 0.05; done";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    attempt.cancel();
    assert_eq!(ended(run).await, Ok(json!({ "exit_code": 0 })));
}

#[tokio::test]
async fn a_stopped_command_can_be_cancelled() {
    let attempt = Attempt::new().with_kill_grace(PATIENCE);
    let run = attempt.start(json!({ "shell": "echo ready; kill -STOP $$" }));
    attempt.until_line("ready").await;
    attempt.cancel();
    let failure = ended(run).await.expect_err("cancelled");
    assert_eq!(failure.raw.expect("detail")["sigkill"], false);
}

#[tokio::test]
async fn a_group_that_ignores_the_request_is_killed() {
    let attempt = Attempt::new().with_kill_grace(SHORT);
    let script = "trap '' TERM; sleep 300 & (sleep 300 & sleep 300) & echo ready; wait";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    attempt.cancel();
    let failure = ended(run).await.expect_err("cancelled");
    assert_eq!(failure.raw, Some(json!({ "signal": 9, "sigkill": true })));
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn a_member_that_ignores_the_request_is_killed_although_its_leader_obeys() {
    let attempt = Attempt::new().with_kill_grace(SHORT);
    let script = "(trap '' TERM; echo ready; exec sleep 300) & exec sleep 300";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    attempt.cancel();
    let failure = ended(run).await.expect_err("cancelled");
    let raw = failure.raw.expect("detail");
    assert_eq!(raw["signal"], 15);
    #[cfg(target_os = "linux")]
    assert_eq!(raw["sigkill"], true);
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn a_lost_lease_leaves_no_time_to_be_polite() {
    let attempt = Attempt::new().with_kill_grace(Duration::from_secs(3_600));
    let script = "trap '' TERM; echo ready; while :; do sleep 300; done";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    attempt.cancel();
    // The first reason was polite; the second is not.
    attempt.cancel.fire(CancelReason::LeaseLost);
    let failure = ended(run).await.expect_err("cancelled");
    assert_eq!(failure.raw, Some(json!({ "signal": 9, "sigkill": true })));
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn what_is_cancelled_before_it_began_is_not_started() {
    let attempt = Attempt::new();
    attempt.cancel.fire(CancelReason::TimedOut);
    let failure = attempt.run(json!({ "program": "true" })).await;
    let failure = failure.expect_err("cancelled");
    assert_eq!(failure.cancelled, Some(CancelReason::TimedOut));
    assert_eq!(failure.raw, Some(json!({ "started": false })));
    assert_eq!(attempt.events(), []);
}

#[tokio::test]
async fn an_exit_code_that_was_there_first_is_not_a_cancellation() {
    // No room for the announcement: the command is over before anything can be said of it.
    let attempt = Attempt::with_room(0);
    let place = tempfile::tempdir().expect("a directory");
    let mark = place.path().join("mark");
    let script = "echo $$ > new; mv new mark; exit 3";
    let run = attempt.start(json!({ "shell": script, "cwd": place.path() }));
    until("it ran", || mark.exists()).await;
    let pid = std::fs::read_to_string(mark).expect("it is there");
    // Gone is what was reaped: the engine knows how it ended.
    until_reaped(pid.trim().parse().expect("a pid")).await;
    attempt.cancel();
    attempt.port.room.add_permits(100);
    let failure = ended(run).await.expect_err("not 0");
    assert_eq!(failure.code, "exit_status");
    assert_eq!(failure.raw, Some(json!({ "exit_code": 3 })));
}

#[tokio::test]
async fn what_outlives_its_leader_is_ended_with_it() {
    for script in [
        // Holds the pipes open.
        "sleep 300 & echo done",
        // Holds nothing.
        "sleep 300 < /dev/null > /dev/null 2>&1 & echo done",
        // Ignores the request to end.
        "(trap '' TERM; exec sleep 300) & echo done",
    ] {
        let attempt = Attempt::new().with_kill_grace(SHORT);
        let result = attempt.run(json!({ "shell": script })).await;
        assert_eq!(result, Ok(json!({ "exit_code": 0 })), "{script}");
        assert_eq!(attempt.text("output.stdout"), "done\n");
        until_group_is_gone(attempt.pid()).await;
    }
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn what_ends_shortly_after_its_leader_is_heard() {
    let attempt = Attempt::new().with_kill_grace(PATIENCE);
    let script = "(sleep 0.2; echo late) & echo early";
    assert!(attempt.run(json!({ "shell": script })).await.is_ok());
    assert_eq!(attempt.text("output.stdout"), "early\nlate\n");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn who_leaves_the_group_and_keeps_the_pipes_is_not_waited_for() {
    let attempt = Attempt::new();
    let script = "setsid sh -c 'echo $$; exec sleep 300' & read -r line < fifo";
    let place = tempfile::tempdir().expect("a directory");
    let fifo = format!("mkfifo fifo; {script}");
    let run = attempt.start(json!({ "shell": fifo, "cwd": place.path() }));
    attempt.until("its pid", |events| events.len() == 2).await;
    std::fs::write(place.path().join("fifo"), "go\n").expect("the shell reads it");
    assert_eq!(ended(run).await, Ok(json!({ "exit_code": 0 })));
    // It lives on, as documented; this test started it, and ends it.
    let pid = attempt.text("output.stdout").trim().parse().expect("a pid");
    let pid = Pid::from_raw(pid).expect("a pid");
    let end = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    assert_eq!(end, Ok(()));
}

#[tokio::test]
async fn a_dropped_attempt_kills_the_group_and_leaves_no_zombie() {
    let attempt = Attempt::new();
    let script = "trap '' TERM; sleep 300 & (sleep 300 & sleep 300) & echo ready; wait";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    run.abort();
    assert!(run.await.expect_err("aborted").is_cancelled());
    until_reaped(attempt.pid()).await;
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn an_attempt_that_is_dropped_while_the_log_is_full_kills_the_group() {
    let attempt = Attempt::with_room(2);
    let run = attempt.start(json!({ "program": "yes" }));
    attempt.until("no room", |events| events.len() == 2).await;
    run.abort();
    assert!(run.await.expect_err("aborted").is_cancelled());
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn many_commands_at_once_each_end_with_their_own_code() {
    let runs: Vec<_> = (1..=40)
        .map(|code| Attempt::new().start(json!({ "shell": format!("exit {code}") })))
        .collect();
    for (run, code) in runs.into_iter().zip(1..) {
        let failure = ended(run).await.expect_err("not 0");
        assert_eq!(failure.raw, Some(json!({ "exit_code": code })));
    }
}
