//! SIGINT and SIGTERM: the first asks, the second leaves at once.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::exit::Failure;

/// A signal, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Signal(u8);

pub(crate) const SIGINT: Signal = Signal(2);
pub(crate) const SIGPIPE: Signal = Signal(13);
pub(crate) const SIGTERM: Signal = Signal(15);

impl Signal {
    /// The exit code of a program that a signal ended, as shells give it.
    pub(crate) const fn exit_code(self) -> u8 {
        128 + self.0
    }
}

/// The first signal, once there is one.
#[derive(Debug, Clone)]
pub(crate) struct Signals(watch::Receiver<Option<Signal>>);

impl Signals {
    /// Listens from here on.
    pub(crate) fn listen() -> Result<Self, Failure> {
        let mut interrupts = signal(SignalKind::interrupt()).map_err(Failure::System)?;
        let mut terminations = signal(SignalKind::terminate()).map_err(Failure::System)?;
        let (first, heard) = watch::channel(None);
        tokio::spawn(async move {
            loop {
                let signal = tokio::select! {
                    Some(()) = interrupts.recv() => SIGINT,
                    Some(()) = terminations.recv() => SIGTERM,
                    else => return,
                };
                if first.borrow().is_some() {
                    // As after a crash: the kernel ends the commands, the next open recovers.
                    std::process::exit(signal.exit_code().into());
                }
                let _ = first.send(Some(signal));
            }
        });
        Ok(Self(heard))
    }

    /// Waits for the first one.
    pub(crate) async fn first(&mut self) -> Signal {
        if let Ok(signal) = self.0.wait_for(Option::is_some).await
            && let Some(signal) = *signal
        {
            return signal;
        }
        // Nobody listens any more, so none will be heard.
        std::future::pending().await
    }
}
