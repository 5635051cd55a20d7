//! What may have become of a process, whoever was killed meanwhile.

use procession::*;
use serde_json::json;

use super::facts::Fact;
use super::work::Run;

pub(crate) fn check_outcome(
    fact: &Fact,
    record: &ProcessRecord,
    log: &[ObservedProcessEvent],
    noted: &[Run],
) {
    let id = &fact.start.id;
    let Some(output) = record.status.output() else {
        assert_eq!(fact.ended_as, None, "{id} had ended: {record:?}");
        assert_eq!(fact.output, None, "{id} had ended: {record:?}");
        return;
    };
    if let Some(status) = fact.ended_as {
        assert_eq!(output.state(), status, "{id}");
    }
    if let Some(known) = &fact.output {
        assert_eq!(output, known, "{id}");
    }
    match output {
        ProcessAwaitOutput::Success { value } => succeeded(fact, record, log, noted, value),
        ProcessAwaitOutput::Failure { code, .. } => match code.as_str() {
            // Killed with its runtime while that was stopping it, or refused what it had to say.
            _ if fact.start.task.command => {}
            "flaky" => assert!(fact.start.task.fails > 0, "{id}"),
            "engine_panicked" => assert!(fact.start.task.panics, "{id}"),
            // Its child was refused because it had been asked to cancel, and it did not handle that.
            "runtime_refused" => {
                assert!(
                    fact.start.task.kid && record.cancel_request.is_some(),
                    "{id}: {record:?}"
                );
            }
            other => panic!("{id} failed with {other}: {record:?}"),
        },
        ProcessAwaitOutput::Cancelled { .. } => {
            assert!(record.cancel_request.is_some(), "{id}: {record:?}");
        }
        ProcessAwaitOutput::Abandoned { evidence } => abandoned(fact, record, evidence),
    }
}

fn succeeded(
    fact: &Fact,
    record: &ProcessRecord,
    log: &[ObservedProcessEvent],
    noted: &[Run],
    value: &serde_json::Value,
) {
    let (id, task) = (&fact.start.id, &fact.start.task);
    if fact.start.disposition == RecoveryDisposition::ExternallyOwned {
        assert!(value["n"].is_u64(), "{id}: {value}");
        return;
    }
    if task.command {
        // It notes nothing outside the store but what `survivors` looks for.
        return;
    }
    // Whoever ended it was the last to be started, and had noted it.
    let last = noted.last().map(|run| run.attempt);
    assert_eq!(last, Some(record.attempt), "{id}: {noted:?}");
    if task.says_done {
        assert_eq!(*value, json!(7), "{id}");
    } else {
        let expected = json!({ "attempt": record.attempt, "steps": task.steps });
        assert_eq!(*value, expected, "{id}");
    }
    // What an attempt emitted is durable before its outcome is.
    let of_this = |event: &&ObservedProcessEvent| event.payload["run"] == record.attempt;
    let progress = log.iter().filter(|event| event.event_type == "progress");
    let steps = progress.filter(of_this).count();
    assert_eq!(steps, task.steps as usize, "{id}: {log:?}");
    // And what it emitted under a key is there once, however many attempts there were.
    let keyed = log
        .iter()
        .filter(|event| event.event_type == "step")
        .count();
    assert_eq!(keyed, task.steps as usize, "{id}: {log:?}");
}

fn abandoned(fact: &Fact, record: &ProcessRecord, evidence: &AbandonEvidence) {
    let id = &fact.start.id;
    match evidence.writer {
        AbandonWriter::ReconciledRequest => {
            let asked = record.abandon_request.as_ref();
            let by = asked.map(|asked| &asked.requested_by);
            assert_eq!(evidence.requested_by.as_ref(), by, "{id}");
            assert!(by.is_some(), "{id}: {record:?}");
        }
        AbandonWriter::Sweep => {
            assert_eq!(
                fact.start.disposition,
                RecoveryDisposition::OwnerBound,
                "{id}"
            );
            assert_eq!(record.attempt, 1, "{id}: {record:?}");
            assert_eq!(evidence.proof, AbandonProof::StoreEpoch, "{id}");
            // About the very owner that had started it.
            let owner = record.first_started.as_ref().map(|first| &first.owner);
            assert_eq!(evidence.owner.as_ref(), owner, "{id}");
        }
        AbandonWriter::OwnerDrain => panic!("{id}: nobody shut down: {evidence:?}"),
    }
}
