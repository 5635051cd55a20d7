//! The host's view of every process.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::commands::{Signal, abandon_as, cancel_all_of, cancel_as, signal_as, start_as, within};
use super::effects::ScopedEffectController;
use super::observer::ProcessWorkObserver;
use super::subscription::Subscription;
use crate::actors::process::HostCommand;
use crate::actors::reads::ListScope;
use crate::actors::runtime::Shared;
use crate::actors::start::StartAs;
use crate::actors::work::Whose;
use crate::model::decide::prepare_event;
use crate::model::limits::EVENTS_PAGE_MAX;
use crate::model::{
    CompletionAuthority, ContentHash, Error, ObservedProcess, ObservedProcessEvent, Page,
    PageRequest, ProcessAwaitOutput, ProcessCancelSummary, ProcessEnvSpec, ProcessEvent,
    ProcessEventAppendRequest, ProcessHandleDescriptor, ProcessListFilter, ProcessPruneReport,
    ProcessRecord, ProcessStartRequest, ProcessWorkSnapshot, PruneSelector, Result, SessionScope,
};

/// The host's view of every process, with the host's own authority. Cheap to clone.
///
/// What is acknowledged is durable. Every call may answer `ShuttingDown` once the runtime shuts
/// down, and `StoreFailed`, `Corrupted` or `CommitUnknown` when the store fails; these are not
/// repeated below. Dropping a call before it returns leaves a write that may or may not happen;
/// starts, cancels and signals can be asked again with the same keys.
#[derive(Debug, Clone)]
pub struct Processes {
    pub(super) shared: Arc<Shared>,
}

impl Processes {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Starts a process. Durable when it returns; idempotent by id and content: asked again it
    /// returns what was started, and writes nothing.
    ///
    /// # Errors
    /// `InvalidInput`, `InvalidPayload` (the engine refused its payload), `UnknownEngine`,
    /// `Conflict` (the id stands for other content), `NoLongerRetained` (it ran and was pruned).
    pub async fn start(
        &self,
        request: ProcessStartRequest,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessRecord> {
        start_as(
            &self.shared,
            request,
            StartAs::default(),
            &scoped_effect_controller,
        )
        .await
    }

    /// Processes that a filter admits, in the order of their creation, all from one consistent
    /// state. A store may hold more than is wise to ask for at once: see [`Processes::list_page`].
    ///
    /// # Errors
    /// `InvalidInput`; `Timeout` where the list is too long for one state to be kept: for five seconds, or for
    /// half a second while commits wait for that.
    pub async fn list(&self, filter: &ProcessListFilter) -> Result<Vec<ObservedProcess>> {
        self.shared.list(ListScope::All, filter).await
    }

    /// Those granted to exactly this scope.
    ///
    /// # Errors
    /// As [`Processes::list`].
    pub async fn list_granted_to(
        &self,
        session_scope: &SessionScope,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        self.shared
            .list(ListScope::GrantedTo(session_scope.clone()), filter)
            .await
    }

    /// Those created by this scope; a root scope stands for all frames of its session.
    ///
    /// # Errors
    /// As [`Processes::list`].
    pub async fn list_originated_by(
        &self,
        session_scope: &SessionScope,
        filter: &ProcessListFilter,
    ) -> Result<Vec<ObservedProcess>> {
        self.shared
            .list(ListScope::OriginatedBy(session_scope.clone()), filter)
            .await
    }

    /// A process, or `None` where the id stands for nothing or for something pruned.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn get(&self, process_id: &str) -> Result<Option<ObservedProcess>> {
        self.shared.get(process_id)
    }

    /// The log of a process after a sequence; 0 for all of it.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn events(
        &self,
        process_id: &str,
        after_sequence: u64,
    ) -> Result<Vec<ObservedProcessEvent>> {
        let events = self.shared.events(process_id, after_sequence).await?;
        Ok(events.iter().map(ProcessEvent::observed).collect())
    }

    /// Waits for the outcome of a process: the same for every waiter, before and after a restart.
    ///
    /// # Cancel safety
    /// Safe to drop: nothing is left behind.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn await_output(&self, process_id: &str) -> Result<ProcessAwaitOutput> {
        self.shared.await_output(process_id).await
    }

    /// Asks a process to stop, once and durably; returns its status at that moment. One that
    /// nobody executes ends at once. On a process that has ended nothing is written.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn cancel(
        &self,
        process_id: &str,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessCancelSummary> {
        cancel_as(&self.shared, process_id, &[], &scoped_effect_controller).await
    }

    /// Sends a signal: appends `signal.<name>`, once per signal id. Durable when it returns.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `UndeclaredEvent`, `InvalidPayload`, `InvalidInput`,
    /// `AlreadyTerminal`, `Conflict` (the signal id stands for other content).
    pub async fn signal(
        &self,
        process_id: &str,
        signal_name: impl Into<String>,
        signal_id: impl Into<String>,
        request: ProcessEventAppendRequest,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessEvent> {
        signal_as(
            &self.shared,
            process_id,
            Signal {
                name: signal_name.into(),
                id: signal_id.into(),
                request,
            },
            &[],
            &scoped_effect_controller,
        )
        .await
    }

    /// A session's work: every process granted to it, or whose wakes go to it, newest change
    /// first, each with its last 32 events, or fewer: the newest within
    /// [`SNAPSHOT_PROCESS_BYTES_MAX`](crate::limits::SNAPSHOT_PROCESS_BYTES_MAX), and within
    /// [`SNAPSHOT_BYTES_MAX`](crate::limits::SNAPSHOT_BYTES_MAX) for all processes together. Where that is
    /// used up, those that changed longer ago show no events; [`Processes::events_page`] has them. Covers
    /// all frames.
    ///
    /// # Errors
    /// `InvalidInput`; `Timeout` where the session has more than can be read from one state of the store,
    /// tried again.
    pub async fn session_snapshot(
        &self,
        session_id: impl Into<String>,
    ) -> Result<ProcessWorkSnapshot> {
        self.shared.work(Whose::Session(session_id.into())).await
    }

    /// The read side of this view.
    ///
    /// # Errors
    /// `ShuttingDown`.
    pub fn observer(&self) -> Result<ProcessWorkObserver> {
        if self.shared.is_shutting_down() {
            return Err(self.shared.stopped());
        }
        Ok(ProcessWorkObserver::new(Arc::clone(&self.shared)))
    }

    /// Asks every running process to stop. One summary for each that was found running, none lost
    /// to an error elsewhere: where a request could not be recorded, the summary says `Running`.
    ///
    /// A scope of execution has one such effect, the host's and its sessions' taken together: a journal in
    /// which another one recorded it answers `ReplayMismatch`. Give each of them a scope of its own.
    ///
    /// # Errors
    /// `ReplayMismatch`; otherwise only where the running processes could not be listed.
    pub async fn cancel_all(
        &self,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<Vec<ProcessCancelSummary>> {
        cancel_all_of(&self.shared, ListScope::All, &scoped_effect_controller).await
    }

    /// Moves grants from one scope to another, all or none. A receiver that holds a grant already
    /// keeps its own descriptor. Durable when it returns; open subscriptions of the source end.
    ///
    /// Grants alone: wakes go on to the scope that they went to, also if that is the source. To send them
    /// after the grants, call [`Processes::retarget_wakes`] as well.
    ///
    /// # Errors
    /// `NotGranted` with the ids that the source does not hold; `InvalidInput` for more than 1,000.
    pub async fn transfer(
        &self,
        from_scope: &SessionScope,
        to_scope: &SessionScope,
        process_ids: &[String],
    ) -> Result<()> {
        self.shared
            .transfer(std::slice::from_ref(from_scope), to_scope, process_ids)
            .await
    }

    /// Deletes processes that ended before a cutoff, with everything that is theirs. Restartable;
    /// the report says exactly what this call took out, what an earlier one had left included: nobody
    /// but a prune takes, or counts, what is left of a pruned process.
    ///
    /// # Errors
    /// Only those of the store; `Corrupted` at the end where a process, or what is left of one, could not be read: the others
    /// were pruned. A damaged entry of the change feed ends it there. What was pruned before stays pruned and is in no later report: it is
    /// logged, and the change feed has each deletion.
    pub async fn prune(&self, cutoff_epoch_ms: u64) -> Result<ProcessPruneReport> {
        self.shared
            .prune_where(&PruneSelector::older_than(cutoff_epoch_ms))
            .await
    }

    /// Asks that a process be given up. Ends nothing by itself: the reaper does, once nobody holds
    /// a live lease. The first request stays.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `AlreadyTerminal`, `InvalidInput`.
    pub async fn request_abandon(
        &self,
        process_id: &str,
        requested_by: impl Into<String>,
        reason: Option<String>,
    ) -> Result<ObservedProcess> {
        abandon_as(&self.shared, process_id, requested_by.into(), reason, &[]).await
    }

    /// The whole record of a process, with its input and outcome; `None` as [`Processes::get`].
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn record(&self, process_id: &str) -> Result<Option<ProcessRecord>> {
        self.shared.record(process_id)
    }

    /// The environment that stands under a hash, as an `env_ref` names it.
    ///
    /// # Errors
    /// Only those of the store.
    pub async fn env(&self, env_ref: &ContentHash) -> Result<Option<ProcessEnvSpec>> {
        self.shared.env(env_ref)
    }

    /// Gives a scope a grant on a process. A scope that holds one keeps its own descriptor.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `InvalidInput`.
    pub async fn grant(
        &self,
        scope: &SessionScope,
        process_id: &str,
        descriptor: ProcessHandleDescriptor,
    ) -> Result<()> {
        self.shared.grant(scope, process_id, descriptor).await
    }

    /// Takes a scope's grant away, if it has one. After it has returned nothing more reaches the
    /// scope by it, open subscriptions included.
    ///
    /// Whom a process wakes is no grant: a scope that is its wake target still gets its wakes, with their
    /// texts, until [`Processes::retarget_wakes`] sends them elsewhere. Call that as well.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `InvalidInput`.
    pub async fn revoke(&self, scope: &SessionScope, process_id: &str) -> Result<()> {
        self.shared.revoke(scope, process_id).await
    }

    /// The scopes that hold a grant on a process.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn grants_of(&self, process_id: &str) -> Result<Vec<SessionScope>> {
        self.shared.grants_of(process_id).await
    }

    /// Whether a scope holds a grant on a process.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn has_grant(&self, scope: &SessionScope, process_id: &str) -> Result<bool> {
        let view = self.shared.view()?;
        let row = self.shared.row_of(&view, process_id)?;
        Ok(view.grant(scope, row)?.is_some())
    }

    /// One page of [`Processes::list`]. A page may hold fewer entries than asked for and still
    /// have a next one.
    ///
    /// # Errors
    /// `InvalidInput`, also for the cursor of another list, of another filter or of another store; `Timeout`
    /// where not even a page can be read from one state of the store.
    pub async fn list_page(
        &self,
        filter: &ProcessListFilter,
        page: &PageRequest,
    ) -> Result<Page<ObservedProcess>> {
        self.shared.list_page(ListScope::All, filter, page).await
    }

    /// One page of a log: at most `limit` events (1 to 1,000), fewer where they are large. Empty
    /// at the end of what is durable.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`, `InvalidInput`.
    pub async fn events_page(
        &self,
        process_id: &str,
        after_sequence: u64,
        limit: usize,
    ) -> Result<Vec<ObservedProcessEvent>> {
        if limit == 0 || limit > EVENTS_PAGE_MAX {
            return Err(Error::invalid(
                "limit",
                format!("is {limit}"),
                format!("1 to {EVENTS_PAGE_MAX}"),
            )
            .for_process(process_id));
        }
        let page = self.shared.events_page(process_id, after_sequence, limit);
        Ok(page.await?.iter().map(ProcessEvent::observed).collect())
    }

    /// The log of a process after a sequence, and then live.
    ///
    /// # Errors
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn subscribe(&self, process_id: &str, after_sequence: u64) -> Result<Subscription> {
        self.observer()?.subscribe(process_id, after_sequence)
    }

    /// As [`Processes::await_output`], with a limit. The process goes on when the time is over.
    ///
    /// # Errors
    /// `Timeout`, and as [`Processes::await_output`].
    pub async fn await_output_timeout(
        &self,
        process_id: &str,
        timeout: Duration,
    ) -> Result<ProcessAwaitOutput> {
        within(
            timeout,
            || format!("process {process_id}"),
            self.await_output(process_id),
        )
        .await
    }

    /// The first outcome of several processes, with its id.
    ///
    /// # Errors
    /// `InvalidInput` for no ids or more than 1,000, `Timeout`, and as [`Processes::await_output`]
    /// for the first of them that answers with an error.
    pub async fn await_any(
        &self,
        process_ids: &[String],
        timeout: Option<Duration>,
    ) -> Result<(String, ProcessAwaitOutput)> {
        let mut waits = self.await_each(process_ids)?;
        let first = async {
            match waits.join_next().await {
                Some(Ok((id, output))) => output.map(|output| (id, output)),
                Some(Err(_)) | None => Err(Error::ShuttingDown),
            }
        };
        match timeout {
            Some(timeout) => {
                within(
                    timeout,
                    || format!("any of {}", process_ids.join(", ")),
                    first,
                )
                .await
            }
            None => first.await,
        }
    }

    /// The outcomes of several processes, in the order of the ids.
    ///
    /// # Errors
    /// As [`Processes::await_any`].
    pub async fn await_all(
        &self,
        process_ids: &[String],
        timeout: Option<Duration>,
    ) -> Result<Vec<ProcessAwaitOutput>> {
        let mut waits = self.await_each(process_ids)?;
        let all = async {
            let mut outputs = HashMap::new();
            while let Some(joined) = waits.join_next().await {
                let (id, output) = joined.map_err(|_| Error::ShuttingDown)?;
                outputs.insert(id, output?);
            }
            process_ids
                .iter()
                .map(|id| outputs.get(id).cloned().ok_or(Error::ShuttingDown))
                .collect()
        };
        match timeout {
            Some(timeout) => {
                within(
                    timeout,
                    || format!("all of {}", process_ids.join(", ")),
                    all,
                )
                .await
            }
            None => all.await,
        }
    }

    fn await_each(
        &self,
        process_ids: &[String],
    ) -> Result<JoinSet<(String, Result<ProcessAwaitOutput>)>> {
        let limit = crate::model::limits::LIST_PAGE_MAX;
        if process_ids.is_empty() || process_ids.len() > limit {
            return Err(Error::invalid(
                "process_ids",
                format!("has {} entries", process_ids.len()),
                format!("1 to {limit} entries"),
            ));
        }
        let mut waits = JoinSet::new();
        let mut ids: Vec<&String> = process_ids.iter().collect();
        ids.sort_unstable();
        ids.dedup();
        for id in ids {
            let (shared, id) = (Arc::clone(&self.shared), id.clone());
            waits.spawn(async move {
                let output = shared.await_output(&id).await;
                (id, output)
            });
        }
        Ok(waits)
    }

    /// Ends an externally owned process: the only way it ends well. Durable when it returns.
    ///
    /// # Errors
    /// `InvalidInput` where the authority does not fit the process, `NotGranted` where it names a
    /// scope without a grant, `AlreadyTerminal`, `UnknownProcess`, `NoLongerRetained`.
    pub async fn complete_external(
        &self,
        process_id: &str,
        output: ProcessAwaitOutput,
        authority: CompletionAuthority,
    ) -> Result<()> {
        if authority == CompletionAuthority::ReconciledAbandon {
            // It may be too deep to be dropped.
            output.dismantle();
            return Err(Error::invalid(
                "authority",
                "reconciled_abandon is the reaper's alone",
                "external_owner or host",
            )
            .for_process(process_id));
        }
        self.shared
            .complete_external(process_id, output, authority)
            .await
    }

    /// Appends a declared event that is no lifecycle event. Durable when it returns.
    ///
    /// # Errors
    /// `UndeclaredEvent`, `InvalidPayload`, `InvalidInput`, `AlreadyTerminal`, `Conflict`,
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn append_event(
        &self,
        process_id: &str,
        request: ProcessEventAppendRequest,
    ) -> Result<ProcessEvent> {
        let event = prepare_event(process_id, request)?;
        self.shared.append(process_id, event, None).await
    }

    /// Says what a process is called elsewhere, once; the same value again is no error.
    ///
    /// # Errors
    /// `Conflict` where another value stands there, `InvalidInput`, `AlreadyTerminal`,
    /// `UnknownProcess`, `NoLongerRetained`.
    pub async fn set_external_ref(
        &self,
        process_id: &str,
        reference: serde_json::Value,
    ) -> Result<ObservedProcess> {
        let bytes_max = crate::model::limits::EXTERNAL_REF_BYTES_MAX;
        let bytes = match crate::model::json::bounded_bytes("reference", &reference, bytes_max) {
            Ok(canonical) => canonical.len(),
            Err(error) => {
                crate::model::json::dismantle(reference);
                return Err(error.for_process(process_id));
            }
        };
        self.shared
            .command(
                process_id,
                HostCommand::ExternalRef { reference, bytes },
                None,
            )
            .await?;
        self.shared
            .get(process_id)?
            .ok_or_else(|| Error::unknown(process_id))
    }
}
