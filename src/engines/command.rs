//! The engine that runs operating-system commands.

mod group;
mod lines;
mod output;
mod procfs;
mod spawn;
mod spec;
mod survivors;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use self::group::Group;
use self::output::{Budget, Pump, STDERR, STDOUT, TRUNCATED};
use self::spawn::Started;
use self::spec::CommandSpec;
use self::survivors::CommandIdentity;
pub use self::survivors::SurvivorPolicy;
use super::{
    CancelReason, EngineFailure, EngineResult, PayloadProblem, ProcessContext, ProcessEngine,
};
use crate::model::error::clip;
use crate::model::limits::TEXT_BYTES_MAX;
use crate::model::{
    ProcessEvent, ProcessEventAppendRequest, ProcessEventType, ProcessRecord, Result, Survivor,
};

const SPAWNED: &str = "command.spawned";

/// Runs operating-system commands: the engine of kind `command`.
///
/// # Payload
///
/// | field | |
/// |---|---|
/// | `program` | What to run: a path, or a name that is looked up in `PATH`. A path that is relative is so to `cwd`. |
/// | `args` | Its arguments, strings. |
/// | `shell` | Instead of both: a script for `/bin/sh -c`. |
/// | `cwd` | Where to run it, an absolute path; the runtime's own directory if absent. |
/// | `env` | Variables to set, or with `null` to remove. The rest is inherited from the runtime. `PROCESSION_COMMAND` is set by the engine: it marks the command's processes. |
/// | `stdin` | A text to be read by it; nothing if absent. |
/// | `max_output_bytes` | How much output is kept, both streams together: 0 to 1 GiB, 8 MiB if absent. |
///
/// A field that is `null` is absent. Programs and strings that hold NUL, and fields that are not
/// listed, are refused at start.
///
/// # Events
///
/// | type | payload |
/// |---|---|
/// | `command.spawned` | `pid`, `start_time_ticks`, `boot_id`, `mark`: which process it is. Durable before any output is said. |
/// | `output.stdout`, `output.stderr` | `lines`, without their newlines. `"partial": true` if the last of them goes on in the stream's next event, or is the output's last and has no newline. `"invalid_utf8": true` if bytes were replaced by U+FFFD. |
/// | `output.truncated` | `max_output_bytes`, once. The command runs on; what else it prints is thrown away. |
///
/// A line is said as soon as nothing more is there to be read; under load an event has up to 64
/// lines or about 16 KiB. Lines longer than 16 KiB come in pieces. The order is kept within a
/// stream, not between the two. A command that prints faster than its log grows has to wait.
///
/// # Outcome
///
/// | the command | the attempt |
/// |---|---|
/// | exits with 0 | success, `{"exit_code": 0}` |
/// | exits with another code | failure `exit_status`, raw `{"exit_code": n}`, retryable |
/// | is killed by a signal | failure `killed_by_signal`, raw `{"signal": n}`, retryable |
/// | cannot be started | failure `spawn_failed`, raw `{"errno", "kind", "program", "cwd"}` |
/// | is cancelled and does not exit with 0 | cancelled, raw `{"exit_code" or "signal", "sigkill"}` |
/// | is reaped by somebody else | failure `exit_unknown`; see below |
///
/// # Its process group
///
/// A command runs in a process group of its own, and the group ends with it, as in a systemd
/// service with `KillMode=control-group`. When it has exited, what is left of its group has a
/// second to finish, then gets SIGTERM, and after the grace period SIGKILL. What is to outlive a
/// command is a process of its own, or leaves the group with setsid(2); from then on it is beyond
/// this engine, and its output is no longer read. Where it cannot be seen who is left, which is
/// everywhere but on Linux, the rest gets a tenth of a second and SIGKILL.
///
/// On cancellation the whole group gets SIGTERM, and after the grace period
/// ([`CommandEngine::with_kill_grace`]) SIGKILL; when the lease is lost, SIGKILL follows at once.
/// When the attempt is aborted, the group gets SIGKILL.
///
/// A host that ignores SIGCHLD, or that reaps children it did not start, takes the exit code away,
/// and with it the certainty that the group's number is still its own: what is left of the group
/// is then ended only where it can be told apart, as after a crash.
///
/// # When the runtime dies
///
/// On Linux the kernel kills a command whose runtime is gone. (Not one that executes a setuid
/// program: that clears the request, prctl(2).) The processes it had started are found at recovery
/// by what `command.spawned` says, and are ended or reported ([`CommandEngine::with_survivors`]);
/// a reused pid is never hit. Not found are those that left the group, that wiped their
/// environment once the command itself was gone, or whose runtime died before `command.spawned`
/// was durable: in that case it is not said that there are none. What ran on another machine is not
/// looked for there. This needs `/proc` and Linux 5.3. Elsewhere commands survive their runtime, and no
/// survivor is found.
///
/// # Examples
///
/// ```
/// use procession::{CommandEngine, ProcessEngine, SurvivorPolicy};
/// use serde_json::json;
/// use std::time::Duration;
///
/// let engine = CommandEngine::new()
///     .with_kill_grace(Duration::from_secs(3))
///     .with_survivors(SurvivorPolicy::Report);
/// assert!(engine.check(&json!({ "program": "ls", "args": ["-l"], "cwd": "/" })).is_ok());
/// let problem = engine.check(&json!({ "shell": "ls", "env": { "A=B": "" } })).unwrap_err();
/// assert_eq!(problem.path, "/env/A=B");
/// ```
#[derive(Debug, Clone)]
pub struct CommandEngine {
    kill_grace: Duration,
    survivors: SurvivorPolicy,
}

impl Default for CommandEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl CommandEngine {
    /// Output that is kept of a command that does not say how much, in bytes.
    pub const OUTPUT_BYTES_DEFAULT: u64 = 8 << 20;
    /// Most output that a command may ask to be kept, in bytes.
    pub const OUTPUT_BYTES_MAX: u64 = 1 << 30;
    /// Time between SIGTERM and SIGKILL unless configured: less than the ten seconds after which
    /// the runtime aborts an attempt, so that the attempt can still say how it ended.
    pub const KILL_GRACE_DEFAULT: Duration = Duration::from_secs(8);

    /// With its defaults.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            kill_grace: Self::KILL_GRACE_DEFAULT,
            survivors: SurvivorPolicy::End,
        }
    }

    /// With this time between SIGTERM and SIGKILL. Should stay below the runtime's own grace
    /// period: past that the attempt is aborted, and its group is killed anyway.
    #[must_use]
    pub const fn with_kill_grace(mut self, kill_grace: Duration) -> Self {
        self.kill_grace = kill_grace;
        self
    }

    /// With this way to treat what is found alive at recovery.
    #[must_use]
    pub const fn with_survivors(mut self, survivors: SurvivorPolicy) -> Self {
        self.survivors = survivors;
        self
    }

    /// Sees the group to its end: the leader's, and that of whatever outlives it.
    async fn see_through(
        &self,
        cx: &ProcessContext,
        identity: &CommandIdentity,
        mut group: Group,
        refused: &CancellationToken,
    ) -> Ending {
        let stop = tokio::select! {
            biased;
            () = group.leader_ended() => None,
            reason = cx.cancelled() => Some(Stop::Asked(reason)),
            () = refused.cancelled() => Some(Stop::Refused),
        };
        let mut sigkill = false;
        if stop.is_some() || group.lingers(cx.cancelled()).await {
            group.terminate();
            let deadline = Instant::now() + self.kill_grace;
            let killed = tokio::select! {
                biased;
                () = group.leader_ended() => false,
                () = patience(cx, deadline) => true,
            };
            if killed {
                group.kill();
                group.leader_ended().await;
            }
            sigkill = group.end_rest(patience(cx, deadline)).await || killed;
        }
        if !group.is_held() {
            // Its number may be another's by now: only what is proven to be of it is ended.
            identity.settle(SurvivorPolicy::End).await;
        }
        Ending {
            stop,
            sigkill,
            status: group.reap().await,
        }
    }
}

/// Resolves when SIGKILL is due. With the lease gone, somebody else may run the command any moment.
async fn patience(cx: &ProcessContext, deadline: Instant) {
    tokio::select! {
        () = sleep_until(deadline) => {}
        () = cx.lease_lost() => {}
    }
}

/// Why a command was told to end.
enum Stop {
    Asked(CancelReason),
    /// The runtime did not take an event.
    Refused,
}

/// How a command ended.
struct Ending {
    stop: Option<Stop>,
    /// Whether SIGTERM was not enough for some of its group.
    sigkill: bool,
    status: io::Result<ExitStatus>,
}

impl Ending {
    fn outcome(self) -> EngineResult {
        let detail = match &self.status {
            Ok(status) => match (status.code(), status.signal()) {
                (Some(0), _) => return Ok(json!({ "exit_code": 0 })),
                (Some(code), _) => json!({ "exit_code": code }),
                (None, signal) => json!({ "signal": signal }),
            },
            Err(_) => json!({}),
        };
        if let Some(Stop::Asked(reason)) = self.stop {
            let mut detail = detail;
            detail["sigkill"] = self.sigkill.into();
            return Err(EngineFailure::cancelled(reason).with_raw(detail));
        }
        let failure = match &self.status {
            Ok(status) => match status.code() {
                Some(code) => EngineFailure::new("exit_status", format!("exited with {code}")),
                None => EngineFailure::new("killed_by_signal", format!("killed: {status}")),
            }
            // Nobody but who asked for retries gets them.
            .retryable(),
            Err(error) => EngineFailure::new(
                "exit_unknown",
                format!("something else in the runtime has reaped the command: {error}"),
            ),
        };
        Err(failure.with_raw(detail))
    }
}

/// The ends of the pipes that the runtime holds.
struct Pipes {
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
    stderr: ChildStderr,
}

impl Pipes {
    /// Registers them with the reactor of the runtime that runs this.
    fn open(started: &mut Started) -> io::Result<Self> {
        let missing = || io::Error::other("a pipe is missing");
        Ok(Self {
            stdin: started.stdin.take().map(ChildStdin::from_std).transpose()?,
            stdout: ChildStdout::from_std(started.stdout.take().ok_or_else(missing)?)?,
            stderr: ChildStderr::from_std(started.stderr.take().ok_or_else(missing)?)?,
        })
    }
}

/// Says which process it is, and then what it prints.
async fn say(
    cx: &ProcessContext,
    identity: &CommandIdentity,
    (stdout, stderr): (ChildStdout, ChildStderr),
    budget: &Budget,
    group_ended: &CancellationToken,
) -> Result<()> {
    let spawned = ProcessEventAppendRequest::new(SPAWNED, json!(identity))
        .with_replay_key(Some(spawned_key(cx.attempt())));
    cx.emit_durable(spawned).await?;
    tokio::try_join!(
        Pump::new(cx, STDOUT, stdout, budget, group_ended).run(),
        Pump::new(cx, STDERR, stderr, budget, group_ended).run(),
    )?;
    Ok(())
}

/// Lets the command read its input. It need not: one that does not care closes the pipe, or ends.
async fn feed(stdin: Option<ChildStdin>, text: Option<&str>, group_ended: &CancellationToken) {
    let (Some(mut stdin), Some(text)) = (stdin, text) else {
        return;
    };
    tokio::select! {
        written = stdin.write_all(text.as_bytes()) => {
            if let Err(error) = written && error.kind() != io::ErrorKind::BrokenPipe {
                tracing::warn!(%error, "the input of a command cannot be written");
            }
        }
        () = group_ended.cancelled() => {}
    }
}

fn spawned_key(attempt: u32) -> String {
    format!("{SPAWNED}/{attempt}")
}

fn spawn_failed(spec: &CommandSpec, error: &io::Error) -> EngineFailure {
    let program = clip(spec.program(), TEXT_BYTES_MAX);
    let cwd = spec.cwd().map(|cwd| clip(cwd, TEXT_BYTES_MAX));
    let place = cwd.map_or("the runtime's directory".to_owned(), |cwd| {
        format!("{cwd:?}")
    });
    // The system does not say which of the two it means.
    let message = match spec.cwd() {
        Some(cwd) if !std::path::Path::new(cwd).is_dir() => {
            format!("cannot start {program:?} in {place}, which is no directory: {error}")
        }
        _ => format!("cannot start {program:?} in {place}: {error}"),
    };
    let failure = EngineFailure::new("spawn_failed", message).with_raw(json!({
        "errno": error.raw_os_error(),
        "kind": format!("{:?}", error.kind()),
        "program": program,
        "cwd": cwd,
    }));
    // Shortages pass.
    match Errno::from_io_error(error) {
        Some(Errno::AGAIN | Errno::NOMEM | Errno::MFILE | Errno::NFILE | Errno::TXTBSY) => {
            failure.retryable()
        }
        _ => failure,
    }
}

fn not_started(reason: CancelReason) -> EngineFailure {
    EngineFailure::cancelled(reason).with_raw(json!({ "started": false }))
}

#[async_trait::async_trait]
impl ProcessEngine for CommandEngine {
    fn kind(&self) -> &str {
        "command"
    }

    fn event_types(&self) -> Vec<ProcessEventType> {
        let output = json!({
            "type": "object",
            "required": ["lines"],
            "properties": {
                "lines": { "type": "array", "items": { "type": "string" } },
                "partial": { "const": true },
                "invalid_utf8": { "const": true },
            },
            "additionalProperties": false,
        });
        vec![
            ProcessEventType::new(SPAWNED).with_schema(json!({
                "type": "object",
                "required": ["pid", "mark"],
                "properties": {
                    "pid": { "type": "integer", "minimum": 1 },
                    "start_time_ticks": { "type": "integer", "minimum": 0 },
                    "boot_id": { "type": "string" },
                    "mark": { "type": "string" },
                },
                "additionalProperties": false,
            })),
            ProcessEventType::new(STDOUT).with_schema(output.clone()),
            ProcessEventType::new(STDERR).with_schema(output),
            ProcessEventType::new(TRUNCATED).with_schema(json!({
                "type": "object",
                "required": ["max_output_bytes"],
                "properties": { "max_output_bytes": { "type": "integer", "minimum": 0 } },
                "additionalProperties": false,
            })),
        ]
    }

    fn check(&self, payload: &Value) -> std::result::Result<(), PayloadProblem> {
        CommandSpec::parse(payload).map(drop)
    }

    async fn run(&self, cx: ProcessContext, payload: Value) -> EngineResult {
        let spec = CommandSpec::parse(&payload).map_err(|problem| {
            EngineFailure::invalid_input(format!("payload{}: {}", problem.path, problem.reason))
        })?;
        let mut started = tokio::select! {
            biased;
            reason = cx.cancelled() => return Err(not_started(reason)),
            started = spawn::start(spec.command()) => {
                started.map_err(|error| spawn_failed(&spec, &error))?
            }
        };
        let pipes = Pipes::open(&mut started).map_err(|error| spawn_failed(&spec, &error))?;
        let Started {
            identity, group, ..
        } = started;
        let budget = Budget::new(spec.max_output_bytes);
        let (refused, group_ended) = (CancellationToken::new(), CancellationToken::new());
        // All of it is one future: where the attempt is dropped, so is the group, and is killed.
        let (ending, said, ()) = tokio::join!(
            async {
                let ending = self.see_through(&cx, &identity, group, &refused).await;
                group_ended.cancel();
                ending
            },
            async {
                let outputs = (pipes.stdout, pipes.stderr);
                let said = say(&cx, &identity, outputs, &budget, &group_ended).await;
                if said.is_err() {
                    refused.cancel();
                }
                said
            },
            feed(pipes.stdin, spec.stdin.as_deref(), &group_ended),
        );
        said?;
        ending.outcome()
    }

    fn survivor_key(&self, record: &ProcessRecord) -> Option<String> {
        Some(spawned_key(record.attempt))
    }

    async fn end_survivors(&self, event: &ProcessEvent) -> Vec<Survivor> {
        match CommandIdentity::parse(&event.payload) {
            Some(identity) if event.event_type == SPAWNED => identity.settle(self.survivors).await,
            _ => Vec::new(),
        }
    }
}
