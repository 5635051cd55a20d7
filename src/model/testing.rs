//! What the tests of the model share. Nothing here is an expectation.

use std::sync::Arc;

use serde_json::{Value, json};

use super::event_type::{MappedState, ProcessEventType, TerminalSemantics, WakeSemantics};
use super::ids::{FencingToken, Incarnation, StoreEpoch};
use super::json::ContentHash;
use super::lease::ProcessOwner;
use super::output::{
    AbandonEvidence, AbandonProof, AbandonWriter, FailureClass, ProcessAwaitOutput, ProcessError,
};
use super::record::{
    AbandonRequest, CancelRequest, FirstStart, OwnerLoss, ProcessState, ProcessStatus,
    Registration, RegistrationFacts, RetryPause, SignalWait,
};
use super::request::{ProcessInput, ProcessStartRequest, RecoveryDisposition, RetryPolicy};
use super::scope::{ProcessOriginator, SessionScope};
use super::selector::Selector;

/// Deeper than any stack: what drops or walks it recursively ends the test run.
pub(super) const HOSTILE_DEPTH: usize = 200_000;

/// So many arrays inside each other.
pub(super) fn nested(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
}

/// The same with objects.
pub(super) fn nested_objects(depth: usize) -> Value {
    (0..depth).fold(Value::Null, |inner, _| {
        Value::Object([("a".to_owned(), inner)].into_iter().collect())
    })
}

/// A string whose JSON has exactly so many bytes.
pub(super) fn json_of_bytes(bytes: usize) -> Value {
    Value::String("x".repeat(bytes - 2))
}

pub(super) fn request(disposition: RecoveryDisposition) -> ProcessStartRequest {
    let input = match disposition {
        RecoveryDisposition::ExternallyOwned => ProcessInput::external(json!({ "ticket": 7 })),
        RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound => {
            ProcessInput::engine("build", json!({ "target": "all" }))
        }
    };
    let attempts = match disposition {
        RecoveryDisposition::Rerunnable => 3,
        RecoveryDisposition::OwnerBound | RecoveryDisposition::ExternallyOwned => 1,
    };
    ProcessStartRequest::new("p-1", input, disposition, ProcessOriginator::host())
        .with_retry(RetryPolicy::attempts(attempts))
        .with_event_types(vec![
            ProcessEventType::new("progress").with_schema(json!({ "type": "object" })),
            ProcessEventType::new("question")
                .with_wake(WakeSemantics::new(Selector::pointer("/text"))),
            ProcessEventType::signal("go"),
            ProcessEventType::new("done").with_terminal(TerminalSemantics::new(
                MappedState::Completed,
                Selector::pointer("/value"),
            )),
            ProcessEventType::new("broke").with_terminal(TerminalSemantics::new(
                MappedState::Failed,
                Selector::Payload,
            )),
            ProcessEventType::new("stopped").with_terminal(TerminalSemantics::new(
                MappedState::Cancelled,
                Selector::pointer("/why"),
            )),
        ])
}

pub(super) fn registration(disposition: RecoveryDisposition) -> Registration {
    Registration::new(
        request(disposition),
        ContentHash([7; 32]),
        None,
        RegistrationFacts {
            incarnation: Incarnation(3),
            created_at_ms: 1_000,
            ..RegistrationFacts::default()
        },
    )
}

pub(super) fn owner() -> ProcessOwner {
    ProcessOwner {
        owner_id: "host-a".into(),
        incarnation_id: "i-1".into(),
        store_epoch: StoreEpoch(2),
    }
}

pub(super) fn scope() -> SessionScope {
    SessionScope::new("s-1")
}

pub(super) fn token(number: u64) -> FencingToken {
    FencingToken(number)
}

pub(super) fn error() -> ProcessError {
    ProcessError {
        class: FailureClass::Execution,
        code: "upstream_down".into(),
        message: "503".into(),
    }
}

pub(super) fn failure() -> ProcessAwaitOutput {
    ProcessAwaitOutput::Failure {
        class: FailureClass::Internal,
        code: "recoveries_exhausted".into(),
        message: "too often".into(),
        raw: None,
    }
}

pub(super) fn cancelled() -> ProcessAwaitOutput {
    ProcessAwaitOutput::Cancelled {
        message: "asked to".into(),
        raw: None,
    }
}

pub(super) fn abandoned(writer: AbandonWriter, proof: AbandonProof) -> ProcessAwaitOutput {
    ProcessAwaitOutput::Abandoned {
        evidence: AbandonEvidence {
            writer,
            owner: Some(owner()),
            proof,
            requested_by: None,
            survivors: None,
            epoch_ms: 5_000,
        },
    }
}

/// A state under construction, each step by hand and not by the fold.
pub(super) struct State(pub(super) ProcessState);

impl State {
    pub(super) fn fresh() -> Self {
        Self(ProcessState::initial(1_000))
    }

    pub(super) fn started(mut self) -> Self {
        self.0.attempt += 1;
        self.0.first_started = Some(Arc::new(FirstStart {
            at_ms: 2_000,
            owner: owner(),
        }));
        self.step()
    }

    pub(super) fn waiting(mut self) -> Self {
        self.0.waits.push(SignalWait {
            signal_name: "go".into(),
            number: 1,
            since_ms: 3_000,
            deadline_ms: None,
        });
        self.step()
    }

    pub(super) fn backing_off(mut self) -> Self {
        self.0.retries += 1;
        self.0.retry_pause = Some(Arc::new(RetryPause {
            retry_at_ms: 9_000,
            error: error(),
        }));
        self.step()
    }

    pub(super) fn owner_lost(mut self) -> Self {
        self.0.recoveries += 1;
        self.0.owner_lost = Some(Arc::new(OwnerLoss {
            at_ms: 4_000,
            owner: Some(owner()),
        }));
        self.step()
    }

    pub(super) fn cancel_asked(mut self) -> Self {
        self.0.cancel_request = Some(Arc::new(CancelRequest {
            requested_by: Some("ops".into()),
            requested_at_ms: 3_000,
        }));
        self.step()
    }

    pub(super) fn abandon_asked(mut self) -> Self {
        self.0.abandon_request = Some(Arc::new(AbandonRequest {
            requested_by: "ops".into(),
            reason: None,
            requested_at_ms: 3_000,
        }));
        self.step()
    }

    pub(super) fn known_as(mut self, reference: &Value) -> Self {
        self.0.external_ref = Some(reference.clone());
        self.step()
    }

    pub(super) fn ended(mut self, output: ProcessAwaitOutput) -> Self {
        self.0.status = Arc::new(ProcessStatus::Terminal { output });
        self.step()
    }

    fn step(mut self) -> Self {
        self.0.last_sequence += 1;
        self.0.updated_at_ms += 1;
        self
    }
}
