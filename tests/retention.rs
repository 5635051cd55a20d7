//! Retention: policies and their filters, tombstones and what is refused once they are gone, and
//! clocks that jump.

#![allow(
    clippy::unwrap_used,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use procession::*;

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const DAY: Duration = Duration::from_millis(DAY_MS);
const NOON_MS: u64 = 1_700_000_000_000;

/// Clocks that stand where the test puts them.
#[derive(Debug, Default)]
struct Hand {
    wall_ms: AtomicU64,
    steady_ms: AtomicU64,
}

impl Hand {
    fn at_noon() -> Arc<Self> {
        let hand = Self::default();
        hand.wall_ms.store(NOON_MS, Ordering::SeqCst);
        Arc::new(hand)
    }

    /// Time goes by.
    fn pass(&self, ms: u64) {
        self.wall_ms.fetch_add(ms, Ordering::SeqCst);
        self.steady_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Somebody sets the wall clock.
    fn jump_to(&self, wall_ms: u64) {
        self.wall_ms.store(wall_ms, Ordering::SeqCst);
    }
}

impl Clock for Hand {
    fn now_epoch_ms(&self) -> u64 {
        self.wall_ms.load(Ordering::SeqCst)
    }
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.steady_ms.load(Ordering::SeqCst))
    }
}

async fn open(
    place: &Place,
    hand: &Arc<Hand>,
    with: impl Fn(SupervisorBuilder) -> SupervisorBuilder,
) -> Supervisor {
    let clock: Arc<dyn Clock> = Arc::clone(hand) as _;
    let every = Duration::from_millis(50);
    place
        .reopen(|b| with(b.clock(Arc::clone(&clock)).retain_every(every)))
        .await
}

async fn ended(processes: &Processes, id: &str, label: &str) {
    let mut request = noted(id);
    request.labels.insert("of".to_owned(), label.to_owned());
    processes.start(request, inline()).await.unwrap();
    complete(processes, id).await;
}

async fn gone(processes: &Processes, id: &str) {
    within(async {
        while processes.get(id).await.unwrap().is_some() {
            pause().await;
        }
    })
    .await;
}

/// Several intervals of retention: enough for what it will not do to have been done.
async fn several_passes() {
    tokio::time::sleep(Duration::from_millis(400)).await;
}

fn of(label: &str) -> ProcessListFilter {
    let mut filter = ProcessListFilter::any();
    filter.labels.insert("of".to_owned(), label.to_owned());
    filter
}

fn policy(keep: Duration) -> RetentionPolicy {
    RetentionPolicy::keep_terminal_for(keep)
}

#[tokio::test]
async fn each_policy_prunes_what_it_is_about_when_its_time_has_come() {
    for place in Place::both() {
        let hand = Hand::at_noon();
        let supervisor = open(&place, &hand, |b| {
            b.retention(policy(DAY).with_filter(of("brief")))
                .retention(policy(7 * DAY).with_filter(of("long")))
        })
        .await;
        let processes = supervisor.processes();
        for (id, label) in [("l1", "long"), ("b1", "brief"), ("n", "nobody's")] {
            ended(&processes, id, label).await;
        }
        processes.start(noted("runs"), inline()).await.unwrap();
        hand.pass(DAY_MS / 2);
        ended(&processes, "b2", "brief").await;
        several_passes().await;
        assert_eq!(
            processes
                .list(&ProcessListFilter::any())
                .await
                .unwrap()
                .len(),
            5
        );
        hand.pass(DAY_MS / 2 + 1);
        gone(&processes, "b1").await;
        several_passes().await;
        assert!(processes.get("b2").await.unwrap().is_some(), "half as old");
        hand.pass(DAY_MS / 2);
        gone(&processes, "b2").await;
        assert!(processes.get("l1").await.unwrap().is_some());
        hand.pass(6 * DAY_MS);
        gone(&processes, "l1").await;
        several_passes().await;
        let left = processes.list(&ProcessListFilter::any()).await.unwrap();
        assert_eq!(ids(&left), ["n", "runs"]);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn what_was_due_while_the_store_was_closed_goes_at_the_next_open() {
    for place in Place::both() {
        let hand = Hand::at_noon();
        let supervisor = open(&place, &hand, |b| b).await;
        ended(&supervisor.processes(), "p", "any").await;
        close_clean(&supervisor).await;
        hand.pass(2 * DAY_MS);
        let clock: Arc<dyn Clock> = Arc::clone(&hand) as _;
        let supervisor = place
            .reopen(|b| {
                b.clock(Arc::clone(&clock))
                    .retention(policy(DAY))
                    .retain_every(Duration::from_secs(3_600))
            })
            .await;
        gone(&supervisor.processes(), "p").await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_wall_clock_that_jumps_prunes_nothing_and_forgets_no_tombstone() {
    for place in Place::both() {
        let hand = Hand::at_noon();
        let supervisor = open(&place, &hand, |b| b.retention(policy(DAY))).await;
        let processes = supervisor.processes();
        ended(&processes, "old", "any").await;
        hand.pass(DAY_MS + 1);
        gone(&processes, "old").await;
        ended(&processes, "young", "any").await;
        several_passes().await;
        for jump in [u64::MAX, NOON_MS + 400 * DAY_MS, 0] {
            hand.jump_to(jump);
            several_passes().await;
            assert!(processes.get("young").await.unwrap().is_some(), "{jump}");
            let late = processes.await_output("old").await;
            assert!(
                matches!(late, Err(Error::NoLongerRetained { .. })),
                "{late:?}"
            );
        }
        // Set right, it prunes again.
        hand.jump_to(NOON_MS + DAY_MS + 1);
        several_passes().await;
        hand.pass(DAY_MS + 1);
        gone(&processes, "young").await;
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn once_a_tombstone_is_forgotten_a_late_start_begins_anew_and_old_cursors_are_refused() {
    for place in Place::both() {
        let hand = Hand::at_noon();
        let supervisor = open(&place, &hand, |b| {
            b.retention(policy(DAY)).keep_tombstones_for(3 * DAY)
        })
        .await;
        let processes = supervisor.processes();
        for number in 0..3 {
            let kept = noted(&format!("kept-{number}"));
            processes.start(kept, inline()).await.unwrap();
        }
        ended(&processes, "first", "any").await;
        let page = processes.changes_since(&ChangeCursor::start(), 9).await;
        let before = page.unwrap().next;
        let record = processes.record("first").await.unwrap().unwrap();
        hand.pass(DAY_MS + 1);
        gone(&processes, "first").await;

        // As long as the tombstone is kept, a late start runs nothing and everybody can learn of it.
        let mut again = noted("first");
        again.labels.insert("of".to_owned(), "any".to_owned());
        let late = processes.start(again.clone(), inline()).await;
        assert!(
            matches!(late, Err(Error::NoLongerRetained { .. })),
            "{late:?}"
        );
        let page = processes.changes_since(&before, 9).await.unwrap();
        assert!(matches!(page.changes[..], [ProcessChange::Deleted { .. }]));

        hand.pass(3 * DAY_MS + 1);
        within(async {
            while processes.changes_since(&before, 9).await.is_ok() {
                pause().await;
            }
        })
        .await;
        let refused = processes.changes_since(&before, 9).await.unwrap_err();
        assert!(matches!(refused, Error::CursorTooOld { .. }), "{refused:?}");
        let selector = PruneSelector::older_than(NOON_MS).with_watermark(Some(before));
        let refused = processes.prune_where(&selector).await.unwrap_err();
        assert!(matches!(refused, Error::CursorTooOld { .. }), "{refused:?}");
        // From the beginning, and from where that deletion was seen, it goes on.
        let mut cursor = ChangeCursor::start();
        for number in 0..3 {
            // Older than what was forgotten, and not to be refused for that.
            let page = processes.changes_since(&cursor, 1).await.unwrap();
            let [ProcessChange::Changed { record }] = &page.changes[..] else {
                panic!("{page:?}");
            };
            assert_eq!(record.id, format!("kept-{number}"));
            cursor = page.next;
        }
        let rest = processes.changes_since(&cursor, 9).await.unwrap();
        assert_eq!(rest.changes, []);
        processes.changes_since(&page.next, 9).await.unwrap();
        let unknown = processes.await_output("first").await;
        assert!(
            matches!(unknown, Err(Error::UnknownProcess { .. })),
            "{unknown:?}"
        );
        let anew = processes.start(again, inline()).await.unwrap();
        assert!(anew.incarnation > record.incarnation);
        close_clean(&supervisor).await;
    }
}
