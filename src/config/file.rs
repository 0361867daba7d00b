//! The file: TOML, with the place of each value.

use super::Given;
use super::key::{KEYS, Key, Kind, Text, nearest_key};
use super::mistake::{Mistake, Source};
use std::io::Read;
use std::ops::Range;
use std::path::Path;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The longest file, in bytes: a hundred times what all keys need.
const FILE_BYTES_MAX: usize = 256 * 1024;

/// What a file says; it must be there.
pub(super) fn read(path: &Path, named_by: &Source, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    match std::fs::File::open(path) {
        Ok(file) => read_open(path, file, named_by, mistakes),
        Err(error) => {
            mistakes.push(unreadable(path, named_by, &error.to_string()));
            Vec::new()
        }
    }
}

/// What a file says; nothing if it is not there.
pub(super) fn read_if_there(path: &Path, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    match std::fs::File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        _ => read(path, &Source::Default, mistakes),
    }
}

fn unreadable(path: &Path, named_by: &Source, why: &str) -> Mistake {
    let what = format!("the configuration file {} can't be read: {why}", path.display());
    Mistake { source: named_by.clone(), key: String::new(), what }
}

fn read_open(path: &Path, file: std::fs::File, named_by: &Source, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    let mut bytes = Vec::new();
    // One byte more than allowed shows that there is more.
    if let Err(error) = file.take(FILE_BYTES_MAX as u64 + 1).read_to_end(&mut bytes) {
        mistakes.push(unreadable(path, named_by, &error.to_string()));
        return Vec::new();
    }
    if bytes.len() > FILE_BYTES_MAX {
        mistakes.push(unreadable(path, named_by, &format!("it has more than {FILE_BYTES_MAX} bytes")));
        return Vec::new();
    }
    match std::str::from_utf8(&bytes) {
        Ok(text) => parse(path, text, mistakes),
        Err(error) => {
            let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
            let place = Place { path, text: &String::from_utf8_lossy(valid) };
            mistakes.push(place.mistake(error.valid_up_to(), "", "invalid text: it is not UTF-8".to_owned()));
            Vec::new()
        }
    }
}

/// What a text says. Where it is no TOML only that is told: what can be guessed of the rest would be noise.
pub(super) fn parse(path: &Path, text: &str, mistakes: &mut Vec<Mistake>) -> Vec<Given> {
    let place = Place { path, text };
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut given = Vec::new();
    if errors.is_empty() {
        place.walk("", table.get_ref(), &mut given, mistakes);
    }
    for error in errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        mistakes.push(place.mistake(at, "", format!("invalid TOML: {}", error.message())));
    }
    given
}

/// A text and the file it is of: where something is.
struct Place<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Place<'_> {
    fn source(&self, at: usize) -> Source {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |line| line.chars().count()) + 1;
        Source::File { path: self.path.to_owned(), line, column }
    }

    fn mistake(&self, at: usize, key: &str, what: String) -> Mistake {
        Mistake { source: self.source(at), key: key.to_owned(), what }
    }

    fn walk(&self, before: &str, table: &DeTable<'_>, given: &mut Vec<Given>, mistakes: &mut Vec<Mistake>) {
        for (word, value) in table.iter() {
            let path =
                if before.is_empty() { word.get_ref().to_string() } else { format!("{before}.{}", word.get_ref()) };
            let section = format!("{path}.");
            if let Some(key) = KEYS.iter().find(|key| key.name == path) {
                match self.texts(key, value) {
                    Ok(texts) => given.push(Given { key, source: self.source(value.span().start), texts }),
                    Err(wrong) => mistakes.extend(wrong),
                }
            } else if !KEYS.iter().any(|key| key.name.starts_with(&section)) {
                mistakes.push(self.unknown(&path, word.span()));
            } else if let DeValue::Table(inner) = value.get_ref() {
                self.walk(&path, inner, given, mistakes);
            } else {
                let what = format!("invalid value: it is {}, and [{path}] is a section of keys", kind_of(value));
                mistakes.push(self.mistake(value.span().start, &path, what));
            }
        }
    }

    fn unknown(&self, path: &str, span: Range<usize>) -> Mistake {
        let hint = match nearest_key(path) {
            Some(near) => format!("did you mean '{near}'? "),
            None => String::new(),
        };
        let names: Vec<_> = KEYS.iter().map(|key| key.name).collect();
        self.mistake(span.start, &shown(path), format!("invalid key: {hint}there are: {}", names.join(", ")))
    }

    /// The texts of a value: one, or those of a list.
    fn texts(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Vec<Text>, Vec<Mistake>> {
        let DeValue::Array(items) = value.get_ref() else {
            // A list of one may be written without its brackets.
            return self.text(key, value).map(|text| vec![text]).map_err(|wrong| vec![wrong]);
        };
        if !key.many {
            return Err(vec![self.wrong_kind(key, value)]);
        }
        let mut texts = Vec::new();
        let mut mistakes = Vec::new();
        for item in items.iter() {
            match self.text(key, item) {
                Ok(text) => texts.push(text),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        if mistakes.is_empty() { Ok(texts) } else { Err(mistakes) }
    }

    fn text(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Result<Text, Mistake> {
        let text = match (key.kind, value.get_ref()) {
            (Kind::Text | Kind::Number, DeValue::String(text)) => text.to_string(),
            // Written in whatever base, it is a decimal from here on; what fits nothing is refused as it was written.
            (Kind::Number, DeValue::Integer(number)) => u64::from_str_radix(number.as_str(), number.radix())
                .map_or_else(|_| number.to_string(), |n| n.to_string()),
            (Kind::Switch, DeValue::Boolean(on)) => on.to_string(),
            _ => return Err(self.wrong_kind(key, value)),
        };
        Ok(Text { text, source: self.source(value.span().start) })
    }

    fn wrong_kind(&self, key: &Key, value: &Spanned<DeValue<'_>>) -> Mistake {
        let what = format!("invalid value: it is {}, and this key takes {}", kind_of(value), key.allowed);
        self.mistake(value.span().start, key.name, what)
    }
}

/// A path of keys as a sentence may show it.
fn shown(path: &str) -> String {
    crate::text::attrs::shown(path)
}

fn kind_of(value: &Spanned<DeValue<'_>>) -> &'static str {
    match value.get_ref() {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a section of keys",
    }
}
