//! The image: what a VM boots from.

use super::ImageId;
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};

/// Something to boot from. Its files are on the nodes, in the images folder, under its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its number.
    pub id: ImageId,
    /// Unique among images.
    pub name: String,
    /// Its files' size in bytes.
    pub size_bytes: u64,
    /// SHA-256 over its files, in hexadecimal.
    pub sha256: String,
    /// When it was registered.
    pub created: HybridTime,
    /// When it last changed.
    pub changed: HybridTime,
    /// The entry that last changed it.
    pub changed_seq: u64,
}
