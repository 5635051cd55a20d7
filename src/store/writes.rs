//! Changes made from the model's decisions. Everything that can be encoded before the commit is
//! encoded here, on the caller's thread.

use std::collections::HashSet;

use bytes::Bytes;

use super::codec;
use super::codec::stored::{EventRef, StoredEffect, StoredHead, StoredState};
use super::error::StoreError;
use super::keys::{self, Row};
use super::read::{IdEntry, View};
use super::write_set::{
    Append, Change, Condition, LeaseWrite, Register, ReplayWrite, WakeWrite, WriteSet,
};
use crate::model::decide::EventDraft;
use crate::model::record::{ProcessState, Registration};
use crate::model::{
    ContentHash, EffectKey, ExecutionScope, FencingToken, OwnerNumber, ProcessStartGrant,
    SessionScope, decide,
};

impl Row {
    /// The row of a registration.
    pub(crate) fn of(registration: &Registration) -> Self {
        Self {
            created_at_ms: registration.created_at_ms,
            incarnation: registration.incarnation,
        }
    }
}

/// A new process.
pub(crate) fn register(
    registration: &Registration,
    env: Option<(ContentHash, Vec<u8>)>,
    grant: Option<ProcessStartGrant>,
) -> Result<Change, StoreError> {
    let (head, body) = StoredHead::split(registration)?;
    let initial = ProcessState::initial(registration.created_at_ms);
    Ok(Change::Register(Box::new(Register {
        row: Row::of(registration),
        id: registration.id.clone(),
        head: codec::encode(&head)?,
        body: body.as_ref().map(codec::encode).transpose()?,
        state: Bytes::from(codec::encode_body(&StoredState::from(&initial))?),
        env: env.map(|(hash, canonical)| (hash, Bytes::from(canonical))),
        grant: grant.map(|grant| (grant.scope, grant.descriptor)),
        originator: registration.provenance.originator.clone(),
        parent: registration
            .provenance
            .parent
            .as_ref()
            .map(|parent| parent.incarnation),
        wake_target: registration.wake_target.clone(),
    })))
}

/// Events that were decided, and the state that they lead to.
pub(crate) fn append(
    registration: &Registration,
    events: &[EventDraft],
    after: &ProcessState,
    lease: &decide::LeaseChange,
    owner: OwnerNumber,
    occurred_at_ms: u64,
) -> Result<Change, StoreError> {
    let first_sequence = after.last_sequence + 1 - events.len() as u64;
    let mut replays = Vec::new();
    let mut wakes = Vec::new();
    let mut values = Vec::with_capacity(events.len());
    for (sequence, event) in (first_sequence..).zip(events) {
        values.push(codec::encode(&EventRef {
            event_type: &event.event_type,
            occurred_at_ms,
            replay_key: event.replay.as_ref().map(|replay| replay.key.as_str()),
            payload: &event.canonical,
        })?);
        if let Some(replay) = &event.replay {
            replays.push(ReplayWrite {
                key: replay.key.clone(),
                sequence,
                content: replay.content,
            });
        }
        if let Some(wake) = &event.wake {
            wakes.push(WakeWrite {
                process_id: registration.id.clone(),
                sequence,
                event_type: event.event_type.clone(),
                text: wake.notice.text.clone(),
                dedupe_key: wake.notice.dedupe_key.clone(),
                target: wake.target.clone(),
                at_ms: occurred_at_ms,
            });
        }
    }
    Ok(Change::Append(Box::new(Append {
        row: Row::of(registration),
        first_sequence,
        events: values,
        state: Some(Bytes::from(codec::encode_body(&StoredState::from(after))?)),
        terminal_at_ms: after.terminal().map(|_| after.updated_at_ms),
        cancel_requested: after.cancel_request.is_some(),
        lease: lease_write(lease, owner),
        replays,
        wakes,
    })))
}

fn lease_write(lease: &decide::LeaseChange, owner: OwnerNumber) -> LeaseWrite {
    match lease {
        decide::LeaseChange::Keep => LeaseWrite::Keep,
        decide::LeaseChange::Acquire(token) => LeaseWrite::Acquire {
            owner,
            token: *token,
        },
        decide::LeaseChange::Release => LeaseWrite::Release,
        decide::LeaseChange::Pass(token) => LeaseWrite::Pass { token: *token },
    }
}

/// A lease that is given back without an outcome. No event: leases are not part of the record.
pub(crate) fn release(row: Row, last_sequence: u64) -> Change {
    of_lease(row, last_sequence, LeaseWrite::Release)
}

/// A lease that is taken from whom it lapsed for, without a word about what becomes of the process.
pub(crate) fn take(
    row: Row,
    last_sequence: u64,
    owner: OwnerNumber,
    token: FencingToken,
) -> Change {
    of_lease(row, last_sequence, LeaseWrite::Acquire { owner, token })
}

fn of_lease(row: Row, last_sequence: u64, lease: LeaseWrite) -> Change {
    Change::Append(Box::new(Append {
        row,
        first_sequence: last_sequence + 1,
        events: Vec::new(),
        state: None,
        terminal_at_ms: None,
        cancel_requested: false,
        lease,
        replays: Vec::new(),
        wakes: Vec::new(),
    }))
}

/// What a transfer comes to.
#[derive(Debug)]
pub(crate) struct Transfer {
    /// Ids that none of the scopes holds.
    pub(crate) missing: Vec<String>,
    /// The set that moves the others; `None` where there is nothing to move.
    pub(crate) set: Option<WriteSet>,
}

/// The set that moves grants from whichever of these scopes of one session holds each, root first, to
/// another scope: on the condition that the grants are still there when it commits.
pub(crate) fn transfer(
    view: &View,
    from: &[SessionScope],
    to: &SessionScope,
    process_ids: &[String],
) -> Result<Transfer, StoreError> {
    let mut seen = HashSet::new();
    let mut missing = Vec::new();
    let mut conditions = Vec::new();
    let mut changes = Vec::new();
    for id in process_ids.iter().filter(|id| seen.insert(id.as_str())) {
        let mut held = Vec::new();
        if let Some(IdEntry::Live(row)) = view.id(id)? {
            // A frame's own grant goes before its session's.
            for scope in from.iter().rev() {
                if let Some(descriptor) = view.grant(scope, row)? {
                    held.push((row, scope, descriptor));
                }
            }
        }
        let Some((row, holder, descriptor)) = held.first().cloned() else {
            missing.push(id.clone());
            continue;
        };
        if holder == to {
            continue;
        }
        // With the descriptor that goes along: it may have been given anew, with another one.
        conditions.push(Condition::GrantIs {
            row,
            scope: holder.clone(),
            descriptor: descriptor.clone(),
        });
        // G2: a session that holds it in its frame and in its root gives both, or it would still
        // hold what it gave away.
        for (_, scope, _) in held.iter().filter(|(_, scope, _)| *scope != to) {
            let scope = (*scope).clone();
            changes.push(Change::Revoke { row, scope });
        }
        let scope = to.clone();
        changes.push(Change::Grant {
            row,
            scope,
            descriptor,
        });
    }
    let set = (!changes.is_empty()).then(|| WriteSet::new(conditions, changes));
    Ok(Transfer { missing, set })
}

/// An effect's content and outcome, both as canonical JSON.
pub(crate) fn record_effect(
    scope: &ExecutionScope,
    key: &EffectKey,
    content: Vec<u8>,
    outcome: Vec<u8>,
) -> Result<Change, StoreError> {
    Ok(Change::RecordEffect {
        key: keys::effect(scope, key),
        value: codec::encode(&StoredEffect { content, outcome })?,
    })
}
