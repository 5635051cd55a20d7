//! The check of the whole store: every log folded again, every key compared with what it stands
//! for.
//!
//! It visits every key once, in key order, a page at a time, and each page, like each process, is
//! checked on one view against that same view. So what others commit meanwhile can make it look at
//! a newer state, never at a mixed one. Only the count of environments' users compares keys that
//! are far apart, and it says so if the store would not hold still for it. A view that expires
//! makes its page begin anew, smaller; a log is folded across views, because what stands in it
//! never changes.
//!
//! What a reader cannot see is not checked: whether the log of an incarnation that is gone was
//! erased (a log can only be asked for by its incarnation, and its erasure may lag behind), and
//! whether the next feed position is above all that are used.

mod entries;
mod environments;
mod process;
#[cfg(test)]
mod tests;

use bytes::Bytes;

use super::codec::{self, Stored};
use super::error::StoreError;
use super::keys::{self, Parsed, Row, kind};
use super::kv::KeyRange;
use super::process_store::ProcessStore;
use super::read::View;
use crate::model::{StoreEpoch, VerifyProblem, VerifyReport};

/// How often something is tried again on a fresh view before the store counts as too slow.
const VIEWS_MAX: usize = 8;
/// Keys of a page where values are small, and where they may be large.
const PAGE_KEYS: usize = 256;
const PAGE_KEYS_LARGE: usize = 16;

/// Checks the whole store. Blocks; reads everything. Memory: a page, and 40 bytes per environment.
///
/// It may run beside writers (see the module), but takes a number of each counter, and finishes
/// with certainty only where nobody else writes.
///
/// # Errors
/// The store itself failed. What is merely damaged is in the report.
pub(crate) fn verify(store: &ProcessStore) -> Result<VerifyReport, StoreError> {
    let mut verifier = Verifier {
        store,
        report: VerifyReport::default(),
        highest: Highest::default(),
        captured: false,
    };
    for kind in 0..=u8::MAX {
        verifier.kind(kind)?;
    }
    if verifier.captured {
        verifier.environments()?;
    }
    verifier.counters()?;
    Ok(verifier.report)
}

struct Verifier<'a> {
    store: &'a ProcessStore,
    report: VerifyReport,
    highest: Highest,
    /// Whether an environment was seen, or a process that has one.
    captured: bool,
}

/// The highest numbers seen, to compare with the counters.
#[derive(Debug, Clone, Copy, Default)]
struct Highest {
    incarnation: u64,
    token: u64,
    owner: u64,
}

impl Highest {
    fn incarnation(&mut self, number: u64) {
        self.incarnation = self.incarnation.max(number);
    }

    fn token(&mut self, number: u64) {
        self.token = self.token.max(number);
    }

    fn owner(&mut self, number: u64) {
        self.owner = self.owner.max(number);
    }

    fn join(&mut self, other: Self) {
        self.incarnation(other.incarnation);
        self.token(other.token);
        self.owner(other.owner);
    }
}

/// What one page, or one process, came to. Thrown away if its view expires.
#[derive(Debug, Default)]
struct Findings {
    processes: u64,
    events: u64,
    tombstones: u64,
    captured: bool,
    highest: Highest,
    problems: Vec<VerifyProblem>,
}

impl Findings {
    fn note(&mut self, process_id: Option<&str>, what: impl Into<String>) {
        self.problems.push(VerifyProblem {
            process_id: process_id.map(str::to_owned),
            what: what.into(),
        });
    }

    /// Sorts damage, which is noted, from failures of the store, which end the check.
    fn sound<T>(
        &mut self,
        process_id: Option<&str>,
        what: &str,
        result: Result<T, StoreError>,
    ) -> Result<Option<T>, StoreError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(
                error @ (StoreError::Corrupted { .. }
                | StoreError::TooNew { .. }
                | StoreError::TooOld { .. }),
            ) => {
                self.note(process_id, format!("{what}: {error}"));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Decodes a value; damage is noted.
    fn decoded<T: Stored>(
        &mut self,
        process_id: Option<&str>,
        what: &str,
        bytes: &[u8],
    ) -> Result<Option<T>, StoreError> {
        self.sound(process_id, what, codec::decode::<T>(bytes))
    }

    /// Reads and decodes a value. `None` if it is not there; damage is noted and is `None` too.
    fn stored<T: Stored>(
        &mut self,
        view: &View,
        process_id: Option<&str>,
        key: &[u8],
    ) -> Result<Option<T>, StoreError> {
        match self.bytes(view, process_id, key)? {
            Some(bytes) => self.decoded(process_id, T::NAME, &bytes),
            None => Ok(None),
        }
    }

    /// Reads a value; damage is noted and is `None`.
    fn bytes(
        &mut self,
        view: &View,
        process_id: Option<&str>,
        key: &[u8],
    ) -> Result<Option<Bytes>, StoreError> {
        let read = view.raw().get(key);
        Ok(self.sound(process_id, "value", read)?.flatten())
    }

    fn has(&mut self, view: &View, key: &[u8]) -> Result<bool, StoreError> {
        Ok(self.bytes(view, None, key)?.is_some())
    }
}

/// A page of keys of one kind, checked.
struct Page {
    findings: Findings,
    /// Processes whose heads are in it.
    rows: Vec<Row>,
    /// The last key of a full page.
    last: Option<Bytes>,
}

impl<'a> Verifier<'a> {
    fn kind(&mut self, kind: u8) -> Result<(), StoreError> {
        let mut range = keys::of_kind(kind);
        let mut limit = match kind {
            kind::HEAD | kind::BODY | kind::STATE | kind::ENV | kind::EFFECT | kind::WAKE => {
                PAGE_KEYS_LARGE
            }
            _ => PAGE_KEYS,
        };
        loop {
            let Some(page) = self.page(kind, &range, &mut limit)? else {
                return Ok(());
            };
            self.take(page.findings);
            for row in page.rows {
                let findings = process::check(self.store, row)?;
                self.take(findings);
            }
            match page.last {
                Some(last) => range.start = Bytes::from([&last[..], &[0]].concat()),
                None => return Ok(()),
            }
        }
    }

    /// Checks a page on one view; `None` where the rest of the kind cannot be read.
    fn page(
        &mut self,
        kind: u8,
        range: &KeyRange,
        limit: &mut usize,
    ) -> Result<Option<Page>, StoreError> {
        let mut expired = StoreError::ViewExpired { held_ms: 0 };
        for _ in 0..VIEWS_MAX {
            let view = self.store.view()?;
            match check_page(&view, self.store.exclusive_epoch(), range, *limit) {
                Ok(page) => return Ok(Some(page)),
                Err(error @ StoreError::ViewExpired { .. }) => {
                    expired = error;
                    *limit = (*limit / 2).max(1);
                }
                Err(StoreError::Corrupted { what }) => {
                    let mut findings = Findings::default();
                    findings.note(
                        None,
                        format!("keys of kind {kind:#04x} cannot be read: {what}"),
                    );
                    self.take(findings);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        Err(expired)
    }

    fn take(&mut self, findings: Findings) {
        self.report.processes += findings.processes;
        self.report.events += findings.events;
        self.report.tombstones += findings.tombstones;
        self.captured |= findings.captured;
        self.highest.join(findings.highest);
        for problem in findings.problems {
            self.report.add(problem);
        }
    }

    /// L2, R3: no number is above its counter. The counters cannot be read, but the next number
    /// can be taken; gaps are normal.
    fn counters(&mut self) -> Result<(), StoreError> {
        let next = [
            (
                "incarnation",
                self.highest.incarnation,
                self.store.next_incarnation()?.get(),
            ),
            (
                "fencing token",
                self.highest.token,
                self.store.next_token()?.get(),
            ),
            ("owner", self.highest.owner, self.store.next_owner()?.get()),
        ];
        let mut findings = Findings::default();
        for (name, highest, next) in next {
            if highest >= next {
                findings.note(
                    None,
                    format!("{name} {highest} is in use, but the next one is {next}"),
                );
            }
        }
        self.take(findings);
        Ok(())
    }
}

fn check_page(
    view: &View,
    exclusive_epoch: Option<StoreEpoch>,
    range: &KeyRange,
    limit: usize,
) -> Result<Page, StoreError> {
    let entries = view.raw().scan(range, limit)?;
    let mut page = Page {
        findings: Findings::default(),
        rows: Vec::new(),
        last: (entries.len() == limit)
            .then(|| entries.last().map(|(key, _)| key.clone()))
            .flatten(),
    };
    for (key, value) in entries {
        match keys::parse(&key) {
            None => page.findings.note(
                None,
                format!("key {} is of no known kind and layout", hex(&key)),
            ),
            // A process is checked on a view of its own: its log may take a while.
            Some(Parsed::Head(row)) => page.rows.push(row),
            Some(parsed) => {
                let mut entry = entries::Entry {
                    view,
                    exclusive_epoch,
                    key: &key,
                    value: &value,
                    findings: &mut page.findings,
                };
                entry.check(parsed)?;
            }
        }
    }
    Ok(page)
}

/// The start of a key, for messages.
fn hex(key: &[u8]) -> String {
    const BYTES_MAX: usize = 64;
    let mut text: String = key
        .iter()
        .take(BYTES_MAX)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    if key.len() > BYTES_MAX {
        text.push('…');
    }
    text
}
