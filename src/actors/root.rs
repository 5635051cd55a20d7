//! The root supervisor: its children may fail, it does not.

use std::sync::Arc;

use ractor::{Actor, ActorProcessingErr, ActorRef, SupervisionEvent};
use tracing::{debug, error};

use super::runtime::Shared;

/// Supervises every other actor of a runtime.
pub(crate) struct Root;

impl Actor for Root {
    type Msg = ();
    type State = Arc<Shared>;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<()>,
        shared: Arc<Shared>,
    ) -> Result<Arc<Shared>, ActorProcessingErr> {
        Ok(shared)
    }

    /// The default would stop this actor, and with it everything, whenever a child exits.
    async fn handle_supervisor_evt(
        &self,
        _myself: ActorRef<()>,
        event: SupervisionEvent,
        shared: &mut Arc<Shared>,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, reason) => {
                if shared.is_long_lived(&cell) {
                    // Without one of the long-lived actors leases are not watched, or nothing is
                    // dispatched or recovered: better nothing than half of it.
                    error!(actor = %cell.get_id(), %reason,
                        "runtime stops: a part of it failed; shut it down and open it again");
                    shared.fail_stop();
                } else {
                    // Whatever it had in flight may have been committed: listeners look.
                    match shared.forget_failed(&cell) {
                        Some((id, incarnation)) => {
                            error!(process = %id, %reason,
                                "process actor failed: its process is recovered");
                            shared.hub.nudge(incarnation);
                        }
                        None => {
                            error!(actor = %cell.get_id(), %reason,
                                "process actor failed that had left: its process is recovered");
                            shared.hub.nudge_all();
                        }
                    }
                    shared.sweep_soon();
                }
            }
            SupervisionEvent::ActorTerminated(cell, _, reason) => {
                debug!(actor = %cell.get_id(), ?reason, "actor stopped");
            }
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }
}
