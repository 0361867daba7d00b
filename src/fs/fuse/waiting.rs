//! Requests that wait: how many there are, and how each is interrupted.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// The most requests that wait at once: each is a process that is blocked.
pub(super) const WAITING_MAX: usize = 16_384;

/// The requests that wait, by the kernel's number.
#[derive(Debug, Default)]
pub(super) struct Waiting(Mutex<HashMap<u64, CancellationToken>>);

impl Waiting {
    fn map(&self) -> std::sync::MutexGuard<'_, HashMap<u64, CancellationToken>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request; None: there are too many.
    pub(super) fn begin(&self, unique: u64) -> Option<CancellationToken> {
        let mut map = self.map();
        if map.len() >= WAITING_MAX {
            return None;
        }
        let token = CancellationToken::new();
        map.insert(unique, token.clone());
        Some(token)
    }

    pub(super) fn end(&self, unique: u64) {
        self.map().remove(&unique);
    }

    /// Interrupts a request. False: it does not wait, since it has been answered, or is just being taken by another thread.
    pub(super) fn interrupt(&self, unique: u64) -> bool {
        self.map().get(&unique).map(CancellationToken::cancel).is_some()
    }

    pub(super) fn interrupt_all(&self) {
        self.map().values().for_each(CancellationToken::cancel);
    }
}
