//! Durable state.

pub(crate) mod clock;
pub(crate) mod error;
pub(crate) mod kv;
