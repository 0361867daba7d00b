//! What a VM's commands touch beside its state: names, addresses, memory, attributes, retries, events.

use super::cluster::{BEGIN_MS, Cluster, NODE_MEMORY_BYTES, image, new_vm, node_up, spec, user, verb};
use super::transitions::failed;
use blixard::engine::state::{
    Actual, By, Command, Desired, Kind, Reply, Restart, SpecChanges, VmReport, VmSpec, VmVerb,
};
use blixard::text::{Code, name::RESERVED};

fn set(name: Option<&str>, changes: SpecChanges) -> VmVerb {
    VmVerb::Set { name: name.map(str::to_owned), changes }
}

#[test]
fn names_are_unique_legal_and_freed_by_delete() {
    let mut cluster = Cluster::new();
    let named = |name: &str| new_vm(Some(name), spec());
    cluster.done(user("root"), named("web"));
    assert_eq!(cluster.refused(user("root"), named("web")).0, Code::Exists);
    for wrong in RESERVED.iter().copied().chain(["", "42", "..", "a/b", "Web", "a\0", &"x".repeat(10_000)]) {
        let (code, sentence) = cluster.refused(user("root"), named(wrong));
        assert_eq!(code, Code::Invalid, "{wrong}");
        assert!(sentence.len() < 200, "{sentence}");
    }
    let second = cluster.running(spec());
    assert_eq!(
        cluster.one(user("root"), verb(second, set(Some("web"), SpecChanges::default()))).unwrap_err().code,
        Code::Exists
    );
    cluster.verb(second, set(Some("db"), SpecChanges::default())).unwrap();
    assert_eq!(cluster.state.vm_named("db").unwrap().id.0, second);
    cluster.verb(second, set(Some(""), SpecChanges::default())).unwrap();
    assert!(cluster.state.vm_named("db").is_none());
    cluster.verb(second, set(Some("db"), SpecChanges::default())).unwrap();
    // A name is free as soon as its VM is deleted, though its agent is still clearing up.
    cluster.verb(second, VmVerb::Kill).unwrap();
    cluster.report(second, VmReport::Ended).unwrap();
    cluster.verb(second, VmVerb::Delete).unwrap();
    assert_eq!(cluster.is(second).actual, Actual::Deleting);
    cluster.done(user("root"), named("db"));
    cluster.report(second, VmReport::Removed).unwrap();
    assert_eq!(cluster.state.vm_named("db").unwrap().id.0, second + 1);
}

#[test]
fn numbers_are_never_used_again() {
    let mut cluster = Cluster::new();
    for id in 1..10 {
        assert_eq!(cluster.vm(spec()), id);
        cluster.verb(id, VmVerb::Delete).unwrap();
    }
}

#[test]
fn an_address_is_leased_from_new_to_the_end_of_delete() {
    let mut cluster = Cluster::new();
    let network = "10.9.0.0/30".parse().unwrap();
    let pool = Command::PoolNew { name: "lab".into(), network, gateway: None, reserved: vec![] };
    cluster.done(user("root"), pool);
    let in_lab = |ip: Option<&str>| VmSpec { pool: Some("lab".into()), ip: ip.map(|ip| ip.parse().unwrap()), ..spec() };
    let vm = cluster.running(in_lab(None));
    assert_eq!(cluster.is(vm).ip.unwrap().to_string(), "10.9.0.2");
    let (code, sentence) = cluster.refused(user("root"), new_vm(None, in_lab(None)));
    assert_eq!((code, sentence.contains("exhausted")), (Code::NoSpace, true), "{sentence}");
    assert_eq!(cluster.refused(user("root"), new_vm(None, in_lab(Some("10.9.0.2")))).0, Code::Exists);
    assert_eq!(cluster.refused(user("root"), new_vm(None, in_lab(Some("10.9.0.1")))).0, Code::Invalid);
    assert_eq!(cluster.refused(user("root"), new_vm(None, in_lab(Some("fd00::1")))).0, Code::Invalid);
    let nowhere = VmSpec { pool: Some("nowhere".into()), ..spec() };
    assert_eq!(cluster.refused(user("root"), new_vm(None, nowhere)).0, Code::NotFound);
    assert_eq!(cluster.refused(user("root"), Command::PoolDelete { name: "lab".into() }).0, Code::Busy);
    for step in [VmReport::PoweredOff, VmReport::Removed] {
        assert_eq!(cluster.state.ipam().pool("lab").unwrap().leases().len(), 1);
        cluster.report(vm, step).unwrap();
        if cluster.get(vm).is_some() {
            cluster.verb(vm, VmVerb::Delete).unwrap();
        }
    }
    assert_eq!(cluster.state.ipam().pool("lab").unwrap().leases().len(), 0);
    cluster.done(user("root"), Command::PoolDelete { name: "lab".into() });
}

#[test]
fn memory_is_promised_to_what_may_run_and_no_more_than_there_is() {
    let mut cluster = Cluster::new();
    let big = || VmSpec { memory_bytes: NODE_MEMORY_BYTES / 2 + (1 << 20), ..spec() };
    let first = cluster.running(big());
    let second = cluster.vm(big());
    let refusal = cluster.verb(second, VmVerb::Start).unwrap_err();
    assert_eq!(refusal.code, Code::NoSpace);
    assert!(refusal.sentence.contains("2049M") && refusal.sentence.contains("2047M"), "{refusal}");
    // A restart has its own memory to go to.
    cluster.verb(first, VmVerb::Restart).unwrap();
    cluster.verb(first, VmVerb::Kill).unwrap();
    assert_eq!(cluster.verb(second, VmVerb::Start).unwrap_err().code, Code::NoSpace, "it is not gone yet");
    cluster.report(first, VmReport::Ended).unwrap();
    cluster.verb(second, VmVerb::Start).unwrap();
    assert_eq!(cluster.state.promised(super::cluster::NODE).bytes, big().memory_bytes);
    // Where nobody is there to refuse, it waits until there is room.
    cluster.report(second, VmReport::Started { pid: 1 }).unwrap();
    cluster
        .verb(second, set(None, SpecChanges { memory_bytes: Some(NODE_MEMORY_BYTES * 2), ..Default::default() }))
        .unwrap();
    cluster.done(By::Agent, node_up("boot-2"));
    let vm = cluster.is(second);
    assert_eq!((vm.actual, vm.generation, vm.node), (Actual::Waiting, 1, None));
    assert!(vm.why.as_ref().unwrap().contains("no capacity"));
    cluster
        .verb(second, set(None, SpecChanges { memory_bytes: Some(NODE_MEMORY_BYTES), ..Default::default() }))
        .unwrap();
    assert_eq!((cluster.is(second).actual, cluster.is(second).generation), (Actual::Starting, 2));
}

#[test]
fn virtual_cpus_are_promised_where_they_are_limited() {
    let mut cluster = Cluster::new();
    let limit = |most| match node_up("boot-1") {
        Command::NodeUp { host_boot, hypervisor, memory_bytes, cpus, arch, disk_bytes, .. } => {
            Command::NodeUp { host_boot, hypervisor, memory_bytes, cpus, vcpus_max: most, arch, disk_bytes }
        }
        other => other,
    };
    let two = || VmSpec { cpus: 2, ..spec() };
    let (first, second) = (cluster.running(two()), cluster.vm(two()));
    cluster.done(By::Agent, limit(Some(3)));
    let refusal = cluster.verb(second, VmVerb::Start).unwrap_err();
    assert_eq!(refusal.code, Code::NoSpace);
    assert!(refusal.sentence.contains("2 virtual CPUs") && refusal.sentence.contains("has 1 left"), "{refusal}");
    cluster.verb(first, VmVerb::Kill).unwrap();
    cluster.report(first, VmReport::Ended).unwrap();
    cluster.verb(second, VmVerb::Start).unwrap();
    assert_eq!(cluster.state.promised(super::cluster::NODE).cpus, 2);
    assert_eq!(cluster.verb(first, VmVerb::Start).unwrap_err().code, Code::NoSpace);
    cluster.done(By::Agent, limit(None));
    cluster.verb(first, VmVerb::Start).unwrap();
}

#[test]
fn a_node_that_is_down_takes_nothing_new() {
    let mut cluster = Cluster::new();
    let vm = cluster.vm(spec());
    cluster.done(By::Agent, Command::NodeDown);
    assert_eq!(cluster.verb(vm, VmVerb::Start).unwrap_err().code, Code::NoSpace);
    cluster.done(By::Agent, node_up("boot-1"));
    cluster.verb(vm, VmVerb::Start).unwrap();
}

#[test]
fn attributes_out_of_bounds_are_refused_and_name_what_is_allowed() {
    let mut cluster = Cluster::new();
    let wrong: [(VmSpec, Code, &str); 11] = [
        (VmSpec { cpus: 0, ..spec() }, Code::Invalid, "1 to 64"),
        (VmSpec { cpus: 65, ..spec() }, Code::Invalid, "1 to 64"),
        (VmSpec { memory_bytes: 0, ..spec() }, Code::Invalid, "32M to 1T"),
        (VmSpec { memory_bytes: 1 << 60, ..spec() }, Code::Invalid, "32M to 1T"),
        (VmSpec { memory_bytes: (64 << 20) + 1, ..spec() }, Code::Invalid, "multiple of 1M"),
        (VmSpec { disk_bytes: Some(1), ..spec() }, Code::Invalid, "1M to 16T"),
        (VmSpec { grace_ms: 3_600_001, ..spec() }, Code::Invalid, "0s to 1h"),
        (VmSpec { image: "tinny".into(), ..spec() }, Code::NotFound, "did you mean 'tiny'"),
        (VmSpec { image: "../etc".into(), ..spec() }, Code::Invalid, "image: "),
        (VmSpec { image: "x".repeat(10_000), ..spec() }, Code::Invalid, "image: "),
        (VmSpec { pool: Some("a/b".into()), ..spec() }, Code::Invalid, "pool: "),
    ];
    let hash = |cluster: &Cluster| (cluster.state.vms().len(), cluster.state.ipam().clone());
    let before = hash(&cluster);
    for (spec, code, word) in wrong {
        let (seen, sentence) = cluster.refused(user("root"), new_vm(None, spec));
        assert_eq!(seen, code, "{sentence}");
        assert!(sentence.contains(word) && sentence.len() < 300, "{sentence}");
    }
    assert_eq!(hash(&cluster), before);
    let vm = cluster.vm(spec());
    let refusal = cluster.verb(vm, set(None, SpecChanges { cpus: Some(0), ..Default::default() })).unwrap_err();
    assert_eq!(refusal.code, Code::Invalid);
    assert_eq!(cluster.verb(vm, VmVerb::Stop { grace_ms: Some(u64::MAX) }).unwrap_err().code, Code::Invalid);
}

#[test]
fn set_changes_what_it_names_and_an_image_in_use_is_kept() {
    let mut cluster = Cluster::new();
    cluster.done(By::Agent, image("other"));
    let vm = cluster.running(spec());
    let changes = SpecChanges { image: Some("other".into()), restart: Some(Restart::Never), ..Default::default() };
    cluster.verb(vm, set(None, changes.clone())).unwrap();
    assert_eq!(cluster.verb(vm, set(None, changes)), Ok(Reply::Unchanged));
    let expected = VmSpec { image: "other".into(), restart: Restart::Never, ..spec() };
    assert_eq!((&cluster.is(vm).spec, cluster.is(vm).generation), (&expected, 1));
    assert_eq!(cluster.refused(user("root"), Command::ImageForget { name: "other".into() }).0, Code::Busy);
    cluster.done(user("root"), Command::ImageForget { name: "tiny".into() });
    assert_eq!(cluster.refused(user("root"), Command::ImageForget { name: "tiny".into() }).0, Code::NotFound);
}

#[test]
fn a_stop_can_be_made_shorter_and_not_longer() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    let stop = |grace_ms| VmVerb::Stop { grace_ms: Some(grace_ms) };
    cluster.verb(vm, stop(20_000)).unwrap();
    for (verb, reply, grace_ms) in [
        (stop(30_000), Reply::Unchanged, 20_000),
        (stop(5_000), Reply::Done, 5_000),
        (VmVerb::Stop { grace_ms: None }, Reply::Unchanged, 5_000),
        (VmVerb::Kill, Reply::Done, 0),
        (VmVerb::Kill, Reply::Unchanged, 0),
    ] {
        assert_eq!(cluster.verb(vm, verb), Ok(reply));
        assert_eq!(cluster.is(vm).stop_grace_ms, grace_ms);
    }
}

#[test]
fn a_crash_loop_backs_off_and_ends() {
    let mut cluster = Cluster::new();
    let vm = cluster.vm(spec());
    cluster.verb(vm, VmVerb::Start).unwrap();
    let mut pauses = Vec::new();
    loop {
        cluster.report(vm, VmReport::Started { pid: 1 }).unwrap();
        // A guest that has come up and crashes then is in a loop all the same.
        cluster.report(vm, VmReport::GuestReady).unwrap();
        assert_eq!(cluster.is(vm).error, None);
        cluster.report(vm, failed(true)).unwrap();
        let Some(at_ms) = cluster.is(vm).retry_at_ms else { break };
        pauses.push((at_ms - cluster.now_ms) / 1_000);
        cluster.now_ms = at_ms;
        cluster.report(vm, VmReport::RetryDue).unwrap();
    }
    assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    assert_eq!((cluster.is(vm).failures, cluster.is(vm).generation), (10, 10));
    assert!(cluster.is(vm).settled());
    assert_eq!(cluster.state.promised(super::cluster::NODE).bytes, 0);
    cluster.verb(vm, VmVerb::Start).unwrap();
    assert_eq!((cluster.is(vm).failures, cluster.is(vm).error.clone()), (0, None));
}

#[test]
fn what_ran_for_long_has_worked() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    for (ran_ms, failures) in [(1_000, 1), (599_999, 2), (600_000, 1), (0, 2)] {
        cluster.now_ms += ran_ms;
        cluster.report(vm, failed(true)).unwrap();
        assert_eq!(cluster.is(vm).failures, failures);
        cluster.report(vm, VmReport::RetryDue).unwrap();
        cluster.report(vm, VmReport::Started { pid: 1 }).unwrap();
    }
}

#[test]
fn a_policy_that_becomes_never_takes_back_the_retry() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    cluster.report(vm, failed(true)).unwrap();
    cluster.verb(vm, set(None, SpecChanges { restart: Some(Restart::Never), ..Default::default() })).unwrap();
    assert_eq!(cluster.report(vm, VmReport::RetryDue), Ok(Reply::Unchanged));
    assert_eq!((cluster.is(vm).actual, cluster.is(vm).desired), (Actual::Failed, Desired::Running));
}

#[test]
fn events_are_kept_in_order_bounded_and_as_they_were_told() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    for _ in 0..100 {
        cluster.now_ms += 7;
        cluster.verb(vm, VmVerb::Pause).unwrap();
        cluster.verb(vm, VmVerb::Resume).unwrap();
    }
    cluster.report(vm, VmReport::Failed { sentence: format!("{}\nü", "ü".repeat(1_000)), may_retry: false }).unwrap();
    let told: Vec<_> = cluster.events.iter().filter(|e| e.subject.to_string() == "vms/1").cloned().collect();
    let kept: Vec<_> = cluster.is(vm).events().collect();
    assert_eq!((told.len(), kept.len()), (3 + 200 + 1, 64));
    assert_eq!(kept, told[told.len() - 64..]);
    assert!(kept[63].to_string().ends_with('ü') && kept[63].to_string().len() < 300, "{}", kept[63]);
    assert_eq!(cluster.is(vm).error.as_ref().unwrap().len(), 1_024);
    assert_eq!(cluster.state.node(super::cluster::NODE).unwrap().events().count(), 1);
}

#[test]
fn directories_know_when_they_changed_last() {
    let mut cluster = Cluster::new();
    let vm = cluster.vm(spec());
    let made = cluster.state.directory(Kind::Vm);
    assert_eq!((made.members.seq, made.objects.seq), (cluster.state.seq(), cluster.state.seq()));
    cluster.now_ms += 1_000;
    cluster.verb(vm, VmVerb::Start).unwrap();
    let started = cluster.state.directory(Kind::Vm);
    assert_eq!((started.members, started.objects.seq), (made.members, cluster.state.seq()));
    assert_eq!(started.objects.at.millis(), BEGIN_MS + 1_000);
    assert_eq!(cluster.verb(vm, VmVerb::Start), Ok(Reply::Unchanged));
    assert_eq!(cluster.state.directory(Kind::Vm), started);
    cluster.verb(vm, set(Some("web"), SpecChanges::default())).unwrap();
    assert_eq!(cluster.state.directory(Kind::Vm).members.seq, cluster.state.seq());
    assert_eq!(cluster.state.directory(Kind::Pool).objects.seq, made.members.seq, "its address was leased then");
}
