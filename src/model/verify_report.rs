//! What a check of the whole store found.

use serde::{Deserialize, Serialize};

use super::limits::VERIFY_PROBLEMS_MAX;

/// The result of a check of the whole store: every log folded again and compared with what is
/// stored, every index checked against what it indexes.
///
/// ```
/// use procession::VerifyReport;
/// let report = VerifyReport::default();
/// assert!(report.is_clean());
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Processes that were looked at.
    pub processes: u64,
    /// Events that were folded.
    pub events: u64,
    /// Tombstones that were looked at.
    pub tombstones: u64,
    /// What is wrong: the first [`VERIFY_PROBLEMS_MAX`](super::limits::VERIFY_PROBLEMS_MAX) of it.
    pub problems: Vec<VerifyProblem>,
    /// Problems beyond those that are listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub problems_left_out: u64,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyProblem {
    /// Whose, where that can be told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process_id: Option<String>,
    /// What is wrong. It never shows a payload.
    pub what: String,
}

impl VerifyReport {
    /// Whether nothing is wrong.
    #[must_use]
    pub const fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    /// Lists a problem, or counts it where enough are listed.
    pub(crate) fn add(&mut self, problem: VerifyProblem) {
        if self.problems.len() < VERIFY_PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.problems_left_out += 1;
        }
    }
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde calls it with a reference"
)]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn problems_are_bounded_and_none_is_forgotten() {
        let mut report = VerifyReport::default();
        for _ in 0..VERIFY_PROBLEMS_MAX + 3 {
            report.add(VerifyProblem {
                process_id: None,
                what: "damaged".into(),
            });
        }
        assert_eq!(report.problems.len(), 1_000);
        assert_eq!(report.problems_left_out, 3);
        assert!(!report.is_clean());
    }

    #[test]
    fn a_report_is_stable_json() {
        let mut report = VerifyReport {
            processes: 1,
            events: 2,
            ..VerifyReport::default()
        };
        report.add(VerifyProblem {
            process_id: Some("p".into()),
            what: "no state".into(),
        });
        assert_eq!(
            serde_json::to_value(&report).unwrap(),
            serde_json::json!({
                "processes": 1, "events": 2, "tombstones": 0,
                "problems": [{ "process_id": "p", "what": "no state" }],
            })
        );
    }
}
