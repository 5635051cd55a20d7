//! Effects: starts, cancels and signals that a host may journal, so that a replayed turn does not
//! do them twice (the idea is Temporal's and Restate's: a replay takes recorded outcomes).

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::actors::runtime::Shared;
use crate::model::{
    EffectKey, Error, ExecutionScope, ProcessCancelSummary, ProcessEvent, ProcessRecord, Result,
    json,
};
use crate::store::writes;

/// What an effect did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "outcome", content = "value", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EffectOutcome {
    /// A process was started, or found started.
    Started(Box<ProcessRecord>),
    /// A process was asked to cancel.
    Cancelled(Box<ProcessCancelSummary>),
    /// Every running process was asked to cancel.
    AllCancelled(Vec<ProcessCancelSummary>),
    /// A signal was sent.
    Signalled(Box<ProcessEvent>),
}

/// An effect that is about to be executed.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Effect {
    /// What it does, and to what: its key inside the scope.
    pub key: EffectKey,
    /// Everything that it says, as JSON: asked again with other content, it is another effect.
    pub content: Value,
}

/// The execution of an effect; nothing happens before it is awaited.
pub type EffectExecution<'a> = Pin<Box<dyn Future<Output = Result<EffectOutcome>> + Send + 'a>>;

/// Decides whether an effect is executed, or its recorded outcome taken.
///
/// Three rules make an implementation safe: execute at most what is asked; return an outcome only
/// if it was executed, now or as recorded; and if the outcome cannot be recorded, say so by an
/// error. Every effect is idempotent by its own keys, so one that was executed but not recorded may
/// be executed again.
///
/// ```
/// use procession::{Effect, EffectController, EffectExecution, EffectOutcome, ExecutionScope};
///
/// /// Prints what is done, and does it.
/// struct Announced;
///
/// #[async_trait::async_trait]
/// impl EffectController for Announced {
///     async fn run(
///         &self,
///         scope: &ExecutionScope,
///         effect: &Effect,
///         execute: EffectExecution<'_>,
///     ) -> procession::Result<EffectOutcome> {
///         println!("{} in {scope}", effect.key);
///         execute.await
///     }
/// }
/// ```
#[async_trait::async_trait]
pub trait EffectController: Send + Sync {
    /// Runs an effect in a scope.
    ///
    /// # Errors
    /// The effect's own refusal, or `ReplayMismatch`.
    async fn run(
        &self,
        scope: &ExecutionScope,
        effect: &Effect,
        execute: EffectExecution<'_>,
    ) -> Result<EffectOutcome>;
}

/// Executes and remembers nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct InlineEffects;

#[async_trait::async_trait]
impl EffectController for InlineEffects {
    async fn run(
        &self,
        _scope: &ExecutionScope,
        _effect: &Effect,
        execute: EffectExecution<'_>,
    ) -> Result<EffectOutcome> {
        execute.await
    }
}

/// Records each outcome in the store, under the scope and the effect's key. Asked again in the
/// same scope it returns the recorded outcome without executing; asked with other content it
/// refuses. Refusals are not recorded. What it recorded about a process goes when that is pruned.
///
/// The outcome is durable before it is returned.
#[derive(Clone)]
pub struct JournaledEffects {
    shared: Arc<Shared>,
}

impl fmt::Debug for JournaledEffects {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournaledEffects").finish_non_exhaustive()
    }
}

impl JournaledEffects {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    fn recorded(&self, scope: &ExecutionScope, effect: &Effect) -> Result<Option<EffectOutcome>> {
        let Some((content, outcome)) = self.shared.view()?.effect(scope, &effect.key)? else {
            return Ok(None);
        };
        let unreadable = |error: serde_json::Error| Error::Corrupted {
            what: format!("journaled effect {}: {error}", effect.key),
        };
        let recorded = json::parse(&content).map_err(unreadable)?;
        if recorded != effect.content {
            return Err(Error::ReplayMismatch {
                scope: scope.to_string(),
                effect: effect.key.to_string(),
                difference: first_difference("", &recorded, &effect.content),
            });
        }
        serde_json::from_value(json::parse(&outcome).map_err(unreadable)?)
            .map(Some)
            .map_err(unreadable)
    }
}

#[async_trait::async_trait]
impl EffectController for JournaledEffects {
    async fn run(
        &self,
        scope: &ExecutionScope,
        effect: &Effect,
        execute: EffectExecution<'_>,
    ) -> Result<EffectOutcome> {
        if let Some(outcome) = self.recorded(scope, effect)? {
            return Ok(outcome);
        }
        let outcome = execute.await?;
        let value = serde_json::to_value(&outcome).map_err(|error| Error::Corrupted {
            what: format!("outcome of {}: {error}", effect.key),
        })?;
        let content = json::canonical_bytes(&effect.content);
        let recorded = json::canonical_bytes(&value);
        let bytes = content.len() + recorded.len();
        let change = writes::record_effect(scope, &effect.key, content, recorded)?;
        let process_id = effect.key.process_id().unwrap_or("(all)").to_owned();
        // A crash before this commit: the effect is executed again, which its own keys make
        // harmless.
        self.shared
            .record_effect(&process_id, change, bytes)
            .await?;
        Ok(outcome)
    }
}

/// Where two values differ first, and how.
fn first_difference(path: &str, recorded: &Value, asked: &Value) -> String {
    match (recorded, asked) {
        (Value::Object(recorded), Value::Object(asked)) => {
            let names = recorded.keys().chain(asked.keys());
            for name in names {
                match (recorded.get(name), asked.get(name)) {
                    (Some(one), Some(other)) if one == other => {}
                    (Some(one), Some(other)) => {
                        return first_difference(&format!("{path}/{name}"), one, other);
                    }
                    (Some(_), None) => return format!("{path}/{name} was recorded, is absent now"),
                    (None, _) => return format!("{path}/{name} was absent, is there now"),
                }
            }
            format!("{path} differs")
        }
        _ => format!("{path} was {}, is {}", short(recorded), short(asked)),
    }
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    let clipped = crate::model::error::clip(&text, 120);
    if clipped.len() < text.len() {
        format!("{clipped}…")
    } else {
        text
    }
}

enum Controller<'a> {
    Inline,
    Other(&'a dyn EffectController),
}

/// A controller together with the scope in which effects are executed.
///
/// ```
/// use procession::{ExecutionScope, ScopedEffectController};
/// let inline = ScopedEffectController::inline(ExecutionScope::turn("session-1", "turn-7"));
/// # let _ = inline;
/// ```
pub struct ScopedEffectController<'a> {
    controller: Controller<'a>,
    scope: ExecutionScope,
}

impl fmt::Debug for ScopedEffectController<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedEffectController")
            .field("scope", &self.scope)
            .finish_non_exhaustive()
    }
}

impl ScopedEffectController<'static> {
    /// Executes and remembers nothing.
    #[must_use]
    pub fn inline(scope: ExecutionScope) -> Self {
        Self {
            controller: Controller::Inline,
            scope,
        }
    }
}

impl<'a> ScopedEffectController<'a> {
    /// A controller of the host's choice.
    #[must_use]
    pub fn new(controller: &'a dyn EffectController, scope: ExecutionScope) -> Self {
        Self {
            controller: Controller::Other(controller),
            scope,
        }
    }

    /// The scope.
    #[must_use]
    pub const fn scope(&self) -> &ExecutionScope {
        &self.scope
    }

    /// Whether what an effect says is of no interest.
    pub(crate) const fn is_inline(&self) -> bool {
        matches!(self.controller, Controller::Inline)
    }

    /// Runs an effect. Its content is only put together for controllers that look at it.
    pub(crate) async fn run(
        &self,
        key: impl FnOnce() -> EffectKey,
        content: impl FnOnce() -> Result<Value>,
        execute: impl Future<Output = Result<EffectOutcome>> + Send,
    ) -> Result<EffectOutcome> {
        self.scope.check()?;
        match self.controller {
            Controller::Inline => execute.await,
            Controller::Other(controller) => {
                let effect = Effect {
                    key: key(),
                    content: content()?,
                };
                controller
                    .run(&self.scope, &effect, Box::pin(execute))
                    .await
            }
        }
    }
}

/// The content of an effect, as JSON.
pub(crate) fn content_of<T: Serialize>(content: &T) -> Result<Value> {
    serde_json::to_value(content)
        .map_err(|error| Error::invalid("request", error.to_string(), "representable as JSON"))
}

/// A controller answered with the outcome of another kind of effect.
pub(crate) fn wrong_outcome(expected: &str) -> Error {
    Error::invalid(
        "effect controller",
        "answered with the outcome of another kind of effect",
        expected,
    )
}

#[cfg(test)]
mod tests {
    use super::first_difference;
    use serde_json::json;

    #[test]
    fn a_mismatch_says_where_and_how() {
        let recorded = json!({ "input": { "payload": { "n": 1 } } });
        let asked = json!({ "input": { "payload": { "n": 2 } } });
        assert_eq!(
            first_difference("", &recorded, &asked),
            "/input/payload/n was 1, is 2"
        );
        assert_eq!(
            first_difference("", &json!({ "a": 1 }), &json!({})),
            "/a was recorded, is absent now"
        );
    }
}
