//! Durable, supervised processes for agent hosts.
#![deny(missing_docs)]

mod actors;
mod engines;
mod model;
mod store;

pub use actors::{RecoveryReport, RecoveryStep};
pub use engines::{
    CancelReason, EngineFailure, EngineResult, PayloadProblem, ProcessContext, ProcessEngine,
};
pub use model::*;
