//! Durable state.

pub(crate) mod clock;
pub(crate) mod error;
pub(crate) mod kv;
#[cfg(test)]
mod kv_laws;
mod locks;
pub(crate) mod memory_kv;
pub(crate) mod sled_kv;
