//! What was acknowledged stays, whatever happens to the process, the disk and the files; or the start is refused with advice.
//!
//! The store runs in child processes: this test binary itself, told by an environment variable what to do.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use blixard::clock::HybridClock;
use blixard::engine::log::{Addresses, HiqliteLog, LogError, Member, OpenOptions};
use blixard::engine::state::{By, Command as Verb, NodeId, Role};
use blixard::engine::{DataFolder, Engine, Options};
use blixard::peers::Loopback;
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// What the child is to do: `MODE FOLDER`.
const ORDER: &str = "BLIXARD_DURABILITY_CHILD";
/// So often that a test of some thousand entries sees many.
const SNAPSHOT_EVERY: u64 = 300;
/// In Raft entries, each of which holds what up to sixteen writers have submitted together.
const STORE_SNAPSHOT_EVERY: u64 = 10;

/// The only member of a cluster, at an address of its own.
fn member() -> Member {
    let (raft, api) = Loopback::random().unwrap().addresses(1).unwrap();
    Member { raft: 1, own: Addresses { raft, api }, others: Vec::new(), forward: None }
}

async fn engine(folder: &Path, accept_loss: bool) -> Result<(Engine, DataFolder), LogError> {
    let data = DataFolder::open(folder).unwrap();
    let options = OpenOptions { accept_loss, store_snapshot_every: STORE_SNAPSHOT_EVERY, ..OpenOptions::default() };
    let (log, committed) = HiqliteLog::open(&data.path().join("log"), &member(), options).await?;
    let options = Options {
        audit: Some(data.path().join("audit")),
        snapshot_every_records: SNAPSHOT_EVERY,
        // Longer than any machine is busy with other tests.
        submit_patience: Duration::from_secs(60),
        ..Options::default()
    };
    let clock = Arc::new(HybridClock::system());
    let engine = Engine::open_with(Arc::new(log), committed, clock, NodeId(1), data.boot(), options).await?;
    Ok((engine, data))
}

fn init() -> Vec<Verb> {
    vec![Verb::Init { cluster: "test".into(), node: "alpha".into(), admin: "root".into(), admin_uid: 0 }]
}

fn user(name: &str) -> Vec<Verb> {
    vec![Verb::UserSet { name: name.to_owned(), role: Role::Operator, uid: None }]
}

/// The child's side: not a test of anything when nobody gives an order.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let Ok(order) = std::env::var(ORDER) else { return };
    // The test harness has begun a line.
    println!();
    let (mode, folder) = order.split_once(' ').unwrap();
    match mode {
        "write" => write(Path::new(folder)).await,
        "check" => check(Path::new(folder), false).await,
        "check-accept" => check(Path::new(folder), true).await,
        other => panic!("no such order: {other}"),
    }
}

/// Sixteen writers, until somebody kills us. A line for each acknowledged entry.
async fn write(folder: &Path) {
    let (engine, data) = engine(folder, false).await.unwrap();
    if engine.state().seq() == 0 {
        engine.submit(By::Agent, init()).await.unwrap();
    }
    let writers = (0..16).map(|writer| {
        let (engine, boot) = (engine.clone(), data.boot());
        tokio::spawn(async move {
            for n in 0.. {
                let name = format!("u{boot}-{writer}-{n}");
                engine.submit(By::User("root".into()), user(&name)).await.unwrap();
                writeln!(std::io::stdout().lock(), "acknowledged {name}").unwrap();
            }
        })
    });
    futures::future::join_all(writers.collect::<Vec<_>>()).await;
}

/// Opens what is there and says what it is: the users, one a line, or why not.
async fn check(folder: &Path, accept_loss: bool) {
    let (engine, _data) = match engine(folder, accept_loss).await {
        Ok(opened) => opened,
        Err(error) => {
            println!("refused {error}");
            std::process::exit(3);
        }
    };
    let state = engine.state();
    let mut out = std::io::stdout().lock();
    for user in state.users() {
        writeln!(out, "user {}", user.name).unwrap();
    }
    writeln!(out, "seq {} hash {:?}", state.seq(), state.hash()).unwrap();
    drop(out);
    // It must be able to go on as well.
    engine.submit(By::User("root".into()), user("afterwards")).await.unwrap();
    let _all = audited(&engine).await;
    engine.close().await;
}

fn spawn(mode: &str, folder: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture", "--test-threads=1"])
        .env(ORDER, format!("{mode} {}", folder.display()))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What a child found.
#[derive(Debug)]
struct Found {
    users: BTreeSet<String>,
    summary: String,
    refusal: Option<String>,
    /// How it ended: after a summary or a refusal, or by itself.
    end: String,
}

fn found(mode: &str, folder: &Path) -> Found {
    let output = spawn(mode, folder).wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines =
        |word: &str| text.lines().filter_map(|line| line.strip_prefix(word).map(str::to_owned)).collect::<Vec<_>>();
    let stderr = String::from_utf8_lossy(&output.stderr);
    Found {
        users: lines("user ").into_iter().collect(),
        summary: lines("seq ").join(""),
        refusal: lines("refused ").into_iter().next(),
        end: format!("{:?} signal {:?} {stderr}", output.status.code(), output.status.signal()),
    }
}

impl Found {
    fn seq(&self) -> u64 {
        self.summary.split(' ').next().unwrap().parse().unwrap()
    }
}

/// Lets a child write until `count` entries are acknowledged, then kills it.
fn write_and_kill(folder: &Path, count: usize) -> Vec<String> {
    let mut child = spawn("write", folder);
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = Vec::new();
    for line in lines.by_ref() {
        acknowledged.extend(line.unwrap().strip_prefix("acknowledged ").map(str::to_owned));
        if acknowledged.len() == count {
            child.kill().unwrap();
        }
    }
    let mut stderr = child.stderr.take().unwrap();
    let status = child.wait().unwrap();
    let mut text = String::new();
    std::io::Read::read_to_string(&mut stderr, &mut text).unwrap();
    assert_eq!(status.signal(), Some(9), "the child ended by itself: {text}");
    acknowledged
}

/// The names in the audit trail, as often as they are there.
async fn audited(engine: &Engine) -> Vec<String> {
    let mut names = Vec::new();
    let (mut after, mut due) = (0, 1);
    loop {
        let page = engine.audit_after(after, 1000).await.unwrap();
        let Some(last) = page.lines.last() else { return names };
        for line in &page.lines {
            let seq: u64 = line.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(seq, due, "a gap or a repetition in the trail");
            due += 1;
            if line.contains(" result=created:") {
                names.extend(line.split_once("users/").map(|(_, rest)| rest.split(' ').next().unwrap().to_owned()));
            }
        }
        after = last.split(' ').next().unwrap().parse().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_once_after_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for round in 0..8 {
        acknowledged.extend(write_and_kill(folder.path(), 1 + 137 * round));
    }
    let (engine, _data) = engine(folder.path(), false).await.unwrap();
    let state = engine.state();
    let users: BTreeSet<String> = state.users().map(|user| user.name.clone()).collect();
    for name in &acknowledged {
        assert!(users.contains(name), "{name} was acknowledged and is gone");
    }
    let trail = audited(&engine).await;
    let once: BTreeSet<&String> = trail.iter().collect();
    assert_eq!(once.len(), trail.len(), "something took effect twice");
    assert!(acknowledged.iter().all(|name| once.contains(name)));
    assert!(users.len() >= acknowledged.len());
    engine.close().await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target)
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(folder: &Path, of: impl Fn(&Path) -> bool + Copy) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path, of));
        } else if of(&path) {
            found.push(path);
        }
    }
    found
}

/// Up to where a file has something in it: the store's files are longer than what is in them.
fn used(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1)
}

/// A reproducible choice of places.
fn places(length: usize, count: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |n| (n * 2 + 1) * length / (count * 2) + n * 7 % 5)
}

/// Flips one byte each at `count` places of the files, and looks what a start makes of it.
fn flip_and_check(of: impl Fn(&Path) -> bool + Copy, count: usize, entries: usize) {
    let folder = tempfile::tempdir().unwrap();
    let acknowledged = write_and_kill(folder.path(), entries);
    let whole = tempfile::tempdir().unwrap();
    copy(folder.path(), whole.path());
    let before = found("check", whole.path());
    assert_eq!(before.refusal, None, "{before:?}");
    assert!(acknowledged.iter().all(|name| before.users.contains(name)));
    let mark = std::fs::read(folder.path().join("log/mark")).unwrap();
    let marked = u64::from_le_bytes(mark[8..16].try_into().unwrap());
    let damaged_files = files(folder.path(), of);
    assert!(!damaged_files.is_empty(), "there is no such file");
    let (mut recovered, mut refused) = (0, 0);
    for file in damaged_files {
        let bytes = std::fs::read(&file).unwrap();
        for place in places(used(&bytes), count).filter(|place| *place < bytes.len()) {
            let trial = tempfile::tempdir().unwrap();
            copy(folder.path(), trial.path());
            let target = trial.path().join(file.strip_prefix(folder.path()).unwrap());
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x40;
            std::fs::write(&target, damaged).unwrap();
            let after = found("check", trial.path());
            let what = format!("byte {place} of {}: {:?} {}", file.display(), after.refusal, after.end);
            match &after.refusal {
                None => {
                    let same = after.summary == before.summary;
                    // The last entries may have been on the disk and not yet acknowledged: these may go.
                    let unanswered =
                        after.seq() >= marked && acknowledged.iter().all(|name| after.users.contains(name));
                    assert!(same || (unanswered && after.seq() < before.seq()), "a silent difference after {what}");
                    recovered += 1;
                }
                Some(sentence) => {
                    assert!(sentence.contains("--accept-loss") || sentence.contains("remove it"), "no advice: {what}");
                    refused += 1;
                }
            }
        }
    }
    eprintln!("recovered {recovered}, refused {refused}");
}

#[test]
fn flipped_bytes_in_the_write_ahead_log() {
    flip_and_check(|path| path.extension().is_some_and(|end| end == "wal"), 10, 400);
}

#[test]
fn flipped_bytes_in_the_database() {
    flip_and_check(|path| path.file_name().is_some_and(|name| name == "hiqlite.db"), 4, 400);
}

#[test]
fn flipped_bytes_in_the_stores_snapshot() {
    flip_and_check(|path| path.parent().is_some_and(|folder| folder.ends_with("state_machine/snapshots")), 6, 400);
}

#[test]
fn flipped_bytes_in_the_small_files() {
    flip_and_check(|path| path.ends_with("log/mark") || path.ends_with("log/logs/meta.hql"), 4, 50);
}

#[test]
fn a_log_that_lost_its_end_is_refused_and_goes_on_when_told_to() {
    let folder = tempfile::tempdir().unwrap();
    let earlier = write_and_kill(folder.path(), 200);
    let copied = tempfile::tempdir().unwrap();
    copy(folder.path(), copied.path());
    let later = write_and_kill(folder.path(), 200);
    // The store as it was, beside the mark as it is: a disk that forgot, or a backup put back by halves.
    let mark = std::fs::read(folder.path().join("log/mark")).unwrap();
    std::fs::remove_dir_all(folder.path().join("log")).unwrap();
    copy(&copied.path().join("log"), &folder.path().join("log"));
    std::fs::write(folder.path().join("log/mark"), mark).unwrap();
    let refused = found("check", folder.path());
    assert!(refused.refusal.as_ref().is_some_and(|sentence| sentence.contains("--accept-loss")), "{refused:?}");
    let accepted = found("check-accept", folder.path());
    assert_eq!(accepted.refusal, None, "{accepted:?}");
    assert!(earlier.iter().all(|name| accepted.users.contains(name)));
    assert!(!later.iter().any(|name| accepted.users.contains(name)));
    // From now on as usual, and with a trail that fits.
    let again = found("check", folder.path());
    assert_eq!(again.refusal, None, "{again:?}");
    assert!(again.users.contains("afterwards"));
}

#[test]
fn without_its_raft_log_the_last_runs_database_gives_everything_back() {
    let folder = tempfile::tempdir().unwrap();
    let acknowledged = write_and_kill(folder.path(), 500);
    let log = folder.path().join("log");
    std::fs::remove_dir_all(log.join("logs")).unwrap();
    std::fs::remove_dir_all(log.join("state_machine/snapshots")).unwrap();
    let recovered = found("check", folder.path());
    assert_eq!(recovered.refusal, None, "{recovered:?}");
    assert!(acknowledged.iter().all(|name| recovered.users.contains(name)));
    assert!(log.join("damaged-1").exists() && !log.join("damaged-1/unfinished").exists());
    // The end came before the new store was finished: the old one counts, and is found again.
    std::fs::remove_dir_all(log.join("damaged-1")).unwrap();
    std::fs::create_dir(log.join("damaged-1")).unwrap();
    std::fs::rename(log.join("logs"), log.join("damaged-1/logs")).unwrap();
    std::fs::rename(log.join("state_machine"), log.join("damaged-1/state_machine")).unwrap();
    std::fs::write(log.join("damaged-1/unfinished"), "").unwrap();
    let again = found("check", folder.path());
    assert_eq!(again.refusal, None, "{again:?}");
    assert!(acknowledged.iter().all(|name| again.users.contains(name)));
    // Without both there is nothing, and that is no reason to begin with nothing.
    std::fs::remove_dir_all(log.join("logs")).unwrap();
    std::fs::remove_dir_all(log.join("state_machine")).unwrap();
    let refused = found("check", folder.path());
    assert!(refused.refusal.as_ref().is_some_and(|sentence| sentence.contains("--accept-loss")), "{refused:?}");
}
