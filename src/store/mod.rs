//! Durable state.

pub(crate) mod clock;
pub(crate) mod codec;
pub(crate) mod error;
pub(crate) mod keys;
pub(crate) mod kv;
pub(crate) mod read;
pub(crate) mod resolve;
pub(crate) mod write_set;
