//! Where reads are made, and of how much.

use std::pin::pin;
use std::task::Poll;

use super::gated::Does;
use super::held::{driven, noted_on, noted_with, polled};
use super::*;
use crate::store::keys::kind;
use crate::store::noted::Notes;

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
