//! What hosts touch.

mod commands;
mod effects;
mod following;
mod observer;
mod processes;
mod session;
mod sessions;
mod subscription;
mod supervisor;
#[cfg(test)]
mod tests;

pub use effects::{
    Effect, EffectController, EffectExecution, EffectOutcome, InlineEffects, JournaledEffects,
    ScopedEffectController,
};
pub use following::{ChangeFeed, SessionWatch};
pub use observer::ProcessWorkObserver;
pub use processes::Processes;
pub use session::{SessionHandle, SessionProcessAdmin};
pub use subscription::Subscription;
pub use supervisor::{InMemoryStore, ShutdownOptions, StoreStats, Supervisor, SupervisorBuilder};
