//! What has become of a process, and the front that the committer reads and rewrites.

use std::sync::Arc;

use bincode::{Decode, Encode};

use super::*;
use crate::model::json;
use crate::model::lease::OwnerRecord;
use crate::model::record::ProcessState;
use crate::model::{
    AbandonRequest, CancelRequest, FailureClass, FirstStart, OwnerLoss, ProcessAwaitOutput,
    ProcessError, ProcessOwner, ProcessStatus, RetryPause, SignalWait, StoreEpoch, TerminalState,
};
use crate::store::codec::Stored;
use crate::store::error::StoreError;

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredOwnerName {
    pub(crate) owner_id: String,
    pub(crate) incarnation_id: String,
    pub(crate) store_epoch: u64,
}

impl From<ProcessOwner> for StoredOwnerName {
    fn from(owner: ProcessOwner) -> Self {
        Self {
            owner_id: owner.owner_id,
            incarnation_id: owner.incarnation_id,
            store_epoch: owner.store_epoch.get(),
        }
    }
}

impl From<StoredOwnerName> for ProcessOwner {
    fn from(owner: StoredOwnerName) -> Self {
        Self {
            owner_id: owner.owner_id,
            incarnation_id: owner.incarnation_id,
            store_epoch: StoreEpoch(owner.store_epoch),
        }
    }
}

/// An owner incarnation and its heartbeat.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredOwner {
    pub(crate) name: StoredOwnerName,
    pub(crate) expires_at_ms: u64,
    pub(crate) retired: bool,
}
stored!(StoredOwner, 0x0c, 1, "owner");

impl From<OwnerRecord> for StoredOwner {
    fn from(record: OwnerRecord) -> Self {
        Self {
            name: record.owner.into(),
            expires_at_ms: record.expires_at_ms,
            retired: record.retired,
        }
    }
}

impl From<StoredOwner> for OwnerRecord {
    fn from(stored: StoredOwner) -> Self {
        Self {
            owner: stored.name.into(),
            expires_at_ms: stored.expires_at_ms,
            retired: stored.retired,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub(crate) enum StoredTerminalState {
    Completed,
    Failed,
    Cancelled,
    Abandoned,
}

impl From<TerminalState> for StoredTerminalState {
    fn from(state: TerminalState) -> Self {
        match state {
            TerminalState::Completed => Self::Completed,
            TerminalState::Failed => Self::Failed,
            TerminalState::Cancelled => Self::Cancelled,
            TerminalState::Abandoned => Self::Abandoned,
        }
    }
}

impl From<StoredTerminalState> for TerminalState {
    fn from(state: StoredTerminalState) -> Self {
        match state {
            StoredTerminalState::Completed => Self::Completed,
            StoredTerminalState::Failed => Self::Failed,
            StoredTerminalState::Cancelled => Self::Cancelled,
            StoredTerminalState::Abandoned => Self::Abandoned,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredError {
    pub(crate) class: u8,
    pub(crate) code: String,
    pub(crate) message: String,
}

impl From<ProcessError> for StoredError {
    fn from(error: ProcessError) -> Self {
        Self {
            class: match error.class {
                FailureClass::Execution => 0,
                FailureClass::Timeout => 1,
                FailureClass::InvalidInput => 2,
                FailureClass::External => 3,
                FailureClass::Internal => 4,
            },
            code: error.code,
            message: error.message,
        }
    }
}

impl StoredError {
    pub(crate) fn into_model(self) -> Result<ProcessError, StoreError> {
        Ok(ProcessError {
            class: match self.class {
                0 => FailureClass::Execution,
                1 => FailureClass::Timeout,
                2 => FailureClass::InvalidInput,
                3 => FailureClass::External,
                4 => FailureClass::Internal,
                other => return Err(damaged(format!("failure class {other}"))),
            },
            code: self.code,
            message: self.message,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredWait {
    pub(crate) signal_name: String,
    pub(crate) number: u64,
    pub(crate) since_ms: u64,
    pub(crate) deadline_ms: Option<u64>,
}

/// The body of a state value: what events have said, but for the output, which stands in the
/// terminal event and nowhere else.
#[derive(Debug, Clone, PartialEq, Eq, Encode, Decode)]
pub(crate) struct StoredState {
    pub(crate) updated_at_ms: u64,
    pub(crate) attempt: u32,
    pub(crate) retries: u32,
    pub(crate) recoveries: u32,
    pub(crate) first_started: Option<(u64, StoredOwnerName)>,
    pub(crate) cancel_request: Option<(u64, Option<String>)>,
    pub(crate) abandon_request: Option<(u64, String, Option<String>)>,
    pub(crate) waits: Vec<StoredWait>,
    pub(crate) retry_pause: Option<(u64, StoredError)>,
    pub(crate) owner_lost: Option<(u64, Option<StoredOwnerName>)>,
    pub(crate) external_ref: Option<Vec<u8>>,
    pub(crate) terminal: Option<(StoredTerminalState, Option<StoredError>)>,
}
stored!(StoredState, 0x04, 1, "process state");

impl From<&ProcessState> for StoredState {
    fn from(state: &ProcessState) -> Self {
        let state = state.clone();
        let terminal = state.status.output().map(|output| {
            (
                StoredTerminalState::from(output.state()),
                output.error().map(StoredError::from),
            )
        });
        Self {
            updated_at_ms: state.updated_at_ms,
            attempt: state.attempt,
            retries: state.retries,
            recoveries: state.recoveries,
            first_started: state
                .first_started
                .map(Arc::unwrap_or_clone)
                .map(|first| (first.at_ms, first.owner.into())),
            cancel_request: state
                .cancel_request
                .map(Arc::unwrap_or_clone)
                .map(|request| (request.requested_at_ms, request.requested_by)),
            abandon_request: state
                .abandon_request
                .map(Arc::unwrap_or_clone)
                .map(|request| {
                    (
                        request.requested_at_ms,
                        request.requested_by,
                        request.reason,
                    )
                }),
            waits: state
                .waits
                .into_iter()
                .map(|wait| StoredWait {
                    signal_name: wait.signal_name,
                    number: wait.number,
                    since_ms: wait.since_ms,
                    deadline_ms: wait.deadline_ms,
                })
                .collect(),
            retry_pause: state
                .retry_pause
                .map(Arc::unwrap_or_clone)
                .map(|pause| (pause.retry_at_ms, pause.error.into())),
            owner_lost: state
                .owner_lost
                .map(Arc::unwrap_or_clone)
                .map(|loss| (loss.at_ms, loss.owner.map(StoredOwnerName::from))),
            external_ref: state.external_ref.as_ref().map(json::canonical_bytes),
            terminal,
        }
    }
}

/// What a state value says of a process: its state without the output.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct StateFacts {
    /// The state; its status is `Running` even where the process has ended.
    pub(crate) state: ProcessState,
    /// How it ended.
    pub(crate) terminal: Option<(TerminalState, Option<ProcessError>)>,
}

impl StateFacts {
    /// The whole state, with the output that its terminal event says.
    pub(crate) fn with_output(mut self, output: Option<ProcessAwaitOutput>) -> ProcessState {
        if let Some(output) = output {
            self.state.status = Arc::new(ProcessStatus::Terminal { output });
        }
        self.state
    }
}

impl StoredState {
    pub(crate) fn facts(self, last_sequence: u64) -> Result<StateFacts, StoreError> {
        let state = ProcessState {
            updated_at_ms: self.updated_at_ms,
            last_sequence,
            attempt: self.attempt,
            retries: self.retries,
            recoveries: self.recoveries,
            first_started: self.first_started.map(|(at_ms, owner)| {
                Arc::new(FirstStart {
                    at_ms,
                    owner: owner.into(),
                })
            }),
            cancel_request: self.cancel_request.map(|(requested_at_ms, requested_by)| {
                Arc::new(CancelRequest {
                    requested_by,
                    requested_at_ms,
                })
            }),
            abandon_request: self
                .abandon_request
                .map(|(requested_at_ms, requested_by, reason)| {
                    Arc::new(AbandonRequest {
                        requested_by,
                        reason,
                        requested_at_ms,
                    })
                }),
            waits: self
                .waits
                .into_iter()
                .map(|wait| SignalWait {
                    signal_name: wait.signal_name,
                    number: wait.number,
                    since_ms: wait.since_ms,
                    deadline_ms: wait.deadline_ms,
                })
                .collect(),
            retry_pause: match self.retry_pause {
                Some((retry_at_ms, error)) => Some(Arc::new(RetryPause {
                    retry_at_ms,
                    error: error.into_model()?,
                })),
                None => None,
            },
            owner_lost: self.owner_lost.map(|(at_ms, owner)| {
                Arc::new(OwnerLoss {
                    at_ms,
                    owner: owner.map(ProcessOwner::from),
                })
            }),
            external_ref: match self.external_ref {
                Some(bytes) => Some(parse("external reference", &bytes)?),
                None => None,
            },
            status: Arc::new(ProcessStatus::Running),
        };
        let terminal = match self.terminal {
            Some((state, error)) => Some((
                state.into(),
                error.map(StoredError::into_model).transpose()?,
            )),
            None => None,
        };
        Ok(StateFacts { state, terminal })
    }
}

/// The front of a state value, in a layout of its own: the committer reads and rewrites it without
/// touching the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StateFront {
    /// Position of the last change in the feed.
    pub(crate) feed_position: u64,
    /// Sequence of the last event.
    pub(crate) last_sequence: u64,
    /// When it ended, plus one; zero while it runs.
    pub(crate) terminal_at_plus_one: u64,
    /// Whether cancellation was asked for: a parent that was asked to stop starts no child.
    pub(crate) cancel_requested: bool,
    /// The highest token its lease ever had; zero for none.
    pub(crate) token: u64,
    /// Who holds the lease under that token; zero for nobody.
    pub(crate) owner: u64,
    /// Bytes of events so far, as they were encoded.
    pub(crate) log_bytes: u64,
}

impl StateFront {
    /// Bytes of the layout.
    pub(crate) const LEN: usize = 7 * 8;

    pub(crate) fn terminal_at_ms(self) -> Option<u64> {
        self.terminal_at_plus_one.checked_sub(1)
    }

    pub(crate) fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        let numbers = [
            self.feed_position,
            self.last_sequence,
            self.terminal_at_plus_one,
            u64::from(self.cancel_requested),
            self.token,
            self.owner,
            self.log_bytes,
        ];
        for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// Cuts an opened state value into its front and its body.
    pub(crate) fn split(opened: &[u8]) -> Result<(Self, &[u8]), StoreError> {
        let (front, body) = opened
            .split_at_checked(Self::LEN)
            .ok_or_else(|| damaged("process state: shorter than its front"))?;
        let mut numbers = front.chunks_exact(8).map(|bytes| {
            bytes
                .iter()
                .fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte))
        });
        let mut next = || numbers.next().unwrap_or(0);
        Ok((
            Self {
                feed_position: next(),
                last_sequence: next(),
                terminal_at_plus_one: next(),
                cancel_requested: next() != 0,
                token: next(),
                owner: next(),
                log_bytes: next(),
            },
            body,
        ))
    }
}
