//! A process as observers see it.

use std::sync::Arc;

use super::*;

use crate::model::filter::FilterFacts;
use crate::model::lease::{self, OwnerStanding};
use crate::model::record::wait_of;
use crate::model::{Facets, Lifecycle, ObservedLease, ObservedProcess, RecoveryDisposition};
use crate::store::error::StoreError;

impl ProcessSummary {
    /// What a filter asks about.
    pub(crate) fn filter_facts(&self) -> FilterFacts<'_> {
        let Self { head, facts, .. } = self;
        let terminal = facts.terminal.as_ref().map(|(terminal, _)| *terminal);
        FilterFacts {
            lifecycle: Lifecycle::from(terminal),
            waiting: terminal.is_none() && !facts.state.waits.is_empty(),
            originator: &head.provenance.originator,
            kind: head.identity.kind.as_ref().or(head.engine_kind.as_ref()),
            label: head.identity.label.as_ref(),
            definition: head.identity.definition.as_ref(),
            caused_by: head.provenance.caused_by.as_ref(),
            parent: head
                .provenance
                .parent
                .as_ref()
                .map(|parent| &parent.process_id),
            labels: &head.labels,
            created_at_ms: head.row.created_at_ms,
        }
    }
}

impl View {
    /// A process as observers see it.
    pub(crate) fn observe(&self, summary: ProcessSummary) -> Result<ObservedProcess, StoreError> {
        let ProcessSummary { head, facts, edges } = summary;
        let wake_target = self.wake_target(head.row)?;
        let lease = match edges.lease {
            None => None,
            Some(lease) => self.owner(lease.owner)?.map(|record| ObservedLease {
                fencing_token: lease.token,
                expires_at_ms: record.expires_at_ms,
                live: lease::standing(Some(&record), self.exclusive_epoch, self.lease_now_ms)
                    == OwnerStanding::Live,
                owner: record.owner,
            }),
        };
        let state = facts.state;
        let (terminal, error) = match facts.terminal {
            Some((terminal, error)) => (Some(terminal), error),
            None => (None, None),
        };
        let running = terminal.is_none();
        let held = lease.as_ref().is_some_and(|lease| lease.live);
        // Started owner-bound work whose owner is gone is not queued: it is never run again.
        let runnable = match head.disposition {
            RecoveryDisposition::Rerunnable => true,
            RecoveryDisposition::OwnerBound => state.attempt == 0,
            RecoveryDisposition::ExternallyOwned => false,
        };
        Ok(ObservedProcess {
            process_id: head.id,
            incarnation: head.row.incarnation,
            kind: head.identity.kind.or_else(|| head.engine_kind.clone()),
            engine_kind: head.engine_kind,
            label: head.identity.label,
            definition: head.identity.definition,
            lifecycle: Lifecycle::from(terminal),
            facets: Facets {
                queued: running && runnable && !held,
                started: running && state.attempt > 0,
                waiting: running && !state.waits.is_empty(),
                cancel_requested: state.cancel_request.is_some(),
                abandon_requested: state.abandon_request.is_some(),
                backing_off: running && state.retry_pause.is_some(),
            },
            queued_reason: None,
            disposition: head.disposition,
            attempt: state.attempt,
            last_sequence: state.last_sequence,
            created_at_ms: head.row.created_at_ms,
            updated_at_ms: state.updated_at_ms,
            first_started_at_ms: state.first_started.map(|first| first.at_ms),
            terminal_at_ms: terminal.map(|_| state.updated_at_ms),
            retry_at_ms: state.retry_pause.map(|pause| pause.retry_at_ms),
            lease,
            cancel_request: state.cancel_request.map(Arc::unwrap_or_clone),
            abandon_request: state.abandon_request.map(Arc::unwrap_or_clone),
            wait: wait_of(state.waits),
            originator: head.provenance.originator,
            caused_by: head.provenance.caused_by,
            parent: head.provenance.parent,
            external_ref: state.external_ref,
            env_ref: head.env_ref,
            wake_target,
            priority: head.priority,
            labels: head.labels,
            error,
        })
    }
}
