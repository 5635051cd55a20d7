//! The systems and the work they are given.

mod duroxide;
mod floor;
mod lash;
mod procession;
mod sled;
mod sqlite;

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use serde_json::{Value, json};

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Figure {
    Append,
    Start,
    Lifecycle,
}

/// What is measured with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum System {
    Procession,
    /// Waiting until each event of a lifecycle is durable.
    ProcessionEach,
    Floor,
    Sled,
    Sqlite,
    Lash,
    LashFull,
    Duroxide,
}

impl System {
    pub const ALL: [Self; 8] = [
        Self::Procession,
        Self::ProcessionEach,
        Self::Floor,
        Self::Sled,
        Self::Sqlite,
        Self::Lash,
        Self::LashFull,
        Self::Duroxide,
    ];

    /// Whether a figure can be measured with it.
    pub fn does(self, figure: Figure) -> bool {
        match self {
            Self::ProcessionEach => figure == Figure::Lifecycle,
            Self::Duroxide => figure != Figure::Append,
            _ => true,
        }
    }

    /// What an answer survives. `--syncs` checks it.
    pub fn durability(self) -> &'static str {
        match self {
            Self::Procession | Self::ProcessionEach => {
                "power loss: one fdatasync per group before its answers"
            }
            Self::Floor => "power loss: one fdatasync per group before its answers",
            Self::Sled => "power loss: flush and fdatasync per group before its answers",
            Self::Sqlite => "power loss: WAL, synchronous=FULL, one sync per group",
            Self::Lash => {
                "crash of the process: WAL, synchronous=NORMAL, syncs at checkpoints only"
            }
            Self::LashFull => "power loss: WAL, synchronous=FULL, one sync per transaction",
            Self::Duroxide => {
                "crash of the process: WAL, synchronous=NORMAL, syncs at checkpoints only"
            }
        }
    }
}

const FIGURES: [(Figure, &str); 3] = [
    (Figure::Append, "append"),
    (Figure::Start, "start"),
    (Figure::Lifecycle, "lifecycle"),
];

const SYSTEMS: [(System, &str); 8] = [
    (System::Procession, "procession"),
    (System::ProcessionEach, "procession-each"),
    (System::Floor, "floor"),
    (System::Sled, "sled"),
    (System::Sqlite, "sqlite"),
    (System::Lash, "lash"),
    (System::LashFull, "lash-full"),
    (System::Duroxide, "duroxide"),
];

fn name_of<T: PartialEq>(names: &[(T, &'static str)], value: &T) -> &'static str {
    let named = names.iter().find(|(one, _)| one == value);
    named.map_or("", |(_, name)| name)
}

fn named<T: Copy>(names: &[(T, &str)], text: &str) -> Result<T, String> {
    let named = names.iter().find(|(_, name)| *name == text);
    let known: Vec<_> = names.iter().map(|(_, name)| *name).collect();
    named
        .map(|(one, _)| *one)
        .ok_or_else(|| format!("unknown name {text:?}; there are: {}", known.join(", ")))
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&FIGURES, self))
    }
}

impl fmt::Display for System {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(name_of(&SYSTEMS, self))
    }
}

impl FromStr for Figure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(&FIGURES, text)
    }
}

impl FromStr for System {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        named(&SYSTEMS, text)
    }
}

/// A system's store, opened, and the work on it. A call returns when the work is acknowledged; its
/// number is the caller's own, and rises by one.
#[async_trait::async_trait]
pub trait Store: Send + Sync {
    /// Appends an event to the log of the caller's own process.
    async fn append(&self, caller: usize, number: u64);

    /// Registers a process of an external owner, with a grant.
    async fn start(&self, caller: usize, number: u64);

    /// Start with a grant, claim, started, ten events, completed.
    async fn lifecycle(&self, caller: usize, number: u64);

    /// Waits until work that was put off is done.
    async fn drain(&self) {}
}

/// The events of a lifecycle.
pub const EVENTS: u64 = 10;
/// What a lifecycle commits: the start with its grant, the claim, the started, the events, the end.
pub const LIFECYCLE_COMMITS: u64 = EVENTS + 4;
/// The type of every event.
pub const EVENT_TYPE: &str = "note";
/// The session that is granted the processes.
pub const SESSION: &str = "session-1";

/// The payload of an event: 200 bytes of JSON.
pub fn payload(number: u64) -> Value {
    json!({ "n": number, "t": "x".repeat(185) })
}

/// Opens a store in a directory, with what a figure needs in it.
pub async fn open(system: System, dir: &Path, figure: Figure, callers: usize) -> Arc<dyn Store> {
    match system {
        System::Procession => Arc::new(procession::open(dir, figure, callers, false).await),
        System::ProcessionEach => Arc::new(procession::open(dir, figure, callers, true).await),
        System::Floor => Arc::new(floor::Floor::open(dir)),
        System::Sled => Arc::new(sled::Sled::open(dir)),
        System::Sqlite => Arc::new(sqlite::Sqlite::open(dir)),
        System::Lash => Arc::new(lash::Lash::open(dir, figure, callers).await),
        System::LashFull => {
            lash::watch_connections();
            let lash = lash::Lash::open(dir, figure, callers).await;
            lash::sync_fully();
            Arc::new(lash)
        }
        System::Duroxide => Arc::new(duroxide::Duroxide::open(dir, figure).await),
    }
}
