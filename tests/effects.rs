//! Effects: executed inline, taken from a journal, or left to a host's own controller.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    clippy::large_futures,
    clippy::cast_possible_truncation,
    clippy::allow_attributes,
    reason = "a test that cannot go on says so, and runs on a machine of today"
)]

mod common;

use std::sync::Mutex;

use common::*;
use procession::*;
use serde_json::json;

fn turn(n: u32) -> ExecutionScope {
    ExecutionScope::turn("s", format!("t{n}"))
}

fn parked(id: &str) -> ProcessStartRequest {
    external(id).with_event_type(ProcessEventType::signal("go"))
}

fn go(n: u64) -> ProcessEventAppendRequest {
    ProcessEventAppendRequest::signal("go", n)
}

#[tokio::test]
async fn a_journaled_effect_is_executed_once_per_scope() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let journal = supervisor.journaled_effects();
        let in_turn = |n| ScopedEffectController::new(&journal, turn(n));
        let started = processes.start(parked("p"), in_turn(1)).await.unwrap();
        let sent = processes
            .signal("p", "go", "1", go(1), in_turn(1))
            .await
            .unwrap();
        let cancelled = processes.cancel("p", in_turn(1)).await.unwrap();
        let all = processes.cancel_all(in_turn(1)).await.unwrap();
        assert_eq!(all.len(), 1);
        let before = processes.events("p", 0).await.unwrap();
        let host = CompletionAuthority::Host { by: "ops".into() };
        processes
            .complete_external("p", ProcessAwaitOutput::success(1), host)
            .await
            .unwrap();

        // Replayed: as it was then, not as it is now.
        assert_eq!(
            processes.start(parked("p"), in_turn(1)).await.unwrap(),
            started
        );
        assert_eq!(
            processes
                .signal("p", "go", "1", go(1), in_turn(1))
                .await
                .unwrap(),
            sent
        );
        assert_eq!(processes.cancel("p", in_turn(1)).await.unwrap(), cancelled);
        assert_eq!(cancelled.status, ProcessStatus::Running);
        assert_eq!(processes.cancel_all(in_turn(1)).await.unwrap(), all);
        assert_eq!(
            processes.events("p", 0).await.unwrap().len(),
            before.len() + 1
        );

        // Another scope executes.
        let now = processes.cancel("p", in_turn(2)).await.unwrap();
        assert_eq!(now.status.terminal(), Some(TerminalState::Completed));
        assert_eq!(processes.cancel_all(in_turn(2)).await.unwrap(), []);

        // Other content under the same key.
        let other = processes
            .start(parked("p").with_priority(3), in_turn(1))
            .await
            .unwrap_err();
        let Error::ReplayMismatch {
            scope,
            effect,
            difference,
        } = &other
        else {
            panic!("{other:?}");
        };
        assert_eq!(scope, "turn t1 of session s");
        assert_eq!(effect, "start p");
        assert_eq!(difference, "/priority was 0, is 3");
        let other = processes
            .signal("p", "go", "1", go(2), in_turn(1))
            .await
            .unwrap_err();
        assert!(
            matches!(&other, Error::ReplayMismatch { difference, .. } if difference == "/payload was 1, is 2"),
            "{other:?}"
        );
        close_clean(&supervisor).await;

        // The journal is in the store.
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let journal = supervisor.journaled_effects();
        let in_turn = |n| ScopedEffectController::new(&journal, turn(n));
        assert_eq!(
            processes.start(parked("p"), in_turn(1)).await.unwrap(),
            started
        );
        assert_eq!(processes.cancel("p", in_turn(1)).await.unwrap(), cancelled);
        close_clean(&supervisor).await;
    }
}

#[tokio::test]
async fn a_refused_effect_is_not_recorded() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let journal = supervisor.journaled_effects();
    let in_turn = || ScopedEffectController::new(&journal, turn(1));
    let refused = processes.cancel("p", in_turn()).await.unwrap_err();
    assert!(
        matches!(refused, Error::UnknownProcess { .. }),
        "{refused:?}"
    );
    processes.start(parked("p"), in_turn()).await.unwrap();
    processes.cancel("p", in_turn()).await.unwrap();
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn a_journal_does_not_give_a_session_what_it_no_longer_holds() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let journal = supervisor.journaled_effects();
    let in_turn = || ScopedEffectController::new(&journal, turn(1));
    let scope = SessionScope::new("s");
    let session = supervisor.session(scope.clone()).processes();
    let mut request = parked("p");
    request.originator = ProcessOriginator::session(scope.clone());
    session.start(request.clone(), in_turn()).await.unwrap();
    session.cancel("p", in_turn()).await.unwrap();
    processes.revoke(&scope, "p").await.unwrap();
    for refused in [
        session.start(request, in_turn()).await.map(drop),
        session.cancel("p", in_turn()).await.map(drop),
        session
            .signal("p", "go", "1", go(1), in_turn())
            .await
            .map(drop),
    ] {
        assert_eq!(
            refused,
            Err(Error::UnknownProcess {
                process_id: "p".into()
            })
        );
    }
    close_clean(&supervisor).await;
}

/// Remembers what it was shown; may refuse to execute, or answer with something else.
#[derive(Default)]
struct Custom {
    shown: Mutex<Vec<(String, Effect)>>,
    refuse: bool,
    swap: Option<EffectOutcome>,
}

#[async_trait::async_trait]
impl EffectController for Custom {
    async fn run(
        &self,
        scope: &ExecutionScope,
        effect: &Effect,
        execute: EffectExecution<'_>,
    ) -> Result<EffectOutcome> {
        self.shown
            .lock()
            .unwrap()
            .push((scope.to_string(), effect.clone()));
        if self.refuse {
            return Err(Error::Timeout {
                what: "the adapter".into(),
                waited_ms: 1,
            });
        }
        match &self.swap {
            Some(outcome) => Ok(outcome.clone()),
            None => execute.await,
        }
    }
}

#[tokio::test]
async fn a_hosts_own_controller_decides() {
    let supervisor = Supervisor::in_memory().open().await.unwrap();
    let processes = supervisor.processes();
    let own = Custom::default();
    let with = |custom| ScopedEffectController::new(custom, ExecutionScope::operation("deploy"));
    processes.start(parked("p"), with(&own)).await.unwrap();
    processes
        .signal("p", "go", "1", go(7), with(&own))
        .await
        .unwrap();
    processes.cancel("p", with(&own)).await.unwrap();
    processes.cancel_all(with(&own)).await.unwrap();
    let shown = own.shown.lock().unwrap().clone();
    let keys: Vec<_> = shown
        .iter()
        .map(|(_, effect)| effect.key.to_string())
        .collect();
    assert_eq!(keys, ["start p", "signal p go/1", "cancel p", "cancel_all"]);
    assert!(shown.iter().all(|(scope, _)| scope == "operation deploy"));
    assert_eq!(shown[0].1.content["id"], "p");
    assert_eq!(shown[1].1.content["payload"], json!(7));

    let refuses = Custom {
        refuse: true,
        ..Custom::default()
    };
    let refused = processes
        .start(parked("q"), with(&refuses))
        .await
        .unwrap_err();
    assert!(matches!(refused, Error::Timeout { .. }), "{refused:?}");
    assert_eq!(
        processes.get("q").await.unwrap(),
        None,
        "nothing happens unless it is executed"
    );

    let swaps = Custom {
        swap: Some(EffectOutcome::AllCancelled(Vec::new())),
        ..Custom::default()
    };
    let wrong = processes
        .start(parked("q"), with(&swaps))
        .await
        .unwrap_err();
    assert!(matches!(wrong, Error::InvalidInput { .. }), "{wrong:?}");
    assert_eq!(processes.get("q").await.unwrap(), None);
    close_clean(&supervisor).await;
}

#[tokio::test]
async fn g1_a_journal_shows_a_session_nothing_of_what_it_does_not_hold() {
    for place in Place::both() {
        let supervisor = place.builder().open().await.unwrap();
        let processes = supervisor.processes();
        let journal = supervisor.journaled_effects();
        let in_turn = || ScopedEffectController::new(&journal, turn(1));
        let scope = SessionScope::new("s");
        let session = supervisor.session(scope.clone()).processes();
        let asked = |n| {
            let originator = ProcessOriginator::session(scope.clone());
            ProcessStartRequest::external("p", originator, n)
        };
        let secret = ProcessStartRequest::external("p", ProcessOriginator::host(), "secret");
        processes.start(secret, in_turn()).await.unwrap();

        let bare = session.start(asked(1), inline()).await.unwrap_err();
        let journaled = session.start(asked(1), in_turn()).await.unwrap_err();
        assert!(
            matches!(&journaled, Error::Conflict { .. }),
            "{journaled:?}"
        );
        assert_eq!(journaled.to_string(), bare.to_string());

        // That it is taken it may be told once it holds it, and what was asked for only where it asked.
        let difference = |refused: &Error| match refused {
            Error::ReplayMismatch { difference, .. } => difference.clone(),
            other => panic!("{other:?}"),
        };
        let descriptor = ProcessHandleDescriptor::default();
        processes
            .grant(&scope, "p", descriptor.clone())
            .await
            .unwrap();
        let held = session.start(asked(1), in_turn()).await.unwrap_err();
        assert_eq!(difference(&held), NOT_SHOWN);
        let own = |n| ProcessStartRequest {
            id: "own".into(),
            ..asked(n)
        };
        session.start(own(1), in_turn()).await.unwrap();
        let differs = session.start(own(2), in_turn()).await.unwrap_err();
        assert_eq!(difference(&differs), "/input/metadata was 1, is 2");

        // A cancel of all is one effect of a scope of execution, whoever asked for it first.
        let alien = SessionScope::new("alien").with_frame("x");
        let first = supervisor.session(alien.clone()).processes();
        first.cancel_all(in_turn()).await.unwrap();
        let second = session.cancel_all(in_turn()).await.unwrap_err();
        assert_eq!(difference(&second), NOT_SHOWN);
        // The host is told.
        let host = processes.cancel_all(in_turn()).await.unwrap_err();
        assert!(difference(&host).contains(&alien.id()), "{host:?}");

        // What was signalled the log says, and whom it was to wake nothing does.
        let go = |n| ProcessEventAppendRequest::signal("go", n);
        let noted = noted("signalled");
        processes.start(noted, inline()).await.unwrap();
        for scope in [&scope, &alien] {
            let descriptor = descriptor.clone();
            processes
                .grant(scope, "signalled", descriptor)
                .await
                .unwrap();
        }
        let woken = go(1).with_wake_target_scope(Some(alien.clone()));
        first
            .signal("signalled", "go", "1", woken, in_turn())
            .await
            .unwrap();
        for (n, expected) in [(1, NOT_SHOWN), (2, "/payload was 1, is 2")] {
            let again = session.signal("signalled", "go", "1", go(n), in_turn());
            assert_eq!(difference(&again.await.unwrap_err()), expected);
        }
        close_clean(&supervisor).await;
    }
}

const NOT_SHOWN: &str = "what was recorded is not shown to this session";
