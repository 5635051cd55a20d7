//! Every limit, in one place, with its unit in its name.
//!
//! Public inputs are checked against these before anything is written; an
//! [`Error::InvalidInput`](super::Error::InvalidInput) names the field and the limit.

/// Longest id or scope part, in bytes of UTF-8.
pub const ID_BYTES_MAX: usize = 256;
/// Longest signal or event name, in bytes.
pub const NAME_BYTES_MAX: usize = 128;
/// Longest payload, in bytes of canonical JSON.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Deepest nesting of a payload.
pub const JSON_DEPTH_MAX: usize = 128;
/// Most event types one process may declare.
pub const EVENT_TYPES_MAX: usize = 64;
/// Longest schema of an event type, in bytes of canonical JSON.
pub const SCHEMA_BYTES_MAX: usize = 64 << 10;
/// Most entries of one list page.
pub const LIST_PAGE_MAX: usize = 1_000;
/// Most events of one page of a log.
pub const EVENTS_PAGE_MAX: usize = 1_000;
/// Most ids one transfer moves.
pub const TRANSFER_IDS_MAX: usize = 1_000;
/// Most labels of one process.
pub const LABELS_MAX: usize = 64;
/// Longest label value, in bytes.
pub const LABEL_VALUE_BYTES_MAX: usize = 256;
/// Longest human text: a label, a reason, a requester, in bytes.
pub const TEXT_BYTES_MAX: usize = 1_024;
/// Longest failure or cancellation message that is kept, in bytes.
pub const MESSAGE_BYTES_MAX: usize = 4_096;
/// Longest external reference, in bytes of canonical JSON.
pub const EXTERNAL_REF_BYTES_MAX: usize = 4_096;
/// Longest replay key or signal id, in bytes.
pub const REPLAY_KEY_BYTES_MAX: usize = 256;
/// Longest wake text, in bytes; a longer one is cut at a character.
pub const WAKE_TEXT_BYTES_MAX: usize = 4_096;
/// Longest JSON pointer or template of a selector, in bytes.
pub const SELECTOR_BYTES_MAX: usize = 4_096;
/// Most fields of a template.
pub const TEMPLATE_FIELDS_MAX: usize = 64;
/// Events that a session snapshot shows of each process.
pub const SNAPSHOT_EVENTS: usize = 32;
/// Bytes of events, as they are stored, that a session snapshot shows of one process: of larger ones
/// it shows fewer, the newest, but at least one.
pub const SNAPSHOT_PROCESS_BYTES_MAX: usize = 4 << 20;
/// Bytes of events, as they are stored, that a session snapshot shows of all processes together, but
/// for a single larger one. Those that changed last come first; the others are shown without events.
pub const SNAPSHOT_BYTES_MAX: usize = 16 << 20;
/// Bytes of records, as they are stored, after which a page of the change feed ends.
pub const CHANGES_PAGE_BYTES_MAX: usize = 4 << 20;
/// Most attempts a retry policy may ask for.
pub const RETRY_ATTEMPTS_MAX: u32 = 10_000;
/// Longest duration in a request (timeout, backoff), in milliseconds: ten years.
pub const DURATION_MS_MAX: u64 = 10 * 366 * 24 * 60 * 60 * 1_000;
/// Most waits one execution may have open at once.
pub const OPEN_WAITS_MAX: usize = 64;
/// Reserved for the runtime's own event types.
pub const RUNTIME_EVENT_PREFIX: &str = "process.";
/// Prefix of the event type of a signal.
pub const SIGNAL_EVENT_PREFIX: &str = "signal.";
/// Most problems that a check of the whole store lists.
pub const VERIFY_PROBLEMS_MAX: usize = 1_000;
