//! A command as text, for the audit trail: as its user might have written it, the object first.

use super::{Command, Conditions, ConstraintChanges, Constraints, NodeChanges, NodeVerb, VmId, VmReport, VmVerb};
use crate::text::{attrs::quote, duration, percent, size, time::rfc3339};
use std::fmt;

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::Init { cluster, node, admin, admin_uid } => {
                write!(f, "cluster init {} node={node} admin={} uid={admin_uid}", quote(cluster), quote(admin))
            }
            Command::NodeUp { hypervisor, memory_bytes, cpus, vcpus_max, arch, disk_bytes, .. } => {
                write!(f, "node up hypervisor={hypervisor} memory={} cpus={cpus}", size::print(*memory_bytes))?;
                write!(f, " arch={} disk={}", quote(arch), size::print(*disk_bytes))?;
                attribute(f, "vcpus-max", vcpus_max.map(|most| most.to_string()).as_deref())
            }
            Command::NodeDown => f.write_str("node down"),
            Command::VmNew { name, spec, key } => {
                f.write_str("vms/new")?;
                attribute(f, "name", name.as_deref())?;
                write!(f, " {spec}")?;
                attribute(f, "id", key.as_deref())
            }
            Command::Vm { vm, verb, conditions } => write!(f, "vms/{vm} {verb}{conditions}"),
            Command::VmReport { vm, generation, report } => {
                write!(f, "vms/{vm} report generation={generation} {report}")
            }
            Command::ImageRegister { name, size_bytes, sha256 } => {
                write!(f, "images/{name} register size={} sha256={sha256}", size::print(*size_bytes))
            }
            Command::ImageForget { name } => write!(f, "images/{} delete", quote(name)),
            Command::PoolNew { name, network, gateway, reserved } => {
                write!(f, "ipam/new name={} network={network}", quote(name))?;
                if let Some(gateway) = gateway {
                    write!(f, " gateway={gateway}")?;
                }
                if !reserved.is_empty() {
                    let ranges: Vec<_> = reserved.iter().map(|(from, to)| format!("{from}-{to}")).collect();
                    write!(f, " reserved={}", ranges.join(","))?;
                }
                Ok(())
            }
            Command::PoolDelete { name } => write!(f, "ipam/{} delete", quote(name)),
            Command::UserSet { name, role, uid } => {
                write!(f, "users/{} set role={role}", quote(name))?;
                uid.map_or(Ok(()), |uid| write!(f, " uid={uid}"))
            }
            Command::UserNew { name, role, uid } => {
                write!(f, "users/new name={} role={role}", quote(name))?;
                uid.map_or(Ok(()), |uid| write!(f, " uid={uid}"))
            }
            Command::UserNewWithin { name, role, uid, within } => {
                write!(f, "users/new name={} role={role}", quote(name))?;
                attribute(f, "uid", uid.map(|uid| uid.to_string()).as_deref())?;
                write!(f, " within={}", paths(within))
            }
            Command::UserSetWithin { name, role, uid, within } => {
                write!(f, "users/{} set role={role}", quote(name))?;
                attribute(f, "uid", uid.map(|uid| uid.to_string()).as_deref())?;
                write!(f, " within={}", paths(within))
            }
            Command::UserDelete { name } => write!(f, "users/{} delete", quote(name)),
            Command::CertificateRevoke { name, serial } => {
                write!(f, "users/{} revoke cert={}", quote(name), quote(serial))
            }
            Command::InviteNew { role, expires_ms, .. } => {
                write!(f, "nodes/new role={role} until={}", rfc3339(*expires_ms))
            }
            Command::NodeJoin { name, address, entry_format, release, .. } => {
                let (name, address, release) = (quote(name), quote(address), quote(release));
                write!(f, "node join name={name} address={address} format={entry_format} release={release}")
            }
            Command::NodeRaftNew { node, was } => write!(f, "node {node} new-store raft={}", was.0),
            Command::NodeReach { address, entry_format, release } => {
                let (address, release) = (quote(address), quote(release));
                write!(f, "node reached-at address={address} format={entry_format} release={release}")
            }
            Command::Node { node, verb, conditions } => write!(f, "node {node} {verb}{conditions}"),
            Command::LeaseRenew { counter, length_ms, claim } => {
                let length = duration::print(*length_ms);
                write!(
                    f,
                    "lease renew counter={counter} length={length} seq={} digest={:016x}",
                    claim.seq, claim.digest
                )
            }
            Command::LeaseExpire { node, counter } => write!(f, "node {node} lease expire counter={counter}"),
            Command::NodeSet { node, changes, conditions } => write!(f, "node {node} set{changes}{conditions}"),
        }
    }
}

/// VMs as `within=` has them.
fn paths(vms: &[VmId]) -> String {
    vms.iter().map(|id| format!("vms/{id}")).collect::<Vec<_>>().join(",")
}

fn attribute(f: &mut fmt::Formatter<'_>, key: &str, value: Option<&str>) -> fmt::Result {
    value.map_or(Ok(()), |value| write!(f, " {key}={}", quote(value)))
}

/// As `spec` shows it: one line, every attribute, in the form that `new` takes.
impl fmt::Display for super::VmSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "image={} cpus={} memory={}", quote(&self.image), self.cpus, size::print(self.memory_bytes))?;
        if let Some(disk_bytes) = self.disk_bytes {
            write!(f, " disk={}", size::print(disk_bytes))?;
        }
        attribute(f, "pool", self.pool.as_deref())?;
        if let Some(ip) = self.ip {
            write!(f, " ip={ip}")?;
        }
        write!(f, " restart={} grace={} ha={}", self.restart, duration::print(self.grace_ms), self.ha)?;
        let Constraints { node, arch, labels, affinity, anti_affinity } = &self.constraints;
        attribute(f, "node", node.as_deref())?;
        attribute(f, "arch", arch.as_deref())?;
        attribute(f, "labels", Some(labels.join(",")).filter(|labels| !labels.is_empty()).as_deref())?;
        attribute(f, "affinity", affinity.as_deref())?;
        attribute(f, "anti-affinity", anti_affinity.as_deref())?;
        write!(f, " place={} priority={}", self.place, self.priority)
    }
}

impl fmt::Display for VmVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmVerb::Start => f.write_str("start"),
            VmVerb::Stop { grace_ms: None } => f.write_str("stop"),
            VmVerb::Stop { grace_ms: Some(ms) } => write!(f, "stop grace={}", duration::print(*ms)),
            VmVerb::Kill => f.write_str("kill"),
            VmVerb::Restart => f.write_str("restart"),
            VmVerb::Pause => f.write_str("pause"),
            VmVerb::Resume => f.write_str("resume"),
            VmVerb::Delete => f.write_str("delete"),
            VmVerb::Set { name, changes } => {
                f.write_str("set")?;
                attribute(f, "name", name.as_deref())?;
                attribute(f, "image", changes.image.as_deref())?;
                attribute(f, "cpus", changes.cpus.map(|c| c.to_string()).as_deref())?;
                attribute(f, "memory", changes.memory_bytes.map(size::print).as_deref())?;
                attribute(f, "restart", changes.restart.map(|r| r.to_string()).as_deref())?;
                attribute(f, "grace", changes.grace_ms.map(duration::print).as_deref())?;
                attribute(f, "ha", changes.ha.map(|ha| ha.to_string()).as_deref())?;
                let ConstraintChanges { node, arch, labels, affinity, anti_affinity } = &changes.constraints;
                attribute(f, "node", node.as_deref())?;
                attribute(f, "arch", arch.as_deref())?;
                attribute(f, "labels", labels.as_ref().map(|labels| labels.join(",")).as_deref())?;
                attribute(f, "affinity", affinity.as_deref())?;
                attribute(f, "anti-affinity", anti_affinity.as_deref())?;
                attribute(f, "place", changes.place.map(|place| place.to_string()).as_deref())?;
                attribute(f, "priority", changes.priority.map(|priority| priority.to_string()).as_deref())
            }
        }
    }
}

impl fmt::Display for NodeVerb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NodeVerb::Promote => "promote",
            NodeVerb::Demote => "demote",
            NodeVerb::Remove => "remove",
            NodeVerb::Cordon => "cordon",
            NodeVerb::Drain => "drain",
            NodeVerb::Undrain => "undrain",
            NodeVerb::Leave => "leave",
            NodeVerb::Forget => "forget",
        })
    }
}

impl fmt::Display for NodeChanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |ratio: Option<u32>| ratio.map(percent::print);
        attribute(f, "labels", self.labels.as_ref().map(|labels| labels.join(",")).as_deref())?;
        attribute(f, "memory-ratio", percent(self.memory_percent).as_deref())?;
        attribute(f, "cpu-ratio", percent(self.cpus_percent).as_deref())?;
        attribute(f, "disk-ratio", percent(self.disk_percent).as_deref())
    }
}

impl fmt::Display for Conditions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        attribute(f, "version", self.version.map(|v| v.to_string()).as_deref())?;
        attribute(f, "id", self.key.as_deref())
    }
}

impl fmt::Display for VmReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            VmReport::Started { pid } => write!(f, "started pid={pid}"),
            VmReport::GuestReady => f.write_str("guest-ready"),
            VmReport::Paused => f.write_str("paused"),
            VmReport::Resumed => f.write_str("resumed"),
            VmReport::Failed { sentence, may_retry } => write!(f, "failed retry={may_retry} why={}", quote(sentence)),
            VmReport::PoweredOff => f.write_str("powered-off"),
            VmReport::Ended => f.write_str("ended"),
            VmReport::Fenced => f.write_str("fenced"),
            VmReport::RetryDue => f.write_str("retry-due"),
            VmReport::Removed => f.write_str("removed"),
            VmReport::Trouble { sentence } => write!(f, "trouble why={}", quote(sentence)),
        }
    }
}
