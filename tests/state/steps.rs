//! Random steps: what somebody might do next, mostly sensible, over few names and numbers so that they meet.

use super::cluster::{Cluster, NODE_MEMORY_BYTES, image, new_vm, node_up};
use super::transitions::failed;
use blixard::engine::state::{
    Actual, By, Command, Conditions, Desired, Restart, Role, SpecChanges, VmId, VmReport, VmSpec, VmVerb,
};
use proptest::prelude::*;
use proptest::sample::select;

/// One transaction.
#[derive(Debug, Clone)]
pub struct Step {
    pub wait_ms: u64,
    pub by: By,
    acts: Vec<Act>,
}

#[derive(Debug, Clone)]
enum Act {
    Is(Command),
    /// On one of the VMs that there are.
    Verb {
        vm: Pick,
        verb: VmVerb,
        conditions: Conditions,
    },
    /// Of the VM's generation, or one near it.
    Report {
        vm: Pick,
        off: i8,
        report: VmReport,
    },
    /// What an agent that does its work would say next.
    Work {
        vm: Pick,
    },
}

/// Which of the VMs that there are; mostly the last ones.
type Pick = u64;

fn picked(cluster: &Cluster, pick: Pick) -> u64 {
    let count = u64::try_from(cluster.state.vms().len()).unwrap();
    let nth = usize::try_from(pick.min(count.saturating_sub(1))).unwrap();
    // Beyond what there is: one that is gone, or never was.
    if pick >= 12 { pick - 11 } else { cluster.state.vms().rev().nth(nth).map_or(1, |vm| vm.id.0) }
}

/// What the state of a VM calls for.
fn due(cluster: &Cluster, vm: u64) -> VmReport {
    let Some(vm) = cluster.get(vm) else { return VmReport::Ended };
    match (vm.actual, vm.desired) {
        (Actual::Starting, _) => VmReport::Started { pid: 7 },
        (Actual::Running, Desired::Paused) => VmReport::Paused,
        (Actual::Paused, Desired::Running) => VmReport::Resumed,
        (Actual::Running | Actual::Paused, _) => VmReport::GuestReady,
        (Actual::Stopping, _) => VmReport::Ended,
        (Actual::Failed, _) => VmReport::RetryDue,
        (Actual::Deleting, _) => VmReport::Removed,
        (Actual::Defined | Actual::Stopped | Actual::Waiting, _) => failed(true),
    }
}

impl Step {
    /// The commands, about the VMs as they are now.
    pub fn commands(&self, cluster: &Cluster) -> Vec<Command> {
        let report = |vm: u64, off: i8, report: VmReport| {
            let generation = cluster.get(vm).map_or(0, |vm| vm.generation).saturating_add_signed(off.into());
            Command::VmReport { vm: VmId(vm), generation, report }
        };
        let command = |act: &Act| match act {
            Act::Is(command) => command.clone(),
            // There is nothing to do anything to.
            Act::Verb { .. } if cluster.state.vms().len() == 0 => new_vm(None, VmSpec::default()),
            Act::Verb { vm, verb, conditions } => {
                let (vm, verb) = (VmId(picked(cluster, *vm)), verb.clone());
                Command::Vm { vm, verb, conditions: conditions.clone() }
            }
            Act::Report { vm, off, report: what } => report(picked(cluster, *vm), *off, what.clone()),
            Act::Work { vm } => report(picked(cluster, *vm), 0, due(cluster, picked(cluster, *vm))),
        };
        self.acts.iter().map(command).collect()
    }
}

impl Arbitrary for Step {
    type Parameters = ();
    type Strategy = BoxedStrategy<Step>;
    fn arbitrary_with((): ()) -> BoxedStrategy<Step> {
        let user = prop_oneof![16 => Just("root"), 4 => Just("ann"), 1 => select(vec!["bob", "eve", "none"])]
            .prop_map(|name| By::User(name.to_owned()));
        let wait_ms = prop_oneof![6 => 0_u64..50, 3 => 500_u64..20_000, 1 => select(vec![60_000, 600_000, 86_400_000])];
        let acts = prop_oneof![
            12 => (user.clone(), several(of_user())),
            12 => (Just(By::Agent), several(of_agent())),
            1 => (user, several(of_agent())),
            1 => (Just(By::Agent), several(of_user())),
        ];
        (wait_ms, acts).prop_map(|(wait_ms, (by, acts))| Step { wait_ms, by, acts }).boxed()
    }
}

fn several(act: impl Strategy<Value = Act> + 'static) -> impl Strategy<Value = Vec<Act>> {
    let act = act.boxed();
    prop_oneof![6 => act.clone().prop_map(|act| vec![act]), 1 => proptest::collection::vec(act, 2..5)]
}

fn vm() -> impl Strategy<Value = Pick> {
    prop_oneof![6 => 0_u64..2, 3 => 0_u64..5, 1 => 12_u64..16]
}

fn key() -> impl Strategy<Value = Option<String>> {
    proptest::option::weighted(0.1, select(vec!["k1", "k2"]).prop_map(str::to_owned))
}

fn image_name() -> impl Strategy<Value = String> {
    prop_oneof![12 => Just("tiny"), 2 => Just("other"), 1 => Just("missing")].prop_map(str::to_owned)
}

fn restart() -> impl Strategy<Value = Restart> {
    select(Restart::ALL)
}

fn memory_bytes() -> impl Strategy<Value = u64> {
    let part = |n| NODE_MEMORY_BYTES / n;
    prop_oneof![8 => Just(part(16)), 2 => Just(part(4)), 2 => Just(part(2)), 1 => Just(NODE_MEMORY_BYTES * 2)]
}

fn spec() -> impl Strategy<Value = VmSpec> {
    let ip = prop_oneof![12 => Just(None), 1 => select(vec!["10.9.0.3", "10.9.0.1", "10.42.0.2"]).prop_map(Some)];
    let pool = prop_oneof![8 => Just(None), 4 => Just(Some("lab")), 1 => Just(Some("nowhere"))];
    (image_name(), memory_bytes(), pool, ip, restart(), 0_u64..40_000).prop_map(
        |(image, memory_bytes, pool, ip, restart, grace_ms)| VmSpec {
            image,
            memory_bytes,
            pool: pool.map(str::to_owned),
            ip: ip.map(|ip| ip.parse().unwrap()),
            restart,
            grace_ms,
            ..VmSpec::default()
        },
    )
}

fn verb() -> impl Strategy<Value = VmVerb> {
    let name = select(vec![None, None, Some("web"), Some("db"), Some(""), Some("list")]);
    let changes =
        (proptest::option::of(image_name()), proptest::option::of(memory_bytes()), proptest::option::of(restart()));
    let set = (name, changes).prop_map(|(name, (image, memory_bytes, restart))| VmVerb::Set {
        name: name.map(str::to_owned),
        changes: SpecChanges { image, memory_bytes, restart, ..SpecChanges::default() },
    });
    prop_oneof![
        8 => Just(VmVerb::Start),
        2 => proptest::option::of(0_u64..40_000).prop_map(|grace_ms| VmVerb::Stop { grace_ms }),
        1 => Just(VmVerb::Kill),
        1 => Just(VmVerb::Restart),
        2 => Just(VmVerb::Pause),
        1 => Just(VmVerb::Resume),
        2 => Just(VmVerb::Delete),
        1 => set,
    ]
}

fn of_user() -> impl Strategy<Value = Act> {
    let name = prop_oneof![
        8 => Just(None),
        4 => select(vec!["web", "db"]).prop_map(Some),
        1 => select(vec!["42", "json"]).prop_map(Some),
    ];
    let new =
        (name, spec(), key()).prop_map(|(name, spec, key)| Command::VmNew { name: name.map(str::to_owned), spec, key });
    let version = proptest::option::weighted(0.1, 1_u64..6);
    let verb = (vm(), verb(), version, key()).prop_map(|(vm, verb, version, key)| Act::Verb {
        vm,
        verb,
        conditions: Conditions { version, key },
    });
    let lab = || "lab".to_owned();
    let pool =
        Command::PoolNew { name: lab(), network: "10.9.0.0/29".parse().unwrap(), gateway: None, reserved: vec![] };
    let user = (select(vec!["ann", "bob", "zoe", "zoe", "root"]), select(Role::ALL), proptest::option::of(0_u32..4));
    let within = proptest::collection::vec((1_u64..4).prop_map(VmId), 0..3);
    let user = (user, within, 0..8).prop_map(|((name, role, uid), within, what)| {
        let name = name.to_owned();
        match what {
            0 | 1 => Command::UserNew { name, role, uid },
            2 | 3 => Command::UserSet { name, role, uid },
            4 => Command::UserNewWithin { name, role, uid, within },
            5 => Command::UserSetWithin { name, role, uid, within },
            6 => Command::UserDelete { name },
            _ => Command::CertificateRevoke { name, serial: format!("{:x}", within.len()) },
        }
    });
    prop_oneof![
        8 => new.prop_map(Act::Is),
        24 => verb,
        1 => Just(Act::Is(pool)),
        1 => Just(Act::Is(Command::PoolDelete { name: lab() })),
        1 => image_name().prop_map(|name| Act::Is(Command::ImageForget { name })),
        2 => user.prop_map(Act::Is),
    ]
}

fn of_agent() -> impl Strategy<Value = Act> {
    let report = prop_oneof![
        8 => Just(VmReport::Started { pid: 7 }),
        2 => Just(VmReport::GuestReady),
        3 => Just(VmReport::Paused),
        2 => Just(VmReport::Resumed),
        3 => any::<bool>().prop_map(failed),
        2 => Just(VmReport::PoweredOff),
        3 => Just(VmReport::Ended),
        3 => Just(VmReport::RetryDue),
        2 => Just(VmReport::Removed),
        1 => Just(VmReport::Trouble { sentence: "the disk is slow".to_owned() }),
    ];
    let off = prop_oneof![12 => Just(0_i8), 1 => Just(-1), 1 => Just(1)];
    let node = (select(vec!["boot-1", "boot-1", "boot-2"]), 1_u64..3).prop_map(|(boot, factor)| match node_up(boot) {
        Command::NodeUp { host_boot, hypervisor, cpus, vcpus_max, arch, disk_bytes, .. } => {
            let memory_bytes = NODE_MEMORY_BYTES / factor;
            Command::NodeUp { host_boot, hypervisor, memory_bytes, cpus, vcpus_max, arch, disk_bytes }
        }
        other => other,
    });
    prop_oneof![
        20 => vm().prop_map(|vm| Act::Work { vm }),
        20 => (vm(), off, report).prop_map(|(vm, off, report)| Act::Report { vm, off, report }),
        3 => node.prop_map(Act::Is),
        1 => Just(Act::Is(Command::NodeDown)),
        1 => image_name().prop_map(|name| Act::Is(image(&name))),
    ]
}
