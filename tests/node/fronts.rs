//! What holds for every file of the tree, over a real mount and over 9P at once: both fronts show one tree.

use crate::support::{Node, simulated};
use crate::table::Client;
use crate::tables::{Fuse, NineP};
use blixard::engine::log::followed::Line;
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::Metadata;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A path relative to the mount, and what stat says of it; links are not followed.
pub type Found = (PathBuf, Metadata);

/// What tells of the moment, of who asks, or of what was asked before; and, of a node, of who asks anything.
const CHANGING: &[&str] = &["clock", "me", "err", "log", "sync"];
const CHANGING_OF_A_NODE: &str = "sessions";

/// One of everything: a VM that runs, one that never did, one that was deleted, a pool, users.
pub fn furnished() -> Node {
    let node = simulated();
    let id = node.new_vm("name=web image=tiny memory=64M").unwrap();
    node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(node.wait(id), "running");
    node.wait_line(&format!("vms/{id}/events"), "guest ready");
    node.new_vm("image=tiny memory=64M disk=1G grace=1m30s").unwrap();
    let gone = node.new_vm("image=tiny memory=64M").unwrap();
    node.delete(gone);
    node.write("ipam/new", "name=lab network=10.50.0.0/24").unwrap();
    node.write("users/new", "name=ann role=operator uid=54321\nname=vic role=viewer uid=54322").unwrap();
    node
}

fn find(mount: &Path, folder: &Path, found: &mut Vec<Found>) {
    for entry in std::fs::read_dir(mount.join(folder)).unwrap() {
        let entry = entry.unwrap();
        let path = folder.join(entry.file_name());
        let stat = std::fs::symlink_metadata(entry.path()).unwrap();
        assert_eq!(entry.ino(), stat.ino(), "{path:?}");
        assert_eq!(entry.file_type().unwrap(), stat.file_type(), "{path:?}");
        let is_directory = stat.is_dir();
        found.push((path.clone(), stat));
        if is_directory {
            find(mount, &path, found);
        }
    }
}

/// Everything below the mount, as find(1) meets it.
pub fn everything(node: &Node) -> Vec<Found> {
    let mut found = Vec::new();
    find(&node.mount(), Path::new(""), &mut found);
    assert!(found.len() > 60, "{found:#?}");
    found
}

fn files(found: Vec<Found>) -> impl Iterator<Item = Found> {
    found.into_iter().filter(|(_, stat)| stat.is_file())
}

pub fn changes(path: &Path) -> bool {
    CHANGING.iter().any(|name| path == Path::new(name)) || path.ends_with(CHANGING_OF_A_NODE)
}

fn ninep(node: &Node) -> NineP {
    NineP::connect(&node.data().join("sock"))
}

fn name(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Are the names a directory has over 9P those it has over FUSE, with the same kinds and numbers?
fn same_directory(client: &mut NineP, found: &[Found], folder: &Path) {
    let kind = |stat: &Metadata| match stat.file_type() {
        t if t.is_dir() => 4,
        t if t.is_symlink() => 10,
        _ => 8,
    };
    let below = found.iter().filter(|(path, _)| path.parent() == Some(folder));
    let over_fuse: BTreeMap<_, _> =
        below.map(|(path, stat)| (path.file_name().unwrap().as_bytes().to_vec(), (stat.ino(), kind(stat)))).collect();
    // Whole, and an entry or two at a time.
    for count in [8_192, 96] {
        let listed = client.list(name(folder), count);
        let length = listed.len();
        let over_9p: BTreeMap<_, _> = listed.into_iter().map(|(path, kind, name)| (name, (path, kind))).collect();
        assert_eq!(over_9p.len(), length, "{folder:?}: a name comes once");
        assert_eq!(over_9p, over_fuse, "{folder:?} in pieces of {count}");
    }
}

#[test]
fn both_fronts_list_and_stat_one_tree() {
    let node = furnished();
    let (mut client, found) = (ninep(&node), everything(&node));
    same_directory(&mut client, &found, Path::new(""));
    let mut seen = BTreeMap::new();
    for (path, stat) in &found {
        let over_9p = client.attributes(name(path));
        assert_eq!((over_9p.qid_path, over_9p.mode), (stat.ino(), stat.mode()), "{path:?}");
        assert_eq!(over_9p.links, stat.nlink(), "{path:?}");
        if stat.is_dir() {
            same_directory(&mut client, &found, path);
        } else if !changes(path) {
            assert_eq!(over_9p.size, stat.size(), "{path:?}");
        }
        // `find` and `grep -r` meet each thing once.
        assert_eq!(seen.insert(stat.ino(), path), None, "{path:?} has the number of another");
    }
    assert!(found.iter().any(|(path, stat)| path == Path::new("vms/web") && stat.is_symlink()));
    assert!(!found.iter().any(|(path, _)| path.starts_with("vms/3")), "what was deleted is not listed");
}

#[test]
fn every_file_reads_alike_however_it_is_read() {
    let node = furnished();
    let (mut fuse, mut client) = (Fuse(node.mount()), ninep(&node));
    for (path, stat) in files(everything(&node)) {
        let is_console = path.ends_with("console");
        let (over_fuse, over_9p) = (fuse.read(name(&path)), client.read(name(&path)));
        let Ok(text) = over_fuse else {
            // The console of what does not run has nothing to give; both fronts say so alike.
            assert!(is_console, "{path:?}: {over_fuse:?}");
            assert_eq!((over_fuse.unwrap_err().0, over_9p.unwrap_err().0), (16, 16), "{path:?}");
            continue;
        };
        if changes(&path) {
            continue;
        }
        assert_eq!(fuse.read(name(&path)).unwrap(), text, "{path:?} again");
        assert_eq!(over_9p.unwrap(), text, "{path:?} over 9P");
        if stat.size() == 0 {
            continue;
        }
        assert_eq!(stat.size(), text.len() as u64, "{path:?}");
        let file = std::fs::File::open(node.mount().join(&path)).unwrap();
        let mut forwards = Vec::new();
        let mut byte = [0];
        while file.read_at(&mut byte, forwards.len() as u64).unwrap() == 1 {
            forwards.push(byte[0]);
        }
        assert_eq!(forwards, text, "{path:?} byte by byte");
        assert_eq!(client.bytes_backwards(name(&path), stat.size()), text, "{path:?} byte by byte, backwards");
    }
}

#[test]
fn what_root_sees_writable_can_be_opened_for_it_and_nothing_else() {
    let node = furnished();
    let mut client = ninep(&node);
    for (path, stat) in files(everything(&node)) {
        let writable = stat.mode() & 0o222 != 0;
        let expected = if writable { Ok(()) } else { Err(Errno::ACCESS.raw_os_error()) };
        let opened = std::fs::File::options().write(true).open(node.mount().join(&path)).map(drop);
        assert_eq!(opened.map_err(|e| e.raw_os_error().unwrap()), expected, "{path:?}, mode {:o}", stat.mode());
        assert_eq!(client.opens_for_writing(name(&path)), expected, "{path:?} over 9P, mode {:o}", stat.mode());
    }
}

/// Runs a shell line as this user of the host, with the mount for its folder.
fn shell_as(node: &Node, uid: u32, line: &str) -> String {
    let output = Command::new("setpriv")
        .args([&format!("--reuid={uid}"), "--regid=65534", "--clear-groups", "sh", "-c", line])
        .current_dir(node.mount())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// The mode bits are those of who asks, and an open agrees with them, whoever it is.
#[test]
fn the_modes_tell_every_user_the_truth() {
    let node = furnished();
    std::fs::set_permissions(node.mount().parent().unwrap(), PermissionsExt::from_mode(0o755)).unwrap();
    let (ann, vic, nobody) = (54_321, 54_322, 54_323);
    shell_as(&node, ann, "echo name=anns image=tiny memory=64M > vms/new");
    let each = "find . -type f | sort | while read f; do \
                if (: >> \"$f\") 2>/dev/null; then o=open; else o=shut; fi; echo \"$(stat -c %a \"$f\") $o $f\"; done";
    let mut writable: BTreeMap<(u32, String), bool> = BTreeMap::new();
    for uid in [ann, vic, nobody] {
        let seen = shell_as(&node, uid, each);
        assert!(seen.lines().count() > 50, "{seen}");
        for line in seen.lines() {
            let [mode, opened, path] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
            // What has everything in it is for admins and nodes.
            let is_private = path == "./backup" || path.ends_with("/work");
            let told = match (mode, opened) {
                ("0", "shut") => is_private,
                ("444", "shut") | ("666", "open") => !is_private,
                _ => false,
            };
            assert!(told, "for {uid}: {line}");
            writable.insert((uid, path.to_owned()), opened == "open");
        }
    }
    let anns = std::fs::read_link(node.mount().join("vms/anns")).unwrap();
    let may = |uid, path: &str| writable[&(uid, format!("./{path}"))];
    let hers = format!("vms/{}/ctl", anns.display());
    assert!(may(ann, &hers) && may(ann, "vms/new") && !may(ann, "vms/1/ctl") && !may(ann, "users/new"));
    for uid in [vic, nobody] {
        assert!(!may(uid, &hers) && !may(uid, "vms/new") && !may(uid, "vms/1/console") && may(uid, "events"));
    }
}

fn is_time(word: &str) -> bool {
    let digits: String = word.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    digits == "0000-00-00T00:00:00.000Z"
}

/// `key value`, each key once, in words that never need quoting.
fn check_key_values(path: &Path, text: &str) {
    let mut keys = Vec::new();
    for line in text.lines() {
        let (key, value) = line.split_once(' ').unwrap_or_else(|| panic!("{path:?}: {line:?}"));
        assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{path:?}: {line:?}");
        assert_eq!(value, value.trim(), "{path:?}: {line:?}");
        assert!(!value.is_empty(), "{path:?}: {line:?}");
        let timed = ["time", "created", "changed", "started", "retry"].contains(&key);
        assert!(!timed || is_time(value), "{path:?}: {line:?}");
        // A node may lack several things.
        assert!(!keys.contains(&key) || key == "missing" || path.starts_with("nodes"), "{path:?}: {key} twice");
        keys.push(key);
    }
    assert!(!keys.is_empty(), "{path:?}");
}

/// A heading, and below it as many words a line as it has.
fn check_table(path: &Path, text: &str) {
    let mut lines = text.lines();
    let heading: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert!(!heading.is_empty(), "{path:?}");
    for line in lines {
        assert_eq!(line.split_whitespace().count(), heading.len(), "{path:?}: {heading:?}: {line:?}");
        assert_eq!(line, line.trim_end(), "{path:?}");
    }
}

fn check_stream(path: &Path, text: &str) {
    let seqs: Vec<u64> = text.lines().map(|l| l.split(' ').next().unwrap().parse().unwrap()).collect();
    assert!(seqs.is_sorted(), "{path:?}: {text}");
    assert!(text.lines().all(|line| line.split(' ').nth(1).is_some_and(is_time)), "{path:?}: {text}");
}

#[test]
fn every_line_has_the_shape_that_the_rules_give_it() {
    let node = furnished();
    let mut fuse = Fuse(node.mount());
    node.write("vms/1/ctl", "fly").unwrap_err();
    let mut checked = 0;
    for (path, _) in files(everything(&node)) {
        // What was never started has no console.
        let Ok(bytes) = fuse.read(name(&path)) else { continue };
        // The one file that is no text.
        if path == Path::new("backup") {
            continue;
        }
        let text = String::from_utf8(bytes).unwrap();
        assert!(text.is_empty() || text.ends_with('\n'), "{path:?}: {text:?}");
        assert!(!text.contains('\r') && !text.contains('\t') && !text.contains('\0'), "{path:?}: {text:?}");
        checked += 1;
        match path.file_name().and_then(OsStr::to_str).unwrap() {
            "status" | "stats" | "version" | "clock" | "me" => check_key_values(&path, &text),
            "list" | "leases" | "sessions" => check_table(&path, &text),
            "events" => check_stream(&path, &text),
            "log" if path == Path::new("log") => check_stream(&path, &text),
            "json" => drop(serde_json::from_str::<serde_json::Value>(&text).unwrap()),
            "state" => assert_eq!(text.split_whitespace().count(), 1, "{path:?}: {text}"),
            "spec" => {
                let first = if path.starts_with("nodes") { "labels=" } else { "image=" };
                assert!(text.lines().count() == 1 && text.starts_with(first), "{path:?}: {text}");
            }
            "err" => assert!(text.lines().all(|l| l.split(' ').next().is_some_and(is_time)), "{text}"),
            "sync" => assert!(text.trim().parse::<u64>().is_ok(), "{text}"),
            "ctl" | "new" => assert!(text.starts_with("# ") && text.lines().count() > 1, "{path:?}: {text}"),
            "wait" => assert!(["running\n", "defined\n"].contains(&text.as_str()), "{path:?}: {text}"),
            // Where and why, then what each node says to it.
            "why" => assert!(text.contains(": ") && text.lines().skip(1).all(|l| l.starts_with("    ")), "{text}"),
            "work" => assert!(text.lines().all(|line| line.parse::<Line>().is_ok()), "{text}"),
            "README" | "log" | "console" => {}
            other => panic!("{other}: what shape has it? {text}"),
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn the_readme_names_every_file() {
    let node = furnished();
    let readme = node.read("README");
    for (path, _) in files(everything(&node)) {
        let parts: Vec<&str> = path.to_str().unwrap().split('/').collect();
        let object = if parts[0] == "vms" { "ID" } else { "NAME" };
        let shown = match parts[..] {
            [file] => format!("/{file}"),
            [kind, file] => format!("/{kind}/{file}"),
            [kind, _, file] => format!("/{kind}/{object}/{file}"),
            _ => panic!("{path:?} is deeper than the README goes"),
        };
        let told = readme
            .lines()
            .any(|line| line.split_once(' ').is_some_and(|(word, help)| word == shown && !help.trim().is_empty()));
        assert!(told, "README does not tell of {shown}");
    }
}

/// A spec is what `new` takes: copied into it, it makes a twin.
#[test]
fn a_spec_copied_into_new_makes_a_twin() {
    let node = furnished();
    for id in [1, 2] {
        let spec = node.read(&format!("vms/{id}/spec"));
        let twin = node.new_vm(spec.trim()).unwrap();
        assert_eq!(node.read(&format!("vms/{twin}/spec")), spec);
    }
}
