//! The JSON of every public type: it is stable.

mod records;
mod requests;

use super::scope::SessionScope;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::fmt::Debug;

/// A value is written as this JSON, and this JSON is read as that value.
#[track_caller]
#[expect(
    clippy::needless_pass_by_value,
    reason = "tables of literals read better"
)]
pub(super) fn is<T: Serialize + DeserializeOwned + PartialEq + Debug>(value: T, text: Value) {
    assert_eq!(serde_json::to_value(&value).unwrap(), text);
    // From text as well: what is tagged or flattened is read in another way there.
    assert_eq!(serde_json::from_str::<T>(&text.to_string()).unwrap(), value);
    assert_eq!(serde_json::from_value::<T>(text).unwrap(), value);
}

#[track_caller]
pub(super) fn is_refused<T: DeserializeOwned + Debug>(text: &Value, naming: &str) {
    let error = serde_json::from_value::<T>(text.clone())
        .unwrap_err()
        .to_string();
    assert!(error.contains(naming), "{text}: {error}");
}

pub(super) fn scope() -> SessionScope {
    SessionScope::new("s-1")
}
