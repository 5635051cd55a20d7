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
    // Through the same index, with another filter.
    let mut named = any();
    named.identity_label = Some("the work".into());
    let refused = host.view().list_page(holder(), &named, cursor, 9);
    assert!(matches!(refused, Err(QueryError::Cursor)), "{refused:?}");
    let own = host.view().list_page(None, &any(), None, 1).unwrap();
    let own = own.next.unwrap().0;
    // Without a key, without a part of what tells the list, and with that of another one.
    let (mark, key) = own.split_at(16);
    let another = format!("{}{key}", "0".repeat(16));
    let long = format!("{mark}{}", "00".repeat(5_000));
    for text in ["", "0", "zz", "05é", "+5", mark, key, &another, &long] {
        let cursor = PageCursor(text.to_owned());
        let refused = host.view().list_page(None, &any(), Some(&cursor), 9);
        assert!(matches!(refused, Err(QueryError::Cursor)), "{text:?}");
    }
    host.store.close().unwrap();
}

/// The id of the store in the cursor: the same processes under the same keys are in both.
fn a_cursor_goes_on_in_its_own_store_alone(ground: &Ground) {
    let filled = |host: &Host| {
        for n in 0..3 {
            host.start(request(&format!("p-{n}")));
        }
    };
    let host = ground.open();
    filled(&host);
    let first = host.view().list_page(None, &any(), None, 1).unwrap();
    let cursor = first.next.as_ref();
    let elsewhere = Ground::memory();
    let other = elsewhere.open();
    filled(&other);
    assert!(other.view().list_page(None, &any(), None, 1).is_ok());
    let refused = other.view().list_page(None, &any(), cursor, 1);
    assert!(matches!(refused, Err(QueryError::Cursor)), "{refused:?}");
    other.store.close().unwrap();
    host.store.close().unwrap();
    let host = ground.open();
    let next = host.view().list_page(None, &any(), cursor, 9).unwrap();
    assert_eq!(ids(&next), ["p-1", "p-2"]);
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

/// The incarnation in a cursor, and in what a filter admits.
fn a_list_of_children_stays_with_the_parent_that_it_began_with(ground: &Ground) {
    let host = ground.open();
    let mut first = host.start(request("p"));
    for id in ["a", "b", "c"] {
        host.start_child(id, &first);
    }
    let other = host.start(request("other"));
    host.start_child("of other", &other);
    let of = |parent: &str| {
        let mut filter = any();
        filter.parent = Some(parent.into());
        filter
    };
    let page = |base: Option<Index>, filter: &ProcessListFilter, cursor: Option<&PageCursor>| {
        let view = host.view();
        let page = view.list_page(base, filter, cursor, 1).unwrap();
        let ids: Vec<_> = page.items.into_iter().map(|it| it.process_id).collect();
        (ids, page.next)
    };
    let bases = || [None, Some(Index::Created)];
    let cursors = bases().map(|base| {
        let (ids, next) = page(base, &of("p"), None);
        assert_eq!(ids, ["a"]);
        next.unwrap()
    });
    // Pruned, it still is what its id stands for; started again, it is not.
    host.finish(&mut first);
    host.prune(&first);
    assert_eq!(page(None, &of("p"), None).0, ["a"]);
    let second = host.start(request("p").with_priority(1));
    host.start_child("d", &second);
    for (base, mut cursor) in bases().into_iter().zip(cursors) {
        for expected in ["b", "c"] {
            let (ids, next) = page(base.clone(), &of("p"), Some(&cursor));
            assert_eq!(ids, [expected]);
            cursor = next.unwrap();
        }
        assert_eq!(page(base.clone(), &of("p"), Some(&cursor)), (vec![], None));
        let listed = host.view().list(base.as_ref(), &of("p")).unwrap();
        let ids: Vec<_> = listed.iter().map(|it| it.process_id.as_str()).collect();
        assert_eq!(ids, ["d"], "those of the newest alone");
    }
    assert_eq!(page(None, &of("nobody"), None), (vec![], None));
    // A cursor belongs to its list.
    let (_, of_other) = page(None, &of("other"), None);
    let (_, of_all) = page(None, &any(), None);
    let (_, of_p) = page(None, &of("p"), None);
    for (filter, cursor) in [
        (of("p"), of_all.clone().unwrap()),
        (any(), of_p.unwrap()),
        (of("p"), of_other.unwrap()),
        (of("p"), PageCursor(format!("{}-x", of_all.unwrap().0))),
    ] {
        let view = host.view();
        let refused = view.list_page(None, &filter, Some(&cursor), 1);
        assert!(matches!(refused, Err(QueryError::Cursor)), "{cursor:?}");
    }
    host.store.close().unwrap();
}

/// The room that all processes of a snapshot share.
fn a_snapshot_shows_no_more_events_than_it_may(ground: &Ground) {
    let host = ground.open();
    let text = "x".repeat(900_000);
    for n in 0..7 {
        let mut process = host.start(rich_request(&format!("p{n}")));
        for _ in 0..4 {
            host.emit(&mut process, "note", json!({ "text": text }));
        }
    }
    let snapshot = host.view().snapshot("holder").unwrap();
    let shown: Vec<_> = snapshot.items.iter().map(|it| it.events.len()).collect();
    // 18 of them fit into 16 MiB, and the newest change comes first. The one that goes over it is
    // shown whole, and is the last.
    assert_eq!(snapshot.visible_process_ids[0], "p6");
    assert_eq!(shown, [4, 4, 4, 4, 2, 1, 0]);
    let last = &snapshot.items[4].events;
    let sequences: Vec<_> = last.iter().map(|event| event.sequence).collect();
    assert_eq!(sequences, [3, 4], "the newest of them");
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
    a_cursor_goes_on_in_its_own_store_alone,
    a_list_of_children_stays_with_the_parent_that_it_began_with,
    a_snapshot_shows_no_more_events_than_it_may,
    each_index_lists_its_own_and_nothing_else,
    a_snapshot_shows_the_newest_events_however_large_they_are,
    a_snapshot_shows_the_last_events_newest_change_first,
);
