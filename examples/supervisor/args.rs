//! What the command line may say.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use procession::{CommandEngine, RecoveryDisposition, StatusFilter};

const EXAMPLES_AND_EXITS: &str = "\
Examples:
  supervisor run -- sh -c 'for i in 1 2 3; do echo step $i; sleep 1; done'
  supervisor run --id nightly --disposition rerunnable --timeout 10m -- ./backup.sh
  supervisor list --all
  supervisor events nightly --json
  supervisor recover

Exit codes:
    0  done
    1  verify: the store is damaged
    2  the command line is wrong
    4  no such process, or it was pruned
   64  an argument is outside its limits
   65  the request contradicts what the store holds (another process has the id; it has ended)
   70  anything else
   71  run: the process was abandoned, nobody knows how the command ended
   74  the store, or an output, cannot be read or written
   75  the store is in use: try again, or use another one
  130  interrupted (SIGINT)
  141  whoever read the output went away
  143  terminated (SIGTERM)
run ends with the command's own exit code: 128+n if signal n killed it, 124 after --timeout,
127 if there is no such program, 126 if it cannot be started, 130 if it was cancelled. What the
supervisor itself has to say is on stderr and begins with 'supervisor:'.";

/// Runs commands as durable, supervised processes.
///
/// A process has an identity, a durable log and exactly one outcome, and outlives whoever started
/// it. Only `run` and `recover` execute anything; the other commands look, or write down requests.
#[derive(Debug, Parser)]
#[command(name = "supervisor", version, after_help = EXAMPLES_AND_EXITS, max_term_width = 100)]
pub(crate) struct Args {
    /// The directory of the store, made if it is not there [default: in the user's data directory]
    #[arg(long, global = true, env = "PROCESSION_STORE", value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,

    /// Print JSON: one document, or for `events` and `run` one event per line
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Run(Run),
    List(List),
    Get(Get),
    Events(Events),
    Cancel(Cancel),
    Abandon(Abandon),
    Prune(Prune),
    /// Check the whole store: every log folded again, every index compared; exits 1 if damaged
    Verify,
    Recover(Recover),
}

const RUN_HELP: &str = "\
Examples:
  supervisor run -- sh -c 'echo one; exit 3'                    # exits 3
  supervisor run --timeout 10m -- make test                     # exits 124 after ten minutes
  supervisor run --id import-7 --disposition rerunnable -- ./import.sh

The command runs in the current directory and gets no input (/dev/null). Its output is recorded
line by line and shown as it is recorded: a line without its end is shown when it ends, bytes that
are no UTF-8 are replaced.

Asked again with the same id and the same command, run executes nothing: it shows what was
recorded and ends with the same exit code. The same id with another command, directory or option
is refused (65).

SIGINT cancels the command: its process group gets SIGTERM and, after --grace, SIGKILL. SIGTERM
shuts down: an owner-bound command gets --grace to finish and is abandoned after that, a
rerunnable one is stopped and left for the next run or recover. A second signal leaves at once.

run recovers what an earlier owner of the store left behind, as recover does, but waits for
nothing but its own command.";

/// Run a command as a process, follow its output, end with its exit code
#[derive(Debug, clap::Args)]
#[command(after_help = RUN_HELP)]
pub(crate) struct Run {
    /// The process's id, 1 to 256 bytes [default: a random UUID, printed on stderr]
    #[arg(long)]
    pub(crate) id: Option<String>,

    /// The session that starts it and that it is granted to
    #[arg(long, value_name = "SESSION")]
    pub(crate) session: Option<String>,

    /// What recovery may do with it after this program was killed
    #[arg(long, value_enum, default_value_t = Disposition::OwnerBound)]
    pub(crate) disposition: Disposition,

    /// When to end it by force, counted from its first start: 90s, 10m, 1h 30m
    #[arg(long, value_name = "DURATION", value_parser = positive)]
    pub(crate) timeout: Option<Duration>,

    /// How long it gets to end by itself once it was told to
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "8s")]
    pub(crate) grace: Duration,

    /// How much of its output is recorded and shown, both streams together
    #[arg(long, value_name = "BYTES", default_value_t = CommandEngine::OUTPUT_BYTES_DEFAULT)]
    pub(crate) max_output_bytes: u64,

    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "CMD")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Disposition {
    /// Never executed twice: if its owner is lost, it is abandoned
    OwnerBound,
    /// May be executed again from the beginning
    Rerunnable,
}

impl From<Disposition> for RecoveryDisposition {
    fn from(disposition: Disposition) -> Self {
        match disposition {
            Disposition::OwnerBound => Self::OwnerBound,
            Disposition::Rerunnable => Self::Rerunnable,
        }
    }
}

/// List processes: those that have not ended, unless told otherwise
#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Those that have ended, too
    #[arg(long, conflicts_with = "status")]
    pub(crate) all: bool,

    /// Only those granted to this session
    #[arg(long, value_name = "SESSION")]
    pub(crate) session: Option<String>,

    /// Only those with this status
    #[arg(long, value_enum)]
    pub(crate) status: Option<Status>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Status {
    /// Not ended
    Running,
    /// Ended well
    Completed,
    /// Failed
    Failed,
    /// Ended because it was asked to
    Cancelled,
    /// Nobody knows how it ended
    Abandoned,
    /// Ended, in whatever way
    Terminal,
    /// All
    Any,
}

impl From<Status> for StatusFilter {
    fn from(status: Status) -> Self {
        match status {
            Status::Running => Self::Running,
            Status::Completed => Self::Completed,
            Status::Failed => Self::Failed,
            Status::Cancelled => Self::Cancelled,
            Status::Abandoned => Self::Abandoned,
            Status::Terminal => Self::Terminal,
            Status::Any => Self::Any,
        }
    }
}

/// Show one process
#[derive(Debug, clap::Args)]
pub(crate) struct Get {
    /// Its id
    pub(crate) id: String,
}

/// Show the log of a process
#[derive(Debug, clap::Args)]
pub(crate) struct Events {
    /// Its id
    pub(crate) id: String,

    /// Only what comes after this sequence
    #[arg(long, value_name = "SEQUENCE", default_value_t = 0)]
    pub(crate) after: u64,
}

const CANCEL_HELP: &str = "\
A process that nobody executes and that may be run again ends at once. For another one the request
is written down, and the next run or recover carries it out. A command that runs right now holds
the store (75): end it with SIGINT to its run.";

/// Ask a process to stop
#[derive(Debug, clap::Args)]
#[command(after_help = CANCEL_HELP)]
pub(crate) struct Cancel {
    /// Its id
    pub(crate) id: String,
}

const ABANDON_HELP: &str = "\
The request is written down and ends nothing by itself: the next run or recover carries it out. The
first request stays. A process that has ended is refused (65).";

/// Ask that a process be given up
#[derive(Debug, clap::Args)]
#[command(after_help = ABANDON_HELP)]
pub(crate) struct Abandon {
    /// Its id
    pub(crate) id: String,

    /// Why
    #[arg(long)]
    pub(crate) reason: String,

    /// Who asks
    #[arg(long, value_name = "NAME", default_value = "supervisor")]
    pub(crate) by: String,
}

/// Delete processes that ended long ago, with all that is theirs
#[derive(Debug, clap::Args)]
pub(crate) struct Prune {
    /// How long ago: 7d, 12h, 0s
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    pub(crate) older_than: Duration,
}

const RECOVER_HELP: &str = "\
What may be run again is run, and recover waits until it has ended; what may not is abandoned;
requests to cancel or abandon are carried out. Nothing is shown of the output: events does that. The report
says what was done with each process and how it stands at the end.

Exits 0 also where a process that was run again failed. SIGINT and SIGTERM shut down: what runs is
stopped and left for the next run or recover. A second signal leaves at once.";

/// Carry on with what an earlier owner of the store left behind
#[derive(Debug, clap::Args)]
#[command(after_help = RECOVER_HELP)]
pub(crate) struct Recover {
    /// How long a command gets to end by itself once it was told to
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration, default_value = "8s")]
    pub(crate) grace: Duration,
}

fn positive(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it is zero".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(error.to_string()),
    }
}
