//! `run`: a command as a process, from its start to its exit code.

use std::time::Duration;

use procession::{
    ExecutionScope, ProcessIdentity, ProcessInput, ProcessOriginator, ProcessStartGrant,
    ProcessStartRequest, Processes, ScopedEffectController, SessionScope, ShutdownOptions,
    Supervisor, limits,
};
use serde_json::json;
use tokio::time::timeout;

use crate::args::Run;
use crate::exit::{Failure, code_of_output, remark, say};
use crate::follow::follow;
use crate::signals::{SIGINT, SIGTERM, Signals};
use crate::store::{Store, close};

/// How long output that is already recorded may take to be shown after a shutdown.
const LAST_OUTPUT: Duration = Duration::from_secs(1);

pub(crate) async fn run(store: &Store, args: Run, json: bool) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    let grace = args.grace;
    let request = request(args)?;
    let supervisor = tokio::select! {
        opened = store.open(grace) => opened?,
        signal = signals.first() => return Ok(signal.exit_code()),
    };
    let code = see_through(&supervisor, request, grace, &mut signals, json).await;
    close(supervisor, grace).await;
    code
}

/// What is to be started. An id that nobody chose is said, so that it can be asked about.
fn request(args: Run) -> Result<ProcessStartRequest, Failure> {
    let id = args.id.unwrap_or_else(|| {
        let id = uuid::Uuid::new_v4().to_string();
        say(&format!("process {id}"));
        id
    });
    let cwd = std::env::current_dir().map_err(Failure::System)?;
    let cwd = cwd.to_str().ok_or_else(|| {
        Failure::Usage("the path of the current directory is not UTF-8".to_owned())
    })?;
    let label = label(&args.command);
    let mut command = args.command.into_iter();
    let payload = json!({
        "program": command.next(),
        "args": command.collect::<Vec<_>>(),
        "cwd": cwd,
        "max_output_bytes": args.max_output_bytes,
    });
    let (originator, grant) = match args.session.map(SessionScope::new) {
        Some(session) => (
            ProcessOriginator::session(session.clone()),
            Some(ProcessStartGrant::new(session, label.clone())),
        ),
        None => (ProcessOriginator::host_scope("supervisor"), None),
    };
    let identity = ProcessIdentity {
        label: Some(label),
        ..ProcessIdentity::default()
    };
    Ok(ProcessStartRequest::new(
        id,
        ProcessInput::command(payload),
        args.disposition.into(),
        originator,
    )
    .with_grant(grant)
    .with_identity(identity)
    .with_timeout(args.timeout))
}

/// The command on one line, for people.
fn label(command: &[String]) -> String {
    let mut label = String::new();
    for word in command {
        let quoted = word.is_empty() || word.contains(char::is_whitespace);
        let separator = if label.is_empty() { "" } else { " " };
        let quote = if quoted { "'" } else { "" };
        let shown = word.replace(char::is_control, " ");
        label += &format!("{separator}{quote}{shown}{quote}");
    }
    let end = (0..=limits::TEXT_BYTES_MAX)
        .rev()
        .find(|end| label.is_char_boundary(*end));
    label.truncate(end.unwrap_or(0));
    label
}

fn effects() -> ScopedEffectController<'static> {
    ScopedEffectController::inline(ExecutionScope::operation("supervisor run"))
}

async fn see_through(
    supervisor: &Supervisor,
    request: ProcessStartRequest,
    grace: Duration,
    signals: &mut Signals,
    json: bool,
) -> Result<u8, Failure> {
    let processes = supervisor.processes();
    let record = processes.start(request, effects()).await?;
    let id = record.id;
    if record.last_sequence > 0 {
        say(&format!(
            "process {id} was started before: showing what is recorded"
        ));
    }
    let following = follow(processes.subscribe(&id, 0).await?, json);
    tokio::pin!(following);
    let signal = tokio::select! {
        followed = &mut following => return ended(&processes, &id, followed).await,
        signal = signals.first() => signal,
    };
    if signal == SIGTERM {
        let grace_text = humantime::format_duration(grace);
        say(&format!(
            "shutting down within {grace_text}; a second signal leaves at once"
        ));
        let drained = supervisor.shutdown(ShutdownOptions::grace(grace));
        let report = shut_down(drained, async { drop(following.await) }).await?;
        if report.released.contains(&id) {
            say(&format!(
                "process {id} was stopped; the next run or recover runs it again"
            ));
        } else if report.abandoned.contains(&id) {
            say(&format!("process {id} was stopped and is abandoned"));
        }
    } else {
        debug_assert_eq!(signal, SIGINT);
        say("cancelling; a second signal leaves at once");
        processes.cancel(&id, effects()).await?;
        ended(&processes, &id, following.await).await?;
    }
    Ok(signal.exit_code())
}

/// Shows what is still to be shown while the runtime shuts down. A reader that has stalled does not
/// keep it from that.
async fn shut_down<T>(
    drained: impl Future<Output = procession::Result<T>>,
    shown: impl Future<Output = ()>,
) -> Result<T, Failure> {
    tokio::pin!(shown);
    let mut showing = true;
    tokio::pin!(drained);
    let report = loop {
        tokio::select! {
            report = &mut drained => break report?,
            () = &mut shown, if showing => showing = false,
        }
    };
    if showing {
        let _ = timeout(LAST_OUTPUT, shown).await;
    }
    Ok(report)
}

/// The exit code of a process whose log has ended, or cannot be shown any further.
async fn ended(
    processes: &Processes,
    id: &str,
    followed: Result<(), Failure>,
) -> Result<u8, Failure> {
    if let Err(failure) = followed {
        if let Failure::Output(_) = failure {
            // As in any pipe: what nobody reads any more comes to its end.
            processes.cancel(id, effects()).await?;
            processes.await_output(id).await?;
        }
        return Err(failure);
    }
    let output = processes.await_output(id).await?;
    if let Some(remark) = remark(&output) {
        say(&format!("process {id}: {remark}"));
    }
    Ok(code_of_output(&output))
}
