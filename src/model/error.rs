//! The one public error.

use super::{TerminalState, limits};

/// The crate's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call did not do what was asked. Nothing was written unless the variant says otherwise.
///
/// Messages are lower-case fragments that name the process and the cause.
///
/// ```
/// # use procession::Error;
/// fn should_retry(error: &Error) -> bool {
///     matches!(error, Error::Overloaded { .. } | Error::CommitUnknown { .. })
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An input is outside its limit.
    #[error("{field}{}: {reason} (limit: {limit})", of_process(.process_id.as_deref()))]
    InvalidInput {
        /// The field, in the words of the request.
        field: String,
        /// What is wrong with it.
        reason: String,
        /// The limit that it breaks, with its unit.
        limit: String,
        /// The process it was meant for, where there is one.
        process_id: Option<String>,
    },
    /// The same key already stands for other content.
    #[error("process {process_id}: {what} already exists with other content")]
    Conflict {
        /// The process.
        process_id: String,
        /// What is in conflict: the id itself, a replay key, a signal id, an external reference.
        what: String,
    },
    /// No such process, or none that the caller may see.
    #[error("unknown process {process_id}")]
    UnknownProcess {
        /// The id as it was asked for.
        process_id: String,
    },
    /// The process was pruned.
    #[error("process {process_id} ended as {status} and was pruned at {pruned_at} (epoch ms)")]
    NoLongerRetained {
        /// The process.
        process_id: String,
        /// How it had ended.
        status: TerminalState,
        /// When it was pruned, milliseconds since the epoch.
        pruned_at: u64,
    },
    /// The process has ended and accepts nothing more.
    #[error("process {process_id} has already ended as {status}")]
    AlreadyTerminal {
        /// The process.
        process_id: String,
        /// How it ended.
        status: TerminalState,
    },
    /// The event type was not declared at start, or is reserved.
    #[error("process {process_id}: event type {event_type:?} {reason}")]
    UndeclaredEvent {
        /// The process.
        process_id: String,
        /// The event type.
        event_type: String,
        /// Why it is refused.
        reason: String,
    },
    /// A payload breaks the schema of its event type.
    #[error("process {process_id}: payload of {event_type} is invalid at {path:?}: {reason}")]
    InvalidPayload {
        /// The process.
        process_id: String,
        /// The event type, or `input` for an engine's check at start.
        event_type: String,
        /// JSON pointer to the offending part.
        path: String,
        /// What the schema or the engine says.
        reason: String,
    },
    /// The scope holds no grant for these processes.
    #[error("{scope} holds no grant for {}", ids.join(", "))]
    NotGranted {
        /// The scope, in its text form.
        scope: String,
        /// The ids that are not granted.
        ids: Vec<String>,
    },
    /// No engine is registered for this kind.
    #[error("process {process_id}: no engine is registered for kind {kind:?}")]
    UnknownEngine {
        /// The process.
        process_id: String,
        /// The kind asked for.
        kind: String,
    },
    /// Another owner holds the lease, or this one's has lapsed: the write was refused.
    #[error("process {process_id}: fencing token {token} is no longer current")]
    Superseded {
        /// The process.
        process_id: String,
        /// The token that was presented.
        token: u64,
    },
    /// A replayed effect differs from the one that was recorded.
    #[error("effect {effect} in {scope} was recorded with other content: {difference}")]
    ReplayMismatch {
        /// The execution scope.
        scope: String,
        /// The effect key.
        effect: String,
        /// What differs.
        difference: String,
    },
    /// A feed cursor is older than what the feed still knows.
    #[error(
        "cursor {cursor} is older than the oldest position kept ({oldest}), read everything anew"
    )]
    CursorTooOld {
        /// The cursor that was presented.
        cursor: u64,
        /// The oldest that would be accepted.
        oldest: u64,
    },
    /// The time allowed for waiting is over; the process goes on.
    #[error("timed out after {waited_ms} ms waiting for {what}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// How long, in milliseconds.
        waited_ms: u64,
    },
    /// A bound was reached; nothing was written, try again later.
    #[error("overloaded: {what} is at its bound of {limit}, retry later")]
    Overloaded {
        /// Which queue or bound.
        what: String,
        /// The bound.
        limit: u64,
    },
    /// The runtime is shutting down or has shut down.
    #[error("the runtime is shutting down")]
    ShuttingDown,
    /// Another runtime has the store open.
    #[error("store {path} is in use by another runtime")]
    StoreBusy {
        /// The store.
        path: String,
    },
    /// The store was written by a newer release.
    #[error(
        "store format {found} is newer than this release reads ({supported}), use a newer release"
    )]
    StoreTooNew {
        /// Format found.
        found: u32,
        /// Newest format this release reads.
        supported: u32,
    },
    /// The store was written by a release too old to migrate from.
    #[error(
        "store format {found} is older than this release reads ({supported}), migrate with an earlier release"
    )]
    StoreTooOld {
        /// Format found.
        found: u32,
        /// Oldest format this release reads.
        supported: u32,
    },
    /// Stored bytes are not what was written.
    #[error("store is corrupted: {what}")]
    Corrupted {
        /// Which bytes, and how it was noticed.
        what: String,
    },
    /// Input or output failed: nothing further is acknowledged until the store is reopened.
    #[error("store failed, reopen it: {cause}")]
    StoreFailed {
        /// The first failure.
        cause: String,
    },
    /// It may or may not have happened: retry with the same key.
    #[error(
        "process {process_id}: the commit may or may not have happened ({cause}), retry with the same key"
    )]
    CommitUnknown {
        /// The process.
        process_id: String,
        /// Why it is not known.
        cause: String,
    },
}

fn of_process(process_id: Option<&str>) -> String {
    process_id.map_or_else(String::new, |id| format!(" of process {id}"))
}

impl Error {
    /// An input outside its limit.
    pub(crate) fn invalid(
        field: impl Into<String>,
        reason: impl Into<String>,
        limit: impl Into<String>,
    ) -> Self {
        Self::InvalidInput {
            field: field.into(),
            reason: reason.into(),
            limit: limit.into(),
            process_id: None,
        }
    }

    /// The same error, naming the process the input was meant for.
    #[must_use]
    pub(crate) fn for_process(mut self, id: &str) -> Self {
        if let Self::InvalidInput { process_id, .. } = &mut self {
            // An id that is itself out of bounds is not repeated at full length.
            *process_id = Some(clip(id, limits::ID_BYTES_MAX).to_owned());
        }
        self
    }

    /// No such process, or none that the caller may see.
    pub(crate) fn unknown(id: &str) -> Self {
        Self::UnknownProcess {
            process_id: clip(id, limits::ID_BYTES_MAX).to_owned(),
        }
    }
}

/// The longest prefix of a text that fits into so many bytes and ends at a character.
pub(crate) fn clip(text: &str, bytes_max: usize) -> &str {
    if text.len() <= bytes_max {
        return text;
    }
    let end = (0..=bytes_max)
        .rev()
        .find(|at| text.is_char_boundary(*at))
        .unwrap_or(0);
    text.get(..end).unwrap_or("")
}
