//! A thread for what walks through a whole store.
//!
//! To open a store and to walk through it (recovery, retention, a prune by filter, a list of everything)
//! brings much into the store's cache that soon goes again. Memory allocators keep what a thread frees
//! for that thread: done on the threads that answer reads, walks leave those with a heap full of holes,
//! and every later read of a few processes took up to twice as long (`docs/performance.md`). So they
//! have one of their own.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};

use tokio::sync::{mpsc, oneshot};

use super::locks::lock;
use super::panics::panic_text;

/// Walks that wait for their turn; whoever has one more to make waits before.
const QUEUE_MAX: usize = 64;

/// Why a walk came to nothing. Neither says that something failed in the store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WalkError {
    /// Its own code panicked.
    #[error("a walk through the store panicked: {what}")]
    Panicked {
        /// What the panic said.
        what: String,
    },
    /// The operating system has no thread to give.
    #[error("no thread for a walk through the store: {cause}")]
    NoThread {
        /// What it said.
        cause: String,
    },
}

type Job = Box<dyn FnOnce() + Send>;

/// The thread, started with the first walk. It ends when nobody holds this any more.
#[derive(Clone)]
pub(crate) struct WalkThread {
    name: &'static str,
    queue: Arc<Mutex<Option<mpsc::Sender<Job>>>>,
}

impl fmt::Debug for WalkThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WalkThread").finish_non_exhaustive()
    }
}

impl Default for WalkThread {
    fn default() -> Self {
        Self::named("procession-walk")
    }
}

impl WalkThread {
    /// A thread of that name.
    pub(crate) fn named(name: &'static str) -> Self {
        Self {
            name,
            queue: Arc::default(),
        }
    }

    /// Has the thread do something, behind what it was told before. A panic is contained.
    ///
    /// # Cancel safety
    /// What nobody waits for any more when its turn comes is not begun.
    pub(crate) async fn walk<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, WalkError> {
        let (answer, answered) = oneshot::channel();
        let job = Box::new(move || {
            if !answer.is_closed() {
                let done = catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
                    let what = panic_text(&*panic).to_owned();
                    tracing::error!(what, "a walk through the store panicked");
                    WalkError::Panicked { what }
                });
                let _ = answer.send(done);
            }
        });
        #[cfg(test)]
        let _stands = time_stands();
        // The thread contains what panics on it, and ends with the last that holds its queue.
        let ended = || WalkError::NoThread {
            cause: "it has ended".to_owned(),
        };
        self.queue()?.send(job).await.map_err(|_| ended())?;
        answered.await.map_err(|_| ended())?
    }

    fn queue(&self) -> Result<mpsc::Sender<Job>, WalkError> {
        let mut queue = lock(&self.queue);
        if let Some(running) = queue.as_ref() {
            return Ok(running.clone());
        }
        let (sender, mut jobs) = mpsc::channel::<Job>(QUEUE_MAX);
        std::thread::Builder::new()
            .name(self.name.to_owned())
            .spawn(move || {
                while let Some(job) = jobs.blocking_recv() {
                    job();
                }
            })
            .map_err(|error| WalkError::NoThread {
                cause: error.to_string(),
            })?;
        Ok(queue.insert(sender).clone())
    }
}

/// Where a test pauses time it would pass while this thread is at work, of which the async runtime knows
/// nothing: not as long as what is returned is held.
#[cfg(test)]
fn time_stands() -> std::sync::mpsc::Sender<()> {
    let (held, let_go) = std::sync::mpsc::channel();
    tokio::task::spawn_blocking(move || let_go.recv());
    held
}

#[cfg(test)]
mod tests {
    use std::thread::{self, ThreadId};

    use super::*;

    async fn where_it_walks(walk_thread: &WalkThread) -> ThreadId {
        walk_thread.walk(|| thread::current().id()).await.unwrap()
    }

    #[tokio::test]
    async fn all_walks_are_on_one_thread_that_survives_a_panic() {
        let walk_thread = WalkThread::default();
        let first = where_it_walks(&walk_thread).await;
        assert_ne!(first, thread::current().id());
        let panicked: Result<(), _> = walk_thread.walk(|| panic!("on purpose")).await;
        let what = "on purpose".to_owned();
        assert_eq!(panicked, Err(WalkError::Panicked { what }));
        assert_eq!(where_it_walks(&walk_thread.clone()).await, first);
    }

    #[tokio::test]
    async fn what_nobody_waits_for_is_not_begun() {
        let walk_thread = WalkThread::default();
        let (go_on, held) = std::sync::mpsc::channel::<()>();
        let (began, begun) = oneshot::channel();
        let busy = walk_thread.walk(move || {
            let _ = began.send(());
            let _ = held.recv();
        });
        let (said, hears) = std::sync::mpsc::channel();
        let given_up = async {
            begun.await.unwrap();
            let unwanted = walk_thread.walk(move || said.send(()));
            tokio::select! {
                biased;
                _ = unwanted => panic!("the thread is busy"),
                () = tokio::task::yield_now() => {}
            }
            go_on.send(()).unwrap();
        };
        let (done, ()) = tokio::join!(busy, given_up);
        done.unwrap();
        where_it_walks(&walk_thread).await;
        assert!(hears.try_recv().is_err());
    }
}
