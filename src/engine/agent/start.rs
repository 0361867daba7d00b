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
use std::sync::Arc;

fn io_failed(what: impl std::fmt::Display) -> impl FnOnce(io::Error) -> HypervisorError {
    move |e| HypervisorError::Transient(format!("{what}: {e}"))
}

fn host_failed(error: HostError) -> HypervisorError {
    HypervisorError::Transient(error.0)
}

/// Starts the VM's generation. On an error everything is given back, or listed as left over.
pub(super) async fn start(
    shared: &Shared,
    state: &State,
    vm: &Vm,
) -> Result<(Machine, Arc<dyn Instance>), HypervisorError> {
    let mut guard = Guard::new(&shared.host, &shared.leftovers);
    match acquire(shared, state, vm, &mut guard).await {
        Ok(started) => {
            guard.keep();
            Ok(started)
        }
        Err(error) => {
            guard.undo().await;
            // Without a process the record says nothing that is so.
            shared.records.remove(vm.id.0).map_err(io_failed("the record"))?;
            Err(error)
        }
    }
}

async fn acquire(
    shared: &Shared,
    state: &State,
    vm: &Vm,
    guard: &mut Guard<'_>,
) -> Result<(Machine, Arc<dyn Instance>), HypervisorError> {
    let mut machine = describe(shared, state, vm)?;
    make_run_dir(shared, &machine, guard)?;
    // From here on a next life knows what this start may have left.
    write_record(shared, &machine, None).map_err(io_failed("the record"))?;
    machine.cgroups = make_cgroups(shared, &machine, guard)?;
    make_tap(shared, state, vm, &mut machine, guard).await?;
    make_disk(shared, vm, &machine).await?;
    write_record(shared, &machine, None).map_err(io_failed("the record"))?;
    let spawned = |record: &Record| write_record(shared, &machine, Some(record));
    let instance = shared.hypervisor.launch(&machine, &spawned).await?;
    Ok((machine, instance))
}

fn describe(shared: &Shared, state: &State, vm: &Vm) -> Result<Machine, HypervisorError> {
    let (image, folder) = images::read(&shared.options.images, &vm.spec.image).map_err(HypervisorError::Permanent)?;
    let pool = state.ipam().pool(vm.spec.pool());
    let nic = vm.ip.zip(pool).map(|(address, pool)| Nic {
        tap: None,
        mac: mac(vm.id.0),
        addresses: vec![(address, pool.network().prefix())],
        gateways: pool.gateway().into_iter().collect(),
    });
    Ok(Machine {
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
    })
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

fn make_run_dir(shared: &Shared, machine: &Machine, guard: &mut Guard<'_>) -> Result<(), HypervisorError> {
    let of_vm = shared.records.of(machine.vm);
    let failed = |path: &std::path::Path| io_failed(path.display().to_string());
    std::fs::create_dir_all(&of_vm).map_err(failed(&of_vm))?;
    // The guest's uid passes through on the way to its disk; what else is in here it can't read.
    std::fs::set_permissions(&of_vm, PermissionsExt::from_mode(0o711)).map_err(failed(&of_vm))?;
    // Earlier generations' folders were kept for their console's sake.
    for entry in std::fs::read_dir(&of_vm).map_err(failed(&of_vm))?.flatten() {
        if entry.path().is_dir() {
            std::fs::remove_dir_all(entry.path()).map_err(failed(&entry.path()))?;
        }
    }
    guard.holds(Resource::Folder(machine.run_dir.clone()));
    std::fs::DirBuilder::new().mode(0o700).create(&machine.run_dir).map_err(failed(&machine.run_dir))
}

fn write_record(shared: &Shared, machine: &Machine, process: Option<&Record>) -> io::Result<()> {
    shared.records.write(&MachineRecord { machine: machine.clone(), process: process.cloned() })
}

fn make_cgroups(
    shared: &Shared,
    machine: &Machine,
    guard: &mut Guard<'_>,
) -> Result<Vec<std::path::PathBuf>, HypervisorError> {
    guard.holds(Resource::Cgroup(machine.vm));
    shared.host.cgroups.make(machine.vm, machine.memory_bytes).map_err(host_failed)
}

async fn make_tap(
    shared: &Shared,
    state: &State,
    vm: &Vm,
    machine: &mut Machine,
    guard: &mut Guard<'_>,
) -> Result<(), HypervisorError> {
    let (Some(pool), Some(nic)) = (state.ipam().pool(vm.spec.pool()), &mut machine.nic) else { return Ok(()) };
    guard.holds(Resource::Tap(machine.vm));
    let network = Network { pool: pool.id(), gateway: pool.gateway().map(|g| (g, pool.network().prefix())) };
    let owner = machine.run_as.map(|(uid, _)| uid);
    nic.tap = shared.host.net.make_tap(machine.vm, &network, owner).await.map_err(host_failed)?;
    Ok(())
}

/// The disk stays when a start fails: it has the user's data.
async fn make_disk(shared: &Shared, vm: &Vm, machine: &Machine) -> Result<(), HypervisorError> {
    let (Some(path), Some(bytes)) = (&machine.disk, vm.spec.disk_bytes) else { return Ok(()) };
    shared.host.disks.make(path, bytes, machine.run_as).await.map_err(host_failed)
}

/// Gives back what a machine held whose process is gone. Its console's log and its disk stay.
pub(super) async fn release(shared: &Shared, vm: u64) {
    for resource in [Resource::Cgroup(vm), Resource::Tap(vm)] {
        shared.leftovers.release(&resource, &shared.host).await;
    }
    if let Err(error) = shared.records.remove(vm) {
        tracing::warn!(vm, %error, "the record can't be removed; the next start will find that nothing runs");
    }
}

/// Removes everything of a VM. False: something is left over, and noted.
pub(super) async fn remove(shared: &Shared, vm: u64) -> bool {
    release(shared, vm).await;
    let of_vm = shared.records.of(vm);
    let disk = shared.leftovers.release(&Resource::Disk(of_vm.join("disk.qcow2")), &shared.host).await;
    let folder = shared.leftovers.release(&Resource::Folder(of_vm), &shared.host).await;
    disk && folder
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
