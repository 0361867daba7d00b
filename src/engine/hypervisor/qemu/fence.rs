//! A machine's fence (`engine/host/fence.rs`) as its daemon sees it: how it is started around the machine's command, what it says of that,
//! and how it is found again.

use super::launch::open;
use super::{record_of, working_at};
use crate::engine::host::deadline::was_fenced;
use crate::engine::host::fence::{PARENT_VARIABLE, TOLD_BYTES_MAX, Told, is_fence};
use crate::engine::host::process::{Process, boot_id, parent};
use crate::engine::hypervisor::{HypervisorError, Machine, Record};
use rustix::fs::{CWD, FileType, Mode};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

/// How long a fence may take to say that it has started its machine.
const TELLS_WITHIN: Duration = Duration::from_secs(30);
/// How long a fence may take to be gone when its machine is: it writes one small file.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// In the environment: what the allocator has beforehand for a busy node would be twice what a fence needs in all, and a fence's is never paged out.
pub(super) const SMALL: (&str, &str) = ("MIMALLOC_ARENA_EAGER_COMMIT", "0");

/// What makes the command that follows end with its parent. The kernel forgets the signal when a process changes its user, so setpriv(1)
/// asks for it after that; and a parent that died before it was asked for is another one now (prctl(2), PR_SET_PDEATHSIG).
pub(super) fn dies_with_it() -> [String; 6] {
    let script = format!("[ \"$PPID\" = \"${PARENT_VARIABLE}\" ] || exit; unset {PARENT_VARIABLE}; exec \"$@\"");
    let [option, signal, shell, takes, name] = ["--pdeathsig", "KILL", "/bin/sh", "-c", "sh"].map(str::to_owned);
    [option, signal, shell, takes, script, name]
}

/// Becomes the fence. Signals that are meant for a daemon and what belongs to it (a terminal that is closed, ^C) are not for the fence,
/// and nor is what whoever started the daemon has left open.
const BECOMES_FENCE: &str = "trap '' HUP INT TERM; exec 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&-; exec \"$@\"";

/// The command of a machine with its fence around.
pub(super) fn around(
    blixard: Option<&Path>,
    machine: &Machine,
    pipe: &Pipe,
    command: Vec<OsString>,
) -> Result<Vec<OsString>, HypervisorError> {
    let (Some(blixard), Some(fence)) = (blixard, &machine.fence) else {
        let sentence = "there is no program for fences here, and so no ha=restart: set ha=stay";
        return Err(HypervisorError::Permanent(sentence.to_owned()));
    };
    let mut words: Vec<OsString> = ["/bin/sh", "-c", BECOMES_FENCE, "sh", "setsid"].map(OsString::from).into();
    words.extend([blixard.into(), "fence".into(), "--deadline".into(), fence.deadline.clone().into()]);
    words.extend(["--tenure".into(), fence.tenure.to_string().into(), "--tell".into(), pipe.path.clone().into()]);
    words.extend(machine.cgroups.iter().flat_map(|cgroup| ["--cgroup".into(), cgroup.into()]));
    words.push("--".into());
    words.extend(command);
    Ok(words)
}

/// A pipe with a name, beside the run folder and not in it, which is the guest's.
pub(super) struct Pipe {
    path: PathBuf,
    end: pipe::Receiver,
}

impl Pipe {
    pub(super) fn make(run_dir: &Path) -> Result<Pipe, HypervisorError> {
        let path = run_dir.with_file_name("told");
        let made = || {
            match std::fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
            // Held for writing, too, it does not end before anybody has written.
            pipe::OpenOptions::new().read_write(true).open_receiver(&path)
        };
        let end = made().map_err(|e| HypervisorError::Transient(format!("{}: {e}", path.display())))?;
        Ok(Pipe { path, end })
    }

    /// What the fence says has become of the machine: which process it is.
    pub(super) async fn told(mut self, fence: &Process) -> Result<Record, HypervisorError> {
        let read = async {
            let mut line = Vec::new();
            while line.last() != Some(&b'\n') && line.len() < TOLD_BYTES_MAX {
                line.push(self.end.read_u8().await.map_err(|e| HypervisorError::Transient(format!("its fence: {e}")))?);
            }
            Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
        };
        let told = async {
            tokio::select! {
                biased;
                line = read => line,
                () = fence.ended() => Err(HypervisorError::Transient(
                    "its fence ended at once; is the program of this node still there?".to_owned(),
                )),
            }
        };
        let late = || HypervisorError::Transient(format!("its fence said nothing for {}s", TELLS_WITHIN.as_secs()));
        let line = tokio::time::timeout(TELLS_WITHIN, told).await.unwrap_or_else(|_| Err(late()))?;
        match Told::parse(&line) {
            Some(Told::Started { pid, start_ticks }) => {
                let boot_id = boot_id().map_err(|e| HypervisorError::Transient(e.to_string()))?;
                Ok(Record { pid, start_ticks, boot_id })
            }
            Some(Told::Ended) => Err(HypervisorError::Gone),
            Some(Told::Over) => Err(HypervisorError::NoLease),
            Some(Told::Failed(why)) => Err(HypervisorError::Transient(format!("its fence could not start it: {why}"))),
            None => Err(HypervisorError::Transient(format!("its fence said '{}'", line.escape_debug()))),
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // What is left here is made anew by the next start.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The fence of a machine that runs.
#[derive(Debug)]
pub(super) struct FenceProcess {
    process: Process,
    run_dir: PathBuf,
}

impl FenceProcess {
    /// The parent of a machine's process, if that is a fence.
    pub(super) fn of(machine: &Process, run_dir: &Path) -> Result<Option<FenceProcess>, HypervisorError> {
        let pid = machine.pid();
        let unknown = |e: io::Error| HypervisorError::Transient(format!("the parent of process {pid}: {e}"));
        let Some(above) = parent(pid).map_err(unknown)? else { return Ok(None) };
        let Some(record) = record_of(above)? else { return Ok(None) };
        let process = open(&record)?;
        // Looked at once it is held: the number can't have changed hands unseen.
        let is_parent = parent(pid).map_err(unknown)? == Some(above);
        let is_fence = is_fence(above).map_err(unknown)? == Some(true);
        Ok((is_parent && is_fence).then(|| FenceProcess { process, run_dir: run_dir.to_owned() }))
    }

    pub(super) async fn ended(&self) {
        self.process.ended().await;
    }

    /// Waits for its end, which is the machine's.
    pub(super) async fn ends_too(&self) {
        if tokio::time::timeout(ENDS_WITHIN, self.ended()).await.is_err() {
            tracing::warn!(fence = self.process.pid(), "a fence does not end with its machine");
        }
    }

    /// Of a machine that has ended: was it its fence that did it?
    pub(super) async fn has_ended_it(&self) -> bool {
        self.ends_too().await;
        was_fenced(&self.run_dir)
    }
}

/// Waits until no fence works in this folder any more, so that it is known whether it has ended its machine.
pub(super) async fn await_end(run_dir: &Path) -> Result<(), HypervisorError> {
    for (record, _) in working_at(run_dir)?.into_iter().filter(|(_, fence)| *fence != Some(false)) {
        match open(&record) {
            Ok(process) => drop(tokio::time::timeout(ENDS_WITHIN, process.ended()).await),
            Err(HypervisorError::Gone) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
