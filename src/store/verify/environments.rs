//! Whether every environment counts its users rightly.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::codec::stored::{StoredHead, StoredNumber};
use super::super::codec::{self};
use super::super::error::StoreError;
use super::super::keys::{self, kind};
use super::{Findings, PAGE_KEYS, PAGE_KEYS_LARGE, VIEWS_MAX, Verifier};
use crate::model::ContentHash;

/// Users of an environment: how many it counts, how many there are.
type Counts = BTreeMap<ContentHash, (u64, u64)>;

impl Verifier<'_> {
    /// Counts again. Users and counts stand far apart, so the store has to hold still for it.
    pub(super) fn environments(&mut self) -> Result<(), StoreError> {
        for _ in 0..VIEWS_MAX {
            let before = self.store.view()?.commit();
            let mut counts = Counts::new();
            self.each(kind::ENV_USERS, PAGE_KEYS, |key, value| {
                if let (Some(keys::Parsed::EnvUsers(hash)), Ok(counted)) =
                    (keys::parse(key), codec::decode::<StoredNumber>(value))
                {
                    counts.entry(hash).or_default().0 = counted.0;
                }
            })?;
            // A head that cannot be read was noted before.
            self.each(kind::HEAD, PAGE_KEYS_LARGE, |key, value| {
                if let (Some(row), Ok(head)) =
                    (keys::row_of(key), codec::decode::<StoredHead>(value))
                    && let Some(hash) = head.facts(row).0.env_ref
                {
                    counts.entry(hash).or_default().1 += 1;
                }
            })?;
            if self.store.view()?.commit() == before {
                self.compare(&counts);
                return Ok(());
            }
        }
        let mut findings = Findings::default();
        findings.note(
            None,
            "users of environments could not be counted: the store was written to meanwhile",
        );
        self.take(findings);
        Ok(())
    }

    fn compare(&mut self, counts: &Counts) {
        let mut findings = Findings::default();
        for (hash, (counted, users)) in counts {
            if counted != users {
                findings.note(
                    None,
                    format!("environment {hash} counts {counted} users and has {users}"),
                );
            }
        }
        self.take(findings);
    }

    /// Reads all keys of a kind, in pages.
    fn each(
        &self,
        kind: u8,
        limit: usize,
        mut read: impl FnMut(&[u8], &[u8]),
    ) -> Result<(), StoreError> {
        let mut range = keys::of_kind(kind);
        let mut expired = 0;
        loop {
            let entries = match self.store.view()?.raw().scan(&range, limit) {
                Ok(entries) => entries,
                Err(StoreError::ViewExpired { .. }) if expired < VIEWS_MAX => {
                    expired += 1;
                    continue;
                }
                // Noted before, when the keys of that kind were checked.
                Err(StoreError::Corrupted { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            for (key, value) in &entries {
                read(key, value);
            }
            match entries.last() {
                Some((last, _)) if entries.len() == limit => {
                    range.start = Bytes::from([&last[..], &[0]].concat());
                }
                Some(_) | None => return Ok(()),
            }
        }
    }
}
