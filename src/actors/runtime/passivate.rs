//! Actors that have not been used for a while go.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{ActorSlot, Shared};
use crate::actors::config::{PASSIVATED_AT_ONCE, PASSIVATED_EVERY};
use crate::actors::process::ProcessMsg;

/// Says that idle actors have been asked to go, however that ended.
struct Passivated(Arc<Shared>);

impl Drop for Passivated {
    fn drop(&mut self) {
        self.0.passivating.store(false, Ordering::Release);
    }
}

impl Shared {
    /// Asks actors that have not been used for a while to go: few at a time, because the end of ten
    /// thousand of them takes more than a tenth of a second, in which nobody else would get a turn.
    pub(in crate::actors) async fn passivate_idle(&self, idle_for: Duration) {
        let idle_ms = u64::try_from(idle_for.as_millis()).unwrap_or(u64::MAX);
        let is_idle = |slot: &ActorSlot| {
            let used_ms = slot.last_used_ms.load(Ordering::Relaxed);
            self.monotonic_ms().saturating_sub(used_ms) >= idle_ms
        };
        let idle: Vec<Arc<ActorSlot>> = self
            .active
            .iter()
            .filter(|slot| is_idle(slot))
            .map(|slot| Arc::clone(&slot))
            .collect();
        for some in idle.chunks(PASSIVATED_AT_ONCE) {
            for slot in some.iter().filter(|slot| is_idle(slot)) {
                if let Some((actor, _)) = slot.cell.get() {
                    let _ = actor.cast(ProcessMsg::Passivate);
                }
            }
            tokio::time::sleep(PASSIVATED_EVERY).await;
        }
    }

    /// As [`Shared::passivate_idle`], in a task of its own, unless one is at it still.
    pub(in crate::actors) fn passivate_soon(self: &Arc<Self>, idle_for: Duration) {
        if self.passivating.swap(true, Ordering::AcqRel) {
            return;
        }
        let over = Passivated(Arc::clone(self));
        tokio::spawn(async move { over.0.passivate_idle(idle_for).await });
    }
}
