//! Workers as cheap as they can be and still be honest: they have no replica of their own, look at that of a voter, do at once what it says of
//! their machines, and report as agents do, an entry for each report. What they append is carried by the voter that they follow, and comes again
//! until it is taken. Their leases are real; a worker whose lease is over ends what depends on it.

use crate::node::Node;
use crate::raft::{Answer, Question};
use crate::world::{BEGIN_MS, World};
use blixard::clock::HybridTime;
use blixard::engine::state::{
    Actual, By, Command, ENTRY_FORMAT, Entry, EntryId, Image, NodeId, State, Vm, VmId, VmReport,
};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use tokio::sync::oneshot;

/// As the voters' agents have it.
const LEASE_MS: u64 = 10_000;
/// Renewals within one length.
const RENEWALS: u64 = 3;
/// Records of one append, as the engine's appender has it.
const RECORDS_MAX: usize = 256;
/// An answer that takes longer does not come.
const ANSWER_WITHIN_MS: u64 = 5_000;
/// The pause before an append is sent again.
const AGAIN_AFTER_MS: u64 = 300;

/// A machine of a worker.
#[derive(Debug, Clone, Copy)]
struct Guest {
    generation: u64,
    fenced: bool,
    is_up: bool,
}

struct Sent {
    records: Arc<Question>,
    at: u64,
    renews: bool,
    /// None: it is to be sent again.
    answer: Option<oneshot::Receiver<Answer>>,
    again_at: u64,
}

/// One worker.
struct Reporter {
    id: NodeId,
    follows: usize,
    n: u64,
    at: HybridTime,
    counter: u64,
    renew_at: u64,
    lease_ends: u64,
    guests: BTreeMap<VmId, Guest>,
    /// When a guest is up, or gone.
    due: BTreeSet<(u64, VmId)>,
    reports: VecDeque<Command>,
    sent: Option<Sent>,
}

/// All of them.
#[derive(Default)]
pub struct Reporters {
    all: BTreeMap<NodeId, Reporter>,
    /// What was seen of each voter.
    seen: BTreeMap<usize, Arc<State>>,
    /// Where a process of each VM is.
    processes: BTreeMap<VmId, NodeId>,
    last_pid: u32,
}

impl Reporter {
    fn report(&mut self, vm: VmId, generation: u64, report: VmReport) {
        self.reports.push_back(Command::VmReport { vm, generation, report });
    }

    /// `now`: the cluster's time, behind which no stamp may be.
    fn records(&mut self, world: &World, now: HybridTime, renewal: Option<Command>) -> Vec<Bytes> {
        let reports = self.reports.len().min(RECORDS_MAX);
        let commands: Vec<Command> = renewal.into_iter().chain(self.reports.drain(..reports)).collect();
        let at = HybridTime::from_millis(BEGIN_MS + world.now()).max(now).max(self.at);
        self.at = at;
        let mut record = |command| {
            self.n += 1;
            let id = EntryId { node: self.id, boot: 1, n: self.n };
            Bytes::from(Entry { id, at, by: By::Agent, commands: vec![command] }.encode())
        };
        commands.into_iter().map(&mut record).collect()
    }

    /// Sends what there is to be said, again if need be.
    fn append(&mut self, world: &World, nodes: &[Node]) {
        let now = world.now();
        if let Some(sent) = &mut self.sent {
            let Some(answer) = &mut sent.answer else {
                if now >= sent.again_at {
                    self.follow_another_if_down(nodes);
                    self.send(world);
                }
                return;
            };
            match answer.try_recv() {
                Ok(Ok(_)) if sent.renews => (self.lease_ends, self.sent) = (sent.at + LEASE_MS, None),
                Ok(Ok(_)) => self.sent = None,
                Err(oneshot::error::TryRecvError::Empty) if now < sent.at + ANSWER_WITHIN_MS => return,
                _ => (sent.answer, sent.again_at) = (None, now + AGAIN_AFTER_MS),
            }
            return;
        }
        let renews = now >= self.renew_at;
        if !renews && self.reports.is_empty() {
            return;
        }
        self.follow_another_if_down(nodes);
        let Some(engine) = nodes[self.follows].engine() else { return };
        let renewal = renews.then(|| {
            self.counter += 1;
            self.renew_at = now + LEASE_MS / RENEWALS;
            Command::LeaseRenew { counter: self.counter, length_ms: LEASE_MS, claim: engine.claim() }
        });
        let records = Arc::new(Question::Append(self.records(world, engine.state().now(), renewal)));
        self.sent = Some(Sent { records, at: now, renews, answer: None, again_at: now });
        self.send(world);
    }

    fn send(&mut self, world: &World) {
        let Some(sent) = &mut self.sent else { return };
        let life = world.raft().members[self.follows].life;
        let asked = world.raft().ask(world, self.follows, life, &sent.records);
        match asked {
            Ok((answer, _)) => (sent.answer, sent.at) = (Some(answer), if sent.renews { sent.at } else { world.now() }),
            Err(_) => sent.again_at = world.now() + AGAIN_AFTER_MS,
        }
    }

    fn follow_another_if_down(&mut self, nodes: &[Node]) {
        while nodes[self.follows].engine().is_none() {
            self.follows = (self.follows + 1) % nodes.len();
        }
    }
}

impl Reporters {
    /// A machine joined as a worker: it begins.
    pub fn begin(&mut self, world: &World, id: NodeId, follows: usize, memory_bytes: u64, image: &Image) {
        let mut random = world.random();
        let up = Command::NodeUp {
            host_boot: format!("host-{id}"),
            hypervisor: "simulated".to_owned(),
            memory_bytes,
            cpus: 64,
            vcpus_max: None,
            arch: std::env::consts::ARCH.to_owned(),
            disk_bytes: 0,
        };
        let reach = Command::NodeReach {
            address: format!("w{id}!5640"),
            entry_format: ENTRY_FORMAT,
            release: "simulated".to_owned(),
        };
        let register = Command::ImageRegister {
            name: image.name.clone(),
            size_bytes: image.size_bytes,
            sha256: image.sha256.clone(),
        };
        let reporter = Reporter {
            id,
            follows,
            n: 0,
            at: HybridTime::from_millis(0),
            counter: 0,
            renew_at: world.now() + random.below(LEASE_MS / RENEWALS),
            lease_ends: u64::MAX,
            guests: BTreeMap::new(),
            due: BTreeSet::new(),
            reports: [reach, up, register].into(),
            sent: None,
        };
        self.all.insert(id, reporter);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.all.keys().copied().collect()
    }

    /// The host of a worker is gone, with all that ran there.
    pub fn die(&mut self, id: NodeId) {
        self.all.remove(&id);
        self.processes.retain(|_, node| *node != id);
    }

    /// Where a process of which VM is.
    pub fn processes(&self) -> &BTreeMap<VmId, NodeId> {
        &self.processes
    }

    /// All do what is to be done now.
    pub fn step(&mut self, world: &World, nodes: &[Node]) {
        for (voter, node) in nodes.iter().enumerate() {
            let Some(engine) = node.engine() else {
                // Whoever followed it looks at another one, and at all that it has there.
                if self.seen.remove(&voter).is_some() {
                    self.turn_from(world, voter, nodes);
                }
                continue;
            };
            let state = engine.state();
            let before = self.seen.insert(voter, state.clone()).unwrap_or_default();
            if before.seq() != state.seq() {
                self.hear(world, voter, &before, &state);
            }
        }
        let ids = self.ids();
        for id in ids {
            self.act(world, id);
            if let Some(reporter) = self.all.get_mut(&id) {
                reporter.append(world, nodes);
            }
        }
    }

    fn hear(&mut self, world: &World, voter: usize, before: &State, state: &State) {
        let mut changed: Vec<(NodeId, VmId)> = Vec::new();
        for (old, new) in state.vms_changed_since(before) {
            let of = |vm: Option<&Arc<Vm>>| vm.and_then(|vm| Some((vm.node?, vm.id)));
            changed.extend([of(old), of(new)].into_iter().flatten());
        }
        changed.sort_unstable();
        changed.dedup();
        for (node, vm) in changed {
            if self.all.get(&node).is_some_and(|reporter| reporter.follows == voter) {
                self.see(world, node, vm, state.vm(vm));
            }
        }
    }

    fn turn_from(&mut self, world: &World, voter: usize, nodes: &[Node]) {
        let followers: Vec<NodeId> = self.all.values().filter(|one| one.follows == voter).map(|one| one.id).collect();
        for id in followers {
            let Some(reporter) = self.all.get_mut(&id) else { continue };
            reporter.follow_another_if_down(nodes);
            let mut vms: BTreeSet<VmId> = reporter.guests.keys().copied().collect();
            let Some(engine) = nodes[reporter.follows].engine() else { continue };
            let state = engine.state();
            vms.extend(state.vms_on(id).map(|vm| vm.id));
            vms.into_iter().for_each(|vm| self.see(world, id, vm, state.vm(vm)));
        }
    }

    fn end(&mut self, id: NodeId, vm: VmId) {
        if let Some(reporter) = self.all.get_mut(&id)
            && reporter.guests.remove(&vm).is_some()
        {
            self.processes.remove(&vm);
        }
    }

    /// A worker sees what is to be of a VM that is its own, or was.
    fn see(&mut self, world: &World, id: NodeId, vm_id: VmId, vm: Option<&Arc<Vm>>) {
        let guest = self.all.get(&id).and_then(|reporter| reporter.guests.get(&vm_id)).copied();
        let Some(vm) = vm.filter(|vm| vm.node == Some(id)) else { return self.end(id, vm_id) };
        if guest.is_some_and(|guest| guest.generation != vm.generation) {
            self.end(id, vm_id);
            return self.see(world, id, vm_id, Some(vm));
        }
        let now = world.now();
        match vm.actual {
            Actual::Starting if guest.is_none() => self.launch(world, id, vm),
            Actual::Stopping => {
                let ends_at = now + world.random().between(20, 1_500);
                let Some(reporter) = self.all.get_mut(&id) else { return };
                match reporter.guests.get_mut(&vm_id) {
                    Some(guest) => {
                        guest.is_up = true;
                        reporter.due.insert((ends_at, vm_id));
                    }
                    None => reporter.report(vm_id, vm.generation, VmReport::Ended),
                }
            }
            Actual::Running | Actual::Paused if guest.is_none() => {
                world.violation(format!("node {id} has no process of vm {vm_id}, which is {}", vm.actual));
            }
            Actual::Deleting => {
                self.end(id, vm_id);
                if let Some(reporter) = self.all.get_mut(&id) {
                    reporter.report(vm_id, vm.generation, VmReport::Removed);
                }
            }
            _ => {}
        }
    }

    fn launch(&mut self, world: &World, id: NodeId, vm: &Vm) {
        let up_at = world.now() + world.random().between(50, 3_000);
        let Some(reporter) = self.all.get_mut(&id) else { return };
        reporter.guests.insert(vm.id, Guest { generation: vm.generation, fenced: vm.fenced, is_up: false });
        reporter.due.insert((up_at, vm.id));
        let other = self.processes.insert(vm.id, id);
        let others = other.map(|node| node.0).or_else(|| world.machines().of(vm.id.0).map(|host| host as u64 + 1));
        if let Some(other) = others {
            world.violation(format!("two processes of vm {}: on node {other} and on node {id}", vm.id));
        }
    }

    /// What is due at a worker.
    fn act(&mut self, world: &World, id: NodeId) {
        let now = world.now();
        let Some(reporter) = self.all.get_mut(&id) else { return };
        if now >= reporter.lease_ends {
            reporter.lease_ends = u64::MAX;
            let fenced = reporter.guests.iter().filter(|(_, guest)| guest.fenced);
            let fenced: Vec<(VmId, u64)> = fenced.map(|(vm, guest)| (*vm, guest.generation)).collect();
            for (vm, generation) in fenced {
                self.end(id, vm);
                self.all.entry(id).and_modify(|reporter| reporter.report(vm, generation, VmReport::Fenced));
            }
            return;
        }
        let mut gone = Vec::new();
        while let Some((_, vm)) = reporter.due.first().copied().filter(|(at, _)| *at <= now) {
            reporter.due.pop_first();
            let Some(guest) = reporter.guests.get_mut(&vm) else { continue };
            let generation = guest.generation;
            if guest.is_up {
                gone.push(vm);
                reporter.report(vm, generation, VmReport::Ended);
                continue;
            }
            guest.is_up = true;
            self.last_pid += 1;
            reporter.report(vm, generation, VmReport::Started { pid: self.last_pid });
            reporter.report(vm, generation, VmReport::GuestReady);
        }
        gone.into_iter().for_each(|vm| self.end(id, vm));
    }
}
