//! How a runtime comes to its end: shut down, without one of its parts, or with its store failed.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Shared;
use crate::model::Error;

impl Shared {
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.shutting_down.load(Ordering::Acquire)
    }

    /// Stops admission; `false` if that was done before.
    pub(in crate::actors) fn begin_shutdown(&self) -> bool {
        !self.shutting_down.swap(true, Ordering::AcqRel)
    }

    /// Stops working without a word to the store: what is executed stops, every later call answers
    /// `ShuttingDown`, and the next open recovers. For when there is no going on.
    pub(in crate::actors) fn fail_stop(&self) {
        self.begin_shutdown();
        if let Some(owner) = self.owner() {
            self.lose_owner(&owner);
        }
        self.end_admission();
        self.abandon_waits();
    }

    /// Stops because the store has failed: nothing further is acknowledged until it is opened again.
    /// Whoever waits for something to happen, which it will not, is told.
    pub(in crate::actors) fn store_failed(&self, cause: Arc<str>) {
        tracing::error!(%cause, "store failed, runtime stops: shut it down and open it again");
        // Set before anybody looks why it ended.
        if self.failure.set(cause).is_ok() {
            self.fail_stop();
        }
    }

    /// What a call is answered when this runtime goes on no more.
    pub(crate) fn stopped(&self) -> Error {
        match self.failure.get() {
            Some(cause) => Error::StoreFailed {
                cause: cause.to_string(),
            },
            None => Error::ShuttingDown,
        }
    }

    /// Ends every wait for something that this runtime will never see.
    pub(in crate::actors) fn abandon_waits(&self) {
        self.closed.store(true, Ordering::Release);
        self.hub.end();
    }

    /// Whether nothing will change here any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// Waits until no command is in flight.
    pub(in crate::actors) async fn commands_done(&self) {
        let all = u32::try_from(self.config.commands_max).unwrap_or(u32::MAX);
        if let Ok(all) = self.commands.acquire_many(all).await {
            all.forget();
        }
    }

    /// Turns away whoever still waits to be admitted.
    pub(in crate::actors) fn end_admission(&self) {
        self.commands.close();
        self.command_kib.close();
    }
}
