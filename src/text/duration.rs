//! Durations: `30s`, `1h30m`, `500ms`.

use super::{Refusal, attrs::shown};

const UNITS: &[(&str, u64)] = &[("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Milliseconds of a duration: numbers each with a unit (d h m s ms), larger units first, each at most once.
///
/// # Errors
/// EINVAL for anything else, and for what does not fit 64 bits.
pub fn parse(text: &str) -> Result<u64, Refusal> {
    let wrong =
        || Refusal::invalid(format!("invalid duration '{}': a duration is as 30s, 1h30m or 500ms", shown(text)));
    let (mut rest, mut units, mut total) = (text, UNITS, 0_u64);
    while !rest.is_empty() {
        let (digits, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len()));
        let index = units.iter().position(|(u, _)| *u == unit).ok_or_else(wrong)?;
        let (_, millis) = units.get(index).ok_or_else(wrong)?;
        let count: u64 = digits.parse().map_err(|_| wrong())?;
        total = count.checked_mul(*millis).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        units = units.get(index + 1..).unwrap_or_default();
        rest = after;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// The shortest exact text, largest unit first.
pub fn print(mut ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let mut text = String::new();
    for (unit, millis) in UNITS {
        if ms >= *millis {
            text.push_str(&format!("{}{unit}", ms / millis));
            ms %= millis;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        assert_eq!(parse("1h30m").unwrap(), 5_400_000);
        assert_eq!(parse("500ms").unwrap(), 500);
        assert_eq!(parse("0s").unwrap(), 0);
        assert_eq!(parse("1m500ms").unwrap(), 60_500);
        for wrong in ["", "5", "s", "-5s", "1s1h", "1h1h", "1.5s", "99999999999999999999d", "1 h"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn exact(ms: u64) {
            prop_assert_eq!(parse(&print(ms)).unwrap(), ms);
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "([0-9]{0,21}(d|h|m|s|ms|x|é)?){0,6}") {
            if let Ok(ms) = parse(&text) {
                prop_assert_eq!(parse(&print(ms)).unwrap(), ms);
            }
        }
    }
}
