//! What callers put into their commits so that nobody writes over a lease that has become another's.
//!
//! A set is held on its way, and the lease is given to another host meanwhile, or given back, without an
//! event: the revision that a set names as well does not give it away, and nothing but the condition
//! that a test is about is left to refuse it. Without that condition the test fails.

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::gated::{Does, Gated, Put, idle};
use super::*;
use crate::actors::reaper::{RecoveryReport, RecoveryStep};
use crate::model::decide::{self, Command, Decision, Facts};
use crate::model::lease::{Lease, OwnerRecord};
use crate::store::keys::Row;
use crate::store::memory_kv::MemoryStore;
use crate::store::read::{IdEntry, LoadedProcess};
use crate::store::write_set::{Change, LeaseWrite, WriteSet};
use crate::store::writes;

pub(super) const TTL: Duration = Duration::from_secs(3_600);

/// A runtime whose commits the test holds, and a second way into its store. No timer of the runtime
/// goes off while a test runs.
pub(super) struct Ground {
    pub(super) runtime: Runtime,
    pub(super) shared: Arc<Shared>,
    pub(super) gated: Arc<Gated>,
    pub(super) put: Arc<Put>,
    pub(super) place: MemoryStore,
    pub(super) other: ProcessStore,
}

impl Ground {
    pub(super) async fn open<F, R>(slots: usize, does: F) -> Self
    where
        F: Fn(ProcessContext) -> R + Send + Sync + 'static,
        R: Future<Output = EngineResult> + Send + 'static,
    {
        Self::with_engine(slots, Does(does)).await
    }

    pub(super) async fn with_engine(slots: usize, engine: impl ProcessEngine) -> Self {
        let (place, put) = (MemoryKv::shared(), Arc::new(Put::default()));
        let clock: Arc<dyn Clock> = Arc::clone(&put) as _;
        let gated = Gated::open(&place, &clock);
        let store = ProcessStore::new(Arc::clone(&gated) as _, Arc::clone(&clock));
        let runtime = open_quiet(slots, store, &clock, engine).await;
        let kv = place.open(Arc::clone(&clock)).unwrap();
        Self {
            shared: Arc::clone(&runtime.shared),
            runtime,
            gated,
            put,
            place,
            other: ProcessStore::new(Arc::new(kv), clock),
        }
    }

    /// Another runtime on the same store, whose commits nobody holds.
    pub(super) async fn another(&self, slots: usize, engine: impl ProcessEngine) -> Runtime {
        let clock: Arc<dyn Clock> = Arc::clone(&self.put) as _;
        let kv = self.place.open(Arc::clone(&clock)).unwrap();
        let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
        open_quiet(slots, store, &clock, engine).await
    }

    pub(super) fn row(&self, id: &str) -> Row {
        match self.other.view().unwrap().id(id).unwrap() {
            Some(IdEntry::Live(row)) => row,
            found => panic!("{found:?}"),
        }
    }

    pub(super) fn loaded(&self, row: Row) -> LoadedProcess {
        self.other.view().unwrap().load(row).unwrap().unwrap()
    }

    /// Another host, live for long or lapsed.
    pub(super) async fn host(&self, live: bool) -> OwnerNumber {
        let expires_at_ms = if live { u64::MAX } else { 0 };
        self.owner(self.other.epoch(), expires_at_ms).await
    }

    /// An earlier incarnation of the runtime, which has lapsed and was not said to be gone.
    async fn earlier(&self) -> OwnerNumber {
        self.owner(self.shared.store.epoch(), 0).await
    }

    async fn owner(&self, store_epoch: StoreEpoch, expires_at_ms: u64) -> OwnerNumber {
        let number = self.other.next_owner().unwrap();
        let record = OwnerRecord {
            owner: ProcessOwner {
                owner_id: "other".into(),
                incarnation_id: format!("other-{number}"),
                store_epoch,
            },
            expires_at_ms,
            retired: false,
        };
        self.commit(Change::PutOwner { number, record }).await;
        number
    }

    /// Says of a host that it is gone.
    pub(super) async fn retire(&self, number: OwnerNumber) {
        self.put_owner(number, 0, true).await;
    }

    /// Has the lease of a host last until then.
    pub(super) async fn expires(&self, number: OwnerNumber, expires_at_ms: u64) {
        self.put_owner(number, expires_at_ms, false).await;
    }

    async fn put_owner(&self, number: OwnerNumber, expires_at_ms: u64, retired: bool) {
        let known = self.other.view().unwrap().owner(number).unwrap();
        let record = OwnerRecord {
            expires_at_ms,
            retired,
            ..known.unwrap()
        };
        self.commit(Change::PutOwner { number, record }).await;
    }

    /// Asks for the end of a process without a word to the runtime.
    pub(super) async fn ask_to_abandon(&self, row: Row) {
        let LoadedProcess {
            registration,
            mut state,
            ..
        } = self.loaded(row);
        let command = Command::RequestAbandon {
            requested_by: "ops".into(),
            reason: None,
        };
        let decided = decide::decide(&registration, &state, command, Facts::default());
        let Ok(Decision::Commit { events, lease }) = decided else {
            panic!("{decided:?}");
        };
        decide::apply_drafts(&registration, &mut state, &events, 1).unwrap();
        let nobody = OwnerNumber::default();
        let change = writes::append(&registration, &events, &state, &lease, nobody, 1);
        self.commit(change.unwrap()).await;
    }

    pub(super) async fn commit(&self, change: Change) {
        let set = WriteSet::new(Vec::new(), vec![change]);
        self.other.commit_wait(set).await.unwrap();
    }

    /// Gives a lease to somebody, and leaves the log as it is.
    pub(super) async fn give(&self, row: Row, owner: OwnerNumber, token: FencingToken) -> Lease {
        let last = self.loaded(row).state.last_sequence;
        let Change::Append(mut append) = writes::release(row, last) else {
            panic!("a release is a change of a process");
        };
        append.lease = LeaseWrite::Acquire { owner, token };
        self.commit(Change::Append(append)).await;
        Lease { owner, token }
    }

    pub(super) async fn held(&self, count: usize) {
        until(|| self.gated.count() == count).await;
    }

    /// Starts one whose claim is held on its way. What is returned was handed out before its token.
    pub(super) async fn claim_on_its_way(&self) -> (Row, FencingToken) {
        self.gated.shut();
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { start(&shared, "p", RecoveryDisposition::Rerunnable).await });
        self.held(1).await;
        let token = self.other.next_token().unwrap();
        self.gated.pass(1);
        self.held(1).await;
        (self.row("p"), token)
    }

    /// Asks for the end of one that nobody executes, and has what the reaper makes of it held. What is
    /// returned was handed out before the reaper's token.
    async fn end_on_its_way(&self, row: Row, owner: OwnerNumber) -> FencingToken {
        let token = self.other.next_token().unwrap();
        self.give(row, owner, token).await;
        let token = self.other.next_token().unwrap();
        self.gated.shut();
        let abandon = HostCommand::Abandon {
            requested_by: "ops".into(),
            reason: None,
        };
        let shared = Arc::clone(&self.shared);
        tokio::spawn(async move { shared.command("p", abandon, None).await });
        self.held(1).await;
        self.gated.pass(1);
        self.held(1).await;
        token
    }

    /// It goes on under that lease, and nothing was said in its log.
    pub(super) fn is_still(&self, row: Row, lease: Lease, events: u64) {
        let loaded = self.loaded(row);
        assert_eq!(loaded.edges.lease, Some(lease));
        assert_eq!(loaded.state.terminal(), None);
        assert_eq!(loaded.state.last_sequence, events);
    }
}

/// A runtime of which no timer goes off while a test runs.
async fn open_quiet(
    slots: usize,
    store: ProcessStore,
    clock: &Arc<dyn Clock>,
    engine: impl ProcessEngine,
) -> Runtime {
    let config = RuntimeConfig {
        lease: LeaseTimings::from_ttl(TTL).unwrap(),
        sweep_every: TTL,
        slots,
        ..RuntimeConfig::default()
    };
    Runtime::open(config, store, Arc::clone(clock), vec![Arc::new(engine)])
        .await
        .unwrap()
}

/// `Condition::Token` in `Process::conditions_of`, for what an engine emits and for its outcome.
#[tokio::test]
async fn l3_who_holds_the_lease_no_more_emits_nothing_and_ends_nothing() {
    for emits in [true, false] {
        let cue = Arc::new(Semaphore::new(0));
        let cued = Arc::clone(&cue);
        let ground = Ground::open(1, move |cx: ProcessContext| {
            let cue = Arc::clone(&cued);
            async move {
                cue.acquire().await.unwrap().forget();
                if emits {
                    let note = ProcessEventAppendRequest::new("note", 1);
                    let _ = cx.emit_durable(note).await;
                    return idle(cx).await;
                }
                Ok(json!(1))
            }
        })
        .await;
        let shared = &ground.shared;
        start(shared, "p", RecoveryDisposition::Rerunnable).await;
        until(|| shared.get("p").unwrap().unwrap().facets.started).await;
        let (row, host) = (ground.row("p"), ground.host(true).await);
        ground.gated.shut();
        cue.add_permits(1);
        ground.held(1).await;
        let lease = ground
            .give(row, host, ground.other.next_token().unwrap())
            .await;
        ground.gated.open_gate();
        ground.is_still(row, lease, 1);
        shut(&ground.runtime).await;
        ground.is_still(row, lease, 1);
    }
}

/// `Condition::LeaseFree` in `Process::conditions_of`, for a claim.
#[tokio::test]
async fn l1_a_claim_on_its_way_takes_no_lease_from_who_got_it_meanwhile() {
    let ground = Ground::open(1, idle).await;
    let host = ground.host(true).await;
    let (row, token) = ground.claim_on_its_way().await;
    let lease = ground.give(row, host, token).await;
    ground.gated.open_gate();
    ground.is_still(row, lease, 0);
    shut(&ground.runtime).await;
}

/// `Condition::OwnerLive` in `Process::conditions_of`, for a claim.
#[tokio::test]
async fn l4_an_owner_that_lapsed_claims_nothing() {
    let ground = Ground::open(1, idle).await;
    let (row, _) = ground.claim_on_its_way().await;
    let ttl = u64::try_from(TTL.as_millis()).unwrap();
    ground.put.0.fetch_add(ttl, Ordering::SeqCst);
    ground.gated.pass(1);
    let loaded = ground.loaded(row);
    assert_eq!((loaded.edges.lease, loaded.state.attempt), (None, 0));
    ground.gated.open_gate();
    shut(&ground.runtime).await;
}

/// `Condition::LeaseFree` in `Process::conditions_of`, for a cancel that ends what is queued.
#[tokio::test]
async fn l1_a_cancel_on_its_way_ends_nothing_that_was_claimed_meanwhile() {
    let ground = Ground::open(0, idle).await;
    start(&ground.shared, "p", RecoveryDisposition::Rerunnable).await;
    let (row, host) = (ground.row("p"), ground.host(true).await);
    let token = ground.other.next_token().unwrap();
    ground.gated.shut();
    let shared = Arc::clone(&ground.shared);
    let cancel = HostCommand::Cancel { requested_by: None };
    tokio::spawn(async move { shared.command("p", cancel, None).await });
    ground.held(1).await;
    let lease = ground.give(row, host, token).await;
    ground.gated.open_gate();
    ground.is_still(row, lease, 0);
    shut(&ground.runtime).await;
}

/// `Condition::Token` in `Process::release`.
#[tokio::test]
async fn l3_a_shutdown_gives_back_no_lease_that_is_another_s() {
    let ground = Ground::open(1, |cx: ProcessContext| async move {
        Err(EngineFailure::cancelled(cx.cancelled().await))
    })
    .await;
    let shared = &ground.shared;
    start(shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let (row, host) = (ground.row("p"), ground.host(true).await);
    ground.gated.shut();
    let (done, ()) = tokio::join!(ground.runtime.shutdown(Duration::from_secs(5)), async {
        ground.held(1).await;
        let token = ground.other.next_token().unwrap();
        let lease = ground.give(row, host, token).await;
        ground.gated.open_gate();
        ground.is_still(row, lease, 1);
    });
    assert_eq!(done.unwrap().unwritten, ["p"]);
}

/// `Condition::Token` in `Settling::conditions`, for what this runtime no longer executes.
#[tokio::test]
async fn l1_the_reaper_ends_no_orphan_that_was_claimed_meanwhile() {
    let ground = Ground::open(0, idle).await;
    start(&ground.shared, "p", RecoveryDisposition::Rerunnable).await;
    let (row, host) = (ground.row("p"), ground.host(true).await);
    let own = ground.shared.owner().unwrap().number;
    let token = ground.end_on_its_way(row, own).await;
    let lease = ground.give(row, host, token).await;
    ground.gated.open_gate();
    ground.is_still(row, lease, 1);
    shut(&ground.runtime).await;
}

/// `Condition::LeaseFree` in `Settling::conditions`, for what an earlier incarnation of this runtime held:
/// nothing is taken over from that one first.
#[tokio::test]
async fn l1_the_reaper_ends_no_lapsed_process_that_was_claimed_meanwhile() {
    let ground = Ground::open(0, idle).await;
    start(&ground.shared, "p", RecoveryDisposition::Rerunnable).await;
    let (row, host) = (ground.row("p"), ground.host(true).await);
    let earlier = ground.earlier().await;
    let token = ground.end_on_its_way(row, earlier).await;
    let lease = ground.give(row, host, token).await;
    ground.gated.open_gate();
    ground.is_still(row, lease, 1);
    shut(&ground.runtime).await;
}

/// What `Settling::take_over` sends is held: it takes the lease of one whose first attempt a host had that
/// has lapsed. `Condition::LeaseFree` there is what a test in `lapses.rs` is about.
async fn take_over_on_its_way() -> (Ground, Row, Lease, JoinHandle<Result<RecoveryReport>>) {
    let ground = Ground::open(0, idle).await;
    // From here on nothing sweeps there but what is called here.
    ground.shared.recover_now().await.unwrap();
    let other = ground.another(1, Does(idle)).await;
    start(&other.shared, "p", RecoveryDisposition::Rerunnable).await;
    let row = ground.row("p");
    until(|| ground.loaded(row).state.attempt == 1).await;
    let lease = ground.loaded(row).edges.lease.unwrap();
    drop(other);
    ground.expires(lease.owner, 0).await;
    ground.gated.shut();
    let shared = Arc::clone(&ground.shared);
    let sweeping = tokio::spawn(async move { shared.recover_now().await });
    ground.held(1).await;
    (ground, row, lease, sweeping)
}

/// `Condition::Token` in `Settling::take_over`: what was given back meanwhile was not lost.
#[tokio::test]
async fn l3_the_reaper_takes_no_lease_over_that_was_given_back_meanwhile() {
    let (ground, row, _, sweeping) = take_over_on_its_way().await;
    ground.commit(writes::release(row, 1)).await;
    ground.gated.open_gate();
    let report = within(sweeping).await.unwrap().unwrap();
    assert_eq!(report.processes, [("p".into(), RecoveryStep::Overtaken)]);
    let loaded = ground.loaded(row);
    assert_eq!((loaded.edges.lease, loaded.state.recoveries), (None, 0));
    assert_eq!(loaded.state.last_sequence, 1);
    shut(&ground.runtime).await;
}

/// `Condition::OwnerLive` in `Settling::take_over`.
#[tokio::test]
async fn l4_an_owner_that_lapsed_takes_no_lease_over() {
    let (ground, row, lease, sweeping) = take_over_on_its_way().await;
    let ttl = u64::try_from(TTL.as_millis()).unwrap();
    ground.put.0.fetch_add(ttl, Ordering::SeqCst);
    ground.gated.pass(1);
    ground.is_still(row, lease, 1);
    ground.gated.open_gate();
    let report = within(sweeping).await.unwrap().unwrap();
    assert_eq!(report.processes, [("p".into(), RecoveryStep::Overtaken)]);
    shut(&ground.runtime).await;
}
