//! Lists in pages, and snapshots.

use serde_json::json;

use crate::model::*;
use crate::store::query::QueryError;
use crate::store::read::Index;
use crate::store::testing::*;

fn any() -> ProcessListFilter {
    ProcessListFilter::any()
}

fn ids(page: &Page<ObservedProcess>) -> Vec<&str> {
    let ids = page.items.iter().map(|it| it.process_id.as_str());
    ids.collect()
}

fn pages_stay_in_step_while_processes_come_and_go(ground: &Ground) {
    let host = ground.open();
    let mut processes: Vec<_> = (0..6)
        .map(|n| {
            host.clock.advance(1);
            host.start(request(&format!("p-{n}")))
        })
        .collect();
    let first = host.view().list_page(None, &any(), None, 2).unwrap();
    assert_eq!(ids(&first), ["p-0", "p-1"]);
    // What the cursor stands on goes, and so does what comes next; something new comes.
    for process in &mut processes[1..3] {
        host.finish(process);
        host.prune(process);
    }
    host.clock.advance(1);
    host.start(request("p-6"));
    let cursor = first.next.as_ref();
    let second = host.view().list_page(None, &any(), cursor, 2).unwrap();
    assert_eq!(ids(&second), ["p-3", "p-4"]);
    let cursor = second.next.as_ref();
    let third = host.view().list_page(None, &any(), cursor, 9).unwrap();
    assert_eq!(ids(&third), ["p-5", "p-6"]);
    assert_eq!(third.next, None);
    host.store.close().unwrap();
}

/// The check of the cursor in `list_page`.
fn a_cursor_of_another_list_is_refused(ground: &Ground) {
    let host = ground.open();
    for n in 0..3 {
        host.start(rich_request(&format!("p-{n}")));
    }
    let holder = || Some(Index::GrantedTo(session("holder")));
    let page = host.view().list_page(holder(), &any(), None, 1).unwrap();
    let cursor = page.next.as_ref();
    let next = host.view().list_page(holder(), &any(), cursor, 9).unwrap();
    assert_eq!(ids(&next), ["p-1", "p-2"]);
    let others = [
        None,
        Some(Index::Running),
        Some(Index::GrantedTo(session("holder").with_frame("f"))),
        Some(Index::GrantedTo(session("holde"))),
        Some(Index::OriginatedBySession("origin".into())),
    ];
    for other in others {
        let refused = host.view().list_page(other.clone(), &any(), cursor, 9);
        assert!(matches!(refused, Err(QueryError::Cursor)), "{other:?}");
    }
    for text in ["", "0", "zz", "05é", "+5", &"00".repeat(5_000)] {
        let cursor = PageCursor(text.to_owned());
        let refused = host.view().list_page(None, &any(), Some(&cursor), 9);
        assert!(matches!(refused, Err(QueryError::Cursor)), "{text:?}");
    }
    host.store.close().unwrap();
}

fn each_index_lists_its_own_and_nothing_else(ground: &Ground) {
    let host = ground.open();
    let parent = host.start(rich_request("parent"));
    let child = host.start_child("child", &parent);
    host.clock.advance(1);
    let mut of_host = request("host");
    of_host.originator = ProcessOriginator::host_scope("nightly");
    let mut of_host = host.start(of_host);
    host.finish(&mut of_host);
    let lists: [(Index, &[&str]); 7] = [
        (Index::Created, &["parent", "child", "host"]),
        (Index::Running, &["parent", "child"]),
        (Index::GrantedTo(session("holder")), &["parent"]),
        (
            Index::OriginatedByScope(session("origin")),
            &["parent", "child"],
        ),
        (
            Index::OriginatedBySession("origin".into()),
            &["parent", "child"],
        ),
        (Index::OriginatedByHost("nightly".into()), &["host"]),
        (
            Index::ChildrenOf(parent.registration.incarnation),
            &["child"],
        ),
    ];
    for (index, expected) in lists {
        let page = host.view().list_page(Some(index.clone()), &any(), None, 9);
        assert_eq!(ids(&page.unwrap()), expected, "{index:?}");
    }
    let mut of_parent = any();
    of_parent.parent = Some("parent".into());
    let page = host.view().list_page(None, &of_parent, None, 9).unwrap();
    assert_eq!(ids(&page), [child.registration.id.as_str()]);
    host.store.close().unwrap();
}

/// `last_events` where the events are larger than one read of a log.
fn a_snapshot_shows_the_newest_events_however_large_they_are(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(rich_request("p"));
    for n in 0..12 {
        let text = "x".repeat(900_000);
        host.emit(&mut process, "note", json!({ "n": n, "text": text }));
    }
    let snapshot = host.view().snapshot("holder").unwrap();
    let sequences: Vec<_> = snapshot.items[0]
        .events
        .iter()
        .map(|it| it.sequence)
        .collect();
    // Four of them, and not five, stay under 4 MiB.
    assert_eq!(sequences, [9, 10, 11, 12]);
    host.store.close().unwrap();
}

fn a_snapshot_shows_the_last_events_newest_change_first(ground: &Ground) {
    let host = ground.open();
    let mut old = host.start(rich_request("old"));
    let mut new = host.start(request("new").with_wake_target(Some(session("holder"))));
    for _ in 0..40 {
        host.emit(&mut new, "note", json!({}));
    }
    host.emit(&mut old, "note", json!({}));
    let snapshot = host.view().snapshot("holder").unwrap();
    assert_eq!(snapshot.visible_process_ids, ["old", "new"]);
    assert_eq!(snapshot.items[0].label.as_deref(), Some("the work"));
    let sequences: Vec<_> = snapshot.items[1]
        .events
        .iter()
        .map(|it| it.sequence)
        .collect();
    assert_eq!(sequences, (9..=40).collect::<Vec<_>>());
    host.store.close().unwrap();
}

held_by_both!(
    pages_stay_in_step_while_processes_come_and_go,
    a_cursor_of_another_list_is_refused,
    each_index_lists_its_own_and_nothing_else,
    a_snapshot_shows_the_newest_events_however_large_they_are,
    a_snapshot_shows_the_last_events_newest_change_first,
);
