//! The user, and what a role may do.

use super::UserId;
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};

/// What a user may do; each role may do what the ones before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Read what all may read.
    Viewer,
    /// Make objects, and change their own.
    Operator,
    /// Everything.
    Admin,
}

/// Somebody whom the cluster knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Their number.
    pub id: UserId,
    /// Unique among users.
    pub name: String,
    /// What they may do.
    pub role: Role,
    /// Their uid on the nodes.
    pub uid: Option<u32>,
    /// The seq of the entry that last changed them.
    pub changed_seq: u64,
    /// When that was.
    pub changed: HybridTime,
}
