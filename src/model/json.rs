//! JSON as it is kept: bounded, canonical, shared.
//!
//! Canonical here means: object keys sorted by their bytes, no white space, numbers as
//! `serde_json` prints them. RFC 8785 was considered and not taken: it turns integers beyond 2^53
//! into doubles, and a payload must come back as it was given.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::error::{Error, Result};
use super::limits::JSON_DEPTH_MAX;

/// A JSON value that is shared and not copied: one event's payload reaches every subscriber as
/// the same allocation. Dereferences to [`Value`] and compares with it.
///
/// ```
/// use procession::Payload;
/// use serde_json::json;
/// let payload = Payload::from(json!({ "percent": 10 }));
/// assert_eq!(payload["percent"], 10);
/// assert_eq!(payload, json!({ "percent": 10 }));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Payload(Arc<Value>);

impl Payload {
    /// The value itself, copied only if it is shared.
    #[must_use]
    pub fn into_value(self) -> Value {
        Arc::try_unwrap(self.0).unwrap_or_else(|shared| (*shared).clone())
    }
}

impl Deref for Payload {
    type Target = Value;
    fn deref(&self) -> &Value {
        &self.0
    }
}

impl From<Value> for Payload {
    fn from(value: Value) -> Self {
        Self(Arc::new(value))
    }
}

impl PartialEq<Value> for Payload {
    fn eq(&self, other: &Value) -> bool {
        *self.0 == *other
    }
}

impl PartialEq<Payload> for Value {
    fn eq(&self, other: &Payload) -> bool {
        *self == *other.0
    }
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A SHA-256 of canonical bytes, in hexadecimal where it is shown.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 32]);

impl ContentHash {
    /// The hash of some bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

impl fmt::Display for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for ContentHash {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ContentHash {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_hex(&text).ok_or_else(|| serde::de::Error::custom("expected 64 hexadecimal digits"))
    }
}

fn parse_hex(text: &str) -> Option<ContentHash> {
    let mut bytes = [0; 32];
    // Every byte: the standard parser would take a sign for a digit.
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(ContentHash(bytes))
}

/// The canonical bytes of a value whose depth has been checked.
pub(crate) fn canonical_bytes(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_canonical(value, &mut out);
    out
}

fn write_canonical(value: &Value, out: &mut Vec<u8>) {
    match value {
        Value::Object(map) => {
            out.push(b'{');
            // The map is sorted already unless some crate in the host's build asked serde_json to
            // keep insertion order.
            if map.keys().is_sorted() {
                write_entries(map.iter(), out);
            } else {
                let mut entries: Vec<_> = map.iter().collect();
                entries.sort_unstable_by_key(|(key, _)| key.as_bytes());
                write_entries(entries.into_iter(), out);
            }
            out.push(b'}');
        }
        Value::Array(items) => {
            out.push(b'[');
            for (at, item) in items.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_canonical(item, out);
            }
            out.push(b']');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            write_plain(value, out);
        }
    }
}

fn write_entries<'a>(entries: impl Iterator<Item = (&'a String, &'a Value)>, out: &mut Vec<u8>) {
    for (at, (key, value)) in entries.enumerate() {
        if at > 0 {
            out.push(b',');
        }
        write_plain(key, out);
        out.push(b':');
        write_canonical(value, out);
    }
}

fn write_plain<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) {
    // Scalars have no map keys and a Vec takes every byte: this cannot fail.
    let written = serde_json::to_writer(out, value);
    debug_assert!(written.is_ok(), "a scalar is always written");
}

/// The canonical bytes of a value, or why it is refused: too deep or too long.
pub(crate) fn bounded_bytes(field: &str, value: &Value, bytes_max: usize) -> Result<Vec<u8>> {
    check_depth(field, value)?;
    let bytes = canonical_bytes(value);
    if bytes.len() > bytes_max {
        return Err(Error::invalid(
            field,
            format!("has {} bytes of JSON", bytes.len()),
            format!("{bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}

/// Refuses a value nested deeper than the limit.
pub(crate) fn check_depth(field: &str, value: &Value) -> Result<()> {
    // The recursion is as deep as the limit, whatever the value is.
    fn fits(value: &Value, levels_left: usize) -> bool {
        match value {
            Value::Array(items) => {
                levels_left > 0 && items.iter().all(|item| fits(item, levels_left - 1))
            }
            Value::Object(map) => {
                levels_left > 0 && map.values().all(|item| fits(item, levels_left - 1))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        }
    }
    if fits(value, JSON_DEPTH_MAX) {
        return Ok(());
    }
    Err(Error::invalid(
        field,
        format!("is nested deeper than {JSON_DEPTH_MAX} levels"),
        format!("{JSON_DEPTH_MAX} levels"),
    ))
}

/// Drops a value level by level: a deep one that a caller built in code would overflow the stack
/// if it were dropped recursively.
pub(crate) fn dismantle(value: Value) {
    let mut pending = vec![value];
    while let Some(next) = pending.pop() {
        match next {
            Value::Array(items) => pending.extend(items),
            Value::Object(map) => pending.extend(map.into_iter().map(|(_, value)| value)),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
        }
    }
}

/// Reads a field that is absent or any JSON, so that a `null` that was given stays one: serde's own
/// reading of an `Option` makes it absent.
pub(crate) fn present<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Value>, D::Error> {
    Value::deserialize(deserializer).map(Some)
}

/// Parses canonical bytes that were checked when they were written.
pub(crate) fn parse(bytes: &[u8]) -> std::result::Result<Value, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    // What was written is at most JSON_DEPTH_MAX levels deep, one more than serde_json's own limit
    // lets through.
    reader.disable_recursion_limit();
    let value = Value::deserialize(&mut reader)?;
    reader.end()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn nested(depth: usize) -> Value {
        (0..depth).fold(Value::Null, |inner, _| Value::Array(vec![inner]))
    }

    #[test]
    fn canonical_bytes_sort_keys_and_keep_integers() {
        let value =
            json!({ "b": 1, "a": [18_446_744_073_709_551_615_u64, -0.5, "x\n"], "é": null });
        assert_eq!(
            String::from_utf8(canonical_bytes(&value)).unwrap(),
            r#"{"a":[18446744073709551615,-0.5,"x\n"],"b":1,"é":null}"#
        );
    }

    #[test]
    fn depth_is_bounded_and_what_is_accepted_can_be_read_back() {
        let deepest = nested(JSON_DEPTH_MAX);
        let bytes = bounded_bytes("payload", &deepest, 1 << 20);
        match bytes {
            Ok(bytes) => assert!(parse(&bytes).is_ok(), "accepted JSON must parse again"),
            Err(error) => panic!("{error}"),
        }
        let too_deep = nested(200_000);
        let error = bounded_bytes("payload", &too_deep, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("payload"), "{error}");
        dismantle(too_deep);
    }

    #[test]
    fn hashes_round_trip_as_text() {
        let hash = ContentHash::of(b"abc");
        // The test vector of FIPS 180-2.
        assert_eq!(
            hash.to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let back: ContentHash = serde_json::from_value(json!(hash.to_string())).unwrap();
        assert_eq!(back, hash);
    }

    #[test]
    fn a_hash_is_read_from_64_digits_and_nothing_else() {
        let digits = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        for text in [
            String::new(),
            digits[1..].to_owned(),
            format!("{digits}0"),
            format!("+a{}", &digits[2..]),
            format!("g{}", &digits[1..]),
            format!("é{}", &digits[2..]),
        ] {
            assert!(
                serde_json::from_value::<ContentHash>(json!(text)).is_err(),
                "{text}"
            );
        }
    }

    #[test]
    fn numbers_come_back_as_they_were_given() {
        // Needs the exact parser of `serde_json`, which is a feature of it.
        let mut bits: u64 = 0x2545_f491_4f6c_dd1d;
        for _ in 0..50_000 {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            let Some(number) = serde_json::Number::from_f64(f64::from_bits(bits)) else {
                continue;
            };
            let bytes = canonical_bytes(&Value::Number(number.clone()));
            assert_eq!(parse(&bytes).unwrap(), Value::Number(number));
        }
    }
}
