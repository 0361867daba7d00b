//! Many seeds: each in a process of its own, as many at once as there are processors.

use crate::run::{Counts, Report};
use blixard::mutants::Mutant;
use std::collections::VecDeque;
use std::io;
use std::process::{Command, Output};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// What a seed must have seen to count.
const COMMANDS_LEAST: u64 = 200;
const FAULTS_LEAST: u64 = 3;
const EXPIRIES_LEAST: u64 = 1;
/// Every so many seeds one is run twice, and must come to the same.
const TWICE_EVERY: u64 = 20;
/// Seeds within which each planted fault has to be found.
pub const MUTANT_SEEDS: u64 = 80;
/// Seeds that have found something once: they come first. One a line, and what it was.
const REGRESSIONS: &str = include_str!("regressions.txt");

/// The line by which a run tells its driver what came of it.
pub fn line_of(report: &Report) -> Result<String, serde_json::Error> {
    serde_json::to_string(report)
}

/// What came of a seed, by its line.
fn report_of(output: &Output) -> Report {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| {
        let said = String::from_utf8_lossy(&output.stderr);
        let violation = format!("it ended with {} and said nothing but: {}", output.status, said.trim());
        Report { violations: vec![violation], ..Report::default() }
    })
}

fn counts(report: &Report) -> bool {
    let Counts { commands, faults, expiries, .. } = report.counts;
    commands >= COMMANDS_LEAST && faults >= FAULTS_LEAST && expiries >= EXPIRIES_LEAST
}

fn run_apart(seed: u64, mutant: Option<Mutant>) -> io::Result<Report> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--one", "--seed", &seed.to_string()]);
    if let Some(mutant) = mutant {
        command.args(["--mutant", mutant.describe().0]);
    }
    Ok(report_of(&command.output()?))
}

/// As [`run_apart`]; now and then it is run twice.
fn run_surely(seed: u64, mutant: Option<Mutant>) -> io::Result<Report> {
    let mut report = run_apart(seed, mutant)?;
    if seed.is_multiple_of(TWICE_EVERY) {
        let again = run_apart(seed, mutant)?;
        if again.hash != report.hash {
            report.violations.push(format!("the same seed came to {} and to {}", report.hash, again.hash));
        }
    }
    Ok(report)
}

/// How many seeds are wanted, and how long may be taken.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub seeds: u64,
    pub first: u64,
    pub within: Option<Duration>,
    pub mutant: Option<Mutant>,
    /// No more after the first that fails.
    pub first_failure: bool,
}

/// What came of many.
#[derive(Debug, Default)]
pub struct Sum {
    pub run: u64,
    pub counted: u64,
    pub counts: Counts,
    /// Seeds that failed, and the first thing that was wrong with each.
    pub failed: Vec<(u64, String)>,
}

impl Sum {
    fn add(&mut self, seed: u64, report: &Report) {
        self.run += 1;
        self.counted += u64::from(counts(report));
        self.counts.add(report.counts);
        self.failed.extend(report.violations.first().map(|violation| (seed, violation.clone())));
    }
}

/// Those that have found something, once.
pub fn regressions() -> Vec<u64> {
    let seeds = REGRESSIONS.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok());
    seeds.collect()
}

/// Runs seeds until enough of them count, or the time is over.
pub fn run_many(wanted: Wanted) -> io::Result<Sum> {
    let deadline = wanted.within.map(|within| Instant::now() + within);
    let ahead: VecDeque<u64> = if wanted.mutant.is_none() { regressions().into() } else { VecDeque::new() };
    let queue = Mutex::new((ahead, wanted.first));
    let sum = Mutex::new(Sum::default());
    let lock = || sum.lock().unwrap_or_else(PoisonError::into_inner);
    let next = || {
        let done = lock();
        let enough = done.counted >= wanted.seeds || (wanted.first_failure && !done.failed.is_empty());
        // Seeds that don't count are not to go on for ever.
        let enough = enough || done.run >= 3 * wanted.seeds + 20;
        if enough || deadline.is_some_and(|deadline| Instant::now() > deadline) {
            return None;
        }
        drop(done);
        let (ahead, next) = &mut *queue.lock().unwrap_or_else(PoisonError::into_inner);
        Some(ahead.pop_front().unwrap_or_else(|| {
            *next += 1;
            *next - 1
        }))
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let worked: io::Result<()> = std::thread::scope(|scope| {
        let work = || -> io::Result<()> {
            while let Some(seed) = next() {
                let report = run_surely(seed, wanted.mutant)?;
                if wanted.mutant.is_none() {
                    for violation in &report.violations {
                        println!("seed {seed}: {violation}");
                    }
                }
                lock().add(seed, &report);
            }
            Ok(())
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|_| Err(io::Error::other("a worker panicked"))))
    });
    worked?;
    Ok(sum.into_inner().unwrap_or_else(PoisonError::into_inner))
}
