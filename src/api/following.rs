//! Streams that look again and again: a session's work, and the change feed.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::actors::hub::Watcher;
use crate::actors::runtime::Shared;
use crate::actors::work::Whose;
use crate::model::{ChangeCursor, ChangePage, ProcessWorkSnapshot, Result};

/// Changes that one page of a followed feed holds at the most.
const FEED_PAGE: usize = 64;

/// One look, which gives back what the next one needs.
type Look<S, T> = Pin<Box<dyn Future<Output = (S, Result<T>)> + Send>>;

/// Looks for as long as somebody polls and nothing fails; between two polls nothing happens, and
/// nothing but the look under way is held.
struct Looking<S, T> {
    look: fn(S) -> Look<S, T>,
    under_way: Option<Look<S, T>>,
}

impl<S, T> Looking<S, T> {
    fn new(state: S, look: fn(S) -> Look<S, T>) -> Self {
        Self {
            look,
            under_way: Some(look(state)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<T>>> {
        let Some(under_way) = &mut self.under_way else {
            return Poll::Ready(None);
        };
        match under_way.as_mut().poll(cx) {
            Poll::Pending => Poll::Pending,
            Poll::Ready((state, result)) => {
                // An error is the last item.
                self.under_way = result.is_ok().then(|| (self.look)(state));
                Poll::Ready(Some(result))
            }
        }
    }
}

type WorkState = (Arc<Shared>, Whose, Watcher);

/// A session's work, live: the snapshot of now, and a fresh one whenever something of a process in
/// it, its grants or its wakes changed. Changes are coalesced: however much happens, and however
/// slow the reader is, there is one notice pending at the most, and the snapshot is made when it is
/// asked for. So it never slows a commit, and holds no more than one snapshot. Several changes may
/// show in one snapshot, and one may be made that equals the one before.
///
/// Its cost follows the processes of the session, each of which it listens to; what happens to
/// others costs it nothing. It does not end by itself; an `Err` is its last item: `ShuttingDown`,
/// `Timeout` where the session has more than can be read from one state of the store, tried again, or a
/// failure of the store.
pub struct SessionWatch(Looking<WorkState, ProcessWorkSnapshot>);

impl SessionWatch {
    pub(crate) fn new(shared: &Arc<Shared>, whose: Whose) -> Result<Self> {
        let watcher = shared.watch_work(&whose)?;
        let state = (Arc::clone(shared), whose, watcher);
        Ok(Self(Looking::new(state, |(shared, whose, watcher)| {
            Box::pin(async move {
                let (watcher, found) = shared.watched_work(whose.clone(), watcher).await;
                ((shared, whose, watcher), found)
            })
        })))
    }
}

impl Stream for SessionWatch {
    type Item = Result<ProcessWorkSnapshot>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll(cx)
    }
}

impl fmt::Debug for SessionWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionWatch").finish_non_exhaustive()
    }
}

/// The change feed from a cursor on, and then live: pages of changes, none of them empty, in the
/// order of their commits. [`ChangePage::next`] of the last page that was dealt with is where to
/// resume, also after a restart.
///
/// It holds one page at the most, and never slows a commit. An `Err` is its last item: those of
/// [`Processes::changes_since`](super::Processes::changes_since), `ShuttingDown`, and `Timeout` where a
/// page could not be read from one state of the store, tried again.
pub struct ChangeFeed(Looking<(Arc<Shared>, ChangeCursor), ChangePage>);

impl ChangeFeed {
    pub(crate) fn new(shared: &Arc<Shared>, cursor: ChangeCursor) -> Self {
        let state = (Arc::clone(shared), cursor);
        Self(Looking::new(state, |(shared, cursor)| {
            Box::pin(async move {
                let page = shared.changes_after(&cursor, FEED_PAGE).await;
                let next = page.as_ref().map_or(cursor, |page| page.next.clone());
                ((shared, next), page)
            })
        }))
    }
}

impl Stream for ChangeFeed {
    type Item = Result<ChangePage>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.poll(cx)
    }
}

impl fmt::Debug for ChangeFeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChangeFeed").finish_non_exhaustive()
    }
}
