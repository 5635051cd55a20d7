//! A runtime that is stopped (SIGSTOP) for longer than its leases last, and goes on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use procession::*;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::child::mouth;
use super::kill::{Victim, again};
use super::line::Line;
use super::work::{Run, Say, note, runs, store_dir};

/// The variable that tells the child where its store is.
pub(crate) const PLACE: &str = "PROCESSION_STOPPED_PLACE";

const TTL: Duration = Duration::from_millis(1_500);
const RENEW_EVERY: Duration = Duration::from_millis(250);

fn go(dir: &Path) -> PathBuf {
    dir.join("go")
}

/// Notes itself, and runs until there is a file; writes once more when it has lost its lease.
struct Hold {
    dir: PathBuf,
    say: Say,
}

#[async_trait::async_trait]
impl ProcessEngine for Hold {
    fn kind(&self) -> &str {
        "hold"
    }
    async fn run(&self, cx: ProcessContext, _payload: Value) -> EngineResult {
        note(&self.dir, &cx);
        let said = |what: &str| Line::Said {
            what: format!("{what} {} {}", cx.process_id(), cx.attempt()),
        };
        // Outlives the attempt, as code that was not told in time does.
        let (lost, late, say) = (cx.clone(), said("refused"), Arc::clone(&self.say));
        tokio::spawn(async move {
            lost.lease_lost().await;
            let request = ProcessEventAppendRequest::new("late", json!({}));
            match lost.emit_durable(request).await {
                Err(Error::Superseded { .. }) => say(late),
                other => say(Line::Bad {
                    what: format!("a late write: {other:?}"),
                }),
            }
        });
        (self.say)(said("running"));
        while !go(&self.dir).exists() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(json!(cx.attempt()))
    }
}

/// The process that is stopped.
pub(crate) async fn run(dir: PathBuf) {
    let say = mouth();
    let supervisor = Supervisor::builder(store_dir(&dir))
        .lease(LeaseTimings::new(TTL, RENEW_EVERY).unwrap())
        .sweep_every(Duration::from_millis(50))
        .engine(Hold {
            dir,
            say: Arc::clone(&say),
        })
        .open()
        .await
        .unwrap();
    let processes = supervisor.processes();
    for (id, disposition) in [
        ("again", RecoveryDisposition::Rerunnable),
        ("once", RecoveryDisposition::OwnerBound),
    ] {
        let input = ProcessInput::engine("hold", json!({}));
        let request = ProcessStartRequest::new(id, input, disposition, ProcessOriginator::host())
            .with_event_type(ProcessEventType::new("late"));
        let controller = ScopedEffectController::inline(ExecutionScope::operation("test"));
        processes.start(request, controller).await.unwrap();
    }
    let both = ["again".to_owned(), "once".to_owned()];
    processes.await_all(&both, None).await.unwrap();
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
    say(Line::Said {
        what: "closed".to_owned(),
    });
    std::future::pending::<()>().await;
}

pub(crate) fn a_runtime_that_was_stopped_too_long_fences_itself_and_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path();
    std::fs::create_dir(dir.join("runs")).unwrap();
    let mut command = again("stopped_child");
    command.env(PLACE, dir);
    let victim = Victim::spawn(command);
    let mut lines = Vec::new();
    let mut heard = |what: &str| {
        let line = Line::Said {
            what: what.to_owned(),
        };
        if !lines.iter().any(|(_, known)| *known == line) {
            victim.until(&mut lines, |said| *said == line);
        }
        let found = lines.iter().find(|(_, said)| *said == line);
        found.unwrap().0
    };
    heard("running again 1");
    heard("running once 1");

    let pid = Pid::from_raw(i32::try_from(victim.id()).unwrap()).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // What is tested is that this much time passes.
    std::thread::sleep(TTL + RENEW_EVERY);
    let resumed = Instant::now();
    kill_process(pid, Signal::CONT).unwrap();

    assert!(heard("refused again 1") > resumed);
    assert!(heard("refused once 1") > resumed);
    assert!(heard("running again 2") > resumed);
    std::fs::write(go(dir), "").unwrap();
    heard("closed");
    victim.kill();

    let attempts = |id| -> Vec<u32> { runs(dir, id).iter().map(|run: &Run| run.attempt).collect() };
    assert_eq!(attempts("again"), [1, 2]);
    assert_eq!(attempts("once"), [1]);
    tokio::runtime::Runtime::new().unwrap().block_on(look(dir));
}

async fn look(dir: &Path) {
    let builder = Supervisor::builder(store_dir(dir)).recover(false);
    let supervisor = builder.open().await.unwrap();
    let report = supervisor.verify().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let processes = supervisor.processes();

    let log = processes.events("again", 0).await.unwrap();
    let types: Vec<_> = log.iter().map(|event| event.event_type.as_str()).collect();
    let expected = [
        "process.started",
        "process.owner_lost",
        "process.started",
        "process.completed",
    ];
    assert_eq!(types, expected, "{log:?}");
    let (first, second) = (&log[0].payload, &log[2].payload);
    // A new incarnation of the same runtime, in the same epoch, under a token that rose.
    let of = |payload: &Payload, name: &str| payload["owner"][name].clone();
    assert_ne!(of(first, "incarnation_id"), of(second, "incarnation_id"));
    assert_eq!(of(first, "store_epoch"), of(second, "store_epoch"));
    assert!(first["fencing_token"].as_u64() < second["fencing_token"].as_u64());

    let once = processes.record("once").await.unwrap().unwrap();
    let Some(ProcessAwaitOutput::Abandoned { evidence }) = once.status.output() else {
        panic!("{once:?}");
    };
    assert_eq!(evidence.writer, AbandonWriter::Sweep);
    assert_eq!(evidence.owner, once.first_started.map(|first| first.owner));
    assert_eq!(once.attempt, 1);
    assert_eq!(
        once.last_sequence, 2,
        "started and abandoned, and nothing late"
    );
    supervisor
        .shutdown(ShutdownOptions::default())
        .await
        .unwrap();
}
