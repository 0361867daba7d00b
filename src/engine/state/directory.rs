//! What changed last among the objects of one kind: for the times and versions of the files that show them all.

use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};

/// The kinds of objects, one directory each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// VMs.
    Vm,
    /// Nodes.
    Node,
    /// Images.
    Image,
    /// Pools of addresses.
    Pool,
    /// Users.
    User,
}

/// An entry that changed something, and when.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Which entry; 0: none has.
    pub seq: u64,
    /// The cluster's time of it.
    pub at: HybridTime,
}

/// The last changes among the objects of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Directory {
    /// Which objects there are, or what they are called: what `ls` shows.
    pub members: Touched,
    /// Anything in any of them: what `list` and `json` show.
    pub objects: Touched,
}
