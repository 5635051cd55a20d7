//! The change feed.

use std::sync::Arc;

use super::reads::blocking;
use super::runtime::Shared;
use crate::model::limits::{CHANGES_PAGE_BYTES_MAX, LIST_PAGE_MAX};
use crate::model::{ChangeCursor, ChangePage, Error, ProcessChange, ProcessRecord, Result};
use crate::store::read::{FeedEntry, View};

impl Shared {
    fn cursor_at(&self, position: u64) -> ChangeCursor {
        ChangeCursor(format!("{}-{position}", self.store.store_id().simple()))
    }

    /// The position that a cursor stands for.
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
        let Some((store, position)) = cursor.0.split_once('-') else {
            return invalid("is no cursor");
        };
        let Ok(position) = position.parse::<u64>() else {
            return invalid("is no cursor");
        };
        if store != self.store.store_id().simple().to_string() {
            return invalid("belongs to another store");
        }
        let (oldest, newest) = view.feed_bounds()?;
        if position > newest {
            return invalid("is from the future: the store was restored from a copy");
        }
        if position != 0 && position < oldest {
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
        blocking(move || {
            let view = shared.view()?;
            let after = shared.position_of(&view, &cursor)?;
            let mut changes = Vec::new();
            let mut next = cursor;
            let mut bytes = 0;
            for (position, entry) in view.feed(after, limit)? {
                if bytes >= CHANGES_PAGE_BYTES_MAX {
                    break;
                }
                next = shared.cursor_at(position);
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
        })
        .await
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
