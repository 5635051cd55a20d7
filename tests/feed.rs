//! The change feed: the last change of every process, and every deletion.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::*;
use procession::*;
use serde_json::json;

/// What a consumer knows: how far each process has come, or that it is gone.
#[derive(Debug, Default, PartialEq, Clone)]
struct Known(BTreeMap<(String, Incarnation), Option<u64>>);

impl Known {
    fn learn(&mut self, change: &ProcessChange) {
        match change {
            ProcessChange::Changed { record } => {
                let key = (record.id.clone(), record.incarnation);
                let before = self.0.insert(key, Some(record.last_sequence));
                assert!(before.flatten() <= Some(record.last_sequence), "went back");
            }
            ProcessChange::Deleted {
                process_id,
                incarnation,
            } => {
                self.0.insert((process_id.clone(), *incarnation), None);
            }
        }
    }

    async fn catch_up(&mut self, processes: &Processes, cursor: &mut ChangeCursor, limit: usize) {
        loop {
            let page = processes.changes_since(cursor, limit).await.unwrap();
            assert!(page.changes.len() <= limit);
            if page.changes.is_empty() {
                assert_eq!(
                    page.next, *cursor,
                    "nothing new leaves the cursor where it is"
                );
                return;
            }
            page.changes.iter().for_each(|change| self.learn(change));
            *cursor = page.next;
        }
    }
}

/// Many writers, pruning and a follower at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn e5_a_consumer_from_any_cursor_sees_every_final_state_and_every_deletion() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let mut following = processes.follow_changes(&ChangeCursor::start());
        let follower = tokio::spawn(async move {
            let mut known = Known::default();
            // The last process that is started says that this is all.
            loop {
                let page = next(&mut following).await.unwrap().unwrap();
                assert!(!page.changes.is_empty());
                page.changes.iter().for_each(|change| known.learn(change));
                if known.0.keys().any(|(id, _)| id == "last") {
                    return known;
                }
            }
        });
        let mut writing = tokio::task::JoinSet::new();
        for writer in 0..6_u64 {
            let processes = processes.clone();
            writing.spawn(async move {
                for round in 0..6 {
                    let id = format!("{writer}-{round}");
                    processes.start(noted(&id), inline()).await.unwrap();
                    for n in 0..writer {
                        append(&processes, &id, "note", json!(n)).await;
                    }
                    if round % 2 == 0 {
                        complete(&processes, &id).await;
                    }
                    if writer == 0 {
                        processes.prune(u64::MAX).await.unwrap();
                    }
                }
            });
        }
        // A consumer that starts in the middle, with what it knows of until then.
        let (mut early, mut cursor) = (Known::default(), ChangeCursor::start());
        early.catch_up(&processes, &mut cursor, 3).await;
        while let Some(written) = within(writing.join_next()).await {
            written.unwrap();
        }
        processes.prune(u64::MAX).await.unwrap();
        processes.start(noted("last"), inline()).await.unwrap();
        // By hand: odd rounds go on with as many events as the writer's number, even ones are gone.
        let mut expected = BTreeMap::from([("last".to_owned(), Some(0))]);
        for writer in 0..6_u64 {
            for round in 0..6 {
                let last = (round % 2 == 1).then_some(writer);
                expected.insert(format!("{writer}-{round}"), last);
            }
        }
        let final_states = |known: &Known| -> BTreeMap<String, Option<u64>> {
            let states = known.0.iter();
            states
                .map(|((id, _), state)| (id.clone(), *state))
                .collect()
        };
        early.catch_up(&processes, &mut cursor, 7).await;
        assert_eq!(final_states(&early), expected);
        let (mut late, mut from_start) = (Known::default(), ChangeCursor::start());
        late.catch_up(&processes, &mut from_start, 1_000).await;
        assert_eq!(final_states(&late), expected);
        assert_eq!(from_start, cursor);
        let followed = within(follower).await.unwrap();
        assert_eq!(final_states(&followed), expected);
        close_clean(&supervisor).await;
        // A stored cursor goes on after a reopen.
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let stored = serde_json::to_string(&cursor).unwrap();
        let mut cursor: ChangeCursor = serde_json::from_str(&stored).unwrap();
        append(&processes, "1-1", "note", json!("more")).await;
        let mut more = Known::default();
        more.catch_up(&processes, &mut cursor, 9).await;
        assert_eq!(
            final_states(&more),
            BTreeMap::from([("1-1".to_owned(), Some(2))])
        );
        close_clean(&supervisor).await;
    }
}

/// One entry for each process, at its last change, in the order of the commits.
#[tokio::test]
async fn the_feed_is_compacted_to_the_last_change_of_each_process() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        for id in ["a", "b", "c"] {
            processes.start(noted(id), inline()).await.unwrap();
        }
        for id in ["c", "a", "c", "a"] {
            append(&processes, id, "note", json!(1)).await;
        }
        // A grant is an edge, and none of the feed's business.
        let scope = SessionScope::new("s");
        let before = processes
            .changes_since(&ChangeCursor::start(), 9)
            .await
            .unwrap();
        processes
            .grant(&scope, "b", ProcessHandleDescriptor::default())
            .await
            .unwrap();
        processes.retarget_wakes("b", Some(&scope)).await.unwrap();
        let page = processes
            .changes_since(&ChangeCursor::start(), 9)
            .await
            .unwrap();
        assert_eq!(page, before);
        let shown: Vec<_> = page
            .changes
            .iter()
            .map(|change| match change {
                ProcessChange::Changed { record } => (record.id.as_str(), record.last_sequence),
                ProcessChange::Deleted { process_id, .. } => panic!("{process_id}"),
            })
            .collect();
        assert_eq!(shown, [("b", 0), ("c", 2), ("a", 2)]);
        close_clean(&supervisor).await;
    }
}

fn refused(error: &Error) {
    let Error::InvalidInput { field, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(field, "cursor");
}

#[tokio::test]
async fn a_cursor_of_another_store_or_from_the_future_is_refused() {
    let place = Place::disk();
    let supervisor = place.builder().open().await.unwrap();
    let processes = supervisor.processes();
    processes.start(noted("p"), inline()).await.unwrap();
    let copied = processes
        .changes_since(&ChangeCursor::start(), 9)
        .await
        .unwrap();
    close(&supervisor).await;
    // A copy of the store that does not know what happened after it was made.
    let backup = tempfile::tempdir().unwrap();
    copy(place.path(), backup.path());
    let supervisor = place.builder().open().await.unwrap();
    let processes = supervisor.processes();
    append(&processes, "p", "note", json!(1)).await;
    let newest = processes.changes_since(&copied.next, 9).await.unwrap();
    assert_eq!(newest.changes.len(), 1);
    close(&supervisor).await;
    let restored = Supervisor::builder(backup.path()).open().await.unwrap();
    let processes = restored.processes();
    assert_eq!(
        processes.changes_since(&copied.next, 9).await.unwrap(),
        ChangePage {
            changes: vec![],
            next: copied.next.clone()
        }
    );
    refused(&processes.changes_since(&newest.next, 9).await.unwrap_err());
    let mut following = processes.follow_changes(&newest.next);
    refused(&next(&mut following).await.unwrap().unwrap_err());
    assert!(next(&mut following).await.is_none());
    let selector = PruneSelector::older_than(1).with_watermark(Some(newest.next.clone()));
    refused(&processes.prune_where(&selector).await.unwrap_err());
    close(&restored).await;

    let other = Supervisor::in_memory().open().await.unwrap();
    let processes = other.processes();
    refused(&processes.changes_since(&copied.next, 9).await.unwrap_err());
    let bare: BTreeSet<&str> = ["", "-", "1", "x-1", "0-0", "-1", "00"].into();
    for text in bare {
        let cursor: ChangeCursor = serde_json::from_value(json!(text)).unwrap();
        refused(&processes.changes_since(&cursor, 9).await.unwrap_err());
    }
    for limit in [0, 1_001] {
        let refused = processes.changes_since(&ChangeCursor::start(), limit).await;
        assert!(matches!(refused, Err(Error::InvalidInput { .. })));
    }
    close(&other).await;
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// History that nobody has projected yet is kept, whatever its age.
#[tokio::test]
async fn a_watermark_keeps_what_a_projector_has_not_seen() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    for id in ["seen", "unseen"] {
        processes.start(noted(id), inline()).await.unwrap();
        complete(&processes, id).await;
    }
    let page = processes
        .changes_since(&ChangeCursor::start(), 1)
        .await
        .unwrap();
    let selector = PruneSelector::older_than(u64::MAX).with_watermark(Some(page.next));
    let report = processes.prune_where(&selector).await.unwrap();
    assert_eq!(report.pruned_processes, 1);
    assert_eq!(processes.get("seen").await.unwrap(), None);
    assert!(processes.get("unseen").await.unwrap().is_some());
    close_clean(&supervisor).await;
}

/// Records may be large: a page ends when it holds enough of them, and the next one goes on.
#[tokio::test]
async fn a_page_of_large_records_ends_early_and_misses_nothing() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    for n in 0..12 {
        let metadata = json!({ "text": "x".repeat(900_000) });
        let id = format!("p{n}");
        let request = ProcessStartRequest::external(&id, ProcessOriginator::host(), metadata);
        processes.start(request, inline()).await.unwrap();
    }
    // An outcome counts as what it was started with does.
    let by = CompletionAuthority::Host { by: "test".into() };
    let output = ProcessAwaitOutput::success(json!("y".repeat(900_000)));
    processes.complete_external("p0", output, by).await.unwrap();
    let mut cursor = ChangeCursor::start();
    let mut pages = Vec::new();
    loop {
        let page = processes.changes_since(&cursor, 1_000).await.unwrap();
        if page.changes.is_empty() {
            break;
        }
        pages.push(page.changes.len());
        cursor = page.next;
    }
    // Five make more than 4 MiB; the last one counts twice.
    assert_eq!(pages, [5, 5, 2]);
    close_clean(&supervisor).await;
}

/// A store that was restored from a copy takes its positions again, for other changes: a cursor that
/// has seen more than the copy had is refused, also once the store has caught up with it.
#[tokio::test]
async fn a_cursor_of_another_timeline_is_refused_for_good() {
    let home = tempfile::tempdir().unwrap();
    let (store, older) = (home.path().join("store"), home.path().join("older"));
    let write = async |path: &std::path::Path, ids: std::ops::Range<u32>| {
        let supervisor = Supervisor::builder(path).open().await.unwrap();
        let processes = supervisor.processes();
        for n in ids {
            let request = external(&format!("p-{n}"));
            processes.start(request, inline()).await.unwrap();
        }
        let page = processes.changes_since(&ChangeCursor::start(), 999).await;
        close(&supervisor).await;
        page.unwrap().next
    };
    let before = write(&store, 0..3).await;
    std::fs::create_dir(&older).unwrap();
    copy(&store, &older);
    let same_open = write(&store, 3..6).await;
    let later_open = write(&store, 6..9).await;
    // Restored, and soon further than either had come.
    let restored = write(&older, 10..30).await;
    let supervisor = Supervisor::builder(&older).open().await.unwrap();
    let processes = supervisor.processes();
    for lost in [&same_open, &later_open] {
        let refused = processes.changes_since(lost, 9).await;
        assert!(
            matches!(&refused, Err(Error::InvalidInput { field, .. }) if field == "cursor"),
            "{refused:?}"
        );
    }
    // What was before the copy is known to both, and what is of this one, to this one.
    for (known, changes) in [(&before, 20), (&restored, 0)] {
        let page = processes.changes_since(known, 99).await.unwrap();
        assert_eq!(page.changes.len(), changes);
    }
    close(&supervisor).await;
    let original = Supervisor::builder(&store).open().await.unwrap();
    let page = original.processes().changes_since(&same_open, 99).await;
    assert_eq!(page.unwrap().changes.len(), 3);
    assert!(
        original
            .processes()
            .changes_since(&restored, 9)
            .await
            .is_err()
    );
    close(&original).await;
}
