//! Commands about VMs, with what they touch beside the VM itself: names, leases, promises of memory, keys.

use super::apply::Work;
use super::event::HISTORY_MAX;
use super::placement::place;
use super::vm::Step;
use super::{
    Actual, By, Command, Conditions, Desired, NodeId, Operation, Reply, State, Subject, Vm, VmId, VmReport, VmSpec,
    VmVerb, What,
};
use crate::text::{Refusal, name};
use std::sync::Arc;

/// The most VMs of a cluster.
pub const VMS_MAX: usize = 1_000_000;

impl Work<'_> {
    pub(super) fn vm_new(&mut self, called: Option<&str>, spec: &VmSpec, owner: &str) -> Result<Reply, Refusal> {
        spec.check()?;
        self.vm_name(called, None)?;
        if self.state.image_named(&spec.image).is_none() {
            let known: Vec<&str> = self.state.images.keys().map(String::as_str).collect();
            let there_are =
                if known.is_empty() { "there are none".to_owned() } else { format!("there are: {}", known.join(", ")) };
            return Err(Refusal::not_found(format!("image '{}' was not found: {there_are}", spec.image)));
        }
        if self.state.vms.len() >= VMS_MAX {
            return Err(Refusal::no_space(format!("no capacity: {VMS_MAX} VMs are the most")));
        }
        let id = VmId(self.state.last_vm + 1);
        let ip = self.state.ipam.allocate(spec.pool(), id.0, spec.ip, self.state.now, self.seq)?;
        let vm = Vm {
            id,
            name: called.map(str::to_owned),
            spec: spec.clone(),
            owner: owner.to_owned(),
            desired: Desired::Stopped,
            actual: Actual::Defined,
            generation: 0,
            version: 0,
            node: None,
            promised_bytes: 0,
            ip: Some(ip),
            pid: None,
            started: None,
            guest_ready: false,
            error: None,
            failures: 0,
            retry_at_ms: None,
            stop_grace_ms: spec.grace_ms,
            created: self.state.now,
            changed: self.state.now,
            changed_seq: self.seq,
            history: Vec::new(),
        };
        self.state.last_vm = id.0;
        self.put(vm, What::Created);
        Ok(Reply::Created(id.0))
    }

    /// Is this name legal and free?
    fn vm_name(&self, called: Option<&str>, for_vm: Option<VmId>) -> Result<(), Refusal> {
        let Some(called) = called else { return Ok(()) };
        name::check(called)?;
        match self.state.vm_names.get(called) {
            Some(id) if Some(*id) != for_vm => {
                Err(Refusal::exists(format!("the name '{called}' exists already: vms/{id} has it")))
            }
            _ => Ok(()),
        }
    }

    fn vm_there(&self, id: VmId) -> Result<Vm, Refusal> {
        match self.state.vms.get(&id) {
            Some(vm) => Ok(Vm::clone(vm)),
            None if id.0 != 0 && id.0 <= self.state.last_vm => {
                Err(Refusal::not_found(format!("vm {id} was not found: it has been deleted")))
            }
            None => Err(Refusal::not_found(format!("vm {id} was not found: there never was one"))),
        }
    }

    pub(super) fn vm_verb(&mut self, id: VmId, verb: &VmVerb, conditions: &Conditions) -> Result<Reply, Refusal> {
        let mut vm = self.vm_there(id)?;
        self.allowed(Some(&vm.owner), Operation::Control, &format!("vm {id}"))?;
        if let Some(wanted) = conditions.version.filter(|v| *v != vm.version) {
            let sentence = format!("version={wanted} did not match: vm {id} has version {} by now", vm.version);
            return Err(Refusal::stale(sentence));
        }
        let step = match verb {
            VmVerb::Start => vm.start(),
            VmVerb::Stop { grace_ms } => vm.stop(grace_ms.unwrap_or(vm.spec.grace_ms)),
            VmVerb::Kill => vm.stop(0),
            VmVerb::Restart => vm.restart(),
            VmVerb::Pause => vm.pause(),
            VmVerb::Resume => vm.resume(),
            VmVerb::Delete => vm.delete(),
            VmVerb::Set { name, changes } => self.vm_set(&mut vm, name.as_deref(), changes),
        }?;
        self.carry_out(vm, step)
    }

    fn vm_set(&self, vm: &mut Vm, called: Option<&str>, changes: &super::SpecChanges) -> Result<Step, Refusal> {
        if vm.actual == Actual::Deleting {
            return Err(Refusal::busy(format!("vm {} is being deleted", vm.id)));
        }
        let before = (vm.name.clone(), vm.spec.clone());
        match called {
            Some("") => vm.name = None,
            Some(called) => {
                self.vm_name(Some(called), Some(vm.id))?;
                vm.name = Some(called.to_owned());
            }
            None => {}
        }
        vm.spec = vm.spec.with(changes);
        vm.spec.check()?;
        if self.state.image_named(&vm.spec.image).is_none() {
            return Err(Refusal::not_found(format!("image '{}' was not found", vm.spec.image)));
        }
        let same = before == (vm.name.clone(), vm.spec.clone());
        Ok(if same { Step::Unchanged } else { Step::Changed(What::Set) })
    }

    pub(super) fn vm_report(&mut self, id: VmId, generation: u64, report: &VmReport) -> Result<Reply, Refusal> {
        let mut vm = self.vm_there(id)?;
        if vm.node != Some(self.node) {
            return Err(Refusal::denied(format!("no permission: vm {id} is not placed on node {}", self.node)));
        }
        if generation != vm.generation {
            let sentence =
                format!("vm {id} is at generation {}: a report about {generation} comes too late", vm.generation);
            return Err(Refusal::stale(sentence));
        }
        let step = vm.report(report, self.state.now)?;
        self.carry_out(vm, step)
    }

    /// Everything of a node whose host was booted anew.
    pub(super) fn host_rebooted(&mut self, node: NodeId) {
        let there: Vec<Arc<Vm>> = self.state.vms.values().filter(|vm| vm.node == Some(node)).cloned().collect();
        for vm in there {
            let mut vm = Vm::clone(&vm);
            let step = vm.host_gone();
            // A report's step is never refused for want of room: it is tried again later.
            let _ = self.carry_out(vm, step);
        }
    }

    fn carry_out(&mut self, vm: Vm, step: Step) -> Result<Reply, Refusal> {
        match step {
            Step::Unchanged => return Ok(Reply::Unchanged),
            Step::Changed(what) => self.put(vm, what),
            Step::Begin => self.begin(vm)?,
            Step::Remove => self.remove(&vm),
        }
        Ok(Reply::Done)
    }

    /// A new generation. For a user's verb, no room is a refusal; for an agent's report it is a failure that is tried again.
    fn begin(&mut self, mut vm: Vm) -> Result<(), Refusal> {
        match place(&self.state, &vm) {
            Ok(node) => {
                self.unpromise(vm.id);
                (vm.node, vm.promised_bytes) = (Some(node), vm.spec.memory_bytes);
                vm.generation += 1;
                (vm.actual, vm.guest_ready, vm.pid, vm.started, vm.retry_at_ms) =
                    (Actual::Starting, false, None, None, None);
                vm.stop_grace_ms = vm.spec.grace_ms;
                let generation = vm.generation;
                self.put(vm, What::Starting { generation });
                Ok(())
            }
            Err(refusal) if *self.by == By::Agent => {
                let now = self.state.now;
                let Step::Changed(what) = vm.fail(&refusal.sentence, true, now) else { return Ok(()) };
                self.put(vm, what);
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    /// Stores a changed VM, with all that follows from the change.
    fn put(&mut self, mut vm: Vm, what: What) {
        let old = self.state.vms.get(&vm.id).cloned();
        vm.version += 1;
        (vm.changed, vm.changed_seq) = (self.state.now, self.seq);
        if vm.history.len() >= HISTORY_MAX {
            vm.history.remove(0);
        }
        // Most VMs see a handful of events: grow by what is needed, not by doubling.
        vm.history.reserve_exact(1);
        vm.history.push((self.seq, self.state.now, what.clone()));
        self.event(Subject::Vm(vm.id), what);
        let old_name = old.as_ref().and_then(|o| o.name.clone());
        if old_name != vm.name || old.is_none() {
            if let Some(name) = old_name {
                self.state.vm_names.remove(&name);
            }
            if let Some(name) = &vm.name {
                self.state.vm_names.insert(name.clone(), vm.id);
            }
            self.state.vms_seq = self.seq;
        }
        self.unpromise(vm.id);
        if let Some(node) = vm.node.filter(|_| vm.promised_bytes > 0) {
            *self.state.promised.entry(node).or_default() += vm.promised_bytes;
        }
        self.state.vms.insert(vm.id, Arc::new(vm));
    }

    /// Takes back what the stored VM was promised.
    fn unpromise(&mut self, id: VmId) {
        let Some(old) = self.state.vms.get(&id).filter(|o| o.promised_bytes > 0).cloned() else { return };
        if let Some(promised) = old.node.and_then(|n| self.state.promised.get_mut(&n)) {
            *promised = promised.saturating_sub(old.promised_bytes);
        }
        let mut without = Vm::clone(&old);
        without.promised_bytes = 0;
        self.state.vms.insert(id, Arc::new(without));
    }

    fn remove(&mut self, vm: &Vm) {
        self.unpromise(vm.id);
        let stored = self.state.vms.remove(&vm.id);
        if let Some(name) = stored.and_then(|s| s.name.clone()) {
            self.state.vm_names.remove(&name);
        }
        self.state.ipam.release_holder(vm.id.0, self.state.now, self.seq);
        self.state.vms_seq = self.seq;
        self.event(Subject::Vm(vm.id), What::Removed);
    }

    /// `id=KEY` of a command, with whose key it is.
    pub(super) fn key_of<'c>(&self, command: &'c Command) -> Option<&'c str> {
        match command {
            Command::VmNew { key, .. } => key.as_deref(),
            Command::Vm { conditions, .. } => conditions.key.as_deref(),
            _ => None,
        }
    }
}

impl State {
    /// The owner of a VM, for the rights on it.
    pub fn owner_of(&self, id: VmId) -> Option<&str> {
        self.vms.get(&id).map(|vm| vm.owner.as_str())
    }
}
