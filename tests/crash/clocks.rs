//! Wall clocks that jump while work runs: L1 to L3 hold, and nothing ends because of them.

use std::time::Duration;

use procession::*;
use serde_json::json;

use super::common::*;
use super::hosts::{Attempt, HandClock, Host, NOON_MS, puppet};

/// Long enough that a busy machine keeps its leases, short enough that several renewals can be
/// waited for.
const TTL: Duration = Duration::from_secs(6);
const TTL_MS: u64 = 6_000;
const RENEW_EVERY: Duration = Duration::from_millis(40);

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;

fn jumps() -> [(&'static str, u64); 10] {
    [
        ("a second on", NOON_MS + 1_000),
        ("a second back", NOON_MS - 1_000),
        ("a time to live on", NOON_MS + TTL_MS),
        ("a time to live back", NOON_MS - TTL_MS),
        ("a day on", NOON_MS + DAY_MS),
        ("a day back", NOON_MS - DAY_MS),
        ("to zero", 0),
        ("to the far future", u64::MAX / 2),
        ("to the end of time", u64::MAX),
        ("to where it was", NOON_MS),
    ]
}

/// Works that run on one host, each with its attempt.
struct Works(Vec<(&'static str, Attempt)>);

impl Works {
    async fn begin(host: &Host) -> Self {
        let mut works = Vec::new();
        for (id, disposition) in [
            ("again", RecoveryDisposition::Rerunnable),
            ("once", RecoveryDisposition::OwnerBound),
        ] {
            let request = puppet(id, disposition);
            host.processes.start(request, inline()).await.unwrap();
            works.push((id, host.attempt().await));
        }
        Self(works)
    }

    /// They run on under the leases they had, and what they write is accepted.
    async fn go_on(&self, hosts: &[&Host], when: &str) {
        for (id, attempt) in &self.0 {
            let progress = ProcessEventAppendRequest::new("said", json!({ "when": when }));
            let written = attempt.cx.emit_durable(progress).await;
            assert!(written.is_ok(), "{id}, {when}: {written:?}");
            assert_eq!(attempt.cx.cancel_reason(), None, "{id}, {when}");
            for host in hosts {
                let seen = host.get(id).await;
                assert_eq!(seen.lifecycle, Lifecycle::Running, "{id}, {when}");
                assert_eq!(seen.attempt, 1, "{id}, {when}");
                let lease = seen.lease.unwrap();
                assert_eq!(
                    lease.fencing_token,
                    attempt.cx.fencing_token(),
                    "{id}, {when}"
                );
                assert!(lease.live, "{id}, {when}: {lease:?}");
            }
        }
    }

    async fn finish(self, host: &Host) {
        for (id, attempt) in self.0 {
            attempt.finish.send(json!(id)).unwrap();
            let ended = output(&host.processes, id).await;
            assert_eq!(ended, ProcessAwaitOutput::success(id));
        }
    }
}

/// Waits until the owner of a process has renewed twice: the first may have been under way.
async fn renewed(host: &Host) {
    let expiry = async || host.get("once").await.lease.unwrap().expires_at_ms;
    for _ in 0..2 {
        let before = expiry().await;
        within(async {
            while expiry().await == before {
                pause().await;
            }
        })
        .await;
    }
}

fn lease() -> LeaseTimings {
    LeaseTimings::new(TTL, RENEW_EVERY).unwrap()
}

#[tokio::test]
async fn a_wall_clock_that_jumps_ends_nothing() {
    let clock = HandClock::running(NOON_MS);
    let host = Host::open(&InMemoryStore::new(), "one", clock.clone(), lease()).await;
    let works = Works::begin(&host).await;
    for (when, wall_ms) in jumps() {
        clock.set(wall_ms);
        works.go_on(&[&host], when).await;
        host.supervisor.recover().await.unwrap();
        renewed(&host).await;
        host.supervisor.recover().await.unwrap();
        works.go_on(&[&host], when).await;
        host.no_attempt();
    }
    works.finish(&host).await;
    close_clean(&host.supervisor).await;
}

#[tokio::test]
async fn the_wall_clock_of_either_host_may_jump_and_ends_nothing() {
    let store = InMemoryStore::shared();
    let clocks = [HandClock::running(NOON_MS), HandClock::running(NOON_MS)];
    let one = Host::open(&store, "one", clocks[0].clone(), lease()).await;
    let two = Host::open(&store, "two", clocks[1].clone(), lease()).await;
    let works = Works::begin(&one).await;
    for (when, wall_ms) in jumps() {
        for clock in &clocks {
            clock.set(wall_ms);
            for host in [&one, &two] {
                host.supervisor.recover().await.unwrap();
            }
            renewed(&one).await;
            two.supervisor.recover().await.unwrap();
            works.go_on(&[&one, &two], when).await;
            one.no_attempt();
            two.no_attempt();
        }
    }
    works.finish(&one).await;
    close_clean(&one.supervisor).await;
    close(&two.supervisor).await;
}
