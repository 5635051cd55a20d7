//! Hands a running process from one session to another: all of it or nothing, and from the moment
//! that the call returns the first session sees nothing more of it.
//!
//! `cargo run --example transfer`

#![expect(clippy::print_stdout, reason = "an example shows what happens")]

use std::pin::Pin;

use futures_core::Stream;
use procession::*;
use serde_json::json;

#[tokio::main]
async fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let supervisor = Supervisor::in_memory().open().await?;
    let (writer, reviewer) = (
        SessionScope::new("writer"),
        SessionScope::new("reviewer").with_frame("main"),
    );
    let of_writer = supervisor.session(writer.clone()).processes();
    let of_reviewer = supervisor.session(reviewer.clone()).processes();

    // What a session starts is granted to it. Hosts mint ids that cannot be guessed.
    let request = ProcessStartRequest::external(
        "draft-7f3a",
        ProcessOriginator::session(writer),
        json!({ "tracker": "T-12" }),
    )
    .with_event_type(ProcessEventType::signal("comment"));
    of_writer.start(request, turn("writer")).await?;
    let mut following = of_writer.subscribe("draft-7f3a", 0).await?;

    // An id that the writer does not hold, and nothing moves.
    let too_much = ["draft-7f3a".to_owned(), "not-mine".to_owned()];
    let refused = of_writer.transfer(&reviewer, &too_much).await;
    println!("refused: {}", refused.refusal());
    println!(
        "the writer still has {} of them",
        of_writer.list().await?.len()
    );

    of_writer.transfer(&reviewer, &too_much[..1]).await?;
    let comment = ProcessEventAppendRequest::signal("comment", json!("looks good"));
    of_reviewer
        .signal("draft-7f3a", "comment", "c-1", comment, turn("reviewer"))
        .await?;

    // The comment never reaches the writer; to it the id might as well not exist.
    match next(&mut following).await {
        Some(Err(Error::NotGranted { ids, .. })) => println!("the writer lost {}", ids.join(", ")),
        other => return Err(format!("the writer was shown {other:?}").into()),
    }
    println!(
        "to the writer: {}",
        of_writer.events("draft-7f3a", 0).await.refusal()
    );
    println!(
        "to the reviewer: {:?}",
        of_reviewer.events("draft-7f3a", 0).await?
    );
    supervisor.shutdown(ShutdownOptions::default()).await?;
    Ok(())
}

fn turn(session: &str) -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::turn(session, "turn-1"))
}

trait Refused {
    fn refusal(self) -> String;
}

impl<T> Refused for Result<T> {
    fn refusal(self) -> String {
        self.err()
            .map_or_else(|| "nothing".to_owned(), |error| error.to_string())
    }
}

/// What `StreamExt::next` of the crate `futures` does.
async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
