//! What an engine's context talks to.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ractor::ActorRef;
use tokio::sync::{Semaphore, oneshot};

use super::messages::{Delivered, EmitRoom, ProcessMsg};
use crate::actors::runtime::{ChildOf, Shared};
use crate::engines::{CancelSignal, ExecutionPort};
use crate::model::decide::check_event;
use crate::model::limits::SIGNAL_EVENT_PREFIX;
use crate::model::record::Registration;
use crate::model::{
    Error, FencingToken, OwnerNumber, ProcessEvent, ProcessEventAppendRequest, ProcessRecord,
    ProcessStartRequest, Result,
};

/// One attempt's way to its actor.
pub(super) struct Port {
    pub(super) shared: Arc<Shared>,
    pub(super) actor: ActorRef<ProcessMsg>,
    pub(super) registration: Arc<Registration>,
    pub(super) token: FencingToken,
    pub(super) owner: OwnerNumber,
    pub(super) cancel: CancelSignal,
    /// Bounds what is accepted and not yet durable: `emit` waits here for room.
    pub(super) room: Arc<Semaphore>,
    /// Set when the attempt is over: nothing is accepted any more.
    pub(super) closed: Arc<AtomicBool>,
    pub(super) wait_ids: AtomicU64,
}

impl Port {
    fn superseded(&self) -> Error {
        Error::Superseded {
            process_id: self.registration.id.clone(),
            token: self.token.get(),
        }
    }

    fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(self.superseded());
        }
        Ok(())
    }

    fn cast(&self, message: ProcessMsg) -> Result<()> {
        self.actor.cast(message).map_err(|_| self.superseded())
    }

    async fn send_event(
        &self,
        request: ProcessEventAppendRequest,
        durable: Option<oneshot::Sender<Result<ProcessEvent>>>,
    ) -> Result<()> {
        if let Err(error) = self.check_open() {
            // It may be too deep to be dropped.
            request.dismantle();
            return Err(error);
        }
        let event = Box::new(check_event(&self.registration, request)?);
        let room = Arc::clone(&self.room)
            .acquire_owned()
            .await
            .map_err(|_| self.superseded())?;
        // How many there are does not bound what they hold: 256 of them may be 256 MiB.
        let bytes = self.shared.admit_bytes(event.canonical.len()).await?;
        self.check_open()?;
        self.cast(ProcessMsg::Emit {
            token: self.token,
            event,
            durable,
            room: EmitRoom {
                _event: room,
                _bytes: bytes,
            },
        })
    }
}

/// Tells the actor when a wait is given up.
struct WaitGuard<'a> {
    port: &'a Port,
    wait_id: Option<u64>,
}

impl Drop for WaitGuard<'_> {
    fn drop(&mut self) {
        if let Some(wait_id) = self.wait_id {
            // The actor is gone only when the attempt is over.
            let _ = self.port.actor.cast(ProcessMsg::WaitDropped { wait_id });
        }
    }
}

#[async_trait::async_trait]
impl ExecutionPort for Port {
    async fn emit(&self, request: ProcessEventAppendRequest) -> Result<()> {
        self.send_event(request, None).await
    }

    async fn emit_durable(&self, request: ProcessEventAppendRequest) -> Result<ProcessEvent> {
        let (answer, wait) = oneshot::channel();
        self.send_event(request, Some(answer)).await?;
        // An actor that died may have had it in flight.
        wait.await.unwrap_or_else(|_| {
            Err(Error::CommitUnknown {
                process_id: self.registration.id.clone(),
                cause: "its actor stopped".to_owned(),
            })
        })
    }

    async fn wait_signal(
        &self,
        signal_name: &str,
        timeout: Option<Duration>,
    ) -> Result<Option<ProcessEvent>> {
        self.check_open()?;
        crate::model::ids::check_signal_name("signal_name", signal_name)?;
        let event_type = format!("{SIGNAL_EVENT_PREFIX}{signal_name}");
        if self.registration.event_type(&event_type).is_none() {
            return Err(Error::UndeclaredEvent {
                process_id: self.registration.id.clone(),
                event_type,
                reason: "was not declared at start".to_owned(),
            });
        }
        let wait_id = self.wait_ids.fetch_add(1, Ordering::Relaxed);
        let (reply, answer) = oneshot::channel();
        self.cast(ProcessMsg::WaitBegin {
            token: self.token,
            wait_id,
            signal_name: signal_name.to_owned(),
            timeout,
            reply,
        })?;
        let mut guard = WaitGuard {
            port: self,
            wait_id: Some(wait_id),
        };
        let answer = answer.await.unwrap_or_else(|_| Err(self.superseded()));
        guard.wait_id = None;
        answer.map(Delivered::take)
    }

    async fn start_child(
        &self,
        key: &str,
        detached: bool,
        request: ProcessStartRequest,
    ) -> Result<ProcessRecord> {
        if let Err(error) = self.check_open() {
            request.dismantle();
            return Err(error);
        }
        self.shared
            .start_child(
                ChildOf {
                    parent: Arc::clone(&self.registration),
                    token: self.token,
                    owner: self.owner,
                    key: key.to_owned(),
                    detached,
                },
                request,
            )
            .await
    }

    async fn heartbeat(&self) -> Result<()> {
        // An engine that heartbeats in a loop gives others a turn.
        tokio::task::yield_now().await;
        self.check_open()?;
        match self.cancel.reason() {
            Some(crate::engines::CancelReason::LeaseLost) => Err(self.superseded()),
            Some(_) | None => Ok(()),
        }
    }
}
