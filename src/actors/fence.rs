//! The fence: a thread of its own that stops what an incarnation executes when the trust in its
//! heartbeat ends (L7).
//!
//! The keeper renews and decides what comes next, but it shares its threads with engines, and code
//! that never yields can hold all of them. The fence shares nothing with anybody: it sleeps until
//! the moment at which trust ends, looks whether a renewal has moved that moment, and fires what
//! the incarnation has handed to it if none has.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use ractor::ActorRef;

use super::keeper::{KeeperMsg, OwnerHandle};
use crate::store::clock::Clock;

/// Watches the trust in one incarnation at a time. Its thread ends with it.
#[derive(Debug)]
pub(crate) struct Fence {
    post: Arc<Post>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the thread and its owner share.
#[derive(Debug)]
struct Post {
    clock: Arc<dyn Clock>,
    /// How long it sleeps at the most: the injected clock of a test does not go as the thread does.
    look_every: Duration,
    /// Told when trust has ended, so that what follows need not wait for its next look.
    keeper: ActorRef<KeeperMsg>,
    watched: Mutex<Watched>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Watched {
    owner: Option<Arc<OwnerHandle>>,
    ended: bool,
}

impl Fence {
    /// Starts the thread.
    ///
    /// # Errors
    /// If the operating system has no thread to give.
    pub(super) fn start(
        clock: Arc<dyn Clock>,
        look_every: Duration,
        keeper: ActorRef<KeeperMsg>,
    ) -> std::io::Result<Self> {
        let post = Arc::new(Post {
            clock,
            look_every,
            keeper,
            watched: Mutex::default(),
            changed: Condvar::new(),
        });
        let stands = Arc::clone(&post);
        let thread = std::thread::Builder::new()
            .name("procession-fence".to_owned())
            .spawn(move || stands.stand())?;
        Ok(Self {
            post,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Watches this incarnation from now on, or none.
    pub(super) fn watch(&self, owner: Option<Arc<OwnerHandle>>) {
        self.post.lock().owner = owner;
        self.post.changed.notify_all();
    }

    /// Ends the thread and waits for that.
    pub(super) fn end(&self) {
        self.post.end();
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread
            && thread.join().is_err()
        {
            tracing::error!("the fence panicked");
        }
    }
}

#[cfg(test)]
impl Fence {
    /// Whether its thread is there: it holds what they share.
    pub(super) fn stands(&self) -> bool {
        Arc::strong_count(&self.post) > 1
    }
}

impl Drop for Fence {
    fn drop(&mut self) {
        // Not waited for: it may be this very thread that drops it.
        self.post.end();
    }
}

impl Post {
    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }

    fn stand(&self) {
        let mut watched = self.lock();
        while !watched.ended {
            let left = watched
                .owner
                .as_ref()
                .map(|owner| owner.trust_left(self.clock.monotonic()));
            watched = match left {
                None => self
                    .changed
                    .wait(watched)
                    .unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let lapsed = watched.owner.take();
                    // What it fires may run code of others.
                    drop(watched);
                    self.fire(lapsed);
                    self.lock()
                }
                // A renewal wakes nobody: it is found here, where trust would have ended.
                Some(left) => {
                    self.changed
                        .wait_timeout(watched, left.min(self.look_every))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
            };
        }
    }

    fn fire(&self, lapsed: Option<Arc<OwnerHandle>>) {
        if let Some(owner) = lapsed {
            // What wakes up may be an engine's own. The keeper stops the rest then.
            let fired = std::panic::catch_unwind(AssertUnwindSafe(|| owner.lose()));
            if fired.is_err() {
                tracing::error!("a waker panicked while its execution was stopped");
            }
            // Without a keeper the runtime is going down, and nothing follows.
            let _ = self.keeper.cast(KeeperMsg::CheckTrust);
        }
    }
}
