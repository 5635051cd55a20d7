//! What `decide` does, as a table and as laws over it.

mod cases;
mod table;

use super::decide::{Command, Decision, Facts, Finisher, LeaseChange, apply_drafts, decide};
use super::error::{Error, Result};
use super::event::{CompletionAuthority, EventBody, RuntimeEvent, TerminalAuthority};
use super::output::{AbandonProof, AbandonWriter, ProcessAwaitOutput, TerminalState};
use super::record::{ProcessState, Writer};
use super::request::RecoveryDisposition::{OwnerBound, Rerunnable};
use super::testing::{abandoned, failure, registration, scope, token};
use cases::{CLAIM, Column, HOLDER, Outcome, Row, later, outcome};
use table::table;

/// What a decision says, in the words of the table, and the types of its events.
fn describe(decision: &Result<Decision>) -> (String, Vec<&str>) {
    let cell = match decision {
        Ok(Decision::Commit { events, lease }) => {
            let types: Vec<&str> = events
                .iter()
                .map(|event| event.event_type.as_str())
                .collect();
            let cancels = types.last() == Some(&"process.cancelled");
            let cell = match (lease, types.len()) {
                (LeaseChange::Keep, 1) => "+",
                (LeaseChange::Acquire(by), 1) if *by == token(CLAIM) => "+A",
                (LeaseChange::Release, 1) => "+R",
                (LeaseChange::Pass(by), 1) if *by == token(CLAIM) => "+P",
                (LeaseChange::Pass(by), 2) if *by == token(CLAIM) && cancels => "2P",
                (
                    LeaseChange::Keep
                    | LeaseChange::Release
                    | LeaseChange::Acquire(_)
                    | LeaseChange::Pass(_),
                    _,
                ) => "a commit that the table has no word for",
            };
            return (cell.to_owned(), types);
        }
        Ok(Decision::Replayed { sequence: 1 }) => "r",
        Ok(Decision::Replayed { .. }) => "another event",
        Ok(Decision::Unchanged) => "=",
        Err(Error::AlreadyTerminal { .. }) => "T",
        Err(Error::Superseded { .. }) => "S",
        Err(Error::Conflict { .. }) => "C",
        Err(Error::InvalidInput { .. }) => "I",
        Err(other) => return (other.to_string(), Vec::new()),
    };
    (cell.to_owned(), Vec::new())
}

#[test]
fn every_state_and_command_does_what_the_table_says() {
    let mut wrong = Vec::new();
    for ((row, column), wanted) in table() {
        let outcome = outcome(row, column);
        let (found, types) = describe(&outcome.decision);
        let (cell, events): (&str, Vec<&str>) = match wanted {
            "2P" => ("2P", vec!["process.cancel_requested", "process.cancelled"]),
            "1P" => ("+P", vec!["process.cancelled"]),
            "+" | "+A" | "+R" | "+P" => (wanted, vec![outcome.event_type]),
            other => (other, Vec::new()),
        };
        if found != cell || types != events {
            wrong.push(format!(
                "{row:?} × {column:?}: {wanted}, but {found} {types:?}: {:?}",
                outcome.decision.as_ref().err().map(ToString::to_string)
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Fails to compile when a command, a finisher or a writer is added, so that it gets its columns.
#[test]
fn the_table_has_every_command_writer_and_finisher() {
    fn kind(command: &Command) -> &'static str {
        match command {
            Command::Append { writer, .. } => match writer {
                Writer::Host => "append by host",
                Writer::Owner(_) => "append by owner",
            },
            Command::RequestCancel { .. } => "cancel",
            Command::RequestAbandon { .. } => "abandon",
            Command::SetExternalRef { .. } => "reference",
            Command::Begin { .. } => "begin",
            Command::BeginWait { .. } => "begin wait",
            Command::EndWait { .. } => "end wait",
            Command::ScheduleRetry { .. } => "retry",
            Command::LoseOwner { .. } => "owner lost",
            Command::Finish { finisher, .. } => match finisher {
                Finisher::Owner(_) => "finish by owner",
                Finisher::Claim(_) => "finish by claim",
                Finisher::Authority(CompletionAuthority::ExternalOwner { .. }) => "by external",
                Finisher::Authority(CompletionAuthority::Host { .. }) => "by host",
                Finisher::Authority(CompletionAuthority::ReconciledAbandon) => "by reaper",
            },
        }
    }
    let of = registration(Rerunnable);
    let mut found: Vec<&str> = Column::ALL
        .iter()
        .map(|column| kind(&column.build(&of).0))
        .collect();
    found.sort_unstable();
    found.dedup();
    assert_eq!(found.len(), 15, "{found:?}");
}

/// The states that a command can lead to, with what it committed.
fn commits() -> impl Iterator<Item = (Row, Column, Outcome, ProcessState)> {
    table().into_keys().filter_map(|(row, column)| {
        let outcome = outcome(row, column);
        let Ok(Decision::Commit { events, .. }) = &outcome.decision else {
            return None;
        };
        let mut after = outcome.state.clone();
        apply_drafts(&outcome.registration, &mut after, events, 8_000)
            .unwrap_or_else(|error| panic!("{row:?} × {column:?}: {error}"));
        Some((row, column, outcome, after))
    })
}

#[test]
fn p1_whatever_is_decided_can_be_applied() {
    let count = commits().count();
    // Counted in the table by hand would be counting cells; that there are many is enough.
    assert!(count > 200, "{count}");
}

#[test]
fn p2_exactly_one_terminal_event_and_nothing_after_it() {
    for (row, column, outcome, after) in commits() {
        if after.terminal().is_none() {
            continue;
        }
        assert!(outcome.state.terminal().is_none(), "{row:?} × {column:?}");
        for next in Column::ALL {
            let (command, replayed, _) = next.build(&outcome.registration);
            let facts = Facts {
                store_age_ms: None,
                replayed,
                holder: Some(token(HOLDER)),
                claim: Some(token(CLAIM)),
            };
            let then = decide(&outcome.registration, &after, command, facts);
            assert!(
                !matches!(then, Ok(Decision::Commit { .. })),
                "{row:?} × {column:?}, then {next:?}: {then:?}"
            );
        }
    }
}

#[test]
fn p3_replays_answer_in_every_state_terminal_or_not() {
    for row in Row::ALL {
        for column in [Column::host_again, Column::signal_again] {
            assert_eq!(
                outcome(*row, column).decision,
                Ok(Decision::Replayed { sequence: 1 }),
                "{row:?} × {column:?}"
            );
        }
        for (column, what) in [
            (Column::host_other, "replay key \"k\""),
            (Column::signal_other, "signal go/sig-1"),
        ] {
            assert_eq!(
                outcome(*row, column).decision,
                Err(Error::Conflict {
                    process_id: "p-1".into(),
                    what: what.into()
                }),
                "{row:?} × {column:?}"
            );
        }
    }
}

#[test]
fn p6_a_started_owner_bound_process_is_never_begun_again() {
    for row in Row::ALL {
        let (registration, state, _) = row.build();
        if registration.disposition != OwnerBound || state.attempt == 0 {
            continue;
        }
        for column in [
            Column::first,
            Column::retry,
            Column::recovery,
            Column::released,
        ] {
            assert!(
                outcome(*row, column).decision.is_err(),
                "{row:?} × {column:?}"
            );
        }
    }
}

#[test]
fn a1_a_request_to_abandon_ends_nothing_and_the_first_one_stays() {
    for (row, column, _, after) in commits() {
        if column == Column::abandon {
            assert_eq!(after.terminal(), None, "{row:?}");
            let request = after.abandon_request.unwrap();
            assert_eq!(request.requested_by, "somebody else");
            assert_eq!(request.requested_at_ms, 8_000);
        }
    }
    for row in [
        Row::RerunLiveAbandon,
        Row::BoundLostAbandon,
        Row::ExternalAbandon,
    ] {
        assert_eq!(
            outcome(row, Column::abandon).decision,
            Ok(Decision::Unchanged)
        );
    }
    // While its lease lives, not even the reaper can end it.
    for row in [Row::RerunLiveAbandon, Row::BoundLiveAbandon] {
        assert!(matches!(
            outcome(row, Column::c_request).decision,
            Err(Error::Superseded { token: CLAIM, .. })
        ));
    }
}

/// The authority on the terminal event of a cell.
fn authority(row: Row, column: Column) -> TerminalAuthority {
    let Ok(Decision::Commit { mut events, .. }) = outcome(row, column).decision else {
        panic!("{row:?} × {column:?} commits nothing");
    };
    let EventBody::Runtime(
        RuntimeEvent::Completed { authority, .. }
        | RuntimeEvent::Failed { authority, .. }
        | RuntimeEvent::Cancelled { authority, .. }
        | RuntimeEvent::Abandoned { authority, .. },
    ) = events.pop().unwrap().body
    else {
        panic!("{row:?} × {column:?} does not end the process");
    };
    authority
}

#[test]
fn a2_the_terminal_event_says_by_what_authority_it_was_written() {
    let lease = |number| TerminalAuthority::Lease {
        fencing_token: token(number),
    };
    let by_host = TerminalAuthority::Host { by: "ops".into() };
    let by_external = TerminalAuthority::ExternalOwner {
        granted_to: scope(),
    };
    for (row, column, wanted) in [
        (Row::RerunLive, Column::success, lease(HOLDER)),
        (Row::BoundLive, Column::drain, lease(HOLDER)),
        (Row::RerunLost, Column::c_fail, lease(CLAIM)),
        (Row::RerunNewCancel, Column::c_cancelled, lease(CLAIM)),
        (Row::RerunNew, Column::cancel, lease(CLAIM)),
        (
            Row::BoundLost,
            Column::c_sweep,
            TerminalAuthority::ReconciledAbandon,
        ),
        (
            Row::RerunLostAbandon,
            Column::c_request,
            TerminalAuthority::ReconciledAbandon,
        ),
        (
            Row::ExternalAbandon,
            Column::r_request,
            TerminalAuthority::ReconciledAbandon,
        ),
        (Row::ExternalNew, Column::x_success, by_external),
        (Row::ExternalNew, Column::h_success, by_host),
    ] {
        assert_eq!(authority(row, column), wanted, "{row:?} × {column:?}");
    }
}

#[test]
fn a3_whoever_ends_a_lost_process_fences_its_owner() {
    let (registration, state, _) = Row::RerunLost.build();
    // A token that does not rise above the last holder's would not fence it (L2).
    let facts = Facts {
        store_age_ms: None,
        holder: Some(token(HOLDER)),
        claim: Some(token(HOLDER)),
        ..Facts::default()
    };
    let command = Command::Finish {
        output: failure(),
        finisher: Finisher::Claim(token(HOLDER)),
    };
    assert!(matches!(
        decide(&registration, &state, command, facts),
        Err(Error::Superseded { token: HOLDER, .. })
    ));
}

#[test]
fn a4_when_two_outcomes_race_the_second_learns_which_one_won() {
    for (row, status) in [
        (Row::Completed, TerminalState::Completed),
        (Row::Failed, TerminalState::Failed),
        (Row::Cancelled, TerminalState::Cancelled),
        (Row::Abandoned, TerminalState::Abandoned),
    ] {
        for column in [
            Column::success,
            Column::c_sweep,
            Column::x_success,
            Column::abandon,
        ] {
            assert_eq!(
                outcome(row, column).decision,
                Err(Error::AlreadyTerminal {
                    process_id: "p-1".into(),
                    status
                }),
                "{row:?} × {column:?}"
            );
        }
    }
}

#[test]
fn a_cancel_keeps_the_first_request() {
    let after = commits()
        .find(|(row, column, ..)| *row == Row::RerunNewCancel && *column == Column::cancel)
        .unwrap()
        .3;
    assert_eq!(after.cancel_request.unwrap().requested_at_ms, 3_000);
}

#[test]
fn a_cancelled_queue_entry_says_that_it_never_ran() {
    for (row, message) in [
        (Row::RerunNew, "cancelled before it was started"),
        (Row::BoundNew, "cancelled before it was started"),
        (Row::RerunBackingOff, "cancelled between two attempts"),
    ] {
        let after = commits()
            .find(|(found, column, ..)| *found == row && *column == Column::cancel)
            .unwrap()
            .3;
        assert_eq!(
            after.status.output(),
            Some(&ProcessAwaitOutput::Cancelled {
                message: message.into(),
                raw: None
            })
        );
    }
}

#[test]
fn retries_end_where_the_policy_says() {
    let (registration, mut state, _) = Row::RerunLive.build();
    let facts = Facts {
        store_age_ms: None,
        holder: Some(token(HOLDER)),
        ..Facts::default()
    };
    // Three attempts: two retries.
    for (retries, allowed) in [(0, true), (1, true), (2, false), (3, false)] {
        state.retries = retries;
        let found = decide(&registration, &state, later(HOLDER).0, facts);
        assert_eq!(found.is_ok(), allowed, "{retries}: {found:?}");
    }
}

#[test]
fn a2_evidence_is_that_of_whoever_writes_it() {
    use AbandonProof::{Drain, Lapse, StoreEpoch, Unowned};
    use AbandonWriter::{OwnerDrain, ReconciledRequest, Sweep};

    // Who may write what: the owner of a live lease; the reaper, where it lost its owner and an
    // abandonment was asked for; and the reaper about what is executed elsewhere.
    let table = [
        (OwnerDrain, Drain, [true, false, false]),
        (OwnerDrain, StoreEpoch, [false, false, false]),
        (OwnerDrain, Lapse, [false, false, false]),
        (OwnerDrain, Unowned, [false, false, false]),
        (Sweep, Drain, [false, false, false]),
        (Sweep, StoreEpoch, [false, true, false]),
        (Sweep, Lapse, [false, false, false]),
        (Sweep, Unowned, [false, true, false]),
        (ReconciledRequest, Drain, [false, false, false]),
        (ReconciledRequest, StoreEpoch, [false, true, true]),
        (ReconciledRequest, Lapse, [false, true, true]),
        (ReconciledRequest, Unowned, [false, true, true]),
    ];
    let by_reaper = Finisher::Authority(CompletionAuthority::ReconciledAbandon);
    for (writer, proof, allowed) in table {
        for ((row, holder, claim, finisher), allowed) in [
            (
                Row::BoundLiveAbandon,
                Some(HOLDER),
                None,
                Finisher::Owner(token(HOLDER)),
            ),
            (
                Row::BoundLostAbandon,
                Some(HOLDER),
                Some(CLAIM),
                Finisher::Claim(token(CLAIM)),
            ),
            (Row::ExternalAbandon, None, None, by_reaper.clone()),
        ]
        .into_iter()
        .zip(allowed)
        {
            let (registration, state, _) = row.build();
            let facts = Facts {
                store_age_ms: None,
                replayed: None,
                holder: holder.map(token),
                claim: claim.map(token),
            };
            let output = abandoned(writer, proof);
            let command = Command::Finish { output, finisher };
            let found = decide(&registration, &state, command, facts);
            assert_eq!(
                found.is_ok(),
                allowed,
                "{row:?}: {writer:?} {proof:?}: {found:?}"
            );
        }
    }
}

#[test]
fn p4_a_refused_command_changes_no_byte() {
    for row in Row::ALL {
        for column in Column::ALL {
            let outcome = outcome(*row, *column);
            if outcome.decision.is_err() {
                assert_eq!(outcome.state, row.build().1, "{row:?} × {column:?}");
            }
        }
    }
}
