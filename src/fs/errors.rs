//! `/err`: the last errors of each user, in whole sentences.

use super::tree::Caller;
use crate::text::{Refusal, time::rfc3339};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, PoisonError};

/// Sentences that are kept of each user.
const SENTENCES_MAX: usize = 64;
/// Users of whom sentences are kept; beyond it those of the one that erred longest ago go.
const USERS_MAX: usize = 1_024;
/// A sentence, in bytes.
const SENTENCE_BYTES_MAX: usize = 2_048;

/// A user as errors are kept of them: the nameless by uid.
type Whose = (String, Option<u32>);

#[derive(Debug, Default)]
struct Kept {
    last_ms: u64,
    sentences: VecDeque<String>,
}

/// The last errors of all users.
#[derive(Debug, Default)]
pub(super) struct Errors(Mutex<BTreeMap<Whose, Kept>>);

impl Errors {
    fn whose(who: &Caller) -> Whose {
        (who.user.clone(), who.uid)
    }

    /// Keeps a refusal, at the time that the node's clock shows; None: it shows none.
    pub(super) fn note(&self, who: &Caller, refusal: &Refusal, now_ms: Option<u64>) {
        let mut users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let whose = Errors::whose(who);
        if !users.contains_key(&whose) && users.len() >= USERS_MAX {
            let oldest = users.iter().min_by_key(|(_, kept)| kept.last_ms).map(|(whose, _)| whose.clone());
            oldest.and_then(|oldest| users.remove(&oldest));
        }
        let kept = users.entry(whose).or_default();
        // Later than the one before, if by a millisecond that has not come yet: a reader who compares sees that there is a new one.
        kept.last_ms = now_ms.unwrap_or(0).max(kept.last_ms.saturating_add(1));
        let time = now_ms.map_or_else(|| format!("unknown-time-{}", kept.last_ms), |_| rfc3339(kept.last_ms));
        if kept.sentences.len() >= SENTENCES_MAX {
            kept.sentences.pop_front();
        }
        let sentence = refusal.sentence.replace(['\n', '\r'], " ");
        let shown: String = sentence.chars().take(SENTENCE_BYTES_MAX / 4).collect();
        kept.sentences.push_back(format!("{time} {shown}\n"));
    }

    pub(super) fn of(&self, who: &Caller) -> String {
        let users = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        users
            .get(&Errors::whose(who))
            .map(|kept| kept.sentences.iter().map(String::as_str).collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sees_their_own_and_it_is_bounded() {
        let errors = Errors::default();
        let user = |n: u32| Caller { uid: Some(n), user: "none".into(), ..Caller::default() };
        for n in 0..2_000 {
            errors.note(&user(n), &Refusal::busy("one\ntwo"), Some(u64::from(n)));
        }
        assert_eq!(errors.0.lock().unwrap().len(), USERS_MAX);
        for n in 0..100 {
            errors.note(&user(1_999), &Refusal::busy(format!("number {n}")), Some(1_000_000 + n));
        }
        let mine = errors.of(&user(1_999));
        assert_eq!(mine.lines().count(), SENTENCES_MAX);
        assert_eq!(mine.lines().last(), Some("1970-01-01T00:16:40.099Z number 99"));
        assert_eq!(errors.of(&user(1_500)), "1970-01-01T00:00:01.500Z one two\n");
        assert_eq!(errors.of(&user(0)), "", "long ago");
    }

    #[test]
    fn a_repeated_refusal_is_seen_to_be_a_new_one_whatever_the_clock_does() {
        let (errors, mut before) = (Errors::default(), String::new());
        let who = Caller { uid: Some(1), user: "ann".into(), ..Caller::default() };
        for now_ms in [Some(5_000), None, Some(4_000)].into_iter().flat_map(|now_ms| [now_ms; 2 * SENTENCES_MAX]) {
            errors.note(&who, &Refusal::busy("as before"), now_ms);
            let now = errors.of(&who);
            assert_ne!(now, before);
            before = now;
        }
    }
}
