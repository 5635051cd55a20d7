//! Which store, and how it is opened.

use std::path::PathBuf;
use std::time::Duration;

use directories::ProjectDirs;
use procession::{CommandEngine, ShutdownOptions, Supervisor, SupervisorBuilder};

use crate::exit::{Failure, say};

/// What the runtime waits beyond the engine's own SIGKILL before it aborts an attempt: long enough
/// for the attempt to say how it ended.
const ABORT_AFTER_KILL: Duration = Duration::from_secs(2);

/// Where the processes are.
#[derive(Debug)]
pub(crate) struct Store(PathBuf);

impl Store {
    /// The store in this directory, or the user's.
    pub(crate) fn at(dir: Option<PathBuf>) -> Result<Self, Failure> {
        let dir = match dir {
            Some(dir) => dir,
            None => ProjectDirs::from("", "", "procession")
                .ok_or_else(|| {
                    Failure::Usage(
                        "there is no home directory to keep a store in: name one with --store DIR"
                            .to_owned(),
                    )
                })?
                .data_dir()
                .join("store"),
        };
        Ok(Self(dir))
    }

    fn builder(&self, engine: CommandEngine) -> SupervisorBuilder {
        Supervisor::builder(&self.0)
            .engine(engine)
            .owner_id(format!("supervisor/{}", std::process::id()))
    }

    /// Opens it to execute what is there to be executed.
    pub(crate) async fn open(&self, grace: Duration) -> Result<Supervisor, Failure> {
        let engine = CommandEngine::new().with_kill_grace(grace);
        let opened = self
            .builder(engine)
            .cancel_grace(grace.saturating_add(ABORT_AFTER_KILL))
            .open()
            .await;
        Ok(opened?)
    }

    /// Opens it to look and to maintain: nothing is executed.
    pub(crate) async fn look(&self) -> Result<Supervisor, Failure> {
        // The engine is registered all the same, so that its processes are not shown as stranded.
        let opened = self
            .builder(CommandEngine::new())
            .recover(false)
            .open()
            .await;
        Ok(opened?)
    }
}

/// Lets go of a store. What was acknowledged is durable without it, so that a failure here changes
/// no answer that was given.
pub(crate) async fn close(supervisor: Supervisor, grace: Duration) {
    if let Err(error) = supervisor.shutdown(ShutdownOptions::grace(grace)).await {
        say(&format!("the store was not closed cleanly: {error}"));
    }
}
