//! What runs and is told late of much that another host wrote.

use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::conditions::Ground;
use super::gated::{Does, idle};
use super::*;
use crate::actors::config::NOTED_AT_ONCE;
use crate::store::error::StoreError;
use crate::store::kv::{KeyRange, KvView, Reader};

type Entries = Vec<(Bytes, Bytes)>;

/// What is asked of logs.
#[derive(Debug, Default)]
pub(super) struct LogReads {
    /// The most events of a log that were asked for at once.
    pub(super) most_events: AtomicUsize,
    /// So many reads come too late for their view.
    pub(super) late: AtomicU32,
}

/// A view that takes note of how much is asked of it at once.
#[derive(Debug)]
pub(super) struct Noting {
    view: Box<dyn KvView>,
    log: Arc<LogReads>,
}

impl Noting {
    pub(super) fn over(view: Box<dyn KvView>, log: &Arc<LogReads>) -> Box<dyn KvView> {
        let log = Arc::clone(log);
        Box::new(Self { view, log })
    }
}

impl Reader for Noting {
    fn get(&self, key: &[u8]) -> std::result::Result<Option<Bytes>, StoreError> {
        self.view.get(key)
    }
    fn scan(&self, range: &KeyRange, limit: usize) -> std::result::Result<Entries, StoreError> {
        self.view.scan(range, limit)
    }
    fn scan_back(
        &self,
        range: &KeyRange,
        limit: usize,
    ) -> std::result::Result<Entries, StoreError> {
        self.view.scan_back(range, limit)
    }
}

impl KvView for Noting {
    fn commit(&self) -> u64 {
        self.view.commit()
    }
    fn events(
        &self,
        incarnation: u64,
        from_sequence: u64,
        limit: usize,
        bytes_max: usize,
    ) -> std::result::Result<Vec<(u64, Bytes)>, StoreError> {
        self.log.most_events.fetch_max(limit, Ordering::SeqCst);
        let (late, order) = (&self.log.late, Ordering::SeqCst);
        let fewer = |left: u32| left.checked_sub(1);
        if late.fetch_update(order, order, fewer).is_ok() {
            return Err(StoreError::ViewExpired { held_ms: 5_000 });
        }
        self.view
            .events(incarnation, from_sequence, limit, bytes_max)
    }
}

/// It is read in bounded pieces, and a wait that begins between two of them waits for the last: of what
/// is in the log already nobody says that it is waited for.
#[tokio::test]
async fn what_another_host_wrote_is_taken_note_of_in_pieces() {
    let cue = Arc::new(Semaphore::new(0));
    let cued = Arc::clone(&cue);
    let ground = Ground::open(1, move |cx: ProcessContext| {
        let cue = Arc::clone(&cued);
        async move {
            cue.acquire().await.unwrap().forget();
            let mut seen = Vec::new();
            for _ in 0..3 {
                seen.push(cx.wait_signal("go").await?.payload);
            }
            Ok(json!(seen))
        }
    })
    .await;
    let shared = &ground.shared;
    start(shared, "p", RecoveryDisposition::Rerunnable).await;
    until(|| shared.get("p").unwrap().unwrap().facets.started).await;
    let other = ground.another(0, Does(idle)).await;
    let count = 3 * NOTED_AT_ONCE;
    for n in 1..=count {
        if n % NOTED_AT_ONCE == 0 {
            let request = ProcessEventAppendRequest::signal("go", n);
            let signal = prepare_signal("p", "go", &n.to_string(), request).unwrap();
            other.shared.append("p", signal, None).await.unwrap();
        } else {
            note(&other.shared, "p", n).await.unwrap();
        }
    }
    ground.gated.log.most_events.store(0, Ordering::SeqCst);
    tell(shared, "p", ProcessMsg::Look);
    cue.add_permits(1);
    let found = within(shared.await_output("p")).await.unwrap();
    let expected = [1, 2, 3].map(|n| n * NOTED_AT_ONCE);
    assert_eq!(found, ProcessAwaitOutput::success(json!(expected)));
    let most = ground.gated.log.most_events.load(Ordering::SeqCst);
    assert!((1..=NOTED_AT_ONCE).contains(&most), "{most} at once");
    let events = shared.events("p", 0).await.unwrap();
    let waited = events
        .iter()
        .filter(|it| it.event_type == "process.waiting");
    assert_eq!(waited.count(), 0);
    shut(&other).await;
    shut(&ground.runtime).await;
}

/// What could not be read is read again, and nothing is taken note of before that: the first wait takes the
/// first signal.
#[tokio::test]
async fn what_another_host_wrote_and_could_not_be_read_at_once_is_not_passed_over() {
    for late in [1, 2] {
        let cue = Arc::new(Semaphore::new(0));
        let cued = Arc::clone(&cue);
        let ground = Ground::open(1, move |cx: ProcessContext| {
            let cue = Arc::clone(&cued);
            async move {
                cue.acquire().await.unwrap().forget();
                Ok((*cx.wait_signal("go").await?.payload).clone())
            }
        })
        .await;
        let (shared, log) = (&ground.shared, &ground.gated.log);
        start(shared, "p", RecoveryDisposition::Rerunnable).await;
        until(|| shared.get("p").unwrap().unwrap().facets.started).await;
        let other = ground.another(0, Does(idle)).await;
        let signal = |n: u64| {
            let request = ProcessEventAppendRequest::signal("go", n);
            prepare_signal("p", "go", &n.to_string(), request).unwrap()
        };
        other.shared.append("p", signal(1), None).await.unwrap();
        log.late.store(late, Ordering::SeqCst);
        tell(shared, "p", ProcessMsg::Look);
        // It goes by the same mailbox, behind that.
        shared.append("p", signal(2), None).await.unwrap();
        assert!(log.late.load(Ordering::SeqCst) < late, "it was not read");
        cue.add_permits(1);
        let found = within(shared.await_output("p")).await.unwrap();
        assert_eq!(found, ProcessAwaitOutput::success(json!(1)));
        assert_eq!(log.late.load(Ordering::SeqCst), 0);
        shut(&other).await;
        shut(&ground.runtime).await;
    }
}
