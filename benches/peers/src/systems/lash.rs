//! lash-sqlite-store: its process registry, called as its own runtime calls it, one transaction each.

use std::ffi::{c_char, c_int};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use lash_core::{
    LashSchema, LeaseOwnerIdentity, ProcessAwaitOutput, ProcessEventAppendRequest,
    ProcessEventSemanticsSpec, ProcessEventType, ProcessExecutionEnvRef, ProcessHandleDescriptor,
    ProcessInput, ProcessLease, ProcessProvenance, ProcessRegistration, ProcessRegistry,
    ProcessStarted, RecoveryDisposition, SessionScope, current_epoch_ms,
};
use lash_sqlite_store::SqliteProcessRegistry;
use rusqlite::{Connection, ffi};
use serde_json::json;

use super::{EVENT_TYPE, EVENTS, Figure, SESSION, Store, payload};

const LEASE_TTL_MS: u64 = 30_000;

pub struct Lash {
    registry: SqliteProcessRegistry,
    owner: LeaseOwnerIdentity,
}

impl Lash {
    pub async fn open(dir: &Path, figure: Figure, callers: usize) -> Self {
        let registry = SqliteProcessRegistry::open(&dir.join("lash"), dir.join("sessions")).await;
        let lash = Self {
            registry: registry.expect("a registry"),
            owner: LeaseOwnerIdentity::opaque("bench", "incarnation-1"),
        };
        if figure == Figure::Append {
            for caller in 0..callers {
                lash.register(&format!("p-{caller}"), external()).await;
            }
        }
        lash
    }

    /// Registers and grants: two transactions, as its interface has it.
    async fn register(&self, process: &str, (input, disposition, env): Work) {
        let note = ProcessEventType {
            name: EVENT_TYPE.to_owned(),
            payload_schema: LashSchema::any(),
            semantics: ProcessEventSemanticsSpec::default(),
        };
        let provenance = ProcessProvenance::host();
        let registration = ProcessRegistration::new(process, input, disposition, provenance)
            .with_extra_event_types([note])
            .with_execution_env_ref(env);
        let registered = self.registry.register_process(registration).await;
        registered.expect("a registration");
        let descriptor = ProcessHandleDescriptor::new(None::<String>, Some("bench"));
        let scope = SessionScope::new(SESSION);
        let granted = self.registry.grant_handle(&scope, process, descriptor);
        granted.await.expect("a grant");
    }

    async fn event(&self, process: &str, number: u64) {
        let request = ProcessEventAppendRequest::new(EVENT_TYPE, payload(number));
        let appended = self.registry.append_event(process, request).await;
        appended.expect("an append");
    }

    async fn claim(&self, process: &str) -> ProcessLease {
        let claimed = self
            .registry
            .claim_process_lease(process, &self.owner, LEASE_TTL_MS);
        let claimed = claimed.await.expect("a claim");
        claimed.acquired().expect("a free lease")
    }
}

/// What lash executes must name the environment that it is executed in.
type Work = (
    ProcessInput,
    RecoveryDisposition,
    Option<ProcessExecutionEnvRef>,
);

fn external() -> Work {
    let metadata = json!({});
    let input = ProcessInput::External { metadata };
    (input, RecoveryDisposition::ExternallyOwned, None)
}

fn engine() -> Work {
    let kind = "ten".to_owned();
    let payload = json!({});
    let input = ProcessInput::Engine { kind, payload };
    let env = ProcessExecutionEnvRef::new("env-1");
    (input, RecoveryDisposition::Rerunnable, Some(env))
}

#[async_trait::async_trait]
impl Store for Lash {
    async fn append(&self, caller: usize, number: u64) {
        self.event(&format!("p-{caller}"), number).await;
    }

    async fn start(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        self.register(&process, external()).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        self.register(&process, engine()).await;
        let lease = self.claim(&process).await;
        let started = ProcessStarted {
            owner: self.owner.clone(),
            started_at_ms: current_epoch_ms(),
        };
        let started = self.registry.record_first_started(&process, started).await;
        started.expect("a start");
        for number in 0..EVENTS {
            self.event(&process, number).await;
        }
        let output = ProcessAwaitOutput::Success {
            value: json!({ "events": EVENTS }),
            control: None,
        };
        let completed = self.registry.complete_process_with_lease(&lease, output);
        completed.await.expect("a completion");
    }
}

/// The connections that were opened since [`watch_connections`], by address.
static CONNECTIONS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

unsafe extern "C" fn opened(
    connection: *mut ffi::sqlite3,
    _error: *mut *mut c_char,
    _routines: *const ffi::sqlite3_api_routines,
) -> c_int {
    let mut connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    connections.push(connection as usize);
    ffi::SQLITE_OK
}

/// Has SQLite say which connections are opened from here on.
pub fn watch_connections() {
    // SAFETY: `opened` neither opens nor closes a connection, and leaves the extensions alone.
    unsafe { rusqlite::auto_extension::register_auto_extension(opened) }.expect("an extension");
}

/// Turns the full sync on in what lash opened: it has no setting for that, and sets another at each
/// open. Not to be called while its connections are at work.
pub fn sync_fully() {
    let connections = CONNECTIONS.lock().unwrap_or_else(PoisonError::into_inner);
    assert!(!connections.is_empty(), "lash opened no connection");
    for address in connections.iter() {
        // SAFETY: lash keeps the connection open as long as its registry, and nothing runs on it:
        // every call so far was waited for, and there was none but those of this task.
        let connection = unsafe { Connection::from_handle(*address as *mut ffi::sqlite3) };
        let connection = connection.expect("a connection");
        let full = connection.pragma_update(None, "synchronous", "FULL");
        full.expect("full sync");
        let level = connection.pragma_query_value(None, "synchronous", |row| row.get(0));
        assert_eq!(level, Ok(2), "SQLite's FULL is 2");
    }
}
