//! What the tests of the typed store share: both machines behind one face, a clock that the test
//! sets, and processes whose changes come from the model's own decisions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};

use super::clock::Clock;
use super::keys::Row;
use super::kv::{CommitContext, Kv, Op, Outcome, Proposal, Reader, Verdict};
use super::kv_laws;
use super::memory_kv::{MemoryKv, MemoryStore};
use super::process_store::ProcessStore;
use super::read::View;
use super::sled_kv::{Options, SledKv};
use super::write_set::{
    Change, CommitError, CommitResult, Condition, Receipt, Refusal, Ticket, WriteSet,
};
use super::writes;
use crate::model::decide::{self, Command, Decision, Facts, Finisher, apply_drafts};
use crate::model::lease::OwnerRecord;
use crate::model::record::{ProcessState, Registration, RegistrationFacts, Writer, start_hash};
use crate::model::*;

/// When the tests begin.
pub(super) const START_MS: u64 = 1_700_000_000_000;
/// How long the owners of the tests live without a heartbeat.
pub(super) const TTL_MS: u64 = 30_000;

/// A clock that stands still until it is set.
#[derive(Debug)]
pub(super) struct TestClock(AtomicU64);

impl TestClock {
    pub(super) fn start() -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(START_MS)))
    }

    pub(super) fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::SeqCst);
    }

    pub(super) fn advance(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::SeqCst);
    }
}

impl Clock for TestClock {
    fn now_epoch_ms(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        // The wall clock of a test may jump; this one stands still, so that no view expires.
        Duration::from_secs(1)
    }
}

/// Where a state lives that outlives its opens.
pub(super) enum Ground {
    Memory(MemoryStore),
    Sled(tempfile::TempDir),
}

impl Ground {
    pub(super) fn memory() -> Self {
        Self::Memory(MemoryKv::private())
    }

    /// In memory, for several hosts at once.
    pub(super) fn shared() -> Self {
        Self::Memory(MemoryKv::shared())
    }

    pub(super) fn sled() -> Self {
        Self::Sled(tempfile::tempdir().unwrap())
    }

    pub(super) fn open(&self) -> Host {
        self.open_at(TestClock::start())
    }

    pub(super) fn open_at(&self, clock: Arc<TestClock>) -> Host {
        let as_clock: Arc<dyn Clock> = clock.clone();
        let kv: Arc<dyn Kv> = match self {
            Self::Memory(store) => Arc::new(store.open(as_clock.clone()).unwrap()),
            Self::Sled(dir) => {
                let options = Options::new(as_clock.clone());
                Arc::new(SledKv::open(&dir.path().join("store"), options).unwrap())
            }
        };
        Host {
            store: ProcessStore::new(kv.clone(), as_clock),
            kv,
            clock,
        }
    }
}

/// Makes a test for each machine of every law that is named: a function over a [`Ground`].
macro_rules! held_by_both {
    ($($law:ident),* $(,)?) => {
        mod memory {
            $(#[test] fn $law() { super::$law(&$crate::store::testing::Ground::memory()); })*
        }
        mod sled {
            $(#[test] fn $law() { super::$law(&$crate::store::testing::Ground::sled()); })*
        }
    };
}
pub(super) use held_by_both;

/// An open store.
pub(super) struct Host {
    pub(super) store: ProcessStore,
    pub(super) kv: Arc<dyn Kv>,
    pub(super) clock: Arc<TestClock>,
}

/// Everything that is stored, as it can be read: keys, and the logs of the processes that are
/// there.
pub(super) type Dump = (BTreeMap<Bytes, Bytes>, Vec<(u64, u64, Bytes)>);

impl Host {
    /// On a machine that the test opened itself.
    pub(super) fn on(kv: Arc<dyn Kv>) -> Self {
        let clock = TestClock::start();
        let as_clock: Arc<dyn Clock> = clock.clone();
        Self {
            store: ProcessStore::new(kv.clone(), as_clock),
            kv,
            clock,
        }
    }

    pub(super) fn view(&self) -> View {
        self.store.view().unwrap()
    }

    pub(super) fn submit(&self, set: WriteSet) -> Receiver<CommitResult> {
        let (sender, receiver) = channel();
        let done = Box::new(move |result| sender.send(result).unwrap());
        self.store.commit(set, done);
        receiver
    }

    pub(super) fn commit(&self, conditions: Vec<Condition>, changes: Vec<Change>) -> CommitResult {
        self.submit(WriteSet::new(conditions, changes))
            .recv()
            .unwrap()
    }

    pub(super) fn ok(&self, conditions: Vec<Condition>, changes: Vec<Change>) -> Receipt {
        self.commit(conditions, changes).unwrap()
    }

    /// Commits a set that is refused, and holds the store to P4: not a byte is changed.
    #[track_caller]
    pub(super) fn refused(&self, conditions: Vec<Condition>, changes: Vec<Change>) -> Refusal {
        let before = self.dump();
        let refusal = match self.commit(conditions, changes) {
            Err(CommitError::Refused(refusal)) => refusal,
            other => panic!("not refused: {other:?}"),
        };
        assert_eq!(self.dump(), before, "P4: a refused set changed something");
        refusal
    }

    /// Commits raw operations, as damage.
    pub(super) fn damage(&self, ops: Vec<Op>) {
        kv_laws::commit(&*self.kv, ops);
    }

    pub(super) fn keys(&self) -> BTreeMap<Bytes, Bytes> {
        let entries = self.view().raw().scan(&kv_laws::all(), usize::MAX).unwrap();
        entries.into_iter().collect()
    }

    pub(super) fn dump(&self) -> Dump {
        let keys = self.keys();
        let view = self.view();
        let mut logs = Vec::new();
        for key in keys.keys() {
            if let Some(super::keys::Parsed::Head(row)) = super::keys::parse(key) {
                let incarnation = row.incarnation.get();
                let events = view.raw().events(incarnation, 1, usize::MAX, usize::MAX);
                let events = events.unwrap().into_iter();
                logs.extend(events.map(|(sequence, bytes)| (incarnation, sequence, bytes)));
            }
        }
        (keys, logs)
    }

    /// A new owner, live for [`TTL_MS`].
    pub(super) fn owner(&self) -> OwnerNumber {
        let number = self.store.next_owner().unwrap();
        self.heartbeat(number);
        number
    }

    pub(super) fn heartbeat(&self, number: OwnerNumber) {
        self.ok(vec![], vec![self.beat(number)]);
    }

    /// The change that a heartbeat is.
    pub(super) fn beat(&self, number: OwnerNumber) -> Change {
        Change::PutOwner {
            number,
            record: OwnerRecord {
                owner: self.named(number),
                expires_at_ms: self.store.now_ms().saturating_add(TTL_MS),
                retired: false,
            },
        }
    }

    pub(super) fn named(&self, number: OwnerNumber) -> ProcessOwner {
        ProcessOwner {
            owner_id: "host".into(),
            incarnation_id: format!("i-{number}"),
            store_epoch: self.store.epoch(),
        }
    }

    pub(super) fn start(&self, request: ProcessStartRequest) -> Proc {
        let process = Proc::new(self, request, None);
        self.ok(vec![process.id_free()], vec![process.register()]);
        process
    }

    pub(super) fn start_child(&self, id: &str, parent: &Proc) -> Proc {
        let parent = ProcessParent {
            process_id: parent.registration.id.clone(),
            incarnation: parent.registration.incarnation,
            key: "k".into(),
            detached: false,
        };
        let process = Proc::new(self, request(id), Some(parent));
        self.ok(vec![process.id_free()], vec![process.register()]);
        process
    }

    /// Decides a command on a process and commits it.
    pub(super) fn step(&self, process: &mut Proc, command: Command, facts: Facts) -> Receipt {
        let at = process.at();
        let change = process.decide(self, command, facts);
        self.ok(vec![at], vec![change])
    }

    pub(super) fn emit(&self, process: &mut Proc, event_type: &str, payload: Value) -> Receipt {
        let command = process.event(event_type, payload, None, None);
        self.step(process, command, Facts::default())
    }

    /// Claims and starts; the token.
    pub(super) fn begin(&self, process: &mut Proc, owner: OwnerNumber) -> FencingToken {
        let token = self.store.next_token().unwrap();
        let at = process.at();
        let begins = process.begins(self, owner, token);
        self.ok(vec![at], vec![begins]);
        token
    }

    /// Ends it as failed without a lease, as the reaper does.
    pub(super) fn finish(&self, process: &mut Proc) -> Receipt {
        let token = self.store.next_token().unwrap();
        let at = process.at();
        let fails = process.fails(self, token);
        self.ok(vec![at], vec![fails])
    }

    pub(super) fn prune(&self, process: &Proc) -> Receipt {
        self.ok(vec![], vec![self.pruned(process)])
    }

    pub(super) fn pruned(&self, process: &Proc) -> Change {
        Change::Prune {
            row: process.row(),
            id: process.registration.id.clone(),
            at_ms: self.store.now_ms(),
        }
    }

    pub(super) fn verified(&self) -> VerifyReport {
        super::verify::verify(&self.store).unwrap()
    }

    #[track_caller]
    pub(super) fn assert_clean(&self) {
        let report = self.verified();
        assert!(report.is_clean(), "{report:#?}");
    }
}

/// A process as its writer knows it.
pub(super) struct Proc {
    pub(super) registration: Registration,
    pub(super) state: ProcessState,
    pub(super) owner: OwnerNumber,
    env: Option<(ContentHash, Vec<u8>)>,
    grant: Option<ProcessStartGrant>,
}

impl Proc {
    pub(super) fn new(
        host: &Host,
        request: ProcessStartRequest,
        parent: Option<ProcessParent>,
    ) -> Self {
        request.check().unwrap();
        let hash = start_hash(&request, parent.as_ref()).unwrap();
        let env = request.env_spec.as_ref().map(|spec| {
            let canonical = spec.canonical().unwrap();
            (ContentHash::of(&canonical), canonical)
        });
        let grant = request.grant.clone();
        let facts = RegistrationFacts {
            incarnation: host.store.next_incarnation().unwrap(),
            created_at_ms: host.store.now_ms(),
            parent,
            engine_event_types: Vec::new(),
        };
        let created_at_ms = facts.created_at_ms;
        Self {
            registration: Registration::new(request, hash, env.as_ref().map(|env| env.0), facts),
            state: ProcessState::initial(created_at_ms),
            owner: OwnerNumber(0),
            env,
            grant,
        }
    }

    pub(super) fn row(&self) -> Row {
        Row::of(&self.registration)
    }

    pub(super) fn register(&self) -> Change {
        writes::register(&self.registration, self.env.clone(), self.grant.clone()).unwrap()
    }

    pub(super) fn id_free(&self) -> Condition {
        Condition::IdFree {
            id: self.registration.id.clone(),
            hash: self.registration.hash,
        }
    }

    pub(super) fn at(&self) -> Condition {
        Condition::At {
            row: self.row(),
            last_sequence: self.state.last_sequence,
        }
    }

    pub(super) fn token(&self, token: FencingToken) -> Condition {
        Condition::Token {
            row: self.row(),
            token,
        }
    }

    pub(super) fn event(
        &self,
        event_type: &str,
        payload: Value,
        replay_key: Option<&str>,
        wakes: Option<SessionScope>,
    ) -> Command {
        let request = ProcessEventAppendRequest::new(event_type, payload)
            .with_replay_key(replay_key.map(str::to_owned))
            .with_wake_target_scope(wakes);
        Command::Append {
            event: decide::check_event(&self.registration, request).unwrap(),
            writer: Writer::Host,
        }
    }

    /// Decides a command on the state at hand, and goes on with the state after it.
    pub(super) fn decide(&mut self, host: &Host, command: Command, facts: Facts) -> Change {
        let now = host.store.now_ms();
        let decided = decide::decide(&self.registration, &self.state, command, facts).unwrap();
        let Decision::Commit { events, lease } = decided else {
            panic!("nothing to commit: {decided:?}");
        };
        let mut after = self.state.clone();
        apply_drafts(&self.registration, &mut after, &events, now).unwrap();
        let change = writes::append(&self.registration, &events, &after, &lease, self.owner, now);
        self.state = after;
        change.unwrap()
    }

    /// A claim and a start, decided.
    pub(super) fn begins(
        &mut self,
        host: &Host,
        owner: OwnerNumber,
        token: FencingToken,
    ) -> Change {
        self.owner = owner;
        let command = Command::Begin {
            owner: host.named(owner),
            token,
            reason: match self.state.attempt {
                0 => StartReason::First,
                _ => StartReason::Released,
            },
        };
        self.decide(host, command, claimable(token))
    }

    /// An end in failure by somebody who claims it for that, decided.
    pub(super) fn fails(&mut self, host: &Host, token: FencingToken) -> Change {
        let command = Command::Finish {
            output: ProcessAwaitOutput::Failure {
                class: FailureClass::Execution,
                code: "broken".into(),
                message: "it broke".into(),
                raw: None,
            },
            finisher: Finisher::Claim(token),
        };
        self.decide(host, command, claimable(token))
    }

    /// A plain event, decided.
    pub(super) fn note(&mut self, host: &Host) -> Change {
        let command = self.event("note", json!({ "n": self.state.last_sequence }), None, None);
        self.decide(host, command, Facts::default())
    }
}

/// What somebody knows who finds the lease free.
pub(super) fn claimable(token: FencingToken) -> Facts {
    Facts {
        claim: Some(token),
        ..Facts::default()
    }
}

/// A request with an event type of each sort: `note`, `ask` (wakes, once for each `/key`), `ping`
/// (wakes every time), `done` (ends it), and a signal `go`.
pub(super) fn request(id: &str) -> ProcessStartRequest {
    let text = || WakeSemantics::new(Selector::pointer("/text"));
    ProcessStartRequest::new(
        id,
        ProcessInput::engine("work", json!({ "of": id })),
        RecoveryDisposition::Rerunnable,
        ProcessOriginator::session(session("origin")),
    )
    .with_event_types(vec![
        ProcessEventType::new("note"),
        ProcessEventType::signal("go"),
        ProcessEventType::new("ask").with_wake(text().with_dedupe_key(Selector::pointer("/key"))),
        ProcessEventType::new("ping").with_wake(text()),
        ProcessEventType::new("done").with_terminal(TerminalSemantics::new(
            MappedState::Completed,
            Selector::Payload,
        )),
    ])
}

pub(super) fn session(id: &str) -> SessionScope {
    SessionScope::new(id)
}

/// A request that touches every kind of key a start can write.
pub(super) fn rich_request(id: &str) -> ProcessStartRequest {
    request(id)
        .with_env_spec(Some(ProcessEnvSpec::new(
            json!({ "shell": "sh" }),
            json!({}),
        )))
        .with_wake_target(Some(session("target")))
        .with_grant(Some(ProcessStartGrant::new(session("holder"), "the work")))
}

/// A set that is refused together with the one that it was decided on.
pub(super) fn after(before: &Ticket, conditions: Vec<Condition>, changes: Vec<Change>) -> WriteSet {
    let mut set = WriteSet::new(conditions, changes);
    set.after = Some(before.clone());
    set
}

/// Takes up the committer until it is let go, so that what is submitted meanwhile makes one group.
pub(super) struct Gate(std::sync::mpsc::Sender<()>);

impl Gate {
    /// Nothing to hold where a submission resolves on the caller's thread.
    pub(super) fn close(ground: &Ground, host: &Host) -> Option<Self> {
        match ground {
            Ground::Memory(_) => None,
            Ground::Sled(_) => {
                let (open, wait) = channel();
                let (reached, at_gate) = channel();
                host.kv.submit(Box::new(Waits { reached, wait }));
                at_gate.recv().unwrap();
                Some(Self(open))
            }
        }
    }

    pub(super) fn open(self) {
        self.0.send(()).unwrap();
    }
}

struct Waits {
    reached: std::sync::mpsc::Sender<()>,
    wait: Receiver<()>,
}

impl Proposal for Waits {
    fn resolve(
        &mut self,
        _: &dyn Reader,
        _: &mut CommitContext<'_>,
    ) -> Result<Verdict, super::error::StoreError> {
        self.reached.send(()).unwrap();
        self.wait.recv().unwrap();
        Ok(Verdict::Refuse)
    }

    fn done(self: Box<Self>, _: Outcome) {}
}
