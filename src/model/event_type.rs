//! Declared event types: a name, a schema for the payload, and what an event of the type means.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Result, clip};
use super::ids::check_event_type_name;
use super::json::{self, ContentHash};
use super::limits::{
    MESSAGE_BYTES_MAX, RUNTIME_EVENT_PREFIX, SCHEMA_BYTES_MAX, SIGNAL_EVENT_PREFIX,
    WAKE_TEXT_BYTES_MAX,
};
use super::output::{FailureClass, ProcessAwaitOutput};
use super::selector::Selector;

/// An event type that a process declares when it is started.
///
/// ```
/// use procession::{ProcessEventType, Selector, WakeSemantics};
/// use serde_json::json;
/// let question = ProcessEventType::new("question")
///     .with_schema(json!({ "type": "object", "required": ["text"] }))
///     .with_wake(WakeSemantics::new(Selector::pointer("/text")));
/// let answer = ProcessEventType::signal("answer");
/// assert_eq!(answer.name, "signal.answer");
/// # let _ = question;
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessEventType {
    /// `[A-Za-z0-9_.-]{1,128}`, not starting with `process.`; for a signal, `signal.` and its name.
    pub name: String,
    /// A self-contained JSON Schema for the payload; absent for "anything".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<Value>,
    /// Whether and how an event of this type wakes a session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake: Option<WakeSemantics>,
    /// Whether and how an event of this type ends the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<TerminalSemantics>,
}

impl ProcessEventType {
    /// A type whose payload may be anything and that means nothing further.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            schema: None,
            wake: None,
            terminal: None,
        }
    }

    /// The type of the events that a signal appends.
    #[must_use]
    pub fn signal(signal_name: &str) -> Self {
        Self::new(format!("{SIGNAL_EVENT_PREFIX}{signal_name}"))
    }

    /// With a JSON Schema for the payload.
    #[must_use]
    pub fn with_schema(mut self, schema: Value) -> Self {
        self.schema = Some(schema);
        self
    }

    /// With wake semantics.
    #[must_use]
    pub fn with_wake(mut self, wake: WakeSemantics) -> Self {
        self.wake = Some(wake);
        self
    }

    /// With a terminal mapping.
    #[must_use]
    pub fn with_terminal(mut self, terminal: TerminalSemantics) -> Self {
        self.terminal = Some(terminal);
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        let shown: String = clip(&self.name, 160).escape_debug().collect();
        let field = format!("event_types[{shown}]");
        check_event_type_name(&format!("{field}.name"), &self.name)?;
        if self.name.starts_with(RUNTIME_EVENT_PREFIX) {
            return Err(Error::invalid(
                format!("{field}.name"),
                "starts with the runtime's own prefix",
                format!("not {RUNTIME_EVENT_PREFIX}*"),
            ));
        }
        if self.name.starts_with(SIGNAL_EVENT_PREFIX) && self.terminal.is_some() {
            return Err(Error::invalid(
                format!("{field}.terminal"),
                "stands on a signal, which anyone with a grant may send",
                "no terminal mapping on signals",
            ));
        }
        if let Some(schema) = &self.schema {
            compiled(&field, schema)?;
        }
        if let Some(wake) = &self.wake {
            wake.check(&field)?;
        }
        match &self.terminal {
            Some(terminal) => terminal.output.check(&format!("{field}.terminal.output")),
            None => Ok(()),
        }
    }

    /// Drops it without recursion, however deep the JSON in it is.
    pub(crate) fn dismantle(self) {
        self.schema.into_iter().for_each(json::dismantle);
        if let Some(wake) = self.wake {
            wake.text.dismantle();
            wake.when.into_iter().for_each(Selector::dismantle);
            wake.dedupe_key.into_iter().for_each(Selector::dismantle);
        }
        if let Some(terminal) = self.terminal {
            terminal.output.dismantle();
        }
    }
}

/// The compiled schemas of one process's event types, found once each.
#[derive(Debug, Clone, Default)]
pub(crate) struct SchemaSet(Arc<Mutex<HashMap<String, Arc<jsonschema::Validator>>>>);

impl PartialEq for SchemaSet {
    /// A cache says nothing about what it belongs to.
    fn eq(&self, _other: &Self) -> bool {
        true
    }
}

impl SchemaSet {
    /// Checks a payload against the schema of its type.
    pub(crate) fn check(
        &self,
        process_id: &str,
        declared: &ProcessEventType,
        payload: &Value,
    ) -> Result<()> {
        let Some(schema) = &declared.schema else {
            return Ok(());
        };
        let known = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&declared.name)
            .map(Arc::clone);
        let validator = match known {
            Some(validator) => validator,
            None => {
                let validator = compiled("schema", schema)?;
                self.0
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .insert(declared.name.clone(), Arc::clone(&validator));
                validator
            }
        };
        validator
            .validate(payload)
            .map_err(|error| Error::InvalidPayload {
                process_id: process_id.to_owned(),
                event_type: declared.name.clone(),
                path: error.instance_path().to_string(),
                reason: clip(&error.to_string(), MESSAGE_BYTES_MAX).to_owned(),
            })
    }
}

/// How an event wakes the process's wake target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WakeSemantics {
    /// Wakes only if this selects something other than `null` and `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub when: Option<Selector>,
    /// The text to deliver.
    pub text: Selector,
    /// Deliveries with the same key reach a target scope once; absent for "every event".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dedupe_key: Option<Selector>,
}

/// What a wake says, worked out from its event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WakeNotice {
    pub(crate) text: String,
    /// `None` when nothing but the event itself identifies the wake.
    pub(crate) dedupe_key: Option<String>,
}

impl WakeSemantics {
    /// Wakes at every event, with this text.
    #[must_use]
    pub const fn new(text: Selector) -> Self {
        Self {
            when: None,
            text,
            dedupe_key: None,
        }
    }

    /// Wakes only if the selector holds.
    #[must_use]
    pub fn with_condition(mut self, when: Selector) -> Self {
        self.when = Some(when);
        self
    }

    /// Wakes once per key and target scope.
    #[must_use]
    pub fn with_dedupe_key(mut self, dedupe_key: Selector) -> Self {
        self.dedupe_key = Some(dedupe_key);
        self
    }

    fn check(&self, field: &str) -> Result<()> {
        if let Some(when) = &self.when {
            when.check(&format!("{field}.wake.when"))?;
        }
        if let Some(key) = &self.dedupe_key {
            key.check(&format!("{field}.wake.dedupe_key"))?;
        }
        self.text.check(&format!("{field}.wake.text"))
    }

    pub(crate) fn notice(&self, payload: &Value) -> Option<WakeNotice> {
        if self.when.as_ref().is_some_and(|when| !when.holds(payload)) {
            return None;
        }
        Some(WakeNotice {
            text: clip(&self.text.text(payload), WAKE_TEXT_BYTES_MAX).to_owned(),
            // A key of any length is kept as its hash, so that it fits the store's keys.
            dedupe_key: self
                .dedupe_key
                .as_ref()
                .map(|key| ContentHash::of(key.text(payload).as_bytes()).to_string()),
        })
    }
}

/// The state in which a declared event ends its process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MappedState {
    /// `Success` with the selected value.
    Completed,
    /// `Failure` of class `execution`; the selected value's `code` and `message` are used where it
    /// has them.
    Failed,
    /// `Cancelled` with the selected value as detail.
    Cancelled,
}

/// How an event ends its process.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TerminalSemantics {
    /// The state.
    pub state: MappedState,
    /// Which part of the payload is the output.
    pub output: Selector,
}

impl TerminalSemantics {
    /// Ends the process in a state, with the selected part as output.
    #[must_use]
    pub const fn new(state: MappedState, output: Selector) -> Self {
        Self { state, output }
    }

    pub(crate) fn output(&self, event_type: &str, payload: &Value) -> ProcessAwaitOutput {
        let value = self.output.select(payload);
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        match self.state {
            MappedState::Completed => ProcessAwaitOutput::Success { value },
            MappedState::Failed => ProcessAwaitOutput::Failure {
                class: FailureClass::Execution,
                code: clip(text("code").unwrap_or(event_type), 128).to_owned(),
                message: clip(
                    text("message").or(value.as_str()).unwrap_or(event_type),
                    MESSAGE_BYTES_MAX,
                )
                .to_owned(),
                raw: Some(value),
            },
            MappedState::Cancelled => ProcessAwaitOutput::Cancelled {
                message: clip(
                    text("message").or(value.as_str()).unwrap_or(event_type),
                    MESSAGE_BYTES_MAX,
                )
                .to_owned(),
                raw: Some(value),
            },
        }
    }
}

type Compiled = HashMap<ContentHash, Arc<jsonschema::Validator>>;

/// Most compiled schemas that are kept; past it the cache starts anew.
const COMPILED_SCHEMAS_MAX: usize = 1_024;

/// The compiled form of a schema: compiled once per content, in this operating-system process.
/// A cache of immutable values, so two runtimes may share it.
fn compiled(field: &str, schema: &Value) -> Result<Arc<jsonschema::Validator>> {
    static CACHE: OnceLock<Mutex<Compiled>> = OnceLock::new();
    let bytes = json::bounded_bytes(&format!("{field}.schema"), schema, SCHEMA_BYTES_MAX)?;
    let hash = ContentHash::of(&bytes);
    let cache = CACHE.get_or_init(Mutex::default);
    if let Some(found) = cache
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(&hash)
    {
        return Ok(Arc::clone(found));
    }
    let validator = jsonschema::options()
        // References reach no file and no network, whatever features the host's build turns on.
        .offline()
        // The `regex` engine runs in linear time; back-references and look-around are refused.
        .with_pattern_options(jsonschema::PatternOptions::regex())
        .build(schema)
        .map_err(|error| {
            Error::invalid(
                format!("{field}.schema"),
                clip(&error.to_string(), MESSAGE_BYTES_MAX),
                "a self-contained JSON Schema with linear-time patterns",
            )
        })?;
    let validator = Arc::new(validator);
    let mut cache = cache.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.len() >= COMPILED_SCHEMAS_MAX {
        cache.clear();
    }
    cache.insert(hash, Arc::clone(&validator));
    Ok(validator)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_payload_that_breaks_its_schema_is_refused_with_the_path() {
        let kind = ProcessEventType::new("progress").with_schema(json!({
            "type": "object",
            "properties": { "percent": { "type": "integer", "maximum": 100 } },
        }));
        assert!(kind.check().is_ok());
        assert!(
            SchemaSet::default()
                .check("p", &kind, &json!({ "percent": 100 }))
                .is_ok()
        );
        match SchemaSet::default().check("p", &kind, &json!({ "percent": 101 })) {
            Err(Error::InvalidPayload {
                path, event_type, ..
            }) => {
                assert_eq!(
                    (path.as_str(), event_type.as_str()),
                    ("/percent", "progress")
                );
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn schemas_reach_nothing_outside_themselves() {
        for reference in ["https://example.com/schema.json", "file:///etc/passwd"] {
            let kind = ProcessEventType::new("e").with_schema(json!({ "$ref": reference }));
            assert!(kind.check().is_err(), "{reference}");
        }
        let inner = ProcessEventType::new("e").with_schema(json!({
            "$ref": "#/$defs/n", "$defs": { "n": { "type": "null" } }
        }));
        assert!(inner.check().is_ok());
    }

    #[test]
    fn patterns_that_need_backtracking_are_refused() {
        let kind = ProcessEventType::new("e").with_schema(json!({ "pattern": "(a)\\1" }));
        assert!(kind.check().is_err());
    }

    #[test]
    fn reserved_names_and_terminal_signals_are_refused() {
        assert!(ProcessEventType::new("process.mine").check().is_err());
        assert!(ProcessEventType::signal("a.b").check().is_err());
        let terminal = TerminalSemantics::new(MappedState::Completed, Selector::Payload);
        assert!(
            ProcessEventType::signal("go")
                .with_terminal(terminal)
                .check()
                .is_err()
        );
    }
}
