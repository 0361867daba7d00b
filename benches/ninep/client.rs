//! The client that loads both servers: messages made beforehand, so many operations at a time on so many connections, all from one
//! thread, so that the servers have what is left of the machine.

use blixard::ninep::{Dialect, NOFID, NOTAG, NumericId, Reply, Request};
use bytes::BytesMut;
use rustix::event::epoll;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The longest message, in bytes: diod's own limit.
pub const MSIZE: u32 = 64 * 1024;

/// One operation: requests, each sent when the one before it is answered, and the types of their answers.
pub struct Operation {
    messages: Vec<Vec<u8>>,
    answers: Vec<u8>,
}

impl Operation {
    /// These requests under this tag.
    pub fn of(tag: u16, requests: &[Request<'_>]) -> Operation {
        let messages = requests.iter().map(|r| encoded(tag, r)).collect();
        // R is T and one, but for the errors.
        let answers = requests.iter().map(|r| r.kind() + 1).collect();
        Operation { messages, answers }
    }
}

fn encoded(tag: u16, request: &Request<'_>) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    request.encode(Dialect::L, tag, &mut bytes).unwrap();
    bytes.to_vec()
}

/// A received message: its type and what follows the header.
pub struct Answer {
    kind: u8,
    body: Vec<u8>,
}

impl Answer {
    pub fn reply(&self) -> Reply<'_> {
        Reply::decode(Dialect::L, self.kind, &self.body).unwrap()
    }
}

struct Slot {
    operation: Operation,
    step: usize,
    begun: Instant,
}

/// A connection, attached: fid 0 is the root.
pub struct Connection {
    stream: TcpStream,
    input: Vec<u8>,
    filled: usize,
    output: Vec<u8>,
    slots: Vec<Slot>,
}

impl Connection {
    pub fn attach(port: u16, aname: &str) -> Connection {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let (input, output) = (vec![0; 2 * MSIZE as usize], Vec::new());
        let mut connection = Connection { stream, input, filled: 0, output, slots: Vec::new() };
        connection.ask_as(NOTAG, &Request::Version { msize: MSIZE, version: "9P2000.L" });
        let n_uname = NumericId(0);
        connection.ask(&Request::Attach { fid: 0, afid: NOFID, uname: "root", aname, n_uname });
        connection
    }

    /// Asks and waits for the answer, which must be no refusal.
    pub fn ask(&mut self, request: &Request<'_>) -> Answer {
        self.ask_as(1, request)
    }

    fn ask_as(&mut self, tag: u16, request: &Request<'_>) -> Answer {
        self.stream.write_all(&encoded(tag, request)).unwrap();
        let mut header = [0; 7];
        self.stream.read_exact(&mut header).unwrap();
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let mut body = vec![0; length - 7];
        self.stream.read_exact(&mut body).unwrap();
        let answer = Answer { kind: header[4], body };
        assert_eq!(answer.kind, request.kind() + 1, "{request:?}: {:?}", answer.reply());
        answer
    }

    /// What it is to do, each at the same time as the others.
    pub fn load(&mut self, operations: Vec<Operation>) {
        let begun = Instant::now();
        self.slots = operations.into_iter().map(|operation| Slot { operation, step: 0, begun }).collect();
    }

    /// Begins all its operations.
    fn begin(&mut self) {
        for slot in &mut self.slots {
            (slot.step, slot.begun) = (0, Instant::now());
            self.output.extend_from_slice(&slot.operation.messages[0]);
        }
        self.send();
    }

    fn send(&mut self) {
        // Little is ever on the way: it fits.
        self.stream.write_all(&self.output).unwrap();
        self.output.clear();
    }

    /// Receives what there is and goes on with it; the answer is how many operations ended for good.
    fn advance(&mut self, end: Instant, latencies: &mut Vec<Duration>) -> usize {
        let count = match self.stream.read(&mut self.input[self.filled..]) {
            Ok(0) => panic!("the server closed the connection"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return 0,
            Err(error) => panic!("{error}"),
        };
        self.filled += count;
        let (mut at, mut ended, now) = (0, 0, Instant::now());
        while let Some(header) = self.input[at..self.filled].first_chunk::<7>() {
            let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
            if self.filled - at < length {
                break;
            }
            at += length;
            let (kind, tag) = (header[4], u16::from_le_bytes([header[5], header[6]]));
            let slot = &mut self.slots[usize::from(tag)];
            assert_eq!(kind, slot.operation.answers[slot.step], "what the server answered");
            slot.step += 1;
            if slot.step == slot.operation.messages.len() {
                latencies.push(now - slot.begun);
                if now >= end {
                    ended += 1;
                    continue;
                }
                (slot.step, slot.begun) = (0, now);
            }
            self.output.extend_from_slice(&slot.operation.messages[slot.step]);
        }
        self.input.copy_within(at..self.filled, 0);
        self.filled -= at;
        if !self.output.is_empty() {
            self.send();
        }
        ended
    }
}

/// All connections to one server.
pub struct Load {
    connections: Vec<Connection>,
    /// Which of them have something; none where one alone can be waited for.
    ready: Option<std::os::fd::OwnedFd>,
}

impl Load {
    pub fn of(connections: Vec<Connection>) -> Load {
        let ready = (connections.len() > 1).then(|| {
            let ready = epoll::create(epoll::CreateFlags::empty()).unwrap();
            for (n, connection) in connections.iter().enumerate() {
                let data = epoll::EventData::new_u64(n as u64);
                epoll::add(&ready, &connection.stream, data, epoll::EventFlags::IN).unwrap();
            }
            ready
        });
        Load { connections, ready }
    }

    /// Keeps every operation going for so long; the answer is how long each took, and how long all.
    pub fn run(&mut self, time: Duration) -> (Vec<Duration>, Duration) {
        let begun = Instant::now();
        let (end, mut latencies) = (begun + time, Vec::with_capacity(1 << 16));
        let mut left: usize = self.connections.iter().map(|c| c.slots.len()).sum();
        for connection in &mut self.connections {
            connection.begin();
        }
        let mut events = Vec::with_capacity(self.connections.len());
        while left > 0 {
            let Some(ready) = &self.ready else {
                left -= self.connections[0].advance(end, &mut latencies);
                continue;
            };
            events.clear();
            epoll::wait(ready, rustix::buffer::spare_capacity(&mut events), None).unwrap();
            for event in &events {
                left -= self.connections[event.data.u64() as usize].advance(end, &mut latencies);
            }
        }
        (latencies, begun.elapsed())
    }
}
