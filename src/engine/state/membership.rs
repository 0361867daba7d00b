//! Who belongs to the cluster: invitations, machines that join, who votes, leases, and how a node goes.
//!
//! What is decided here is what is wanted of Raft; its leader makes it so. A node's identity in Raft is given once: whoever has
//! lost its store gets another, because the old one may have voted for what the new store has not.

use super::apply::Work;
use super::constraints::check_labels;
use super::node::{NodeChanges, RATIO_PERCENT, Ratios, Schedule};
use super::words::words;
use super::{
    About, Conditions, ENTRY_FORMAT, ENTRY_FORMAT_MIN, Kind, Node, NodeId, Operation, Reply, State, Subject, Vm, What,
};
use crate::mutants::{Mutant, planted};
use crate::text::attrs::shown;
use crate::text::{Refusal, name};
use serde::{Deserialize, Serialize};

/// Invitations that are open at a time: more machines than anybody starts in an hour.
pub const INVITES_MAX: usize = 64;
/// How long an invitation may be open, in milliseconds: a week.
pub const INVITE_MS_MAX: u64 = 7 * 24 * 3_600_000;
/// Voters at most: with seven a cluster survives three failures, and each further one makes every commit slower.
pub const VOTERS_MAX: usize = 7;
/// Nodes at most.
pub const NODES_MAX: usize = 1_024;
/// The longest address, in bytes: a DNS name (RFC 1035) and a port.
pub const ADDRESS_BYTES_MAX: usize = 262;
/// The longest release, in bytes.
pub const RELEASE_BYTES_MAX: usize = 64;

words!(
    /// What a node is to be in Raft.
    #[derive(Default)]
    NodeRole: "role" {
        /// It votes: it has the log, and is part of every majority.
        #[default]
        Voter = "voter",
        /// It has the log, and no vote.
        Learner = "learner",
        /// It is not part of Raft: it follows the log of a member.
        Worker = "worker",
    }
);

/// An identity in Raft: given by the cluster from 1 up, never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RaftId(pub u64);

/// By which a node says that it is there.
///
/// A lease is a length and a counter, and no time of day: its holder counts the length from before it submitted the renewal, and
/// whoever has waited longer than that since it applied the renewal may say that it is over, if the counter is still the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// Counts the renewals; 0: it never had one.
    pub counter: u64,
    /// How long it lasts, in milliseconds.
    pub length_ms: u64,
    /// Somebody has waited for longer than it lasts.
    pub expired: bool,
}

/// Up to where a node had applied the log, and what came of it: two nodes that say something else of one entry have diverged.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The entry.
    pub seq: u64,
    /// The first 8 bytes of the digest over all records up to it and what was decided about each.
    pub digest: u64,
}

/// A machine may join with it, once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invite {
    /// SHA-256 of the secret in its token.
    pub secret_sha256: [u8; 32],
    /// What the machine is to be.
    pub role: NodeRole,
    /// Until when, in milliseconds of the cluster's time.
    pub expires_ms: u64,
}

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeVerb {
    /// A learner is to vote.
    Promote,
    /// A voter is to have the log alone.
    Demote,
    /// It is no member any more; refused while VMs are placed there.
    Remove,
    /// It takes no more VMs. Since format 5, as all that follow.
    Cordon,
    /// And those that are there are moved away, one at a time.
    Drain,
    /// It takes VMs again; what has not moved stays.
    Undrain,
    /// It is drained, and then no member any more.
    Leave,
    /// It is no member any more, and gone for good: what was placed there is begun elsewhere, and its disks are lost. Refused while it is there.
    Forget,
}

impl NodeVerb {
    /// The format of entries that it came with.
    pub(super) fn since(self) -> u8 {
        match self {
            NodeVerb::Promote | NodeVerb::Demote | NodeVerb::Remove => super::ENTRY_FORMAT_MIN,
            NodeVerb::Cordon | NodeVerb::Drain | NodeVerb::Undrain | NodeVerb::Leave | NodeVerb::Forget => 5,
        }
    }
}

/// Who joins, and with what.
pub(super) struct Joining<'c> {
    pub(super) secret_sha256: &'c [u8; 32],
    pub(super) name: &'c str,
    pub(super) address: &'c str,
    pub(super) entry_format: u8,
    pub(super) release: &'c str,
}

impl State {
    /// The highest format of entries that every node knows: a newer one must wait until the last node is upgraded.
    pub fn entry_format(&self) -> u8 {
        self.nodes.values().map(|node| node.entry_format).min().unwrap_or(ENTRY_FORMAT)
    }

    /// The nodes that are to vote.
    pub fn voters(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values().filter(|node| node.role == NodeRole::Voter)
    }

    /// Does the secret with this hash open anything: an invitation, or the way of a machine that has joined with it and was not up yet?
    pub fn knows_token(&self, secret_sha256: &[u8; 32]) -> bool {
        self.invites.values().any(|invite| invite.secret_sha256 == *secret_sha256)
            || self.nodes.values().any(|node| node.joined_with == Some(*secret_sha256))
    }

    /// The node that has this identity in Raft.
    pub fn node_of_raft(&self, raft: RaftId) -> Option<&Node> {
        self.nodes.values().find(|node| node.raft == raft)
    }
}

impl Work<'_> {
    pub(super) fn invite_new(
        &mut self,
        secret_sha256: [u8; 32],
        role: NodeRole,
        expires_ms: u64,
    ) -> Result<Reply, Refusal> {
        self.allowed(About::Cluster, Operation::Administer, "nodes/new")?;
        let now_ms = self.state.now.millis();
        if expires_ms <= now_ms || expires_ms > now_ms.saturating_add(INVITE_MS_MAX) {
            return Err(Refusal::invalid(
                "invalid expires=: an invitation is open for at least a moment and at most a week",
            ));
        }
        let open = |invite: &Invite| invite.expires_ms > now_ms;
        self.state.invites =
            self.state.invites.iter().filter(|(_, i)| open(i)).map(|(id, i)| (*id, i.clone())).collect();
        if self.state.invites.len() >= INVITES_MAX {
            return Err(Refusal::no_space(format!(
                "no capacity: {INVITES_MAX} invitations are open, which is the most; wait until they are used or expire"
            )));
        }
        let id = self.state.last_invite + 1;
        self.state.last_invite = id;
        self.state.invites.insert(id, Invite { secret_sha256, role, expires_ms });
        Ok(Reply::Created(id))
    }

    pub(super) fn node_join(&mut self, joining: &Joining<'_>) -> Result<Reply, Refusal> {
        name::check(joining.name)?;
        check_address(joining.address)?;
        check_format(joining.name, joining.entry_format, self.state.entry_format())?;
        check_release(joining.release)?;
        // What it was told did not reach it, and it asks again.
        let before = self.state.nodes.values().find(|node| node.joined_with == Some(*joining.secret_sha256));
        if let Some(node) =
            before.filter(|node| (node.name.as_str(), node.address.as_str()) == (joining.name, joining.address))
        {
            return Ok(Reply::Created(node.id.0));
        }
        let now_ms = self.state.now.millis();
        let found = self.state.invites.iter().find(|(_, invite)| invite.secret_sha256 == *joining.secret_sha256);
        let Some((id, invite)) = found.map(|(id, invite)| (*id, invite.clone())) else {
            return Err(unknown_token());
        };
        if invite.expires_ms <= now_ms {
            return Err(Refusal::denied(
                "no permission: this token has expired; 'blixard cluster invite' makes a new one",
            ));
        }
        if let Some(node) = self.state.node_named(joining.name) {
            return Err(Refusal::exists(format!(
                "node '{}' exists already, as number {}: join under another --name, or remove that one first if it is gone for \
                 good; the token is still good",
                node.name, node.id
            )));
        }
        if self.state.nodes.len() >= NODES_MAX {
            return Err(Refusal::no_space(format!("no capacity: {NODES_MAX} nodes are the most")));
        }
        if invite.role == NodeRole::Voter && self.state.voters().count() >= VOTERS_MAX {
            return Err(too_many_voters());
        }
        self.state.invites.remove(&id);
        let (now, seq) = (self.state.now, self.seq);
        let (node_id, raft) = (NodeId(self.state.last_node + 1), RaftId(self.state.last_raft + 1));
        (self.state.last_node, self.state.last_raft) = (node_id.0, raft.0);
        let node = Node {
            role: invite.role,
            raft,
            joined_with: Some(*joining.secret_sha256),
            address: joining.address.to_owned(),
            entry_format: joining.entry_format,
            release: joining.release.to_owned(),
            ..Node::new(node_id, joining.name, now, seq)
        };
        self.state.nodes.insert(node_id, node);
        self.state.stamps.insert(node_id, now);
        // It has submitted nothing, and what it submits begins with its first start.
        self.state.submitters.insert(node_id, (0, 0));
        self.event(Subject::Node(node_id, joining.name.into()), What::Created);
        Ok(Reply::Created(node_id.0))
    }

    pub(super) fn node_raft_new(&mut self, id: NodeId, was: RaftId) -> Result<Reply, Refusal> {
        let raft = RaftId(self.state.last_raft + 1);
        let node = self.node_there(id)?;
        if node.raft != was {
            return Ok(Reply::Created(node.raft.0));
        }
        self.state.last_raft = raft.0;
        self.change_node_of(id, What::NewStore, |node| node.raft = raft)?;
        Ok(Reply::Created(raft.0))
    }

    pub(super) fn node_reach(&mut self, address: &str, entry_format: u8, release: &str) -> Result<Reply, Refusal> {
        if !address.is_empty() {
            check_address(address)?;
        }
        check_release(release)?;
        let node = self.node_there(self.node)?;
        if (node.address.as_str(), node.entry_format, node.release.as_str()) == (address, entry_format, release) {
            return Ok(Reply::Unchanged);
        }
        let others = self.state.nodes.values().filter(|node| node.id != self.node).map(|node| node.entry_format).min();
        check_format(&node.name, entry_format, others.unwrap_or(entry_format))?;
        self.change_node(What::Set, |node| {
            address.clone_into(&mut node.address);
            node.entry_format = entry_format;
            release.clone_into(&mut node.release);
        })
    }

    pub(super) fn node_verb(&mut self, id: NodeId, verb: NodeVerb, conditions: &Conditions) -> Result<Reply, Refusal> {
        let node = self.node_to_change(id, conditions)?;
        match verb {
            NodeVerb::Promote | NodeVerb::Demote if node.role == NodeRole::Worker => Err(Refusal::busy(format!(
                "node '{}' is busy being a worker and has no log: remove it, and invite it as a learner",
                node.name
            ))),
            NodeVerb::Promote if node.role == NodeRole::Voter => Ok(Reply::Unchanged),
            NodeVerb::Promote if self.state.voters().count() >= VOTERS_MAX => Err(too_many_voters()),
            NodeVerb::Promote => self.change_node_of(id, What::Set, |node| node.role = NodeRole::Voter),
            NodeVerb::Demote if node.role == NodeRole::Learner => Ok(Reply::Unchanged),
            NodeVerb::Demote => {
                self.check_majority_without(&node)?;
                self.change_node_of(id, What::Set, |node| node.role = NodeRole::Learner)
            }
            NodeVerb::Remove => self.node_remove(&node),
            NodeVerb::Forget if node.is_there() => Err(Refusal::busy(format!(
                "node '{}' is busy being there: drain and remove it, or switch it off first",
                node.name
            ))),
            // One that was only ended has machines that go on, and fences that end them when its lease is over.
            NodeVerb::Forget if node.lease.counter != 0 && !node.lease.expired => Err(Refusal::busy(format!(
                "node '{}' is busy: its lease is not over yet, and what it had may run until then: try again in {} s",
                node.name,
                node.lease.length_ms.div_ceil(1_000)
            ))),
            NodeVerb::Forget => {
                self.check_majority_without(&node)?;
                self.each_on(id, |vm| vm.node_forgotten(&node.name))?;
                self.node_remove(&node)
            }
            NodeVerb::Cordon | NodeVerb::Drain | NodeVerb::Undrain | NodeVerb::Leave => self.node_schedule(&node, verb),
        }
    }

    /// A node that this user may change, if it is as it was thought to be.
    fn node_to_change(&self, id: NodeId, conditions: &Conditions) -> Result<Node, Refusal> {
        let node = self.node_there(id)?;
        self.allowed(About::Cluster, Operation::Administer, &format!("nodes/{}", node.name))?;
        match conditions.version.filter(|version| *version != node.version) {
            None => Ok(node),
            Some(wanted) => Err(Refusal::stale(format!(
                "version={wanted} did not match: node '{}' has version {} by now",
                node.name, node.version
            ))),
        }
    }

    fn node_schedule(&mut self, node: &Node, verb: NodeVerb) -> Result<Reply, Refusal> {
        let (schedule, what) = match (verb, node.schedule) {
            (NodeVerb::Cordon, _) => (Schedule::Cordoned, What::Cordoned),
            (NodeVerb::Drain, Schedule::Drained) => return Ok(Reply::Unchanged),
            (NodeVerb::Drain, _) => (Schedule::Draining, What::Draining),
            (NodeVerb::Leave, _) => {
                self.check_majority_without(node)?;
                (Schedule::Leaving, What::Leaving)
            }
            _ => (Schedule::Open, What::Undrained),
        };
        if schedule == node.schedule {
            return Ok(Reply::Unchanged);
        }
        if matches!(schedule, Schedule::Draining | Schedule::Leaving) {
            self.state.draining.insert(node.id);
        } else {
            self.state.draining.remove(&node.id);
        }
        // What moves already moves on by itself.
        let moving = node.moving.filter(|_| self.state.draining.contains(&node.id) || planted(Mutant::DrainGoesOn));
        self.change_node_of(node.id, what, |node| (node.schedule, node.moving) = (schedule, moving))
    }

    pub(super) fn node_set(
        &mut self,
        id: NodeId,
        changes: &NodeChanges,
        conditions: &Conditions,
    ) -> Result<Reply, Refusal> {
        let node = self.node_to_change(id, conditions)?;
        let labels = changes.labels.clone().unwrap_or_else(|| node.labels.clone());
        check_labels(&labels)?;
        let ratios = Ratios {
            memory_percent: changes.memory_percent.unwrap_or(node.ratios.memory_percent),
            cpus_percent: changes.cpus_percent.or(node.ratios.cpus_percent),
            disk_percent: changes.disk_percent.unwrap_or(node.ratios.disk_percent),
        };
        let given = [Some(ratios.memory_percent), ratios.cpus_percent, Some(ratios.disk_percent)];
        if given.into_iter().flatten().any(|ratio| !RATIO_PERCENT.contains(&ratio)) {
            let (least, most) = (RATIO_PERCENT.start(), RATIO_PERCENT.end());
            return Err(Refusal::invalid(format!("invalid ratio: {least}% to {most}% is allowed")));
        }
        if (&labels, ratios) == (&node.labels, node.ratios) {
            return Ok(Reply::Unchanged);
        }
        self.change_node_of(id, What::Set, |node| (node.labels, node.ratios) = (labels, ratios))
    }

    pub(super) fn node_remove(&mut self, node: &Node) -> Result<Reply, Refusal> {
        self.check_majority_without(node)?;
        let placed: Vec<String> = self.state.vms_on(node.id).map(|vm| vm.id.to_string()).take(9).collect();
        if !placed.is_empty() {
            return Err(Refusal::busy(format!(
                "node '{}' is busy: vms {} are there; drain it first, and delete those whose disks are there",
                node.name,
                placed.join(" ")
            )));
        }
        self.give_up_moves_to(node.id);
        self.images_without(node.id);
        self.state.draining.remove(&node.id);
        self.state.nodes.remove(&node.id);
        self.state.stamps.remove(&node.id);
        self.state.submitters.remove(&node.id);
        self.state.promised.remove(&node.id);
        self.event(Subject::Node(node.id, node.name.as_str().into()), What::Removed);
        Ok(Reply::Done)
    }

    /// The others must be able to go on: a majority of the voters that remain has to be there.
    fn check_majority_without(&self, node: &Node) -> Result<(), Refusal> {
        if node.role != NodeRole::Voter {
            return Ok(());
        }
        let others: Vec<&Node> = self.state.voters().filter(|other| other.id != node.id).collect();
        let there = others.iter().filter(|other| other.is_there()).count();
        if others.is_empty() {
            return Err(Refusal::busy(format!(
                "node '{}' is busy being the last voter: let another one in first",
                node.name
            )));
        }
        if 2 * there <= others.len() {
            let missing: Vec<&str> = others.iter().filter(|o| !o.is_there()).map(|o| o.name.as_str()).collect();
            return Err(Refusal::busy(format!(
                "node '{}' is busy: without it {there} of {} voters would be there, which is no majority; bring back, or remove, {}",
                node.name,
                others.len(),
                missing.join(", ")
            )));
        }
        Ok(())
    }

    pub(super) fn lease_renew(&mut self, counter: u64, length_ms: u64) -> Result<Reply, Refusal> {
        let node = self.node_there(self.node)?;
        if counter != node.lease.counter + 1 {
            return Err(Refusal::stale(format!(
                "the lease of node '{}' was renewed {} times, and this would be number {counter}",
                node.name, node.lease.counter
            )));
        }
        let lease = Lease { counter, length_ms, expired: false };
        // A start whose agent is not up, and may never be, renews as well: it must not be given machines.
        let has_agent = node.up_start == self.boot;
        if node.lease.expired {
            return self.change_node(What::Back, |node| (node.lease, node.up) = (lease, has_agent));
        }
        if node.up && !has_agent {
            return self.change_node(What::Down, |node| (node.lease, node.up) = (lease, false));
        }
        // Not a change that anybody has to hear of: there are many each second.
        if let Some(node) = self.state.nodes.get_mut(&self.node) {
            node.lease = lease;
        }
        Ok(Reply::Done)
    }

    pub(super) fn lease_expire(&mut self, id: NodeId, counter: u64) -> Result<Reply, Refusal> {
        let node = self.node_there(id)?;
        let renewed = node.lease.counter != counter && !planted(Mutant::LeaseCounter);
        if renewed || node.lease.expired || counter == 0 {
            return Ok(Reply::Unchanged);
        }
        self.change_node_of(id, What::Lost, |node| (node.lease.expired, node.up) = (true, false))?;
        // Those that it is sure to have ended begin elsewhere, or wait.
        self.each_on(id, Vm::node_lost)?;
        Ok(Reply::Done)
    }

    fn node_there(&self, id: NodeId) -> Result<Node, Refusal> {
        let gone = || Refusal::not_found(format!("node {id} was not found: it has been removed, or never was"));
        self.state.nodes.get(&id).cloned().ok_or_else(gone)
    }

    pub(super) fn change_node_of(
        &mut self,
        id: NodeId,
        what: What,
        change: impl FnOnce(&mut Node),
    ) -> Result<Reply, Refusal> {
        let (now, seq) = (self.state.now, self.seq);
        let Some(node) = self.state.nodes.get_mut(&id) else {
            return Err(Refusal::not_found(format!("node {id} was not found")));
        };
        change(node);
        node.version += 1;
        (node.changed, node.changed_seq) = (now, seq);
        node.history.push(seq, now, &what);
        let subject = Subject::Node(id, node.name.as_str().into());
        self.event(subject, what);
        self.touch(Kind::Node);
        self.room_grew();
        Ok(Reply::Done)
    }
}

/// The refusal of a token that opens nothing.
pub fn unknown_token() -> Refusal {
    Refusal::denied(
        "no permission: this token is not known here: it was used before, has expired, or is another cluster's; \
         'blixard cluster invite' makes a new one",
    )
}

fn too_many_voters() -> Refusal {
    Refusal::no_space(format!(
        "no capacity: {VOTERS_MAX} voters are the most; demote one first, or let it in as a learner"
    ))
}

fn check_address(address: &str) -> Result<(), Refusal> {
    let legal = address.len() <= ADDRESS_BYTES_MAX
        && address.split_once('!').is_some_and(|(host, port)| {
            !host.is_empty() && !host.contains([' ', '*', '!']) && port.parse::<u16>().is_ok_and(|port| port != 0)
        });
    if legal {
        return Ok(());
    }
    Err(Refusal::invalid(format!("invalid address '{}': it is HOST!PORT, as alpha!5640", shown(address))))
}

fn check_release(release: &str) -> Result<(), Refusal> {
    if release.len() <= RELEASE_BYTES_MAX {
        return Ok(());
    }
    Err(Refusal::invalid(format!("invalid release: it has at most {RELEASE_BYTES_MAX} bytes")))
}

/// Can a node that knows formats up to this one be among those that write `spoken`?
fn check_format(called: &str, known: u8, spoken: u8) -> Result<(), Refusal> {
    if known < spoken {
        return Err(Refusal::invalid(format!(
            "invalid version: node '{called}' knows entries up to format {known}, and this cluster writes format {spoken}: upgrade \
             its blixard first"
        )));
    }
    if known < ENTRY_FORMAT_MIN {
        return Err(Refusal::invalid(format!("invalid version: the oldest format of entries is {ENTRY_FORMAT_MIN}")));
    }
    Ok(())
}
