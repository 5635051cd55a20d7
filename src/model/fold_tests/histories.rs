//! Random histories: whatever commands come, the record is the fold of its log.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::decide::{
    Command, Decision, EventDraft, Facts, Finisher, LeaseChange, Replayed, apply_drafts,
    check_event, check_signal, decide,
};
use super::super::event::{
    CompletionAuthority, EventBody, ProcessEvent, ProcessEventAppendRequest, RuntimeEvent,
    StartReason, WaitResult,
};
use super::super::fold::apply;
use super::super::ids::FencingToken;
use super::super::json;
use super::super::output::{AbandonProof, AbandonWriter, FailureClass, ProcessAwaitOutput};
use super::super::record::{ProcessRecord, ProcessState, Registration, Writer};
use super::super::request::RecoveryDisposition;
use super::super::testing::{abandoned, error, owner, registration, scope};

/// What a host, an engine or the reaper might do next; its numbers choose among the details.
type Step = (u8, u8, u8);

/// A store in miniature: the lease, the counter of tokens, the replay keys and the log.
struct World {
    registration: Registration,
    state: ProcessState,
    holder: Option<FencingToken>,
    /// The owner that holds the lease is gone, so that it can be claimed.
    lost: bool,
    last_token: u64,
    keys: Vec<(String, Replayed)>,
    /// What was written: type, canonical bytes, and when.
    log: Vec<(String, Vec<u8>, u64)>,
    now_ms: u64,
}

impl World {
    fn new(disposition: RecoveryDisposition) -> Self {
        let registration = registration(disposition);
        Self {
            state: ProcessState::initial(registration.created_at_ms),
            registration,
            holder: None,
            lost: false,
            last_token: 0,
            keys: Vec::new(),
            log: Vec::new(),
            now_ms: 1_000,
        }
    }

    fn step(&mut self, (what, how, seed): Step) {
        self.now_ms += u64::from(seed);
        let Some((command, key)) = self.command(what, how, seed) else {
            return;
        };
        let replayed = key
            .and_then(|key| self.keys.iter().find(|(known, _)| *known == key))
            .map(|(_, replayed)| *replayed);
        let free = self.holder.is_none() || self.lost;
        let facts = Facts {
            store_age_ms: None,
            replayed,
            holder: self.holder,
            claim: free.then_some(FencingToken(self.last_token + 1)),
        };
        let before = self.state.clone();
        match decide(&self.registration, &self.state, command, facts) {
            Ok(Decision::Commit { events, lease }) => self.commit(&before, &events, &lease),
            Ok(Decision::Replayed { sequence }) => {
                assert!((1..=self.state.last_sequence).contains(&sequence));
            }
            Ok(Decision::Unchanged) | Err(_) => {}
        }
    }

    fn commit(&mut self, before: &ProcessState, events: &[EventDraft], lease: &LeaseChange) {
        assert_eq!(before.terminal(), None, "P2: nothing follows the end");
        assert!(!events.is_empty(), "a commit appends something");
        apply_drafts(&self.registration, &mut self.state, events, self.now_ms)
            .expect("P1: what is decided can be applied");
        for (at, event) in events.iter().enumerate() {
            let sequence = before.last_sequence + 1 + at as u64;
            if let Some(replay) = &event.replay {
                let content = replay.content;
                let stands_for = Replayed { sequence, content };
                self.keys.push((replay.key.clone(), stands_for));
            }
            let bytes = event.canonical.to_vec();
            self.log
                .push((event.event_type.clone(), bytes, self.now_ms));
        }
        assert_eq!(self.state.last_sequence, self.log.len() as u64, "E1: dense");
        match lease {
            LeaseChange::Keep => {}
            LeaseChange::Acquire(token) => {
                assert!(self.holder.is_none() || self.lost, "L1: one live lease");
                self.rise(*token);
                self.holder = Some(*token);
                self.lost = false;
            }
            LeaseChange::Release => self.holder = None,
            LeaseChange::Pass(token) => {
                assert!(self.holder.is_none() || self.lost, "L1: one live lease");
                self.rise(*token);
                self.holder = None;
            }
        }
    }

    fn rise(&mut self, token: FencingToken) {
        assert!(token.get() > self.last_token, "L2: tokens rise");
        self.last_token = token.get();
    }

    /// The command of a step, and its replay key. Steps that only change the world give none.
    fn command(&mut self, what: u8, how: u8, seed: u8) -> Option<(Command, Option<String>)> {
        let held = self.holder.unwrap_or(FencingToken(0));
        let next = FencingToken(self.last_token + 1);
        let number = u64::from(how % 3) + 1;
        let signal_name = "go".to_owned();
        let command = match what {
            0 => return self.append(how, seed),
            1 => Command::RequestCancel {
                requested_by: (how > 100).then(|| "ops".to_owned()),
            },
            2 => Command::RequestAbandon {
                requested_by: "ops".to_owned(),
                reason: (how > 100).then(|| "gone".to_owned()),
            },
            3 => Command::SetExternalRef {
                reference: value(how),
            },
            4 | 5 => Command::Begin {
                owner: owner(),
                token: next,
                reason: match (self.state.attempt, how % 3) {
                    (0, _) => StartReason::First,
                    _ if self.state.owner_lost.is_some() => StartReason::Recovery,
                    (_, 0) => StartReason::Retry,
                    (_, 1) => StartReason::Recovery,
                    (_, _) => StartReason::Released,
                },
            },
            9 if seed >= 40 => Command::LoseOwner {
                owner: (how > 100).then(owner),
                token: next,
                proof: AbandonProof::Lapse,
                survivors: (how > 50).then(Vec::new),
            },
            6 => Command::BeginWait {
                token: held,
                signal_name,
                number,
                deadline_ms: (how > 100).then_some(self.now_ms + 10),
            },
            7 => Command::EndWait {
                token: held,
                signal_name,
                number,
                result: match seed % 3 {
                    0 => WaitResult::Dropped,
                    1 => WaitResult::TimedOut,
                    _ => WaitResult::Signal {
                        sequence: self.state.last_sequence,
                    },
                },
            },
            8 => Command::ScheduleRetry {
                token: held,
                retry_at_ms: self.now_ms + 100,
                error: error(),
            },
            // Ends are rare, so that histories grow.
            9 if seed < 40 => Command::Finish {
                output: output(how),
                finisher: self.finisher(seed, held, next),
            },
            10 => {
                self.lost = self.holder.is_some();
                return None;
            }
            // A graceful shutdown releases the lease and writes nothing.
            11 => {
                self.holder = None;
                return None;
            }
            _ => return None,
        };
        Some((command, None))
    }

    fn append(&self, how: u8, seed: u8) -> Option<(Command, Option<String>)> {
        let payload = json!({ "value": value(seed), "text": "t" });
        let event = match how % 8 {
            0 | 1 => {
                let request = ProcessEventAppendRequest::signal("go", payload);
                check_signal(
                    &self.registration,
                    "go",
                    &format!("s-{}", seed % 4),
                    request,
                )
            }
            2 if seed < 60 => self.checked("done", payload, None),
            3 if seed < 60 => self.checked("broke", payload, None),
            4 => self.checked("question", payload, None),
            _ => self.checked("progress", payload, Some(format!("k-{}", seed % 4))),
        };
        let event = event.ok()?;
        let key = event.replay.as_ref().map(|replay| replay.key.clone());
        let writer = match self.holder {
            Some(token) if how >= 128 => Writer::Owner(token),
            _ => Writer::Host,
        };
        Some((Command::Append { event, writer }, key))
    }

    fn checked(
        &self,
        event_type: &str,
        payload: Value,
        key: Option<String>,
    ) -> super::super::Result<super::super::decide::CheckedEvent> {
        let request = ProcessEventAppendRequest::new(event_type, payload).with_replay_key(key);
        check_event(&self.registration, request)
    }

    fn finisher(&self, seed: u8, held: FencingToken, next: FencingToken) -> Finisher {
        let external = self.registration.disposition == RecoveryDisposition::ExternallyOwned;
        match (external, seed % 3) {
            (false, 0) => Finisher::Claim(next),
            (false, _) => Finisher::Owner(held),
            (true, 0) => Finisher::Authority(CompletionAuthority::ReconciledAbandon),
            (true, 1) => Finisher::Authority(CompletionAuthority::Host { by: "ops".into() }),
            (true, _) => Finisher::Authority(CompletionAuthority::ExternalOwner {
                granted_to: scope(),
            }),
        }
    }

    /// The state, folded anew from the bytes of the log.
    fn refold(&self) -> ProcessState {
        let mut state = ProcessState::initial(self.registration.created_at_ms);
        for (at, (event_type, bytes, occurred_at_ms)) in self.log.iter().enumerate() {
            let event = ProcessEvent {
                process_id: self.registration.id.clone(),
                incarnation: self.registration.incarnation,
                sequence: at as u64 + 1,
                event_type: event_type.clone(),
                payload: json::parse(bytes).unwrap().into(),
                occurred_at_ms: *occurred_at_ms,
                replay_key: None,
            };
            let body = EventBody::of(&event).unwrap();
            if let EventBody::Runtime(read) = &body {
                let (again, payload) = read.clone().into_parts().unwrap();
                assert_eq!((&again, &payload), (event_type, &*event.payload));
                assert_eq!(&json::canonical_bytes(&payload), bytes);
            }
            apply(
                &self.registration,
                &mut state,
                event.sequence,
                event.occurred_at_ms,
                &body,
            )
            .expect("a log that was written folds");
        }
        state
    }
}

/// Values that do not survive every encoding: a null that is not an absence, integers beyond what
/// a double holds, doubles that need every digit, keys to be escaped.
fn value(seed: u8) -> Value {
    match seed % 8 {
        0 => Value::Null,
        1 => json!(u64::MAX),
        2 => json!(i64::MIN),
        3 => json!(1.234_567_890_123_456_7e-300),
        4 => json!({ "b": null, "a": { "\u{7f}\"é": [] } }),
        5 => json!(0.1),
        6 => json!("\u{0}\u{2028}"),
        _ => json!([1.0, 1, -0.0]),
    }
}

fn output(how: u8) -> ProcessAwaitOutput {
    let raw = (how >= 128).then(|| value(how));
    match how % 8 {
        0 | 1 => ProcessAwaitOutput::Success {
            value: value(how / 8),
        },
        2 | 3 => ProcessAwaitOutput::Failure {
            class: FailureClass::Execution,
            code: "c".into(),
            message: "line 1\nline 2".into(),
            raw,
        },
        4 => ProcessAwaitOutput::Cancelled {
            message: String::new(),
            raw,
        },
        5 => abandoned(AbandonWriter::OwnerDrain, AbandonProof::Drain),
        6 => abandoned(AbandonWriter::Sweep, AbandonProof::StoreEpoch),
        _ => abandoned(AbandonWriter::ReconciledRequest, AbandonProof::Lapse),
    }
}

fn disposition() -> impl Strategy<Value = RecoveryDisposition> {
    prop_oneof![
        Just(RecoveryDisposition::Rerunnable),
        Just(RecoveryDisposition::OwnerBound),
        Just(RecoveryDisposition::ExternallyOwned),
    ]
}

/// The same state through the types that are stored and shown.
fn assert_same(registration: &Registration, wanted: &ProcessState, found: &ProcessState) {
    assert_eq!(wanted, found);
    let shown = ProcessRecord::assemble(registration, wanted);
    assert_eq!(shown, ProcessRecord::assemble(registration, found));
    let text = serde_json::to_string(&shown).unwrap();
    let read: ProcessRecord = serde_json::from_str(&text).unwrap();
    assert_eq!(read, shown, "the record's own JSON loses nothing");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    #[test]
    fn p1_the_record_is_the_fold_of_its_log(
        disposition in disposition(),
        steps in prop::collection::vec((0_u8..12, any::<u8>(), any::<u8>()), 0..60),
    ) {
        let mut world = World::new(disposition);
        for step in steps {
            world.step(step);
        }
        assert_same(&world.registration, &world.state, &world.refold());
    }

    #[test]
    fn p6_an_owner_bound_log_has_one_start(
        steps in prop::collection::vec((0_u8..12, any::<u8>(), any::<u8>()), 0..80),
    ) {
        let mut world = World::new(RecoveryDisposition::OwnerBound);
        for step in steps {
            world.step(step);
        }
        let starts = world.log.iter().filter(|(name, ..)| name == "process.started").count();
        prop_assert!(starts <= 1);
        prop_assert_eq!(world.state.attempt, u32::try_from(starts).unwrap());
    }

    #[test]
    fn p2_a_log_has_at_most_one_terminal_event_and_it_is_the_last(
        disposition in disposition(),
        steps in prop::collection::vec((0_u8..12, any::<u8>(), any::<u8>()), 0..80),
    ) {
        let mut world = World::new(disposition);
        for step in steps {
            world.step(step);
        }
        let ends = |name: &str| matches!(
            name,
            "done" | "broke" | "process.completed" | "process.failed" | "process.cancelled"
                | "process.abandoned"
        );
        let terminal: Vec<usize> = (0..world.log.len())
            .filter(|at| ends(&world.log[*at].0))
            .collect();
        match world.state.terminal() {
            None => prop_assert!(terminal.is_empty()),
            Some(_) => prop_assert_eq!(terminal, vec![world.log.len() - 1]),
        }
    }
}

#[test]
fn the_random_histories_reach_every_kind_of_event() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec((0_u8..12, any::<u8>(), any::<u8>()), 0..80);
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..600 {
        let disposition = disposition().new_tree(&mut runner).unwrap().current();
        let mut world = World::new(disposition);
        for step in steps.new_tree(&mut runner).unwrap().current() {
            world.step(step);
        }
        seen.extend(world.log.into_iter().map(|(name, ..)| name));
    }
    let found: Vec<&str> = seen.iter().map(String::as_str).collect();
    assert_eq!(
        found,
        [
            "broke",
            "done",
            "process.abandon_requested",
            "process.abandoned",
            "process.cancel_requested",
            "process.cancelled",
            "process.completed",
            "process.external_ref_set",
            "process.failed",
            "process.owner_lost",
            "process.resumed",
            "process.retry_scheduled",
            "process.started",
            "process.waiting",
            "progress",
            "question",
            "signal.go",
        ]
    );
}

/// Every kind of runtime event, through its stored form and back.
#[test]
fn p1_runtime_events_survive_their_stored_form() {
    for seed in 0..=255_u8 {
        for raw in [None, Some(value(seed))] {
            let event = RuntimeEvent::Cancelled {
                message: "m".into(),
                raw,
                authority: CompletionAuthority::Host { by: "ops".into() }.into(),
            };
            let (event_type, payload) = event.clone().into_parts().unwrap();
            let bytes = json::canonical_bytes(&payload);
            let read = json::parse(&bytes).unwrap();
            assert_eq!(RuntimeEvent::from_parts(&event_type, &read).unwrap(), event);
        }
    }
}
