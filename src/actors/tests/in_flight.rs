//! What is in flight counts as that, whoever waits for it, and nothing waits behind what only looks.

use std::sync::atomic::AtomicUsize;

use super::conditions::Ground;
use super::gated::{Gated, Put, idle};
use super::*;
use crate::actors::config::COMMAND_KIB_MAX;

const LONG: Duration = Duration::from_secs(3_600);

fn scope(id: &str) -> SessionScope {
    SessionScope::new(id)
}

/// A runtime that takes one command at a time, and whose commits the test holds.
async fn narrow() -> (Runtime, Arc<Gated>) {
    let clock: Arc<dyn Clock> = Arc::new(Put::default());
    let gated = Gated::open(&MemoryKv::shared(), &clock);
    let store = ProcessStore::new(Arc::clone(&gated) as _, Arc::clone(&clock));
    let config = RuntimeConfig {
        lease: LeaseTimings::from_ttl(LONG).unwrap(),
        sweep_every: LONG,
        retain_every: LONG,
        commands_max: 1,
        ..RuntimeConfig::default()
    };
    let runtime = Runtime::open(config, store, clock, Vec::new());
    (runtime.await.unwrap(), gated)
}

/// Lets go of a call whose commit is on its way: nothing else is let in before that is there.
async fn holds_its_place<T>(shared: &Shared, gated: &Gated, call: impl Future<Output = T>) {
    gated.shut();
    {
        tokio::pin!(call);
        tokio::select! {
            biased;
            _ = &mut call => panic!("answered before it was committed"),
            () = until(|| gated.count() == 1) => {}
        }
    }
    let waits = tokio::time::timeout(Duration::ZERO, shared.admit(0)).await;
    assert!(waits.is_err(), "let in beside what is in flight");
    gated.open_gate();
    drop(within(shared.admit(0)).await.unwrap());
}

#[tokio::test]
async fn what_is_in_flight_holds_its_place_where_its_caller_has_gone_away() {
    let (runtime, gated) = narrow().await;
    let shared = Arc::clone(&runtime.shared);
    let asks = request("p", RecoveryDisposition::ExternallyOwned);
    let asks = asks.with_wake_target(Some(scope("s")));
    let starting = shared.start(asks, StartAs::default());
    holds_its_place(&shared, &gated, starting).await;
    let (s, t) = (scope("s"), scope("t"));
    let granting = shared.grant(&s, "p", ProcessHandleDescriptor::default());
    holds_its_place(&shared, &gated, granting).await;
    let ids = ["p".to_owned()];
    let transferring = shared.transfer(std::slice::from_ref(&s), &t, &ids);
    holds_its_place(&shared, &gated, transferring).await;
    holds_its_place(&shared, &gated, shared.ack_wake(&s, 1)).await;
    let retargeting = shared.retarget_wakes("p", Some(&t));
    holds_its_place(&shared, &gated, retargeting).await;
    holds_its_place(&shared, &gated, shared.delete_session("t")).await;
    shut(&runtime).await;
}

/// What an engine emits has no bound of its own in bytes but shares that of what hosts send.
#[tokio::test]
async fn what_engines_emit_counts_in_bytes_among_what_is_in_flight() {
    let emitted = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&emitted);
    let ground = Ground::open(1, move |cx: ProcessContext| {
        let counted = Arc::clone(&counted);
        async move {
            // Two bytes of quotes.
            let large = "x".repeat((1 << 20) - 2);
            for _ in 0..70 {
                cx.emit("note", large.as_str()).await?;
                counted.fetch_add(1, Ordering::SeqCst);
            }
            Ok(Value::Null)
        }
    })
    .await;
    let shared = Arc::clone(&ground.shared);
    ground.claim_on_its_way().await;
    ground.gated.pass(1);
    until(|| emitted.load(Ordering::SeqCst) == 64).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(emitted.load(Ordering::SeqCst), 64, "64 MiB are in flight");
    ground.gated.open_gate();
    within(shared.await_output("p")).await.unwrap();
    assert_eq!(emitted.load(Ordering::SeqCst), 70);
    shut(&ground.runtime).await;
}

#[tokio::test]
async fn what_a_completion_brings_counts_in_bytes_among_what_is_in_flight() {
    let ground = Ground::open(1, idle).await;
    let shared = Arc::clone(&ground.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    ground.gated.shut();
    let completing = {
        let shared = Arc::clone(&shared);
        let output = ProcessAwaitOutput::success("x".repeat(1 << 19));
        let by = CompletionAuthority::Host { by: "test".into() };
        tokio::spawn(async move { shared.complete_external("p", output, by).await })
    };
    ground.held(1).await;
    let all = COMMAND_KIB_MAX << 10;
    let waits = tokio::time::timeout(Duration::ZERO, shared.admit(all)).await;
    assert!(waits.is_err(), "let in beside it");
    ground.gated.open_gate();
    within(completing).await.unwrap().unwrap();
    drop(within(shared.admit(all)).await.unwrap());
    shut(&ground.runtime).await;
}

/// What was received leaves its key behind, and is nothing to be discarded.
#[tokio::test]
async fn a_new_target_of_wakes_costs_one_commit_where_all_were_received() {
    let (runtime, gated) = narrow().await;
    let shared = Arc::clone(&runtime.shared);
    let wake = WakeSemantics::new(Selector::pointer("/text"));
    let ask = ProcessEventType::new("ask").with_wake(wake.with_dedupe_key(Selector::pointer("/n")));
    let asks = request("p", RecoveryDisposition::ExternallyOwned)
        .with_event_type(ask)
        .with_wake_target(Some(scope("s")));
    shared.start(asks, StartAs::default()).await.unwrap();
    // More than a page of them.
    for n in 0..600 {
        let asked = json!({ "text": "?", "n": n.to_string() });
        let asked = prepare_event("p", ProcessEventAppendRequest::new("ask", asked)).unwrap();
        shared.append("p", asked, None).await.unwrap();
    }
    let pending = shared.wakes(&scope("s"), 0).await.unwrap();
    assert_eq!(pending.len(), 600);
    for wake in &pending[..599] {
        let acked = shared.ack_wake(&scope("s"), wake.wake_id).await;
        acked.unwrap();
    }
    gated.shut();
    let to = scope("t");
    let retargeting = shared.retarget_wakes("p", Some(&to));
    tokio::pin!(retargeting);
    tokio::select! {
        biased;
        _ = &mut retargeting => panic!("answered before it was committed"),
        () = until(|| gated.count() == 1) => gated.pass(1),
    }
    // Where it wants a second commit, that one waits at the gate.
    assert_eq!(within(retargeting).await.unwrap(), 1);
    gated.open_gate();
    shut(&runtime).await;
}

#[test]
fn g5_a_revocation_does_not_wait_behind_a_transfer_that_has_no_thread_to_look_on() {
    let threads = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(1)
        .enable_all()
        .build()
        .unwrap();
    threads.block_on(async {
        let runtime = open(Work::default()).await;
        let shared = Arc::clone(&runtime.shared);
        start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
        let (s, t) = (scope("s"), scope("t"));
        for scope in [&s, &t] {
            let descriptor = ProcessHandleDescriptor::default();
            shared.grant(scope, "p", descriptor).await.unwrap();
        }
        let (release, held) = std::sync::mpsc::channel::<()>();
        let taken = tokio::task::spawn_blocking(move || held.recv().is_err());
        let ids = ["p".to_owned()];
        let transferring = shared.transfer(std::slice::from_ref(&s), &t, &ids);
        tokio::pin!(transferring);
        tokio::select! {
            biased;
            moved = &mut transferring => panic!("looked without a thread: {moved:?}"),
            revoked = within(shared.revoke(&s, "p")) => revoked.unwrap(),
        }
        drop(release);
        assert!(taken.await.unwrap());
        // What it had not looked at yet, it finds gone.
        let moved = within(transferring).await;
        assert!(matches!(moved, Err(Error::NotGranted { .. })), "{moved:?}");
        shut(&runtime).await;
    });
}

/// What a test logs while something of it is let go of.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(line);
        Ok(line.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_deletion_that_is_let_go_of_logs_what_was_on_its_way() {
    let (runtime, gated) = narrow().await;
    let shared = Arc::clone(&runtime.shared);
    start(&shared, "p", RecoveryDisposition::ExternallyOwned).await;
    let descriptor = ProcessHandleDescriptor::default();
    shared.grant(&scope("s"), "p", descriptor).await.unwrap();
    gated.shut();
    let mut deleting = Box::pin(shared.delete_session("s"));
    tokio::select! {
        biased;
        _ = &mut deleting => panic!("answered before it was committed"),
        () = until(|| gated.count() == 1) => {}
    }
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(lines, || drop(deleting));
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(logged.contains("session deleted in part"), "{logged}");
    assert!(logged.contains("under_way=1"), "{logged}");
    assert!(logged.contains(r#"processes=["p"]"#), "{logged}");
    gated.open_gate();
    shut(&runtime).await;
}
