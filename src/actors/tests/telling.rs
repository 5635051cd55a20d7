//! Who wakes those who listen to what a commit says: never the committer, which everybody waits for. Here
//! that is whoever lets a commit through the gate.

use std::pin::Pin;
use std::task::{Context, Wake, Waker};

use super::conditions::Ground;
use super::gated::idle;
use super::*;
use crate::actors::hub::Topic;

fn scope(id: &str) -> SessionScope {
    SessionScope::new(id)
}

/// Counts how often somebody was woken.
#[derive(Default)]
struct Woken(AtomicU32);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

type Wait = Pin<Box<dyn Future<Output = ()>>>;

/// Those who listen to anything that the commits below may say, by what they listen to.
fn listening(shared: &Shared, incarnation: Incarnation) -> Vec<(&'static str, Wait)> {
    let hub = &shared.hub;
    let (mut s, mut t) = (hub.listen_scope(&scope("s")), hub.listen_scope(&scope("t")));
    let mut session = hub.watcher();
    session.hear(Topic::Session("s".into()));
    let mut process = hub.watcher();
    process.hear(Topic::Process(incarnation));
    let mut feed = hub.listen_changes();
    let mut log = hub.listen(incarnation);
    let grant = hub.listen_grant((scope("s"), incarnation));
    vec![
        ("s", Box::pin(async move { assert!(s.changed().await) })),
        ("t", Box::pin(async move { assert!(t.changed().await) })),
        ("session", Box::pin(async move { session.rung().await })),
        ("process", Box::pin(async move { process.rung().await })),
        (
            "feed",
            Box::pin(async move { feed.changed().await.unwrap() }),
        ),
        ("log", Box::pin(async move { assert!(log.changed().await) })),
        ("grant", Box::pin(async move { grant.stirs().next().await })),
    ]
}

impl Ground {
    /// Does something that commits, one thing after the other, of which these are told and nobody else.
    async fn tells<T: Send + 'static>(
        &self,
        expected: &[&str],
        of: Incarnation,
        does: impl Future<Output = Result<T>> + Send + 'static,
    ) {
        self.gated.shut();
        let doing = tokio::spawn(does);
        until(|| self.gated.count() == 1).await;
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let mut cx = Context::from_waker(&waker);
        let mut listening = listening(&self.shared, of);
        for (_, wait) in &mut listening {
            assert!(wait.as_mut().poll(&mut cx).is_pending());
        }
        self.gated.pass(1);
        let by_the_committer = woken.0.load(Ordering::SeqCst);
        assert_eq!(by_the_committer, 0, "of {expected:?}");
        self.gated.open_gate();
        if let Err(error) = within(doing).await.unwrap() {
            panic!("{error}");
        }
        let (told, others): (Vec<_>, Vec<_>) = listening
            .into_iter()
            .partition(|(name, _)| expected.contains(name));
        assert_eq!(told.len(), expected.len());
        for (_, wait) in told {
            within(wait).await;
        }
        for (name, mut wait) in others {
            assert!(wait.as_mut().poll(&mut cx).is_pending(), "{name}");
        }
    }
}

#[tokio::test]
async fn e7_the_committer_wakes_nobody_who_listens() {
    let ground = Ground::open(0, idle).await;
    let shared = Arc::clone(&ground.shared);
    let asks = |id: &str| {
        let wake = WakeSemantics::new(Selector::constant("hi"));
        request(id, RecoveryDisposition::ExternallyOwned)
            .with_event_type(ProcessEventType::new("ping").with_wake(wake))
            .with_wake_target(Some(scope("s")))
            .with_grant(Some(ProcessStartGrant::new(scope("s"), id)))
    };
    let start = |id: &str| {
        let (shared, request) = (Arc::clone(&shared), asks(id));
        async move { shared.start(request, StartAs::default()).await }
    };
    let p = start("p").await.unwrap().incarnation;

    ground.tells(&["s", "session", "feed"], p, start("q")).await;

    let on = Arc::clone(&shared);
    let waking = async move {
        let ping = prepare_event("p", ProcessEventAppendRequest::new("ping", 1))?;
        on.append("p", ping, None).await
    };
    ground
        .tells(&["s", "session", "process", "feed", "log"], p, waking)
        .await;

    let on = Arc::clone(&shared);
    let acking = async move {
        let wakes = on.wakes(&scope("s"), 0).await?;
        on.ack_wake(&scope("s"), wakes[0].wake_id).await
    };
    ground.tells(&["s", "session"], p, acking).await;

    let on = Arc::clone(&shared);
    let revoking = async move { on.revoke(&scope("s"), "p").await };
    ground.tells(&["s", "session", "grant"], p, revoking).await;

    let on = Arc::clone(&shared);
    let descriptor = ProcessHandleDescriptor::default();
    let granting = async move { on.grant(&scope("s"), "p", descriptor).await };
    ground.tells(&["s", "session"], p, granting).await;

    let on = Arc::clone(&shared);
    let moving = async move { on.transfer(&[scope("s")], &scope("t"), &["p".into()]).await };
    ground
        .tells(&["s", "t", "session", "grant"], p, moving)
        .await;

    // Whoever watches the process is shown whom it wakes.
    let on = Arc::clone(&shared);
    let retargeting = async move { on.retarget_wakes("p", Some(&scope("t"))).await };
    ground
        .tells(&["s", "t", "session", "process"], p, retargeting)
        .await;

    let on = Arc::clone(&shared);
    let deleting = async move { on.delete_session("t").await };
    ground.tells(&["t", "process"], p, deleting).await;

    let abandon = HostCommand::Abandon {
        requested_by: "test".into(),
        reason: None,
    };
    shared.command("p", abandon, None).await.unwrap();
    let on = Arc::clone(&shared);
    let recovering = async move { on.recover_now().await };
    ground
        .tells(&["process", "feed", "log"], p, recovering)
        .await;

    let on = Arc::clone(&shared);
    let pruning = async move { on.prune_where(&PruneSelector::older_than(u64::MAX)).await };
    ground.tells(&["process", "feed", "log"], p, pruning).await;
    shut(&ground.runtime).await;
}
