//! The commands that look and maintain, and how things are shown. Nothing is executed here.

use std::io::{self, Write};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use comfy_table::{Table, presets};
use procession::{
    Error, ExecutionScope, Lifecycle, ObservedProcess, ObservedProcessEvent, PageRequest,
    ProcessListFilter, Processes, ScopedEffectController, SessionScope, StatusFilter, Supervisor,
    limits,
};
use serde::Serialize;

use crate::args::{Abandon, Events, List, Prune};
use crate::exit::{DAMAGED, DONE, Failure};
use crate::signals::Signals;
use crate::store::{Store, close};

/// Looks at a store, and lets go of it.
async fn looking<T>(
    store: &Store,
    look: impl AsyncFnOnce(&Supervisor) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let supervisor = store.look().await?;
    let seen = look(&supervisor).await;
    close(supervisor, Duration::ZERO).await;
    seen
}

/// The same for what may take long: a first signal stops it, and lets go of the store.
async fn maintaining<T>(
    store: &Store,
    maintain: impl AsyncFnOnce(&Supervisor) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut signals = Signals::listen()?;
    let supervisor = tokio::select! {
        opened = store.look() => opened?,
        signal = signals.first() => return Err(Failure::Signalled(signal)),
    };
    let done = tokio::select! {
        done = maintain(&supervisor) => done,
        signal = signals.first() => Err(Failure::Signalled(signal)),
    };
    close(supervisor, Duration::ZERO).await;
    done
}

pub(crate) async fn list(store: &Store, args: &List, json: bool) -> Result<u8, Failure> {
    let filter = ProcessListFilter::default().with_status(match args.status {
        Some(status) => status.into(),
        None if args.all => StatusFilter::Any,
        None => StatusFilter::Running,
    });
    let listed = looking(store, async |supervisor| {
        let processes = supervisor.processes();
        if let Some(session) = &args.session {
            let scope = SessionScope::new(session);
            return Ok(processes.list_granted_to(&scope, &filter).await?);
        }
        let mut listed = Vec::new();
        let mut pages = Pages::of(filter);
        while let Some(page) = pages.next(&processes).await? {
            listed.extend(page);
        }
        Ok(listed)
    })
    .await?;
    if json {
        print_json(&listed)?;
        return Ok(DONE);
    }
    let rows = listed.iter().map(|process| {
        vec![
            process.process_id.clone(),
            status(process),
            process.attempt.to_string(),
            time(process.created_at_ms),
            process.label.clone().unwrap_or_default(),
            detail(process),
        ]
    });
    let head = ["ID", "STATUS", "ATTEMPT", "CREATED", "COMMAND", "DETAIL"];
    print(&table(&head, rows))?;
    Ok(DONE)
}

pub(crate) async fn get(store: &Store, id: &str, json: bool) -> Result<u8, Failure> {
    let (process, record) = looking(store, async |supervisor| {
        let processes = supervisor.processes();
        let Some(process) = processes.get(id).await? else {
            // Says which it is: never known, or pruned.
            processes.events_page(id, 0, 1).await?;
            return Err(Failure::from(Error::UnknownProcess {
                process_id: id.to_owned(),
            }));
        };
        Ok((process, processes.record(id).await?))
    })
    .await?;
    if json {
        print_json(&process)?;
        return Ok(DONE);
    }
    let mut rows = facts(&process);
    if let Some(record) = record {
        rows.push(("input", serde_json::to_string(&record.input)?));
        if let Some(output) = record.status.output() {
            rows.push(("outcome", serde_json::to_string(output)?));
        }
    }
    let lines = rows
        .iter()
        .map(|(name, value)| format!("{name:<12}  {}\n", printable(value)));
    print(&lines.collect::<String>())?;
    Ok(DONE)
}

fn facts(process: &ObservedProcess) -> Vec<(&'static str, String)> {
    let owner = process.lease.as_ref().map(|lease| {
        let live = if lease.live { "live" } else { "gone" };
        let (owner, token) = (&lease.owner.owner_id, lease.fencing_token.get());
        format!("{owner} ({live}, token {token})")
    });
    let cancel = process.cancel_request.as_ref().map(|request| {
        let by = request.requested_by.as_deref().unwrap_or("the host");
        format!("asked by {by} at {}", time(request.requested_at_ms))
    });
    let abandon = process.abandon_request.as_ref().map(|request| {
        let reason = request.reason.as_deref().unwrap_or("no reason given");
        format!("asked by {}: {reason}", request.requested_by)
    });
    let facts = [
        ("id", Some(process.process_id.clone())),
        ("status", Some(status(process))),
        ("detail", Some(detail(process))),
        ("command", process.label.clone()),
        ("disposition", Some(word(&process.disposition))),
        ("attempt", Some(process.attempt.to_string())),
        ("originator", Some(process.originator.scope_id())),
        ("created", Some(time(process.created_at_ms))),
        ("started", process.first_started_at_ms.map(time)),
        ("updated", Some(time(process.updated_at_ms))),
        ("ended", process.terminal_at_ms.map(time)),
        ("owner", owner),
        ("cancel", cancel),
        ("abandon", abandon),
        ("events", Some(process.last_sequence.to_string())),
    ];
    facts
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.filter(|value| !value.is_empty())?)))
        .collect()
}

pub(crate) async fn events(store: &Store, args: &Events, json: bool) -> Result<u8, Failure> {
    looking(store, async |supervisor| {
        let processes = supervisor.processes();
        let mut after = args.after;
        let mut head = (!json).then(|| event_line("SEQUENCE", "TIME", "TYPE", "PAYLOAD"));
        loop {
            let page = processes
                .events_page(&args.id, after, limits::EVENTS_PAGE_MAX)
                .await?;
            if let Some(head) = head.take() {
                print(&head)?;
            }
            let Some(last) = page.last() else {
                return Ok(DONE);
            };
            after = last.sequence;
            let lines: Result<Vec<String>, Failure> =
                page.iter().map(|event| shown(event, json)).collect();
            print(&lines?.concat())?;
        }
    })
    .await
}

fn shown(event: &ObservedProcessEvent, json: bool) -> Result<String, Failure> {
    if json {
        return Ok(serde_json::to_string(event)? + "\n");
    }
    Ok(event_line(
        &event.sequence.to_string(),
        &time(event.occurred_at_ms),
        &event.event_type,
        &serde_json::to_string(&event.payload)?,
    ))
}

/// A log is shown page by page, so its columns are not fitted to what is in them.
fn event_line(sequence: &str, time: &str, event_type: &str, payload: &str) -> String {
    format!(
        "{sequence:>8}  {time:<20}  {event_type:<24}  {}\n",
        printable(payload)
    )
}

pub(crate) async fn cancel(store: &Store, id: &str, json: bool) -> Result<u8, Failure> {
    let process = looking(store, async |supervisor| {
        let processes = supervisor.processes();
        let effects =
            ScopedEffectController::inline(ExecutionScope::operation("supervisor cancel"));
        processes.cancel(id, effects).await?;
        after_request(&processes, id).await
    })
    .await?;
    if json {
        print_json(&process)?;
    } else if process.lifecycle == Lifecycle::Running {
        print(&format!(
            "{id}: asked to cancel; the next run or recover carries it out\n"
        ))?;
    } else {
        print(&format!("{id}: {}\n", status(&process)))?;
    }
    Ok(DONE)
}

async fn after_request(processes: &Processes, id: &str) -> Result<ObservedProcess, Failure> {
    let process = processes.get(id).await?;
    process.ok_or_else(|| {
        Failure::from(Error::UnknownProcess {
            process_id: id.to_owned(),
        })
    })
}

pub(crate) async fn abandon(store: &Store, args: Abandon, json: bool) -> Result<u8, Failure> {
    let id = args.id;
    let process = looking(store, async |supervisor| {
        let processes = supervisor.processes();
        let asked = processes.request_abandon(&id, args.by, Some(args.reason));
        Ok(asked.await?)
    })
    .await?;
    if json {
        print_json(&process)?;
    } else {
        print(&format!(
            "{id}: asked to be abandoned; the next run or recover carries it out\n"
        ))?;
    }
    Ok(DONE)
}

pub(crate) async fn prune(store: &Store, args: &Prune, json: bool) -> Result<u8, Failure> {
    let cutoff = SystemTime::now()
        .checked_sub(args.older_than)
        .and_then(|cutoff| cutoff.duration_since(UNIX_EPOCH).ok())
        .unwrap_or_default();
    let cutoff_ms = u64::try_from(cutoff.as_millis()).unwrap_or(u64::MAX);
    let report = maintaining(store, async |supervisor| {
        Ok(supervisor.processes().prune(cutoff_ms).await?)
    })
    .await?;
    if json {
        print_json(&report)?;
    } else {
        print(&format!(
            "{} processes pruned: {} events, {} grants, {} wakes, {} bytes\n",
            report.pruned_processes,
            report.pruned_events,
            report.grants,
            report.wakes,
            report.bytes
        ))?;
    }
    Ok(DONE)
}

pub(crate) async fn verify(store: &Store, json: bool) -> Result<u8, Failure> {
    let report = maintaining(store, async |supervisor| Ok(supervisor.verify().await?)).await?;
    let code = if report.is_clean() { DONE } else { DAMAGED };
    if json {
        print_json(&report)?;
        return Ok(code);
    }
    let counts = format!(
        "{} processes, {} events, {} tombstones",
        report.processes, report.events, report.tombstones
    );
    if report.is_clean() {
        print(&format!("clean: {counts}\n"))?;
        return Ok(code);
    }
    let rows = report.problems.iter().map(|problem| {
        let whose = problem.process_id.clone().unwrap_or_default();
        vec![whose, problem.what.clone()]
    });
    let mut text = table(&["PROCESS", "PROBLEM"], rows);
    let all = report.problems_left_out + report.problems.len() as u64;
    text += &format!("damaged: {all} problems in {counts}\n");
    print(&text)?;
    Ok(code)
}

/// The pages of a list.
pub(crate) struct Pages {
    filter: ProcessListFilter,
    next: Option<PageRequest>,
}

impl Pages {
    pub(crate) const fn of(filter: ProcessListFilter) -> Self {
        Self {
            filter,
            next: Some(PageRequest::first(limits::LIST_PAGE_MAX)),
        }
    }

    pub(crate) async fn next(
        &mut self,
        processes: &Processes,
    ) -> Result<Option<Vec<ObservedProcess>>, Failure> {
        let Some(request) = self.next.take() else {
            return Ok(None);
        };
        let page = processes.list_page(&self.filter, &request).await?;
        self.next = page
            .next
            .map(|cursor| PageRequest::after(cursor, limits::LIST_PAGE_MAX));
        Ok(Some(page.items))
    }
}

/// Where a process stands, with what more there is to say about a running one.
pub(crate) fn status(process: &ObservedProcess) -> String {
    let facets = process.facets;
    let owner_gone = process.lease.as_ref().is_some_and(|lease| !lease.live);
    let running = process.lifecycle == Lifecycle::Running;
    let more: Vec<&str> = [
        (facets.queued && !facets.started, "queued"),
        (owner_gone, "owner gone"),
        (facets.waiting, "waiting"),
        (facets.backing_off, "backing off"),
        (facets.cancel_requested, "cancel requested"),
        (facets.abandon_requested, "abandon requested"),
    ]
    .into_iter()
    .filter_map(|(holds, what)| (running && holds).then_some(what))
    .collect();
    if more.is_empty() {
        process.lifecycle.to_string()
    } else {
        format!("{} ({})", process.lifecycle, more.join(", "))
    }
}

/// Why it failed.
pub(crate) fn detail(process: &ObservedProcess) -> String {
    process
        .error
        .as_ref()
        .map(|error| format!("{}: {}", error.code, error.message))
        .unwrap_or_default()
}

/// A value of an enum in the word that its JSON has for it.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string(),
        Err(_) => String::new(),
    }
}

fn time(epoch_ms: u64) -> String {
    UNIX_EPOCH
        .checked_add(Duration::from_millis(epoch_ms))
        .and_then(|time| {
            // What is beyond the year 9999 cannot be formatted.
            let mut text = String::new();
            let shown = humantime::format_rfc3339_seconds(time);
            std::fmt::write(&mut text, format_args!("{shown}")).ok()?;
            Some(text)
        })
        .unwrap_or_else(|| format!("{epoch_ms} ms"))
}

/// Text that cannot drive a terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Rows in aligned columns.
pub(crate) fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.to_vec());
    for row in rows {
        table.add_row(row.iter().map(|cell| printable(cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.trim_fmt() + "\n"
}

pub(crate) fn print_json(value: &impl Serialize) -> Result<(), Failure> {
    print(&(serde_json::to_string(value)? + "\n"))
}

pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    let written = stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush());
    written.map_err(Failure::Output)
}
