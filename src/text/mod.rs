//! Text as the tree speaks it: parsing and printing, used by every room. Knows nothing of Blixard.

pub mod attrs;
pub mod columns;
pub mod dial;
pub mod duration;
pub mod kv;
pub mod name;
pub mod refusal;
pub mod size;
pub mod time;
pub mod trace_level;

pub use attrs::{Attr, Line};
pub use dial::Dial;
pub use refusal::{Code, Refusal};

/// The word of `known` that `word` was probably meant to be: the nearest one, if it is near enough to be worth saying.
pub fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    // A third of the letters may be wrong (Damerau–Levenshtein); more is another word.
    let near = |k: &&'a str| strsim::damerau_levenshtein(word, k) <= k.len().max(3) / 3;
    known.iter().copied().filter(near).min_by_key(|k| strsim::damerau_levenshtein(word, k))
}

/// "unknown KIND 'word': did you mean 'near'? There are: a, b, c".
pub fn unknown(kind: &str, word: &str, known: &[&str]) -> Refusal {
    let shown: String = word.chars().take(64).collect();
    let hint = nearest(word, known).map(|n| format!("did you mean '{n}'? ")).unwrap_or_default();
    Refusal::invalid(format!("invalid {kind} '{}': {hint}there are: {}", shown.escape_debug(), known.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_word_is_named() {
        assert_eq!(nearest("memroy", &["cpus", "memory", "image"]), Some("memory"));
        assert_eq!(nearest("strat", &["start", "stop"]), Some("start"));
        assert_eq!(nearest("xyzzy", &["start", "stop"]), None);
        let said = unknown("verb", "strat", &["start", "stop"]).sentence;
        assert_eq!(said, "invalid verb 'strat': did you mean 'start'? there are: start, stop");
    }
}
