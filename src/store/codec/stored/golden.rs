//! Each stored type, byte for byte.
//!
//! The bytes were laid out from `docs/store-format.md` by another program, with zlib's CRC-32, and
//! are frozen: a change here is a change of the format, and needs a version. The first line of each
//! is the envelope.

use super::super::{decode, decode_body, encode, encode_body, open, seal};
use super::*;
use crate::model::record::ProcessState;
use crate::model::{FailureClass, ProcessError};

const ID_LIVE: &str = "\
    010114000000a190c34b \
    0000000002010000000000000300000000000000 \
";
const ID_PRUNED: &str = "\
    01010c000000ab2ae7bd \
    010000000300000000000000 \
";
const HEAD_FULL: &str = "\
    020124010000a7909eb1 \
    01000000000000007011111111111111111111111111111111111111111111111111111111111111 \
    1101000000010200000000000000656b0101000000000000006b0101000000000000006c01010000 \
    00000000006401000000010000000000000073010100000000000000660101000000000000006301 \
    01000000000000007109000000000000000200000000000000636b01012222222222222222222222 \
    22222222222222222222222222222222222222222201010000000000000073000100000000000000 \
    010000000000000061010000000000000062feffffff0160ea00000000000002000000e803000000 \
    0000000000000000000040e093040000000000000000000000e03f10000000010400000000000000 \
    6e756c6c0000000000000000 \
";
const HEAD_BARE: &str = "\
    020170000000bc74a368 \
    01000000000000007011111111111111111111111111111111111111111111111111111111111111 \
    1102000000000000000000000000000000000000000000000000000000000002000000e803000000 \
    0000000000000000000040e093040000000000000000000000e03f1000000000 \
";
const BODY: &str = "\
    030116000000e53764fa \
    04000000000000006e756c6c02000000000000005b5d \
";
const STATE_FULL: &str = "\
    04012d0100007e81283b \
    00000000000000010000000000000002000000000000000400000000000000010000000000000005 \
    00000000000000060000000000000007010000000000000002000000030000000400000001050000 \
    000000000001000000000000006f0100000000000000690400000000000000010600000000000000 \
    010100000000000000780107000000000000000100000000000000790101000000000000007a0100 \
    0000000000000200000000000000676f010000000000000008000000000000000109000000000000 \
    00010a000000000000000101000000000000006301000000000000006d010b000000000000000101 \
    000000000000006f01000000000000006904000000000000000102000000000000007b7d01010000 \
    00010101000000000000006301000000000000006d \
";
const STATE_INITIAL: &str = "\
    04015b0000000d819ef5 \
    00000000000000000000000000000000000000000000000000000000000000000000000000000000 \
    00000000000000000000000000000000010000000000000000000000000000000000000000000000 \
    0000000000000000000000 \
";
const GRANT: &str = "\
    05010b000000cc2c98e5 \
    0101000000000000006b00 \
";
const FEED_CHANGED: &str = "\
    0a011d00000017c889b1 \
    0000000002010000000000000300000000000000010900000000000000 \
";
const FEED_PRUNED: &str = "\
    0a01150000005c658c82 \
    010000000100000000000000700300000000000000 \
";
const REPLAY: &str = "\
    0b012800000064d1c687 \
    02000000000000001111111111111111111111111111111111111111111111111111111111111111 \
";
const OWNER: &str = "\
    0c012300000077dc3539 \
    01000000000000006f0100000000000000690400000000000000050000000000000001 \
";
const ENV: &str = "\
    0d010a000000fe75b768 \
    02000000000000007b7d \
";
const WAKE: &str = "\
    0e013e00000097a94254 \
    01000000000000007002010000000000000300000000000000020000000000000003000000000000 \
    0061736b020000000000000068690900000000000000 \
";
const WAKE_DEDUPE: &str = "\
    0f01180000000ce0c240 \
    020100000000000003000000000000000800000000000000 \
";
const WAKE_OF: &str = "\
    10011d000000d4127f22 \
    010000000000000073010100000000000000660101000000000000006b \
";
const EFFECT: &str = "\
    1101160000005283cc10 \
    02000000000000007b7d04000000000000006e756c6c \
";
const WAKE_TARGET: &str = "\
    12011300000050da463b \
    01000000000000007301010000000000000066 \
";
const TOMBSTONE: &str = "\
    140145000000e67685e8 \
    01000000000000007011111111111111111111111111111111111111111111111111111111111111 \
    1102000000090000000000000004000000000000000c00000000000000 \
";
const NUMBER: &str = "\
    150108000000d98ad0a0 \
    0500000000000000 \
";
const FEED_EPOCH: &str = "\
    180110000000233f96fa \
    07000000000000000807060504030201 \
";
const AGE: &str = "\
    1901220000007286bfc5 \
    05000000000000000600000000000000070000000000000001010000000000000062 \
";
const EVENT: &str = "\
    200128000000d8dd47e6 \
    04000000000000006e6f746509000000000000000101000000000000007202000000000000007b7d \
";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(|byte| *byte != b' ').collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

#[track_caller]
fn frozen<T: Stored + PartialEq + std::fmt::Debug>(value: &T, hex: &str) {
    assert_eq!(&encode(value).unwrap()[..], &bytes_of(hex)[..], "encoded");
    assert_eq!(&decode::<T>(&bytes_of(hex)).unwrap(), value, "decoded");
}

const ROW: StoredRow = StoredRow {
    created_at_ms: 0x0102,
    incarnation: 3,
};

fn text(text: &str) -> String {
    text.to_owned()
}

fn framed() -> StoredScope {
    StoredScope {
        session_id: text("s"),
        agent_frame_id: Some(text("f")),
    }
}

fn retry() -> StoredRetry {
    StoredRetry {
        attempts: 2,
        initial_ms: 1_000,
        factor: 2.0,
        max_ms: 300_000,
        jitter: 0.5,
        recoveries_max: 16,
    }
}

fn owner() -> StoredOwnerName {
    StoredOwnerName {
        owner_id: text("o"),
        incarnation_id: text("i"),
        store_epoch: 4,
    }
}

fn error() -> StoredError {
    StoredError {
        class: 1,
        code: text("c"),
        message: text("m"),
    }
}

#[test]
fn what_a_process_is() {
    frozen(&StoredId::Live(ROW), ID_LIVE);
    frozen(&StoredId::Pruned(3), ID_PRUNED);
    let full = StoredHead {
        id: text("p"),
        hash: [0x11; 32],
        disposition: StoredDisposition::OwnerBound,
        engine_kind: Some(text("ek")),
        kind: Some(text("k")),
        label: Some(text("l")),
        definition: Some(text("d")),
        originator: StoredOriginator::Session(framed()),
        caused_by: Some(text("c")),
        parent: Some(StoredParent {
            process_id: text("q"),
            incarnation: 9,
            key: text("ck"),
            detached: true,
        }),
        env_ref: Some([0x22; 32]),
        wake_target: Some(StoredScope {
            session_id: text("s"),
            agent_frame_id: None,
        }),
        labels: vec![(text("a"), text("b"))],
        priority: -2,
        timeout_ms: Some(60_000),
        retry: retry(),
        body: Some(StoredBody {
            input: b"null".to_vec(),
            event_types: Vec::new(),
        }),
    };
    frozen(&full, HEAD_FULL);
    let bare = StoredHead {
        id: text("p"),
        hash: [0x11; 32],
        disposition: StoredDisposition::ExternallyOwned,
        engine_kind: None,
        kind: None,
        label: None,
        definition: None,
        originator: StoredOriginator::Host(None),
        caused_by: None,
        parent: None,
        env_ref: None,
        wake_target: None,
        labels: Vec::new(),
        priority: 0,
        timeout_ms: None,
        retry: retry(),
        body: None,
    };
    frozen(&bare, HEAD_BARE);
    let body = StoredBody {
        input: b"null".to_vec(),
        event_types: b"[]".to_vec(),
    };
    frozen(&body, BODY);
}

#[test]
fn what_has_become_of_it() {
    let front = StateFront {
        feed_position: 1,
        last_sequence: 2,
        terminal_at_plus_one: 4,
        cancel_requested: true,
        token: 5,
        owner: 6,
        log_bytes: 7,
    };
    let full = StoredState {
        updated_at_ms: 1,
        attempt: 2,
        retries: 3,
        recoveries: 4,
        first_started: Some((5, owner())),
        cancel_request: Some((6, Some(text("x")))),
        abandon_request: Some((7, text("y"), Some(text("z")))),
        waits: vec![StoredWait {
            signal_name: text("go"),
            number: 1,
            since_ms: 8,
            deadline_ms: Some(9),
        }],
        retry_pause: Some((10, error())),
        owner_lost: Some((11, Some(owner()))),
        external_ref: Some(b"{}".to_vec()),
        terminal: Some((StoredTerminalState::Failed, Some(error()))),
    };
    let initial = StoredState::from(&ProcessState::initial(1));
    for (front, state, hex) in [
        (front, full, STATE_FULL),
        (StateFront::default(), initial, STATE_INITIAL),
    ] {
        let bytes = bytes_of(hex);
        let written =
            seal::<StoredState>(&front.to_bytes(), &encode_body(&state).unwrap()).unwrap();
        assert_eq!(&written[..], &bytes[..]);
        let (read, body) = StateFront::split(open::<StoredState>(&bytes).unwrap()).unwrap();
        assert_eq!(read, front);
        assert_eq!(decode_body::<StoredState>(body).unwrap(), state);
    }
    let event = StoredEvent {
        event_type: text("note"),
        occurred_at_ms: 9,
        replay_key: Some(text("r")),
        payload: b"{}".to_vec(),
    };
    frozen(&event, EVENT);
    let written = EventRef {
        event_type: "note",
        occurred_at_ms: 9,
        replay_key: Some("r"),
        payload: b"{}",
    };
    assert_eq!(encode(&written).unwrap(), encode(&event).unwrap());
    let owner = StoredOwner {
        name: owner(),
        expires_at_ms: 5,
        retired: true,
    };
    frozen(&owner, OWNER);
}

#[test]
fn what_leads_to_it_and_stands_beside_it() {
    let grant = StoredGrant {
        kind: Some(text("k")),
        label: None,
    };
    frozen(&grant, GRANT);
    let changed = StoredChange::Changed {
        row: ROW,
        terminal_at_ms: Some(9),
    };
    frozen(&changed, FEED_CHANGED);
    let pruned = StoredChange::Pruned {
        id: text("p"),
        incarnation: 3,
    };
    frozen(&pruned, FEED_PRUNED);
    let replay = StoredReplay {
        sequence: 2,
        content: [0x11; 32],
    };
    frozen(&replay, REPLAY);
    let env = StoredEnv {
        canonical: b"{}".to_vec(),
    };
    frozen(&env, ENV);
    let effect = StoredEffect {
        content: b"{}".to_vec(),
        outcome: b"null".to_vec(),
    };
    frozen(&effect, EFFECT);
    let tombstone = StoredTombstone {
        id: text("p"),
        hash: [0x11; 32],
        status: StoredTerminalState::Cancelled,
        pruned_at_ms: 9,
        events: 4,
        feed_position: 12,
    };
    frozen(&tombstone, TOMBSTONE);
    frozen(&StoredNumber(5), NUMBER);
    let epoch = StoredFeedEpoch {
        first_position: 7,
        nonce: 0x0102_0304_0506_0708,
    };
    frozen(&epoch, FEED_EPOCH);
    let age = StoredAge {
        age_ms: 5,
        wall_ms: 6,
        monotonic_ms: 7,
        boot_id: Some(text("b")),
    };
    frozen(&age, AGE);
}

#[test]
fn wakes() {
    let wake = StoredWake {
        process_id: text("p"),
        row: ROW,
        sequence: 2,
        event_type: text("ask"),
        text: text("hi"),
        created_at_ms: 9,
    };
    frozen(&wake, WAKE);
    let dedupe = StoredDedupe {
        row: ROW,
        position: 8,
    };
    frozen(&dedupe, WAKE_DEDUPE);
    let back = StoredWakeOf {
        scope: framed(),
        dedupe_key: Some(text("k")),
    };
    frozen(&back, WAKE_OF);
    frozen(&framed(), WAKE_TARGET);
}

/// The numbers of variants, which the samples above hold only some of.
#[test]
fn the_numbers_of_variants() {
    let number = |bytes: &[u8]| bytes[..4].to_vec();
    let dispositions = [
        StoredDisposition::Rerunnable,
        StoredDisposition::OwnerBound,
        StoredDisposition::ExternallyOwned,
    ];
    for (at, disposition) in (0_u8..).zip(dispositions) {
        let bytes = bincode::encode_to_vec(disposition, bincode::config::legacy()).unwrap();
        assert_eq!(number(&bytes), [at, 0, 0, 0], "{disposition:?}");
    }
    let states = [
        TerminalState::Completed,
        TerminalState::Failed,
        TerminalState::Cancelled,
        TerminalState::Abandoned,
    ];
    for (at, state) in (0_u8..).zip(states) {
        let stored = StoredTerminalState::from(state);
        let bytes = bincode::encode_to_vec(stored, bincode::config::legacy()).unwrap();
        assert_eq!(number(&bytes), [at, 0, 0, 0], "{state:?}");
    }
    let classes = [
        FailureClass::Execution,
        FailureClass::Timeout,
        FailureClass::InvalidInput,
        FailureClass::External,
        FailureClass::Internal,
    ];
    for (at, class) in (0_u8..).zip(classes) {
        let stored = StoredError::from(ProcessError {
            class,
            code: text("c"),
            message: text("m"),
        });
        assert_eq!(stored.class, at, "{class:?}");
        assert_eq!(stored.into_model().unwrap().class, class);
    }
    let unknown = StoredError {
        class: 5,
        ..error()
    };
    assert!(unknown.into_model().is_err());
}

/// Numbers that look random and are the same every time (Marsaglia's xorshift).
fn noise(seed: u64) -> impl Iterator<Item = u8> {
    let mut state = seed | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    })
}

/// Holds a type to what is true of any: given a frozen value of it.
fn hostile<T: Stored>(hex: &str) {
    let whole = bytes_of(hex);
    assert_eq!(whole[0], T::KIND);
    assert_eq!(whole[1], T::VERSION, "{}: the frozen version", T::NAME);
    for (version, too_new) in [(T::VERSION + 1, true), (u8::MAX, true), (0, false)] {
        let mut other = whole.clone();
        other[1] = version;
        let mut sum = crc32fast::Hasher::new();
        sum.update(&other[..6]);
        sum.update(&other[10..]);
        other[6..10].copy_from_slice(&sum.finalize().to_le_bytes());
        match decode::<T>(&other) {
            Err(StoreError::TooNew { found, supported }) => {
                assert!(too_new, "{}: {version}", T::NAME);
                assert_eq!(
                    (found, supported),
                    (u32::from(version), u32::from(T::VERSION))
                );
            }
            Err(StoreError::TooOld { .. }) => assert!(!too_new, "{}: {version}", T::NAME),
            _ => panic!("{} of version {version} was read", T::NAME),
        }
    }
    for seed in 1..400_usize {
        let length = seed % 160;
        let random: Vec<u8> = noise(seed as u64 * 7_919).take(length).collect();
        assert!(decode::<T>(&random).is_err(), "{}: seed {seed}", T::NAME);
        // With the right start, so that only the checksum can refuse it.
        let mut framed = vec![T::KIND, T::VERSION];
        framed.extend_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        framed.extend(noise(seed as u64).take(4));
        framed.extend_from_slice(&random);
        assert!(decode::<T>(&framed).is_err(), "{}: seed {seed}", T::NAME);
        // With a checksum that is right, anything may come of it, but no panic, and nothing that
        // would be written differently.
        let sealed = seal::<T>(&[], &random).unwrap();
        if let Ok(value) = decode::<T>(&sealed) {
            assert_eq!(encode(&value).unwrap(), sealed, "{}: seed {seed}", T::NAME);
        }
    }
    for at in 0..whole.len() * 8 {
        let mut flipped = whole.clone();
        flipped[at / 8] ^= 1 << (at % 8);
        assert!(decode::<T>(&flipped).is_err(), "{}: bit {at}", T::NAME);
    }
    for length in 0..whole.len() {
        assert!(decode::<T>(&whole[..length]).is_err(), "{}: cut", T::NAME);
    }
}

#[test]
fn no_type_reads_what_is_too_new_or_was_not_written() {
    hostile::<StoredId>(ID_LIVE);
    hostile::<StoredHead>(HEAD_FULL);
    hostile::<StoredBody>(BODY);
    hostile::<StoredState>(STATE_FULL);
    hostile::<StoredGrant>(GRANT);
    hostile::<StoredChange>(FEED_CHANGED);
    hostile::<StoredReplay>(REPLAY);
    hostile::<StoredOwner>(OWNER);
    hostile::<StoredEnv>(ENV);
    hostile::<StoredWake>(WAKE);
    hostile::<StoredDedupe>(WAKE_DEDUPE);
    hostile::<StoredWakeOf>(WAKE_OF);
    hostile::<StoredEffect>(EFFECT);
    hostile::<StoredScope>(WAKE_TARGET);
    hostile::<StoredTombstone>(TOMBSTONE);
    hostile::<StoredNumber>(NUMBER);
    hostile::<StoredFeedEpoch>(FEED_EPOCH);
    hostile::<StoredAge>(AGE);
    hostile::<StoredEvent>(EVENT);
}

#[test]
fn no_two_types_share_a_kind() {
    let kinds = [
        StoredId::KIND,
        StoredHead::KIND,
        StoredBody::KIND,
        StoredState::KIND,
        StoredGrant::KIND,
        StoredChange::KIND,
        StoredReplay::KIND,
        StoredOwner::KIND,
        StoredEnv::KIND,
        StoredWake::KIND,
        StoredDedupe::KIND,
        StoredWakeOf::KIND,
        StoredEffect::KIND,
        StoredScope::KIND,
        StoredTombstone::KIND,
        StoredNumber::KIND,
        StoredFeedEpoch::KIND,
        StoredAge::KIND,
        StoredEvent::KIND,
    ];
    let distinct: std::collections::BTreeSet<u8> = kinds.into_iter().collect();
    assert_eq!(distinct.len(), kinds.len());
}

/// A claimed length is no reason to reserve memory for it.
#[test]
fn an_absurd_length_inside_a_body_is_refused() {
    for claimed in [u64::MAX, 1 << 40, 9 << 20] {
        let sealed = seal::<StoredEnv>(&[], &claimed.to_le_bytes()).unwrap();
        assert!(decode::<StoredEnv>(&sealed).is_err(), "{claimed}");
    }
}
