//! The same durable work on Procession, on its peers and on the floor, in one run.
//!
//! Each measurement is a process of its own, on a store of its own: what one system keeps for a whole
//! process (memory, locks, settings of SQLite) is not felt by the next. The systems take turns, round
//! by round, and a ratio is the median of the ratios within a round.

mod args;
mod group;
mod load;
mod measure;
mod syncs;
mod systems;

use args::{Args, Task};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let task = match Args::parse(std::env::args().skip(1)) {
        Ok(task) => task,
        Err(problem) => {
            eprintln!("{problem}\n\n{}", args::HELP);
            std::process::exit(2);
        }
    };
    match task {
        Task::Help => println!("{}", args::HELP),
        Task::Measure(args) => measure::run(&args),
        Task::Syncs(args) => syncs::run(&args),
        Task::One(one) => measure::one(&one),
    }
}
