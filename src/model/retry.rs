//! How often, and how soon, a process is tried again.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::duration;
use super::error::{Error, Result};
use super::limits::RETRY_ATTEMPTS_MAX;

/// How often, and how soon, a process is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RetryPolicy {
    /// Attempts that may fail with a retryable failure, the first included.
    pub attempts: u32,
    /// How long to wait between them.
    pub backoff: Backoff,
    /// How often it may lose its owner before it fails with `recoveries_exhausted`.
    pub recoveries_max: u32,
}

impl Default for RetryPolicy {
    fn default() -> Self {
        Self {
            attempts: 1,
            backoff: Backoff::default(),
            recoveries_max: 16,
        }
    }
}

impl RetryPolicy {
    /// So many attempts, with the default backoff.
    #[must_use]
    pub fn attempts(attempts: u32) -> Self {
        Self {
            attempts,
            ..Self::default()
        }
    }

    /// With this backoff.
    #[must_use]
    pub const fn with_backoff(mut self, backoff: Backoff) -> Self {
        self.backoff = backoff;
        self
    }

    /// With this many recoveries.
    #[must_use]
    pub const fn with_recoveries_max(mut self, recoveries_max: u32) -> Self {
        self.recoveries_max = recoveries_max;
        self
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.attempts == 0 || self.attempts > RETRY_ATTEMPTS_MAX {
            return Err(Error::invalid(
                "retry.attempts",
                format!("is {}", self.attempts),
                format!("1 to {RETRY_ATTEMPTS_MAX}"),
            ));
        }
        self.backoff.check()
    }
}

/// Exponential backoff: `initial * factor^n`, at most `max`, less a random part of up to `jitter`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Backoff {
    /// Wait before the second attempt.
    #[serde(with = "duration")]
    pub initial: Duration,
    /// Growth from wait to wait, 1 to 1,000.
    pub factor: f64,
    /// Longest wait.
    #[serde(with = "duration")]
    pub max: Duration,
    /// Share of the wait that is random, 0 to 1.
    pub jitter: f64,
}

impl Default for Backoff {
    /// 1 s, doubling, at most 5 min, a fifth of it random.
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(1),
            factor: 2.0,
            max: Duration::from_secs(300),
            jitter: 0.2,
        }
    }
}

impl Backoff {
    /// Always the same wait.
    #[must_use]
    pub fn fixed(wait: Duration) -> Self {
        Self {
            initial: wait,
            factor: 1.0,
            max: wait,
            jitter: 0.0,
        }
    }

    fn check(&self) -> Result<()> {
        duration::check("retry.backoff.initial", self.initial)?;
        duration::check("retry.backoff.max", self.max)?;
        if !(1.0..=1_000.0).contains(&self.factor) {
            return Err(Error::invalid(
                "retry.backoff.factor",
                format!("is {}", self.factor),
                "1 to 1000",
            ));
        }
        if !(0.0..=1.0).contains(&self.jitter) {
            return Err(Error::invalid(
                "retry.backoff.jitter",
                format!("is {}", self.jitter),
                "0 to 1",
            ));
        }
        Ok(())
    }

    /// The wait after so many failures (from 1), in milliseconds. `random` is in `0.0..1.0`.
    pub(crate) fn wait_ms(&self, failures: u32, random: f64) -> u64 {
        if self.initial.is_zero() {
            // Nothing grows from nothing; computed, it would become 0 × infinity.
            return 0;
        }
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        let grown = self.initial.as_secs_f64() * self.factor.powi(exponent);
        let bounded = grown.min(self.max.as_secs_f64());
        let wait = bounded * (1.0 - self.jitter * random.clamp(0.0, 1.0));
        u64::try_from(
            Duration::try_from_secs_f64(wait)
                .unwrap_or_default()
                .as_millis(),
        )
        .unwrap_or(u64::MAX)
    }
}
