//! The table of bad input over a real mount and over 9P, by two clients that believe nothing of the server's own code.

use crate::support::simulated;
use crate::table::{Client, Refused, run};
use std::ffi::OsStr;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

fn seen(error: std::io::Error) -> Refused {
    (error.raw_os_error().unwrap_or_else(|| panic!("{error} is no errno")), None)
}

/// Somebody in a shell at the mount.
pub struct Fuse(pub PathBuf);

impl Fuse {
    fn at(&self, path: &[u8]) -> PathBuf {
        self.0.join(OsStr::from_bytes(path))
    }
}

impl Client for Fuse {
    fn write(&mut self, path: &[u8], data: &[u8]) -> Result<(), Refused> {
        let mut file = std::fs::File::options().append(true).open(self.at(path)).map_err(seen)?;
        let n = file.write(data).map_err(seen)?;
        assert_eq!(n, data.len(), "a short write");
        Ok(())
    }

    fn ask(&mut self, path: &[u8], data: &[u8]) -> Result<Vec<u8>, Refused> {
        let mut file = std::fs::File::options().read(true).write(true).open(self.at(path)).map_err(seen)?;
        file.write_all(data).map_err(seen)?;
        let mut answer = Vec::new();
        file.read_to_end(&mut answer).map_err(seen)?;
        Ok(answer)
    }

    fn read(&mut self, path: &[u8]) -> Result<Vec<u8>, Refused> {
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let mut file = std::fs::File::options().read(true).custom_flags(nonblock).open(self.at(path)).map_err(seen)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(seen)?;
        Ok(text)
    }

    fn remove(&mut self, path: &[u8], directory: bool) -> Result<(), Refused> {
        let path = self.at(path);
        if directory { std::fs::remove_dir(path) } else { std::fs::remove_file(path) }.map_err(seen)
    }

    fn make_directory(&mut self, path: &[u8]) -> Result<(), Refused> {
        std::fs::create_dir(self.at(path)).map_err(seen)
    }

    fn create(&mut self, path: &[u8]) -> Result<(), Refused> {
        std::fs::File::options().write(true).create_new(true).open(self.at(path)).map(drop).map_err(seen)
    }

    fn write_after_rmdir(&mut self, path: &[u8], directory: &[u8], data: &[u8]) -> Result<(), Refused> {
        let mut file = std::fs::File::options().write(true).open(self.at(path)).map_err(seen)?;
        self.remove(directory, true)?;
        file.write(data).map(|n| assert_eq!(n, data.len(), "a short write")).map_err(seen)
    }
}

/// 9P2000.L by hand (diod's protocol.md), so that nothing of the server's own codec is believed.
pub struct NineP {
    stream: UnixStream,
}

const ROOT: u32 = 0;
const FID: u32 = 1;
const HELD: u32 = 2;
const SYMLINK: u8 = 0x02;
const NONBLOCK: u32 = 0o4000;
const COUNT: u32 = 8192;

fn text(text: &[u8]) -> Vec<u8> {
    [&u16::try_from(text.len()).unwrap().to_le_bytes(), text].concat()
}

fn word(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

impl NineP {
    pub fn connect(socket: &Path) -> NineP {
        let mut client = NineP { stream: UnixStream::connect(socket).unwrap() };
        client.ask(100, &[word(1 << 18), text(b"9P2000.L")]).unwrap();
        client.ask(104, &[word(ROOT), word(u32::MAX), text(b""), text(b""), word(u32::MAX)]).unwrap();
        client
    }

    /// One request of this type, and its reply's body, or the errno of Rlerror.
    fn ask(&mut self, kind: u8, parts: &[Vec<u8>]) -> Result<Vec<u8>, i32> {
        let body = parts.concat();
        let size = word(u32::try_from(body.len() + 7).unwrap());
        let tag: u16 = if kind == 100 { u16::MAX } else { 7 };
        self.stream.write_all(&[size, vec![kind], tag.to_le_bytes().to_vec(), body].concat()).unwrap();
        let mut head = [0; 7];
        self.stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize - 7];
        self.stream.read_exact(&mut body).unwrap();
        assert_eq!(u16::from_le_bytes([head[5], head[6]]), tag);
        match head[4] {
            7 => Err(i32::from_le_bytes(body[..4].try_into().unwrap())),
            reply => {
                assert_eq!(reply, kind + 1);
                Ok(body)
            }
        }
    }

    fn clunk(&mut self) {
        self.ask(120, &[word(FID)]).unwrap();
    }

    /// `FID` stands for the path then. Name by name, and through links, as Linux does it.
    fn walk(&mut self, path: &[u8]) -> Result<(), i32> {
        self.ask(110, &[word(ROOT), word(FID), vec![0, 0]])?;
        let mut names: Vec<Vec<u8>> =
            path.split(|b| *b == b'/').map(<[u8]>::to_vec).filter(|n| !n.is_empty()).collect();
        names.reverse();
        while let Some(name) = names.pop() {
            let walked = self.ask(110, &[word(FID), word(FID), vec![1, 0], text(&name)]);
            let walked = walked.inspect_err(|_| self.clunk())?;
            if walked[2] & SYMLINK != 0 && !names.is_empty() {
                let target = self.ask(22, &[word(FID)])?[2..].to_vec();
                self.ask(110, &[word(FID), word(FID), vec![1, 0], text(b"..")])?;
                names.push(target);
            }
        }
        Ok(())
    }

    /// Opens, does it, and clunks whatever came of it.
    fn opened<T>(
        &mut self,
        path: &[u8],
        flags: u32,
        act: impl FnOnce(&mut NineP) -> Result<T, i32>,
    ) -> Result<T, Refused> {
        let bare = |errno| (errno, None);
        self.walk(path).map_err(bare)?;
        let done = self.ask(12, &[word(FID), word(flags)]).and_then(|_| act(self));
        self.clunk();
        done.map_err(bare)
    }

    fn write_all(&mut self, data: &[u8]) -> Result<(), i32> {
        let count = u32::try_from(data.len()).unwrap();
        let reply = self.ask(118, &[word(FID), vec![0; 8], word(count), data.to_vec()])?;
        assert_eq!(reply, word(count), "a short write");
        Ok(())
    }

    fn read_all(&mut self) -> Result<Vec<u8>, i32> {
        let mut all = Vec::new();
        loop {
            let offset = (all.len() as u64).to_le_bytes().to_vec();
            let reply = self.ask(116, &[word(FID), offset, word(COUNT)])?;
            if reply[..4] == [0; 4] {
                return Ok(all);
            }
            all.extend_from_slice(&reply[4..]);
        }
    }

    /// A request about a name in a directory; its fid is clunked.
    fn in_parent(&mut self, path: &[u8], kind: u8, parts: impl FnOnce(&[u8]) -> Vec<Vec<u8>>) -> Result<(), Refused> {
        let slash = path.iter().rposition(|b| *b == b'/');
        let (dir, name) = slash.map_or((&b""[..], path), |at| (&path[..at], &path[at + 1..]));
        self.walk(dir).map_err(|errno| (errno, None))?;
        let done = self.ask(kind, &parts(name));
        self.clunk();
        done.map(drop).map_err(|errno| (errno, None))
    }
}

/// What 9P tells of a file: Tgetattr, and the qid that Twalk gave.
#[derive(Debug, PartialEq, Eq)]
pub struct Attributes {
    pub qid_path: u64,
    pub mode: u32,
    pub links: u64,
    pub size: u64,
}

/// An entry of Treaddir: the qid's path, DT_DIR and so on, the name.
pub type Entry = (u64, u8, Vec<u8>);

fn number<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().unwrap()
}

/// What a client needs beside the table: it looks at everything.
impl NineP {
    /// Of the thing itself: a link at the end of the path is not followed.
    pub fn attributes(&mut self, path: &[u8]) -> Attributes {
        self.walk(path).unwrap();
        let all = 0x3fff_u64.to_le_bytes().to_vec();
        let reply = self.ask(24, &[word(FID), all]).unwrap();
        self.clunk();
        Attributes {
            qid_path: u64::from_le_bytes(number(&reply, 13)),
            mode: u32::from_le_bytes(number(&reply, 21)),
            links: u64::from_le_bytes(number(&reply, 33)),
            size: u64::from_le_bytes(number(&reply, 49)),
        }
    }

    /// May it be opened for writing?
    pub fn opens_for_writing(&mut self, path: &[u8]) -> Result<(), i32> {
        self.opened(path, 1, |_| Ok(())).map_err(|(errno, _)| errno)
    }

    /// All entries of a directory but `.` and `..`, asked for in pieces of `count` bytes.
    pub fn list(&mut self, path: &[u8], count: u32) -> Vec<Entry> {
        let (mut entries, mut offset) = (Vec::new(), 0_u64);
        let listed = self.opened(path, 0, |client| {
            loop {
                let piece = client.ask(40, &[word(FID), offset.to_le_bytes().to_vec(), word(count)])?;
                let mut rest = &piece[4..];
                if rest.is_empty() {
                    return Ok(());
                }
                while !rest.is_empty() {
                    let length = usize::from(u16::from_le_bytes(number(rest, 22)));
                    offset = u64::from_le_bytes(number(rest, 13));
                    entries.push((u64::from_le_bytes(number(rest, 5)), rest[21], rest[24..24 + length].to_vec()));
                    rest = &rest[24 + length..];
                }
            }
        });
        listed.unwrap();
        entries.retain(|(.., name)| name != b"." && name != b"..");
        entries
    }

    /// The whole of a finite file, read byte by byte, backwards.
    pub fn bytes_backwards(&mut self, path: &[u8], size: u64) -> Vec<u8> {
        let read = self.opened(path, 0, |client| {
            let mut bytes = Vec::new();
            for offset in (0..size).rev() {
                let reply = client.ask(116, &[word(FID), offset.to_le_bytes().to_vec(), word(1)])?;
                bytes.extend_from_slice(&reply[4..]);
            }
            Ok(bytes)
        });
        let mut bytes = read.unwrap();
        bytes.reverse();
        bytes
    }
}

impl Client for NineP {
    fn write(&mut self, path: &[u8], data: &[u8]) -> Result<(), Refused> {
        self.opened(path, 1, |client| client.write_all(data))
    }

    fn ask(&mut self, path: &[u8], data: &[u8]) -> Result<Vec<u8>, Refused> {
        self.opened(path, 2, |client| client.write_all(data).and_then(|()| client.read_all()))
    }

    fn read(&mut self, path: &[u8]) -> Result<Vec<u8>, Refused> {
        self.opened(path, NONBLOCK, NineP::read_all)
    }

    fn remove(&mut self, path: &[u8], directory: bool) -> Result<(), Refused> {
        // As Linux does: what it removes, it has walked to.
        self.walk(path).map_err(|errno| (errno, None))?;
        self.clunk();
        let flags = if directory { 0x200 } else { 0 };
        self.in_parent(path, 76, |name| vec![word(FID), text(name), word(flags)])
    }

    fn make_directory(&mut self, path: &[u8]) -> Result<(), Refused> {
        self.in_parent(path, 72, |name| vec![word(FID), text(name), word(0o755), word(0)])
    }

    fn create(&mut self, path: &[u8]) -> Result<(), Refused> {
        self.in_parent(path, 14, |name| vec![word(FID), text(name), word(0o101), word(0o644), word(0)])
    }

    fn write_after_rmdir(&mut self, path: &[u8], directory: &[u8], data: &[u8]) -> Result<(), Refused> {
        let bare = |errno| (errno, None);
        self.walk(path).map_err(bare)?;
        self.ask(110, &[word(FID), word(HELD), vec![0, 0]]).map_err(bare)?;
        self.clunk();
        self.ask(12, &[word(HELD), word(1)]).map_err(bare)?;
        self.remove(directory, true)?;
        let count = word(u32::try_from(data.len()).unwrap());
        let written = self.ask(118, &[word(HELD), vec![0; 8], count, data.to_vec()]);
        self.ask(120, &[word(HELD)]).unwrap();
        written.map(drop).map_err(bare)
    }
}

#[test]
fn bad_input_over_fuse() {
    let node = simulated();
    run(&mut Fuse(node.mount()));
}

#[test]
fn bad_input_over_9p() {
    let node = simulated();
    run(&mut NineP::connect(&node.data().join("sock")));
}
