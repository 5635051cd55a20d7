//! A live subscription to one process's log.

use std::collections::VecDeque;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_core::Stream;

use crate::actors::hub::{LogListener, ScopeListener};
use crate::actors::runtime::Shared;
use crate::model::{Error, ObservedProcessEvent, Result, SessionScope};
use crate::store::keys::Row;

/// Events that are taken from the tail or the log at a time.
const BATCH: usize = 64;

/// Whether whoever subscribed may still see the process.
pub(crate) struct Grants {
    pub(crate) scopes: Vec<SessionScope>,
    pub(crate) listeners: Vec<ScopeListener>,
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
    Events(Vec<ObservedProcessEvent>),
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
/// `NoLongerRetained` when the process was pruned. The sequence of the last event received is where
/// to resume.
pub struct Subscription {
    state: State,
    buffer: VecDeque<ObservedProcessEvent>,
    /// For the check before each item that a session is given.
    visible: Option<Visibility>,
}

struct Visibility {
    shared: Arc<Shared>,
    scopes: Vec<SessionScope>,
    row: Row,
    process_id: String,
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
        let visible = grants.as_ref().map(|grants| Visibility {
            shared: Arc::clone(shared),
            scopes: grants.scopes.clone(),
            row,
            process_id: process_id.to_owned(),
        });
        let source = Source {
            shared: Arc::clone(shared),
            process_id: process_id.to_owned(),
            row,
            cursor: after_sequence,
            listener: shared.hub.listen(row.incarnation),
            grants,
        };
        Self {
            state: State::Idle(Box::new(source)),
            buffer: VecDeque::new(),
            visible,
        }
    }

    fn end_with(&mut self, error: Error) -> Poll<Option<Result<ObservedProcessEvent>>> {
        self.state = State::Done;
        self.buffer.clear();
        self.visible = None;
        Poll::Ready(Some(Err(error)))
    }
}

impl Visibility {
    fn check(&self) -> Result<()> {
        let view = self.shared.view()?;
        for scope in &self.scopes {
            if view.grant(scope, self.row)?.is_some() {
                return Ok(());
            }
        }
        Err(Error::NotGranted {
            scope: self.scopes.last().map(SessionScope::id).unwrap_or_default(),
            ids: vec![self.process_id.clone()],
        })
    }
}

impl Stream for Subscription {
    type Item = Result<ObservedProcessEvent>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if matches!(this.state, State::Done) && this.buffer.is_empty() {
                return Poll::Ready(None);
            }
            // G5: what is buffered is not given out either once the grant is gone.
            if let Some(visible) = &this.visible
                && let Err(error) = visible.check()
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
                    Poll::Ready((source, Ok(Batch::Events(events)))) => {
                        this.buffer.extend(events);
                        this.state = State::Idle(Box::new(source));
                    }
                    Poll::Ready((_, Ok(Batch::End))) => {}
                    Poll::Ready((_, Err(error))) => {
                        // To a session a pruned process is one that it no longer holds.
                        let hidden = this.visible.as_ref().and_then(|v| v.check().err());
                        return this.end_with(hidden.unwrap_or(error));
                    }
                },
            }
        }
    }
}

async fn fetch(mut source: Source) -> (Source, Result<Batch>) {
    loop {
        match source.next_batch() {
            Ok(Some(batch)) => return (source, Ok(batch)),
            Ok(None) => {}
            Err(error) => return (source, Err(error)),
        }
        if !source.wait().await {
            return (source, Err(Error::ShuttingDown));
        }
        if source.grants.is_some() {
            // The reader checks its grant before it takes anything: give it the chance.
            match source.next_batch() {
                Ok(Some(batch)) => return (source, Ok(batch)),
                Ok(None) => return (source, Ok(Batch::Events(Vec::new()))),
                Err(error) => return (source, Err(error)),
            }
        }
    }
}

impl Source {
    /// What can be had at once.
    fn next_batch(&mut self) -> Result<Option<Batch>> {
        // Seen first, read second: what commits in between wakes the wait.
        self.listener.seen();
        let from_tail = self.listener.tail_after(self.cursor, BATCH);
        let events: Vec<ObservedProcessEvent> = match from_tail {
            Some(events) => events.iter().map(|event| event.observed()).collect(),
            None => self
                .shared
                .events_page(&self.process_id, self.row.incarnation, self.cursor, BATCH)?
                .iter()
                .map(crate::model::ProcessEvent::observed)
                .collect(),
        };
        if let Some(last) = events.last() {
            self.cursor = last.sequence;
            return Ok(Some(Batch::Events(events)));
        }
        let view = self.shared.view()?;
        match view.front(self.row)? {
            Some(front)
                if front.terminal_at_ms().is_some() && front.last_sequence <= self.cursor =>
            {
                Ok(Some(Batch::End))
            }
            Some(_) if self.shared.is_closed() => Err(Error::ShuttingDown),
            Some(_) => Ok(None),
            None => Err(match view.tombstone(self.row.incarnation)? {
                Some((_, tombstone)) => Error::NoLongerRetained {
                    process_id: self.process_id.clone(),
                    status: tombstone.status,
                    pruned_at: tombstone.pruned_at_ms,
                },
                None => Error::unknown(&self.process_id),
            }),
        }
    }

    async fn wait(&mut self) -> bool {
        match &mut self.grants {
            None => self.listener.changed().await,
            Some(grants) => {
                let mut scopes = grants.listeners.iter_mut();
                match (scopes.next(), scopes.next()) {
                    (Some(first), Some(second)) => tokio::select! {
                        heard = self.listener.changed() => heard,
                        heard = first.changed() => heard,
                        heard = second.changed() => heard,
                    },
                    (Some(first), None) => tokio::select! {
                        heard = self.listener.changed() => heard,
                        heard = first.changed() => heard,
                    },
                    (None, _) => self.listener.changed().await,
                }
            }
        }
    }
}
