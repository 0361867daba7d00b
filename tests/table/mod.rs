//! Bad input, as one table of cases that is run over the tree itself and over every front that serves it.
//!
//! Each case is one operation of a shell user; what is refused must be refused with the right errno, in a sentence that helps,
//! and must have changed nothing. `/err` must have the sentence, whatever the front.

mod attributes;
mod cases;
mod names;

use blixard::text::Code;

/// What a refusal looks like to who asked: the errno, and the sentence where the front carries one.
pub type Refused = (i32, Option<String>);

/// Somebody who has the tree: an admin of the cluster, through one of the fronts. Paths are relative to the root.
pub trait Client {
    /// Opens for writing alone (as `>>` does), writes all of `data` at once, closes.
    fn write(&mut self, path: &[u8], data: &[u8]) -> Result<(), Refused>;
    /// Opens for reading and writing, writes, and reads the answer to its end.
    fn ask(&mut self, path: &[u8], data: &[u8]) -> Result<Vec<u8>, Refused>;
    /// Opens for reading without blocking, and reads to the end.
    fn read(&mut self, path: &[u8]) -> Result<Vec<u8>, Refused>;
    /// rmdir (`directory`) or rm.
    fn remove(&mut self, path: &[u8], directory: bool) -> Result<(), Refused>;
    /// mkdir.
    fn make_directory(&mut self, path: &[u8]) -> Result<(), Refused>;
    /// creat: makes a file that is not there.
    fn create(&mut self, path: &[u8]) -> Result<(), Refused>;
    /// Opens a file for writing, then removes this directory, then writes to what was opened.
    fn write_after_rmdir(&mut self, path: &[u8], directory: &[u8], data: &[u8]) -> Result<(), Refused>;
}

/// What somebody does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Does {
    Write,
    Read,
    Rmdir,
    Rm,
    Mkdir,
    Create,
}

/// What comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// It is taken, and changes nothing that the lists show.
    Taken,
    /// It is refused with this errno, and the sentence contains this.
    Refused(Code, &'static str),
}

/// One line of the table. In path and input `{id}` stands for the number of a VM that is there, `{gone}` for one that was deleted,
/// `{ip}` for the first one's address, `{node}` for the node's name, `{me}` for the caller's.
#[derive(Debug, Clone)]
pub struct Case {
    pub does: Does,
    pub path: Vec<u8>,
    pub input: Vec<u8>,
    pub expected: Expected,
    /// Must the sentence be in `/err`? What is not found on the way to a file is not noted there.
    pub noted: bool,
}

impl Case {
    fn of(does: Does, path: impl AsRef<[u8]>, input: impl AsRef<[u8]>, expected: Expected) -> Case {
        Case { does, path: path.as_ref().to_vec(), input: input.as_ref().to_vec(), expected, noted: true }
    }

    fn not_noted(self) -> Case {
        Case { noted: false, ..self }
    }

    /// For messages: bounded.
    fn shown(&self) -> String {
        let bounded = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes.get(..bytes.len().min(80)).unwrap_or_default()).into_owned();
            format!("{text:?}{}", if bytes.len() > 80 { format!("... ({} bytes)", bytes.len()) } else { String::new() })
        };
        format!("{:?} {} to {}", self.does, bounded(&self.input), bounded(&self.path))
    }
}

/// What the placeholders stand for.
struct Places(Vec<(&'static [u8], Vec<u8>)>);

impl Places {
    /// Makes what the cases are about.
    fn prepare(client: &mut impl Client) -> Places {
        let number = |answer: Vec<u8>| String::from_utf8(answer).unwrap().trim().to_owned().into_bytes();
        let id = number(client.ask(b"vms/new", b"name=table-web image=tiny memory=64M").unwrap());
        let gone = number(client.ask(b"vms/new", b"name=table-gone image=tiny memory=64M\n").unwrap());
        client.remove(&[b"vms/", gone.as_slice()].concat(), true).unwrap();
        let value = |text: &[u8], key: &str| {
            let text = String::from_utf8(text.to_vec()).unwrap();
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ').map(str::to_owned));
            line.unwrap_or_else(|| panic!("no line '{key}' in {text}")).into_bytes()
        };
        let status = client.read(&[b"vms/", id.as_slice(), b"/status"].concat()).unwrap();
        let node = value(&client.read(b"status").unwrap(), "node");
        let me = value(&client.read(b"me").unwrap(), "user");
        let ip = value(&status, "ip");
        Places(vec![(b"{id}", id), (b"{gone}", gone), (b"{ip}", ip), (b"{node}", node), (b"{me}", me)])
    }

    fn fill(&self, text: &[u8]) -> Vec<u8> {
        self.0.iter().fold(text.to_vec(), |text, (name, value)| replaced(&text, name, value))
    }

    /// Everything that a case could have changed, as text.
    fn seen(&self, client: &mut impl Client) -> String {
        let files: [&[u8]; 6] =
            [b"vms/list", b"vms/{id}/status", b"vms/{id}/spec", b"ipam/list", b"users/list", b"images/list"];
        let mut all = String::new();
        for file in files {
            all.push_str(&String::from_utf8(client.read(&self.fill(file)).unwrap()).unwrap());
        }
        all
    }
}

fn replaced(text: &[u8], name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.windows(name.len()).position(|window| window == name) {
        out.extend_from_slice(&rest[..at]);
        out.extend_from_slice(value);
        rest = &rest[at + name.len()..];
    }
    out.extend_from_slice(rest);
    out
}

/// Runs every case, and tells of all that went otherwise at once.
pub fn run(client: &mut impl Client) {
    let places = Places::prepare(client);
    let cases: Vec<Case> = names::cases().into_iter().chain(cases::all()).chain(attributes::cases()).collect();
    let mut wrong = Vec::new();
    let mut before = places.seen(client);
    for case in &cases {
        if let Err(why) = check(client, &places, case) {
            wrong.push(format!("{}\n    {why}", case.shown()));
        }
        let after = places.seen(client);
        if after != before {
            wrong.push(format!("{}\n    has changed something:\n{before}\n  is now\n{after}", case.shown()));
        }
        before = after;
    }
    let machines = client.read(b"vms/list").unwrap();
    for (file, data) in DELETED_WHILE_OPEN {
        if let Err(why) = check_deleted(client, file, data) {
            wrong.push(format!("{data:?} to the {file} of a VM deleted since its open\n    {why}"));
        }
    }
    // (Their addresses rest, which is seen in the pool.)
    assert_eq!(client.read(b"vms/list").unwrap(), machines, "all that was made since is deleted");
    assert!(cases.len() > 200, "the table has shrunk to {} cases", cases.len());
    assert!(wrong.is_empty(), "{} of {} cases went wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    client.remove(&places.fill(b"vms/{id}"), true).unwrap();
}

/// What is written to a VM's file that was opened before the VM was deleted.
const DELETED_WHILE_OPEN: &[(&str, &str)] =
    &[("ctl", "start"), ("ctl", "set name=table-y"), ("ctl", "delete"), ("ctl", "stop\nstop"), ("events", "from=1")];

fn check_deleted(client: &mut impl Client, file: &str, data: &str) -> Result<(), String> {
    let id = client.ask(b"vms/new", b"name=table-late image=tiny memory=64M").unwrap();
    let directory = format!("vms/{}", String::from_utf8(id).unwrap().trim());
    let before = client.read(b"err").unwrap();
    let path = format!("{directory}/{file}");
    let Err((errno, sentence)) = client.write_after_rmdir(path.as_bytes(), directory.as_bytes(), data.as_bytes())
    else {
        return Err("was taken".to_owned());
    };
    if errno != Code::NotFound.errno() {
        return Err(format!("errno {errno}: {sentence:?}"));
    }
    check_noted(client, &before, Code::NotFound, "")
}

/// Is the sentence in `/err`, and was it not there before?
fn check_noted(client: &mut impl Client, before: &[u8], code: Code, says: &str) -> Result<(), String> {
    let err = client.read(b"err").unwrap();
    if err == before {
        return Err("/err has nothing new".to_owned());
    }
    let err = String::from_utf8(err).unwrap();
    check_sentence(err.lines().last().unwrap_or_default(), code, says).map_err(|why| format!("/err: {why}"))
}

fn check(client: &mut impl Client, places: &Places, case: &Case) -> Result<(), String> {
    let before = client.read(b"err").unwrap();
    let (path, input) = (places.fill(&case.path), places.fill(&case.input));
    let result = match case.does {
        Does::Write => client.write(&path, &input),
        Does::Read => client.read(&path).map(drop),
        Does::Rmdir => client.remove(&path, true),
        Does::Rm => client.remove(&path, false),
        Does::Mkdir => client.make_directory(&path),
        Does::Create => client.create(&path),
    };
    let (code, says) = match (case.expected, &result) {
        (Expected::Taken, Ok(())) => return Ok(()),
        (Expected::Taken, Err(refused)) => return Err(format!("was refused: {refused:?}")),
        (Expected::Refused(..), Ok(())) => return Err("was taken".to_owned()),
        (Expected::Refused(code, says), Err(_)) => (code, says),
    };
    let (errno, sentence) = result.unwrap_err();
    let says = String::from_utf8(places.fill(says.as_bytes())).unwrap();
    if errno != code.errno() {
        return Err(format!("errno {errno} and not {} ({code:?}): {sentence:?}", code.errno()));
    }
    if let Some(sentence) = &sentence {
        check_sentence(sentence, code, &says)?;
    }
    if case.noted {
        check_noted(client, &before, code, &says)?;
    }
    Ok(())
}

/// Does a sentence say what it should, and in words that 9pfuse (plan9port) makes the same errno of?
fn check_sentence(sentence: &str, code: Code, says: &str) -> Result<(), String> {
    let word = match code {
        Code::Invalid => "invalid",
        Code::NotFound => "not found",
        Code::Exists => "exists",
        Code::Denied | Code::NotPermitted => "permission",
        Code::Busy => "busy",
        _ => "",
    };
    if !sentence.contains(word) {
        return Err(format!("'{sentence}' does not have the word '{word}'"));
    }
    if !sentence.contains(says) {
        return Err(format!("'{sentence}' does not say '{says}'"));
    }
    if sentence.len() > 1_024 || sentence.contains(char::is_control) {
        return Err(format!("'{sentence}' is no sentence for a terminal"));
    }
    Ok(())
}
