//! Tails, listeners and watchers.

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
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
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
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
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
