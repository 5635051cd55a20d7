//! Commands as effects: what the host's view and a session's view have in common.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::effects::{EffectOutcome, ScopedEffectController, content_of, wrong_outcome};
use crate::actors::process::HostCommand;
use crate::actors::reads::ListScope;
use crate::actors::runtime::Shared;
use crate::actors::start::StartAs;
use crate::model::decide::{PreparedEvent, prepare_signal};
use crate::model::{
    EffectKey, Error, ObservedProcess, ProcessCancelSummary, ProcessEvent,
    ProcessEventAppendRequest, ProcessListFilter, ProcessRecord, ProcessStartRequest,
    ProcessStatus, Result, SessionScope,
};

/// Cancels that are under way at once in a cancel of all.
const CANCELS_AT_ONCE: usize = 64;

/// A signal on its way.
pub(crate) struct Signal {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) request: ProcessEventAppendRequest,
}

pub(crate) async fn start_as(
    shared: &Arc<Shared>,
    request: ProcessStartRequest,
    start_as: StartAs,
    controller: &ScopedEffectController<'_>,
) -> Result<ProcessRecord> {
    // Checked before anything looks at it: a value that is too deep overflows what walks it.
    let request = request.checked()?;
    let id = request.id.clone();
    // Only for a controller that looks at it: payloads may be large.
    let said = (!controller.is_inline()).then(|| request.clone());
    let outcome = controller
        .run(
            || EffectKey::Start { process_id: id },
            || content_of(&said),
            async {
                let record = shared.start(request, start_as).await?;
                Ok(EffectOutcome::Started(Box::new(record)))
            },
        )
        .await?;
    let EffectOutcome::Started(record) = outcome else {
        return Err(wrong_outcome("started"));
    };
    Ok(*record)
}

pub(crate) async fn cancel_as(
    shared: &Arc<Shared>,
    process_id: &str,
    scopes: &[SessionScope],
    controller: &ScopedEffectController<'_>,
) -> Result<ProcessCancelSummary> {
    let outcome = controller
        .run(
            || EffectKey::Cancel {
                process_id: process_id.to_owned(),
            },
            || Ok(serde_json::json!({ "process_id": process_id })),
            async {
                let summary = cancel_under(shared, process_id, scopes).await?;
                Ok(EffectOutcome::Cancelled(Box::new(summary)))
            },
        )
        .await?;
    let EffectOutcome::Cancelled(summary) = outcome else {
        return Err(wrong_outcome("cancelled"));
    };
    Ok(*summary)
}

pub(crate) async fn signal_as(
    shared: &Arc<Shared>,
    process_id: &str,
    signal: Signal,
    scopes: &[SessionScope],
    controller: &ScopedEffectController<'_>,
) -> Result<ProcessEvent> {
    let Signal { name, id, request } = signal;
    let said = (process_id.to_owned(), name.clone(), id.clone());
    let event = prepare_signal(process_id, &name, &id, request)?;
    let content = event.content();
    let outcome = controller
        .run(
            || EffectKey::Signal {
                process_id: said.0,
                signal_name: said.1,
                signal_id: said.2,
            },
            || Ok(content),
            async {
                let event = append_under(shared, process_id, event, scopes).await?;
                Ok(EffectOutcome::Signalled(Box::new(event)))
            },
        )
        .await?;
    let EffectOutcome::Signalled(event) = outcome else {
        return Err(wrong_outcome("signalled"));
    };
    Ok(*event)
}

pub(crate) async fn cancel_all_of(
    shared: &Arc<Shared>,
    scope: ListScope,
    controller: &ScopedEffectController<'_>,
) -> Result<Vec<ProcessCancelSummary>> {
    let outcome = controller
        .run(
            || EffectKey::CancelAll,
            || Ok(serde_json::json!({ "scope": null })),
            async {
                let running = shared.list(scope, &ProcessListFilter::default()).await?;
                let summaries = cancel_each(shared, running, &[]).await;
                Ok(EffectOutcome::AllCancelled(summaries))
            },
        )
        .await?;
    let EffectOutcome::AllCancelled(summaries) = outcome else {
        return Err(wrong_outcome("all_cancelled"));
    };
    Ok(summaries)
}

/// The same for what a session holds.
pub(crate) async fn cancel_all_granted(
    shared: &Arc<Shared>,
    scopes: &[SessionScope],
    own: &SessionScope,
    controller: &ScopedEffectController<'_>,
) -> Result<Vec<ProcessCancelSummary>> {
    let outcome = controller
        .run(
            || EffectKey::CancelAll,
            || Ok(serde_json::json!({ "scope": own.id() })),
            async {
                let running = shared
                    .list_granted(scopes.to_vec(), &ProcessListFilter::default())
                    .await?;
                let summaries = cancel_each(shared, running, scopes).await;
                Ok(EffectOutcome::AllCancelled(summaries))
            },
        )
        .await?;
    let EffectOutcome::AllCancelled(summaries) = outcome else {
        return Err(wrong_outcome("all_cancelled"));
    };
    Ok(summaries)
}

/// Asks each of these to stop; for a session, under whichever of its scopes holds it.
async fn cancel_each(
    shared: &Arc<Shared>,
    running: Vec<ObservedProcess>,
    scopes: &[SessionScope],
) -> Vec<ProcessCancelSummary> {
    let order: Vec<String> = running
        .into_iter()
        .map(|process| process.process_id)
        .collect();
    let mut summaries = HashMap::new();
    let mut cancels = JoinSet::new();
    let mut waiting = order.iter();
    loop {
        while cancels.len() < CANCELS_AT_ONCE
            && let Some(id) = waiting.next()
        {
            let (shared, id) = (Arc::clone(shared), id.clone());
            let scopes = scopes.to_vec();
            cancels.spawn(async move {
                let summary = cancel_under(&shared, &id, &scopes).await;
                (id, summary)
            });
        }
        match cancels.join_next().await {
            Some(Ok((id, Ok(summary)))) => {
                summaries.insert(id, summary.status);
            }
            Some(Ok((id, Err(error)))) => {
                tracing::warn!(process = %id, %error, "not asked to cancel");
            }
            Some(Err(error)) => tracing::warn!(%error, "a cancel was lost"),
            None => break,
        }
    }
    order
        .into_iter()
        .map(|process_id| ProcessCancelSummary {
            status: summaries
                .remove(&process_id)
                .unwrap_or(ProcessStatus::Running),
            process_id,
        })
        .collect()
}

async fn cancel_under(
    shared: &Arc<Shared>,
    id: &str,
    scopes: &[SessionScope],
) -> Result<ProcessCancelSummary> {
    for (scope, is_last) in tries(scopes) {
        let by = scope.map(SessionScope::id);
        match shared.cancel(id, by, scope).await {
            Err(Error::UnknownProcess { .. }) if !is_last => {}
            cancelled => return cancelled,
        }
    }
    Err(Error::unknown(id))
}

async fn append_under(
    shared: &Arc<Shared>,
    id: &str,
    event: PreparedEvent,
    scopes: &[SessionScope],
) -> Result<ProcessEvent> {
    for (scope, is_last) in tries(scopes) {
        match shared.append(id, event.clone(), scope).await {
            Err(Error::UnknownProcess { .. }) if !is_last => {}
            appended => return appended,
        }
    }
    Err(Error::unknown(id))
}

/// What a write is tried under, and whether that is the last try: under each of a session's scopes
/// until one holds the process, or once on the host's own authority.
fn tries(scopes: &[SessionScope]) -> impl Iterator<Item = (Option<&SessionScope>, bool)> {
    let count = scopes.len().max(1);
    (0..count).map(move |n| (scopes.get(n), n + 1 == count))
}

pub(crate) async fn abandon_as(
    shared: &Arc<Shared>,
    process_id: &str,
    requested_by: String,
    reason: Option<String>,
    scopes: &[SessionScope],
) -> Result<ObservedProcess> {
    let command = HostCommand::Abandon {
        requested_by,
        reason,
    };
    for (scope, is_last) in tries(scopes) {
        match shared.command(process_id, command.clone(), scope).await {
            Err(Error::UnknownProcess { .. }) if !is_last => {}
            asked => {
                asked?;
                break;
            }
        }
    }
    shared
        .get(process_id)?
        .ok_or_else(|| Error::unknown(process_id))
}

pub(crate) async fn within<T>(
    timeout: Duration,
    what: impl FnOnce() -> String,
    wait: impl Future<Output = Result<T>>,
) -> Result<T> {
    match tokio::time::timeout(timeout, wait).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout {
            what: what(),
            waited_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        }),
    }
}
