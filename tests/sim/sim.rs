//! The simulator: a whole cluster in one process, on simulated time, from one seed. See docs/simulator.md.
#![allow(missing_docs, clippy::indexing_slicing, clippy::panic)]

mod clients;
mod clocks;
mod driver;
mod faults;
mod history;
mod hypervisor;
mod linear;
mod machines;
mod network;
mod node;
mod placed;
mod raft;
mod random;
mod reference;
mod reporters;
mod run;
mod scale;
mod simlog;
mod steward;
mod store;
mod tree;
mod upstream;
mod wishes;
mod world;

use blixard::mutants::{Mutant, plant};
use clap::Parser;
use driver::{Sum, Wanted};
use run::Report;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// A whole cluster in one process, on simulated time, from one seed. Exits with 1 when something was wrong.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Arguments {
    /// So many seeds that count: with 200 commands, 3 faults and 1 lease that expires.
    #[arg(long)]
    seeds: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// No longer than so many minutes.
    #[arg(long)]
    minutes: Option<u64>,
    /// One seed: prints what came of it.
    #[arg(long)]
    seed: Option<u64>,
    /// Prints the trace of that one seed.
    #[arg(long)]
    trace: bool,
    /// Plants a fault, and looks for it.
    #[arg(long)]
    mutant: Option<String>,
    /// Shows the faults that can be planted.
    #[arg(long)]
    list_mutants: bool,
    /// Plants each of them, and fails if one is not found.
    #[arg(long)]
    mutants: bool,
    /// A large cluster, on one bad day: voters=5,workers=200,vms=100000.
    #[arg(long)]
    scale: Option<scale::Size>,
    /// For the driver of many seeds.
    #[arg(long, hide = true)]
    one: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match act(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("sim: {error}");
            ExitCode::from(2)
        }
    }
}

type Failed = Box<dyn std::error::Error>;

/// True: nothing was wrong.
fn act(arguments: &Arguments) -> Result<bool, Failed> {
    let mutant = arguments.mutant.as_deref().map(named).transpose()?;
    if arguments.list_mutants {
        for (name, what) in Mutant::ALL.iter().map(|mutant| mutant.describe()) {
            println!("{name:<20} {what}");
        }
        return Ok(true);
    }
    if let Some(size) = arguments.scale {
        random::fix_entropy(1);
        let folder = tempfile::tempdir()?;
        return scale::run(size, folder.path());
    }
    if let Some(seed) = arguments.seed {
        return one(seed, mutant, arguments);
    }
    linear::check_the_checker()?;
    if arguments.mutants {
        return all_mutants(arguments.first);
    }
    let within = arguments.minutes.map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = match (arguments.seeds, within, mutant) {
        (Some(seeds), ..) => seeds,
        (None, Some(_), _) => u64::MAX / 4,
        (None, None, Some(_)) => driver::MUTANT_SEEDS,
        (None, None, None) => 500,
    };
    let began = Instant::now();
    let wanted = Wanted { seeds, first: arguments.first, within, mutant, first_failure: mutant.is_some() };
    let sum = driver::run_many(wanted)?;
    print_sum(&sum, began.elapsed());
    Ok(sum.failed.is_empty())
}

fn named(name: &str) -> Result<Mutant, String> {
    let found = Mutant::ALL.iter().find(|mutant| mutant.describe().0 == name);
    found.copied().ok_or_else(|| format!("there is no fault '{name}' to be planted: --list-mutants shows them"))
}

/// Runs one seed in this process.
fn one(seed: u64, mutant: Option<Mutant>, arguments: &Arguments) -> Result<bool, Failed> {
    // Before anything in this process asks for chance.
    random::fix_entropy(seed);
    if let Some(mutant) = mutant {
        plant(mutant);
    }
    std::panic::set_hook(Box::new(|panic| {
        let mut panics = run::PANICS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        panics.push(format!("panic: {panic}"));
    }));
    let folder = tempfile::tempdir()?;
    let report = run::run(seed, folder.path(), arguments.trace);
    if arguments.one {
        println!("{}", driver::line_of(&report)?);
    } else {
        print_report(seed, &report);
    }
    Ok(report.violations.is_empty())
}

fn print_report(seed: u64, report: &Report) {
    println!("seed {seed}");
    println!("trace-hash {}", report.hash);
    println!("commands {}", report.counts.commands);
    println!("reads {}", report.counts.reads);
    println!("faults {}", report.counts.faults);
    println!("expiries {}", report.counts.expiries);
    println!("entries {}", report.counts.entries);
    println!("machines-started {}", report.counts.launches);
    println!("placed {}", report.counts.placed);
    println!("moves {}", report.counts.moves);
    println!("fenced {}", report.counts.fenced);
    println!("joined {}", report.counts.joined);
    println!("gone {}", report.counts.gone);
    println!("turned {}", report.counts.turned);
    println!("simulated-seconds {}", report.counts.simulated_ms / 1_000);
    for violation in &report.violations {
        println!("violation {violation}");
    }
}

fn print_sum(sum: &Sum, took: Duration) {
    println!(
        "{} seeds in {} s, {} of them count: {} commands, {} reads, {} faults, {} expiries, {} entries, {} machines started, {} placed, {} moved by drains, {} fenced, {} nodes joined later, {} went, {} times a worker turned, {} simulated hours",
        sum.run,
        took.as_secs(),
        sum.counted,
        sum.counts.commands,
        sum.counts.reads,
        sum.counts.faults,
        sum.counts.expiries,
        sum.counts.entries,
        sum.counts.launches,
        sum.counts.placed,
        sum.counts.moves,
        sum.counts.fenced,
        sum.counts.joined,
        sum.counts.gone,
        sum.counts.turned,
        sum.counts.simulated_ms / 3_600_000
    );
    for (seed, violation) in &sum.failed {
        println!("failed: ./sim --seed {seed}: {violation}");
    }
}

/// Each planted fault must be found.
fn all_mutants(first: u64) -> Result<bool, Failed> {
    let mut all = true;
    for mutant in Mutant::ALL {
        let wanted =
            Wanted { seeds: driver::MUTANT_SEEDS, first, within: None, mutant: Some(*mutant), first_failure: true };
        let sum = driver::run_many(wanted)?;
        let (name, _) = mutant.describe();
        match sum.failed.first() {
            Some((seed, violation)) => {
                let shown: String = violation.chars().take(160).collect();
                println!("{name:<20} found after {} seeds, by seed {seed}: {shown}", sum.run);
            }
            None => {
                println!("{name:<20} NOT FOUND in {} seeds", sum.run);
                all = false;
            }
        }
    }
    Ok(all)
}
