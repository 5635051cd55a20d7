//! What Linux says about processes, in `/proc` (proc(5)). Elsewhere there is no answer.

use std::fs;
use std::sync::OnceLock;

/// The part of `/proc/PID/stat` that matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ProcessStat {
    pub(super) pid: u32,
    pub(super) group: u32,
    /// Ticks since boot. With the pid and the boot, it names a process for good.
    pub(super) start_time_ticks: u64,
    /// Neither a zombie nor dead.
    pub(super) alive: bool,
}

impl ProcessStat {
    pub(super) fn of(pid: u32) -> Option<Self> {
        if !cfg!(target_os = "linux") {
            return None;
        }
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(stat: &str) -> Option<Self> {
        // The second field is the name in parentheses, which may itself hold anything.
        let (pid, _) = stat.split_once(' ')?;
        let (_, rest) = stat.rsplit_once(") ")?;
        // From the third field on: state, ppid, pgrp.
        let mut fields = rest.split_ascii_whitespace();
        let state = fields.next()?;
        let group = fields.nth(1)?.parse().ok()?;
        // The start time is field 22.
        let start_time_ticks = fields.nth(22 - 6)?.parse().ok()?;
        Some(Self {
            pid: pid.parse().ok()?,
            group,
            start_time_ticks,
            alive: !matches!(state, "Z" | "X" | "x"),
        })
    }
}

/// Every process of a group that is alive; `None` where that cannot be seen.
///
/// Reads the state of every process of the machine: some microseconds each.
pub(super) fn group_members(group: u32) -> Option<Vec<ProcessStat>> {
    if !cfg!(target_os = "linux") {
        return None;
    }
    let members = fs::read_dir("/proc")
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // A process that ends meanwhile has no state any more: it is no member then.
        .filter_map(ProcessStat::of)
        .filter(|stat| stat.alive && stat.group == group)
        .collect();
    Some(members)
}

/// Whether a process was started with this entry (`NAME=value`) in its environment.
pub(super) fn has_environment_entry(pid: u32, entry: &str) -> bool {
    cfg!(target_os = "linux")
        && fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environ| {
            environ
                .split(|byte| *byte == 0)
                .any(|found| found == entry.as_bytes())
        })
}

/// The id of this boot of the machine.
pub(super) fn boot_id() -> Option<&'static str> {
    static BOOT_ID: OnceLock<Option<String>> = OnceLock::new();
    BOOT_ID
        .get_or_init(|| {
            let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
            Some(id.trim().to_owned())
        })
        .as_deref()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "4242 (a) R 1 (b c) S 17 4240 4240 0 -1 4194304 97 0 0 0 0 0 0 0 20 0 1 0 \
                    237090 3133440 382 18446744073709551615\n";
        assert_eq!(
            ProcessStat::parse(stat),
            Some(ProcessStat {
                pid: 4242,
                group: 4240,
                start_time_ticks: 237_090,
                alive: true
            })
        );
        let zombie = stat.replace(") S ", ") Z ");
        assert!(!ProcessStat::parse(&zombie).expect("well-formed").alive);
        for hostile in [
            "",
            "1",
            "1 (x",
            "1 (x) S",
            "x (x) S 1 2 3",
            "1 (x) S 1 2 3 4 5",
        ] {
            assert_eq!(ProcessStat::parse(hostile), None, "{hostile:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_found_in_its_group() {
        let own = ProcessStat::of(std::process::id()).expect("it lives");
        assert!(own.alive);
        assert!(group_members(own.group).expect("linux").contains(&own));
        assert!(boot_id().is_some_and(|id| id.len() == 36));
    }
}
