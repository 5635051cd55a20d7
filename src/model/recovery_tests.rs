//! The table of SPEC §3.8, every row and column, by hand.

use std::time::Duration;

use super::event::StartReason;
use super::lease::OwnerStanding;
use super::output::{AbandonProof, AbandonWriter, ProcessAwaitOutput};
use super::record::{ProcessState, Registration};
use super::recovery::{
    LeaseStanding, LeaveReason, RecoveryAction, RecoveryFacts, recover, time_left_ms,
};
use super::request::RecoveryDisposition::{self, ExternallyOwned, OwnerBound, Rerunnable};
use super::testing::{State, abandoned, cancelled, failure, registration};

const FREE: LeaseStanding = LeaseStanding::Free;
const LIVE: LeaseStanding = LeaseStanding::Held(OwnerStanding::Live);
const LAPSED: LeaseStanding = LeaseStanding::Held(OwnerStanding::Lapsed);
const DEAD: LeaseStanding = LeaseStanding::Held(OwnerStanding::Dead);

const FIRST: RecoveryAction = RecoveryAction::Queue {
    reason: StartReason::First,
    not_before_ms: 0,
};
/// The loss is recorded first.
const LAPSED_LOSS: RecoveryAction = RecoveryAction::Release {
    proof: AbandonProof::Lapse,
};
const DEAD_LOSS: RecoveryAction = RecoveryAction::Release {
    proof: AbandonProof::StoreEpoch,
};
const AFTER_LOSS: RecoveryAction = RecoveryAction::Queue {
    reason: StartReason::Recovery,
    not_before_ms: 0,
};
const AFTER_SHUTDOWN: RecoveryAction = RecoveryAction::Queue {
    reason: StartReason::Released,
    not_before_ms: 0,
};
/// The pause of the fixture ends at 9,000.
const AFTER_PAUSE: RecoveryAction = RecoveryAction::Queue {
    reason: StartReason::Retry,
    not_before_ms: 9_000,
};

const fn leave(reason: LeaveReason) -> RecoveryAction {
    RecoveryAction::Leave(reason)
}

const LEASED: RecoveryAction = leave(LeaveReason::Leased);
const EXTERNAL: RecoveryAction = leave(LeaveReason::ExternallyOwned);
const STALE: RecoveryAction = leave(LeaveReason::Stale);
const NO_ENGINE: RecoveryAction = leave(LeaveReason::UnregisteredEngine);
const ENDED: RecoveryAction = leave(LeaveReason::Terminal);
const CANCEL: RecoveryAction = RecoveryAction::Cancel;

const fn requested(proof: AbandonProof) -> RecoveryAction {
    RecoveryAction::Abandon {
        writer: AbandonWriter::ReconciledRequest,
        proof,
    }
}

const fn swept(proof: AbandonProof) -> RecoveryAction {
    RecoveryAction::Abandon {
        writer: AbandonWriter::Sweep,
        proof,
    }
}

const UNOWNED: AbandonProof = AbandonProof::Unowned;
const LAPSE: AbandonProof = AbandonProof::Lapse;
const EPOCH: AbandonProof = AbandonProof::StoreEpoch;

fn ask(
    registration: &Registration,
    state: &ProcessState,
    lease: LeaseStanding,
    engine_registered: bool,
) -> RecoveryAction {
    let facts = RecoveryFacts {
        lease,
        engine_registered,
        started_for_ms: 3_000,
        pause_ends_ms: state.retry_pause.as_ref().map_or(0, |it| it.retry_at_ms),
    };
    recover(registration, state, facts)
}

/// One row: what is to be done with a free, a live, a lapsed and a dead lease.
type Row = (
    &'static str,
    RecoveryDisposition,
    State,
    [RecoveryAction; 4],
);

fn new() -> State {
    State::fresh()
}

fn started() -> State {
    State::fresh().started()
}

fn rows() -> Vec<Row> {
    let request = [
        requested(UNOWNED),
        LEASED,
        requested(LAPSE),
        requested(EPOCH),
    ];
    vec![
        // Any: a request to abandon comes before everything but a live lease.
        ("new, abandon", Rerunnable, new().abandon_asked(), request),
        (
            "started, abandon",
            Rerunnable,
            started().abandon_asked(),
            request,
        ),
        (
            "pause, abandon",
            Rerunnable,
            started().backing_off().abandon_asked(),
            request,
        ),
        (
            "both asked",
            Rerunnable,
            started().cancel_asked().abandon_asked(),
            request,
        ),
        ("new, abandon", OwnerBound, new().abandon_asked(), request),
        (
            "started, abandon",
            OwnerBound,
            started().abandon_asked(),
            request,
        ),
        (
            "both asked",
            OwnerBound,
            started().cancel_asked().abandon_asked(),
            request,
        ),
        ("abandon", ExternallyOwned, new().abandon_asked(), request),
        // Rerunnable: run, again if need be.
        ("new", Rerunnable, new(), [FIRST, LEASED, FIRST, FIRST]),
        (
            "started",
            Rerunnable,
            started(),
            [AFTER_SHUTDOWN, LEASED, LAPSED_LOSS, DEAD_LOSS],
        ),
        (
            "waiting",
            Rerunnable,
            started().waiting(),
            [AFTER_SHUTDOWN, LEASED, LAPSED_LOSS, DEAD_LOSS],
        ),
        (
            "pause",
            Rerunnable,
            started().backing_off(),
            [AFTER_PAUSE, LEASED, AFTER_PAUSE, AFTER_PAUSE],
        ),
        (
            "loss recorded",
            Rerunnable,
            started().owner_lost(),
            [AFTER_LOSS, LEASED, AFTER_LOSS, AFTER_LOSS],
        ),
        (
            "loss recorded, cancel",
            Rerunnable,
            started().owner_lost().cancel_asked(),
            [CANCEL, LEASED, CANCEL, CANCEL],
        ),
        (
            "new, cancel",
            Rerunnable,
            new().cancel_asked(),
            [CANCEL, LEASED, CANCEL, CANCEL],
        ),
        (
            "started, cancel",
            Rerunnable,
            started().cancel_asked(),
            [CANCEL, LEASED, CANCEL, CANCEL],
        ),
        // OwnerBound: run once, and never again.
        ("new", OwnerBound, new(), [FIRST, LEASED, FIRST, FIRST]),
        (
            "new, cancel",
            OwnerBound,
            new().cancel_asked(),
            [CANCEL, LEASED, CANCEL, CANCEL],
        ),
        (
            "started",
            OwnerBound,
            started(),
            [swept(UNOWNED), LEASED, STALE, swept(EPOCH)],
        ),
        (
            "waiting",
            OwnerBound,
            started().waiting(),
            [swept(UNOWNED), LEASED, STALE, swept(EPOCH)],
        ),
        // That it was asked to stop does not say that it did.
        (
            "started, cancel",
            OwnerBound,
            started().cancel_asked(),
            [swept(UNOWNED), LEASED, STALE, swept(EPOCH)],
        ),
        // ExternallyOwned: nothing without a request.
        (
            "new",
            ExternallyOwned,
            new(),
            [EXTERNAL, LEASED, EXTERNAL, EXTERNAL],
        ),
        (
            "cancel",
            ExternallyOwned,
            new().cancel_asked(),
            [EXTERNAL, LEASED, EXTERNAL, EXTERNAL],
        ),
        // Ended: nothing at all.
        (
            "completed",
            Rerunnable,
            started().ended(ProcessAwaitOutput::success(1)),
            [ENDED; 4],
        ),
        (
            "failed",
            Rerunnable,
            started().abandon_asked().ended(failure()),
            [ENDED; 4],
        ),
        (
            "cancelled",
            OwnerBound,
            new().cancel_asked().ended(cancelled()),
            [ENDED; 4],
        ),
        (
            "abandoned",
            ExternallyOwned,
            new().ended(abandoned(AbandonWriter::ReconciledRequest, UNOWNED)),
            [ENDED; 4],
        ),
    ]
}

#[test]
fn the_reaper_does_what_the_table_of_the_contract_says() {
    for (name, disposition, state, wanted) in rows() {
        let registration = registration(disposition);
        for (lease, action) in [FREE, LIVE, LAPSED, DEAD].into_iter().zip(wanted) {
            let found = ask(&registration, &state.0, lease, true);
            assert_eq!(found, action, "{disposition:?} {name}, lease {lease:?}");
        }
    }
}

#[test]
fn without_its_engine_a_process_is_neither_claimed_nor_ended_unless_somebody_asked_for_it() {
    for (name, disposition, state, wanted) in rows() {
        let registration = registration(disposition);
        for (lease, action) in [FREE, LIVE, LAPSED, DEAD].into_iter().zip(wanted) {
            // What would have been queued, or ended by nobody's wish, stays where it is.
            let asked = state.0.cancel_request.is_some() || state.0.abandon_request.is_some();
            let started_bound = disposition == OwnerBound && state.0.attempt > 0;
            let expected = match action {
                RecoveryAction::Queue { .. } | RecoveryAction::Release { .. } => NO_ENGINE,
                RecoveryAction::Abandon { .. } if !asked => NO_ENGINE,
                STALE if started_bound && !asked => NO_ENGINE,
                RecoveryAction::Leave(_)
                | RecoveryAction::Abandon { .. }
                | RecoveryAction::Cancel
                | RecoveryAction::ExhaustRecoveries
                | RecoveryAction::TimeOut => action,
            };
            let found = ask(&registration, &state.0, lease, false);
            assert_eq!(found, expected, "{disposition:?} {name}, lease {lease:?}");
        }
    }
    // Nor is it ended for what only its engine could have prevented.
    let mut registration = registration(Rerunnable);
    registration.retry.recoveries_max = 0;
    registration.timeout = Some(Duration::from_millis(1));
    assert_eq!(ask(&registration, &started().0, DEAD, false), NO_ENGINE);
}

#[test]
fn p6_no_owner_bound_process_is_queued_twice() {
    for state in [started(), started().waiting(), started().cancel_asked()] {
        for lease in [FREE, LIVE, LAPSED, DEAD] {
            let found = ask(&registration(OwnerBound), &state.0, lease, true);
            assert!(
                !matches!(found, RecoveryAction::Queue { .. }),
                "{lease:?}: {found:?}"
            );
        }
    }
}

#[test]
fn l5_a_lapse_alone_ends_no_owner_bound_process() {
    let found = ask(&registration(OwnerBound), &started().0, LAPSED, true);
    assert_eq!(found, STALE);
}

#[test]
fn an_owner_is_lost_so_often_and_no_more() {
    let mut registration = registration(Rerunnable);
    for (recoveries_max, recoveries, wanted) in [
        (0, 0, RecoveryAction::ExhaustRecoveries),
        (1, 0, DEAD_LOSS),
        (1, 1, RecoveryAction::ExhaustRecoveries),
        (16, 15, DEAD_LOSS),
        (16, 16, RecoveryAction::ExhaustRecoveries),
        (16, 17, RecoveryAction::ExhaustRecoveries),
    ] {
        registration.retry.recoveries_max = recoveries_max;
        let mut state = started().0;
        state.recoveries = recoveries;
        let found = ask(&registration, &state, DEAD, true);
        assert_eq!(found, wanted, "{recoveries} of {recoveries_max}");
        let found = ask(&registration, &state, LAPSED, true);
        let again = wanted != RecoveryAction::ExhaustRecoveries;
        assert_eq!(found, if again { LAPSED_LOSS } else { wanted });
        // What was recorded is counted already.
        let lost = State(state.clone()).owner_lost().0;
        assert_eq!(ask(&registration, &lost, FREE, true), AFTER_LOSS);
        // A graceful shutdown counts against nothing.
        assert_eq!(ask(&registration, &state, FREE, true), AFTER_SHUTDOWN);
    }
}

#[test]
fn a_time_limit_counts_from_the_first_start() {
    let mut registration = registration(Rerunnable);
    // Asked when it has been started for 3,000 ms.
    for (timeout_ms, passed) in [(2_999, true), (3_000, true), (3_001, false)] {
        registration.timeout = Some(Duration::from_millis(timeout_ms));
        let left = time_left_ms(&registration, &started().0, 1_000);
        assert_eq!(left, Some(timeout_ms - 1_000));
        let mut wanted = [AFTER_SHUTDOWN, LEASED, LAPSED_LOSS, DEAD_LOSS];
        if passed {
            wanted = [RecoveryAction::TimeOut; 4];
            wanted[1] = LEASED;
        }
        for (lease, action) in [FREE, LIVE, LAPSED, DEAD].into_iter().zip(wanted) {
            assert_eq!(
                ask(&registration, &started().0, lease, true),
                action,
                "{timeout_ms}"
            );
        }
        let paused = started().backing_off().0;
        let wanted = if passed {
            RecoveryAction::TimeOut
        } else {
            AFTER_PAUSE
        };
        assert_eq!(
            ask(&registration, &paused, FREE, true),
            wanted,
            "{timeout_ms}"
        );
    }
    // What only waits in the queue has all its time before it.
    registration.timeout = Some(Duration::from_millis(1));
    assert_eq!(time_left_ms(&registration, &new().0, 0), None);
    assert_eq!(ask(&registration, &new().0, FREE, true), FIRST);
    // A limit past the end of time never passes.
    registration.timeout = Some(Duration::MAX);
    let left = time_left_ms(&registration, &started().0, 0);
    assert_eq!(left, Some(u64::MAX));
    // Time is no proof: an owner-bound process whose limit has passed is left to its owner.
    let mut bound = registration.clone();
    bound.disposition = OwnerBound;
    bound.timeout = Some(Duration::from_millis(1));
    assert_eq!(ask(&bound, &started().0, LAPSED, true), STALE);
}

#[test]
fn whatever_the_reaper_decides_can_be_written() {
    use super::decide::{Command, Decision, Facts, Finisher, decide};
    use super::event::CompletionAuthority;
    use super::testing::{owner, token};

    for (name, disposition, state, _) in rows() {
        let registration = registration(disposition);
        for lease in [FREE, LAPSED, DEAD] {
            let found = ask(&registration, &state.0, lease, true);
            let output = match found {
                RecoveryAction::Leave(_) => continue,
                RecoveryAction::Release { .. } => Err(StartReason::Recovery),
                RecoveryAction::Queue { reason, .. } => Err(reason),
                RecoveryAction::Abandon { writer, proof } => Ok(abandoned(writer, proof)),
                RecoveryAction::Cancel => Ok(cancelled()),
                RecoveryAction::ExhaustRecoveries | RecoveryAction::TimeOut => Ok(failure()),
            };
            let command = match output {
                Err(_) if matches!(found, RecoveryAction::Release { .. }) => Command::LoseOwner {
                    owner: Some(owner()),
                    token: token(9),
                    proof: AbandonProof::StoreEpoch,
                    survivors: None,
                },
                Err(reason) => Command::Begin {
                    owner: owner(),
                    token: token(9),
                    reason,
                },
                Ok(output) => Command::Finish {
                    output,
                    finisher: if disposition == ExternallyOwned {
                        Finisher::Authority(CompletionAuthority::ReconciledAbandon)
                    } else {
                        Finisher::Claim(token(9))
                    },
                },
            };
            let facts = Facts {
                store_age_ms: None,
                replayed: None,
                holder: (lease != FREE).then(|| token(5)),
                claim: Some(token(9)),
            };
            // A lease that is held on a process that never started is a state that cannot be.
            let found = decide(&registration, &state.0, command, facts);
            assert!(
                matches!(found, Ok(Decision::Commit { .. })),
                "{disposition:?} {name}, lease {lease:?}: {found:?}"
            );
        }
    }
}
