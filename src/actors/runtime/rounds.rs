//! Rounds: what many actors are told by interval, few at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{ActorSlot, Shared};
use crate::actors::config::{TOLD_AT_ONCE, TOLD_EVERY};
use crate::actors::process::ProcessMsg;

/// Which rounds are under way: none begins while the one before it is.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    passivating: AtomicBool,
    looking: AtomicBool,
}

/// A round that is under way. Dropped, it is over, however that came about.
struct Round {
    shared: Arc<Shared>,
    of: fn(&Rounds) -> &AtomicBool,
}

impl Drop for Round {
    fn drop(&mut self) {
        (self.of)(&self.shared.rounds).store(false, Ordering::Release);
    }
}

impl Shared {
    /// Asks actors that have not been used for a while to go.
    pub(in crate::actors) async fn passivate_idle(&self, idle_for: Duration) {
        let idle_ms = u64::try_from(idle_for.as_millis()).unwrap_or(u64::MAX);
        let is_idle = |slot: &ActorSlot| {
            let used_ms = slot.last_used_ms.load(Ordering::Relaxed);
            self.monotonic_ms().saturating_sub(used_ms) >= idle_ms
        };
        self.tell_some(is_idle, || ProcessMsg::Passivate).await;
    }

    /// As [`Shared::passivate_idle`], in a task of its own, unless one is at it still.
    pub(in crate::actors) fn passivate_soon(self: &Arc<Self>, idle_for: Duration) {
        if let Some(round) = self.begin_round(|rounds| &rounds.passivating) {
            tokio::spawn(async move { round.shared.passivate_idle(idle_for).await });
        }
    }

    /// Has whatever is executed here hear of what another host wrote to it, unless that is being done
    /// still. An actor that executes nothing looks when it is next asked for something.
    pub(in crate::actors) fn look_soon(self: &Arc<Self>) {
        if let Some(round) = self.begin_round(|rounds| &rounds.looking) {
            tokio::spawn(async move {
                let shared = &round.shared;
                let executes = |slot: &ActorSlot| {
                    let known = slot.cell.get();
                    known.is_some_and(|(_, incarnation)| shared.is_claimed(*incarnation))
                };
                shared.tell_some(executes, || ProcessMsg::Look).await;
            });
        }
    }

    fn begin_round(self: &Arc<Self>, of: fn(&Rounds) -> &AtomicBool) -> Option<Round> {
        let begins = !of(&self.rounds).swap(true, Ordering::AcqRel);
        begins.then(|| Round {
            shared: Arc::clone(self),
            of,
        })
    }

    /// Tells actors something if that concerns them: few at a time, because what ten thousand of them
    /// do of it takes more than a tenth of a second, in which nobody else would get a turn.
    async fn tell_some(
        &self,
        concerns: impl Fn(&ActorSlot) -> bool + Send + Sync,
        message: impl Fn() -> ProcessMsg + Send + Sync,
    ) {
        let concerned: Vec<Arc<ActorSlot>> = self
            .active
            .iter()
            .filter(|slot| concerns(slot))
            .map(|slot| Arc::clone(&slot))
            .collect();
        for some in concerned.chunks(TOLD_AT_ONCE) {
            for slot in some.iter().filter(|slot| concerns(slot)) {
                if let Some((actor, _)) = slot.cell.get() {
                    let _ = actor.cast(message());
                }
            }
            tokio::time::sleep(TOLD_EVERY).await;
        }
    }
}
