//! Finding and ending what a command left behind after its runtime was gone.
//!
//! A pid says little: once its process is gone, it is given to another. So nothing is signalled by
//! number here. The leader is known by pid, start time and boot. Another member of its group is
//! known by the group, which keeps its number for as long as the leader is there; without the
//! leader, by the mark that the engine puts into the environment of each command (as systemd does
//! with `INVOCATION_ID`). A signal goes through a pidfd, and only after the process behind it has
//! been compared again.

use std::collections::BTreeMap;
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::procfs::{self, ProcessStat};
use crate::model::Survivor;

/// The name of the variable that marks the processes of a command.
pub(super) const MARK_VARIABLE: &str = "PROCESSION_COMMAND";

/// How long is waited until what was killed is gone.
const SETTLE_MAX: Duration = Duration::from_secs(2);
const POLL_EVERY: Duration = Duration::from_millis(10);

/// What recovery does with what it finds alive of a command whose runtime is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum SurvivorPolicy {
    /// Ends it with SIGKILL, as the parent-death signal ends the command itself.
    #[default]
    End,
    /// Leaves it alone and says that it is there.
    Report,
}

/// What a `command.spawned` event says: which process leads the command's group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct CommandIdentity {
    /// Process id, and id of the process group.
    pub(super) pid: u32,
    /// Absent where the system does not tell, as is the boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) start_time_ticks: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) boot_id: Option<String>,
    /// The value of the variable that marks its processes.
    pub(super) mark: String,
}

impl CommandIdentity {
    /// The identity of a process that cannot go away meanwhile: a child that is not reaped yet.
    pub(super) fn of(pid: u32, mark: String) -> Self {
        Self {
            pid,
            start_time_ticks: ProcessStat::of(pid).map(|stat| stat.start_time_ticks),
            boot_id: procfs::boot_id().map(str::to_owned),
            mark,
        }
    }

    pub(super) fn parse(payload: &Value) -> Option<Self> {
        Self::deserialize(payload).ok()
    }

    /// Whether anything of it can be alive. Two system calls and a short file, and the answer is
    /// nearly always no: recovery asks it of every command whose owner is gone.
    fn may_live(&self) -> bool {
        let (Some(_), Some(boot_id)) = (self.start_time_ticks, &self.boot_id) else {
            return false;
        };
        procfs::boot_id() == Some(boot_id)
            && match ProcessStat::of(self.pid) {
                Some(leader) => self.is_leader(&leader),
                None => group_exists(self.pid),
            }
    }

    fn is_leader(&self, stat: &ProcessStat) -> bool {
        Some(stat.start_time_ticks) == self.start_time_ticks
    }

    /// What is alive of it.
    pub(super) fn survivors(&self) -> Vec<ProcessStat> {
        if !self.may_live() {
            return Vec::new();
        }
        let mut found = procfs::group_members(self.pid).unwrap_or_default();
        let leader = ProcessStat::of(self.pid).filter(|stat| self.is_leader(stat));
        match leader {
            // It was there before and after the look: the group had its number all the while.
            Some(leader) => {
                found.extend((leader.alive && leader.group != self.pid).then_some(leader))
            }
            None => {
                let entry = format!("{MARK_VARIABLE}={}", self.mark);
                found.retain(|stat| procfs::has_environment_entry(stat.pid, &entry));
            }
        }
        found
    }

    /// Finds what is alive and does with it as the policy says.
    ///
    /// # Cancel safety
    /// Dropped, it may have ended some and not all; asked again, it goes on.
    pub(super) async fn settle(&self, policy: SurvivorPolicy) -> Vec<Survivor> {
        if !self.may_live() {
            return Vec::new();
        }
        let deadline = tokio::time::Instant::now() + SETTLE_MAX;
        let mut ended = BTreeMap::new();
        loop {
            let identity = self.clone();
            // Looks at every process of the machine. Refused only by a runtime that goes away.
            let Ok(alive) = tokio::task::spawn_blocking(move || identity.survivors()).await else {
                break;
            };
            ended.values_mut().for_each(|ended| *ended = true);
            ended.extend(alive.iter().map(|stat| (stat.pid, false)));
            let over = alive.is_empty() || tokio::time::Instant::now() >= deadline;
            if over || policy == SurvivorPolicy::Report {
                break;
            }
            for stat in &alive {
                kill_exactly(stat);
            }
            tokio::time::sleep(POLL_EVERY).await;
        }
        ended
            .into_iter()
            .map(|(pid, ended)| Survivor { pid, ended })
            .collect()
    }
}

fn raw_pid(pid: u32) -> Option<Pid> {
    Pid::from_raw(i32::try_from(pid).ok()?)
}

/// Signal 0 asks and does nothing. A group that may not be signalled exists, too.
fn group_exists(group: u32) -> bool {
    raw_pid(group).is_some_and(|group| {
        rustix::process::test_kill_process_group(group) != Err(rustix::io::Errno::SRCH)
    })
}

/// Kills this process and no other that has its number.
#[cfg(target_os = "linux")]
fn kill_exactly(process: &ProcessStat) {
    use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let same = || {
        ProcessStat::of(process.pid)
            .is_some_and(|now| now.start_time_ticks == process.start_time_ticks)
    };
    let Some(pid) = raw_pid(process.pid) else {
        return;
    };
    // The descriptor stands for whatever had the number when it was opened, and stays with it: if
    // that is the one that was found, the signal can reach nothing else.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return;
    };
    if same() {
        // It may have ended by itself; whether it is gone is looked at afterwards.
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
    }
}

/// Elsewhere nothing is found, and so nothing is killed.
#[cfg(not(target_os = "linux"))]
fn kill_exactly(_: &ProcessStat) {}
