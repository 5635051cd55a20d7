//! Random grants, revocations, transfers, deletions of sessions, starts, prunes and tombstones that are
//! forgotten, against a reference model that shares no code with the crate, on both stores, with
//! reopens in between.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use std::time::Duration;

use common::{Place, close_clean, external, inline, pause, within};
use procession::{
    CompletionAuthority, Error, ProcessAwaitOutput, ProcessHandleDescriptor, ProcessListFilter,
    ProcessOriginator, ProcessStartGrant, ProcessStartRequest, Processes, SessionScope, Supervisor,
};
use proptest::prelude::*;
use serde_json::json;

/// A session and perhaps a frame, as small numbers.
type Scope = (u8, Option<u8>);

const SESSIONS: u8 = 3;
const IDS: u8 = 5;

#[derive(Debug, Clone)]
enum Step {
    /// With this variant of content, created by a scope or the host, granted or not.
    Start(u8, u8, Option<Scope>, Option<Scope>),
    /// By the session itself, through a handle on the scope.
    SessionStart(u8, u8, Scope),
    Grant(Scope, u8, u8),
    Revoke(Scope, u8),
    Transfer(Scope, Scope, Vec<u8>),
    SessionTransfer(Scope, Scope, Vec<u8>),
    DeleteSession(u8),
    End(u8),
    Prune,
    /// Every tombstone is past its time.
    Forget,
    Reopen,
}

/// How a step went.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Done,
    Unknown(String),
    Pruned(String),
    Conflict(String),
    Ended(String),
    NotGranted(Vec<String>),
    /// Revoked, orphaned, preserved.
    Deleted(
        BTreeSet<(Scope, String)>,
        BTreeSet<String>,
        BTreeSet<String>,
    ),
    Took(u64, u64),
}

#[derive(Debug, Clone)]
struct Entry {
    content: (u8, Option<Scope>),
    born: u32,
    ended: bool,
}

/// What should be.
#[derive(Debug, Default)]
struct Model {
    live: BTreeMap<u8, Entry>,
    tombs: BTreeMap<u8, (u8, Option<Scope>)>,
    /// Who holds what, under which descriptor.
    grants: BTreeMap<(Scope, u8), String>,
    births: u32,
}

fn id(number: u8) -> String {
    format!("p{number}")
}

/// The scopes of a session's handle, the narrowest last.
fn handle(scope: Scope) -> Vec<Scope> {
    match scope.1 {
        None => vec![scope],
        Some(_) => vec![(scope.0, None), scope],
    }
}

impl Model {
    fn known(&self, number: u8) -> Result<(), Answer> {
        match (self.live.contains_key(&number), self.tombs.get(&number)) {
            (true, _) => Ok(()),
            (false, Some(_)) => Err(Answer::Pruned(id(number))),
            (false, None) => Err(Answer::Unknown(id(number))),
        }
    }

    fn start(
        &mut self,
        number: u8,
        content: (u8, Option<Scope>),
        grant: Option<(Scope, String)>,
    ) -> Answer {
        if let Some(entry) = self.live.get(&number) {
            return match entry.content == content {
                true => Answer::Done,
                false => Answer::Conflict(id(number)),
            };
        }
        if self.tombs.get(&number) == Some(&content) {
            return Answer::Pruned(id(number));
        }
        self.tombs.remove(&number);
        self.births += 1;
        let born = self.births;
        self.live.insert(
            number,
            Entry {
                content,
                born,
                ended: false,
            },
        );
        if let Some((scope, label)) = grant {
            self.grants.insert((scope, number), label);
        }
        Answer::Done
    }

    fn transfer(&mut self, from: &[Scope], to: Scope, numbers: &[u8]) -> Answer {
        let holder = |grants: &BTreeMap<(Scope, u8), String>, number: u8| {
            let held = |scope: &&Scope| grants.contains_key(&(**scope, number));
            from.iter().rev().find(held).copied()
        };
        let mut missing = Vec::new();
        for number in numbers {
            if holder(&self.grants, *number).is_none() && !missing.contains(&id(*number)) {
                missing.push(id(*number));
            }
        }
        if !missing.is_empty() {
            return Answer::NotGranted(missing);
        }
        for number in numbers.iter().copied().collect::<BTreeSet<u8>>() {
            let Some(first) = holder(&self.grants, number).filter(|first| *first != to) else {
                continue;
            };
            let label = self.grants[&(first, number)].clone();
            for scope in from.iter().filter(|scope| **scope != to) {
                self.grants.remove(&(*scope, number));
            }
            self.grants.entry((to, number)).or_insert(label);
        }
        Answer::Done
    }

    fn delete(&mut self, session: u8) -> Answer {
        let gone: Vec<(Scope, u8)> = self
            .grants
            .keys()
            .filter(|it| it.0.0 == session)
            .copied()
            .collect();
        for key in &gone {
            self.grants.remove(key);
        }
        let (mut orphaned, mut preserved) = (BTreeSet::new(), BTreeSet::new());
        for (_, number) in gone.iter().filter(|it| !self.live[&it.1].ended) {
            let is_held = self.grants.keys().any(|(_, held)| held == number);
            match is_held {
                true => preserved.insert(id(*number)),
                false => orphaned.insert(id(*number)),
            };
        }
        let revoked = gone.into_iter().map(|(scope, number)| (scope, id(number)));
        Answer::Deleted(revoked.collect(), orphaned, preserved)
    }

    fn prune(&mut self) -> Answer {
        let ended: Vec<u8> = self
            .live
            .iter()
            .filter(|it| it.1.ended)
            .map(|it| *it.0)
            .collect();
        let before = self.grants.len();
        for number in &ended {
            let entry = self.live.remove(number).unwrap();
            self.tombs.insert(*number, entry.content);
            self.grants.retain(|(_, held), _| held != number);
        }
        Answer::Took(ended.len() as u64, (before - self.grants.len()) as u64)
    }

    fn step(&mut self, step: &Step) -> Answer {
        let refused = |known: Result<(), Answer>| known.err();
        match step {
            Step::Start(number, variant, by, grant) => {
                let grant = grant.map(|scope| (scope, format!("start {number}")));
                self.start(*number, (*variant, *by), grant)
            }
            Step::SessionStart(number, variant, scope) => {
                let grant = Some((*scope, format!("own {number}")));
                let was_live = self.live.contains_key(number);
                let answer = self.start(*number, (*variant, Some(*scope)), grant);
                let mut scopes = handle(*scope).into_iter();
                let holds = scopes.any(|it| self.grants.contains_key(&(it, *number)));
                match answer {
                    Answer::Done if was_live && !holds => Answer::Unknown(id(*number)),
                    Answer::Pruned(id) => Answer::Unknown(id),
                    other => other,
                }
            }
            Step::Grant(scope, number, label) => {
                refused(self.known(*number)).unwrap_or_else(|| {
                    let held = self.grants.entry((*scope, *number));
                    held.or_insert_with(|| format!("grant {label}"));
                    Answer::Done
                })
            }
            Step::Revoke(scope, number) => refused(self.known(*number)).unwrap_or_else(|| {
                self.grants.remove(&(*scope, *number));
                Answer::Done
            }),
            Step::Transfer(from, to, numbers) => self.transfer(&[*from], *to, numbers),
            Step::SessionTransfer(from, to, numbers) => {
                match self.transfer(&handle(*from), *to, numbers) {
                    Answer::NotGranted(ids) => Answer::Unknown(ids[0].clone()),
                    other => other,
                }
            }
            Step::DeleteSession(session) => self.delete(*session),
            Step::End(number) => refused(self.known(*number)).unwrap_or_else(|| {
                let entry = self.live.get_mut(number).unwrap();
                match std::mem::replace(&mut entry.ended, true) {
                    true => Answer::Ended(id(*number)),
                    false => Answer::Done,
                }
            }),
            Step::Prune => self.prune(),
            Step::Forget => {
                self.tombs.clear();
                Answer::Done
            }
            Step::Reopen => Answer::Done,
        }
    }

    /// Ids in the order of their births.
    fn in_order(&self, admits: impl Fn(u8, &Entry) -> bool) -> Vec<String> {
        let admitted = self
            .live
            .iter()
            .filter(|(number, entry)| admits(**number, entry));
        let mut found: Vec<_> = admitted
            .map(|(number, entry)| (entry.born, id(*number)))
            .collect();
        found.sort_unstable();
        found.into_iter().map(|(_, id)| id).collect()
    }
}

fn public(scope: Scope) -> SessionScope {
    // Names of which one begins with another.
    let root = SessionScope::new("s".repeat(usize::from(scope.0) + 1));
    match scope.1 {
        None => root,
        Some(frame) => root.with_frame(format!("f{frame}")),
    }
}

fn every_scope() -> Vec<Scope> {
    let of = |session| [(session, None), (session, Some(0)), (session, Some(1))];
    (0..SESSIONS).flat_map(of).collect()
}

fn request(number: u8, variant: u8, by: Option<Scope>) -> ProcessStartRequest {
    let mut request = external(&id(number)).with_label("variant", variant.to_string());
    if let Some(scope) = by {
        request.originator = ProcessOriginator::session(public(scope));
    }
    request
}

fn answer<T>(result: Result<T, Error>, done: impl FnOnce(T) -> Answer) -> Answer {
    match result {
        Ok(value) => done(value),
        Err(Error::UnknownProcess { process_id }) => Answer::Unknown(process_id),
        Err(Error::NoLongerRetained { process_id, .. }) => Answer::Pruned(process_id),
        Err(Error::Conflict { process_id, .. }) => Answer::Conflict(process_id),
        Err(Error::AlreadyTerminal { process_id, .. }) => Answer::Ended(process_id),
        Err(Error::NotGranted { ids, .. }) => Answer::NotGranted(ids),
        Err(other) => panic!("{other:?}"),
    }
}

fn done<T>(_: T) -> Answer {
    Answer::Done
}

async fn take(supervisor: &Supervisor, step: &Step) -> Answer {
    let processes = supervisor.processes();
    let names = |numbers: &[u8]| numbers.iter().map(|number| id(*number)).collect::<Vec<_>>();
    let session = |scope: &Scope| supervisor.session(public(*scope)).processes();
    match step {
        Step::Start(number, variant, by, grant) => {
            let label = format!("start {number}");
            let grant = grant.map(|scope| ProcessStartGrant::new(public(scope), label));
            let request = request(*number, *variant, *by).with_grant(grant);
            answer(processes.start(request, inline()).await, done)
        }
        Step::SessionStart(number, variant, scope) => {
            let grant = ProcessStartGrant::new(public(*scope), format!("own {number}"));
            let request = request(*number, *variant, Some(*scope)).with_grant(Some(grant));
            answer(session(scope).start(request, inline()).await, done)
        }
        Step::Grant(scope, number, label) => {
            let descriptor = ProcessHandleDescriptor::label(format!("grant {label}"));
            let granted = processes
                .grant(&public(*scope), &id(*number), descriptor)
                .await;
            answer(granted, done)
        }
        Step::Revoke(scope, number) => {
            answer(processes.revoke(&public(*scope), &id(*number)).await, done)
        }
        Step::Transfer(from, to, numbers) => {
            let moved = names(numbers);
            answer(
                processes
                    .transfer(&public(*from), &public(*to), &moved)
                    .await,
                done,
            )
        }
        Step::SessionTransfer(from, to, numbers) => {
            let moved = names(numbers);
            answer(session(from).transfer(&public(*to), &moved).await, done)
        }
        Step::DeleteSession(number) => {
            let session_id = public((*number, None)).session_id;
            answer(processes.delete_session(&session_id).await, |report| {
                let private = |scope: &SessionScope| {
                    every_scope()
                        .into_iter()
                        .find(|it| public(*it) == *scope)
                        .unwrap()
                };
                let revoked = report.revoked.iter();
                Answer::Deleted(
                    revoked
                        .map(|it| (private(&it.scope), it.process_id.clone()))
                        .collect(),
                    report.orphaned.into_iter().collect(),
                    report.preserved.into_iter().collect(),
                )
            })
        }
        Step::End(number) => {
            let by = CompletionAuthority::Host { by: "test".into() };
            let output = ProcessAwaitOutput::success(json!(null));
            answer(
                processes.complete_external(&id(*number), output, by).await,
                done,
            )
        }
        Step::Prune => answer(processes.prune(u64::MAX).await, |report| {
            Answer::Took(report.pruned_processes, report.grants)
        }),
        // In `drive`: the runtime is opened anew for them.
        Step::Forget | Step::Reopen => Answer::Done,
    }
}

/// Opens for as long as it takes to forget every tombstone.
async fn forget(place: &Place) {
    let supervisor = place
        .builder()
        .keep_tombstones_for(Duration::ZERO)
        .retain_every(Duration::from_millis(50))
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    for number in 0..IDS {
        within(async {
            let pruned = |refused| matches!(refused, Err(Error::NoLongerRetained { .. }));
            while pruned(processes.grants_of(&id(number)).await) {
                pause().await;
            }
        })
        .await;
    }
    close_clean(&supervisor).await;
}

fn named(processes: Vec<procession::ObservedProcess>) -> Vec<String> {
    processes
        .into_iter()
        .map(|process| process.process_id)
        .collect()
}

async fn compare(model: &Model, supervisor: &Supervisor) {
    let processes: Processes = supervisor.processes();
    let any = ProcessListFilter::any();
    let listed = named(processes.list(&any).await.unwrap());
    assert_eq!(listed, model.in_order(|_, _| true));
    for number in 0..IDS {
        let found = answer(processes.grants_of(&id(number)).await, |scopes| {
            let found: BTreeSet<SessionScope> = scopes.into_iter().collect();
            let held = model.grants.keys().filter(|(_, held)| *held == number);
            assert_eq!(found, held.map(|(scope, _)| public(*scope)).collect());
            Answer::Done
        });
        assert_eq!(found, model.known(number).err().unwrap_or(Answer::Done));
    }
    for scope in every_scope() {
        let held = |number: u8| model.grants.contains_key(&(scope, number));
        let granted = processes
            .list_granted_to(&public(scope), &any)
            .await
            .unwrap();
        assert_eq!(named(granted), model.in_order(|number, _| held(number)));
        let running = ProcessListFilter::default();
        let granted = processes
            .list_granted_to(&public(scope), &running)
            .await
            .unwrap();
        assert_eq!(
            named(granted),
            model.in_order(|number, entry| held(number) && !entry.ended)
        );
        let made = processes
            .list_originated_by(&public(scope), &any)
            .await
            .unwrap();
        let by = |entry: &Entry| entry.content.1;
        let is_made = |entry: &Entry| match scope.1 {
            None => by(entry).is_some_and(|by| by.0 == scope.0),
            Some(_) => by(entry) == Some(scope),
        };
        assert_eq!(named(made), model.in_order(|_, entry| is_made(entry)));
        for number in model.live.keys() {
            let has = processes.has_grant(&public(scope), &id(*number)).await;
            assert_eq!(has.unwrap(), held(*number));
        }
        let session = supervisor.session(public(scope)).processes();
        let scopes = handle(scope);
        let sees = |number: u8| {
            scopes
                .iter()
                .any(|it| model.grants.contains_key(&(*it, number)))
        };
        let seen = named(session.list_all().await.unwrap());
        assert_eq!(seen, model.in_order(|number, _| sees(number)));
        let labels =
            |snapshot: procession::ProcessWorkSnapshot| -> BTreeMap<String, Option<String>> {
                let items = snapshot.items.into_iter();
                items
                    .map(|item| (item.process.process_id, item.label))
                    .collect()
            };
        let narrowest_first = |order: Vec<Scope>| -> BTreeMap<String, Option<String>> {
            let mut shown = BTreeMap::new();
            for ((scope, number), label) in &model.grants {
                let at = order.iter().position(|it| it == scope);
                let best = shown.entry(id(*number)).or_insert((usize::MAX, None));
                if let Some(at) = at.filter(|at| *at < best.0) {
                    *best = (at, Some(label.clone()));
                }
            }
            let seen = shown.into_iter().filter(|(_, (at, _))| *at < usize::MAX);
            seen.map(|(id, (_, label))| (id, label)).collect()
        };
        let own = labels(session.snapshot().await.unwrap());
        assert_eq!(own, narrowest_first(scopes.iter().rev().copied().collect()));
        if scope.1.is_none() {
            let host = processes
                .session_snapshot(public(scope).session_id)
                .await
                .unwrap();
            let frames = every_scope().into_iter().filter(|it| it.0 == scope.0);
            assert_eq!(labels(host), narrowest_first(frames.collect()));
        }
    }
}

fn scopes() -> impl Strategy<Value = Scope> {
    (0..SESSIONS, proptest::option::of(0..2_u8))
}

fn steps() -> impl Strategy<Value = Step> {
    let some = || proptest::option::of(scopes());
    let numbers = || proptest::collection::vec(0..IDS, 0..4);
    prop_oneof![
        4 => (0..IDS, 0..2_u8, some(), some()).prop_map(|(n, v, by, to)| Step::Start(n, v, by, to)),
        4 => (0..IDS, 0..2_u8, scopes()).prop_map(|(n, v, by)| Step::SessionStart(n, v, by)),
        6 => (scopes(), 0..IDS, 0..9_u8).prop_map(|(s, n, label)| Step::Grant(s, n, label)),
        3 => (scopes(), 0..IDS).prop_map(|(scope, number)| Step::Revoke(scope, number)),
        4 => (scopes(), scopes(), numbers()).prop_map(|(a, b, n)| Step::Transfer(a, b, n)),
        4 => (scopes(), scopes(), numbers()).prop_map(|(a, b, n)| Step::SessionTransfer(a, b, n)),
        1 => (0..SESSIONS).prop_map(Step::DeleteSession),
        3 => (0..IDS).prop_map(Step::End),
        3 => Just(Step::Prune),
        1 => Just(Step::Forget),
        1 => Just(Step::Reopen),
    ]
}

async fn drive(place: &Place, steps: &[Step]) {
    let mut model = Model::default();
    let mut supervisor = place.builder().open().await.unwrap();
    for (number, step) in steps.iter().enumerate() {
        let expected = model.step(step);
        let found = take(&supervisor, step).await;
        assert_eq!(found, expected, "step {number}: {step:?}");
        if matches!(step, Step::Reopen | Step::Forget) {
            close_clean(&supervisor).await;
            if let Step::Forget = step {
                forget(place).await;
            }
            supervisor = place.builder().open().await.unwrap();
        }
        compare(&model, &supervisor).await;
    }
    close_clean(&supervisor).await;
}

fn driven(place: impl Fn() -> Place, cases: u32) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(steps in proptest::collection::vec(steps(), 1..60))| {
        runtime.block_on(drive(&place(), &steps));
    });
}

#[test]
fn sessions_in_memory_are_as_the_model_says() {
    driven(Place::memory, 48);
}

#[test]
fn sessions_on_disk_are_as_the_model_says() {
    driven(Place::disk, 12);
}
