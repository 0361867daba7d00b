//! Which node a VM goes to, and why. Pure: the same state gives the same answer on every node.
//!
//! Of all nodes those will do that have no [`Obstacle`]. Among them the one is taken where room is kept for the VM, else where it was
//! before (its image is read there, its console's log is there), else by `place=`; the lowest number among equals.

use super::node::Closed;
use super::{Node, NodeId, Place, State, Vm, VmId};
use crate::mutants::{Mutant, planted};
use crate::text::{Refusal, size};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::fmt::Write;

/// Nodes that a sentence names.
const NAMED_MAX: usize = 5;

/// What of a node is promised to guests: memory and CPUs to those that may have a process, or will again without anybody asking; space
/// to every disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Promised {
    /// Memory, in bytes.
    pub bytes: u64,
    /// Virtual CPUs.
    pub cpus: u64,
    /// Disks, in bytes.
    pub disk_bytes: u64,
}

impl Promised {
    pub(super) fn and(self, more: Promised) -> Promised {
        Promised {
            bytes: self.bytes.saturating_add(more.bytes),
            cpus: self.cpus.saturating_add(more.cpus),
            disk_bytes: self.disk_bytes.saturating_add(more.disk_bytes),
        }
    }

    pub(super) fn less(self, less: Promised) -> Promised {
        Promised {
            bytes: self.bytes.saturating_sub(less.bytes),
            cpus: self.cpus.saturating_sub(less.cpus),
            disk_bytes: self.disk_bytes.saturating_sub(less.disk_bytes),
        }
    }
}

/// A name that VMs share in `affinity=` or `anti-affinity=`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) enum Group {
    /// They want to be together.
    Together(String),
    /// They want to be apart.
    Apart(String),
}

impl Group {
    /// Those of a VM.
    pub(super) fn of(vm: &Vm) -> impl Iterator<Item = Group> {
        let together = vm.spec.constraints.affinity.clone().map(Group::Together);
        together.into_iter().chain(vm.spec.constraints.anti_affinity.clone().map(Group::Apart))
    }
}

/// Why a node will not do for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Obstacle {
    Closed(Closed),
    Architecture,
    Image,
    Label(String),
    Affinity(String),
    AntiAffinity(String),
    Memory(u64),
    Cpus(u64),
    Disk(u64),
}

impl Obstacle {
    /// A clause, as it follows others.
    fn of(&self, vm: &Vm, node: &str) -> String {
        let spec = &vm.spec;
        match self {
            Obstacle::Closed(Closed::Down) => format!("{node} is down"),
            Obstacle::Closed(Closed::Lost) => format!("{node} is lost"),
            Obstacle::Closed(Closed::Schedule(schedule)) => format!("{node} is {schedule}"),
            Obstacle::Architecture => {
                format!("{node} has another architecture than {}", spec.constraints.arch.as_deref().unwrap_or_default())
            }
            Obstacle::Image => format!("{node} does not have the image {}", spec.image),
            Obstacle::Label(label) => format!("{node} has no label {label}"),
            Obstacle::Affinity(name) => format!("{node} is not where the others of affinity {name} are"),
            Obstacle::AntiAffinity(name) => format!("{node} has another of anti-affinity {name}"),
            Obstacle::Memory(left) => {
                format!(
                    "it wants {} of memory, and {node} has {} left",
                    size::print(spec.memory_bytes),
                    size::print(*left)
                )
            }
            Obstacle::Cpus(left) => format!("it wants {} virtual CPUs, and {node} has {left} left", spec.cpus),
            Obstacle::Disk(left) => {
                let wanted = size::print(spec.disk_bytes.unwrap_or_default());
                format!("it wants a disk of {wanted}, and {node} has {} left for disks", size::print(*left))
            }
        }
    }
}

/// A node for a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) node: NodeId,
    /// A clause, for people.
    pub(super) why: String,
}

impl State {
    /// What is left of a node for this VM: (memory, virtual CPUs, space for disks); what the VM itself has there is room for it.
    fn left(&self, node: &Node, vm: &Vm) -> (u64, u64, u64) {
        let own = vm.holds().filter(|(id, _)| *id == node.id).fold(Promised::default(), |sum, (_, own)| sum.and(own));
        let others = self.promised(node.id).less(own);
        (
            node.memory_for_guests().saturating_sub(others.bytes),
            node.vcpus_for_guests().map_or(u64::MAX, |most| most.saturating_sub(others.cpus)),
            node.disk_for_guests().map_or(u64::MAX, |most| most.saturating_sub(others.disk_bytes)),
        )
    }

    fn obstacle(&self, node: &Node, vm: &Vm) -> Option<Obstacle> {
        if let Err(closed) = node.is_open() {
            return Some(Obstacle::Closed(closed));
        }
        let constraints = &vm.spec.constraints;
        if constraints.arch.as_ref().is_some_and(|arch| *arch != node.arch) {
            return Some(Obstacle::Architecture);
        }
        if let Some(label) = constraints.labels.iter().find(|label| !node.labels.contains(label)) {
            return Some(Obstacle::Label(label.clone()));
        }
        if let Some(name) = &constraints.affinity
            && !self.is_with_group(node, vm, name)
        {
            return Some(Obstacle::Affinity(name.clone()));
        }
        if let Some(name) = &constraints.anti_affinity
            && self.others_of(&Group::Apart(name.clone()), node.id, vm) > 0
            && !planted(Mutant::ApartIgnored)
        {
            return Some(Obstacle::AntiAffinity(name.clone()));
        }
        self.shortage(node, vm)
    }

    /// What it needs and the node does not have, or too little of.
    fn shortage(&self, node: &Node, vm: &Vm) -> Option<Obstacle> {
        if !self.images.get(&vm.spec.image).is_some_and(|image| image.nodes.contains(&node.id)) {
            return Some(Obstacle::Image);
        }
        let (bytes, cpus, disk_bytes) = self.left(node, vm);
        if bytes < vm.spec.memory_bytes {
            return Some(Obstacle::Memory(bytes));
        }
        if cpus < u64::from(vm.spec.cpus) {
            return Some(Obstacle::Cpus(cpus));
        }
        if disk_bytes < vm.spec.disk_bytes.unwrap_or_default() {
            return Some(Obstacle::Disk(disk_bytes));
        }
        None
    }

    /// How many others of a group there are on a node.
    fn others_of(&self, group: &Group, node: NodeId, vm: &Vm) -> u64 {
        let all = self.groups.get(group).and_then(|nodes| nodes.get(&node)).copied().unwrap_or_default();
        // By what is stored: that is what was counted.
        let own = self.vms.get(&vm.id).filter(|stored| Group::of(stored).any(|of| of == *group));
        all.saturating_sub(own.map_or(0, |own| own.places_counted().filter(|id| *id == node).count() as u64))
    }

    /// Are the others of an affinity here, or nowhere that counts? Those on a node that takes nobody don't: it is to be left.
    fn is_with_group(&self, node: &Node, vm: &Vm, name: &str) -> bool {
        let group = Group::Together(name.to_owned());
        let Some(nodes) = self.groups.get(&group) else { return true };
        let counts = |id: NodeId| {
            self.others_of(&group, id, vm) > 0 && self.nodes.get(&id).is_some_and(|node| node.is_open().is_ok())
        };
        counts(node.id) || !nodes.keys().any(|id| counts(*id))
    }

    /// The nodes that are looked at: all, or the one that a VM is tied to.
    fn candidates<'s>(&'s self, vm: &'s Vm) -> (Option<NodeId>, Box<dyn Iterator<Item = &'s Node> + 's>) {
        let tied = vm.node.filter(|_| !vm.is_free());
        match (tied, &vm.spec.constraints.node) {
            (Some(id), _) => (tied, Box::new(self.nodes.get(&id).into_iter())),
            (None, Some(name)) => (None, Box::new(self.node_named(name).into_iter())),
            (None, None) => (None, Box::new(self.nodes.values())),
        }
    }

    /// What each node has against a VM, a line each, and where it is and why: for people.
    pub fn explain(&self, vm: &Vm) -> String {
        let mut text = String::new();
        let at = vm.node.and_then(|id| self.nodes.get(&id)).map_or("nowhere", |node| &node.name);
        let _ = writeln!(text, "{at}: {}", vm.why.as_deref().unwrap_or("it was never started"));
        let (tied, candidates) = self.candidates(vm);
        for node in candidates {
            let obstacle = self.obstacle(node, vm).map(|obstacle| obstacle.of(vm, &node.name));
            let (bytes, ..) = self.left(node, vm);
            let says =
                obstacle.unwrap_or_else(|| format!("{} will do: {} of memory left", node.name, size::print(bytes)));
            let _ = writeln!(text, "    {says}");
        }
        match (tied, &vm.spec.constraints.node) {
            (Some(_), _) => text.push_str("    no other node: its disk is there\n"),
            (None, Some(name)) => {
                let _ = writeln!(text, "    no other node: it asks for node={name}");
            }
            (None, None) => {}
        }
        text
    }
}

/// The node for the next generation of a VM, other than `not`.
///
/// # Errors
/// ENOSPC: what each node has against it, with figures.
pub(super) fn place(state: &State, vm: &Vm, not: Option<NodeId>) -> Result<Placed, Refusal> {
    let (tied, candidates) = state.candidates(vm);
    let (mut fitting, mut obstacles, mut seen) = (Vec::new(), Vec::new(), 0_usize);
    for node in candidates.filter(|node| Some(node.id) != not) {
        seen += 1;
        match state.obstacle(node, vm) {
            None => fitting.push(node),
            Some(obstacle) if obstacles.len() < NAMED_MAX => obstacles.push((node, obstacle)),
            Some(_) => {}
        }
    }
    let free = |node: &&Node| state.left(node, vm).0;
    let (best, which) = match vm.spec.place {
        Place::Spread => (fitting.iter().copied().max_by_key(|node| (free(node), Reverse(node.id))), "most"),
        Place::Pack => (fitting.iter().copied().min_by_key(|node| (free(node), node.id)), "least"),
    };
    let Some(best) = best else { return Err(no_room(vm, &obstacles, seen)) };
    let of = |id: Option<NodeId>| fitting.iter().find(|node| Some(node.id) == id);
    let kept = of(vm.reserved).or_else(|| of(vm.node));
    let node = kept.map_or(best.id, |node| node.id);
    let why = match (tied, &vm.spec.constraints.node, kept) {
        (Some(_), ..) => "its disk is there".to_owned(),
        (None, Some(name), _) => format!("it asks for node={name}"),
        (None, None, Some(_)) if vm.reserved == Some(node) => "it was moved there".to_owned(),
        (None, None, Some(_)) => "it was there before".to_owned(),
        _ if fitting.len() == 1 => format!("the only one of {seen} that will do"),
        _ => format!("the {which} free memory of the {} of {seen} that will do", fitting.len()),
    };
    Ok(Placed { node, why })
}

/// Whether the next generation of a VM can be where this one is.
///
/// # Errors
/// ENOSPC: its node is not there, or has no room for what it wants by now.
pub(super) fn place_again(state: &State, vm: &Vm) -> Result<Placed, Refusal> {
    let gone = || Refusal::fault(format!("vm {} is active and on no node", vm.id));
    let node = vm.node.and_then(|id| state.nodes.get(&id)).ok_or_else(gone)?;
    let closed = node.is_open().err().filter(|closed| !matches!(closed, Closed::Schedule(_))).map(Obstacle::Closed);
    match closed.or_else(|| state.shortage(node, vm)) {
        None => Ok(Placed { node: node.id, why: vm.why.as_deref().unwrap_or_default().to_owned() }),
        Some(obstacle) => Err(no_room(vm, &[(node, obstacle)], 1)),
    }
}

fn no_room(vm: &Vm, obstacles: &[(&Node, Obstacle)], seen: usize) -> Refusal {
    let mut clauses: Vec<String> = obstacles.iter().map(|(node, obstacle)| obstacle.of(vm, &node.name)).collect();
    match (&vm.spec.constraints.node, seen) {
        (Some(name), 0) => clauses.push(format!("it asks for node={name}, and no other node has that name")),
        (None, 0) => clauses.push("there is no other node".to_owned()),
        (_, seen) if seen > obstacles.len() => clauses.push(format!("and {} more will not do", seen - obstacles.len())),
        _ => {}
    }
    let tied = if vm.is_free() || vm.node.is_none() { "" } else { ", and its disk is there" };
    Refusal::no_space(format!("no capacity: {}{tied}", clauses.join("; ")))
}

impl Vm {
    /// The nodes where it counts as one of its groups: where it may have a process, and where room is kept for it.
    pub(super) fn places_counted(&self) -> impl Iterator<Item = NodeId> {
        let here = self.node.filter(|_| self.promised_bytes > 0);
        here.into_iter().chain(self.reserved)
    }
}

/// In which order VMs wait: the higher priority first, then the lower number.
pub(super) fn turn(vm: &Vm) -> (u8, VmId) {
    (u8::MAX - vm.spec.priority, vm.id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{Constraints, Image, ImageId, Ratios, Schedule, VmSpec};

    const GIB: u64 = 1 << 30;

    /// Nodes 1 and up, each (is it up, its memory, what of it is promised), in GiB.
    fn nodes(nodes: &[(bool, u64, u64)]) -> State {
        let mut state = State::new();
        for (id, (up, memory, promised)) in (1..).map(NodeId).zip(nodes) {
            let node = Node::new(id, &format!("n{id}"), HybridTime(0), 1);
            state.nodes.insert(id, Node { up: *up, memory_bytes: memory * GIB, ..node });
            state.stamps.insert(id, HybridTime(0));
            state.promised.insert(id, Promised { bytes: promised * GIB, cpus: *promised, disk_bytes: 0 });
        }
        let tiny = Image {
            id: ImageId(1),
            name: "tiny".to_owned(),
            size_bytes: 1,
            sha256: "0".repeat(64),
            nodes: (1..=10).map(NodeId).collect(),
            created: HybridTime(0),
            changed: HybridTime(0),
            changed_seq: 1,
        };
        state.images.insert("tiny".to_owned(), tiny);
        state
    }

    fn each(state: State, change: impl Fn(&mut Node)) -> State {
        let changed = |(id, node): (&NodeId, &Node)| {
            let mut node = node.clone();
            change(&mut node);
            (*id, node)
        };
        State { nodes: state.nodes.iter().map(changed).collect(), ..state }
    }

    fn vm(gib: u64) -> Vm {
        let spec = VmSpec { memory_bytes: gib * GIB, ..VmSpec::default() };
        Vm::new(VmId(1), None, &spec, "ann", "10.42.0.2".parse().unwrap(), HybridTime(0))
    }

    fn with(vm: Vm, change: impl FnOnce(&mut VmSpec)) -> Vm {
        let mut vm = vm;
        change(&mut vm.spec);
        vm
    }

    fn at(state: &State, vm: &Vm) -> Result<u64, String> {
        place(state, vm, None).map(|placed| placed.node.0).map_err(|refusal| refusal.sentence)
    }

    #[test]
    fn the_node_with_the_most_room_the_lowest_number_among_equals() {
        assert_eq!(at(&nodes(&[(true, 4, 0), (true, 8, 2), (true, 8, 2)]), &vm(1)), Ok(2));
        assert_eq!(at(&nodes(&[(true, 4, 0), (false, 64, 0), (true, 8, 7)]), &vm(4)), Ok(1));
        let full = at(&nodes(&[(true, 4, 1), (false, 4, 9)]), &vm(4)).unwrap_err();
        assert_eq!(full, "no capacity: it wants 4G of memory, and n1 has 3G left; n2 is down");
        assert_eq!(at(&State::new(), &vm(1)).unwrap_err(), "no capacity: there is no other node");
        let many = at(&nodes(&[(false, 1, 0); 9]), &vm(1)).unwrap_err();
        assert!(many.ends_with("; n5 is down; and 4 more will not do"), "{many}");
    }

    #[test]
    fn packing_takes_the_fullest_that_has_room() {
        let state = nodes(&[(true, 8, 0), (true, 8, 6), (true, 8, 7), (true, 8, 6)]);
        let packed = |gib| with(vm(gib), |spec| spec.place = Place::Pack);
        assert_eq!((at(&state, &packed(1)), at(&state, &packed(2)), at(&state, &packed(3))), (Ok(3), Ok(2), Ok(1)));
    }

    #[test]
    fn a_limit_of_virtual_cpus_binds_and_none_does_not() {
        let limited = |most: Option<u32>| each(nodes(&[(true, 64, 3)]), |node| node.vcpus_max = most);
        let wants = |cpus: u32| with(vm(1), |spec| spec.cpus = cpus);
        assert_eq!(at(&limited(None), &wants(500)), Ok(1));
        assert_eq!(at(&limited(Some(4)), &wants(1)), Ok(1));
        let full = at(&limited(Some(4)), &wants(2)).unwrap_err();
        assert_eq!(full, "no capacity: it wants 2 virtual CPUs, and n1 has 1 left");
        let own = Vm { node: Some(NodeId(1)), promised_bytes: GIB, promised_cpus: 1, ..wants(2) };
        assert_eq!(at(&limited(Some(4)), &own), Ok(1), "its own are room for it");
        // One with less memory and a CPU to spare is better than one with none.
        let two = each(nodes(&[(true, 64, 4), (true, 8, 0)]), |node| node.vcpus_max = Some(4));
        assert_eq!(at(&two, &wants(1)), Ok(2));
    }

    #[test]
    fn ratios_promise_more_or_less_than_there_is() {
        let ratio = |memory_percent, cpus_percent| {
            let ratios = Ratios { memory_percent, cpus_percent, disk_percent: 50 };
            each(nodes(&[(true, 4, 3)]), move |node| (node.ratios, node.cpus, node.disk_bytes) = (ratios, 2, 8 * GIB))
        };
        assert_eq!(
            at(&ratio(100, None), &vm(2)).unwrap_err(),
            "no capacity: it wants 2G of memory, and n1 has 1G left"
        );
        assert_eq!(at(&ratio(150, None), &vm(2)), Ok(1));
        assert!(at(&ratio(150, Some(150)), &vm(2)).unwrap_err().contains("it wants 1 virtual CPUs, and n1 has 0 left"));
        assert_eq!(at(&ratio(150, Some(200)), &vm(2)), Ok(1));
        let disk = with(vm(1), |spec| spec.disk_bytes = Some(5 * GIB));
        let full = "no capacity: it wants a disk of 5G, and n1 has 4G left for disks";
        assert_eq!(at(&ratio(150, None), &disk).unwrap_err(), full);
    }

    #[test]
    fn only_a_disk_ties_a_vm_to_its_node() {
        let state = nodes(&[(true, 4, 3), (true, 64, 0), (false, 4, 0)]);
        let there = |node, gib| Vm { node: Some(NodeId(node)), ..vm(gib) };
        let tied = |node, gib| with(there(node, gib), |spec| spec.disk_bytes = Some(1 << 20));
        assert_eq!(at(&state, &there(1, 1)), Ok(1), "it stays where it was, if there is room");
        assert_eq!(at(&state, &there(1, 2)), Ok(2));
        assert_eq!(at(&state, &there(3, 1)), Ok(2));
        assert_eq!(at(&state, &tied(1, 1)), Ok(1));
        let full = at(&state, &tied(1, 2)).unwrap_err();
        assert_eq!(full, "no capacity: it wants 2G of memory, and n1 has 1G left, and its disk is there");
        assert_eq!(at(&state, &tied(3, 1)).unwrap_err(), "no capacity: n3 is down, and its disk is there");
        let kept = Vm { reserved: Some(NodeId(2)), ..there(1, 1) };
        assert_eq!(at(&state, &kept), Ok(2), "where room is kept for it");
    }

    #[test]
    fn nodes_must_be_as_it_asks_for() {
        let mut state = each(nodes(&[(true, 4, 0), (true, 8, 0), (true, 64, 0)]), |node| {
            node.arch = if node.id == NodeId(3) { "aarch64" } else { "x86_64" }.to_owned();
            node.labels = if node.id == NodeId(1) { vec!["ssd".to_owned()] } else { Vec::new() };
        });
        let asks = |constraints: Constraints| with(vm(1), |spec| spec.constraints = constraints);
        let text = |text: &str| Some(text.to_owned());
        let named = |name| asks(Constraints { node: text(name), ..Constraints::default() });
        assert_eq!(at(&state, &named("n1")), Ok(1));
        let nowhere = at(&state, &named("n9")).unwrap_err();
        assert_eq!(nowhere, "no capacity: it asks for node=n9, and no other node has that name");
        assert_eq!(at(&state, &asks(Constraints { arch: text("x86_64"), ..Constraints::default() })), Ok(2));
        let ssd = asks(Constraints { labels: vec!["ssd".to_owned()], ..Constraints::default() });
        assert_eq!(at(&state, &ssd), Ok(1));
        state = each(state, |node| {
            if node.id == NodeId(1) {
                node.schedule = Schedule::Cordoned;
            }
        });
        let none = at(&state, &ssd).unwrap_err();
        assert_eq!(none, "no capacity: n1 is cordoned; n2 has no label ssd; n3 has no label ssd");
        assert_eq!(at(&state, &vm(1)), Ok(3));
        if let Some(image) = state.images.get_mut("tiny") {
            image.nodes.remove(&NodeId(3));
        }
        assert_eq!(at(&state, &vm(1)), Ok(2));
        assert!(state.explain(&vm(1)).contains("n3 does not have the image tiny"));
        let explained = state.explain(&ssd);
        assert_eq!(explained.lines().nth(1), Some("    n1 is cordoned"), "{explained}");
    }

    #[test]
    fn groups_keep_together_and_apart() {
        let mut state = nodes(&[(true, 4, 0), (true, 8, 0), (true, 8, 0)]);
        let name = || Some("db".to_owned());
        let together = with(vm(1), |spec| spec.constraints.affinity = name());
        let apart = with(vm(1), |spec| spec.constraints.anti_affinity = name());
        assert_eq!((at(&state, &together), at(&state, &apart)), (Ok(2), Ok(2)), "the first goes anywhere");
        let here = |node| [(NodeId(node), 1_u64)].into_iter().collect();
        state.groups.insert(Group::Together("db".to_owned()), here(1));
        state.groups.insert(Group::Apart("db".to_owned()), here(2));
        assert_eq!((at(&state, &together), at(&state, &apart)), (Ok(1), Ok(3)));
        let left = each(state, |node| {
            if node.id == NodeId(1) {
                node.schedule = Schedule::Draining;
            }
        });
        assert_eq!(at(&left, &together), Ok(2), "those on a node that is left behind don't hold it back");
    }
}
