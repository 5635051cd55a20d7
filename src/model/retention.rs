//! What may be pruned, and what is left of it.

use serde::{Deserialize, Serialize};

use super::ids::Incarnation;
use super::json::ContentHash;
use super::output::TerminalState;

/// What remains of a pruned process. It holds no payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tombstone {
    pub(crate) incarnation: Incarnation,
    pub(crate) registration_hash: ContentHash,
    pub(crate) status: TerminalState,
    pub(crate) pruned_at_ms: u64,
    /// Events whose log was erased, or is being erased, behind the commit.
    pub(crate) events: u64,
}

/// What a prune took out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessPruneReport {
    /// Processes.
    pub pruned_processes: u64,
    /// Their events.
    pub pruned_events: u64,
    /// Grants on them.
    pub grants: u64,
    /// Leases that were still named on them.
    pub leases: u64,
    /// Wakes of theirs that had not been acknowledged.
    pub wakes: u64,
    /// Bytes of keys and values that were theirs, as they were encoded.
    pub bytes: u64,
}

impl ProcessPruneReport {
    pub(crate) fn add(&mut self, other: Self) {
        self.pruned_processes += other.pruned_processes;
        self.pruned_events += other.pruned_events;
        self.grants += other.grants;
        self.leases += other.leases;
        self.wakes += other.wakes;
        self.bytes += other.bytes;
    }
}

/// Whether a process may be pruned: it has ended, its terminal event is older than the cutoff, and
/// its last change is not past the watermark.
pub(crate) fn may_prune(
    terminal_at_ms: Option<u64>,
    feed_position: u64,
    cutoff_epoch_ms: u64,
    watermark: Option<u64>,
) -> bool {
    terminal_at_ms.is_some_and(|at| at < cutoff_epoch_ms)
        && watermark.is_none_or(|watermark| feed_position <= watermark)
}

#[cfg(test)]
mod tests {
    use super::may_prune;

    #[test]
    fn r1_only_terminal_older_than_the_cutoff_and_not_past_the_watermark() {
        assert!(may_prune(Some(9), 5, 10, None));
        assert!(may_prune(Some(9), 5, 10, Some(5)));
        assert!(!may_prune(None, 5, 10, None), "running");
        assert!(!may_prune(Some(10), 5, 10, None), "not older");
        assert!(!may_prune(Some(9), 6, 10, Some(5)), "not projected yet");
    }
}
