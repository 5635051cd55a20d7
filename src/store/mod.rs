//! Durable state: write sets go in, consistent views come out.

pub(crate) mod clock;
pub(crate) mod codec;
pub(crate) mod error;
pub(crate) mod keys;
pub(crate) mod kv;
#[cfg(test)]
mod kv_laws;
#[cfg(test)]
mod laws;
pub(crate) mod locks;
pub(crate) mod memory_kv;
#[cfg(test)]
pub(crate) mod noted;
pub(crate) mod panics;
pub(crate) mod process_store;
pub(crate) mod query;
pub(crate) mod read;
pub(crate) mod resolve;
pub(crate) mod sled_kv;
pub(crate) mod taken;
#[cfg(test)]
mod testing;
pub(crate) mod verify;
pub(crate) mod walk_thread;
pub(crate) mod write_set;
pub(crate) mod writes;
