//! How this program ends: its exit codes, and what it says on stderr.

use std::io::{self, Write};

use procession::{Error, FailureClass, ProcessAwaitOutput};
use serde_json::Value;

use crate::signals::{SIGPIPE, Signal};

pub(crate) const DONE: u8 = 0;
pub(crate) const DAMAGED: u8 = 1;
const UNKNOWN: u8 = 4;
const TIMED_OUT: u8 = 124;
const NOT_STARTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const INTERRUPTED: u8 = 130;

// From here on the names and numbers of sysexits(3).
const USAGE: u8 = 64;
const DATA: u8 = 65;
const SOFTWARE: u8 = 70;
/// `EX_OSERR` there; what happened to the command is as little known.
const ABANDONED: u8 = 71;
const IO: u8 = 74;
const TRY_AGAIN: u8 = 75;

/// Number of "no such file or directory", errno(3).
const ENOENT: i64 = 2;

/// Why a command of this program was not carried out.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library refused, or failed.
    Library(Error),
    /// Standard output or standard error cannot be written.
    Output(io::Error),
    /// The operating system refused something else.
    System(io::Error),
    /// It was told to stop.
    Signalled(Signal),
    /// The arguments make no sense on this machine.
    Usage(String),
    /// What was to be shown has no JSON form.
    Json(serde_json::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::Json(error)
    }
}

impl Failure {
    /// Whether whoever read the output went away.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        matches!(self, Self::Output(error) if error.kind() == io::ErrorKind::BrokenPipe)
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Library(error) => code_of(error),
            Self::Output(_) if self.is_broken_pipe() => SIGPIPE.exit_code(),
            Self::Output(_) => IO,
            Self::Usage(_) => USAGE,
            Self::Signalled(signal) => signal.exit_code(),
            Self::System(_) | Self::Json(_) => SOFTWARE,
        }
    }

    /// What is to be said about it; nothing to a reader that has gone, as anywhere in a pipe.
    pub(crate) fn message(&self) -> Option<String> {
        if self.is_broken_pipe() {
            return None;
        }
        Some(match self {
            // Whoever sent it knows.
            Self::Signalled(_) => return None,
            Self::Library(error) => match advice(error) {
                Some(advice) => format!("{error}\n{advice}"),
                None => error.to_string(),
            },
            Self::Output(error) => format!("the output cannot be written: {error}"),
            Self::System(error) => error.to_string(),
            Self::Usage(message) => message.clone(),
            Self::Json(error) => format!("cannot be shown as JSON: {error}"),
        })
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no code of its own has the one for the rest"
)]
fn code_of(error: &Error) -> u8 {
    match error {
        Error::UnknownProcess { .. } | Error::NoLongerRetained { .. } => UNKNOWN,
        Error::InvalidInput { .. } | Error::InvalidPayload { .. } => USAGE,
        Error::Conflict { .. } | Error::AlreadyTerminal { .. } => DATA,
        Error::StoreBusy { .. } => TRY_AGAIN,
        Error::StoreFailed { .. }
        | Error::Corrupted { .. }
        | Error::StoreTooNew { .. }
        | Error::StoreTooOld { .. } => IO,
        _ => SOFTWARE,
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most errors say what to do themselves"
)]
fn advice(error: &Error) -> Option<&'static str> {
    match error {
        Error::StoreBusy { .. } => Some(
            "One program at a time can have it open, and one has: a `run` or `recover` that has \
             not ended, or a host.\nWait until it has ended and try again, or use another store: \
             --store DIR, or PROCESSION_STORE.",
        ),
        Error::UnknownProcess { .. } => {
            Some("`list --all` shows the processes of this store; --store DIR names another one.")
        }
        Error::Conflict { .. } => Some(
            "The same id with the same command, directory and options would show what was \
             recorded; another command needs another id.",
        ),
        Error::Corrupted { .. } => {
            Some("`verify` lists what is wrong, if the store can be opened.")
        }
        _ => None,
    }
}

/// The exit code that stands for an outcome, now and whenever it is asked for again.
pub(crate) fn code_of_output(output: &ProcessAwaitOutput) -> u8 {
    match output {
        ProcessAwaitOutput::Success { value } => number(Some(value), "exit_code").unwrap_or(DONE),
        ProcessAwaitOutput::Failure {
            class: FailureClass::Timeout,
            ..
        } => TIMED_OUT,
        ProcessAwaitOutput::Failure { code, raw, .. } => {
            let raw = raw.as_ref();
            match code.as_str() {
                "exit_status" => number(raw, "exit_code").unwrap_or(SOFTWARE),
                "killed_by_signal" => {
                    number(raw, "signal").map_or(SOFTWARE, |signal| signal.saturating_add(128))
                }
                "spawn_failed" if raw.is_some_and(|raw| raw["errno"] == ENOENT) => NOT_FOUND,
                "spawn_failed" => NOT_STARTABLE,
                _ => SOFTWARE,
            }
        }
        ProcessAwaitOutput::Cancelled { .. } => INTERRUPTED,
        ProcessAwaitOutput::Abandoned { .. } => ABANDONED,
    }
}

fn number(value: Option<&Value>, field: &str) -> Option<u8> {
    u8::try_from(value?.get(field)?.as_u64()?).ok()
}

/// What there is to say about an outcome that is not the command's own.
pub(crate) fn remark(output: &ProcessAwaitOutput) -> Option<String> {
    match output {
        ProcessAwaitOutput::Success { .. } => None,
        ProcessAwaitOutput::Failure { code, .. } if code == "exit_status" => None,
        ProcessAwaitOutput::Failure { message, .. } => Some(message.clone()),
        ProcessAwaitOutput::Cancelled { message, .. } => Some(format!("cancelled: {message}")),
        ProcessAwaitOutput::Abandoned { .. } => {
            Some("abandoned: its owner is gone, nobody knows how it ended".to_owned())
        }
    }
}

/// Says something on stderr, for people.
pub(crate) fn say(message: &str) {
    // Where nobody listens there is nobody to tell.
    let _ = writeln!(io::stderr(), "supervisor: {message}");
}
