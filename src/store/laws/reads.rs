//! What a list reads: of what it does not show, as little as tells so.

use std::sync::Arc;

use serde_json::json;

use crate::model::*;
use crate::store::clock::Clock;
use crate::store::keys::kind;
use crate::store::memory_kv::MemoryKv;
use crate::store::noted::{Noted, Notes};
use crate::store::read::Index;
use crate::store::testing::*;

/// Processes that have ended.
const ENDED: usize = 60;

/// A host on which everything was started by one session, granted to another, and ended, but for three.
fn filled() -> (Host, Notes) {
    let clock: Arc<dyn Clock> = TestClock::start();
    let kv = MemoryKv::private().open(clock).unwrap();
    let (noted, notes) = Noted::over(Arc::new(kv));
    let host = Host::on(noted);
    for n in 0..ENDED {
        let mut process = host.start(rich_request(&format!("ended-{n}")));
        host.finish(&mut process);
    }
    let owner = host.owner();
    for n in 0..3 {
        let mut process =
            host.start(rich_request(&format!("runs-{n}")).with_label("n", n.to_string()));
        host.begin(&mut process, owner);
    }
    notes.take();
    (host, notes)
}

/// How often each sort of key was read.
fn counted(notes: &Notes) -> impl Fn(u8) -> usize {
    let reads = notes.take();
    move |sort| reads.iter().filter(|read| read.sort == Some(sort)).count()
}

/// The status in `observe_if`: of a long list of what has ended, the front of each state and nothing else.
#[test]
fn what_has_not_the_status_is_not_decoded() {
    let (host, notes) = filled();
    let indexes = [
        Index::OriginatedByScope(session("origin")),
        Index::OriginatedBySession("origin".into()),
        Index::GrantedTo(session("holder")),
    ];
    for index in indexes {
        let found = host
            .view()
            .list(Some(&index), &ProcessListFilter::default());
        assert_eq!(found.unwrap().len(), 3);
        let read = counted(&notes);
        assert_eq!(read(kind::STATE), ENDED + 3, "{index:?}");
        assert_eq!((read(kind::HEAD), read(kind::OWNER)), (3, 3), "{index:?}");
        assert_eq!(read(kind::WAKE_TARGET), 3, "{index:?}");
    }
    // The other way round: what runs is passed over where what has ended is asked for.
    let origin = Index::OriginatedByScope(session("origin"));
    let list = |status| {
        let filter = ProcessListFilter::any().with_status(status);
        host.view().list(Some(&origin), &filter).unwrap()
    };
    assert_eq!(list(StatusFilter::Failed).len(), ENDED);
    assert_eq!(counted(&notes)(kind::HEAD), ENDED);
    assert_eq!(list(StatusFilter::Completed), []);
    let read = counted(&notes);
    assert_eq!((read(kind::HEAD), read(kind::WAKE_TARGET)), (ENDED, 0));
    host.store.close().unwrap();
}

/// The filter in `observe_if`: what stands beside a record is read of what is shown alone.
#[test]
fn what_a_filter_refuses_has_no_edges_read() {
    let (host, notes) = filled();
    let filter: ProcessListFilter =
        serde_json::from_value(json!({ "status": "any", "labels": { "n": "1" } })).unwrap();
    let index = Index::OriginatedByScope(session("origin"));
    let found = host.view().list(Some(&index), &filter).unwrap();
    assert_eq!(found[0].process_id, "runs-1");
    let read = counted(&notes);
    assert_eq!(read(kind::HEAD), ENDED + 3);
    assert_eq!(
        (found.len(), read(kind::WAKE_TARGET), read(kind::OWNER)),
        (1, 1, 1)
    );
    host.store.close().unwrap();
}
