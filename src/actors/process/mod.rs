//! The process actor: owns the lease and the event stream of one active process.
//!
//! It decides commands on its newest state and sends the resulting write set to the committer
//! without waiting, so that many commands share one sync; what it has sent but not got back is in
//! flight. Nothing leaves the actor before it is durable: replies, also refusals and replays that
//! rest on what is in flight, wait for it. If a set is refused, everything decided on it is refused
//! with it, and those commands are decided anew on what is durable.

mod batch;
mod begin;
mod ending;
mod execution;
mod flight;
mod landing;
mod messages;
mod outcome;
mod port;
mod sending;
mod state;
mod waiting;
mod waits;

pub(crate) use execution::Brake;
pub(crate) use messages::{
    Answer, CommandCall, CommandReply, HostCommand, ProcessMsg, ShutdownOutcome,
};
pub(crate) use state::Activation;

pub(crate) use crate::store::panics::panic_text;

use std::panic::AssertUnwindSafe;

use ractor::{Actor, ActorProcessingErr, ActorRef};

use state::Process;

/// The handler of process actors; their state is [`Process`].
pub(crate) struct ProcessActor;

impl Actor for ProcessActor {
    type Msg = ProcessMsg;
    // In boxes, because futures hold and move them: an actor is a task that is as large as the largest.
    type State = Box<Process>;
    type Arguments = Box<Activation>;

    async fn pre_start(
        &self,
        myself: ActorRef<ProcessMsg>,
        activation: Box<Activation>,
    ) -> Result<Box<Process>, ActorProcessingErr> {
        Ok(Box::new(Process::new(myself, *activation)))
    }

    async fn handle(
        &self,
        myself: ActorRef<ProcessMsg>,
        message: ProcessMsg,
        process: &mut Box<Process>,
    ) -> Result<(), ActorProcessingErr> {
        // A panic takes this actor down, not the runtime: the supervisor hears of it, and the
        // process is recovered as its disposition says. Dropping the state aborts the execution.
        let handled = std::panic::catch_unwind(AssertUnwindSafe(|| process.handle(message)));
        match handled {
            Ok(true) => Ok(()),
            Ok(false) => {
                // It has taken itself off the map already.
                myself.stop(None);
                Ok(())
            }
            Err(panic) => Err(format!("process actor panicked: {}", panic_text(&*panic)).into()),
        }
    }
}
