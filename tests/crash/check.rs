//! What must hold of a store after its runtime was killed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use procession::*;
use serde_json::json;

use super::facts::{Fact, Facts, Presence, number_of, scopes_after};
use super::line::{Op, Start};
use super::outcome::check_outcome;
use super::work::{Run, effect_scope, env_of, request, runs, scope, signal_payload, store_dir};

/// What a check found beside that all is well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) processes: u64,
    pub(crate) events: u64,
    /// Of what was not acknowledged: what is there as a whole, and what is not there at all.
    pub(crate) landed: u64,
    pub(crate) lost: u64,
}

/// Opens the store to look at it, checks everything that is known about it, and takes in what is
/// seen of what was not known.
pub(crate) async fn check(dir: &Path, facts: &mut Facts) -> Found {
    let supervisor = Supervisor::builder(store_dir(dir))
        .cache_capacity(8 << 20)
        .recover(false)
        .open()
        .await
        .unwrap();
    let report = supervisor.verify().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let processes = supervisor.processes();
    let listed = listed(&processes, facts).await;
    let mut found = Found {
        processes: report.processes,
        events: report.events,
        ..Found::default()
    };
    presence(&processes, &listed, facts).await;
    for fact in facts.processes.values_mut() {
        if fact.presence == Presence::There {
            one(dir, &processes, fact).await;
        } else {
            let noted = runs(dir, &fact.start.id);
            assert_eq!(noted, [], "{} ran and is not there", fact.start.id);
        }
    }
    pending(&processes, facts, &mut found).await;
    for (id, fact) in &facts.processes {
        if fact.presence == Presence::There {
            let held: BTreeSet<_> = granted(&processes, id).await;
            let expected: BTreeSet<_> = fact.scopes.iter().map(|name| scope(name).id()).collect();
            assert_eq!(held, expected, "grants on {id}");
        }
    }
    wakes(&processes, facts).await;
    journaled(&supervisor, facts).await;
    project(&processes, facts, &listed).await;
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
    found
}

async fn listed(processes: &Processes, facts: &Facts) -> BTreeMap<String, ObservedProcess> {
    let mut listed = BTreeMap::new();
    for process in processes.list(&ProcessListFilter::any()).await.unwrap() {
        let id = process.process_id.clone();
        let parent = process.parent.as_ref().map(|parent| &parent.process_id);
        let known = facts.processes.contains_key(parent.unwrap_or(&id));
        assert!(known, "nobody asked for {id}");
        let twice = listed.insert(id.clone(), process);
        assert!(twice.is_none(), "{id} is listed twice");
    }
    for fact in facts.processes.values() {
        for kid in &fact.kids {
            let found = listed.get(kid).and_then(|kid| kid.parent.as_ref());
            let parent = found.map(|parent| parent.process_id.as_str());
            assert_eq!(parent, Some(fact.start.id.as_str()), "{kid}");
        }
    }
    listed
}

/// Decides of what was not known to be there whether it is, and checks the rest.
async fn presence(
    processes: &Processes,
    listed: &BTreeMap<String, ObservedProcess>,
    facts: &mut Facts,
) {
    let mut pruning: BTreeSet<String> = BTreeSet::new();
    for op in facts.pending.values() {
        if let Op::Prune { ids, .. } = op {
            pruning.extend(ids.iter().cloned());
        }
    }
    for (id, fact) in &mut facts.processes {
        let there = listed.contains_key(id);
        match (fact.presence, there) {
            (Presence::Perhaps, true) => fact.presence = Presence::There,
            (Presence::Perhaps, false) => fact.presence = Presence::Absent,
            (Presence::There, false) if pruning.contains(id) => fact.presence = Presence::Pruned,
            (Presence::There, true) | (Presence::Absent | Presence::Pruned, false) => {}
            (was, _) => panic!("{id} was {was:?}, and is it there? {there}"),
        }
        let seen = processes.get(id).await.unwrap();
        assert_eq!(seen.is_some(), there, "{id}");
        match fact.presence {
            Presence::There => {}
            Presence::Pruned => {
                let gone = processes.await_output(id).await.unwrap_err();
                let expected = TerminalState::Completed;
                assert!(
                    matches!(gone, Error::NoLongerRetained { status, .. } if status == expected),
                    "{id} was pruned: {gone:?}"
                );
            }
            Presence::Absent | Presence::Perhaps => {
                let unknown = processes.events(id, 0).await.unwrap_err();
                assert!(
                    matches!(unknown, Error::UnknownProcess { .. }),
                    "{unknown:?}"
                );
            }
        }
    }
}

/// A process that is there.
async fn one(dir: &Path, processes: &Processes, fact: &mut Fact) {
    let id = &fact.start.id;
    let record = processes.record(id).await.unwrap().unwrap();
    let log = processes.events(id, 0).await.unwrap();
    registered(processes, fact, &record).await;

    // E1, E2: what was seen once, or acknowledged, stands there for good.
    assert!(
        log.starts_with(&fact.log),
        "the log of {id} was {:?} and is {log:?}",
        fact.log
    );
    for (at, event) in (1..).zip(&log) {
        assert_eq!(event.sequence, at, "{id}: {log:?}");
    }
    assert_eq!(record.last_sequence, log.len() as u64, "{id}");
    for (sequence, (event_type, payload)) in &fact.acked {
        let event = usize::try_from(*sequence - 1)
            .ok()
            .and_then(|at| log.get(at));
        let found = event.map(|event| (&event.event_type, &event.payload));
        assert_eq!(found, Some((event_type, payload)), "{id}: event {sequence}");
    }
    // E3: exactly once, and nothing that nobody asked for.
    let mut numbers = BTreeSet::new();
    for event in log
        .iter()
        .filter(|event| !event.event_type.starts_with("process."))
    {
        if let Some(number) = number_of(&event.payload) {
            assert!(
                numbers.insert(number),
                "{id}: number {number} is there twice"
            );
            assert_eq!(fact.tried.get(&number), Some(&event.event_type), "{id}");
        }
    }
    for event_type in [
        "process.cancel_requested",
        "process.abandon_requested",
        "process.external_ref_set",
    ] {
        let times = log.iter().filter(|event| event.event_type == event_type);
        assert!(times.count() <= 1, "{id}: {event_type} is there twice");
    }
    if fact.cancel_asked {
        assert!(record.cancel_request.is_some(), "{id}: {record:?}");
    }
    if fact.abandon_asked {
        let by = record
            .abandon_request
            .as_ref()
            .map(|asked| &asked.requested_by);
        assert_eq!(by, Some(&super::work::home(fact.start.writer)), "{id}");
    }
    if let Some(number) = fact.reference {
        assert_eq!(
            record.external_ref,
            Some(json!({ "number": number })),
            "{id}"
        );
    }
    let noted = executions(dir, fact, &record);
    check_outcome(fact, &record, &log, &noted);
    if let Some(before) = &fact.record
        && before.status.terminal().is_some()
    {
        assert_eq!(*before, record, "{id} had ended");
    }
    if let Some(output) = record.status.output() {
        fact.output = Some(output.clone());
        fact.ended_as = Some(output.state());
    }
    fact.incarnation = Some(record.incarnation);
    fact.log = log;
    fact.record = Some(record);
}

/// The start as a whole, whether or not it was acknowledged.
async fn registered(processes: &Processes, fact: &Fact, record: &ProcessRecord) {
    let (id, asked) = (&fact.start.id, &fact.request);
    if let Some(incarnation) = fact.incarnation {
        assert_eq!(record.incarnation, incarnation, "{id}");
    }
    assert_eq!(record.input, asked.input, "{id}");
    assert_eq!(record.disposition, asked.disposition, "{id}");
    // An engine adds its own.
    assert!(record.event_types.starts_with(&asked.event_types), "{id}");
    assert_eq!(record.provenance.originator, asked.originator, "{id}");
    assert_eq!(record.labels, asked.labels, "{id}");
    assert_eq!(record.retry, asked.retry, "{id}");
    assert_eq!(record.wake_target, asked.wake_target, "{id}");
    let env = processes.env(&record.env_ref.unwrap()).await.unwrap();
    assert_eq!(env, Some(env_of(&fact.start)), "{id}");
}

/// P5, P6, L2: counted outside the store.
fn executions(dir: &Path, fact: &Fact, record: &ProcessRecord) -> Vec<Run> {
    let id = &fact.start.id;
    let noted = runs(dir, id);
    assert!(
        noted
            .windows(2)
            .all(|two| two[0].attempt < two[1].attempt && two[0].token < two[1].token),
        "{id}: {noted:?}"
    );
    if let Some(last) = noted.last() {
        assert!(
            last.attempt <= record.attempt,
            "{id}: {noted:?}, {record:?}"
        );
    }
    let most = match fact.start.disposition {
        RecoveryDisposition::Rerunnable => usize::MAX,
        RecoveryDisposition::OwnerBound => 1,
        RecoveryDisposition::ExternallyOwned => 0,
    };
    assert!(noted.len() <= most, "{id} ran twice: {noted:?}");
    if fact.start.disposition == RecoveryDisposition::OwnerBound {
        assert!(record.attempt <= 1, "{id}: {record:?}");
    }
    noted
}

async fn granted(processes: &Processes, id: &str) -> BTreeSet<String> {
    let scopes = processes.grants_of(id).await.unwrap();
    scopes.iter().map(SessionScope::id).collect()
}

/// What was asked for and not answered: there as a whole, or not at all.
async fn pending(processes: &Processes, facts: &mut Facts, found: &mut Found) {
    for op in facts.pending.values() {
        match op {
            // One commit after the other: each of the grants is there, or is not.
            Op::DeleteSession { session } => {
                for (id, fact) in &mut facts.processes {
                    if fact.scopes.contains(session)
                        && fact.presence == Presence::There
                        && !granted(processes, id).await.contains(&scope(session).id())
                    {
                        fact.scopes.remove(session);
                    }
                }
            }
            Op::Retarget { id, to } => {
                if let Some(seen) = processes.get(id).await.unwrap()
                    && seen.wake_target == Some(scope(to))
                {
                    let fact = facts.processes.get_mut(id).unwrap();
                    fact.wakes_to.clone_from(to);
                }
            }
            _ => {}
        }
        let fate = match op {
            Op::Start(start) => Some(facts.processes[&start.id].presence == Presence::There),
            Op::Append { id, number, .. } | Op::Signal { id, number, .. } => {
                let log = &facts.processes[id].log;
                let at = |event: &ObservedProcessEvent| number_of(&event.payload) == Some(*number);
                Some(log.iter().any(at))
            }
            Op::Refer { id, number } => {
                let record = facts.processes[id].record.as_ref();
                let reference = record.and_then(|record| record.external_ref.clone());
                if let Some(reference) = &reference {
                    assert_eq!(*reference, json!({ "number": number }), "{id}");
                }
                Some(reference.is_some())
            }
            Op::Grant { .. } | Op::Revoke { .. } | Op::Transfer { .. } => {
                let mut fates = BTreeSet::new();
                for id in op.ids() {
                    let before = &facts.processes[id].scopes;
                    let after = scopes_after(before, op);
                    let names = |scopes: &BTreeSet<String>| -> BTreeSet<String> {
                        scopes.iter().map(|name| scope(name).id()).collect()
                    };
                    let held = granted(processes, id).await;
                    let done = held == names(&after);
                    assert!(
                        done || held == names(before),
                        "{op:?}: {id} is held by {held:?}"
                    );
                    if after != *before {
                        fates.insert(done);
                    }
                }
                // G2: all of them, or none.
                assert!(fates.len() <= 1, "half of {op:?} happened");
                fates.pop_first()
            }
            _ => None,
        };
        match fate {
            Some(true) => found.landed += 1,
            Some(false) => found.lost += 1,
            None => {}
        }
        if fate == Some(true)
            && let Op::Grant { .. } | Op::Revoke { .. } | Op::Transfer { .. } = op
        {
            for id in op.ids() {
                let fact = facts.processes.get_mut(id).unwrap();
                fact.scopes = scopes_after(&fact.scopes, op);
            }
        }
    }
}

/// A wake is there exactly if its event is, until it was acknowledged.
async fn wakes(processes: &Processes, facts: &mut Facts) {
    let mut expected: BTreeMap<String, BTreeSet<(String, u64)>> = BTreeMap::new();
    for (id, fact) in &facts.processes {
        let pending = expected.entry(fact.wakes_to.clone()).or_default();
        if fact.presence == Presence::There {
            let asks = fact.log.iter().filter(|event| event.event_type == "ask");
            pending.extend(asks.map(|event| (id.clone(), event.sequence)));
        }
    }
    for (scope, id, sequence) in &facts.woken {
        let pending = expected.get_mut(scope).unwrap();
        assert!(pending.remove(&(id.clone(), *sequence)), "{id} {sequence}");
    }
    for (name, mut expected) in expected {
        let found: Vec<_> = processes.wakes(&scope(&name)).await.unwrap();
        let set: BTreeSet<_> = found
            .iter()
            .map(|wake| (wake.process_id.clone(), wake.sequence))
            .collect();
        assert_eq!(set.len(), found.len(), "{name}: a wake is there twice");
        for op in facts.pending.values() {
            if let Op::AckWake {
                scope,
                id,
                sequence,
                ..
            } = op
                && *scope == name
                && !set.contains(&(id.clone(), *sequence))
            {
                expected.remove(&(id.clone(), *sequence));
                facts.woken.insert((name.clone(), id.clone(), *sequence));
            }
        }
        assert_eq!(set, expected, "{name}");
    }
}

/// What was journaled is known as it was asked for: asked for with other content it is refused, by
/// the journal and not by the process.
async fn journaled(supervisor: &Supervisor, facts: &Facts) {
    let processes = supervisor.processes();
    let journal = supervisor.journaled_effects();
    for (id, fact) in &facts.processes {
        if fact.presence != Presence::There {
            continue;
        }
        if fact.start_journaled {
            let scope = effect_scope(id, "start");
            let same = || ScopedEffectController::new(&journal, scope.clone());
            let record = processes.start(request(&fact.start), same()).await.unwrap();
            assert_eq!(Some(record.incarnation), fact.incarnation);
            let other = Start {
                batch: Some("other".to_owned()),
                ..fact.start.clone()
            };
            let refused = processes.start(request(&other), same()).await.unwrap_err();
            assert!(
                matches!(refused, Error::ReplayMismatch { .. }),
                "{refused:?}"
            );
        }
        for number in &fact.journaled_signals {
            let scope = effect_scope(id, &format!("signal {number}"));
            let same = || ScopedEffectController::new(&journal, scope.clone());
            let signal_id = format!("id-{number}");
            let ask = |n: u64| {
                let request = ProcessEventAppendRequest::signal("go", signal_payload(n));
                processes.signal(id, "go", signal_id.clone(), request, same())
            };
            let event = ask(*number).await.unwrap();
            assert_eq!(
                fact.log[usize::try_from(event.sequence).unwrap() - 1],
                event.observed()
            );
            let refused = ask(number + 1).await.unwrap_err();
            assert!(
                matches!(refused, Error::ReplayMismatch { .. }),
                "{refused:?}"
            );
        }
    }
}

/// E5: who reads the feed after every kill has what is in the store.
async fn project(
    processes: &Processes,
    facts: &mut Facts,
    listed: &BTreeMap<String, ObservedProcess>,
) {
    let mut cursor = facts.cursor.take().unwrap_or_else(ChangeCursor::start);
    loop {
        let page = processes.changes_since(&cursor, 1_000).await.unwrap();
        for change in page.changes {
            match change {
                ProcessChange::Changed { record } => {
                    facts.projected.insert(record.id.clone(), *record);
                }
                ProcessChange::Deleted { process_id, .. } => {
                    facts.projected.remove(&process_id);
                }
            }
        }
        if page.next == cursor {
            break;
        }
        cursor = page.next;
    }
    facts.cursor = Some(cursor);
    let ids: Vec<_> = facts.projected.keys().collect();
    assert_eq!(ids, listed.keys().collect::<Vec<_>>(), "what the feed said");
    for (id, fact) in &facts.processes {
        if fact.presence == Presence::There {
            assert_eq!(facts.projected.get(id), fact.record.as_ref(), "{id}");
        }
    }
}
