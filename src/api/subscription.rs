//! A live subscription to one process's log.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::actors::hub::{FromTail, GrantListener, GrantStirs, LogListener};
use crate::actors::reads::{blocking, gone, on_a_view};
use crate::actors::runtime::Shared;
use crate::model::{Error, ObservedProcessEvent, ProcessEvent, Result, SessionScope};
use crate::store::keys::Row;

/// Events that are taken from the tail or the log at a time.
const BATCH: usize = 64;
/// Bytes of events that are taken from the tail or the log at a time, but for a single larger one: so
/// much a subscriber that does not read holds.
const BATCH_BYTES_MAX: usize = 256 << 10;

/// What a session reads a process by, for as long as it does.
#[derive(Debug, Clone)]
pub(crate) struct Grants {
    shared: Arc<Shared>,
    process_id: String,
    row: Row,
    /// One for each scope of the session, whether it holds a grant now or not.
    listeners: Vec<GrantListener>,
    /// With a process every grant on it goes.
    process: Arc<LogListener>,
}

impl Grants {
    /// Listens from now on. Whether there is a grant is to be looked at after this.
    pub(crate) fn listen(
        shared: &Arc<Shared>,
        process_id: &str,
        row: Row,
        scopes: &[SessionScope],
    ) -> Self {
        let listen =
            |scope: &SessionScope| shared.hub.listen_grant((scope.clone(), row.incarnation));
        Self {
            shared: Arc::clone(shared),
            process_id: process_id.to_owned(),
            row,
            listeners: scopes.iter().map(listen).collect(),
            process: Arc::new(shared.hub.listen(row.incarnation)),
        }
    }

    /// Whether the process may still be seen. Whoever takes a grant away here, or prunes the process,
    /// says so before it returns: where nothing was heard, nothing was taken away, and this costs no
    /// look at the store. On a store that several hosts share another one may have taken it, so there the store is
    /// looked at each time; a grant that another host took and gave again between two looks counts
    /// as kept.
    pub(crate) fn check(&self) -> Result<()> {
        let kept = |it: &&GrantListener| !it.is_lost();
        if self.process.is_pruned() {
            return Err(self.not_granted());
        }
        let alone = self.shared.store.exclusive_epoch().is_some();
        if alone && self.listeners.iter().all(|it| kept(&it)) {
            return Ok(());
        }
        let view = self.shared.view()?;
        if view.front(self.row)?.is_none() {
            // Pruned: a grant may be left of it for a while.
            return Err(self.not_granted());
        }
        // One that was taken away and given again is not what this reads by any more.
        for listener in self.listeners.iter().filter(kept) {
            if view.grant(listener.scope(), self.row)?.is_some() {
                return Ok(());
            }
        }
        Err(self.not_granted())
    }

    fn not_granted(&self) -> Error {
        let narrowest = self.listeners.last().map(|it| it.scope().id());
        Error::NotGranted {
            scope: narrowest.unwrap_or_default(),
            ids: vec![self.process_id.clone()],
        }
    }

    /// Waits until the process may not be seen any more. What another host takes away on a shared
    /// store is heard of at the reaper's next tick.
    ///
    /// # Cancel safety
    /// Safe to drop and to call again.
    pub(crate) async fn ended(&self) -> Error {
        let mut stirs: Vec<GrantStirs> = self.listeners.iter().map(GrantListener::stirs).collect();
        loop {
            if let Err(error) = self.check() {
                return error;
            }
            match stirs.as_mut_slice() {
                [only] => only.next().await,
                [first, second] => tokio::select! {
                    () = first.next() => {}
                    () = second.next() => {}
                },
                _ => return self.not_granted(),
            }
        }
    }
}

struct Source {
    shared: Arc<Shared>,
    process_id: String,
    row: Row,
    cursor: u64,
    listener: LogListener,
    grants: Option<Grants>,
}

enum Batch {
    Events {
        events: Vec<ObservedProcessEvent>,
        /// The last of them is terminal: nothing else is to be fetched, whatever becomes of the
        /// process or of the store meanwhile.
        ended: bool,
    },
    End,
}

type Fetch = Pin<Box<dyn Future<Output = (Source, Result<Batch>)> + Send>>;

enum State {
    Idle(Box<Source>),
    Fetching(Fetch),
    Done,
}

/// The log of a process from a cursor on, and then live: contiguous, with no gap and no duplicate at
/// the seam, ended after the terminal event (E6). Bound to the incarnation it began with.
///
/// It holds a bounded number of events however slow its reader is: one that falls behind reads the
/// log. It never slows a commit (E7). Only what is durable is shown.
///
/// An `Err` is its last item: `NotGranted` when the grant of a session went away, `ShuttingDown`,
/// `StoreFailed`, `Timeout` where a page could not be read from one state of the store, tried again,
/// `NoLongerRetained` when the process was pruned. The sequence of the last event received is where
/// to resume. One that has yielded the terminal event has nothing more to say: it ends without an
/// error, also where the process was pruned, the grant taken away or the store closed since. Where a
/// grant goes away before the terminal event was yielded, that ends it, and the event is not shown;
/// to a session, with the process every grant on it goes away.
pub struct Subscription {
    state: State,
    buffer: VecDeque<ObservedProcessEvent>,
    /// For the check before each item that a session is given.
    grants: Option<Grants>,
}

impl fmt::Debug for Subscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription")
            .field("buffered", &self.buffer.len())
            .finish_non_exhaustive()
    }
}

impl Subscription {
    pub(crate) fn new(
        shared: &Arc<Shared>,
        process_id: &str,
        row: Row,
        after_sequence: u64,
        grants: Option<Grants>,
    ) -> Self {
        let source = Source {
            shared: Arc::clone(shared),
            process_id: process_id.to_owned(),
            row,
            cursor: after_sequence,
            listener: shared.hub.read_log(row.incarnation),
            grants: grants.clone(),
        };
        Self {
            state: State::Idle(Box::new(source)),
            buffer: VecDeque::new(),
            grants,
        }
    }

    fn end_with(&mut self, error: Error) -> Poll<Option<Result<ObservedProcessEvent>>> {
        self.state = State::Done;
        self.buffer.clear();
        self.grants = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Stream for Subscription {
    type Item = Result<ObservedProcessEvent>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if matches!(this.state, State::Done) && this.buffer.is_empty() {
                // All was shown: what becomes of the grant is of no concern any more.
                this.grants = None;
                return Poll::Ready(None);
            }
            // G5: what is buffered is not given out either once the grant is gone.
            if let Some(grants) = &this.grants
                && let Err(error) = grants.check()
            {
                return this.end_with(error);
            }
            if let Some(event) = this.buffer.pop_front() {
                return Poll::Ready(Some(Ok(event)));
            }
            match std::mem::replace(&mut this.state, State::Done) {
                State::Done => return Poll::Ready(None),
                State::Idle(source) => this.state = State::Fetching(Box::pin(fetch(*source))),
                State::Fetching(mut fetching) => match fetching.as_mut().poll(cx) {
                    Poll::Pending => {
                        this.state = State::Fetching(fetching);
                        return Poll::Pending;
                    }
                    Poll::Ready((source, Ok(Batch::Events { events, ended }))) => {
                        this.buffer.extend(events);
                        if !ended {
                            this.state = State::Idle(Box::new(source));
                        }
                    }
                    Poll::Ready((_, Ok(Batch::End))) => {}
                    Poll::Ready((_, Err(error))) => return this.end_with(error),
                },
            }
        }
    }
}

fn is_gone(error: &Error) -> bool {
    matches!(
        error,
        Error::NoLongerRetained { .. } | Error::UnknownProcess { .. }
    )
}

async fn fetch(mut source: Source) -> (Source, Result<Batch>) {
    loop {
        // However much there is to read, others get their turn.
        tokio::task::consume_budget().await;
        match source.next_batch().await {
            Ok(Some(batch)) => return (source, Ok(batch)),
            Ok(None) => {}
            Err(error) => return (source, Err(error)),
        }
        if let Err(error) = source.wait().await {
            return (source, Err(error));
        }
    }
}

impl Source {
    /// What can be had without waiting for something new.
    async fn next_batch(&mut self) -> Result<Option<Batch>> {
        // Seen first, read second: what commits in between wakes the wait.
        self.listener.seen();
        let from_tail = self
            .listener
            .tail_after(self.cursor, BATCH, BATCH_BYTES_MAX);
        if let Some(FromTail { events, ended }) = from_tail {
            let events = events.iter().map(|event| event.observed()).collect();
            return Ok(self.take(events, ended));
        }
        let view = self.shared.view()?;
        let Some(front) = view.front(self.row)? else {
            return Err(match &self.grants {
                // G1: to a session what was pruned looks like what it does not hold.
                Some(grants) => grants.not_granted(),
                None => gone(&view, &self.process_id, self.row)?,
            });
        };
        if front.last_sequence <= self.cursor {
            if front.terminal_at_ms().is_none() && self.shared.is_closed() {
                return Err(self.shared.stopped());
            }
            return Ok(front.terminal_at_ms().map(|_| Batch::End));
        }
        drop(view);
        let (page, ended) = self.log_page().await.map_err(|error| match &self.grants {
            // Pruned in between.
            Some(grants) if is_gone(&error) => grants.not_granted(),
            _ => error,
        })?;
        let events = page.iter().map(ProcessEvent::observed).collect();
        Ok(self.take(events, ended))
    }

    /// The next page of the log, and whether it ends with the terminal event, read off the async
    /// threads: it may come from the disk. On a view of its own, taken there: a view that waits for a
    /// thread holds up the write-behind.
    async fn log_page(&self) -> Result<(Vec<ProcessEvent>, bool)> {
        let (shared, id) = (Arc::clone(&self.shared), self.process_id.clone());
        let (row, cursor) = (self.row, self.cursor);
        let look = move || {
            let view = shared.view()?;
            let page = Shared::log_page(&view, &id, row, cursor, (BATCH, BATCH_BYTES_MAX))?;
            let read_to = page.last().map(|event| event.sequence);
            let front = view.front(row)?;
            let ended = front.is_some_and(|front| {
                front.terminal_at_ms().is_some() && read_to == Some(front.last_sequence)
            });
            Ok((page, ended))
        };
        blocking(move || on_a_view(look)).await
    }

    fn take(&mut self, events: Vec<ObservedProcessEvent>, ended: bool) -> Option<Batch> {
        self.cursor = events.last()?.sequence;
        Some(Batch::Events { events, ended })
    }

    async fn wait(&mut self) -> Result<()> {
        let heard = match &self.grants {
            None => self.listener.changed().await,
            Some(grants) => tokio::select! {
                biased;
                error = grants.ended() => return Err(error),
                heard = self.listener.changed() => heard,
            },
        };
        if heard {
            Ok(())
        } else {
            Err(self.shared.stopped())
        }
    }
}
