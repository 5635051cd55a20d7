//! The change feed.

use std::sync::Arc;

use super::errors::commit_error;
use super::reads::{blocking, on_a_view};
use super::runtime::Shared;
use crate::model::limits::{CHANGES_PAGE_BYTES_MAX, LIST_PAGE_MAX};
use crate::model::{ChangeCursor, ChangePage, Error, ProcessChange, ProcessRecord, Result};
use crate::store::read::{FeedEntry, View};
use crate::store::write_set::{Change, CommitError, Refusal, WriteSet};

/// What a cursor says.
struct Said<'a> {
    store: &'a str,
    epoch: u64,
    nonce: u64,
    position: u64,
    /// The oldest deletion that was known when its reader began at the start. What was deleted
    /// before that it never saw, so it need not be told.
    floor: u64,
}

impl<'a> Said<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let mut parts = text.split('-');
        let said = Self {
            store: parts.next()?,
            epoch: parts.next()?.parse().ok()?,
            nonce: u64::from_str_radix(parts.next()?, 16).ok()?,
            position: parts.next()?.parse().ok()?,
            floor: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(said)
    }
}

impl Shared {
    /// Marks where in the feed this epoch begins: before anything of it can be shown.
    pub(super) async fn begin_feed(&self) -> Result<()> {
        let (nonce, _) = uuid::Uuid::new_v4().as_u64_pair();
        let epoch = self.store.epoch();
        let set = WriteSet::new(Vec::new(), vec![Change::BeginFeed { epoch, nonce }]);
        match self.store.commit_wait(set).await {
            Ok(_) | Err(CommitError::Refused(Refusal::NothingToDo)) => Ok(()),
            Err(error) => Err(commit_error("(feed)", error)),
        }
    }

    /// The cursor of a position that a view shows. It names the newest epoch: on a store that several
    /// hosts share that may be another's.
    fn cursor_at(&self, view: &View, position: u64, floor: u64) -> Result<ChangeCursor> {
        let (epoch, begins) = view.newest_feed_epoch()?.ok_or_else(|| Error::Corrupted {
            what: "feed without an epoch".to_owned(),
        })?;
        let store = self.store.store_id().simple();
        Ok(ChangeCursor(format!(
            "{store}-{epoch}-{:016x}-{position}-{floor}",
            begins.nonce
        )))
    }

    /// The floor that the cursors behind one have.
    fn floor_of(view: &View, cursor: &ChangeCursor) -> Result<u64> {
        match Said::parse(&cursor.0) {
            Some(said) => Ok(said.floor),
            None => Ok(view.feed_bounds()?.0),
        }
    }

    /// The position that a cursor stands for.
    ///
    /// What a cursor has seen must be in this store's past: the epoch that it names must be one of
    /// this store, and its position before the next one began. A store that was restored from an
    /// older copy, or that lost what a relaxed durability had not synced, has taken those positions
    /// again for something else.
    pub(super) fn position_of(&self, view: &View, cursor: &ChangeCursor) -> Result<u64> {
        let invalid = |reason: &str| {
            Err(Error::invalid(
                "cursor",
                reason,
                "a cursor that this store's feed returned",
            ))
        };
        if *cursor == ChangeCursor::start() {
            return Ok(0);
        }
        let Some(said) = Said::parse(&cursor.0) else {
            return invalid("is no cursor");
        };
        if said.store != self.store.store_id().simple().to_string() {
            return invalid("belongs to another store");
        }
        let position = said.position;
        let known = view.feed_epoch(said.epoch)?;
        if known.is_none_or(|known| known.nonce != said.nonce) {
            return invalid(
                "is of an epoch that this store did not have: it was restored from a copy",
            );
        }
        let lost = view
            .feed_epoch_after(said.epoch)?
            .is_some_and(|next| position >= next.first_position);
        if lost {
            return invalid("has seen what this store has lost: it was restored from a copy");
        }
        let (oldest, newest) = view.feed_bounds()?;
        if position > newest {
            return invalid("is from the future: the store was restored from a copy");
        }
        if oldest > position.max(said.floor) {
            // Deletions before this are no longer known.
            return Err(Error::CursorTooOld {
                cursor: position,
                oldest,
            });
        }
        Ok(position)
    }

    /// Changes after a cursor, in the order of their commits: at most `limit`, and of large records
    /// no further one once the bound in bytes is reached.
    pub(crate) async fn changes_since(
        self: &Arc<Self>,
        cursor: &ChangeCursor,
        limit: usize,
    ) -> Result<ChangePage> {
        if limit == 0 || limit > LIST_PAGE_MAX {
            return Err(Error::invalid(
                "limit",
                format!("is {limit}"),
                format!("1 to {LIST_PAGE_MAX}"),
            ));
        }
        let (shared, cursor) = (Arc::clone(self), cursor.clone());
        blocking(move || on_a_view(|| shared.changes_page(&cursor, limit))).await
    }

    fn changes_page(&self, cursor: &ChangeCursor, limit: usize) -> Result<ChangePage> {
        let view = self.view()?;
        let after = self.position_of(&view, cursor)?;
        let floor = Self::floor_of(&view, cursor)?;
        let mut changes = Vec::new();
        let mut next = cursor.clone();
        let mut bytes = 0;
        for (position, entry) in view.feed(after, limit)? {
            if bytes >= CHANGES_PAGE_BYTES_MAX {
                break;
            }
            next = self.cursor_at(&view, position, floor)?;
            changes.push(match entry {
                FeedEntry::Changed { row, .. } => {
                    let Some((loaded, size)) = view.load_sized(row)? else {
                        return Err(Error::Corrupted {
                            what: format!("feed position {position} names no process"),
                        });
                    };
                    bytes += size;
                    let record = ProcessRecord::assemble(&loaded.registration, &loaded.state);
                    ProcessChange::Changed {
                        record: Box::new(record),
                    }
                }
                FeedEntry::Pruned { id, incarnation } => ProcessChange::Deleted {
                    process_id: id,
                    incarnation,
                },
            });
        }
        Ok(ChangePage { changes, next })
    }

    /// Waits until something may have changed since the last look.
    ///
    /// # Cancel safety
    /// Safe to drop.
    pub(crate) async fn changes_after(
        self: &Arc<Self>,
        cursor: &ChangeCursor,
        limit: usize,
    ) -> Result<ChangePage> {
        // Listened to first, looked at second.
        let mut news = self.hub.listen_changes();
        loop {
            news.borrow_and_update();
            let page = self.changes_since(cursor, limit).await?;
            if !page.changes.is_empty() {
                return Ok(page);
            }
            if self.is_closed() || news.changed().await.is_err() {
                return Err(self.stopped());
            }
        }
    }
}
