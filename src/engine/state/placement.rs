//! Which node a VM goes to.

use super::{NodeId, State, Vm};
use crate::text::{Refusal, size};

/// The node where it is, if there is room; else the one with the most free memory, the lowest number among equals.
///
/// # Errors
/// ENOSPC with figures.
pub(super) fn place(state: &State, vm: &Vm) -> Result<NodeId, Refusal> {
    let wanted = vm.spec.memory_bytes;
    let free = |node: NodeId| {
        let offered = state.node(node).filter(|n| n.up).map(|n| n.memory_bytes);
        // What it has promised to this very VM (a restart) is room for it.
        let own = if vm.node == Some(node) { vm.promised_bytes } else { 0 };
        offered.map(|bytes| bytes.saturating_sub(state.memory_promised(node).saturating_sub(own)))
    };
    if let Some(node) = vm.node.filter(|n| free(*n).is_some_and(|f| f >= wanted)) {
        return Ok(node);
    }
    let candidates = state.nodes().filter_map(|n| Some((free(n.id)?, n.id)));
    match candidates.max_by_key(|(free, id)| (*free, std::cmp::Reverse(*id))) {
        Some((free, id)) if free >= wanted => Ok(id),
        Some((free, _)) => Err(Refusal::no_space(format!(
            "no capacity: it wants {} of memory, and the node with the most room has {} left",
            size::print(wanted),
            size::print(free)
        ))),
        None => Err(Refusal::no_space("no capacity: no node is up")),
    }
}
