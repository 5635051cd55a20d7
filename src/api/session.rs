//! One session's view: a security boundary.

use std::sync::Arc;

use super::commands::{Signal, abandon_as, cancel_as, signal_as, start_as};
use super::effects::ScopedEffectController;
use super::following::SessionWatch;
use super::subscription::{Grants, Subscription};
use crate::actors::runtime::Shared;
use crate::actors::start::StartAs;
use crate::actors::work::Whose;
use crate::model::{
    Error, ObservedProcess, ObservedProcessEvent, ProcessAwaitOutput, ProcessCancelSummary,
    ProcessEvent, ProcessEventAppendRequest, ProcessListFilter, ProcessOriginator, ProcessRecord,
    ProcessStartGrant, ProcessStartRequest, ProcessWorkSnapshot, Result, SessionScope,
};
use crate::store::keys::Row;

/// A session's handle on the runtime.
#[derive(Debug, Clone)]
pub struct SessionHandle {
    shared: Arc<Shared>,
    scope: SessionScope,
}

impl SessionHandle {
    pub(crate) fn new(shared: Arc<Shared>, scope: SessionScope) -> Self {
        Self { shared, scope }
    }

    /// The session's scope.
    #[must_use]
    pub const fn scope(&self) -> &SessionScope {
        &self.scope
    }

    /// The session's view of its processes.
    #[must_use]
    pub fn processes(&self) -> SessionProcessAdmin {
        let mut scopes = vec![SessionScope::new(self.scope.session_id.clone())];
        if self.scope.agent_frame_id.is_some() {
            scopes.push(self.scope.clone());
        }
        SessionProcessAdmin {
            shared: Arc::clone(&self.shared),
            own: self.scope.clone(),
            scopes,
        }
    }
}

/// One session's view of its processes: its root scope and, where the handle names a frame, that
/// frame.
///
/// A security boundary, unlike [`Processes`](super::Processes): every operation needs a grant. A
/// write carries it as a condition inside its commit, a read checks it again after reading. An id
/// that does not exist, was pruned, or is not granted gives the same `UnknownProcess` with the same
/// text. The one exception is `Conflict` at [`SessionProcessAdmin::start`], for an id that belongs
/// to somebody else's process: mint ids that cannot be guessed.
#[derive(Debug, Clone)]
pub struct SessionProcessAdmin {
    shared: Arc<Shared>,
    own: SessionScope,
    scopes: Vec<SessionScope>,
}

impl SessionProcessAdmin {
    /// The process behind an id and the scope that holds it, as of now.
    fn held(&self, process_id: &str) -> Result<(Row, SessionScope)> {
        crate::model::ids::check_id("process_id", process_id)?;
        let view = self.shared.view()?;
        let row = self
            .shared
            .row_of(&view, process_id)
            .map_err(hide(process_id))?;
        for scope in self.scopes.iter().rev() {
            if view.grant(scope, row)?.is_some() {
                return Ok((row, scope.clone()));
            }
        }
        Err(Error::unknown(process_id))
    }

    /// The scopes that a write is tried under: the one that holds the process, and then the others,
    /// where that grant went away before the commit.
    fn starting_with(&self, holder: &SessionScope) -> Vec<SessionScope> {
        let mut scopes = vec![holder.clone()];
        scopes.extend(self.scopes.iter().filter(|it| *it != holder).cloned());
        scopes
    }

    /// The process behind an id, and what tells when it may not be seen any more.
    fn reading(&self, process_id: &str) -> Result<(Row, Grants)> {
        let (row, _) = self.held(process_id)?;
        let grants = Grants::listen(&self.shared, process_id, row, &self.scopes);
        // Listened to first, looked at second: a revocation in between is heard.
        self.still_held(process_id, row)?;
        Ok((row, grants))
    }

    /// Checks after a read what was checked before it.
    fn still_held(&self, process_id: &str, row: Row) -> Result<()> {
        match self.held(process_id) {
            Ok((now, _)) if now == row => Ok(()),
            Ok(_) => Err(Error::unknown(process_id)),
            Err(error) => Err(error),
        }
    }

    /// Starts a process: the session is its originator and gets its grant, in the same commit.
    ///
    /// # Errors
    /// `InvalidInput` for another originator, grant scope or wake target than the session's own;
    /// `Conflict`; `ReplayMismatch` only for a process that the session holds, saying what differs
    /// only where the session started it, and otherwise `Conflict`; `UnknownProcess` where the session started it before and no longer holds it;
    /// `UnknownEngine`, `InvalidPayload`.
    pub async fn start(
        &self,
        mut request: ProcessStartRequest,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessRecord> {
        if let Err(error) = self.check_own(&request) {
            let error = error.for_process(&request.id);
            request.dismantle();
            return Err(error);
        }
        request.originator = ProcessOriginator::session(self.own.clone());
        let descriptor = request
            .grant
            .take()
            .map(|grant| grant.descriptor)
            .unwrap_or_default();
        request.grant = Some(ProcessStartGrant {
            scope: self.own.clone(),
            descriptor,
        });
        let session = StartAs {
            session: self.scopes.clone(),
            ..StartAs::default()
        };
        let id = request.id.clone();
        let record = start_as(&self.shared, request, session, &scoped_effect_controller)
            .await
            .map_err(|error| self.hide_mismatch(&id, error))?;
        // A controller may answer with what it recorded: that rests on a grant too.
        let (row, _) = self.held(&record.id)?;
        if row.incarnation != record.incarnation {
            return Err(Error::unknown(&record.id));
        }
        Ok(record)
    }

    /// What a journal holds of somebody else's request, in a scope of execution that is shared, is not
    /// shown: the id is taken, as without a journal. Nor is it where the session was granted the process:
    /// a grant does not show whom else the request named, or what its environment is.
    fn hide_mismatch(&self, process_id: &str, error: Error) -> Error {
        if !matches!(error, Error::ReplayMismatch { .. }) {
            return hide(process_id)(error);
        }
        match self.is_own(process_id) {
            Ok(true) => error,
            Ok(false) => without_difference(error),
            Err(Error::UnknownProcess { .. }) => Error::Conflict {
                process_id: process_id.to_owned(),
                what: "the id".to_owned(),
            },
            Err(failed) => failed,
        }
    }

    /// Whether a process that the session holds was started by it.
    fn is_own(&self, process_id: &str) -> Result<bool> {
        let (row, _) = self.held(process_id)?;
        let summary = self.shared.view()?.summary(row)?;
        Ok(summary.is_some_and(|summary| {
            matches!(summary.head.provenance.originator, ProcessOriginator::Session { scope }
                if self.scopes.contains(&scope))
        }))
    }

    fn check_own(&self, request: &ProcessStartRequest) -> Result<()> {
        if !matches!(&request.originator, ProcessOriginator::Session { scope } if *scope == self.own)
        {
            return Err(self.forged("originator", &request.originator.scope_id()));
        }
        let granted = request.grant.as_ref().map(|grant| &grant.scope);
        self.own_or_none("grant.scope", granted)?;
        self.own_or_none("wake_target", request.wake_target.as_ref())
    }

    /// A session speaks for itself alone: a scope that it names is its own.
    fn own_or_none(&self, field: &str, scope: Option<&SessionScope>) -> Result<()> {
        match scope {
            Some(scope) if *scope != self.own => Err(self.forged(field, &scope.id())),
            Some(_) | None => Ok(()),
        }
    }

    fn forged(&self, field: &str, is: &str) -> Error {
        Error::invalid(
            field,
            format!("is {is}"),
            format!("the session's own scope, {}", self.own),
        )
    }

    /// The running processes that are granted.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list(&self) -> Result<Vec<ObservedProcess>> {
        self.list_filtered(&ProcessListFilter::default()).await
    }

    /// All processes that are granted, ended or not.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn list_all(&self) -> Result<Vec<ObservedProcess>> {
        self.list_filtered(&ProcessListFilter::any()).await
    }

    async fn list_filtered(&self, filter: &ProcessListFilter) -> Result<Vec<ObservedProcess>> {
        self.shared.list_granted(self.scopes.clone(), filter).await
    }

    /// A granted process; `None` for any other id.
    ///
    /// # Errors
    /// `InvalidInput`.
    pub async fn get(&self, process_id: &str) -> Result<Option<ObservedProcess>> {
        match self.held(process_id) {
            Ok((row, _)) => {
                let found = self.shared.get(process_id)?;
                match self.still_held(process_id, row) {
                    Ok(()) => Ok(found),
                    Err(Error::UnknownProcess { .. }) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Err(Error::UnknownProcess { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The log of a granted process after a sequence.
    ///
    /// # Errors
    /// `UnknownProcess`.
    pub async fn events(
        &self,
        process_id: &str,
        after_sequence: u64,
    ) -> Result<Vec<ObservedProcessEvent>> {
        let (row, _) = self.held(process_id)?;
        let events = self
            .shared
            .events(process_id, after_sequence)
            .await
            .map_err(hide(process_id))?;
        self.still_held(process_id, row)?;
        Ok(events.iter().map(ProcessEvent::observed).collect())
    }

    /// The log of a granted process after a sequence, and then live; ends with `NotGranted` when
    /// the grant goes away, and yields nothing more once that has returned. One that has yielded the
    /// terminal event just ends.
    ///
    /// # Errors
    /// `UnknownProcess`.
    pub async fn subscribe(&self, process_id: &str, after_sequence: u64) -> Result<Subscription> {
        let (row, grants) = self.reading(process_id)?;
        Ok(Subscription::new(
            &self.shared,
            process_id,
            row,
            after_sequence,
            Some(grants),
        ))
    }

    /// Waits for the outcome of a granted process; ends when the grant goes away.
    ///
    /// # Cancel safety
    /// Safe to drop.
    ///
    /// # Errors
    /// `UnknownProcess`.
    pub async fn await_output(&self, process_id: &str) -> Result<ProcessAwaitOutput> {
        let (row, grants) = self.reading(process_id)?;
        let mut listener = self.shared.hub.listen(row.incarnation);
        let output = tokio::select! {
            biased;
            ended = grants.ended() => Err(ended),
            output = self.shared.await_listened(process_id, row, &mut listener) => output,
        };
        self.still_held(process_id, row)?;
        output.map_err(hide(process_id))
    }

    /// Signals a granted process, as [`Processes::signal`](super::Processes::signal).
    ///
    /// # Errors
    /// `InvalidInput` for another `wake_target_scope` than the session's own, whatever the id stands
    /// for; `UnknownProcess`, and as there.
    pub async fn signal(
        &self,
        process_id: &str,
        signal_name: impl Into<String>,
        signal_id: impl Into<String>,
        request: ProcessEventAppendRequest,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessEvent> {
        // Looked at before the grant: the answer says nothing about the process.
        let target = request.wake_target_scope.as_ref();
        let held = self
            .own_or_none("wake_target_scope", target)
            .map_err(|error| error.for_process(process_id))
            .and_then(|()| self.held(process_id));
        let (row, scopes) = match held {
            Ok((row, scope)) => (row, self.starting_with(&scope)),
            Err(error) => {
                request.dismantle();
                return Err(error);
            }
        };
        let signal = Signal {
            name: signal_name.into(),
            id: signal_id.into(),
            request,
        };
        let sent = signal_as(
            &self.shared,
            process_id,
            signal,
            &scopes,
            &scoped_effect_controller,
        )
        .await;
        // What was answered without a commit rests on a grant too.
        self.still_held(process_id, row)?;
        sent.map_err(hide(process_id)).map_err(without_woken)
    }

    /// Asks a granted process to stop, as [`Processes::cancel`](super::Processes::cancel).
    ///
    /// # Errors
    /// `UnknownProcess`.
    pub async fn cancel(
        &self,
        process_id: &str,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<ProcessCancelSummary> {
        let (row, scope) = self.held(process_id)?;
        let scopes = self.starting_with(&scope);
        let cancelled =
            cancel_as(&self.shared, process_id, &scopes, &scoped_effect_controller).await;
        self.still_held(process_id, row)?;
        cancelled.map_err(hide(process_id))
    }

    /// Asks every granted running process to stop. As an effect it shares its key with the host's, see
    /// [`Processes::cancel_all`](super::Processes::cancel_all).
    ///
    /// # Errors
    /// `ReplayMismatch`, which does not say for whom it was recorded; otherwise only where they could not
    /// be listed.
    pub async fn cancel_all(
        &self,
        scoped_effect_controller: ScopedEffectController<'_>,
    ) -> Result<Vec<ProcessCancelSummary>> {
        let summaries = super::commands::cancel_all_granted(
            &self.shared,
            &self.scopes,
            &self.own,
            &scoped_effect_controller,
        )
        .await
        // Recorded for somebody else, whose scope is none of this session's business.
        .map_err(without_difference)?;
        // What was lost meanwhile, or since a journal recorded it, is not told of any more.
        self.shared
            .cancelled_of(self.scopes.clone(), summaries)
            .await
    }

    /// Gives grants of this session to another scope, all or none. Wakes go on to the scope that they went
    /// to, as with [`Processes::transfer`](super::Processes::transfer).
    ///
    /// # Errors
    /// `UnknownProcess` for the first id that the session does not hold; `InvalidInput`.
    pub async fn transfer(&self, to_scope: &SessionScope, process_ids: &[String]) -> Result<()> {
        self.shared
            .transfer(&self.scopes, to_scope, process_ids)
            .await
            .map_err(|error| {
                let Error::NotGranted { ids, .. } = &error else {
                    return error;
                };
                Error::unknown(ids.first().map_or("", String::as_str))
            })
    }

    /// Asks that a granted process be given up.
    ///
    /// # Errors
    /// `UnknownProcess`, and as [`Processes::request_abandon`](super::Processes::request_abandon).
    pub async fn request_abandon(
        &self,
        process_id: &str,
        requested_by: impl Into<String>,
        reason: Option<String>,
    ) -> Result<ObservedProcess> {
        let (row, scope) = self.held(process_id)?;
        let asked = abandon_as(
            &self.shared,
            process_id,
            requested_by.into(),
            reason,
            &self.starting_with(&scope),
        )
        .await;
        self.still_held(process_id, row)?;
        asked.map_err(hide(process_id))
    }

    /// The granted processes, newest change first, each with its last 32 events, or fewer: the newest
    /// within [`SNAPSHOT_PROCESS_BYTES_MAX`](crate::limits::SNAPSHOT_PROCESS_BYTES_MAX), and within
    /// [`SNAPSHOT_BYTES_MAX`](crate::limits::SNAPSHOT_BYTES_MAX) for all processes together. Where that
    /// is used up, those that changed longer ago show no events; [`SessionProcessAdmin::events`] has them.
    ///
    /// # Errors
    /// `Timeout` where the session has more than can be read from one state of the store, tried again;
    /// those of the store.
    pub async fn snapshot(&self) -> Result<ProcessWorkSnapshot> {
        self.shared.work(Whose::Granted(self.scopes.clone())).await
    }

    /// The same, live: what is granted and nothing else. Once a revocation or a transfer has
    /// returned, no snapshot shows what it took away.
    ///
    /// # Errors
    /// `InvalidInput` where the handle's own scope is outside its limits.
    pub fn watch_session(&self) -> Result<SessionWatch> {
        SessionWatch::new(&self.shared, Whose::Granted(self.scopes.clone()))
    }
}

/// To a session, what was pruned looks like what never was.
fn hide(process_id: &str) -> impl Fn(Error) -> Error + '_ {
    move |error| {
        let hidden = matches!(
            error,
            Error::NoLongerRetained { .. }
                | Error::UnknownProcess { .. }
                | Error::NotGranted { .. }
        );
        if hidden {
            Error::unknown(process_id)
        } else {
            error
        }
    }
}

/// What a journal recorded for somebody else is not shown, only that it did.
fn without_difference(error: Error) -> Error {
    match error {
        Error::ReplayMismatch { scope, effect, .. } => Error::ReplayMismatch {
            scope,
            effect,
            difference: "what was recorded is not shown to this session".to_owned(),
        },
        error => error,
    }
}

/// The log shows what was signalled to whoever holds the process, but not whom the signal was to wake.
fn without_woken(error: Error) -> Error {
    match &error {
        Error::ReplayMismatch { difference, .. }
            if difference.starts_with("/wake_target_scope") =>
        {
            without_difference(error)
        }
        _ => error,
    }
}
