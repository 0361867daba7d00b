//! What a machine holds on its host, each with the way to give it back; and the guard that does so when a start fails.
//!
//! A resource is data, so that what could not be given back can be written down, shown, and tried again, also by the
//! next life of this process. Giving back is idempotent.

use crate::durable;
use crate::engine::host::{HostError, HostParts};
use crate::engine::hypervisor::Record;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How long the host may take to take a resource back: longer than any of its own deadlines.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(60);

/// Something that a machine holds.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Resource {
    /// A folder with all that is in it.
    Folder(PathBuf),
    /// The VM's cgroups.
    Cgroup(u64),
    /// The VM's tap.
    Tap(u64),
    /// A disk.
    Disk(PathBuf),
    /// A pool's bridge.
    Bridge(u64),
    /// A process of the VM. While there is one, no other may be started.
    Process {
        /// The VM.
        vm: u64,
        /// The process's number.
        pid: u32,
        /// When it started.
        start_ticks: u64,
        /// In which life of the host.
        boot_id: String,
    },
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Folder(path) => write!(f, "folder {}", path.display()),
            Resource::Cgroup(vm) => write!(f, "cgroup of vm {vm}"),
            Resource::Tap(vm) => write!(f, "tap of vm {vm}"),
            Resource::Disk(path) => write!(f, "disk {}", path.display()),
            Resource::Bridge(pool) => write!(f, "bridge of pool number {pool}"),
            Resource::Process { vm, pid, .. } => write!(f, "process {pid} of vm {vm}"),
        }
    }
}

impl Resource {
    /// A machine's process.
    pub(super) fn process(vm: u64, record: &Record) -> Resource {
        let Record { pid, start_ticks, boot_id } = record.clone();
        Resource::Process { vm, pid, start_ticks, boot_id }
    }

    /// Gives it back.
    ///
    /// # Errors
    /// The host refuses, or takes too long.
    pub async fn release(&self, host: &HostParts) -> Result<(), HostError> {
        let given_back = tokio::time::timeout(TAKEN_BACK_WITHIN, self.give_back(host)).await;
        given_back.unwrap_or_else(|_| Err(HostError(format!("not done within {}s", TAKEN_BACK_WITHIN.as_secs()))))
    }

    async fn give_back(&self, host: &HostParts) -> Result<(), HostError> {
        match self {
            Resource::Folder(path) => match std::fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HostError::io(path.display(), error)),
                _ => Ok(()),
            },
            Resource::Cgroup(vm) => host.cgroups.remove(*vm),
            Resource::Tap(vm) => host.net.remove_tap(*vm).await,
            Resource::Disk(path) => host.disks.remove(path).await,
            Resource::Bridge(pool) => host.net.remove_bridge(*pool).await,
            Resource::Process { pid, start_ticks, boot_id, .. } => {
                host.processes.end(*pid, *start_ticks, boot_id).await
            }
        }
    }
}

/// What could not be given back: written down in `DATA/leftovers`, tried again from time to time.
#[derive(Debug)]
pub struct Leftovers {
    file: PathBuf,
    list: Mutex<Vec<(Resource, String)>>,
    /// Whoever has it may give back what is listed.
    giving_back: Semaphore,
}

impl Leftovers {
    /// Those that the file lists. One that is no list is put by: whoever starts looks at the host itself as well.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn open(data: &Path) -> io::Result<Leftovers> {
        let file = data.join("leftovers");
        let list = match std::fs::read(&file) {
            Ok(text) => match serde_json::from_slice(&text) {
                Ok(list) => list,
                Err(error) => {
                    tracing::error!(file = %file.display(), %error, "the list of what is left over is damaged, and is put by");
                    std::fs::rename(&file, file.with_extension("damaged"))?;
                    Vec::new()
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Leftovers { file, list: Mutex::new(list), giving_back: Semaphore::new(1) })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(Resource, String)>)) {
        let mut list = self.lock();
        change(&mut list);
        let written = serde_json::to_vec(&*list)
            .map_err(io::Error::from)
            .and_then(|text| durable::replace(&self.file, 0o600, &text));
        if let Err(error) = written {
            tracing::error!(file = %self.file.display(), %error, "what is left over can't be written down");
        }
    }

    fn note(&self, resource: &Resource, error: &HostError) {
        tracing::warn!(%resource, %error, "could not be given back; it will be tried again");
        self.change(|list| {
            list.retain(|(r, _)| r != resource);
            list.push((resource.clone(), error.to_string()));
        });
    }

    /// Gives a resource back; one that can't be is noted. True: it is gone.
    pub async fn release(&self, resource: &Resource, host: &HostParts) -> bool {
        // Of two who try at once, the one that fails late would note what the other has given back.
        let _alone = if self.has(resource) { Some(self.giving_back.acquire().await) } else { None };
        self.release_alone(resource, host).await
    }

    async fn release_alone(&self, resource: &Resource, host: &HostParts) -> bool {
        match resource.release(host).await {
            Ok(()) => {
                self.strike(resource);
                true
            }
            Err(error) => {
                self.note(resource, &error);
                false
            }
        }
    }

    fn has(&self, resource: &Resource) -> bool {
        self.lock().iter().any(|(r, _)| r == resource)
    }

    fn strike(&self, resource: &Resource) {
        if self.has(resource) {
            self.change(|list| list.retain(|(r, _)| r != resource));
        }
    }

    /// Tries all again.
    pub async fn retry(&self, host: &HostParts) {
        for (resource, _) in self.list() {
            let _alone = self.giving_back.acquire().await;
            // It may have found a new use since the list was read.
            if self.has(&resource) {
                self.release_alone(&resource, host).await;
            }
        }
    }

    /// What is listed is to be used again: it is not left over any more, and nobody is about to give it back.
    pub(super) async fn claim(&self, resource: &Resource) {
        if self.has(resource) {
            let _alone = self.giving_back.acquire().await;
            self.strike(resource);
        }
    }

    /// The processes of a VM that could not be ended.
    pub(super) fn processes_of(&self, id: u64) -> Vec<Resource> {
        let of_vm = |r: &&Resource| matches!(r, Resource::Process { vm, .. } if *vm == id);
        self.lock().iter().map(|(r, _)| r).filter(of_vm).cloned().collect()
    }

    /// All of them, with why.
    pub fn list(&self) -> Vec<(Resource, String)> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(Resource, String)>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds what a start has acquired so far. [`Guard::keep`] ends its duty; else [`Guard::undo`] gives everything back, the last
/// first. A start that is cut off without either is cleared up by whoever finds its record.
pub(super) struct Guard<'h> {
    host: &'h HostParts,
    leftovers: &'h Leftovers,
    held: Vec<Resource>,
}

impl<'h> Guard<'h> {
    pub(super) fn new(host: &'h HostParts, leftovers: &'h Leftovers) -> Guard<'h> {
        Guard { host, leftovers, held: Vec::new() }
    }

    /// From here on this resource may be there: said before it is acquired, since an acquisition may fail half-way.
    pub(super) async fn holds(&mut self, resource: Resource) {
        self.leftovers.claim(&resource).await;
        self.held.push(resource);
    }

    pub(super) fn keep(mut self) {
        self.held.clear();
    }

    pub(super) async fn undo(mut self) {
        while let Some(resource) = self.held.pop() {
            self.leftovers.release(&resource, self.host).await;
        }
    }
}
