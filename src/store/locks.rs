//! Locks whose holders may panic.
//!
//! Every section under these locks leaves its data whole at each step, so a holder that panicked
//! (a proposal's code, contained elsewhere) is no reason to refuse the next one.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Takes a lock, whatever became of its last holder.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits on a condition variable, whatever became of the last holder.
pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition
        .wait(guard)
        .unwrap_or_else(PoisonError::into_inner)
}

/// Like [`wait`], for at most `limit`.
pub(crate) fn wait_for<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
) -> MutexGuard<'a, T> {
    condition
        .wait_timeout(guard, limit)
        .map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard)
}
