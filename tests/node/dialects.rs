//! The real tree in 9P2000 and 9P2000.u: it is the tree of the mount, in the words of the dialect.

use crate::fronts::{changes, everything, furnished};
use crate::support::Node;
use blixard::ninep::field::{Cursor, Field};
use blixard::ninep::message::HEADER_BYTES;
use blixard::ninep::stat::{mode, open};
use blixard::ninep::{Data, Dialect, Extended, Header, List, NOFID, NONUNAME, NOTAG, Reply, Request, Stat};
use bytes::BytesMut;
use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

const MSIZE: u32 = 8192;
const ROOT: u32 = 0;
const FID: u32 = 1;

/// A client that asks one thing after the other.
struct Client {
    stream: UnixStream,
    dialect: Dialect,
}

/// What Stat holds, on its own.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shown {
    name: String,
    path: u64,
    mode: u32,
    length: u64,
    owner: String,
    target: String,
}

impl Shown {
    fn of(stat: &Stat<'_>) -> Shown {
        Shown {
            name: stat.name.into(),
            path: stat.qid.path,
            mode: stat.mode,
            length: stat.length,
            owner: stat.uid.into(),
            target: stat.extension.0.into(),
        }
    }
}

impl Client {
    fn connect(node: &Node, dialect: Dialect) -> Client {
        let mut client = Client { stream: UnixStream::connect(node.data().join("sock")).unwrap(), dialect };
        client.ask(&Request::Version { msize: MSIZE, version: dialect.name() }).unwrap();
        client.ask(&Request::Attach { fid: ROOT, afid: NOFID, uname: "me", aname: "", n_uname: NONUNAME }).unwrap();
        client
    }

    /// The body of the answer, or the sentence of an Rerror.
    fn ask(&mut self, request: &Request<'_>) -> Result<Vec<u8>, String> {
        let tag = if matches!(request, Request::Version { .. }) { NOTAG } else { 1 };
        let mut bytes = BytesMut::new();
        request.encode(self.dialect, tag, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
        let mut header = [0; HEADER_BYTES];
        self.stream.read_exact(&mut header).unwrap();
        let header = Header::decode(&header).unwrap();
        let mut body = vec![0; header.size as usize - HEADER_BYTES];
        self.stream.read_exact(&mut body).unwrap();
        match Reply::decode(self.dialect, header.kind, &body).unwrap() {
            Reply::Error { ename, .. } => Err(ename.to_owned()),
            _ => {
                assert_eq!(header.kind, request.kind() + 1);
                Ok(body)
            }
        }
    }

    /// Walks from the root, does it, and clunks.
    fn at<T>(&mut self, path: &Path, act: impl FnOnce(&mut Client) -> T) -> Result<T, String> {
        let names: Vec<&str> = path.iter().map(|name| name.to_str().unwrap()).collect();
        let mut scratch = BytesMut::new();
        let walk = Request::Walk { fid: ROOT, newfid: FID, names: List::of(&names, &mut scratch).unwrap() };
        let body = self.ask(&walk)?;
        let Ok(Reply::Walk { qids }) = Reply::decode(self.dialect, 111, &body) else { panic!("{body:?}") };
        if qids.len() < names.len() {
            return Err("not found on the way".into());
        }
        let done = act(self);
        self.ask(&Request::Clunk { fid: FID }).unwrap();
        Ok(done)
    }

    fn stat(&mut self, path: &Path) -> Shown {
        let body = self.at(path, |client| client.ask(&Request::Stat { fid: FID }).unwrap()).unwrap();
        let Ok(Reply::Stat { stat }) = Reply::decode(self.dialect, 125, &body) else { panic!("{body:?}") };
        Shown::of(&stat.0)
    }

    /// All that is read, so many bytes at a time at most.
    fn read(&mut self, path: &Path, count: u32) -> Vec<u8> {
        let dialect = self.dialect;
        let all = |client: &mut Client| {
            client.ask(&Request::Open { fid: FID, mode: open::READ }).unwrap();
            let mut all = Vec::new();
            loop {
                let body = client.ask(&Request::Read { fid: FID, offset: all.len() as u64, count }).unwrap();
                let Ok(Reply::Read { data }) = Reply::decode(dialect, 117, &body) else { panic!("{body:?}") };
                if data.0.is_empty() {
                    return all;
                }
                all.extend_from_slice(data.0);
            }
        };
        self.at(path, all).unwrap()
    }

    fn list(&mut self, path: &Path, count: u32) -> BTreeMap<String, Shown> {
        let records = self.read(path, count);
        let mut cursor = Cursor::new(&records);
        let mut listed = BTreeMap::new();
        while !cursor.is_empty() {
            let shown = Shown::of(&Stat::get(self.dialect, &mut cursor).unwrap());
            assert!(listed.insert(shown.name.clone(), shown).is_none(), "a name comes once");
        }
        listed
    }

    fn write(&mut self, path: &str, text: &str) -> Result<(), String> {
        self.at(Path::new(path), |client| {
            client.ask(&Request::Open { fid: FID, mode: open::WRITE | open::TRUNCATE })?;
            client.ask(&Request::Write { fid: FID, offset: 0, data: Data(text.as_bytes()) }).map(drop)
        })?
    }
}

#[test]
fn plain_and_u_show_the_tree_of_the_mount() {
    let node = furnished();
    let found = everything(&node);
    for dialect in [Dialect::Plain, Dialect::U] {
        let client = &mut Client::connect(&node, dialect);
        let is_shown = |stat: &std::fs::Metadata| dialect == Dialect::U || !stat.is_symlink();
        for (path, stat) in found.iter().filter(|(_, stat)| is_shown(stat)) {
            let shown = client.stat(path);
            assert_eq!(shown.name, path.file_name().unwrap().to_str().unwrap(), "{dialect}");
            assert_eq!((shown.path, shown.mode & 0o777), (stat.ino(), stat.mode() & 0o777), "{path:?} {dialect}");
            assert_eq!(shown.mode & mode::DIRECTORY != 0, stat.is_dir(), "{path:?} {dialect}");
            assert_eq!(shown.mode & mode::LINK != 0, stat.is_symlink(), "{path:?} {dialect}");
            if !stat.is_dir() && !changes(path) {
                assert_eq!(shown.length, stat.size(), "{path:?} {dialect}");
            }
            if !stat.is_dir() {
                continue;
            }
            let below: Vec<_> =
                found.iter().filter(|(p, s)| p.parent() == Some(path) && is_shown(s)).map(|(p, _)| p).collect();
            for count in [MSIZE, 120] {
                let listed = client.list(path, count);
                let names: Vec<_> = below.iter().map(|p| p.file_name().unwrap().to_str().unwrap()).collect();
                assert_eq!(listed.len(), names.len(), "{path:?} {dialect} {listed:#?}");
                assert!(names.iter().all(|name| listed.contains_key(*name)), "{path:?} {dialect} {listed:#?}");
            }
            for path in below.iter().filter(|path| !changes(path)) {
                let name = path.file_name().unwrap().to_str().unwrap();
                let (listed, stat) = (client.list(path.parent().unwrap(), MSIZE)[name].clone(), client.stat(path));
                assert_eq!(Shown { length: stat.length, ..listed }, stat, "a listing shows what stat does");
            }
        }
    }
}

#[test]
fn names_lead_to_objects() {
    let node = furnished();
    let plain = &mut Client::connect(&node, Dialect::Plain);
    let web = plain.stat(Path::new("vms/web"));
    assert_eq!(web, plain.stat(Path::new("vms/1")));
    assert_eq!((web.name.as_str(), web.mode & mode::DIRECTORY), ("1", mode::DIRECTORY));
    assert_eq!(plain.read(Path::new("vms/web/../web/state"), 100), b"running\n");
    let unix = &mut Client::connect(&node, Dialect::U);
    let web = unix.stat(Path::new("vms/web"));
    assert_eq!((web.name.as_str(), web.target.as_str()), ("web", "1"));
    assert_eq!(web.mode, mode::LINK | 0o777);
    assert_eq!(web, unix.list(Path::new("vms"), MSIZE)["web"]);
}

#[test]
fn commands_and_refusals() {
    let node = furnished();
    for dialect in [Dialect::Plain, Dialect::U] {
        let client = &mut Client::connect(&node, dialect);
        client.write("vms/1/ctl", "start\n").unwrap();
        let said = client.write("vms/1/ctl", "strat\n").unwrap_err();
        assert!(said.contains("did you mean 'start'?"), "{said}");
        let said = client.write("vms/1/status", "x").unwrap_err();
        assert!(said.contains("permission"), "{said}");
        let said = client.write("vms/nobody/ctl", "start").unwrap_err();
        assert!(said.contains("not found"), "{said}");
        let (extension, name) = (Extended(""), "vms2");
        let made = client.ask(&Request::Create { fid: ROOT, name, perm: mode::DIRECTORY | 0o777, mode: 0, extension });
        assert!(made.unwrap_err().contains("no permission for mkdir 'vms2'"));
        let me = String::from_utf8(client.read(Path::new("me"), MSIZE)).unwrap();
        assert!(me.lines().any(|line| line.starts_with("dialect") && line.ends_with(dialect.name())), "{me}");
        // The clone file: a number comes back on the same fid.
        let number = client.at(Path::new("vms/new"), |client| {
            client.ask(&Request::Open { fid: FID, mode: open::READ_WRITE }).unwrap();
            client.ask(&Request::Write { fid: FID, offset: 0, data: Data(b"image=tiny memory=64M\n") }).unwrap();
            let body = client.ask(&Request::Read { fid: FID, offset: 22, count: 100 }).unwrap();
            String::from_utf8(body[4..].to_vec()).unwrap()
        });
        let object = format!("vms/{}", number.unwrap().trim());
        assert_eq!(client.stat(Path::new(&object)).name, Path::new(&object).file_name().unwrap().to_str().unwrap());
        // rm -r of it: its files stay, its directory goes.
        let remove = |client: &mut Client, path: &str| {
            let mut scratch = BytesMut::new();
            let names: Vec<&str> = path.split('/').collect();
            let names = List::of(&names, &mut scratch).unwrap();
            client.ask(&Request::Walk { fid: ROOT, newfid: FID, names })?;
            client.ask(&Request::Remove { fid: FID })
        };
        assert!(remove(client, &format!("{object}/spec")).unwrap_err().contains("no permission to rm 'spec'"));
        remove(client, &object).unwrap();
        assert!(client.at(Path::new(&object), |_| ()).is_err());
    }
}
