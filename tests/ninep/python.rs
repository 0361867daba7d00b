//! A client in Python that nobody here wrote: PyPI's p9fs, which has a codec of its own for all three dialects.

use super::raw::Running;
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

#[test]
fn everyday_use_in_every_version() {
    for version in ["9P2000.L", "9P2000.u", "9P2000"] {
        eprintln!("{}", everyday(version));
    }
}
