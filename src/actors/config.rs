//! How a runtime behaves.

use std::collections::HashMap;
use std::time::Duration;

use crate::model::{LeaseTimings, RetentionPolicy};

/// Settings of a runtime, checked when it is opened.
#[derive(Debug, Clone)]
pub(crate) struct RuntimeConfig {
    /// The name under which this runtime owns processes.
    pub(crate) owner_id: String,
    pub(crate) lease: LeaseTimings,
    /// How long a cancelled attempt may take to stop before it is aborted.
    pub(crate) cancel_grace: Duration,
    /// How often the reaper looks for work.
    pub(crate) sweep_every: Duration,
    /// Attempts that may execute at once.
    pub(crate) slots: usize,
    /// The same for single engine kinds.
    pub(crate) slots_by_kind: HashMap<String, usize>,
    /// Commands that may be in flight at once.
    pub(crate) commands_max: usize,
    /// Whether anything is claimed, run or swept.
    pub(crate) recover: bool,
    /// What the reaper prunes by itself.
    pub(crate) retention: Vec<RetentionPolicy>,
    /// How long tombstones are kept.
    pub(crate) keep_tombstones_for: Duration,
    /// How often the reaper looks at what may be pruned.
    pub(crate) retain_every: Duration,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            owner_id: "procession".to_owned(),
            lease: LeaseTimings::default(),
            cancel_grace: Duration::from_secs(10),
            sweep_every: Duration::from_secs(5),
            slots: 1_024,
            slots_by_kind: HashMap::new(),
            commands_max: 4_096,
            recover: true,
            retention: Vec::new(),
            keep_tombstones_for: Duration::from_secs(30 * 24 * 60 * 60),
            retain_every: Duration::from_secs(60),
        }
    }
}

/// KiB of payload that what hosts and engines have in flight may hold together; payloads below one
/// KiB are not counted.
pub(crate) const COMMAND_KIB_MAX: usize = 64 << 10;
/// Events that one attempt may have accepted but not yet durable.
pub(crate) const EMIT_ROOM: usize = 256;
/// How long an actor with nothing to do is kept.
pub(crate) const PASSIVATE_AFTER: Duration = Duration::from_secs(5);
/// Actors that are told at once what many are told, and how long others have their turn after that.
pub(crate) const TOLD_AT_ONCE: usize = 16;
pub(crate) const TOLD_EVERY: Duration = Duration::from_millis(2);
/// Rows that the reaper looks at before it lets others go on.
pub(crate) const SWEEP_PAGE: usize = 256;
/// Events that an actor takes note of at once that others wrote, and their bytes.
pub(crate) const NOTED_AT_ONCE: usize = 256;
pub(crate) const NOTED_BYTES: usize = 64 << 10;
/// How long it waits before it reads them again where it could not; longer where it cannot for long.
pub(crate) const NOTED_AGAIN_AFTER: Duration = Duration::from_millis(100);
/// How often a command starts over because somebody else wrote first.
pub(crate) const RETRIES_MAX: u32 = 16;
