//! Text as the tree speaks it: parsing and printing, used by every room. Knows nothing of Blixard.

pub mod attrs;
pub mod columns;
pub mod dial;
pub mod duration;
pub mod kv;
pub mod name;
pub mod percent;
pub mod refusal;
pub mod size;
pub mod time;
pub mod trace_level;

pub use attrs::{Attr, Line};
pub use dial::Dial;
pub use refusal::{Code, Refusal};

/// The word of `known` that `word` was probably meant to be: the nearest one, if it is near enough to be worth saying.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    let letters = word.chars().count();
    let distance = |known: &str| {
        // A third of the letters may be wrong (Damerau–Levenshtein); more is another word. The distance is at least
        // the difference in length, so it is not computed for what is far too long: that would cost much.
        let wrong_max = known.len().max(3) / 3;
        let near = known.chars().count().abs_diff(letters) <= wrong_max;
        near.then(|| strsim::damerau_levenshtein(word, known)).filter(|d| *d <= wrong_max)
    };
    known.iter().filter_map(|known| Some((distance(known)?, *known))).min_by_key(|(d, _)| *d).map(|(_, known)| known)
}

/// `invalid KIND 'word': did you mean 'near'? there are: a, b, c`.
pub fn unknown(kind: &str, word: &str, known: &[&str]) -> Refusal {
    let hint = nearest(word, known).map(|n| format!("did you mean '{n}'? ")).unwrap_or_default();
    Refusal::invalid(format!("invalid {kind} '{}': {hint}there are: {}", attrs::shown(word), known.join(", ")))
}

/// A text of others as it may stand within a line: without newlines and other control characters, which could begin
/// a line of their own or steer the terminal of who reads it.
fn one_line(text: &str) -> std::borrow::Cow<'_, str> {
    if text.contains(char::is_control) { text.replace(char::is_control, " ").into() } else { text.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_named() {
        assert_eq!(nearest("memroy", &["cpus", "memory", "image"]), Some("memory"));
        assert_eq!(nearest("strat", &["start", "stop"]), Some("start"));
        assert_eq!(nearest("xyzzy", &["start", "stop"]), None);
        assert_eq!(nearest("stopp", &["start", "stop"]), Some("stop"), "the nearest, not the first");
        assert_eq!(nearest("", &["start", "stop"]), None);
        assert_eq!(nearest(&"s".repeat(1 << 20), &["start", "stop"]), None);
        let said = unknown("verb", "strat", &["start", "stop"]).sentence;
        assert_eq!(said, "invalid verb 'strat': did you mean 'start'? there are: start, stop");
    }
}
