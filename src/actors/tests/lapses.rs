//! What may be done to an attempt whose owner has lapsed, and may renew its lease yet.

use std::sync::atomic::AtomicU32;

use bytes::Bytes;

use super::conditions::{Ground, TTL};
use super::*;
use crate::actors::reaper::RecoveryStep;
use crate::model::lease::Lease;
use crate::store::keys::{self, Row};
use crate::store::read::LoadedProcess;
use crate::store::write_set::Change;

/// What was begun and looked for, by which host, in this order.
type Said = Arc<Mutex<Vec<String>>>;

/// Says in an event what could outlive it, and runs until it is told to stop.
struct Leaves {
    host: &'static str,
    said: Said,
    /// How many looks it does not answer.
    silent: Arc<AtomicU32>,
}

impl Leaves {
    fn on(host: &'static str, said: &Said) -> Self {
        let said = Arc::clone(said);
        let silent = Arc::default();
        Self { host, said, silent }
    }

    fn say(&self, what: &str, attempt: &dyn std::fmt::Display) {
        let said = format!("{} {what} {attempt}", self.host);
        self.said.lock().unwrap().push(said);
    }
}

#[async_trait::async_trait]
impl ProcessEngine for Leaves {
    fn kind(&self) -> &str {
        "work"
    }

    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        self.say("runs", &cx.attempt());
        let key = format!("left/{}", cx.attempt());
        let note = ProcessEventAppendRequest::new("note", cx.attempt());
        cx.emit_durable(note.with_replay_key(Some(key))).await?;
        Err(EngineFailure::cancelled(cx.cancelled().await))
    }

    fn survivor_key(&self, record: &ProcessRecord) -> Option<String> {
        Some(format!("left/{}", record.attempt))
    }

    async fn end_survivors(&self, event: &ProcessEvent) -> Vec<Survivor> {
        self.say("looks for", &event.payload);
        let left = |left: u32| left.checked_sub(1);
        let order = Ordering::SeqCst;
        if self.silent.fetch_update(order, order, left).is_ok() {
            std::future::pending::<()>().await;
        }
        Vec::new()
    }
}

/// A host that asks for the end of what waits for its next attempt keeps nobody from looking: that is
/// done by then.
#[tokio::test]
async fn a_cancel_of_what_was_lost_to_a_lapse_has_its_engine_look_first() {
    let said = Said::default();
    let ground = Ground::with_engine(0, Leaves::on("two", &said)).await;
    let shared = &ground.shared;
    shared.recover_now().await.unwrap();
    let one = ground.another(1, Leaves::on("one", &said)).await;
    start(&one.shared, "p", RecoveryDisposition::Rerunnable).await;
    let row = ground.row("p");
    until(|| ground.loaded(row).state.last_sequence == 2).await;
    let lease = ground.loaded(row).edges.lease.unwrap();
    ground.expires(lease.owner, 0).await;
    assert_eq!(shared.recover_now().await.unwrap().queued, 1);
    assert_eq!(*said.lock().unwrap(), ["one runs 1", "two looks for 1"]);
    let cancel = HostCommand::Cancel { requested_by: None };
    shared.command("p", cancel, None).await.unwrap();
    let ended = within(shared.await_output("p")).await.unwrap();
    assert_eq!(ended.state(), TerminalState::Cancelled);
    assert_eq!(*said.lock().unwrap(), ["one runs 1", "two looks for 1"]);
    drop(one);
    shut(&ground.runtime).await;
}

/// L5, A1: the commit that says so may be refused, because its owner has renewed: `Condition::LeaseFree`
/// in `Settling::take_over`.
#[tokio::test]
async fn l5_nothing_is_ended_of_who_has_lapsed_before_its_loss_is_durable() {
    for disposition in [
        RecoveryDisposition::Rerunnable,
        RecoveryDisposition::OwnerBound,
    ] {
        let said = Said::default();
        let ground = Ground::with_engine(1, Leaves::on("two", &said)).await;
        // From here on nothing sweeps there but what is called here.
        ground.shared.recover_now().await.unwrap();
        let one = ground.another(1, Leaves::on("one", &said)).await;
        start(&one.shared, "p", disposition).await;
        let row = ground.row("p");
        let spoke = || ground.loaded(row).state.last_sequence == 2;
        until(spoke).await;
        if disposition == RecoveryDisposition::OwnerBound {
            ground.ask_to_abandon(row).await;
        }
        let LoadedProcess { edges, state, .. } = ground.loaded(row);
        let (lease, events) = (edges.lease.unwrap(), state.last_sequence);
        let heard = || said.lock().unwrap().clone();

        ground.expires(lease.owner, 0).await;
        ground.gated.shut();
        let sweeping = {
            let shared = Arc::clone(&ground.shared);
            tokio::spawn(async move { shared.recover_now().await })
        };
        ground.held(1).await;
        ground.expires(lease.owner, u64::MAX).await;
        ground.gated.open_gate();
        let report = within(sweeping).await.unwrap().unwrap();
        assert_eq!(report.processes, [("p".into(), RecoveryStep::Overtaken)]);
        ground.is_still(row, lease, events);
        assert_eq!(heard(), ["one runs 1"]);

        ground.expires(lease.owner, 0).await;
        let report = ground.shared.recover_now().await.unwrap();
        if disposition == RecoveryDisposition::OwnerBound {
            assert_eq!(report.abandoned, 1);
            assert_eq!(heard(), ["one runs 1", "two looks for 1"]);
            let loaded = ground.loaded(row);
            let Some(ProcessAwaitOutput::Abandoned { evidence }) = loaded.state.status.output()
            else {
                panic!("{loaded:?}");
            };
            assert_eq!(evidence.survivors, Some(Vec::new()));
            // A2: not whoever took the lease from it.
            assert_eq!(
                evidence.owner.as_ref(),
                Some(&one.shared.owner().unwrap().owner)
            );
        } else {
            assert_eq!(report.queued, 1);
            until(|| heard().len() == 3).await;
            // Before another attempt may begin.
            assert_eq!(heard(), ["one runs 1", "two looks for 1", "two runs 2"]);
        }
        drop(one);
        shut(&ground.runtime).await;
    }
}

/// A2, L5: whoever takes it over and has to look again, does not say that it lost it itself.
#[tokio::test]
async fn what_was_taken_over_and_not_settled_is_still_that_of_who_lapsed() {
    // Also where this host has another incarnation by then.
    for renamed in [false, true] {
        taken_over_and_not_settled(renamed).await;
    }
}

/// A process that was asked to be abandoned, which one host took over from another that had lapsed and has
/// not settled: its engine does not answer.
struct TakenOver {
    ground: Ground,
    one: Runtime,
    row: Row,
    /// The lease as it is now.
    lease: Lease,
    silent: Arc<AtomicU32>,
}

async fn taken_over(said: &Said) -> TakenOver {
    let silent = Arc::new(AtomicU32::new(u32::MAX));
    let leaves = Leaves {
        silent: Arc::clone(&silent),
        ..Leaves::on("two", said)
    };
    let ground = Ground::with_engine(1, leaves).await;
    let shared = &ground.shared;
    shared.recover_now().await.unwrap();
    let one = ground.another(1, Leaves::on("one", said)).await;
    start(&one.shared, "p", RecoveryDisposition::OwnerBound).await;
    let row = ground.row("p");
    until(|| ground.loaded(row).state.last_sequence == 2).await;
    ground.ask_to_abandon(row).await;
    let lapsed = ground.loaded(row).edges.lease.unwrap();
    ground.expires(lapsed.owner, 0).await;
    let report = shared.recover_now().await.unwrap();
    assert_eq!(report.processes, [("p".into(), RecoveryStep::Unsettled)]);
    let lease = ground.loaded(row).edges.lease.unwrap();
    assert_eq!(lease.owner, shared.owner().unwrap().number);
    TakenOver {
        ground,
        one,
        row,
        lease,
        silent,
    }
}

fn evidence(output: &ProcessAwaitOutput) -> &AbandonEvidence {
    match output {
        ProcessAwaitOutput::Abandoned { evidence } => evidence,
        other => panic!("{other:?}"),
    }
}

async fn taken_over_and_not_settled(renamed: bool) {
    let said = Said::default();
    let taken = taken_over(&said).await;
    let (ground, one, silent) = (taken.ground, taken.one, taken.silent);
    let shared = &ground.shared;
    let before = shared.owner().unwrap();
    if renamed {
        shared.lose_owner(&before);
        assert!(shared.take_gone().is_empty(), "not said to be gone");
        ground.expires(before.number, 0).await;
        let next = crate::actors::keeper::begin_incarnation(shared).await;
        shared.set_owner(next.unwrap());
    }
    silent.store(0, Ordering::SeqCst);
    let ended = within(async {
        shared.recover_now().await.unwrap();
        shared.await_output("p").await
    })
    .await
    .unwrap();
    let evidence = evidence(&ended);
    assert_eq!(evidence.proof, AbandonProof::Lapse);
    assert_eq!(
        evidence.owner.as_ref(),
        Some(&one.shared.owner().unwrap().owner)
    );
    assert_eq!(evidence.survivors, Some(Vec::new()));
    let looks = said.lock().unwrap()[1..].to_vec();
    assert!(looks.len() >= 2, "{looks:?}");
    assert!(looks.iter().all(|look| look == "two looks for 1"));
    if renamed {
        // It is settled.
        let gone = shared.take_gone();
        let gone: Vec<_> = gone.iter().map(|owner| owner.number).collect();
        assert_eq!(gone, [before.number]);
    }
    drop(one);
    shut(&ground.runtime).await;
}

/// A2, L5: whoever took it over says in order that it goes, and has not settled it.
#[tokio::test]
async fn l5_what_was_taken_over_is_no_more_than_lapsed_after_a_shutdown() {
    let said = Said::default();
    let TakenOver {
        ground,
        one,
        row,
        lease,
        ..
    } = taken_over(&said).await;
    drop(one);
    let two = ground.shared.owner().unwrap().owner.clone();
    shut(&ground.runtime).await;
    assert_eq!(ground.loaded(row).edges.lease, Some(lease));
    let ttl = u64::try_from(TTL.as_millis()).unwrap();
    ground.put.0.fetch_add(ttl, Ordering::SeqCst);
    let three = ground.another(0, Leaves::on("three", &said)).await;
    let ended = within(three.shared.await_output("p")).await.unwrap();
    let evidence = evidence(&ended);
    assert_eq!(evidence.proof, AbandonProof::Lapse);
    assert_eq!(evidence.owner.as_ref(), Some(&two));
    shut(&three).await;
}

/// What another host took over in its turn, or nobody can read any more, keeps no incarnation from being
/// said to be gone.
#[tokio::test]
async fn what_was_taken_over_and_is_not_settled_here_any_more_is_forgotten() {
    for damaged in [false, true] {
        let said = Said::default();
        let taken = taken_over(&said).await;
        let (ground, row, owner) = (taken.ground, taken.row, taken.lease.owner);
        let shared = &ground.shared;
        if damaged {
            let damage = Change::RecordEffect {
                key: keys::head(row),
                value: Bytes::from_static(b"no head"),
            };
            ground.commit(damage).await;
        } else {
            let host = ground.host(true).await;
            let token = ground.other.next_token().unwrap();
            ground.give(row, host, token).await;
        }
        assert!(shared.looks.holds_as(owner));
        shared.recover_now().await.unwrap();
        assert!(!shared.looks.holds_as(owner));
        drop(taken.one);
        shut(&ground.runtime).await;
    }
}

/// On a store that several hosts share, a walk looks at nothing that has ended.
#[tokio::test]
async fn what_was_taken_over_and_has_ended_elsewhere_is_forgotten_by_the_next_walk() {
    let said = Said::default();
    let taken = taken_over(&said).await;
    let ground = taken.ground;
    let looks = &ground.shared.looks;
    // How often nobody could look, and from whom it was taken.
    let known: Vec<_> = looks.known().collect();
    assert_eq!(known, [taken.row.incarnation; 2]);
    ground.expires(taken.lease.owner, 0).await;
    let three = ground.another(0, Leaves::on("three", &said)).await;
    within(three.shared.await_output("p")).await.unwrap();
    ground.shared.recover_now().await.unwrap();
    assert_eq!(looks.known().count(), 0);
    drop(taken.one);
    shut(&three).await;
    shut(&ground.runtime).await;
}

/// Eight are looked for at once. The others have to wait, and their host may yet come back.
#[tokio::test]
async fn what_an_engine_that_does_not_answer_gets_no_turn_for_is_taken_from_nobody() {
    let said = Said::default();
    let leaves = Leaves {
        silent: Arc::new(AtomicU32::new(u32::MAX)),
        ..Leaves::on("two", &said)
    };
    let ground = Ground::with_engine(0, leaves).await;
    let shared = &ground.shared;
    shared.recover_now().await.unwrap();
    let one = ground.another(12, Leaves::on("one", &said)).await;
    let ids: Vec<String> = (0..12).map(|n| format!("p{n}")).collect();
    for id in &ids {
        start(&one.shared, id, RecoveryDisposition::Rerunnable).await;
    }
    let rows: Vec<_> = ids.iter().map(|id| ground.row(id)).collect();
    let spoke = |row| ground.loaded(row).state.last_sequence == 2;
    until(|| rows.iter().all(|row| spoke(*row))).await;
    let lapsed = one.shared.owner().unwrap().number;
    ground.expires(lapsed, 0).await;
    let report = shared.recover_now().await.unwrap();
    assert_eq!((report.examined, report.unsettled), (12, 12), "{report:?}");
    let looks = said.lock().unwrap().len() - 12;
    let owner = |row| ground.loaded(row).edges.lease.unwrap().owner;
    let left = rows.iter().filter(|row| owner(**row) == lapsed).count();
    assert_eq!((looks, left), (8, 4));
    drop(one);
    shut(&ground.runtime).await;
}
