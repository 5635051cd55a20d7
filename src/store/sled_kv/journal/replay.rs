//! What a journal held when its store was opened.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::super::error::StoreError;
use super::super::super::kv::Op;
use super::super::frame::{corrupted, length};
use super::entry::{ENTRY_HEADER_BYTES, EntryHeader, decode_entry, decode_ops};
use super::file::{Journal, PAGE_BYTES};

/// A group that was found whole.
#[derive(Debug)]
pub(in super::super) struct Group {
    pub(in super::super) commit: u64,
    pub(in super::super) next_position: u64,
    pub(in super::super) ops: Vec<Op>,
}

/// What is to be done again.
#[derive(Debug)]
pub(in super::super) struct Replay {
    /// Whole groups from the low-water mark on, in order.
    pub(in super::super) groups: Vec<Group>,
    /// The sequence the next entry gets.
    pub(in super::super) next_sequence: u64,
    /// The highest marks of the counters that those groups say.
    pub(in super::super) marks: [u64; 3],
}

struct Found {
    header: EntryHeader,
    region: u32,
    at: usize,
    body: Bytes,
}

/// Reads every group at or above the low-water mark, which follow commit `commit_below`.
///
/// What comes behind the last whole group was never acknowledged, unless one of its entries says
/// otherwise. It is overwritten, because its sequences will be used again; like the groups
/// themselves, that is durable with the next sync of the journal.
pub(in super::super) fn replay(
    journal: &Journal,
    low_water: u64,
    commit_below: u64,
) -> Result<Replay, StoreError> {
    let mut found = find(journal, low_water)?;
    found.sort_unstable_by_key(|entry| entry.header.sequence);
    if let Some(twice) = found
        .windows(2)
        .find(|pair| pair[0].header.sequence == pair[1].header.sequence)
    {
        return Err(StoreError::Corrupted {
            what: format!("journal entry {} is there twice", twice[0].header.sequence),
        });
    }
    let mut replay = Replay {
        groups: Vec::new(),
        next_sequence: low_water,
        marks: [0; 3],
    };
    let mut commit = commit_below;
    let mut rest = found.as_slice();
    while let Some(group) = next_group(rest, replay.next_sequence, commit + 1) {
        replay.groups.push(join(group)?);
        for entry in group {
            for (mark, said) in replay.marks.iter_mut().zip(entry.header.marks) {
                *mark = (*mark).max(said);
            }
        }
        replay.next_sequence += u64::try_from(group.len()).unwrap_or(u64::MAX);
        commit += 1;
        rest = &rest[group.len()..];
    }
    if let Some(entry) = rest.iter().find(|entry| entry.header.synced > commit) {
        return Err(StoreError::Corrupted {
            what: format!(
                "journal entries are missing: entry {} says that commit {} was durable, and commit {} is not there",
                entry.header.sequence,
                entry.header.synced,
                commit + 1
            ),
        });
    }
    drop_unfinished(journal, rest, commit + 1)?;
    let whole = &found[..found.len() - rest.len()];
    let mut last_of_region: BTreeMap<u32, u64> = BTreeMap::new();
    for entry in whole {
        // A sync that failed may have left it in the system's cache only, marked as written: the
        // next sync would have nothing to do.
        journal.rewrite(entry.region, entry.at, &entry.header, &entry.body)?;
        last_of_region.insert(entry.region, entry.header.sequence);
    }
    let mut live: Vec<(u32, u64)> = last_of_region.into_iter().collect();
    live.sort_unstable_by_key(|(_, last_sequence)| *last_sequence);
    journal.recovered(live.into_iter());
    Ok(replay)
}

/// Every entry that is not below the low-water mark. Looked for on each page, because the length
/// of a damaged entry cannot be trusted.
fn find(journal: &Journal, low_water: u64) -> Result<Vec<Found>, StoreError> {
    let mut found = Vec::new();
    journal.scan(|region, bytes| {
        let mut at = 0;
        while at < bytes.len() {
            let Some((header, body)) = decode_entry(&bytes[at..], journal.salt()) else {
                at += PAGE_BYTES;
                continue;
            };
            if header.sequence >= low_water {
                let body = Bytes::copy_from_slice(body);
                found.push(Found {
                    header,
                    region,
                    at,
                    body,
                });
            }
            at += (ENTRY_HEADER_BYTES + body.len()).next_multiple_of(PAGE_BYTES);
        }
    })?;
    Ok(found)
}

fn next_group(rest: &[Found], sequence: u64, commit: u64) -> Option<&[Found]> {
    let parts = rest.first()?.header.parts;
    let group = rest.get(..length(parts))?;
    let whole = group.iter().zip(0..).all(|(entry, part)| {
        entry.header.sequence == sequence + u64::from(part)
            && entry.header.part == part
            && entry.header.parts == parts
            && entry.header.commit == commit
    });
    whole.then_some(group)
}

fn join(group: &[Found]) -> Result<Group, StoreError> {
    let Some(first) = group.first() else {
        return Err(corrupted("journal", &[], "journal group without entries"));
    };
    let body = if group.len() == 1 {
        first.body.clone()
    } else {
        let bodies: Vec<&[u8]> = group.iter().map(|entry| &entry.body[..]).collect();
        Bytes::from(bodies.concat())
    };
    Ok(Group {
        commit: first.header.commit,
        next_position: first.header.next_position,
        ops: decode_ops(first.header.sequence, &body)?,
    })
}

fn drop_unfinished(journal: &Journal, rest: &[Found], commit: u64) -> Result<(), StoreError> {
    if rest.is_empty() {
        return Ok(());
    }
    tracing::warn!(
        commit,
        entries = rest.len(),
        "dropped the end of the journal, which was never wholly durable"
    );
    for entry in rest {
        journal.erase(entry.region, entry.at)?;
    }
    Ok(())
}
