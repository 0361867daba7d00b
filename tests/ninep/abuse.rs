//! What no client should send, and what must come of it: the right error or a closed connection, and no harm to others.

use super::raw::{Raw, Running, encoded, until};
use super::toy::README;
use blixard::fs::ninep::limits::{FIDS_MAX, UNSENT_BYTES_MAX, WAITING_REQUESTS_MAX, WAITING_WRITE_BYTES_MAX};
use blixard::ninep::linux::open;
use blixard::ninep::{Data, Dialect, List, NOTAG, Reply, Request};
use bytes::{BufMut, BytesMut};
use proptest::test_runner::{Config, TestRunner};
use std::io::{Read, Write};
use std::sync::atomic::Ordering;

const EAGAIN: i32 = 11;
const EINVAL: i32 = 22;
const ENOENT: i32 = 2;
const ENOSPC: i32 = 28;
const EOPNOTSUPP: i32 = 95;

/// A message of any type with any body and a true size.
fn message(kind: u8, tag: u16, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.put_u32_le(7 + body.len() as u32);
    bytes.put_u8(kind);
    bytes.put_u16_le(tag);
    bytes.put_slice(body);
    bytes
}

fn still_serves(running: &Running) {
    let raw = &mut running.session();
    raw.open(1, &["README"], open::READ_ONLY);
    assert_eq!(raw.ask(3, &Request::Read { fid: 1, offset: 0, count: 100 }).data(), README);
}

#[test]
fn sizes_that_lie_end_the_connection() {
    let running = Running::start();
    for size in [0, 1, 6, 8193, 65_536, 1 << 20, u32::MAX] {
        let raw = &mut running.session_with(8192);
        raw.send_bytes(&u32::to_le_bytes(size));
        assert!(raw.is_closed(), "{size}");
        // Before a version is agreed on, too.
        let raw = &mut running.connect();
        raw.send_bytes(&u32::to_le_bytes(size));
        assert!(raw.is_closed(), "{size}");
    }
    still_serves(&running);
}

#[test]
fn counts_that_lie_are_refused() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["echo"], open::READ_WRITE);
    let mut errno = |kind, body: &[u8]| {
        raw.send_bytes(&message(kind, 9, body));
        let answer = raw.receive();
        assert_eq!(answer.tag, 9);
        answer.errno().unwrap_or(0)
    };
    let write =
        |count: u32, data: &[u8]| [&1u32.to_le_bytes()[..], &0u64.to_le_bytes(), &count.to_le_bytes(), data].concat();
    assert_eq!(errno(118, &write(3, b"abc")), 0);
    for count in [0, 2, 4, 65_536, u32::MAX] {
        assert_eq!(errno(118, &write(count, b"abc")), EINVAL, "a write of {count}");
    }
    let walk = |count: u16, names: &[u8]| [&[0; 4][..], &[5, 0, 0, 0], &count.to_le_bytes(), names].concat();
    for (count, names) in [(1, &b""[..]), (1, b"\xff\xffab"), (2, b"\x03\x00dir"), (17, &[0; 34]), (u16::MAX, b"")] {
        assert_eq!(errno(110, &walk(count, names)), EINVAL, "{count} names in {names:?}");
    }
    assert_eq!(errno(110, &walk(1, b"\x02\x00\xff\xfe")), ENOENT, "no file's name is not UTF-8");
    assert_eq!(errno(120, b""), EINVAL, "no body");
    assert_eq!(errno(120, &[0; 5]), EINVAL, "too much of it");
    for kind in [0, 6, 7, 98, 99, 106, 107, 112, 124, 126, 255] {
        assert_eq!(errno(kind, &[0; 20]), EOPNOTSUPP, "type {kind}");
    }
}

#[test]
fn without_a_version_nothing_is_answered() {
    let running = Running::start();
    for request in [Request::Clunk { fid: 0 }, Request::Flush { oldtag: 3 }, Request::Statfs { fid: 0 }] {
        let raw = &mut running.connect();
        raw.send(1, &request);
        assert!(raw.is_closed());
    }
}

#[test]
fn fids_are_limited() {
    let running = Running::start();
    let raw = &mut running.session();
    let mut scratch = BytesMut::new();
    let names = List::of(&[], &mut scratch).unwrap();
    let clone = |newfid| Request::Walk { fid: 0, newfid, names };
    // In slices, so that the answers fit into the socket while nobody reads them.
    let all: Vec<u32> = (1..FIDS_MAX as u32).collect();
    for slice in all.chunks(512) {
        let bytes: Vec<u8> = slice.iter().flat_map(|fid| encoded(1, &clone(*fid))).collect();
        raw.send_bytes(&bytes);
        for _ in slice {
            assert!(matches!(raw.receive().reply(), Reply::Walk { .. }));
        }
    }
    assert_eq!(raw.errno(&clone(FIDS_MAX as u32)), ENOSPC);
    assert_eq!(raw.errno(&Request::Clunk { fid: 1 }), 0);
    assert_eq!(raw.errno(&clone(FIDS_MAX as u32)), 0);
    still_serves(&running);
}

#[test]
fn waiting_requests_are_limited() {
    let running = Running::start();
    let raw = &mut running.session();
    raw.open(1, &["block"], open::READ_ONLY);
    for tag in 0..WAITING_REQUESTS_MAX as u16 {
        raw.send(tag, &Request::Read { fid: 1, offset: 0, count: 1 });
    }
    let one_more = raw.ask(60_000, &Request::Read { fid: 1, offset: 0, count: 1 });
    assert_eq!(one_more.errno(), Some(EAGAIN));
    assert_eq!(raw.ask(60_000, &Request::Flush { oldtag: 17 }).reply(), Reply::Flush {});
    raw.send(17, &Request::Read { fid: 1, offset: 0, count: 1 });
    until("all wait", || running.toy.waiting.load(Ordering::SeqCst) == WAITING_REQUESTS_MAX);
    assert_eq!(raw.ask(60_000, &Request::Clunk { fid: 0 }).reply(), Reply::Clunk {});
}

#[test]
fn waiting_writes_are_limited() {
    let running = Running::start();
    let raw = &mut running.session_with(1 << 20);
    raw.open(1, &["slow"], open::WRITE_ONLY);
    let data = vec![b'x'; (1 << 20) - 24];
    let fit = WAITING_WRITE_BYTES_MAX / data.len();
    for tag in 0..fit as u16 {
        raw.send(tag, &Request::Write { fid: 1, offset: 0, data: Data(&data) });
    }
    let one_more = raw.ask(600, &Request::Write { fid: 1, offset: 0, data: Data(&data) });
    assert_eq!(one_more.errno(), Some(EAGAIN));
    running.toy.release();
    for _ in 0..fit {
        assert!(matches!(raw.receive().reply(), Reply::Write { .. }));
    }
    raw.send(600, &Request::Write { fid: 1, offset: 0, data: Data(&data) });
    until("it waits", || running.toy.waiting.load(Ordering::SeqCst) == 1);
}

/// Resident memory of this process, in bytes.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn who_does_not_read_makes_nothing_grow() {
    let running = Running::start();
    let mut raw = running.session();
    raw.open(1, &["fresh"], open::READ_ONLY);
    raw.stream.set_nonblocking(true).unwrap();
    let before = resident_bytes();
    // Requests for far more than there is room for, until the server takes no more of them.
    let request = encoded(3, &Request::Read { fid: 1, offset: 0, count: 60_000 });
    let (mut sent, mut refused) = (0, 0);
    while refused < 50 {
        match raw.stream.write(&request) {
            Ok(count) => (sent, refused) = (sent + count, 0),
            Err(_) => {
                refused += 1;
                std::thread::sleep(std::time::Duration::from_millis(2));
            }
        }
    }
    let asked_for = sent / request.len() * 60_000;
    assert!(asked_for > 32 * UNSENT_BYTES_MAX, "only {asked_for} bytes were asked for");
    let grown = resident_bytes().saturating_sub(before);
    assert!(grown < 4 << 20, "{grown} bytes more, with {asked_for} asked for");
    still_serves(&running);
    // When the client reads at last, everything comes.
    raw.stream.set_nonblocking(false).unwrap();
    let rest = &request[sent % request.len()..];
    let mut writer = raw.stream.try_clone().unwrap();
    let rest = if sent % request.len() == 0 { Vec::new() } else { rest.to_vec() };
    let writing = std::thread::spawn(move || writer.write_all(&rest).unwrap());
    for _ in 0..sent.div_ceil(request.len()) {
        assert_eq!(raw.receive().data().len(), 60_000);
    }
    writing.join().unwrap();
}

#[test]
fn a_panic_ends_one_connection() {
    let running = Running::start();
    let mut others = running.session();
    let raw = &mut running.session();
    raw.open(1, &["panic"], open::READ_ONLY);
    raw.send(3, &Request::Read { fid: 1, offset: 0, count: 1 });
    assert!(raw.is_closed());
    assert_eq!(others.errno(&Request::Statfs { fid: 0 }), 0);
    still_serves(&running);
    until("its files are closed", || running.toy.open.load(Ordering::SeqCst) == 0);
}

/// Sends bytes, then closes the sending side, and reads to the end.
fn throw<S: Read + Write>(raw: &mut Raw<S>, bytes: &[u8], close: impl Fn(&S)) {
    // A server that has closed already is right too.
    let _ = raw.stream.write_all(bytes);
    close(&raw.stream);
    assert!(raw.is_closed());
}

#[test]
fn garbage_and_broken_messages_leave_the_server_as_it_was() {
    use proptest::prelude::*;
    let running = Running::start();
    let samples: Vec<Vec<u8>> = super::codec::samples(Dialect::L).iter().map(|r| encoded(5, r).to_vec()).collect();
    let broken = (0..samples.len(), any::<prop::sample::Index>(), any::<u8>(), any::<bool>());
    let strategy = (prop::collection::vec(any::<u8>(), 0..300), prop::collection::vec(broken, 1..20));
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let close = |stream: &std::os::unix::net::UnixStream| {
        // It may be closed by the server already.
        let _ = stream.shutdown(std::net::Shutdown::Write);
    };
    runner
        .run(&strategy, |(garbage, broken)| {
            throw(&mut running.connect(), &garbage, close);
            throw(&mut running.session(), &garbage, close);
            let mut bytes = Vec::new();
            for (which, at, value, keeps_size) in broken {
                let mut one = samples[which].clone();
                let at = if keeps_size { 4 + at.index(one.len() - 4) } else { at.index(one.len()) };
                one[at] = value;
                bytes.extend(one);
            }
            throw(&mut running.session(), &bytes, close);
            Ok(())
        })
        .unwrap();
    still_serves(&running);
    until("all is closed", || running.toy.open.load(Ordering::SeqCst) == 0);
}

#[test]
fn a_byte_at_a_time_is_as_good_as_all_at_once() {
    let running = Running::start();
    let raw = &mut running.connect();
    let mut bytes = encoded(NOTAG, &Request::Version { msize: 8192, version: "9P2000.L" });
    let (afid, n_uname) = (blixard::ninep::NOFID, blixard::ninep::NONUNAME);
    bytes.extend(encoded(1, &Request::Attach { fid: 0, afid, uname: "", aname: "", n_uname }));
    for byte in &bytes {
        raw.send_bytes(&[*byte]);
    }
    assert!(matches!(raw.receive().reply(), Reply::Version { .. }));
    assert!(matches!(raw.receive().reply(), Reply::Attach { .. }));
}

#[test]
fn many_pipelined_requests_are_answered_in_order() {
    let running = Running::start();
    let mut raw = running.session();
    raw.open(1, &["big"], open::READ_ONLY);
    let requests = |n: u64| Request::Read { fid: 1, offset: n, count: (n % 5000) as u32 + 1 };
    let mut writer = raw.stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || {
        for n in 0..20_000 {
            writer.write_all(&encoded(n as u16, &requests(n))).unwrap();
        }
    });
    let text = super::toy::big();
    for n in 0..20_000u64 {
        let answer = raw.receive();
        assert_eq!(u64::from(answer.tag), n);
        assert_eq!(answer.data(), &text[n as usize..][..(n % 5000) as usize + 1]);
    }
    writing.join().unwrap();
}

#[test]
fn a_thousand_connections() {
    let running = Running::start();
    let mut all: Vec<_> = (0..500).map(|_| running.session_with(8192)).collect();
    for raw in &mut all {
        raw.open(1, &["README"], open::READ_ONLY);
    }
    for raw in &mut all {
        assert_eq!(raw.ask(3, &Request::Read { fid: 1, offset: 0, count: 100 }).data(), README);
    }
    drop(all);
    until("all is closed", || running.toy.open.load(Ordering::SeqCst) == 0);
}
