//! The last events of one object, packed: ten bytes an event, so that each of 10,000 VMs can afford its own.

use super::What;
use super::encoding::append;
use crate::clock::HybridTime;
use serde::{Deserialize, Serialize};

/// How many events of its own an object keeps.
pub const HISTORY_MAX: usize = 64;

/// One event as it is packed: how much later than the one before it, and what.
type Packed = (u64, u64, What);

/// The last [`HISTORY_MAX`] events of an object, oldest first. Of their times the milliseconds are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// (seq, milliseconds) that the first event counts from.
    before: (u64, u64),
    /// (seq, milliseconds) of the last event.
    last: (u64, u64),
    count: u16,
    packed: Box<[u8]>,
}

impl History {
    /// Adds what happened, and drops the oldest if there are too many.
    pub(super) fn push(&mut self, seq: u64, at: HybridTime, what: &What) {
        let mut kept: &[u8] = &self.packed;
        if usize::from(self.count) >= HISTORY_MAX
            && let Ok(((later_seq, later_ms, _), rest)) = postcard::take_from_bytes::<Packed>(kept)
        {
            self.before = (self.before.0.saturating_add(later_seq), self.before.1.saturating_add(later_ms));
            self.count -= 1;
            kept = rest;
        }
        let (later_seq, later_ms) = (seq.saturating_sub(self.last.0), at.millis().saturating_sub(self.last.1));
        let packed = append(kept.to_vec(), &(later_seq, later_ms, what));
        self.last = (seq.max(self.last.0), at.millis().max(self.last.1));
        self.count = self.count.saturating_add(1);
        self.packed = packed.into_boxed_slice();
    }

    /// (seq, time, what), oldest first.
    pub fn iter(&self) -> impl Iterator<Item = (u64, HybridTime, What)> {
        let (mut rest, (mut seq, mut ms)) = (&*self.packed, self.before);
        std::iter::from_fn(move || {
            let ((later_seq, later_ms, what), after) = postcard::take_from_bytes::<Packed>(rest).ok()?;
            (rest, seq, ms) = (after, seq.saturating_add(later_seq), ms.saturating_add(later_ms));
            Some((seq, HybridTime::from_millis(ms), what))
        })
    }

    /// How many events.
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Has nothing happened?
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_keeps_the_last_events(steps in proptest::collection::vec((0_u64..300, 0_u64..100_000, 0_u64..5), 0..200)) {
            let (mut history, mut model, mut seq, mut ms) = (History::default(), Vec::new(), 0, 1_700_000_000_000);
            for (later_seq, later_ms, generation) in steps {
                (seq, ms) = (seq + later_seq, ms + later_ms);
                let what = match generation {
                    0 => What::Failed("it broke".into()),
                    generation => What::Running { generation },
                };
                history.push(seq, HybridTime::from_millis(ms), &what);
                model.push((seq, HybridTime::from_millis(ms), what));
            }
            let kept = model.split_off(model.len().saturating_sub(HISTORY_MAX));
            prop_assert_eq!(history.len(), kept.len());
            prop_assert_eq!(history.iter().collect::<Vec<_>>(), kept);
        }
    }

    #[test]
    fn an_event_costs_about_ten_bytes() {
        let mut history = History::default();
        for n in 0..1_000 {
            history.push(
                n * 1_000,
                HybridTime::from_millis(1_700_000_000_000 + n * 3_600_000),
                &What::Running { generation: n },
            );
        }
        assert!(history.packed.len() <= 10 * HISTORY_MAX, "{}", history.packed.len());
    }
}
