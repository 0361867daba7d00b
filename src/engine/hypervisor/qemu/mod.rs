//! QEMU: one process a machine, in its own session, which outlives us.
//!
//! - `arguments.rs`: the command line
//! - `launch.rs`: from a [`Machine`] to a process whose monitor answers; `fence.rs`: with a fence around it
//! - `instance.rs`: a running one
//! - `monitor.rs` (QMP), `console.rs`, `channel.rs`: its three sockets
//! - `probe.rs`: what works on this host

mod arguments;
mod channel;
mod console;
mod fence;
mod instance;
mod launch;
mod monitor;
mod probe;

use super::{Capabilities, Hypervisor, HypervisorError, Instance, Machine, Record, Spawned};
use crate::engine::host::fence::is_fence;
use crate::engine::host::process::{boot_id, start_ticks, working_below};
use async_trait::async_trait;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// Which accelerator machines run with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's.
    Kvm,
    /// QEMU's own emulation.
    Tcg,
}

/// QEMU on this host.
#[derive(Debug)]
pub struct Qemu {
    binary: String,
    /// The program whose `fence` is the parent of fenced machines.
    fence: Option<PathBuf>,
    /// What the last probe found; TCG, which always works, before the first.
    accelerator: OnceLock<Accelerator>,
}

impl Qemu {
    /// QEMU by the name or path of its binary, as `qemu-system-x86_64`.
    pub fn new(binary: impl Into<String>) -> Qemu {
        Qemu { binary: binary.into(), fence: None, accelerator: OnceLock::new() }
    }

    /// With this program, a blixard, for fences; without one machines that are to be fenced can't be started.
    #[must_use]
    pub fn fenced_by(self, blixard: PathBuf) -> Qemu {
        Qemu { fence: Some(blixard), ..self }
    }

    fn accelerator(&self) -> Accelerator {
        self.accelerator.get().copied().unwrap_or(Accelerator::Tcg)
    }
}

/// What a program is started through so that it runs as this user, with nothing that we may do beyond it: setpriv(1). KVM's device
/// is its group's on most hosts, so the process is in that.
fn as_user((uid, gid): (u32, u32), accelerator: Accelerator) -> Vec<String> {
    let groups = match (accelerator, probe::kvm_group()) {
        (Accelerator::Kvm, Some(group)) => format!("--groups={group}"),
        _ => "--clear-groups".to_owned(),
    };
    let fixed = ["--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"].map(str::to_owned);
    let ids = [format!("--reuid={uid}"), format!("--regid={gid}"), groups];
    std::iter::once("setpriv".to_owned()).chain(fixed).chain(ids).collect()
}

/// Files in a machine's run folder. The folder is the guest's own user's, who may put anything in their place.
mod files {
    use std::io;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
    use std::path::Path;

    /// Opens one of them: a file of that folder alone, and not what a link or a pipe leads to.
    pub fn open(path: &Path, options: &mut std::fs::OpenOptions) -> io::Result<std::fs::File> {
        let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
        let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
        let file = options.custom_flags(flags).open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_file() && metadata.nlink() == 1 {
            return Ok(file);
        }
        Err(io::Error::other(format!("{} is not a file of this machine alone", path.display())))
    }

    pub const MONITOR: &str = "qmp";
    pub const CONSOLE: &str = "console";
    pub const CHANNEL: &str = "channel";
    pub const CONSOLE_LOG: &str = "console.log";
    pub const ERRORS: &str = "errors";
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn console_log(&self, run_dir: &Path) -> std::io::Result<Vec<u8>> {
        console::past(&run_dir.join(files::CONSOLE_LOG))
    }

    async fn probe(&self, run_as: Option<(u32, u32)>) -> Capabilities {
        let (accelerator, capabilities) = probe::probe(&self.binary, run_as).await;
        // Machines that run keep what they were started with; a later probe changes nothing for this process's life.
        let _ = self.accelerator.set(accelerator);
        capabilities
    }

    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let programs = launch::Programs { qemu: &self.binary, fence: self.fence.as_deref() };
        launch::launch(&programs, self.accelerator(), machine, spawned).await
    }

    async fn adopt(&self, machine: &Machine, record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let found = match record {
            Some(record) => Some(record.clone()),
            None => unrecorded(&machine.run_dir)?,
        };
        let attached = match &found {
            Some(record) => launch::attach(machine, record).await,
            None => Err(HypervisorError::Gone),
        };
        if machine.fence.is_some() && attached.as_ref().is_err_and(|error| *error == HypervisorError::Gone) {
            fence::await_end(&machine.run_dir).await?;
        }
        attached
    }

    async fn orphans(&self, vms_dir: &Path, known: &[PathBuf]) -> Result<Vec<(Record, PathBuf)>, HypervisorError> {
        let mut found = Vec::new();
        for (pid, folder) in working_in(vms_dir)?.into_iter().filter(|(_, folder)| !known.contains(folder)) {
            found.extend(record_of(pid)?.map(|record| (record, folder)));
        }
        Ok(found)
    }
}

/// What names this process for ever; None: it has ended.
fn record_of(pid: u32) -> Result<Option<Record>, HypervisorError> {
    let unknown = |e: &dyn std::fmt::Display| HypervisorError::Transient(format!("process {pid}: {e}"));
    let ticks = start_ticks(pid).map_err(|e| unknown(&e))?;
    let boot_id = boot_id().map_err(|e| unknown(&e))?;
    Ok(ticks.map(|start_ticks| Record { pid, start_ticks, boot_id }))
}

fn working_in(folder: &Path) -> Result<Vec<(u32, PathBuf)>, HypervisorError> {
    working_below(folder).map_err(|e| HypervisorError::Transient(format!("the processes in /proc can't be read: {e}")))
}

/// The processes that work in this folder, and whether each is a fence; None: it is ending, and that can't be seen any more.
fn working_at(run_dir: &Path) -> Result<Vec<(Record, Option<bool>)>, HypervisorError> {
    let mut found = Vec::new();
    for (pid, _) in working_in(run_dir.parent().unwrap_or(run_dir))?.into_iter().filter(|(_, folder)| folder == run_dir)
    {
        let Some(record) = record_of(pid)? else { continue };
        let fence = is_fence(pid).map_err(|e| HypervisorError::Transient(format!("process {pid}: {e}")))?;
        found.push((record, fence));
    }
    Ok(found)
}

/// The process that works in this folder: a machine whose start was cut off before its record was written.
fn unrecorded(run_dir: &Path) -> Result<Option<Record>, HypervisorError> {
    let found = working_at(run_dir)?;
    let machine = found.iter().find(|(_, fence)| *fence == Some(false)).map(|(record, _)| record.clone());
    if machine.is_none() && found.iter().any(|(_, fence)| *fence == Some(true)) {
        return Err(HypervisorError::Transient(
            "its fence is there, and the machine is not yet, or not any more".to_owned(),
        ));
    }
    Ok(machine)
}
