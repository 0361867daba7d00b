//! Every invariant of the state, in one function: tests, debug builds and simulators call it.

use super::{Actual, Desired, State};
use imbl::OrdMap;
use std::collections::BTreeSet;

impl State {
    /// What must always hold; the first breach in a sentence.
    ///
    /// # Errors
    /// A breach.
    pub fn check(&self) -> Result<(), String> {
        self.ipam.check()?;
        self.keys.check()?;
        self.check_vms()?;
        self.check_names()?;
        self.check_promises()?;
        self.check_leases()?;
        let voters = self.nodes.keys().next_back().is_none_or(|id| id.0 >= 1);
        if !voters || self.cluster.is_some() == self.nodes.is_empty() {
            return Err("a cluster has nodes".to_owned());
        }
        Ok(())
    }

    fn check_vms(&self) -> Result<(), String> {
        for (id, vm) in &self.vms {
            let holds = |what: bool, rule: &str| if what { Ok(()) } else { Err(format!("vm {id}: {rule}: {vm:?}")) };
            holds(vm.id == *id && id.0 <= self.last_vm, "its number is its own and counted")?;
            holds((vm.generation == 0) == (vm.actual == Actual::Defined), "generation 0 is never started")?;
            holds(vm.generation == 0 || vm.node.is_some(), "what was started was placed")?;
            holds(vm.node.is_none_or(|n| self.nodes.contains_key(&n)), "its node exists")?;
            holds(!vm.active() || vm.promised_bytes > 0, "what may have a process has memory promised")?;
            holds((vm.actual == Actual::Deleting) == (vm.desired == Desired::Deleted), "deleting is desired")?;
            holds(vm.retry_at_ms.is_none() || vm.actual == Actual::Failed, "only a failed one is retried")?;
            holds(vm.actual != Actual::Paused || vm.generation > 0, "paused means there is a process")?;
            holds(vm.spec.check().is_ok(), "its spec is within bounds")?;
            holds(vm.history.len() <= super::event::HISTORY_MAX, "its history is bounded")?;
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        let named = self.vms.values().filter_map(|vm| vm.name.clone().map(|n| (n, vm.id)));
        let names: OrdMap<String, super::VmId> = named.collect();
        let nodes: BTreeSet<&str> = self.nodes.values().map(|n| n.name.as_str()).collect();
        if names != self.vm_names || nodes.len() != self.nodes.len() {
            return Err("the index of names does not match".to_owned());
        }
        Ok(())
    }

    fn check_promises(&self) -> Result<(), String> {
        for node in self.nodes.values() {
            let held: u64 = self.vms.values().filter(|vm| vm.node == Some(node.id)).map(|vm| vm.promised_bytes).sum();
            if held != self.memory_promised(node.id) {
                return Err(format!(
                    "node {}: {held} bytes are held, {} are counted",
                    node.id,
                    self.memory_promised(node.id)
                ));
            }
        }
        Ok(())
    }

    fn check_leases(&self) -> Result<(), String> {
        let mut leased = BTreeSet::new();
        for (address, lease) in self.ipam.pools().flat_map(|p| p.leases()) {
            let holder = self.vms.get(&super::VmId(lease.holder));
            if holder.is_none_or(|vm| vm.ip != Some(address)) {
                return Err(format!("{address} is leased to vm {}, which does not have it", lease.holder));
            }
            leased.insert(lease.holder);
        }
        match self.vms.values().find(|vm| vm.ip.is_some() && !leased.contains(&vm.id.0)) {
            Some(vm) => Err(format!("vm {} has an address that is not leased", vm.id)),
            None => Ok(()),
        }
    }
}
