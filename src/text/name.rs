//! Names of objects: `[a-z0-9][a-z0-9.-]{0,62}`, never all digits, never the name of a file beside them.

use super::{Refusal, attrs::shown};

/// The longest name, in bytes: a DNS label's (RFC 1035).
pub const NAME_BYTES_MAX: usize = 63;

/// Files that stand beside the objects of a kind, or may come to stand there: no object is called so.
pub const RESERVED: &[&str] = &["ctl", "events", "json", "list", "new", "status"];

/// Is this a legal name?
///
/// # Errors
/// EINVAL with the rule that was broken.
pub fn check(name: &str) -> Result<(), Refusal> {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let wrong = |why: &str| Err(Refusal::invalid(format!("invalid name '{}': {why}", shown(name))));
    if name.is_empty() {
        return wrong("a name has at least one letter");
    }
    if name.len() > NAME_BYTES_MAX {
        return wrong(&format!("it has {} bytes, and a name has at most {NAME_BYTES_MAX}", name.len()));
    }
    if !name.bytes().next().is_some_and(letter) {
        return wrong("a name begins with a letter a to z or a digit");
    }
    if !name.bytes().all(|b| letter(b) || b == b'.' || b == b'-') {
        return wrong("a name has only the letters a to z, digits, '.' and '-'");
    }
    if name.bytes().all(|b| b.is_ascii_digit()) {
        return wrong("only digits would be a number; put a letter into it");
    }
    if RESERVED.contains(&name) {
        return wrong("a file beside the objects is called so");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::check;

    #[test]
    fn names() {
        for good in ["web", "a", "0a", "db-1.example", "listing", &"a".repeat(63)] {
            assert!(check(good).is_ok(), "{good}");
        }
        for wrong in [
            "",
            "42",
            "-a",
            ".",
            "..",
            "a/b",
            "A",
            "a b",
            "ä",
            "a\0",
            "a\n",
            "list",
            "new",
            &"a".repeat(64),
            &"a".repeat(10_240),
        ] {
            let said = check(wrong).unwrap_err().sentence;
            assert!(said.len() < 200, "{said}");
        }
    }
}
