//! Commands whose runtime is gone.
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use super::*;
use crate::engines::command::SurvivorPolicy;
use crate::engines::command::procfs::{ProcessStat, boot_id};
use crate::engines::command::survivors::CommandIdentity;
use crate::engines::command::{SPAWNED, spawn};

/// A runtime that is killed, in an operating-system process of its own: the next test starts it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "only of use to the test that kills it"]
async fn a_runtime_that_is_killed() {
    let Ok(script) = std::env::var("PROCESSION_TEST_SCRIPT") else {
        return;
    };
    let attempt = Attempt::new();
    let run = attempt.start(json!({ "shell": script }));
    attempt.until_line("ready").await;
    let spawned = attempt.events()[0].payload.to_string();
    std::fs::write(std::env::var("PROCESSION_TEST_FILE").expect("set"), spawned).expect("written");
    std::io::Write::write_all(&mut std::io::stderr(), b"\nready\n").expect("a reader");
    let _ = run.await;
}

/// Runs a script in a runtime, kills the runtime, and returns what the log says.
fn killed_runtime(script: &str) -> ProcessEvent {
    let place = tempfile::tempdir().expect("a directory");
    let file = place.path().join("spawned");
    let mut runtime = Command::new(std::env::current_exe().expect("a test"))
        .args(["--ignored", "--nocapture", "--exact"])
        .arg("engines::command::tests::recovery::a_runtime_that_is_killed")
        .env("PROCESSION_TEST_SCRIPT", script)
        .env("PROCESSION_TEST_FILE", &file)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the runtime starts");
    let said = BufReader::new(runtime.stderr.take().expect("piped"));
    let ready = said.lines().any(|line| line.expect("text") == "ready");
    runtime.kill().expect("it runs");
    runtime.wait().expect("it was killed");
    assert!(ready, "the command did not get ready");
    let payload = std::fs::read_to_string(file).expect("written before it was ready");
    let payload: Value = serde_json::from_str(&payload).expect("json");
    event(1, ProcessEventAppendRequest::new(SPAWNED, payload))
}

fn pid_of(event: &ProcessEvent) -> u32 {
    u32::try_from(event.payload["pid"].as_u64().expect("a number")).expect("a pid")
}

#[tokio::test]
async fn a_command_dies_with_its_runtime_and_what_it_started_is_found_and_ended() {
    let spawned = killed_runtime("sleep 300 & sleep 300 & echo ready; wait");
    let leader = pid_of(&spawned);
    until("the kernel has ended the command", || {
        ProcessStat::of(leader).is_none_or(|stat| !stat.alive)
    })
    .await;
    let expected: Vec<_> = group_members(leader)
        .expect("linux")
        .iter()
        .map(|stat| stat.pid)
        .collect();
    assert_eq!(expected.len(), 2);

    let report = CommandEngine::new().with_survivors(SurvivorPolicy::Report);
    let found = report.end_survivors(&spawned).await;
    let mut pids: Vec<_> = found.iter().map(|survivor| survivor.pid).collect();
    pids.sort_unstable();
    assert_eq!(pids, expected);
    assert!(found.iter().all(|survivor| !survivor.ended));
    assert_eq!(group_members(leader).expect("linux").len(), 2);

    let ended = CommandEngine::new().end_survivors(&spawned).await;
    assert_eq!(ended.len(), 2);
    assert!(ended.iter().all(|survivor| survivor.ended));
    until_group_is_gone(leader).await;
    assert_eq!(CommandEngine::new().end_survivors(&spawned).await, []);
}

#[tokio::test]
async fn a_command_without_company_leaves_no_survivor() {
    let spawned = killed_runtime("echo ready; exec sleep 300");
    until_group_is_gone(pid_of(&spawned)).await;
    assert_eq!(CommandEngine::new().end_survivors(&spawned).await, []);
}

/// A process that is none of a command's. Ended when the test is over.
struct Stranger(Child);

impl Stranger {
    fn leading_a_group(program: &str, args: &[&str]) -> Self {
        let child = Command::new(program).args(args).process_group(0).spawn();
        Self(child.expect("it starts"))
    }

    fn identity(&self) -> CommandIdentity {
        CommandIdentity::of(self.0.id(), "some-mark".to_owned())
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn survivors_of(identity: &CommandIdentity) -> Vec<crate::model::Survivor> {
    let spawned = ProcessEventAppendRequest::new(SPAWNED, json!(identity));
    CommandEngine::new().end_survivors(&event(1, spawned)).await
}

#[tokio::test]
async fn a_process_that_got_the_pid_of_a_command_is_not_touched() {
    let mut stranger = Stranger::leading_a_group("sleep", &["300"]);
    let identity = stranger.identity();
    let start_time_ticks = identity.start_time_ticks.map(|ticks| ticks - 1);
    for other in [
        CommandIdentity {
            start_time_ticks,
            ..identity.clone()
        },
        CommandIdentity {
            start_time_ticks: None,
            ..identity.clone()
        },
        CommandIdentity {
            boot_id: Some("another".to_owned()),
            ..identity.clone()
        },
        CommandIdentity {
            boot_id: None,
            ..identity.clone()
        },
    ] {
        assert_eq!(survivors_of(&other).await, []);
        assert_eq!(stranger.0.try_wait().expect("ours"), None, "{other:?}");
    }
    // What tells them apart is those two and nothing else.
    let survivors = survivors_of(&identity).await;
    assert_eq!(survivors.len(), 1);
    assert!(survivors[0].ended && survivors[0].pid == stranger.0.id());
}

#[tokio::test]
async fn a_group_that_got_the_number_of_a_commands_group_is_not_touched() {
    // Its leader is gone, as a command's is; it says who it is through the pipe.
    let mut stranger = Stranger(
        Command::new("sh")
            .args(["-c", "sleep 300 > /dev/null & echo $!"])
            .process_group(0)
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts"),
    );
    let identity = stranger.identity();
    let said = stranger.0.stdout.take().expect("piped");
    let member = BufReader::new(said)
        .lines()
        .next()
        .expect("a line")
        .expect("text");
    stranger.0.wait().expect("ours");
    assert_eq!(boot_id(), identity.boot_id.as_deref());
    assert_eq!(survivors_of(&identity).await, []);
    let member = ProcessStat::of(member.parse().expect("a pid")).expect("it lives");
    assert!(member.alive && member.group == identity.pid);
    let pid = Pid::from_raw(i32::try_from(member.pid).expect("a pid")).expect("a pid");
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("this test's own");
}

#[tokio::test]
async fn an_event_that_says_nothing_ends_nothing() {
    for payload in [
        json!({}),
        json!(7),
        json!({ "pid": -1, "mark": "" }),
        json!({ "pid": 0, "mark": "" }),
    ] {
        let spawned = event(1, ProcessEventAppendRequest::new(SPAWNED, payload));
        assert_eq!(CommandEngine::new().end_survivors(&spawned).await, []);
    }
    assert_eq!(
        CommandEngine::new()
            .survivor_key(record(3).whole())
            .as_deref(),
        Some("command.spawned/3")
    );
}

#[test]
fn a_command_outlives_the_thread_and_the_runtime_that_asked_for_it() {
    let mut command = Command::new("cat");
    command.stdin(Stdio::piped()).stdout(Stdio::null());
    let asked = std::thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(spawn::start(command)).expect("it starts")
    });
    let started = asked.join().expect("no panic");
    // The kernel would have killed it by now, had that thread been its parent.
    let identity = &started.identity;
    assert!(ProcessStat::of(identity.pid).is_some_and(|stat| stat.alive));
    drop(started.stdin);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let mut group = started.group;
    let status = runtime.block_on(async move {
        group.leader_ended().await;
        group.reap().await
    });
    assert_eq!(status.expect("ours").code(), Some(0));
}
