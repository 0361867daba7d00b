//! The user, and what a role may do.

use super::UserId;
use crate::clock::HybridTime;
use crate::text::Refusal;
use serde::{Deserialize, Serialize};

/// The name of whoever the cluster doesn't know: may read what all may read.
pub const NOBODY: &str = "none";

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

/// What somebody wants to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read what all may read.
    Read,
    /// Make an object.
    Create,
    /// Change an object.
    Control,
    /// Change what belongs to the cluster: nodes, images, pools, users.
    Administer,
}

impl Role {
    /// The words, in the order in which an error lists them.
    pub const WORDS: &[&str] = &["viewer", "operator", "admin"];
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::Viewer => "viewer",
            Role::Operator => "operator",
            Role::Admin => "admin",
        })
    }
}

impl std::str::FromStr for Role {
    type Err = Refusal;
    fn from_str(word: &str) -> Result<Role, Refusal> {
        match word {
            "viewer" => Ok(Role::Viewer),
            "operator" => Ok(Role::Operator),
            "admin" => Ok(Role::Admin),
            _ => Err(crate::text::unknown("role", word, Role::WORDS)),
        }
    }
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
    /// When they last changed.
    pub changed: HybridTime,
    /// The entry that last changed them.
    pub changed_seq: u64,
}
