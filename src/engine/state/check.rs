//! Every invariant of the state, in one function: tests, debug builds and simulators call it.

use super::event::EVENT_SENTENCE_BYTES_MAX;
use super::placement::{Group, turn};
use super::vm::{ERROR_BYTES_MAX, FAILURES_MAX};
use super::{
    Actual, Desired, HISTORY_MAX, History, NOBODY, Node, NodeId, Promised, Role, Schedule, State, UserId, Vm, VmId,
    What,
};
use crate::text::name;
use imbl::OrdMap;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The pairs that a VM can be in: the rows of `transitions.txt`.
const PAIRS: &[(Desired, Actual)] = &[
    (Desired::Stopped, Actual::Defined),
    (Desired::Running, Actual::Starting),
    (Desired::Paused, Actual::Starting),
    (Desired::Running, Actual::Running),
    (Desired::Paused, Actual::Running),
    (Desired::Running, Actual::Paused),
    (Desired::Paused, Actual::Paused),
    (Desired::Stopped, Actual::Stopping),
    (Desired::Running, Actual::Stopping),
    (Desired::Paused, Actual::Stopping),
    (Desired::Stopped, Actual::Stopped),
    (Desired::Running, Actual::Failed),
    (Desired::Paused, Actual::Failed),
    (Desired::Deleted, Actual::Deleting),
    (Desired::Running, Actual::Waiting),
    (Desired::Paused, Actual::Waiting),
];

/// A rule, and whether it holds.
type Rule = (bool, &'static str);

impl State {
    /// What must always hold; the first breach in a sentence.
    ///
    /// Not among it: that what is promised on a node fits its memory, because a node may come up with less than it had.
    ///
    /// # Errors
    /// A breach.
    pub fn check(&self) -> Result<(), String> {
        self.ipam.check()?;
        self.keys.check()?;
        self.vms.values().try_for_each(|vm| holds(&self.rules_of(vm), || format!("vm {vm:?}")))?;
        self.vms
            .iter()
            .try_for_each(|(id, vm)| holds(&[(*id == vm.id, "its key is its number")], || format!("vm {id}")))?;
        self.check_cluster()?;
        self.check_objects()?;
        self.check_access()?;
        self.check_names()?;
        self.check_promises()?;
        self.check_leases()
    }

    fn rules_of(&self, vm: &Vm) -> Vec<Rule> {
        let (failed, named) = (vm.actual == Actual::Failed, vm.name.as_deref());
        let there = matches!(vm.actual, Actual::Running | Actual::Paused);
        vec![
            ((1..=self.last_vm).contains(&vm.id.0), "its number is counted"),
            (PAIRS.contains(&(vm.desired, vm.actual)), "it is in a state of the table"),
            ((vm.generation == 0) == (vm.actual == Actual::Defined), "generation 0 is never started"),
            (vm.generation > 0 || vm.node.is_none(), "it is placed when it is first started"),
            (vm.node.is_none_or(|n| self.nodes.contains_key(&n)), "its node exists"),
            (
                vm.node.is_some() || !(vm.active() || vm.actual == Actual::Deleting),
                "what has a node's part is on a node",
            ),
            (vm.reserved.is_none() || vm.actual == Actual::Stopping, "room is kept for what ends elsewhere"),
            (vm.reserved.is_none_or(|n| self.nodes.contains_key(&n)), "where it is to go exists"),
            (
                vm.actual != Actual::Waiting || (vm.why.is_some() && vm.node.is_none() == vm.is_free()),
                "what waits is nowhere",
            ),
            ((vm.promised_bytes > 0) == (vm.promised_cpus > 0), "memory and CPUs are promised together"),
            (!vm.active() || vm.promised_bytes > 0, "what may have a process has memory promised"),
            (
                vm.active() || vm.retry_at_ms.is_some() || vm.promised_bytes == 0,
                "only what is to run has memory promised",
            ),
            (vm.retry_at_ms.is_none() || (failed && vm.failures < FAILURES_MAX), "only failed ones are retried"),
            (!failed || (vm.failures > 0 && vm.error.is_some()), "a failure is counted and explained"),
            (vm.pid.is_none() || there || vm.actual == Actual::Stopping, "a pid is that of a process"),
            (!there || (vm.pid.is_some() && vm.started.is_some()), "what runs has a pid and was started"),
            (vm.guest_ready <= vm.started.is_some(), "only a guest that runs is ready"),
            (vm.ip.is_some(), "it has its address until it is gone"),
            (named.is_none_or(|n| name::check(n).is_ok()), "its name is legal"),
            (named.is_none() || vm.actual != Actual::Deleting, "its name is free as soon as it is deleted"),
            (vm.spec.check().is_ok() && self.images.contains_key(&vm.spec.image), "its spec is within bounds"),
            (vm.error.as_ref().is_none_or(|e| e.len() <= ERROR_BYTES_MAX), "its error is bounded"),
            (vm.version > 0 && is_whole(&vm.history, self.seq), "its history is whole"),
            (vm.changed_seq <= self.seq && vm.changed <= self.now && vm.created <= vm.changed, "its times are past"),
        ]
    }

    fn check_cluster(&self) -> Result<(), String> {
        let admins = self.users.values().filter(|u| u.role == Role::Admin).count();
        let rules = [
            (self.cluster.is_some() != self.nodes.is_empty(), "a cluster has a node"),
            (self.cluster.is_some() == (admins > 0), "a cluster has an admin"),
            (
                self.directories.values().all(|d| d.members.seq <= d.objects.seq && d.objects.seq <= self.seq),
                "times are past",
            ),
        ];
        holds(&rules, || "the cluster".to_owned())
    }

    fn check_objects(&self) -> Result<(), String> {
        for (key, node) in &self.nodes {
            let submitted = self.submitters.contains_key(key);
            let rules = [
                (*key == node.id && submitted, "its key is its number, and it has submitted something"),
                (is_whole(&node.history, self.seq) && node.changed_seq <= self.seq, "its history is whole"),
                (!node.up || !node.host_boot.is_empty() || node.lease.counter > 0, "what is up has said what it is"),
                (key.0 <= self.last_node && node.raft.0 <= self.last_raft, "its numbers are counted"),
                (
                    self.node_of_raft(node.raft).is_some_and(|one| one.id == *key),
                    "nobody else has its identity in Raft",
                ),
            ];
            holds(&rules, || format!("node {key}"))?;
        }
        for (key, image) in &self.images {
            let rules = [
                (*key == image.name && (1..=self.last_image).contains(&image.id.0), "its number is counted"),
                (image.nodes.iter().all(|node| self.nodes.contains_key(node)), "its nodes exist"),
            ];
            holds(&rules, || format!("image {key}"))?;
        }
        for (key, user) in &self.users {
            let counted = *key == user.name && (1..=self.last_user).contains(&user.id.0);
            holds(&[(counted && key != NOBODY, "its number is counted")], || format!("user {key}"))?;
        }
        Ok(())
    }

    fn check_names(&self) -> Result<(), String> {
        let named: Vec<(Arc<str>, VmId)> =
            self.vms.values().filter_map(|vm| vm.name.as_deref().map(|n| (n.into(), vm.id))).collect();
        let names: OrdMap<Arc<str>, VmId> = named.iter().cloned().collect();
        let nodes: BTreeSet<&str> = self.nodes.values().map(|n| n.name.as_str()).collect();
        let ids: OrdMap<UserId, String> = self.users.values().map(|u| (u.id, u.name.clone())).collect();
        let uids: OrdMap<u32, String> = self.users.values().filter_map(|u| Some((u.uid?, u.name.clone()))).collect();
        let with_uid = self.users.values().filter(|u| u.uid.is_some()).count();
        let rules = [
            (names.len() == named.len(), "no two VMs have one name"),
            (uids.len() == with_uid && ids.len() == self.users.len(), "no two users have one uid or number"),
            (ids == self.user_ids && uids == self.user_uids, "the indexes of users match"),
            (names == self.vm_names, "the index of names matches"),
            (nodes.len() == self.nodes.len(), "no two nodes have one name"),
            (self.stamps.keys().eq(self.nodes.keys()), "each node has a stamp"),
        ];
        holds(&rules, || "names".to_owned())
    }

    fn check_promises(&self) -> Result<(), String> {
        let mut promised: OrdMap<NodeId, Promised> = OrdMap::new();
        let mut groups: OrdMap<Group, OrdMap<NodeId, u64>> = OrdMap::new();
        for vm in self.vms.values() {
            for (node, holds) in vm.holds() {
                let node = promised.entry(node).or_default();
                *node = node.and(holds);
            }
            for group in Group::of(vm) {
                for node in vm.places_counted() {
                    *groups.entry(group.clone()).or_default().entry(node).or_default() += 1;
                }
            }
        }
        let placed = self.vms.values().filter_map(|vm| Some((vm.node?, vm.id))).collect();
        let waiting = self.vms.values().filter(|vm| vm.actual == Actual::Waiting).map(|vm| turn(vm)).collect();
        let drains = |node: &&Node| matches!(node.schedule, Schedule::Draining | Schedule::Leaving);
        let draining = self.nodes.values().filter(drains).map(|node| node.id).collect();
        let rules = [
            (promised == self.promised, "what is promised is what VMs hold"),
            (groups == self.groups, "the groups are where their VMs are"),
            (self.placed == placed, "the index of nodes matches"),
            (self.waiting == waiting, "those that wait are known"),
            (self.draining == draining, "those that are drained are known"),
        ];
        holds(&rules, || format!("{:?}", self.promised))
    }

    fn check_leases(&self) -> Result<(), String> {
        let mut leased = 0;
        for (address, lease) in self.ipam.pools().flat_map(|p| p.leases()) {
            let holder = self.vms.get(&VmId(lease.holder));
            holds(&[(holder.is_some_and(|vm| vm.ip == Some(address)), "its holder has it")], || format!("{address}"))?;
            leased += 1;
        }
        holds(&[(leased == self.vms.len(), "each VM has one lease")], || "leases".to_owned())
    }
}

fn holds(rules: &[Rule], whose: impl FnOnce() -> String) -> Result<(), String> {
    match rules.iter().find(|(holds, _)| !holds) {
        Some((_, rule)) => Err(format!("broken: {rule}: {}", whose())),
        None => Ok(()),
    }
}

/// Can it be read to its end, in order and within bounds?
fn is_whole(history: &History, seq: u64) -> bool {
    let bounded = |what: &What| match what {
        What::Failed(sentence) | What::Trouble(sentence) | What::Waiting(sentence) => {
            sentence.len() <= EVENT_SENTENCE_BYTES_MAX
        }
        _ => true,
    };
    history.len() <= HISTORY_MAX
        && history.iter().count() == history.len()
        && history.iter().map(|(seq, ..)| seq).is_sorted()
        && history.iter().all(|(at, _, what)| at <= seq && bounded(&what))
}
