//! How old a store is, by clocks that do not jump: what time limits are counted by across opens.

/// How old the store was when somebody had it open, and what their clocks showed then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgeMark {
    /// Milliseconds since the store was first opened.
    pub(crate) age_ms: u64,
    /// The wall clock.
    pub(crate) wall_ms: u64,
    /// The monotonic clock.
    pub(crate) monotonic_ms: u64,
    /// From which start of the machine that one counts, where that is known.
    pub(crate) boot_id: Option<String>,
}

impl AgeMark {
    /// The age at a later open. Where the machine was not started anew meanwhile, its monotonic
    /// clock says for how long nobody had the store open; otherwise there is only the wall clock,
    /// and where that went back, no time has passed.
    pub(crate) fn age_at(&self, wall_ms: u64, monotonic_ms: u64, boot_id: Option<&str>) -> u64 {
        let same_boot = self.boot_id.is_some() && self.boot_id.as_deref() == boot_id;
        let closed_ms = match monotonic_ms.checked_sub(self.monotonic_ms) {
            Some(closed_ms) if same_boot => closed_ms,
            Some(_) | None => wall_ms.saturating_sub(self.wall_ms),
        };
        self.age_ms.saturating_add(closed_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(boot_id: Option<&str>) -> AgeMark {
        AgeMark {
            age_ms: 100,
            wall_ms: 1_000,
            monotonic_ms: 50,
            boot_id: boot_id.map(str::to_owned),
        }
    }

    #[test]
    fn l6_within_one_boot_no_wall_clock_makes_a_store_older() {
        for wall_ms in [0, 999, 1_000, u64::MAX] {
            assert_eq!(mark(Some("a")).age_at(wall_ms, 57, Some("a")), 107);
        }
    }

    #[test]
    fn across_boots_the_wall_clock_is_all_there_is() {
        for (then, now) in [(Some("a"), Some("b")), (None, None), (Some("a"), None)] {
            assert_eq!(mark(then).age_at(1_030, 57, now), 130);
            assert_eq!(mark(then).age_at(30, 57, now), 100);
        }
        // A clock that is not what it says it is.
        assert_eq!(mark(Some("a")).age_at(1_030, 49, Some("a")), 130);
    }
}
