//! How a load is made: so many clients, each with one operation at a time, all on one thread in the network namespace of the machine whose
//! server they ask, so that the servers have what is left of this computer.

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::cell::RefCell;
use std::future::Future;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Clients that share a connection.
pub const CLIENTS_A_CONNECTION: usize = 16;
/// For so long before what counts, what happens once only.
const WARM_UP: Duration = Duration::from_millis(300);

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Task {
    /// A write, answered when it is committed.
    Write,
    /// A linearizable read of some two hundred bytes.
    Read,
}

/// Who does one operation after the other.
pub trait Client {
    /// One operation, to its answer.
    fn operate(&mut self) -> impl Future<Output = Result<(), String>>;
}

/// A cluster of three.
pub trait Peer: Sync {
    /// Who asks it.
    type Client: Client + 'static;
    /// What it is called.
    fn name(&self) -> &'static str;
    /// The position of the node that leads.
    fn leader(&self) -> usize;
    /// The servers' processes.
    fn pids(&self) -> Vec<u32>;
    /// So many clients of the node at this position, to be called in its namespace.
    fn connect(&self, at: usize, task: Task, clients: usize)
    -> impl Future<Output = Result<Vec<Self::Client>, String>>;
}

/// Runs this on a thread of its own in the network namespace.
pub fn within<T: Send, F: Future<Output = T>>(namespace: &str, run: impl FnOnce() -> F + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = std::fs::File::open(format!("/run/netns/{namespace}")).unwrap();
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, run())
        });
        thread.join().unwrap()
    })
}

/// What was measured.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    latencies: Vec<Duration>,
    elapsed: Duration,
    /// What of the time the clients' thread had a processor.
    client_cpu: Duration,
    /// What all three servers had of the processors.
    servers_cpu: Duration,
}

impl Figures {
    /// Of latencies that are sorted.
    pub fn new(latencies: Vec<Duration>, elapsed: Duration, client_cpu: Duration, servers_cpu: Duration) -> Figures {
        Figures { latencies, elapsed, client_cpu, servers_cpu }
    }

    /// Operations a second.
    pub fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// In milliseconds.
    pub fn quantile(&self, q: f64) -> f64 {
        let index = ((self.latencies.len() - 1) as f64 * q) as usize;
        self.latencies[index].as_secs_f64() * 1e3
    }

    /// The servers' cost of an operation, all three together, in microseconds.
    pub fn servers_us(&self) -> f64 {
        self.servers_cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }

    /// The clients' own cost of an operation, in microseconds.
    pub fn client_us(&self) -> f64 {
        self.client_cpu.as_secs_f64() * 1e6 / self.latencies.len() as f64
    }
}

/// What this thread has had of the processors.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// What all threads of these processes have had of the processors. Threads that have ended meanwhile are not counted.
pub fn cpu_time_of(pids: &[u32]) -> Duration {
    let threads = pids.iter().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task")).unwrap());
    let of = |path: std::path::PathBuf| std::fs::read_to_string(path.join("schedstat")).ok();
    let nanoseconds = threads.flatten().filter_map(|t| of(t.path())?.split(' ').next()?.parse::<u64>().ok());
    Duration::from_nanos(nanoseconds.sum())
}

/// Keeps so many clients of the node at this position busy.
pub fn measure<P: Peer>(peer: &P, namespace: &str, at: usize, task: Task, clients: usize, seconds: f64) -> Figures {
    within(namespace, || async {
        let clients = peer.connect(at, task, clients).await.unwrap();
        let latencies = Rc::new(RefCell::new(Vec::with_capacity(1 << 18)));
        let start = Instant::now() + WARM_UP;
        let end = start + Duration::from_secs_f64(seconds);
        let works: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let latencies = latencies.clone();
                tokio::task::spawn_local(async move {
                    loop {
                        let begun = Instant::now();
                        if begun >= end {
                            return;
                        }
                        client.operate().await.unwrap();
                        let ended = Instant::now();
                        if ended >= start && ended < end {
                            latencies.borrow_mut().push(ended - begun);
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep_until(start.into()).await;
        let before = (cpu_time(), cpu_time_of(&peer.pids()));
        tokio::time::sleep_until(end.into()).await;
        let client_cpu = cpu_time() - before.0;
        let servers_cpu = cpu_time_of(&peer.pids()).saturating_sub(before.1);
        for work in works {
            work.await.unwrap();
        }
        let mut latencies = latencies.take();
        assert!(!latencies.is_empty(), "{}: not one operation in {seconds} s", peer.name());
        latencies.sort_unstable();
        Figures::new(latencies, end - start, client_cpu, servers_cpu)
    })
}
