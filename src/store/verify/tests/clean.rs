//! What a healthy store looks like.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::model::decide::{Command, Facts, Finisher};
use crate::model::*;
use crate::store::clock::Clock;
use crate::store::process_store::ProcessStore;
use crate::store::sled_kv::{Options, SledKv};
use crate::store::testing::*;
use crate::store::verify::verify;
use crate::store::write_set::Change;

/// A store in which everything has happened that leaves a key behind.
pub(super) fn busy(host: &Host) -> Vec<Proc> {
    let owner = host.owner();
    let mut rich = host.start(rich_request("rich"));
    let token = host.begin(&mut rich, owner);
    host.emit(&mut rich, "note", json!({ "n": 1 }));
    let keyed = rich.event("note", json!({ "n": 2 }), Some("replay"), None);
    host.step(&mut rich, keyed, Facts::default());
    host.emit(&mut rich, "ask", json!({ "text": "?", "key": "a" }));
    host.emit(&mut rich, "ping", json!({ "text": "!" }));
    let holder = Facts {
        holder: Some(token),
        ..Facts::default()
    };
    let wait = Command::BeginWait {
        token,
        signal_name: "go".into(),
        number: 1,
        deadline_ms: None,
    };
    host.step(&mut rich, wait, holder);
    let cancel = Command::RequestCancel { requested_by: None };
    host.step(&mut rich, cancel, Facts::default());

    let big = ProcessInput::engine("work", json!({ "text": "x".repeat(4_000) }));
    let mut request = rich_request("big");
    request.input = big;
    request.originator = ProcessOriginator::host_scope("nightly");
    host.start(request);
    let child = host.start_child("child", &rich);

    // Ended, with its outcome in the log.
    let mut ended = host.start(rich_request("ended"));
    host.emit(&mut ended, "ask", json!({ "text": "?", "key": "b" }));
    let token = host.begin(&mut ended, owner);
    let complete = Command::Finish {
        output: ProcessAwaitOutput::success(json!("done")),
        finisher: Finisher::Owner(token),
    };
    let holder = Facts {
        holder: Some(token),
        ..Facts::default()
    };
    host.step(&mut ended, complete, holder);
    let mut failed = host.start(request_of("failed"));
    host.finish(&mut failed);

    // Pruned, and pruned and started again.
    for id in ["pruned", "again"] {
        let mut gone = host.start(rich_request(id));
        host.finish(&mut gone);
        host.prune(&gone);
    }
    let again = host.start(request_of("again").with_priority(3));
    let scope = ExecutionScope::turn("s", "t");
    let key = EffectKey::Cancel {
        process_id: "rich".into(),
    };
    let effect =
        crate::store::writes::record_effect(&scope, &key, b"{\"a\":1}".to_vec(), b"null".to_vec());
    host.ok(vec![], vec![effect.unwrap()]);
    // A tombstone that has been forgotten leaves the floor of the feed.
    let mut forgotten = host.start(request_of("forgotten"));
    host.finish(&mut forgotten);
    host.prune(&forgotten);
    let incarnation = forgotten.registration.incarnation;
    host.ok(vec![], vec![Change::DropTombstone { incarnation }]);
    vec![rich, child, ended, failed, again]
}

fn request_of(id: &str) -> ProcessStartRequest {
    request(id)
}

fn a_busy_store_is_clean_before_and_after_a_reopen(ground: &Ground) {
    let host = ground.open();
    busy(&host);
    let expected = VerifyReport {
        // rich, big, child, ended, failed, again
        processes: 6,
        // rich: started, note, note, ask, ping, waiting, cancel_requested; ended: ask, started, completed;
        // failed: failed
        events: 7 + 3 + 1,
        tombstones: 2,
        problems: vec![],
        problems_left_out: 0,
    };
    assert_eq!(host.verified(), expected);
    host.store.drain().unwrap();
    assert_eq!(host.verified(), expected, "drained");
    host.store.close().unwrap();
    let host = ground.open();
    assert_eq!(host.verified(), expected, "P1 after an open");
    host.store.close().unwrap();
}

fn an_empty_store_is_clean(ground: &Ground) {
    let host = ground.open();
    assert_eq!(host.verified(), VerifyReport::default());
    host.store.close().unwrap();
}

fn many_pages_of_everything_are_clean(ground: &Ground) {
    let host = ground.open();
    let mut process = host.start(rich_request("long"));
    let mut sets = Vec::new();
    for n in 0..1_200 {
        let at = process.at();
        let replay = format!("r-{n}");
        let command = process.event("note", json!({ "n": n }), Some(&replay), None);
        let change = process.decide(&host, command, Facts::default());
        sets.push(host.submit(crate::store::write_set::WriteSet::new(
            vec![at],
            vec![change],
        )));
    }
    for n in 0..300 {
        host.start(rich_request(&format!("p-{n}")));
    }
    for set in sets {
        set.recv().unwrap().unwrap();
    }
    let report = host.verified();
    assert_eq!((report.processes, report.events), (301, 1_200));
    assert!(report.is_clean(), "{report:#?}");
    host.store.close().unwrap();
}

fn a_check_beside_writers_finds_nothing_wrong(ground: &Ground) {
    let host = ground.open();
    host.start(request("first"));
    std::thread::scope(|threads| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let host = &host;
        threads.spawn(move || {
            let mut n = 0;
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                let mut process = host.start(
                    request(&format!("w-{n}"))
                        .with_wake_target(Some(session("target")))
                        .with_grant(Some(ProcessStartGrant::new(session("holder"), "w"))),
                );
                host.emit(&mut process, "ask", json!({ "text": "?", "key": n }));
                host.finish(&mut process);
                if n % 2 == 0 {
                    host.prune(&process);
                }
                n += 1;
            }
        });
        for _ in 0..10 {
            host.assert_clean();
        }
        stop.send(()).unwrap();
    });
    host.store.close().unwrap();
}

/// A monotonic clock that hurries: it goes on by a millisecond whenever it is read.
#[derive(Debug, Default)]
struct Hurrying(AtomicU64);

impl Clock for Hurrying {
    fn now_epoch_ms(&self) -> u64 {
        START_MS
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.0.fetch_add(1, Ordering::SeqCst))
    }
}

#[test]
fn a_view_that_expires_does_not_end_the_check() {
    let ground = Ground::sled();
    let host = ground.open();
    for n in 0..40 {
        host.start(rich_request(&format!("p-{n}")));
    }
    let mut long = host.start(request("long"));
    for _ in 0..600 {
        let at = long.at();
        let note = long.note(&host);
        host.ok(vec![at], vec![note]);
    }
    host.store.close().unwrap();
    let Ground::Sled(dir) = &ground else { panic!() };
    let clock: Arc<dyn Clock> = Arc::new(Hurrying::default());
    let mut options = Options::new(clock.clone());
    // A page of sixteen heads or states takes more reads than this.
    options.bounds.view_age_max = Duration::from_millis(60);
    let kv = Arc::new(SledKv::open(&dir.path().join("store"), options).unwrap());
    let store = ProcessStore::new(kv, clock);
    let report = verify(&store).unwrap();
    assert!(report.is_clean(), "{report:#?}");
    assert_eq!(
        (report.processes, report.events),
        (41, 600),
        "nothing twice"
    );
    store.close().unwrap();
}

held_by_both!(
    a_busy_store_is_clean_before_and_after_a_reopen,
    an_empty_store_is_clean,
    many_pages_of_everything_are_clean,
    a_check_beside_writers_finds_nothing_wrong,
);
