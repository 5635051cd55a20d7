//! Numbers that must not be mixed up, and the checks on ids and names.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result, clip};
use super::limits::{ID_BYTES_MAX, NAME_BYTES_MAX, SIGNAL_EVENT_PREFIX};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The plain number.
            #[must_use]
            pub const fn get(self) -> u64 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A store-wide rising number that a process gets at start: an id that was pruned and started
    /// again is another incarnation.
    Incarnation
}
number! {
    /// A store-wide rising number that a lease gets when it is acquired; a write carries it and
    /// commits only while it is current (Kleppmann, "How to do distributed locking", 2016).
    FencingToken
}
number! {
    /// The number of an open of the store. In a store that only one runtime can have open, a
    /// lower epoch proves that its owner can no longer write.
    StoreEpoch
}
number! {
    /// The number of an owner incarnation inside the store; [`ProcessOwner`](super::ProcessOwner)
    /// is what it stands for.
    OwnerNumber
}

/// Checks an id or a part of a scope: 1 to 256 bytes of UTF-8 without control characters.
pub(crate) fn check_id(field: &str, id: &str) -> Result<()> {
    check_text(field, id, ID_BYTES_MAX)?;
    if id.is_empty() {
        return Err(Error::invalid(
            field,
            "is empty",
            format!("1 to {ID_BYTES_MAX} bytes"),
        ));
    }
    Ok(())
}

/// Checks a text that may be empty: so many bytes, no control characters.
pub(crate) fn check_text(field: &str, text: &str, bytes_max: usize) -> Result<()> {
    if text.len() > bytes_max {
        return Err(Error::invalid(
            field,
            format!("has {} bytes", text.len()),
            format!("{bytes_max} bytes"),
        ));
    }
    if let Some(control) = text.chars().find(|c| c.is_control()) {
        return Err(Error::invalid(
            field,
            format!("contains the control character {control:?}"),
            "no control characters",
        ));
    }
    Ok(())
}

/// Checks an event name: `[A-Za-z0-9_.-]{1,128}`.
pub(crate) fn check_event_name(field: &str, name: &str) -> Result<()> {
    check_name(name, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-')
    })
    .map_err(|reason| Error::invalid(field, reason, "[A-Za-z0-9_.-]{1,128}"))
}

/// Checks the name of a declared event type: an event name, or `signal.` and a signal name, which
/// may be of full length by itself.
pub(crate) fn check_event_type_name(field: &str, name: &str) -> Result<()> {
    match name.strip_prefix(SIGNAL_EVENT_PREFIX) {
        Some(signal_name) => check_signal_name(field, signal_name),
        None => check_event_name(field, name),
    }
}

/// Checks a signal name: `[A-Za-z0-9_-]{1,128}`, an event name without dots.
pub(crate) fn check_signal_name(field: &str, name: &str) -> Result<()> {
    check_name(name, |c| {
        c.is_ascii_alphanumeric() || matches!(c, '_' | '-')
    })
    .map_err(|reason| Error::invalid(field, reason, "[A-Za-z0-9_-]{1,128}"))
}

fn check_name(name: &str, allowed: impl Fn(char) -> bool) -> std::result::Result<(), String> {
    if name.is_empty() {
        return Err("is empty".to_owned());
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(format!("has {} bytes", name.len()));
    }
    match name.chars().find(|c| !allowed(*c)) {
        Some(c) => Err(format!("{:?} contains {c:?}", clip(name, 64))),
        None => Ok(()),
    }
}
