//! What the tests of refusals have in common.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::allow_attributes,
    reason = "each test file uses a part of it, and a test that cannot go on says so"
)]

use procession::*;
use serde_json::{Value, json};

use super::{echo, external, inline, polite};

pub fn field_of(error: &Error) -> &str {
    match error {
        Error::InvalidInput { field, .. } => field,
        other => panic!("{other:?}"),
    }
}

/// A refusal that names the field, the limit and the process.
pub fn names(error: &Error, field: &str, id: &str) {
    let Error::InvalidInput {
        field: found,
        limit,
        process_id,
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(found, field, "{error}");
    assert!(!limit.is_empty(), "{error}");
    assert_eq!(process_id.as_deref(), Some(id), "{error}");
    assert!(error.to_string().contains(id), "{error}");
}

/// Everything that the public reads show of a store.
#[derive(Debug, PartialEq)]
pub struct Whole {
    pub records: Vec<Option<ProcessRecord>>,
    pub list: Vec<ObservedProcess>,
    pub events: Vec<Vec<ObservedProcessEvent>>,
    pub grants: Vec<Vec<SessionScope>>,
}

pub async fn whole(processes: &Processes) -> Whole {
    let list = processes.list(&ProcessListFilter::any()).await.unwrap();
    let mut whole = Whole {
        records: Vec::new(),
        list: Vec::new(),
        events: Vec::new(),
        grants: Vec::new(),
    };
    for process in &list {
        let id = &process.process_id;
        whole.records.push(processes.record(id).await.unwrap());
        whole.events.push(processes.events(id, 0).await.unwrap());
        whole.grants.push(processes.grants_of(id).await.unwrap());
    }
    whole.list = list;
    whole
}

pub async fn open() -> Supervisor {
    Supervisor::in_memory()
        .engine(echo())
        .engine(polite())
        .open()
        .await
        .unwrap()
}

pub fn event(event_type: &str, payload: Value) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::new(event_type, payload)
}

pub fn host() -> CompletionAuthority {
    CompletionAuthority::Host { by: "ops".into() }
}

/// A process that stays, with a schema, a signal and a terminal event type.
pub async fn parked(processes: &Processes, id: &str) {
    let schema = json!({
        "type": "object",
        "properties": { "percent": { "type": "integer", "maximum": 100 } },
        "required": ["percent"],
    });
    let request = external(id)
        .with_event_type(ProcessEventType::new("progress").with_schema(schema.clone()))
        .with_event_type(ProcessEventType::new("note"))
        .with_event_type(ProcessEventType::signal("go").with_schema(schema))
        .with_event_type(
            ProcessEventType::new("done").with_terminal(TerminalSemantics::new(
                MappedState::Completed,
                Selector::pointer("/value"),
            )),
        );
    processes.start(request, inline()).await.unwrap();
}
