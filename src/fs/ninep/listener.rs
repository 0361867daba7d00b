//! Where the server listens: unix sockets, and TCP on loopback.

use super::peer::Peer;
use crate::text::Dial;
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Anybody on this machine may connect to the socket: who they are is known by their uid, and what they may do is the
/// tree's to say. Who wants it closed puts it into a folder that is closed.
const SOCKET_MODE: u32 = 0o666;

/// How long a live server may take to take a connection before its socket is believed to be in use all the same.
const PROBE_WITHIN: Duration = Duration::from_secs(1);

/// Why it can't listen there.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Somebody else does.
    #[error("busy: another server listens on {0}; stop it, or listen somewhere else")]
    Taken(Dial),
    /// There is something that is no socket.
    #[error("{0} exists and is not a socket; remove it, or listen somewhere else")]
    NotASocket(Dial),
    /// Plain TCP is for this machine alone.
    #[error("not permitted: {dial} is {address}, and plain TCP is served on loopback only, such as tcp!127.0.0.1!564")]
    NotLoopback {
        /// Where it should have listened.
        dial: Dial,
        /// What that is.
        address: SocketAddr,
    },
    /// The host has no address.
    #[error("not found: {0} has no address")]
    NoAddress(Dial),
    /// The kernel refused.
    #[error("can't listen on {dial}: {source}")]
    Refused {
        /// Where.
        dial: Dial,
        /// What it said.
        source: io::Error,
    },
}

/// A place where the server listens.
pub(super) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, SocketFile),
}

/// A stream that was accepted, and who is at its other end.
pub(super) enum Accepted {
    Tcp(TcpStream, SocketAddr),
    Unix(UnixStream),
}

impl Listener {
    pub async fn bind(dial: &Dial) -> Result<Listener, ListenError> {
        match dial {
            Dial::Tcp { host, port } => bind_tcp(dial, host, *port).await.map(Listener::Tcp),
            Dial::Unix(path) => bind_unix(dial, path).await,
        }
    }

    /// Where it really listens: port 0 has become a port.
    pub fn dial(&self) -> io::Result<Dial> {
        match self {
            Listener::Tcp(listener) => {
                let address = listener.local_addr()?;
                Ok(Dial::Tcp { host: address.ip().to_string(), port: address.port() })
            }
            Listener::Unix(_, file) => Ok(Dial::Unix(file.path.clone())),
        }
    }

    pub async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, peer)| Accepted::Tcp(stream, peer)),
            Listener::Unix(listener, _) => listener.accept().await.map(|(stream, _)| Accepted::Unix(stream)),
        }
    }
}

impl Accepted {
    /// Who is there. Reads a table of the kernel for TCP, which can be long on a machine with many connections.
    pub async fn peer(&self, guests_uids: Option<Range<u32>>) -> io::Result<Peer> {
        match self {
            Accepted::Unix(stream) => Peer::of_unix(stream, guests_uids),
            Accepted::Tcp(stream, peer) => {
                let (peer, own) = (*peer, stream.local_addr()?);
                if !peer.ip().is_loopback() {
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, format!("{peer} is not on loopback")));
                }
                let looked_up = tokio::task::spawn_blocking(move || Peer::of_loopback(peer, own, guests_uids));
                looked_up.await.map_err(io::Error::other)?
            }
        }
    }
}

async fn bind_tcp(dial: &Dial, host: &str, port: u16) -> Result<TcpListener, ListenError> {
    let refused = |source| ListenError::Refused { dial: dial.clone(), source };
    let mut addresses = tokio::net::lookup_host((host, port)).await.map_err(refused)?;
    let address = addresses.next().ok_or_else(|| ListenError::NoAddress(dial.clone()))?;
    if let Some(address) = [address].into_iter().chain(addresses).find(|a| !a.ip().is_loopback()) {
        return Err(ListenError::NotLoopback { dial: dial.clone(), address });
    }
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(dial.clone()),
        _ => refused(source),
    })
}

async fn bind_unix(dial: &Dial, path: &Path) -> Result<Listener, ListenError> {
    let refused = |source| ListenError::Refused { dial: dial.clone(), source };
    clear_stale(dial, path).await?;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(refused)?;
    }
    let listener = UnixListener::bind(path).map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(dial.clone()),
        _ => refused(source),
    })?;
    let file = SocketFile::of(path).map_err(refused)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(SOCKET_MODE)).map_err(refused)?;
    Ok(Listener::Unix(listener, file))
}

/// Removes a socket at which nobody listens any more, such as a killed server leaves.
async fn clear_stale(dial: &Dial, path: &Path) -> Result<(), ListenError> {
    let refused = |source| ListenError::Refused { dial: dial.clone(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(ListenError::NotASocket(dial.clone())),
        Ok(_) => {}
    }
    match tokio::time::timeout(PROBE_WITHIN, UnixStream::connect(path)).await {
        Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(refused)
        }
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        // Full of others' connections, slow, or there: alive.
        Err(_) | Ok(Ok(_)) => Err(ListenError::Taken(dial.clone())),
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => Err(ListenError::Taken(dial.clone())),
        Ok(Err(error)) => Err(refused(error)),
    }
}

/// The file of a unix socket: removed when the listener goes, unless another's has taken its place.
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<SocketFile> {
        Ok(SocketFile { path: path.to_owned(), identity: identity(path)? })
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "the socket could not be removed");
        }
    }
}
