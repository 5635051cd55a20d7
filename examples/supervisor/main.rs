//! A supervisor on an embedded store: runs commands as durable processes, and shows, cancels,
//! recovers and prunes them. `supervisor --help` says the rest.
//!
//! ```text
//! cargo run --release --example supervisor -- run -- sh -c 'echo hello'
//! cargo run --release --example supervisor -- list --all
//! ```

mod args;
mod exit;
mod follow;
mod recover;
mod run;
mod show;
mod signals;
mod store;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use self::args::{Args, Command};
use self::exit::{Failure, say};
use self::store::Store;

fn main() -> ExitCode {
    let args = Args::parse();
    log_to_stderr();
    let code = match carry_out(args) {
        Ok(code) => code,
        Err(failure) => {
            if let Some(message) = failure.message() {
                say(&message);
            }
            failure.code()
        }
    };
    ExitCode::from(code)
}

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .init();
}

fn carry_out(args: Args) -> Result<u8, Failure> {
    let store = Store::at(args.store)?;
    let runtime = tokio::runtime::Runtime::new().map_err(Failure::System)?;
    let code = runtime.block_on(dispatch(store, args.command, args.json));
    // A write to an output that nobody reads may still be stuck: it is not waited for.
    runtime.shutdown_background();
    code
}

async fn dispatch(store: Store, command: Command, json: bool) -> Result<u8, Failure> {
    match command {
        Command::Run(args) => Box::pin(run::run(&store, args, json)).await,
        Command::Recover(args) => Box::pin(recover::recover(&store, &args, json)).await,
        Command::List(args) => show::list(&store, &args, json).await,
        Command::Get(args) => show::get(&store, &args.id, json).await,
        Command::Events(args) => show::events(&store, &args, json).await,
        Command::Cancel(args) => show::cancel(&store, &args.id, json).await,
        Command::Abandon(args) => show::abandon(&store, args, json).await,
        Command::Prune(args) => show::prune(&store, &args, json).await,
        Command::Verify => show::verify(&store, json).await,
    }
}
