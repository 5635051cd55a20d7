//! Opening: our lock, sled's leftovers, the format verdict, the replay, and the new epoch.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use super::super::error::StoreError;
use super::super::panics::panic_text;
use super::Options;
use super::fault::{Faults, Step};
use super::frame::{FORMAT_VERSION, corrupted};
use super::index::{Index, Trees, failed};
use super::inner::{Block, COUNTER_BLOCK, Inner, State};
use super::journal::{self, Journal, Replay};
use super::meta::{self, LowWater};
use super::overlay::{Layer, Pairs};
use super::settle;

/// Our lock, beside sled's own: held before sled is touched, so that cleaning up after a killed
/// open never meets a living one.
const LOCK_FILE: &str = "procession.lock";
/// sled's file, by sled's name for it.
pub(super) const SLED_FILE: &str = "db";

/// What an open yields.
pub(super) struct Opened {
    pub(super) inner: Inner,
    pub(super) epoch: u64,
    pub(super) store_id: uuid::Uuid,
}

/// Opens the store in a directory, making it if it is not there. The file is the lock.
pub(super) fn open(path: &Path, options: Options) -> Result<(Opened, File), StoreError> {
    create_directory(path)?;
    let lock = take_lock(path)?;
    // sled panics on some damage. That is an answer here, not the end of the host.
    let opened = catch_unwind(AssertUnwindSafe(|| open_locked(path, options)));
    let opened = opened.unwrap_or_else(|panic| {
        Err(StoreError::Corrupted {
            what: format!(
                "sled panicked while opening {}: {}",
                path.display(),
                panic_text(panic.as_ref())
            ),
        })
    });
    if matches!(opened, Err(StoreError::Failed { .. })) {
        // It may have been a sync.
        settle::distrust(path);
    }
    Ok((opened?, lock))
}

fn open_locked(path: &Path, options: Options) -> Result<Opened, StoreError> {
    settle::settle(path, &options.faults)?;
    remove_snapshots(path, |name| name.ends_with(".generating"))?;
    let db = match open_sled(path, &options) {
        Err(StoreError::Corrupted { what }) => repair(path, &options, &what)?,
        other => other?,
    };
    options.faults.at(Step::OpenStarted, &db)?;
    let is_new = judge_format(&db)?;
    let data_file = OpenOptions::new()
        .write(true)
        .open(path.join(SLED_FILE))
        .map_err(|error| io_failed("open sled's file", path, &error))?;
    let trees = open_trees(db, is_new)?;
    let (store_id, journal) = open_journal(path, &trees, &options.faults)?;
    let mut low_water = LowWater::load(&trees.meta)?;
    let replay = journal::replay(&journal, low_water.sequence, low_water.commit)?;
    options.faults.at(Step::OpenRewritten, &trees.db)?;
    // What a kill left in the system's cache is as good as committed only from here on.
    journal.sync()?;
    options.faults.at(Step::OpenReplayed, &trees.db)?;
    let epoch = meta::get_u64(&trees.meta, meta::EPOCH)?.unwrap_or(0) + 1;
    meta::put(&trees.meta, meta::EPOCH, &epoch.to_be_bytes())?;
    let counters = reserve(&mut low_water, replay.marks);
    low_water.save(&trees.meta)?;
    options.faults.at(Step::OpenRaised, &trees.db)?;
    trees.db.flush().map_err(failed)?;
    options.faults.at(Step::IndexSync, &trees.db)?;
    data_file
        .sync_data()
        .map_err(|error| io_failed("sync sled's file", path, &error))?;
    options.faults.at(Step::IndexSynced, &trees.db)?;
    sync_names(path)?;
    let has_garbage = trees.next_garbage(0)?.is_some();
    let state = replayed_state(replay, low_water, has_garbage);
    tracing::info!(
        path = %path.display(),
        epoch,
        commit = state.commit,
        replayed = state.active.entries(),
        "store opened"
    );
    Ok(Opened {
        inner: Inner::new(
            path.to_owned(),
            options,
            Index::new(trees),
            journal,
            data_file,
            state,
            counters,
        ),
        epoch,
        store_id,
    })
}

/// The replayed groups become the first overlay: reads see them at once, and the write-behind
/// takes them from there like any others.
fn replayed_state(replay: Replay, low_water: LowWater, has_garbage: bool) -> State {
    let mut state = State {
        active: Layer::default(),
        frozen: None,
        commit: low_water.commit,
        next_position: low_water.next_position,
        journal_next: replay.next_sequence,
        marks: low_water.marks,
        low_water,
        views: BTreeMap::new(),
        next_view: 0,
        has_garbage,
        drain_waiters: 0,
        drain_parked: false,
        views_awaited: false,
        stop: false,
    };
    for group in replay.groups {
        for op in group.ops {
            state.active.apply(op, Pairs::Keep);
        }
        state.commit = group.commit;
        state.next_position = group.next_position;
    }
    state
}

fn io_failed(what: &str, path: &Path, error: &io::Error) -> StoreError {
    StoreError::Failed {
        cause: format!("{what} at {}: {error}", path.display()).into(),
    }
}

/// Directories that are made on the way have to survive as well, as names in those above them.
fn create_directory(path: &Path) -> Result<(), StoreError> {
    let missing = |it: &&Path| !it.as_os_str().is_empty() && !it.exists();
    let made: Vec<&Path> = path.ancestors().take_while(missing).collect();
    let created = || {
        fs::create_dir_all(path)?;
        made.iter()
            .try_for_each(|it| it.parent().map_or(Ok(()), sync_directory))
    };
    created().map_err(|error: io::Error| io_failed("create the directory", path, &error))
}

fn take_lock(path: &Path) -> Result<File, StoreError> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path.join(LOCK_FILE))
        .map_err(|error| io_failed("open the lock file", path, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(busy(path)),
        Err(TryLockError::Error(error)) => Err(io_failed("take the lock", path, &error)),
    }
}

fn busy(path: &Path) -> StoreError {
    StoreError::Busy {
        path: path.display().to_string(),
    }
}

/// Removes sled's snapshot files by name. They only shorten sled's recovery; one that a kill left
/// half-written makes sled take the whole store for corrupted.
fn remove_snapshots(path: &Path, matches: impl Fn(&str) -> bool) -> Result<(), StoreError> {
    let failed = |error: io::Error| io_failed("clean up snapshots", path, &error);
    for entry in fs::read_dir(path).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && matches(&name) {
            fs::remove_file(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}

fn open_sled(path: &Path, options: &Options) -> Result<sled::Db, StoreError> {
    let config = sled::Config::new()
        .path(path)
        .cache_capacity(options.cache_capacity_bytes)
        // Only the write-behind flushes.
        .flush_every_ms(None);
    match catch_unwind(AssertUnwindSafe(|| config.open())) {
        Ok(Ok(db)) => Ok(db),
        Ok(Err(sled::Error::Io(error))) if error.to_string().contains("acquire lock") => {
            Err(busy(path))
        }
        Ok(Err(sled::Error::Unsupported(what))) => Err(StoreError::Corrupted { what }),
        Ok(Err(error)) => Err(failed(error)),
        Err(panic) => Err(StoreError::Corrupted {
            what: format!("sled panicked: {}", panic_text(panic.as_ref())),
        }),
    }
}

/// Tries once more without sled's snapshots, on a store of which a copy was made first.
fn repair(path: &Path, options: &Options, what: &str) -> Result<sled::Db, StoreError> {
    let copy = copy_aside(path)?;
    remove_snapshots(path, |_| true)?;
    tracing::warn!(
        path = %path.display(),
        copy = %copy.display(),
        what,
        "sled reported corruption: opening again without its snapshots"
    );
    open_sled(path, options)
}

fn copy_aside(path: &Path) -> Result<PathBuf, StoreError> {
    let failed = |error: io::Error| io_failed("copy the damaged store aside", path, &error);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let free = (1..=u32::MAX)
        .map(|number| path.with_file_name(format!("{name}.damaged-{number}")))
        .find(|candidate| !candidate.exists());
    let copy = free.ok_or_else(|| failed(io::Error::other("no free name")))?;
    copy_directory(path, &copy).map_err(failed)?;
    Ok(copy)
}

pub(super) fn copy_directory(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// Whether the store is new, before anything is written to it.
///
/// # Errors
/// `TooNew`, `TooOld`, or `Corrupted` for a sled store of somebody else.
fn judge_format(db: &sled::Db) -> Result<bool, StoreError> {
    let names = db.tree_names();
    if !names.iter().any(|name| name == b"meta") {
        let is_empty = names.len() <= 1 && db.is_empty();
        return if is_empty {
            Ok(true)
        } else {
            Err(StoreError::Corrupted {
                what: "a sled store that is not one of ours".to_owned(),
            })
        };
    }
    let meta = db.open_tree("meta").map_err(failed)?;
    let Some(body) = meta::get(&meta, meta::FORMAT)? else {
        // A crash between making the tree and its first record; nothing else exists then.
        return if meta.is_empty() && names.len() <= 2 {
            Ok(true)
        } else {
            Err(corrupted("meta", meta::FORMAT, "no format version"))
        };
    };
    let found = body.as_slice().try_into().map(u32::from_be_bytes);
    let found =
        found.map_err(|_| corrupted("meta", meta::FORMAT, "record of unexpected length"))?;
    match found.cmp(&FORMAT_VERSION) {
        std::cmp::Ordering::Equal => Ok(false),
        std::cmp::Ordering::Greater => Err(StoreError::TooNew {
            found,
            supported: FORMAT_VERSION,
        }),
        std::cmp::Ordering::Less => Err(StoreError::TooOld {
            found,
            supported: FORMAT_VERSION,
        }),
    }
}

fn open_trees(db: sled::Db, is_new: bool) -> Result<Trees, StoreError> {
    let meta = db.open_tree("meta").map_err(failed)?;
    if is_new {
        // The version first: whatever exists beyond it is of that version.
        meta::put(&meta, meta::FORMAT, &FORMAT_VERSION.to_be_bytes())?;
    }
    let open = |name| db.open_tree(name).map_err(failed);
    let parts = open("parts")?;
    Ok(Trees {
        keys: open("index")?,
        events: open("events")?,
        garbage: open("garbage")?,
        has_parts: AtomicBool::new(!parts.is_empty()),
        may_have_orphans: AtomicBool::new(true),
        parts,
        meta,
        db,
    })
}

/// The store's id, and its journal. Both are made at the first open; a crash before that open's
/// sync makes others, because nothing can have been committed by then.
fn open_journal(
    path: &Path,
    trees: &Trees,
    faults: &Faults,
) -> Result<(uuid::Uuid, Journal), StoreError> {
    if let Some(body) = meta::get(&trees.meta, meta::STORE_ID)? {
        let store_id = uuid::Uuid::from_slice(&body)
            .map_err(|_| corrupted("meta", meta::STORE_ID, "record of unexpected length"))?;
        return Ok((store_id, Journal::open(path, store_id, faults)?));
    }
    let store_id = uuid::Uuid::new_v4();
    let journal = Journal::create(path, store_id, faults)?;
    sync_directory(path).map_err(|error| io_failed("sync the new journal", path, &error))?;
    meta::put(&trees.meta, meta::STORE_ID, store_id.as_bytes())?;
    Ok((store_id, journal))
}

/// Numbers go on from the last mark: what the last open did not hand out is a gap.
fn reserve(low_water: &mut LowWater, replayed: [u64; 3]) -> [Block; 3] {
    let next: [u64; 3] = std::array::from_fn(|slot| low_water.marks[slot].max(replayed[slot]));
    low_water.marks = next.map(|next| next + COUNTER_BLOCK);
    next.map(|next| Block::new(next, next + COUNTER_BLOCK))
}

/// sled never syncs its configuration, nor do the names of new files survive by themselves. At every
/// open, because the first may have been cut short.
fn sync_names(path: &Path) -> Result<(), StoreError> {
    let failed = |error: io::Error| io_failed("sync the store's directory", path, &error);
    File::open(path.join("conf"))
        .and_then(|file| file.sync_all())
        .map_err(failed)?;
    let directories = [Some(path), path.parent()];
    for directory in directories.into_iter().flatten() {
        sync_directory(directory).map_err(failed)?;
    }
    Ok(())
}

fn sync_directory(directory: &Path) -> io::Result<()> {
    // A relative path's parent is empty: the directory that the process is in.
    let directory = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    File::open(directory)?.sync_all()
}
