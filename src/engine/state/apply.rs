//! Taking an entry: is it new, is it allowed, does every command of it hold? All of them take effect, or none.
//!
//! In this order:
//! 1. Its submitter is a member: a node of the cluster. Only the entry that founds the cluster comes from nobody.
//! 2. It is newer than the last one of that node: its boot is higher, or the same with a higher number. What comes a second time,
//!    or late from a boot that a newer one has closed, changes nothing but the place in the log that the state is at.
//! 3. Its stamp is not behind the node's last one. From the stamps comes the cluster's time, [`State::now`], and from it every time
//!    in the state. No clock is read: that a stamp is not too far ahead is checked by its submitter.
//! 4. It has a bounded number of commands.
//! 5. Each command, in order, on a copy: does its key say that it was done before; may its user do this to that object; does
//!    the object take it. The first refusal is the entry's and says which command it is about, and the copy is dropped.
//!
//! An entry that is refused after the second step has been submitted all the same: it can't come again.

use super::membership::Joining;
use super::node::NodeReport;
use super::{
    About, By, Command, DEFAULT_NETWORK, DEFAULT_POOL, Directory, Entry, EntryId, Event, Kind, NOBODY, Node, NodeId,
    Operation, Outcome, Reply, Role, State, Subject, Touched, What,
};
use crate::clock::HybridTime;
use crate::mutants::{Mutant, planted};
use crate::text::attrs::shown;
use crate::text::{Refusal, name};
use ipnetwork::IpNetwork;
use std::net::IpAddr;

/// The node that a cluster begins with.
const FIRST_NODE: NodeId = NodeId(1);

/// An entry at work on a copy of the state.
pub(super) struct Work<'e> {
    pub(super) state: State,
    pub(super) seq: u64,
    pub(super) node: NodeId,
    /// Which start of the node it is that submits.
    pub(super) boot: u64,
    pub(super) by: &'e By,
    events: Vec<Event>,
}

impl State {
    /// The state after the entry, what became of it, and what happened. `seq` is its place in the log, one more than [`State::seq`].
    ///
    /// An entry that was applied before changes nothing but `seq`.
    pub fn apply(&self, seq: u64, entry: &Entry) -> (State, Outcome, Vec<Event>) {
        debug_assert_eq!(seq, self.seq + 1, "entries are applied in their order, without gaps");
        let (next, outcome, events) = self.decide(seq, entry);
        debug_assert!(!next.is_check_due() || next.check().is_ok(), "{:?} after {entry:?}", next.check());
        (next, outcome, events)
    }

    /// A debug build checks small states always, and large ones now and then: a check looks at everything, and so it is the rarer the more
    /// there is.
    fn is_check_due(&self) -> bool {
        let objects = self.vms.len() + self.users.len();
        objects < 64 || self.seq.is_multiple_of((objects as u64).next_power_of_two().max(256))
    }

    fn decide(&self, seq: u64, entry: &Entry) -> (State, Outcome, Vec<Event>) {
        let mut next = self.clone();
        next.seq = seq;
        if let Err(refusal) = next.admit(entry) {
            return (next, Err(refusal), Vec::new());
        }
        let EntryId { node, boot, .. } = entry.id;
        let mut work = Work { state: next.clone(), seq, node, boot, by: &entry.by, events: Vec::new() };
        match work.all(&entry.commands) {
            Ok(replies) => (work.state, Ok(replies), work.events),
            Err(refusal) => (next, Err(refusal), Vec::new()),
        }
    }

    /// Notes that the submitter has submitted this, unless it is not to be taken at all.
    fn admit(&mut self, entry: &Entry) -> Result<(), Refusal> {
        let founding = self.cluster.is_none() && matches!(entry.commands.as_slice(), [Command::Init { .. }]);
        if !founding && !self.nodes.contains_key(&entry.id.node) {
            return Err(Refusal::denied(format!("no permission: node {} is no member of this cluster", entry.id.node)));
        }
        let place = (entry.id.boot, entry.id.n);
        let before = |last: (u64, u64)| match last {
            (boot, _) if planted(Mutant::OldBoot) && boot != entry.id.boot => false,
            _ => place <= last && !planted(Mutant::Dedupe),
        };
        if self.last_of(entry.id.node).is_some_and(before) {
            return Err(Refusal::exists(format!("the entry {} exists already: it was applied before", entry.id)));
        }
        self.submitters.insert(entry.id.node, place);
        if let Some(newest) = self.stamps.get_mut(&entry.id.node) {
            if entry.at < *newest {
                return Err(Refusal::invalid(format!(
                    "invalid entry {}: its stamp lies before an older one's",
                    entry.id
                )));
            }
            *newest = entry.at;
        }
        if planted(Mutant::TimeBack) {
            self.now = entry.at;
        } else {
            self.tell_time(if founding { entry.at } else { self.median_stamp() });
        }
        if entry.commands.is_empty() || entry.commands.len() > Entry::COMMANDS_MAX {
            let (given, most) = (entry.commands.len(), Entry::COMMANDS_MAX);
            return Err(Refusal::invalid(format!(
                "invalid entry: it has {given} commands, and 1 to {most} is allowed"
            )));
        }
        Ok(())
    }

    fn tell_time(&mut self, now: HybridTime) {
        self.now = self.now.max(now);
        let now = self.now;
        self.keys.forget(now);
    }

    /// The lower median of the voters', so that no minority of fast clocks moves it.
    fn median_stamp(&self) -> HybridTime {
        let mut stamps: Vec<_> = self.voters().filter_map(|node| self.newest_stamp(node.id)).collect();
        stamps.sort_unstable();
        stamps.get(stamps.len().saturating_sub(1) / 2).copied().unwrap_or_default()
    }
}

impl Work<'_> {
    fn all(&mut self, commands: &[Command]) -> Result<Vec<Reply>, Refusal> {
        let mut replies = Vec::with_capacity(commands.len());
        for (nth, command) in commands.iter().enumerate() {
            let reply = self.once(command).map_err(|refusal| match commands.len() {
                1 => refusal,
                _ => refusal.of_nth(nth),
            })?;
            replies.push(reply);
        }
        self.settle()?;
        Ok(replies)
    }

    /// A command, unless its key says that it was done before.
    fn once(&mut self, command: &Command) -> Result<Reply, Refusal> {
        let Some(key) = Self::key_of(command) else { return self.one(command) };
        let user = self.user().to_owned();
        if let Some(reply) = self.state.keys.answer(&user, key, command)?.filter(|_| !planted(Mutant::KeyForgotten)) {
            return Ok(reply);
        }
        let reply = self.one(command)?;
        let now = self.state.now;
        self.state.keys.keep(&user, key, command, reply.clone(), now);
        Ok(reply)
    }

    fn one(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match command {
            Command::Init { cluster, node, admin, admin_uid } => self.init(cluster, node, admin, *admin_uid),
            Command::NodeUp { host_boot, hypervisor, memory_bytes, cpus, vcpus_max, arch, disk_bytes } => {
                self.agent_only()?;
                self.node_up(&NodeReport {
                    host_boot,
                    hypervisor,
                    memory_bytes: *memory_bytes,
                    cpus: *cpus,
                    vcpus_max: *vcpus_max,
                    arch,
                    disk_bytes: *disk_bytes,
                })
            }
            Command::NodeDown => {
                self.agent_only()?;
                self.node_down()
            }
            Command::VmNew { name, spec, .. } => self.vm_new(name.as_deref(), spec),
            Command::Vm { vm, verb, conditions } => self.vm_verb(*vm, verb, conditions),
            Command::VmReport { vm, generation, report } => {
                self.agent_only()?;
                self.vm_report(*vm, *generation, report)
            }
            Command::ImageRegister { name, size_bytes, sha256 } => {
                if *self.by != By::Agent {
                    self.allowed(About::Cluster, Operation::Administer, "images")?;
                }
                self.image_register(name, *size_bytes, sha256)
            }
            Command::ImageForget { name } => {
                if *self.by == By::Agent {
                    return self.image_gone(name);
                }
                self.allowed(About::Cluster, Operation::Administer, "images")?;
                self.image_forget(name)
            }
            Command::PoolNew { name, network, gateway, reserved } => {
                self.allowed(About::Cluster, Operation::Administer, "ipam/new")?;
                self.pool_new(name, *network, *gateway, reserved)
            }
            Command::PoolDelete { name } => {
                self.allowed(About::Cluster, Operation::Administer, "ipam")?;
                self.pool_delete(name)
            }
            Command::UserSet { name, role, uid } => {
                self.allowed(About::Cluster, Operation::Administer, "users")?;
                self.user_set(name, *role, *uid)
            }
            Command::UserNew { name, role, uid } => {
                self.allowed(About::Cluster, Operation::Administer, "users/new")?;
                self.user_new(name, *role, *uid)
            }
            Command::UserNewWithin { name, role, uid, within } => {
                self.allowed(About::Cluster, Operation::Administer, "users/new")?;
                self.user_confined(name, *role, *uid, within, true)
            }
            Command::UserSetWithin { name, role, uid, within } => {
                self.allowed(About::Cluster, Operation::Administer, "users")?;
                self.user_confined(name, *role, *uid, within, false)
            }
            Command::UserDelete { name } => {
                self.allowed(About::Cluster, Operation::Administer, "users")?;
                self.user_delete(name)
            }
            Command::CertificateRevoke { name, serial } => {
                self.allowed(About::Cluster, Operation::Administer, "users")?;
                self.certificate_revoke(name, serial)
            }
            Command::InviteNew { secret_sha256, role, expires_ms } => {
                self.invite_new(*secret_sha256, *role, *expires_ms)
            }
            Command::Node { node, verb, conditions } => self.node_verb(*node, *verb, conditions),
            Command::NodeSet { node, changes, conditions } => self.node_set(*node, changes, conditions),
            of_agents => {
                self.agent_only()?;
                self.of_agents(of_agents)
            }
        }
    }

    /// What nodes say of themselves and of each other.
    fn of_agents(&mut self, command: &Command) -> Result<Reply, Refusal> {
        match command {
            Command::NodeJoin { secret_sha256, name, address, entry_format, release } => {
                self.node_join(&Joining { secret_sha256, name, address, entry_format: *entry_format, release })
            }
            Command::NodeRaftNew { node, was } => self.node_raft_new(*node, *was),
            Command::NodeReach { address, entry_format, release } => self.node_reach(address, *entry_format, release),
            Command::LeaseRenew { counter, length_ms, .. } => self.lease_renew(*counter, *length_ms),
            Command::LeaseExpire { node, counter } => self.lease_expire(*node, *counter),
            other => Err(Refusal::fault(format!("the command '{other}' has nobody to take it"))),
        }
    }

    /// Who is behind the entry.
    pub(super) fn user(&self) -> &str {
        match self.by {
            By::User(name) => name,
            By::Agent => NOBODY,
        }
    }

    pub(super) fn allowed(&self, about: About, operation: Operation, what: &str) -> Result<(), Refusal> {
        let user = self.user();
        if self.state.may(user, about, operation) {
            return Ok(());
        }
        if !self.state.reaches(user, about) {
            return Err(Refusal::denied(format!("no permission for {what}: user '{}' is confined", shown(user))));
        }
        let owner = match about {
            About::Vm(id) => self.state.owner_of(id),
            About::Cluster => None,
        };
        let role = self.state.user_named(user).map_or("no role".to_owned(), |u| format!("the role {}", u.role));
        let owned = owner.map(|owner| format!(", which is user '{owner}'s")).unwrap_or_default();
        Err(Refusal::denied(format!("no permission for {what}{owned}: user '{}' has {role}", shown(user))))
    }

    fn agent_only(&self) -> Result<(), Refusal> {
        match self.by {
            By::Agent => Ok(()),
            By::User(_) => Err(Refusal::denied("no permission: only a node's own agent reports what is on it")),
        }
    }

    /// Something happened: it will be in `events`, and in the times of the directory.
    pub(super) fn event(&mut self, subject: Subject, what: What) {
        if let Some(kind) = subject.kind() {
            match what {
                What::Created | What::Removed => self.touch_members(kind),
                _ => self.touch(kind),
            }
        }
        self.events.push(Event { seq: self.seq, at: self.state.now, subject, what });
    }

    /// Something in an object of this kind has changed.
    pub(super) fn touch(&mut self, kind: Kind) {
        let touched = Touched { seq: self.seq, at: self.state.now };
        self.state.directories.entry(kind).or_default().objects = touched;
    }

    /// Which objects of this kind there are, or what they are called, has changed.
    pub(super) fn touch_members(&mut self, kind: Kind) {
        let touched = Touched { seq: self.seq, at: self.state.now };
        self.state.directories.insert(kind, Directory { members: touched, objects: touched });
    }

    /// `id=KEY` of a command.
    fn key_of(command: &Command) -> Option<&str> {
        match command {
            Command::VmNew { key, .. } => key.as_deref(),
            Command::Vm { conditions, .. } | Command::Node { conditions, .. } | Command::NodeSet { conditions, .. } => {
                conditions.key.as_deref()
            }
            _ => None,
        }
    }

    fn init(&mut self, cluster: &str, node: &str, admin: &str, admin_uid: u32) -> Result<Reply, Refusal> {
        if let Some(cluster) = self.state.cluster() {
            return Err(Refusal::exists(format!("the cluster '{cluster}' exists already")));
        }
        if self.node != FIRST_NODE {
            return Err(Refusal::invalid("invalid entry: the first node of a cluster is number 1"));
        }
        name::check(cluster)?;
        name::check(node)?;
        self.state.cluster = Some(cluster.to_owned());
        let (now, seq) = (self.state.now, self.seq);
        self.state.nodes.insert(FIRST_NODE, Node::new(FIRST_NODE, node, now, seq));
        self.state.stamps.insert(FIRST_NODE, now);
        (self.state.last_node, self.state.last_raft) = (FIRST_NODE.0, FIRST_NODE.0);
        // Of kinds without an object the directory is as old as the cluster.
        [Kind::Vm, Kind::Image].into_iter().for_each(|kind| self.touch_members(kind));
        self.event(Subject::Node(FIRST_NODE, node.into()), What::Created);
        self.user_set(admin, Role::Admin, Some(admin_uid))?;
        let network = DEFAULT_NETWORK.parse().map_err(|e| Refusal::fault(format!("the default network: {e}")))?;
        self.pool_new(DEFAULT_POOL, network, None, &[])?;
        self.event(Subject::Cluster, What::Created);
        Ok(Reply::Created(FIRST_NODE.0))
    }

    fn pool_new(
        &mut self,
        called: &str,
        network: IpNetwork,
        gateway: Option<IpAddr>,
        reserved: &[(IpAddr, IpAddr)],
    ) -> Result<Reply, Refusal> {
        let id = self.state.ipam.new_pool(called, network, gateway, reserved, self.state.now, self.seq)?;
        self.event(Subject::Pool(called.into()), What::Created);
        Ok(Reply::Created(id))
    }

    fn pool_delete(&mut self, called: &str) -> Result<Reply, Refusal> {
        name::check(called)?;
        self.state.ipam.delete_pool(called)?;
        self.event(Subject::Pool(called.into()), What::Removed);
        Ok(Reply::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_clusters_time_is_that_of_a_majority_and_never_falls(
            stamps in proptest::collection::vec((0_u64..8, 0_u64..1_000), 1..50),
        ) {
            let mut state = State::new();
            for (node, stamp) in stamps {
                // Nodes join as they are first heard of, with a stamp behind the others' or not.
                let id = NodeId(node + 1);
                state.nodes.entry(id).or_insert_with(|| Node::new(id, "n", HybridTime(0), 1));
                let newest = state.stamps.entry(id).or_default();
                *newest = HybridTime(stamp).max(*newest);
                let before = state.now;
                state.tell_time(state.median_stamp());
                prop_assert!(state.now >= before);
                let reached = state.stamps.values().filter(|newest| **newest >= state.now).count();
                prop_assert!(state.now == before || 2 * reached > state.nodes.len(), "a minority can't move it");
            }
        }
    }
}
