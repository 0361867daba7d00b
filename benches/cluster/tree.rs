//! Blixard's side: three nodes, and clients that write and read files of the tree over 9P on loopback.

use crate::lab::{self, Lab, Node};
use crate::load::{CLIENTS_A_CONNECTION, Client, Peer, Task};
use blixard::clock::HybridTime;
use blixard::engine::state::{By, Command, Conditions, Entry, EntryId, NodeId, SpecChanges, VmId, VmVerb};
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::{Data, Dialect, Header, List, NOFID, NOTAG, NumericId, Reply, Request, linux};
use bytes::{Bytes, BytesMut};
use rustix::process::Signal;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, oneshot};

/// Where each node listens on its own loopback.
const PORT: u16 = 5641;
const MSIZE: u32 = 64 * 1024;
/// Tags, and as many fids, that each client has to itself.
const TAGS_A_CLIENT: u16 = 8;
/// VMs, which never run: each writer changes its own.
pub const VMS: usize = 256;

/// The nodes.
pub struct Tree {
    pub nodes: Vec<Node>,
}

impl Tree {
    /// Three voters, and the VMs.
    pub fn start(lab: &Lab) -> Tree {
        let mut nodes: Vec<Node> = (0..3).map(|at| Node::new(lab, at)).collect();
        for node in &mut nodes {
            let socket = format!("unix!{}/sock", node.data().display());
            node.flags = ["--listen", &socket, "--listen", &format!("tcp!127.0.0.1!{PORT}")].map(str::to_owned).into();
        }
        nodes[0].found();
        for at in 1..3 {
            let (before, rest) = nodes.split_at_mut(at);
            rest[0].join(&before[0]);
        }
        lab::await_voters(&nodes, 3);
        let lines = "image=tiny memory=128M\n".repeat(VMS);
        let made = nodes[0].new_object("vms/new", lines.trim_end()).unwrap();
        assert_eq!(made.lines().count(), VMS);
        lab::await_same(&nodes);
        Tree { nodes }
    }

    /// What was ended by this signal starts again.
    pub fn again(&mut self, at: usize, signal: Signal) {
        match signal {
            Signal::KILL => self.nodes[at].kill(),
            _ => self.nodes[at].stop(),
        }
        self.nodes[at].start(&[]);
        lab::await_voters(&self.nodes, 3);
        lab::await_same(&self.nodes);
    }
}

/// What a writer writes, the one and the other in turn: two changes in one transaction, which make an entry of some 200 bytes.
fn changes(vm: usize) -> [Bytes; 2] {
    let name = |letter: &str| format!("{}{vm:03}", letter.repeat(60));
    let text = |first: &str, second: &str| {
        let line = |letter, cpus| format!("set name={} image=tiny cpus={cpus} memory=128M grace=30s\n", name(letter));
        Bytes::from(line(first, 1) + &line(second, 2))
    };
    [text("a", "b"), text("c", "d")]
}

/// The size of the entry that a write makes, nearly.
pub fn entry_bytes() -> usize {
    let change = |letter: &str, cpus| Command::Vm {
        vm: VmId(100),
        verb: VmVerb::Set {
            name: Some(letter.repeat(63)),
            changes: SpecChanges {
                image: Some("tiny".to_owned()),
                cpus: Some(cpus),
                memory_bytes: Some(128 << 20),
                grace_ms: Some(30_000),
                ..SpecChanges::default()
            },
        },
        conditions: Conditions::default(),
    };
    let id = EntryId { node: NodeId(1), boot: 1, n: 100_000 };
    let now = blixard::clock::system_millis().unwrap_or_default();
    let at = HybridTime::from_millis(now);
    let commands = vec![change("a", 1), change("b", 2)];
    Entry { id, at, by: By::User("root".to_owned()), commands }.encode().len()
}

impl Peer for Tree {
    type Client = TreeClient;

    fn name(&self) -> &'static str {
        "blixard"
    }

    fn leader(&self) -> usize {
        lab::leader(&self.nodes)
    }

    fn pids(&self) -> Vec<u32> {
        self.nodes.iter().map(Node::pid).collect()
    }

    async fn connect(&self, _at: usize, task: Task, clients: usize) -> Result<Vec<TreeClient>, String> {
        let mut made = Vec::with_capacity(clients);
        while made.len() < clients {
            let link = Link::attach().await?;
            for n in 0..CLIENTS_A_CONNECTION.min(clients - made.len()) {
                let (base, vm) = (n as u16 * TAGS_A_CLIENT + 1, made.len() + 1);
                made.push(TreeClient::open(link.clone(), base, vm, task).await?);
            }
        }
        Ok(made)
    }
}

/// An answer: its type and what follows the header.
type Answer = (u8, Vec<u8>);

/// A connection, attached: fid 0 is the root. Those who use it share its writes, as they come together.
pub struct Link {
    output: RefCell<BytesMut>,
    more: Notify,
    waiting: RefCell<HashMap<u16, oneshot::Sender<Answer>>>,
}

impl Link {
    pub async fn attach() -> Result<Rc<Link>, String> {
        let stream = TcpStream::connect(("127.0.0.1", PORT)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let (reading, writing) = stream.into_split();
        let link =
            Rc::new(Link { output: RefCell::default(), more: Notify::new(), waiting: RefCell::new(HashMap::new()) });
        tokio::task::spawn_local(link.clone().send(writing));
        tokio::task::spawn_local(link.clone().receive(reading));
        link.ask(NOTAG, &Request::Version { msize: MSIZE, version: "9P2000.L" }).await?;
        let attach = Request::Attach { fid: 0, afid: NOFID, uname: "root", aname: "", n_uname: NumericId(0) };
        link.ask(1, &attach).await?;
        Ok(link)
    }

    async fn send(self: Rc<Link>, mut stream: OwnedWriteHalf) {
        loop {
            let output = self.output.take();
            if output.is_empty() {
                self.more.notified().await;
            } else if stream.write_all(&output).await.is_err() {
                return;
            }
        }
    }

    async fn receive(self: Rc<Link>, mut stream: OwnedReadHalf) {
        let mut input = BytesMut::with_capacity(2 * MSIZE as usize);
        while stream.read_buf(&mut input).await.is_ok_and(|count| count > 0) {
            while let Some(header) = input.get(..HEADER_BYTES).map(|bytes| Header::decode(bytes).unwrap()) {
                if input.len() < header.size as usize {
                    break;
                }
                let message = input.split_to(header.size as usize);
                if let Some(waiter) = self.waiting.borrow_mut().remove(&header.tag) {
                    let _gone = waiter.send((header.kind, message[HEADER_BYTES..].to_vec()));
                }
            }
        }
        // Whoever waits hears that there is no answer.
        self.waiting.borrow_mut().clear();
    }

    /// Sends a request; the answer comes as the server likes.
    fn post(&self, tag: u16, request: &Request<'_>) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.borrow_mut().insert(tag, sender);
        request.encode(Dialect::L, tag, &mut self.output.borrow_mut()).unwrap();
        self.more.notify_one();
        receiver
    }

    /// Asks, and waits for an answer that is no refusal.
    pub async fn ask(&self, tag: u16, request: &Request<'_>) -> Result<(), String> {
        answered(request.kind(), self.post(tag, request)).await
    }

    /// Walks from the root to a file and opens it.
    pub async fn open(&self, tag: u16, fid: u32, path: &[&str], flags: u32) -> Result<(), String> {
        let mut scratch = BytesMut::new();
        let names = List::of(path, &mut scratch).map_err(|error| error.to_string())?;
        self.ask(tag, &Request::Walk { fid: 0, newfid: fid, names }).await?;
        self.ask(tag, &Request::Lopen { fid, flags }).await
    }
}

async fn answered(asked: u8, answer: oneshot::Receiver<Answer>) -> Result<(), String> {
    let (kind, body) = answer.await.map_err(|_| "the connection has ended".to_owned())?;
    // R is T and one, but for the errors.
    if kind == asked + 1 {
        return Ok(());
    }
    Err(format!("{:?}", Reply::decode(Dialect::L, kind, &body)))
}

/// One client.
pub struct TreeClient {
    link: Rc<Link>,
    base: u16,
    task: Task,
    texts: [Bytes; 2],
    turn: usize,
}

impl TreeClient {
    async fn open(link: Rc<Link>, base: u16, vm: usize, task: Task) -> Result<TreeClient, String> {
        let id = vm.to_string();
        let (file, flags) = match task {
            Task::Write => ("ctl", linux::open::WRITE_ONLY),
            Task::Read => ("status", linux::open::READ_ONLY),
        };
        link.open(base, base.into(), &["vms", &id, file], flags).await?;
        Ok(TreeClient { link, base, task, texts: changes(vm), turn: 0 })
    }

    async fn write(&mut self) -> Result<(), String> {
        self.turn = 1 - self.turn;
        let data = Data(&self.texts[self.turn]);
        self.link.ask(self.base, &Request::Write { fid: self.base.into(), offset: 0, data }).await
    }

    /// The barrier, then the file, as `blixard cat --sync` does it: walk, open and read of `sync` are sent together, and its clunk with
    /// the read of the file.
    async fn read(&mut self) -> Result<(), String> {
        let (link, base) = (&self.link, self.base);
        let (fid, sync, count) = (u32::from(base), u32::from(base + 1), MSIZE / 2);
        let mut scratch = BytesMut::new();
        let names = List::of(&["sync"], &mut scratch).map_err(|error| error.to_string())?;
        let walk = Request::Walk { fid: 0, newfid: sync, names };
        let open = Request::Lopen { fid: sync, flags: linux::open::READ_ONLY };
        let barrier = Request::Read { fid: sync, offset: 0, count };
        let asked = [walk, open, barrier].map(|request| (request.kind(), request));
        let answers: Vec<_> =
            asked.iter().zip(base + 1..).map(|((kind, request), tag)| (*kind, link.post(tag, request))).collect();
        for (kind, answer) in answers {
            answered(kind, answer).await?;
        }
        let clunk = link.post(base + 1, &Request::Clunk { fid: sync });
        link.ask(base, &Request::Read { fid, offset: 0, count }).await?;
        answered(Request::Clunk { fid: sync }.kind(), clunk).await
    }
}

impl Client for TreeClient {
    async fn operate(&mut self) -> Result<(), String> {
        match self.task {
            Task::Write => self.write().await,
            Task::Read => self.read().await,
        }
    }
}
