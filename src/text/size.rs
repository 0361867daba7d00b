//! Sizes: `512M`, `1G`. Binary suffixes, in text as in QEMU's and libvirt's.

use super::{Refusal, attrs::shown};

const SUFFIXES: &[(char, u32)] = &[('E', 60), ('P', 50), ('T', 40), ('G', 30), ('M', 20), ('K', 10)];

/// Bytes of a size: digits, then at most one of K, M, G, T, P, E (powers of 1024; lower case is taken too).
///
/// # Errors
/// EINVAL for anything else, and for more than 2^64 - 1 bytes.
pub fn parse(text: &str) -> Result<u64, Refusal> {
    let wrong = || {
        Refusal::invalid(format!("invalid size '{}': a size is digits and one of K M G T P E, as 512M", shown(text)))
    };
    let last = text.chars().next_back().ok_or_else(wrong)?;
    let shift = SUFFIXES.iter().find(|(s, _)| *s == last.to_ascii_uppercase()).map(|(_, shift)| *shift);
    let digits = if shift.is_some() { text.get(..text.len() - 1).unwrap_or_default() } else { text };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(wrong());
    }
    let count = digits.parse().ok().and_then(|count: u64| count.checked_mul(1 << shift.unwrap_or(0)));
    count.ok_or_else(|| Refusal::invalid(format!("invalid size '{}': no size is 16E or more", shown(text))))
}

/// The shortest exact text: the largest suffix that divides the bytes.
pub fn print(bytes: u64) -> String {
    let fits = |shift: u32| bytes != 0 && bytes.trailing_zeros() >= shift;
    match SUFFIXES.iter().find(|(_, shift)| fits(*shift)) {
        Some((suffix, shift)) => format!("{}{suffix}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        assert_eq!(parse("512M").unwrap(), 512 << 20);
        assert_eq!(parse("1e").unwrap(), 1 << 60);
        assert_eq!(parse("7").unwrap(), 7);
        for wrong in ["", "M", "-1M", "1MB", "1.5G", "１M", "0x10", "+1", "1 M", "é"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        for large in ["16E", "99999999999999999999"] {
            assert!(parse(large).unwrap_err().sentence.ends_with("no size is 16E or more"), "{large}");
        }
        assert_eq!(print(1536 << 20), "1536M");
        assert_eq!(print(0), "0");
    }

    proptest! {
        #[test]
        fn exact(bytes: u64) {
            prop_assert_eq!(parse(&print(bytes)).unwrap(), bytes);
        }

        #[test]
        fn any_text_is_taken_or_refused(text in "[0-9]{0,21}[KMGTPEkmg. é\\PC]?") {
            if let Ok(bytes) = parse(&text) {
                prop_assert_eq!(parse(&print(bytes)).unwrap(), bytes);
            }
        }
    }
}
