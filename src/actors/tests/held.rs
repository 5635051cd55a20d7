//! What a session is shown is checked again before it is given out, and what that costs the executor.

use std::pin::{Pin, pin};
use std::task::{Context, Poll, Wake, Waker};

use super::*;
use crate::actors::work::Whose;
use crate::store::memory_kv::MemoryStore;
use crate::store::noted::{Noted, Notes};
use crate::store::resolve::prune::KEYS_MAX;
use crate::store::write_set::{Change, WriteSet};

/// What a session holds here.
const HELD: usize = 20;

#[derive(Default)]
struct Flag(std::sync::atomic::AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Polls once, and where there is no answer yet, waits until there is something new to poll for: what
/// was sent off to another thread is done then, and its answer not taken. It has done nothing before.
pub(super) fn polled<F: Future>(notes: &Notes, future: Pin<&mut F>) -> Poll<F::Output> {
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    let polled = notes.alone(|| future.poll(&mut Context::from_waker(&waker)));
    while polled.is_pending() && !flag.0.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
    polled
}

/// Polls to the end, with nothing else done on this thread.
pub(super) fn driven<F: Future>(notes: &Notes, mut future: Pin<&mut F>) -> F::Output {
    loop {
        if let Poll::Ready(output) = polled(notes, future.as_mut()) {
            return output;
        }
    }
}

fn root() -> SessionScope {
    SessionScope::new("s")
}

fn frame() -> SessionScope {
    root().with_frame("f")
}

fn scopes() -> Vec<SessionScope> {
    vec![root(), frame()]
}

fn label(text: &str) -> ProcessHandleDescriptor {
    ProcessHandleDescriptor::label(text)
}

fn ids(processes: &[ObservedProcess]) -> Vec<&str> {
    processes.iter().map(|it| &it.process_id[..]).collect()
}

pub(super) async fn noted_on(store: &MemoryStore) -> (Runtime, Notes) {
    noted_with(store, Vec::new()).await
}

pub(super) async fn noted_with(
    store: &MemoryStore,
    engines: Vec<Arc<dyn ProcessEngine>>,
) -> (Runtime, Notes) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::default());
    let kv = store.open(Arc::clone(&clock)).unwrap();
    let (noted, notes) = Noted::over(Arc::new(kv));
    let store = ProcessStore::new(noted, Arc::clone(&clock));
    let config = RuntimeConfig {
        // Nothing else is read than what the test reads, but for what an open begins with.
        sweep_every: Duration::from_secs(3_600),
        retain_every: Duration::from_secs(3_600),
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, clock, engines);
    (runtime.await.unwrap(), notes)
}

/// With processes granted to a session, `p-0` by its frame as well.
async fn held_on(store: &MemoryStore) -> (Runtime, Notes) {
    let (runtime, notes) = noted_on(store).await;
    let shared = &runtime.shared;
    for n in 0..HELD {
        let id = format!("p-{n}");
        start(shared, &id, RecoveryDisposition::ExternallyOwned).await;
        shared.grant(&root(), &id, label("root's")).await.unwrap();
    }
    shared
        .grant(&frame(), "p-0", label("frame's"))
        .await
        .unwrap();
    start(shared, "other", RecoveryDisposition::ExternallyOwned).await;
    (runtime, notes)
}

async fn end(shared: &Arc<Shared>, id: &str) {
    let by = CompletionAuthority::Host { by: "ops".into() };
    let output = ProcessAwaitOutput::success(1);
    shared.complete_external(id, output, by).await.unwrap();
}

/// Other hosts may take grants away on the second one.
fn stores() -> [MemoryStore; 2] {
    [MemoryKv::private(), MemoryKv::shared()]
}

#[tokio::test]
async fn what_somebody_else_commits_costs_a_sessions_list_nothing_on_the_executor() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        let any = ProcessListFilter::any();
        let mut listing = pin!(shared.list_granted(scopes(), &any));
        assert!(polled(&notes, listing.as_mut()).is_pending());
        note(shared, "other", 1).await.unwrap();
        notes.take();
        assert_eq!(driven(&notes, listing).unwrap().len(), HELD);
        assert_eq!(notes.take_here(), 0);

        let mut looking = pin!(shared.work(Whose::Granted(scopes())));
        assert!(polled(&notes, looking.as_mut()).is_pending());
        note(shared, "other", 2).await.unwrap();
        notes.take();
        assert_eq!(driven(&notes, looking).unwrap().items.len(), HELD);
        assert_eq!(notes.take_here(), 0);
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn g5_what_was_revoked_after_the_look_is_not_listed_and_looked_for_off_the_executor() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        let any = ProcessListFilter::any();
        let mut listing = pin!(shared.list_granted(scopes(), &any));
        assert!(polled(&notes, listing.as_mut()).is_pending());
        shared.revoke(&root(), "p-3").await.unwrap();
        notes.take();
        // Looked at again, and while that goes on the next one is lost.
        assert!(polled(&notes, listing.as_mut()).is_pending());
        assert_eq!(notes.take_here(), 0);
        shared.revoke(&root(), "p-5").await.unwrap();
        notes.take();
        let listed = driven(&notes, listing).unwrap();
        assert_eq!(notes.take_here(), 0);
        assert_eq!(listed.len(), HELD - 2);
        assert!(!ids(&listed).contains(&"p-3") && !ids(&listed).contains(&"p-5"));
        shut(&runtime).await;
    }
}

/// With a process every grant on it goes.
#[tokio::test]
async fn g5_what_was_pruned_after_the_look_is_not_listed_and_looked_for_off_the_executor() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        end(shared, "p-3").await;
        let any = ProcessListFilter::any();
        let mut listing = pin!(shared.list_granted(scopes(), &any));
        assert!(polled(&notes, listing.as_mut()).is_pending());
        let ended = PruneSelector::older_than(u64::MAX);
        let pruned = shared.prune_where(&ended).await.unwrap();
        assert_eq!((pruned.pruned_processes, pruned.grants), (1, 1));
        notes.take();
        let listed = driven(&notes, listing).unwrap();
        assert_eq!(notes.take_here(), 0);
        assert_eq!(listed.len(), HELD - 1);
        assert!(!ids(&listed).contains(&"p-3"));
        shut(&runtime).await;
    }
}

/// Nor does what a prune has not erased yet of its grants hold a process.
#[tokio::test]
async fn g5_what_is_left_of_a_grant_on_what_was_pruned_shows_nothing() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        for n in 0..KEYS_MAX {
            // Erased before the session's own.
            let other = SessionScope::new("a").with_frame(format!("f-{n}"));
            shared.grant(&other, "p-3", label("x")).await.unwrap();
        }
        end(shared, "p-3").await;
        let any = ProcessListFilter::any();
        let mut listing = pin!(shared.list_granted(scopes(), &any));
        assert!(polled(&notes, listing.as_mut()).is_pending());
        // A prune that got no further than its first commit.
        let row = shared.row_of(&shared.view().unwrap(), "p-3").unwrap();
        let prune = Change::Prune {
            row,
            id: "p-3".into(),
            at_ms: shared.now_ms(),
        };
        let begun = shared.store.commit_wait(WriteSet::new(vec![], vec![prune]));
        assert_eq!(begun.await.unwrap().pruned.grants, KEYS_MAX as u64);
        let left = shared.view().unwrap().grant(&root(), row).unwrap();
        assert_eq!(left, Some(label("root's")));
        let listed = driven(&notes, listing).unwrap();
        assert_eq!(listed.len(), HELD - 1);
        assert!(!ids(&listed).contains(&"p-3"));
        shut(&runtime).await;
    }
}

/// However often something of it is lost while it is looked at, the answer comes, and is right.
#[tokio::test]
async fn g5_a_list_ends_while_its_grants_go_one_after_the_other() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        let any = ProcessListFilter::any();
        let mut listing = pin!(shared.list_granted(scopes(), &any));
        let mut lost = 0;
        let listed = loop {
            match polled(&notes, listing.as_mut()) {
                Poll::Ready(listed) => break listed.unwrap(),
                Poll::Pending => {
                    lost += 1;
                    let id = format!("p-{lost}");
                    shared.revoke(&root(), &id).await.unwrap();
                }
            }
        };
        assert!(lost > 2 && lost < HELD - 1, "{lost}");
        assert_eq!(listed.len(), HELD - lost);
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn g5_a_cancel_of_all_tells_of_what_is_held_and_looks_for_it_off_the_executor() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        let summary = |id: &str| ProcessCancelSummary {
            process_id: id.into(),
            status: ProcessStatus::Running,
        };
        let told = ["p-0", "p-1", "other", "absent", "p-2"]
            .map(summary)
            .to_vec();
        shared.revoke(&root(), "p-1").await.unwrap();
        notes.take();
        let mut telling = pin!(shared.cancelled_of(scopes(), told));
        assert!(polled(&notes, telling.as_mut()).is_pending());
        assert_eq!(notes.take_here(), 0);
        shared.revoke(&root(), "p-2").await.unwrap();
        notes.take();
        assert_eq!(driven(&notes, telling).unwrap(), [summary("p-0")]);
        assert_eq!(notes.take_here(), 0);
        shut(&runtime).await;
    }
}

/// A process that is held twice is shown by the grant that is left, and by nothing of the other one.
#[tokio::test]
async fn g5_what_another_grant_holds_is_shown_as_that_one_says() {
    for store in stores() {
        let (runtime, notes) = held_on(&store).await;
        let shared = &runtime.shared;
        let whose = Whose::Granted(scopes());
        let shown = |snapshot: &ProcessWorkSnapshot| {
            let item = snapshot
                .items
                .iter()
                .find(|it| it.process.process_id == "p-0");
            let item = item.unwrap();
            (item.descriptor.clone(), item.label.clone())
        };
        let watcher = shared.watch_work(&whose).unwrap();
        let mut looking = pin!(shared.watched_work(whose.clone(), watcher));
        assert!(polled(&notes, looking.as_mut()).is_pending());
        shared.revoke(&frame(), "p-0").await.unwrap();
        let (_, snapshot) = driven(&notes, looking);
        let expected = (label("root's"), Some("root's".to_owned()));
        assert_eq!(shown(&snapshot.unwrap()), expected);
        // And where neither says anything, as the process does itself.
        let mut looking = pin!(shared.work(whose));
        assert!(polled(&notes, looking.as_mut()).is_pending());
        shared.revoke(&root(), "p-0").await.unwrap();
        let silent = ProcessHandleDescriptor::default();
        shared.grant(&root(), "p-0", silent.clone()).await.unwrap();
        assert_eq!(shown(&driven(&notes, looking).unwrap()), (silent, None));
        shut(&runtime).await;
    }
}

#[tokio::test]
async fn a_look_whose_view_expired_is_taken_anew() {
    let (runtime, gated, _) = gated::open(gated::idle).await;
    let shared = &runtime.shared;
    start(shared, "p", RecoveryDisposition::ExternallyOwned).await;
    shared.grant(&root(), "p", label("x")).await.unwrap();
    for whose in [Whose::Session("s".into()), Whose::Granted(scopes())] {
        gated.expired.store(2, Ordering::SeqCst);
        assert_eq!(shared.work(whose).await.unwrap().items.len(), 1);
    }
    gated.expired.store(2, Ordering::SeqCst);
    let any = ProcessListFilter::any();
    let listed = shared.list_granted(scopes(), &any).await.unwrap();
    assert_eq!(ids(&listed), ["p"]);
    shut(&runtime).await;
}
