//! Where reads are made, and of how much.

use std::pin::pin;
use std::task::Poll;

use super::gated::Does;
use super::held::{driven, noted_on, noted_with, polled};
use super::*;
use crate::actors::reads::ListScope;
use crate::store::keys::kind;
use crate::store::noted::{Notes, Read};

/// Where walks through a whole store go.
const WALKS: &str = "procession-walk";

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

#[tokio::test]
async fn an_outcome_is_read_from_the_last_event_alone() {
    let (runtime, notes) = noted_on(&MemoryKv::private()).await;
    let shared = &runtime.shared;
    ended(shared, "small", "done").await;
    let large = "x".repeat(100_000);
    ended(shared, "large", &large).await;
    let expected = [Some(kind::ID), Some(kind::STATE), None];

    notes.take();
    let waits = pin!(shared.await_output("small"));
    let Poll::Ready(output) = polled(&notes, waits) else {
        panic!("a small one waits for no other thread");
    };
    assert_eq!(output.unwrap(), ProcessAwaitOutput::success("done"));
    assert_eq!(sorts(&notes), expected);

    let mut waits = pin!(shared.await_output("large"));
    assert!(
        polled(&notes, waits.as_mut()).is_pending(),
        "parsed on this thread"
    );
    let output = driven(&notes, waits).unwrap();
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
async fn a_list_through_the_whole_store_goes_where_walks_go_and_lets_others_in_between() {
    let (runtime, notes) = noted_on(&MemoryKv::private()).await;
    let shared = &runtime.shared;
    // More than a page.
    let mut starts = JoinSet::new();
    for n in 0..limits::LIST_PAGE_MAX + 1 {
        let shared = Arc::clone(shared);
        starts.spawn(async move {
            start(
                &shared,
                &format!("p{n}"),
                RecoveryDisposition::ExternallyOwned,
            )
            .await;
        });
    }
    within(async { while starts.join_next().await.is_some() {} }).await;
    let scope = SessionScope::new("s");
    let silent = ProcessHandleDescriptor::default();
    shared.grant(&scope, "p0", silent).await.unwrap();
    let heads = |reads: &[Read], on_walk: bool| {
        let on = |read: &&Read| read.sort == Some(kind::HEAD) && (read.on == WALKS) == on_walk;
        reads.iter().filter(on).count()
    };
    for filter in [ProcessListFilter::any(), ProcessListFilter::default()] {
        notes.take();
        let other = Arc::clone(shared);
        let walk = shared.walk(move || Ok(other.view()?.incarnation_of("p7")?));
        let (listed, walked) = tokio::join!(shared.list(ListScope::All, &filter), walk);
        assert_eq!(listed.unwrap().len(), limits::LIST_PAGE_MAX + 1);
        assert!(walked.unwrap().is_some());
        let reads = notes.take();
        assert_eq!(heads(&reads, false), 0);
        let on_walk: Vec<_> = reads.iter().filter(|read| read.on == WALKS).collect();
        let other = on_walk.iter().position(|read| read.sort == Some(kind::ID));
        let last = on_walk
            .iter()
            .rposition(|read| read.sort == Some(kind::HEAD));
        assert!(
            other.unwrap() < last.unwrap(),
            "it waited for all of the list"
        );

        let page = PageRequest::first(10);
        let found = shared.list_page(ListScope::All, &filter, &page).await;
        assert_eq!(found.unwrap().items.len(), 10);
        assert_eq!(heads(&notes.take(), false), 0);
    }
    // What goes through a narrower index goes where reads go.
    let by_scope = ProcessListFilter {
        originator_scope_id: Some("session:nobody".into()),
        ..ProcessListFilter::default()
    };
    let granted = ListScope::GrantedTo(scope);
    let any = ProcessListFilter::any();
    for (of, filter, shown) in [(granted, &any, 1), (ListScope::All, &by_scope, 0)] {
        notes.take();
        assert_eq!(shared.list(of, filter).await.unwrap().len(), shown);
        assert_eq!(heads(&notes.take(), true), 0);
    }
    shut(&runtime).await;
}
