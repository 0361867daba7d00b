//! Random sequences of commands, each compared with the model.

use super::cluster::{Cluster, NODE, image, user};
use super::model::{Model, ModelVm};
use super::steps::Step;
use super::table::{rows, sections};
use super::transitions::{errno, row_of};
use blixard::engine::state::{By, Vm};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{FileFailurePersistence, RngAlgorithm, TestRng, TestRunner};

/// What of a cluster the model knows.
fn seen(cluster: &Cluster) -> Vec<(u64, ModelVm)> {
    let model = |vm: &Vm| ModelVm {
        name: vm.name.clone(),
        spec: vm.spec.clone(),
        owner: vm.owner.clone(),
        row: row_of(vm),
        generation: vm.generation,
        version: vm.version,
        ip: vm.ip.unwrap(),
        promised_bytes: vm.promised_bytes,
        placed: vm.node.is_some(),
        failures: vm.failures,
        ready: vm.guest_ready,
        started_ms: vm.started.map(|at| at.millis()),
        stop_grace_ms: vm.stop_grace_ms,
    };
    cluster.state.vms().map(|vm| (vm.id.0, model(vm))).collect()
}

/// Plays the steps, and compares each with the model.
pub fn play(steps: &[Step]) -> Cluster {
    let (mut cluster, mut model) = (Cluster::new(), Model::new());
    for step in steps {
        cluster.now_ms += step.wait_ms;
        let commands = step.commands(&cluster);
        let shown: Vec<String> = commands.iter().map(ToString::to_string).collect();
        let outcome = cluster.all(step.by.clone(), commands.clone()).map_err(|refusal| errno(refusal.code));
        let expected = model.all(cluster.now_ms, &step.by, &commands);
        assert_eq!(outcome, expected, "{:?}: {}", step.by, shown.join("; "));
        let mut vms: Vec<(u64, ModelVm)> = model.vms.clone().into_iter().collect();
        vms.sort_by_key(|(id, _)| *id);
        assert_eq!(seen(&cluster), vms, "after {:?}: {}", step.by, shown.join("; "));
        let leases: usize = cluster.state.ipam().pools().map(|pool| pool.leases().len()).sum();
        assert_eq!(leases, vms.len());
        assert_eq!(cluster.state.promised(NODE).bytes, vms.iter().map(|(_, vm)| vm.promised_bytes).sum::<u64>());
    }
    cluster
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn random_commands_do_what_the_model_does(steps in proptest::collection::vec(any::<Step>(), 1..120)) {
        play(&steps);
    }
}

/// That the steps get about is not left to luck: else the model would be compared on refusals alone.
#[test]
fn random_commands_reach_every_row_of_the_table() {
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), rng);
    // There is one node, which is drained to nowhere.
    let mut missing: Vec<String> = rows(&sections()["verbs"]).into_iter().filter(|row| row != "P/stopping").collect();
    for _ in 0..200 {
        let steps = proptest::collection::vec(any::<Step>(), 120).new_tree(&mut runner).unwrap().current();
        let mut cluster = Cluster::new();
        for step in steps {
            cluster.now_ms += step.wait_ms;
            let commands = step.commands(&cluster);
            let _refused = cluster.all(step.by.clone(), commands);
            missing.retain(|row| !cluster.state.vms().any(|vm| row_of(vm) == *row));
        }
        if missing.is_empty() {
            return;
        }
    }
    panic!("never reached: {missing:?}");
}

#[test]
fn a_model_and_a_cluster_begin_alike() {
    let (mut cluster, mut model) = (Cluster::new(), Model::new());
    for (by, command) in [(user("root"), image("other")), (user("eve"), image("third")), (By::Agent, image("tiny"))] {
        let outcome = cluster.all(by.clone(), vec![command.clone()]).map_err(|refusal| errno(refusal.code));
        assert_eq!(outcome, model.all(cluster.now_ms, &by, &[command]));
    }
}
