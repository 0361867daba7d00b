//! A state out of a backup as a new cluster's first: whatever it was, it holds together, and nothing of it means something else than before.

use super::play::play;
use super::steps::Step;
use blixard::engine::state::restored::FirstNode;
use blixard::engine::state::{Actual, Desired, RaftId, State, Vm};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

const FIRST: FirstNode<'static> = FirstNode { name: "omega", address: "omega!5640", release: "1" };

fn check_vm(old: &Vm, new: &Vm, seq: u64) {
    assert_eq!((&new.name, &new.spec, new.ip), (&old.name, &old.spec, old.ip));
    assert_eq!((new.generation, new.desired), (old.generation, old.desired));
    assert!(!new.active() && new.actual != Actual::Waiting && new.retry_at_ms.is_none(), "none is started by itself");
    let was_to_run = matches!(old.desired, Desired::Running | Desired::Paused);
    assert_eq!(new.actual == Actual::Failed, was_to_run, "{old:?}");
    if old.node.is_none() && old.settled() {
        assert_eq!(new, old, "of what was nowhere nothing has changed");
        return;
    }
    assert_eq!((new.node, new.version, new.changed_seq), (None, old.version + 1, seq));
    let error = new.error.as_ref().unwrap();
    assert!(error.contains("it was on node 'alpha'") || old.actual == Actual::Waiting, "{error}");
}

/// What must be the same, and what must not.
fn check(before: &State) {
    let after = before.restored(&FIRST).unwrap();
    after.check().unwrap();
    assert_eq!(after.seq(), before.seq() + 1);
    let node = after.nodes().next().unwrap();
    assert_eq!((after.nodes().len(), node.name.as_str(), node.raft), (1, "omega", RaftId(1)));
    assert!(before.nodes().all(|old| old.id < node.id), "numbers are not used again");
    assert!(!node.up && after.last_of(node.id) == Some((0, 0)), "it has said nothing yet");
    assert!(after.users().eq(before.users()));
    assert!(after.images().map(|image| &image.name).eq(before.images().map(|image| &image.name)));
    for old in before.vms() {
        match after.vm(old.id) {
            Some(new) => check_vm(old, new, after.seq()),
            None => assert_eq!(old.actual, Actual::Deleting, "{old:?}"),
        }
    }
    assert_eq!(after.promised(node.id), Default::default());
    // It can be backed up again.
    assert_eq!(State::decode(&after.encode()).unwrap(), after);
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_it_was_it_holds_together(steps in proptest::collection::vec(any::<Step>(), 1..100)) {
        check(&play(&steps).state);
    }
}

#[test]
fn a_name_that_is_none_is_refused() {
    let state = play(&[]).state;
    for name in ["", "Omega", "42", "new"] {
        assert!(state.restored(&FirstNode { name, ..FIRST }).is_err(), "{name}");
    }
}
