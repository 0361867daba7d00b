//! What is true, and the way to change it: the handle that the tree and the agent share.

pub mod agent;
mod appender;
mod applier;
mod audit;
pub mod backup;
mod blocking;
mod divergence;
mod failure;
mod folder;
mod handle;
pub mod host;
pub mod hypervisor;
pub mod log;
mod recovery;
mod replica;
mod snapshots;
pub mod state;
mod submissions;
mod view;

pub use audit::AuditLines;
pub use backup::BackupReader;
pub use failure::Failure;
pub use folder::{DataFolder, FolderError};
pub use handle::{Engine, Options};
pub use replica::first_snapshot;
pub use view::Events;

use crate::text::Refusal;
use bytes::Bytes;
use futures::future::BoxFuture;
use state::VmId;

/// What only the host itself knows, for the files of the tree that show it. Implemented by the agent.
pub trait LocalHost: Send + Sync + 'static {
    /// A VM's past console output, oldest first, bounded; empty if it never ran here.
    fn console_log(&self, vm: VmId) -> Result<Bytes, Refusal>;
    /// Opens a VM's serial console.
    fn console(&self, vm: VmId) -> BoxFuture<'static, Result<hypervisor::Console, Refusal>>;
    /// Lines for `/vms/ID/stats`: what its machine here has used since it was started.
    fn vm_stats(&self, vm: VmId) -> BoxFuture<'static, Result<Vec<(&'static str, String)>, Refusal>>;
    /// Lines for `/nodes/NAME/stats`: how busy this host is.
    fn node_stats(&self) -> Result<Vec<(&'static str, String)>, Refusal>;
    /// Lines for `/nodes/NAME/status`: hypervisor, accelerator, what is missing, what could not be undone, the supervision tree.
    fn status(&self) -> Vec<(String, String)>;
    /// A token with which one machine may join, and the SHA-256 of its secret.
    fn invite(&self) -> Result<(String, [u8; 32]), Refusal>;
    /// Sets the level of the trace, as `info` or `blixard::fs=debug`.
    fn set_trace_level(&self, directive: &str) -> Result<(), Refusal>;
}
