//! The log once more, applied where nothing goes wrong: what it must have led to on every node, and the rules that hold entry by entry.

use crate::placed::Placements;
use crate::world::World;
use blixard::engine::state::{Command, Entry, Event, NodeId, Reply, State, VmId};
use blixard::engine::{Engine, Events};
use blixard::ipam::QUARANTINE_MS;
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::atomic::Ordering;

/// What a command of a client has come to: the entries by which it took effect, and the VMs that it has made.
#[derive(Debug, Default)]
pub struct Effect {
    pub entries: BTreeSet<u64>,
    pub made: BTreeSet<u64>,
}

/// See the module.
#[derive(Default)]
pub struct Reference {
    pub state: State,
    /// The hashes of the states, at some entries.
    hashes: BTreeMap<u64, [u8; 32]>,
    applied: BTreeMap<NodeId, (u64, u64)>,
    /// By the token in the command.
    pub effects: BTreeMap<u64, Effect>,
    released: BTreeMap<IpAddr, u64>,
    /// When its holder first submitted a renewal, by its boot clock, in microseconds.
    renewals: BTreeMap<(NodeId, u64), u64>,
    pub expiries: u64,
    pub placements: Placements,
    /// What has happened, in order.
    events: Vec<Event>,
}

/// Hashing a state costs as much as a snapshot: of so many entries one is hashed.
const HASHED_EVERY: u64 = 8;

/// The number that makes a client's command known again.
pub fn token_of(command: &Command) -> Option<u64> {
    use blixard::engine::state::VmVerb;
    let (grace_ms, key) = match command {
        Command::VmNew { spec, key, .. } => (Some(spec.grace_ms), key),
        Command::Vm { verb: VmVerb::Set { changes, .. }, conditions, .. } => (changes.grace_ms, &conditions.key),
        Command::Vm { conditions, .. } => (None, &conditions.key),
        _ => return None,
    };
    let keyed = key.as_ref().and_then(|key| key.strip_prefix('k')?.parse().ok());
    keyed.or(grace_ms)
}

impl Reference {
    /// A node hands records to its log. With a renewal its lease begins.
    pub fn submitting(&mut self, world: &World, node: usize, records: &[Bytes]) {
        if world.plan.is_large {
            return;
        }
        for entry in records.iter().filter_map(|bytes| Entry::decode(bytes).ok()) {
            for command in &entry.commands {
                if let Command::LeaseRenew { counter, .. } = command {
                    let now = world.hosts[node].boot_us.load(Ordering::Relaxed);
                    self.renewals.entry((entry.id.node, *counter)).or_insert(now);
                }
            }
        }
    }

    /// Records are committed.
    pub fn committed(&mut self, world: &World, records: &[Bytes]) {
        for bytes in records {
            match Entry::decode(bytes) {
                // Of a large cluster it is only known what the log leads to.
                Ok(entry) if world.plan.is_large => self.state = self.state.apply(self.state.seq() + 1, &entry).0,
                Ok(entry) => self.take(world, &entry),
                Err(error) => world.violation(format!("a committed record can't be read: {error}")),
            }
        }
    }

    fn take(&mut self, world: &World, entry: &Entry) {
        let before = self.state.clone();
        let seq = before.seq() + 1;
        let (after, outcome, events) = before.apply(seq, entry);
        self.events.extend(events);
        self.state = after;
        let said = match &outcome {
            Ok(_) => "taken".to_owned(),
            Err(refusal) => format!("{:?}", refusal.code),
        };
        world.note(format_args!("{seq} {} {said}: {}", entry.id, shown(entry)));
        if self.state.now() < before.now() {
            world.violation(format!("entry {seq}: the cluster's time goes back"));
        }
        if let Err(breach) = self.state.check() {
            world.violation(format!("entry {seq}: {breach}"));
        }
        let place = (entry.id.boot, entry.id.n);
        let repeated = self.applied.get(&entry.id.node).is_some_and(|last| place <= *last);
        if repeated && self.state.hash() != before.hash() {
            world.violation(format!("entry {seq}: {} takes effect though it was there before", entry.id));
        }
        if !repeated {
            self.applied.insert(entry.id.node, place);
        }
        if seq.is_multiple_of(HASHED_EVERY) {
            self.hashes.insert(seq, self.state.hash());
        }
        for wrong in self.placements.look(&before, &self.state, entry) {
            world.violation(format!("entry {seq}: {wrong}"));
        }
        if outcome.is_ok() && before.cluster().is_some() && before.node(entry.id.node).is_none() {
            world.violation(format!("entry {seq}: {} is taken of a node that is no member", entry.id));
        }
        if let Ok(replies) = outcome {
            for (command, reply) in entry.commands.iter().zip(replies) {
                self.rule(world, &before, entry, command, &reply);
            }
        }
        self.releases(&before);
    }

    /// What must be true of a command that was taken.
    fn rule(&mut self, world: &World, before: &State, entry: &Entry, command: &Command, reply: &Reply) {
        let seq = self.state.seq();
        if let (Some(token), true) = (token_of(command), *reply != Reply::Unchanged) {
            let effect = self.effects.entry(token).or_default();
            effect.entries.insert(seq);
            if let Reply::Created(id) = reply {
                effect.made.insert(*id);
            }
        }
        match command {
            Command::VmReport { vm, generation, .. } => {
                let known = before.vm(*vm).map(|vm| (vm.generation, vm.node));
                if known != Some((*generation, Some(entry.id.node))) {
                    world.violation(format!(
                        "entry {seq}: a report about generation {generation} of vm {vm} by node {} is taken; the vm is at {known:?}",
                        entry.id.node
                    ));
                }
            }
            Command::LeaseExpire { node, counter } if *reply == Reply::Done => self.expires(world, *node, *counter),
            Command::VmNew { spec, .. } if spec.ip.is_none() => {
                let Reply::Created(id) = reply else { return };
                let address = self.state.vm(VmId(*id)).and_then(|vm| vm.ip);
                let new = before.vm(VmId(*id)).is_none();
                let free_at = address.and_then(|address| self.released.get(&address)).map(|at| at + QUARANTINE_MS);
                if new && free_at.is_some_and(|free_at| self.state.now().millis() < free_at) {
                    world.violation(format!("entry {seq}: vm {id} gets {address:?}, which is in quarantine"));
                }
            }
            _ => {}
        }
    }

    /// Others say that a lease is over: by its holder's clock it must be, too.
    fn expires(&mut self, world: &World, node: NodeId, counter: u64) {
        self.expiries += 1;
        let length_ms = self.state.node(node).map_or(0, |node| node.lease.length_ms);
        let newest = self.state.node(node).map_or(0, |node| node.lease.counter);
        let index = usize::try_from(node.0 - 1).unwrap_or(usize::MAX);
        let now = world.hosts.get(index).map_or(0, |host| host.boot_us.load(Ordering::Relaxed));
        let begun = self.renewals.get(&(node, newest)).copied().unwrap_or(0);
        if now < begun + length_ms * 1_000 {
            world.violation(format!(
                "the lease {counter} of node {node} is said to be over {} ms after number {newest} of {length_ms} ms had begun",
                (now - begun) / 1_000
            ));
        }
    }

    /// Addresses that came free by this entry.
    fn releases(&mut self, before: &State) {
        let now = self.state.now().millis();
        for (old, new) in self.state.vms_changed_since(before) {
            if let (Some(old), None) = (old, new) {
                self.released.extend(old.ip.map(|ip| (ip, now)));
            }
        }
    }

    /// A node has this state: it must be the one that the log leads to.
    pub fn compare(&self, world: &World, node: usize, state: &State) {
        if self.hashes.get(&state.seq()).is_some_and(|hash| *hash != state.hash()) {
            world.violation(format!(
                "node {} has another state than the log leads to at entry {}",
                node + 1,
                state.seq()
            ));
        }
    }

    /// A node tells of events: all of them, in their order, from where it began, or after what it says that it has lost. Up to which entry.
    pub fn compare_events(&self, world: &World, node: usize, engine: &Engine, after: Option<u64>) -> Option<u64> {
        let from = after.unwrap_or(0);
        match engine.events_after(from, usize::MAX) {
            Events::Lost { oldest } => Some(oldest),
            Events::Some(told) => {
                let newest = told.last().map_or(from, |event| event.seq);
                let begin = self.events.partition_point(|event| event.seq <= from);
                let end = self.events.partition_point(|event| event.seq <= newest);
                if self.events.get(begin..end) != Some(&told[..]) {
                    world.violation(format!("node {} tells other events after entry {from} than there were", node + 1));
                }
                Some(newest)
            }
        }
    }

    /// One of the records, for whoever wants to know how far it is.
    pub fn seq(&self) -> u64 {
        self.state.seq()
    }
}

fn shown(entry: &Entry) -> String {
    let all: Vec<String> = entry.commands.iter().take(3).map(ToString::to_string).collect();
    all.join("; ")
}
