//! Opening a runtime, and closing it.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::effects::JournaledEffects;
use super::processes::Processes;
use super::session::SessionHandle;
use crate::actors::config::RuntimeConfig;
use crate::actors::keeper::SteadyClock;
use crate::actors::reads::blocking;
use crate::actors::{RecoveryReport, Runtime, ShutdownReport};
use crate::engines::ProcessEngine;
use crate::model::ids::check_id;
use crate::model::{Error, LeaseTimings, Result, RetentionPolicy, SessionScope, VerifyReport};
use crate::store::clock::{Clock, SystemClock};
use crate::store::error::StoreError;
use crate::store::kv::{Durability, Kv};
use crate::store::memory_kv::{MemoryKv, MemoryStore};
use crate::store::process_store::ProcessStore;
use crate::store::sled_kv::{Options, SledKv};
use crate::store::walk_thread::WalkThread;

/// A store in memory: for tests, and for hosts that want the runtime without durability. Clones
/// are the same store; it lives as long as one of them, across opens.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> procession::Result<()> {
/// use procession::{InMemoryStore, Supervisor};
/// let store = InMemoryStore::new();
/// let first = Supervisor::in_memory_store(&store).open().await?;
/// first.shutdown(Default::default()).await?;
/// let again = Supervisor::in_memory_store(&store).open().await?;
/// # again.shutdown(Default::default()).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct InMemoryStore(pub(super) MemoryStore);

impl fmt::Debug for InMemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryStore").finish_non_exhaustive()
    }
}

impl Default for InMemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl InMemoryStore {
    /// A store that one runtime at a time can have open, as one on disk.
    #[must_use]
    pub fn new() -> Self {
        Self(MemoryKv::private())
    }

    /// A store that several runtimes use at once: an earlier epoch proves nothing there about an
    /// owner.
    #[must_use]
    pub fn shared() -> Self {
        Self(MemoryKv::shared())
    }
}

enum Place {
    Directory(PathBuf),
    Memory(MemoryStore),
}

/// How to shut down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownOptions {
    /// How long started work that may not be run again gets to finish. Rerunnable work is told to
    /// stop at once, and gets as long for that. What the work leaves of it, and at least ten seconds,
    /// is the store's, whose disk may stall. What does not stop takes up to four seconds beyond it.
    pub grace: Duration,
}

impl ShutdownOptions {
    /// With this grace period.
    #[must_use]
    pub const fn grace(grace: Duration) -> Self {
        Self { grace }
    }

    /// With a grace period from humantime text such as `10s`.
    ///
    /// # Errors
    /// `InvalidInput` if the text is no duration.
    pub fn parse(grace: &str) -> Result<Self> {
        crate::model::duration::parse("shutdown.grace", grace).map(Self::grace)
    }
}

impl Default for ShutdownOptions {
    /// 10 s.
    fn default() -> Self {
        Self::grace(Duration::from_secs(10))
    }
}

/// How a runtime is to be opened. See [`Supervisor::builder`].
pub struct SupervisorBuilder {
    place: Place,
    engines: Vec<Arc<dyn ProcessEngine>>,
    config: RuntimeConfig,
    durability: Durability,
    cache_capacity_bytes: Option<u64>,
    clock: Arc<dyn Clock>,
}

impl fmt::Debug for SupervisorBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SupervisorBuilder")
            .field("config", &self.config)
            .field("durability", &self.durability)
            .finish_non_exhaustive()
    }
}

impl SupervisorBuilder {
    fn new(place: Place) -> Self {
        Self {
            place,
            engines: Vec::new(),
            config: RuntimeConfig::default(),
            durability: Durability::default(),
            cache_capacity_bytes: None,
            clock: Arc::new(SystemClock::default()),
        }
    }

    /// Registers an engine for its kind. A process of a kind without one stays queued.
    #[must_use]
    pub fn engine(mut self, engine: impl ProcessEngine) -> Self {
        self.engines.push(Arc::new(engine));
        self
    }

    /// How long leases last and how often they are renewed; by default 30 s and 10 s.
    #[must_use]
    pub fn lease(mut self, lease: LeaseTimings) -> Self {
        self.config.lease = lease;
        self
    }

    /// The name under which this runtime owns processes, 1 to 256 bytes; by default `procession`.
    #[must_use]
    pub fn owner_id(mut self, owner_id: impl Into<String>) -> Self {
        self.config.owner_id = owner_id.into();
        self
    }

    /// How long a cancelled attempt may take to stop before it is aborted; by default 10 s.
    #[must_use]
    pub fn cancel_grace(mut self, cancel_grace: Duration) -> Self {
        self.config.cancel_grace = cancel_grace;
        self
    }

    /// How often the reaper looks for work to recover; by default 5 s. On a store that several hosts
    /// share, also how soon what runs here hears of what another host was asked: a cancel, a signal.
    #[must_use]
    pub fn sweep_every(mut self, sweep_every: Duration) -> Self {
        self.config.sweep_every = sweep_every;
        self
    }

    /// How many attempts may execute at once; by default 1,024. More stay queued.
    #[must_use]
    pub fn concurrency(mut self, attempts: usize) -> Self {
        self.config.slots = attempts;
        self
    }

    /// The same for one engine kind.
    #[must_use]
    pub fn concurrency_of(mut self, kind: impl Into<String>, attempts: usize) -> Self {
        self.config.slots_by_kind.insert(kind.into(), attempts);
        self
    }

    /// How many commands may be in flight at once, 1 to 1,000,000; by default 4,096. More wait.
    #[must_use]
    pub fn commands_max(mut self, commands: usize) -> Self {
        self.config.commands_max = commands;
        self
    }

    /// What an acknowledgement survives; by default a loss of power.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// The cache of a store on disk, in bytes; by default 64 MiB. Memory used is about twice that.
    #[must_use]
    pub fn cache_capacity(mut self, bytes: u64) -> Self {
        self.cache_capacity_bytes = Some(bytes);
        self
    }

    /// With `false`, the store is opened to look and to maintain: nothing is claimed, run or swept.
    #[must_use]
    pub fn recover(mut self, recover: bool) -> Self {
        self.config.recover = recover;
        self
    }

    /// Has the reaper prune what ended longer ago than a policy keeps it; may be called several
    /// times, for several filters. By default nothing is pruned by itself. Ages are judged by the wall
    /// clock: while it runs, a jump of more than a minute against the steady clock suspends this until
    /// the wall clock is right again or has kept its word for an hour; one that happened while the
    /// store was closed cannot be seen.
    #[must_use]
    pub fn retention(mut self, policy: RetentionPolicy) -> Self {
        self.config.retention.push(policy);
        self
    }

    /// How long the tombstones of pruned processes are kept, by default 30 days: so long a late
    /// await is told what became of it, a late start does not run it again, and a reader of the
    /// change feed learns of the deletion.
    #[must_use]
    pub fn keep_tombstones_for(mut self, keep: Duration) -> Self {
        self.config.keep_tombstones_for = keep;
        self
    }

    /// How often the reaper applies retention, by default every minute; it does so at open as well.
    #[must_use]
    pub fn retain_every(mut self, every: Duration) -> Self {
        self.config.retain_every = every;
        self
    }

    /// Where time is read: for tests.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    fn check(&self) -> Result<()> {
        check_id("owner_id", &self.config.owner_id)?;
        let mut kinds = HashMap::new();
        for engine in &self.engines {
            crate::model::ids::check_event_name("engine.kind", engine.kind())?;
            if kinds.insert(engine.kind().to_owned(), ()).is_some() {
                return Err(Error::invalid(
                    "engine.kind",
                    format!("{:?} is registered twice", engine.kind()),
                    "each kind once",
                ));
            }
            crate::model::request::check_event_types(&engine.event_types())?;
        }
        let counts = [
            ("concurrency", self.config.slots),
            ("commands_max", self.config.commands_max),
        ];
        for (field, count) in counts {
            if count == 0 || count > 1_000_000 {
                return Err(Error::invalid(field, format!("is {count}"), "1 to 1000000"));
            }
        }
        if let Some((kind, _)) = self
            .config
            .slots_by_kind
            .iter()
            .find(|(_, slots)| **slots == 0)
        {
            return Err(Error::invalid(
                "concurrency_of",
                format!("{kind:?} is 0"),
                "at least 1",
            ));
        }
        for (field, every) in [
            ("sweep_every", self.config.sweep_every),
            ("retain_every", self.config.retain_every),
        ] {
            if every < crate::actors::SWEEP_EVERY_MIN {
                return Err(Error::invalid(
                    field,
                    format!("is {}", humantime::format_duration(every)),
                    "at least 50ms",
                ));
            }
        }
        Ok(())
    }

    /// Opens the store and starts the runtime. Processes of an earlier owner are recovered from
    /// here on.
    ///
    /// # Errors
    /// `InvalidInput` for a setting outside its limit; `StoreBusy` at once where another runtime has
    /// the store open; `StoreTooNew`, `StoreTooOld`, `Corrupted`, `StoreFailed`.
    pub async fn open(self) -> Result<Supervisor> {
        self.check()?;
        let Self {
            place,
            engines,
            config,
            durability,
            cache_capacity_bytes,
            clock,
        } = self;
        let lease_clock: Arc<dyn Clock> = Arc::new(SteadyClock::new(Arc::clone(&clock)));
        let store_clock = Arc::clone(&lease_clock);
        let walk_thread = WalkThread::default();
        let kv: Arc<dyn Kv> = match place {
            Place::Memory(store) => Arc::new(store.open(store_clock)?),
            Place::Directory(path) => {
                walk_thread
                    .walk(move || {
                        let mut options = Options::new(store_clock);
                        options.durability = durability;
                        if let Some(bytes) = cache_capacity_bytes {
                            options.cache_capacity_bytes = bytes;
                        }
                        let kv: Arc<dyn Kv> = Arc::new(SledKv::open(&path, options)?);
                        Ok::<_, StoreError>(kv)
                    })
                    .await??
            }
        };
        let store = ProcessStore::new(kv, clock)
            .with_lease_clock(Arc::clone(&lease_clock))
            .with_walk_thread(walk_thread);
        let runtime = match Runtime::open(config, store.clone(), lease_clock, engines).await {
            Ok(runtime) => runtime,
            Err(error) => {
                // The lock is not held on for what could not be started.
                let _ = blocking(move || Ok(store.close()?)).await;
                return Err(error);
            }
        };
        Ok(Supervisor {
            runtime: Arc::new(runtime),
        })
    }
}

/// Work that a store has done since it was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[non_exhaustive]
pub struct StoreStats {
    /// Write sets that were accepted.
    pub commits: u64,
    /// Write sets that were refused.
    pub refusals: u64,
    /// Groups of them that were made durable together.
    pub groups: u64,
    /// Data syncs that an acknowledgement waited for.
    pub syncs: u64,
    /// Journal entries written.
    pub journal_entries: u64,
    /// Bytes of them.
    pub journal_bytes: u64,
    /// Keys written into the index behind the journal.
    pub index_keys_written: u64,
    /// Changes that wait to go into the index.
    pub overlay_entries: u64,
    /// Bytes of them.
    pub overlay_bytes: u64,
}

/// An open runtime: the store, its processes, and what executes them. Cheap to clone; dropping the
/// last clone without [`Supervisor::shutdown`] is like a crash: the next open recovers. A shutdown that
/// has begun goes on to its end all the same, and holds the store until then.
#[derive(Debug, Clone)]
pub struct Supervisor {
    runtime: Arc<Runtime>,
}

impl Supervisor {
    /// A runtime on the store in a directory, which is made if it is not there.
    ///
    /// ```no_run
    /// # async fn open() -> procession::Result<()> {
    /// use procession::{LeaseTimings, Supervisor};
    /// use std::time::Duration;
    /// let supervisor = Supervisor::builder("./agent-store")
    ///     .lease(LeaseTimings::from_ttl(Duration::from_secs(30))?)
    ///     .open()
    ///     .await?;
    /// # drop(supervisor);
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(path: impl Into<PathBuf>) -> SupervisorBuilder {
        SupervisorBuilder::new(Place::Directory(path.into()))
    }

    /// A runtime on a store in memory that is gone with it.
    #[must_use]
    pub fn in_memory() -> SupervisorBuilder {
        Self::in_memory_store(&InMemoryStore::new())
    }

    /// A runtime on a store in memory.
    #[must_use]
    pub fn in_memory_store(store: &InMemoryStore) -> SupervisorBuilder {
        SupervisorBuilder::new(Place::Memory(store.0.clone()))
    }

    /// The host's view of every process.
    #[must_use]
    pub fn processes(&self) -> Processes {
        Processes::new(Arc::clone(&self.runtime.shared))
    }

    /// One session's view.
    #[must_use]
    pub fn session(&self, scope: SessionScope) -> SessionHandle {
        SessionHandle::new(Arc::clone(&self.runtime.shared), scope)
    }

    /// An effect controller that journals outcomes in this store.
    #[must_use]
    pub fn journaled_effects(&self) -> JournaledEffects {
        JournaledEffects::new(Arc::clone(&self.runtime.shared))
    }

    /// Looks for what is to be recovered, now, and says what was done. Every open begins with a sweep
    /// of its own: what that one did is in [`RecoveryReport::since_open`], as a sum.
    ///
    /// # Errors
    /// `InvalidInput` where the store was opened without recovery; those of the store.
    pub async fn recover(&self) -> Result<RecoveryReport> {
        self.runtime.shared.recover_now().await
    }

    /// Refolds every log and checks every index. Wants a store that nobody writes to meanwhile:
    /// open it with `recover(false)`.
    ///
    /// # Errors
    /// Those of the store; what is wrong with its content is in the report.
    pub async fn verify(&self) -> Result<VerifyReport> {
        let shared = Arc::clone(&self.runtime.shared);
        blocking(move || Ok(crate::store::verify::verify(&shared.store)?)).await
    }

    /// What the store has done since it was opened.
    #[must_use]
    pub fn stats(&self) -> StoreStats {
        let stats = self.runtime.shared.store.stats();
        StoreStats {
            commits: stats.commits,
            refusals: stats.refusals,
            groups: stats.groups,
            syncs: stats.syncs,
            journal_entries: stats.journal_entries,
            journal_bytes: stats.journal_bytes,
            index_keys_written: stats.index_keys_written,
            overlay_entries: stats.overlay_entries,
            overlay_bytes: stats.overlay_bytes,
        }
    }

    /// Waits until everything that is durable in the journal is in the index as well, and the
    /// journal is trimmed. Changes nothing about what is durable; for benchmarks and backups.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn drain(&self) -> Result<()> {
        let store = self.runtime.shared.store.clone();
        blocking(move || Ok(store.drain()?)).await
    }

    /// Shuts down: stops admitting, gives started work its grace period, lets go of the store. When
    /// it returns, another runtime can open the store. Idempotent; later calls get the same report.
    ///
    /// # Cancel safety
    /// Once begun, a shutdown goes on to its end, whether anybody waits for it or not; whoever calls
    /// again waits for the same report. The first call's options count: a shutdown that has begun cannot
    /// be made shorter.
    ///
    /// # Errors
    /// `StoreFailed` where the last sync failed, or the store could not be let go of in time: it may
    /// still be held then. The error says what became of the work; later calls get the same.
    pub async fn shutdown(&self, options: ShutdownOptions) -> Result<ShutdownReport> {
        self.runtime.shutdown(options.grace).await
    }
}
