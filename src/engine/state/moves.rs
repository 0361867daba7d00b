//! VMs that change their node: of a node that is lost, of one that is drained, and those that wait for room.
//!
//! What follows from an entry is decided at its end, by [`Work::settle`], in bounded portions: an entry never costs more than looking at
//! so many VMs, and what is left is gone on with at the next one. Renewals of leases see to it that there always is one.
//!
//! A drain moves one VM at a time, so that what several machines do together goes on meanwhile: room is kept for it elsewhere, it ends, it
//! begins there, and only when it runs, or has failed to, the next one follows.

use super::apply::Work;
use super::node::Schedule;
use super::placement::{Placed, place, place_again, turn};
use super::vm::Change;
use super::{Actual, Node, NodeId, Reply, State, Vm, VmId, What};
use crate::mutants::{Mutant, planted};
use crate::text::Refusal;
use imbl::OrdSet;
use serde::{Deserialize, Serialize};
use std::ops::Bound;
use std::sync::Arc;

/// VMs that are looked at in one entry for one purpose.
const LOOKED_AT_MAX: usize = 256;

/// How far the look for room has come.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Look {
    /// It goes on after this one; None: it is at its end.
    after: Option<(u8, VmId)>,
    /// There is more room than when it began: it is to begin again.
    again: bool,
}

/// What becomes of a VM that is to begin and for which there is no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutRoom {
    /// Whoever asked for it is told.
    Refuse,
    /// It was to run anyway: it waits.
    Wait,
}

/// VMs of which a node's status says why they stay.
const STAYING_MAX: usize = 8;

impl State {
    /// What a drain of a node can't move now, and why, for people: a few of them.
    pub fn stays(&self, node: &Node) -> Vec<(VmId, String)> {
        if !self.draining.contains(&node.id) {
            return Vec::new();
        }
        let there = self.vms_on(node.id).filter(|vm| Some(vm.id) != node.moving);
        let why = |vm: &Arc<Vm>| match place(self, vm, Some(node.id)) {
            _ if !vm.is_free() => Some((vm.id, "its disk is here: stop and delete it, or undrain".to_owned())),
            Err(refusal) if vm.may_move() => Some((vm.id, refusal.sentence)),
            _ => None,
        };
        there.take(LOOKED_AT_MAX).filter_map(why).take(STAYING_MAX).collect()
    }
}

impl Work<'_> {
    /// There may be room now where there was none.
    pub(super) fn room_grew(&mut self) {
        self.state.look.again = true;
    }

    /// What follows from what has happened.
    pub(super) fn settle(&mut self) -> Result<(), Refusal> {
        if self.state.draining.is_empty() && self.state.waiting.is_empty() && !planted(Mutant::DrainGoesOn) {
            self.state.look = Look::default();
            return Ok(());
        }
        let (room_grew, mut goes_on) = (self.state.look.again, false);
        let cancelled = |node: &&Node| node.moving.is_some() && planted(Mutant::DrainGoesOn);
        let cancelled: Vec<NodeId> = self.state.nodes.values().filter(cancelled).map(|node| node.id).collect();
        for id in self.state.draining.clone().into_iter().chain(cancelled) {
            goes_on |= self.drain_on(id, room_grew)?;
        }
        self.place_waiting();
        if goes_on {
            self.room_grew();
        }
        Ok(())
    }

    /// Begins those that wait and for which there is room.
    fn place_waiting(&mut self) {
        let mut after = match &self.state.look {
            Look { after: Some(after), .. } => Bound::Excluded(*after),
            Look { again: true, .. } => Bound::Unbounded,
            Look { .. } => return,
        };
        if after == Bound::Unbounded {
            self.state.look.again = false;
        }
        let next: Vec<_> = self.state.waiting.range((after, Bound::Unbounded)).take(LOOKED_AT_MAX).copied().collect();
        // Of one image, whoever wants as much as one without constraints for whom there was no room has none either.
        let mut in_vain: Option<Vm> = None;
        for turn in &next {
            after = Bound::Excluded(*turn);
            let Some(vm) = self.state.vms.get(&turn.1).map(|vm| Vm::clone(vm)) else { continue };
            let wants_no_less = |less: &Vm| {
                vm.spec.image == less.spec.image
                    && vm.spec.memory_bytes >= less.spec.memory_bytes
                    && vm.spec.cpus >= less.spec.cpus
            };
            if in_vain.as_ref().is_some_and(wants_no_less) {
                continue;
            }
            match place(&self.state, &vm, None) {
                Ok(placed) => self.begin_at(vm, &placed, false),
                Err(_) if vm.is_free() && vm.spec.constraints == Default::default() => in_vain = Some(vm),
                Err(_) => {}
            }
        }
        let is_end = next.len() < LOOKED_AT_MAX;
        self.state.look.after = match after {
            Bound::Excluded(at) if !is_end => Some(at),
            _ => None,
        };
    }

    /// A step of a drain, if it is time for one. True: there is more to do with the next entry, whatever that is.
    fn drain_on(&mut self, id: NodeId, room_grew: bool) -> Result<bool, Refusal> {
        let moving = self.state.nodes.get(&id).and_then(|node| node.moving);
        if moving.is_some_and(|moving| !self.has_moved(moving, id)) || !(moving.is_some() || room_grew) {
            return Ok(false);
        }
        self.node_moves(id, None);
        if let Some((vm, placed)) = self.next_to_move(id) {
            let called = self.state.nodes.get(&placed.node).map(|node| node.name.clone()).unwrap_or_default();
            let mut vm = Vm::clone(&vm);
            self.node_moves(id, Some(vm.id));
            let what = vm.move_to(placed.node, &called);
            self.put(vm, what);
            return Ok(false);
        }
        let goes_on = self.take_off_resting(id);
        self.finish_drain(id)?;
        Ok(goes_on)
    }

    /// Is a move over: it runs elsewhere, or came to an end?
    fn has_moved(&self, moving: VmId, from: NodeId) -> bool {
        self.state.vms.get(&moving).is_none_or(|vm| {
            let is_under_way = matches!(vm.actual, Actual::Stopping | Actual::Starting);
            !is_under_way || (vm.actual == Actual::Starting && vm.node == Some(from))
        })
    }

    fn node_moves(&mut self, id: NodeId, moving: Option<VmId>) {
        if let Some(node) = self.state.nodes.get_mut(&id) {
            node.moving = moving;
        }
    }

    /// The first that can be moved to somewhere.
    fn next_to_move(&self, id: NodeId) -> Option<(Arc<Vm>, Placed)> {
        let movable = self.state.vms_on(id).filter(|vm| vm.may_move()).take(LOOKED_AT_MAX);
        movable.filter_map(|vm| place(&self.state, vm, Some(id)).ok().map(|placed| (vm.clone(), placed))).next()
    }

    /// Those that don't run, and of which nothing is only here. True: there may be more.
    fn take_off_resting(&mut self, id: NodeId) -> bool {
        let rests = |vm: &&Arc<Vm>| {
            vm.is_free() && matches!(vm.actual, Actual::Stopped | Actual::Failed) && vm.retry_at_ms.is_none()
        };
        let resting: Vec<Arc<Vm>> = self.state.vms_on(id).filter(rests).take(LOOKED_AT_MAX).cloned().collect();
        for vm in &resting {
            let mut vm = Vm::clone(vm);
            let what = vm.take_off();
            self.put(vm, what);
        }
        resting.len() == LOOKED_AT_MAX
    }

    fn finish_drain(&mut self, id: NodeId) -> Result<(), Refusal> {
        if self.state.vms_on(id).next().is_some() {
            return Ok(());
        }
        let Some(node) = self.state.nodes.get(&id).cloned() else { return Ok(()) };
        self.state.draining.remove(&id);
        match node.schedule {
            Schedule::Draining => self.change_node_of(id, What::Drained, |node| node.schedule = Schedule::Drained)?,
            // If the others can't go on without it, it stays, empty, and may be removed later.
            Schedule::Leaving => match self.node_remove(&node) {
                Ok(reply) => reply,
                Err(refusal) => {
                    let what = What::trouble(&refusal.sentence);
                    self.change_node_of(id, what, |node| node.schedule = Schedule::Drained)?
                }
            },
            Schedule::Open | Schedule::Cordoned | Schedule::Drained => Reply::Unchanged,
        };
        Ok(())
    }

    /// Something has become of a node, and so of each of its VMs.
    pub(super) fn each_on(&mut self, id: NodeId, become_of: impl Fn(&mut Vm) -> Change) -> Result<(), Refusal> {
        let there: Vec<Arc<Vm>> = self.state.vms_on(id).cloned().collect();
        for vm in there {
            let mut vm = Vm::clone(&vm);
            let change = become_of(&mut vm);
            self.carry_out(vm, change, WithoutRoom::Wait)?;
        }
        Ok(())
    }

    /// Nothing is moved to this node any more. All VMs are looked at: what is on its way goes on when its drain was cancelled, and is in no
    /// index then. Nodes go seldom.
    pub(super) fn give_up_moves_to(&mut self, id: NodeId) {
        let reserved = |vm: &&Arc<Vm>| vm.reserved == Some(id);
        let moving: Vec<Arc<Vm>> = self.state.vms.values().filter(reserved).cloned().collect();
        for vm in moving {
            self.put(Vm { reserved: None, ..Vm::clone(&vm) }, What::StartingAgain);
        }
    }

    /// The next generation.
    pub(super) fn begin(&mut self, mut vm: Vm, without_room: WithoutRoom) -> Result<(), Refusal> {
        match (place(&self.state, &vm, None), without_room) {
            (Ok(placed), _) => self.begin_at(vm, &placed, false),
            (Err(refusal), WithoutRoom::Refuse) => return Err(refusal),
            (Err(refusal), WithoutRoom::Wait) => {
                let what = vm.wait(&refusal.sentence);
                self.put(vm, what);
            }
        }
        Ok(())
    }

    /// The next generation where this one is.
    pub(super) fn begin_again(&mut self, vm: Vm) -> Result<(), Refusal> {
        let placed = place_again(&self.state, &vm)?;
        self.begin_at(vm, &placed, true);
        Ok(())
    }

    fn begin_at(&mut self, mut vm: Vm, placed: &Placed, over: bool) {
        let what = vm.begin(placed.node, &placed.why, over);
        self.put(vm, what);
    }

    /// Who waits, and who is where.
    pub(super) fn index_place(&mut self, old: Option<&Vm>, new: Option<&Vm>) {
        let waits = |vm: Option<&Vm>| vm.filter(|vm| vm.actual == Actual::Waiting).map(turn);
        exchange(&mut self.state.waiting, waits(old), waits(new));
        let place = |vm: Option<&Vm>| vm.and_then(|vm| Some((vm.node?, vm.id)));
        exchange(&mut self.state.placed, place(old), place(new));
    }
}

/// Takes one out of an index and puts the other in, if they are not the same: most changes of a VM change neither index.
fn exchange<T: Ord + Clone>(index: &mut OrdSet<T>, old: Option<T>, new: Option<T>) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        index.remove(&old);
    }
    if let Some(new) = new {
        index.insert(new);
    }
}
