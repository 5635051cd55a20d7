//! The one place where time is read.
//!
//! Two clocks, never mixed: the wall clock stamps events and compares with times that other
//! incarnations wrote; the monotonic clock judges how long something has taken.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A source of time. Tests inject one of their own.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// Milliseconds since the Unix epoch, by the wall clock. May jump in either direction.
    fn now_epoch_ms(&self) -> u64;

    /// Time since an arbitrary fixed point. Never goes back, and should go on while the machine
    /// sleeps: a lease lapses meanwhile.
    fn monotonic(&self) -> Duration;

    /// Names the start of the machine from which [`Clock::monotonic`] counts, where every runtime
    /// that names the same one counts from the same point: then it says how long a store was closed.
    fn boot_id(&self) -> Option<String> {
        None
    }
}

/// The operating system's clocks. On Linux the monotonic one is `CLOCK_BOOTTIME`, which goes on
/// while the machine sleeps. Elsewhere it is [`std::time::Instant`], which may stand still then.
#[derive(Debug, Clone)]
pub struct SystemClock {
    #[cfg(not(target_os = "linux"))]
    origin: std::time::Instant,
    boot_id: Option<String>,
}

impl Default for SystemClock {
    fn default() -> Self {
        Self {
            #[cfg(not(target_os = "linux"))]
            origin: std::time::Instant::now(),
            boot_id: boot_id(),
        }
    }
}

/// random(4).
#[cfg(target_os = "linux")]
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    uuid::Uuid::parse_str(id.trim())
        .ok()
        .map(|id| id.to_string())
}

#[cfg(not(target_os = "linux"))]
const fn boot_id() -> Option<String> {
    None
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

    #[cfg(target_os = "linux")]
    fn monotonic(&self) -> Duration {
        use rustix::time::{ClockId, clock_gettime};
        let now = clock_gettime(ClockId::Boottime);
        // It counts from the start of the machine: neither part is negative.
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Duration::new(seconds, nanos)
    }

    #[cfg(not(target_os = "linux"))]
    fn monotonic(&self) -> Duration {
        self.origin.elapsed()
    }

    fn boot_id(&self) -> Option<String> {
        self.boot_id.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_clocks_of_one_machine_count_from_the_same_point() {
        let clock = SystemClock::default();
        let before = clock.monotonic();
        let other = SystemClock::default();
        if clock.boot_id().is_some() {
            assert_eq!(other.boot_id(), clock.boot_id());
            assert!(other.monotonic() >= before);
        }
        assert!(clock.monotonic() >= before);
    }
}
