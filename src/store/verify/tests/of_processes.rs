//! Damage to what a process is, and to its log.

use std::sync::Arc;

use serde_json::json;

use super::damage::*;
use crate::model::event::{EventBody, RuntimeEvent};
use crate::model::*;
use crate::store::codec::stored::*;
use crate::store::keys;
use crate::store::kv::Op;
use crate::store::kv_laws::{append, delete, put};
use crate::store::read::IdEntry;
use crate::store::testing::*;

#[test]
fn p1_every_field_of_the_state_is_compared_with_the_log() {
    each_is_found(
        Ground::memory,
        &[
            ("stored updated_at_ms", RICH, |s| {
                s.with_state(&s.rich, |it| it.updated_at_ms += 1)
            }),
            ("stored attempt", RICH, |s| {
                s.with_state(&s.rich, |it| it.attempt += 1)
            }),
            ("stored retries", RICH, |s| {
                s.with_state(&s.rich, |it| it.retries += 1)
            }),
            ("stored recoveries", RICH, |s| {
                s.with_state(&s.rich, |it| it.recoveries += 1)
            }),
            ("stored first_started", RICH, |s| {
                s.with_state(&s.rich, |it| it.first_started = None)
            }),
            ("stored cancel_request", RICH, |s| {
                s.with_state(&s.rich, |it| it.cancel_request = None)
            }),
            ("stored abandon_request", RICH, |s| {
                s.with_state(&s.rich, |it| {
                    it.abandon_request = Some(Arc::new(AbandonRequest {
                        requested_by: "x".into(),
                        reason: None,
                        requested_at_ms: 1,
                    }));
                })
            }),
            ("stored waits", RICH, |s| {
                s.with_state(&s.rich, |it| it.waits.clear())
            }),
            ("stored retry_pause", RICH, |s| {
                s.with_state(&s.rich, |it| {
                    it.retry_pause = Some(Arc::new(RetryPause {
                        retry_at_ms: 1,
                        error: ProcessError {
                            class: FailureClass::Execution,
                            code: "c".into(),
                            message: "m".into(),
                        },
                    }));
                })
            }),
            ("stored owner_lost", RICH, |s| {
                s.with_state(&s.rich, |it| {
                    it.owner_lost = Some(Arc::new(OwnerLoss {
                        at_ms: 1,
                        owner: None,
                    }));
                })
            }),
            ("stored external_ref", RICH, |s| {
                s.with_state(&s.rich, |it| it.external_ref = Some(json!(1)))
            }),
            ("stored terminal ", ENDED, |s| {
                s.with_state(&s.ended, |it| {
                    it.status = Arc::new(ProcessStatus::Running);
                })
            }),
            ("stored terminal ", Some("failed"), |s| {
                let Some(IdEntry::Live(row)) = s.host.view().id("failed").unwrap() else {
                    panic!()
                };
                let loaded = s.host.view().load(row).unwrap().unwrap();
                let front = s.host.view().front(row).unwrap().unwrap();
                let mut state = loaded.state;
                state.status = Arc::new(ProcessStatus::Terminal {
                    output: ProcessAwaitOutput::Failure {
                        class: FailureClass::Timeout,
                        code: "broken".into(),
                        message: "it broke".into(),
                        raw: None,
                    },
                });
                vec![put_state(row, front, &state)]
            }),
        ],
    );
}

#[test]
fn p1_every_field_in_front_of_the_state_is_compared_with_the_log() {
    each_is_found(
        Ground::memory,
        &[
            ("its log ends at 7 and not at 8", RICH, |s| {
                s.with_front(&s.rich, |it| it.last_sequence += 1)
            }),
            ("its log goes on behind its last event", RICH, |s| {
                s.with_front(&s.rich, |it| it.last_sequence -= 1)
            }),
            ("stored terminal_at_ms", ENDED, |s| {
                s.with_front(&s.ended, |it| it.terminal_at_plus_one += 1)
            }),
            ("stored terminal_at_ms", ENDED, |s| {
                s.with_front(&s.ended, |it| it.terminal_at_plus_one = 0)
            }),
            ("stored cancel_requested", RICH, |s| {
                s.with_front(&s.rich, |it| it.cancel_requested = false)
            }),
            ("stored log_bytes", RICH, |s| {
                s.with_front(&s.rich, |it| it.log_bytes += 1)
            }),
            // L2: below what its log says.
            ("stored token", RICH, |s| {
                s.with_front(&s.rich, |it| it.token = 0)
            }),
            ("its lease has no token", RICH, |s| {
                s.with_front(&s.rich, |it| it.token = 0)
            }),
            ("names owner 77", RICH, |s| {
                s.with_front(&s.rich, |it| it.owner = 77)
            }),
            ("its last change is not in the feed", RICH, |s| {
                s.with_front(&s.rich, |it| it.feed_position += 1)
            }),
            ("fencing token 9000 is in use", None, |s| {
                s.with_front(&s.rich, |it| it.token = 9_000)
            }),
            ("owner 9000 is in use", None, |s| {
                s.with_front(&s.rich, |it| it.owner = 9_000)
            }),
        ],
    );
}

#[test]
fn e1_and_p2_a_log_that_cannot_have_happened_is_found() {
    each_is_found(
        Ground::memory,
        &[
            ("follows on event 1", RICH, |s| {
                let log = s.log(&s.rich);
                let incarnation = s.rich.registration.incarnation.get();
                vec![
                    Op::EraseLog { incarnation },
                    append(incarnation, 1, &log[0]),
                    append(incarnation, 3, &log[2]),
                ]
            }),
            ("its log ends at 0 and not at 7", RICH, |s| {
                vec![Op::EraseLog {
                    incarnation: s.rich.registration.incarnation.get(),
                }]
            }),
            ("event 2: store is corrupted", RICH, |s| {
                vec![append(s.rich.registration.incarnation.get(), 2, "damaged")]
            }),
            ("event 2: store is corrupted: event: checksum", RICH, |s| {
                let mut bytes = s.log(&s.rich)[1].to_vec();
                *bytes.last_mut().unwrap() ^= 1;
                vec![append(s.rich.registration.incarnation.get(), 2, bytes)]
            }),
            ("the type is not declared", RICH, |s| {
                s.with_event(&s.rich, 2, |it| it.event_type = "unheard".into())
            }),
            ("event 1: ", RICH, |s| {
                s.with_event(&s.rich, 1, |it| it.payload = b"{}".to_vec())
            }),
            ("event payload", RICH, |s| {
                s.with_event(&s.rich, 2, |it| it.payload = b"{".to_vec())
            }),
            // An event behind the terminal one, in the log and in the front.
            ("the process has ended", ENDED, |s| {
                let mut ops = s.with_front(&s.ended, |it| it.last_sequence += 1);
                ops.push(append(
                    s.ended.registration.incarnation.get(),
                    4,
                    &s.log(&s.ended)[0],
                ));
                ops
            }),
            ("its log goes on behind its last event", ENDED, |s| {
                vec![append(
                    s.ended.registration.incarnation.get(),
                    4,
                    &s.log(&s.ended)[0],
                )]
            }),
            // No terminal event at the end of what has ended.
            ("stored terminal ", ENDED, |s| {
                s.with_event(&s.ended, 3, |it| {
                    it.event_type = "note".into();
                })
            }),
            // L2: a second start under the token of the first.
            ("token 1 does not rise", RICH, |s| {
                let mut started = s.event(&s.rich, 1);
                let mut event = started
                    .clone()
                    .borrowed()
                    .to_event("rich", Incarnation(1), 1)
                    .unwrap();
                event.event_type.clone_from(&started.event_type);
                let EventBody::Runtime(RuntimeEvent::Started {
                    owner,
                    fencing_token,
                    ..
                }) = EventBody::of(&event).unwrap()
                else {
                    panic!()
                };
                assert_eq!(fencing_token, FencingToken(1));
                let second = RuntimeEvent::Started {
                    owner,
                    attempt: 2,
                    fencing_token,
                    reason: StartReason::Released,
                    store_age_ms: None,
                };
                started.payload = json::canonical_bytes(&second.into_parts().unwrap().1);
                vec![append(
                    s.rich.registration.incarnation.get(),
                    2,
                    encoded(&started),
                )]
            }),
        ],
    );
}

#[test]
fn a_lease_that_outlives_the_recorded_loss_of_its_owner_is_found() {
    use crate::model::decide::{Command, Facts};

    let host = Ground::memory().open();
    let owner = host.owner();
    let mut process = host.start(request("lost"));
    let held = host.begin(&mut process, owner);
    let token = host.store.next_token().unwrap();
    let loses = Command::LoseOwner {
        owner: Some(host.named(owner)),
        token,
        proof: AbandonProof::StoreEpoch,
        survivors: Some(Vec::new()),
    };
    let facts = Facts {
        store_age_ms: None,
        replayed: None,
        holder: Some(held),
        claim: Some(token),
    };
    host.step(&mut process, loses, facts);
    assert!(host.verified().is_clean());
    let mut front = host.view().front(process.row()).unwrap().unwrap();
    assert_eq!((front.owner, front.token), (0, token.get()));
    front.owner = owner.get();
    host.damage(vec![put_state(process.row(), front, &process.state)]);
    let problems = host.verified().problems;
    assert!(problems[0].what.contains("stored lease"), "{problems:#?}");
    assert_eq!(problems.len(), 1, "{problems:#?}");
}

#[test]
fn ids_heads_bodies_and_states_belong_together() {
    each_is_found(
        Ground::memory,
        &[
            ("its id does not know it", RICH, |_| {
                vec![delete(keys::id("rich"))]
            }),
            ("its id stands for another process", RICH, |s| {
                let id = StoredId::Live(s.again.row().into());
                vec![put(keys::id("rich"), encoded(&id))]
            }),
            ("id stands for a process of another id", RICH, |s| {
                let id = StoredId::Live(s.again.row().into());
                vec![put(keys::id("rich"), encoded(&id))]
            }),
            ("id stands for a process that is not there", RICH, |s| {
                vec![delete(keys::head(s.rich.row()))]
            }),
            ("state of a process that is not there", None, |s| {
                vec![delete(keys::head(s.rich.row()))]
            }),
            ("it has no state", RICH, |s| {
                vec![delete(keys::state(s.rich.row()))]
            }),
            ("process head: ", None, |s| {
                vec![put(keys::head(s.rich.row()), "damaged")]
            }),
            ("process state: ", RICH, |s| {
                vec![put(keys::state(s.rich.row()), "damaged")]
            }),
            ("it has no body", Some("big"), |s| {
                vec![delete(keys::body(s.big))]
            }),
            ("process body: ", Some("big"), |s| {
                vec![put(keys::body(s.big), "damaged")]
            }),
            ("its body stands both", RICH, |s| {
                vec![put(keys::body(s.rich.row()), s.value(&keys::body(s.big)))]
            }),
            ("body of a process that is not there", None, |s| {
                vec![put(keys::body(nowhere()), s.value(&keys::body(s.big)))]
            }),
            ("id entry: ", None, |_| {
                vec![put(keys::id("rich"), "damaged")]
            }),
            ("incarnation 5000 is in use", None, |s| {
                vec![put(
                    keys::head(nowhere()),
                    s.value(&keys::head(s.rich.row())),
                )]
            }),
            ("newer than this release can read", RICH, |s| {
                let mut value = s.value(&keys::state(s.rich.row())).to_vec();
                value[1] = 200;
                let mut sum = crc32fast::Hasher::new();
                sum.update(&value[..6]);
                sum.update(&value[10..]);
                value[6..10].copy_from_slice(&sum.finalize().to_le_bytes());
                vec![put(keys::state(s.rich.row()), value)]
            }),
        ],
    );
}
