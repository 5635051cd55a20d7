//! Durable, supervised processes for agent hosts.
#![deny(missing_docs)]

mod engines;
mod model;
#[expect(dead_code, reason = "the layers above arrive in the next commits")]
mod store;

pub use engines::{
    CancelReason, EngineFailure, EngineResult, PayloadProblem, ProcessContext, ProcessEngine,
};
pub use model::*;
