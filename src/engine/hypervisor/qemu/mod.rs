//! QEMU: one process a machine, in its own session, which outlives us.
//!
//! - `arguments.rs`: the command line
//! - `launch.rs`: from a [`Machine`] to a process whose monitor answers
//! - `instance.rs`: a running one
//! - `monitor.rs` (QMP), `console.rs`, `channel.rs`: its three sockets
//! - `probe.rs`: what works on this host

mod arguments;
mod channel;
mod console;
mod instance;
mod launch;
mod monitor;
mod probe;

use super::{Capabilities, Hypervisor, HypervisorError, Instance, Machine, Record, Spawned};
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
    /// What the last probe found; TCG, which always works, before the first.
    accelerator: OnceLock<Accelerator>,
}

impl Qemu {
    /// QEMU by the name or path of its binary, as `qemu-system-x86_64`.
    pub fn new(binary: impl Into<String>) -> Qemu {
        Qemu { binary: binary.into(), accelerator: OnceLock::new() }
    }

    fn accelerator(&self) -> Accelerator {
        self.accelerator.get().copied().unwrap_or(Accelerator::Tcg)
    }
}

/// Files in a machine's run folder.
mod files {
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

    async fn probe(&self) -> Capabilities {
        let (accelerator, capabilities) = probe::probe(&self.binary).await;
        // Machines that run keep what they were started with; a later probe changes nothing for this process's life.
        let _ = self.accelerator.set(accelerator);
        capabilities
    }

    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
        launch::launch(&self.binary, self.accelerator(), machine, spawned).await
    }

    async fn adopt(&self, machine: &Machine, record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError> {
        let found = match record {
            Some(record) => Some(record.clone()),
            None => unrecorded(&machine.run_dir),
        };
        let Some(record) = found else { return Err(HypervisorError::Gone) };
        launch::attach(machine, &record).await
    }

    async fn orphans(&self, vms_dir: &Path, known: &[PathBuf]) -> Vec<(Record, PathBuf)> {
        let unknown = |(_, folder): &(u32, PathBuf)| !known.contains(folder);
        let found = working_below(vms_dir).into_iter().filter(unknown);
        found.filter_map(|(pid, folder)| Some((record_of(pid)?, folder))).collect()
    }
}

fn record_of(pid: u32) -> Option<Record> {
    Some(Record { pid, start_ticks: start_ticks(pid)?, boot_id: boot_id().ok()? })
}

/// The process that works in this folder: a machine whose start was cut off before its record was written.
fn unrecorded(run_dir: &Path) -> Option<Record> {
    let parent = run_dir.parent()?;
    working_below(parent).into_iter().find(|(_, folder)| folder == run_dir).and_then(|(pid, _)| record_of(pid))
}
