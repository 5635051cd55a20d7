//! How a process ended: what its terminal event says, and nothing else where that says it all.

use super::*;
use crate::model::event::EventBody;
use crate::model::limits::RUNTIME_EVENT_PREFIX;
use crate::model::{ProcessAwaitOutput, ProcessEventType, fold};

/// Whose event it is.
type Of<'a> = (&'a str, Incarnation);

/// An outcome as it is stored: got from the store, and not read yet, since it may be large.
#[derive(Debug)]
pub(crate) struct StoredOutcome {
    process_id: String,
    incarnation: Incarnation,
    sequence: u64,
    event: Bytes,
    /// Where the event's type is a declared one, what says how it ends its process.
    declared: Option<Declared>,
}

#[derive(Debug)]
enum Declared {
    /// With the head: small.
    Inside(StoredBody),
    /// Under a key of its own.
    Apart(Bytes),
}

impl StoredOutcome {
    /// Bytes that are gone through to read it.
    pub(crate) fn bytes(&self) -> usize {
        let declared = match &self.declared {
            Some(Declared::Apart(body)) => body.len(),
            Some(Declared::Inside(_)) | None => 0,
        };
        self.event.len() + declared
    }

    pub(crate) fn read(&self) -> Result<ProcessAwaitOutput, StoreError> {
        let of = (&self.process_id[..], self.incarnation);
        let event = read_terminal(of, self.sequence, &self.event)?;
        let event_types = match &self.declared {
            None => Vec::new(),
            Some(Declared::Inside(body)) => body.event_types()?,
            Some(Declared::Apart(body)) => codec::decode::<StoredBody>(body)?.event_types()?,
        };
        said(&self.process_id, &event, &event_types)
    }
}

impl View {
    /// The outcome of a process whose last event, this one, has ended it. For the runtime's own events
    /// nothing else is got: neither what it was started with nor its state.
    pub(crate) fn outcome(
        &self,
        process_id: &str,
        row: Row,
        last_sequence: u64,
    ) -> Result<StoredOutcome, StoreError> {
        let event = self.terminal_event((process_id, row.incarnation), last_sequence)?;
        let event_type = EventRef::read(&event)?.event_type;
        let declared = if event_type.starts_with(RUNTIME_EVENT_PREFIX) {
            None
        } else {
            Some(self.declared(process_id, row)?)
        };
        Ok(StoredOutcome {
            process_id: process_id.to_owned(),
            incarnation: row.incarnation,
            sequence: last_sequence,
            event,
            declared,
        })
    }

    fn declared(&self, process_id: &str, row: Row) -> Result<Declared, StoreError> {
        let head = self.get::<StoredHead>(&keys::head(row))?;
        let head = head.ok_or_else(|| missing("head", process_id))?;
        if let Some(body) = head.body {
            return Ok(Declared::Inside(body));
        }
        let body = self.kv.get(&keys::body(row))?;
        body.map(Declared::Apart)
            .ok_or_else(|| missing("body", process_id))
    }

    /// The event that has ended a process, as it is stored.
    pub(super) fn terminal_event(
        &self,
        (process_id, incarnation): Of<'_>,
        last_sequence: u64,
    ) -> Result<Bytes, StoreError> {
        let found = self
            .kv
            .events(incarnation.get(), last_sequence, 1, usize::MAX)?
            .pop();
        found
            .map(|(_, event)| event)
            .ok_or_else(|| missing("terminal event", process_id))
    }
}

pub(super) fn read_terminal(
    (process_id, incarnation): Of<'_>,
    sequence: u64,
    event: &[u8],
) -> Result<EventBody, StoreError> {
    let event = EventRef::read(event)?.to_event(process_id, incarnation, sequence)?;
    EventBody::of(&event).map_err(|error| StoreError::Corrupted {
        what: error.to_string(),
    })
}

/// The output that a terminal event says.
pub(super) fn said(
    process_id: &str,
    event: &EventBody,
    event_types: &[ProcessEventType],
) -> Result<ProcessAwaitOutput, StoreError> {
    fold::terminal_output(event_types, event)
        .ok_or_else(|| missing("terminal event at the end of the log", process_id))
}
