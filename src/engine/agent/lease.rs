//! The leases of the other nodes, by which they say that they are there: how it is noticed that one is not. `holder.rs` has our own.
//!
//! No time of day is in it. The holder counts its length from before it submitted the renewal. Who watches counts from when it applied
//! the renewal, which is later, and waits longer by what clocks may drift and a grace: so a lease is never over for the others
//! before it is over for its holder. Whose host is suspended meanwhile waits longer still.

use crate::engine::Engine;
use crate::engine::log::Role;
use crate::engine::state::{By, Command, Lease, NodeId, State};
use crate::mutants::{Mutant, planted};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The pause after something that the log did not take.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// How leases are set. What is safe is checked where it is configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long this node's lease lasts, in milliseconds.
    pub length_ms: u64,
    /// By how much the clocks of two machines may differ in speed, in hundredths.
    pub drift_percent: u32,
    /// And this is waited besides, in milliseconds, before another one's lease is taken for over.
    pub grace_ms: u64,
}

impl Options {
    /// For how long others wait until a lease of this length is over.
    fn waited(self, length_ms: u64) -> Duration {
        let drift_ms = length_ms.saturating_mul(u64::from(self.drift_percent)).div_ceil(100);
        Duration::from_millis(length_ms.saturating_add(drift_ms).saturating_add(self.grace_ms))
    }
}

/// When the renewals of other nodes were seen.
#[derive(Debug, Default)]
struct Seen(BTreeMap<NodeId, (u64, Instant)>);

impl Seen {
    /// Looks at all leases, and says of whom one is over, and when the next one will be.
    fn look(
        &mut self,
        state: &State,
        own: NodeId,
        options: Options,
        now: Instant,
    ) -> (Vec<(NodeId, u64)>, Option<Instant>) {
        self.0.retain(|id, _| state.node(*id).is_some());
        let (mut over, mut next) = (Vec::new(), None);
        for node in state.nodes().filter(|node| node.id != own) {
            let Lease { counter, length_ms, expired } = node.lease;
            let seen = self.0.entry(node.id).or_insert((counter, now));
            if seen.0 != counter {
                *seen = (counter, now);
            }
            if counter == 0 || expired {
                continue;
            }
            let waited =
                if planted(Mutant::LeaseHasty) { Duration::from_millis(length_ms) } else { options.waited(length_ms) };
            // One that is too long for the clock is never over.
            let Some(end) = seen.1.checked_add(waited) else { continue };
            if end <= now {
                over.push((node.id, counter));
            } else {
                next = Some(next.map_or(end, |next: Instant| next.min(end)));
            }
        }
        (over, next)
    }
}

/// Watches the leases of the others until `stop`; the node that leads the log says when one is over.
pub(super) async fn watch(
    engine: Engine,
    own: NodeId,
    options: Options,
    stop: CancellationToken,
) -> Result<(), String> {
    let mut changes = engine.changes();
    let mut seen = Seen::default();
    loop {
        changes.borrow_and_update();
        let (over, next) = seen.look(&engine.state(), own, options, Instant::now());
        let leads = !over.is_empty() && engine.health().role == Role::Leader;
        for (node, counter) in over.iter().filter(|_| leads) {
            let expire = Command::LeaseExpire { node: *node, counter: *counter };
            if let Err(refusal) = engine.submit(By::Agent, vec![expire]).await {
                tracing::warn!(%node, %refusal, "that a lease is over could not be said; it is tried again");
            }
        }
        // What the log did not take is said again. Where another leads there is nothing to do: when this node comes to lead, the others'
        // renewals wake it.
        let next = if leads { Some(Instant::now() + AGAIN_AFTER) } else { next };
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
            () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::HybridTime;
    use crate::engine::state::{Entry, EntryId, NodeVerb};

    fn apply(state: &mut State, node: u64, by: By, command: Command) {
        let last = state.last_of(NodeId(node)).map_or(0, |(_, n)| n);
        let id = EntryId { node: NodeId(node), boot: 1, n: last + 1 };
        let at = HybridTime::from_millis(1_000_000 + state.seq());
        let (next, outcome, _) = state.apply(state.seq() + 1, &Entry { id, at, by, commands: vec![command] });
        outcome.unwrap();
        *state = next;
    }

    const OPTIONS: Options = Options { length_ms: 10_000, drift_percent: 20, grace_ms: 2_000 };

    fn two_nodes() -> State {
        let mut state = State::new();
        let text = str::to_owned;
        let init = Command::Init { cluster: text("c"), node: text("alpha"), admin: text("root"), admin_uid: 0 };
        apply(&mut state, 1, By::Agent, init);
        let (secret_sha256, role) = ([7; 32], crate::engine::state::NodeRole::Voter);
        let invite = Command::InviteNew { secret_sha256, role, expires_ms: 2_000_000 };
        apply(&mut state, 1, By::User(text("root")), invite);
        let join = Command::NodeJoin {
            secret_sha256,
            name: text("beta"),
            address: text("beta!5640"),
            entry_format: crate::engine::state::ENTRY_FORMAT,
            release: text("1"),
        };
        apply(&mut state, 1, By::Agent, join);
        state
    }

    #[test]
    fn a_lease_is_over_for_the_others_later_than_for_its_holder() {
        let mut state = two_nodes();
        let (mut seen, begin) = (Seen::default(), Instant::now());
        let at = |ms: u64| begin + Duration::from_millis(ms);
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(0)), (vec![], None), "it never had one");
        apply(
            &mut state,
            2,
            By::Agent,
            Command::LeaseRenew { counter: 1, length_ms: 10_000, claim: Default::default() },
        );
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(1_000)), (vec![], Some(at(15_000))));
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(14_999)).0, vec![]);
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(15_000)).0, vec![(NodeId(2), 1)]);
        apply(
            &mut state,
            2,
            By::Agent,
            Command::LeaseRenew { counter: 2, length_ms: 10_000, claim: Default::default() },
        );
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(15_001)), (vec![], Some(at(29_001))));
        apply(&mut state, 1, By::Agent, Command::LeaseExpire { node: NodeId(2), counter: 1 });
        assert!(!state.node(NodeId(2)).unwrap().lease.expired, "it was renewed meanwhile");
        apply(&mut state, 1, By::Agent, Command::LeaseExpire { node: NodeId(2), counter: 2 });
        assert!(state.node(NodeId(2)).unwrap().lease.expired);
        assert_eq!(seen.look(&state, NodeId(1), OPTIONS, at(99_000)), (vec![], None), "once is enough");
        assert_eq!(seen.look(&state, NodeId(2), OPTIONS, at(99_000)), (vec![], None), "its own is not its business");
    }

    #[test]
    fn those_who_are_gone_are_forgotten() {
        let mut state = two_nodes();
        let (mut seen, begin) = (Seen::default(), Instant::now());
        seen.look(&state, NodeId(1), OPTIONS, begin);
        assert_eq!(seen.0.len(), 1);
        let command = Command::Node { node: NodeId(2), verb: NodeVerb::Remove, conditions: Default::default() };
        apply(
            &mut state,
            1,
            By::Agent,
            Command::LeaseRenew { counter: 1, length_ms: 10_000, claim: Default::default() },
        );
        let up = Command::NodeUp {
            host_boot: "b".into(),
            hypervisor: "simulated".into(),
            memory_bytes: 1,
            cpus: 1,
            vcpus_max: None,
            arch: "x86_64".into(),
            disk_bytes: 0,
        };
        apply(&mut state, 1, By::Agent, up);
        apply(&mut state, 1, By::User("root".into()), command);
        seen.look(&state, NodeId(1), OPTIONS, begin);
        assert!(seen.0.is_empty());
    }
}
