//! What touches the kernel of one host: processes, cgroups, networks, disks, its clock. Behind traits, so that tests can make each fail.
//!
//! Everything here is idempotent: making what is there and removing what isn't are no errors.

pub mod cgroups;
pub mod clock;
pub mod command;
pub mod deadline;
pub mod disks;
pub mod fence;
pub mod figures;
pub mod net;
pub mod process;

pub use cgroups::{Cgroups, HostCgroups, NoCgroups};
pub use clock::{BootClock, HostClock};
pub use deadline::DeadlineFolder;
pub use disks::{Disks, NoDisks, QemuImg};
pub use net::{Bridges, Net, Network, UserNet};
pub use process::{HostProcesses, Processes};

use std::ops::Range;
use std::sync::Arc;

/// Why the host did not do what was asked. The message is a sentence that a user can act on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub String);

impl HostError {
    /// "WHAT: the kernel's words".
    pub fn io(what: impl std::fmt::Display, error: impl std::fmt::Display) -> HostError {
        HostError(format!("{what}: {error}"))
    }
}

/// The host as the agent uses it.
#[derive(Clone)]
pub struct HostParts {
    /// Ending processes.
    pub processes: Arc<dyn Processes>,
    /// Limits and accounting of processes.
    pub cgroups: Arc<dyn Cgroups>,
    /// Bridges and taps.
    pub net: Arc<dyn Net>,
    /// Data disks.
    pub disks: Arc<dyn Disks>,
    /// By which leases are counted.
    pub clock: Arc<dyn BootClock>,
    /// Where the deadline of fenced machines lies.
    pub deadlines: DeadlineFolder,
    /// Guests run as this uid plus the VM's number; None: as we do.
    pub guest_uid_base: Option<u32>,
    /// What does not work here and why, in sentences.
    pub missing: Vec<String>,
}

/// The first uid of guests: far above what people, services and containers have. Each VM has one of its own, so that one
/// machine's process can't touch another's.
pub const GUEST_UID_BASE: u32 = 2_000_000_000;
/// So many uids from [`GUEST_UID_BASE`] are used; later VMs share them.
pub const GUEST_UIDS: u32 = 100_000_000;

impl HostParts {
    /// What this host can do. `tag` tells the devices of this data folder from another's: at most 6 letters.
    pub async fn detect(tag: &str) -> HostParts {
        let mut missing = Vec::new();
        let (disks, processes) = (Arc::new(QemuImg), Arc::new(HostProcesses));
        let (clock, deadlines) = (Arc::new(HostClock), DeadlineFolder::of_host());
        if !rustix::process::geteuid().is_root() {
            missing
                .push("not running as root: guests have no cgroups and no taps, and run as this very user".to_owned());
            let (cgroups, net) = (Arc::new(NoCgroups), Arc::new(UserNet));
            return HostParts { processes, cgroups, net, disks, clock, deadlines, guest_uid_base: None, missing };
        }
        let cgroups: Arc<dyn Cgroups> = match HostCgroups::detect(tag) {
            Ok(cgroups) => Arc::new(cgroups),
            Err(error) => {
                missing.push(format!("guests have no cgroups: {error}"));
                Arc::new(NoCgroups)
            }
        };
        let net: Arc<dyn Net> = match Bridges::detect(tag).await {
            Ok(bridges) => Arc::new(bridges),
            Err(error) => {
                missing.push(format!("guests have QEMU's user network instead of taps: {error}"));
                Arc::new(UserNet)
            }
        };
        let guest_uid_base = Some(GUEST_UID_BASE);
        HostParts { processes, cgroups, net, disks, clock, deadlines, guest_uid_base, missing }
    }

    /// A host that gives nothing: for machines that are simulated, and so are their processes.
    pub fn none(processes: Arc<dyn Processes>) -> HostParts {
        let (cgroups, net, disks) = (Arc::new(NoCgroups), Arc::new(UserNet), Arc::new(NoDisks));
        let (clock, deadlines) = (Arc::new(HostClock), DeadlineFolder::Data);
        HostParts { processes, cgroups, net, disks, clock, deadlines, guest_uid_base: None, missing: Vec::new() }
    }

    /// All uids that guests' processes may have; None: they have ours.
    pub fn guest_uids(&self) -> Option<Range<u32>> {
        self.guest_uid_base.map(|base| base..base + GUEST_UIDS)
    }

    /// The uid and gid that the VM's process is to have.
    pub fn guest_ids(&self, vm: u64) -> Option<(u32, u32)> {
        let offset = u32::try_from(vm % u64::from(GUEST_UIDS)).unwrap_or(0);
        self.guest_uid_base.map(|base| (base + offset, base + offset))
    }
}
