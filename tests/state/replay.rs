//! The same log gives the same state: again, from a snapshot on, with entries twice, from bytes.

use super::cluster::{Cluster, NODE, spec, user};
use super::play::play;
use super::steps::Step;
use blixard::engine::state::{DecodeError, Entry, EntryId, STATE_FORMAT, State, VmVerb};
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;

fn replay(mut state: State, entries: &[Entry]) -> State {
    for entry in entries {
        (state, _, _) = state.apply(state.seq() + 1, entry);
    }
    state
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_same_log_gives_the_same_state(steps in proptest::collection::vec(any::<Step>(), 1..80), cut in any::<prop::sample::Index>()) {
        let cluster = play(&steps);
        let (log, state) = (&cluster.log, &cluster.state);
        let again = replay(State::new(), log);
        prop_assert_eq!(&again, state);
        prop_assert_eq!(again.hash(), state.hash());

        let (before, after) = log.split_at(cut.index(log.len()));
        let snapshot = State::decode(&replay(State::new(), before).encode()).unwrap();
        prop_assert_eq!(replay(snapshot, after), again);

        let bytes: Vec<Vec<u8>> = log.iter().map(Entry::encode).collect();
        let decoded: Vec<Entry> = bytes.iter().map(|bytes| Entry::decode(bytes).unwrap()).collect();
        prop_assert_eq!(&decoded, log);

        let twice: Vec<Entry> = before.iter().chain(before).chain(after).cloned().collect();
        let twice = replay(State::new(), &twice);
        // The places in the log differ, and with them what objects say of when they changed: not what they are.
        let seen = |state: &State| state.vms().map(|vm| (vm.id, vm.name.clone(), vm.actual, vm.generation, vm.version)).collect::<Vec<_>>();
        prop_assert_eq!(seen(&twice), seen(state));
        prop_assert_eq!(twice.ipam().pools().map(|p| p.leases().len()).sum::<usize>(), state.vms().len());

        let again = replay(state.clone(), log);
        prop_assert_eq!(again.hash(), state.hash(), "what was applied changes nothing when it comes again");
        prop_assert_eq!(again.seq(), 2 * state.seq());
    }
}

proptest! {
    /// What no submitter would write: the invariants hold all the same, or the program would not be told from a broken one.
    #[test]
    fn no_entry_breaks_an_invariant(
        steps in proptest::collection::vec(any::<Step>(), 30),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), 1_u8..), 30),
    ) {
        let mut cluster = play(&steps);
        let log = cluster.log.clone();
        for (boot, (entry, (at, flip))) in (2..).zip(log.iter().rev().zip(flips)) {
            let mut bytes = entry.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            if let Ok(mut strange) = Entry::decode(&bytes) {
                // It would be refused for its number or stamp else, which is tested elsewhere.
                strange.id = EntryId { node: NODE, boot, n: 1 };
                strange.at = strange.at.max(cluster.state.newest_stamp(NODE).unwrap());
                // It checks the invariants.
                let _outcome = cluster.apply(strange);
            }
        }
    }

    #[test]
    fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let with_format: Vec<u8> = [1].into_iter().chain(bytes).collect();
        let _refused = (State::decode(&with_format), Entry::decode(&with_format));
    }

    #[test]
    fn a_damaged_state_is_refused(at in any::<prop::sample::Index>(), flip in 1_u8..) {
        let mut cluster = Cluster::new();
        cluster.running(spec());
        let mut bytes = cluster.state.encode();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(State::decode(&bytes).is_err());
    }
}

#[test]
fn what_is_no_state_or_entry_is_not_taken_for_one() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    cluster.verb(vm, VmVerb::Kill).unwrap();
    let (state, entry) = (cluster.state.encode(), cluster.log[0].encode());
    assert_eq!(State::decode(&state).as_ref(), Ok(&cluster.state));
    assert!(matches!(State::decode(&[]), Err(DecodeError::Damaged(_))));
    let mut other = state.clone();
    other[0] = 9;
    let error = State::decode(&other).unwrap_err();
    assert_eq!(error.to_string(), format!("it has format 9, and this blixard knows format {STATE_FORMAT}"));
    for cut in 1..state.len() {
        assert!(State::decode(&state[..cut]).is_err(), "cut at {cut}");
    }
    for cut in 1..entry.len() {
        assert!(Entry::decode(&entry[..cut]).is_err(), "cut at {cut}");
    }
    let mut longer = entry.clone();
    longer.push(0);
    assert!(matches!(Entry::decode(&longer), Err(DecodeError::Damaged(_))));
}

#[test]
fn a_different_state_has_a_different_hash() {
    let mut cluster = Cluster::new();
    let mut hashes = vec![cluster.state.hash()];
    let vm = cluster.running(spec());
    hashes.push(cluster.state.hash());
    cluster.verb(vm, VmVerb::Pause).unwrap();
    hashes.push(cluster.state.hash());
    cluster.one(user("root"), super::cluster::verb(vm, VmVerb::Delete)).unwrap_err();
    hashes.push(cluster.state.hash());
    hashes.dedup();
    assert_eq!(hashes.len(), 4, "a refused entry is noted as submitted");
}
