//! Spawning the supervisor binary, bounded in time, with nothing left behind.

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take here, on a machine that is busy with other tests.
const PATIENCE: Duration = Duration::from_secs(60);

/// The binary, as `cargo test` builds it beside the tests.
fn binary() -> PathBuf {
    let tests = std::env::current_exe().expect("the path of this test");
    let target = tests
        .parent()
        .and_then(Path::parent)
        .expect("target/*/deps");
    let binary = target.join("examples/supervisor");
    let built = fs::metadata(&binary)
        .and_then(|found| found.modified())
        .unwrap_or_else(|error| {
            panic!(
                "{} is not there ({error}): `cargo test` builds it, `cargo test --test supervisor` \
                 does not, run `cargo build --example supervisor` first",
                binary.display()
            )
        });
    let newest = newest_source();
    assert!(
        newest <= built,
        "{} is older than its sources: run `cargo build --example supervisor` first",
        binary.display()
    );
    binary
}

fn newest_source() -> SystemTime {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/supervisor");
    let modified = |entry: std::io::Result<fs::DirEntry>| entry?.metadata()?.modified();
    fs::read_dir(sources)
        .expect("the sources of the example")
        .map(|entry| modified(entry).expect("a source of the example"))
        .max()
        .expect("at least one source")
}

/// Waits until something is so.
pub(crate) fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A store, and a place for what commands leave.
pub(crate) struct Place {
    dir: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("PROCESSION_STORE", self.path("store"))
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Runs the binary to its end.
    pub(crate) fn done(&self, args: &[&str]) -> Done {
        self.spawn(args).end()
    }

    /// The same where it has to end well; its output as JSON.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let done = self.done(args);
        assert_eq!(done.code, Some(0), "{args:?}: {done:?}");
        serde_json::from_str(&done.stdout).expect("one JSON document")
    }

    /// The log of a process.
    pub(crate) fn events(&self, id: &str) -> Vec<Value> {
        let done = self.done(&["events", id, "--json"]);
        assert_eq!(done.code, Some(0), "{done:?}");
        json_lines(&done.stdout)
    }

    /// Where a process stands.
    pub(crate) fn get(&self, id: &str) -> Value {
        self.json(&["get", id, "--json"])
    }

    pub(crate) fn spawn(&self, args: &[&str]) -> Running {
        let mut command = self.command(args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Running::new(command.spawn().expect("the binary starts"))
    }

    /// The same with what the runtime logs in a file of the place, to wait for it there.
    pub(crate) fn spawn_logged(&self, args: &[&str], log: &str) -> Running {
        let mut command = self.command(args);
        let log = File::create(self.path(log)).expect("a file");
        command.env("RUST_LOG", "procession=info");
        command.stdout(Stdio::piped()).stderr(log);
        Running::new(command.spawn().expect("the binary starts"))
    }

    pub(crate) fn until_logged(&self, log: &str, text: &str) {
        until(text, || {
            fs::read_to_string(self.path(log)).is_ok_and(|log| log.contains(text))
        });
    }

    /// A named pipe. It is open in both directions as long as this lives, so that neither end waits
    /// for the other to open it.
    pub(crate) fn fifo(&self, name: &str) -> File {
        let path = self.path(name);
        let made = Command::new("mkfifo").arg(&path).status();
        assert!(made.expect("mkfifo").success());
        let both = OpenOptions::new().read(true).write(true).open(path);
        both.expect("the named pipe")
    }

    /// How many lines a file of the place has: how often a command was executed.
    pub(crate) fn lines_of(&self, name: &str) -> usize {
        fs::read_to_string(self.path(name)).map_or(0, |text| text.lines().count())
    }

    pub(crate) fn assert_clean(&self) {
        let report = self.json(&["verify", "--json"]);
        assert_eq!(report["problems"], Value::Array(Vec::new()), "{report}");
    }
}

/// Lines of JSON.
pub(crate) fn json_lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

/// How the binary ended. No code where a signal ended it.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// The binary while it runs. It is ended with this value.
pub(crate) struct Running {
    child: Child,
    stdout: Option<BufReader<ChildStdout>>,
    stderr: Option<JoinHandle<String>>,
    /// Ends it if it takes too long, so that no read of its output waits for ever.
    watchdog: Option<Sender<()>>,
}

impl Running {
    pub(crate) fn new(mut child: Child) -> Self {
        let stdout = child.stdout.take().map(BufReader::new);
        let stderr = child.stderr.take().map(|mut stderr| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stderr.read_to_string(&mut text).expect("stderr is UTF-8");
                text
            })
        });
        let pid = Pid::from_child(&child);
        let (watchdog, disarmed) = channel();
        std::thread::spawn(move || {
            // Disarmed before the child is waited for, so that its number is still its own.
            if disarmed.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                let _ = kill_process(pid, Signal::KILL);
            }
        });
        Self {
            child,
            stdout,
            stderr,
            watchdog: Some(watchdog),
        }
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).expect("it runs");
    }

    /// Kills it, and waits until it is gone.
    pub(crate) fn kill(mut self) {
        self.watchdog = None;
        self.child.kill().expect("it runs");
        self.child.wait().expect("it is ours");
    }

    /// The next line of its output. The test fails with whoever runs it if there never is one.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        let stdout = self.stdout.as_mut().expect("stdout is read");
        stdout.read_line(&mut line).expect("stdout is UTF-8");
        assert!(
            line.ends_with('\n'),
            "it ended before it said a line: {line:?}"
        );
        line.trim_end_matches('\n').to_owned()
    }

    /// The line of JSON that says an event of this type; those before it are skipped.
    pub(crate) fn event(&mut self, event_type: &str) -> Value {
        loop {
            let event: Value = serde_json::from_str(&self.line()).expect("a line of JSON");
            if event["event_type"] == event_type {
                return event;
            }
        }
    }

    /// Reads no further.
    pub(crate) fn close_stdout(&mut self) {
        self.stdout = None;
    }

    /// Waits until it ends; its output from here on.
    pub(crate) fn end(mut self) -> Done {
        let stdout = self.stdout.take().map(|mut stdout| {
            std::thread::spawn(move || {
                let mut text = String::new();
                stdout.read_to_string(&mut text).expect("stdout is UTF-8");
                text
            })
        });
        self.watchdog = None;
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("it is ours") {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(2));
        };
        let text = |reader: Option<JoinHandle<String>>| {
            reader.map_or_else(String::new, |reader| reader.join().expect("it was read"))
        };
        Done {
            code: status.code(),
            stdout: text(stdout),
            stderr: text(self.stderr.take()),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended and reaped already, or a test failed.
        self.watchdog = None;
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What is alive of a process group.
pub(crate) fn group_members(group: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").expect("/proc");
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid: &u32| {
        let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
            return false;
        };
        // After the name, which may hold anything: state, parent, group.
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut fields = after_name.split_whitespace();
        let dead = matches!(fields.next(), Some("Z" | "X") | None);
        !dead && fields.nth(1) == Some(&group.to_string())
    })
    .collect()
}

/// Lets a command that reads a named pipe go on.
pub(crate) fn go_on(mut fifo: &File) {
    fifo.write_all(b"go on\n").expect("the named pipe");
}

pub(crate) fn output_of(mut command: Command) -> Output {
    command.output().expect("the binary starts")
}
