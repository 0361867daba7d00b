//! Files that only the owner of an object knows, such as a console: asked of the owner over 9P, as the user who asks here.
//!
//! A question that came from another node is never passed on: two nodes that each believe in the other would pass it for ever.

use super::handles::Open;
use super::table::Asked;
use super::tree::{Answer, BY_A_NODE, Handle, OpenMode};
use crate::engine::state::{Node, NodeId, VmId};
use crate::ninep::client::{Client, ClientError, File, Options};
use crate::ninep::linux::open as flags;
use crate::text::{Code, Refusal};
use bytes::Bytes;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::OnceCell;

/// How long the other node may take to answer a read; None: it may have nothing to say for as long as it likes.
pub(super) type Limit = Option<Duration>;

/// Of a file that has an end.
pub(super) const ANSWERS_WITHIN: Limit = Some(Duration::from_secs(10));

/// A file that is open on another node, from its first use on.
struct Forwarded {
    open: Open,
    /// Where it is, as `vms/7/console`.
    path: String,
    how: OpenMode,
    limit: Limit,
    node: Node,
    far: OnceCell<(Client, File)>,
    /// How far it was read: whatever is passed on has one cursor.
    cursor: Mutex<u64>,
}

/// Is the VM on another node?
pub(super) fn is_elsewhere(asked: &Asked<'_>) -> bool {
    let vm = asked.state.vm(VmId(asked.object));
    vm.and_then(|vm| vm.node).is_some_and(|node| node != asked.server.node())
}

/// Opens the file of a VM on the node where the VM is, if that is another one.
pub(super) fn of_vm(
    asked: &Asked<'_>,
    file: &str,
    how: OpenMode,
    limit: Limit,
) -> Result<Option<Arc<dyn Handle>>, Refusal> {
    let vm = asked.state.vm(VmId(asked.object)).ok_or_else(super::tree::gone)?;
    let Some(node) = vm.node.filter(|node| *node != asked.server.node()) else { return Ok(None) };
    let Some(node) = asked.state.node(node) else { return Ok(None) };
    let moved = || format!("vm {} is on node '{}' by now; ask again", asked.object, node.name);
    open_at(asked, node, format!("vms/{}/{file}", asked.object), how, limit, moved).map(Some)
}

/// Opens the file of a node on that node, if it is another one.
pub(super) fn of_node(asked: &Asked<'_>, file: &str, how: OpenMode) -> Result<Option<Arc<dyn Handle>>, Refusal> {
    let node = asked.state.node(NodeId(asked.object)).ok_or_else(super::tree::gone)?;
    if node.id == asked.server.node() {
        return Ok(None);
    }
    let other = || format!("node '{}' is another one than was asked; ask again", node.name);
    open_at(asked, node, format!("nodes/{}/{file}", node.name), how, ANSWERS_WITHIN, other).map(Some)
}

/// Opens a path on another node. `wrong`: what to say to a node that takes this one for the other.
fn open_at(
    asked: &Asked<'_>,
    node: &Node,
    path: String,
    how: OpenMode,
    limit: Limit,
    wrong: impl FnOnce() -> String,
) -> Result<Arc<dyn Handle>, Refusal> {
    if asked.who.authenticated_by == BY_A_NODE {
        return Err(Refusal::new(Code::HostDown, wrong()));
    }
    let (node, far, cursor) = (node.clone(), OnceCell::new(), Mutex::new(0));
    let forwarded = Forwarded { open: Open::of(asked), path, how, limit, node, far, cursor };
    Ok(Arc::new(Shared(Arc::new(forwarded))))
}

impl Forwarded {
    async fn far(&self) -> Result<&File, Refusal> {
        let connect = || async {
            let node = &self.node;
            if node.address.is_empty() {
                return Err(Refusal::new(Code::HostDown, format!("node '{}' has no address for others", node.name)));
            }
            let dial = format!("tls!{}", node.address).parse()?;
            let (identity, uname) = (Some(self.open.server.identity().to_owned()), self.open.who.user.clone());
            let options = Options { identity, uname, ..Options::default() };
            let client = Client::connect_with(&dial, &options).await.map_err(|error| self.refusal(&error))?;
            let flags = match self.how {
                OpenMode { read: true, write: true, .. } => flags::READ_WRITE,
                OpenMode { write: true, .. } => flags::WRITE_ONLY,
                _ => flags::READ_ONLY,
            };
            let nonblock = if self.how.nonblock { flags::NONBLOCK } else { 0 };
            let file = client.open(&self.path, flags | nonblock).await.map_err(|error| self.refusal(&error))?;
            Ok((client, file))
        };
        self.far.get_or_try_init(connect).await.map(|(_, file)| file)
    }

    fn refusal(&self, error: &ClientError) -> Refusal {
        let sentence = format!("node '{}', which has it, says: {error}", self.node.name);
        match error {
            ClientError::Refused { errno } | ClientError::Explained { errno, .. } => {
                Refusal::new(Code::of_errno(*errno).unwrap_or(Code::Fault), sentence)
            }
            _ => Refusal::new(
                Code::HostDown,
                format!("node '{}', which has it, can't be asked: {error}", self.node.name),
            ),
        }
    }

    async fn read(&self, count: usize) -> Result<Bytes, Refusal> {
        let file = self.far().await?;
        let from = *self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let data = file.read_some(from, count, self.limit).await.map_err(|error| self.refusal(&error))?;
        *self.cursor.lock().unwrap_or_else(PoisonError::into_inner) = from + data.len() as u64;
        Ok(data)
    }

    async fn write(&self, data: Bytes) -> Result<usize, Refusal> {
        self.far().await?.write(0, &data).await.map_err(|error| self.refusal(&error))?;
        Ok(data.len())
    }
}

struct Shared(Arc<Forwarded>);

impl Handle for Shared {
    fn read(&self, _offset: u64, count: usize) -> Answer<Bytes> {
        let forwarded = self.0.clone();
        Answer::Later(Box::pin(async move {
            let read = forwarded.read(count).await;
            forwarded.open.noted(read)
        }))
    }

    fn write(&self, _offset: u64, data: Bytes) -> Answer<usize> {
        let forwarded = self.0.clone();
        Answer::Later(Box::pin(async move {
            let written = forwarded.write(data).await;
            forwarded.open.noted(written)
        }))
    }
}
