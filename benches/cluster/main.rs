//! What a cluster of three costs beside etcd's: commits through the leader and through a follower, linearizable reads, the time without a
//! leader, growth at rest. Both clusters stand on the same machines (network namespaces), on the same file system, with fsync, in the same
//! run, and are measured in turn.
//!
//! `./bench cluster` installs etcd and runs this. `cargo bench --bench cluster [-- --quick] [-- --seconds N] [-- --rounds N] [-- --only WORD]
//! [-- --clients N]`, where WORD is commits, reads, gaps or rest. Figures are for ratios: the computer is shared and noisy, and the clients are on it too. Nodes of Blixard speak
//! TLS with each other and keep an audit trail; etcd's members speak plain HTTP.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod etcd;
mod floor;
mod gaps;
#[path = "../../tests/images/mod.rs"]
mod images;
#[path = "../../tests/cluster/lab.rs"]
#[expect(dead_code, reason = "the tests use all of it")]
mod lab;
mod load;
mod rest;
mod tree;

use etcd::Etcd;
use floor::Floor;
use lab::{Lab, NAMES};
use load::{Figures, Peer, Task, measure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;
use tree::Tree;

/// Writers, or readers, at a time.
const WRITERS: [usize; 3] = [1, 64, 256];
const READERS: [usize; 2] = [1, 64];

/// How long and how often it is measured.
struct Plan {
    seconds: f64,
    rounds: usize,
    /// How often the leader is ended, in each of the two ways.
    ends: usize,
    rest: Duration,
    only: Option<String>,
    /// So many clients alone.
    clients: Option<usize>,
}

impl Plan {
    fn of_arguments() -> Plan {
        let quick = std::env::args().any(|argument| argument == "--quick");
        let number = |name: &str, usual: f64| argument(name).map_or(usual, |text| text.parse().unwrap());
        let (seconds, rounds, ends, rest) = if quick { (0.5, 1, 1, 5.0) } else { (2.0, 5, 5, 180.0) };
        Plan {
            seconds: number("--seconds", seconds),
            rounds: number("--rounds", rounds as f64) as usize,
            ends: number("--ends", ends as f64) as usize,
            rest: Duration::from_secs_f64(number("--rest", rest)),
            only: argument("--only"),
            clients: argument("--clients").map(|text| text.parse().unwrap()),
        }
    }

    fn has(&self, what: &str) -> bool {
        self.only.as_deref().is_none_or(|only| what.contains(only))
    }
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The rounds of one side.
struct Side(Vec<Figures>);

impl Side {
    fn of(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        median(self.0.iter().map(figure).collect())
    }

    fn columns(&self) -> String {
        let (p50, p99) = (self.of(|f| f.quantile(0.5)), self.of(|f| f.quantile(0.99)));
        let (rate, servers, clients) =
            (self.of(Figures::rate), self.of(Figures::servers_us), self.of(Figures::client_us));
        format!("{rate:>8.0} {p50:>8.2} {p99:>8.2} {servers:>6.0} {clients:>5.0}")
    }
}

/// The median of the rounds' own ratios: what else the computer does hits some of them.
fn ratio(ours: &Side, theirs: &Side, figure: impl Fn(&Figures) -> f64) -> f64 {
    median(ours.0.iter().zip(&theirs.0).map(|(ours, theirs)| figure(ours) / figure(theirs)).collect())
}

fn head() {
    let columns = format!("{:>8} {:>8} {:>8} {:>6} {:>5}", "ops/s", "p50 ms", "p99 ms", "cpu µs", "cl.");
    println!("{:<26} {:>4}  {columns}  {columns}   ratio", "blixard, then etcd", "at");
}

/// One row: both in turn, round by round. One client is judged by its median, many by how much they do together.
fn row(plan: &Plan, lab: &Lab, (tree, etcd): (&Tree, &Etcd), task: Task, through_leader: bool, clients: usize) {
    let other = |leader: usize| if through_leader { leader } else { (leader + 1) % 3 };
    let (mut ours, mut theirs) = (Side(Vec::new()), Side(Vec::new()));
    for _ in 0..plan.rounds {
        let at = other(tree.leader());
        ours.0.push(measure(tree, &lab.namespace(at), at, task, clients, plan.seconds));
        let at = other(etcd.leader());
        theirs.0.push(measure(etcd, &lab.namespace(at), at, task, clients, plan.seconds));
    }
    let through = if through_leader { "leader" } else { "follower" };
    let (what, verdict) = match (task, clients) {
        (Task::Write, 1) => ("commits", format!("p50 {:.2}, at most 1.2", ratio(&ours, &theirs, |f| f.quantile(0.5)))),
        (Task::Write, _) => ("commits", format!("ops {:.2}, at least 3", ratio(&ours, &theirs, Figures::rate))),
        (Task::Read, _) => ("reads", format!("ops {:.2}, at least 1", ratio(&ours, &theirs, Figures::rate))),
    };
    println!("{what:<8} through {through:<9} {clients:>4}  {}  {}   {verdict}", ours.columns(), theirs.columns());
}

fn loads(plan: &Plan, lab: &Lab, peers: (&Tree, &Etcd)) {
    println!(
        "one write of Blixard's is an entry of about {} bytes, one of etcd's a value of {}",
        tree::entry_bytes(),
        etcd::VALUE_BYTES
    );
    head();
    for (task, name, clients) in [(Task::Write, "commits", &WRITERS[..]), (Task::Read, "reads", &READERS[..])] {
        if plan.has(name) {
            for through_leader in [true, false] {
                let wanted = clients.iter().filter(|clients| plan.clients.is_none_or(|only| only == **clients));
                wanted.for_each(|clients| row(plan, lab, peers, task, through_leader, *clients));
            }
        }
    }
}

/// What the store costs by itself, beside etcd again.
fn floors(plan: &Plan, lab: &Lab, etcd: &Etcd) {
    println!(
        "\nbare hiqlite, asked in the leader's own process (writers: as one transaction), then etcd through its leader"
    );
    let mut floor = Floor::start(lab);
    for (task, name, clients) in [(Task::Write, "commits", &WRITERS[..]), (Task::Read, "reads", &READERS[..1])] {
        let wanted = clients.iter().filter(|clients| plan.clients.is_none_or(|only| only == **clients));
        for clients in wanted.filter(|_| plan.has(name)) {
            let (mut ours, mut theirs) = (Side(Vec::new()), Side(Vec::new()));
            for _ in 0..plan.rounds {
                ours.0.push(floor.measure(task, *clients, plan.seconds));
                let at = etcd.leader();
                theirs.0.push(measure(etcd, &lab.namespace(at), at, task, *clients, plan.seconds));
            }
            let (p50, ops) = (ratio(&ours, &theirs, |f| f.quantile(0.5)), ratio(&ours, &theirs, Figures::rate));
            println!("{name:<26} {clients:>4}  {}  {}   p50 {p50:.2}, ops {ops:.2}", ours.columns(), theirs.columns());
        }
    }
}

fn shown(gaps: &[f64]) -> String {
    gaps.iter().map(|gap| format!("{gap:.2}")).collect::<Vec<_>>().join(" ")
}

/// The leader is ended, again and again.
fn ends(plan: &Plan, lab: &Lab, tree: &mut Tree, etcd: &mut Etcd) {
    println!("\nseconds without a successful write (through a follower), each time");
    for (signal, name) in [(Signal::KILL, "SIGKILL"), (Signal::TERM, "SIGTERM")] {
        let (mut ours, mut theirs, mut refused) = (Vec::new(), Vec::new(), (0, 0));
        for _ in 0..plan.ends {
            let leads = tree.leader();
            let through = (leads + 1) % 3;
            let pid = Pid::from_raw(tree.nodes[leads].pid() as i32).unwrap();
            let end = || kill_process(pid, signal).unwrap();
            let (gap, no) = gaps::gap(tree, &lab.namespace(through), through, end);
            ours.push(gap.as_secs_f64());
            refused.0 += no;
            tree.again(leads, signal);
            let leads = etcd.leader();
            let through = (leads + 1) % 3;
            let pid = Pid::from_raw(etcd.pid(leads) as i32).unwrap();
            let end = || kill_process(pid, signal).unwrap();
            let (gap, no) = gaps::gap(etcd, &lab.namespace(through), through, end);
            theirs.push(gap.as_secs_f64());
            refused.1 += no;
            etcd.end(leads, signal);
            etcd.again(leads);
        }
        let (ours_median, theirs_median) = (median(ours.clone()), median(theirs.clone()));
        let target = match signal {
            Signal::KILL => format!("ratio {:.2}, at most 1.5", ours_median / theirs_median),
            _ => "at most 0.5 s".to_owned(),
        };
        println!("{name}: blixard {ours_median:.2} ({}; {} refused)", shown(&ours), refused.0);
        println!("{name}: etcd    {theirs_median:.2} ({}; {} refused)   {target}", shown(&theirs), refused.1);
    }
}

/// What one server takes, in KiB, by part.
type Taken = Vec<(&'static str, u64)>;

/// The parts of a node's data folder that grow.
const PARTS: [(&str, &str); 3] = [("raft log", "log/logs"), ("database", "log/state_machine"), ("audit", "audit")];

fn taken(tree: &Tree, etcd: &Etcd) -> Vec<(String, Taken)> {
    let ours = (0..3).map(|at| {
        let node = &tree.nodes[at];
        let parts = PARTS.map(|(what, folder)| (what, rest::disk_kib(&node.data().join(folder))));
        let entries = node.value("status", "seq").unwrap().parse().unwrap();
        let all = [("memory", rest::rss_kib(node.pid())), ("disk", rest::disk_kib(node.data()))];
        let taken = all.into_iter().chain(parts).chain([("entries", entries)]).collect();
        (format!("blixard {}", NAMES[at]), taken)
    });
    let theirs = (0..3).map(|at| {
        let taken = vec![("memory", rest::rss_kib(etcd.pid(at))), ("disk", rest::disk_kib(etcd.folder(at)))];
        (format!("etcd {at}"), taken)
    });
    ours.chain(theirs).collect()
}

/// What both take while nothing happens. What grows in a minute is bounded: Raft's log by limits.log_keep, the database by the snapshot that is
/// due every 20,000 entries and SQLite's own log, the audit trail by its days and bytes; renewals of leases are not in the latter.
fn rest(plan: &Plan, tree: &Tree, etcd: &Etcd) {
    let seconds = plan.rest.as_secs_f64();
    println!(
        "\nat rest, over {seconds:.0} s: KiB (entries: their number) now, and by how much more in a day if it went on so"
    );
    let before = taken(tree, etcd);
    std::thread::sleep(plan.rest);
    for ((whose, before), (_, after)) in before.into_iter().zip(taken(tree, etcd)) {
        let columns = before.iter().zip(&after).map(|((what, before), (_, after))| {
            let a_day = (*after as f64 - *before as f64) * 86_400.0 / seconds;
            format!("{what} {after} {a_day:+.0}")
        });
        println!("{whose:<14} {}", columns.collect::<Vec<_>>().join(", "));
    }
}

fn main() {
    if std::env::args().nth(1).as_deref() == Some(floor::NODE) {
        return floor::run_node();
    }
    let plan = Plan::of_arguments();
    let lab = Lab::new(3);
    let mut tree = Tree::start(&lab);
    let Some(mut etcd) = Etcd::start(&lab) else { return println!("(no etcd here: ./bench installs it)") };
    if plan.has("commits") || plan.has("reads") {
        loads(&plan, &lab, (&tree, &etcd));
        floors(&plan, &lab, &etcd);
    }
    if plan.has("gaps") {
        ends(&plan, &lab, &mut tree, &mut etcd);
    }
    if plan.has("rest") {
        rest(&plan, &tree, &etcd);
    }
}
