//! `key value` lines: what `status` is made of.

use std::fmt::{Display, Write};

/// A `key value` text in the making.
#[derive(Debug, Clone, Default)]
pub struct KeyValues(String);

impl KeyValues {
    /// An empty one.
    pub fn new() -> KeyValues {
        KeyValues::default()
    }

    /// Adds a line. A newline within the value becomes a space: one fact a line.
    #[must_use]
    pub fn line(mut self, key: &str, value: impl Display) -> KeyValues {
        let start = self.0.len();
        // Writing to a String never fails.
        let _ = write!(self.0, "{key} {value}");
        if self.0.get(start..).is_some_and(|added| added.contains('\n')) {
            let line = self.0.split_off(start).replace('\n', " ");
            self.0.push_str(&line);
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
        let text =
            super::KeyValues::new().line("state", "running").maybe("ip", None::<u8>).line("error", "a\nb").print();
        assert_eq!(text, "state running\nerror a b\n");
    }
}
