//! etcd's side: Debian's, three of them on the same machines, and clients that speak its own protocol (gRPC over HTTP/2, connections kept).

use crate::lab::{Lab, until};
use crate::load::{CLIENTS_A_CONNECTION, Client, Peer, Task, within};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use tokio::net::TcpStream;

/// The size of a value.
pub const VALUE_BYTES: usize = 200;
/// Where clients and the other members come in.
const PORT: u16 = 2379;
const PEER_PORT: u16 = 2380;
/// What of an answer may be on its way, in bytes: more than any has.
const WINDOW_BYTES: u32 = 1 << 20;

/// The members.
pub struct Etcd {
    namespaces: Vec<String>,
    folders: Vec<PathBuf>,
    processes: Vec<Option<Child>>,
}

fn url(at: usize, port: u16) -> String {
    format!("http://10.98.0.{}:{port}", at + 1)
}

impl Etcd {
    /// Three members; None: there is no etcd here.
    pub fn start(lab: &Lab) -> Option<Etcd> {
        let there = Command::new("etcd").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        there.ok()?;
        let namespaces: Vec<String> = (0..3).map(|at| lab.namespace(at)).collect();
        let folders = (0..3).map(|at| lab.folder().join(format!("etcd-{at}"))).collect();
        let mut etcd = Etcd { namespaces, folders, processes: (0..3).map(|_| None).collect() };
        (0..3).for_each(|at| etcd.spawn(at));
        (0..3).for_each(|at| etcd.await_ready(at));
        Some(etcd)
    }

    fn spawn(&mut self, at: usize) {
        let members: Vec<String> = (0..3).map(|n| format!("e{n}={}", url(n, PEER_PORT))).collect();
        let (own, peer) = (format!("http://127.0.0.1:{PORT}"), url(at, PEER_PORT));
        let child = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", self.namespaces[at]))
            .args(["etcd", "--name", &format!("e{at}"), "--data-dir", self.folders[at].to_str().unwrap()])
            .args(["--listen-client-urls", &own, "--advertise-client-urls", &own])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &members.join(","), "--initial-cluster-state", "new"])
            .args(["--logger", "zap", "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        self.processes[at] = Some(child);
    }

    fn await_ready(&self, at: usize) {
        until("that etcd is ready", || self.status(at).is_some_and(|(_, leader)| leader != 0));
    }

    /// Its identity, and whom it takes for the leader.
    fn status(&self, at: usize) -> Option<(u64, u64)> {
        within(&self.namespaces[at], || async {
            let answer = Line::connect().await.ok()?.call("Maintenance/Status", Bytes::new()).await.ok()?;
            let header = fields(&answer).find_map(|(number, value)| (number == 1).then_some(value))?;
            let Value::Bytes(header) = header else { return None };
            let number = |fields: &[u8], wanted| {
                self::fields(fields).find_map(|(number, value)| match value {
                    Value::Number(value) if number == wanted => Some(value),
                    _ => None,
                })
            };
            Some((number(header, 2)?, number(&answer, 4).unwrap_or(0)))
        })
    }

    pub fn pid(&self, at: usize) -> u32 {
        self.processes[at].as_ref().unwrap().id()
    }

    pub fn folder(&self, at: usize) -> &std::path::Path {
        &self.folders[at]
    }

    /// Ends it by this signal.
    pub fn end(&mut self, at: usize, signal: rustix::process::Signal) {
        let mut child = self.processes[at].take().unwrap();
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap();
    }

    /// Starts it again.
    pub fn again(&mut self, at: usize) {
        self.spawn(at);
        self.await_ready(at);
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in self.processes.iter_mut().flatten() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Peer for Etcd {
    type Client = EtcdClient;

    fn name(&self) -> &'static str {
        "etcd"
    }

    fn leader(&self) -> usize {
        let mut found = None;
        until("a leader of etcd", || {
            let running = (0..3).filter(|at| self.processes[*at].is_some());
            found = running.into_iter().find(|at| self.status(*at).is_some_and(|(own, leader)| own == leader));
            found.is_some()
        });
        found.unwrap()
    }

    fn pids(&self) -> Vec<u32> {
        (0..3).map(|at| self.pid(at)).collect()
    }

    async fn connect(&self, _at: usize, task: Task, clients: usize) -> Result<Vec<EtcdClient>, String> {
        let mut made = Vec::with_capacity(clients);
        while made.len() < clients {
            let line = Line::connect().await?;
            for _ in 0..CLIENTS_A_CONNECTION.min(clients - made.len()) {
                let mut client = EtcdClient::new(line.clone(), made.len(), Task::Write);
                // So that there is something to be read.
                client.operate().await?;
                made.push(EtcdClient { task, ..client });
            }
        }
        Ok(made)
    }
}

/// A connection that is kept.
#[derive(Clone)]
pub struct Line(SendRequest<Bytes>);

impl Line {
    pub async fn connect() -> Result<Line, String> {
        let text = |error: h2::Error| error.to_string();
        let stream = TcpStream::connect(("127.0.0.1", PORT)).await.map_err(|error| error.to_string())?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW_BYTES).initial_connection_window_size(WINDOW_BYTES);
        let (line, connection) = builder.handshake(stream).await.map_err(text)?;
        tokio::task::spawn_local(connection);
        Ok(Line(line))
    }

    /// A unary call: a message, and the message that answers it.
    pub async fn call(&self, method: &str, message: Bytes) -> Result<Bytes, String> {
        let text = |error: h2::Error| error.to_string();
        let request = Request::post(format!("http://127.0.0.1:{PORT}/etcdserverpb.{method}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(|error| error.to_string())?;
        let mut line = self.0.clone().ready().await.map_err(text)?;
        let (answer, mut body) = line.send_request(request, false).map_err(text)?;
        let mut framed = BytesMut::with_capacity(5 + message.len());
        framed.put_u8(0);
        framed.put_u32(message.len() as u32);
        framed.put(message);
        body.send_data(framed.freeze(), true).map_err(text)?;
        let answer = answer.await.map_err(text)?;
        check(answer.headers())?;
        let mut body = answer.into_body();
        let mut framed = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part.map_err(text)?;
            body.flow_control().release_capacity(part.len()).map_err(text)?;
            framed.extend_from_slice(&part);
        }
        if let Some(trailers) = body.trailers().await.map_err(text)? {
            check(&trailers)?;
        }
        if framed.len() < 5 {
            return Err("there is no message in the answer".to_owned());
        }
        Ok(framed.split_off(5).freeze())
    }
}

fn check(headers: &HeaderMap) -> Result<(), String> {
    match headers.get("grpc-status").map(|status| status.as_bytes()) {
        None | Some(b"0") => Ok(()),
        Some(_) => Err(format!("{:?}", headers.get("grpc-message"))),
    }
}

fn put_number(mut number: u64, into: &mut BytesMut) {
    while number >= 0x80 {
        into.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    into.put_u8(number as u8);
}

/// A field of bytes in protobuf's encoding.
fn put_bytes(field: u64, bytes: &[u8], into: &mut BytesMut) {
    put_number(field << 3 | 2, into);
    put_number(bytes.len() as u64, into);
    into.put_slice(bytes);
}

/// A field's value; etcd's answers have these two kinds here.
enum Value<'m> {
    Number(u64),
    Bytes(&'m [u8]),
}

fn take_number(from: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = from.split_first()?;
        *from = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

fn fields(mut message: &[u8]) -> impl Iterator<Item = (u64, Value<'_>)> {
    std::iter::from_fn(move || {
        let key = take_number(&mut message)?;
        let value = match key & 7 {
            0 => Value::Number(take_number(&mut message)?),
            2 => {
                let length = take_number(&mut message)? as usize;
                let (value, rest) = message.split_at_checked(length)?;
                message = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        Some((key >> 3, value))
    })
}

/// One client, with a key of its own.
pub struct EtcdClient {
    line: Line,
    task: Task,
    put: Bytes,
    range: Bytes,
}

impl EtcdClient {
    pub fn new(line: Line, number: usize, task: Task) -> EtcdClient {
        let key = format!("client{number:03}");
        let (mut put, mut range) = (BytesMut::new(), BytesMut::new());
        put_bytes(1, key.as_bytes(), &mut put);
        put_bytes(2, &[b'v'; VALUE_BYTES], &mut put);
        put_bytes(1, key.as_bytes(), &mut range);
        EtcdClient { line, task, put: put.freeze(), range: range.freeze() }
    }
}

impl Client for EtcdClient {
    async fn operate(&mut self) -> Result<(), String> {
        match self.task {
            Task::Write => self.line.call("KV/Put", self.put.clone()).await.map(drop),
            // Unless it is asked to be serializable only, a range is linearizable.
            Task::Read => {
                let answer = self.line.call("KV/Range", self.range.clone()).await?;
                if answer.len() > VALUE_BYTES { Ok(()) } else { Err("the value is not there".to_owned()) }
            }
        }
    }
}
