//! A client in Python that nobody here wrote: PyPI's p9fs, which has a codec of its own for all three dialects.

use super::raw::Running;
use super::toy::{MANY, big};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The interpreter that has it; `./test` makes it, else it is made here, once for all test processes.
fn python() -> PathBuf {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let lock = std::fs::File::create(target.join(".python.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/make-python");
    assert!(Command::new(script).arg(target).status().unwrap().success(), "setup/make-python failed");
    target.join("python/bin/python")
}

/// What the script shows in this version.
fn everyday(version: &str) -> String {
    let running = Running::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ninep/everyday.py");
    let output = Command::new("timeout")
        .arg("60")
        .arg(python())
        .arg(script)
        .args([version, &running.port().to_string()])
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What holds in each version: `links` are what the version shows of them.
fn expected(name: &str, links: &str, refusals: [&str; 5]) -> String {
    let [nowhere, wrong, secret, remove, mkdir] = refusals;
    format!(
        "list ['README', 'big', 'block', 'ctl', 'dir/', 'echo', 'err', 'fresh', {links}'many/', 'panic', 'secret', 'slow']
many {MANY}
info ['file', 33060, 100000]
directory directory
README b'read me please\\n'
big {sum}
leaf b'leaf\\n'
nowhere refused: {nowhere}
ctl 3
wrong refused: RpcError {wrong}
secret refused: RpcError {secret}
remove refused: RpcError {remove}
mkdir refused: RpcError {mkdir}
version {name}
",
        sum = big().iter().map(|byte| u64::from(*byte)).sum::<u64>(),
    )
}

const SENTENCES: [&str; 4] = [
    r#"b"invalid command 'fly': only ok is known""#,
    "b'permission denied: the toy tree says so'",
    r#"b"not permitted: rmdir the object's directory""#,
    "b'not permitted: Directory new'",
];

#[test]
fn everyday_use_in_9p2000_l() {
    let errnos = ["P9FileNotFound nowhere", "22", "13", "1", "1"];
    assert_eq!(everyday("9P2000.L"), expected("v9P2000L", "'link', ", errnos));
}

#[test]
fn everyday_use_in_9p2000_u() {
    let [wrong, secret, remove, mkdir] = SENTENCES;
    let sentences = ["RpcError b'not found: it is not there any more'", wrong, secret, remove, mkdir];
    assert_eq!(everyday("9P2000.u"), expected("v9P2000u", "'link', ", sentences));
}

#[test]
fn everyday_use_in_9p2000() {
    let [wrong, secret, remove, mkdir] = SENTENCES;
    let sentences = ["P9FileNotFound nowhere", wrong, secret, remove, mkdir];
    assert_eq!(everyday("9P2000"), expected("v9P2000", "", sentences));
}
