//! Durable, supervised processes for agent hosts.
#![deny(missing_docs)]

mod engines;
mod model;
#[expect(dead_code, reason = "the layers above arrive in the next commits")]
mod store;

pub use engines::{
    CancelReason, EngineFailure, EngineResult, PayloadProblem, ProcessContext, ProcessEngine,
};
#[cfg(all(feature = "command", unix, not(target_os = "openbsd")))]
pub use engines::{CommandEngine, SurvivorPolicy};
pub use model::*;
