//! A client of 9P2000.L over unix sockets, TCP and TLS: many requests at a time, each cancelled when its future is dropped, each
//! but a read with a deadline.

mod connection;
mod path;

pub use path::Follow;

use super::field::{Cursor, DirEntry, Field, Malformed};
use super::identity::{Identity, IdentityError};
use super::linux::{AT_REMOVEDIR, Attributes, getattr, mode, open};
use super::{Data, Dialect, MSIZE_MAX, MSIZE_MIN, NOFID, NumericId, Qid, Reply, Request, VERSION_L, tls};
use crate::text::Dial;
use bytes::Bytes;
use connection::{Answered, Connection};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

/// The msize that is asked for, in bytes: what Linux asks for.
const MSIZE: u32 = 128 * 1024;
/// How long a connection and its Tversion and Tattach may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(10);
/// How long any request but a read may take. A write waits for its commit, for which the server has a shorter deadline.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
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
    /// The connection has ended.
    #[error("the connection to the server has ended: {0}")]
    Closed(String),
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

/// A directory's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Which file.
    pub qid: Qid,
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
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
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
        Client::connect_as(dial, aname, None).await
    }

    /// The same, over TLS as this identity; none: the usual one.
    ///
    /// # Errors
    /// As [`Client::connect`], and what is wrong with the identity or with the server's.
    pub async fn connect_as(dial: &Dial, aname: &str, identity: Option<&Path>) -> Result<Client, ClientError> {
        within(CONNECT_WITHIN, async {
            let unreachable = |source| ClientError::Unreachable { dial: dial.clone(), source };
            let connection = match dial {
                Dial::Unix(path) => Connection::start(UnixStream::connect(path).await.map_err(unreachable)?, MSIZE),
                Dial::Tcp { host, port } => Connection::start(tcp(host, *port).await.map_err(unreachable)?, MSIZE),
                Dial::Tls { host, port } => {
                    let identity = Identity::read(&identity.map_or_else(Identity::usual_path, Path::to_owned))?;
                    let stream = tcp(host, *port).await.map_err(unreachable)?;
                    let insecure = |why| ClientError::Insecure { dial: dial.clone(), why };
                    Connection::start(tls::connect(&identity, host, stream).await.map_err(insecure)?, MSIZE)
                }
            };
            let client = Client { connection };
            client.greet(aname).await?;
            Ok(client)
        })
        .await
    }

    async fn greet(&self, aname: &str) -> Result<(), ClientError> {
        let answered = self.connection.ask(&Request::Version { msize: MSIZE, version: VERSION_L }).await?;
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
        let attach = Request::Attach { fid: ROOT_FID, afid: NOFID, uname: "", aname, n_uname };
        self.connection.ask(&attach).await?;
        Ok(())
    }

    /// What stat(2) says of a path.
    ///
    /// # Errors
    /// As for every request.
    pub async fn stat(&self, path: &str, follow: Follow) -> Result<Attributes, ClientError> {
        let found = self.walk(path, follow).await?;
        let request = Request::Getattr { fid: found.fid.number, request_mask: getattr::BASIC };
        let answered = self.ask(&request).await?;
        match answered.reply()? {
            Reply::Getattr { attributes, .. } => Ok(attributes),
            other => Err(unexpected(&other)),
        }
    }

    /// Opens a file with the flags of [`open`], following links.
    ///
    /// # Errors
    /// As for every request.
    pub async fn open(&self, path: &str, flags: u32) -> Result<File, ClientError> {
        let found = self.walk(path, Follow::Last).await?;
        self.ask(&Request::Lopen { fid: found.fid.number, flags }).await?;
        Ok(File { fid: found.fid })
    }

    /// The entries of a directory but `.` and `..`, in the server's order.
    ///
    /// # Errors
    /// As for every request.
    pub async fn list(&self, path: &str) -> Result<Vec<Entry>, ClientError> {
        let directory = self.open(path, open::READ_ONLY | open::DIRECTORY).await?;
        let (mut entries, mut offset) = (Vec::new(), 0);
        loop {
            let count = self.connection.data_max();
            let answered = self.ask(&Request::Readdir { fid: directory.fid.number, offset, count }).await?;
            let Reply::Readdir { data: Data(records) } = answered.reply()? else {
                return Err(unexpected(&answered.reply()?));
            };
            if records.is_empty() {
                return Ok(entries);
            }
            let mut cursor = Cursor::new(records);
            while !cursor.is_empty() {
                let record = DirEntry::get(Dialect::L, &mut cursor)?;
                offset = record.offset;
                if !matches!(record.name, "." | "..") {
                    entries.push(Entry { name: record.name.to_owned(), qid: record.qid });
                }
            }
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
        let flags = if found.qid.kind == Qid::DIRECTORY { AT_REMOVEDIR } else { 0 };
        self.ask(&Request::Unlinkat { dirfid: directory.fid.number, name, flags }).await?;
        Ok(())
    }

    /// The target of a link.
    ///
    /// # Errors
    /// As for every request.
    pub async fn readlink(&self, path: &str) -> Result<String, ClientError> {
        let found = self.walk(path, Follow::NotLast).await?;
        self.read_link(&found.fid).await
    }

    async fn read_link(&self, fid: &Fid) -> Result<String, ClientError> {
        let answered = self.ask(&Request::Readlink { fid: fid.number }).await?;
        match answered.reply()? {
            Reply::Readlink { target } => Ok(target.to_owned()),
            other => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, request: &Request<'_>) -> Result<Answered, ClientError> {
        within(ANSWER_WITHIN, self.connection.ask(request)).await
    }
}

/// An open file. Dropped, it is closed.
pub struct File {
    fid: Fid,
}

impl File {
    /// Some bytes from `offset`; none at the end. It may wait for as long as the file has nothing to say: dropping the future
    /// cancels it.
    ///
    /// # Errors
    /// As for every request.
    pub async fn read(&self, offset: u64) -> Result<Bytes, ClientError> {
        let connection = &self.fid.connection;
        let count = connection.data_max();
        let answered = connection.ask(&Request::Read { fid: self.fid.number, offset, count }).await?;
        match answered.reply()? {
            Reply::Read { data: Data(data) } => Ok(answered.part(data)),
            other => Err(unexpected(&other)),
        }
    }

    /// All that there is to read, of a file that has an end.
    ///
    /// # Errors
    /// As for every request; more than [`TEXT_BYTES_MAX`] bytes.
    pub async fn read_all(&self) -> Result<Vec<u8>, ClientError> {
        let mut text = Vec::new();
        loop {
            let part = within(ANSWER_WITHIN, self.read(text.len() as u64)).await?;
            if part.is_empty() {
                return Ok(text);
            }
            if text.len() + part.len() > TEXT_BYTES_MAX {
                return Err(ClientError::TooLong(format!("the file has more than {TEXT_BYTES_MAX} bytes")));
            }
            text.extend_from_slice(&part);
        }
    }

    /// The most bytes that one write takes.
    pub fn write_max(&self) -> usize {
        self.fid.connection.data_max() as usize
    }

    /// Writes all of `data` in one message, so that the server takes it as one transaction, or refuses.
    ///
    /// # Errors
    /// As for every request; more data than a message holds; fewer bytes taken than given.
    pub async fn write(&self, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let connection = &self.fid.connection;
        let most = self.write_max();
        if data.len() > most {
            let sentence = format!("{} bytes are too long for one write; {most} is the most", data.len());
            return Err(ClientError::TooLong(sentence));
        }
        let request = Request::Write { fid: self.fid.number, offset, data: Data(data) };
        let answered = within(ANSWER_WITHIN, connection.ask(&request)).await?;
        match answered.reply()? {
            Reply::Write { count } if count as usize == data.len() => Ok(()),
            Reply::Write { count } => Err(ClientError::Protocol(format!("it took {count} bytes of {}", data.len()))),
            other => Err(unexpected(&other)),
        }
    }
}

/// A fid of ours. Dropped, it is clunked.
struct Fid {
    connection: Arc<Connection>,
    number: u32,
    /// The server may know it.
    known: bool,
}

impl Drop for Fid {
    fn drop(&mut self) {
        if self.known {
            self.connection.clunk_later(self.number);
        }
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
