//! Many 9P clients of one node, and clients that nobody wishes for: what they cost it, and what the others notice.

use crate::support::{Node, PATIENCE_S, simulated};
use blixard::ninep::{Dialect, Header, List, NOFID, NONUNAME, NOTAG, Reply, Request, linux::open};
use bytes::BytesMut;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

const KIB: u64 = 1024;
/// What one connection may cost, in bytes.
const CONNECTION_BYTES_MAX: u64 = 64 * KIB;
/// What one fid may cost, in bytes.
const FID_BYTES_MAX: u64 = 4 * KIB;
/// What may be missing when all is over: pages that the allocator keeps for the next.
const SLACK_BYTES: u64 = 16 * 1024 * KIB;

const STATUS: &[&str] = &["vms", "1", "status"];
const EVENTS: &[&str] = &["vms", "1", "events"];

/// A client: fid 0 is the root.
struct Client(UnixStream);

impl Client {
    fn attach(node: &Node) -> Client {
        let stream = UnixStream::connect(node.data().join("sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(PATIENCE_S))).unwrap();
        let mut client = Client(stream);
        client.ask(NOTAG, &Request::Version { msize: 128 * 1024, version: "9P2000.L" });
        client.ask(0, &Request::Attach { fid: 0, afid: NOFID, uname: "", aname: "", n_uname: NONUNAME });
        client
    }

    fn send(&mut self, tag: u16, request: &Request<'_>) {
        self.0.write_all(&encoded(tag, request)).unwrap();
    }

    /// The type, the tag and the rest of the next answer.
    fn receive(&mut self) -> (u8, u16, Vec<u8>) {
        let mut header = [0; 7];
        self.0.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.size as usize - 7];
        self.0.read_exact(&mut body).unwrap();
        (header.kind, header.tag, body)
    }

    fn ask(&mut self, tag: u16, request: &Request<'_>) -> Vec<u8> {
        self.send(tag, request);
        let (kind, of, body) = self.receive();
        assert_eq!((kind, of), (request.kind() + 1, tag), "{request:?}: {:?}", Reply::decode(Dialect::L, kind, &body));
        body
    }

    fn walk(&mut self, fid: u32, path: &[&str]) {
        let scratch = &mut BytesMut::new();
        self.ask(1, &Request::Walk { fid: 0, newfid: fid, names: List::of(path, scratch).unwrap() });
    }

    fn open(&mut self, fid: u32, path: &[&str]) {
        self.walk(fid, path);
        self.ask(1, &Request::Lopen { fid, flags: open::READ_ONLY });
    }

    /// Walk, open, read, clunk: what everybody does.
    fn look(&mut self) {
        self.open(99_999, STATUS);
        let text = self.ask(1, &Request::Read { fid: 99_999, offset: 0, count: 4096 });
        assert!(text.len() > 100);
        self.ask(1, &Request::Clunk { fid: 99_999 });
    }
}

fn encoded(tag: u16, request: &Request<'_>) -> BytesMut {
    let mut bytes = BytesMut::new();
    request.encode(Dialect::L, tag, &mut bytes).unwrap();
    bytes
}

/// A node with one machine, and one client that has looked at it.
fn node_with_one() -> (Node, Client) {
    let node = simulated();
    node.new_vm("image=tiny memory=64M").unwrap();
    let mut client = Client::attach(&node);
    client.look();
    (node, client)
}

/// Descriptors for so many connections, for this process alone: the node finds its own way from the usual 1024.
fn descriptors_for(connections: u64) -> bool {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Nofile).maximum;
    let current = Some(connections + 100);
    maximum.is_none_or(|m| m > connections + 100) && setrlimit(Resource::Nofile, Rlimit { current, maximum }).is_ok()
}

/// Waits until something is so of the node.
fn until(node: &Node, what: &str, so: impl Fn(&Node) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
    while !so(node) {
        assert!(Instant::now() < deadline, "{what} did not come about: {} bytes resident", node.resident_bytes());
        std::thread::sleep(Duration::from_millis(10));
    }
}

mod slow {
    use super::*;

    const CONNECTIONS: u64 = 1_000;
    const FIDS: u32 = 100;

    fn crowd(node: &Node) -> (u64, u64) {
        let before = node.resident_bytes();
        let mut all: Vec<Client> = (0..CONNECTIONS).map(|_| Client::attach(node)).collect();
        let connected = node.resident_bytes();
        for client in &mut all {
            for fid in 1..=FIDS {
                if fid % 2 == 0 { client.walk(fid, STATUS) } else { client.open(fid, STATUS) }
            }
        }
        for client in &mut all {
            client.look();
        }
        (connected.saturating_sub(before), node.resident_bytes().saturating_sub(connected))
    }

    #[test]
    fn a_thousand_connections_with_a_hundred_fids_each() {
        let (node, mut client) = node_with_one();
        if !descriptors_for(CONNECTIONS) {
            eprintln!("not run: too few descriptors are allowed here");
            return;
        }
        let descriptors = node.descriptors();
        let (connections, fids) = crowd(&node);
        let each = (connections / CONNECTIONS, fids / CONNECTIONS / u64::from(FIDS));
        eprintln!("{} bytes a connection, {} bytes a fid", each.0, each.1);
        assert!(each.0 < CONNECTION_BYTES_MAX && each.1 < FID_BYTES_MAX, "{each:?} bytes a connection and a fid");
        client.look();
        // The allocator gives back little of what lay in small pieces, and has a heap for each of several threads; later crowds find
        // room in them. What they leave is less than one of them holds: had each left a sixth of itself, it would be more.
        const CROWDS: u32 = 6;
        let emptied = || {
            until(&node, "all is closed", |node| node.descriptors() <= descriptors);
            node.resident_bytes()
        };
        let first = emptied();
        let later = (0..CROWDS).fold(first, |_, _| {
            crowd(&node);
            emptied()
        });
        assert!(
            later < first + connections + fids,
            "{later} bytes after {CROWDS} more crowds, {first} after the first"
        );
        client.look();
    }

    #[test]
    fn ten_thousand_fids_and_a_thousand_blocked_reads() {
        const FIDS: u32 = 10_000;
        const READS: u16 = 1_000;
        let (node, mut others) = node_with_one();
        let resident = node.resident_bytes();
        let mut client = Client::attach(&node);
        (1..=FIDS)
            .for_each(|fid| if fid > u32::from(READS) { client.walk(fid, STATUS) } else { client.open(fid, EVENTS) });
        for tag in 1..=READS {
            let fid = tag.into();
            // What was before is there at once; then it waits.
            client.ask(tag, &Request::Read { fid, offset: 0, count: 4096 });
            client.send(tag, &Request::Read { fid, offset: 0, count: 4096 });
        }
        // Answered behind them.
        client.ask(READS + 1, &Request::Statfs { fid: 0 });
        others.look();
        let each = node.resident_bytes().saturating_sub(resident) / u64::from(FIDS);
        eprintln!("{each} bytes a fid");
        assert!(each < FID_BYTES_MAX, "{each} bytes a fid");

        // A third is flushed, a third loses its fid, a third gets what it waits for.
        for tag in 1..=READS / 3 {
            client.ask(READS + 1, &Request::Flush { oldtag: tag });
        }
        for tag in READS / 3 + 1..=READS / 3 * 2 {
            client.send(READS + 1, &Request::Clunk { fid: tag.into() });
            let mut answers = [client.receive(), client.receive()].map(|(kind, of, _)| (kind, of));
            answers.sort_unstable();
            assert_eq!(answers, [(7, tag), (121, READS + 1)]);
        }
        node.write("vms/1/ctl", "start\n").unwrap();
        let mut told: Vec<u16> = (READS / 3 * 2..READS)
            .map(|_| client.receive())
            .map(|(kind, tag, body)| {
                assert_eq!((kind, String::from_utf8_lossy(&body).contains("starting")), (117, true));
                tag
            })
            .collect();
        told.sort_unstable();
        assert_eq!(told, (READS / 3 * 2 + 1..=READS).collect::<Vec<_>>());
        drop(client);
        until(&node, "the memory is given back", |node| node.resident_bytes() < resident + SLACK_BYTES);
        others.look();
    }

    /// How often the client looks while this lasts.
    fn looks(client: &mut Client, time: Duration) -> u32 {
        let end = Instant::now() + time;
        let mut count = 0;
        while Instant::now() < end {
            client.look();
            count += 1;
        }
        count
    }

    /// One that asks for all it can get and reads nothing of it, until the server takes no more.
    fn deaf(node: &Node) -> Client {
        let mut client = Client::attach(node);
        client.open(1, &["README"]);
        client.0.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
        let request = encoded(1, &Request::Read { fid: 1, offset: 0, count: 65_536 });
        let many = request.repeat(1_000);
        while client.0.write_all(&many).is_ok() {}
        client
    }

    /// One that sends a message a byte at a time, until it is told to stop.
    fn dripping(node: &Node, stop: std::sync::mpsc::Receiver<()>) -> std::thread::JoinHandle<()> {
        let mut client = Client::attach(node);
        std::thread::spawn(move || {
            let message = encoded(1, &Request::Statfs { fid: 0 });
            for byte in message.iter().cycle() {
                client.0.write_all(&[*byte]).unwrap();
                if stop.recv_timeout(Duration::from_secs(1)) != Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                    break;
                }
            }
        })
    }

    #[test]
    fn others_notice_nothing_of_who_does_not_read_or_hardly_writes() {
        let (node, mut client) = node_with_one();
        let window = Duration::from_millis(400);
        let (mut alone, mut beside) = (0, 0);
        let resident = node.resident_bytes();
        // In turn, so that whatever else the machine does hits both.
        for _ in 0..6 {
            alone += looks(&mut client, window);
            let (done, stop) = std::sync::mpsc::channel();
            let (deaf, dripping) = (deaf(&node), dripping(&node, stop));
            beside += looks(&mut client, window);
            let grown = node.resident_bytes().saturating_sub(resident);
            // What the allocator takes at a time is some MiB.
            assert!(grown < 16 * 1024 * KIB, "{grown} bytes more");
            drop((deaf, done));
            dripping.join().unwrap();
        }
        eprintln!("{alone} looks alone, {beside} beside them");
        assert!(f64::from(beside) > 0.5 * f64::from(alone), "{alone} looks alone, {beside} beside them");
    }
}
