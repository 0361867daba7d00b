//! From a VM to a running machine: what is acquired, in order, each with its way back.

use super::Shared;
use super::images;
use super::record::MachineRecord;
use super::resources::{Guard, Resource};
use crate::engine::host::{HostError, Network};
use crate::engine::hypervisor::{HypervisorError, Instance, Machine, Nic, Record};
use crate::engine::state::{State, Vm};
use sha2::{Digest, Sha256};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How long a start may take, in all: longer than the deadlines of its parts that matter, together.
const START_WITHIN: Duration = Duration::from_secs(180);

/// How often it is looked for processes of a VM that no record names: a fence makes one, and is found with it the next time.
const LOOKS_MAX: u32 = 8;

fn io_failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> HypervisorError {
    move |e| host_failed(what)(HostError(e.to_string()))
}

fn host_failed(what: impl std::fmt::Display) -> impl FnOnce(HostError) -> HypervisorError {
    move |e| HypervisorError::Transient(format!("{what} could not be made: {e}; mend that, then start it"))
}

/// What a start needs to know.
pub(super) struct Plan {
    machine: Machine,
    network: Option<Network>,
    disk_bytes: Option<u64>,
}

/// Starts the planned generation. On an error everything is given back, or listed as left over.
/// None: `unwanted` came first; what was acquired is given back just the same.
pub(super) async fn start(
    shared: &Shared,
    plan: Plan,
    unwanted: impl Future<Output = ()>,
) -> Result<Option<(u64, Arc<dyn Instance>)>, HypervisorError> {
    let (vm, generation) = (plan.machine.vm, plan.machine.generation);
    // There is a record if a start that failed could not find out what it had left.
    let look =
        if shared.records.read(vm).is_ok_and(|record| record.is_none()) { Look::Known } else { Look::Everywhere };
    end_processes(shared, vm, None, look).await.map_err(HypervisorError::Transient)?;
    let mut guard = Guard::new(&shared.host, &shared.leftovers);
    let acquired = tokio::select! {
        acquired = tokio::time::timeout(START_WITHIN, acquire(shared, plan, &mut guard)) => acquired.map(Some),
        () = unwanted => Ok(None),
    };
    let error = match acquired {
        Ok(Some(Ok(instance))) => {
            guard.keep();
            return Ok(Some((generation, instance)));
        }
        Ok(Some(Err(error))) => Some(error),
        Ok(None) => None,
        Err(_elapsed) => Some(HypervisorError::Transient(format!(
            "it had not started within {}s; see what keeps the host busy, then start it",
            START_WITHIN.as_secs()
        ))),
    };
    // The process first: the rest is in its use. A launch that was cut off may have made one that nobody knows.
    let process = shared.records.read(vm).ok().flatten().and_then(|record| record.process);
    let ended = end_processes(shared, vm, process.as_ref(), Look::Everywhere).await;
    guard.undo().await;
    if let Err(why) = &ended {
        tracing::error!(vm, why, "the process of a start that failed can't be ended");
    }
    // What is not listed as left over is found again by the record.
    if ended.is_ok() || !shared.leftovers.processes_of(vm).is_empty() {
        remove_record(shared, vm);
    }
    error.map_or(Ok(None), Err)
}

async fn acquire(shared: &Shared, plan: Plan, guard: &mut Guard<'_>) -> Result<Arc<dyn Instance>, HypervisorError> {
    let Plan { mut machine, network, disk_bytes } = plan;
    make_run_dir(shared, &machine, guard).await?;
    // From here on a next life knows what this start may have left.
    write_record(shared, &machine, None).map_err(io_failed("the record"))?;
    machine.cgroups = make_cgroups(shared, &machine, guard).await?;
    make_tap(shared, network.as_ref(), &mut machine, guard).await?;
    make_disk(shared, disk_bytes, &machine).await?;
    let spawned = |record: &Record| write_record(shared, &machine, Some(record));
    shared.hypervisor.launch(&machine, &spawned).await
}

/// What the VM's generation is to be made of. `tenure`: that of this node's lease from before the state was looked at.
pub(super) fn plan(shared: &Shared, state: &State, vm: &Vm, tenure: u64) -> Result<Plan, HypervisorError> {
    let (image, folder) = images::read(&shared.options.images, &vm.spec.image).map_err(HypervisorError::Permanent)?;
    let pool = state.ipam().pool(vm.spec.pool());
    let nic = vm.ip.zip(pool).map(|(address, pool)| Nic {
        tap: None,
        mac: mac(vm.id.0),
        addresses: vec![(address, pool.network().prefix())],
        gateways: pool.gateway().into_iter().collect(),
    });
    let network = pool.map(|pool| Network {
        pool: pool.id(),
        gateway: pool.gateway().map(|gateway| (gateway, pool.network().prefix())),
    });
    let fence = vm.fenced.then(|| shared.lease.fence(tenure)).transpose();
    let machine = Machine {
        vm: vm.id.0,
        generation: vm.generation,
        uuid: uuid(state.cluster().unwrap_or_default(), vm.id.0),
        cpus: vm.spec.cpus,
        memory_bytes: vm.spec.memory_bytes,
        kernel: folder.join(image.kernel),
        initrd: folder.join(image.initrd),
        cmdline: image.cmdline,
        disk: vm.spec.disk_bytes.map(|_| shared.records.of(vm.id.0).join("disk.qcow2")),
        nic,
        run_dir: shared.records.run_dir(vm.id.0, vm.generation),
        run_as: shared.host.guest_ids(vm.id.0),
        cgroups: Vec::new(),
        fence: fence.map_err(|error| HypervisorError::Permanent(error.to_string()))?,
    };
    Ok(Plan { machine, network, disk_bytes: vm.spec.disk_bytes })
}

/// 52:54:00 is QEMU's part of the addresses that everybody may give; the rest is the VM's number.
fn mac(vm: u64) -> String {
    let [.., a, b, c] = vm.to_be_bytes();
    format!("52:54:00:{a:02x}:{b:02x}:{c:02x}")
}

/// A name-based UUID of version 8 (RFC 9562): the same for one VM of one cluster wherever and whenever it runs.
fn uuid(cluster: &str, vm: u64) -> String {
    let hash: [u8; 32] =
        Sha256::new().chain_update(cluster).chain_update([0]).chain_update(vm.to_be_bytes()).finalize().into();
    let (mut id, _) = hash.split_first_chunk::<16>().map_or(([0; 16], [].as_slice()), |(id, rest)| (*id, rest));
    let [.., version, _, variant, _, _, _, _, _, _, _] = &mut id;
    *version = *version & 0x0f | 0x80;
    *variant = *variant & 0x3f | 0x80;
    let text = images::hex(&id);
    let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default();
    format!("{}-{}-{}-{}-{}", part(0, 8), part(8, 12), part(12, 16), part(16, 20), part(20, 32))
}

async fn make_run_dir(shared: &Shared, machine: &Machine, guard: &mut Guard<'_>) -> Result<(), HypervisorError> {
    let of_vm = shared.records.of(machine.vm);
    // What could not be removed when the VM was taken off this node is in use again.
    shared.leftovers.claim(&Resource::Folder(of_vm.clone())).await;
    let failed = |path: &std::path::Path| io_failed(path.display().to_string());
    std::fs::create_dir_all(&of_vm).map_err(failed(&of_vm))?;
    // The guest's uid passes through on the way to its disk; what else is in here it can't read.
    std::fs::set_permissions(&of_vm, PermissionsExt::from_mode(0o711)).map_err(failed(&of_vm))?;
    // Earlier generations' folders were kept for their console's sake; the last one may say why there is another.
    let (same, earlier): (Vec<_>, Vec<_>) =
        shared.records.run_dirs(machine.vm).into_iter().partition(|folder| *folder == machine.run_dir);
    for folder in same.iter().chain(earlier.iter().rev().skip(1)) {
        std::fs::remove_dir_all(folder).map_err(failed(folder))?;
    }
    guard.holds(Resource::Folder(machine.run_dir.clone())).await;
    std::fs::DirBuilder::new().mode(0o700).create(&machine.run_dir).map_err(failed(&machine.run_dir))
}

fn write_record(shared: &Shared, machine: &Machine, process: Option<&Record>) -> io::Result<()> {
    shared.records.write(&MachineRecord { machine: machine.clone(), process: process.cloned(), exit: None })
}

async fn make_cgroups(
    shared: &Shared,
    machine: &Machine,
    guard: &mut Guard<'_>,
) -> Result<Vec<std::path::PathBuf>, HypervisorError> {
    guard.holds(Resource::Cgroup(machine.vm)).await;
    shared.host.cgroups.make(machine.vm, machine.memory_bytes).map_err(host_failed("its cgroup"))
}

async fn make_tap(
    shared: &Shared,
    network: Option<&Network>,
    machine: &mut Machine,
    guard: &mut Guard<'_>,
) -> Result<(), HypervisorError> {
    let (Some(network), Some(nic)) = (network, &mut machine.nic) else { return Ok(()) };
    guard.holds(Resource::Tap(machine.vm)).await;
    let owner = machine.run_as.map(|(uid, _)| uid);
    nic.tap = shared.host.net.make_tap(machine.vm, network, owner).await.map_err(host_failed("its tap"))?;
    Ok(())
}

/// The disk stays when a start fails: it has the user's data.
async fn make_disk(shared: &Shared, bytes: Option<u64>, machine: &Machine) -> Result<(), HypervisorError> {
    let (Some(path), Some(bytes)) = (&machine.disk, bytes) else { return Ok(()) };
    shared.leftovers.claim(&Resource::Disk(path.clone())).await;
    shared.host.disks.make(path, bytes, machine.run_as).await.map_err(host_failed("its disk"))
}

/// Where processes of a VM are looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// Those that are known: the one that is given, and those left over.
    Known,
    /// And those that no record names.
    Everywhere,
}

/// Ends every process of a VM. The error, a sentence, names one that can't be ended; it is listed as left over, and nothing may be
/// started in its stead.
pub(super) async fn end_processes(shared: &Shared, vm: u64, known: Option<&Record>, look: Look) -> Result<(), String> {
    let mut found = shared.leftovers.processes_of(vm);
    found.extend(known.map(|record| Resource::process(vm, record)));
    let mut stays = end_all(shared, found).await;
    // A fence is in no record: what its machine held is free when it is gone, too.
    let fenced = || shared.records.read(vm).is_ok_and(|record| record.is_some_and(|r| r.machine.fence.is_some()));
    if look == Look::Everywhere || fenced() {
        stays = stays.or(end_unrecorded(shared, &shared.records.of(vm), &[]).await.map_err(|e| e.to_string())?);
    }
    let Some(process) = stays else { return Ok(()) };
    let why = shared.leftovers.list().into_iter().find(|(r, _)| *r == process).map(|(_, why)| why).unwrap_or_default();
    Err(format!("{process} can't be ended: {why}; it is tried again, and the vm can't be started before it is gone"))
}

/// Ends these processes; gives one that stays.
async fn end_all(shared: &Shared, mut processes: Vec<Resource>) -> Option<Resource> {
    processes.sort();
    processes.dedup();
    let mut stays = None;
    for process in processes {
        if !shared.leftovers.release(&process, &shared.host).await {
            stays = Some(process);
        }
    }
    stays
}

/// Ends the machines below a folder, fences among them, that are not known. It looks until it finds nothing more: a fence may have been
/// about to start its machine. Gives one that stays.
pub(super) async fn end_unrecorded(
    shared: &Shared,
    below: &Path,
    known: &[PathBuf],
) -> Result<Option<Resource>, HypervisorError> {
    for _ in 0..LOOKS_MAX {
        let found = shared.hypervisor.orphans(below, known).await?;
        if found.is_empty() {
            return Ok(None);
        }
        let of_vm = |run_dir: &Path| run_dir.parent().and_then(|p| p.file_name()?.to_str()?.parse().ok());
        let processes = found.iter().map(|(record, run_dir)| {
            tracing::warn!(pid = record.pid, run_dir = %run_dir.display(), "a process that no record names is ended");
            // The folder is DATA/vms/ID/GENERATION.
            Resource::process(of_vm(run_dir).unwrap_or(0), record)
        });
        if let Some(stays) = end_all(shared, processes.collect()).await {
            return Ok(Some(stays));
        }
    }
    Err(HypervisorError::Transient(format!(
        "below {} more processes are started than can be ended: see what starts them",
        below.display()
    )))
}

pub(super) fn remove_record(shared: &Shared, vm: u64) {
    if let Err(error) = shared.records.remove(vm) {
        tracing::warn!(vm, %error, "the record can't be removed; the next start will find that nothing runs");
    }
}

/// Gives back what a machine held whose process is gone, and forgets it. Its console's log and its disk stay. False: something is
/// left over.
pub(super) async fn release(shared: &Shared, vm: u64) -> bool {
    let released = give_back(shared, vm).await;
    remove_record(shared, vm);
    released
}

/// As [`release`], but the record stays.
pub(super) async fn give_back(shared: &Shared, vm: u64) -> bool {
    let cgroup = shared.leftovers.release(&Resource::Cgroup(vm), &shared.host).await;
    let tap = shared.leftovers.release(&Resource::Tap(vm), &shared.host).await;
    cgroup && tap
}

/// Removes everything of a VM.
///
/// # Errors
/// Something is left over, and listed: a sentence.
pub(super) async fn remove(shared: &Shared, vm: u64) -> Result<(), String> {
    // Its disk and its address are its own as long as it runs.
    end_processes(shared, vm, None, Look::Known).await?;
    let released = release(shared, vm).await;
    let of_vm = shared.records.of(vm);
    let disk = shared.leftovers.release(&Resource::Disk(of_vm.join("disk.qcow2")), &shared.host).await;
    let folder = shared.leftovers.release(&Resource::Folder(of_vm), &shared.host).await;
    if released && disk && folder {
        return Ok(());
    }
    Err("not all of it could be removed; it is tried again, and the status of its node lists what is left".to_owned())
}

#[cfg(test)]
mod tests {
    #[test]
    fn names_of_machines_are_lasting() {
        assert_eq!(super::mac(0x01_02_03), "52:54:00:01:02:03");
        let id = super::uuid("blixard", 7);
        assert_eq!(id, super::uuid("blixard", 7));
        assert_ne!(id, super::uuid("blixard", 8));
        assert_eq!((id.len(), &id[14..15]), (36, "8"), "{id}");
        assert!(["8", "9", "a", "b"].contains(&&id[19..20]), "{id}");
    }
}
