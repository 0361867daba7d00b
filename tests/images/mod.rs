//! The guest image that the tests boot.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with the image `tiny`; `./test` makes it and names it, else it is made here, once for all test processes.
pub fn images() -> PathBuf {
    if let Some(images) = std::env::var_os("BLIXARD_IMAGES") {
        return images.into();
    }
    let images = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("images");
    std::fs::create_dir_all(&images).unwrap();
    let lock = std::fs::File::create(images.join(".lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let made =
        Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("setup/make-tiny")).arg(&images).status().unwrap();
    assert!(made.success(), "setup/make-tiny failed");
    images
}
