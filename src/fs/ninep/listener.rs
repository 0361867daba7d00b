//! Where the server listens: unix sockets, TLS, TCP on loopback; and, where it is told to, TCP that proves nothing.

use crate::ninep::identity::IdentityError;
use crate::ninep::tls;
use crate::text::Dial;
use crate::text::dial::ANY_HOST;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
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
    #[error(
        "not permitted: {dial} is {address}, and plain TCP is served on loopback only, such as tcp!127.0.0.1!564; \
         listen on tls!HOST!PORT, or, for everybody to read and nobody to write, with --insecure-listen"
    )]
    NotLoopback {
        /// Where it should have listened.
        dial: Dial,
        /// What that is.
        address: SocketAddr,
    },
    /// Only plain TCP can be insecure.
    #[error("invalid insecure listener {0}: only a tcp! dial string can be one; the others know who is there")]
    NotInsecure(Dial),
    /// TLS without an identity.
    #[error("can't listen on {dial}: {source}")]
    Identity {
        /// Where.
        dial: Dial,
        /// What is wrong with it.
        source: IdentityError,
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
    /// Plain TCP of this machine alone: the kernel knows who is there.
    Loopback(TcpListener),
    /// Plain TCP of which nothing is believed.
    Insecure(TcpListener),
    Tls(TcpListener, tls::Acceptor),
    Unix(UnixListener, SocketFile),
}

/// A stream that was accepted.
pub(super) enum Accepted {
    Loopback(TcpStream, SocketAddr),
    Insecure(TcpStream, SocketAddr),
    Tls(TcpStream, SocketAddr, tls::Acceptor),
    Unix(UnixStream),
}

impl Listener {
    /// Listens there; `acceptor` is asked for where TLS is spoken.
    pub async fn bind(
        dial: &Dial,
        acceptor: impl FnOnce() -> Result<tls::Acceptor, IdentityError>,
    ) -> Result<Listener, ListenError> {
        match dial {
            Dial::Tcp { host, port } => {
                let addresses = addresses(dial, host, *port).await?;
                match addresses.iter().find(|address| !address.ip().is_loopback()) {
                    Some(address) => Err(ListenError::NotLoopback { dial: dial.clone(), address: *address }),
                    None => bind_tcp(dial, &addresses).await.map(Listener::Loopback),
                }
            }
            Dial::Tls { host, port } => {
                let acceptor = acceptor().map_err(|source| ListenError::Identity { dial: dial.clone(), source })?;
                let listener = bind_tcp(dial, &addresses(dial, host, *port).await?).await?;
                Ok(Listener::Tls(listener, acceptor))
            }
            Dial::Unix(path) => bind_unix(dial, path).await,
        }
    }

    /// Listens on plain TCP, wherever that is.
    pub async fn bind_insecure(dial: &Dial) -> Result<Listener, ListenError> {
        let Dial::Tcp { host, port } = dial else { return Err(ListenError::NotInsecure(dial.clone())) };
        bind_tcp(dial, &addresses(dial, host, *port).await?).await.map(Listener::Insecure)
    }

    /// Where it really listens: port 0 has become a port.
    pub fn dial(&self) -> io::Result<Dial> {
        let place = |listener: &TcpListener| listener.local_addr().map(|at| (at.ip().to_string(), at.port()));
        Ok(match self {
            Listener::Loopback(listener) | Listener::Insecure(listener) => {
                let (host, port) = place(listener)?;
                Dial::Tcp { host, port }
            }
            Listener::Tls(listener, _) => {
                let (host, port) = place(listener)?;
                Dial::Tls { host, port }
            }
            Listener::Unix(_, file) => Dial::Unix(file.path.clone()),
        })
    }

    pub async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Listener::Loopback(listener) => {
                let (stream, peer) = listener.accept().await?;
                Accepted::Loopback(stream, peer)
            }
            Listener::Insecure(listener) => {
                let (stream, peer) = listener.accept().await?;
                Accepted::Insecure(stream, peer)
            }
            Listener::Tls(listener, acceptor) => {
                let (stream, peer) = listener.accept().await?;
                Accepted::Tls(stream, peer, acceptor.clone())
            }
            Listener::Unix(listener, _) => Accepted::Unix(listener.accept().await?.0),
        })
    }
}

/// The addresses of a dial string; `*` is every one of this machine, of both families where there are both.
async fn addresses(dial: &Dial, host: &str, port: u16) -> Result<Vec<SocketAddr>, ListenError> {
    if host == ANY_HOST {
        return Ok(vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]);
    }
    let refused = |source| ListenError::Refused { dial: dial.clone(), source };
    let found: Vec<_> = tokio::net::lookup_host((host, port)).await.map_err(refused)?.collect();
    if found.is_empty() { Err(ListenError::NoAddress(dial.clone())) } else { Ok(found) }
}

/// Listens on the first of the addresses that this machine has.
async fn bind_tcp(dial: &Dial, addresses: &[SocketAddr]) -> Result<TcpListener, ListenError> {
    TcpListener::bind(addresses).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::Taken(dial.clone()),
        _ => ListenError::Refused { dial: dial.clone(), source },
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
