//! `attr=value` lines, as in ndb(6): `name=web cpus=2 cmd='uname -a' # a comment`.
//!
//! A word is bare, or quoted with `'` in whole or in part; within quotes `''` is one quote, `\n` a newline, `\\` a
//! backslash. A word without `=` is a verb or a flag. `!attr=value` marks a secret.

use super::Refusal;
use std::borrow::Cow;
use std::collections::BTreeSet;

/// The longest text that one write may hold, in bytes (rule 4 of the tree).
pub const TEXT_BYTES_MAX: usize = 64 * 1024;

/// One word of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// What stands before `=`, or the whole word if there is none.
    pub key: String,
    /// What stands behind `=`; None for a bare word.
    pub value: Option<String>,
    /// `!attr=value`: must never be shown again.
    pub secret: bool,
    /// Where it begins in its line, in characters from 1.
    pub column: usize,
}

/// One line that says something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number in the text, from 1.
    pub number: usize,
    /// Its words, at least one.
    pub attrs: Vec<Attr>,
}

/// The lines of a text that say something; blank ones and comments are passed over.
///
/// # Errors
/// EMSGSIZE beyond [`TEXT_BYTES_MAX`]; EINVAL with line and column for what is no UTF-8, has a NUL, an open quote, an
/// attribute twice, or a word that says nothing.
pub fn parse_lines(text: &[u8]) -> Result<Vec<Line>, Refusal> {
    if text.len() > TEXT_BYTES_MAX {
        let sentence =
            format!("the text is too long: {} bytes, and {TEXT_BYTES_MAX} is the most in one write", text.len());
        return Err(Refusal::new(super::Code::TooLong, sentence));
    }
    let text = std::str::from_utf8(text).map_err(|e| not_utf8(text, e.valid_up_to()))?;
    let mut lines = Vec::new();
    for (index, line) in text.split('\n').enumerate() {
        let number = index + 1;
        let line = line.strip_suffix('\r').unwrap_or(line);
        let attrs = parse_line(line).map_err(|r| Refusal::new(r.code, format!("line {number}, {}", r.sentence)))?;
        if !attrs.is_empty() {
            lines.push(Line { number, attrs });
        }
    }
    Ok(lines)
}

fn not_utf8(text: &[u8], at: usize) -> Refusal {
    let before = text.get(..at).unwrap_or_default();
    let line = before.iter().filter(|b| **b == b'\n').count() + 1;
    let column = String::from_utf8_lossy(before).rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
    Refusal::invalid(format!("line {line}, column {column}: invalid text: it is not UTF-8"))
}

/// The words of one line without its newline; none for a blank line or a comment.
///
/// # Errors
/// EINVAL with the column.
pub fn parse_line(line: &str) -> Result<Vec<Attr>, Refusal> {
    let mut scanner = Scanner { rest: line.chars().peekable(), column: 1 };
    let mut attrs = Vec::new();
    let mut seen = BTreeSet::new();
    while let Some(attr) = scanner.word()? {
        if attr.value.is_some() && !seen.insert(attr.key.clone()) {
            return Err(at(attr.column, &format!("invalid line: '{}' is given twice", shown(&attr.key))));
        }
        attrs.push(attr);
    }
    Ok(attrs)
}

fn at(column: usize, what: &str) -> Refusal {
    Refusal::invalid(format!("column {column}: {what}"))
}

/// A word as a sentence may show it: bounded, and without control characters.
pub fn shown(word: &str) -> String {
    const SHOWN_CHARS_MAX: usize = 64;
    let mut text: String = word.chars().take(SHOWN_CHARS_MAX).flat_map(char::escape_debug).collect();
    if word.chars().nth(SHOWN_CHARS_MAX).is_some() {
        text.push_str("...");
    }
    text
}

struct Scanner<'a> {
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    column: usize,
}

impl Scanner<'_> {
    fn next(&mut self) -> Result<Option<char>, Refusal> {
        let c = self.rest.next();
        if c == Some('\0') {
            return Err(at(self.column, "invalid text: it has a NUL byte"));
        }
        self.column += usize::from(c.is_some());
        Ok(c)
    }

    /// The next word; None at the end of the line or at a comment.
    fn word(&mut self) -> Result<Option<Attr>, Refusal> {
        while self.rest.peek().is_some_and(|c| matches!(c, ' ' | '\t')) {
            self.next()?;
        }
        let column = self.column;
        if self.rest.peek().is_none_or(|c| *c == '#') {
            return Ok(None);
        }
        let (mut key, mut value, mut secret) = (String::new(), None, false);
        while let Some(c) = self.rest.peek().copied().filter(|c| !matches!(c, ' ' | '\t')) {
            match c {
                '=' if value.is_none() => {
                    self.next()?;
                    value = Some(String::new());
                }
                '!' if value.is_none() && key.is_empty() && !secret => {
                    self.next()?;
                    secret = true;
                }
                '\'' => self.quoted(value.as_mut().unwrap_or(&mut key))?,
                _ => value.as_mut().unwrap_or(&mut key).extend(self.next()?),
            }
        }
        match value {
            Some(_) if key.is_empty() => Err(at(column, "invalid word: there is no attribute before '='")),
            None if secret => Err(at(column, "invalid word: '!' marks a secret, as !attr=value")),
            None if key.is_empty() => Err(at(column, "invalid word: it is empty")),
            _ => Ok(Some(Attr { key, value, secret, column })),
        }
    }

    fn quoted(&mut self, into: &mut String) -> Result<(), Refusal> {
        let column = self.column;
        self.next()?;
        while let Some(c) = self.next()? {
            match c {
                '\'' if self.rest.peek() == Some(&'\'') => into.extend(self.next()?),
                '\'' => return Ok(()),
                '\\' => into.push(self.escape()?),
                _ => into.push(c),
            }
        }
        Err(at(column, "invalid line: this quote is not closed before the end of the line"))
    }

    /// What stands for the escape whose backslash was just read.
    fn escape(&mut self) -> Result<char, Refusal> {
        let column = self.column.saturating_sub(1);
        match self.next()? {
            Some('n') => Ok('\n'),
            Some('\\') => Ok('\\'),
            _ => Err(at(column, r"invalid escape: within quotes there are \n and \\")),
        }
    }
}

/// What is not itself within quotes.
const ESCAPED: [char; 3] = ['\'', '\n', '\\'];

/// The value as it must be written so that [`parse_line`] reads it back.
pub fn quote(value: &str) -> Cow<'_, str> {
    let plain = |c: char| !matches!(c, ' ' | '\t' | '\'' | '#' | '=' | '!' | '\\' | '"' | '\r') && !c.is_control();
    if !value.is_empty() && value.chars().all(plain) {
        return Cow::Borrowed(value);
    }
    let mut quoted = String::with_capacity(value.len() + 2);
    quoted.push('\'');
    // Run by run: the audit trail quotes every command.
    for run in value.split_inclusive(ESCAPED) {
        quoted.push_str(run.trim_end_matches(ESCAPED));
        match run.chars().next_back() {
            Some('\'') => quoted.push_str("''"),
            Some('\n') => quoted.push_str(r"\n"),
            Some('\\') => quoted.push_str(r"\\"),
            _ => {}
        }
    }
    quoted.push('\'');
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pairs(line: &str) -> Vec<(String, Option<String>)> {
        parse_line(line).unwrap().into_iter().map(|a| (a.key, a.value)).collect()
    }

    #[test]
    fn words_quotes_and_comments() {
        let said = pairs("start name=web cmd='it''s \\n a=b' empty='' # rest");
        let expected = [("start", None), ("name", Some("web")), ("cmd", Some("it's \n a=b")), ("empty", Some(""))];
        assert_eq!(said, expected.map(|(k, v)| (k.to_owned(), v.map(str::to_owned))));
        assert_eq!(pairs("# nothing"), []);
        assert_eq!(pairs("a=b#c"), [("a".to_owned(), Some("b#c".to_owned()))]);
        assert!(parse_line("!token=x").unwrap()[0].secret);
    }

    #[test]
    fn mistakes_name_line_and_column() {
        let said = |text: &[u8]| parse_lines(text).unwrap_err().sentence;
        assert_eq!(
            said(b"start\nname='x"),
            "line 2, column 6: invalid line: this quote is not closed before the end of the line"
        );
        assert_eq!(said(b"a=1 a=2"), "line 1, column 5: invalid line: 'a' is given twice");
        assert!(said(b"ok\nx\0y").starts_with("line 2, column 2: invalid text: it has a NUL"));
        assert!(said(b"ok\n\xc3\xa4b\xff").starts_with("line 2, column 3: invalid text: it is not UTF-8"));
        assert_eq!(said(b"start =x"), "line 1, column 7: invalid word: there is no attribute before '='");
        assert_eq!(said(b"!start"), "line 1, column 1: invalid word: '!' marks a secret, as !attr=value");
        assert_eq!(said(b"a=1 '' b"), "line 1, column 5: invalid word: it is empty");
        assert_eq!(said(b"a='\\t'"), r"line 1, column 4: invalid escape: within quotes there are \n and \\");
        assert_eq!(parse_lines(&vec![b'#'; TEXT_BYTES_MAX + 1]).unwrap_err().code, super::super::Code::TooLong);
    }

    #[test]
    fn line_ends_of_all_kinds() {
        let lines = parse_lines(b"start\r\n\n# no\r\nstop").unwrap();
        assert_eq!(
            lines.iter().map(|l| (l.number, l.attrs[0].key.as_str())).collect::<Vec<_>>(),
            [(1, "start"), (4, "stop")]
        );
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(value in "[^\0]*", end in "(\r?\n)?") {
            let text = format!("first key={} last=1{end}", quote(&value));
            let lines = parse_lines(text.as_bytes()).unwrap();
            prop_assert_eq!(lines.len(), 1);
            let values: Vec<_> = lines[0].attrs.iter().map(|a| a.value.as_deref()).collect();
            prop_assert_eq!(values, [None, Some(value.as_str()), Some("1")]);
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse_lines(&bytes);
        }

        #[test]
        fn what_is_taken_can_be_written_again(text in r"[ ab='\\n#!\t\r\nä]{0,40}") {
            let Ok(lines) = parse_lines(text.as_bytes()) else { return Ok(()) };
            let again: String = lines.iter().map(|line| written(&line.attrs)).collect();
            let without_places = |lines: Vec<Line>| -> Vec<Vec<_>> {
                lines.into_iter().map(|l| l.attrs.into_iter().map(|a| (a.key, a.value, a.secret)).collect()).collect()
            };
            let read = parse_lines(again.as_bytes());
            prop_assert!(read.is_ok(), "{:?} of {:?}", read, again);
            prop_assert_eq!(without_places(read.unwrap()), without_places(lines));
        }
    }

    /// The line that these words came from, in its plainest form.
    fn written(attrs: &[Attr]) -> String {
        let word = |a: &Attr| {
            let value = a.value.as_ref().map(|v| format!("={}", quote(v))).unwrap_or_default();
            format!("{}{}{value} ", if a.secret { "!" } else { "" }, quote(&a.key))
        };
        attrs.iter().map(word).chain(["\n".to_owned()]).collect()
    }
}
