//! Where a value came from, and what is wrong with it.

use std::fmt;
use std::path::PathBuf;

/// The most mistakes that are printed; the rest is counted.
const SHOWN_MAX: usize = 20;

/// Where a value came from. Later ones go before earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// Nobody set it.
    Default,
    /// The configuration file.
    File {
        /// Which file, as it was named.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
    },
    /// An environment variable.
    Variable(String),
    /// A flag of the command line.
    Flag(&'static str),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Default => f.write_str("default"),
            // As compilers print places, so that editors can jump there.
            Source::File { path, line, column } => write!(f, "{}:{line}:{column}", path.display()),
            Source::Variable(name) => f.write_str(name),
            Source::Flag(flag) => f.write_str(flag),
        }
    }
}

/// One mistake: where it is, which key it is about, what is wrong and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub source: Source,
    /// The key, as `trace.level`; empty where it is about no key (a line that is no TOML).
    pub key: String,
    /// The sentence.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.source)?;
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.what)
    }
}

/// All mistakes of a configuration: at least one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// Ok if there is none. Those of the file come first, as they stand in it.
    pub(super) fn none_of(mut mistakes: Vec<Mistake>) -> Result<(), Mistakes> {
        mistakes.sort_by_key(|mistake| match mistake.source {
            Source::File { line, column, .. } => (line, column),
            _ => (usize::MAX, 0),
        });
        if mistakes.is_empty() { Ok(()) } else { Err(Mistakes(mistakes)) }
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Mistake> {
        self.0.iter()
    }
}

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, mistake) in self.0.iter().take(SHOWN_MAX).enumerate() {
            let before = if index == 0 { "" } else { "\n" };
            write!(f, "{before}{mistake}")?;
        }
        match self.0.len().saturating_sub(SHOWN_MAX) {
            0 => Ok(()),
            more => write!(f, "\nand {more} more mistakes"),
        }
    }
}

impl std::error::Error for Mistakes {}
