//! Whom a handle belongs to, and who created a process.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::error::Result;
use super::ids::check_id;

/// A session, or one agent frame inside it. A session's root scope and a scope with a frame are
/// different scopes.
///
/// ```
/// use procession::SessionScope;
/// let root = SessionScope::new("s-1");
/// let frame = SessionScope::new("s-1").with_frame("planner");
/// assert_eq!(root.id(), "session:s-1");
/// assert_eq!(frame.id(), "session:s-1/frame:planner");
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionScope {
    /// The session, 1 to 256 bytes.
    pub session_id: String,
    /// The frame inside it, 1 to 256 bytes; absent for the session's root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_frame_id: Option<String>,
}

impl SessionScope {
    /// The root scope of a session.
    #[must_use]
    pub fn new(session_id: impl Into<String>) -> Self {
        Self {
            session_id: session_id.into(),
            agent_frame_id: None,
        }
    }

    /// The scope of a frame in the same session.
    #[must_use]
    pub fn with_frame(mut self, agent_frame_id: impl Into<String>) -> Self {
        self.agent_frame_id = Some(agent_frame_id.into());
        self
    }

    /// The scope as one text: `session:S` or `session:S/frame:F`. Slashes and percent signs inside
    /// the parts are percent-encoded, so that no two scopes share one text.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.agent_frame_id {
            None => format!("session:{}", Escaped(&self.session_id)),
            Some(frame) => format!(
                "session:{}/frame:{}",
                Escaped(&self.session_id),
                Escaped(frame)
            ),
        }
    }

    pub(crate) fn check(&self, field: &str) -> Result<()> {
        check_id(&format!("{field}.session_id"), &self.session_id)?;
        match &self.agent_frame_id {
            Some(frame) => check_id(&format!("{field}.agent_frame_id"), frame),
            None => Ok(()),
        }
    }
}

impl fmt::Display for SessionScope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for part in self.0.split_inclusive(['/', '%']) {
            match part.strip_suffix('/') {
                Some(head) => write!(f, "{head}%2F")?,
                None => match part.strip_suffix('%') {
                    Some(head) => write!(f, "{head}%25")?,
                    None => f.write_str(part)?,
                },
            }
        }
        Ok(())
    }
}

fn unescape(text: &str) -> String {
    text.replace("%2F", "/").replace("%25", "%")
}

/// Who created a process. Provenance only: it gives no right.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProcessOriginator {
    /// The host itself, optionally under a scope it names.
    Host {
        /// A name of the host's own, 1 to 256 bytes.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        scope: Option<String>,
    },
    /// A session.
    Session {
        /// Its scope.
        scope: SessionScope,
    },
}

impl ProcessOriginator {
    /// The host, under no name.
    #[must_use]
    pub const fn host() -> Self {
        Self::Host { scope: None }
    }

    /// The host, under a scope that it names.
    #[must_use]
    pub fn host_scope(scope: impl Into<String>) -> Self {
        Self::Host {
            scope: Some(scope.into()),
        }
    }

    /// A session.
    #[must_use]
    pub const fn session(scope: SessionScope) -> Self {
        Self::Session { scope }
    }

    /// The originator as one text, as [`ProcessListFilter`](super::ProcessListFilter) takes it:
    /// `host`, `host:NAME`, or the session scope's id.
    #[must_use]
    pub fn scope_id(&self) -> String {
        match self {
            Self::Host { scope: None } => "host".to_owned(),
            Self::Host { scope: Some(name) } => format!("host:{name}"),
            Self::Session { scope } => scope.id(),
        }
    }

    /// The originator that a text stands for, if it is one.
    pub(crate) fn parse_scope_id(text: &str) -> Option<Self> {
        if text == "host" {
            return Some(Self::host());
        }
        if let Some(name) = text.strip_prefix("host:") {
            return Some(Self::host_scope(name));
        }
        let rest = text.strip_prefix("session:")?;
        // Slashes inside the parts are escaped, so the first one ends the session.
        let scope = match rest.split_once('/') {
            None => SessionScope::new(unescape(rest)),
            Some((session, frame)) => SessionScope::new(unescape(session))
                .with_frame(unescape(frame.strip_prefix("frame:")?)),
        };
        Some(Self::session(scope))
    }

    pub(crate) fn check(&self) -> Result<()> {
        match self {
            Self::Host { scope: None } => Ok(()),
            Self::Host { scope: Some(name) } => check_id("originator.scope", name),
            Self::Session { scope } => scope.check("originator.scope"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn no_two_scopes_share_one_text() {
        let tricky = SessionScope::new("a/frame:b");
        let framed = SessionScope::new("a").with_frame("b");
        assert_eq!(framed.id(), "session:a/frame:b");
        assert_eq!(tricky.id(), "session:a%2Fframe:b");
        assert_eq!(SessionScope::new("a%2F").id(), "session:a%252F");
    }

    /// Strings made of what the text of a scope is made of.
    fn nasty() -> impl Strategy<Value = String> {
        let pieces = prop::sample::select(vec![
            "/", "%", "%2F", "%25", "%2f", ":", "session:", "/frame:", "frame:", "host", "host:",
            "a", "é", " ", "\\",
        ]);
        prop::collection::vec(pieces, 1..5).prop_map(|pieces| pieces.concat())
    }

    fn any_scope() -> impl Strategy<Value = SessionScope> {
        (nasty(), prop::option::of(nasty())).prop_map(|(session_id, agent_frame_id)| SessionScope {
            session_id,
            agent_frame_id,
        })
    }

    fn any_originator() -> impl Strategy<Value = ProcessOriginator> {
        prop_oneof![
            Just(ProcessOriginator::host()),
            nasty().prop_map(ProcessOriginator::host_scope),
            any_scope().prop_map(ProcessOriginator::session),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(5_000) })]

        #[test]
        fn no_two_scopes_share_one_text_however_nasty(one in any_scope(), other in any_scope()) {
            prop_assert_eq!(one == other, one.id() == other.id());
        }

        #[test]
        fn no_two_originators_share_one_text(one in any_originator(), other in any_originator()) {
            prop_assert_eq!(one == other, one.scope_id() == other.scope_id());
        }

        #[test]
        fn a_scope_can_be_read_back_from_its_text(scope in any_scope()) {
            // Injective because it can be undone: split at the one slash that is not escaped.
            let text = scope.id();
            let rest = text.strip_prefix("session:").unwrap();
            let unescape = |part: &str| part.replace("%2F", "/").replace("%25", "%");
            let (session_id, frame) = match rest.split_once('/') {
                None => (unescape(rest), None),
                Some((session_id, frame)) => {
                    (unescape(session_id), frame.strip_prefix("frame:").map(unescape))
                }
            };
            prop_assert_eq!(SessionScope { session_id, agent_frame_id: frame }, scope);
        }
    }

    #[test]
    fn a_host_cannot_name_itself_into_a_session() {
        let host = ProcessOriginator::host_scope("session:s-1").scope_id();
        let session = ProcessOriginator::session(SessionScope::new("s-1")).scope_id();
        assert_eq!(
            (host.as_str(), session.as_str()),
            ("host:session:s-1", "session:s-1")
        );
        assert_eq!(ProcessOriginator::host().scope_id(), "host");
        assert_eq!(
            ProcessOriginator::session(SessionScope::new("host")).scope_id(),
            "session:host"
        );
    }
}
