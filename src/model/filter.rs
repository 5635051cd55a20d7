//! Which processes a list shows, and its pages.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::error::{Error, Result, clip};
use super::ids::{check_id, check_text};
use super::limits::{LIST_PAGE_MAX, TEXT_BYTES_MAX};
use super::observed::{Lifecycle, ObservedProcess};
use super::request::check_labels;
use super::scope::ProcessOriginator;

/// Which part of their life the listed processes are in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StatusFilter {
    /// Not ended.
    #[default]
    Running,
    /// Returned a value.
    Completed,
    /// Failed.
    Failed,
    /// Ended because they were asked to.
    Cancelled,
    /// Nobody can know how they ended.
    Abandoned,
    /// Ended, in whatever way.
    Terminal,
    /// All.
    Any,
}

impl StatusFilter {
    /// Whether it may let something through of which only is known whether it has ended.
    pub(crate) fn may_admit(self, ended: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Running => !ended,
            Self::Completed | Self::Failed | Self::Cancelled | Self::Abandoned | Self::Terminal => {
                ended
            }
        }
    }

    fn admits(self, lifecycle: Lifecycle) -> bool {
        match self {
            Self::Any => true,
            Self::Terminal => lifecycle != Lifecycle::Running,
            Self::Running => lifecycle == Lifecycle::Running,
            Self::Completed => lifecycle == Lifecycle::Completed,
            Self::Failed => lifecycle == Lifecycle::Failed,
            Self::Cancelled => lifecycle == Lifecycle::Cancelled,
            Self::Abandoned => lifecycle == Lifecycle::Abandoned,
        }
    }
}

/// Which processes a list shows: those that meet every condition that is set. By default the
/// running ones.
///
/// ```
/// use procession::{ProcessListFilter, StatusFilter};
/// let filter: ProcessListFilter = serde_json::from_str(
///     r#"{ "status": "any", "labels": { "team": "compilers" } }"#,
/// )?;
/// assert_eq!(filter.status, StatusFilter::Any);
/// // What it does not know it refuses by name.
/// let error = serde_json::from_str::<ProcessListFilter>(r#"{ "state": "any" }"#).unwrap_err();
/// assert!(error.to_string().contains("state"));
/// # Ok::<(), serde_json::Error>(())
/// ```
///
/// A list goes through one index: what it is about (a scope's grants, an originator), or else the parent,
/// or else the originator, or else what runs, or else everything. The rest of a filter is looked at
/// entry by entry, the status first: an entry that has another one costs a small read and is not decoded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ProcessListFilter {
    /// Where in their life.
    pub status: StatusFilter,
    /// Whether their engine waits for a signal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting: Option<bool>,
    /// Who created them: see [`ProcessOriginator::scope_id`](super::ProcessOriginator::scope_id). A host
    /// without a name is in no index: a list of what it created goes through all that the status selects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub originator_scope_id: Option<String>,
    /// Their kind.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_kind: Option<String>,
    /// Their label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub identity_label: Option<String>,
    /// Their definition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub definition: Option<String>,
    /// Their cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caused_by: Option<String>,
    /// The id of the process that started them: the incarnation that the id stands for when the list
    /// is begun, which is its newest one, pruned or not. Further pages stay with that one. Children of
    /// an incarnation before it are in no list by this filter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Labels that they have, all of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Created at or after, milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_start_ms: Option<u64>,
    /// Created before, milliseconds since the epoch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at_end_ms: Option<u64>,
}

impl ProcessListFilter {
    /// Every process, ended or not.
    #[must_use]
    pub fn any() -> Self {
        Self::default().with_status(StatusFilter::Any)
    }

    /// With this status.
    #[must_use]
    pub const fn with_status(mut self, status: StatusFilter) -> Self {
        self.status = status;
        self
    }

    pub(crate) fn check(&self) -> Result<()> {
        for (field, value) in [
            ("filter.identity_kind", &self.identity_kind),
            ("filter.definition", &self.definition),
            ("filter.caused_by", &self.caused_by),
            ("filter.parent", &self.parent),
        ] {
            if let Some(value) = value {
                check_id(field, value)?;
            }
        }
        for (field, value) in [
            ("filter.originator_scope_id", &self.originator_scope_id),
            ("filter.identity_label", &self.identity_label),
        ] {
            if let Some(value) = value {
                check_text(field, value, 2 * TEXT_BYTES_MAX)?;
            }
        }
        check_labels("filter.labels", &self.labels)
    }

    /// Whether a process meets every condition.
    pub(crate) fn admits(&self, process: &ObservedProcess) -> bool {
        self.admits_facts(&FilterFacts {
            lifecycle: process.lifecycle,
            waiting: process.facets.waiting,
            originator: &process.originator,
            kind: process.kind.as_ref(),
            label: process.label.as_ref(),
            definition: process.definition.as_ref(),
            caused_by: process.caused_by.as_ref(),
            parent: process.parent.as_ref().map(|parent| &parent.process_id),
            labels: &process.labels,
            created_at_ms: process.created_at_ms,
        })
    }

    /// The same of what is known of a process before it is put together.
    pub(crate) fn admits_facts(&self, process: &FilterFacts<'_>) -> bool {
        fn same(wanted: Option<&String>, found: Option<&String>) -> bool {
            wanted.is_none_or(|wanted| found == Some(wanted))
        }
        self.status.admits(process.lifecycle)
            && self
                .waiting
                .is_none_or(|waiting| waiting == process.waiting)
            && self
                .originator_scope_id
                .as_ref()
                .is_none_or(|wanted| *wanted == process.originator.scope_id())
            && same(self.identity_kind.as_ref(), process.kind)
            && same(self.identity_label.as_ref(), process.label)
            && same(self.definition.as_ref(), process.definition)
            && same(self.caused_by.as_ref(), process.caused_by)
            && same(self.parent.as_ref(), process.parent)
            && self
                .labels
                .iter()
                .all(|(name, value)| process.labels.get(name) == Some(value))
            && self
                .created_at_start_ms
                .is_none_or(|start| process.created_at_ms >= start)
            && self
                .created_at_end_ms
                .is_none_or(|end| process.created_at_ms < end)
    }
}

/// All that a filter asks about: it needs nothing that stands beside a record.
pub(crate) struct FilterFacts<'a> {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) waiting: bool,
    pub(crate) originator: &'a ProcessOriginator,
    pub(crate) kind: Option<&'a String>,
    pub(crate) label: Option<&'a String>,
    pub(crate) definition: Option<&'a String>,
    pub(crate) caused_by: Option<&'a String>,
    /// Its id.
    pub(crate) parent: Option<&'a String>,
    pub(crate) labels: &'a BTreeMap<String, String>,
    pub(crate) created_at_ms: u64,
}

const FILTER_FIELDS: &[&str] = &[
    "status",
    "waiting",
    "originator_scope_id",
    "identity_kind",
    "identity_label",
    "definition",
    "caused_by",
    "parent",
    "labels",
    "created_at_start_ms",
    "created_at_end_ms",
];

/// Written out because what serde derives names the type it expected and not the field: whoever
/// wrote a filter with eleven fields wants to know which one is wrong.
impl<'de> Deserialize<'de> for ProcessListFilter {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_struct("ProcessListFilter", FILTER_FIELDS, FilterVisitor)
    }
}

struct FilterVisitor;

impl<'de> Visitor<'de> for FilterVisitor {
    type Value = ProcessListFilter;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a filter of processes, as an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        fn value<'de, T: Deserialize<'de>, A: MapAccess<'de>>(
            name: &str,
            map: &mut A,
        ) -> Result<T, A::Error> {
            map.next_value()
                .map_err(|error| de::Error::custom(format_args!("{name}: {error}")))
        }
        let mut filter = ProcessListFilter::default();
        let mut seen = Vec::new();
        while let Some(name) = map.next_key::<String>()? {
            let Some(known) = FILTER_FIELDS.iter().find(|known| **known == name) else {
                return Err(de::Error::unknown_field(clip(&name, 64), FILTER_FIELDS));
            };
            if seen.contains(known) {
                return Err(de::Error::duplicate_field(known));
            }
            seen.push(*known);
            match *known {
                "status" => filter.status = value(known, &mut map)?,
                "waiting" => filter.waiting = value(known, &mut map)?,
                "originator_scope_id" => filter.originator_scope_id = value(known, &mut map)?,
                "identity_kind" => filter.identity_kind = value(known, &mut map)?,
                "identity_label" => filter.identity_label = value(known, &mut map)?,
                "definition" => filter.definition = value(known, &mut map)?,
                "caused_by" => filter.caused_by = value(known, &mut map)?,
                "parent" => filter.parent = value(known, &mut map)?,
                "labels" => filter.labels = value(known, &mut map)?,
                "created_at_start_ms" => filter.created_at_start_ms = value(known, &mut map)?,
                "created_at_end_ms" => filter.created_at_end_ms = value(known, &mut map)?,
                other => return Err(de::Error::unknown_field(other, FILTER_FIELDS)),
            }
        }
        Ok(filter)
    }
}

/// Where a list goes on. Opaque: it stays valid while processes come and go, and belongs to one list of
/// one store, with one filter. Any other refuses it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PageCursor(pub(crate) String);

/// Which page of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageRequest {
    /// At most so many entries, 1 to 1,000.
    pub limit: usize,
    /// Where to go on; absent for the first page.
    pub cursor: Option<PageCursor>,
}

impl PageRequest {
    /// The first page of this size.
    #[must_use]
    pub const fn first(limit: usize) -> Self {
        Self {
            limit,
            cursor: None,
        }
    }

    /// The page after a cursor.
    #[must_use]
    pub const fn after(cursor: PageCursor, limit: usize) -> Self {
        Self {
            limit,
            cursor: Some(cursor),
        }
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.limit == 0 || self.limit > LIST_PAGE_MAX {
            return Err(Error::invalid(
                "page.limit",
                format!("is {}", self.limit),
                format!("1 to {LIST_PAGE_MAX}"),
            ));
        }
        Ok(())
    }
}

/// A page of a list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Page<T> {
    /// The entries.
    pub items: Vec<T>,
    /// Where to go on; absent at the end.
    #[serde(default = "none", skip_serializing_if = "Option::is_none")]
    pub next: Option<PageCursor>,
}

const fn none() -> Option<PageCursor> {
    None
}
