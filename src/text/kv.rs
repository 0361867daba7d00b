//! `key value` lines: what `status` is made of.

use super::one_line;
use std::fmt::Display;

/// A `key value` text in the making.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(String);

impl KeyValues {
    /// An empty one.
    pub fn new() -> KeyValues {
        KeyValues::default()
    }

    /// Adds a line. Newlines and other control characters within the value become spaces: one fact a line.
    #[must_use]
    pub fn line(mut self, key: &str, value: impl Display) -> KeyValues {
        let value = value.to_string();
        let value = one_line(&value);
        self.0.extend([key, if value.is_empty() { "" } else { " " }, &value, "\n"]);
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
