//! What is written to a ctl: one verb a line, with its attributes, all lines of a write one transaction.

use super::table::Asked;
use crate::engine::state::{Command, Conditions};
use crate::text::{Attr, Refusal, attrs::shown, unknown};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

/// A verb: one line of a ctl's table.
pub(super) struct Verb {
    /// The word.
    pub(super) name: &'static str,
    /// The attributes that it takes.
    pub(super) attributes: &'static [&'static str],
    /// What it does: one line.
    pub(super) help: &'static str,
    /// What it is.
    pub(super) act: Act,
}

/// What a verb is.
pub(super) enum Act {
    /// A command for the log.
    Command(fn(&Asked<'_>, &Attributes<'_>) -> Result<Command, Refusal>),
    /// Something that only this node does, when the rest of the write was found right and has taken effect.
    Local(fn(&Asked<'_>, &Attributes<'_>) -> Result<Deed, Refusal>),
}

/// What this node is to do; it was looked at before, and is not expected to be refused.
pub(super) type Deed = Box<dyn FnOnce() -> Result<(), Refusal> + Send>;

/// The attributes of a line, already known to be known.
pub(super) struct Attributes<'l>(&'l [Attr]);

impl<'l> Attributes<'l> {
    /// Takes the attributes of a line; each must be known, have a value, and be no secret.
    pub(super) fn new(attrs: &'l [Attr], known: &[&str], of: &str) -> Result<Attributes<'l>, Refusal> {
        for attr in attrs {
            if !known.contains(&attr.key.as_str()) {
                let refusal = match known {
                    [] => Refusal::invalid(format!("invalid attribute '{}': {of} takes none", shown(&attr.key))),
                    _ => unknown(&format!("attribute of {of}"), &attr.key, known),
                };
                return Err(refusal);
            }
            if attr.secret {
                return Err(Refusal::invalid(format!(
                    "invalid attribute '!{}': it is no secret, so write it without '!'",
                    attr.key
                )));
            }
            if attr.value.is_none() {
                return Err(Refusal::invalid(format!(
                    "invalid attribute '{}': a value is missing, as in {}=VALUE",
                    attr.key, attr.key
                )));
            }
        }
        Ok(Attributes(attrs))
    }

    /// A value as it was written.
    pub(super) fn text(&self, key: &str) -> Option<&'l str> {
        self.0.iter().find(|a| a.key == key).and_then(|a| a.value.as_deref())
    }

    /// A value, parsed; a refusal names the attribute.
    pub(super) fn parsed<T>(
        &self,
        key: &str,
        parse: impl Fn(&str) -> Result<T, Refusal>,
    ) -> Result<Option<T>, Refusal> {
        let named = |r: Refusal| Refusal::new(r.code, format!("{key}=: {}", r.sentence));
        self.text(key).map(|text| parse(text).map_err(named)).transpose()
    }

    /// A whole number.
    pub(super) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, Refusal> {
        let number = |text: &str| {
            // FromStr would take a sign.
            let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
            let wrong =
                || Refusal::invalid(format!("invalid {key}={}: it must be a whole number in digits", shown(text)));
            digits.then(|| text.parse().ok()).flatten().ok_or_else(wrong)
        };
        self.text(key).map(number).transpose()
    }

    /// `version=` and `id=`.
    pub(super) fn conditions(&self) -> Result<Conditions, Refusal> {
        Ok(Conditions { version: self.number("version")?, key: self.text("id").map(str::to_owned) })
    }
}

/// What a line asks for.
pub(super) enum Asking {
    Nothing,
    Command(Box<Command>),
    Deed(Deed),
}

/// Finds the verb of a line, and what it asks for. Nothing is done yet.
pub(super) fn ask(verbs: &[Verb], asked: &Asked<'_>, line: &[Attr]) -> Result<Asking, Refusal> {
    let Some((word, attrs)) = line.split_first() else { return Ok(Asking::Nothing) };
    let names: Vec<&str> = verbs.iter().map(|v| v.name).collect();
    if word.value.is_some() {
        let sentence =
            format!("invalid line: it begins with '{}=' where a verb must be: {}", shown(&word.key), names.join(", "));
        return Err(Refusal::invalid(sentence));
    }
    let verb = verbs.iter().find(|v| v.name == word.key).ok_or_else(|| unknown("verb", &word.key, &names))?;
    if let Some(second) = attrs.iter().find(|a| a.value.is_none() && names.contains(&a.key.as_str())) {
        return Err(Refusal::invalid(format!("invalid line: a second verb '{}': write one verb a line", second.key)));
    }
    // It would hold up every other writer of the file: the kernel lets one in at a time.
    if attrs.iter().any(|a| a.key == "wait") {
        return Err(Refusal::invalid(
            "invalid wait=: a write does not wait; read the file `wait` after it, or use blixard write --wait",
        ));
    }
    let attributes = Attributes::new(attrs, verb.attributes, verb.name)?;
    match verb.act {
        Act::Command(command) => command(asked, &attributes).map(|command| Asking::Command(Box::new(command))),
        Act::Local(act) => act(asked, &attributes).map(Asking::Deed),
    }
}

/// What is read from a ctl. A table never changes, so it is made once; the tables are known by where they are.
pub(super) fn usage(verbs: &'static [Verb]) -> Bytes {
    static MADE: RwLock<BTreeMap<usize, Bytes>> = RwLock::new(BTreeMap::new());
    let table = verbs.as_ptr().addr();
    if let Some(text) = MADE.read().unwrap_or_else(PoisonError::into_inner).get(&table) {
        return text.clone();
    }
    let text = Bytes::from(print(verbs));
    MADE.write().unwrap_or_else(PoisonError::into_inner).insert(table, text.clone());
    text
}

fn print(verbs: &[Verb]) -> String {
    let mut text = String::from("# One verb a line; all lines of one write take effect, or none.\n");
    for verb in verbs {
        let attributes: Vec<String> = verb.attributes.iter().map(|a| format!(" [{a}=...]")).collect();
        text.push_str(&format!("{}{}\n    # {}\n", verb.name, attributes.concat(), verb.help));
    }
    text
}
