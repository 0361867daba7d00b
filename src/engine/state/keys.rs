//! `id=KEY`: a repeated write of what is not idempotent gets the first one's answer.

use super::{Command, Reply};
use crate::clock::HybridTime;
use crate::text::{Refusal, attrs::shown};
use imbl::{OrdMap, OrdSet};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// How long a key is remembered, in milliseconds of the cluster's time: a day.
pub const KEPT_MS: u64 = 86_400_000;
/// The most keys that are remembered; beyond it the oldest go first.
pub const KEYS_MAX: usize = 100_000;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 128;

type Name = (String, String);

/// What a key stands for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    at_ms: u64,
    command: [u8; 16],
    reply: Reply,
}

/// The keys of all users.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Keys {
    kept: OrdMap<Name, Kept>,
    by_age: OrdSet<(u64, Name)>,
}

fn digest(command: &Command) -> [u8; 16] {
    let hash: [u8; 32] = Sha256::digest(super::encoding::append(Vec::new(), command)).into();
    let (first, _) = hash.split_first_chunk::<16>().unwrap_or((&[0; 16], &[]));
    *first
}

impl Keys {
    /// The answer that this key got, if it is remembered.
    ///
    /// # Errors
    /// The key is illegal, or stood for another command.
    pub(super) fn answer(&self, user: &str, key: &str, command: &Command) -> Result<Option<Reply>, Refusal> {
        if key.is_empty() || key.len() > KEY_BYTES_MAX || key.chars().any(char::is_control) {
            return Err(Refusal::invalid(format!(
                "invalid id='{}': a key has 1 to {KEY_BYTES_MAX} letters",
                shown(key)
            )));
        }
        match self.kept.get(&(user.to_owned(), key.to_owned())) {
            Some(kept) if kept.command == digest(command) => Ok(Some(kept.reply.clone())),
            Some(_) => Err(Refusal::exists(format!("the key id='{}' exists already, for another command", shown(key)))),
            None => Ok(None),
        }
    }

    /// Remembers an answer, and forgets what is too old or too much.
    pub(super) fn keep(&mut self, user: &str, key: &str, command: &Command, reply: Reply, now: HybridTime) {
        let (name, at_ms) = ((user.to_owned(), key.to_owned()), now.millis());
        self.kept.insert(name.clone(), Kept { at_ms, command: digest(command), reply });
        self.by_age.insert((at_ms, name));
        self.forget(now);
    }

    pub(super) fn forget(&mut self, now: HybridTime) {
        let old = |at_ms: u64| at_ms.saturating_add(KEPT_MS) <= now.millis();
        while let Some(oldest) = self.by_age.get_min().filter(|(at, _)| old(*at) || self.kept.len() > KEYS_MAX).cloned()
        {
            self.kept.remove(&oldest.1);
            self.by_age.remove(&oldest);
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let indexed = self.kept.iter().all(|(name, kept)| self.by_age.contains(&(kept.at_ms, name.clone())));
        if indexed && self.kept.len() == self.by_age.len() {
            Ok(())
        } else {
            Err("the index of keys does not match".to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_bounded_and_the_oldest_go_first() {
        let mut keys = Keys::default();
        let key = |n: usize| format!("{n:06}");
        for n in 0..=KEYS_MAX {
            keys.keep("ann", &key(n), &Command::NodeDown, Reply::Done, HybridTime::from_millis(n as u64));
        }
        assert_eq!(keys.kept.len(), KEYS_MAX);
        assert_eq!(keys.answer("ann", &key(0), &Command::NodeDown), Ok(None));
        assert_eq!(keys.answer("ann", &key(1), &Command::NodeDown), Ok(Some(Reply::Done)));
        assert_eq!(keys.check(), Ok(()));
        keys.forget(HybridTime::from_millis(KEPT_MS + 99_000));
        assert_eq!(keys.kept.len(), 1_000, "those of the last second");
        assert_eq!(keys.check(), Ok(()));
    }
}
