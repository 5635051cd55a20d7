//! How old a store is, by clocks that do not jump: what time limits are counted by across opens.

/// How old the store was when somebody had it open, and what their clocks showed then.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgeMark {
    /// Milliseconds since the store was first opened.
    pub(crate) age_ms: u64,
    /// The wall clock: for people to read, nothing is counted by it.
    pub(crate) wall_ms: u64,
    /// The monotonic clock.
    pub(crate) monotonic_ms: u64,
    /// From which start of the machine that one counts, where that is known.
    pub(crate) boot_id: Option<String>,
}

impl AgeMark {
    /// The age at a later open. Where the machine was not started anew meanwhile, its monotonic
    /// clock says for how long nobody had the store open. Nothing else does: a wall clock may have
    /// been set to any time, so that none has passed for what must not end because of it.
    pub(crate) fn age_at(&self, monotonic_ms: u64, boot_id: Option<&str>) -> u64 {
        let same_boot = self.boot_id.is_some() && self.boot_id.as_deref() == boot_id;
        let closed_ms = match monotonic_ms.checked_sub(self.monotonic_ms) {
            Some(closed_ms) if same_boot => closed_ms,
            Some(_) | None => 0,
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
    fn within_one_boot_the_monotonic_clock_says_how_long_a_store_was_closed() {
        assert_eq!(mark(Some("a")).age_at(57, Some("a")), 107);
    }

    #[test]
    fn l6_where_nothing_says_how_long_a_store_was_closed_it_grew_no_older() {
        for (then, now) in [(Some("a"), Some("b")), (None, None), (Some("a"), None)] {
            assert_eq!(mark(then).age_at(57, now), 100);
            assert_eq!(mark(then).age_at(u64::MAX, now), 100);
        }
        // A clock that is not what it says it is.
        assert_eq!(mark(Some("a")).age_at(49, Some("a")), 100);
    }
}
