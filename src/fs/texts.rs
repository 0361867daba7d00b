//! Texts that were made already: one look at a file asks for its text several times (its size, then its bytes), and many look at
//! the same ones.

use super::tree::Place;
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};

/// From here on a text is long, in bytes: few are kept, and each costs much to make.
const LONG_BYTES_MIN: usize = 16 << 10;
/// Longer ones are not kept, in bytes.
const BYTES_MAX: usize = 8 << 20;
/// How many long texts are kept, the newest.
const LONG_KEPT: usize = 4;
/// How many places there are for short texts. Each is that of many files, so that they never lock out each other; with texts of
/// some hundred bytes all together come to a quarter of a MiB, and to 8 MiB at the most.
const SHORT_KEPT: usize = 512;

/// A text, and the entry that its objects last changed with.
type Made = (Place, u64, Bytes);

/// The texts last made.
pub(super) struct Texts {
    long: Mutex<Vec<Made>>,
    short: Box<[Mutex<Option<Made>>]>,
}

impl Default for Texts {
    fn default() -> Texts {
        Texts { long: Mutex::default(), short: (0..SHORT_KEPT).map(|_| Mutex::default()).collect() }
    }
}

fn is(made: &Made, place: Place, seq: u64) -> bool {
    (made.0, made.1) == (place, seq)
}

impl Texts {
    /// Where a short text of this place is kept: neighbouring objects and files each have their own.
    fn short(&self, place: Place) -> Option<&Mutex<Option<Made>>> {
        // Fibonacci hashing (Knuth, volume 3, 6.4): the upper bits depend on all of the place.
        let hash = place.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        self.short.get(usize::try_from(hash).unwrap_or(0) % SHORT_KEPT)
    }

    /// The text of a place as of that entry.
    pub(super) fn find(&self, place: Place, seq: u64) -> Option<Bytes> {
        if let Some(slot) = self.short(place) {
            let kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((.., text)) = kept.as_ref().filter(|made| is(made, place, seq)) {
                return Some(text.clone());
            }
        }
        let kept = self.long.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|made| is(made, place, seq)).map(|(.., text)| text.clone())
    }

    /// Keeps it in place of an older one of the same place.
    pub(super) fn keep(&self, place: Place, seq: u64, text: &Bytes) {
        if text.len() > BYTES_MAX {
            return;
        }
        if text.len() < LONG_BYTES_MIN {
            if let Some(slot) = self.short(place) {
                let mut kept = slot.lock().unwrap_or_else(PoisonError::into_inner);
                if !kept.as_ref().is_some_and(|(p, s, _)| *p == place && *s > seq) {
                    *kept = Some((place, seq, text.clone()));
                }
            }
            return;
        }
        let mut kept = self.long.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|(p, s, _)| *p == place && *s > seq) {
            return;
        }
        kept.retain(|(p, ..)| *p != place);
        kept.insert(0, (place, seq, text.clone()));
        kept.truncate(LONG_KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_long_text_of_a_place_is_kept() {
        let (texts, place) = (Texts::default(), |n| Place(n));
        let text = |fill: u8| Bytes::from(vec![fill; LONG_BYTES_MIN]);
        texts.keep(place(1), 5, &text(b'a'));
        texts.keep(place(1), 4, &text(b'b'));
        assert_eq!((texts.find(place(1), 5), texts.find(place(1), 4)), (Some(text(b'a')), None));
        texts.keep(place(1), 6, &text(b'c'));
        assert_eq!((texts.find(place(1), 6), texts.find(place(1), 5)), (Some(text(b'c')), None));
        (10..10 + LONG_KEPT as u64).for_each(|n| texts.keep(place(n), 7, &text(b'd')));
        assert_eq!(texts.find(place(1), 6), None, "only so many are kept");
    }

    #[test]
    fn the_newest_short_texts_are_kept_in_bounded_room() {
        let (texts, text) = (Texts::default(), |n: u64| Bytes::from(format!("text {n}")));
        texts.keep(Place(1), 5, &text(5));
        texts.keep(Place(1), 4, &text(4));
        assert_eq!((texts.find(Place(1), 5), texts.find(Place(1), 4)), (Some(text(5)), None));
        let places = 10_000;
        (0..places).for_each(|n| texts.keep(Place(n), 7, &text(n)));
        let found: Vec<_> = (0..places).filter_map(|n| texts.find(Place(n), 7).map(|found| (n, found))).collect();
        assert!(found.iter().all(|(n, found)| *found == text(*n)));
        assert!((SHORT_KEPT / 2..=SHORT_KEPT).contains(&found.len()), "{} are kept", found.len());
    }
}
