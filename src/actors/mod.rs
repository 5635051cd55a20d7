//! The actors: ractor, and only here.
//!
//! A root supervisor holds them all: the registry (grants and transfers), the dispatcher (queue and
//! slots), the keeper (this runtime's heartbeat as an owner), the reaper (recovery and retention),
//! and an actor for each process that something is happening to.

mod changes;
pub(crate) mod config;
mod dispatcher;
mod elapsed;
mod errors;
mod fence;
pub(crate) mod hub;
pub(crate) mod keeper;
mod open;
mod owning;
pub(crate) mod process;
mod prune;
pub(crate) mod reads;
mod reaper;
mod registry;
mod retention;
mod root;
pub(crate) mod runtime;
mod sessions;
pub(crate) mod start;
#[cfg(test)]
mod tests;
pub(crate) mod work;

pub(crate) use open::Runtime;
pub use open::ShutdownReport;
pub(crate) use reaper::SWEEP_EVERY_MIN;
pub use reaper::{RecoveryReport, RecoveryStep, RecoveryTotals};
