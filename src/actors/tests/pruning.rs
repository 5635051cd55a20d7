//! What cannot be read is not pruned, and holds up nothing else.

use bytes::Bytes;

use super::*;
use crate::store::keys;
use crate::store::read::IdEntry;
use crate::store::write_set::{Change, WriteSet};

async fn open(retention: Vec<RetentionPolicy>, keep_tombstones_for: Duration) -> Runtime {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kv = MemoryKv::private().open(Arc::clone(&clock)).unwrap();
    let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
    let config = RuntimeConfig {
        retain_every: Duration::from_millis(20),
        keep_tombstones_for,
        retention,
        ..RuntimeConfig::default()
    };
    Runtime::open(config, store, clock, Vec::new())
        .await
        .unwrap()
}

fn entry(shared: &Shared, id: &str) -> Option<IdEntry> {
    shared.view().unwrap().id(id).unwrap()
}

/// Two that have ended, of which nobody can read the first.
async fn one_is_bad(shared: &Arc<Shared>) {
    for id in ["bad", "good"] {
        start(shared, id, RecoveryDisposition::ExternallyOwned).await;
    }
    let Some(IdEntry::Live(row)) = entry(shared, "bad") else {
        panic!("it lives");
    };
    for id in ["bad", "good"] {
        let by = CompletionAuthority::Host { by: "test".into() };
        let output = ProcessAwaitOutput::success(1);
        shared.complete_external(id, output, by).await.unwrap();
        if id == "bad" {
            let damage = Change::RecordEffect {
                key: keys::head(row),
                value: Bytes::from_static(b"no head"),
            };
            let set = WriteSet::new(Vec::new(), vec![damage]);
            shared.store.commit_wait(set).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_prune_goes_past_what_cannot_be_read_and_says_so() {
    let runtime = open(Vec::new(), Duration::ZERO).await;
    let shared = Arc::clone(&runtime.shared);
    one_is_bad(&shared).await;
    let everything = PruneSelector::older_than(u64::MAX);
    let error = shared.prune_where(&everything).await.unwrap_err();
    assert!(matches!(error, Error::Corrupted { .. }), "{error:?}");
    assert!(error.to_string().contains("which is not pruned"), "{error}");
    assert!(matches!(entry(&shared, "bad"), Some(IdEntry::Live(_))));
    assert!(!matches!(entry(&shared, "good"), Some(IdEntry::Live(_))));
    shut(&runtime).await;
}

#[tokio::test]
async fn retention_goes_past_what_cannot_be_read_and_forgets_tombstones_all_the_same() {
    let policy = RetentionPolicy::keep_terminal_for(Duration::from_secs(2));
    let runtime = open(vec![policy], Duration::ZERO).await;
    let shared = Arc::clone(&runtime.shared);
    one_is_bad(&shared).await;
    until(|| entry(&shared, "good").is_none()).await;
    assert!(matches!(entry(&shared, "bad"), Some(IdEntry::Live(_))));
    shut(&runtime).await;
}

#[tokio::test]
async fn a_tombstone_that_cannot_be_forgotten_holds_up_no_other() {
    let runtime = open(Vec::new(), Duration::from_secs(3_600)).await;
    let shared = Arc::clone(&runtime.shared);
    let mut due = Vec::new();
    for id in ["bad", "good"] {
        start(&shared, id, RecoveryDisposition::ExternallyOwned).await;
        let Some(IdEntry::Live(row)) = entry(&shared, id) else {
            panic!("it lives");
        };
        due.push((row.incarnation, id.to_owned()));
        let by = CompletionAuthority::Host { by: "test".into() };
        let output = ProcessAwaitOutput::success(1);
        shared.complete_external(id, output, by).await.unwrap();
    }
    let everything = PruneSelector::older_than(u64::MAX);
    let pruned = shared.prune_where(&everything).await.unwrap();
    assert_eq!(pruned.pruned_processes, 2);
    let damage = Change::RecordEffect {
        key: keys::id("bad"),
        value: Bytes::from_static(b"nobody"),
    };
    let set = WriteSet::new(Vec::new(), vec![damage]);
    shared.store.commit_wait(set).await.unwrap();
    let incarnations: Vec<_> = due.iter().map(|(incarnation, _)| *incarnation).collect();
    assert!(shared.drop_tombstones(due).await.unwrap());
    let view = shared.view().unwrap();
    let is_kept = |incarnation: &Incarnation| view.pruned_at_ms(*incarnation).unwrap().is_some();
    let kept: Vec<bool> = incarnations.iter().map(is_kept).collect();
    assert_eq!(kept, [true, false]);
    drop(view);
    shut(&runtime).await;
}
