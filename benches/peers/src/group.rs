//! Group commit: one thread takes all that queued meanwhile and commits it at once.

use std::sync::mpsc;

use tokio::sync::oneshot;

/// The queue of a committing thread.
pub struct Group<T> {
    queue: mpsc::Sender<(T, oneshot::Sender<()>)>,
}

impl<T: Send + 'static> Group<T> {
    /// `commit` is given everything that queued, and makes it durable before it returns.
    pub fn new(mut commit: impl FnMut(Vec<T>) + Send + 'static) -> Self {
        let (queue, waiting) = mpsc::channel::<(T, oneshot::Sender<()>)>();
        std::thread::spawn(move || {
            while let Ok(first) = waiting.recv() {
                let (work, callers): (Vec<_>, Vec<_>) =
                    std::iter::once(first).chain(waiting.try_iter()).unzip();
                commit(work);
                for caller in callers {
                    // A caller that is gone needs no answer.
                    let _ = caller.send(());
                }
            }
        });
        Self { queue }
    }

    /// Commits; durable when it returns.
    pub async fn commit(&self, work: T) {
        let (done, wait) = oneshot::channel();
        self.queue
            .send((work, done))
            .expect("the committing thread");
        wait.await.expect("the committing thread");
    }
}
