//! Tails, listeners and watchers.

use std::sync::atomic::AtomicBool;
use std::task::{Context, Wake, Waker};

use super::*;
use crate::model::Payload;

fn event(sequence: u64) -> (Arc<ProcessEvent>, usize) {
    let event = ProcessEvent {
        process_id: "p".into(),
        incarnation: Incarnation(1),
        sequence,
        event_type: "e".into(),
        payload: Payload::default(),
        occurred_at_ms: 0,
        replay_key: None,
    };
    (Arc::new(event), 4)
}

fn sequences(found: Option<FromTail>) -> Option<Vec<u64>> {
    found.map(|found| found.events.iter().map(|event| event.sequence).collect())
}

#[test]
fn a_tail_is_contiguous_and_bounded() {
    let hub = Arc::new(Hub::default());
    let mut listener = hub.read_log(Incarnation(1));
    for sequence in 1..=300 {
        hub.publish(Incarnation(1), &[event(sequence)], false);
    }
    assert_eq!(listener.seen().last_sequence, 300);
    assert_eq!(
        sequences(listener.tail_after(297, 9, usize::MAX)),
        Some(vec![298, 299, 300])
    );
    assert_eq!(
        sequences(listener.tail_after(43, 9, usize::MAX)),
        None,
        "fell out of the tail"
    );
    assert_eq!(sequences(listener.tail_after(300, 9, usize::MAX)), None);
    hub.publish(Incarnation(1), &[event(302)], false);
    assert_eq!(
        sequences(listener.tail_after(299, 9, usize::MAX)),
        None,
        "a gap is never bridged"
    );
}

/// What a tail holds, in events and bytes.
fn held(listener: &LogListener) -> (usize, usize) {
    let tail = listener.channel.tail();
    (tail.events.len(), tail.bytes)
}

#[test]
fn a_tail_holds_no_more_bytes_than_it_may() {
    let hub = Arc::new(Hub::default());
    let listener = hub.read_log(Incarnation(1));
    let quarter = TAIL_BYTES_MAX / 4;
    for sequence in 1..=100 {
        hub.publish(Incarnation(1), &[(event(sequence).0, quarter)], false);
        let (events, bytes) = held(&listener);
        assert_eq!(bytes, events * quarter);
        assert!(bytes <= TAIL_BYTES_MAX, "{bytes}");
    }
    assert_eq!(held(&listener), (4, TAIL_BYTES_MAX));
    assert_eq!(
        sequences(listener.tail_after(96, 9, usize::MAX)),
        Some(vec![97, 98, 99, 100])
    );
    // One that is larger than all that may be kept is not kept either.
    hub.publish(Incarnation(1), &[(event(101).0, TAIL_BYTES_MAX + 1)], false);
    assert_eq!(held(&listener), (0, 0));
    hub.publish(Incarnation(1), &[event(102)], false);
    assert_eq!(sequences(listener.tail_after(100, 9, usize::MAX)), None);
    assert_eq!(
        sequences(listener.tail_after(101, 9, usize::MAX)),
        Some(vec![102])
    );
}

#[test]
fn a_tail_gives_no_more_bytes_at_a_time_than_are_asked_for() {
    let hub = Arc::new(Hub::default());
    let listener = hub.read_log(Incarnation(1));
    for (sequence, bytes) in [(1, 0), (2, 100), (3, 50), (4, 50), (5, 1), (6, 300)] {
        hub.publish(Incarnation(1), &[(event(sequence).0, bytes)], sequence == 6);
    }
    let after = |sequence| listener.tail_after(sequence, 9, 100).unwrap();
    assert_eq!(sequences(Some(after(0))), Some(vec![1, 2]));
    assert_eq!(sequences(Some(after(2))), Some(vec![3, 4]));
    assert_eq!(sequences(Some(after(4))), Some(vec![5]));
    assert!(!after(4).ended, "there is one more");
    assert_eq!(sequences(Some(after(5))), Some(vec![6]), "however large");
    assert!(after(5).ended);
}

#[test]
fn a_tail_says_which_event_is_the_last_there_will_be() {
    let hub = Arc::new(Hub::default());
    let listener = hub.read_log(Incarnation(1));
    hub.publish(Incarnation(1), &[event(1)], false);
    assert!(!listener.tail_after(0, 9, usize::MAX).unwrap().ended);
    hub.publish(Incarnation(1), &[event(2), event(3)], true);
    assert!(listener.tail_after(0, 9, usize::MAX).unwrap().ended);
    assert!(listener.tail_after(2, 1, usize::MAX).unwrap().ended);
    let cut = listener.tail_after(0, 2, usize::MAX).unwrap();
    assert!(!cut.ended, "there is one more");
}

#[test]
fn whoever_only_waits_for_the_end_keeps_no_events() {
    let hub = Arc::new(Hub::default());
    let mut awaiting = hub.listen(Incarnation(1));
    hub.publish(Incarnation(1), &[event(1)], false);
    assert_eq!(awaiting.seen().last_sequence, 1, "told all the same");
    assert_eq!(held(&awaiting), (0, 0));
    let reading = hub.read_log(Incarnation(1));
    let second = hub.read_log(Incarnation(1));
    hub.publish(Incarnation(1), &[event(2)], false);
    drop(reading);
    assert_eq!(held(&awaiting), (1, 4));
    assert_eq!(
        sequences(second.tail_after(1, 9, usize::MAX)),
        Some(vec![2])
    );
    drop(second);
    assert_eq!(held(&awaiting), (0, 0));
    // A gap while nobody read is not bridged.
    hub.publish(Incarnation(1), &[event(3)], false);
    let reading = hub.read_log(Incarnation(1));
    hub.publish(Incarnation(1), &[event(4)], false);
    assert_eq!(sequences(reading.tail_after(2, 9, usize::MAX)), None);
    assert_eq!(
        sequences(reading.tail_after(3, 9, usize::MAX)),
        Some(vec![4])
    );
}

#[test]
fn w4_dropping_the_last_listener_leaves_nothing_behind() {
    let hub = Arc::new(Hub::default());
    let first = hub.listen(Incarnation(1));
    let second = hub.listen(Incarnation(1));
    let scope = hub.listen_scope(&SessionScope::new("s"));
    let mut watcher = hub.watcher();
    watcher.hear(Topic::Session("s".into()));
    let grant = hub.listen_grant((SessionScope::new("s"), Incarnation(1)));
    assert_eq!(hub.listened(), [1; 4]);
    drop((first, grant.clone()));
    assert_eq!(hub.listened(), [1; 4]);
    drop((second, scope, watcher, grant));
    assert_eq!(hub.listened(), [0; 4]);
    assert!(!hub.is_watched());
}

fn is_rung(watcher: &mut Watcher) -> bool {
    let mut waiting = std::pin::pin!(watcher.rung());
    let mut cx = Context::from_waker(Waker::noop());
    waiting.as_mut().poll(&mut cx).is_ready()
}

#[test]
fn a_watcher_hears_its_own_topics_once_however_much_happens() {
    let hub = Arc::new(Hub::default());
    let frame = SessionScope::new("s").with_frame("f");
    let mut of_session = hub.watcher();
    of_session.hear(Topic::Session("s".into()));
    let mut of_root = hub.watcher();
    of_root.hear(Topic::Scope(SessionScope::new("s")));
    assert!(of_root.follow([Incarnation(1), Incarnation(2)].into_iter()));
    // Somebody who waits already is not told once for having waited and once more.
    let mut cx = Context::from_waker(Waker::noop());
    let mut waiting = Box::pin(of_root.rung());
    assert!(waiting.as_mut().poll(&mut cx).is_pending());
    for _ in 0..2 {
        hub.publish(Incarnation(1), &[], false);
    }
    assert!(waiting.as_mut().poll(&mut cx).is_ready());
    drop(waiting);
    assert!(!is_rung(&mut of_root));
    for _ in 0..1_000 {
        hub.scope_changed(&frame);
        hub.publish(Incarnation(2), &[], false);
    }
    assert_eq!(
        (is_rung(&mut of_session), is_rung(&mut of_session)),
        (true, false)
    );
    assert_eq!(
        (is_rung(&mut of_root), is_rung(&mut of_root)),
        (true, false)
    );
    hub.scope_changed(&frame);
    assert!(!is_rung(&mut of_root), "another scope");
    assert!(!of_root.follow([Incarnation(1)].into_iter()));
    hub.nudge(Incarnation(2));
    assert!(!is_rung(&mut of_root), "no longer followed");
    hub.nudge(Incarnation(1));
    assert!(is_rung(&mut of_root));
    hub.nudge_all();
    assert!(is_rung(&mut of_root));
}

#[test]
fn w2_a_listener_is_not_lost_to_one_that_leaves() {
    let hub = Arc::new(Hub::default());
    let leaving = Arc::clone(&hub);
    let others = std::thread::spawn(move || {
        for _ in 0..200_000 {
            drop(leaving.listen(Incarnation(1)));
        }
    });
    let mut lost = 0;
    while !others.is_finished() {
        let mut listener = hub.listen(Incarnation(1));
        hub.nudge(Incarnation(1));
        lost += u32::from(listener.seen().nudges == 0);
    }
    others.join().unwrap();
    assert_eq!(lost, 0, "listeners that heard nothing");
}

#[test]
fn a_cursor_at_the_end_of_all_numbers_is_no_overflow() {
    let hub = Arc::new(Hub::default());
    let listener = hub.read_log(Incarnation(1));
    hub.publish(Incarnation(1), &[event(1)], false);
    assert_eq!(
        sequences(listener.tail_after(u64::MAX, 9, usize::MAX)),
        None
    );
}

/// Of two writers the one that ended it published first: what comes after that is not the end.
#[test]
fn a_tail_ends_with_the_terminal_event_alone_however_it_was_published() {
    let hub = Arc::new(Hub::default());
    // Kept, and too large to be kept.
    for bytes in [4, TAIL_BYTES_MAX + 1] {
        let listener = hub.read_log(Incarnation(1));
        hub.publish(Incarnation(1), &[(event(3).0, bytes)], true);
        hub.publish(Incarnation(1), &[event(2)], false);
        let found = listener.tail_after(1, 9, usize::MAX).unwrap();
        assert!(!found.ended);
        assert_eq!(sequences(Some(found)), Some(vec![2]));
        assert_eq!(sequences(listener.tail_after(2, 9, usize::MAX)), None);
    }
}

/// Notes that somebody was woken.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Cannot be woken.
struct Broken;

impl Wake for Broken {
    fn wake(self: Arc<Self>) {
        panic!("a test's waker");
    }
}

type Wait = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// One of each that listens.
fn waits(hub: &Arc<Hub>) -> Vec<Wait> {
    let s = SessionScope::new("s");
    let mut of_scope = hub.listen_scope(&s);
    let mut of_session = hub.watcher();
    of_session.hear(Topic::Session("s".into()));
    let mut of_process = hub.watcher();
    of_process.hear(Topic::Process(Incarnation(1)));
    let mut of_all = hub.listen_changes();
    let mut of_log = hub.listen(Incarnation(1));
    let of_grant = hub.listen_grant((s, Incarnation(1)));
    vec![
        Box::pin(async move { assert!(of_scope.changed().await) }),
        Box::pin(async move { of_session.rung().await }),
        Box::pin(async move { of_process.rung().await }),
        Box::pin(async move { of_all.changed().await.unwrap() }),
        Box::pin(async move { assert!(of_log.changed().await) }),
        Box::pin(async move {
            of_grant.stirs().next().await;
            assert!(of_grant.is_lost());
        }),
    ]
}

/// Has each of them wait, and says whom they wake.
fn parked(waits: &mut [Wait]) -> Vec<Arc<Woken>> {
    let park = |wait: &mut Wait| {
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let polled = wait.as_mut().poll(&mut Context::from_waker(&waker));
        assert!(polled.is_pending());
        woken
    };
    waits.iter_mut().map(park).collect()
}

fn told(parked: &[Arc<Woken>]) -> Vec<bool> {
    parked
        .iter()
        .map(|it| it.0.load(Ordering::SeqCst))
        .collect()
}

/// What a commit tells all of them.
fn commit(hub: &Hub) {
    hub.nudge(Incarnation(1));
    hub.scope_changed(&SessionScope::new("s"));
    hub.revoked(&(SessionScope::new("s"), Incarnation(1)));
}

#[tokio::test]
async fn e7_whoever_commits_wakes_nobody_and_notes_each_thing_once() {
    let hub = Arc::new(Hub::default());
    hub.tell_by_task();
    commit(&hub);
    assert!(hub.noted().is_empty(), "nobody listens");
    let mut waits = waits(&hub);
    let parked = parked(&mut waits);
    for n in 0..1_000 {
        commit(&hub);
        hub.nudge(Incarnation(2));
        hub.scope_changed(&SessionScope::new(format!("other-{n}")));
        hub.revoked(&(SessionScope::new("s"), Incarnation(2)));
    }
    assert_eq!(told(&parked), [false; 6], "woken by whoever commits");
    let noted = hub.noted();
    assert_eq!(noted.len(), 5, "no more than is listened to: {noted:?}");
    commit(&hub);
    tokio::task::yield_now().await;
    assert_eq!(told(&parked), [true; 6]);
    for wait in waits {
        wait.await;
    }
}

/// G5: known at once, however late whoever waits is told.
#[tokio::test]
async fn g5_a_grant_is_lost_before_anybody_is_told() {
    let hub = Arc::new(Hub::default());
    hub.tell_by_task();
    let of = (SessionScope::new("s"), Incarnation(1));
    let listener = hub.listen_grant(of.clone());
    let other = hub.listen_grant((SessionScope::new("s"), Incarnation(2)));
    hub.revoked(&of);
    assert!(listener.is_lost() && listener.clone().is_lost());
    assert!(!other.is_lost());
    assert!(!hub.listen_grant(of).is_lost(), "given again since");
}

#[test]
fn w2_nobody_is_left_waiting_where_the_threads_go_away_that_tell() {
    let hub = Arc::new(Hub::default());
    let threads = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    threads.block_on(async { hub.tell_by_task() });
    let mut first = waits(&hub);
    let before = parked(&mut first);
    commit(&hub);
    assert_eq!(told(&before), [false; 6]);
    drop(threads);
    assert_eq!(told(&before), [true; 6]);
    let mut second = waits(&hub);
    let after = parked(&mut second);
    commit(&hub);
    assert_eq!(told(&after), [true; 6], "by whoever does it");
}

#[tokio::test]
async fn w2_nobody_is_left_waiting_where_a_runtime_has_ended() {
    let hub = Arc::new(Hub::default());
    hub.tell_by_task();
    let mut first = waits(&hub);
    let before = parked(&mut first[..5]);
    hub.end();
    assert_eq!(told(&before), [true; 5]);
    let mut second = waits(&hub);
    let after = parked(&mut second);
    commit(&hub);
    assert_eq!(told(&after), [true; 6], "by whoever does it");
}

#[tokio::test]
async fn w2_one_that_cannot_be_woken_leaves_the_others_told() {
    let hub = Arc::new(Hub::default());
    hub.tell_by_task();
    let mut first = waits(&hub);
    let waker = Waker::from(Arc::new(Broken));
    let mut broken = hub.listen_scope(&SessionScope::new("broken"));
    let mut broken = Box::pin(async move { assert!(broken.changed().await) });
    let polled = broken.as_mut().poll(&mut Context::from_waker(&waker));
    assert!(polled.is_pending());
    let before = parked(&mut first);
    hub.scope_changed(&SessionScope::new("broken"));
    commit(&hub);
    tokio::task::yield_now().await;
    assert_eq!(told(&before), [true; 6]);
    // And the task goes on.
    let mut second = waits(&hub);
    let after = parked(&mut second);
    commit(&hub);
    assert_eq!(told(&after), [false; 6], "by whoever commits");
    tokio::task::yield_now().await;
    assert_eq!(told(&after), [true; 6]);
}
