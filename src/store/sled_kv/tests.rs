//! Crashes, failures, damage, and the figures.

/// A test for each step, by which what it runs is told where to stop. Every step has one: a list that
/// lacks one does not compile.
macro_rules! at_every_step {
    ($run:ident: $($name:ident: $step:ident),* $(,)?) => {
        $(#[test]
        fn $name() {
            $run(Step::$step);
        })*

        const _: fn(Step) = |step| match step {
            $(Step::$step => {})*
        };
    };
}

mod aimed;
mod audit;
mod crashes;
mod damage;
mod format;
mod kill;
mod limits;
mod measure;
mod power;
mod syncs;
mod transfers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::super::clock::{Clock, SystemClock};
use super::super::error::StoreError;
use super::fault::{Faults, Step};
use super::{Options, SledKv};

/// A clock that stands still until it is told otherwise.
#[derive(Debug, Default)]
struct StoppedClock {
    ms: AtomicU64,
}

impl StoppedClock {
    fn advance(&self, by: Duration) {
        let ms = u64::try_from(by.as_millis()).unwrap();
        self.ms.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for StoppedClock {
    fn now_epoch_ms(&self) -> u64 {
        self.ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.ms.load(Ordering::SeqCst))
    }
}

/// Options under which the write-behind moves only when it is asked to.
fn on_demand() -> Options {
    let mut options = Options::new(Arc::new(SystemClock::default()));
    options.bounds.drain_interval = Duration::from_secs(3600);
    options
}

fn with_faults(
    hook: impl Fn(Step, &sled::Db) -> Result<(), StoreError> + Send + Sync + 'static,
) -> Options {
    let mut options = on_demand();
    options.faults = Faults::new(hook);
    options
}

fn open(path: &Path) -> SledKv {
    SledKv::open(path, on_demand()).unwrap()
}

fn failure() -> StoreError {
    StoreError::Failed {
        cause: "a test's failure".into(),
    }
}
