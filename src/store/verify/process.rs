//! One process: its facts hang together, and its log folds to its state (P1, P2, E1).

use super::super::codec;
use super::super::codec::stored::{
    HeadFacts, StateFacts, StateFront, StoredBody, StoredChange, StoredEvent, StoredHead, StoredId,
    StoredReplay, StoredState,
};
use super::super::error::StoreError;
use super::super::keys::{self, Row};
use super::super::process_store::ProcessStore;
use super::super::read::View;
use super::{Findings, VIEWS_MAX};
use crate::model::decide::content_of;
use crate::model::event::{EventBody, RuntimeEvent};
use crate::model::record::{ProcessState, Registration};
use crate::model::{ContentHash, OwnerNumber, fold};

/// A page of a log: so many events, about so many bytes.
const PAGE_EVENTS: usize = 512;
const PAGE_EVENT_BYTES: usize = 1 << 20;

/// What is read of a process before its log.
struct Facts {
    registration: Registration,
    state: StateFacts,
    front: StateFront,
}

/// Checks a process. One that was pruned meanwhile is no problem, and is not counted.
pub(super) fn check(store: &ProcessStore, row: Row) -> Result<Findings, StoreError> {
    let mut findings = Findings::default();
    let mut facts = None;
    let mut pinned = Pinned::new(store)?;
    pinned.read(|view| {
        findings = Findings::default();
        facts = facts_of(view, row, &mut findings)?;
        Ok(())
    })?;
    let Some(facts) = facts else {
        return Ok(findings);
    };
    let mut log = Log {
        row,
        facts: &facts,
        folded: ProcessState::initial(row.created_at_ms),
        bytes: 0,
        started_under: 0,
    };
    match log.fold(&mut pinned, &mut findings)? {
        Folded::Whole => log.compare(&mut findings),
        Folded::Broken => {}
        Folded::Pruned => return Ok(Findings::default()),
    }
    Ok(findings)
}

/// A view that is replaced when it expires.
struct Pinned<'a> {
    store: &'a ProcessStore,
    view: View,
}

impl<'a> Pinned<'a> {
    fn new(store: &'a ProcessStore) -> Result<Self, StoreError> {
        let view = store.view()?;
        Ok(Self { store, view })
    }

    fn read<T>(
        &mut self,
        mut work: impl FnMut(&View) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..VIEWS_MAX {
            match work(&self.view) {
                Err(StoreError::ViewExpired { .. }) => self.view = self.store.view()?,
                other => return other,
            }
        }
        work(&self.view)
    }
}

/// Reads and checks everything of a process but its log; `None` where that cannot be folded.
fn facts_of(view: &View, row: Row, findings: &mut Findings) -> Result<Option<Facts>, StoreError> {
    let Some(bytes) = findings.bytes(view, None, &keys::head(row))? else {
        return Ok(None);
    };
    findings.processes += 1;
    findings.highest.incarnation(row.incarnation.get());
    let Some(head) = findings.decoded::<StoredHead>(None, "process head", &bytes)? else {
        return Ok(None);
    };
    let (head, inline) = head.facts(row);
    let id = head.id.clone();
    let who = Some(id.as_str());
    match findings.stored::<StoredId>(view, who, &keys::id(&id))? {
        Some(StoredId::Live(known)) if Row::from(known) == row => {}
        Some(StoredId::Live(_) | StoredId::Pruned(_)) => {
            findings.note(who, "its id stands for another process");
        }
        None => findings.note(who, "its id does not know it"),
    }
    indexed(view, &head, findings)?;
    let body = body_of(view, &head, inline, findings)?;
    let Some((front, state)) = state_of(view, &head, findings)? else {
        return Ok(None);
    };
    let Some(body) = body else { return Ok(None) };
    let registration = head.with_body(&body);
    let registration = findings.sound(who, "registration", registration)?;
    Ok(registration.map(|registration| Facts {
        registration,
        state,
        front,
    }))
}

/// Whether the indexes that lead from its head know it.
fn indexed(view: &View, head: &HeadFacts, findings: &mut Findings) -> Result<(), StoreError> {
    let who = Some(head.id.as_str());
    if let Some(key) = keys::originator(&head.provenance.originator, head.row)
        && !findings.has(view, &key)?
    {
        findings.note(who, "its originator does not know it");
    }
    if let Some(parent) = &head.provenance.parent
        && !findings.has(view, &keys::child(parent.incarnation, head.row))?
    {
        findings.note(who, "its parent does not know it");
    }
    if let Some(hash) = &head.env_ref {
        findings.captured = true;
        if !findings.has(view, &keys::env(hash))? {
            findings.note(who, format!("its environment {hash} is not there"));
        }
    }
    Ok(())
}

fn body_of(
    view: &View,
    head: &HeadFacts,
    inline: Option<StoredBody>,
    findings: &mut Findings,
) -> Result<Option<StoredBody>, StoreError> {
    let who = Some(head.id.as_str());
    let outside = findings.bytes(view, who, &keys::body(head.row))?;
    match (inline, outside) {
        (Some(body), None) => Ok(Some(body)),
        (None, Some(bytes)) => findings.decoded(who, "process body", &bytes),
        (Some(body), Some(_)) => {
            findings.note(who, "its body stands both in its head and beside it");
            Ok(Some(body))
        }
        (None, None) => {
            findings.note(who, "it has no body");
            Ok(None)
        }
    }
}

fn state_of(
    view: &View,
    head: &HeadFacts,
    findings: &mut Findings,
) -> Result<Option<(StateFront, StateFacts)>, StoreError> {
    let who = Some(head.id.as_str());
    let Some(bytes) = findings.bytes(view, who, &keys::state(head.row))? else {
        findings.note(who, "it has no state");
        return Ok(None);
    };
    let split = codec::open::<StoredState>(&bytes).and_then(StateFront::split);
    let Some((front, body)) = findings.sound(who, "process state", split)? else {
        return Ok(None);
    };
    let facts = codec::decode_body::<StoredState>(body)
        .and_then(|stored| stored.facts(front.last_sequence));
    edges(view, head, front, findings)?;
    let facts = findings.sound(who, "process state", facts)?;
    Ok(facts.map(|facts| (front, facts)))
}

/// What the front of its state says about other keys.
fn edges(
    view: &View,
    head: &HeadFacts,
    front: StateFront,
    findings: &mut Findings,
) -> Result<(), StoreError> {
    let who = Some(head.id.as_str());
    let runs = front.terminal_at_ms().is_none();
    // One that has ended and is among the running is noted there.
    if runs && !findings.has(view, &keys::running(head.row))? {
        findings.note(who, "it runs, but is not among the running");
    }
    let entry = findings.stored::<StoredChange>(view, who, &keys::feed(front.feed_position))?;
    let change = StoredChange::Changed {
        row: head.row.into(),
        terminal_at_ms: front.terminal_at_ms(),
    };
    if entry != Some(change) {
        findings.note(
            who,
            format!(
                "its last change is not in the feed at {}",
                front.feed_position
            ),
        );
    }
    findings.highest.token(front.token);
    if front.owner != 0 {
        findings.highest.owner(front.owner);
        if front.token == 0 {
            findings.note(who, "its lease has no token");
        }
        if !findings.has(view, &keys::owner(OwnerNumber(front.owner)))? {
            findings.note(
                who,
                format!("its lease names owner {}, who is not known", front.owner),
            );
        }
    }
    Ok(())
}

/// How the folding of a log ended.
enum Folded {
    /// With its last event.
    Whole,
    /// Where it could not go on; that is noted.
    Broken,
    /// The process was pruned meanwhile.
    Pruned,
}

struct Log<'a> {
    row: Row,
    facts: &'a Facts,
    folded: ProcessState,
    bytes: u64,
    /// The token of the last start.
    started_under: u64,
}

impl Log<'_> {
    fn who(&self) -> Option<&str> {
        Some(&self.facts.registration.id)
    }

    fn fold(
        &mut self,
        pinned: &mut Pinned<'_>,
        findings: &mut Findings,
    ) -> Result<Folded, StoreError> {
        let row = self.row;
        let last = self.facts.front.last_sequence;
        while self.folded.last_sequence < last {
            let from = self.folded.last_sequence + 1;
            let page = pinned.read(|view| {
                view.raw()
                    .events(row.incarnation.get(), from, PAGE_EVENTS, PAGE_EVENT_BYTES)
            });
            // On a newer view than the first one the process may be gone, and its log with it.
            if self.is_gone(pinned)? {
                return Ok(Folded::Pruned);
            }
            let Some(page) = findings.sound(self.who(), "log", page)? else {
                return Ok(Folded::Broken);
            };
            if page.is_empty() {
                findings.note(
                    self.who(),
                    format!("its log ends at {} and not at {last}", from - 1),
                );
                return Ok(Folded::Broken);
            }
            for (sequence, bytes) in page {
                if sequence > last {
                    break;
                }
                let event = pinned.read(|view| self.replay_of(view, sequence, &bytes, findings))?;
                if event.is_none() || !self.apply(sequence, event, findings)? {
                    return Ok(Folded::Broken);
                }
                self.bytes += bytes.len() as u64;
                findings.events += 1;
            }
        }
        if self.is_gone(pinned)? {
            return Ok(Folded::Pruned);
        }
        self.ends(pinned, findings)?;
        Ok(Folded::Whole)
    }

    fn is_gone(&self, pinned: &mut Pinned<'_>) -> Result<bool, StoreError> {
        let key = keys::state(self.row);
        Ok(pinned.read(|view| view.raw().get(&key))?.is_none())
    }

    /// Decodes an event and checks that its replay key leads to it.
    fn replay_of(
        &self,
        view: &View,
        sequence: u64,
        bytes: &[u8],
        findings: &mut Findings,
    ) -> Result<Option<StoredEvent>, StoreError> {
        let what = format!("event {sequence}");
        let Some(event) = findings.decoded::<StoredEvent>(self.who(), &what, bytes)? else {
            return Ok(None);
        };
        if let Some(key) = &event.replay_key {
            let key = keys::replay(self.row.incarnation, key);
            let entry = findings.stored::<StoredReplay>(view, self.who(), &key)?;
            let leads_here = entry.is_some_and(|entry| {
                entry.sequence == sequence
                    && ContentHash(entry.content) == content_of(&event.event_type, &event.payload)
            });
            if !leads_here {
                findings.note(
                    self.who(),
                    format!("replay key of event {sequence} does not lead to it"),
                );
            }
        }
        Ok(Some(event))
    }

    /// Folds one event; whether it could be.
    fn apply(
        &mut self,
        sequence: u64,
        event: Option<StoredEvent>,
        findings: &mut Findings,
    ) -> Result<bool, StoreError> {
        let Some(event) = event else { return Ok(false) };
        let registration = &self.facts.registration;
        let event = event
            .borrowed()
            .to_event(&registration.id, registration.incarnation, sequence);
        let Some(event) = findings.sound(self.who(), "event", event)? else {
            return Ok(false);
        };
        let body = match EventBody::of(&event) {
            Ok(body) => body,
            Err(error) => {
                findings.note(self.who(), format!("event {sequence}: {error}"));
                return Ok(false);
            }
        };
        if let EventBody::Runtime(
            RuntimeEvent::Started { fencing_token, .. }
            | RuntimeEvent::OwnerLost { fencing_token, .. },
        ) = &body
        {
            // L2, as far as the log tells.
            if fencing_token.get() <= self.started_under {
                findings.note(
                    self.who(),
                    format!("event {sequence}: token {fencing_token} does not rise"),
                );
            }
            self.started_under = fencing_token.get();
        }
        let folded = fold::apply(
            registration,
            &mut self.folded,
            sequence,
            event.occurred_at_ms,
            &body,
        );
        if let Err(error) = folded {
            findings.note(self.who(), error.to_string());
            return Ok(false);
        }
        Ok(true)
    }

    /// Nothing stands behind the last event.
    fn ends(&self, pinned: &mut Pinned<'_>, findings: &mut Findings) -> Result<(), StoreError> {
        let row = self.row;
        let behind = pinned.read(|view| {
            let Some(front) = view.front(row)? else {
                return Ok(false);
            };
            let from = front.last_sequence + 1;
            let events = view.raw().events(row.incarnation.get(), from, 1, 1)?;
            Ok(!events.is_empty())
        });
        if findings.sound(self.who(), "log", behind)? == Some(true) {
            findings.note(self.who(), "its log goes on behind its last event");
        }
        Ok(())
    }

    /// P1: the state is the fold of the log, field for field.
    fn compare(&self, findings: &mut Findings) {
        let (front, stored, folded) = (&self.facts.front, &self.facts.state.state, &self.folded);
        let output = folded.status.output();
        let terminal = output.map(|output| (output.state(), output.error()));
        let ended_at = output.map(|_| folded.updated_at_ms.saturating_add(1) - 1);
        let same = [
            (
                "updated_at_ms",
                stored.updated_at_ms == folded.updated_at_ms,
            ),
            ("last_sequence", front.last_sequence == folded.last_sequence),
            ("attempt", stored.attempt == folded.attempt),
            ("retries", stored.retries == folded.retries),
            ("recoveries", stored.recoveries == folded.recoveries),
            (
                "first_started",
                stored.first_started == folded.first_started,
            ),
            (
                "cancel_request",
                stored.cancel_request == folded.cancel_request,
            ),
            (
                "abandon_request",
                stored.abandon_request == folded.abandon_request,
            ),
            ("waits", stored.waits == folded.waits),
            ("retry_pause", stored.retry_pause == folded.retry_pause),
            ("owner_lost", stored.owner_lost == folded.owner_lost),
            // The commit that records a loss takes the lease from the owner that was lost.
            ("lease", front.owner == 0 || folded.owner_lost.is_none()),
            ("external_ref", stored.external_ref == folded.external_ref),
            ("terminal", self.facts.state.terminal == terminal),
            ("terminal_at_ms", front.terminal_at_ms() == ended_at),
            (
                "cancel_requested",
                front.cancel_requested == folded.cancel_request.is_some(),
            ),
            ("log_bytes", front.log_bytes == self.bytes),
            // A lease may have been acquired since, but never under a lower token.
            ("token", front.token >= self.started_under),
        ];
        for (field, same) in same {
            if !same {
                findings.note(
                    self.who(),
                    format!("its stored {field} is not what its log says"),
                );
            }
        }
    }
}
