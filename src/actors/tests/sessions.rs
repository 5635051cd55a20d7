//! The deletion of a session beside a prune that somebody else is in the middle of.

use super::*;
use crate::store::keys::Row;
use crate::store::write_set::{Change, WriteSet};

/// More than one commit of a prune takes.
const MANY: usize = 600;

async fn asking(shared: &Arc<Shared>, id: &str) -> Row {
    let text = WakeSemantics::new(Selector::pointer("/text"));
    let request = request(id, RecoveryDisposition::ExternallyOwned)
        .with_event_type(ProcessEventType::new("ask").with_wake(text))
        .with_wake_target(Some(SessionScope::new("s")));
    shared.start(request, StartAs::default()).await.unwrap();
    for frame in 0..3 {
        let scope = SessionScope::new("s").with_frame(format!("f-{frame}"));
        let descriptor = ProcessHandleDescriptor::default();
        shared.grant(&scope, id, descriptor).await.unwrap();
    }
    shared.row_of(&shared.view().unwrap(), id).unwrap()
}

async fn ask(shared: &Arc<Shared>, id: &str, times: usize) {
    for _ in 0..times {
        let asked = ProcessEventAppendRequest::new("ask", json!({ "text": "?" }));
        let asked = prepare_event(id, asked).unwrap();
        shared.append(id, asked, None).await.unwrap();
    }
}

#[tokio::test]
async fn r4_a_deleted_session_takes_and_counts_nothing_that_a_prune_still_has_to() {
    let config = RuntimeConfig {
        // No other prune than the test's.
        retain_every: Duration::from_secs(3_600),
        ..RuntimeConfig::default()
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kv = MemoryKv::private().open(Arc::clone(&clock)).unwrap();
    let store = ProcessStore::new(Arc::new(kv), Arc::clone(&clock));
    let runtime = Runtime::open(config, store, clock, Vec::new())
        .await
        .unwrap();
    let shared = Arc::clone(&runtime.shared);
    let row = asking(&shared, "gone").await;
    ask(&shared, "gone", MANY).await;
    asking(&shared, "orphan").await;
    ask(&shared, "orphan", 2).await;
    asking(&shared, "kept").await;
    let elsewhere = SessionScope::new("t");
    let descriptor = ProcessHandleDescriptor::default();
    shared.grant(&elsewhere, "kept", descriptor).await.unwrap();
    asking(&shared, "ended").await;
    let by = || CompletionAuthority::Host { by: "ops".into() };
    for id in ["gone", "ended"] {
        let output = ProcessAwaitOutput::success(1);
        shared.complete_external(id, output, by()).await.unwrap();
    }
    // A prune that got no further than its first commit.
    let prune = Change::Prune {
        row,
        id: "gone".into(),
        at_ms: shared.now_ms(),
    };
    let begun = shared.store.commit_wait(WriteSet::new(vec![], vec![prune]));
    let mut pruned = begun.await.unwrap().pruned;
    assert_eq!((pruned.grants, pruned.wakes), (3, 500));

    let report = shared.delete_session("s").await.unwrap();
    let mut revoked: Vec<_> = report.revoked.iter().map(|it| &it.process_id[..]).collect();
    revoked.sort_unstable();
    revoked.dedup();
    assert_eq!(revoked, ["ended", "kept", "orphan"]);
    assert_eq!(report.revoked.len(), 9);
    assert_eq!(report.wakes_discarded, 2);
    assert_eq!(
        (&report.orphaned[..], &report.preserved[..]),
        (&["orphan".to_owned()][..], &["kept".to_owned()][..])
    );
    let again = shared.delete_session("s").await.unwrap();
    assert_eq!((again.revoked.len(), again.wakes_discarded), (0, 0));

    let rest = shared
        .prune_where(&PruneSelector::older_than(0))
        .await
        .unwrap();
    assert_eq!((rest.pruned_processes, rest.wakes), (0, 100));
    pruned.add(rest);
    assert_eq!((pruned.grants, pruned.wakes), (3, MANY as u64));
    assert!(
        shared
            .view()
            .unwrap()
            .unerased(Incarnation::default(), 9)
            .unwrap()
            .is_empty()
    );
    shut(&runtime).await;
}
