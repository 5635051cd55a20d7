//! The fifteen signatures that are fixed: this file compiles only against each of them as written.

use std::future::Future;

use procession::{
    ObservedProcess, ObservedProcessEvent, ProcessAwaitOutput, ProcessCancelSummary, ProcessEvent,
    ProcessEventAppendRequest, ProcessListFilter, ProcessPruneReport, ProcessRecord,
    ProcessStartRequest, ProcessWorkObserver, ProcessWorkSnapshot, Processes, Result,
    ScopedEffectController, SessionScope,
};

// Each takes the method as a plain function: argument types are matched exactly, not coerced, and
// the future may be sent to another thread.
fn one<'a, A, T, F: Future<Output = Result<T>> + Send>(_: fn(&'a Processes, A) -> F) {}
fn two<'a, A, B, T, F: Future<Output = Result<T>> + Send>(_: fn(&'a Processes, A, B) -> F) {}
fn three<'a, A, B, C, T, F: Future<Output = Result<T>> + Send>(_: fn(&'a Processes, A, B, C) -> F) {
}
fn five<'a, A, B, C, D, E, T, F: Future<Output = Result<T>> + Send>(
    _: fn(&'a Processes, A, B, C, D, E) -> F,
) {
}

/// Stands for every type that can be turned into a text.
struct Named;

impl From<Named> for String {
    fn from(_: Named) -> Self {
        "named".to_owned()
    }
}

fn clone_of<T: Clone + Send + Sync + 'static>() {}

/// The lifetimes of all arguments may differ.
#[expect(
    clippy::extra_unused_lifetimes,
    reason = "they are used in the types that are pinned"
)]
fn pinned<'a, 'b, 'c>() {
    two::<ProcessStartRequest, ScopedEffectController<'b>, ProcessRecord, _>(Processes::start);
    one::<&'b ProcessListFilter, Vec<ObservedProcess>, _>(Processes::list);
    two::<&'b SessionScope, &'c ProcessListFilter, Vec<ObservedProcess>, _>(
        Processes::list_granted_to,
    );
    two::<&'b SessionScope, &'c ProcessListFilter, Vec<ObservedProcess>, _>(
        Processes::list_originated_by,
    );
    one::<&'b str, Option<ObservedProcess>, _>(Processes::get);
    two::<&'b str, u64, Vec<ObservedProcessEvent>, _>(Processes::events);
    one::<&'b str, ProcessAwaitOutput, _>(Processes::await_output);
    two::<&'b str, ScopedEffectController<'c>, ProcessCancelSummary, _>(Processes::cancel);
    five::<
        &'b str,
        &'static str,
        String,
        ProcessEventAppendRequest,
        ScopedEffectController<'c>,
        ProcessEvent,
        _,
    >(Processes::signal);
    five::<
        &'b str,
        Named,
        Named,
        ProcessEventAppendRequest,
        ScopedEffectController<'c>,
        ProcessEvent,
        _,
    >(Processes::signal);
    one::<&'static str, ProcessWorkSnapshot, _>(Processes::session_snapshot);
    one::<Named, ProcessWorkSnapshot, _>(Processes::session_snapshot);
    let _: fn(&'a Processes) -> Result<ProcessWorkObserver> = Processes::observer;
    one::<ScopedEffectController<'b>, Vec<ProcessCancelSummary>, _>(Processes::cancel_all);
    three::<&'b SessionScope, &'b SessionScope, &'c [String], (), _>(Processes::transfer);
    one::<u64, ProcessPruneReport, _>(Processes::prune);
    three::<&'b str, Named, Option<String>, ObservedProcess, _>(Processes::request_abandon);
    three::<&'b str, &'static str, Option<String>, ObservedProcess, _>(Processes::request_abandon);
}

#[test]
fn the_fifteen_signatures_are_as_they_were_promised() {
    pinned();
    clone_of::<Processes>();
    clone_of::<ProcessWorkObserver>();
}
