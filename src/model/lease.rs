//! Leases and fencing, as rules: who holds a process, until when, and what a token lets one write.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::error::{Error, Result};
use super::ids::{FencingToken, OwnerNumber, StoreEpoch};

/// An owner: one incarnation of one runtime.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessOwner {
    /// The name the host gave its runtime.
    pub owner_id: String,
    /// Random, never used again.
    pub incarnation_id: String,
    /// The open of the store in which it lives.
    pub store_epoch: StoreEpoch,
}

/// The lease on a process, as stored beside its record: it expires when its owner's heartbeat does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) owner: OwnerNumber,
    pub(crate) token: FencingToken,
}

/// What the store knows of an owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OwnerRecord {
    pub(crate) owner: ProcessOwner,
    /// Until when its leases last, unless it renews.
    pub(crate) expires_at_ms: u64,
    /// Set by the runtime that owned it once every task of its executions had ended.
    pub(crate) retired: bool,
}

/// The standing of a lease's owner at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnerStanding {
    /// Its heartbeat has not lapsed.
    Live,
    /// Its heartbeat lapsed, and nothing proves that it is gone.
    Lapsed,
    /// It can provably no longer write.
    Dead,
}

/// Judges an owner. `exclusive_epoch` is the store's epoch where only one runtime can have the
/// store open; in a shared store an earlier epoch proves nothing.
pub(crate) fn standing(
    record: Option<&OwnerRecord>,
    exclusive_epoch: Option<StoreEpoch>,
    now_ms: u64,
) -> OwnerStanding {
    let Some(record) = record else {
        // Owner records outlive the leases that name them; one that is gone was swept as dead.
        return OwnerStanding::Dead;
    };
    if record.retired || exclusive_epoch.is_some_and(|epoch| record.owner.store_epoch < epoch) {
        return OwnerStanding::Dead;
    }
    if now_ms < record.expires_at_ms {
        OwnerStanding::Live
    } else {
        OwnerStanding::Lapsed
    }
}

/// How long a lease lasts and how often it is renewed.
///
/// ```
/// use procession::LeaseTimings;
/// use std::time::Duration;
/// let timings = LeaseTimings::parse("30s", "10s")?;
/// assert_eq!(timings, LeaseTimings::default());
/// assert!(LeaseTimings::new(Duration::from_secs(5), Duration::from_secs(2)).is_err());
/// # Ok::<(), procession::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseTimings {
    ttl: Duration,
    renew_every: Duration,
}

/// Shortest time to live: below it, scheduling noise alone would lapse leases.
const TTL_MIN: Duration = Duration::from_millis(30);
/// Longest time to live.
const TTL_MAX: Duration = Duration::from_secs(24 * 60 * 60);
/// Renewals that must fit into one time to live.
const RENEWALS_PER_TTL_MIN: u32 = 3;

impl LeaseTimings {
    /// Both at once.
    ///
    /// # Errors
    /// `InvalidInput` if the time to live is under three renewals, or outside 30 ms to 24 h.
    pub fn new(ttl: Duration, renew_every: Duration) -> Result<Self> {
        if ttl < TTL_MIN || ttl > TTL_MAX {
            return Err(Error::invalid(
                "lease.ttl",
                format!("is {}", humantime::format_duration(ttl)),
                "30ms to 24h",
            ));
        }
        if renew_every.is_zero() || ttl < renew_every.saturating_mul(RENEWALS_PER_TTL_MIN) {
            return Err(Error::invalid(
                "lease.renew_every",
                format!(
                    "is {} for a time to live of {}",
                    humantime::format_duration(renew_every),
                    humantime::format_duration(ttl)
                ),
                "at most a third of the time to live",
            ));
        }
        Ok(Self { ttl, renew_every })
    }

    /// A time to live, renewed three times within it.
    ///
    /// # Errors
    /// `InvalidInput` if it is outside 30 ms to 24 h.
    pub fn from_ttl(ttl: Duration) -> Result<Self> {
        Self::new(ttl, ttl / RENEWALS_PER_TTL_MIN)
    }

    /// Both from humantime text such as `30s`.
    ///
    /// # Errors
    /// `InvalidInput` if a text is no duration, or as [`LeaseTimings::new`].
    pub fn parse(ttl: &str, renew_every: &str) -> Result<Self> {
        Self::new(
            super::duration::parse("lease.ttl", ttl)?,
            super::duration::parse("lease.renew_every", renew_every)?,
        )
    }

    /// How long a lease lasts after its last renewal.
    #[must_use]
    pub const fn ttl(self) -> Duration {
        self.ttl
    }

    /// How often it is renewed.
    #[must_use]
    pub const fn renew_every(self) -> Duration {
        self.renew_every
    }

    /// How long after the start of a successful renewal the owner trusts it, by its own monotonic
    /// clock: a sixth of the time to live is kept as a margin for stopping what runs.
    pub(crate) fn trusted_for(self) -> Duration {
        self.ttl - self.ttl / 6
    }
}

impl Default for LeaseTimings {
    /// 30 s, renewed every 10 s.
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(30),
            renew_every: Duration::from_secs(10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(epoch: u64, expires_at_ms: u64) -> OwnerRecord {
        OwnerRecord {
            owner: ProcessOwner {
                owner_id: "host".into(),
                incarnation_id: "i".into(),
                store_epoch: StoreEpoch(epoch),
            },
            expires_at_ms,
            retired: false,
        }
    }

    #[test]
    fn an_earlier_epoch_is_proof_only_in_an_exclusive_store() {
        let old = record(1, 1_000);
        assert_eq!(
            standing(Some(&old), Some(StoreEpoch(2)), 0),
            OwnerStanding::Dead
        );
        assert_eq!(standing(Some(&old), None, 0), OwnerStanding::Live);
    }

    #[test]
    fn l5_elapsed_time_is_never_proof() {
        let lapsed = record(2, 1_000);
        assert_eq!(
            standing(Some(&lapsed), Some(StoreEpoch(2)), u64::MAX),
            OwnerStanding::Lapsed
        );
    }

    #[test]
    fn a_retired_owner_is_dead_whatever_the_clock_says() {
        let mut gone = record(2, u64::MAX);
        gone.retired = true;
        assert_eq!(standing(Some(&gone), None, 0), OwnerStanding::Dead);
    }

    #[test]
    fn a_time_to_live_holds_at_least_three_renewals() {
        let second = Duration::from_secs(1);
        assert!(LeaseTimings::new(3 * second, second).is_ok());
        assert!(LeaseTimings::new(3 * second - Duration::from_millis(1), second).is_err());
        assert!(LeaseTimings::new(3 * second, Duration::ZERO).is_err());
        assert!(LeaseTimings::parse("30 sausages", "10s").is_err());
    }
}
