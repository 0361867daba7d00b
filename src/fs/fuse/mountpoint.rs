//! Where a tree is mounted: what may be there, and a mount that a killed server left.

use super::FuseError;
use rustix::io::Errno;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// The type that our mounts have in /proc/self/mountinfo.
const TYPE: &str = "fuse.blixard";
/// Where the kernel takes file servers.
const DEVICE: &str = "/dev/fuse";

fn place(sentence: String) -> FuseError {
    FuseError::Place(sentence)
}

/// Makes the folder ready: it exists, is empty, and nothing is mounted there.
pub(super) fn prepare(path: &Path) -> Result<(), FuseError> {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(found) if !found.is_dir() => {
            return Err(place(format!("{shown} is invalid as a mount point: it is not a directory")));
        }
        Ok(_) => {}
        Err(error) if stale(&error) => {
            tracing::info!(path = %shown, "the mount of a server that was killed is taken over");
            detach(path).map_err(|e| {
                place(format!("{shown} has a dead mount that can't be removed: {e}; umount -l {shown}"))
            })?;
            return prepare(path);
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            std::fs::create_dir_all(path)
                .map_err(|e| place(format!("{shown} can't be made: {e}; choose another place")))?;
        }
        Err(error) => return Err(place(format!("{shown} can't be used: {error}"))),
    }
    match mounted(path).map_err(|e| place(format!("/proc/self/mountinfo: {e}")))? {
        Some(kind) if kind == TYPE => {
            return Err(place(format!("{shown} is busy: another blixard serves its tree there")));
        }
        Some(kind) => return Err(place(format!("{shown} is busy: a file system of type {kind} is mounted there"))),
        None => {}
    }
    let mut entries = std::fs::read_dir(path).map_err(|e| place(format!("{shown}: {e}")))?;
    if entries.next().is_some() {
        return Err(place(format!("{shown} is not empty: choose an empty folder, so that nothing is hidden")));
    }
    // Nothing is to land on the local disk while the tree is not mounted. fusermount3 mounts only where its user may write.
    let mode = if rustix::process::geteuid().is_root() { 0o555 } else { 0o755 };
    std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).map_err(|e| place(format!("{shown}: {e}")))
}

/// FUSE's device can be opened: what fusermount3 says if not reaches nobody.
pub(super) fn device_opens() -> Result<(), FuseError> {
    match std::fs::File::options().read(true).write(true).open(DEVICE) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(place(format!("{DEVICE} is not there: load the kernel's module, modprobe fuse")))
        }
        Err(error) => Err(place(format!("{DEVICE} can't be opened: {error}; all may, on Debian: chmod 666 {DEVICE}"))),
    }
}

/// Is this what a mount says whose server is dead?
fn stale(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::NOTCONN.raw_os_error())
}

/// The type of what is mounted there, by proc(5)'s mountinfo.
fn mounted(path: &Path) -> io::Result<Option<String>> {
    let path = path.canonicalize()?;
    let text = std::fs::read("/proc/self/mountinfo")?;
    let mut found = None;
    for line in text.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b' ');
        if fields.nth(4).is_some_and(|field| unescape(field) == path.as_os_str().as_bytes()) {
            let kind = fields.skip_while(|f| *f != b"-").nth(1).unwrap_or_default();
            // The last one is on top.
            found = Some(String::from_utf8_lossy(kind).into_owned());
        }
    }
    Ok(found)
}

/// Spaces and the like are written as `\040`.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let octal =
            after.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match (first, octal) {
            (b'\\', Some(byte)) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    bytes
}

/// Takes the mount away from the path, even if it is in use.
pub(super) fn detach(path: &Path) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        return match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
            // It is gone already.
            Err(Errno::INVAL | Errno::NOENT) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        };
    }
    let mut command = Command::new("/usr/bin/fusermount3");
    let output = command.args(["-u", "-z", "--"]).arg(path).stdin(Stdio::null()).output()?;
    if output.status.success() || mounted(path).is_ok_and(|m| m.is_none()) {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_that_cannot_be_used() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(prepare(&file).unwrap_err().to_string().contains("not a directory"));
        assert!(prepare(folder.path()).unwrap_err().to_string().contains("not empty"));
        assert!(prepare(Path::new("/proc")).unwrap_err().to_string().contains("type proc is mounted"));
        let fresh = folder.path().join("a/b");
        prepare(&fresh).unwrap();
        assert_eq!(std::fs::metadata(&fresh).unwrap().permissions().mode() & 0o777, 0o555);
        assert_eq!(unescape(br"/with\040space\134"), b"/with space\\");
    }
}
