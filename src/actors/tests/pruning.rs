//! What cannot be read is not pruned, and holds up nothing else.

use bytes::Bytes;

use super::*;
use crate::store::keys;
use crate::store::read::IdEntry;
use crate::store::write_set::{Change, WriteSet};

async fn open(retention: Vec<RetentionPolicy>) -> Runtime {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kv = MemoryKv::private().open(Arc::clone(&clock)).unwrap();
    let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
    let config = RuntimeConfig {
        retain_every: Duration::from_millis(20),
        keep_tombstones_for: Duration::ZERO,
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
    let runtime = open(Vec::new()).await;
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
    let runtime = open(vec![policy]).await;
    let shared = Arc::clone(&runtime.shared);
    one_is_bad(&shared).await;
    until(|| entry(&shared, "good").is_none()).await;
    assert!(matches!(entry(&shared, "bad"), Some(IdEntry::Live(_))));
    shut(&runtime).await;
}
