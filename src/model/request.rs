//! What a start asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::duration;
use super::error::{Error, Result};
use super::event_type::ProcessEventType;
use super::ids::{check_event_name, check_id, check_text};
use super::json;
use super::limits::{
    EVENT_TYPES_MAX, LABEL_VALUE_BYTES_MAX, LABELS_MAX, PAYLOAD_BYTES_MAX, TEXT_BYTES_MAX,
};
use super::scope::{ProcessOriginator, SessionScope};

pub use super::retry::{Backoff, RetryPolicy};

/// What recovery may do after a process's owner is lost. Declared at start; there is no default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecoveryDisposition {
    /// It may be run again from the beginning.
    Rerunnable,
    /// Once started it is never run again: when its owner is gone, it is abandoned.
    OwnerBound,
    /// Somebody else executes it: never claimed, never run, never ended here.
    ExternallyOwned,
}

/// What a process does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProcessInput {
    /// Executed by the engine that is registered for the kind.
    Engine {
        /// Which engine.
        kind: String,
        /// What it gets, at most 1 MiB of JSON.
        payload: Value,
    },
    /// Never executed here.
    External {
        /// Whatever the external owner wants to keep with it, at most 1 MiB of JSON.
        metadata: Value,
    },
}

impl ProcessInput {
    /// Work for the engine of this kind.
    #[must_use]
    pub fn engine(kind: impl Into<String>, payload: impl Into<Value>) -> Self {
        Self::Engine {
            kind: kind.into(),
            payload: payload.into(),
        }
    }

    /// Work that somebody else executes.
    #[must_use]
    pub fn external(metadata: impl Into<Value>) -> Self {
        Self::External {
            metadata: metadata.into(),
        }
    }

    /// A call of a tool, for an engine of kind `tool_call`: `{tool, arguments}`.
    #[must_use]
    pub fn tool_call(tool: impl Into<String>, arguments: impl Into<Value>) -> Self {
        Self::engine(
            "tool_call",
            object([
                ("tool", Value::String(tool.into())),
                ("arguments", arguments.into()),
            ]),
        )
    }

    /// A turn of a session, for an engine of kind `session_turn`: `{session_id, input}`.
    #[must_use]
    pub fn session_turn(session_id: impl Into<String>, input: impl Into<Value>) -> Self {
        Self::engine(
            "session_turn",
            object([
                ("session_id", Value::String(session_id.into())),
                ("input", input.into()),
            ]),
        )
    }

    /// An operating-system command, for the engine of kind `command`; see the payload of
    /// `CommandEngine`.
    #[must_use]
    pub fn command(payload: impl Into<Value>) -> Self {
        Self::engine("command", payload)
    }

    /// The engine kind, where an engine executes it.
    #[must_use]
    pub fn engine_kind(&self) -> Option<&str> {
        match self {
            Self::Engine { kind, .. } => Some(kind),
            Self::External { .. } => None,
        }
    }

    fn dismantle(self) {
        match self {
            Self::Engine { payload, .. } => json::dismantle(payload),
            Self::External { metadata } => json::dismantle(metadata),
        }
    }

    fn check(&self) -> Result<()> {
        match self {
            Self::Engine { kind, payload } => {
                check_event_name("input.kind", kind)?;
                json::bounded_bytes("input.payload", payload, PAYLOAD_BYTES_MAX).map(drop)
            }
            Self::External { metadata } => {
                json::bounded_bytes("input.metadata", metadata, PAYLOAD_BYTES_MAX).map(drop)
            }
        }
    }
}

/// An object of values that are moved in: the `json!` macro would copy them, recursively, and
/// overflow the stack on a deep one before any check has seen it.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Object(
        fields
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect(),
    )
}

/// What a process is called.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessIdentity {
    /// A class of processes, 1 to 256 bytes; the engine kind where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A name for people, at most 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Which definition (workflow, tool, prompt) it was made from, 1 to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
}

impl ProcessIdentity {
    fn check(&self) -> Result<()> {
        if let Some(kind) = &self.kind {
            check_id("identity.kind", kind)?;
        }
        if let Some(label) = &self.label {
            check_text("identity.label", label, TEXT_BYTES_MAX)?;
        }
        match &self.definition {
            Some(definition) => check_id("identity.definition", definition),
            None => Ok(()),
        }
    }
}

/// The execution environment as it was when the process was created. Stored once under the
/// SHA-256 of its canonical form, shared by every process that captured the same one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessEnvSpec {
    /// Options, at most 1 MiB of JSON together with the policy.
    pub options: Value,
    /// Policy.
    pub policy: Value,
}

impl ProcessEnvSpec {
    /// Options and policy.
    #[must_use]
    pub fn new(options: impl Into<Value>, policy: impl Into<Value>) -> Self {
        Self {
            options: options.into(),
            policy: policy.into(),
        }
    }

    fn dismantle(self) {
        json::dismantle(self.options);
        json::dismantle(self.policy);
    }

    pub(crate) fn canonical(&self) -> Result<Vec<u8>> {
        json::check_depth("env_spec.options", &self.options)?;
        json::check_depth("env_spec.policy", &self.policy)?;
        let whole = serde_json::json!({ "options": self.options, "policy": self.policy });
        let bytes = json::canonical_bytes(&whole);
        if bytes.len() > PAYLOAD_BYTES_MAX {
            return Err(Error::invalid(
                "env_spec",
                format!("has {} bytes of JSON", bytes.len()),
                format!("{PAYLOAD_BYTES_MAX} bytes"),
            ));
        }
        Ok(bytes)
    }
}

/// What a grant says about its process to the scope that holds it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessHandleDescriptor {
    /// A kind, 1 to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// A label for people, at most 1,024 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
}

impl ProcessHandleDescriptor {
    /// A descriptor with a label.
    #[must_use]
    pub fn label(label: impl Into<String>) -> Self {
        Self {
            kind: None,
            label: Some(label.into()),
        }
    }

    pub(crate) fn check(&self, field: &str) -> Result<()> {
        if let Some(kind) = &self.kind {
            check_id(&format!("{field}.kind"), kind)?;
        }
        match &self.label {
            Some(label) => check_text(&format!("{field}.label"), label, TEXT_BYTES_MAX),
            None => Ok(()),
        }
    }
}

/// The grant that is made together with a process.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessStartGrant {
    /// Who may address the process.
    pub scope: SessionScope,
    /// What it is told about it.
    #[serde(default)]
    pub descriptor: ProcessHandleDescriptor,
}

impl ProcessStartGrant {
    /// A grant to a scope, with a label.
    #[must_use]
    pub fn new(scope: SessionScope, label: impl Into<String>) -> Self {
        Self {
            scope,
            descriptor: ProcessHandleDescriptor::label(label),
        }
    }
}

/// Everything that a start says. The start hash covers all of it but the grant.
///
/// Ids are global: a host that takes them from sessions should mint ids that cannot be guessed.
///
/// ```
/// use procession::{ProcessInput, ProcessOriginator, ProcessStartRequest, RecoveryDisposition};
/// use serde_json::json;
/// let request = ProcessStartRequest::new(
///     "build-7",
///     ProcessInput::engine("build", json!({ "target": "all" })),
///     RecoveryDisposition::Rerunnable,
///     ProcessOriginator::host(),
/// )
/// .with_label("team", "compilers")
/// .with_timeout(Some(std::time::Duration::from_secs(600)));
/// # let _ = request;
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessStartRequest {
    /// The id, chosen by the caller, 1 to 256 bytes, global to the store.
    pub id: String,
    /// What it does.
    pub input: ProcessInput,
    /// What recovery may do.
    pub disposition: RecoveryDisposition,
    /// The environment to capture.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_spec: Option<ProcessEnvSpec>,
    /// Who creates it.
    pub originator: ProcessOriginator,
    /// Whose wakes its events become.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wake_target: Option<SessionScope>,
    /// The first grant, made in the same commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grant: Option<ProcessStartGrant>,
    /// Event types beside the runtime's own and the engine's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub event_types: Vec<ProcessEventType>,
    /// What it is called.
    #[serde(default)]
    pub identity: ProcessIdentity,
    /// What made the originator create it (a message, a call), 1 to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// Time from its first start to its forced end.
    #[serde(
        default,
        with = "duration::optional",
        skip_serializing_if = "Option::is_none"
    )]
    pub timeout: Option<Duration>,
    /// How often it is tried.
    #[serde(default)]
    pub retry: RetryPolicy,
    /// Higher starts earlier.
    #[serde(default)]
    pub priority: i32,
    /// Names and values of the host's own, at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

impl ProcessStartRequest {
    /// A start with nothing optional.
    #[must_use]
    pub fn new(
        id: impl Into<String>,
        input: ProcessInput,
        disposition: RecoveryDisposition,
        originator: ProcessOriginator,
    ) -> Self {
        Self {
            id: id.into(),
            input,
            disposition,
            env_spec: None,
            originator,
            wake_target: None,
            grant: None,
            event_types: Vec::new(),
            identity: ProcessIdentity::default(),
            caused_by: None,
            timeout: None,
            retry: RetryPolicy::default(),
            priority: 0,
            labels: BTreeMap::new(),
        }
    }

    /// Work that somebody else executes.
    #[must_use]
    pub fn external(
        id: impl Into<String>,
        originator: ProcessOriginator,
        metadata: impl Into<Value>,
    ) -> Self {
        Self::new(
            id,
            ProcessInput::external(metadata),
            RecoveryDisposition::ExternallyOwned,
            originator,
        )
    }

    /// With an environment.
    #[must_use]
    pub fn with_env_spec(mut self, env_spec: Option<ProcessEnvSpec>) -> Self {
        self.env_spec = env_spec;
        self
    }

    /// With a wake target.
    #[must_use]
    pub fn with_wake_target(mut self, wake_target: Option<SessionScope>) -> Self {
        self.wake_target = wake_target;
        self
    }

    /// With a grant.
    #[must_use]
    pub fn with_grant(mut self, grant: Option<ProcessStartGrant>) -> Self {
        self.grant = grant;
        self
    }

    /// With declared event types, replacing those declared so far.
    #[must_use]
    pub fn with_event_types(mut self, event_types: Vec<ProcessEventType>) -> Self {
        self.event_types = event_types;
        self
    }

    /// With one more declared event type.
    #[must_use]
    pub fn with_event_type(mut self, event_type: ProcessEventType) -> Self {
        self.event_types.push(event_type);
        self
    }

    /// With an identity.
    #[must_use]
    pub fn with_identity(mut self, identity: ProcessIdentity) -> Self {
        self.identity = identity;
        self
    }

    /// With its cause.
    #[must_use]
    pub fn with_caused_by(mut self, caused_by: Option<String>) -> Self {
        self.caused_by = caused_by;
        self
    }

    /// With a time limit, counted from the first start: by the monotonic clock, so that a wall clock
    /// that jumps ends nothing. Time in which the store was closed counts where that clock went on: not
    /// across a start of the machine, nor where no [`Clock::boot_id`](crate::Clock::boot_id) is known.
    #[must_use]
    pub fn with_timeout(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// With a retry policy.
    #[must_use]
    pub fn with_retry(mut self, retry: RetryPolicy) -> Self {
        self.retry = retry;
        self
    }

    /// With a priority.
    #[must_use]
    pub fn with_priority(mut self, priority: i32) -> Self {
        self.priority = priority;
        self
    }

    /// With labels, replacing those set so far.
    #[must_use]
    pub fn with_labels(mut self, labels: BTreeMap<String, String>) -> Self {
        self.labels = labels;
        self
    }

    /// With one more label.
    #[must_use]
    pub fn with_label(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(name.into(), value.into());
        self
    }

    /// The request itself if every field is within its limit. A refused one is taken apart first: it
    /// may be too deep to be dropped.
    pub(crate) fn checked(self) -> Result<Self> {
        match self.check() {
            Ok(()) => Ok(self),
            Err(error) => {
                self.dismantle();
                Err(error)
            }
        }
    }

    /// Drops it without recursion, however deep the JSON in it is. For every refusal that comes
    /// before or instead of [`checked`](Self::checked).
    pub(crate) fn dismantle(self) {
        self.input.dismantle();
        self.env_spec
            .into_iter()
            .for_each(ProcessEnvSpec::dismantle);
        self.event_types
            .into_iter()
            .for_each(ProcessEventType::dismantle);
    }

    /// Checks every field against its limit.
    pub(crate) fn check(&self) -> Result<()> {
        check_id("id", &self.id)?;
        self.check_fields()
            .map_err(|error| error.for_process(&self.id))
    }

    fn check_fields(&self) -> Result<()> {
        self.input.check()?;
        self.check_disposition()?;
        if let Some(env_spec) = &self.env_spec {
            env_spec.canonical()?;
        }
        self.originator.check()?;
        if let Some(target) = &self.wake_target {
            target.check("wake_target")?;
        }
        if let Some(grant) = &self.grant {
            grant.scope.check("grant.scope")?;
            grant.descriptor.check("grant.descriptor")?;
        }
        check_event_types(&self.event_types)?;
        self.identity.check()?;
        if let Some(cause) = &self.caused_by {
            check_id("caused_by", cause)?;
        }
        if let Some(timeout) = self.timeout
            && duration::check("timeout", timeout)? == 0
        {
            return Err(Error::invalid("timeout", "is zero", "at least 1 ms"));
        }
        self.retry.check()?;
        check_labels("labels", &self.labels)
    }

    fn check_disposition(&self) -> Result<()> {
        match (&self.input, self.disposition) {
            (ProcessInput::External { .. }, RecoveryDisposition::ExternallyOwned)
            | (ProcessInput::Engine { .. }, RecoveryDisposition::Rerunnable) => Ok(()),
            (
                ProcessInput::External { .. },
                RecoveryDisposition::Rerunnable | RecoveryDisposition::OwnerBound,
            ) => Err(Error::invalid(
                "disposition",
                "is not externally_owned, but the input is external",
                "external input is externally_owned",
            )),
            // P6: what may not run twice cannot be retried either.
            (ProcessInput::Engine { .. }, RecoveryDisposition::OwnerBound)
                if self.retry.attempts > 1 =>
            {
                Err(Error::invalid(
                    "retry.attempts",
                    format!("is {} for an owner_bound process", self.retry.attempts),
                    "1: a started owner_bound process is never run again",
                ))
            }
            (
                ProcessInput::Engine { .. },
                RecoveryDisposition::OwnerBound | RecoveryDisposition::ExternallyOwned,
            ) => Ok(()),
        }
    }
}

/// Checks declared event types: how many, each by itself, each name once.
pub(crate) fn check_event_types(event_types: &[ProcessEventType]) -> Result<()> {
    if event_types.len() > EVENT_TYPES_MAX {
        return Err(Error::invalid(
            "event_types",
            format!("has {} entries", event_types.len()),
            format!("{EVENT_TYPES_MAX} entries"),
        ));
    }
    let mut names = std::collections::HashSet::new();
    for event_type in event_types {
        event_type.check()?;
        if !names.insert(event_type.name.as_str()) {
            return Err(Error::invalid(
                "event_types",
                format!("declares {:?} twice", event_type.name),
                "each name once",
            ));
        }
    }
    Ok(())
}

/// Checks names and values of labels.
pub(crate) fn check_labels(field: &str, labels: &BTreeMap<String, String>) -> Result<()> {
    if labels.len() > LABELS_MAX {
        return Err(Error::invalid(
            field,
            format!("has {} entries", labels.len()),
            format!("{LABELS_MAX} entries"),
        ));
    }
    for (name, value) in labels {
        check_event_name(field, name)?;
        check_text(&format!("{field}.{name}"), value, LABEL_VALUE_BYTES_MAX)?;
    }
    Ok(())
}
