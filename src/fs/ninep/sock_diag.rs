//! Whose socket is at the other end of a loopback connection: sock_diag(7), which answers about one connection without listing all.

use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP, TCP_ESTABLISHED};
use netlink_packet_sock_diag::inet::{ExtensionFlags, InetRequest, SocketId, StateFlags};
use rustix::fd::OwnedFd;
use rustix::net::netlink::{SOCK_DIAG, SocketAddrNetlink};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// The kernel answers while the question is being sent; it is not waited for longer than this.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// The answer about one socket, in bytes, with room to spare.
const ANSWER_BYTES_MAX: usize = 4096;
/// Any socket that has these addresses (INET_DIAG_NOCOOKIE).
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// The uid of the socket that is bound to `local` and connected to `remote`; none if there is none. What is left of a closed
/// one has uid 0 and no inode, and is nobody's.
pub(super) fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let kernel = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, SocketFlags::CLOEXEC, Some(SOCK_DIAG))?;
    set_socket_timeout(&kernel, Timeout::Recv, Some(ANSWER_WITHIN))?;
    sendto(&kernel, &question(local, remote)?, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let answer = receive(&kernel)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) => {
            let header = found.header;
            let is_open = header.state == TCP_ESTABLISHED && header.inode != 0;
            Ok(is_open.then_some(header.uid))
        }
        NetlinkPayload::Error(error) => match error.to_io() {
            error if error.kind() == io::ErrorKind::NotFound => Ok(None),
            error => Err(error),
        },
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is not about a socket")),
    }
}

/// The message that asks. An IPv4 connection may have been made by an IPv6 socket; the kernel finds both by IPv4 addresses.
fn question(local: SocketAddr, remote: SocketAddr) -> io::Result<Vec<u8>> {
    let (source_address, destination_address) = (local.ip().to_canonical(), remote.ip().to_canonical());
    let family = match (source_address, destination_address) {
        (IpAddr::V4(_), IpAddr::V4(_)) => AF_INET,
        (IpAddr::V6(_), IpAddr::V6(_)) => AF_INET6,
        _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "the two addresses are of two kinds")),
    };
    let socket_id = SocketId {
        source_port: local.port(),
        destination_port: remote.port(),
        source_address,
        destination_address,
        interface_id: 0,
        cookie: NO_COOKIE,
    };
    let (extensions, states) = (ExtensionFlags::empty(), StateFlags::all());
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST;
    let mut message = NetlinkMessage::new(header, SockDiagMessage::InetRequest(request).into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    Ok(bytes)
}

fn receive(kernel: &OwnedFd) -> io::Result<NetlinkMessage<SockDiagMessage>> {
    let mut bytes = vec![0; ANSWER_BYTES_MAX];
    let (length, _) = recv(kernel, &mut bytes[..], RecvFlags::empty())?;
    bytes.truncate(length);
    NetlinkMessage::deserialize(&bytes).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    fn own_uid() -> u32 {
        rustix::process::getuid().as_raw()
    }

    #[test]
    fn the_owner_of_a_connection_is_found() {
        // The last one is an IPv4 connection between IPv6 sockets.
        for (bound, called) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1"), ("[::]:0", "::ffff:127.0.0.1")] {
            let Ok(listener) = TcpListener::bind(bound) else { continue };
            let called: IpAddr = called.parse().unwrap();
            let client = TcpStream::connect((called, listener.local_addr().unwrap().port())).unwrap();
            let (accepted, peer) = listener.accept().unwrap();
            assert_eq!(owner(peer, accepted.local_addr().unwrap()).unwrap(), Some(own_uid()), "{bound}");
            // From the other side it is the same connection.
            assert_eq!(owner(client.peer_addr().unwrap(), client.local_addr().unwrap()).unwrap(), Some(own_uid()));
        }
    }

    #[test]
    fn what_is_closed_or_never_was_is_nobodys() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (accepted, peer) = listener.accept().unwrap();
        let own = accepted.local_addr().unwrap();
        drop(client);
        assert_eq!(owner(peer, own).unwrap(), None, "the client has closed it");
        assert_eq!(owner("127.0.0.1:1".parse().unwrap(), own).unwrap(), None);
        assert!(owner("[::1]:1".parse().unwrap(), own).is_err());
    }
}
