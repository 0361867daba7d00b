//! Long texts that were made already: a list of thousands is looked at several times for one `cat` (its size, then its bytes).

use super::tree::Place;
use bytes::Bytes;
use std::sync::{Mutex, PoisonError};

/// Shorter ones are made faster than found.
const BYTES_MIN: usize = 16 << 10;
/// Longer ones are not kept, in bytes.
const BYTES_MAX: usize = 8 << 20;
/// How many are kept, the newest.
const KEPT: usize = 4;

/// The texts last made, each with the entry that its objects last changed with.
#[derive(Default)]
pub(super) struct Texts(Mutex<Vec<(Place, u64, Bytes)>>);

impl Texts {
    /// The text of a place as of that entry.
    pub(super) fn find(&self, place: Place, seq: u64) -> Option<Bytes> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.iter().find(|(p, s, _)| (*p, *s) == (place, seq)).map(|(.., text)| text.clone())
    }

    /// Keeps it in place of an older one of the same place.
    pub(super) fn keep(&self, place: Place, seq: u64, text: &Bytes) {
        if !(BYTES_MIN..=BYTES_MAX).contains(&text.len()) {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.iter().any(|(p, s, _)| *p == place && *s > seq) {
            return;
        }
        kept.retain(|(p, ..)| *p != place);
        kept.insert(0, (place, seq, text.clone()));
        kept.truncate(KEPT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_long_text_of_a_place_is_kept() {
        let (texts, place) = (Texts::default(), |n| Place(n));
        let text = |fill: u8| Bytes::from(vec![fill; BYTES_MIN]);
        texts.keep(place(1), 5, &text(b'a'));
        texts.keep(place(1), 4, &text(b'b'));
        assert_eq!((texts.find(place(1), 5), texts.find(place(1), 4)), (Some(text(b'a')), None));
        texts.keep(place(1), 6, &text(b'c'));
        assert_eq!((texts.find(place(1), 6), texts.find(place(1), 5)), (Some(text(b'c')), None));
        texts.keep(place(2), 6, &Bytes::from_static(b"short"));
        assert_eq!(texts.find(place(2), 6), None);
        (10..10 + KEPT as u64).for_each(|n| texts.keep(place(n), 7, &text(b'd')));
        assert_eq!(texts.find(place(1), 6), None, "only so many are kept");
    }
}
