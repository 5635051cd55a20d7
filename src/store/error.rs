//! What can go wrong below the typed store.

use std::sync::Arc;

/// A failure of the store itself, as opposed to a refused condition.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Another runtime has the store open.
    #[error("store {path} is in use by another runtime")]
    Busy {
        /// The store's directory.
        path: String,
    },
    /// The store was written by a newer release.
    #[error("store format {found} is newer than this release can read ({supported})")]
    TooNew {
        /// Format version found.
        found: u32,
        /// Newest version this release reads.
        supported: u32,
    },
    /// The store was written by a release too old to be migrated from.
    #[error("store format {found} is older than this release can read ({supported})")]
    TooOld {
        /// Format version found.
        found: u32,
        /// Oldest version this release reads.
        supported: u32,
    },
    /// Stored bytes are not what was written.
    #[error("store is corrupted: {what}")]
    Corrupted {
        /// Which bytes, and how it was noticed.
        what: String,
    },
    /// A proposal broke a rule of the store, or its code panicked. Only that proposal is affected.
    #[error("not a valid commit: {what}")]
    Invalid {
        /// Which rule.
        what: String,
    },
    /// An input or output error. Nothing further is acknowledged until the store is reopened.
    #[error("store failed, nothing further is acknowledged until it is reopened: {cause}")]
    Failed {
        /// The first failure.
        cause: Arc<str>,
    },
    /// A view was held longer than the store keeps one.
    #[error("view expired after {held_ms} ms")]
    ViewExpired {
        /// How long it had been open.
        held_ms: u64,
    },
    /// Numbers are handed out faster than they can be reserved durably.
    #[error("no reserved {counter} left, retry")]
    NumbersExhausted {
        /// Which counter.
        counter: &'static str,
    },
    /// The store was closed.
    #[error("store is closed")]
    Closed,
}
