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
