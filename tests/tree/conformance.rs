//! What holds for every file of the tables, whatever is in it.

use crate::harness::{Cluster, answer, read_all, write};
use blixard::fs::tree::{Creation, Handle, Kind, OpenMode, Place, Stat, Tree};
use blixard::text::Code;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

const READ: OpenMode = OpenMode { read: true, write: false, truncate: false, append: false, nonblock: true };
const WRITE: OpenMode = OpenMode { read: false, write: true, truncate: false, append: false, nonblock: true };

/// One of everything: a VM with a name and one without, a pool, an image, users, a node.
async fn furnished() -> Cluster {
    let cluster = Cluster::new().await;
    cluster.vm("name=web image=tiny memory=64M").await;
    cluster.vm("image=tiny memory=64M").await;
    let ann = cluster.caller(1001);
    cluster.write_as(&ann, "vms/new", "image=tiny name=anns").await.unwrap();
    cluster.write("ipam/new", "name=lab network=10.50.0.0/24").await.unwrap();
    cluster
}

/// Every place once, with its path, its directory and what stat says of it to root.
async fn everything() -> (Cluster, Vec<(String, Place, Stat)>) {
    let cluster = furnished().await;
    let root = cluster.root();
    let found = cluster.everything();
    let stats = found.iter().map(|(path, dir, entry)| {
        let stat = cluster.server.stat(&root, entry.place).unwrap();
        assert_eq!((stat.place, stat.kind), (entry.place, entry.kind), "{path}");
        (path.clone(), *dir, stat)
    });
    let stats = stats.collect();
    (cluster, stats)
}

fn name(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

fn open(cluster: &Cluster, stat: &Stat, how: OpenMode) -> Arc<dyn Handle> {
    let opened = cluster.server.open(&cluster.root(), stat.place, how).unwrap();
    assert_eq!(opened.stream, stat.kind == Kind::Stream);
    opened.handle
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_unique_and_walk_finds_what_readdir_shows() {
    let (cluster, all) = everything().await;
    let root = cluster.root();
    let places: BTreeMap<u64, &str> = all.iter().map(|(path, _, stat)| (stat.place.0, path.as_str())).collect();
    assert_eq!(places.len(), all.len(), "no two have one number");
    assert!(!places.contains_key(&Place::ROOT.0) && !places.contains_key(&0));
    for (path, dir, stat) in &all {
        assert_eq!(cluster.server.walk(&root, *dir, name(path)).unwrap(), stat.place, "{path}");
        assert_eq!(cluster.server.walk(&root, stat.place, "..").unwrap(), *dir, "{path}");
        let below = cluster.server.walk(&root, stat.place, "no-such").unwrap_err();
        let expected = if stat.kind == Kind::Directory { Code::NotFound } else { Code::NotDirectory };
        assert_eq!(below.code, expected, "{path}: {below}");
    }
    assert_eq!(cluster.server.walk(&root, Place::ROOT, "..").unwrap(), Place::ROOT);
    for file in
        ["/README", "/vms/1/ctl", "/vms/1/status", "/vms/new", "/vms/web", "/nodes/alpha/status", "/ipam/lab/leases"]
    {
        assert!(all.iter().any(|(path, ..)| path == file), "{file} is missing");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn finite_files_have_their_exact_size_and_can_be_read_anyhow() {
    let (cluster, all) = everything().await;
    for (path, _, stat) in all.iter().filter(|(.., stat)| stat.kind == Kind::File) {
        let handle = open(&cluster, stat, READ);
        let text = read_all(&*handle).await.unwrap();
        assert_eq!(text.len() as u64, stat.size, "{path}");
        assert!(text.is_empty() || text.ends_with(b"\n"), "{path} ends with a newline");
        assert!(std::str::from_utf8(&text).unwrap().chars().all(|c| c == '\n' || !c.is_control()), "{path}");
        let at = |offset: u64, count: usize| answer(handle.read(offset, count));
        assert_eq!(at(0, usize::MAX).await.unwrap(), text, "{path} again");
        for offset in [1, text.len() / 2, text.len().saturating_sub(1)].into_iter().filter(|o| *o < text.len()) {
            assert_eq!(at(offset as u64, 7).await.unwrap(), text[offset..text.len().min(offset + 7)], "{path}");
        }
        for beyond in [text.len() as u64, text.len() as u64 + 1, u64::MAX] {
            assert!(at(beyond, 10).await.unwrap().is_empty(), "{path} at {beyond}");
        }
        assert!(at(0, 0).await.unwrap().is_empty());
        // An open that begins in the middle, as tail's and dd's.
        let handle = open(&cluster, stat, READ);
        let rest = answer(handle.read(text.len() as u64 / 2, usize::MAX)).await.unwrap();
        assert_eq!(rest, text[text.len() / 2..], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_have_no_size_and_end_for_who_does_not_want_to_wait() {
    let (cluster, all) = everything().await;
    for (path, _, stat) in all.iter().filter(|(.., stat)| stat.kind == Kind::Stream) {
        assert_eq!(stat.size, 0, "{path}");
        read_all(&*open(&cluster, stat, READ)).await.unwrap_or_else(|refusal| panic!("{path}: {refusal}"));
    }
}

/// The mode bits tell the truth, to everybody: what they say can be written can be opened for it, and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn the_mode_bits_tell_the_truth() {
    let (cluster, all) = everything().await;
    let mut writable_by: BTreeMap<u32, BTreeSet<&str>> = BTreeMap::new();
    for uid in [0, 1001, 1002, 4_000_000_000] {
        let who = cluster.caller(uid);
        for (path, _, stat) in all.iter().filter(|(.., stat)| matches!(stat.kind, Kind::File | Kind::Stream)) {
            let mode = cluster.server.stat(&who, stat.place).unwrap().mode;
            assert_eq!(mode & 0o111, 0, "{path}");
            // What has everything in it is for admins alone; all else is read by everybody.
            let is_private = path == "/backup" || path.ends_with("/work");
            let readable = if uid == 0 || !is_private { 0o444 } else { 0 };
            assert_eq!(mode & 0o444, readable, "{path} for {uid}");
            assert_eq!(cluster.server.open(&who, stat.place, READ).is_ok(), readable != 0, "{path} for {uid}");
            let opened = cluster.server.open(&who, stat.place, WRITE);
            let truncated = cluster.server.truncate(&who, stat.place, 0);
            assert_eq!(opened.is_ok(), mode & 0o222 == 0o222, "{path} for {uid}");
            assert_eq!(truncated.is_ok(), opened.is_ok(), "{path} for {uid}");
            if let Some(refusal) = opened.err() {
                assert_eq!(refusal.code, Code::Denied, "{path} for {uid}: {refusal}");
                assert!(refusal.sentence.contains("permission"), "{refusal}");
            } else {
                writable_by.entry(uid).or_default().insert(path);
            }
        }
    }
    let of = |uid: u32| writable_by.get(&uid).cloned().unwrap_or_default();
    assert!(of(0).contains("/vms/1/ctl") && of(0).contains("/vms/3/ctl") && of(0).contains("/nodes/alpha/ctl"));
    assert!(of(1001).contains("/vms/3/ctl") && of(1001).contains("/vms/new"));
    assert!(!of(1001).contains("/vms/1/ctl") && !of(1001).contains("/ipam/new"));
    // A viewer and nobody can write only what tells a stream where to go on.
    for uid in [1002, 4_000_000_000] {
        assert!(of(uid).iter().all(|path| ["events", "log"].contains(&name(path))), "{uid}: {:?}", of(uid));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_opened_for_one_thing_is_not_used_for_the_other() {
    let (cluster, all) = everything().await;
    for (path, _, stat) in all.iter().filter(|(.., stat)| matches!(stat.kind, Kind::File | Kind::Stream)) {
        let refusal = write(&*open(&cluster, stat, READ), "start").await.unwrap_err();
        assert_eq!(refusal.code, Code::BadFile, "{path}: {refusal}");
        if stat.mode & 0o222 != 0 {
            let refusal = answer(open(&cluster, stat, WRITE).read(0, 10)).await.unwrap_err();
            assert_eq!(refusal.code, Code::BadFile, "{path}: {refusal}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_is_refused_by_every_file_that_takes_text_and_noted() {
    let (cluster, all) = everything().await;
    let writable = |stat: &Stat| matches!(stat.kind, Kind::File | Kind::Stream) && stat.mode & 0o222 != 0;
    let mut files = 0;
    for (path, _, stat) in all.iter().filter(|(path, _, stat)| writable(stat) && name(path) != "console") {
        for garbage in [&b"\0\0\0"[..], b"\xff\xfe", b"}{ \" $(reboot)", b"='", &[b'x'; 70_000]] {
            let refusal = write(&*open(&cluster, stat, WRITE), garbage).await.unwrap_err();
            assert!(matches!(refusal.code, Code::Invalid | Code::TooLong), "{path}: {refusal}");
            assert!(refusal.sentence.len() < 1_000, "{path}: {refusal}");
            let noted = cluster.read("err").await;
            assert!(noted.lines().last().unwrap().ends_with(&refusal.sentence), "{path}: {noted}");
        }
        files += 1;
    }
    assert!(files > 10, "{files}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_can_be_made_linked_renamed_or_removed_as_in_a_file_system() {
    let (cluster, all) = everything().await;
    let root = cluster.root();
    for (path, dir, stat) in &all {
        for what in [
            Creation::File,
            Creation::Directory,
            Creation::Link,
            Creation::Special,
            Creation::Rename,
            Creation::Attributes,
        ] {
            let refusal = cluster.server.refuse_create(&root, *dir, name(path), what);
            assert_eq!(refusal.code, Code::NotPermitted);
            assert!(refusal.sentence.contains("permission"), "{refusal}");
        }
        if stat.kind != Kind::Directory {
            let refusal = answer(cluster.server.remove(&root, *dir, name(path), false)).await.unwrap_err();
            assert_eq!(refusal.code, Code::NotPermitted, "{path}: {refusal}");
            assert!(refusal.sentence.contains("permission"), "{path}: {refusal}");
            let refusal = answer(cluster.server.remove(&root, *dir, name(path), true)).await.unwrap_err();
            assert_eq!(refusal.code, Code::NotDirectory, "{path}: {refusal}");
            assert!(refusal.sentence.contains("not a directory"), "{path}: {refusal}");
        } else {
            let refusal = answer(cluster.server.remove(&root, *dir, name(path), false)).await.unwrap_err();
            assert!(matches!(refusal.code, Code::IsDirectory), "{path}: {refusal}");
        }
    }
    assert_eq!(cluster.everything().len(), all.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_usage_tells_every_file_and_every_ctl_its_verbs() {
    let (cluster, all) = everything().await;
    let readme = cluster.read("README").await;
    for (path, _, stat) in all.iter().filter(|(.., stat)| matches!(stat.kind, Kind::File | Kind::Stream)) {
        let line = |l: &str| l.split(' ').next().is_some_and(|word| word.ends_with(&format!("/{}", name(path))));
        assert!(readme.lines().any(line), "README does not have {path}");
        if ["ctl", "new"].contains(&name(path)) {
            let usage = String::from_utf8(read_all(&*open(&cluster, stat, READ)).await.unwrap()).unwrap();
            assert!(usage.starts_with("# ") && usage.lines().count() > 1, "{path}: {usage}");
        }
    }
    assert!(readme.lines().all(|line| line.chars().count() <= 100), "it fits a terminal");
}
