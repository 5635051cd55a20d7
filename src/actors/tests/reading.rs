//! Where reads are made, and of how much.

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::gated::Does;
use super::held::{driven, noted_on, noted_with};
use super::*;
use crate::actors::reads::ListScope;
use crate::store::keys::kind;
use crate::store::noted::{Notes, Read};

/// Where walks through a whole store go.
const WALKS: &str = "procession-walk";
/// Where lists of everything go.
const LISTS: &str = "procession-list";

async fn ended(shared: &Arc<Shared>, id: &str, value: &str) {
    start(shared, id, RecoveryDisposition::ExternallyOwned).await;
    let by = CompletionAuthority::Host { by: "ops".into() };
    let output = ProcessAwaitOutput::success(value);
    shared.complete_external(id, output, by).await.unwrap();
}

fn sorts(notes: &Notes) -> Vec<Option<u8>> {
    let reads = notes.take();
    let others = reads.iter().filter(|read| read.on != WALKS);
    others.map(|read| read.sort).collect()
}

#[test]
fn an_outcome_is_read_from_the_last_event_alone() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build();
    runtime.unwrap().block_on(outcomes_are_read());
}

async fn outcomes_are_read() {
    let (runtime, notes) = noted_on(&MemoryKv::private()).await;
    let shared = &runtime.shared;
    ended(shared, "small", "done").await;
    let large = "x".repeat(100_000);
    ended(shared, "large", &large).await;
    let expected = [Some(kind::ID), Some(kind::STATE), None];
    // The one other thread that reads may go to is taken up.
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let taken_up = tokio::task::spawn_blocking(move || held.recv().is_err());

    notes.take();
    let mut here = Context::from_waker(Waker::noop());
    let waits = pin!(shared.await_output("small"));
    let Poll::Ready(output) = waits.poll(&mut here) else {
        panic!("a small one waits for no other thread");
    };
    assert_eq!(output.unwrap(), ProcessAwaitOutput::success("done"));
    assert_eq!(sorts(&notes), expected);

    let mut waits = pin!(shared.await_output("large"));
    assert!(
        waits.as_mut().poll(&mut here).is_pending(),
        "parsed on this thread"
    );
    drop(let_go);
    assert!(taken_up.await.unwrap());
    let output = within(waits).await.unwrap();
    assert_eq!(output, ProcessAwaitOutput::success(&large[..]));
    assert_eq!(sorts(&notes), expected);
    shut(&runtime).await;
}

#[tokio::test]
async fn the_outcome_of_a_declared_event_is_read_with_what_declares_it() {
    let ends = Does(|cx: ProcessContext| async move {
        cx.emit("done", json!({ "answer": 42 })).await?;
        Ok(Value::Null)
    });
    let engines: Vec<Arc<dyn ProcessEngine>> = vec![Arc::new(ends)];
    let (runtime, notes) = noted_with(&MemoryKv::private(), engines).await;
    let shared = &runtime.shared;
    // Inside the head, and under a key of its own.
    for (id, input, extra) in [("inside", 1, None), ("apart", 5_000, Some(kind::BODY))] {
        let terminal = TerminalSemantics::new(MappedState::Completed, Selector::pointer("/answer"));
        let asked = ProcessStartRequest {
            input: ProcessInput::engine("work", "x".repeat(input)),
            ..request(id, RecoveryDisposition::Rerunnable)
        };
        let asked = asked.with_event_type(ProcessEventType::new("done").with_terminal(terminal));
        shared.start(asked, StartAs::default()).await.unwrap();
        within(shared.await_output(id)).await.unwrap();
        notes.take();
        let output = driven(&notes, pin!(shared.await_output(id))).unwrap();
        assert_eq!(output, ProcessAwaitOutput::success(42));
        let mut expected = vec![Some(kind::ID), Some(kind::STATE), None, Some(kind::HEAD)];
        expected.extend(extra.map(Some));
        assert_eq!(sorts(&notes), expected, "{id}");
    }
    shut(&runtime).await;
}

#[tokio::test]
async fn a_list_through_the_whole_store_goes_to_a_thread_of_its_own_and_a_page_where_reads_go() {
    let (runtime, notes) = noted_on(&MemoryKv::private()).await;
    let shared = &runtime.shared;
    for id in ["p0", "p1", "p2"] {
        start(shared, id, RecoveryDisposition::ExternallyOwned).await;
    }
    let scope = SessionScope::new("s");
    let silent = ProcessHandleDescriptor::default();
    shared.grant(&scope, "p0", silent).await.unwrap();
    // Whether heads were read there, and elsewhere.
    let heads = || {
        let reads = notes.take();
        let heads = |there: bool| {
            let on = |read: &Read| read.sort == Some(kind::HEAD) && (read.on == LISTS) == there;
            reads.iter().any(on)
        };
        (heads(true), heads(false))
    };
    let by_scope = ProcessListFilter {
        originator_scope_id: Some("session:nobody".into()),
        ..ProcessListFilter::default()
    };
    let (any, running) = (ProcessListFilter::any(), ProcessListFilter::default());
    let early = ProcessListFilter {
        created_at_end_ms: Some(u64::MAX),
        ..ProcessListFilter::default()
    };
    // How much it passes over depends on what runs.
    let some = ProcessListFilter {
        waiting: Some(false),
        ..ProcessListFilter::default()
    };
    for (of, filter, shown, read) in [
        (ListScope::All, &any, 3, (true, false)),
        (ListScope::All, &running, 3, (false, true)),
        (ListScope::All, &early, 3, (false, true)),
        (ListScope::All, &some, 3, (true, false)),
        (ListScope::All, &by_scope, 0, (false, false)),
        (ListScope::GrantedTo(scope), &any, 1, (false, true)),
    ] {
        notes.take();
        assert_eq!(shared.list(of.clone(), filter).await.unwrap().len(), shown);
        assert_eq!(heads(), read, "{filter:?}");
        let page = PageRequest::first(10);
        let found = shared.list_page(of, filter, &page).await.unwrap();
        assert_eq!(found.items.len(), shown);
        assert_eq!(heads(), (false, shown > 0), "{filter:?}");
    }
    shut(&runtime).await;
}
