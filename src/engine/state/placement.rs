//! Which node a VM goes to.

use super::{Node, NodeId, State, Vm};
use crate::text::{Refusal, size};
use std::cmp::Reverse;

/// The node for the next generation of a VM: the one where it has been before, because what it has written is there; else
/// of those that are up the one with the most free memory, the lowest number among equals.
///
/// # Errors
/// ENOSPC with figures.
pub(super) fn place(state: &State, vm: &Vm) -> Result<NodeId, Refusal> {
    let wanted = vm.spec.memory_bytes;
    if let Some(node) = vm.node.and_then(|id| state.node(id)) {
        let free = free_bytes(state, node, vm);
        return match (node.up, free >= wanted) {
            (true, true) => Ok(node.id),
            (true, false) => Err(Refusal::no_space(format!(
                "no capacity: it wants {} of memory, and node {}, where its data is, has {} left",
                size::print(wanted),
                node.name,
                size::print(free)
            ))),
            (false, _) => {
                Err(Refusal::no_space(format!("no capacity: node {}, where its data is, is down", node.name)))
            }
        };
    }
    let candidates = state.nodes().filter(|n| n.up).map(|n| (free_bytes(state, n, vm), n.id));
    match candidates.max_by_key(|(free, id)| (*free, Reverse(*id))) {
        Some((free, id)) if free >= wanted => Ok(id),
        Some((free, _)) => Err(Refusal::no_space(format!(
            "no capacity: it wants {} of memory, and the node with the most room has {} left",
            size::print(wanted),
            size::print(free)
        ))),
        None => Err(Refusal::no_space("no capacity: no node is up")),
    }
}

/// The memory of a node that nobody else was promised, in bytes.
fn free_bytes(state: &State, node: &Node, vm: &Vm) -> u64 {
    let own = if vm.node == Some(node.id) { vm.promised_bytes } else { 0 };
    let others = state.memory_promised(node.id).saturating_sub(own);
    node.memory_bytes.saturating_sub(others)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{VmId, VmSpec};

    const GIB: u64 = 1 << 30;

    /// Nodes 1 and up, each (is it up, its memory, what of it is promised), in GiB.
    fn nodes(nodes: &[(bool, u64, u64)]) -> State {
        let mut state = State::new();
        for (id, (up, memory, promised)) in (1..).map(NodeId).zip(nodes) {
            let node = Node::new(id, &format!("n{id}"), HybridTime(0), 1);
            state.nodes.insert(id, Node { up: *up, memory_bytes: memory * GIB, ..node });
            state.promised.insert(id, promised * GIB);
        }
        state
    }

    fn vm(gib: u64) -> Vm {
        let spec = VmSpec { memory_bytes: gib * GIB, ..VmSpec::default() };
        Vm::new(VmId(1), None, &spec, "ann", "10.42.0.2".parse().unwrap(), HybridTime(0))
    }

    #[test]
    fn the_node_with_the_most_room_the_lowest_number_among_equals() {
        let node = |state: &State, gib| place(state, &vm(gib)).map(|id| id.0).map_err(|refusal| refusal.sentence);
        assert_eq!(node(&nodes(&[(true, 4, 0), (true, 8, 2), (true, 8, 2)]), 1), Ok(2));
        assert_eq!(node(&nodes(&[(true, 4, 0), (false, 64, 0), (true, 8, 7)]), 4), Ok(1));
        let full = node(&nodes(&[(true, 4, 1), (true, 4, 9)]), 4).unwrap_err();
        assert_eq!(full, "no capacity: it wants 4G of memory, and the node with the most room has 3G left");
        assert_eq!(node(&nodes(&[(false, 4, 0)]), 1).unwrap_err(), "no capacity: no node is up");
    }

    #[test]
    fn what_was_placed_stays_there() {
        let state = nodes(&[(true, 4, 3), (true, 64, 0), (false, 4, 0)]);
        let there = |node, gib, promised| Vm { node: Some(NodeId(node)), promised_bytes: promised * GIB, ..vm(gib) };
        assert_eq!(place(&state, &there(1, 1, 0)), Ok(NodeId(1)));
        assert_eq!(place(&state, &there(1, 4, 3)), Ok(NodeId(1)), "its own memory is room for it");
        let full = place(&state, &there(1, 2, 0)).unwrap_err().sentence;
        assert_eq!(full, "no capacity: it wants 2G of memory, and node n1, where its data is, has 1G left");
        assert!(place(&state, &there(3, 1, 0)).unwrap_err().sentence.ends_with("is down"));
    }
}
