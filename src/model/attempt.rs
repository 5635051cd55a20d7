//! What an attempt writes of its waits, and of its being tried again.

use super::decide::{Decision, LeaseChange, commit, illegal};
use super::error::{Error, Result, clip};
use super::event::{RuntimeEvent, WaitResult};
use super::ids::check_signal_name;
use super::limits::{MESSAGE_BYTES_MAX, NAME_BYTES_MAX, OPEN_WAITS_MAX, SIGNAL_EVENT_PREFIX};
use super::output::ProcessError;
use super::record::{ProcessState, Registration};
use super::request::RecoveryDisposition;

pub(super) fn begin_wait(
    registration: &Registration,
    state: &ProcessState,
    signal_name: String,
    number: u64,
    deadline_ms: Option<u64>,
) -> Result<Decision> {
    check_wait(registration, &signal_name, number)?;
    if state.open_wait(&signal_name, number).is_some() {
        return Err(Error::invalid(
            "number",
            format!("is {number}, and that wait for {signal_name} is open already"),
            "each wait once",
        )
        .for_process(&registration.id));
    }
    if state.waits.len() >= OPEN_WAITS_MAX {
        return Err(Error::Overloaded {
            what: format!("open waits of process {}", registration.id),
            limit: OPEN_WAITS_MAX as u64,
        });
    }
    commit(
        RuntimeEvent::Waiting {
            signal_name,
            number,
            deadline_ms,
        },
        LeaseChange::Keep,
    )
}

pub(super) fn end_wait(
    registration: &Registration,
    state: &ProcessState,
    signal_name: String,
    number: u64,
    result: WaitResult,
) -> Result<Decision> {
    check_wait(registration, &signal_name, number)?;
    let refused = |reason: String, limit: &str| {
        Error::invalid("result", reason, limit).for_process(&registration.id)
    };
    match result {
        WaitResult::Signal { sequence } if sequence == 0 || sequence > state.last_sequence => {
            return Err(refused(
                format!("is event {sequence}, which the log does not have"),
                "an event of the log",
            ));
        }
        WaitResult::Dropped if state.open_wait(&signal_name, number).is_none() => {
            return Err(refused(
                format!("drops wait {number} for {signal_name}, which is not open"),
                "an open wait",
            ));
        }
        WaitResult::Signal { .. } | WaitResult::TimedOut | WaitResult::Dropped => {}
    }
    commit(
        RuntimeEvent::Resumed {
            signal_name,
            number,
            result,
        },
        LeaseChange::Keep,
    )
}

/// Waits are for declared signals and are counted from 1.
fn check_wait(registration: &Registration, signal_name: &str, number: u64) -> Result<()> {
    let of_process = |error: Error| error.for_process(&registration.id);
    check_signal_name("signal_name", signal_name).map_err(of_process)?;
    let event_type = format!("{SIGNAL_EVENT_PREFIX}{signal_name}");
    if registration.event_type(&event_type).is_none() {
        return Err(Error::UndeclaredEvent {
            process_id: registration.id.clone(),
            event_type,
            reason: "was not declared at start".to_owned(),
        });
    }
    if number == 0 {
        return Err(of_process(Error::invalid("number", "is 0", "from 1")));
    }
    Ok(())
}

pub(super) fn schedule_retry(
    registration: &Registration,
    state: &ProcessState,
    retry_at_ms: u64,
    error: &ProcessError,
) -> Result<Decision> {
    if registration.disposition != RecoveryDisposition::Rerunnable {
        return Err(illegal(registration, "only rerunnable work is tried again"));
    }
    let attempts = registration.retry.attempts;
    if state.retries.saturating_add(1) >= attempts {
        return Err(Error::invalid(
            "retry.attempts",
            format!("are used up: {} retries were made", state.retries),
            format!("{attempts} attempts"),
        )
        .for_process(&registration.id));
    }
    commit(
        RuntimeEvent::RetryScheduled {
            retry_at_ms,
            // The engine's own words, cut as those of an outcome are.
            error: ProcessError {
                class: error.class,
                code: clip(&error.code, NAME_BYTES_MAX).to_owned(),
                message: clip(&error.message, MESSAGE_BYTES_MAX).to_owned(),
            },
        },
        LeaseChange::Release,
    )
}
