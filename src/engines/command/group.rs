//! A command that runs: its process group, its end, and its cleaning up.

use std::io;
use std::process::{Child, ExitStatus};
use std::sync::mpsc as blocking;
use std::time::Duration;

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use super::procfs;

/// How long members of a group may outlive its leader before they are told to end. Long enough for
/// the tail of a pipeline to finish, short enough that nobody takes it for a place to live.
const LINGER_MAX: Duration = Duration::from_secs(1);
/// How long is waited until what was killed is gone.
const SETTLE_MAX: Duration = Duration::from_secs(1);
/// How long is waited where it cannot be seen whether anybody is left.
const BLIND_PAUSE: Duration = Duration::from_millis(100);
const POLL_FIRST: Duration = Duration::from_millis(2);
const POLL_LAST: Duration = Duration::from_millis(50);
/// The waiting thread calls two functions and keeps nothing on its stack.
const WAITER_STACK_BYTES: usize = 64 << 10;

/// A process group whose leader is a child of this process. Dropped, it kills the group.
///
/// A thread waits for the leader **without reaping it**: a dead child keeps its number, and a group
/// that has a member keeps its own, so that a signal to the group can never reach another one.
/// The leader is reaped when the group is let go.
#[derive(Debug)]
pub(super) struct Group {
    leader: Pid,
    /// Whether the number is known to be the group's.
    held: bool,
    leader_ended: Option<oneshot::Receiver<()>>,
    /// Dropped, it lets the thread reap the leader.
    hold: Option<blocking::Sender<()>>,
    reaped: Option<oneshot::Receiver<io::Result<ExitStatus>>>,
}

/// The thread that will wait for a leader: made first, so that there is no child without one.
pub(super) struct Waiter {
    child: blocking::Sender<Child>,
    leader_ended: oneshot::Receiver<()>,
    hold: blocking::Sender<()>,
    reaped: oneshot::Receiver<io::Result<ExitStatus>>,
}

impl Waiter {
    pub(super) fn new() -> io::Result<Self> {
        let (child, to_wait_for) = blocking::channel();
        let (hold, held) = blocking::channel();
        let (ended, leader_ended) = oneshot::channel();
        let (reaps, reaped) = oneshot::channel();
        std::thread::Builder::new()
            .name("procession-wait".to_owned())
            .stack_size(WAITER_STACK_BYTES)
            .spawn(move || {
                // Nothing comes where the command could not be started.
                if let Ok(child) = to_wait_for.recv() {
                    wait(child, ended, &held, reaps);
                }
            })?;
        Ok(Self {
            child,
            leader_ended,
            hold,
            reaped,
        })
    }

    /// The group that this child leads.
    pub(super) fn watch(self, child: Child) -> Group {
        let group = Group {
            leader: Pid::from_child(&child),
            held: true,
            leader_ended: Some(self.leader_ended),
            hold: Some(self.hold),
            reaped: Some(self.reaped),
        };
        // The thread waits for nothing else.
        let _ = self.child.send(child);
        group
    }
}

fn wait(
    mut child: Child,
    ended: oneshot::Sender<()>,
    held: &blocking::Receiver<()>,
    reaped: oneshot::Sender<io::Result<ExitStatus>>,
) {
    let leader = Pid::from_child(&child);
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let seen = loop {
        match rustix::process::waitid(WaitId::Pid(leader), options) {
            Err(rustix::io::Errno::INTR) => {}
            seen => break seen,
        }
    };
    if let Err(error) = seen {
        // Somebody else reaps the children of this process. The number is nobody's any more: to
        // wait for it could take the end of another child away.
        drop(ended);
        let _ = reaped.send(Err(error.into()));
        return;
    }
    // Nobody may listen any more; then the group has been killed and let go.
    let _ = ended.send(());
    // Nothing is ever sent: this returns when the other end is dropped.
    let _ = held.recv();
    let _ = reaped.send(child.wait());
}

impl Group {
    /// Resolves when the leader has ended.
    ///
    /// # Cancel safety
    /// Safe to drop and call again.
    pub(super) async fn leader_ended(&mut self) {
        if let Some(ended) = &mut self.leader_ended {
            self.held = ended.await.is_ok();
            self.leader_ended = None;
        }
    }

    /// Tells every member to end. A stopped one is woken up to hear it.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
        self.signal(Signal::CONT);
    }

    /// Kills every member.
    pub(super) fn kill(&self) {
        self.signal(Signal::KILL);
    }

    fn signal(&self, signal: Signal) {
        if self.held {
            // An empty group, or members that may not be signalled: looked at afterwards.
            let _ = rustix::process::kill_process_group(self.leader, signal);
        }
    }

    /// Whether the group is known to have its number: nobody else has reaped its leader.
    pub(super) const fn is_held(&self) -> bool {
        self.held
    }

    /// Whether somebody outlives the leader for longer than is decent, or than `hurry` takes.
    pub(super) async fn lingers(&self, hurry: impl Future) -> bool {
        tokio::select! {
            biased;
            alone = self.alone() => alone == Alone::Unseen,
            () = sleep(LINGER_MAX) => true,
            _ = hurry => true,
        }
    }

    /// Waits until nobody is left beside the leader, which has ended. When `patience` resolves
    /// first, the rest is killed; says whether that was needed.
    pub(super) async fn end_rest(&self, patience: impl Future<Output = ()>) -> bool {
        let ended = tokio::select! {
            biased;
            alone = self.alone() => Some(alone),
            () = patience => None,
        };
        if ended == Some(Alone::Seen) {
            return false;
        }
        self.kill();
        if timeout(SETTLE_MAX, self.alone()).await.is_err() {
            tracing::warn!(
                group = self.leader.as_raw_pid(),
                "members of a command's process group outlive SIGKILL"
            );
        }
        // Where nothing can be seen, SIGKILL went out in case; that says nothing.
        ended.is_none()
    }

    /// Resolves when the leader has no company any more; where that cannot be seen, after a pause.
    async fn alone(&self) -> Alone {
        let mut pause = POLL_FIRST;
        loop {
            let group = self.leader.as_raw_pid().unsigned_abs();
            // Reads the state of every process. Fails only in a runtime that goes away.
            let members = tokio::task::spawn_blocking(move || procfs::group_members(group)).await;
            match members.ok().flatten() {
                None => {
                    sleep(BLIND_PAUSE).await;
                    return Alone::Unseen;
                }
                Some(members) if members.is_empty() => return Alone::Seen,
                Some(_) => sleep(pause).await,
            }
            pause = (pause * 2).min(POLL_LAST);
        }
    }

    /// Lets the leader be reaped, and says how it ended. The number is free from here on.
    ///
    /// # Errors
    /// Somebody else has reaped it.
    pub(super) async fn reap(mut self) -> io::Result<ExitStatus> {
        self.held = false;
        self.hold = None;
        match self.reaped.take() {
            Some(reaped) => reaped.await.unwrap_or_else(|_| {
                Err(io::Error::other("the thread that waits for it has ended"))
            }),
            None => Err(io::Error::other("it was reaped before")),
        }
    }
}

impl Drop for Group {
    /// The execution was aborted: nobody is left to be patient. The thread reaps the leader.
    fn drop(&mut self) {
        if let Some(ended) = &mut self.leader_ended {
            self.held &= ended.try_recv() != Err(oneshot::error::TryRecvError::Closed);
        }
        self.kill();
    }
}

/// Whether the leader is without company.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Alone {
    Seen,
    Unseen,
}
