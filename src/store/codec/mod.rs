//! The versioned, checksummed envelope around every stored value, and bincode, which is used
//! nowhere else.
//!
//! `kind: u8 | version: u8 | length: u32 LE | crc32: u32 LE | body`. The checksum covers kind,
//! version, length and body, so a value that stands under a wrong key kind is noticed too. bincode
//! accepts trailing bytes and decodes most random input to something: the length and the check that
//! all of it was consumed are what make a body trustworthy.

use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::enc::write::SizeWriter;
use bytes::Bytes;

use super::error::StoreError;
use super::kv::VALUE_BYTES_MAX;

pub(crate) mod stored;

/// Bytes in front of a body.
pub(crate) const ENVELOPE_LEN: usize = 10;

/// The bytes of bincode 1 (and of wincode): fixed-width little-endian integers.
const CONFIG: Configuration<LittleEndian, Fixint, Limit<VALUE_BYTES_MAX>> =
    bincode::config::legacy().with_limit::<VALUE_BYTES_MAX>();

/// A stored type: its permanent kind byte and the version that is written now.
pub(crate) trait Stored: bincode::Encode + bincode::Decode<()> {
    /// What kind of value it is; part of the checksum.
    const KIND: u8;
    /// The version that is written, and the newest that is read.
    const VERSION: u8;
    /// For error messages.
    const NAME: &'static str;
}

/// What a stored type looks like to its writer, borrowed: the same bytes without copies before.
pub(crate) trait Written: bincode::Encode {
    /// The stored type whose bytes these are.
    type As: Stored;
}

impl<T: Stored> Written for T {
    type As = T;
}

/// Encodes a value into its envelope, in one buffer of the right size.
pub(crate) fn encode<T: Written>(value: &T) -> Result<Bytes, StoreError> {
    let failed = |error| StoreError::Corrupted {
        what: format!("{} cannot be encoded: {error}", T::As::NAME),
    };
    let mut sizer = SizeWriter::default();
    bincode::encode_into_writer(value, &mut sizer, CONFIG).map_err(failed)?;
    let mut bytes = Vec::with_capacity(ENVELOPE_LEN + sizer.bytes_written);
    bytes.resize(ENVELOPE_LEN, 0);
    bincode::encode_into_std_write(value, &mut bytes, CONFIG).map_err(failed)?;
    let (head, body) = bytes.split_at_mut(ENVELOPE_LEN);
    head.copy_from_slice(&envelope::<T::As>(&[], body)?);
    Ok(Bytes::from(bytes))
}

/// What stands in front of a body that is in two parts.
fn envelope<T: Stored>(front: &[u8], body: &[u8]) -> Result<[u8; ENVELOPE_LEN], StoreError> {
    let length = u32::try_from(front.len() + body.len()).map_err(|_| StoreError::Corrupted {
        what: format!("{} is too long to be stored", T::NAME),
    })?;
    let mut head = [0; ENVELOPE_LEN];
    let (covered, checksum) = head.split_at_mut(ENVELOPE_LEN - 4);
    covered[0] = T::KIND;
    covered[1] = T::VERSION;
    covered[2..].copy_from_slice(&length.to_le_bytes());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(covered);
    hasher.update(front);
    hasher.update(body);
    checksum.copy_from_slice(&hasher.finalize().to_le_bytes());
    Ok(head)
}

/// The body of a value, to be sealed later.
pub(crate) fn encode_body<T: Stored>(value: &T) -> Result<Vec<u8>, StoreError> {
    bincode::encode_to_vec(value, CONFIG).map_err(|error| StoreError::Corrupted {
        what: format!("{} cannot be encoded: {error}", T::NAME),
    })
}

/// Puts a body into its envelope.
pub(crate) fn seal<T: Stored>(front: &[u8], body: &[u8]) -> Result<Bytes, StoreError> {
    let head = envelope::<T>(front, body)?;
    let mut bytes = Vec::with_capacity(ENVELOPE_LEN + front.len() + body.len());
    bytes.extend_from_slice(&head);
    bytes.extend_from_slice(front);
    bytes.extend_from_slice(body);
    Ok(Bytes::from(bytes))
}

/// Opens an envelope.
pub(crate) fn open<T: Stored>(bytes: &[u8]) -> Result<&[u8], StoreError> {
    let damaged = |what: &str| StoreError::Corrupted {
        what: format!("{}: {what}", T::NAME),
    };
    let (head, body) = bytes
        .split_at_checked(ENVELOPE_LEN)
        .ok_or_else(|| damaged("shorter than its envelope"))?;
    let (covered, checksum) = head.split_at(6);
    let (tags, length) = covered.split_at(2);
    if tags.first() != Some(&T::KIND) {
        return Err(damaged("another kind of value"));
    }
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(covered);
    hasher.update(body);
    if hasher.finalize().to_le_bytes() != *checksum {
        return Err(damaged("checksum does not match"));
    }
    if length != u32::try_from(body.len()).unwrap_or(0).to_le_bytes() {
        return Err(damaged("length does not match"));
    }
    match tags.get(1) {
        Some(version) if *version > T::VERSION => Err(StoreError::TooNew {
            found: u32::from(*version),
            supported: u32::from(T::VERSION),
        }),
        Some(version) if *version == T::VERSION => Ok(body),
        _ => Err(StoreError::TooOld {
            found: tags.get(1).copied().map_or(0, u32::from),
            supported: u32::from(T::VERSION),
        }),
    }
}

/// Decodes a value from its envelope.
pub(crate) fn decode<T: Stored>(bytes: &[u8]) -> Result<T, StoreError> {
    decode_body(open::<T>(bytes)?)
}

/// Decodes the body of a value.
pub(crate) fn decode_body<T: Stored>(body: &[u8]) -> Result<T, StoreError> {
    whole::<T, T>(body, bincode::decode_from_slice(body, CONFIG))
}

/// Reads the body of a value without copying its parts.
pub(crate) fn read_body<'a, T: Stored, R: bincode::BorrowDecode<'a, ()>>(
    body: &'a [u8],
) -> Result<R, StoreError> {
    whole::<T, R>(body, bincode::borrow_decode_from_slice(body, CONFIG))
}

/// What was decoded, if all of the body was needed for it.
fn whole<T: Stored, R>(
    body: &[u8],
    decoded: Result<(R, usize), bincode::error::DecodeError>,
) -> Result<R, StoreError> {
    let (value, consumed) = decoded.map_err(|error| StoreError::Corrupted {
        what: format!("{}: {error}", T::NAME),
    })?;
    if consumed != body.len() {
        return Err(StoreError::Corrupted {
            what: format!("{}: {} bytes too many", T::NAME, body.len() - consumed),
        });
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, bincode::Encode, bincode::Decode)]
    struct Sample {
        number: u64,
        text: String,
    }

    impl Stored for Sample {
        const KIND: u8 = 0x7f;
        const VERSION: u8 = 2;
        const NAME: &'static str = "sample";
    }

    fn sample() -> Sample {
        Sample {
            number: 258,
            text: "hi".into(),
        }
    }

    #[test]
    fn an_envelope_is_laid_out_as_the_format_says() {
        let bytes = encode(&sample()).unwrap();
        // kind, version, length 18
        assert_eq!(&bytes[..6], b"\x7f\x02\x12\0\0\0");
        // number, length of the text, text
        assert_eq!(&bytes[10..], b"\x02\x01\0\0\0\0\0\0\x02\0\0\0\0\0\0\0hi");
        assert_eq!(decode::<Sample>(&bytes).unwrap(), sample());
    }

    #[test]
    fn any_flipped_bit_is_noticed() {
        let bytes = encode(&sample()).unwrap();
        for at in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(decode::<Sample>(&damaged).is_err(), "bit {at}");
        }
        for length in 0..bytes.len() {
            assert!(
                decode::<Sample>(&bytes[..length]).is_err(),
                "cut to {length}"
            );
        }
    }

    #[test]
    fn trailing_bytes_and_newer_versions_are_refused() {
        let body = encode_body(&sample()).unwrap();
        let longer = seal::<Sample>(&[], &[body.as_slice(), &[0]].concat()).unwrap();
        assert!(matches!(
            decode::<Sample>(&longer),
            Err(StoreError::Corrupted { .. })
        ));
        let mut newer = encode(&sample()).unwrap().to_vec();
        newer[1] = 3;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&newer[..6]);
        hasher.update(&newer[10..]);
        newer[6..10].copy_from_slice(&hasher.finalize().to_le_bytes());
        assert!(matches!(
            decode::<Sample>(&newer),
            Err(StoreError::TooNew {
                found: 3,
                supported: 2
            })
        ));
    }
}
