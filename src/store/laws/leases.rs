//! One live lease, a token that rises, and a clock that proves nothing.

use serde_json::json;

use crate::model::age::AgeMark;
use crate::model::decide::{Command, Facts, Finisher};
use crate::model::lease::OwnerStanding;
use crate::model::recovery::LeaseStanding;
use crate::model::*;
use crate::store::testing::*;
use crate::store::write_set::{Change, CommitError, Condition, Refusal, WriteSet};
use crate::store::writes;

fn free(process: &Proc) -> Condition {
    Condition::LeaseFree { row: process.row() }
}

fn gone(process: &Proc) -> Condition {
    Condition::LeaseGone { row: process.row() }
}

fn live(owner: OwnerNumber) -> Condition {
    Condition::OwnerLive { owner }
}

/// The process as another writer sees it that loads it now.
fn reloaded(host: &Host, process: &Proc) -> Proc {
    let loaded = host.view().load(process.row()).unwrap().unwrap();
    let mut other = Proc::new(host, request(&process.registration.id), None);
    other.registration = loaded.registration;
    other.state = loaded.state;
    other
}

/// The outcome that an owner writes under its token.
fn outcome(host: &Host, process: &mut Proc, token: FencingToken) -> Change {
    let command = Command::Finish {
        output: ProcessAwaitOutput::success(json!(1)),
        finisher: Finisher::Owner(token),
    };
    let facts = Facts {
        holder: Some(token),
        ..Facts::default()
    };
    process.decide(host, command, facts)
}

/// `Condition::LeaseFree`.
fn l1_a_live_lease_is_not_taken_and_a_lapsed_one_is(ground: &Ground) {
    let host = ground.open();
    let (first, second) = (host.owner(), host.owner());
    let mut process = host.start(request("p"));
    host.ok(vec![free(&process)], vec![host.beat(first)]);
    let held = host.begin(&mut process, first);
    let token = host.store.next_token().unwrap();
    let mut taker = reloaded(&host, &process);
    let take = taker.begins(&host, second, token);
    let conditions = vec![free(&process), process.at()];
    let refusal = host.refused(conditions.clone(), vec![take.clone()]);
    assert_eq!(refusal, Refusal::Leased);
    host.clock.advance(TTL_MS - 1);
    host.refused(conditions.clone(), vec![take.clone()]);
    host.clock.advance(1);
    host.ok(conditions, vec![take]);
    // A3, L3: the one who comes back writes nothing, not even its outcome.
    let fenced = vec![process.token(held)];
    let late = outcome(&host, &mut process, held);
    assert_eq!(host.refused(fenced, vec![late]), Refusal::Superseded);
    host.assert_clean();
    host.store.close().unwrap();
}

/// `Condition::LeaseGone`.
fn l5_a_lapse_is_no_proof_but_retirement_is(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mut process = host.start(request("p"));
    host.begin(&mut process, owner);
    let bystander = vec![writes::release(process.row(), 1)];
    for now in [START_MS, START_MS + TTL_MS, u64::MAX] {
        host.clock.set(now);
        let refusal = host.refused(vec![gone(&process)], bystander.clone());
        assert_eq!(refusal, Refusal::Leased, "at {now}");
    }
    let Change::PutOwner { number, mut record } = host.beat(owner) else {
        panic!("a heartbeat is a change of an owner");
    };
    record.retired = true;
    host.ok(vec![], vec![Change::PutOwner { number, record }]);
    // Retired beats a heartbeat in the future, too.
    host.clock.set(0);
    host.ok(vec![gone(&process)], bystander.clone());
    host.ok(vec![gone(&process)], bystander);
    host.store.close().unwrap();
}

/// `Condition::Token`.
fn l3_only_the_current_token_writes(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mut process = host.start(request("p"));
    let unclaimed = process.token(FencingToken(0));
    let beat = vec![host.beat(owner)];
    assert_eq!(
        host.refused(vec![unclaimed], beat.clone()),
        Refusal::Superseded,
        "no token is no token"
    );
    let token = host.begin(&mut process, owner);
    host.ok(vec![process.token(token)], beat.clone());
    for wrong in [0, token.get() - 1, token.get() + 1] {
        let wrong = process.token(FencingToken(wrong));
        assert_eq!(host.refused(vec![wrong], beat.clone()), Refusal::Superseded);
    }
    // Lapsed, but claimed by nobody since: the outcome may still be written.
    host.clock.advance(10 * TTL_MS);
    let conditions = vec![process.token(token), process.at()];
    let done = outcome(&host, &mut process, token);
    host.ok(conditions, vec![done]);
    assert_eq!(
        host.refused(vec![process.token(token)], beat),
        Refusal::Superseded,
        "given back"
    );
    host.assert_clean();
    host.store.close().unwrap();
}

/// `rise`, in `append`, for every way to acquire.
fn l2_a_token_rises_across_release_and_passing(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mut process = host.start(request("p"));
    let first = host.begin(&mut process, owner);
    let release = writes::release(process.row(), process.state.last_sequence);
    host.ok(vec![process.token(first)], vec![release]);
    let view = host.view();
    let edges = view.load(process.row()).unwrap().unwrap().edges;
    assert_eq!(
        (edges.lease, edges.token),
        (None, first),
        "kept behind a release"
    );
    drop(view);
    for old in [FencingToken(0), first] {
        let mut again = reloaded(&host, &process);
        let at = again.at();
        let take = again.begins(&host, owner, old);
        assert_eq!(host.refused(vec![at], vec![take]), Refusal::Superseded);
        let mut again = reloaded(&host, &process);
        let at = again.at();
        let pass = again.fails(&host, old);
        assert_eq!(host.refused(vec![at], vec![pass]), Refusal::Superseded);
    }
    let second = host.begin(&mut process, owner);
    assert!(second > first);
    let passed = host.finish(&mut process);
    assert!(passed.commit > 0);
    let front = host.view().front(process.row()).unwrap().unwrap();
    assert!(front.token > second.get() && front.owner == 0, "{front:?}");
    host.assert_clean();
    host.store.close().unwrap();
}

/// R3: the counters outlive prunes, drops and opens.
fn l2_tokens_and_incarnations_rise_across_prune_and_restart(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mut process = host.start(request("p"));
    let token = host.begin(&mut process, owner);
    let incarnation = process.registration.incarnation;
    host.clock.advance(TTL_MS);
    host.finish(&mut process);
    host.prune(&process);
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    host.store.close().unwrap();
    let host = ground.open();
    let owner_after = host.owner();
    assert!(owner_after > owner);
    let mut again = host.start(request("p"));
    assert!(again.registration.incarnation > incarnation);
    assert!(host.begin(&mut again, owner_after).get() > token.get() + 1);
    host.assert_clean();
    host.store.close().unwrap();
}

/// `Condition::OwnerLive`: the lapse.
fn l4_a_lapsed_heartbeat_is_not_revived(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    host.clock.advance(TTL_MS - 1);
    host.ok(vec![live(owner)], vec![host.beat(owner)]);
    host.clock.advance(TTL_MS);
    let beat = vec![host.beat(owner)];
    assert_eq!(
        host.refused(vec![live(owner)], beat.clone()),
        Refusal::OwnerLapsed
    );
    let unknown = live(OwnerNumber(999));
    assert_eq!(host.refused(vec![unknown], beat), Refusal::OwnerLapsed);
    host.store.close().unwrap();
}

/// `Condition::OwnerLive`: the epoch.
fn l8_an_owner_of_an_earlier_epoch_writes_nothing(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mut process = host.start(request("p"));
    host.begin(&mut process, owner);
    host.store.close().unwrap();
    let host = ground.open();
    let beat = vec![host.beat(OwnerNumber(99))];
    assert_eq!(
        host.refused(vec![live(owner)], beat.clone()),
        Refusal::OwnerLapsed,
        "its heartbeat has not lapsed, but its epoch is over"
    );
    // What nobody can hold any more is free, and provably so.
    host.ok(vec![free(&process), gone(&process)], beat);
    let lease = host
        .view()
        .load(process.row())
        .unwrap()
        .unwrap()
        .edges
        .lease;
    assert_eq!(
        host.view().lease_standing(lease).unwrap(),
        LeaseStanding::Held(OwnerStanding::Dead)
    );
    host.store.close().unwrap();
}

/// `Change::RemoveOwner`: what is unknown reads as dead, so that only what is dead is forgotten.
fn l5_an_owner_is_forgotten_on_proof_only(ground: &Ground) {
    let host = ground.open();
    let number = host.owner();
    let forget = vec![Change::RemoveOwner { number }];
    for now in [START_MS, START_MS + TTL_MS, u64::MAX] {
        host.clock.set(now);
        let refusal = host.refused(vec![], forget.clone());
        assert_eq!(refusal, Refusal::Leased, "at {now}");
    }
    host.clock.set(START_MS);
    let Change::PutOwner { mut record, .. } = host.beat(number) else {
        panic!("a heartbeat is a change of an owner");
    };
    record.retired = true;
    host.ok(vec![], vec![Change::PutOwner { number, record }]);
    host.ok(vec![], forget);
    assert_eq!(host.view().owner(number).unwrap(), None);
    // One of an earlier epoch is as dead.
    let number = host.owner();
    host.store.close().unwrap();
    let host = ground.open();
    host.ok(vec![], vec![Change::RemoveOwner { number }]);
    host.assert_clean();
    host.store.close().unwrap();
}

/// `known.age_ms <= mark.age_ms`, in `change`: hosts that share a store need not be of one mind.
fn l6_a_store_gets_no_younger(ground: &Ground) {
    let host = ground.open();
    let owner = host.owner();
    let mark = |age_ms, boot: Option<&str>| AgeMark {
        age_ms,
        wall_ms: age_ms + 1,
        monotonic_ms: age_ms + 2,
        boot_id: boot.map(str::to_owned),
    };
    assert_eq!(host.view().age().unwrap(), None);
    for (said, stands) in [
        (mark(5, Some("a")), mark(5, Some("a"))),
        (mark(4, Some("b")), mark(5, Some("a"))),
        (mark(5, Some("b")), mark(5, Some("b"))),
        (mark(6, None), mark(6, None)),
    ] {
        host.ok(vec![], vec![host.beat(owner), Change::PutAge(said)]);
        assert_eq!(host.view().age().unwrap(), Some(stands));
    }
    host.assert_clean();
    host.store.close().unwrap();
}

/// L6: whatever the clock does, there is one lease, its token rises, and the old one is fenced.
fn l6_no_clock_breaks_fencing(ground: &Ground) {
    const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
    let jumps: [fn(u64) -> u64; 9] = [
        |now| now + 1_000,
        |now| now - 1_000,
        |now| now + TTL_MS,
        |now| now - TTL_MS,
        |now| now + DAY_MS,
        |now| now - DAY_MS,
        |_| 0,
        |_| u64::MAX / 2,
        |_| u64::MAX,
    ];
    let host = ground.open();
    let bystander = host.owner();
    for (number, jump) in jumps.into_iter().enumerate() {
        host.clock.set(START_MS);
        let (first, second) = (host.owner(), host.owner());
        let mut process = host.start(request(&format!("p-{number}")));
        let held = host.begin(&mut process, first);
        let now = jump(START_MS);
        host.clock.set(now);
        let token = host.store.next_token().unwrap();
        let mut taker = reloaded(&host, &process);
        let conditions = vec![free(&process), taker.at()];
        let take = taker.begins(&host, second, token);
        // L1: it changes hands only where the heartbeat has lapsed by the committer's clock.
        let lapsed = now >= START_MS + TTL_MS;
        match host.commit(conditions, vec![take]) {
            Ok(_) => assert!(lapsed, "taken from a live owner at {now}"),
            Err(_) => assert!(!lapsed, "not taken from a lapsed owner at {now}"),
        }
        let front = host.view().front(process.row()).unwrap().unwrap();
        let (holder, current) = if lapsed {
            (second, token)
        } else {
            (first, held)
        };
        assert_eq!((front.owner, front.token), (holder.get(), current.get()));
        // L3, wherever the clock goes from here.
        for later in [0, START_MS, u64::MAX] {
            host.clock.set(later);
            let beat = vec![host.beat(bystander)];
            let refused = if lapsed { held } else { token };
            assert_eq!(
                host.refused(vec![process.token(refused)], beat.clone()),
                Refusal::Superseded
            );
            host.ok(vec![process.token(current)], beat);
        }
    }
    host.clock.set(START_MS);
    host.assert_clean();
    host.store.close().unwrap();
}

/// Whoever is first in the queue, with both in one group where the machine has groups: the other
/// one is refused, and can tell by its refusal.
fn a4_of_completion_and_abandonment_one_wins_and_the_other_learns_it(ground: &Ground) {
    let host = ground.open();
    for owner_first in [true, false] {
        let owner = host.owner();
        let mut process = host.start(request(&format!("p-{owner_first}")));
        let held = host.begin(&mut process, owner);
        host.clock.advance(TTL_MS);
        let asks = Command::RequestAbandon {
            requested_by: "someone".into(),
            reason: None,
        };
        host.step(&mut process, asks, Facts::default());
        let mut reaper = reloaded(&host, &process);
        let token = host.store.next_token().unwrap();
        let completes = WriteSet::new(
            vec![process.token(held), process.at()],
            vec![outcome(&host, &mut process, held)],
        );
        let abandon = Command::Finish {
            output: ProcessAwaitOutput::Abandoned {
                evidence: AbandonEvidence {
                    writer: AbandonWriter::ReconciledRequest,
                    owner: Some(host.named(owner)),
                    proof: AbandonProof::Lapse,
                    requested_by: Some("someone".into()),
                    survivors: None,
                    epoch_ms: host.store.now_ms(),
                },
            },
            finisher: Finisher::Claim(token),
        };
        let abandons = WriteSet::new(
            vec![free(&reaper), reaper.at()],
            vec![reaper.decide(&host, abandon, claimable(token))],
        );
        let gate = Gate::close(ground, &host);
        let (first, second) = if owner_first {
            let first = host.submit(completes);
            (first, host.submit(abandons))
        } else {
            let first = host.submit(abandons);
            (first, host.submit(completes))
        };
        if let Some(gate) = gate {
            gate.open();
        }
        first.recv().unwrap().unwrap();
        let (refusal, state) = if owner_first {
            (Refusal::Moved, TerminalState::Completed)
        } else {
            (Refusal::Superseded, TerminalState::Abandoned)
        };
        match second.recv().unwrap() {
            Err(CommitError::Refused(found)) => assert_eq!(found, refusal),
            other => panic!("both won: {other:?}"),
        }
        let loaded = host.view().load(process.row()).unwrap().unwrap();
        assert_eq!(loaded.state.terminal(), Some(state));
    }
    host.assert_clean();
    host.store.close().unwrap();
}

#[test]
fn l1_in_a_shared_store_a_second_host_takes_over_a_lapsed_lease_and_the_revenant_is_refused() {
    let ground = Ground::shared();
    let one = ground.open();
    let two = ground.open_at(one.clock.clone());
    assert!(two.store.epoch() > one.store.epoch());
    let (first, second) = (one.owner(), two.owner());
    let mut process = one.start(request("p"));
    let held = one.begin(&mut process, first);
    let mut taker = reloaded(&two, &process);
    let token = two.store.next_token().unwrap();
    let conditions = vec![free(&taker), taker.at(), live(second)];
    let take = taker.begins(&two, second, token);
    // L5: the later epoch of the second host proves nothing about the first one.
    assert_eq!(
        two.refused(conditions.clone(), vec![take.clone()]),
        Refusal::Leased
    );
    one.clock.advance(TTL_MS);
    two.heartbeat(second);
    let bystander = vec![two.beat(OwnerNumber(77))];
    assert_eq!(two.refused(vec![gone(&taker)], bystander), Refusal::Leased);
    two.ok(conditions, vec![take]);
    let fenced = vec![process.token(held)];
    let late = outcome(&one, &mut process, held);
    assert_eq!(one.refused(fenced, vec![late]), Refusal::Superseded);
    assert_eq!(
        one.refused(vec![live(first)], vec![one.beat(first)]),
        Refusal::OwnerLapsed
    );
    let done = vec![taker.token(token), taker.at(), live(second)];
    let outcome = outcome(&two, &mut taker, token);
    two.ok(done, vec![outcome]);
    // Both see the one outcome.
    for host in [&one, &two] {
        let loaded = host.view().process("p").unwrap().unwrap();
        assert_eq!(loaded.state.terminal(), Some(TerminalState::Completed));
        assert_eq!(loaded.state.attempt, 2);
        host.assert_clean();
    }
}

held_by_both!(
    l1_a_live_lease_is_not_taken_and_a_lapsed_one_is,
    l5_a_lapse_is_no_proof_but_retirement_is,
    l3_only_the_current_token_writes,
    l2_a_token_rises_across_release_and_passing,
    l2_tokens_and_incarnations_rise_across_prune_and_restart,
    l4_a_lapsed_heartbeat_is_not_revived,
    l8_an_owner_of_an_earlier_epoch_writes_nothing,
    l5_an_owner_is_forgotten_on_proof_only,
    l6_no_clock_breaks_fencing,
    l6_a_store_gets_no_younger,
    a4_of_completion_and_abandonment_one_wins_and_the_other_learns_it,
);
