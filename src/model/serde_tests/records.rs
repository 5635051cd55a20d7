//! What callers are shown.

use super::super::effect::{EffectKey, ExecutionScope};
use super::super::event::{
    CompletionAuthority, ObservedProcessEvent, StartReason, TerminalAuthority, WaitResult,
};
use super::super::event_type::MappedState;
use super::super::filter::{Page, PageCursor, StatusFilter};
use super::super::ids::{FencingToken, Incarnation, OwnerNumber, StoreEpoch};
use super::super::json::{ContentHash, Payload};
use super::super::lease::ProcessOwner;
use super::super::observed::{
    Facets, Lifecycle, ObservedLease, ObservedProcess, ProcessWorkItem, ProcessWorkSnapshot,
    QueuedReason,
};
use super::super::output::{
    AbandonEvidence, AbandonProof, AbandonWriter, FailureClass, ProcessAwaitOutput, ProcessError,
    Survivor, TerminalState,
};
use super::super::record::{
    AbandonRequest, CancelRequest, FirstStart, ProcessCancelSummary, ProcessParent,
    ProcessProvenance, ProcessRecord, ProcessStatus, ProcessWait, RetryPause, SignalWait,
};
use super::super::recovery::LeaveReason;
use super::super::request::{ProcessHandleDescriptor, RecoveryDisposition};
use super::super::retention::ProcessPruneReport;
use super::super::scope::{ProcessOriginator, SessionScope};
use super::super::testing::{owner, registration};
use super::{is, is_refused, scope};
use serde_json::{Value, json};

#[test]
fn words_are_snake_case() {
    is(RecoveryDisposition::Rerunnable, json!("rerunnable"));
    is(RecoveryDisposition::OwnerBound, json!("owner_bound"));
    is(
        RecoveryDisposition::ExternallyOwned,
        json!("externally_owned"),
    );
    is(TerminalState::Completed, json!("completed"));
    is(TerminalState::Failed, json!("failed"));
    is(TerminalState::Cancelled, json!("cancelled"));
    is(TerminalState::Abandoned, json!("abandoned"));
    is(FailureClass::Execution, json!("execution"));
    is(FailureClass::Timeout, json!("timeout"));
    is(FailureClass::InvalidInput, json!("invalid_input"));
    is(FailureClass::External, json!("external"));
    is(FailureClass::Internal, json!("internal"));
    is(AbandonWriter::OwnerDrain, json!("owner_drain"));
    is(AbandonWriter::Sweep, json!("sweep"));
    is(
        AbandonWriter::ReconciledRequest,
        json!("reconciled_request"),
    );
    is(AbandonProof::Drain, json!("drain"));
    is(AbandonProof::StoreEpoch, json!("store_epoch"));
    is(AbandonProof::Lapse, json!("lapse"));
    is(AbandonProof::Unowned, json!("unowned"));
    is(StartReason::First, json!("first"));
    is(StartReason::Retry, json!("retry"));
    is(StartReason::Recovery, json!("recovery"));
    is(StartReason::Released, json!("released"));
    is(MappedState::Completed, json!("completed"));
    is(MappedState::Failed, json!("failed"));
    is(MappedState::Cancelled, json!("cancelled"));
    is(Lifecycle::Running, json!("running"));
    is(Lifecycle::Completed, json!("completed"));
    is(Lifecycle::Failed, json!("failed"));
    is(Lifecycle::Cancelled, json!("cancelled"));
    is(Lifecycle::Abandoned, json!("abandoned"));
    is(StatusFilter::Running, json!("running"));
    is(StatusFilter::Completed, json!("completed"));
    is(StatusFilter::Failed, json!("failed"));
    is(StatusFilter::Cancelled, json!("cancelled"));
    is(StatusFilter::Abandoned, json!("abandoned"));
    is(StatusFilter::Terminal, json!("terminal"));
    is(StatusFilter::Any, json!("any"));
    is(LeaveReason::Terminal, json!("terminal"));
    is(LeaveReason::Leased, json!("leased"));
    is(LeaveReason::ExternallyOwned, json!("externally_owned"));
    is(LeaveReason::Stale, json!("stale"));
    is(
        LeaveReason::UnregisteredEngine,
        json!("unregistered_engine"),
    );
}

#[test]
fn numbers_are_plain() {
    is(Incarnation(7), json!(7));
    is(
        FencingToken(u64::MAX),
        json!(18_446_744_073_709_551_615_u64),
    );
    is(StoreEpoch(1), json!(1));
    is(OwnerNumber(1), json!(1));
    is(PageCursor("x".into()), json!("x"));
    is(Payload::from(json!({ "a": [1] })), json!({ "a": [1] }));
    is(ContentHash([0xab; 32]), json!("ab".repeat(32)));
}

#[test]
fn scopes_and_originators() {
    is(scope(), json!({ "session_id": "s-1" }));
    is(
        scope().with_frame("f"),
        json!({ "session_id": "s-1", "agent_frame_id": "f" }),
    );
    is(ProcessOriginator::host(), json!({ "kind": "host" }));
    is(
        ProcessOriginator::host_scope("nightly"),
        json!({ "kind": "host", "scope": "nightly" }),
    );
    is(
        ProcessOriginator::session(scope()),
        json!({ "kind": "session", "scope": { "session_id": "s-1" } }),
    );
    is_refused::<SessionScope>(&json!({ "session_id": "s", "frame": "f" }), "frame");
    is_refused::<SessionScope>(&json!({ "agent_frame_id": "f" }), "session_id");
    is_refused::<ProcessOriginator>(&json!({ "kind": "host", "scop": "f" }), "scop");
    is_refused::<ProcessOriginator>(&json!({ "kind": "guest" }), "guest");
}

#[test]
fn authorities_and_results() {
    is(
        CompletionAuthority::ExternalOwner {
            granted_to: scope(),
        },
        json!({ "kind": "external_owner", "granted_to": { "session_id": "s-1" } }),
    );
    is(
        CompletionAuthority::Host { by: "ops".into() },
        json!({ "kind": "host", "by": "ops" }),
    );
    is(
        CompletionAuthority::ReconciledAbandon,
        json!({ "kind": "reconciled_abandon" }),
    );
    let fencing_token = FencingToken(4);
    is(
        TerminalAuthority::Lease { fencing_token },
        json!({ "kind": "lease", "fencing_token": 4 }),
    );
    is(
        TerminalAuthority::ExternalOwner {
            granted_to: scope(),
        },
        json!({ "kind": "external_owner", "granted_to": { "session_id": "s-1" } }),
    );
    is(
        TerminalAuthority::Host { by: "ops".into() },
        json!({ "kind": "host", "by": "ops" }),
    );
    is(
        TerminalAuthority::ReconciledAbandon,
        json!({ "kind": "reconciled_abandon" }),
    );
    is(
        WaitResult::Signal { sequence: 7 },
        json!({ "result": "signal", "sequence": 7 }),
    );
    is(WaitResult::TimedOut, json!({ "result": "timed_out" }));
    is(WaitResult::Dropped, json!({ "result": "dropped" }));
}

fn evidence() -> AbandonEvidence {
    AbandonEvidence {
        writer: AbandonWriter::Sweep,
        owner: None,
        proof: AbandonProof::StoreEpoch,
        requested_by: None,
        survivors: None,
        epoch_ms: 9,
    }
}

#[test]
fn outcomes() {
    is(
        ProcessAwaitOutput::success(Value::Null),
        json!({ "outcome": "success", "value": null }),
    );
    let failure = |raw| ProcessAwaitOutput::Failure {
        class: FailureClass::Execution,
        code: "exit_status".into(),
        message: "m".into(),
        raw,
    };
    let text = json!({ "outcome": "failure", "class": "execution", "code": "exit_status",
                       "message": "m" });
    is(failure(None), text.clone());
    let mut detailed = text.clone();
    detailed["raw"] = json!({ "exit_code": 3 });
    is(failure(Some(json!({ "exit_code": 3 }))), detailed);
    // A null that the engine gave is something else than nothing.
    let mut null = text;
    null["raw"] = Value::Null;
    is(failure(Some(Value::Null)), null);
    is(
        ProcessAwaitOutput::Cancelled {
            message: "m".into(),
            raw: None,
        },
        json!({ "outcome": "cancelled", "message": "m" }),
    );
    is(
        ProcessAwaitOutput::Cancelled {
            message: "m".into(),
            raw: Some(Value::Null),
        },
        json!({ "outcome": "cancelled", "message": "m", "raw": null }),
    );
    is(
        ProcessAwaitOutput::Abandoned {
            evidence: evidence(),
        },
        json!({ "outcome": "abandoned",
                "evidence": { "writer": "sweep", "proof": "store_epoch", "epoch_ms": 9 } }),
    );
    is(
        AbandonEvidence {
            owner: Some(owner()),
            requested_by: Some("ops".into()),
            survivors: Some(vec![Survivor {
                pid: 7,
                ended: true,
            }]),
            ..evidence()
        },
        json!({ "writer": "sweep", "proof": "store_epoch", "epoch_ms": 9,
                "owner": { "owner_id": "host-a", "incarnation_id": "i-1", "store_epoch": 2 },
                "requested_by": "ops", "survivors": [{ "pid": 7, "ended": true }] }),
    );
    is_refused::<ProcessAwaitOutput>(&json!({ "outcome": "won" }), "won");
}

#[test]
fn statuses_summaries_and_reports() {
    is(ProcessStatus::Running, json!({ "status": "running" }));
    is(
        ProcessCancelSummary {
            process_id: "p".into(),
            status: ProcessStatus::Terminal {
                output: ProcessAwaitOutput::success(1),
            },
        },
        json!({ "process_id": "p", "status": { "status": "terminal",
                "output": { "outcome": "success", "value": 1 } } }),
    );
    is(
        ProcessPruneReport {
            pruned_processes: 1,
            pruned_events: 2,
            grants: 3,
            leases: 4,
            wakes: 5,
            bytes: 6,
        },
        json!({ "pruned_processes": 1, "pruned_events": 2, "grants": 3, "leases": 4, "wakes": 5,
                "bytes": 6 }),
    );
    is(
        ProcessError {
            class: FailureClass::Timeout,
            code: "c".into(),
            message: "m".into(),
        },
        json!({ "class": "timeout", "code": "c", "message": "m" }),
    );
}

#[test]
fn the_parts_of_a_record() {
    is(
        ProcessOwner {
            owner_id: "o".into(),
            incarnation_id: "i".into(),
            store_epoch: StoreEpoch(3),
        },
        json!({ "owner_id": "o", "incarnation_id": "i", "store_epoch": 3 }),
    );
    is(
        ProcessParent {
            process_id: "p".into(),
            incarnation: Incarnation(1),
            key: "k".into(),
            detached: false,
        },
        json!({ "process_id": "p", "incarnation": 1, "key": "k", "detached": false }),
    );
    is(
        ProcessProvenance {
            originator: ProcessOriginator::host(),
            caused_by: None,
            parent: None,
        },
        json!({ "originator": { "kind": "host" } }),
    );
    is(
        CancelRequest {
            requested_by: None,
            requested_at_ms: 1,
        },
        json!({ "requested_at_ms": 1 }),
    );
    is(
        AbandonRequest {
            requested_by: "o".into(),
            reason: None,
            requested_at_ms: 1,
        },
        json!({ "requested_by": "o", "requested_at_ms": 1 }),
    );
    is(
        ProcessWait {
            signals: vec![SignalWait {
                signal_name: "go".into(),
                number: 1,
                since_ms: 2,
                deadline_ms: None,
            }],
        },
        json!({ "signals": [{ "signal_name": "go", "number": 1, "since_ms": 2 }] }),
    );
    is(
        FirstStart {
            at_ms: 1,
            owner: owner(),
        },
        json!({ "at_ms": 1,
                "owner": { "owner_id": "host-a", "incarnation_id": "i-1", "store_epoch": 2 } }),
    );
    is(
        RetryPause {
            retry_at_ms: 1,
            error: ProcessError {
                class: FailureClass::Execution,
                code: "c".into(),
                message: "m".into(),
            },
        },
        json!({ "retry_at_ms": 1, "error": { "class": "execution", "code": "c", "message": "m" } }),
    );
}

#[test]
fn a_fresh_record_leaves_out_what_is_absent() {
    let mut of = registration(RecoveryDisposition::ExternallyOwned);
    of.event_types.clear();
    let state = super::super::record::ProcessState::initial(1_000);
    let record = ProcessRecord::assemble(&of, &state);
    let text = json!({
        "id": "p-1", "incarnation": 3, "registration_hash": "07".repeat(32),
        "input": { "type": "external", "metadata": { "ticket": 7 } },
        "disposition": "externally_owned", "identity": {}, "event_types": [],
        "provenance": { "originator": { "kind": "host" } }, "labels": {}, "priority": 0,
        "retry": { "attempts": 1, "recoveries_max": 16,
                   "backoff": { "initial": "1s", "factor": 2.0, "max": "5m", "jitter": 0.2 } },
        "created_at_ms": 1_000, "updated_at_ms": 1_000, "last_sequence": 0, "attempt": 0,
        "retries": 0, "recoveries": 0, "status": { "status": "running" },
    });
    is(record.clone(), text.clone());
    // An external reference may be null, which is something else than none.
    let known = ProcessRecord {
        external_ref: Some(Value::Null),
        ..record
    };
    let mut with_reference = text;
    with_reference["external_ref"] = Value::Null;
    is(known, with_reference);
}

#[test]
fn observed_processes_and_snapshots() {
    let text = json!({
        "process_id": "p-1", "incarnation": 3, "lifecycle": "running",
        "facets": { "queued": true, "started": false, "waiting": false, "cancel_requested": false,
                    "abandon_requested": false, "backing_off": false },
        "queued_reason": { "reason": "unregistered_engine", "kind": "k" },
        "disposition": "rerunnable", "attempt": 0, "last_sequence": 0, "created_at_ms": 1,
        "updated_at_ms": 1, "originator": { "kind": "host" }, "priority": 0, "labels": {},
        "lease": { "owner": { "owner_id": "host-a", "incarnation_id": "i-1", "store_epoch": 2 },
                   "fencing_token": 5, "expires_at_ms": 9, "live": true },
    });
    let process: ObservedProcess = serde_json::from_value(text.clone()).unwrap();
    assert_eq!(
        process.facets,
        Facets {
            queued: true,
            ..Facets::default()
        }
    );
    assert_eq!(
        process.lease,
        Some(ObservedLease {
            owner: owner(),
            fencing_token: FencingToken(5),
            expires_at_ms: 9,
            live: true,
        })
    );
    is(process.clone(), text.clone());
    is(QueuedReason::Slot, json!({ "reason": "slot" }));
    is(
        QueuedReason::RecoveryOff,
        json!({ "reason": "recovery_off" }),
    );
    let event = ObservedProcessEvent {
        sequence: 1,
        event_type: "e".into(),
        payload: json!(1).into(),
        occurred_at_ms: 2,
    };
    is(
        ProcessWorkSnapshot {
            session_id: "s-1".into(),
            visible_process_ids: vec!["p-1".into()],
            items: vec![ProcessWorkItem {
                process,
                descriptor: ProcessHandleDescriptor::label("l"),
                events: vec![event],
                kind: None,
                label: Some("l".into()),
            }],
        },
        json!({ "session_id": "s-1", "visible_process_ids": ["p-1"], "items": [{
            "process": text, "descriptor": { "label": "l" }, "label": "l",
            "events": [{ "sequence": 1, "event_type": "e", "payload": 1, "occurred_at_ms": 2 }],
        }] }),
    );
}

#[test]
fn pages_and_effects() {
    is(
        Page::<u8> {
            items: vec![1],
            next: None,
        },
        json!({ "items": [1] }),
    );
    is(
        Page::<u8> {
            items: Vec::new(),
            next: Some(PageCursor("c".into())),
        },
        json!({ "items": [], "next": "c" }),
    );
    is(
        ExecutionScope::turn("s", "t"),
        json!({ "kind": "turn", "session_id": "s", "turn_id": "t" }),
    );
    is(
        ExecutionScope::process("p"),
        json!({ "kind": "process", "process_id": "p" }),
    );
    is(
        ExecutionScope::operation("o"),
        json!({ "kind": "operation", "id": "o" }),
    );
    let process_id = || "p".to_owned();
    is(
        EffectKey::Start {
            process_id: process_id(),
        },
        json!({ "operation": "start", "process_id": "p" }),
    );
    is(
        EffectKey::Cancel {
            process_id: process_id(),
        },
        json!({ "operation": "cancel", "process_id": "p" }),
    );
    is(EffectKey::CancelAll, json!({ "operation": "cancel_all" }));
    is(
        EffectKey::Signal {
            process_id: process_id(),
            signal_name: "go".into(),
            signal_id: "1".into(),
        },
        json!({ "operation": "signal", "process_id": "p", "signal_name": "go", "signal_id": "1" }),
    );
}
