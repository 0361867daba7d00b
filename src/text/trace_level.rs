//! Levels of the trace: `info`, or `warn,blixard::fs=debug`: words with commas between them, each a level for all or for
//! one module.

use super::{Refusal, attrs::shown, unknown};

/// The levels, from nothing to everything.
pub const LEVELS: &[&str] = &["off", "error", "warn", "info", "debug", "trace"];
/// The longest text, in bytes: more modules than there are.
const LEVEL_BYTES_MAX: usize = 1_024;

/// Is this a level? What the subscriber itself would take is more, and hides slips: to it `inof` is a module.
///
/// # Errors
/// EINVAL with what is wrong.
pub fn check(text: &str) -> Result<(), Refusal> {
    if text.len() > LEVEL_BYTES_MAX {
        return Err(Refusal::invalid(format!(
            "invalid level: it has {} bytes, and {LEVEL_BYTES_MAX} are the most",
            text.len()
        )));
    }
    for word in text.split(',') {
        let (module, level) = word.split_once('=').map_or((None, word), |(module, level)| (Some(module), level));
        let of_a_path = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
        if module.is_some_and(|m| m.is_empty() || !m.chars().all(of_a_path)) {
            let sentence = format!("invalid level '{}': before '=' stands a module, as blixard::fs=debug", shown(word));
            return Err(Refusal::invalid(sentence));
        }
        if !LEVELS.contains(&level) {
            return Err(unknown("level", level, LEVELS));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn levels() {
        for good in ["info", "off", "warn,blixard::fs=debug", "blixard=trace"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for wrong in
            ["", "inof", "INFO", "info,", "=debug", "a b=info", "blixard=", "blixard[x]=info", &"x".repeat(2_000)]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert!(check("inof").unwrap_err().sentence.contains("did you mean 'info'?"));
    }
}
