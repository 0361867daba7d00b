//! Random messages, and valid ones in which something was changed, in each dialect, against a live server: every answer is a
//! message, nothing panics, and afterwards all is as it was.

use super::random::Random;
use super::raw::{Message, Raw, Running, encoded_in, until};
use super::toy::README;
use blixard::ninep::linux::open;
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::{Dialect, Header, Reply, Request};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Messages on one connection.
const BATCH: u16 = 25;
/// How much the resident memory of this process may differ, in bytes: what an allocator keeps.
const MEMORY_SPARE_BYTES: usize = 4 << 20;

static PANICS: AtomicUsize = AtomicUsize::new(0);

/// Counts panics of the server, which ends one connection and goes on.
fn count_panics() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if !info.to_string().contains("a panic on purpose") {
            PANICS.fetch_add(1, Ordering::SeqCst);
        }
        before(info);
    }));
}

/// A message of any type, more often of one that there is, with any body; its size is true.
fn random(random: &mut Random, tag: u16) -> Vec<u8> {
    let kind = if random.below(4) == 0 { random.u64() as u8 } else { (100 + random.below(28)) as u8 };
    let kind = if random.below(3) == 0 { (8 + random.below(70)) as u8 } else { kind };
    let mut body = random.bytes(120);
    // Numbers near to those that mean something lead further in.
    for _ in 0..random.below(4) {
        if let Some(at) = body.len().checked_sub(4).map(|most| random.index(most + 1)) {
            let number = random.below(12) as u32;
            body[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
    }
    message(kind, tag, &body)
}

fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let size = (HEADER_BYTES + body.len()) as u32;
    [&size.to_le_bytes()[..], &[kind], &tag.to_le_bytes(), body].concat()
}

/// A valid message in which something was changed.
fn mutated(random: &mut Random, samples: &[Request<'static>], dialect: Dialect, tag: u16) -> Vec<u8> {
    let request = &samples[random.index(samples.len())];
    let mut bytes = encoded_in(dialect, tag, request).to_vec();
    for _ in 0..=random.below(3) {
        let at = 4 + random.index(bytes.len() - 4);
        match random.below(7) {
            0 => bytes[at] = random.u64() as u8,
            1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff][random.index(5)],
            3 => bytes.insert(at, random.u64() as u8),
            4 if bytes.len() > HEADER_BYTES + 1 => drop(bytes.remove(at)),
            5 => bytes.truncate(at.max(HEADER_BYTES)),
            _ => bytes.extend(random.bytes(20)),
        }
    }
    if random.below(40) > 0 {
        let size = bytes.len() as u32;
        bytes[..4].copy_from_slice(&size.to_le_bytes());
    }
    bytes
}

/// A session that has something open of each kind.
fn prepared(running: &Running, dialect: Dialect) -> Raw<UnixStream> {
    let mut raw = running.session_of(dialect, 16 * 1024);
    for (fid, name, flags) in [(1, "README", 0), (2, "echo", 2), (3, "block", 0), (4, "ctl", 1), (5, "slow", 1)] {
        raw.open(fid, &[name], flags);
    }
    raw.open(6, &["many"], open::READ_ONLY);
    raw.walk(0, 7, &["dir"]);
    raw.walk(0, 8, &["link"]);
    raw
}

/// Sends it all, and reads all answers, which are counted: each is a message of the dialect that was agreed on last.
fn throw(raw: &mut Raw<UnixStream>, bytes: &[u8]) -> usize {
    // A server that has closed already is right too.
    let _ = raw.stream.write_all(bytes);
    let _ = raw.stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    if let Err(error) = raw.stream.read_to_end(&mut answers) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "{error}");
    }
    let mut count = 0;
    let (mut rest, mut dialect) = (&answers[..], raw.dialect);
    while !rest.is_empty() {
        let Ok(Header { size, kind, tag }) = Header::decode(rest) else { break };
        assert!((HEADER_BYTES as u32..=1 << 20).contains(&size));
        // The last may be cut, where the server has ended the connection.
        let Some((body, after)) = rest[HEADER_BYTES..].split_at_checked(size as usize - HEADER_BYTES) else { break };
        if let Ok(Reply::Version { version, .. }) = Reply::decode(Dialect::Plain, kind, body) {
            dialect = Dialect::agreed(version).unwrap_or(dialect);
        } else if let Err(malformed) = Reply::decode(dialect, kind, body) {
            // A Tversion that was refused is answered in its own dialect.
            let answer = Dialect::ALL.iter().any(|other| Reply::decode(*other, kind, body).is_ok());
            assert!(answer, "{malformed}: {:?}", Message { dialect, kind, tag, body: body.to_vec() });
        }
        (rest, count) = (after, count + 1);
    }
    count
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// So many random messages and so many mutated ones that were answered: what ends a connection is not among them.
fn some_of_each(running: &Running, dialect: Dialect, messages: usize, source: &mut Random) {
    let samples = super::codec::samples(dialect);
    for valid in [false, true] {
        let mut answered = 0;
        while answered < messages {
            let mut one = |n| {
                // Now and then a tag that is in use.
                let tag = if source.below(50) == 0 { source.below(4) as u16 } else { n };
                if valid { mutated(source, &samples, dialect, tag) } else { random(source, tag) }
            };
            let bytes: Vec<u8> = (0..BATCH).flat_map(&mut one).collect();
            answered += throw(&mut prepared(running, dialect), &bytes);
            *running.toy.noted.lock().unwrap() = Vec::new();
        }
    }
}

fn all_is_as_it_was(running: &Running, descriptors_before: usize) {
    for dialect in Dialect::ALL {
        let mut raw = running.session_in(dialect);
        raw.open(1, &["README"], open::READ_ONLY);
        assert_eq!(raw.does(&Request::Read { fid: 1, offset: 0, count: 100 }).data(), README);
    }
    until("all is closed", || running.toy.open.load(Ordering::SeqCst) == 0);
    until("nothing waits", || running.toy.waiting.load(Ordering::SeqCst) == 0);
    until("no descriptor is left", || descriptors() == descriptors_before);
    assert_eq!(PANICS.load(Ordering::SeqCst), 0, "the server has panicked");
}

#[test]
fn some() {
    count_panics();
    let running = Running::start();
    let (mut random, before) = (Random::seeded(), descriptors());
    for dialect in Dialect::ALL {
        some_of_each(&running, dialect, 1_000, &mut random);
    }
    all_is_as_it_was(&running, before);
}

mod slow {
    use super::*;

    #[test]
    fn twenty_thousand_of_each() {
        count_panics();
        let running = Running::start();
        let (mut random, before) = (Random::seeded(), descriptors());
        for dialect in Dialect::ALL {
            some_of_each(&running, dialect, 2_000, &mut random);
        }
        all_is_as_it_was(&running, before);
        let memory = resident_bytes();
        for dialect in Dialect::ALL {
            some_of_each(&running, dialect, 20_000, &mut random);
            all_is_as_it_was(&running, before);
            let grown = resident_bytes().saturating_sub(memory);
            assert!(grown < MEMORY_SPARE_BYTES, "{grown} bytes more after {dialect}");
        }
    }
}
