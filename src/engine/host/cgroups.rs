//! One cgroup a machine: accounting, and limits on what its process may take beside the guest's memory.
//!
//! cgroup v2 where it has the controllers, else the hierarchies of v1 that are mounted.

use super::HostError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Memory that QEMU may take beside the guest's, in bytes: its code, device models, and under emulation the translated code.
const MEMORY_BESIDE_BYTES: u64 = 1 << 30;
/// Threads of one machine: one a virtual CPU (at most 64) and QEMU's own pool.
const THREADS_MAX: u64 = 256;

/// Groups of processes.
pub trait Cgroups: Send + Sync + 'static {
    /// Makes the groups of a machine, and gives their folders (none where there are no cgroups).
    ///
    /// # Errors
    /// The kernel refuses.
    fn make(&self, vm: u64, memory_bytes: u64) -> Result<Vec<PathBuf>, HostError>;
    /// Removes them.
    ///
    /// # Errors
    /// The kernel refuses: a process is still in one.
    fn remove(&self, vm: u64) -> Result<(), HostError>;
    /// The VMs for which there are groups.
    fn list(&self) -> Vec<u64>;
    /// For `/nodes/NAME/status`.
    fn describe(&self) -> String;
}

/// A host without cgroups, or where we may not use them.
#[derive(Debug, Clone, Copy)]
pub struct NoCgroups;

impl Cgroups for NoCgroups {
    fn make(&self, _vm: u64, _memory_bytes: u64) -> Result<Vec<PathBuf>, HostError> {
        Ok(Vec::new())
    }
    fn remove(&self, _vm: u64) -> Result<(), HostError> {
        Ok(())
    }
    fn list(&self) -> Vec<u64> {
        Vec::new()
    }
    fn describe(&self) -> String {
        "none".to_owned()
    }
}

/// The kernel's cgroups.
#[derive(Debug)]
pub struct HostCgroups {
    /// The folder of this node in each hierarchy; there while there are groups in it.
    bases: Vec<PathBuf>,
    version: u8,
    /// One makes or removes at a time: the folders above are of all groups.
    changing: Mutex<()>,
}

/// How often the folder that all nodes of a host share is made anew.
const PARENT_TRIES: u32 = 16;
const MOUNT: &str = "/sys/fs/cgroup";
/// The hierarchies of v1 that a machine is put into.
const V1: &[&str] = &["memory", "pids", "cpu"];

impl HostCgroups {
    /// What this host has, with a folder `blixard/TAG` in each hierarchy.
    ///
    /// # Errors
    /// There is none, or we may not write there.
    pub fn detect(tag: &str) -> Result<HostCgroups, HostError> {
        let mount = Path::new(MOUNT);
        let controllers = std::fs::read_to_string(mount.join("cgroup.controllers")).unwrap_or_default();
        let has = |name: &str| controllers.split_whitespace().any(|c| c == name);
        let (roots, version): (Vec<PathBuf>, u8) = if has("memory") && has("pids") {
            (vec![mount.to_owned()], 2)
        } else {
            (V1.iter().map(|c| mount.join(c)).filter(|p| p.join("cgroup.procs").exists()).collect(), 1)
        };
        if roots.is_empty() {
            return Err(HostError("no hierarchy with a useful controller is mounted in /sys/fs/cgroup".to_owned()));
        }
        let bases = roots.iter().map(|root| root.join("blixard").join(tag)).collect();
        let found = HostCgroups { bases, version, changing: Mutex::new(()) };
        // Whether we may, is found out before the first machine.
        found.make_bases()?;
        found.remove_bases();
        Ok(found)
    }

    fn make_bases(&self) -> Result<(), HostError> {
        for base in &self.bases {
            // Another node on this host may just have removed the folder that both share.
            let made = (0..PARENT_TRIES).find_map(|_| match std::fs::create_dir_all(base) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                made => Some(made),
            });
            made.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
                .map_err(|e| HostError::io(base.display(), e))?;
            // In v2, groups have the controllers that every folder above hands down.
            for above in base.ancestors().take(3).filter(|_| self.version == 2) {
                let control = above.join("cgroup.subtree_control");
                std::fs::write(&control, "+memory +pids").map_err(|e| HostError::io(control.display(), e))?;
            }
        }
        Ok(())
    }

    /// Empty folders are of no use to anybody; the kernel keeps those with groups in them.
    fn remove_bases(&self) {
        for folder in self.bases.iter().flat_map(|base| base.ancestors().take(2)) {
            let _ = std::fs::remove_dir(folder);
        }
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Cgroups for HostCgroups {
    fn make(&self, vm: u64, memory_bytes: u64) -> Result<Vec<PathBuf>, HostError> {
        let _alone = self.changing();
        self.make_bases()?;
        let memory_max = memory_bytes.saturating_add(MEMORY_BESIDE_BYTES).to_string();
        let threads_max = THREADS_MAX.to_string();
        let limits = [("memory.max", &memory_max), ("memory.limit_in_bytes", &memory_max), ("pids.max", &threads_max)];
        let mut folders = Vec::new();
        for base in &self.bases {
            let folder = base.join(vm.to_string());
            std::fs::create_dir_all(&folder).map_err(|e| HostError::io(folder.display(), e))?;
            for (path, limit) in
                limits.iter().map(|(file, limit)| (folder.join(file), limit)).filter(|(p, _)| p.exists())
            {
                std::fs::write(&path, limit).map_err(|e| HostError::io(path.display(), e))?;
            }
            folders.push(folder);
        }
        Ok(folders)
    }

    fn remove(&self, vm: u64) -> Result<(), HostError> {
        let _alone = self.changing();
        for base in &self.bases {
            let folder = base.join(vm.to_string());
            gone(std::fs::remove_dir(&folder)).map_err(|e| HostError::io(folder.display(), e))?;
        }
        self.remove_bases();
        Ok(())
    }

    fn list(&self) -> Vec<u64> {
        let entries = self.bases.iter().filter_map(|b| std::fs::read_dir(b).ok()).flatten().flatten();
        let mut vms: Vec<u64> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        vms.sort_unstable();
        vms.dedup();
        vms
    }

    fn describe(&self) -> String {
        let bases: Vec<_> = self.bases.iter().map(|b| b.display().to_string()).collect();
        format!("v{} {}", self.version, bases.join(" "))
    }
}
