//! Is this node's copy what the others have? Each renewal of a lease says up to where its node had applied, and what came of it; whoever
//! applies the renewal compares that with its own past. A copy from which a majority of the voters differs is the wrong one.

use super::state::{Claim, NodeId, State};
use std::collections::{BTreeMap, VecDeque};

/// How far back a claim can be compared, in entries. A renewal is applied moments after it was made.
const PAST_MAX: usize = 8_192;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// The last entries' numbers and digests, oldest first.
    past: VecDeque<Claim>,
    /// The others, and whether the last thing that they claimed differs from what was so here.
    differs: BTreeMap<NodeId, bool>,
}

impl Comparison {
    /// This is so here.
    pub(super) fn note(&mut self, own: Claim) {
        // After a jump to a snapshot there is a gap, and nothing in it to compare with.
        if self.past.back().is_some_and(|last| last.seq + 1 != own.seq) {
            self.past.clear();
        }
        if self.past.len() >= PAST_MAX {
            self.past.pop_front();
        }
        self.past.push_back(own);
    }

    /// Another node claims this.
    pub(super) fn hear(&mut self, node: NodeId, claim: Claim) {
        let first = self.past.front().map_or(0, |first| first.seq);
        let nth = claim.seq.checked_sub(first).and_then(|nth| usize::try_from(nth).ok());
        let Some(own) = nth.and_then(|nth| self.past.get(nth)) else { return };
        let differs = own.digest != claim.digest;
        if self.differs.insert(node, differs) != Some(differs) && differs {
            tracing::error!(%node, seq = claim.seq, "a node's copy of the state differs from this one's");
        }
    }

    /// Whether a majority of the voters has something else than this node.
    ///
    /// # Errors
    /// A sentence: this copy is wrong.
    pub(super) fn check(&self, state: &State, own: NodeId) -> Result<(), String> {
        let voters = state.voters().count();
        let differ = state.voters().filter(|node| node.id != own && self.differs.get(&node.id) == Some(&true)).count();
        if 2 * differ <= voters {
            return Ok(());
        }
        Err(format!("{differ} of {voters} voters have decided something else than this node up to the same entry"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{By, Command, Entry, EntryId, NodeRole, Role};

    fn three_voters() -> State {
        let mut state = State::new();
        let text = str::to_owned;
        let mut apply = |by: By, command: Command| {
            let id = EntryId { node: NodeId(1), boot: 1, n: state.seq() + 1 };
            let at = HybridTime::from_millis(1_000 + state.seq());
            let (next, outcome, _) = state.apply(state.seq() + 1, &Entry { id, at, by, commands: vec![command] });
            outcome.unwrap();
            state = next;
        };
        let init = Command::Init { cluster: text("c"), node: text("alpha"), admin: text("root"), admin_uid: 0 };
        apply(By::Agent, init);
        apply(By::User(text("root")), Command::UserSet { name: text("ann"), role: Role::Viewer, uid: None });
        for (nth, name) in [(1, "beta"), (2, "gamma")] {
            let (secret_sha256, role) = ([nth; 32], NodeRole::Voter);
            apply(By::User(text("root")), Command::InviteNew { secret_sha256, role, expires_ms: 100_000 });
            let (name, address, release) = (text(name), format!("{name}!5640"), text("1"));
            apply(By::Agent, Command::NodeJoin { secret_sha256, name, address, entry_format: 5, release });
        }
        state
    }

    fn claim(seq: u64, digest: u64) -> Claim {
        Claim { seq, digest }
    }

    #[test]
    fn a_copy_is_wrong_when_a_majority_has_another() {
        let (state, own) = (three_voters(), NodeId(1));
        let mut comparison = Comparison::default();
        (1..=10).for_each(|seq| comparison.note(claim(seq, seq * 7)));
        comparison.hear(NodeId(2), claim(9, 63));
        comparison.hear(NodeId(3), claim(9, 1));
        assert!(comparison.check(&state, own).is_ok(), "one is no majority of three");
        comparison.hear(NodeId(2), claim(10, 1));
        assert!(comparison.check(&state, own).unwrap_err().contains("2 of 3 voters"));
        comparison.hear(NodeId(3), claim(10, 70));
        assert!(comparison.check(&state, own).is_ok(), "it has healed");
    }

    #[test]
    fn what_can_t_be_compared_says_nothing() {
        let (state, own) = (three_voters(), NodeId(1));
        let mut comparison = Comparison::default();
        (5..=10).for_each(|seq| comparison.note(claim(seq, 7)));
        for seq in [0, 4, 11, u64::MAX] {
            (2..=3).for_each(|node| comparison.hear(NodeId(node), claim(seq, 1)));
        }
        // A jump: what was before it is not this copy's past any more.
        comparison.note(claim(100, 7));
        (2..=3).for_each(|node| comparison.hear(NodeId(node), claim(7, 1)));
        assert!(comparison.check(&state, own).is_ok());
        (101..101 + 2 * PAST_MAX as u64).for_each(|seq| comparison.note(claim(seq, 7)));
        assert_eq!(comparison.past.len(), PAST_MAX);
    }
}
