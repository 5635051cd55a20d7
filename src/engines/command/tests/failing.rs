//! Commands that fail, or cannot even be started.

use rustix::process::{Signal, WaitOptions, kill_process, waitpid};

use super::*;
use crate::engines::command::group::Waiter;
use crate::model::FailureClass;

#[tokio::test]
async fn an_exit_code_is_a_failure_that_says_it() {
    let attempt = Attempt::new();
    let payload = json!({ "shell": "echo one; echo two >&2; exit 3" });
    let failure = attempt.run(payload).await.expect_err("not 0");
    assert_eq!(failure.code, "exit_status");
    assert_eq!(failure.message, "exited with 3");
    assert_eq!(failure.raw, Some(json!({ "exit_code": 3 })));
    assert_eq!(
        (failure.class, failure.retryable),
        (FailureClass::Execution, true)
    );
    assert_eq!(failure.cancelled, None);
    assert_eq!(attempt.text("output.stdout"), "one\n");
    assert_eq!(attempt.text("output.stderr"), "two\n");
}

#[tokio::test]
async fn a_signal_is_a_failure_that_says_it() {
    let attempt = Attempt::new();
    let payload = json!({ "shell": "echo last words; kill -USR1 $$" });
    let failure = attempt.run(payload).await.expect_err("killed");
    assert_eq!(failure.code, "killed_by_signal");
    assert_eq!(failure.raw, Some(json!({ "signal": 10 })));
    assert_eq!(attempt.text("output.stdout"), "last words\n");
}

#[tokio::test]
async fn a_command_that_cannot_be_started_says_why() {
    for (payload, errno, kind, told) in [
        (
            json!({ "program": "no-such-program" }),
            2,
            "NotFound",
            "\"no-such-program\"",
        ),
        (
            json!({ "program": "/etc/passwd" }),
            13,
            "PermissionDenied",
            "\"/etc/passwd\"",
        ),
        (
            json!({ "program": "true", "cwd": "/no/such/place" }),
            2,
            "NotFound",
            "in \"/no/such/place\", which is no directory",
        ),
    ] {
        let attempt = Attempt::new();
        let failure = attempt.run(payload.clone()).await.expect_err("not started");
        assert_eq!(failure.code, "spawn_failed");
        assert!(failure.message.contains(told), "{}", failure.message);
        assert!(!failure.retryable);
        let raw = failure.raw.expect("detail");
        assert_eq!((&raw["errno"], &raw["kind"]), (&json!(errno), &json!(kind)));
        assert_eq!(raw["program"], payload["program"]);
        assert_eq!(raw["cwd"], payload["cwd"]);
        assert_eq!(attempt.events(), []);
    }
}

#[tokio::test]
async fn a_command_whose_exit_code_was_taken_away_says_so() {
    let attempt = Attempt::new().with_kill_grace(PATIENCE);
    // Who stays behind and does not go keeps the engine from reaping the leader.
    let script = "(trap '' TERM; exec sh -c 'echo $$; exec sleep 300') & true";
    let run = attempt.start(json!({ "shell": script }));
    attempt.until("its pid", |events| events.len() == 2).await;
    let leader = Pid::from_raw(i32::try_from(attempt.pid()).expect("a pid"));
    let thief = tokio::task::spawn_blocking(move || waitpid(leader, WaitOptions::empty()));
    assert!(thief.await.expect("no panic").is_ok());
    let member = attempt.text("output.stdout").trim().parse().expect("a pid");
    // Ended already where the engine saw the theft.
    let _ = kill_process(Pid::from_raw(member).expect("a pid"), Signal::KILL);
    let failure = ended(run).await.expect_err("unknown");
    assert_eq!(failure.code, "exit_unknown");
    until_group_is_gone(attempt.pid()).await;
}

#[tokio::test]
async fn a_group_that_was_reaped_by_somebody_else_is_not_signalled() {
    let child = std::process::Command::new("true")
        .spawn()
        .expect("it starts");
    let pid = Pid::from_child(&child);
    assert!(waitpid(Some(pid), WaitOptions::empty()).is_ok());
    let mut group = Waiter::new().expect("a thread").watch(child);
    group.leader_ended().await;
    assert!(!group.is_held());
    assert!(group.reap().await.is_err());
}

#[tokio::test]
async fn a_payload_that_was_not_checked_is_refused() {
    let failure = Attempt::new().run(json!({ "program": "" })).await;
    let failure = failure.expect_err("empty");
    assert_eq!(failure.class, FailureClass::InvalidInput);
    assert_eq!(failure.message, "payload/program: is empty");
}

#[tokio::test]
async fn a_refused_announcement_ends_the_command_before_it_says_anything() {
    let attempt = Attempt::new();
    *attempt.port.refusal.lock().expect("not poisoned") = Some(Error::ShuttingDown);
    let place = tempfile::tempdir().expect("a directory");
    let payload = json!({ "shell": "echo $$ > pid; exec sleep 300", "cwd": place.path() });
    let failure = attempt.run(payload).await.expect_err("refused");
    assert_eq!(failure.cancelled, Some(CancelReason::Shutdown));
    assert_eq!(attempt.events(), []);
    // It may have been ended before it could write.
    let pid = std::fs::read_to_string(place.path().join("pid")).unwrap_or_default();
    if let Ok(pid) = pid.trim().parse() {
        until_group_is_gone(pid).await;
    }
}

#[tokio::test]
async fn a_refused_line_ends_the_command() {
    let attempt = Attempt::new();
    let run = attempt.start(json!({ "shell": "echo ready; while echo more; do sleep 0.01; done" }));
    attempt.until_line("ready").await;
    *attempt.port.refusal.lock().expect("not poisoned") = Some(Error::Superseded {
        process_id: "p".to_owned(),
        token: 7,
    });
    let failure = ended(run).await.expect_err("refused");
    assert_eq!(failure.cancelled, Some(CancelReason::LeaseLost));
    until_group_is_gone(attempt.pid()).await;
}
