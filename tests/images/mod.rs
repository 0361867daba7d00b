//! The machines that the tests boot.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the image `tiny`; `./test` makes it and names it, else it is made here, once for all test processes.
pub fn images() -> PathBuf {
    if let Some(images) = std::env::var_os("BLIXARD_IMAGES") {
        return images.into();
    }
    made("make-tiny")
}

/// The folder of the machine `peer`, which has Linux's own 9P client.
#[allow(dead_code, reason = "one of the tests that share this file boots it")]
pub fn peer() -> PathBuf {
    made("make-peer").join("peer")
}

/// Makes an image, unless it is there and up to date, in the folder for all of them.
fn made(script: &str) -> PathBuf {
    let images = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("images");
    std::fs::create_dir_all(&images).unwrap();
    let lock = std::fs::File::create(images.join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let made = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("setup").join(script)).arg(&images).status();
    assert!(made.unwrap().success(), "setup/{script} failed");
    images
}
