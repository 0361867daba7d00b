//! Places packed into 64 bits: the qid.path of 9P and the inode number of FUSE, the same on every node and after restarts.
//!
//! ```text
//!   63     56 55     48 47                          0
//!   ┌────────┬─────────┬─────────────────────────────┐
//!   │ kind   │ file    │ object                      │
//!   └────────┴─────────┴─────────────────────────────┘
//! ```
//! The root directory is kind 0, file 0, object 1: the number 1 that FUSE wants. Its files are of object 1, too. A kind's own directory
//! and files are of object 0, which no object has. File 0 is the directory itself, [`LINK`] the link with the object's name.

use super::tree::Place;

/// The root's kind.
pub(super) const ROOT: u8 = 0;
/// The file number of the link with an object's name.
pub(super) const LINK: u8 = 255;
/// Objects have 48 bits.
const OBJECT_MASK: u64 = (1 << 48) - 1;

/// A place taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parts {
    /// Which directory of the root; [`ROOT`] for the root.
    pub(super) kind: u8,
    /// Which file of its table; 0 for the directory itself.
    pub(super) file: u8,
    /// Which object; 0 for the kind itself.
    pub(super) object: u64,
}

impl Parts {
    /// The place of an object's file, or of the object's directory if `file` is 0.
    pub(super) fn new(kind: u8, file: u8, object: u64) -> Parts {
        Parts { kind, file, object }
    }

    pub(super) fn of(place: Place) -> Parts {
        let [kind, file, ..] = place.0.to_be_bytes();
        Parts { kind, file, object: place.0 & OBJECT_MASK }
    }

    pub(super) fn pack(self) -> Place {
        Place(u64::from(self.kind) << 56 | u64::from(self.file) << 48 | self.object & OBJECT_MASK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_root_is_1() {
        assert_eq!(Parts::of(Place::ROOT), Parts { kind: ROOT, file: 0, object: 1 });
    }

    proptest! {
        #[test]
        fn places_are_unique(kind in 0_u8..128, file: u8, object in 0_u64..1 << 48) {
            let parts = Parts { kind, file, object };
            prop_assert_eq!(Parts::of(parts.pack()), parts);
        }
    }
}
