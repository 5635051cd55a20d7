//! Cutting a stream of bytes into lines, and lines into batches. Pure: no I/O, no clock.

use serde_json::{Map, Value};

/// Longest piece of a line, in bytes; a longer line comes in pieces.
pub(super) const LINE_BYTES_MAX: usize = 16 << 10;
/// Bytes after which a batch is full; the line that fills it is still taken whole.
pub(super) const BATCH_BYTES: usize = 16 << 10;
/// Lines after which a batch is full.
pub(super) const BATCH_LINES: usize = 64;

/// What one event says.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) lines: Vec<String>,
    bytes: usize,
    /// The last line does not end here: the stream's next event goes on with it, or the output
    /// ends without a newline.
    pub(super) partial: bool,
    /// Some bytes were no UTF-8 and stand as U+FFFD.
    pub(super) invalid_utf8: bool,
}

impl Batch {
    pub(super) fn into_payload(self) -> Value {
        let mut payload = Map::new();
        payload.insert("lines".to_owned(), self.lines.into());
        if self.partial {
            payload.insert("partial".to_owned(), true.into());
        }
        if self.invalid_utf8 {
            payload.insert("invalid_utf8".to_owned(), true.into());
        }
        Value::Object(payload)
    }
}

/// Gathers the lines of one stream. Holds at most one batch and one piece of a line.
#[derive(Debug, Default)]
pub(super) struct LineBatcher {
    /// The line that is not complete yet, shorter than `LINE_BYTES_MAX`.
    line: Vec<u8>,
    batch: Batch,
}

impl LineBatcher {
    /// Takes bytes from the front, at least one and not past the end of a line; says how many.
    pub(super) fn push(&mut self, bytes: &[u8]) -> usize {
        let room = LINE_BYTES_MAX - self.line.len();
        let window = &bytes[..bytes.len().min(room)];
        match window.iter().position(|byte| *byte == b'\n') {
            Some(at) => {
                self.line.extend_from_slice(&window[..at]);
                self.add_line(self.line.len());
                at + 1
            }
            None => {
                self.line.extend_from_slice(window);
                if self.line.len() == LINE_BYTES_MAX {
                    self.add_line(whole_characters(&self.line));
                    self.batch.partial = true;
                }
                window.len()
            }
        }
    }

    pub(super) fn is_full(&self) -> bool {
        self.batch.partial
            || self.batch.lines.len() >= BATCH_LINES
            || self.batch.bytes >= BATCH_BYTES
    }

    /// The batch so far, if there is one; an incomplete line stays.
    pub(super) fn take(&mut self) -> Option<Batch> {
        (!self.batch.lines.is_empty()).then(|| std::mem::take(&mut self.batch))
    }

    /// The last batch, an incomplete line included. Where the stream was `cut`, a character that
    /// the cut went through is left out.
    pub(super) fn finish(&mut self, cut: bool) -> Option<Batch> {
        let end = if cut {
            whole_characters(&self.line)
        } else {
            self.line.len()
        };
        if end > 0 {
            self.add_line(end);
            self.batch.partial = true;
        }
        self.line.clear();
        self.take()
    }

    /// Moves the first `end` bytes of the line into the batch.
    fn add_line(&mut self, end: usize) {
        let text = String::from_utf8_lossy(&self.line[..end]);
        self.batch.invalid_utf8 |= matches!(text, std::borrow::Cow::Owned(_));
        self.batch.lines.push(text.into_owned());
        self.batch.bytes += end;
        self.line.drain(..end);
    }
}

/// The length without a character that has begun at the end and is not complete.
fn whole_characters(bytes: &[u8]) -> usize {
    for (back, byte) in bytes.iter().rev().take(3).enumerate() {
        let length = match byte {
            0b1000_0000..=0b1011_1111 => continue,
            0b1100_0000..=0b1101_1111 => 2,
            0b1110_0000..=0b1110_1111 => 3,
            0b1111_0000..=0b1111_0111 => 4,
            _ => 1,
        };
        let begin = bytes.len() - back - 1;
        return if begin + length > bytes.len() {
            begin
        } else {
            bytes.len()
        };
    }
    bytes.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn batches(chunks: &[&[u8]]) -> Vec<Batch> {
        let mut batcher = LineBatcher::default();
        let mut batches = Vec::new();
        for chunk in chunks {
            let mut rest = *chunk;
            while !rest.is_empty() {
                rest = &rest[batcher.push(rest)..];
                if batcher.is_full() {
                    batches.extend(batcher.take());
                }
            }
        }
        batches.extend(batcher.finish(false));
        batches
    }

    /// What a reader of the log puts together.
    fn text(batches: &[Batch]) -> String {
        let mut text = String::new();
        for batch in batches {
            for (at, line) in batch.lines.iter().enumerate() {
                text += line;
                if at + 1 < batch.lines.len() || !batch.partial {
                    text.push('\n');
                }
            }
        }
        text
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn text_comes_back_as_it_was_however_it_was_cut(
            lines in prop::collection::vec("[a-zäß€😀 ]{0,40}", 0..200),
            newline_at_end: bool,
            chunk in 1_usize..5_000,
        ) {
            let mut whole = lines.join("\n");
            if newline_at_end { whole.push('\n'); }
            let chunks: Vec<_> = whole.as_bytes().chunks(chunk).collect();
            let batches = batches(&chunks);
            prop_assert_eq!(text(&batches), whole);
            prop_assert!(batches.iter().all(|batch| !batch.invalid_utf8));
        }

        #[test]
        fn bytes_of_any_kind_fit_the_bounds(
            bytes in prop::collection::vec(any::<u8>(), 0..40_000), chunk in 1_usize..40_000,
        ) {
            let chunks: Vec<_> = bytes.chunks(chunk).collect();
            for batch in batches(&chunks) {
                prop_assert!(batch.lines.len() <= BATCH_LINES);
                prop_assert!(batch.bytes < BATCH_BYTES + LINE_BYTES_MAX);
            }
        }
    }

    #[test]
    fn a_long_line_comes_in_pieces_that_cut_no_character() {
        let line = "€".repeat(10_000);
        let batches = batches(&[line.as_bytes(), b"\nnext\n"]);
        // 16,384 bytes hold 5,461 of the three-byte characters.
        assert_eq!(batches[0].lines[0].chars().count(), 5_461);
        assert!(batches[0].partial && !batches[0].invalid_utf8);
        assert_eq!(batches[1].lines, [&line[3 * 5_461..], "next"]);
        assert!(!batches[1].partial);
    }

    #[test]
    fn invalid_utf8_is_replaced_and_marked() {
        let batches = batches(&[b"ok\n", b"a\xff\xfeb\n"]);
        assert_eq!(batches[0].lines, ["ok", "a\u{fffd}\u{fffd}b"]);
        assert!(batches[0].invalid_utf8);
    }

    #[test]
    fn a_line_that_ends_at_the_bound_is_followed_by_its_empty_rest() {
        let line = "x".repeat(LINE_BYTES_MAX);
        let batches = batches(&[line.as_bytes(), b"\n"]);
        assert!(batches[0].partial);
        assert_eq!(batches[1].lines, [""]);
        assert!(!batches[1].partial);
    }

    #[test]
    fn a_cut_stream_ends_before_the_character_that_was_cut() {
        let mut batcher = LineBatcher::default();
        assert_eq!(batcher.push(b"ab\xe2\x82"), 4);
        let last = batcher.finish(true).expect("two characters");
        assert_eq!(last.lines, ["ab"]);
        assert!(last.partial && !last.invalid_utf8);
    }
}
