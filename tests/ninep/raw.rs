//! A server on the toy tree, and a client that sends whatever bytes a test wants.

use super::toy::Toy;
use blixard::fs::ninep::{Door, Options, Server};
use blixard::ninep::field::Tail;
use blixard::ninep::linux::open as flag;
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::stat::{Counted, open as mode};
use blixard::ninep::{Dialect, Extended, Header, NOFID, NONUNAME, NOTAG, Reply, Request, Stat};
use blixard::text::Dial;
use bytes::BytesMut;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what has to come, before it fails.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A running server. Dropped, it stops.
pub struct Running {
    pub toy: Arc<Toy>,
    pub socket: PathBuf,
    pub tcp: Dial,
    /// Where those come in whose handshake was done elsewhere.
    pub door: Door,
    stop: CancellationToken,
    thread: Option<std::thread::JoinHandle<()>>,
    _folder: tempfile::TempDir,
}

impl Running {
    pub fn start() -> Running {
        Running::start_for_guests(Some(2_000_000_000..2_100_000_000))
    }

    pub fn start_for_guests(guests_uids: Option<Range<u32>>) -> Running {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("sock");
        let (toy, stop) = (Arc::new(Toy::default()), CancellationToken::new());
        let (said, heard) = std::sync::mpsc::channel();
        let (tree, token, path) = (toy.clone(), stop.clone(), socket.clone());
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async move {
                let dials = [Dial::Unix(path), "tcp!127.0.0.1!0".parse().unwrap()];
                let server = Server::bind(tree, &dials, Options { guests_uids, ..Options::default() }).await.unwrap();
                said.send((server.dials().unwrap(), server.door())).unwrap();
                server.serve(token).await;
            });
        });
        let (dials, door) = heard.recv_timeout(PATIENCE).expect("the server starts");
        Running { toy, socket, tcp: dials[1].clone(), door, stop, thread: Some(thread), _folder: folder }
    }

    pub fn unix(&self) -> Dial {
        Dial::Unix(self.socket.clone())
    }

    pub fn port(&self) -> u16 {
        match &self.tcp {
            Dial::Tcp { port, .. } => *port,
            Dial::Tls { .. } | Dial::Unix(_) => unreachable!(),
        }
    }

    /// A connection on which nothing was said.
    pub fn connect(&self) -> Raw<UnixStream> {
        let stream = UnixStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, msize: 8192, dialect: Dialect::L }
    }

    /// The same over TCP.
    pub fn connect_tcp(&self) -> Raw<TcpStream> {
        let stream = TcpStream::connect(("127.0.0.1", self.port())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Raw { stream, msize: 8192, dialect: Dialect::L }
    }

    /// An attached connection: fid 0 is the root.
    pub fn session(&self) -> Raw<UnixStream> {
        self.session_with(64 * 1024)
    }

    pub fn session_with(&self, msize: u32) -> Raw<UnixStream> {
        self.session_of(Dialect::L, msize)
    }

    pub fn session_in(&self, dialect: Dialect) -> Raw<UnixStream> {
        self.session_of(dialect, 64 * 1024)
    }

    pub fn session_of(&self, dialect: Dialect, msize: u32) -> Raw<UnixStream> {
        let mut raw = Raw { dialect, ..self.connect() };
        raw.greet(msize);
        raw
    }

    pub fn stop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Waits until something is so.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !so() {
        assert!(std::time::Instant::now() < deadline, "{what} did not come about");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A received message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    pub dialect: Dialect,
    pub kind: u8,
    pub tag: u16,
    pub body: Vec<u8>,
}

impl Message {
    pub fn reply(&self) -> Reply<'_> {
        Reply::decode(self.dialect, self.kind, &self.body).unwrap()
    }

    /// The errno, if it is one.
    pub fn errno(&self) -> Option<i32> {
        match self.reply() {
            Reply::Lerror { ecode } => Some(ecode as i32),
            Reply::Error { errno: Extended(errno), .. } => Some(errno as i32),
            _ => None,
        }
    }

    /// Is it the refusal with this errno? In 9P2000 there is none: a word in the sentence tells clients which it is.
    pub fn refuses_with(&self, errno: i32) -> bool {
        match self.reply() {
            Reply::Lerror { ecode } => ecode as i32 == errno,
            Reply::Error { ename, errno: Extended(given) } => {
                let is_told = words_of(errno).iter().any(|word| ename.contains(word));
                is_told && (self.dialect == Dialect::Plain || given as i32 == errno)
            }
            _ => false,
        }
    }

    /// The data of an Rread or Rreaddir.
    pub fn data(&self) -> &[u8] {
        match self.reply() {
            Reply::Read { data } | Reply::Readdir { data } => data.0,
            other => panic!("{other:?} has no data"),
        }
    }
}

/// The words by which 9pfuse and others know an errno in a sentence.
fn words_of(errno: i32) -> &'static [&'static str] {
    match errno {
        1 | 13 => &["permission", "permitted"],
        2 => &["not found"],
        4 => &["interrupt"],
        16 => &["busy", "invalid"],
        90 => &["too long"],
        95 => &["not supported", "invalid message"],
        _ => &["invalid"],
    }
}

pub struct Raw<S> {
    pub stream: S,
    pub msize: u32,
    pub dialect: Dialect,
}

impl<S: Read + Write> Raw<S> {
    pub fn greet(&mut self, msize: u32) {
        let asked = self.dialect.name();
        let answer = self.ask(NOTAG, &Request::Version { msize, version: asked });
        let Reply::Version { msize, version } = answer.reply() else { panic!("{answer:?}") };
        assert_eq!(version, asked);
        self.msize = msize;
        self.attach(0, "");
    }

    pub fn attach(&mut self, fid: u32, aname: &str) {
        let answer = self.ask(1, &Request::Attach { fid, afid: NOFID, uname: "glenda", aname, n_uname: NONUNAME });
        assert!(matches!(answer.reply(), Reply::Attach { .. }), "{answer:?}");
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    pub fn send(&mut self, tag: u16, request: &Request<'_>) {
        self.send_bytes(&encoded_in(self.dialect, tag, request));
    }

    pub fn receive(&mut self) -> Message {
        self.try_receive().unwrap()
    }

    pub fn try_receive(&mut self) -> io::Result<Message> {
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header)?;
        let Header { size, kind, tag } = Header::decode(&header).unwrap();
        assert!(size <= self.msize, "a message of {size} bytes, and {} were agreed on", self.msize);
        let mut body = vec![0; size as usize - HEADER_BYTES];
        self.stream.read_exact(&mut body)?;
        Ok(Message { dialect: self.dialect, kind, tag, body })
    }

    pub fn ask(&mut self, tag: u16, request: &Request<'_>) -> Message {
        self.send(tag, request);
        let answer = self.receive();
        assert_eq!(answer.tag, tag);
        answer
    }

    /// The errno with which a request fails; 0: it doesn't.
    pub fn errno(&mut self, request: &Request<'_>) -> i32 {
        self.ask(2, request).errno().unwrap_or(0)
    }

    /// It is refused with this errno.
    #[track_caller]
    pub fn fails(&mut self, request: &Request<'_>, errno: i32) {
        let answer = self.ask(2, request);
        assert!(answer.refuses_with(errno), "{}: {request:?}: {:?}, not {errno}", self.dialect, answer.reply());
    }

    /// It is done.
    #[track_caller]
    pub fn does(&mut self, request: &Request<'_>) -> Message {
        let answer = self.ask(2, request);
        assert_eq!(answer.kind, request.kind() + 1, "{}: {request:?}: {:?}", self.dialect, answer.reply());
        answer
    }

    /// What fsync(2) becomes.
    pub fn fsync(&mut self, fid: u32) {
        self.does(&match self.dialect {
            Dialect::L => Request::Fsync { fid, datasync: Tail(0) },
            Dialect::Plain | Dialect::U => Request::Wstat { fid, stat: Counted(Stat::UNTOUCHED) },
        });
    }

    /// The request that opens with these flags of .L.
    pub fn opening(&self, fid: u32, flags: u32) -> Request<'static> {
        if self.dialect == Dialect::L {
            return Request::Lopen { fid, flags };
        }
        let truncate = if flags & flag::TRUNCATE == 0 { 0 } else { mode::TRUNCATE };
        Request::Open { fid, mode: (flags & flag::ACCESS) as u8 | truncate }
    }

    pub fn walk(&mut self, fid: u32, newfid: u32, names: &[&str]) -> Message {
        let mut scratch = BytesMut::new();
        let names = blixard::ninep::List::of(names, &mut scratch).unwrap();
        self.ask(2, &Request::Walk { fid, newfid, names })
    }

    /// Walks from the root and opens.
    pub fn open(&mut self, fid: u32, names: &[&str], flags: u32) {
        let answer = self.walk(0, fid, names);
        assert!(matches!(answer.reply(), Reply::Walk { qids } if qids.len() == names.len()), "{answer:?}");
        self.does(&self.opening(fid, flags));
    }

    /// Is this the end? Whatever comes before it is passed over.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

pub fn encoded(tag: u16, request: &Request<'_>) -> BytesMut {
    encoded_in(Dialect::L, tag, request)
}

pub fn encoded_in(dialect: Dialect, tag: u16, request: &Request<'_>) -> BytesMut {
    let mut bytes = BytesMut::new();
    request.encode(dialect, tag, &mut bytes).unwrap();
    bytes
}
