#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

mod actors;
mod api;
mod engines;
mod model;
mod store;

pub use actors::{RecoveryReport, RecoveryStep, RecoveryTotals, ShutdownReport};
pub use api::{
    ChangeFeed, Effect, EffectController, EffectExecution, EffectOutcome, InMemoryStore,
    InlineEffects, JournaledEffects, ProcessWorkObserver, Processes, ScopedEffectController,
    SessionHandle, SessionProcessAdmin, SessionWatch, ShutdownOptions, StoreStats, Subscription,
    Supervisor, SupervisorBuilder,
};
pub use engines::{
    CancelReason, EngineFailure, EngineResult, PayloadProblem, ProcessContext, ProcessEngine,
};
#[cfg(all(feature = "command", unix, not(target_os = "openbsd")))]
pub use engines::{CommandEngine, SurvivorPolicy};
pub use model::*;
pub use store::clock::{Clock, SystemClock};
pub use store::kv::Durability;
