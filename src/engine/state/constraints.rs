//! Where a VM may be: what its spec says of nodes and of other VMs, and how it chooses among those that are left.

use super::words::words;
use crate::text::attrs::shown;
use crate::text::{Refusal, name};
use serde::{Deserialize, Serialize};

/// Labels of one node, or wanted by one VM.
pub const LABELS_MAX: usize = 16;
/// The highest priority.
pub const PRIORITY_MAX: u8 = 9;

words!(
    /// `place=`: which of the nodes that will do.
    #[derive(Default)]
    Place: "placement" {
        /// The one with the most free memory: what fails with a node is as little as can be.
        #[default]
        Spread = "spread",
        /// The one with the least free memory that has room: large VMs find room for longer.
        Pack = "pack",
    }
);

/// Which nodes will do. All of it must hold; nothing said is no constraint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Constraints {
    /// `node=`: this one alone, by name.
    pub node: Option<String>,
    /// `arch=`: only nodes of this architecture, as `x86_64`.
    pub arch: Option<String>,
    /// `labels=`: only nodes that have all of these.
    pub labels: Vec<String>,
    /// `affinity=NAME`: on the node where the others are that have the same name here.
    pub affinity: Option<String>,
    /// `anti-affinity=NAME`: on a node where no other is that has the same name here.
    pub anti_affinity: Option<String>,
}

/// What `set` changes of them; None: as it was, empty: no constraint any more.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConstraintChanges {
    /// See [`Constraints::node`].
    pub node: Option<String>,
    /// See [`Constraints::arch`].
    pub arch: Option<String>,
    /// See [`Constraints::labels`].
    pub labels: Option<Vec<String>>,
    /// See [`Constraints::affinity`].
    pub affinity: Option<String>,
    /// See [`Constraints::anti_affinity`].
    pub anti_affinity: Option<String>,
}

impl Constraints {
    /// Is all of it well formed? Whether such nodes exist is another matter: they may join tomorrow.
    ///
    /// # Errors
    /// EINVAL: which is not.
    pub fn check(&self) -> Result<(), Refusal> {
        for (key, value) in [
            ("node", &self.node),
            ("arch", &self.arch),
            ("affinity", &self.affinity),
            ("anti-affinity", &self.anti_affinity),
        ] {
            if let Some(value) = value {
                let check = if key == "arch" { check_label } else { name::check };
                check(value).map_err(|refusal| Refusal::invalid(format!("{key}: {}", refusal.sentence)))?;
            }
        }
        check_labels(&self.labels)
    }

    /// With these changes.
    #[must_use]
    pub fn with(&self, changes: &ConstraintChanges) -> Constraints {
        let changed = |old: &Option<String>, new: &Option<String>| match new {
            None => old.clone(),
            Some(new) => Some(new.clone()).filter(|new| !new.is_empty()),
        };
        Constraints {
            node: changed(&self.node, &changes.node),
            arch: changed(&self.arch, &changes.arch),
            labels: changes.labels.clone().unwrap_or_else(|| self.labels.clone()),
            affinity: changed(&self.affinity, &changes.affinity),
            anti_affinity: changed(&self.anti_affinity, &changes.anti_affinity),
        }
    }
}

/// Labels in the order and the form in which they are kept: sorted, each once. `ssd,rack:3`; an empty text is none.
///
/// # Errors
/// EINVAL: one is not well formed, or there are too many.
pub fn parse_labels(text: &str) -> Result<Vec<String>, Refusal> {
    let mut labels: Vec<String> = text.split(',').filter(|label| !label.is_empty()).map(str::to_owned).collect();
    labels.sort_unstable();
    labels.dedup();
    check_labels(&labels)?;
    Ok(labels)
}

/// At most [`LABELS_MAX`], sorted, each once, each of letters, digits, `.`, `-`, `_` and `:`.
///
/// # Errors
/// EINVAL.
pub(super) fn check_labels(labels: &[String]) -> Result<(), Refusal> {
    if labels.len() > LABELS_MAX {
        return Err(Refusal::invalid(format!("invalid labels=: {LABELS_MAX} are the most")));
    }
    if !labels.is_sorted_by(|a, b| a < b) {
        return Err(Refusal::invalid("invalid labels=: they are sorted, each once"));
    }
    labels.iter().try_for_each(|label| check_label(label))
}

fn check_label(label: &str) -> Result<(), Refusal> {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_:".contains(&b);
    if (1..=63).contains(&label.len()) && label.bytes().all(legal) {
        return Ok(());
    }
    Err(Refusal::invalid(format!(
        "invalid label '{}': it has 1 to 63 of a-z, 0-9, '.', '-', '_' and ':', as in ssd or rack:3",
        shown(label)
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_kept_sorted_each_once() {
        assert_eq!(parse_labels("ssd,rack:3,ssd").unwrap(), ["rack:3", "ssd"]);
        assert_eq!(parse_labels("").unwrap(), Vec::<String>::new());
        assert!(parse_labels("SSD").unwrap_err().sentence.contains("a-z"));
        let many: Vec<String> = (0..=LABELS_MAX).map(|n| format!("l{n}")).collect();
        assert!(parse_labels(&many.join(",")).is_err());
    }

    #[test]
    fn an_empty_change_takes_a_constraint_away() {
        let text = |text: &str| Some(text.to_owned());
        let before = Constraints { node: text("a"), affinity: text("db"), ..Constraints::default() };
        let after = before.with(&ConstraintChanges { node: text(""), arch: text("x86_64"), ..Default::default() });
        assert_eq!(after, Constraints { arch: text("x86_64"), affinity: text("db"), ..Constraints::default() });
        assert!(after.check().is_ok());
        assert!(Constraints { node: text("A b"), ..Constraints::default() }.check().is_err());
    }
}
