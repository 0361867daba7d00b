//! Processes: which one it is, for ever; when it ends; ending it. By pidfd, never by looking at /proc again and again.

use super::HostError;
use async_trait::async_trait;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

/// /proc/sys/kernel/random/boot_id: another one means another life of the host.
///
/// # Errors
/// It can't be read.
pub fn boot_id() -> Result<String, HostError> {
    let path = "/proc/sys/kernel/random/boot_id";
    std::fs::read_to_string(path).map(|id| id.trim().to_owned()).map_err(|e| HostError::io(path, e))
}

/// Field 22 of /proc/PID/stat (proc(5)): when the process started, in clock ticks since boot. None for one that has ended.
///
/// # Errors
/// It can't be read, so that nothing is known: a process is never taken for ended because of that.
pub fn start_ticks(pid: u32) -> io::Result<Option<u64>> {
    let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
        Err(error) if is_gone(&error) => return Ok(None),
        other => other?,
    };
    started(&String::from_utf8_lossy(&stat))
        .ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat can't be understood")))
}

/// There is no such process (any more): the kernel says so in one of two ways.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(rustix::io::Errno::from_raw_os_error);
    matches!(errno, Some(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH))
}

/// Field 4 of /proc/PID/stat: its parent. None for one that has ended.
///
/// # Errors
/// It can't be read.
pub fn parent(pid: u32) -> io::Result<Option<u32>> {
    let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
        Err(error) if is_gone(&error) => return Ok(None),
        other => other?,
    };
    let found = fields(&String::from_utf8_lossy(&stat)).and_then(|mut fields| fields.nth(1)?.parse().ok());
    found.map(Some).ok_or_else(|| io::Error::other(format!("/proc/{pid}/stat can't be understood")))
}

/// The fields of a stat file from the third on.
pub(super) fn fields(stat: &str) -> Option<std::str::SplitWhitespace<'_>> {
    // The name, in parentheses, may hold anything; what follows the last ')' is plain.
    stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace())
}

/// The start time in the text of a stat file; Some(None): the process has ended, and only its parent has not looked yet. A process whose
/// first thread has ended is a zombie by its state, and goes on while another thread is there, as one that waits for a disk.
fn started(stat: &str) -> Option<Option<u64>> {
    let mut fields = fields(stat)?;
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    if matches!(state, "Z" | "X") && threads <= 1 { Some(None) } else { fields.nth(1)?.parse().ok().map(Some) }
}

/// A process that can't be mistaken for a later one with the same number.
#[derive(Debug)]
pub struct Process {
    pid: u32,
    handle: AsyncFd<OwnedFd>,
}

impl Process {
    /// The process with this pid, if it is the one that started then. Must be called within a runtime.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open(pid: u32, started_ticks: u64) -> io::Result<Option<Process>> {
        let Some(raw) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        let handle = match pidfd_open(raw, PidfdFlags::NONBLOCK) {
            Ok(handle) => handle,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // Looked at after the handle is held: the number can't change hands in between unseen.
        if start_ticks(pid)? != Some(started_ticks) {
            return Ok(None);
        }
        #[expect(
            deprecated,
            reason = "deprecated for types whose descriptor may be another's; an OwnedFd's is its own"
        )]
        let handle = AsyncFd::new(handle)?;
        Ok(Some(Process { pid, handle }))
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends it SIGKILL. One that has ended already is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.handle.get_ref(), Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Resolves when it has ended. Reaps it if it is our child.
    pub async fn ended(&self) {
        // The handle becomes readable at the end and stays so. An error here can only be the runtime's own end.
        let _ = self.handle.readable().await;
        let _ = waitid(WaitId::PidFd(self.handle.get_ref().as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG);
    }
}

/// Ends processes.
#[async_trait]
pub trait Processes: Send + Sync + 'static {
    /// Kills the process with this pid that started then, in the life of the host with this boot_id, and returns when it is gone.
    async fn end(&self, pid: u32, start_ticks: u64, boot: &str) -> Result<(), HostError>;

    /// In which life the host is. Where processes are simulated, so may be its lives.
    ///
    /// # Errors
    /// It can't be read.
    fn boot_id(&self) -> Result<String, HostError> {
        boot_id()
    }
}

/// The kernel's processes.
#[derive(Debug, Clone, Copy)]
pub struct HostProcesses;

#[async_trait]
impl Processes for HostProcesses {
    async fn end(&self, pid: u32, start_ticks: u64, boot: &str) -> Result<(), HostError> {
        let failed = |e: io::Error| HostError::io(format!("process {pid}"), e);
        // After a boot of the host another process may have both numbers.
        if boot_id()? != boot {
            return Ok(());
        }
        let Some(process) = Process::open(pid, start_ticks).map_err(failed)? else { return Ok(()) };
        process.kill().map_err(failed)?;
        tokio::time::timeout(GONE_WITHIN, process.ended()).await.map_err(|_| {
            HostError(format!("process {pid} was killed and is still there after {}s", GONE_WITHIN.as_secs()))
        })
    }
}

/// Processes whose working folder is below `folder`, and their working folders: how machines are found that no record names.
///
/// # Errors
/// /proc can't be read, so that nothing is known.
pub fn working_below(folder: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<u32>().ok()) else { continue };
        let cwd = match std::fs::read_link(entry.path().join("cwd")) {
            // It has just ended, or is somebody else's, whom we may not look at.
            Err(error) if is_gone(&error) || error.kind() == io::ErrorKind::PermissionDenied => continue,
            other => other?,
        };
        if cwd != folder && cwd.starts_with(folder) && start_ticks(pid)?.is_some() {
            found.push((pid, cwd));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_has_ended_is_taken_for_ended() {
        let own = std::process::id();
        let since = start_ticks(own).unwrap();
        assert!(since.is_some());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let gone = child.id();
        child.wait().unwrap();
        assert_eq!(start_ticks(gone).unwrap(), None);
        assert_eq!(started("7 (a) b) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4321 0"), Some(Some(4321)));
        assert_eq!(started("7 (x) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 4321 0"), Some(None));
        let with_a_thread = "7 (x) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 2 0 4321 0";
        assert_eq!(started(with_a_thread), Some(Some(4321)), "only its first thread has ended");
        assert_eq!(started("7 (x) S 1"), None, "cut off");
        assert_eq!(parent(own).unwrap(), Some(std::os::unix::process::parent_id()));
        assert_eq!(parent(gone).unwrap(), None);
    }
}
