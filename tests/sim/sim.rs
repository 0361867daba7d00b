//! The simulator: a whole cluster in one process, on simulated time, from one seed. See docs/simulator.md.
#![allow(missing_docs, clippy::indexing_slicing, clippy::panic)]

mod clients;
mod clocks;
mod faults;
mod history;
mod linear;
mod machines;
mod network;
mod node;
mod raft;
mod random;
mod reference;
mod run;
mod simlog;
mod store;
mod tree;
mod world;

use clap::Parser;
use std::process::ExitCode;

/// A whole cluster in one process, on simulated time, from one seed.
#[derive(Parser)]
#[command(name = "sim")]
struct Arguments {
    /// One seed: prints what came of it.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the trace while it runs.
    #[arg(long)]
    trace: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or(1);
    // Before anything in this process asks for chance.
    random::fix_entropy(seed);
    std::panic::set_hook(Box::new(|panic| {
        let mut panics = run::PANICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        panics.push(format!("panic: {panic}"));
    }));
    let folder = match tempfile::tempdir() {
        Ok(folder) => folder,
        Err(error) => {
            eprintln!("sim: no folder: {error}");
            return ExitCode::from(2);
        }
    };
    let began = std::time::Instant::now();
    let report = run::run(seed, folder.path(), arguments.trace);
    println!("{report:#?}");
    eprintln!("{:?}", began.elapsed());
    if report.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
