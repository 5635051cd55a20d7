//! Lists: the narrowest index, the filter, and pages.

use std::collections::VecDeque;
use std::fmt::Write as _;

use super::codec::stored::{EventRef, StateFront};
use super::error::StoreError;
use super::keys::Row;
use super::read::{Created, IdEntry, Index, View, index_of_originator};
use crate::model::limits::{
    LIST_PAGE_MAX, SNAPSHOT_BYTES_MAX, SNAPSHOT_EVENTS, SNAPSHOT_PROCESS_BYTES_MAX,
};
use crate::model::{
    ContentHash, Incarnation, ObservedProcess, ObservedProcessEvent, Page, PageCursor,
    ProcessHandleDescriptor, ProcessListFilter, ProcessOriginator, ProcessWorkItem, StatusFilter,
};

/// Most rows that one page looks at: a filter that admits little answers with a short page and a
/// cursor instead of looking through the whole store.
const ROWS_PER_PAGE_MAX: usize = 10_000;
/// Rows that are fetched from an index at a time.
const ROWS_PER_SCAN: usize = 256;
/// Items of a page that room is made for beforehand.
const ROOM_MAX: usize = 128;

/// The index for the originator that a filter names.
fn originator_index(filter: &ProcessListFilter) -> Option<Index> {
    let named = filter.originator_scope_id.as_deref()?;
    index_of_originator(&ProcessOriginator::parse_scope_id(named)?)
}

/// Whether a list that is about everything goes through much more than it shows: its filter names nothing
/// that there is a narrower index for, and is not just about what runs, all of it or what was created
/// within a range, of which there is nothing to pass over.
pub(crate) fn goes_through_all(filter: &ProcessListFilter) -> bool {
    let narrower = filter.parent.is_some() || originator_index(filter).is_some();
    let what_runs = ProcessListFilter {
        created_at_start_ms: filter.created_at_start_ms,
        created_at_end_ms: filter.created_at_end_ms,
        ..ProcessListFilter::default()
    };
    !narrower && *filter != what_runs
}

/// Why a list could not be made.
#[derive(Debug)]
pub(crate) enum QueryError {
    /// The cursor does not belong to this list of this store.
    Cursor,
    /// The store failed.
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl View {
    /// The index for a filter, within what `base` admits: the first that there is of what the list is
    /// about, the parent, the originator, and running. Always in this order, which nearly always goes
    /// from narrow to wide; whatever the counts are, since a cursor is a key of one index and each page
    /// has to choose the same.
    fn index_for(
        base: Option<Index>,
        filter: &ProcessListFilter,
        parent: Option<Incarnation>,
    ) -> Index {
        if let Some(base) = base {
            return base;
        }
        if let Some(parent) = parent {
            return Index::ChildrenOf(parent);
        }
        if let Some(index) = originator_index(filter) {
            return index;
        }
        match filter.status {
            StatusFilter::Running => Index::Running,
            StatusFilter::Completed
            | StatusFilter::Failed
            | StatusFilter::Cancelled
            | StatusFilter::Abandoned
            | StatusFilter::Terminal
            | StatusFilter::Any => Index::Created,
        }
    }

    /// Whether a filter lets a process through, its parent taken for the incarnation that the id
    /// stands for now.
    pub(crate) fn admits(
        &self,
        filter: &ProcessListFilter,
        process: &ObservedProcess,
    ) -> Result<bool, StoreError> {
        if !filter.admits(process) {
            return Ok(false);
        }
        let (Some(id), Some(parent)) = (&filter.parent, &process.parent) else {
            return Ok(filter.parent.is_none());
        };
        Ok(self.incarnation_of(id)? == Some(parent.incarnation))
    }

    /// The incarnation that an id stands for, pruned or not: the newest.
    pub(crate) fn incarnation_of(&self, id: &str) -> Result<Option<Incarnation>, StoreError> {
        Ok(self.id(id)?.map(|entry| match entry {
            IdEntry::Live(row) => row.incarnation,
            IdEntry::Pruned(tombstone) => tombstone.incarnation,
        }))
    }

    /// One page of a list.
    pub(crate) fn list_page(
        &self,
        base: Option<Index>,
        filter: &ProcessListFilter,
        cursor: Option<&PageCursor>,
        limit: usize,
    ) -> Result<Page<ObservedProcess>, QueryError> {
        let mut items = Vec::new();
        let mut after = None;
        let list = ListMark::of(self, base.as_ref(), filter)?;
        let parent = match (&filter.parent, cursor) {
            (None, None) => None,
            (Some(id), None) => match self.incarnation_of(id)? {
                None => return Ok(Page { items, next: None }),
                known => known,
            },
            // A list stays with the parent that it began with, whatever its id stands for now.
            (wanted, Some(cursor)) => {
                let (key, parent) = decode_cursor(cursor, &list)?;
                if wanted.is_some() != parent.is_some() {
                    return Err(QueryError::Cursor);
                }
                after = Some(key);
                parent
            }
        };
        let cursor_at = |key: &[u8]| encode_cursor(&list, key, parent);
        let is_narrow = base.is_some();
        let index = Self::index_for(base, filter, parent);
        if after.as_deref().is_some_and(|key| !index.contains(key)) {
            return Err(QueryError::Cursor);
        }
        let created = Created {
            start_ms: filter.created_at_start_ms,
            end_ms: filter.created_at_end_ms,
        };
        let mut looked_at = 0;
        loop {
            let fetch = ROWS_PER_SCAN.min(limit.saturating_mul(2).max(16));
            let rows = self.rows_created(&index, &created, after.as_deref(), fetch)?;
            let exhausted = rows.len() < fetch;
            if is_narrow && items.is_empty() {
                // Most of them are shown, and an item is large: room is made once.
                items.reserve(rows.len().min(limit).min(ROOM_MAX));
            }
            for (key, row) in rows {
                looked_at += 1;
                after = Some(key.to_vec());
                if let Some(process) = self.observe_if(row, filter, parent)? {
                    items.push(process);
                    if items.len() >= limit {
                        return Ok(Page {
                            items,
                            next: after.as_deref().map(cursor_at),
                        });
                    }
                }
            }
            if exhausted {
                return Ok(Page { items, next: None });
            }
            if looked_at >= ROWS_PER_PAGE_MAX {
                return Ok(Page {
                    items,
                    next: after.as_deref().map(cursor_at),
                });
            }
        }
    }

    /// A whole list, from this one view.
    pub(crate) fn list(
        &self,
        base: Option<&Index>,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>, QueryError> {
        let mut all = Vec::new();
        let mut cursor = None;
        loop {
            let page = self.list_page(base.cloned(), filter, cursor.as_ref(), LIST_PAGE_MAX)?;
            if all.is_empty() {
                all = page.items;
            } else {
                all.extend(page.items);
            }
            match page.next {
                Some(next) => cursor = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// A process as observers see it, if a filter admits it.
    fn observe_if(
        &self,
        row: Row,
        filter: &ProcessListFilter,
        parent: Option<Incarnation>,
    ) -> Result<Option<ObservedProcess>, QueryError> {
        // What is looked at goes from cheap to dear, and most of a long list ends at the first step: one
        // key, of which the front alone is read.
        let may_be = |front: &StateFront| filter.status.may_admit(front.terminal_at_ms().is_some());
        let Some(summary) = self.summary_if(row, may_be)? else {
            return Ok(None);
        };
        let of = summary.head.provenance.parent.as_ref();
        if parent.is_some() && of.map(|of| of.incarnation) == parent {
            // All children of an incarnation name the same id.
            if of.map(|of| &of.process_id) != filter.parent.as_ref() {
                return Err(QueryError::Cursor);
            }
        } else if parent.is_some() {
            return Ok(None);
        }
        if !filter.admits_facts(&summary.filter_facts()) {
            return Ok(None);
        }
        Ok(Some(self.observe(summary)?))
    }

    /// A process as observers see it.
    pub(crate) fn observe_row(&self, row: Row) -> Result<Option<ObservedProcess>, StoreError> {
        match self.summary(row)? {
            Some(summary) => self.observe(summary).map(Some),
            None => Ok(None),
        }
    }

    /// The last events of a process, and their bytes: at most `count`, and of large ones as many of
    /// the newest as stay under the bound in bytes, but at least one.
    pub(crate) fn last_events(
        &self,
        process: &ObservedProcess,
        count: usize,
        bytes_max: usize,
    ) -> Result<(Vec<ObservedProcessEvent>, usize), StoreError> {
        let mut from = (process.last_sequence + 1)
            .saturating_sub(count as u64)
            .max(1);
        let mut kept = VecDeque::new();
        let mut bytes = 0;
        // A log reads forwards only, and a page ends with its bytes: whoever took the first page
        // for all of it would show the oldest and miss the newest.
        while from <= process.last_sequence {
            // No more than there are: what is told when to stop does not look for a next one.
            let left = usize::try_from(process.last_sequence + 1 - from).unwrap_or(count);
            let page = self
                .raw()
                .events(process.incarnation.get(), from, left, bytes_max)?;
            let Some((last, _)) = page.last() else { break };
            from = last + 1;
            for (sequence, value) in page {
                bytes += value.len();
                kept.push_back((sequence, value));
            }
            while bytes > bytes_max && kept.len() > 1 {
                bytes -= kept.pop_front().map_or(0, |(_, value)| value.len());
            }
        }
        let mut events = Vec::with_capacity(kept.len());
        for (sequence, value) in kept {
            events.push(EventRef::read(&value)?.to_observed(sequence)?);
        }
        Ok((events, bytes))
    }

    /// Everything that is granted to a session, or wakes it, in the order of creation. A grant's
    /// descriptor goes before none; of several frames' grants the root's comes first, by its key.
    pub(crate) fn visible_to_session(
        &self,
        session_id: &str,
    ) -> Result<Vec<(Row, ProcessHandleDescriptor)>, StoreError> {
        let mut visible: Vec<(Row, ProcessHandleDescriptor)> = self
            .grants_of_session(session_id)?
            .into_iter()
            .map(|(_, row, descriptor)| (row, descriptor))
            .collect();
        visible.extend(
            self.watched_by_session(session_id)?
                .into_iter()
                .map(|(_, row)| (row, ProcessHandleDescriptor::default())),
        );
        // Stable: what comes first stays first.
        visible.sort_by_key(|(row, _)| *row);
        visible.dedup_by_key(|(row, _)| *row);
        Ok(visible)
    }

    /// The same as a snapshot, newest change first.
    #[cfg(test)]
    pub(crate) fn snapshot(
        &self,
        session_id: &str,
    ) -> Result<crate::model::ProcessWorkSnapshot, StoreError> {
        let items = self.snapshot_of(self.visible_to_session(session_id)?)?;
        Ok(crate::model::ProcessWorkSnapshot::new(
            session_id.to_owned(),
            items,
        ))
    }

    /// What a snapshot shows of these processes.
    pub(crate) fn snapshot_of(
        &self,
        visible: Vec<(Row, ProcessHandleDescriptor)>,
    ) -> Result<Vec<ProcessWorkItem>, StoreError> {
        let mut found = Vec::with_capacity(visible.len());
        for (row, descriptor) in visible {
            if let Some(summary) = self.summary(row)? {
                let position = summary.edges.feed_position;
                found.push((position, self.observe(summary)?, descriptor));
            }
        }
        found.sort_by_key(|(position, ..)| std::cmp::Reverse(*position));
        let mut items = Vec::with_capacity(found.len());
        let mut room = SNAPSHOT_BYTES_MAX;
        for (_, process, descriptor) in found {
            // Those that changed last come first, and show their events as long as there is room.
            let events = if room == 0 {
                Vec::new()
            } else {
                let bytes_max = room.min(SNAPSHOT_PROCESS_BYTES_MAX);
                let (events, bytes) = self.last_events(&process, SNAPSHOT_EVENTS, bytes_max)?;
                room = room.saturating_sub(bytes);
                events
            };
            items.push(ProcessWorkItem::new(process, descriptor, events));
        }
        Ok(items)
    }
}

/// Tells a list from any other: of which store, from which index on, and what it lets through.
struct ListMark([u8; 8]);

impl ListMark {
    fn of(
        view: &View,
        base: Option<&Index>,
        filter: &ProcessListFilter,
    ) -> Result<Self, QueryError> {
        let prefix = base.map(Index::prefix).unwrap_or_default();
        let mut whole = view.store_id().as_bytes().to_vec();
        whole.extend_from_slice(&(prefix.len() as u64).to_be_bytes());
        whole.extend_from_slice(&prefix);
        serde_json::to_writer(&mut whole, filter).map_err(|_| QueryError::Cursor)?;
        let [a, b, c, d, e, f, g, h, ..] = ContentHash::of(&whole).0;
        Ok(Self([a, b, c, d, e, f, g, h]))
    }
}

/// Where a list goes on: which list that is, behind which key, and with the incarnation whose children
/// it shows.
fn encode_cursor(list: &ListMark, key: &[u8], parent: Option<Incarnation>) -> PageCursor {
    let mut text = String::with_capacity(2 * (list.0.len() + key.len()) + 22);
    for byte in list.0.iter().chain(key) {
        // Writing into a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    if let Some(parent) = parent {
        let _ = write!(text, "-{parent}");
    }
    PageCursor(text)
}

fn decode_cursor(
    cursor: &PageCursor,
    list: &ListMark,
) -> Result<(Vec<u8>, Option<Incarnation>), QueryError> {
    let (text, parent) = match cursor.0.split_once('-') {
        None => (cursor.0.as_str(), None),
        Some((text, parent)) => {
            let parent = parent.parse().map_err(|_| QueryError::Cursor)?;
            (text, Some(Incarnation(parent)))
        }
    };
    if text.is_empty() || !text.len().is_multiple_of(2) || text.len() > 4_096 || !text.is_ascii() {
        return Err(QueryError::Cursor);
    }
    let bytes: Result<Vec<u8>, _> = (0..text.len() / 2)
        .map(|at| {
            text.get(2 * at..2 * at + 2)
                .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                .ok_or(QueryError::Cursor)
        })
        .collect();
    match bytes?.strip_prefix(&list.0) {
        Some(key) if !key.is_empty() => Ok((key.to_vec(), parent)),
        Some(_) | None => Err(QueryError::Cursor),
    }
}
