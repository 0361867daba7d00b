//! What 9P costs here and with diod: the same client, files of the same sizes, the same run, round by round in turn.
//!
//! `./bench ninep` runs it. `cargo bench --bench ninep [-- --seconds N] [-- --only WORD]`. Figures are for ratios: the machine is shared and
//! noisy, and the client is on it too.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod client;
#[path = "../peers/mod.rs"]
mod peers;
mod tasks;

use client::{Connection, Load};
use peers::{Diod, Node};
use std::time::Duration;
use tasks::{TASKS, Task};

/// Rounds of each server, in turn. The ratio is the median of the rounds': what else the machine does hits some of them.
const ROUNDS: usize = 9;
/// Connections, and operations at a time on each.
const SHAPES: &[(usize, usize)] = &[(1, 1), (1, 32), (8, 16), (32, 1), (32, 32), (64, 1)];

/// A server, as the client sees it.
#[derive(Clone)]
struct Server {
    pid: u32,
    port: u16,
    aname: String,
}

/// What was measured of one server.
#[derive(Default)]
struct Figures {
    latencies: Vec<Duration>,
    elapsed: Duration,
    cpu: Duration,
    /// Operations a second, of each round.
    rates: Vec<f64>,
}

impl Figures {
    fn add(&mut self, server: &Server, load: &mut Load, time: Duration) {
        let before = cpu_time(server.pid);
        let (latencies, elapsed) = load.run(time);
        self.cpu += cpu_time(server.pid) - before;
        self.elapsed += elapsed;
        self.rates.push(latencies.len() as f64 / elapsed.as_secs_f64());
        self.latencies.extend(latencies);
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// In microseconds.
    fn quantile(&mut self, q: f64) -> f64 {
        let index = ((self.latencies.len() - 1) as f64 * q) as usize;
        self.latencies.select_nth_unstable(index).1.as_secs_f64() * 1e6
    }

    fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }

    fn columns(&mut self) -> String {
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        format!("{:>9.0} {p50:>8.0} {p99:>8.0} {:>7.1}", self.rate(), self.cpu_us())
    }
}

/// What all threads of a process have had of the processors.
fn cpu_time(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |path: std::path::PathBuf| std::fs::read_to_string(path.join("schedstat")).ok();
    let nanoseconds = threads.flatten().filter_map(|t| of(t.path())?.split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(nanoseconds.sum())
}

fn load(server: &Server, task: &Task, (connections, depth): (usize, usize)) -> Load {
    let prepared = (0..connections).map(|_| {
        let mut connection = Connection::attach(server.port, &server.aname);
        let operations = (0..depth).map(|n| (task.operation)(&mut connection, n as u16)).collect();
        connection.load(operations);
        connection
    });
    Load::of(prepared.collect())
}

/// Both servers in turn.
fn compare(servers: [&Server; 2], tasks: [&Task; 2], shape: (usize, usize), seconds: f64) -> [Figures; 2] {
    let mut loads = [load(servers[0], tasks[0], shape), load(servers[1], tasks[1], shape)];
    let mut figures = [Figures::default(), Figures::default()];
    let time = Duration::from_secs_f64(seconds);
    for round in 0..=ROUNDS {
        for n in 0..2 {
            // The first round is for what happens once only.
            let mut thrown_away = Figures::default();
            let into = if round == 0 { &mut thrown_away } else { &mut figures[n] };
            into.add(servers[n], &mut loads[n], time);
        }
    }
    figures
}

/// The table's head; `peer` is what it is compared with.
fn head(peer: &str) {
    let columns = format!("{:>9} {:>8} {:>8} {:>7}", "ops/s", "p50 µs", "p99 µs", "cpu µs");
    println!("\n{:<44} {:>7} {columns}   {columns}   ratio", format!("against {peer}"), "c × d");
}

fn row(what: &str, (connections, depth): (usize, usize), [ours, theirs]: &mut [Figures; 2], target: Option<f64>) {
    let shape = format!("{connections}×{depth}");
    let target = target.map(|target| format!(" of {target:.2}")).unwrap_or_default();
    let mut ratios: Vec<f64> = ours.rates.iter().zip(&theirs.rates).map(|(ours, theirs)| ours / theirs).collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("{what:<44} {shape:>7} {}   {}   {ratio:.2}{target}", ours.columns(), theirs.columns());
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

/// So many machines that do not run.
fn node_with(machines: usize) -> Node {
    let node = Node::start("simulated");
    for chunk in (0..machines).collect::<Vec<_>>().chunks(1_000) {
        assert_eq!(node.new_vms(&"image=tiny memory=128M\n".repeat(chunk.len())).len(), chunk.len());
    }
    node
}

/// What diod serves is as our tree is: the same names, the same sizes.
fn diod_like(node: &Node, machines: usize) -> Option<Diod> {
    let size = |path: &str| std::fs::metadata(node.at(path)).unwrap().len() as usize;
    let files = ["vms/1/status", "vms/1/ctl"].map(|path| (path.to_owned(), size(path)));
    // Directories are there when something is in them.
    let others = (2..=machines).map(|n| (format!("vms/{n}/state"), 8));
    let folder = ["vms/new", "vms/list", "vms/json", "vms/events"].map(|path| (path.to_owned(), 0));
    let all: Vec<_> = files.into_iter().chain(others).chain(folder).collect();
    Diod::start(&all.iter().map(|(path, size)| (path.as_str(), *size)).collect::<Vec<_>>())
}

fn main() {
    let seconds: f64 = argument("--seconds").map_or(0.2, |text| text.parse().unwrap());
    let only = argument("--only").unwrap_or_default();
    let nodes = [node_with(1_000), node_with(10_000)];
    let ours = [&nodes[0], &nodes[1]].map(|n| Server { pid: n.pid(), port: n.port, aname: String::new() });
    let peers = [diod_like(&nodes[0], 1_000), diod_like(&nodes[1], 10_000)];
    let [Some(small), Some(large)] = &peers else { return println!("(no diod here: ./bench installs it)") };
    let theirs = [small, large].map(|d| Server { pid: d.pid(), port: d.port, aname: d.path.clone() });

    head("diod, tmpfs");
    for task in TASKS.iter().filter(|task| task.name.contains(&only)) {
        let which = usize::from(task.large);
        for shape in SHAPES {
            let figures = &mut compare([&ours[which], &theirs[which]], [task, task], *shape, seconds);
            row(task.name, *shape, figures, task.target(*shape));
        }
    }
    head("the same of a file that is constant");
    for [state, constant] in tasks::PAIRS.iter().filter(|[state, _]| state.name.contains(&only)) {
        for shape in SHAPES {
            let figures = &mut compare([&ours[0], &ours[0]], [state, constant], *shape, seconds);
            row(state.name, *shape, figures, Some(1.0 / 1.3));
        }
    }
}
