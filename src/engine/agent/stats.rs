//! What the machines of this host have used, and how busy it is: for `stats` in the tree, made when it is read.

use super::Shared;
use crate::engine::host::figures::{self, DeviceFigures};
use crate::engine::hypervisor::{DiskFigures, HypervisorError, MachineFigures};
use crate::engine::state::VmId;
use crate::text::{Code, Refusal, duration, size};
use std::time::Duration;

/// How long a hypervisor may take to say it: whoever reads waits, and nobody else.
const SAYS_WITHIN: Duration = Duration::from_secs(5);

type Lines = Vec<(&'static str, String)>;

fn seconds(time: Duration) -> String {
    format!("{}.{:03}s", time.as_secs(), time.subsec_millis())
}

fn fault(error: impl std::fmt::Display) -> Refusal {
    Refusal::fault(error.to_string())
}

/// Of a VM: that it does not run here, or its figures.
pub(super) async fn of_vm(shared: &Shared, vm: VmId) -> Result<Lines, Refusal> {
    let none = || vec![("running", "no".to_owned())];
    let Some(instance) = shared.instances().get(&vm).cloned() else { return Ok(none()) };
    let asked = tokio::time::timeout(SAYS_WITHIN, instance.figures()).await;
    let late = |_| Refusal::timed_out(format!("the hypervisor of vm {vm} says nothing"));
    let MachineFigures { process, disks } = match asked.map_err(late)? {
        Err(HypervisorError::Gone) => return Ok(none()),
        figures => figures.map_err(fault)?,
    };
    let mut lines = vec![("running", "yes".to_owned()), ("pid", instance.record().pid.to_string())];
    if let Some(process) = process {
        lines.push(("cpu-time", seconds(process.cpu)));
        lines.push(("memory-resident", size::print(process.resident_bytes)));
    }
    if let Some(DiskFigures { reads, read_bytes, writes, written_bytes }) = disks {
        lines.push(("disk-reads", reads.to_string()));
        lines.push(("disk-read", size::print(read_bytes)));
        lines.push(("disk-writes", writes.to_string()));
        lines.push(("disk-written", size::print(written_bytes)));
    }
    if let Some(DeviceFigures { received_bytes, received_packets, sent_bytes, sent_packets }) = network(shared, vm)? {
        // What the host receives, the guest has sent.
        lines.push(("net-received", size::print(sent_bytes)));
        lines.push(("net-received-packets", sent_packets.to_string()));
        lines.push(("net-sent", size::print(received_bytes)));
        lines.push(("net-sent-packets", received_packets.to_string()));
    }
    Ok(lines)
}

/// Of its card, if it has a tap: QEMU's user network counts nothing.
fn network(shared: &Shared, vm: VmId) -> Result<Option<DeviceFigures>, Refusal> {
    let record = shared.records.read(vm.0).map_err(fault)?;
    match record.and_then(|record| record.machine.nic?.tap) {
        Some(tap) => figures::of_device(&tap).map_err(fault),
        None => Ok(None),
    }
}

/// Of this host.
pub(super) fn of_host(shared: &Shared) -> Result<Lines, Refusal> {
    let host = figures::of_host().map_err(fault)?;
    let data = &shared.options.data;
    let disk = rustix::fs::statvfs(data);
    let disk = disk.map_err(|error| Refusal::new(Code::Fault, format!("{}: {error}", data.display())))?;
    let bytes = |blocks: u64| size::print(blocks.saturating_mul(disk.f_frsize));
    let uptime_ms = u64::try_from(host.uptime.as_millis()).unwrap_or(u64::MAX);
    Ok(vec![
        ("uptime", duration::print(uptime_ms)),
        ("cpus", super::host_cpus().to_string()),
        ("load", host.load),
        ("memory", size::print(host.memory_bytes)),
        ("memory-available", size::print(host.available_bytes)),
        ("disk", bytes(disk.f_blocks)),
        ("disk-free", bytes(disk.f_bavail)),
        ("machines", shared.instances().len().to_string()),
    ])
}
