//! Every limit at its boundary: exactly at it is accepted, one over is refused by name.

mod commands;
mod start;
mod types;

use super::error::{Error, Result};

/// A refusal must name the field, the limit and the process.
#[track_caller]
pub(super) fn refused<T: std::fmt::Debug>(found: Result<T>, field: &str, limit: &str) {
    match found {
        Err(Error::InvalidInput {
            field: named,
            limit: broken,
            process_id,
            ..
        }) => {
            assert_eq!((named.as_str(), broken.as_str()), (field, limit));
            assert_eq!(process_id.as_deref(), Some("p-1"), "of {field}");
        }
        other => panic!("{field}: {other:?}"),
    }
}

/// The same where no process is meant.
#[track_caller]
pub(super) fn refused_alone<T: std::fmt::Debug>(found: Result<T>, field: &str, limit: &str) {
    match found {
        Err(Error::InvalidInput {
            field: named,
            limit: broken,
            process_id,
            ..
        }) => {
            assert_eq!((named.as_str(), broken.as_str()), (field, limit));
            assert_eq!(process_id, None, "of {field}");
        }
        other => panic!("{field}: {other:?}"),
    }
}

#[track_caller]
pub(super) fn accepted<T>(found: Result<T>) -> T {
    found.unwrap_or_else(|error| panic!("{error}"))
}

pub(super) const ID: &str = "1 to 256 bytes";
pub(super) const ID_LONG: &str = "256 bytes";
pub(super) const NO_CONTROL: &str = "no control characters";
pub(super) const EVENT_NAME: &str = "[A-Za-z0-9_.-]{1,128}";
pub(super) const SIGNAL_NAME: &str = "[A-Za-z0-9_-]{1,128}";

/// 256 bytes in 128 characters: limits count bytes.
pub(super) fn longest_id() -> String {
    "é".repeat(128)
}
