//! The verbs of the command line that talk to a running node, over 9P as everybody else does: new, ls, cat, write, rm, status.

use crate::ninep::client::{Client, ClientError, File, Follow, Options, is_directory};
use crate::ninep::linux::{Attributes, mode, open};
use crate::ninep::{MSIZE_MAX, Qid};
use crate::text::{Dial, Refusal, attrs, duration, time};
use clap::{Args, Subcommand};
use futures::future::pending;
use futures::{StreamExt, TryStreamExt, stream};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::Interest;
use tokio::net::unix::pipe;

/// Requests at a time while a directory is listed with attributes.
const STATS_AT_A_TIME: usize = 64;
/// The exit code of what a closed pipe has ended, as the shell gives it to what SIGPIPE kills.
const EXIT_PIPE_CLOSED: u8 = 128 + 13;

/// Which node.
#[derive(Debug, Clone, Args)]
pub struct At {
    /// The node, as a dial string: unix!/run/blixard/sock, tls!alpha!5640 or tcp!127.0.0.1!564
    #[arg(long, env = "BLIXARD", global = true, value_name = "DIAL", default_value = "unix!/run/blixard/sock")]
    pub at: Dial,
    /// Who you are over TLS, as `blixard ca issue` wrote it; default: ~/.config/blixard/identity.pem
    #[arg(long, env = "BLIXARD_IDENTITY", global = true, value_name = "FILE")]
    pub identity: Option<PathBuf>,
    /// Print every message to the standard error
    #[arg(short = 'D', global = true)]
    pub prints: bool,
}

impl At {
    /// How to connect.
    pub fn options(&self) -> Options {
        Options { identity: self.identity.clone(), prints: self.prints, ..Options::default() }
    }
}

/// What to do there.
#[derive(Debug, Clone, Subcommand)]
pub enum Verb {
    /// Make an object, and print its number
    New {
        /// What kind: the directory whose `new` file takes it, such as vms
        kind: String,
        /// What it is to be; `blixard cat KIND/new` shows what there is
        #[arg(value_name = "ATTR=VALUE")]
        attrs: Vec<String>,
        /// Wait until it has settled, at most for this long if it is given, and print the state
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "")]
        wait: Option<Wait>,
    },
    /// List a directory
    Ls {
        /// With attributes
        #[arg(short)]
        long: bool,
        /// Which
        #[arg(default_value = "/")]
        path: String,
    },
    /// Print files, as they come: streams too
    Cat {
        /// First wait until the node's tree has everything that was committed anywhere before
        #[arg(long)]
        sync: bool,
        /// Which
        #[arg(required = true)]
        paths: Vec<String>,
    },
    /// Write a text to a file in one write, which takes effect as a whole or not at all
    Write {
        /// The file
        path: String,
        /// The text; '-' or none: what comes on the standard input
        text: Option<String>,
        /// Add to what is there, as >> does
        #[arg(short, long)]
        append: bool,
        /// Then wait until the object has settled, at most for this long if it is given, and print the state
        #[arg(long, value_name = "DURATION", num_args = 0..=1, require_equals = true, default_missing_value = "")]
        wait: Option<Wait>,
    },
    /// Remove an object's directory
    Rm {
        /// Which
        path: String,
    },
    /// Print the cluster's status and the machines
    Status,
}

/// How long to wait; none: for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(Option<Duration>);

impl std::str::FromStr for Wait {
    type Err = Refusal;

    fn from_str(text: &str) -> Result<Wait, Refusal> {
        match text {
            "" => Ok(Wait(None)),
            text => Ok(Wait(Some(Duration::from_millis(duration::parse(text)?)))),
        }
    }
}

/// Why a verb has failed.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{path}: {error}")]
    At { path: String, error: ClientError },
    #[error("{error}{}", advice(.error))]
    Connect { error: ClientError },
    #[error("the standard input can't be read: {0}")]
    Input(io::Error),
    #[error("invalid text: it has more than {0} bytes, which is the most in one write")]
    TooLong(usize),
    #[error("can't write to the standard output: {0}")]
    Output(io::Error),
    /// Whoever read our output has gone: that is not an error.
    #[error("nobody reads the output")]
    PipeClosed,
    #[error("timed out: {path} had nothing to say within {limit}")]
    WaitedTooLong { path: String, limit: String },
    #[error("{path}: the state it settled in is 'failed'; its status says why")]
    SettledAsFailed { path: String },
    #[error("the runtime can't start: {0}")]
    Runtime(io::Error),
}

/// What to do about it.
fn advice(error: &ClientError) -> &'static str {
    match error {
        ClientError::Unreachable { .. } => {
            "; is a node running? start one with 'blixard serve', or name another with --at or BLIXARD"
        }
        _ => "",
    }
}

/// Does it; says what went wrong on the standard error.
pub fn run(at: &At, verb: &Verb) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::Runtime);
    match runtime.and_then(|runtime| runtime.block_on(connect_and_do(at, verb))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::PipeClosed) => ExitCode::from(EXIT_PIPE_CLOSED),
        Err(failure) => {
            // If that can't be written either, there is nobody left to tell.
            let _ = writeln!(io::stderr(), "blixard: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn connect_and_do(at: &At, verb: &Verb) -> Result<(), Failure> {
    let client = Client::connect_with(&at.at, &at.options()).await.map_err(|error| Failure::Connect { error })?;
    let before = errors(&client).await;
    let failure = match carry_out(&client, verb).await {
        Err(Failure::At { path, error }) => Failure::At { path, error: explain(&client, error, before).await },
        other => return other,
    };
    Err(failure)
}

async fn carry_out(client: &Client, verb: &Verb) -> Result<(), Failure> {
    match verb {
        Verb::New { kind, attrs, wait } => new(client, kind, attrs, *wait).await,
        Verb::Ls { long, path } => ls(client, path, *long).await,
        Verb::Cat { sync, paths } => {
            if *sync {
                client.read_all("sync").await.map_err(at("sync"))?;
            }
            cat(client, paths).await
        }
        Verb::Write { path, text, append, wait } => write(client, path, text.as_deref(), *append, *wait).await,
        Verb::Rm { path } => client.remove(path).await.map_err(at(path)),
        Verb::Status => status(client).await,
    }
}

fn at(path: &str) -> impl Fn(ClientError) -> Failure {
    move |error| Failure::At { path: path.to_owned(), error }
}

/// 9P2000.L carries an errno alone; the sentence is in `/err`, where the user's own errors are, the newest last.
async fn errors(client: &Client) -> Vec<u8> {
    // A server without the file has only its errnos to say.
    client.read_all("err").await.unwrap_or_default()
}

/// The error, with the sentence if `/err` has got a new one since `before`.
async fn explain(client: &Client, error: ClientError, before: Vec<u8>) -> ClientError {
    let ClientError::Refused { errno } = error else { return error };
    let now = errors(client).await;
    let text = String::from_utf8_lossy(&now);
    // Each line is a time and a sentence.
    let last = text.lines().last().unwrap_or_default();
    let sentence = last.split_once(' ').filter(|(time, _)| time.ends_with('Z')).map_or(last, |(_, s)| s).to_owned();
    if now == before || sentence.is_empty() { error } else { ClientError::Explained { errno, sentence } }
}

async fn new(client: &Client, kind: &str, words: &[String], wait: Option<Wait>) -> Result<(), Failure> {
    let path = format!("{kind}/new");
    let mut line = words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" ");
    line.push('\n');
    let file = client.open(&path, open::READ_WRITE).await.map_err(at(&path))?;
    file.write(0, line.as_bytes()).await.map_err(at(&path))?;
    let numbers = file.read_all().await.map_err(at(&path))?;
    print(&numbers)?;
    let Some(wait) = wait else { return Ok(()) };
    for number in String::from_utf8_lossy(&numbers).split_whitespace() {
        settle(client, &format!("{kind}/{number}/wait"), wait).await?;
    }
    Ok(())
}

/// `attr=value` as a line of the tree has it. The shell has taken its own quotes off.
fn quoted(word: &str) -> String {
    match word.split_once('=') {
        Some((attr, value)) => format!("{attr}={}", attrs::quote(value)),
        None => attrs::quote(word).into_owned(),
    }
}

async fn settle(client: &Client, path: &str, Wait(limit): Wait) -> Result<(), Failure> {
    let reading = async { client.open(path, open::READ_ONLY).await?.read(0).await };
    let line = match limit {
        None => reading.await,
        Some(limit) => tokio::time::timeout(limit, reading).await.map_err(|_| Failure::WaitedTooLong {
            path: path.to_owned(),
            limit: duration::print(limit.as_millis().try_into().unwrap_or(u64::MAX)),
        })?,
    };
    let line = line.map_err(at(path))?;
    print(&line)?;
    if line.trim_ascii() == b"failed" { Err(Failure::SettledAsFailed { path: path.to_owned() }) } else { Ok(()) }
}

async fn write(
    client: &Client,
    path: &str,
    text: Option<&str>,
    append: bool,
    wait: Option<Wait>,
) -> Result<(), Failure> {
    let data = match text {
        None | Some("-") => standard_input()?,
        Some(text) if text.ends_with('\n') => text.as_bytes().to_vec(),
        Some(text) => format!("{text}\n").into_bytes(),
    };
    let flags = open::WRITE_ONLY | if append { open::APPEND } else { open::TRUNCATE };
    let file = client.open(path, flags).await.map_err(at(path))?;
    if data.len() > file.write_max() {
        return Err(Failure::TooLong(file.write_max()));
    }
    file.write(0, &data).await.map_err(at(path))?;
    let Some(wait) = wait else { return Ok(()) };
    let folder = path.trim_end_matches('/').rsplit_once('/').map_or("", |(folder, _)| folder);
    settle(client, &format!("{folder}/wait"), wait).await
}

/// All of the standard input, but no more than the longest message and a byte: a longer text is refused anyway.
fn standard_input() -> Result<Vec<u8>, Failure> {
    let mut text = Vec::new();
    io::stdin().lock().take(u64::from(MSIZE_MAX) + 1).read_to_end(&mut text).map_err(Failure::Input)?;
    Ok(text)
}

async fn cat(client: &Client, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        let file = client.open(path, open::READ_ONLY).await.map_err(at(path))?;
        tokio::select! {
            copied = copy(&file, path) => copied?,
            () = reader_gone() => return Err(Failure::PipeClosed),
        }
    }
    Ok(())
}

async fn copy(file: &File, path: &str) -> Result<(), Failure> {
    let mut offset = 0;
    loop {
        let part = file.read(offset).await.map_err(at(path))?;
        if part.is_empty() {
            return Ok(());
        }
        print(&part)?;
        offset += part.len() as u64;
    }
}

/// Ends when nobody reads our output any more, so that `cat events | grep -m 1 x` ends with its grep, and not at the event
/// after that.
async fn reader_gone() {
    // What can't be watched, such as a file, never goes away.
    let watched = io::stdout().as_fd().try_clone_to_owned().and_then(pipe::Sender::from_owned_fd_unchecked);
    let Ok(output) = watched else { return pending().await };
    let Ok(_gone) = output.ready(Interest::ERROR).await else { return pending().await };
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    output.write_all(bytes).and_then(|()| output.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::PipeClosed,
        _ => Failure::Output(error),
    })
}

async fn status(client: &Client) -> Result<(), Failure> {
    let status = client.read_all("status").await.map_err(at("status"))?;
    let list = client.read_all("vms/list").await.map_err(at("vms/list"))?;
    print(&status)?;
    print(b"\n")?;
    print(&list)
}

async fn ls(client: &Client, path: &str, long: bool) -> Result<(), Failure> {
    let attributes = client.stat(path, Follow::Last).await.map_err(at(path))?;
    let (folder, names) = if is_directory(&attributes) {
        let entries = client.list(path).await.map_err(at(path))?;
        (path.trim_end_matches('/'), entries.into_iter().map(|entry| (entry.name, entry.qid.kind)).collect())
    } else {
        ("", vec![(path.to_owned(), Qid::FILE)])
    };
    let line = |(name, kind): (String, u8)| async move {
        if !long {
            return Ok(Some(format!("{name}\n")));
        }
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        match long_line(client, &path, &name, kind).await {
            // It has gone since the directory was read.
            Err(Failure::At { error: ClientError::Refused { errno }, .. }) if errno == NOT_FOUND => Ok(None),
            other => other.map(Some),
        }
    };
    let lines: Vec<Option<String>> = stream::iter(names).map(line).buffered(STATS_AT_A_TIME).try_collect().await?;
    print(lines.into_iter().flatten().collect::<String>().as_bytes())
}

/// ENOENT.
const NOT_FOUND: i32 = 2;

async fn long_line(client: &Client, path: &str, name: &str, kind: u8) -> Result<String, Failure> {
    let attributes = client.stat(path, Follow::NotLast).await.map_err(at(path))?;
    let Attributes { nlink, uid, gid, size, mtime_sec, mtime_nsec, .. } = attributes;
    let changed = time::rfc3339(mtime_sec.saturating_mul(1000).saturating_add(mtime_nsec / 1_000_000));
    let target = if kind == Qid::LINK {
        format!(" -> {}", client.readlink(path).await.map_err(at(path))?)
    } else {
        String::new()
    };
    let mode = mode_text(attributes.mode);
    Ok(format!("{mode} {nlink:>3} {uid:>5} {gid:>5} {size:>8} {changed} {name}{target}\n"))
}

/// As `ls -l` prints it.
fn mode_text(bits: u32) -> String {
    let kind = match bits & mode::TYPE {
        mode::DIRECTORY => 'd',
        mode::LINK => 'l',
        _ => '-',
    };
    let permissions =
        "rwxrwxrwx".chars().zip((0..9).rev()).map(|(letter, i)| if bits & (1 << i) == 0 { '-' } else { letter });
    std::iter::once(kind).chain(permissions).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_a_line() {
        let line = |words: &[&str]| words.iter().map(|w| quoted(w)).collect::<Vec<_>>().join(" ");
        assert_eq!(line(&["name=web", "cpus=2"]), "name=web cpus=2");
        assert_eq!(line(&["cmd=it's a=b # no"]), "cmd='it''s a=b # no'");
        assert_eq!(line(&["text=two\nlines", "x="]), "text='two\\nlines' x=''");
        assert_eq!(line(&["!token=a b"]), "!token='a b'");
    }

    #[test]
    fn modes_as_ls_prints_them() {
        assert_eq!(mode_text(0o040_755), "drwxr-xr-x");
        assert_eq!(mode_text(0o100_620), "-rw--w----");
        assert_eq!(mode_text(0o120_777), "lrwxrwxrwx");
    }

    #[test]
    fn waits() {
        assert_eq!("".parse(), Ok(Wait(None)));
        assert_eq!("30s".parse(), Ok(Wait(Some(Duration::from_secs(30)))));
        assert!("soon".parse::<Wait>().is_err());
    }
}
