//! What readers see: the newest state, its number, and the last events. Written by the applier alone.

use super::replica::claim;
use super::state::{Claim, Event, State};
use arc_swap::ArcSwap;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;

/// How many events are kept for readers who come late: at about 200 bytes each a bound of some 4 MiB.
pub const EVENTS_MAX: usize = 16_384;

/// The events after a place, or why there are none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Events {
    /// In order; empty if nothing has happened since. All events of one entry are together in one answer.
    Some(Vec<Event>),
    /// Events after that place have been dropped; those after `oldest` are still there.
    Lost {
        /// Go on with `events_after(oldest, ..)`.
        oldest: u64,
    },
}

/// The last events.
#[derive(Debug)]
struct Ring {
    events: VecDeque<Event>,
    /// Events of entries up to this one are gone.
    dropped: u64,
}

/// A state, and the digest of all that was decided on the way to it.
#[derive(Debug)]
struct Shown {
    state: Arc<State>,
    digest: [u8; 32],
}

/// See the module.
#[derive(Debug)]
pub(super) struct View {
    shown: ArcSwap<Shown>,
    ring: Mutex<Ring>,
    newest: watch::Sender<u64>,
}

impl View {
    /// The view of a state just recovered; events before it are not known.
    pub(super) fn new(state: Arc<State>, digest: [u8; 32], seq: u64) -> Self {
        View {
            shown: ArcSwap::from_pointee(Shown { state, digest }),
            ring: Mutex::new(Ring { events: VecDeque::new(), dropped: seq }),
            newest: watch::Sender::new(seq),
        }
    }

    /// Shows a state that came as a whole: what happened on the way to it is not known.
    pub(super) fn jump(&self, state: Arc<State>, digest: [u8; 32], seq: u64) {
        *self.ring.lock().unwrap_or_else(PoisonError::into_inner) = Ring { events: VecDeque::new(), dropped: seq };
        self.shown.store(Arc::new(Shown { state, digest }));
    }

    /// Shows a new state and what happened on the way to it.
    pub(super) fn publish(&self, state: Arc<State>, digest: [u8; 32], events: Vec<Event>) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.events.extend(events);
            ring.trim();
        }
        self.shown.store(Arc::new(Shown { state, digest }));
    }

    /// Wakes those who wait for news. After [`View::publish`], so that who wakes finds what woke them.
    pub(super) fn announce(&self, seq: u64) {
        self.newest.send_replace(seq);
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.shown.load().state.clone()
    }

    /// The digest of the state whose number this is, if that is the newest.
    pub(super) fn digest_of(&self, seq: u64) -> Option<[u8; 32]> {
        let shown = self.shown.load();
        (shown.state.seq() == seq).then_some(shown.digest)
    }

    /// What this node has.
    pub(super) fn claim(&self) -> Claim {
        let shown = self.shown.load();
        claim(shown.state.seq(), &shown.digest)
    }

    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.newest.subscribe()
    }

    pub(super) fn events_after(&self, seq: u64, max: usize) -> Events {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if seq < ring.dropped {
            return Events::Lost { oldest: ring.dropped };
        }
        let start = ring.events.partition_point(|event| event.seq <= seq);
        let mut found: Vec<Event> = ring.events.iter().skip(start).take(max.max(1)).cloned().collect();
        // Whoever goes on with the last number must not miss the rest of that entry's events.
        if let Some(last) = found.last().map(|event| event.seq) {
            let next = start + found.len();
            found.extend(ring.events.iter().skip(next).take_while(|event| event.seq == last).cloned());
        }
        Events::Some(found)
    }
}

impl Ring {
    /// Drops the oldest, always all of one entry, until no more than [`EVENTS_MAX`] are left.
    fn trim(&mut self) {
        while self.events.len() > EVENTS_MAX {
            let Some(first) = self.events.pop_front() else { return };
            self.dropped = first.seq;
            while self.events.front().is_some_and(|event| event.seq == first.seq) {
                self.events.pop_front();
            }
        }
    }
}
