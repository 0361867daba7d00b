//! What a machine holds on its host, each with the way to give it back; and the guard that does so when a start fails.
//!
//! A resource is data, so that what could not be given back can be written down, shown, and tried again, also by the
//! next life of this process. Giving back is idempotent.

use crate::engine::host::process::Process;
use crate::engine::host::{HostError, HostParts};
use crate::engine::hypervisor::Record;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(10);

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
    /// A process.
    Process {
        /// Its number.
        pid: u32,
        /// When it started.
        start_ticks: u64,
    },
}

impl From<&Record> for Resource {
    fn from(record: &Record) -> Resource {
        Resource::Process { pid: record.pid, start_ticks: record.start_ticks }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Resource::Folder(path) => write!(f, "folder {}", path.display()),
            Resource::Cgroup(vm) => write!(f, "cgroup of vm {vm}"),
            Resource::Tap(vm) => write!(f, "tap of vm {vm}"),
            Resource::Disk(path) => write!(f, "disk {}", path.display()),
            Resource::Process { pid, .. } => write!(f, "process {pid}"),
        }
    }
}

impl Resource {
    /// Gives it back.
    ///
    /// # Errors
    /// The host refuses.
    pub async fn release(&self, host: &HostParts) -> Result<(), HostError> {
        match self {
            Resource::Folder(path) => match std::fs::remove_dir_all(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(HostError::io(path.display(), error)),
                _ => Ok(()),
            },
            Resource::Cgroup(vm) => host.cgroups.remove(*vm),
            Resource::Tap(vm) => host.net.remove_tap(*vm).await,
            Resource::Disk(path) => host.disks.remove(path).await,
            Resource::Process { pid, start_ticks } => {
                let failed = |e: io::Error| HostError::io(format!("process {pid}"), e);
                let Some(process) = Process::open(*pid, *start_ticks).map_err(failed)? else { return Ok(()) };
                process.kill().map_err(failed)?;
                let gone = tokio::time::timeout(GONE_WITHIN, process.ended()).await;
                gone.map_err(|_| {
                    HostError(format!("process {pid} was killed and is still there after {}s", GONE_WITHIN.as_secs()))
                })
            }
        }
    }
}

/// What could not be given back: written down in `DATA/leftovers`, tried again from time to time.
#[derive(Debug)]
pub struct Leftovers {
    file: PathBuf,
    list: Mutex<Vec<(Resource, String)>>,
}

impl Leftovers {
    /// Those that the file lists.
    ///
    /// # Errors
    /// The file can't be read or is no list.
    pub fn open(data: &Path) -> io::Result<Leftovers> {
        let file = data.join("leftovers");
        let list = match std::fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        Ok(Leftovers { file, list: Mutex::new(list) })
    }

    fn change(&self, change: impl FnOnce(&mut Vec<(Resource, String)>)) {
        let mut list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut list);
        let new = self.file.with_extension("new");
        let written = serde_json::to_vec(&*list)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&new, text))
            .and_then(|()| std::fs::rename(&new, &self.file));
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
        match resource.release(host).await {
            Ok(()) => {
                let noted = self.list().iter().any(|(r, _)| r == resource);
                if noted {
                    self.change(|list| list.retain(|(r, _)| r != resource));
                }
                true
            }
            Err(error) => {
                self.note(resource, &error);
                false
            }
        }
    }

    /// Tries all again.
    pub async fn retry(&self, host: &HostParts) {
        for (resource, _) in self.list() {
            self.release(&resource, host).await;
        }
    }

    /// All of them, with why.
    pub fn list(&self) -> Vec<(Resource, String)> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner).clone()
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
    pub(super) fn holds(&mut self, resource: Resource) {
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
