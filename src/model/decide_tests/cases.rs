//! The rows and the columns of the table.

use serde_json::json;

use super::super::decide::{
    CheckedEvent, Command, Decision, Facts, Finisher, Replayed, check_event, check_signal, decide,
};
use super::super::error::Result;
use super::super::event::{
    CompletionAuthority, ProcessEventAppendRequest, StartReason, WaitResult,
};
use super::super::json::ContentHash;
use super::super::output::{AbandonProof, AbandonWriter, ProcessAwaitOutput};
use super::super::record::{ProcessState, Registration, Writer};
use super::super::request::RecoveryDisposition::{ExternallyOwned, OwnerBound, Rerunnable};
use super::super::testing::{
    State, abandoned, cancelled, error, failure, owner, registration, scope, token,
};

/// An enum of which every variant is known, by its name too.
macro_rules! table_names {
    ($(#[$doc:meta])* $name:ident { $($variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub(super) enum $name { $($variant),+ }

        impl $name {
            pub(super) const ALL: &[Self] = &[$(Self::$variant),+];

            pub(super) fn named(name: &str) -> Self {
                *Self::ALL
                    .iter()
                    .find(|known| format!("{known:?}") == name)
                    .unwrap_or_else(|| panic!("{name} is not in the table"))
            }
        }
    };
}

table_names! {
    /// Every state that some command tells apart.
    Row {
        RerunNew, RerunLive, RerunWaiting, RerunBackingOff, RerunReleased, RerunLost,
        RerunOwnerLost,
        RerunNewCancel, RerunLiveCancel, RerunLostCancel,
        RerunNewAbandon, RerunLiveAbandon, RerunLostAbandon,
        BoundNew, BoundLive, BoundWaiting, BoundUnowned, BoundLost,
        BoundNewCancel, BoundLiveCancel, BoundLostCancel,
        BoundNewAbandon, BoundLiveAbandon, BoundLostAbandon,
        ExternalNew, ExternalRef, ExternalCancel, ExternalAbandon,
        Completed, Failed, Cancelled, Abandoned, ExternalDoneRef,
    }
}

/// What the lease of a row is like.
pub(super) enum Lease {
    /// Nobody holds it: it can be claimed.
    Free,
    /// It is live.
    Live,
    /// Its holder is gone: it can be claimed.
    Lost,
}

/// The token of whoever holds the lease, where somebody does.
pub(super) const HOLDER: u64 = 5;
/// A token of before.
const STALE: u64 = 4;
/// The token under which a free lease can be claimed.
pub(super) const CLAIM: u64 = 9;
/// A token under which nothing can be claimed.
const OTHER_CLAIM: u64 = 8;

impl Row {
    pub(super) fn build(self) -> (Registration, ProcessState, Lease) {
        let reference = json!("job-1");
        let fresh = State::fresh;
        let started = || State::fresh().started();
        let (disposition, state, lease) = match self {
            Self::RerunNew => (Rerunnable, fresh(), Lease::Free),
            Self::RerunLive => (Rerunnable, started(), Lease::Live),
            Self::RerunWaiting => (Rerunnable, started().waiting(), Lease::Live),
            Self::RerunBackingOff => (Rerunnable, started().backing_off(), Lease::Free),
            Self::RerunReleased => (Rerunnable, started(), Lease::Free),
            Self::RerunLost => (Rerunnable, started(), Lease::Lost),
            Self::RerunOwnerLost => (Rerunnable, started().owner_lost(), Lease::Free),
            Self::RerunNewCancel => (Rerunnable, fresh().cancel_asked(), Lease::Free),
            Self::RerunLiveCancel => (Rerunnable, started().cancel_asked(), Lease::Live),
            Self::RerunLostCancel => (Rerunnable, started().cancel_asked(), Lease::Lost),
            Self::RerunNewAbandon => (Rerunnable, fresh().abandon_asked(), Lease::Free),
            Self::RerunLiveAbandon => (Rerunnable, started().abandon_asked(), Lease::Live),
            Self::RerunLostAbandon => (Rerunnable, started().abandon_asked(), Lease::Lost),
            Self::BoundNew => (OwnerBound, fresh(), Lease::Free),
            Self::BoundLive => (OwnerBound, started(), Lease::Live),
            Self::BoundWaiting => (OwnerBound, started().waiting(), Lease::Live),
            Self::BoundUnowned => (OwnerBound, started(), Lease::Free),
            Self::BoundLost => (OwnerBound, started(), Lease::Lost),
            Self::BoundNewCancel => (OwnerBound, fresh().cancel_asked(), Lease::Free),
            Self::BoundLiveCancel => (OwnerBound, started().cancel_asked(), Lease::Live),
            Self::BoundLostCancel => (OwnerBound, started().cancel_asked(), Lease::Lost),
            Self::BoundNewAbandon => (OwnerBound, fresh().abandon_asked(), Lease::Free),
            Self::BoundLiveAbandon => (OwnerBound, started().abandon_asked(), Lease::Live),
            Self::BoundLostAbandon => (OwnerBound, started().abandon_asked(), Lease::Lost),
            Self::ExternalNew => (ExternallyOwned, fresh(), Lease::Free),
            Self::ExternalRef => (ExternallyOwned, fresh().known_as(&reference), Lease::Free),
            Self::ExternalCancel => (ExternallyOwned, fresh().cancel_asked(), Lease::Free),
            Self::ExternalAbandon => (ExternallyOwned, fresh().abandon_asked(), Lease::Free),
            Self::Completed => {
                let value = ProcessAwaitOutput::success(json!({ "answer": 42 }));
                (Rerunnable, started().ended(value), Lease::Free)
            }
            Self::Failed => (Rerunnable, started().ended(failure()), Lease::Free),
            Self::Cancelled => {
                let state = fresh().cancel_asked().ended(cancelled());
                (OwnerBound, state, Lease::Free)
            }
            Self::Abandoned => {
                let output = abandoned(AbandonWriter::Sweep, AbandonProof::StoreEpoch);
                (OwnerBound, started().ended(output), Lease::Free)
            }
            Self::ExternalDoneRef => {
                let state = fresh().known_as(&reference);
                let done = state.ended(ProcessAwaitOutput::success(json!(1)));
                (ExternallyOwned, done, Lease::Free)
            }
        };
        (registration(disposition), state.0, lease)
    }
}

table_names! {
    #[expect(non_camel_case_types, reason = "they are words of the table")]
    /// Every command, with each kind of writer and fact that some state tells apart.
    Column {
        host, host_again, host_other, host_end, owner, owner_stale, owner_end, signal,
        signal_again, signal_other,
        cancel, abandon, same_ref, other_ref,
        first, retry, recovery, released, unclaimed, lose,
        wait, wait_open, wait_stale, got, timed_out, dropped, end_stale, later, later_stale,
        success, fail, cancelled, drain, own_sweep, own_request, stale,
        c_success, c_fail, c_cancelled, c_sweep, c_lapse, c_request, c_drain, c_other,
        x_success, x_fail, h_success, h_cancelled, h_abandon, r_request, r_sweep, r_success,
    }
}

fn append(registration: &Registration, event_type: &str, replay_key: Option<&str>) -> CheckedEvent {
    let request = ProcessEventAppendRequest::new(event_type, json!({ "percent": 10 }))
        .with_replay_key(replay_key.map(str::to_owned));
    check_event(registration, request).unwrap()
}

fn signal(registration: &Registration) -> CheckedEvent {
    let request = ProcessEventAppendRequest::signal("go", json!({ "percent": 10 }));
    check_signal(registration, "go", "sig-1", request).unwrap()
}

fn replayed(event: &CheckedEvent) -> Option<Replayed> {
    event.replay.as_ref().map(|replay| Replayed {
        sequence: 1,
        content: replay.content,
    })
}

const OTHER_CONTENT: Option<Replayed> = Some(Replayed {
    sequence: 1,
    content: ContentHash([0; 32]),
});

impl Column {
    /// The command, what its replay key stands for already, and the type of the event that it
    /// appends where it appends one.
    pub(super) fn build(self, of: &Registration) -> (Command, Option<Replayed>, &'static str) {
        let by_host = |event, replayed, name| {
            let writer = Writer::Host;
            (Command::Append { event, writer }, replayed, name)
        };
        let by_owner = |event, holder, name| {
            let writer = Writer::Owner(token(holder));
            (Command::Append { event, writer }, None, name)
        };
        match self {
            Self::host => by_host(append(of, "progress", None), None, "progress"),
            Self::host_again => {
                let event = append(of, "progress", Some("k"));
                let known = replayed(&event);
                by_host(event, known, "progress")
            }
            Self::host_other => {
                by_host(append(of, "progress", Some("k")), OTHER_CONTENT, "progress")
            }
            Self::host_end => by_host(append(of, "done", None), None, "done"),
            Self::owner => by_owner(append(of, "progress", None), HOLDER, "progress"),
            Self::owner_stale => by_owner(append(of, "progress", None), STALE, "progress"),
            Self::owner_end => by_owner(append(of, "done", None), HOLDER, "done"),
            Self::signal => by_host(signal(of), None, "signal.go"),
            Self::signal_again => {
                let event = signal(of);
                let known = replayed(&event);
                by_host(event, known, "signal.go")
            }
            Self::signal_other => by_host(signal(of), OTHER_CONTENT, "signal.go"),
            Self::cancel => {
                let requested_by = Some("ops".to_owned());
                let command = Command::RequestCancel { requested_by };
                (command, None, "process.cancel_requested")
            }
            Self::abandon => {
                let command = Command::RequestAbandon {
                    requested_by: "somebody else".to_owned(),
                    reason: Some("gone".to_owned()),
                };
                (command, None, "process.abandon_requested")
            }
            Self::same_ref => reference("job-1"),
            Self::other_ref => reference("job-2"),
            Self::first => begin(CLAIM, StartReason::First),
            Self::retry => begin(CLAIM, StartReason::Retry),
            Self::recovery => begin(CLAIM, StartReason::Recovery),
            Self::released => begin(CLAIM, StartReason::Released),
            Self::unclaimed => begin(OTHER_CLAIM, StartReason::First),
            Self::lose => {
                let command = Command::LoseOwner {
                    owner: Some(owner()),
                    token: token(CLAIM),
                    proof: AbandonProof::StoreEpoch,
                    survivors: Some(Vec::new()),
                };
                (command, None, "process.owner_lost")
            }
            Self::wait => begin_wait(HOLDER, 2),
            Self::wait_open => begin_wait(HOLDER, 1),
            Self::wait_stale => begin_wait(STALE, 2),
            Self::got => end_wait(HOLDER, WaitResult::Signal { sequence: 1 }),
            Self::timed_out => end_wait(HOLDER, WaitResult::TimedOut),
            Self::dropped => end_wait(HOLDER, WaitResult::Dropped),
            Self::end_stale => end_wait(STALE, WaitResult::TimedOut),
            Self::later => later(HOLDER),
            Self::later_stale => later(STALE),
            Self::success => by_lease(HOLDER, ProcessAwaitOutput::success(json!(1))),
            Self::fail => by_lease(HOLDER, failure()),
            Self::cancelled => by_lease(HOLDER, cancelled()),
            Self::drain => by_lease(
                HOLDER,
                abandoned(AbandonWriter::OwnerDrain, AbandonProof::Drain),
            ),
            Self::own_sweep => by_lease(
                HOLDER,
                abandoned(AbandonWriter::Sweep, AbandonProof::StoreEpoch),
            ),
            Self::own_request => by_lease(
                HOLDER,
                abandoned(AbandonWriter::ReconciledRequest, AbandonProof::Lapse),
            ),
            Self::stale => by_lease(STALE, ProcessAwaitOutput::success(json!(1))),
            Self::c_success => by_claim(CLAIM, ProcessAwaitOutput::success(json!(1))),
            Self::c_fail => by_claim(CLAIM, failure()),
            Self::c_cancelled => by_claim(CLAIM, cancelled()),
            Self::c_sweep => by_claim(
                CLAIM,
                abandoned(AbandonWriter::Sweep, AbandonProof::StoreEpoch),
            ),
            Self::c_lapse => by_claim(CLAIM, abandoned(AbandonWriter::Sweep, AbandonProof::Lapse)),
            Self::c_request => by_claim(
                CLAIM,
                abandoned(AbandonWriter::ReconciledRequest, AbandonProof::Lapse),
            ),
            Self::c_drain => by_claim(
                CLAIM,
                abandoned(AbandonWriter::OwnerDrain, AbandonProof::Drain),
            ),
            Self::c_other => by_claim(OTHER_CLAIM, failure()),
            Self::x_success => by_external(ProcessAwaitOutput::success(json!(1))),
            Self::x_fail => by_external(failure()),
            Self::h_success => by_the_host(ProcessAwaitOutput::success(json!(1))),
            Self::h_cancelled => by_the_host(cancelled()),
            Self::h_abandon => by_the_host(abandoned(
                AbandonWriter::ReconciledRequest,
                AbandonProof::Unowned,
            )),
            Self::r_request => by_reaper(abandoned(
                AbandonWriter::ReconciledRequest,
                AbandonProof::Unowned,
            )),
            Self::r_sweep => by_reaper(abandoned(AbandonWriter::Sweep, AbandonProof::StoreEpoch)),
            Self::r_success => by_reaper(ProcessAwaitOutput::success(json!(1))),
        }
    }
}

type Built = (Command, Option<Replayed>, &'static str);

fn reference(name: &str) -> Built {
    let reference = json!(name);
    let command = Command::SetExternalRef { reference };
    (command, None, "process.external_ref_set")
}

fn begin(claim: u64, reason: StartReason) -> Built {
    let command = Command::Begin {
        owner: owner(),
        token: token(claim),
        reason,
    };
    (command, None, "process.started")
}

fn begin_wait(holder: u64, number: u64) -> Built {
    let command = Command::BeginWait {
        token: token(holder),
        signal_name: "go".to_owned(),
        number,
        deadline_ms: Some(7_000),
    };
    (command, None, "process.waiting")
}

fn end_wait(holder: u64, result: WaitResult) -> Built {
    let command = Command::EndWait {
        token: token(holder),
        signal_name: "go".to_owned(),
        number: 1,
        result,
    };
    (command, None, "process.resumed")
}

pub(super) fn later(holder: u64) -> Built {
    let command = Command::ScheduleRetry {
        token: token(holder),
        retry_at_ms: 9_000,
        error: error(),
    };
    (command, None, "process.retry_scheduled")
}

fn by(finisher: Finisher, output: ProcessAwaitOutput) -> Built {
    let event_type = match output {
        ProcessAwaitOutput::Success { .. } => "process.completed",
        ProcessAwaitOutput::Failure { .. } => "process.failed",
        ProcessAwaitOutput::Cancelled { .. } => "process.cancelled",
        ProcessAwaitOutput::Abandoned { .. } => "process.abandoned",
    };
    (Command::Finish { output, finisher }, None, event_type)
}

fn by_lease(holder: u64, output: ProcessAwaitOutput) -> Built {
    by(Finisher::Owner(token(holder)), output)
}

fn by_claim(claim: u64, output: ProcessAwaitOutput) -> Built {
    by(Finisher::Claim(token(claim)), output)
}

fn by_external(output: ProcessAwaitOutput) -> Built {
    let granted_to = scope();
    by(
        Finisher::Authority(CompletionAuthority::ExternalOwner { granted_to }),
        output,
    )
}

fn by_the_host(output: ProcessAwaitOutput) -> Built {
    let by_whom = "ops".to_owned();
    by(
        Finisher::Authority(CompletionAuthority::Host { by: by_whom }),
        output,
    )
}

fn by_reaper(output: ProcessAwaitOutput) -> Built {
    by(
        Finisher::Authority(CompletionAuthority::ReconciledAbandon),
        output,
    )
}

pub(super) struct Outcome {
    pub(super) registration: Registration,
    pub(super) state: ProcessState,
    pub(super) decision: Result<Decision>,
    pub(super) event_type: &'static str,
}

pub(super) fn outcome(row: Row, column: Column) -> Outcome {
    let (registration, state, lease) = row.build();
    let (holder, claim) = match lease {
        Lease::Free => (None, Some(CLAIM)),
        Lease::Live => (Some(HOLDER), None),
        Lease::Lost => (Some(HOLDER), Some(CLAIM)),
    };
    let (command, replayed, event_type) = column.build(&registration);
    let facts = Facts {
        store_age_ms: None,
        replayed,
        holder: holder.map(token),
        claim: claim.map(token),
    };
    let decision = decide(&registration, &state, command, facts);
    Outcome {
        registration,
        state,
        decision,
        event_type,
    }
}
