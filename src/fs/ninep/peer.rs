//! Who is at the other end of a connection, as the kernel knows it.

use std::io::{self, BufRead};
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use tokio::net::UnixStream;

/// Who is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    /// Their uid; none: nobody knows them.
    pub uid: Option<u32>,
    /// How they were recognised, for `/me`.
    pub recognised_by: &'static str,
}

impl Peer {
    /// The process at the other end of a unix socket, unless it is a guest's.
    pub fn of_unix(stream: &UnixStream, guests_uids: Option<Range<u32>>) -> io::Result<Peer> {
        let is_guest = |uid: &u32| guests_uids.is_some_and(|guests| guests.contains(uid));
        let uid = Some(stream.peer_cred()?.uid()).filter(|uid| !is_guest(uid));
        Ok(Peer { uid, recognised_by: "unix socket uid" })
    }

    /// The process at the other end of a loopback connection. A guest reaches the host's loopback through its own QEMU, so
    /// that uids are believed only where guests have their own, and those are nobody's.
    pub fn of_loopback(peer: SocketAddr, own: SocketAddr, guests_uids: Option<Range<u32>>) -> io::Result<Peer> {
        let Some(guests) = guests_uids else {
            return Ok(Peer { uid: None, recognised_by: "loopback TCP, unknown" });
        };
        let uid = owner(peer, own)?.filter(|uid| !guests.contains(uid));
        Ok(Peer { uid, recognised_by: "loopback TCP uid" })
    }
}

/// The uid of the socket that is bound to `local` and connected to `remote`.
fn owner(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let tables: &[&str] = match local {
        // An IPv4 connection may have been made by an IPv6 socket.
        SocketAddr::V4(_) => &["/proc/self/net/tcp", "/proc/self/net/tcp6"],
        SocketAddr::V6(_) => &["/proc/self/net/tcp6"],
    };
    for table in tables.iter().map(Path::new).filter(|table| table.exists()) {
        for line in io::BufReader::new(std::fs::File::open(table)?).lines() {
            if let Some(uid) = owner_in_line(&line?, local, remote) {
                return Ok(Some(uid));
            }
        }
    }
    Ok(None)
}

/// One line of /proc/net/tcp (proc_net_tcp of the kernel's documentation). Only an established connection with an inode has
/// an owner: what is left of a closed one is shown with uid 0.
fn owner_in_line(line: &str, local: SocketAddr, remote: SocketAddr) -> Option<u32> {
    const ESTABLISHED: &str = "01";
    let mut fields = line.split_ascii_whitespace();
    let (at, to, state) = (fields.nth(1)?, fields.next()?, fields.next()?);
    let (uid, inode) = (fields.nth(3)?, fields.nth(1)?);
    let ours = state == ESTABLISHED && inode != "0" && is_address(at, local) && is_address(to, remote);
    if ours { uid.parse().ok() } else { None }
}

/// Is `text` (`0100007F:0050`: 32-bit words in the machine's byte order) this address?
fn is_address(text: &str, address: SocketAddr) -> bool {
    let Some((ip, port)) = text.split_once(':') else { return false };
    let print = |octets: &[u8]| -> String {
        let words = octets.chunks_exact(4).map(|w| w.try_into().map_or(0, u32::from_ne_bytes));
        words.map(|w| format!("{w:08X}")).collect()
    };
    let same_ip = match address.ip() {
        std::net::IpAddr::V4(v4) => ip == print(&v4.octets()) || ip == print(&v4.to_ipv6_mapped().octets()),
        std::net::IpAddr::V6(v6) => ip == print(&v6.octets()),
    };
    same_ip && u16::from_str_radix(port, 16) == Ok(address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_net_tcp() {
        let line = "  12: 0100007F:D431 0100007F:0234 01 00000000:00000000 00:00000000 00000000  1000        0 98765 1 0 20 4 30 10 -1";
        let (local, remote) = ("127.0.0.1:54321".parse().unwrap(), "127.0.0.1:564".parse().unwrap());
        assert_eq!(owner_in_line(line, local, remote), Some(1000));
        assert_eq!(owner_in_line(line, remote, local), None);
        assert_eq!(owner_in_line(&line.replace(" 01 ", " 06 "), local, remote), None, "a closed one");
        assert_eq!(owner_in_line(&line.replace("98765", "0"), local, remote), None, "nobody's");
        assert_eq!(owner_in_line("  sl  local_address rem_address   st", local, remote), None);
        let mapped = line.replace("0100007F:", "0000000000000000FFFF00000100007F:");
        assert_eq!(owner_in_line(&mapped, local, remote), Some(1000));
        let six = line.replace("0100007F:", "00000000000000000000000001000000:");
        assert_eq!(owner_in_line(&six, "[::1]:54321".parse().unwrap(), "[::1]:564".parse().unwrap()), Some(1000));
    }

    #[test]
    fn the_owner_of_a_connection_is_found() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = std::net::TcpListener::bind(address) else { continue };
            let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (ours, theirs) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
            assert_eq!(owner(theirs, ours).unwrap(), Some(rustix::process::getuid().as_raw()));
            drop(listener);
        }
    }

    #[test]
    fn guests_are_nobody() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, theirs) = (client.peer_addr().unwrap(), client.local_addr().unwrap());
        let uid = rustix::process::getuid().as_raw();
        let seen_by = |guests| Peer::of_loopback(theirs, ours, guests).unwrap().uid;
        assert_eq!(seen_by(Some(uid.saturating_sub(1)..uid + 1)), None, "a guest");
        assert_eq!(seen_by(None), None, "guests that can't be told from others");
        assert_eq!(seen_by(Some(uid + 1..uid + 100)), Some(uid));
    }
}
