//! Selectors: how a declared event type says which part of its payload means something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::{Error, Result, clip};
use super::ids::check_event_name;
use super::json;
use super::limits::{PAYLOAD_BYTES_MAX, SELECTOR_BYTES_MAX, TEMPLATE_FIELDS_MAX};

/// Picks a value out of an event's payload.
///
/// ```
/// use procession::Selector;
/// use serde_json::json;
/// let payload = json!({ "file": { "name": "a.txt" }, "lines": 3 });
/// assert_eq!(Selector::pointer("/lines").select(&payload), json!(3));
/// assert_eq!(Selector::present("/file/size").select(&payload), json!(false));
/// let text = Selector::template("{name}: {lines} lines", [("name", "/file/name"), ("lines", "/lines")]);
/// assert_eq!(text.select(&payload), json!("a.txt: 3 lines"));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "select", rename_all = "snake_case", deny_unknown_fields)]
pub enum Selector {
    /// The whole payload.
    Payload,
    /// What a JSON pointer (RFC 6901) leads to; `null` where it leads nowhere.
    Pointer {
        /// The pointer: empty, or starting with a slash.
        pointer: String,
    },
    /// Always the same value.
    Constant {
        /// That value.
        value: Value,
    },
    /// A text with `{name}` fields; `{{` and `}}` stand for braces. A string fills its field as
    /// it is, anything else as JSON, a missing one as nothing. What would be longer than 1 MiB is
    /// cut there.
    Template {
        /// The text.
        template: String,
        /// A JSON pointer for each field.
        fields: BTreeMap<String, String>,
    },
    /// Whether a JSON pointer leads anywhere.
    Present {
        /// The pointer.
        pointer: String,
    },
}

impl Selector {
    /// What a JSON pointer leads to.
    #[must_use]
    pub fn pointer(pointer: impl Into<String>) -> Self {
        Self::Pointer {
            pointer: pointer.into(),
        }
    }

    /// Always this value.
    #[must_use]
    pub fn constant(value: impl Into<Value>) -> Self {
        Self::Constant {
            value: value.into(),
        }
    }

    /// Whether a JSON pointer leads anywhere.
    #[must_use]
    pub fn present(pointer: impl Into<String>) -> Self {
        Self::Present {
            pointer: pointer.into(),
        }
    }

    /// A text with fields.
    #[must_use]
    pub fn template<N: Into<String>, P: Into<String>>(
        template: impl Into<String>,
        fields: impl IntoIterator<Item = (N, P)>,
    ) -> Self {
        Self::Template {
            template: template.into(),
            fields: fields
                .into_iter()
                .map(|(name, pointer)| (name.into(), pointer.into()))
                .collect(),
        }
    }

    /// Applies the selector.
    #[must_use]
    pub fn select(&self, payload: &Value) -> Value {
        match self {
            Self::Payload => payload.clone(),
            Self::Pointer { pointer } => payload.pointer(pointer).cloned().unwrap_or_default(),
            Self::Constant { value } => value.clone(),
            Self::Present { pointer } => Value::Bool(payload.pointer(pointer).is_some()),
            Self::Template { template, fields } => Value::String(fill(template, |name| {
                fields
                    .get(name)
                    .and_then(|pointer| payload.pointer(pointer))
                    .map(as_text)
                    .unwrap_or_default()
            })),
        }
    }

    /// Whether the selector holds: anything but `null` and `false`.
    pub(crate) fn holds(&self, payload: &Value) -> bool {
        !matches!(self.select(payload), Value::Null | Value::Bool(false))
    }

    /// The selected value as text: a string as it is, anything else as JSON.
    pub(crate) fn text(&self, payload: &Value) -> String {
        as_text(&self.select(payload))
    }

    /// Drops it without recursion, however deep the constant in it is.
    pub(crate) fn dismantle(self) {
        match self {
            Self::Constant { value } => json::dismantle(value),
            Self::Payload | Self::Pointer { .. } | Self::Template { .. } | Self::Present { .. } => {
            }
        }
    }

    pub(crate) fn check(&self, field: &str) -> Result<()> {
        match self {
            Self::Payload => Ok(()),
            Self::Pointer { pointer } | Self::Present { pointer } => check_pointer(field, pointer),
            Self::Constant { value } => {
                json::bounded_bytes(&format!("{field}.value"), value, PAYLOAD_BYTES_MAX).map(drop)
            }
            Self::Template { template, fields } => check_template(field, template, fields),
        }
    }
}

fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}

enum Piece<'a> {
    Text(&'a str),
    Field(&'a str),
}

/// Cuts a template into its pieces; `None` where a brace stands alone.
fn pieces(template: &str) -> Option<Vec<Piece<'_>>> {
    let mut found = Vec::new();
    let mut rest = template;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, brace) = rest.split_at(at);
        found.push(Piece::Text(before));
        if brace.starts_with("{{") || brace.starts_with("}}") {
            found.push(Piece::Text(brace.get(..1)?));
            rest = brace.get(2..)?;
        } else {
            let field = brace.strip_prefix('{')?;
            let end = field.find('}')?;
            found.push(Piece::Field(field.get(..end)?));
            rest = field.get(end + 1..)?;
        }
    }
    found.push(Piece::Text(rest));
    Some(found)
}

fn fill(template: &str, mut field: impl FnMut(&str) -> String) -> String {
    let mut text = String::new();
    for piece in pieces(template).unwrap_or_else(|| vec![Piece::Text(template)]) {
        // A template names a field as often as it likes: without a bound, a thousand times 1 MiB.
        let room = PAYLOAD_BYTES_MAX - text.len();
        if room == 0 {
            break;
        }
        match piece {
            Piece::Text(plain) => text.push_str(clip(plain, room)),
            Piece::Field(name) => text.push_str(clip(&field(name), room)),
        }
    }
    text
}

fn check_pointer(field: &str, pointer: &str) -> Result<()> {
    if pointer.len() > SELECTOR_BYTES_MAX {
        return Err(Error::invalid(
            format!("{field}.pointer"),
            format!("has {} bytes", pointer.len()),
            format!("{SELECTOR_BYTES_MAX} bytes"),
        ));
    }
    if !pointer.is_empty() && !pointer.starts_with('/') {
        return Err(Error::invalid(
            format!("{field}.pointer"),
            format!("{pointer:?} is not a JSON pointer"),
            "empty, or starting with a slash",
        ));
    }
    Ok(())
}

fn check_template(field: &str, template: &str, fields: &BTreeMap<String, String>) -> Result<()> {
    if template.len() > SELECTOR_BYTES_MAX {
        return Err(Error::invalid(
            format!("{field}.template"),
            format!("has {} bytes", template.len()),
            format!("{SELECTOR_BYTES_MAX} bytes"),
        ));
    }
    if fields.len() > TEMPLATE_FIELDS_MAX {
        return Err(Error::invalid(
            format!("{field}.fields"),
            format!("has {} entries", fields.len()),
            format!("{TEMPLATE_FIELDS_MAX} entries"),
        ));
    }
    for (name, pointer) in fields {
        check_event_name(&format!("{field}.fields"), name)?;
        check_pointer(&format!("{field}.fields.{name}"), pointer)?;
    }
    let Some(pieces) = pieces(template) else {
        return Err(Error::invalid(
            format!("{field}.template"),
            "has a brace without its partner",
            "fields as {name}, braces doubled",
        ));
    };
    for piece in pieces {
        if let Piece::Field(name) = piece
            && !fields.contains_key(name)
        {
            return Err(Error::invalid(
                format!("{field}.template"),
                format!("names the field {name:?} that fields does not have"),
                "only fields that are listed",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_fill_fields_and_double_braces() {
        let selector =
            Selector::template("{{{a}}} {b}{c}", [("a", "/a"), ("b", "/b"), ("c", "/c")]);
        assert!(selector.check("wake.text").is_ok());
        assert_eq!(
            selector.select(&json!({ "a": "x", "b": [1] })),
            json!("{x} [1]")
        );
    }

    #[test]
    fn a_template_that_names_an_unlisted_field_is_refused() {
        let selector = Selector::template("{nope}", [("a", "/a")]);
        let error = selector.check("wake.text").unwrap_err().to_string();
        assert!(
            error.contains("wake.text.template") && error.contains("nope"),
            "{error}"
        );
        let lone: Selector = Selector::template("{", [("a", "/a")]);
        assert!(lone.check("wake.text").is_err());
    }

    #[test]
    fn conditions_hold_unless_null_or_false() {
        let payload = json!({ "done": false, "count": 0 });
        assert!(!Selector::pointer("/done").holds(&payload));
        assert!(!Selector::pointer("/missing").holds(&payload));
        assert!(Selector::pointer("/count").holds(&payload));
        assert!(Selector::present("/done").holds(&payload));
    }
}
