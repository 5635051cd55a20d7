//! Durations as humantime text, in configuration and in JSON.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer};

use super::error::{Error, Result, clip};
use super::limits::DURATION_MS_MAX;

/// Parses text such as `30s` or `7d`.
pub(crate) fn parse(field: &str, text: &str) -> Result<Duration> {
    humantime::parse_duration(text).map_err(|error| {
        Error::invalid(
            field,
            format!("{:?}: {error}", clip(text, 64)),
            "a duration such as 30s, 10m or 7d",
        )
    })
}

/// Checks a duration that will be stored in milliseconds.
pub(crate) fn check(field: &str, duration: Duration) -> Result<u64> {
    u64::try_from(duration.as_millis())
        .ok()
        .filter(|ms| *ms <= DURATION_MS_MAX)
        .ok_or_else(|| Error::invalid(field, "is too long", format!("{DURATION_MS_MAX} ms")))
}

pub(crate) fn serialize<S: Serializer>(
    duration: &Duration,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_duration(&text).map_err(serde::de::Error::custom)
}

/// The same for a duration that may be absent.
pub(crate) mod optional {
    use super::{Deserialize, Deserializer, Duration, Serializer};

    #[expect(clippy::ref_option, reason = "the signature is serde's")]
    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Option::<String>::deserialize(deserializer)?
            .map(|text| humantime::parse_duration(&text).map_err(serde::de::Error::custom))
            .transpose()
    }
}
