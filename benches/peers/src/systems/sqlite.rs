//! A hand-written table in SQLite: WAL, full sync, one transaction per group.

use std::path::Path;

use rusqlite::{Connection, Transaction, TransactionBehavior, params};

use super::{EVENT_TYPE, EVENTS, SESSION, Store, payload};
use crate::group::Group;

const SCHEMA: &str = "
    CREATE TABLE processes (id TEXT PRIMARY KEY, record TEXT NOT NULL, updates INTEGER NOT NULL)
        WITHOUT ROWID;
    CREATE TABLE grants (scope TEXT, process TEXT, PRIMARY KEY (scope, process)) WITHOUT ROWID;
    CREATE INDEX granted ON grants (process);
    CREATE TABLE leases (process TEXT PRIMARY KEY, token INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE events (process TEXT, sequence INTEGER, kind TEXT NOT NULL, payload TEXT NOT NULL,
        PRIMARY KEY (process, sequence)) WITHOUT ROWID;";

/// A change of a process.
enum Change {
    /// It begins, with a grant.
    Start,
    Claim,
    Event(&'static str, u64),
}

pub struct Sqlite {
    group: Group<(String, Change)>,
}

impl Sqlite {
    pub fn open(dir: &Path) -> Self {
        let mut connection = Connection::open(dir.join("sqlite")).expect("a database");
        connection
            .pragma_update(None, "journal_mode", "WAL")
            .expect("a write-ahead log");
        connection
            .pragma_update(None, "synchronous", "FULL")
            .expect("full sync");
        connection.execute_batch(SCHEMA).expect("a schema");
        let group = Group::new(move |group: Vec<(String, Change)>| {
            let transaction = connection
                .transaction_with_behavior(TransactionBehavior::Immediate)
                .expect("a transaction");
            for (process, change) in &group {
                apply(&transaction, process, change).expect("a change");
            }
            transaction.commit().expect("a commit");
        });
        Self { group }
    }

    async fn commit(&self, process: &str, change: Change) {
        self.group.commit((process.to_owned(), change)).await;
    }
}

fn apply(transaction: &Transaction<'_>, process: &str, change: &Change) -> rusqlite::Result<()> {
    let prepare = |statement| transaction.prepare_cached(statement);
    match change {
        Change::Start => {
            // As large as the record of such a process is.
            let record = format!("{:300}", "{}");
            prepare("INSERT INTO processes VALUES (?1, ?2, 0)")?
                .execute(params![process, record])?;
            prepare("INSERT INTO grants VALUES (?1, ?2)")?.execute(params![SESSION, process])?;
        }
        Change::Claim => {
            prepare("INSERT OR REPLACE INTO leases VALUES (?1, 1)")?.execute(params![process])?;
        }
        Change::Event(kind, sequence) => {
            let payload = payload(*sequence).to_string();
            prepare("INSERT INTO events VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![process, sequence, kind, payload])?;
            prepare("UPDATE processes SET updates = updates + 1 WHERE id = ?1")?
                .execute(params![process])?;
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl Store for Sqlite {
    async fn append(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}");
        if number == 0 {
            self.commit(&process, Change::Start).await;
        }
        self.commit(&process, Change::Event(EVENT_TYPE, number))
            .await;
    }

    async fn start(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        self.commit(&process, Change::Start).await;
    }

    async fn lifecycle(&self, caller: usize, number: u64) {
        let process = format!("p-{caller}-{number}");
        self.commit(&process, Change::Start).await;
        self.commit(&process, Change::Claim).await;
        self.commit(&process, Change::Event("started", 1)).await;
        for sequence in 2..EVENTS + 2 {
            let event = Change::Event(EVENT_TYPE, sequence);
            self.commit(&process, event).await;
        }
        self.commit(&process, Change::Event("completed", EVENTS + 2))
            .await;
    }
}
