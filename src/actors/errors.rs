//! What a failure below means to a caller.

use crate::model::{Error, SessionScope};
use crate::store::error::StoreError;
use crate::store::query::QueryError;
use crate::store::walk_thread::WalkError;
use crate::store::write_set::{CommitError, Refusal};

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Busy { path } => Self::StoreBusy { path },
            StoreError::TooNew { found, supported } => Self::StoreTooNew { found, supported },
            StoreError::TooOld { found, supported } => Self::StoreTooOld { found, supported },
            StoreError::Corrupted { what } => Self::Corrupted { what },
            StoreError::Failed { cause } => Self::StoreFailed {
                cause: cause.to_string(),
            },
            StoreError::ViewExpired { held_ms } => Self::Timeout {
                what: "a read of one consistent state, ask for it in pages".to_owned(),
                waited_ms: held_ms,
            },
            StoreError::NumbersExhausted { counter } => Self::Overloaded {
                what: format!("reservation of {counter}"),
                limit: 65_536,
            },
            StoreError::Invalid { what } => Self::invalid("store", what, "see the builder"),
            StoreError::Closed => Self::ShuttingDown,
        }
    }
}

impl From<WalkError> for Error {
    fn from(error: WalkError) -> Self {
        match error {
            WalkError::Panicked { .. } => Self::Corrupted {
                what: error.to_string(),
            },
            // As where the fence gets none.
            WalkError::NoThread { cause } => Self::Overloaded {
                what: format!("threads: {cause}"),
                limit: 0,
            },
        }
    }
}

impl From<QueryError> for Error {
    fn from(error: QueryError) -> Self {
        match error {
            QueryError::Cursor => Self::invalid(
                "page.cursor",
                "does not belong to this list",
                "a cursor that this same list returned",
            ),
            QueryError::Store(error) => error.into(),
        }
    }
}

/// The error of a commit that concerns one process. Refusals that a caller can be told of are
/// handled where they arise; one that gets here means that somebody else wrote at the same time.
pub(super) fn commit_error(process_id: &str, error: CommitError) -> Error {
    match error {
        CommitError::Refused(refusal) => refused(process_id, &refusal),
        CommitError::NotWritten(error) => error.into(),
        CommitError::Unknown(error) => Error::CommitUnknown {
            process_id: process_id.to_owned(),
            cause: error.to_string(),
        },
    }
}

fn refused(process_id: &str, refusal: &Refusal) -> Error {
    match refusal {
        Refusal::Pruned(tombstone) => Error::NoLongerRetained {
            process_id: process_id.to_owned(),
            status: tombstone.status,
            pruned_at: tombstone.pruned_at_ms,
        },
        Refusal::Gone => Error::unknown(process_id),
        Refusal::IdTaken(_) => Error::Conflict {
            process_id: process_id.to_owned(),
            what: "the id".to_owned(),
        },
        Refusal::ReplayTaken => Error::Conflict {
            process_id: process_id.to_owned(),
            what: "the replay key".to_owned(),
        },
        Refusal::Superseded | Refusal::OwnerLapsed | Refusal::Leased => Error::Superseded {
            process_id: process_id.to_owned(),
            token: 0,
        },
        Refusal::NotGranted => Error::NotGranted {
            scope: String::new(),
            ids: vec![process_id.to_owned()],
        },
        Refusal::ParentStopping => Error::invalid(
            "parent",
            "has ended or was asked to cancel",
            "children are started by a running parent",
        )
        .for_process(process_id),
        Refusal::Moved
        | Refusal::Ended
        | Refusal::Predecessor
        | Refusal::TooMany
        | Refusal::NothingToDo => Error::Overloaded {
            what: format!("concurrent writers of process {process_id}"),
            limit: 1,
        },
    }
}

/// A scope that lacks grants.
pub(super) fn not_granted(scope: &SessionScope, ids: Vec<String>) -> Error {
    Error::NotGranted {
        scope: scope.id(),
        ids,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_that_failed_says_why_and_is_no_failure_of_the_store() {
        let what = "index out of bounds".to_owned();
        let error = Error::from(WalkError::Panicked { what });
        assert!(matches!(error, Error::Corrupted { .. }), "{error:?}");
        assert!(
            error.to_string().ends_with(": index out of bounds"),
            "{error}"
        );
        let cause = "resource temporarily unavailable".to_owned();
        let error = Error::from(WalkError::NoThread { cause });
        assert!(matches!(error, Error::Overloaded { .. }), "{error:?}");
    }
}
