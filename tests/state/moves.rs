//! VMs that change their node: lost nodes, drains, and those that wait for room.

use super::cluster::{Cluster, NODE, NODE_MEMORY_BYTES, image, node_up, node_verb, spec, user, verb};
use blixard::clock::HybridTime;
use blixard::engine::state::{
    Actual, By, Command, Conditions, Constraints, ENTRY_FORMAT, Entry, EntryId, Ha, NodeChanges, NodeId, NodeRole,
    NodeVerb, Outcome, Reply, Schedule, SpecChanges, State, VmId, VmReport, VmSpec, VmVerb,
};
use blixard::text::Code;
use proptest::prelude::*;
use proptest::sample::select;

/// Memory of which a node has room for four.
const QUARTER: u64 = NODE_MEMORY_BYTES / 4;

fn quarter() -> VmSpec {
    VmSpec { memory_bytes: QUARTER, ..spec() }
}

fn fenced() -> VmSpec {
    VmSpec { ha: Ha::Restart, ..quarter() }
}

/// What another node submits.
fn by(cluster: &mut Cluster, node: u64, command: Command) -> Outcome {
    let last = cluster.state.last_of(NodeId(node)).map_or(0, |(_, n)| n);
    let id = EntryId { node: NodeId(node), boot: 1, n: last + 1 };
    let at = HybridTime::from_millis(cluster.now_ms);
    cluster.apply(Entry { id, at, by: By::Agent, commands: vec![command] })
}

/// A node that is up and has a lease.
pub fn join(cluster: &mut Cluster, name: &str) -> u64 {
    let secret_sha256 = [u8::try_from(cluster.state.seq() % 251).unwrap(); 32];
    let expires_ms = cluster.state.now().millis() + 1_000;
    cluster.done(user("root"), Command::InviteNew { secret_sha256, role: NodeRole::Voter, expires_ms });
    let joins = Command::NodeJoin {
        secret_sha256,
        name: name.to_owned(),
        address: format!("{name}!5640"),
        entry_format: ENTRY_FORMAT,
        release: "0.1.0".to_owned(),
    };
    let Reply::Created(id) = cluster.done(By::Agent, joins) else { panic!() };
    by(cluster, id, node_up("boot-1")).unwrap();
    by(cluster, id, image("tiny")).unwrap();
    renew(cluster, id);
    id
}

fn renew(cluster: &mut Cluster, node: u64) {
    let counter = cluster.state.node(NodeId(node)).unwrap().lease.counter + 1;
    by(cluster, node, Command::LeaseRenew { counter, length_ms: 10_000, claim: Default::default() }).unwrap();
}

fn lose(cluster: &mut Cluster, node: u64) {
    let counter = cluster.state.node(NodeId(node)).unwrap().lease.counter;
    cluster.done(By::Agent, Command::LeaseExpire { node: NodeId(node), counter });
}

/// Nodes 1 to 3, all with leases.
fn three() -> Cluster {
    let mut cluster = Cluster::new();
    renew_first(&mut cluster);
    assert_eq!((join(&mut cluster, "beta"), join(&mut cluster, "gamma")), (2, 3));
    cluster
}

fn renew_first(cluster: &mut Cluster) {
    let counter = cluster.state.node(NODE).unwrap().lease.counter + 1;
    cluster.done(By::Agent, Command::LeaseRenew { counter, length_ms: 10_000, claim: Default::default() });
}

/// What the VM's node says of its current generation.
fn says(cluster: &mut Cluster, vm: u64, report: VmReport) -> Outcome {
    let (node, generation) = (cluster.is(vm).node.unwrap().0, cluster.is(vm).generation);
    let command = Command::VmReport { vm: VmId(vm), generation, report };
    if node == 1 { cluster.all(By::Agent, vec![command]) } else { by(cluster, node, command) }
}

fn runs(cluster: &mut Cluster, spec: VmSpec) -> u64 {
    let vm = cluster.vm(spec);
    cluster.verb(vm, VmVerb::Start).unwrap();
    says(cluster, vm, VmReport::Started { pid: 9 }).unwrap();
    vm
}

fn node_of(cluster: &Cluster, vm: u64) -> Option<u64> {
    cluster.is(vm).node.map(|node| node.0)
}

fn placed_at(cluster: &mut Cluster, name: &str, spec: VmSpec) -> u64 {
    let constraints = Constraints { node: Some(name.to_owned()), ..Constraints::default() };
    let vm = runs(cluster, VmSpec { constraints, ..spec });
    let free = blixard::engine::state::ConstraintChanges { node: Some(String::new()), ..Default::default() };
    cluster
        .verb(vm, VmVerb::Set { name: None, changes: SpecChanges { constraints: free, ..Default::default() } })
        .unwrap();
    vm
}

#[test]
fn of_a_lost_node_those_with_a_fence_are_begun_elsewhere_with_a_new_generation() {
    let mut cluster = three();
    let (moves, stays) = (placed_at(&mut cluster, "beta", fenced()), placed_at(&mut cluster, "beta", quarter()));
    lose(&mut cluster, 2);
    assert_eq!((cluster.is(moves).actual, cluster.is(moves).generation), (Actual::Starting, 2));
    assert_ne!(node_of(&cluster, moves), Some(2));
    assert_eq!((cluster.is(stays).actual, node_of(&cluster, stays)), (Actual::Running, Some(2)));
    // What the lost node says of the generation that it had comes too late.
    let late = Command::VmReport { vm: VmId(moves), generation: 1, report: VmReport::Ended };
    assert_eq!(by(&mut cluster, 2, late).unwrap_err().code, Code::Denied);
    renew(&mut cluster, 2);
    assert_eq!((cluster.is(moves).generation, cluster.is(stays).generation), (2, 1));
    says(&mut cluster, moves, VmReport::Started { pid: 3 }).unwrap();
    assert!(cluster.is(moves).settled());
}

#[test]
fn how_it_was_begun_counts_and_not_what_its_spec_says_by_now() {
    let mut cluster = three();
    let set = |ha| VmVerb::Set { name: None, changes: SpecChanges { ha: Some(ha), ..SpecChanges::default() } };
    let (was, is) = (placed_at(&mut cluster, "beta", fenced()), placed_at(&mut cluster, "beta", quarter()));
    cluster.verb(was, set(Ha::Stay)).unwrap();
    cluster.verb(is, set(Ha::Restart)).unwrap();
    // Begun anew over a process that has no fence: the old one may be there until the new one runs.
    let over = placed_at(&mut cluster, "beta", quarter());
    cluster.verb(over, set(Ha::Restart)).unwrap();
    cluster.verb(over, VmVerb::Restart).unwrap();
    lose(&mut cluster, 2);
    assert_eq!((node_of(&cluster, is), node_of(&cluster, over)), (Some(2), Some(2)));
    assert_ne!(node_of(&cluster, was), Some(2));
    renew(&mut cluster, 2);
    says(&mut cluster, over, VmReport::Started { pid: 5 }).unwrap();
    lose(&mut cluster, 2);
    assert_ne!(node_of(&cluster, over), Some(2));
}

#[test]
fn what_was_to_end_has_ended_with_its_node() {
    let mut cluster = three();
    let vm = placed_at(&mut cluster, "beta", fenced());
    cluster.verb(vm, VmVerb::Stop { grace_ms: None }).unwrap();
    let again = placed_at(&mut cluster, "beta", fenced());
    cluster.verb(again, VmVerb::Stop { grace_ms: None }).unwrap();
    cluster.verb(again, VmVerb::Start).unwrap();
    lose(&mut cluster, 2);
    assert_eq!(cluster.is(vm).actual, Actual::Stopped);
    assert_eq!((cluster.is(again).actual, node_of(&cluster, again) == Some(2)), (Actual::Starting, false));
}

#[test]
fn without_room_they_wait_in_their_turn_and_say_why() {
    let mut cluster = three();
    let others: Vec<u64> = (0..8).map(|n| placed_at(&mut cluster, ["alpha", "gamma"][n % 2], quarter())).collect();
    let low = placed_at(&mut cluster, "beta", VmSpec { priority: 1, ..fenced() });
    let high = placed_at(&mut cluster, "beta", VmSpec { priority: 9, ..fenced() });
    let huge = placed_at(&mut cluster, "beta", VmSpec { priority: 9, memory_bytes: 2 * QUARTER, ..fenced() });
    lose(&mut cluster, 2);
    for vm in [low, high, huge] {
        assert_eq!((cluster.is(vm).actual, cluster.is(vm).node), (Actual::Waiting, None));
        assert!(cluster.is(vm).why.as_ref().unwrap().contains("alpha has 0"), "{:?}", cluster.is(vm).why);
        assert!(!cluster.is(vm).settled());
    }
    cluster.verb(others[0], VmVerb::Kill).unwrap();
    says(&mut cluster, others[0], VmReport::Ended).unwrap();
    assert_eq!((cluster.is(high).actual, cluster.is(low).actual), (Actual::Starting, Actual::Waiting));
    cluster.verb(low, VmVerb::Stop { grace_ms: None }).unwrap();
    assert_eq!(cluster.is(low).actual, Actual::Stopped);
    renew(&mut cluster, 2);
    assert_eq!((cluster.is(huge).actual, node_of(&cluster, huge)), (Actual::Starting, Some(2)));
}

/// One that waits for another thing than room is in nobody's way.
#[test]
fn who_waits_for_an_image_keeps_nobody_else_waiting() {
    let mut cluster = three();
    for node in 1..=3 {
        cluster.done(user("root"), node_verb(node, NodeVerb::Cordon));
    }
    cluster.done(By::Agent, image("rare"));
    cluster.done(user("root"), node_verb(1, NodeVerb::Undrain));
    let rare = runs(&mut cluster, VmSpec { image: "rare".to_owned(), ..quarter() });
    let tiny = runs(&mut cluster, quarter());
    cluster.done(user("root"), node_verb(1, NodeVerb::Cordon));
    for vm in [rare, tiny] {
        cluster.verb(vm, VmVerb::Stop { grace_ms: None }).unwrap();
        cluster.verb(vm, VmVerb::Start).unwrap();
        says(&mut cluster, vm, VmReport::Ended).unwrap();
        assert_eq!(cluster.is(vm).actual, Actual::Waiting);
    }
    cluster.done(By::Agent, Command::ImageForget { name: "rare".to_owned() });
    cluster.done(user("root"), node_verb(2, NodeVerb::Undrain));
    assert_eq!((cluster.is(rare).actual, cluster.is(tiny).actual), (Actual::Waiting, Actual::Starting));
    by(&mut cluster, 2, image("rare")).unwrap();
    assert_eq!(node_of(&cluster, rare), Some(2));
}

/// What is too much for one entry is gone on with at the next, whatever that is about.
#[test]
fn a_drain_takes_many_that_rest_off_their_node() {
    let mut cluster = three();
    for _ in 0..600 {
        let vm = placed_at(&mut cluster, "beta", VmSpec { memory_bytes: 32 << 20, ..spec() });
        cluster.verb(vm, VmVerb::Kill).unwrap();
        says(&mut cluster, vm, VmReport::Ended).unwrap();
    }
    cluster.done(user("root"), node_verb(2, NodeVerb::Drain));
    assert!(cluster.state.vms_on(NodeId(2)).next().is_some(), "not all of them at once");
    for _ in 0..3 {
        renew_first(&mut cluster);
    }
    assert_eq!(cluster.state.node(NodeId(2)).unwrap().schedule, Schedule::Drained);
}

#[test]
fn a_user_is_told_at_once_that_there_is_no_room() {
    let mut cluster = three();
    for node in 1..=3 {
        cluster.done(user("root"), node_verb(node, NodeVerb::Cordon));
    }
    let vm = cluster.vm(quarter());
    let refusal = cluster.verb(vm, VmVerb::Start).unwrap_err();
    assert_eq!(refusal.code, Code::NoSpace);
    assert_eq!(refusal.sentence, "no capacity: alpha is cordoned; beta is cordoned; gamma is cordoned");
    assert_eq!(cluster.is(vm).actual, Actual::Defined);
}

#[test]
fn a_drain_moves_one_at_a_time_and_ends_with_the_node_empty() {
    let mut cluster = three();
    let vms: Vec<u64> = (0..3).map(|_| placed_at(&mut cluster, "beta", quarter())).collect();
    let stopped = placed_at(&mut cluster, "beta", quarter());
    cluster.verb(stopped, VmVerb::Kill).unwrap();
    says(&mut cluster, stopped, VmReport::Ended).unwrap();
    cluster.done(user("root"), node_verb(2, NodeVerb::Drain));
    for (nth, vm) in vms.iter().enumerate() {
        let moving: Vec<u64> = vms.iter().copied().filter(|vm| cluster.is(*vm).actual == Actual::Stopping).collect();
        assert_eq!(moving, [*vm], "{nth}");
        assert_eq!(cluster.state.node(NodeId(2)).unwrap().moving, Some(VmId(*vm)));
        let target = cluster.is(*vm).reserved.unwrap();
        assert!(cluster.state.promised(target).bytes >= QUARTER, "room is kept for it");
        says(&mut cluster, *vm, VmReport::Ended).unwrap();
        assert_eq!((cluster.is(*vm).actual, cluster.is(*vm).node), (Actual::Starting, Some(target)));
        // The next one follows when this one runs.
        assert_eq!(vms.iter().filter(|vm| cluster.is(**vm).actual == Actual::Stopping).count(), 0);
        says(&mut cluster, *vm, VmReport::Started { pid: 4 }).unwrap();
    }
    let node = cluster.state.node(NodeId(2)).unwrap();
    assert_eq!((node.schedule, node.moving), (Schedule::Drained, None));
    assert_eq!((cluster.state.vms_on(NodeId(2)).count(), cluster.is(stopped).node), (0, None));
    cluster.verb(stopped, VmVerb::Start).unwrap();
    assert_ne!(node_of(&cluster, stopped), Some(2));
    cluster.done(user("root"), node_verb(2, NodeVerb::Undrain));
    assert_eq!(cluster.state.node(NodeId(2)).unwrap().schedule, Schedule::Open);
}

#[test]
fn a_drain_waits_for_room_and_says_what_stays() {
    let mut cluster = three();
    for n in 0..8 {
        placed_at(&mut cluster, ["alpha", "gamma"][n % 2], quarter());
    }
    let (vm, disk) = (placed_at(&mut cluster, "beta", quarter()), VmSpec { disk_bytes: Some(1 << 20), ..quarter() });
    let disk = placed_at(&mut cluster, "beta", disk);
    cluster.done(user("root"), node_verb(2, NodeVerb::Drain));
    assert_eq!(cluster.is(vm).actual, Actual::Running, "nobody is stopped who has nowhere to go");
    let stays = cluster.state.stays(cluster.state.node(NodeId(2)).unwrap());
    assert_eq!(stays.iter().map(|(vm, _)| vm.0).collect::<Vec<_>>(), [vm, disk]);
    assert!(stays[0].1.contains("no capacity") && stays[1].1.contains("its disk is here"), "{stays:?}");
    let delta = join(&mut cluster, "delta");
    assert_eq!((cluster.is(vm).actual, cluster.is(vm).reserved), (Actual::Stopping, Some(NodeId(delta))));
    // Cancelled: what moves already moves on, and nothing else.
    cluster.done(user("root"), node_verb(2, NodeVerb::Undrain));
    says(&mut cluster, vm, VmReport::Ended).unwrap();
    assert_eq!(node_of(&cluster, vm), Some(delta));
    assert_eq!(cluster.is(disk).actual, Actual::Running);
}

#[test]
fn a_node_that_leaves_is_gone_when_it_is_empty() {
    let mut cluster = three();
    let vm = placed_at(&mut cluster, "gamma", quarter());
    cluster.done(user("root"), node_verb(3, NodeVerb::Leave));
    says(&mut cluster, vm, VmReport::Ended).unwrap();
    assert!(cluster.state.node(NodeId(3)).is_some());
    says(&mut cluster, vm, VmReport::Started { pid: 4 }).unwrap();
    assert!(cluster.state.node(NodeId(3)).is_none());
}

#[test]
fn a_node_is_forgotten_with_what_it_had() {
    let mut cluster = three();
    let free = placed_at(&mut cluster, "beta", quarter());
    let disk = placed_at(&mut cluster, "beta", VmSpec { disk_bytes: Some(1 << 20), ..quarter() });
    let deleted = placed_at(&mut cluster, "beta", quarter());
    cluster.verb(deleted, VmVerb::Kill).unwrap();
    says(&mut cluster, deleted, VmReport::Ended).unwrap();
    cluster.verb(deleted, VmVerb::Delete).unwrap();
    let (code, sentence) = cluster.refused(user("root"), node_verb(2, NodeVerb::Forget));
    assert_eq!((code, sentence.contains("being there")), (Code::Busy, true), "{sentence}");
    by(&mut cluster, 2, Command::NodeDown).unwrap();
    let (code, sentence) = cluster.refused(user("root"), node_verb(2, NodeVerb::Forget));
    assert_eq!((code, sentence.contains("its lease is not over")), (Code::Busy, true), "{sentence}");
    lose(&mut cluster, 2);
    assert_eq!(cluster.is(free).actual, Actual::Running, "it may be");
    cluster.done(user("root"), node_verb(2, NodeVerb::Forget));
    assert_eq!((cluster.is(free).actual, cluster.is(free).generation), (Actual::Starting, 2));
    assert_eq!((cluster.is(disk).actual, cluster.is(disk).node), (Actual::Stopped, None));
    assert!(cluster.is(disk).error.as_ref().unwrap().contains("its disk was on node 'beta'"));
    assert!(cluster.get(deleted).is_none());
    cluster.verb(disk, VmVerb::Start).unwrap();
}

/// Its drain was cancelled, and then the node went to which it was on its way.
#[test]
fn what_is_on_its_way_to_a_node_that_goes_finds_another() {
    let mut cluster = three();
    let delta = join(&mut cluster, "delta");
    cluster.done(user("root"), node_verb(1, NodeVerb::Cordon));
    cluster.done(user("root"), node_verb(2, NodeVerb::Cordon));
    let vm = placed_at(&mut cluster, "gamma", quarter());
    cluster.done(user("root"), node_verb(3, NodeVerb::Drain));
    assert_eq!(cluster.is(vm).reserved, Some(NodeId(delta)));
    cluster.done(user("root"), node_verb(3, NodeVerb::Cordon));
    lose(&mut cluster, delta);
    cluster.done(user("root"), node_verb(delta, NodeVerb::Forget));
    assert_eq!((cluster.is(vm).actual, cluster.is(vm).reserved), (Actual::Stopping, None));
    cluster.done(user("root"), node_verb(2, NodeVerb::Undrain));
    says(&mut cluster, vm, VmReport::Ended).unwrap();
    assert_eq!(node_of(&cluster, vm), Some(2));
}

#[test]
fn labels_and_ratios_are_set_and_count_at_once() {
    let mut cluster = three();
    let constraints = Constraints { labels: vec!["ssd".to_owned()], ..Constraints::default() };
    let vm = cluster.vm(VmSpec { constraints, ..quarter() });
    assert_eq!(cluster.verb(vm, VmVerb::Start).unwrap_err().code, Code::NoSpace);
    let set = |changes| Command::NodeSet { node: NodeId(3), changes, conditions: Conditions::default() };
    let changes = NodeChanges { labels: Some(vec!["ssd".to_owned()]), ..NodeChanges::default() };
    assert_eq!(cluster.done(user("root"), set(changes.clone())), Reply::Done);
    assert_eq!(cluster.done(user("root"), set(changes)), Reply::Unchanged);
    cluster.verb(vm, VmVerb::Start).unwrap();
    assert_eq!(node_of(&cluster, vm), Some(3));
    let (code, _) = cluster.refused(user("ann"), set(NodeChanges::default()));
    assert_eq!(code, Code::Denied);
    let (code, _) =
        cluster.refused(user("root"), set(NodeChanges { memory_percent: Some(1), ..NodeChanges::default() }));
    assert_eq!(code, Code::Invalid);
}

#[derive(Debug, Clone)]
enum Move {
    New(VmSpec),
    Verb(u64, VmVerb),
    Work(u64),
    Node(u64, NodeVerb),
    Lose(u64),
    Renew(u64),
    Down(u64),
    Up(u64),
}

fn moves() -> impl Strategy<Value = Move> {
    let name = || select(vec![None, None, Some("a".to_owned()), Some("b".to_owned())]);
    let specs = (1_u64..5, any::<bool>(), any::<bool>(), name(), name(), 0_u8..3).prop_map(
        |(quarters, fenced, disk, affinity, anti_affinity, priority)| VmSpec {
            memory_bytes: quarters * QUARTER / 2,
            ha: if fenced && !disk { Ha::Restart } else { Ha::Stay },
            disk_bytes: disk.then_some(1 << 20),
            constraints: Constraints { affinity, anti_affinity, ..Constraints::default() },
            priority,
            ..spec()
        },
    );
    let verbs = select(vec![
        VmVerb::Start,
        VmVerb::Start,
        VmVerb::Start,
        VmVerb::Stop { grace_ms: None },
        VmVerb::Kill,
        VmVerb::Restart,
        VmVerb::Pause,
        VmVerb::Delete,
    ]);
    let node_verbs =
        select(vec![NodeVerb::Drain, NodeVerb::Drain, NodeVerb::Cordon, NodeVerb::Undrain, NodeVerb::Forget]);
    let node = || 1_u64..5;
    prop_oneof![
        4 => specs.prop_map(Move::New),
        6 => (1_u64..24, verbs).prop_map(|(vm, verb)| Move::Verb(vm, verb)),
        12 => (1_u64..24).prop_map(Move::Work),
        3 => (node(), node_verbs).prop_map(|(node, verb)| Move::Node(node, verb)),
        2 => node().prop_map(Move::Lose),
        3 => node().prop_map(Move::Renew),
        1 => node().prop_map(Move::Down),
        2 => node().prop_map(Move::Up),
    ]
}

/// What an agent that does its work would say next of a VM.
fn work(cluster: &mut Cluster, vm: u64) {
    let Some(is) = cluster.get(vm).filter(|vm| vm.node.is_some_and(|id| cluster.state.node(id).unwrap().is_there()))
    else {
        return;
    };
    let report = match is.actual {
        Actual::Starting => VmReport::Started { pid: 7 },
        Actual::Running if vm.is_multiple_of(5) => {
            VmReport::Failed { sentence: "it broke".to_owned(), may_retry: true }
        }
        Actual::Stopping => VmReport::Ended,
        Actual::Failed => VmReport::RetryDue,
        Actual::Deleting => VmReport::Removed,
        _ => return,
    };
    says(cluster, vm, report).unwrap();
}

/// Nobody waits for whom there is room, and no drain rests that could go on.
fn nothing_is_forgotten(state: &State) -> Result<(), TestCaseError> {
    for vm in state.vms().filter(|vm| vm.actual == Actual::Waiting) {
        prop_assert!(!state.explain(vm).contains("will do"), "{}\n{:?}", state.explain(vm), vm);
    }
    for node in state.nodes().filter(|node| node.schedule == Schedule::Draining && node.moving.is_none()) {
        let movable =
            state.vms_on(node.id).filter(|vm| vm.is_free() && matches!(vm.actual, Actual::Running | Actual::Starting));
        for vm in movable {
            let others = state.explain(vm);
            let fits = others.lines().any(|line| line.contains("will do") && !line.contains(&node.name));
            prop_assert!(!fits, "{others}\n{vm:?}");
        }
    }
    Ok(())
}

fn make(cluster: &mut Cluster, step: &Move) {
    let there = |cluster: &Cluster, node: u64| cluster.state.node(NodeId(node)).is_some();
    match step {
        Move::New(spec) => drop(cluster.vm(spec.clone())),
        // A refusal is an answer.
        Move::Verb(vm, what) => drop(cluster.one(user("root"), verb(*vm, what.clone()))),
        Move::Work(vm) => work(cluster, *vm),
        Move::Node(node, what) => drop(cluster.one(user("root"), node_verb(*node, *what))),
        Move::Lose(node) if *node > 1 && there(cluster, *node) => lose(cluster, *node),
        Move::Renew(node) if *node > 1 && there(cluster, *node) => renew(cluster, *node),
        Move::Down(node) if *node > 1 && there(cluster, *node) => drop(by(cluster, *node, Command::NodeDown).unwrap()),
        Move::Up(node) if *node > 1 && there(cluster, *node) => {
            by(cluster, *node, node_up("boot-1")).unwrap();
            renew(cluster, *node);
        }
        _ => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// The invariants are looked at after each entry by the cluster itself; what is promised never exceeds what there is.
    #[test]
    fn whatever_happens_nobody_waits_for_whom_there_is_room(steps in proptest::collection::vec(moves(), 1..150)) {
        let mut cluster = three();
        join(&mut cluster, "delta");
        for step in &steps {
            make(&mut cluster, step);
            nothing_is_forgotten(&cluster.state)?;
            for node in cluster.state.nodes() {
                prop_assert!(cluster.state.promised(node.id).bytes <= node.memory_bytes, "{:?} after {step:?}", node.name);
            }
        }
    }

    /// When all is well again everybody is where he is to be: what is wanted runs, and what is drained is empty but for disks.
    #[test]
    fn when_all_is_well_again_it_settles(steps in proptest::collection::vec(moves(), 1..100)) {
        let mut cluster = three();
        join(&mut cluster, "delta");
        for step in &steps {
            make(&mut cluster, step);
        }
        for node in 2..=4 {
            make(&mut cluster, &Move::Up(node));
        }
        let last = cluster.state.vms().last().map_or(0, |vm| vm.id.0);
        for _ in 0..40 {
            for vm in 1..=last {
                if cluster.get(vm).is_some_and(|vm| vm.actual != Actual::Running) {
                    work(&mut cluster, vm);
                }
            }
        }
        nothing_is_forgotten(&cluster.state)?;
        for vm in cluster.state.vms() {
            let rests = vm.settled() || matches!(vm.actual, Actual::Waiting | Actual::Running);
            prop_assert!(rests, "{vm:?}");
        }
    }
}
