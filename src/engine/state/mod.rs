//! The replicated state machine: `apply(state, entry)` is the one place where a decision is taken.
//!
//! Pure: no clock, no I/O, no randomness, no floats, no iteration over hash maps. Time and ids come inside the entry.
//! Each node computes the same [`State`] from the same log.

pub mod command;
pub mod entry;
pub mod image;
pub mod node;
pub mod user;
pub mod vm;

pub use command::{Command, Conditions, VmReport, VmVerb};
pub use entry::{By, Entry, EntryId, Event, Outcome, Reply};
pub use image::Image;
pub use node::Node;
pub use user::{Role, User};
pub use vm::{Actual, Desired, Vm, VmSpec};

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}
id!(
    /// A VM's number: given by the cluster from 1 up, never used again.
    VmId
);
id!(
    /// A node's number: given by the cluster from 1 up, never used again; also its Raft id.
    NodeId
);
id!(
    /// An image's number.
    ImageId
);
id!(
    /// A user's number.
    UserId
);
