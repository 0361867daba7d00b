//! Commands about VMs, with what they touch beside the VM itself: names, leases, promises of memory.

use super::apply::Work;
use super::moves::WithoutRoom;
use super::placement::{Group, Promised};
use super::vm::Change;
use super::{
    About, Conditions, Kind, NodeId, Operation, Reply, SpecChanges, Subject, Vm, VmId, VmReport, VmSpec, VmVerb, What,
};
use crate::mutants::{Mutant, planted};
use crate::text::attrs::shown;
use crate::text::{Refusal, name, nearest};
use std::sync::Arc;

/// The most VMs of a cluster.
pub const VMS_MAX: usize = 1_000_000;
/// How many names a sentence lists.
const LISTED_MAX: usize = 8;

impl Work<'_> {
    pub(super) fn vm_new(&mut self, called: Option<&str>, spec: &VmSpec) -> Result<Reply, Refusal> {
        self.allowed(About::Cluster, Operation::Create, "vms/new")?;
        spec.check()?;
        if let Some(called) = called {
            self.check_vm_name(called, None)?;
        }
        self.check_image(&spec.image)?;
        if self.state.vms.len() >= VMS_MAX {
            return Err(Refusal::no_space(format!("no capacity: {VMS_MAX} VMs are the most")));
        }
        let id = VmId(self.state.last_vm + 1);
        let ip = self.state.ipam.allocate(spec.pool(), id.0, spec.ip, self.state.now, self.seq)?;
        self.touch(Kind::Pool);
        self.state.last_vm = id.0;
        let vm = Vm::new(id, called, spec, self.user(), ip, self.state.now);
        self.put(vm, What::Created);
        Ok(Reply::Created(id.0))
    }

    /// Is this name legal, and free for this VM?
    fn check_vm_name(&self, called: &str, for_vm: Option<VmId>) -> Result<(), Refusal> {
        name::check(called)?;
        match self.state.vm_names.get(called) {
            Some(id) if Some(*id) != for_vm => {
                Err(Refusal::exists(format!("the name '{called}' exists already: vms/{id} has it")))
            }
            _ => Ok(()),
        }
    }

    fn check_image(&self, image: &str) -> Result<(), Refusal> {
        if self.state.image_named(image).is_some() {
            return Ok(());
        }
        let known: Vec<&str> = self.state.images.keys().map(String::as_str).collect();
        let hint = nearest(image, &known).map(|near| format!("did you mean '{near}'? ")).unwrap_or_default();
        let more = if known.len() > LISTED_MAX { ", ..." } else { "" };
        let there_are = match known.as_slice() {
            [] => "there are none".to_owned(),
            some => format!("there are: {}{more}", some.get(..LISTED_MAX).unwrap_or(some).join(", ")),
        };
        Err(Refusal::not_found(format!("image '{}' was not found: {hint}{there_are}", shown(image))))
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
        self.allowed(About::Vm(id), Operation::Control, &format!("vm {id}"))?;
        if let Some(wanted) = conditions.version.filter(|v| *v != vm.version && !planted(Mutant::VersionUnchecked)) {
            let sentence = format!("version={wanted} did not match: vm {id} has version {} by now", vm.version);
            return Err(Refusal::stale(sentence));
        }
        let change = match verb {
            VmVerb::Start => vm.start(),
            VmVerb::Stop { grace_ms } => {
                let grace_ms = grace_ms.unwrap_or(vm.spec.grace_ms);
                VmSpec::check_grace(grace_ms)?;
                vm.stop(grace_ms)
            }
            VmVerb::Kill => vm.stop(0),
            VmVerb::Restart => vm.restart(),
            VmVerb::Pause => vm.pause(),
            VmVerb::Resume => vm.resume(),
            VmVerb::Delete => vm.delete(),
            VmVerb::Set { name, changes } => self.vm_set(&mut vm, name.as_deref(), changes),
        }?;
        self.carry_out(vm, change, WithoutRoom::Refuse)
    }

    fn vm_set(&self, vm: &mut Vm, called: Option<&str>, changes: &SpecChanges) -> Result<Change, Refusal> {
        let name = match called {
            Some("") => None,
            Some(called) => {
                self.check_vm_name(called, Some(vm.id))?;
                Some(called.to_owned())
            }
            None => vm.name.clone(),
        };
        let spec = vm.spec.with(changes);
        spec.check()?;
        if spec.image != vm.spec.image {
            self.check_image(&spec.image)?;
        }
        vm.set(name, spec)
    }

    pub(super) fn vm_report(&mut self, id: VmId, generation: u64, report: &VmReport) -> Result<Reply, Refusal> {
        let mut vm = self.vm_there(id)?;
        if vm.node != Some(self.node) {
            return Err(Refusal::denied(format!("no permission: vm {id} is not placed on node {}", self.node)));
        }
        if generation != vm.generation && !planted(Mutant::Generation) {
            let sentence = format!("vm {id} is at generation {}, and the report is about {generation}", vm.generation);
            return Err(Refusal::stale(sentence));
        }
        let change = vm.report(report, self.state.now)?;
        self.carry_out(vm, change, WithoutRoom::Wait)
    }

    pub(super) fn carry_out(&mut self, vm: Vm, change: Change, without_room: WithoutRoom) -> Result<Reply, Refusal> {
        match change {
            Change::Nothing => return Ok(Reply::Unchanged),
            Change::Now(what) => self.put(vm, what),
            Change::Begin => self.begin(vm, without_room)?,
            Change::Again => self.begin_again(vm)?,
            Change::Remove => self.remove(&vm),
        }
        Ok(Reply::Done)
    }

    /// Stores a changed VM, with all that follows from the change.
    pub(super) fn put(&mut self, mut vm: Vm, what: What) {
        let (now, old) = (self.state.now, self.state.vms.get(&vm.id).cloned());
        vm.version += 1;
        (vm.changed, vm.changed_seq) = (now, self.seq);
        vm.history.push(self.seq, now, &what);
        self.index_name(vm.id, old.as_deref().and_then(|o| o.name.as_deref()), vm.name.as_deref());
        self.index_place(old.as_deref(), Some(&vm));
        self.promise(old.as_deref(), Some(&vm));
        self.group(old.as_deref(), Some(&vm));
        self.event(Subject::Vm(vm.id), what);
        self.state.vms.insert(vm.id, Arc::new(vm));
    }

    fn remove(&mut self, vm: &Vm) {
        if let Some(old) = self.state.vms.remove(&vm.id) {
            self.index_name(vm.id, old.name.as_deref(), None);
            self.index_place(Some(&old), None);
            self.promise(Some(&old), None);
            self.group(Some(&old), None);
        }
        self.state.ipam.release_holder(vm.id.0, self.state.now, self.seq);
        self.touch(Kind::Pool);
        self.event(Subject::Vm(vm.id), What::Removed);
    }

    fn index_name(&mut self, id: VmId, old: Option<&str>, new: Option<&str>) {
        if old == new {
            return;
        }
        if let Some(old) = old {
            self.state.vm_names.remove(old);
        }
        if let Some(new) = new {
            self.state.vm_names.insert(new.into(), id);
        }
        self.touch_members(Kind::Vm);
    }

    /// Takes back what the VM was promised before, and promises what it is to have now.
    fn promise(&mut self, old: Option<&Vm>, new: Option<&Vm>) {
        let holds = |vm: Option<&Vm>| -> Vec<(NodeId, Promised)> { vm.into_iter().flat_map(Vm::holds).collect() };
        let (before, now) = (holds(old), holds(new));
        if before == now {
            return;
        }
        for (node, promised) in &before {
            self.promised_on(*node, |sum| sum.less(*promised));
        }
        for (node, promised) in &now {
            self.promised_on(*node, |sum| sum.and(*promised));
        }
        if !before.is_empty() {
            self.room_grew();
        }
    }

    fn promised_on(&mut self, node: NodeId, change: impl FnOnce(Promised) -> Promised) {
        match change(self.state.promised(node)) {
            nothing if nothing == Promised::default() => self.state.promised.remove(&node),
            promised => self.state.promised.insert(node, promised),
        };
    }

    /// Where the VMs of each group are.
    fn group(&mut self, old: Option<&Vm>, new: Option<&Vm>) {
        let counted = |vm: Option<&Vm>| -> Vec<(Group, NodeId)> {
            let groups = |vm: &Vm| -> Vec<_> {
                Group::of(vm).flat_map(|group| vm.places_counted().map(move |node| (group.clone(), node))).collect()
            };
            vm.map(groups).unwrap_or_default()
        };
        let (before, now) = (counted(old), counted(new));
        // A VM that waits may have been set so that other nodes will do.
        let asks_otherwise = old.zip(new).is_some_and(|(old, new)| old.spec != new.spec);
        if before != now || asks_otherwise {
            self.room_grew();
        }
        for (group, node) in before {
            let nodes = self.state.groups.entry(group.clone()).or_default();
            let less = nodes.get(&node).copied().unwrap_or_default().saturating_sub(1);
            let _ = if less == 0 { nodes.remove(&node) } else { nodes.insert(node, less) };
            if nodes.is_empty() {
                self.state.groups.remove(&group);
            }
        }
        for (group, node) in now {
            *self.state.groups.entry(group).or_default().entry(node).or_default() += 1;
        }
    }
}
