//! A loss of power: whatever no sync made durable may be gone, all of it or any part.
//!
//! The journal's file is taped, so any such loss can be made of it. sled writes its files by itself:
//! of those there is what they were at the last sync and what they were at the moment, and any
//! mixture of the two by pages.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::super::super::kv::{Durability, Kv, KvView, Outcome};
use super::super::super::kv_laws::{Model, XorShift, all, submit_ops};
use super::super::super::locks::lock;
use super::super::fault::{Faults, Step};
use super::super::journal::JOURNAL_FILE;
use super::super::tape::{Loss, Moment, Tape};
use super::super::{Options, SledKv, open::SLED_FILE};
use super::audit::audit;
use super::on_demand;

const PAGE_BYTES: usize = 4096;

/// sled's files by name.
type Files = BTreeMap<String, Vec<u8>>;

/// What of sled's files a loss of power leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Index {
    /// What the last sync made durable.
    Synced,
    /// What there was, synced or not.
    Now,
    /// Of each page one or the other.
    Mixed,
}

impl Index {
    pub(super) const ALL: [Self; 3] = [Self::Synced, Self::Now, Self::Mixed];
}

/// A moment at which the power may go.
pub(super) struct Crash {
    pub(super) step: Step,
    pub(super) journal: Moment,
    synced: Option<Arc<Files>>,
    /// Not known of a commit's steps: the write-behind may be writing.
    now: Option<Arc<Files>>,
    /// Proposals that were acknowledged before.
    pub(super) acknowledged: usize,
}

/// A store whose power may go at any step.
pub(super) struct Plug {
    pub(super) store: PathBuf,
    tape: Arc<Tape>,
    synced: Mutex<Option<Arc<Files>>>,
    pub(super) crashes: Mutex<Vec<Crash>>,
}

impl Plug {
    pub(super) fn new(store: PathBuf) -> Arc<Self> {
        Self::with(store, Tape::default(), None)
    }

    /// Of a store that is there, durably.
    pub(super) fn of(store: PathBuf) -> Arc<Self> {
        let tape = fs::read(store.join(JOURNAL_FILE)).map_or_else(|_| Tape::default(), Tape::of);
        let files = sled_files(&store);
        Self::with(store, tape, Some(Arc::new(files)))
    }

    fn with(store: PathBuf, tape: Tape, synced: Option<Arc<Files>>) -> Arc<Self> {
        Arc::new(Self {
            store,
            tape: Arc::new(tape),
            synced: Mutex::new(synced),
            crashes: Mutex::default(),
        })
    }

    pub(super) fn tape(&self) -> &Tape {
        &self.tape
    }

    /// Calls `hook` at every step, after the sync of sled's file is noted.
    pub(super) fn faults(
        self: &Arc<Self>,
        hook: impl Fn(&Self, Step, &sled::Db) -> Result<(), super::StoreError> + Send + Sync + 'static,
    ) -> Faults {
        let plug = Arc::clone(self);
        let faults = Faults::new(move |step, db| {
            if step == Step::IndexSynced {
                *lock(&plug.synced) = Some(Arc::new(sled_files(&plug.store)));
            }
            hook(&plug, step, db)
        });
        faults.taped(&self.tape)
    }

    /// The next open begins with a sync of sled's file, before sled makes a snapshot of it.
    fn settled(&self) {
        *lock(&self.synced) = Some(Arc::new(sled_files(&self.store)));
    }

    /// Notes that the power may go now.
    pub(super) fn pull(&self, step: Step) {
        // In this order: what is older of one file than of the other has been there as well.
        let acknowledged = self.tape.acknowledged.load(Ordering::SeqCst);
        let synced = lock(&self.synced).clone();
        let now = (!is_committers(step)).then(|| Arc::new(sled_files(&self.store)));
        let crash = Crash {
            step,
            journal: self.tape.now(),
            synced,
            now,
            acknowledged,
        };
        lock(&self.crashes).push(crash);
    }

    /// Makes a store that the loss may leave. `None` where that would be no store yet.
    pub(super) fn image(
        &self,
        crash: &Crash,
        loss: Loss,
        index: Index,
        random: &mut XorShift,
        into: &Path,
    ) -> Option<()> {
        let synced = crash.synced.as_deref()?;
        let now = crash.now.as_deref().unwrap_or(synced);
        let files = match index {
            Index::Synced => synced.clone(),
            Index::Now => now.clone(),
            Index::Mixed => mixed(synced, now, random),
        };
        let _ = fs::remove_dir_all(into);
        fs::create_dir_all(into.join("blobs")).unwrap();
        for (name, bytes) in files {
            fs::write(into.join(name), bytes).unwrap();
        }
        let journal = self.tape.image(crash.journal, loss, random);
        fs::write(into.join(JOURNAL_FILE), journal).unwrap();
        Some(())
    }
}

fn is_committers(step: Step) -> bool {
    matches!(
        step,
        Step::CommitEntry | Step::CommitSync | Step::CommitPublish
    )
}

fn sled_files(store: &Path) -> Files {
    let mut files = Files::new();
    for entry in fs::read_dir(store).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        let is_sleds = name == SLED_FILE || name == "conf" || name.starts_with("snap.");
        if is_sleds && let Ok(bytes) = fs::read(entry.path()) {
            files.insert(name, bytes);
        }
    }
    files
}

/// sled syncs its snapshots itself, before it gives them their name.
fn mixed(synced: &Files, now: &Files, random: &mut XorShift) -> Files {
    let others = if random.below(2) == 0 { synced } else { now };
    let mut files = others.clone();
    let (old, new) = (&synced[SLED_FILE], &now[SLED_FILE]);
    let mut data = old.clone();
    if random.below(2) == 0 {
        data.resize(old.len().max(new.len()), 0);
    }
    for (number, page) in new.chunks(PAGE_BYTES).enumerate() {
        let at = number * PAGE_BYTES;
        let end = at + page.len();
        if old.get(at..end) != Some(page) && random.below(2) == 0 {
            data.resize(data.len().max(end), 0);
            data[at..end].copy_from_slice(page);
        }
    }
    files.insert(SLED_FILE.to_owned(), data);
    files
}

/// Whether a view shows what a model holds, all of it and nothing else.
fn shows(view: &dyn KvView, model: &Model) -> Result<bool, super::StoreError> {
    let keys: Vec<(Bytes, Bytes)> = model.keys.clone().into_iter().collect();
    if view.scan(&all(), usize::MAX)? != keys {
        return Ok(false);
    }
    for incarnation in model.erased + 1..model.erased + 8 {
        let found = view.events(incarnation, 1, usize::MAX, usize::MAX)?;
        let log = model.logs.get(&incarnation).map_or(&[][..], |log| log);
        if !found.iter().map(|(_, event)| event).eq(log) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a random history had come to after each proposal.
struct History {
    models: Vec<Model>,
}

/// How much of everything.
#[derive(Clone, Copy)]
struct Size {
    proposals: usize,
    crashes: usize,
    /// Stores that are made of each crash.
    images: usize,
}

/// A random history, with the power going at random steps of it. Some proposals wait for nobody, so
/// that groups form; some opens end without a close, so that the next has something to replay.
fn run(plug: &Arc<Plug>, mut options: Options, seed: u64, size: Size) -> History {
    let often = Mutex::new(XorShift(seed ^ 0x0DDB_1A5E_5BAD_5EED));
    if seed & 2 == 0 {
        // Otherwise only when it is asked to, with more at once.
        options.bounds.drain_interval = Duration::from_millis(1);
    }
    options.faults = plug.faults(move |plug, step, db| {
        let one_in = match step {
            Step::CommitEntry | Step::CommitSync | Step::CommitPublish => 60,
            Step::DrainSlice | Step::IndexSync | Step::IndexSynced => 30,
            _ => 12,
        };
        let (pulled, flushed) = {
            let mut often = lock(&often);
            (often.below(one_in) == 0, often.below(2) == 0)
        };
        if pulled && lock(&plug.crashes).len() < size.crashes {
            if flushed && !is_committers(step) {
                // By chance sled has written what it had.
                db.flush().unwrap();
            }
            plug.pull(step);
        }
        Ok(())
    });
    let mut random = XorShift(seed);
    let mut models = vec![Model::default()];
    let mut kv = SledKv::open(&plug.store, options.clone()).unwrap();
    while models.len() < size.proposals {
        let mut waiting = Vec::new();
        for _ in 0..=random.below(4) {
            let mut next = models[models.len() - 1].clone();
            waiting.push(submit_ops(&kv, next.step(&mut random)));
            models.push(next);
        }
        for outcome in waiting {
            let outcome = outcome.recv().unwrap();
            assert!(matches!(outcome, Outcome::Committed { .. }), "{outcome:?}");
            plug.tape.acknowledged.fetch_add(1, Ordering::SeqCst);
        }
        match random.below(36) {
            0..3 => kv.drain().unwrap(),
            3 => {
                drop(kv);
                plug.settled();
                kv = SledKv::open(&plug.store, options.clone()).unwrap();
            }
            _ => {}
        }
    }
    drop(kv);
    History { models }
}

/// Opens what a loss of power left, and says how many proposals it shows.
fn shown(kv: &SledKv, history: &History, least: usize, what: &str) -> usize {
    let view = kv.view().unwrap();
    let shows = |model| shows(&*view, model).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = (least..history.models.len()).find(|at| shows(&history.models[*at]));
    found.unwrap_or_else(|| panic!("{what}: not what any {least} proposals or more leave"))
}

/// Opens it, loses the power in that open, or right behind it, and opens that. What the first open
/// showed is there.
fn check_twice(copy: &Path, history: &History, least: usize, what: &str, random: &mut XorShift) {
    let plug = Plug::of(copy.to_path_buf());
    let mut options = on_demand();
    options.faults = plug.faults(|plug, step, _| {
        plug.pull(step);
        Ok(())
    });
    let kv = SledKv::open(copy, options).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = shown(&kv, history, least, what);
    plug.pull(Step::OpenRaised);
    drop(kv);
    let crashes = std::mem::take(&mut *lock(&plug.crashes));
    let last = crashes.len() - 1;
    let again = usize::try_from(random.below(2)).unwrap() * last;
    for (number, crash) in crashes.iter().enumerate().skip(again).step_by(last) {
        let least = if number == last { found } else { least };
        let loss = any(&Loss::ALL, random);
        let index = any(&Index::ALL, random);
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("again");
        plug.image(crash, loss, index, random, &path).unwrap();
        let what = format!("{what}; then {:?}, {loss:?}, {index:?}", crash.step);
        let kv = SledKv::open(&path, on_demand()).unwrap_or_else(|error| panic!("{what}: {error}"));
        shown(&kv, history, least, &what);
        kv.close().unwrap();
    }
    if random.below(4) == 0 {
        let kv = SledKv::open(copy, on_demand()).unwrap();
        kv.drain().unwrap();
        kv.close().unwrap();
        audit(copy, &history.models[found]);
    }
}

fn any<T: Copy>(of: &[T], random: &mut XorShift) -> T {
    of[usize::try_from(random.below(of.len() as u64)).unwrap()]
}

/// Runs a history, makes stores that a loss of power may leave of it, and opens them. Returns how
/// many there were.
fn lose_power(seed: u64, options: Options, size: Size, least: impl Fn(&Crash) -> usize) -> usize {
    let home = tempfile::tempdir().unwrap();
    let plug = Plug::new(home.path().join("store"));
    let history = run(&plug, options, seed, size);
    let mut random = XorShift(seed.rotate_left(17));
    let mut checked = 0;
    for crash in lock(&plug.crashes).iter() {
        for _ in 0..size.images {
            let loss = any(&Loss::ALL, &mut random);
            let index = any(&Index::ALL, &mut random);
            let copy = home.path().join(format!("{checked}"));
            let made = plug.image(crash, loss, index, &mut random, &copy);
            if made.is_some() {
                let what = format!("seed {seed}, {:?}, {loss:?}, {index:?}", crash.step);
                check_twice(&copy, &history, least(crash), &what, &mut random);
                fs::remove_dir_all(&copy).unwrap();
                checked += 1;
            }
        }
    }
    checked
}

/// Acknowledged once in the system's cache; the write-behind syncs what it takes from there.
fn relaxed() -> Options {
    let mut options = on_demand();
    options.durability = Durability::Relaxed(Duration::from_millis(20));
    options
}

const SMALL: Size = Size {
    proposals: 160,
    crashes: 10,
    images: 2,
};
const SEEDS: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03];

#[test]
fn what_was_acknowledged_survives_any_loss_of_power() {
    let checked = SEEDS.map(|seed| lose_power(seed, on_demand(), SMALL, |it| it.acknowledged));
    assert!(checked.iter().sum::<usize>() >= 20, "{checked:?}");
}

/// What was synced is there, and what comes behind it is a beginning of what came behind it: the
/// index holds nothing that the journal lost.
#[test]
fn a_relaxed_store_loses_an_end_of_what_no_sync_covered() {
    let checked = SEEDS.map(|seed| {
        let least = |it: &Crash| it.journal.acknowledged;
        lose_power(seed, relaxed(), SMALL, least)
    });
    assert!(checked.iter().sum::<usize>() >= 20, "{checked:?}");
}

/// `PROCESSION_LOSSES` says how many histories, of each durability.
#[test]
#[ignore = "takes minutes: the two above are the short form"]
fn as_many_losses_of_power_as_are_asked_for() {
    let histories: u64 = std::env::var("PROCESSION_LOSSES").map_or(20, |it| it.parse().unwrap());
    let size = Size {
        proposals: 500,
        crashes: 40,
        images: 5,
    };
    let mut checked = 0;
    for number in 1..=histories {
        let seed = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        checked += lose_power(seed, on_demand(), size, |it| it.acknowledged);
        checked += lose_power(seed, relaxed(), size, |it| it.journal.acknowledged);
    }
    println!("{checked} stores opened");
}
