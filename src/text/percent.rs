//! Hundredths, as `150%`.

use super::Refusal;
use super::attrs::shown;

/// `150%` as 150.
///
/// # Errors
/// EINVAL: it is not that.
pub fn parse(text: &str) -> Result<u32, Refusal> {
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    let wrong = || Refusal::invalid(format!("invalid ratio '{}': it is in hundredths, as 150%", shown(text)));
    digits.and_then(|digits| digits.parse().ok()).ok_or_else(wrong)
}

/// The other way round.
pub fn print(hundredths: u32) -> String {
    format!("{hundredths}%")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_printed_is_parsed() {
        assert_eq!(parse(&print(150)), Ok(150));
        for wrong in ["", "%", "150", "+1%", "-1%", "1.5%", "5000000000%"] {
            assert!(parse(wrong).unwrap_err().sentence.contains("as 150%"), "{wrong}");
        }
    }
}
