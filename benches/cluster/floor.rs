//! The floor: three nodes of bare hiqlite with a table like the log's, asked inside the leader's own process. No TLS, no line to the leader, no 9P, no
//! state machine of ours, no audit trail: what is above it is Blixard's, what is below it is the store's.
//!
//! Each node is this program again, which does what it reads on stdin. Many writers are one transaction of so many records at a time, as
//! the appender has it.

use crate::lab::{Lab, until};
use crate::load::{Figures, Task, cpu_time_of};
use hiqlite::{Client, LogSync, Node, NodeConfig, Param};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// The first argument of a node's process; its number and its folder follow.
pub const NODE: &str = "--bare-node";
const RAFT_PORT: u16 = 2391;
const API_PORT: u16 = 2392;
/// Any text that is long enough.
const SECRET: &str = "0123456789abcdef0123456789abcdef";
const INSERT: &str = "INSERT INTO log (bytes, checksum) VALUES ($1, $2)";
/// As large as an entry of the other rows.
const RECORD_BYTES: usize = 214;

struct Process {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Process {
    fn ask(&mut self, order: &str) -> String {
        writeln!(self.orders, "{order}").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }
}

/// The three nodes.
pub struct Floor(Vec<Process>);

impl Floor {
    /// Starts them; the leader makes the table.
    pub fn start(lab: &Lab) -> Floor {
        let mut floor = Floor((0..3).map(|at| spawn(lab, at)).collect());
        until("that bare hiqlite has a leader", || floor.leader().is_some());
        let leader = floor.leader().unwrap();
        assert_eq!(floor.0[leader].ask("table"), "done");
        floor
    }

    fn leader(&mut self) -> Option<usize> {
        (0..3).find(|at| self.0[*at].ask("leads") == "true")
    }

    /// Keeps so many clients of the leader busy.
    pub fn measure(&mut self, task: Task, clients: usize, seconds: f64) -> Figures {
        let leader = self.leader().unwrap();
        let pids: Vec<u32> = self.0.iter().map(|process| process.child.id()).collect();
        let before = cpu_time_of(&pids);
        let answer = self.0[leader].ask(&format!("{task:?} {clients} {seconds}"));
        let servers_cpu = cpu_time_of(&pids).saturating_sub(before);
        let latencies = answer.split(' ').map(|nanos| Duration::from_nanos(nanos.parse().unwrap()));
        let mut latencies: Vec<Duration> =
            latencies.flat_map(|latency| std::iter::repeat_n(latency, clients)).collect();
        latencies.sort_unstable();
        Figures::new(latencies, Duration::from_secs_f64(seconds), Duration::ZERO, servers_cpu)
    }
}

impl Drop for Floor {
    fn drop(&mut self) {
        for process in &mut self.0 {
            let _ = process.child.kill();
            let _ = process.child.wait();
        }
    }
}

fn spawn(lab: &Lab, at: usize) -> Process {
    let folder = lab.folder().join(format!("bare-{at}"));
    std::fs::create_dir_all(&folder).unwrap();
    let mut child = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{}", lab.namespace(at)))
        .arg(std::env::current_exe().unwrap())
        .args([NODE, &(at + 1).to_string(), folder.to_str().unwrap()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (orders, answers) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
    let mut process = Process { child, orders, answers };
    // hiqlite prints, too.
    while process.ask("there?") != "there" {}
    process
}

/// One node's process, until its stdin ends.
pub fn run_node() {
    let mut arguments = std::env::args().skip(2);
    let (number, folder) = (arguments.next().unwrap().parse().unwrap(), arguments.next().unwrap());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let client = runtime.block_on(hiqlite::start_node(config(number, Path::new(&folder)))).unwrap();
    for order in std::io::stdin().lock().lines() {
        println!("{}", runtime.block_on(obey(&client, &order.unwrap())));
    }
    std::process::exit(0);
}

fn config(number: u64, folder: &Path) -> NodeConfig {
    let at = |n: u64, port: u16| format!("10.98.0.{n}:{port}");
    let node = |id| Node { id, addr_raft: at(id, RAFT_PORT), addr_api: at(id, API_PORT) };
    let mut raft = NodeConfig::default_raft_config(10_000);
    (raft.heartbeat_interval, raft.election_timeout_min, raft.election_timeout_max) = (100, 300, 600);
    NodeConfig {
        node_id: number,
        nodes: (1..=3).map(node).collect(),
        listen_addr_api: "0.0.0.0".into(),
        listen_addr_raft: "0.0.0.0".into(),
        data_dir: folder.to_str().unwrap().to_owned().into(),
        wal_sync: LogSync::Immediate,
        wal_size: 16 * 1024 * 1024,
        secret_raft: SECRET.to_owned(),
        secret_api: SECRET.to_owned(),
        health_check_delay: Duration::ZERO,
        raft_config: raft,
        ..NodeConfig::default()
    }
}

async fn obey(client: &Client, order: &str) -> String {
    match order.split(' ').collect::<Vec<_>>()[..] {
        ["there?"] => "there".to_owned(),
        ["leads"] => client.is_leader_db().await.to_string(),
        ["table"] => {
            let table = "CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, bytes BLOB NOT NULL, checksum INTEGER NOT NULL) STRICT";
            for result in client.batch(table).await.unwrap() {
                result.unwrap();
            }
            "done".to_owned()
        }
        [task, clients, seconds] => {
            let end = Instant::now() + Duration::from_secs_f64(seconds.parse().unwrap());
            let clients = clients.parse().unwrap();
            let mut latencies = Vec::new();
            while Instant::now() < end {
                let begun = Instant::now();
                match task {
                    "Write" => write(client, clients).await,
                    _ => read(client).await,
                }
                latencies.push(begun.elapsed().as_nanos().to_string());
            }
            latencies.join(" ")
        }
        _ => panic!("{order}?"),
    }
}

async fn write(client: &Client, records: usize) {
    let insert = || (INSERT, vec![Param::Blob(vec![7; RECORD_BYTES]), Param::Integer(7)]);
    let done = client.txn((0..records).map(|_| insert()).collect::<Vec<_>>()).await.unwrap();
    for result in done {
        result.unwrap();
    }
}

async fn read(client: &Client) {
    client.query_consistent("SELECT max(seq) AS newest FROM log", vec![]).await.unwrap();
}
