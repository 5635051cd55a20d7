//! Which incarnation this runtime owns processes as, who watches it, and what is left of those before.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use super::fence::Fence;
use super::keeper::OwnerHandle;
use super::process::ProcessMsg;
use super::runtime::Shared;

/// This runtime as an owner.
#[derive(Debug, Default)]
pub(super) struct Owning {
    current: RwLock<Option<Arc<OwnerHandle>>>,
    /// Lost incarnations that were not said to be gone.
    retiring: Mutex<Vec<Arc<OwnerHandle>>>,
    /// None without recovery: then there is no owner to watch.
    fence: OnceLock<Fence>,
}

impl Shared {
    /// The current incarnation of this runtime as an owner; none without recovery, and between a
    /// lapse and the next one.
    pub(crate) fn owner(&self) -> Option<Arc<OwnerHandle>> {
        self.owning
            .current
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The same, while its heartbeat is trusted.
    pub(crate) fn trusted_owner(&self) -> Option<Arc<OwnerHandle>> {
        self.owner()
            .filter(|owner| owner.is_trusted(self.monotonic()))
    }

    pub(super) fn set_owner(&self, owner: Arc<OwnerHandle>) {
        if self.is_shutting_down() {
            // It came too late to own anything.
            owner.lose();
            self.retire_later(owner);
            return;
        }
        self.put_owner(Some(owner));
        self.sweep_soon();
    }

    fn put_owner(&self, owner: Option<Arc<OwnerHandle>>) {
        let mut current = self
            .owning
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        current.clone_from(&owner);
        drop(current);
        if let Some(fence) = self.owning.fence.get() {
            fence.watch(owner);
        }
    }

    /// Has the owner watched from now on.
    pub(super) fn set_fence(&self, fence: Fence) {
        // Set once, before anything is executed, and before it is told whom to watch: an incarnation
        // that begins in between is told to it as well.
        let _ = self.owning.fence.set(fence);
        if let Some(fence) = self.owning.fence.get() {
            fence.watch(self.owner());
        }
    }

    /// Watches no more, and waits until that is so.
    pub(super) fn end_fence(&self) {
        if let Some(fence) = self.owning.fence.get() {
            fence.end();
        }
    }

    #[cfg(test)]
    pub(super) fn is_watched(&self) -> bool {
        self.owning.fence.get().is_some_and(Fence::stands)
    }

    /// Stops everything that an owner executes: it owns nothing from here on.
    pub(super) fn lose_owner(&self, owner: &Arc<OwnerHandle>) {
        // First, so that nothing begins in its name: not even what is being claimed now.
        owner.lose();
        self.put_owner(None);
        self.retire_later(Arc::clone(owner));
        let number = owner.number;
        self.tell_all(|| ProcessMsg::LeaseLost { owner: number });
    }

    /// Keeps a lost incarnation until it can be said to be gone.
    pub(super) fn retire_later(&self, owner: Arc<OwnerHandle>) {
        self.retiring().push(owner);
    }

    /// Takes those lost incarnations that nothing runs of any more. Not one as which something was taken
    /// over from an owner that had lapsed, and is not settled yet: said to be gone, it would make a proof of
    /// that lapse to whoever settles it (L5). It goes once that is settled; a shutdown leaves it to lapse.
    pub(super) fn take_gone(&self) -> Vec<Arc<OwnerHandle>> {
        let mut retiring = self.retiring();
        let (going, gone) = retiring
            .drain(..)
            .partition(|owner| owner.has_tasks() || self.looks.holds_as(owner.number));
        *retiring = going;
        gone
    }

    fn retiring(&self) -> MutexGuard<'_, Vec<Arc<OwnerHandle>>> {
        self.owning
            .retiring
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}
