//! Open files, by the number that the kernel gives back with each read and write.

use crate::fs::tree::{Handle, Opened};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

/// The most files that are open at once.
const OPEN_MAX: usize = 65_536;

/// An open file, and whether it is a stream.
type Open = (Arc<dyn Handle>, bool);

/// The open files of a mount.
#[derive(Default)]
pub(super) struct Files {
    open: RwLock<HashMap<u64, Open>>,
    last: AtomicU64,
}

impl Files {
    /// Keeps an open file, and gives its number; None: there are too many.
    pub(super) fn keep(&self, opened: Opened) -> Option<u64> {
        let mut open = self.open.write().unwrap_or_else(PoisonError::into_inner);
        if open.len() >= OPEN_MAX {
            return None;
        }
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        open.insert(number, (opened.handle, opened.stream));
        Some(number)
    }

    pub(super) fn get(&self, number: u64) -> Option<Open> {
        self.open.read().unwrap_or_else(PoisonError::into_inner).get(&number).cloned()
    }

    /// Forgets it; dropping the handle is its close, and happens outside the lock.
    pub(super) fn close(&self, number: u64) {
        let closed = self.open.write().unwrap_or_else(PoisonError::into_inner).remove(&number);
        drop(closed);
    }
}
