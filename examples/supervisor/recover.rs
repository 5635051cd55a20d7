//! `recover`: carrying on with what an earlier owner of the store left behind.

use std::collections::HashMap;
use std::time::Duration;

use procession::{
    ObservedProcess, ProcessListFilter, Processes, QueuedReason, RecoveryDisposition, RecoveryStep,
    ShutdownOptions, ShutdownReport, Supervisor,
};
use serde::Serialize;

use crate::args::Recover;
use crate::exit::{DONE, Failure, say};
use crate::show::{Pages, detail, print, print_json, status, table, word};
use crate::signals::Signals;
use crate::store::{Store, close};

/// What is printed.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Every process that had not ended before, in the order of their creation.
    processes: Vec<Recovered>,
    /// What became of the running ones, where a signal came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    shutdown: Option<ShutdownReport>,
}

/// What became of one process.
#[derive(Debug, Serialize)]
struct Recovered {
    process_id: String,
    /// What was done with it first; absent where there was nothing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    step: Option<RecoveryStep>,
    /// How it stands at the end; absent where a signal came first.
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<ObservedProcess>,
}

pub(crate) async fn recover(store: &Store, args: &Recover, json: bool) -> Result<u8, Failure> {
    let mut signals = Signals::listen()?;
    // What there is to recover is looked at before anything of it is: the first sweep comes with
    // the open, and what that ends at once would be missing from a list made later.
    let begun = async {
        let before = not_ended(store).await?;
        Ok::<_, Failure>((before, store.open(args.grace).await?))
    };
    let (before, supervisor) = tokio::select! {
        begun = begun => begun?,
        signal = signals.first() => return Ok(signal.exit_code()),
    };
    let done = carry_on(&supervisor, before, args.grace, &mut signals).await;
    close(supervisor, args.grace).await;
    let (report, code) = done?;
    if json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(code)
}

async fn not_ended(store: &Store) -> Result<Vec<String>, Failure> {
    let supervisor = store.look().await?;
    let processes = supervisor.processes();
    let mut pages = Pages::of(ProcessListFilter::default());
    let mut ids = Vec::new();
    let listed = loop {
        match pages.next(&processes).await {
            Ok(Some(page)) => ids.extend(page.into_iter().map(|process| process.process_id)),
            Ok(None) => break Ok(ids),
            Err(error) => break Err(error),
        }
    };
    close(supervisor, Duration::ZERO).await;
    listed
}

async fn shut_down(supervisor: &Supervisor, grace: Duration) -> Result<ShutdownReport, Failure> {
    say("shutting down; a second signal leaves at once");
    Ok(supervisor.shutdown(ShutdownOptions::grace(grace)).await?)
}

async fn carry_on(
    supervisor: &Supervisor,
    before: Vec<String>,
    grace: Duration,
    signals: &mut Signals,
) -> Result<(Report, u8), Failure> {
    let done = tokio::select! {
        done = supervisor.recover() => done?,
        signal = signals.first() => {
            let report = Report {
                shutdown: Some(shut_down(supervisor, grace).await?),
                ..Report::default()
            };
            return Ok((report, signal.exit_code()));
        }
    };
    let mut steps: HashMap<String, RecoveryStep> = done.processes.into_iter().collect();
    let mut report = Report::default();
    for process_id in before {
        report.processes.push(Recovered {
            step: steps.remove(&process_id),
            process_id,
            process: None,
        });
    }
    if done.queued > 0 {
        say(&format!("waiting until {} have run", done.queued));
    }
    let processes = supervisor.processes();
    tokio::select! {
        waited = wait_for_all(&processes) => waited?,
        signal = signals.first() => {
            report.shutdown = Some(shut_down(supervisor, grace).await?);
            return Ok((report, signal.exit_code()));
        }
    }
    for recovered in &mut report.processes {
        recovered.process = processes.get(&recovered.process_id).await?;
    }
    Ok((report, DONE))
}

/// Waits until nothing is left running that this program can run.
async fn wait_for_all(processes: &Processes) -> Result<(), Failure> {
    loop {
        let mut waited = false;
        let mut pages = Pages::of(ProcessListFilter::default());
        while let Some(page) = pages.next(processes).await? {
            for process in page.iter().filter(|process| runs_here(process)) {
                processes.await_output(&process.process_id).await?;
                waited = true;
            }
        }
        if !waited {
            return Ok(());
        }
    }
}

fn runs_here(process: &ObservedProcess) -> bool {
    let stranded = matches!(
        process.queued_reason,
        Some(QueuedReason::UnregisteredEngine { .. })
    );
    process.disposition != RecoveryDisposition::ExternallyOwned && !stranded
}

fn text(report: &Report) -> String {
    if report.processes.is_empty() {
        return "nothing to recover\n".to_owned();
    }
    let rows = report.processes.iter().map(|recovered| {
        let step = recovered.step.as_ref().map(step_text).unwrap_or_default();
        let (status, detail) = match &recovered.process {
            Some(process) => (status(process), detail(process)),
            None => (String::new(), String::new()),
        };
        vec![recovered.process_id.clone(), step, status, detail]
    });
    let mut text = table(&["ID", "DONE", "STATUS", "DETAIL"], rows);
    if let Some(shutdown) = &report.shutdown {
        let lists = [
            ("finished", &shutdown.finished),
            ("stopped, to be run again", &shutdown.released),
            ("abandoned", &shutdown.abandoned),
            ("stopped, to be recovered", &shutdown.unwritten),
        ];
        for (what, ids) in lists.iter().filter(|(_, ids)| !ids.is_empty()) {
            text += &format!("{what}: {}\n", ids.join(", "));
        }
    }
    text
}

fn step_text(step: &RecoveryStep) -> String {
    match step {
        RecoveryStep::Queued { reason } => format!("run ({})", word(reason)),
        RecoveryStep::Left { reason } => format!("left ({})", word(reason)),
        RecoveryStep::Abandoned => "abandoned".to_owned(),
        RecoveryStep::Cancelled => "cancelled".to_owned(),
        RecoveryStep::Failed => "failed".to_owned(),
        RecoveryStep::CancelRequested => "asked to stop with its parent".to_owned(),
        RecoveryStep::Overtaken => "written to by somebody else first".to_owned(),
        RecoveryStep::Unsettled => "not to be read or written this time".to_owned(),
        other => format!("{other:?}"),
    }
}
