//! The stored bytes, each frame written out by hand from `docs/store-format.md`; the checksums are
//! those of another implementation of CRC-32.

use std::fmt::Write as _;

use bytes::Bytes;

use super::super::super::kv::{Kv, Op};
use super::super::super::kv_laws::{append, commit, delete, put, put_once};
use super::super::events::ChunkWriter;
use super::super::index::{Home, encode_parts_head, part_key};
use super::super::journal::{
    EntryHeader, JOURNAL_FILE, PAGE_BYTES, REGION_BYTES, Salt, decode_entry, decode_ops,
    encode_entry, encode_op,
};
use super::audit::{raw, shut};
use super::open;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

fn ops() -> Vec<Op> {
    vec![
        put("k", "v1"),
        put_once("o", "w"),
        delete("d"),
        append(2, 1, "e"),
        Op::EraseLog { incarnation: 7 },
    ]
}

const SALT: &Salt = b"0123456789abcdef";

const HEADER: EntryHeader = EntryHeader {
    sequence: 5,
    commit: 3,
    next_position: 9,
    synced: 2,
    marks: [10, 11, 12],
    part: 0,
    parts: 1,
};

/// The journal entry of [`ops`], alone in its group.
const ENTRY: &str = concat!(
    "504a",             // magic
    "02",               // entry version
    "00",               // reserved
    "d14c3faa",         // checksum of the salt and all that follows
    "0000000000000005", // sequence
    "0000000000000003", // commit
    "0000000000000009", // next feed position
    "0000000000000002", // last commit known to be synced
    "000000000000000a", // marks of the counters
    "000000000000000b",
    "000000000000000c",
    "00000000", // part 0
    "00000001", // of 1
    "00000036", // 54 bytes of operations
    "01",       // put
    "0001",
    "6b",
    "00000002",
    "7631",
    "02", // put once
    "0001",
    "6f",
    "00000001",
    "77",
    "03", // delete
    "0001",
    "64",
    "04",               // append
    "0000000000000002", // incarnation
    "0000000000000001", // sequence
    "00000001",
    "65",
    "05", // erase log
    "0000000000000007",
);

#[test]
fn a_journal_entry_is_these_bytes() {
    let mut body = Vec::new();
    ops().iter().for_each(|op| encode_op(op, &mut body));
    let frame = encode_entry(&HEADER, &body, SALT);
    assert_eq!(hex(&frame), ENTRY);
    let (found, found_body) = decode_entry(&frame, SALT).unwrap();
    assert_eq!((found, found_body), (HEADER, &body[..]));
    let decoded = decode_ops(5, &Bytes::copy_from_slice(found_body)).unwrap();
    assert_eq!(decoded, ops());
}

#[test]
fn a_journal_entry_cut_short_or_flipped_anywhere_is_damage() {
    let mut body = Vec::new();
    ops().iter().for_each(|op| encode_op(op, &mut body));
    let frame = encode_entry(&HEADER, &body, SALT);
    for length in 0..frame.len() {
        assert!(decode_entry(&frame[..length], SALT).is_none(), "{length}");
    }
    for at in 0..frame.len() {
        let mut flipped = frame.clone();
        flipped[at] ^= 0x80;
        assert!(decode_entry(&flipped, SALT).is_none(), "{at}");
    }
    assert_eq!(decode_entry(&frame, b"another's salt.."), None);
    // A body that lies within a sound frame: bounded decoding, no panic.
    for length in 0..body.len() {
        let mut random = body[..length].to_vec();
        random.extend_from_slice(&[0xff; 9]);
        let _ = decode_ops(5, &Bytes::from(random));
    }
}

#[test]
fn a_chunk_is_these_bytes() {
    let mut chunk = ChunkWriter::new(10);
    chunk.push(b"one");
    chunk.push(b"ab");
    let (key, stored) = chunk.encode(2);
    assert_eq!(hex(&key), "0000000000000002000000000000000a");
    assert_eq!(
        hex(&stored),
        concat!(
            "43", "0002", "0d33b47f", "00000003", "6f6e65", "00000002", "6162"
        )
    );
}

#[test]
fn a_head_of_parts_and_a_part_key_are_these_bytes() {
    let head = encode_parts_head(Home::Keys, b"big", &[7; 5000]);
    assert_eq!(
        hex(&head),
        concat!("50", "00001388", "4f7d9b7b", "b2935839")
    );
    let key = part_key(Home::Events, b"big", 258);
    assert_eq!(hex(&key), concat!("02", "0003", "626967", "00000102"));
}

/// What a store with one commit holds, tree by tree.
#[test]
fn a_small_store_is_these_trees() {
    let home = tempfile::tempdir().unwrap();
    let store = home.path().join("store");
    let kv = open(&store);
    commit(&kv, vec![put("k", "v"), append(2, 1, "e")]);
    kv.close().unwrap();
    let db = raw(&store);
    let get = |tree: &str, key: &[u8]| {
        let value = db.open_tree(tree).unwrap().get(key).unwrap();
        value.map(|value| hex(&value))
    };
    let format = get("meta", b"format").unwrap();
    assert_eq!(&format[8..], "00000002");
    for (name, mark) in [("epoch", 8), ("store_id", 16)] {
        let record = get("meta", name.as_bytes()).unwrap();
        assert_eq!(record.len(), 2 * (4 + mark), "{name}");
    }
    let low_water = get("meta", b"low_water").unwrap();
    let mark = "0000000000010001";
    let expected = [
        "0000000000000001",
        "0000000000000001",
        "0000000000000001",
        mark,
        mark,
        mark,
    ];
    assert_eq!(low_water[8..], expected.concat());
    assert_eq!(get("index", b"k").unwrap(), "4976");
    let chunk = [[0; 7].as_slice(), &[2], &[0; 7], &[1]].concat();
    assert!(get("events", &chunk).unwrap().starts_with("430001"));
    let mut names = db.tree_names();
    names.sort();
    let expected = [
        "__sled__default",
        "events",
        "garbage",
        "index",
        "meta",
        "parts",
    ];
    assert_eq!(names, expected);
    let store_id = get("meta", b"store_id").unwrap();
    shut(db, &store);
    let journal = std::fs::read(store.join(JOURNAL_FILE)).unwrap();
    assert_eq!(journal.len(), PAGE_BYTES + REGION_BYTES);
    // Magic and version, behind the checksum the store's id, behind the salt nothing.
    assert_eq!(hex(&journal[..8]), "504a524e00000001");
    assert_eq!(hex(&journal[12..28]), store_id[8..]);
    assert!(journal[44..PAGE_BYTES].iter().all(|byte| *byte == 0));
    assert_eq!(hex(&journal[PAGE_BYTES..PAGE_BYTES + 4]), "504a0200");
}
