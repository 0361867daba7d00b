//! A tree over a log in memory, and clients of it.

use crate::table::{Client, Refused};
use blixard::clock::HybridClock;
use blixard::engine::hypervisor::Console;
use blixard::engine::log::MemoryLog;
use blixard::engine::state::{By, Command, NodeId, Reply, Role, VmId};
use blixard::engine::{Engine, LocalHost};
use blixard::fs::Server;
use blixard::fs::tree::{
    Answer, Caller, Creation, Credential, DirEntry, Handle, Kind, OpenMode, Opened, Place, Stat, Tree,
};
use blixard::text::{Code, Refusal, trace_level};
use bytes::Bytes;
use futures::future::BoxFuture;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{broadcast, mpsc};

/// Generous: nothing here should take long, whatever else the machine does.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A host that is made up: one console for all machines, which the test holds the other end of.
pub struct Host {
    pub output: broadcast::Sender<Bytes>,
    input: mpsc::Sender<Bytes>,
    pub typed: Mutex<mpsc::Receiver<Bytes>>,
    pub log: Mutex<Bytes>,
    pub trace_levels: Mutex<Vec<String>>,
}

impl Host {
    fn new() -> Host {
        let (input, typed) = mpsc::channel(16);
        let log = Mutex::new(Bytes::from_static(b"tiny: booting\ntiny: ready\n"));
        Host { output: broadcast::Sender::new(16), input, typed: typed.into(), log, trace_levels: Mutex::default() }
    }
}

impl LocalHost for Host {
    fn console_log(&self, _vm: VmId) -> Result<Bytes, Refusal> {
        Ok(self.log.lock().unwrap().clone())
    }

    fn console(&self, _vm: VmId) -> BoxFuture<'static, Result<Console, Refusal>> {
        let console = Console { output: self.output.subscribe(), input: self.input.clone() };
        Box::pin(async move { Ok(console) })
    }

    fn vm_stats(&self, vm: VmId) -> BoxFuture<'static, Result<Vec<(&'static str, String)>, Refusal>> {
        Box::pin(std::future::ready(Ok(vec![("running", "yes".to_owned()), ("pid", vm.to_string())])))
    }

    fn node_stats(&self) -> Result<Vec<(&'static str, String)>, Refusal> {
        Ok(vec![("load", "0.10 0.20 0.30".to_owned())])
    }

    fn status(&self) -> Vec<(String, String)> {
        vec![("hypervisor".to_owned(), "simulated".to_owned())]
    }

    fn invite(&self) -> Result<(String, [u8; 32]), Refusal> {
        Ok(("token".to_owned(), [7; 32]))
    }

    fn set_trace_level(&self, directive: &str) -> Result<(), Refusal> {
        trace_level::check(directive)?;
        self.trace_levels.lock().unwrap().push(directive.to_owned());
        Ok(())
    }
}

/// A cluster of one node with root (uid 0, admin), ann (uid 1001, operator), vic (uid 1002, viewer), an image, and its tree.
pub struct Cluster {
    pub engine: Engine,
    pub server: Server,
    pub host: Arc<Host>,
}

impl Cluster {
    pub async fn new() -> Cluster {
        let (log, committed) = MemoryLog::open();
        let clock = Arc::new(HybridClock::system());
        let engine = Engine::open(Arc::new(log), committed, clock, NodeId(1), 1).await.unwrap();
        let init = Command::Init { cluster: "test".into(), node: "alpha".into(), admin: "root".into(), admin_uid: 0 };
        engine.submit(By::Agent, vec![init]).await.unwrap();
        let up = Command::NodeUp {
            host_boot: "a-boot".into(),
            hypervisor: "simulated".into(),
            memory_bytes: 64 << 30,
            cpus: 8,
            vcpus_max: None,
            arch: "x86_64".to_owned(),
            disk_bytes: 0,
        };
        let image = Command::ImageRegister { name: "tiny".into(), size_bytes: 8 << 20, sha256: "0".repeat(64) };
        engine.submit(By::Agent, vec![up, image]).await.unwrap();
        let user = |name: &str, role, uid| Command::UserSet { name: name.into(), role, uid: Some(uid) };
        let users = vec![user("ann", Role::Operator, 1001), user("vic", Role::Viewer, 1002)];
        engine.submit(By::User("root".into()), users).await.unwrap();
        let host = Arc::new(Host::new());
        let server = Server::new(engine.clone(), host.clone(), NodeId(1), "/nowhere".into());
        Cluster { engine, server, host }
    }

    pub fn caller(&self, uid: u32) -> Caller {
        self.server.caller(&Credential::Uid(uid), "test", "direct")
    }

    pub fn root(&self) -> Caller {
        self.caller(0)
    }

    /// A command of root's, past the tree.
    pub async fn submit(&self, command: Command) -> Vec<Reply> {
        self.engine.submit(By::User("root".into()), vec![command]).await.unwrap()
    }

    /// What an agent would report.
    pub async fn report(&self, command: Command) {
        self.engine.submit(By::Agent, vec![command]).await.unwrap();
    }

    /// The place at a path; links are followed.
    pub fn find(&self, path: &str) -> Result<Place, Refusal> {
        let who = self.root();
        path.split('/').filter(|name| !name.is_empty()).try_fold(Place::ROOT, |dir, name| {
            let place = self.server.walk(&who, dir, name)?;
            match self.server.stat(&who, place)?.kind {
                Kind::Link => self.server.walk(&who, dir, &self.server.readlink(&who, place)?),
                _ => Ok(place),
            }
        })
    }

    pub fn stat(&self, path: &str) -> Stat {
        self.server.stat(&self.root(), self.find(path).unwrap()).unwrap()
    }

    pub fn open(&self, who: &Caller, path: &str, how: OpenMode) -> Result<Opened, Refusal> {
        self.server.open(who, self.find(path)?, how)
    }

    /// A file opened by root for reading and writing.
    pub fn both(&self, path: &str) -> Arc<dyn Handle> {
        self.open(&self.root(), path, OpenMode { read: true, write: true, ..OpenMode::default() }).unwrap().handle
    }

    pub async fn read(&self, path: &str) -> String {
        let how = OpenMode { read: true, nonblock: true, ..OpenMode::default() };
        let opened = self.open(&self.root(), path, how).unwrap();
        String::from_utf8(read_all(&*opened.handle).await.unwrap()).unwrap()
    }

    /// Root writes this in one write.
    pub async fn write(&self, path: &str, text: &str) -> Result<(), Refusal> {
        self.write_as(&self.root(), path, text).await
    }

    pub async fn write_as(&self, who: &Caller, path: &str, text: &str) -> Result<(), Refusal> {
        let opened = self.open(who, path, OpenMode { write: true, ..OpenMode::default() })?;
        write(&*opened.handle, text).await.map(|length| assert_eq!(length, text.len()))
    }

    /// A new VM's number.
    pub async fn vm(&self, spec: &str) -> u64 {
        let handle = self.both("vms/new");
        write(&*handle, spec).await.unwrap();
        String::from_utf8(read_all(&*handle).await.unwrap()).unwrap().trim().parse().unwrap()
    }

    /// All entries of a directory.
    pub fn list(&self, place: Place) -> Vec<DirEntry> {
        let mut entries = Vec::new();
        let mut keep = |entry| {
            entries.push(entry);
            true
        };
        self.server.readdir(&self.root(), place, 0, &mut keep).unwrap();
        entries
    }

    /// Every place of the tree but the root, with its path.
    pub fn everything(&self) -> Vec<(String, Place, DirEntry)> {
        let mut found: Vec<(String, Place, DirEntry)> = Vec::new();
        let mut folders = vec![(String::new(), Place::ROOT)];
        while let Some((path, dir)) = folders.pop() {
            for entry in self.list(dir) {
                let path = format!("{path}/{}", entry.name);
                if entry.kind == Kind::Directory {
                    folders.push((path.clone(), entry.place));
                }
                found.push((path, dir, entry));
            }
        }
        found
    }
}

/// The answer, within bounded time.
pub async fn answer<T>(answer: Answer<T>) -> Result<T, Refusal> {
    match answer {
        Answer::Now(result) => result,
        Answer::Later(waiting) => tokio::time::timeout(PATIENCE, waiting).await.expect("it answers"),
    }
}

/// Does the answer have to be waited for? Looks once.
pub fn blocks<T>(answer: Answer<T>) -> bool {
    match answer {
        Answer::Now(_) => false,
        Answer::Later(waiting) => futures::FutureExt::now_or_never(waiting).is_none(),
    }
}

pub async fn write(handle: &dyn Handle, text: impl AsRef<[u8]>) -> Result<usize, Refusal> {
    answer(handle.write(0, Bytes::copy_from_slice(text.as_ref()))).await
}

/// One read of a stream, as text.
pub async fn next(handle: &dyn Handle) -> String {
    String::from_utf8(answer(handle.read(0, 1 << 16)).await.unwrap().to_vec()).unwrap()
}

/// Reads to the end, in pieces.
pub async fn read_all(handle: &dyn Handle) -> Result<Vec<u8>, Refusal> {
    let mut all = Vec::new();
    loop {
        let piece = answer(handle.read(all.len() as u64, 1000)).await?;
        if piece.is_empty() {
            return Ok(all);
        }
        all.extend_from_slice(&piece);
    }
}

/// Root, at the tree itself.
pub struct Direct {
    runtime: tokio::runtime::Runtime,
    cluster: Cluster,
}

impl Direct {
    pub fn new() -> Direct {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let cluster = runtime.block_on(Cluster::new());
        Direct { runtime, cluster }
    }

    fn open(&self, path: &[u8], how: OpenMode) -> Result<Arc<dyn Handle>, Refusal> {
        self.cluster.open(&self.cluster.root(), text(path)?, how).map(|opened| opened.handle)
    }

    /// The directory of a path's last name, and that name.
    fn parent<'p>(&self, path: &'p [u8]) -> Result<(Place, &'p str), Refusal> {
        let path = text(path)?;
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        Ok((self.cluster.find(dir)?, name))
    }

    fn make(&self, path: &[u8], what: Creation) -> Result<(), Refusal> {
        let (dir, name) = self.parent(path)?;
        Err(self.cluster.server.refuse_create(&self.cluster.root(), dir, name, what))
    }
}

/// Names that are not UTF-8 are the fronts' affair: there is no file of such a name.
fn text(path: &[u8]) -> Result<&str, Refusal> {
    std::str::from_utf8(path).map_err(|_| Refusal::new(Code::NotFound, "not found: this name is not UTF-8"))
}

fn seen(refusal: Refusal) -> Refused {
    (refusal.code.errno(), Some(refusal.sentence))
}

impl Client for Direct {
    fn write(&mut self, path: &[u8], data: &[u8]) -> Result<(), Refused> {
        let handle = self.open(path, OpenMode { write: true, append: true, ..OpenMode::default() }).map_err(seen)?;
        self.runtime.block_on(write(&*handle, data)).map(drop).map_err(seen)
    }

    fn ask(&mut self, path: &[u8], data: &[u8]) -> Result<Vec<u8>, Refused> {
        let handle = self.open(path, OpenMode { read: true, write: true, ..OpenMode::default() }).map_err(seen)?;
        self.runtime.block_on(async {
            write(&*handle, data).await.map_err(seen)?;
            read_all(&*handle).await.map_err(seen)
        })
    }

    fn read(&mut self, path: &[u8]) -> Result<Vec<u8>, Refused> {
        let handle = self.open(path, OpenMode { read: true, nonblock: true, ..OpenMode::default() }).map_err(seen)?;
        self.runtime.block_on(read_all(&*handle)).map_err(seen)
    }

    fn remove(&mut self, path: &[u8], directory: bool) -> Result<(), Refused> {
        let (dir, name) = self.parent(path).map_err(seen)?;
        let removing = self.cluster.server.remove(&self.cluster.root(), dir, name, directory);
        self.runtime.block_on(answer(removing)).map_err(seen)
    }

    fn make_directory(&mut self, path: &[u8]) -> Result<(), Refused> {
        self.make(path, Creation::Directory).map_err(seen)
    }

    fn create(&mut self, path: &[u8]) -> Result<(), Refused> {
        self.make(path, Creation::File).map_err(seen)
    }

    fn write_after_rmdir(&mut self, path: &[u8], directory: &[u8], data: &[u8]) -> Result<(), Refused> {
        let handle = self.open(path, OpenMode { write: true, ..OpenMode::default() }).map_err(seen)?;
        self.remove(directory, true)?;
        self.runtime.block_on(write(&*handle, data)).map(drop).map_err(seen)
    }
}
