//! From the pipes of a command into the log of its process.

use std::io;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::Poll;

use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::lines::{Batch, LineBatcher};
use crate::engines::ProcessContext;
use crate::model::Result;

pub(super) const STDOUT: &str = "output.stdout";
pub(super) const STDERR: &str = "output.stderr";
pub(super) const TRUNCATED: &str = "output.truncated";

/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// What is still taken out of a pipe once its group has ended: all that an ordinary user's pipe
/// can hold (pipe(7)). More comes only from somebody who has left the group and goes on writing.
const REST_BYTES_MAX: usize = 1 << 20;

/// How much of a command's output is kept, of both streams together.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: u64,
    bytes_left: AtomicU64,
    exceeded: AtomicBool,
}

impl Budget {
    pub(super) const fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            bytes_left: AtomicU64::new(bytes_max),
            exceeded: AtomicBool::new(false),
        }
    }

    /// Takes as many of `wanted` bytes as are left.
    fn take(&self, wanted: usize) -> usize {
        let mut granted = 0;
        // Nothing else is ordered by this number.
        let _ = self
            .bytes_left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                granted = usize::try_from(left).map_or(wanted, |left| wanted.min(left));
                Some(left.saturating_sub(granted as u64))
            });
        granted
    }

    /// Whether this is the first time that it was not enough.
    fn first_excess(&self) -> bool {
        !self.exceeded.swap(true, Ordering::Relaxed)
    }
}

/// Reads one stream of a command and says its lines, in order. Holds one read, one batch and one
/// piece of a line, and reads on only when the runtime has taken what was said: a command that
/// prints faster than the log grows waits in its own `write`.
pub(super) struct Pump<'a, P> {
    cx: &'a ProcessContext,
    event_type: &'static str,
    pipe: P,
    budget: &'a Budget,
    /// Fires when the group has ended: only what is in the pipe is still of interest.
    group_ended: &'a CancellationToken,
    batcher: LineBatcher,
    /// The budget is used up: the rest is read and thrown away, so that the command runs on.
    truncated: bool,
}

impl<'a, P: AsyncRead + AsFd + Unpin> Pump<'a, P> {
    pub(super) fn new(
        cx: &'a ProcessContext,
        event_type: &'static str,
        pipe: P,
        budget: &'a Budget,
        group_ended: &'a CancellationToken,
    ) -> Self {
        Self {
            cx,
            event_type,
            pipe,
            budget,
            group_ended,
            batcher: LineBatcher::default(),
            truncated: false,
        }
    }

    /// Reads until every writer has closed the pipe, or until the group has ended and the pipe is
    /// empty.
    ///
    /// # Errors
    /// The runtime refused an event.
    pub(super) async fn run(mut self) -> Result<()> {
        let mut buffer = vec![0; READ_BYTES];
        while !self.group_ended.is_cancelled() {
            let read = match read_now(&mut self.pipe, &mut buffer).await {
                Some(read) => read,
                None => {
                    // Nothing more right now: what there is goes out before anyone waits.
                    let batch = self.batcher.take();
                    self.say(batch).await?;
                    tokio::select! {
                        biased;
                        read = self.pipe.read(&mut buffer) => read,
                        () = self.group_ended.cancelled() => break,
                    }
                }
            };
            match read {
                Ok(0) => return self.finish(false).await,
                Ok(length) => self.take(&buffer[..length]).await?,
                Err(error) => return self.broken(&error).await,
            }
        }
        self.rest(&mut buffer).await
    }

    /// Takes what is in the pipe. Asks the pipe itself: the reactor may not know of it yet.
    async fn rest(mut self, buffer: &mut [u8]) -> Result<()> {
        let mut taken = 0;
        while taken < REST_BYTES_MAX {
            match rustix::io::read(&self.pipe, &mut *buffer) {
                Ok(0) | Err(rustix::io::Errno::AGAIN) => break,
                Ok(length) => {
                    taken += length;
                    self.take(&buffer[..length]).await?;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return self.broken(&error.into()).await,
            }
        }
        self.finish(false).await
    }

    /// Says what these bytes complete.
    async fn take(&mut self, bytes: &[u8]) -> Result<()> {
        if self.truncated {
            return Ok(());
        }
        let kept = self.budget.take(bytes.len());
        let mut rest = &bytes[..kept];
        while !rest.is_empty() {
            rest = &rest[self.batcher.push(rest)..];
            if self.batcher.is_full() {
                let batch = self.batcher.take();
                self.say(batch).await?;
            }
        }
        if kept < bytes.len() {
            self.truncated = true;
            self.finish(true).await?;
            if self.budget.first_excess() {
                let payload = json!({ "max_output_bytes": self.budget.bytes_max });
                self.cx.emit(TRUNCATED, payload).await?;
            }
        }
        Ok(())
    }

    async fn finish(&mut self, cut: bool) -> Result<()> {
        let batch = self.batcher.finish(cut);
        self.say(batch).await
    }

    /// A pipe that cannot be read ends the stream, not the command.
    async fn broken(&mut self, error: &io::Error) -> Result<()> {
        tracing::warn!(
            process_id = self.cx.process_id(),
            stream = self.event_type,
            %error,
            "the output of a command cannot be read any more"
        );
        self.finish(false).await
    }

    async fn say(&self, batch: Option<Batch>) -> Result<()> {
        match batch {
            Some(batch) => self.cx.emit(self.event_type, batch.into_payload()).await,
            None => Ok(()),
        }
    }
}

/// Reads what is there; `None` if that is nothing right now.
async fn read_now(
    pipe: &mut (impl AsyncRead + Unpin),
    buffer: &mut [u8],
) -> Option<io::Result<usize>> {
    std::future::poll_fn(|task| {
        let mut buffer = ReadBuf::new(buffer);
        Poll::Ready(match Pin::new(&mut *pipe).poll_read(task, &mut buffer) {
            Poll::Ready(Ok(())) => Some(Ok(buffer.filled().len())),
            Poll::Ready(Err(error)) => Some(Err(error)),
            Poll::Pending => None,
        })
    })
    .await
}
