//! A set of addresses kept as merged intervals, so that the lowest free one is found without looking at each.

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

/// Intervals `start..=end`, disjoint and never adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Addresses(OrdMap<u128, u128>);

impl Addresses {
    /// The interval that holds `at`.
    fn interval(&self, at: u128) -> Option<(u128, u128)> {
        self.0.range(..=at).next_back().map(|(s, e)| (*s, *e)).filter(|(_, end)| *end >= at)
    }

    pub(super) fn contains(&self, at: u128) -> bool {
        self.interval(at).is_some()
    }

    /// The lowest address from `first` to `last` that is not in the set.
    pub(super) fn lowest_free(&self, first: u128, last: u128) -> Option<u128> {
        let free = match self.interval(first) {
            None => first,
            Some((_, end)) => end.checked_add(1)?,
        };
        (free <= last).then_some(free)
    }

    /// Adds `start..=end`; what of it is in the set already stays.
    pub(super) fn insert(&mut self, start: u128, end: u128) {
        let (mut start, mut end) = (start, end);
        // Swallow what overlaps or touches.
        while let Some((s, e)) = self.touching(start, end) {
            self.0.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.0.insert(start, end);
    }

    fn touching(&self, start: u128, end: u128) -> Option<(u128, u128)> {
        let (s, e) = self.0.range(..=end.saturating_add(1)).next_back().map(|(s, e)| (*s, *e))?;
        (e.saturating_add(1) >= start).then_some((s, e))
    }

    /// Takes one address out.
    pub(super) fn remove(&mut self, at: u128) {
        let Some((start, end)) = self.interval(at) else { return };
        self.0.remove(&start);
        if let Some(before) = at.checked_sub(1).filter(|b| *b >= start) {
            self.0.insert(start, before);
        }
        if let Some(after) = at.checked_add(1).filter(|a| *a <= end) {
            self.0.insert(after, end);
        }
    }

    /// How many addresses.
    pub(super) fn count(&self) -> u128 {
        self.0.iter().fold(0, |sum: u128, (start, end)| sum.saturating_add((end - start).saturating_add(1)))
    }

    /// How many intervals: what it costs.
    #[cfg(test)]
    pub(super) fn intervals(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn the_ends_of_all_addresses() {
        let mut set = Addresses::default();
        set.insert(u128::MAX, u128::MAX);
        set.insert(0, 0);
        assert_eq!((set.lowest_free(0, 9), set.lowest_free(u128::MAX, u128::MAX)), (Some(1), None));
        set.insert(1, u128::MAX - 1);
        assert_eq!((set.lowest_free(0, u128::MAX), set.intervals(), set.count()), (None, 1, u128::MAX));
        set.remove(u128::MAX);
        set.remove(0);
        assert_eq!((set.lowest_free(0, 9), set.lowest_free(1, u128::MAX)), (Some(0), Some(u128::MAX)));
    }

    proptest! {
        #[test]
        fn it_is_a_set(steps in proptest::collection::vec((any::<bool>(), 0_u128..64, 0_u128..4), 1..300)) {
            let (mut set, mut model) = (Addresses::default(), BTreeSet::new());
            for (add, at, more) in steps {
                if add {
                    set.insert(at, at + more);
                    model.extend(at..=at + more);
                } else {
                    set.remove(at);
                    model.remove(&at);
                }
                prop_assert_eq!(set.lowest_free(0, 63), (0..64).find(|a| !model.contains(a)));
                prop_assert!((0..64).all(|a| set.contains(a) == model.contains(&a)));
                let runs = model.iter().filter(|a| !model.contains(&(**a + 1))).count();
                prop_assert_eq!(set.intervals(), runs, "merged");
                prop_assert_eq!(set.count(), model.len() as u128);
            }
        }
    }
}
