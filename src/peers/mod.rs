//! Between nodes: one port, mutual TLS with certificates of the cluster's own authority, and several things carried by it.
//!
//! The stores of the members speak to each other over loopback alone, each at its own address there, the same on all nodes. Where
//! such an address is another node's, a [`tunnel`] listens and carries the connection to that node. What a connection is for is
//! said by its protocol (ALPN, RFC 7301): a [`Service`]. Who may begin one is [`entrance`]'s to say. Knows `ninep` (TLS, identities),
//! `text` and `clock`; what is asked of a node beside the log is in [`ask`], what of the one
//! that leads the log in [`lead`].

pub mod ask;
pub mod entrance;
pub mod lead;
pub mod tunnel;

use crate::text::{Dial, Refusal};
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

/// How long a connection to another node may take, the handshake included.
pub const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// How long the other side of a connection may leave what was sent unacknowledged (TCP_USER_TIMEOUT): a node that is cut off is not
/// waited for longer.
pub const SILENT_WITHIN: Duration = Duration::from_secs(5);

/// What a connection between nodes is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// The tree, in 9P; also what a connection without a protocol gets.
    Ninep,
    /// To the store's Raft port.
    Raft,
    /// To the store's port for clients.
    Api,
    /// Questions of a member to the one that leads the log, one after the other.
    Lead,
    /// One question of a member, one answer: see [`ask`].
    Ask,
    /// The same of a machine that is not in yet, and so has no certificate.
    Join,
}

impl Service {
    /// All of them.
    pub const ALL: [Service; 6] =
        [Service::Ninep, Service::Raft, Service::Api, Service::Lead, Service::Ask, Service::Join];

    /// Its name in ALPN.
    pub fn protocol(self) -> &'static [u8] {
        match self {
            Service::Ninep => b"9p",
            Service::Raft => b"blixard-raft",
            Service::Api => b"blixard-store",
            Service::Lead => b"blixard-lead",
            Service::Ask => b"blixard-ask",
            Service::Join => b"blixard-join",
        }
    }

    /// Which one a protocol is; none is 9P.
    pub fn of(protocol: Option<&[u8]>) -> Option<Service> {
        match protocol {
            None => Some(Service::Ninep),
            Some(name) => Service::ALL.into_iter().find(|service| service.protocol() == name),
        }
    }
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Peer {
    /// Its identity in Raft.
    pub raft: u64,
    /// Where it is reached, as `HOST!PORT`.
    pub address: String,
}

/// Host and port of an address `HOST!PORT`.
///
/// # Errors
/// It is none.
pub fn host_and_port(address: &str) -> Result<(String, u16), Refusal> {
    match format!("tls!{address}").parse()? {
        Dial::Tls { host, port } => Ok((host, port)),
        other => Err(Refusal::invalid(format!("invalid address: {other}"))),
    }
}

/// The network on loopback of a cluster: three bytes of 127.x.y.0, chosen at random when the cluster is begun, so that several
/// clusters live on one machine. The address of a member follows from its identity in Raft; two members of one cluster need two
/// machines, or two network namespaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Ipv4Addr", into = "Ipv4Addr")]
pub struct Loopback {
    second: u8,
    third: u8,
}

/// Members that share one address, each with two ports. With the first port below it stays clear of the ports that the kernel
/// gives to whoever asks for any (32768 and up, unless it is told otherwise).
const MEMBERS_AN_ADDRESS: u64 = 10_000;
/// The port of Raft of the first of them.
const FIRST_PORT: u16 = 10_000;

impl Loopback {
    /// A network of its own for a new cluster.
    ///
    /// # Errors
    /// The kernel gives no random bytes.
    pub fn random() -> Result<Loopback, Refusal> {
        let mut bytes = [0_u8; 2];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
            .map_err(|error| Refusal::fault(format!("no random bytes from the kernel: {error}")))?;
        let [second, third] = bytes;
        // Not 127.0.x.0, where everybody else is.
        Ok(Loopback { second: second.max(1), third })
    }

    /// Where the store of a member listens: Raft's port, and the one for clients.
    ///
    /// # Errors
    /// More identities were given than there are addresses for.
    pub fn addresses(self, raft: u64) -> Result<(SocketAddr, SocketAddr), Refusal> {
        let none =
            || Refusal::no_space(format!("invalid identity {raft} in Raft: there is no address on loopback for it"));
        let last = u8::try_from(1 + raft / MEMBERS_AN_ADDRESS).map_err(|_| none())?;
        let nth = u16::try_from(raft % MEMBERS_AN_ADDRESS).map_err(|_| none())?;
        let address = Ipv4Addr::new(127, self.second, self.third, last);
        let port = FIRST_PORT + 2 * nth;
        Ok(((address, port).into(), (address, port + 1).into()))
    }
}

impl TryFrom<Ipv4Addr> for Loopback {
    type Error = String;

    fn try_from(address: Ipv4Addr) -> Result<Loopback, String> {
        match address.octets() {
            [127, second, third, 0] => Ok(Loopback { second, third }),
            _ => Err(format!("{address} is no network on loopback, as 127.7.9.0 is")),
        }
    }
}

impl From<Loopback> for Ipv4Addr {
    fn from(loopback: Loopback) -> Ipv4Addr {
        Ipv4Addr::new(127, loopback.second, loopback.third, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn no_two_members_share_a_port() {
        let network = Loopback::try_from(Ipv4Addr::new(127, 7, 9, 0)).unwrap();
        let both = |raft| network.addresses(raft).map(|(raft, api)| [raft, api]);
        let all: BTreeSet<SocketAddr> = (1..30_000).flat_map(|raft| both(raft).unwrap()).collect();
        assert_eq!(all.len(), 2 * 29_999);
        assert!(all.iter().all(|at| at.ip().is_loopback() && (10_000..30_000).contains(&at.port())));
        assert_eq!(network.addresses(1).unwrap().0.to_string(), "127.7.9.1:10002");
        assert!(network.addresses(u64::MAX).is_err() && network.addresses(10_000 * 255).is_err());
    }

    #[test]
    fn protocols() {
        for service in Service::ALL {
            assert_eq!(Service::of(Some(service.protocol())), Some(service));
        }
        assert_eq!(Service::of(None), Some(Service::Ninep));
        assert_eq!(Service::of(Some(b"h2")), None);
    }
}
