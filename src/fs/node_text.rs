//! A node as text: `spec` and `json`.

use super::nodes::{node, state_of};
use super::table::Asked;
use crate::text::{Refusal, attrs::quote, percent, time::rfc3339};
use serde_json::json;

/// One line of attributes.
pub(super) fn spec(asked: &Asked<'_>) -> Result<String, Refusal> {
    let node = node(asked)?;
    let percent = |percent: u32| percent::print(percent);
    let mut words = vec![format!("labels={}", quote(&node.labels.join(",")))];
    words.push(format!("memory-ratio={}", percent(node.ratios.memory_percent)));
    words.extend(node.ratios.cpus_percent.map(|cpus| format!("cpu-ratio={}", percent(cpus))));
    words.push(format!("disk-ratio={}", percent(node.ratios.disk_percent)));
    Ok(format!("{}\n", words.join(" ")))
}

/// Sizes in bytes, ratios in hundredths.
pub(super) fn json(asked: &Asked<'_>) -> Result<String, Refusal> {
    let node = node(asked)?;
    let promised = asked.state.promised(node.id);
    let object = json!({
        "id": node.id.0,
        "name": node.name,
        "state": state_of(node),
        "version": node.version,
        "role": node.role.to_string(),
        "raft_id": node.raft.0,
        "address": node.address,
        "release": node.release,
        "entry_format": node.entry_format,
        "lease_ms": node.lease.length_ms,
        "schedule": node.schedule.to_string(),
        "vms": asked.state.count_on(node.id),
        "moving": node.moving.map(|vm| vm.0),
        "hypervisor": node.hypervisor,
        "arch": node.arch,
        "memory": node.memory_bytes,
        "memory_promised": promised.bytes,
        "cpus": node.cpus,
        "vcpus_promised": promised.cpus,
        "vcpus_max": node.vcpus_max,
        "disk": node.disk_bytes,
        "disk_promised": promised.disk_bytes,
        "spec": {
            "labels": node.labels,
            "memory_ratio": node.ratios.memory_percent,
            "cpu_ratio": node.ratios.cpus_percent,
            "disk_ratio": node.ratios.disk_percent,
        },
        "changed": rfc3339(node.changed.millis()),
    });
    Ok(format!("{object}\n"))
}
