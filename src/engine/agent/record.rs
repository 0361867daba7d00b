//! What this host knows of its machines beside the log: one record a VM, written before its process is made.
//!
//! `DATA/vms/ID/record` is replaced as a whole. It need not survive a power cut, which no process survives either, so it is not
//! synced; it does survive the daemon.

use crate::engine::hypervisor::{Exit, Machine, Record};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The machine that was started last, and its process once there was one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MachineRecord {
    pub(super) machine: Machine,
    pub(super) process: Option<Record>,
    /// How it ended, written down before the process goes, and gone with the record when the log knows it.
    pub(super) exit: Option<Exit>,
}

/// The folder of all machines.
#[derive(Debug, Clone)]
pub(super) struct Records(PathBuf);

/// Is it that a record says nothing, rather than that it can't be read now?
pub(super) fn is_damaged(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof)
}

impl Records {
    /// Below the data folder; made if need be. Guests' processes pass through it on the way to their own folders.
    pub(super) fn open(data: &Path) -> io::Result<Records> {
        let vms = data.join("vms");
        std::fs::create_dir_all(&vms)?;
        Ok(Records(vms))
    }

    /// `DATA/vms`.
    pub(super) fn folder(&self) -> &Path {
        &self.0
    }

    /// `DATA/vms/ID`.
    pub(super) fn of(&self, vm: u64) -> PathBuf {
        self.0.join(vm.to_string())
    }

    /// `DATA/vms/ID/GENERATION`.
    pub(super) fn run_dir(&self, vm: u64, generation: u64) -> PathBuf {
        self.of(vm).join(generation.to_string())
    }

    /// The VMs that have a folder here.
    pub(super) fn vms(&self) -> io::Result<Vec<u64>> {
        let mut vms = Vec::new();
        for entry in std::fs::read_dir(&self.0)? {
            vms.extend(entry?.file_name().to_str().and_then(|n| n.parse::<u64>().ok()));
        }
        vms.sort_unstable();
        Ok(vms)
    }

    /// The record of a VM; None if it has none.
    pub(super) fn read(&self, vm: u64) -> io::Result<Option<MachineRecord>> {
        match std::fs::read(self.of(vm).join("record")) {
            Ok(text) => serde_json::from_slice(&text).map(Some).map_err(io::Error::from),
            // Where no folder is, no record is.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record.
    pub(super) fn write(&self, record: &MachineRecord) -> io::Result<()> {
        let folder = self.of(record.machine.vm);
        let new = folder.join("record.new");
        std::fs::write(&new, serde_json::to_vec(record)?)?;
        std::fs::rename(new, folder.join("record"))
    }

    /// Removes the record: there is no process any more.
    pub(super) fn remove(&self, vm: u64) -> io::Result<()> {
        match std::fs::remove_file(self.of(vm).join("record")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The run folders of a VM, oldest first.
    pub(super) fn run_dirs(&self, vm: u64) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.of(vm)).into_iter().flatten().flatten();
        let mut generations: Vec<u64> = entries.filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        generations.sort_unstable();
        generations.into_iter().map(|generation| self.run_dir(vm, generation)).collect()
    }
}
