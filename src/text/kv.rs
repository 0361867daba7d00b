//! `key value` lines: what `status` is made of.

use super::one_line;
use std::borrow::Cow;
use std::fmt::{Display, Write};

/// Room for the usual text, in bytes.
const BYTES_USUAL: usize = 512;

/// A `key value` text in the making.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(String);

impl KeyValues {
    /// An empty one.
    pub fn new() -> KeyValues {
        KeyValues(String::with_capacity(BYTES_USUAL))
    }

    /// Adds a line. Newlines and other control characters within the value become spaces: one fact a line.
    #[must_use]
    pub fn line(mut self, key: &str, value: impl Display) -> KeyValues {
        self.0.extend([key, " "]);
        let start = self.0.len();
        // Writing to a String does not fail.
        let _ = write!(self.0, "{value}");
        let (_, written) = self.0.split_at_checked(start).unwrap_or_default();
        if written.is_empty() {
            self.0.pop();
        } else if let Cow::Owned(cleaned) = one_line(written) {
            self.0.truncate(start);
            self.0.push_str(&cleaned);
        }
        self.0.push('\n');
        self
    }

    /// Adds a line if there is a value.
    #[must_use]
    pub fn maybe(self, key: &str, value: Option<impl Display>) -> KeyValues {
        match value {
            Some(value) => self.line(key, value),
            None => self,
        }
    }

    /// The text.
    pub fn print(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_fact_a_line() {
        let text = super::KeyValues::new()
            .line("state", "running")
            .maybe("ip", None::<u8>)
            .line("error", "a\nb\x1b[2J")
            .line("note", "")
            .print();
        assert_eq!(text, "state running\nerror a b [2J\nnote\n");
    }
}
