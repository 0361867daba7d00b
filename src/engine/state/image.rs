//! The image: what a VM boots from.

use super::apply::Work;
use super::{ImageId, NodeId, Reply, Subject, What};
use crate::clock::HybridTime;
use crate::text::attrs::shown;
use crate::text::{Refusal, name};
use imbl::OrdSet;
use serde::{Deserialize, Serialize};

/// The most images of a cluster.
pub const IMAGES_MAX: usize = 4_096;
/// The digits of a SHA-256.
const SHA256_DIGITS: usize = 64;

/// Something to boot from. Its files are on the nodes, in the images folder, under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its number.
    pub id: ImageId,
    /// Unique among images.
    pub name: String,
    /// Its files' size in bytes.
    pub size_bytes: u64,
    /// SHA-256 over its files, in hexadecimal, as the last node has it that registered it.
    pub sha256: String,
    /// The nodes that have its files.
    pub nodes: OrdSet<NodeId>,
    /// When it was registered.
    pub created: HybridTime,
    /// When it last changed.
    pub changed: HybridTime,
    /// The entry that last changed it.
    pub changed_seq: u64,
}

impl Work<'_> {
    pub(super) fn image_register(&mut self, called: &str, size_bytes: u64, sha256: &str) -> Result<Reply, Refusal> {
        name::check(called)?;
        if sha256.len() != SHA256_DIGITS || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(Refusal::invalid(format!("invalid sha256: it has {SHA256_DIGITS} hexadecimal digits")));
        }
        let known = self.state.images.get(called).cloned();
        let node = self.node;
        let is_same = |i: &Image| i.size_bytes == size_bytes && i.sha256 == sha256 && i.nodes.contains(&node);
        if known.as_ref().is_some_and(is_same) {
            return Ok(Reply::Unchanged);
        }
        if known.is_none() && self.state.images.len() >= IMAGES_MAX {
            return Err(Refusal::no_space(format!("no capacity: {IMAGES_MAX} images are the most")));
        }
        let id = known.as_ref().map_or(ImageId(self.state.last_image + 1), |i| i.id);
        self.state.last_image = self.state.last_image.max(id.0);
        let now = self.state.now;
        let image = Image {
            id,
            name: called.to_owned(),
            size_bytes,
            sha256: sha256.to_owned(),
            nodes: known.as_ref().map(|i| i.nodes.clone()).unwrap_or_default().update(node),
            created: known.as_ref().map_or(now, |i| i.created),
            changed: now,
            changed_seq: self.seq,
        };
        self.state.images.insert(called.to_owned(), image);
        let (what, reply) =
            if known.is_some() { (What::Set, Reply::Done) } else { (What::Created, Reply::Created(id.0)) };
        self.event(Subject::Image(called.into()), what);
        // Those that wait may wait for a node with this image.
        self.room_grew();
        Ok(reply)
    }

    /// A node has its files no more. It is forgotten when nobody has them, and no VM wants them.
    pub(super) fn image_gone(&mut self, called: &str) -> Result<Reply, Refusal> {
        let (node, now, seq) = (self.node, self.state.now, self.seq);
        let missing = || Refusal::not_found(format!("image '{}' was not found", shown(called)));
        let image = self.state.images.get_mut(called).ok_or_else(missing)?;
        if image.nodes.remove(&node).is_none() {
            return Ok(Reply::Unchanged);
        }
        (image.changed, image.changed_seq) = (now, seq);
        if image.nodes.is_empty() && !self.state.vms.values().any(|vm| vm.spec.image == called) {
            return self.image_forget(called);
        }
        self.event(Subject::Image(called.into()), What::Set);
        Ok(Reply::Done)
    }

    /// A node that is no member has no images.
    pub(super) fn images_without(&mut self, node: NodeId) {
        let named: Vec<String> =
            self.state.images.values().filter(|i| i.nodes.contains(&node)).map(|i| i.name.clone()).collect();
        for called in named {
            if let Some(image) = self.state.images.get_mut(&called) {
                image.nodes.remove(&node);
                (image.changed, image.changed_seq) = (self.state.now, self.seq);
                self.event(Subject::Image(called.as_str().into()), What::Set);
            }
        }
    }

    pub(super) fn image_forget(&mut self, called: &str) -> Result<Reply, Refusal> {
        if self.state.images.get(called).is_none() {
            return Err(Refusal::not_found(format!("image '{}' was not found", shown(called))));
        }
        if let Some(vm) = self.state.vms.values().find(|vm| vm.spec.image == called) {
            return Err(Refusal::busy(format!("image '{called}' is busy: vm {} uses it", vm.id)));
        }
        self.state.images.remove(called);
        self.event(Subject::Image(called.into()), What::Removed);
        Ok(Reply::Done)
    }
}
