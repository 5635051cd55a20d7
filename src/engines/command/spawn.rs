//! Starting commands, so that they die with the runtime.
//!
//! On Linux a child asks the kernel to be killed when its parent is gone (`PR_SET_PDEATHSIG`,
//! prctl(2)). "Parent" means the *thread* that made it: a command started from a worker thread
//! would die with the worker. One thread, which lives as long as this operating-system process,
//! therefore starts them all; it belongs to no runtime, and several may use it.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{ChildStderr, ChildStdin, ChildStdout, Command};
use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::group::{Group, Waiter};
use super::survivors::{CommandIdentity, MARK_VARIABLE};

/// Starts that may wait for the thread; past it, callers wait.
const SPAWN_QUEUE_MAX: usize = 64;

/// A command that was just started. Dropped, it is killed with its group.
#[derive(Debug)]
pub(super) struct Started {
    pub(super) identity: CommandIdentity,
    pub(super) group: Group,
    pub(super) stdin: Option<ChildStdin>,
    pub(super) stdout: Option<ChildStdout>,
    pub(super) stderr: Option<ChildStderr>,
}

struct Request {
    command: Command,
    reply: oneshot::Sender<io::Result<Started>>,
}

/// Starts a command as the leader of a process group of its own.
///
/// # Cancel safety
/// Dropped before it returns, nothing was started, or it is killed at once.
///
/// # Errors
/// As [`Command::spawn`].
pub(super) async fn start(command: Command) -> io::Result<Started> {
    let (reply, started) = oneshot::channel();
    let gone = || io::Error::other("the thread that starts commands has ended");
    spawner()?
        .send(Request { command, reply })
        .await
        .map_err(|_| gone())?;
    started.await.map_err(|_| gone())?
}

fn spawner() -> io::Result<mpsc::Sender<Request>> {
    static SPAWNER: Mutex<Option<mpsc::Sender<Request>>> = Mutex::new(None);
    let mut spawner = SPAWNER.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(running) = spawner.as_ref().filter(|sender| !sender.is_closed()) {
        return Ok(running.clone());
    }
    let (sender, mut requests) = mpsc::channel::<Request>(SPAWN_QUEUE_MAX);
    std::thread::Builder::new()
        .name("procession-spawn".to_owned())
        .spawn(move || {
            while let Some(request) = requests.blocking_recv() {
                if !request.reply.is_closed() {
                    // If nobody waits for it any more, it is dropped, and so killed.
                    let _ = request.reply.send(spawn(request.command));
                }
            }
        })?;
    // Kept for good: the thread ends with the operating-system process.
    *spawner = Some(sender.clone());
    Ok(sender)
}

fn spawn(mut command: Command) -> io::Result<Started> {
    let mark = uuid::Uuid::new_v4().simple().to_string();
    command.env(MARK_VARIABLE, &mark).process_group(0);
    tie_to_runtime(&mut command);
    let waiter = Waiter::new()?;
    let mut child = command.spawn()?;
    let pid = child.id();
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let group = waiter.watch(child);
    Ok(Started {
        // The group holds the leader, so that this looks at no other process.
        identity: CommandIdentity::of(pid, mark),
        group,
        stdin,
        stdout,
        stderr,
    })
}

#[cfg(target_os = "linux")]
#[expect(
    unsafe_code,
    reason = "a parent-death signal can only be asked for between fork and exec"
)]
fn tie_to_runtime(command: &mut Command) {
    use rustix::io::Errno;
    use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};

    let runtime = getpid();
    let ask = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The runtime may have died before the request: then no signal will ever come.
        if getppid() != Some(runtime) {
            return Err(Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe work is allowed. This makes two system
    // calls; it allocates nothing, takes no lock, and an error made of an errno is a plain number.
    unsafe {
        command.pre_exec(ask);
    }
}

/// Elsewhere a command is not tied to the runtime: one that is killed leaves its commands running.
#[cfg(not(target_os = "linux"))]
fn tie_to_runtime(_: &mut Command) {}
