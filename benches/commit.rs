//! What a commit costs: `Engine::submit` beside a bare append to hiqlite, durable both, in the same run.
//!
//! `cargo bench --bench commit [-- --seconds N] [-- --dir FOLDER]`. The bare append is hiqlite's own `execute` of an INSERT of as many bytes, and,
//! where writers share a commit, its `txn` of what has gathered.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)]

use blixard::clock::HybridClock;
use blixard::engine::log::{Addresses, HiqliteLog, Member, OpenOptions};
use blixard::engine::state::{By, Command, NodeId, Role};
use blixard::engine::{DataFolder, Engine};
use blixard::peers::Loopback;
use hiqlite::{Client, LogSync, Node, NodeConfig, Param};
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The size of an entry like the ones that the engine submits here.
const ENTRY_BYTES: usize = 32;
const WRITERS: [usize; 3] = [1, 64, 256];

struct Figures {
    latencies: Vec<Duration>,
    elapsed: Duration,
}

impl Figures {
    fn quantile(&self, q: f64) -> f64 {
        let index = ((self.latencies.len() - 1) as f64 * q) as usize;
        self.latencies[index].as_secs_f64() * 1e3
    }

    fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    fn print(&self, what: &str, writers: usize) {
        let (p50, p99, rate) = (self.quantile(0.5), self.quantile(0.99), self.rate());
        println!("{what:<24} {writers:>7} {p50:>9.3} {p99:>9.3} {rate:>10.0}");
    }
}

/// So many writers, each with one write at a time, for so long.
/// The only member of a cluster, at an address of its own.
fn member() -> Member {
    let (raft, api) = Loopback::random().unwrap().addresses(1).unwrap();
    Member { raft: 1, own: Addresses { raft, api }, others: Vec::new(), forward: None }
}

async fn measure<F, W>(writers: usize, seconds: f64, write: F) -> Figures
where
    F: Fn(usize) -> W + Clone + Send + 'static,
    W: Future<Output = ()> + Send + 'static,
{
    // What happens once only should not be in the figures.
    for _ in 0..50 {
        write(0).await;
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(seconds);
    let tasks: Vec<_> = (0..writers)
        .map(|writer| {
            let write = write.clone();
            tokio::spawn(async move {
                let mut latencies = Vec::new();
                while Instant::now() < end {
                    let begun = Instant::now();
                    write(writer).await;
                    latencies.push(begun.elapsed());
                }
                latencies
            })
        })
        .collect();
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    let elapsed = start.elapsed();
    latencies.sort_unstable();
    Figures { latencies, elapsed }
}

async fn bare(folder: &Path) -> Client {
    std::fs::create_dir_all(folder).unwrap();
    let address = || "127.0.0.1:0".to_owned();
    let client = hiqlite::start_node(NodeConfig {
        node_id: 1,
        nodes: vec![Node { id: 1, addr_raft: address(), addr_api: address() }],
        listen_addr_api: "127.0.0.1".into(),
        listen_addr_raft: "127.0.0.1".into(),
        data_dir: folder.to_str().unwrap().to_owned().into(),
        wal_sync: LogSync::Immediate,
        wal_size: 16 * 1024 * 1024,
        secret_raft: "0123456789abcdef".to_owned(),
        secret_api: "0123456789abcdef".to_owned(),
        ..NodeConfig::default()
    })
    .await
    .unwrap();
    client.batch("CREATE TABLE log (seq INTEGER PRIMARY KEY AUTOINCREMENT, bytes BLOB NOT NULL)").await.unwrap();
    client
}

async fn engine(folder: &Path) -> Engine {
    let data = DataFolder::open(folder).unwrap();
    let (log, committed) = HiqliteLog::open(&data.path().join("log"), &member(), OpenOptions::default()).await.unwrap();
    let options = blixard::engine::Options { audit: Some(data.path().join("audit")), ..Default::default() };
    let clock = Arc::new(HybridClock::system());
    let engine = Engine::open_with(Arc::new(log), committed, clock, NodeId(1), data.boot(), options).await.unwrap();
    let init = Command::Init { cluster: "bench".into(), node: "alpha".into(), admin: "root".into(), admin_uid: 0 };
    engine.submit(By::Agent, vec![init]).await.unwrap();
    engine
}

/// A command that changes the state each time.
fn command(writer: usize, role: Role) -> Vec<Command> {
    vec![Command::UserSet { name: format!("writer{writer}"), role, uid: None }]
}

fn argument(name: &str) -> Option<String> {
    let mut arguments = std::env::args().skip_while(|argument| argument != name);
    arguments.nth(1)
}

#[tokio::main]
async fn main() {
    let seconds: f64 = argument("--seconds").map_or(3.0, |text| text.parse().unwrap());
    let parent = match argument("--dir") {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir_in("."),
    };
    let parent = parent.unwrap();
    let client = bare(&parent.path().join("bare")).await;
    let engine = engine(&parent.path().join("engine")).await;
    println!("{:<24} {:>7} {:>9} {:>9} {:>10}", "durable commit", "writers", "p50 ms", "p99 ms", "commits/s");
    for writers in WRITERS {
        let append = client.clone();
        let bare = measure(writers, seconds, move |_writer| {
            let client = append.clone();
            async move {
                let values = vec![Param::Blob(vec![0x5a; ENTRY_BYTES])];
                client.execute("INSERT INTO log (bytes) VALUES ($1)", values).await.unwrap();
            }
        })
        .await;
        bare.print("bare hiqlite append", writers);
        let submitter = engine.clone();
        let ours = measure(writers, seconds, move |writer| {
            let engine = submitter.clone();
            async move {
                let role = if engine.state().seq() % 2 == 0 { Role::Viewer } else { Role::Operator };
                engine.submit(By::User("root".into()), command(writer, role)).await.unwrap();
            }
        })
        .await;
        ours.print("engine submit", writers);
        let (times, rates) = (ours.quantile(0.5) / bare.quantile(0.5), ours.rate() / bare.rate());
        println!("{:<24} {writers:>7} {times:>8.2}x {:>9} {rates:>9.2}x", "  engine / bare", "");
    }
    engine.close().await;
    client.shutdown().await.unwrap();
}
