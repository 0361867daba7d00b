//! Who is a part of Raft, who votes, and who can be done without.

use super::Raft;
use crate::world::World;
use blixard::engine::state::{NodeId, NodeRole};

impl Raft {
    /// Can it lose its store? All other voters have theirs, and are a majority.
    pub fn can_spare(&self, node: usize) -> bool {
        let others = || self.members.iter().enumerate().filter(|(other, member)| *other != node && member.votes);
        let whole = others().filter(|(_, member)| !(member.dead || member.lost || member.doomed)).count();
        self.leader.is_some_and(|leader| leader != node)
            && whole == others().count()
            && (!self.members[node].votes || 2 * whole > self.voters())
    }

    /// Have the others a majority without it?
    pub fn can_go(&mut self, node: usize) -> bool {
        let votes = std::mem::replace(&mut self.members[node].votes, false);
        let can_go = (0..self.members.len()).any(|other| self.members[other].votes && self.has_majority(other));
        self.members[node].votes = votes;
        can_go
    }

    /// How many vote.
    pub fn voters(&self) -> usize {
        self.members.iter().filter(|member| member.votes).count()
    }

    /// One of the members, by a number that counts on.
    pub fn nth_member(&self, nth: usize) -> Option<usize> {
        let joined: Vec<usize> = (0..self.members.len()).filter(|node| self.members[*node].joined).collect();
        joined.get(nth.checked_rem(joined.len())?).copied()
    }

    /// How long something is on its way from one to the other and back, in milliseconds; None: it is not answered.
    pub fn way(&self, world: &World, from: usize, to: usize) -> Option<u64> {
        let mut random = world.random();
        let answers = self.is_up(to) && self.network.both(from, to);
        // What is lost is sent again, as TCP does.
        let again_ms = if random.percent(self.network.loss) { 200 } else { 0 };
        answers.then(|| again_ms + 2 * random.below(self.network.delay_most_ms + 1))
    }

    /// Who votes is as the state wants it: one change at a time, once those who would have to agree are there. Who is to vote has nearly
    /// everything by then.
    pub fn follow_state(&mut self, world: &World) {
        let Some(leader) = self.leader.filter(|leader| self.has_majority(*leader)) else { return };
        let reference = world.reference();
        let wanted = |node: usize| {
            let known = reference.state.node(NodeId(node as u64 + 1));
            known.is_some_and(|known| known.role == NodeRole::Voter)
        };
        let differs = |node: &usize| self.members[*node].joined && wanted(*node) != self.members[*node].votes;
        let Some(node) = (0..self.members.len()).find(differs) else { return };
        let (votes, near) = (wanted(node), self.members[node].store.applied + 64 >= self.ops.len());
        if votes && !(near && self.is_up(node) && self.network.both(leader, node)) {
            return;
        }
        self.members[node].votes = votes;
        let agrees = |node: usize| self.members[node].votes && self.has_majority(node);
        if !(0..self.members.len()).any(agrees) {
            self.members[node].votes = !votes;
            return;
        }
        world.note(format_args!("node {} votes: {votes}", node + 1));
        if node == leader {
            self.leader = None;
        }
    }

    /// It is no part of Raft any more.
    pub fn remove(&mut self, node: usize) {
        self.forget(node);
        let member = &mut self.members[node];
        (member.joined, member.votes, member.alive) = (false, false, false);
        if self.leader == Some(node) {
            self.leader = None;
        }
    }

    /// It is a part of Raft from now on, with an empty store.
    pub fn add(&mut self, node: usize, votes: bool) {
        let member = &mut self.members[node];
        (member.joined, member.votes, member.lost) = (true, votes, !votes);
    }
}
