//! What a hypervisor is to the agent: something that launches machines and takes running ones back.
//!
//! One implementation a file or folder: `qemu/`, `simulated.rs`. Knows nothing of the state machine:
//! it is handed a [`Machine`] and gives an [`Instance`].

pub mod qemu;
pub mod simulated;

pub use qemu::Qemu;
pub use simulated::Simulated;

use crate::engine::host::figures::ProcessFigures;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Everything that a hypervisor has to know to run one VM; made by the agent, valid for one generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// The VM's number.
    pub vm: u64,
    /// The start that this is; a later one never reuses sockets or logs of an earlier one.
    pub generation: u64,
    /// The machine's UUID (RFC 9562, hyphenated), the same over all generations.
    pub uuid: String,
    /// Virtual CPUs, at least 1.
    pub cpus: u32,
    /// Guest memory in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// The uncompressed kernel (PVH ELF) or bzImage.
    pub kernel: PathBuf,
    /// The initial ramdisk.
    pub initrd: PathBuf,
    /// Kernel arguments of the image; the hypervisor adds its own.
    pub cmdline: String,
    /// A data disk (qcow2), if the VM has one.
    pub disk: Option<PathBuf>,
    /// The network card, if the VM has one.
    pub nic: Option<Nic>,
    /// A folder of this generation alone, 0700, that exists: sockets, pid file, console log.
    pub run_dir: PathBuf,
    /// Run as this uid and gid instead of our own, where we may change it.
    pub run_as: Option<(u32, u32)>,
    /// The cgroup folders that the process is to be put into, already made.
    pub cgroups: Vec<PathBuf>,
    /// It may live only as long as its node has its lease; None: it stays whatever happens.
    #[serde(default)]
    pub fence: Option<Fence>,
}

/// What ends a machine when its node's lease is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// The file with the deadline (`engine/host/deadline.rs`).
    pub deadline: PathBuf,
    /// The tenure in which it was decided to start the machine.
    pub tenure: u64,
}

/// A machine's network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// The tap device on the host; without one the guest has QEMU's user network.
    pub tap: Option<String>,
    /// The card's address, `52:54:00:...`.
    pub mac: String,
    /// The guest's addresses with their prefix lengths, in the order in which they are to be set.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Default routes, at most one a family.
    pub gateways: Vec<IpAddr>,
}

/// How a running machine is found again after the daemon was away. Written to disk by the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The process.
    pub pid: u32,
    /// Field 22 of /proc/PID/stat, in clock ticks since boot: with the pid it names one process for ever.
    pub start_ticks: u64,
    /// /proc/sys/kernel/random/boot_id when it was started.
    pub boot_id: String,
}

/// So much of a machine's console output is kept, in bytes: a few thousand lines.
pub const CONSOLE_LOG_BYTES_MAX: u64 = 1 << 20;

/// What the guest or its machine is doing, as the hypervisor sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// The CPUs run.
    Running,
    /// The CPUs are stopped.
    Paused,
}

/// Why a machine is no more. It is written down before the process goes that could be asked again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// The guest powered itself off (or did so when asked).
    PoweredOff,
    /// We killed it.
    Killed,
    /// Its fence ended it: the node's lease was over.
    Fenced,
    /// Anything else; the sentence says what is known and what to do.
    Crashed(String),
}

/// What can go wrong; each message is a sentence that a user can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HypervisorError {
    /// It can't work until somebody changes something (no binary, bad image): no retry by itself.
    #[error("{0}")]
    Permanent(String),
    /// It may work the next time.
    #[error("{0}")]
    Transient(String),
    /// The process is gone.
    #[error("the machine is gone")]
    Gone,
    /// It is to be fenced, and the node's lease was over before there was a process.
    #[error("the lease of this node was over before the machine was started")]
    NoLease,
}

/// What a hypervisor can do on this host; printed in `/nodes/NAME/status`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Its name and version, as `QEMU 7.2.22`; empty if it is missing.
    pub version: String,
    /// `kvm`, `tcg` or `simulated`.
    pub accelerator: String,
    /// What is missing or slower than it could be: whole sentences.
    pub warnings: Vec<String>,
    /// Memory that guests may have on this host, in bytes.
    pub memory_bytes: u64,
}

/// Writes down which process a launch has made.
pub type Spawned<'a> = &'a (dyn for<'r> Fn(&'r Record) -> std::io::Result<()> + Send + Sync + 'a);

fn no_record(error: &std::io::Error) -> HypervisorError {
    HypervisorError::Transient(format!(
        "its process can't be written down: {error}; see that the data folder can be written to, then start it"
    ))
}

/// Launches machines and takes running ones back.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// `qemu` or `simulated`.
    fn name(&self) -> &'static str;

    /// The past console output of the machine with this run folder, oldest first, at most [`CONSOLE_LOG_BYTES_MAX`] of it.
    /// Empty if it never ran.
    fn console_log(&self, run_dir: &std::path::Path) -> std::io::Result<Vec<u8>>;

    /// Finds out what works here for machines that run as this uid and gid (None: as ourselves). Bounded in time; may be called
    /// again.
    async fn probe(&self, run_as: Option<(u32, u32)>) -> Capabilities;

    /// Starts the machine's process and waits until its control socket answers. On an error nothing is left behind.
    /// `spawned` is called as soon as there is a process, before anything else: it writes the record down.
    async fn launch(&self, machine: &Machine, spawned: Spawned<'_>) -> Result<Arc<dyn Instance>, HypervisorError>;

    /// Takes back a machine that a former life of this daemon started. `record` is None if that life ended between
    /// the spawn and the writing down: then the process is found by what is in `run_dir`.
    /// `Err(Gone)`: there is no such process any more. Whether its fence has ended it, is known then.
    async fn adopt(&self, machine: &Machine, record: Option<&Record>) -> Result<Arc<dyn Instance>, HypervisorError>;

    /// Processes of this hypervisor, fences among them, that were started for machines below `vms_dir` and whose run folder is not in
    /// `known`: (record, run folder). One that is being started may make another while this looks: whoever has ended those that
    /// were found looks again.
    ///
    /// # Errors
    /// The host does not say what runs.
    async fn orphans(
        &self,
        vms_dir: &std::path::Path,
        known: &[PathBuf],
    ) -> Result<Vec<(Record, PathBuf)>, HypervisorError>;
}

/// What a machine has used since it was started; what its hypervisor can't say is None.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineFigures {
    /// Its process.
    pub process: Option<ProcessFigures>,
    /// Its disks, all together.
    pub disks: Option<DiskFigures>,
}

/// What went from and to disks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DiskFigures {
    /// Reads.
    pub reads: u64,
    /// Bytes that were read.
    pub read_bytes: u64,
    /// Writes.
    pub writes: u64,
    /// Bytes that were written.
    pub written_bytes: u64,
}

/// One running machine. Dropping it does not end the machine.
#[async_trait]
pub trait Instance: Send + Sync + 'static {
    /// Which process it is.
    fn record(&self) -> Record;
    /// Are its CPUs running?
    async fn running(&self) -> Result<Running, HypervisorError>;
    /// Stops the CPUs (idempotent).
    async fn pause(&self) -> Result<(), HypervisorError>;
    /// Lets the CPUs run (idempotent).
    async fn resume(&self) -> Result<(), HypervisorError>;
    /// Asks the guest to power off, by its channel and by ACPI; returns when it was asked, not when it is done.
    async fn power_down(&self) -> Result<(), HypervisorError>;
    /// Ends the process at once (idempotent); returns when it was told, [`Instance::exited`] says when it is gone.
    async fn kill(&self) -> Result<(), HypervisorError>;
    /// Resolves when the machine is no more, with the reason: its process is gone (pidfd), or its guest went off and the process
    /// only waits to be discarded. May be awaited by several, and again.
    async fn exited(&self) -> Exit;
    /// Ends the process that a machine leaves when its guest went off (idempotent); returns when it is gone, or when it does not go.
    async fn discard(&self);
    /// Resolves when the guest has answered on its channel for the first time in this generation.
    async fn guest_ready(&self) -> Result<(), HypervisorError>;
    /// Runs `command` by the guest's shell through the guest channel: (exit status, output, at most 64 KiB).
    async fn guest_run(&self, command: &str, deadline: Duration) -> Result<(i32, Vec<u8>), HypervisorError>;
    /// What it has used.
    async fn figures(&self) -> Result<MachineFigures, HypervisorError> {
        Ok(MachineFigures::default())
    }
    /// The serial console, live: bytes as they come, from now on, and what is written goes to the guest.
    async fn console(&self) -> Result<Console, HypervisorError>;
}

/// An open console: both ends are bounded; a reader that is too slow loses the oldest output.
pub struct Console {
    /// What the guest prints.
    pub output: tokio::sync::broadcast::Receiver<bytes::Bytes>,
    /// What is typed.
    pub input: tokio::sync::mpsc::Sender<bytes::Bytes>,
}
