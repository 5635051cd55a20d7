//! What a session is answered rests on a grant that it still holds when it is answered (G5).

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

fn scope() -> SessionScope {
    SessionScope::new("s")
}

fn effects() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("test"))
}

fn unknown() -> Error {
    Error::UnknownProcess {
        process_id: "p".into(),
    }
}

/// Polls just once.
fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

/// With a process that a session started.
async fn open() -> (Supervisor, SessionProcessAdmin) {
    let supervisor = Supervisor::in_memory()
        // No sweep ends what is asked to be given up.
        .recover(false)
        .open();
    let supervisor = supervisor.await.unwrap();
    let session = supervisor.session(scope()).processes();
    let request = ProcessStartRequest::external("p", ProcessOriginator::session(scope()), 1)
        .with_event_type(ProcessEventType::new("note"))
        .with_event_type(ProcessEventType::signal("go"));
    session.start(request, effects()).await.unwrap();
    (supervisor, session)
}

async fn note(processes: &Processes) {
    let note = ProcessEventAppendRequest::new("note", 1);
    processes.append_event("p", note).await.unwrap();
}

async fn shut(supervisor: &Supervisor) {
    let grace = ShutdownOptions::grace(Duration::from_secs(5));
    within(supervisor.shutdown(grace)).await.unwrap();
}

#[test]
fn g5_a_log_whose_grant_goes_while_it_is_read_is_not_given_out() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build();
    runtime.unwrap().block_on(a_log_is_read_meanwhile());
}

async fn a_log_is_read_meanwhile() {
    let (supervisor, session) = open().await;
    let processes = supervisor.processes();
    note(&processes).await;
    // The one thread that it is read on is taken up.
    let (let_go, held) = std::sync::mpsc::channel::<()>();
    let taken_up = tokio::task::spawn_blocking(move || held.recv().is_err());
    let mut reading = pin!(session.events("p", 0));
    assert!(poll_once(reading.as_mut()).is_pending());
    processes.revoke(&scope(), "p").await.unwrap();
    drop(let_go);
    assert!(taken_up.await.unwrap());
    assert_eq!(within(reading).await, Err(unknown()));
    shut(&supervisor).await;
}

/// Asked for again, they write nothing: no commit has the grant as its condition.
#[derive(Debug, Clone, Copy)]
enum Asked {
    Cancel,
    Signal,
    Abandon,
}

async fn ask(session: &SessionProcessAdmin, asked: Asked) -> Result<()> {
    match asked {
        Asked::Cancel => session.cancel("p", effects()).await.map(drop),
        Asked::Signal => {
            let go = ProcessEventAppendRequest::signal("go", 1);
            let sent = session.signal("p", "go", "g-1", go, effects());
            sent.await.map(drop)
        }
        Asked::Abandon => session.request_abandon("p", "me", None).await.map(drop),
    }
}

#[tokio::test]
async fn g5_an_answer_without_a_commit_is_not_given_when_its_grant_has_gone() {
    let (supervisor, session) = open().await;
    let processes = supervisor.processes();
    for asked in [Asked::Cancel, Asked::Signal, Asked::Abandon] {
        ask(&session, asked).await.unwrap();
        let logged = processes.events("p", 0).await.unwrap().len();
        ask(&session, asked).await.unwrap();
        let now = processes.events("p", 0).await.unwrap().len();
        assert_eq!(now, logged, "{asked:?}");
        let mut again = pin!(ask(&session, asked));
        assert!(poll_once(again.as_mut()).is_pending());
        // The process takes one after the other: it has answered by now.
        note(&processes).await;
        processes.revoke(&scope(), "p").await.unwrap();
        assert_eq!(within(again).await, Err(unknown()), "{asked:?}");
        let descriptor = ProcessHandleDescriptor::default();
        processes.grant(&scope(), "p", descriptor).await.unwrap();
    }
    shut(&supervisor).await;
}
