//! Durable, supervised processes for agent hosts.
#![deny(missing_docs)]

#[expect(dead_code, reason = "the layers above arrive in the next commits")]
mod store;
