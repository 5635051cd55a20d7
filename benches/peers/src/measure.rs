//! Rounds of measurements, their medians and the ratios within a round.

use std::process::{Command, Stdio};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::args::{Args, One};
use crate::load;
use crate::syncs;
use crate::systems::{self, Figure, System};

/// The figures, and with how many callers.
pub const CELLS: [(Figure, usize); 5] = [
    (Figure::Append, 1),
    (Figure::Append, 64),
    (Figure::Append, 256),
    (Figure::Start, 64),
    (Figure::Lifecycle, 64),
];

pub fn run(args: &Args) {
    std::fs::create_dir_all(&args.dir).expect("a directory to measure in");
    for (figure, callers) in CELLS {
        let systems = System::ALL.into_iter();
        let systems: Vec<_> = systems
            .filter(|system| args.wants(figure, callers, *system))
            .collect();
        // By system, then by round.
        let mut measured: Vec<Vec<Value>> = vec![Vec::new(); systems.len()];
        for round in 0..args.rounds {
            for turn in 0..systems.len() {
                // Another one begins each round, so that nobody always follows the same neighbour.
                let at = (turn + round) % systems.len();
                let place = tempfile::tempdir_in(&args.dir).expect("a directory");
                let one = One {
                    figure,
                    callers,
                    system: systems[at],
                    time: args.time,
                    dir: place.path().to_owned(),
                    marks: false,
                };
                measured[at].push(in_a_process(&one));
            }
        }
        for (system, rounds) in systems.iter().zip(&measured) {
            print_figure(figure, callers, *system, rounds);
        }
        print_ratios(figure, callers, &systems, &measured);
    }
}

fn print_figure(figure: Figure, callers: usize, system: System, rounds: &[Value]) {
    let rates = sorted(rounds.iter().map(|round| field(round, "per_second")));
    let middle = |name| median(&sorted(rounds.iter().map(|round| field(round, name))));
    print(&[
        ("figure", json!(figure.to_string())),
        ("callers", json!(callers)),
        ("system", json!(system.to_string())),
        ("per_second", whole(median(&rates))),
        ("lowest", whole(rates[0])),
        ("highest", whole(rates[rates.len() - 1])),
        ("p50_us", whole(middle("p50_us"))),
        ("p99_us", whole(middle("p99_us"))),
        ("rounds", json!(rounds.len())),
        ("durability", json!(system.durability())),
    ]);
}

fn print_ratios(figure: Figure, callers: usize, systems: &[System], measured: &[Vec<Value>]) {
    for of in [System::Procession, System::ProcessionEach] {
        if let Some(at) = systems.iter().position(|one| *one == of) {
            print_ratios_of(figure, callers, of, &measured[at], systems, measured);
        }
    }
}

/// The ratios of what waits for each event have a name of their own.
fn print_ratios_of(
    figure: Figure,
    callers: usize,
    of: System,
    ours: &[Value],
    systems: &[System],
    measured: &[Vec<Value>],
) {
    let name = match of {
        System::ProcessionEach => format!("{figure}-each"),
        _ => figure.to_string(),
    };
    for (system, theirs) in systems.iter().zip(measured) {
        if matches!(system, System::Procession | System::ProcessionEach) {
            continue;
        }
        let rounds = ours.iter().zip(theirs);
        let ratios = sorted(
            rounds.map(|(ours, theirs)| field(ours, "per_second") / field(theirs, "per_second")),
        );
        print(&[
            ("ratio", json!(name)),
            ("callers", json!(callers)),
            ("to", json!(system.to_string())),
            (
                "value",
                json!((median(&ratios) * 1_000.0).round() / 1_000.0),
            ),
        ]);
    }
}

/// Prints a line of JSON whose fields stand in this order. (serde_json can keep an order, but would
/// do so for all of this program, and Procession is measured as it is.)
pub fn print(fields: &[(&str, Value)]) {
    let fields = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"));
    println!("{{{}}}", fields.collect::<Vec<_>>().join(","));
}

fn whole(value: f64) -> Value {
    json!(value.round() as u64)
}

fn field(round: &Value, name: &str) -> f64 {
    round[name].as_f64().expect("a figure")
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2])
}

fn in_a_process(one: &One) -> Value {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    let output = quiet(command.args(one.args()))
        .stderr(Stdio::inherit())
        .output()
        .expect("a measurement");
    assert!(output.status.success(), "{one:?}: {}", output.status);
    serde_json::from_slice(&output.stdout).expect("a measurement's answer")
}

/// Without a log: duroxide would write one to standard output.
pub fn quiet(command: &mut Command) -> &mut Command {
    command.env("RUST_LOG", "off")
}

/// Measures one system, in this process, and prints what it measured.
pub fn one(one: &One) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .expect("a runtime");
    let measured = runtime.block_on(async {
        let store = systems::open(one.system, &one.dir, one.figure, one.callers).await;
        let (working, figure, marks) = (Arc::clone(&store), one.figure, one.marks);
        let call = move |caller, number| {
            let store = Arc::clone(&working);
            async move {
                match figure {
                    Figure::Append => store.append(caller, number).await,
                    Figure::Start => store.start(caller, number).await,
                    Figure::Lifecycle => store.lifecycle(caller, number).await,
                }
                if marks {
                    syncs::mark(syncs::ANSWERED);
                }
            }
        };
        if marks {
            syncs::mark(syncs::BEGIN);
        }
        load::run(one.callers, one.time, call, store.drain()).await
    });
    println!(
        "{}",
        json!({
            "per_second": measured.per_second(),
            "p50_us": measured.quantile_us(50),
            "p99_us": measured.quantile_us(99),
        })
    );
    // Without closing what was opened: its directory goes with it.
    std::process::exit(0);
}
