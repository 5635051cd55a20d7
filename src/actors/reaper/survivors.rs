//! What a lost attempt left behind outside of this runtime: only its engine can look for it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinSet;
use tracing::warn;

use crate::actors::runtime::Shared;
use crate::engines::ProcessEngine;
use crate::model::lease::Lease;
use crate::model::record::{ProcessState, Registration};
use crate::model::{
    FencingToken, Incarnation, OwnerNumber, ProcessEvent, ProcessOwner, ProcessRecord,
    RecoveryDisposition, Result, Survivor,
};

/// How long an engine may take to look. The command engine takes at most some two seconds.
const LOOK_MAX: Duration = Duration::from_millis(if cfg!(test) { 500 } else { 5_000 });

/// Looks that go on at once: an engine that ends what it finds waits for that.
const LOOKS_AT_ONCE_MAX: usize = 8;

/// How often recovery waits for a later look at one process because nobody could look. Then it
/// goes on without: what is there for good must not keep a process from its end for good.
const LATER_MAX: u32 = 3;

/// The looks of this open that go on, and those that failed.
#[derive(Debug)]
pub(crate) struct Looks {
    at_once: Semaphore,
    failed: DashMap<Incarnation, u32>,
    /// By engine kind: sweeps one after the other in which it did not answer.
    unanswered: DashMap<String, u32>,
    /// What was taken over from an owner that had lapsed and is not settled yet.
    taken: DashMap<Incarnation, Taken>,
}

/// How a lease was taken over.
#[derive(Debug)]
struct Taken {
    /// As which incarnation of this runtime.
    owner: OwnerNumber,
    token: FencingToken,
    from: ProcessOwner,
}

impl Default for Looks {
    fn default() -> Self {
        Self {
            at_once: Semaphore::new(LOOKS_AT_ONCE_MAX),
            failed: DashMap::new(),
            unanswered: DashMap::new(),
            taken: DashMap::new(),
        }
    }
}

impl Looks {
    fn failed(&self, incarnation: Incarnation) -> Looked {
        let mut failed = self.failed.entry(incarnation).or_default();
        *failed += 1;
        if *failed <= LATER_MAX {
            return Looked::Later;
        }
        Looked::Found(None)
    }

    /// Whether an engine has not answered for so many sweeps that what comes after its first few
    /// processes does not wait for it any more.
    fn is_given_up(&self, kind: &str) -> bool {
        self.unanswered
            .get(kind)
            .is_some_and(|sweeps| *sweeps > LATER_MAX)
    }

    /// A lease is about to be taken over. Said before that is sent, and before it is looked at whether
    /// the incarnation is lost: whoever says that it is gone looks here after it was. One of the two sees
    /// the other.
    pub(super) fn taking(&self, incarnation: Incarnation, lease: Lease, from: ProcessOwner) {
        let Lease { owner, token } = lease;
        self.taken.insert(incarnation, Taken { owner, token, from });
    }

    /// It was not taken.
    pub(super) fn not_taken(&self, incarnation: Incarnation, token: FencingToken) {
        let is_it = |_: &Incarnation, taken: &Taken| taken.token == token;
        self.taken.remove_if(&incarnation, is_it);
    }

    /// From whom the lease of this token was taken, if it was.
    pub(super) fn taken_from(
        &self,
        incarnation: Incarnation,
        token: FencingToken,
    ) -> Option<ProcessOwner> {
        self.still_taken(incarnation, Some(token));
        self.taken.get(&incarnation).map(|taken| taken.from.clone())
    }

    /// The lease of a process is of this token, if there is one: of another nothing is known any more.
    pub(super) fn still_taken(&self, incarnation: Incarnation, token: Option<FencingToken>) {
        let is_another = |_: &Incarnation, taken: &Taken| Some(taken.token) != token;
        self.taken.remove_if(&incarnation, is_another);
    }

    /// The processes of which something is noted.
    pub(in crate::actors) fn known(&self) -> impl Iterator<Item = Incarnation> + '_ {
        let failed = self.failed.iter().map(|failed| *failed.key());
        failed.chain(self.taken.iter().map(|taken| *taken.key()))
    }

    /// Whether something was taken over as this incarnation that is not settled yet.
    pub(in crate::actors) fn holds_as(&self, owner: OwnerNumber) -> bool {
        self.taken.iter().any(|taken| taken.owner == owner)
    }

    /// The process is settled, or somebody else came first: then what was taken over may still be ours.
    pub(super) fn forget(&self, incarnation: Incarnation, overtaken: bool) {
        self.failed.remove(&incarnation);
        if !overtaken {
            self.taken.remove(&incarnation);
        }
    }
}

/// Engines that did not answer in time during this sweep: their processes that come after are left to
/// the next one, so that one engine does not hold up what the others are responsible for. Once an
/// engine has not answered for some sweeps they go on without, or ten thousand of them would take a
/// sweep for every eight.
#[derive(Debug, Clone, Default)]
pub(super) struct SlowEngines(Arc<Mutex<HashSet<String>>>);

impl SlowEngines {
    fn has(&self, kind: &str) -> bool {
        let slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slow.contains(kind)
    }

    fn add(&self, kind: &str, looks: &Looks) {
        let mut slow = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slow.insert(kind.to_owned()) {
            *looks.unanswered.entry(kind.to_owned()).or_default() += 1;
        }
    }
}

/// Whether the engine of a process is to look for what its last attempt left behind.
pub(super) enum Turn<'a> {
    /// It is its turn to look.
    Look(Look<'a>),
    /// Nobody has to, or nobody can.
    Known(Option<Vec<Survivor>>),
    /// Not this time: its engine has its hands full.
    Later,
}

/// The turn of an engine to look for what one attempt left behind.
pub(super) struct Look<'a> {
    shared: &'a Shared,
    engine: Arc<dyn ProcessEngine>,
    slow: &'a SlowEngines,
    _one: SemaphorePermit<'a>,
}

/// What came of looking.
pub(super) enum Looked {
    /// This was found alive, which may be nothing; `None` where nobody can know.
    Found(Option<Vec<Survivor>>),
    /// Not this time: its engine could not look.
    Later,
}

impl<'a> Turn<'a> {
    /// Waits for the turn of a process, if it needs one. Nothing is touched before it has come.
    pub(super) async fn of(
        shared: &'a Shared,
        registration: &Registration,
        state: &ProcessState,
        slow: &'a SlowEngines,
    ) -> Self {
        if registration.disposition == RecoveryDisposition::ExternallyOwned {
            return Self::Known(None);
        }
        if state.attempt == 0 {
            return Self::Known(Some(Vec::new()));
        }
        let Some(engine) = shared.engine_of(registration) else {
            return Self::Known(None);
        };
        let record = ProcessRecord::assemble(registration, state);
        if engine.survivor_key(&record).is_none() {
            return Self::Known(Some(Vec::new()));
        }
        let looks = &shared.looks;
        let Ok(one) = looks.at_once.acquire().await else {
            return Self::Later;
        };
        if slow.has(engine.kind()) {
            return match looks.is_given_up(engine.kind()) {
                true => Self::Known(None),
                false => Self::Later,
            };
        }
        Self::Look(Look {
            shared,
            engine,
            slow,
            _one: one,
        })
    }

    /// Takes it.
    pub(super) async fn look(self, registration: &Registration, state: &ProcessState) -> Looked {
        match self {
            Self::Look(look) => look.end_survivors(registration, state).await,
            Self::Known(survivors) => Looked::Found(survivors),
            Self::Later => Looked::Later,
        }
    }
}

impl Look<'_> {
    /// Has the engine end what the last attempt of a process left behind.
    async fn end_survivors(self, registration: &Registration, state: &ProcessState) -> Looked {
        let (looks, engine) = (&self.shared.looks, Arc::clone(&self.engine));
        let record = ProcessRecord::assemble(registration, state);
        let event = match engine.survivor_key(&record) {
            Some(key) => find_event(self.shared, registration, &key),
            None => return Looked::Found(Some(Vec::new())),
        };
        let event = match event {
            Ok(Some(event)) => event,
            // Its owner may have gone between what there is to be found and the event that says so.
            Ok(None) => return Looked::Found(None),
            Err(error) => {
                warn!(process = %record.id, %error, "survivors cannot be looked for");
                return looks.failed(record.incarnation);
            }
        };
        // In a task of its own, so that a panic in it is no more than no answer; it ends with this one.
        let kind = engine.kind().to_owned();
        let mut look = JoinSet::new();
        look.spawn(async move { engine.end_survivors(&event).await });
        match tokio::time::timeout(LOOK_MAX, look.join_next()).await {
            Ok(Some(Ok(found))) => {
                looks.unanswered.remove(&kind);
                Looked::Found(Some(found))
            }
            Ok(Some(Err(error))) => {
                warn!(process = %record.id, %error, "its engine could not look for survivors");
                looks.failed(record.incarnation)
            }
            Ok(None) | Err(_) => {
                self.slow.add(&kind, looks);
                warn!(process = %record.id, engine = %kind, "its engine looks for survivors too long");
                looks.failed(record.incarnation)
            }
        }
    }
}

fn find_event(
    shared: &Shared,
    registration: &Registration,
    replay_key: &str,
) -> Result<Option<ProcessEvent>> {
    let view = shared.view()?;
    let Some(replayed) = view.replayed(registration.incarnation, replay_key)? else {
        return Ok(None);
    };
    let found = view.events(
        &registration.id,
        registration.incarnation,
        replayed.sequence,
        1,
        usize::MAX,
    )?;
    Ok(found.into_iter().next())
}
