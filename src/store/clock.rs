//! The one place where time is read.
//!
//! Two clocks, never mixed: the wall clock stamps events and compares with times that other
//! incarnations wrote; the monotonic clock judges how long something has taken in this process.

use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time. Tests inject one of their own.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Milliseconds since the Unix epoch, by the wall clock. May jump in either direction.
    fn now_epoch_ms(&self) -> u64;

    /// Time since an arbitrary fixed point in this process. Never goes back.
    fn monotonic(&self) -> Duration;
}

/// The operating system's clocks.
#[derive(Debug, Clone)]
pub struct SystemClock {
    origin: Instant,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
        }
    }
}

impl Clock for SystemClock {
    fn now_epoch_ms(&self) -> u64 {
        // A clock before 1970 reads as zero: fencing never depends on it, see SPEC L6.
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| {
                u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
            })
    }

    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }
}
