//! A VM as text: `status`, `spec`, `json`, a line of `list`.

use super::table::Asked;
use crate::engine::state::{State, Vm, VmId};
use crate::text::{Refusal, columns::Table, duration, kv::KeyValues, size, time::rfc3339};
use serde_json::{Value, json};

/// The VM that is asked for.
pub(super) fn vm<'a>(asked: &'a Asked<'_>) -> Result<&'a Vm, Refusal> {
    asked.state.vm(VmId(asked.object)).map(AsRef::as_ref).ok_or_else(super::tree::gone)
}

fn node_name<'a>(state: &'a State, vm: &Vm) -> Option<&'a str> {
    vm.node.and_then(|id| state.node(id)).map(|n| n.name.as_str())
}

pub(super) fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let vm = vm(asked)?;
    let guest = if vm.guest_ready { "ready" } else { "silent" };
    let text = KeyValues::new()
        .line("id", vm.id)
        .maybe("name", vm.name.as_deref())
        .line("state", vm.actual)
        .line("desired", vm.desired)
        .maybe("node", node_name(asked.state, vm))
        .maybe("moving-to", vm.reserved.and_then(|id| asked.state.node(id)).map(|node| node.name.as_str()))
        .maybe("why", vm.why.as_deref())
        .maybe("pid", vm.pid)
        .maybe("ip", vm.ip)
        .maybe("started", vm.started.map(|at| rfc3339(at.millis())))
        .maybe("guest", vm.active().then_some(guest))
        .line("generation", vm.generation)
        .line("version", vm.version)
        .line("image", &vm.spec.image)
        .line("cpus", vm.spec.cpus)
        .line("memory", size::print(vm.spec.memory_bytes))
        .maybe("disk", vm.spec.disk_bytes.map(size::print))
        .line("pool", vm.spec.pool())
        .line("restart", vm.spec.restart)
        .line("grace", duration::print(vm.spec.grace_ms))
        .line("ha", vm.spec.ha)
        .line("owner", &vm.owner)
        .line("created", rfc3339(vm.created.millis()))
        .line("changed", rfc3339(vm.changed.millis()))
        .maybe("failures", Some(vm.failures).filter(|n| *n > 0))
        .maybe("retry", vm.retry_at_ms.map(rfc3339))
        .maybe("error", vm.error.as_deref());
    Ok(text.print())
}

pub(super) fn state(asked: &Asked<'_>) -> Result<String, Refusal> {
    Ok(format!("{}\n", vm(asked)?.actual))
}

/// It changes with the nodes, and not with the VM.
pub(super) fn why(asked: &Asked<'_>) -> Result<String, Refusal> {
    Ok(asked.state.explain(vm(asked)?))
}

pub(super) fn spec(asked: &Asked<'_>) -> Result<String, Refusal> {
    Ok(format!("{}\n", vm(asked)?.spec))
}

fn json_of(state: &State, vm: &Vm) -> Value {
    let constraints = &vm.spec.constraints;
    json!({
        "id": vm.id.0,
        "name": vm.name,
        "state": vm.actual.to_string(),
        "desired": vm.desired.to_string(),
        "node": node_name(state, vm),
        "pid": vm.pid,
        "ip": vm.ip,
        "started": vm.started.map(|at| rfc3339(at.millis())),
        "guest_ready": vm.guest_ready,
        "generation": vm.generation,
        "version": vm.version,
        "spec": {
            "image": vm.spec.image,
            "cpus": vm.spec.cpus,
            "memory": vm.spec.memory_bytes,
            "disk": vm.spec.disk_bytes,
            "pool": vm.spec.pool(),
            "ip": vm.spec.ip,
            "restart": vm.spec.restart.to_string(),
            "grace_ms": vm.spec.grace_ms,
            "ha": vm.spec.ha.to_string(),
            "node": constraints.node,
            "arch": constraints.arch,
            "labels": constraints.labels,
            "affinity": constraints.affinity,
            "anti_affinity": constraints.anti_affinity,
            "place": vm.spec.place.to_string(),
            "priority": vm.spec.priority,
        },
        "owner": vm.owner,
        "created": rfc3339(vm.created.millis()),
        "changed": rfc3339(vm.changed.millis()),
        "failures": vm.failures,
        "retry": vm.retry_at_ms.map(rfc3339),
        "error": vm.error.as_deref(),
    })
}

pub(super) fn json(asked: &Asked<'_>) -> Result<String, Refusal> {
    Ok(format!("{}\n", json_of(asked.state, vm(asked)?)))
}

/// All VMs, an object a line.
pub(super) fn all_json(asked: &Asked<'_>) -> Result<String, Refusal> {
    let objects: Vec<String> = asked.state.vms().map(|vm| json_of(asked.state, vm).to_string()).collect();
    Ok(format!("[{}]\n", objects.join(",\n")))
}

pub(super) fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["id", "name", "state", "node", "ip", "created"]);
    for vm in asked.state.vms() {
        table.row([
            vm.id.to_string(),
            vm.name.clone().unwrap_or_default(),
            vm.actual.to_string(),
            node_name(asked.state, vm).unwrap_or_default().to_owned(),
            vm.ip.map(|ip| ip.to_string()).unwrap_or_default(),
            rfc3339(vm.created.millis()),
        ]);
    }
    Ok(table.print())
}
