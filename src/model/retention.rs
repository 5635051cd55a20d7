//! What may be pruned, and what is left of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::filter::ProcessListFilter;
use super::ids::Incarnation;
use super::json::ContentHash;
use super::output::TerminalState;
use super::session_report::ChangeCursor;

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

/// Which processes a prune may take out.
///
/// ```
/// use procession::{ProcessListFilter, PruneSelector};
/// let selector = PruneSelector::older_than(1_700_000_000_000)
///     .with_filter(ProcessListFilter::any().with_status(procession::StatusFilter::Completed));
/// # let _ = selector;
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruneSelector {
    /// Only what ended before this, milliseconds since the epoch.
    pub cutoff_epoch_ms: u64,
    /// Only what this admits; its status is about how they ended.
    #[serde(default = "ProcessListFilter::any")]
    pub filter: ProcessListFilter,
    /// Nothing that changed past this cursor of the change feed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_past: Option<ChangeCursor>,
}

impl PruneSelector {
    /// Everything that ended before a cutoff.
    #[must_use]
    pub fn older_than(cutoff_epoch_ms: u64) -> Self {
        Self {
            cutoff_epoch_ms,
            filter: ProcessListFilter::any(),
            not_past: None,
        }
    }

    /// Only what a filter admits.
    #[must_use]
    pub fn with_filter(mut self, filter: ProcessListFilter) -> Self {
        self.filter = filter;
        self
    }

    /// Nothing that changed past a cursor.
    #[must_use]
    pub fn with_watermark(mut self, not_past: Option<ChangeCursor>) -> Self {
        self.not_past = not_past;
        self
    }
}

/// How long ended processes are kept before the reaper prunes them.
///
/// ```
/// use procession::RetentionPolicy;
/// let policy = RetentionPolicy::parse("7d")?;
/// # let _ = policy;
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionPolicy {
    /// How long after its end a process is kept.
    #[serde(with = "super::duration")]
    pub keep_terminal_for: Duration,
    /// Which processes this is about.
    #[serde(default = "ProcessListFilter::any")]
    pub filter: ProcessListFilter,
}

impl RetentionPolicy {
    /// All processes, for so long.
    #[must_use]
    pub fn keep_terminal_for(keep_terminal_for: Duration) -> Self {
        Self {
            keep_terminal_for,
            filter: ProcessListFilter::any(),
        }
    }

    /// The same from humantime text such as `7d`.
    ///
    /// # Errors
    /// `InvalidInput` if the text is no duration.
    pub fn parse(keep_terminal_for: &str) -> Result<Self> {
        super::duration::parse("retention.keep_terminal_for", keep_terminal_for)
            .map(Self::keep_terminal_for)
    }

    /// Only what a filter admits.
    #[must_use]
    pub fn with_filter(mut self, filter: ProcessListFilter) -> Self {
        self.filter = filter;
        self
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
