//! Recorded sessions: the very bytes that go in and come out, in each dialect, on the toy tree. `recorded/*.txt` are
//! read by people too: each message is a line as fcall(3) prints it, `->` what a client sends, `<-` what comes back, and
//! below it its bytes. Both are checked, so that the text is as true as the bytes.
//!
//! BLIXARD_RECORD=1 writes the lines and the answers anew, from the bytes of the requests; then they are to be read again.

use super::raw::Running;
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::{Dialect, Header, Reply, Request, print};
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;

/// One part of a file.
enum Part {
    /// A line that is for people alone.
    Words(String),
    /// What a client sends.
    Sent(Vec<u8>),
    /// Something comes back.
    Back,
    /// The server ends the connection.
    End,
}

const END: &str = "<- the end";

fn parse(text: &str) -> Vec<Part> {
    let mut parts: Vec<Part> = Vec::new();
    for line in text.lines() {
        let line = line.trim_end();
        if line == END {
            parts.push(Part::End);
        } else if line.starts_with("-> ") {
            parts.push(Part::Sent(Vec::new()));
        } else if line.starts_with("<- ") {
            parts.push(Part::Back);
        } else if let Some(hex) = line.strip_prefix("   ") {
            if let Some(Part::Sent(bytes)) = parts.last_mut() {
                let digits: Vec<u8> = hex.bytes().filter(|digit| *digit != b' ').collect();
                let byte = |two: &[u8]| u8::from_str_radix(std::str::from_utf8(two).unwrap(), 16).unwrap();
                bytes.extend(digits.chunks(2).map(byte));
            }
        } else {
            assert!(line.is_empty() || line.starts_with('#'), "{line}");
            parts.push(Part::Words(line.into()));
        }
    }
    parts
}

/// The bytes of a message, its header's fields apart, 32 bytes a line.
fn print_bytes(bytes: &[u8], into: &mut String) {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let (header, body) = bytes.split_at(HEADER_BYTES.min(bytes.len()));
    let header = [&header[..4], &header[4..5], &header[5..]].map(hex).join(" ");
    let mut lines = body.chunks(32);
    writeln!(into, "   {header} {}", lines.next().map(hex).unwrap_or_default()).unwrap();
    lines.for_each(|line| writeln!(into, "   {}", hex(line)).unwrap());
}

/// A message as fcall(3) prints it; one that can't be decoded, as what is wrong with it.
fn line_of(dialect: Dialect, bytes: &[u8]) -> String {
    let Header { kind, tag, .. } = Header::decode(bytes).unwrap();
    let body = &bytes[HEADER_BYTES..];
    let line = if kind % 2 == 0 {
        Request::decode(dialect, kind, body).map(|request| print::request(dialect, tag, &request).to_string())
    } else {
        Reply::decode(dialect, kind, body).map(|reply| print::reply(dialect, tag, &reply).to_string())
    };
    line.unwrap_or_else(|malformed| format!("type {kind} tag {tag}: {malformed}"))
}

/// Plays a file against a server of its own; the answer is what it would be if it was written anew.
fn play(dialect: Dialect, parts: &[Part]) -> String {
    let running = Running::start();
    let mut raw = running.connect();
    raw.dialect = dialect;
    let mut recorded = String::new();
    for part in parts {
        match part {
            Part::Words(words) => writeln!(recorded, "{words}").unwrap(),
            Part::Sent(bytes) => {
                raw.stream.write_all(bytes).unwrap();
                writeln!(recorded, "-> {}", line_of(dialect, bytes)).unwrap();
                print_bytes(bytes, &mut recorded);
            }
            Part::Back => {
                let answer = raw.receive();
                let size = (HEADER_BYTES + answer.body.len()) as u32;
                let header = [&size.to_le_bytes()[..], &[answer.kind], &answer.tag.to_le_bytes()].concat();
                let bytes = [header, answer.body].concat();
                writeln!(recorded, "<- {}", line_of(dialect, &bytes)).unwrap();
                print_bytes(&bytes, &mut recorded);
            }
            Part::End => {
                assert!(raw.is_closed());
                writeln!(recorded, "{END}").unwrap();
                raw = running.connect();
                raw.dialect = dialect;
            }
        }
    }
    recorded
}

fn check(dialect: Dialect, name: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/ninep/recorded").join(name);
    let text = std::fs::read_to_string(&path).unwrap();
    let parts = parse(&text);
    let played = play(dialect, &parts);
    if std::env::var_os("BLIXARD_RECORD").is_some() {
        std::fs::write(&path, played).unwrap();
        return;
    }
    for (n, (expected, found)) in text.lines().zip(played.lines()).enumerate() {
        assert_eq!(found.trim_end(), expected.trim_end(), "{name}:{}", n + 1);
    }
    assert_eq!(played.lines().count(), text.lines().count());
    assert!(parts.iter().filter(|part| matches!(part, Part::Back)).count() > 20, "too little is recorded");
}

#[test]
fn of_9p2000() {
    check(Dialect::Plain, "9p2000.txt");
}

#[test]
fn of_9p2000_u() {
    check(Dialect::U, "9p2000.u.txt");
}

#[test]
fn of_9p2000_l() {
    check(Dialect::L, "9p2000.L.txt");
}
