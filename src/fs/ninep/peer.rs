//! Who is at the other end of a connection: as the kernel knows them, or as their certificate says.

use super::sock_diag;
use crate::fs::sessions::Newcomer;
use crate::fs::tree::{BY_A_NODE, Caller, Credential, Tree};
use std::io;
use std::net::SocketAddr;
use std::ops::Range;
use tokio::net::UnixStream;

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// What is known of them.
    pub credential: Credential,
    /// How they were recognised, for `/me`.
    pub recognised_by: &'static str,
    /// Where they are.
    pub from: String,
}

impl Peer {
    /// The process at the other end of a unix socket, unless it is a guest's.
    pub fn of_unix(stream: &UnixStream, guests_uids: Option<Range<u32>>) -> io::Result<Peer> {
        let found = stream.peer_cred()?;
        let credential = unless_guest(found.uid(), guests_uids.as_ref());
        let from = found.pid().map_or_else(|| "here".to_owned(), |pid| format!("pid:{pid}"));
        Ok(Peer { credential, recognised_by: "unix socket uid", from })
    }

    /// The process at the other end of a loopback connection. A guest reaches the host's loopback through its own QEMU, so
    /// that uids are believed only where guests have their own, and those are nobody's.
    pub fn of_loopback(peer: SocketAddr, own: SocketAddr, guests_uids: Option<Range<u32>>) -> io::Result<Peer> {
        let from = peer.to_string();
        let Some(guests) = guests_uids else {
            return Ok(Peer { credential: Credential::Unknown, recognised_by: "loopback TCP, unknown", from });
        };
        let uid = sock_diag::owner(peer, own)?;
        let credential = uid.map_or(Credential::Unknown, |uid| unless_guest(uid, Some(&guests)));
        Ok(Peer { credential, recognised_by: "loopback TCP uid", from })
    }

    /// Whoever is at the other end of a connection that proves nothing.
    pub fn of_insecure(peer: SocketAddr) -> Peer {
        let from = peer.to_string();
        Peer { credential: Credential::Unknown, recognised_by: "insecure TCP, unknown", from }
    }

    /// Whoever has the key of a certificate.
    pub fn of_certificate(peer: SocketAddr, credential: Credential) -> Peer {
        let recognised_by = if matches!(credential, Credential::Node { .. }) { BY_A_NODE } else { "TLS certificate" };
        Peer { credential, recognised_by, from: peer.to_string() }
    }

    /// As whom they come in, to be counted.
    pub fn newcomer(&self, tree: &dyn Tree) -> Newcomer {
        let user = self.caller(tree, "").user;
        let Peer { credential, recognised_by, from } = self.clone();
        Newcomer { user, credential, recognised_by, from }
    }

    /// Who that is to the tree, when they attach as `uname`: only a node's word for it counts.
    pub fn caller_as(&self, tree: &dyn Tree, dialect: &'static str, uname: &str) -> Caller {
        let credential = match &self.credential {
            Credential::Node { name, .. } => Credential::Node { name: name.clone(), user: uname.to_owned() },
            other => other.clone(),
        };
        Peer { credential, ..self.clone() }.caller(tree, dialect)
    }

    /// Who that is to the tree.
    pub fn caller(&self, tree: &dyn Tree, dialect: &'static str) -> Caller {
        Caller { from: self.from.clone(), ..tree.caller(&self.credential, self.recognised_by, dialect) }
    }
}

fn unless_guest(uid: u32, guests_uids: Option<&Range<u32>>) -> Credential {
    let is_guest = guests_uids.is_some_and(|guests| guests.contains(&uid));
    if is_guest { Credential::Unknown } else { Credential::Uid(uid) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_are_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, theirs) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        let uid = rustix::process::getuid().as_raw();
        let seen_by = |guests| Peer::of_loopback(theirs, ours, guests).unwrap().credential;
        assert_eq!(seen_by(Some(uid.saturating_sub(1)..uid + 1)), Credential::Unknown, "a guest");
        assert_eq!(seen_by(None), Credential::Unknown, "guests that can't be told from others");
        assert_eq!(seen_by(Some(uid + 1..uid + 100)), Credential::Uid(uid));
        assert_eq!(Peer::of_insecure(theirs).credential, Credential::Unknown, "from loopback, too");
    }
}
