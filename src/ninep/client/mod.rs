//! A client of 9P2000.L over unix sockets, TCP and TLS: many requests at a time, each cancelled when its future is dropped, each
//! but a read with a deadline.

//!
//! - `connection`: requests and answers by tag
//! - `fid`: what can be asked about one file; `file`: an open one
//! - `path`: from a path to a fid
//! - here: connecting, and what is done by path

mod connection;
mod fid;
mod file;
mod path;

pub use fid::{Entry, Fid, FileSystem, Made, Seen};
pub use file::{Ahead, File};
pub use path::Follow;

use super::field::Malformed;
use super::identity::{Identity, IdentityError};
use super::linux::{Attributes, getattr, mode, open};
use super::{MSIZE_MAX, MSIZE_MIN, NOFID, NumericId, Qid, Reply, Request, VERSION_L, tls};
use crate::text::Dial;
use connection::Connection;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The msize that is asked for, in bytes: what Linux asks for.
const MSIZE: u32 = 128 * 1024;
/// How long a connection and its Tversion and Tattach may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long any request but a read or a change may take: the server answers them at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
/// How long a change may take. It waits for its commit, for which the server has a shorter deadline.
const CHANGE_WITHIN: Duration = Duration::from_secs(30);
/// After how long without a sign of life the other end of a TCP connection is asked for one, how often it is asked in what
/// intervals: a machine that has gone without a word is missed within a minute.
const KEEPALIVE: (Duration, u32, Duration) = (Duration::from_secs(30), 3, Duration::from_secs(10));
/// The most bytes of a directory that [`Client::list`] takes.
const LIST_BYTES_MAX: usize = 64 * 1024 * 1024;
/// The fid of the root.
const ROOT_FID: u32 = 0;
/// The longest text that [`Client::read_all`] takes, in bytes.
pub const TEXT_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error("no server answers at {dial}: {source}")]
    Unreachable {
        /// Where.
        dial: Dial,
        /// What the kernel says.
        source: io::Error,
    },
    /// TLS could not be agreed on.
    #[error("can't connect to {dial}: {why}")]
    Insecure {
        /// Where.
        dial: Dial,
        /// Why.
        why: String,
    },
    /// Who we are is not known.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The connection has ended; the request was not sent.
    #[error("the connection to the server has ended: {0}")]
    Closed(String),
    /// The connection has ended before the answer; what was asked for may have been done.
    #[error("the connection to the server has ended without an answer: {0}")]
    Lost(String),
    /// The server refused.
    #[error("{}", errno_text(*.errno))]
    Refused {
        /// Linux's errno.
        errno: i32,
    },
    /// The server refused, and said why.
    #[error("{sentence}")]
    Explained {
        /// Linux's errno.
        errno: i32,
        /// Its sentence.
        sentence: String,
    },
    /// It took too long. The request was cancelled; what it asked for may have been done.
    #[error("the server gave no answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The server does not speak 9P2000.L.
    #[error("the server does not speak {VERSION_L}: it answered with the version '{0}'")]
    NotSpoken(String),
    /// The server said what can't be.
    #[error("the server does not keep to the protocol: {0}")]
    Protocol(String),
    /// What was asked for does not fit into a message.
    #[error("invalid request: {0}")]
    TooLong(String),
}

impl From<Malformed> for ClientError {
    fn from(malformed: Malformed) -> Self {
        ClientError::Protocol(malformed.to_string())
    }
}

/// What strerror(3) says of it.
fn errno_text(errno: i32) -> String {
    let text = io::Error::from_raw_os_error(errno).to_string();
    text.split_once(" (os error").map_or(text.as_str(), |(text, _)| text).to_owned()
}

/// How to connect.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// What the server calls the part of the tree to attach to; empty: all of it.
    pub aname: String,
    /// Who we are over TLS; none: the usual identity.
    pub identity: Option<PathBuf>,
    /// Whom we ask for, of a server that takes our word for it, as nodes do of each other.
    pub uname: String,
    /// Print every message to the standard error, as fcall(3) has it.
    pub prints: bool,
}

/// A connection to a server, attached to its root. When it is dropped, everything that was opened over it is closed.
pub struct Client {
    connection: Arc<Connection>,
}

impl Drop for Client {
    fn drop(&mut self) {
        self.connection.close();
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    use rustix::net::sockopt;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    let (after, times, every) = KEEPALIVE;
    sockopt::set_socket_keepalive(&stream, true)?;
    sockopt::set_tcp_keepidle(&stream, after)?;
    sockopt::set_tcp_keepcnt(&stream, times)?;
    sockopt::set_tcp_keepintvl(&stream, every)?;
    Ok(stream)
}

impl Client {
    /// Connects and attaches.
    ///
    /// # Errors
    /// Nobody answers, or not as a 9P2000.L server does.
    pub async fn connect(dial: &Dial) -> Result<Client, ClientError> {
        Client::connect_to(dial, "").await
    }

    /// Connects and attaches to the part of the tree that the server calls so.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn connect_to(dial: &Dial, aname: &str) -> Result<Client, ClientError> {
        Client::connect_with(dial, &Options { aname: aname.to_owned(), ..Options::default() }).await
    }

    /// The same, over TLS as this identity; none: the usual one.
    ///
    /// # Errors
    /// As [`Client::connect_with`].
    pub async fn connect_as(dial: &Dial, aname: &str, identity: Option<&Path>) -> Result<Client, ClientError> {
        let identity = identity.map(Path::to_owned);
        Client::connect_with(dial, &Options { aname: aname.to_owned(), identity, ..Options::default() }).await
    }

    /// Connects and attaches in this way.
    ///
    /// # Errors
    /// As [`Client::connect`], and what is wrong with the identity or with the server's.
    pub async fn connect_with(dial: &Dial, options: &Options) -> Result<Client, ClientError> {
        within(CONNECT_WITHIN, async {
            let unreachable = |source| ClientError::Unreachable { dial: dial.clone(), source };
            let connection = match dial {
                Dial::Unix(path) => {
                    let stream = UnixStream::connect(path).await.map_err(unreachable)?;
                    Connection::start(stream, MSIZE, options.prints)
                }
                Dial::Tcp { host, port } => {
                    let stream = tcp(host, *port).await.map_err(unreachable)?;
                    Connection::start(stream, MSIZE, options.prints)
                }
                Dial::Tls { host, port } => {
                    let identity = options.identity.clone().unwrap_or_else(Identity::usual_path);
                    let identity = Identity::read(&identity)?;
                    let stream = tcp(host, *port).await.map_err(unreachable)?;
                    let insecure = |why| ClientError::Insecure { dial: dial.clone(), why };
                    let stream = tls::connect(&identity, host, stream).await.map_err(insecure)?;
                    Connection::start(stream, MSIZE, options.prints)
                }
            };
            let client = Client { connection };
            client.greet(&options.uname, &options.aname).await?;
            Ok(client)
        })
        .await
    }

    /// Resolves when the connection has ended.
    pub async fn ended(&self) {
        self.connection.ended().await;
    }

    /// The most data that one message holds.
    pub fn data_bytes_max(&self) -> u32 {
        self.connection.data_max()
    }

    /// The root.
    pub fn root(&self) -> Fid {
        Fid { connection: self.connection.clone(), number: ROOT_FID, known: false }
    }

    async fn greet(&self, uname: &str, aname: &str) -> Result<(), ClientError> {
        let answered = self.connection.ask(None, &Request::Version { msize: MSIZE, version: VERSION_L }).await?;
        match answered.reply()? {
            Reply::Version { msize, version: VERSION_L } if (MSIZE_MIN..=MSIZE.min(MSIZE_MAX)).contains(&msize) => {
                self.connection.agree(msize);
            }
            Reply::Version { version: VERSION_L, msize } => {
                return Err(ClientError::Protocol(format!("its msize is {msize}")));
            }
            Reply::Version { version, .. } => return Err(ClientError::NotSpoken(version.to_owned())),
            other => return Err(unexpected(&other)),
        }
        // Who we are by the kernel counts, where the server can ask it; other servers believe this.
        let n_uname = NumericId(rustix::process::geteuid().as_raw());
        let attach = Request::Attach { fid: ROOT_FID, afid: NOFID, uname, aname, n_uname };
        let answered = self.connection.ask(None, &attach).await?;
        match answered.reply()? {
            Reply::Attach { .. } => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// What stat(2) says of a path.
    ///
    /// # Errors
    /// As for every request.
    pub async fn stat(&self, path: &str, follow: Follow) -> Result<Attributes, ClientError> {
        let found = self.walk(path, follow).await?;
        Ok(found.fid.look(getattr::BASIC).await?.attributes)
    }

    /// Opens a file with the flags of [`open`], following links.
    ///
    /// # Errors
    /// As for every request.
    pub async fn open(&self, path: &str, flags: u32) -> Result<File, ClientError> {
        self.walk(path, Follow::Last).await?.fid.open(flags).await
    }

    /// The entries of a directory but `.` and `..`, in the server's order.
    ///
    /// # Errors
    /// As for every request; a directory without end.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, ClientError> {
        let directory = self.open(path, open::READ_ONLY | open::DIRECTORY).await?;
        let (mut entries, mut offset, mut bytes) = (Vec::new(), 0, 0);
        loop {
            let part = directory.fid.list(offset, self.data_bytes_max()).await?;
            let Some(last) = part.last() else { return Ok(entries) };
            offset = last.offset;
            bytes += part.iter().map(Entry::bytes).sum::<usize>();
            if bytes > LIST_BYTES_MAX {
                return Err(ClientError::TooLong(format!("the directory has more than {LIST_BYTES_MAX} bytes")));
            }
            entries.extend(part.into_iter().filter(|entry| !matches!(entry.name.as_str(), "." | "..")));
        }
    }

    /// The whole of a file that has an end.
    ///
    /// # Errors
    /// As for every request; a file of more than [`TEXT_BYTES_MAX`] bytes.
    pub async fn read_all(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        self.open(path, open::READ_ONLY).await?.read_all().await
    }

    /// Removes a path: a directory as rmdir(2), everything else as unlink(2). A link stands for what it leads to.
    ///
    /// # Errors
    /// As for every request.
    pub async fn remove(&self, path: &str) -> Result<(), ClientError> {
        let found = self.walk(path, Follow::Last).await?;
        let Some((name, parent)) = found.names.split_last() else {
            return Err(ClientError::TooLong("the root can't be removed".into()));
        };
        let directory = self.walk_names(parent).await?;
        directory.fid.remove(name, found.qid.kind == Qid::DIRECTORY).await
    }

    /// The target of a link.
    ///
    /// # Errors
    /// As for every request.
    pub async fn readlink(&self, path: &str) -> Result<String, ClientError> {
        self.walk(path, Follow::NotLast).await?.fid.readlink().await
    }
}

/// Is it a directory, by its mode?
pub fn is_directory(attributes: &Attributes) -> bool {
    attributes.mode & mode::TYPE == mode::DIRECTORY
}

fn unexpected(reply: &Reply<'_>) -> ClientError {
    ClientError::Protocol(format!("R{} is not the answer to what was asked", reply.name().to_lowercase()))
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    timeout(limit, work).await.unwrap_or(Err(ClientError::TimedOut(limit)))
}
