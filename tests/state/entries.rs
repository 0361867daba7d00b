//! Which entries are taken, and that all of one's commands take effect or none.

use super::cluster::{BEGIN_MS, Cluster, NODE, image, new_vm, spec, user, verb};
use blixard::clock::HybridTime;
use blixard::engine::state::{By, Command, Conditions, Entry, NodeId, Reply, VmId, VmVerb};
use blixard::text::Code;

fn init() -> Command {
    let text = str::to_owned;
    Command::Init { cluster: text("c"), node: text("alpha"), admin: text("root"), admin_uid: 0 }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut cluster = Cluster::empty();
    assert_eq!(cluster.refused(By::Agent, Command::NodeDown).0, Code::Denied, "nobody is a member yet");
    assert_eq!(cluster.one(By::Agent, init()), Ok(Reply::Created(1)));
    assert_eq!(cluster.state.cluster(), Some("c"));
    assert_eq!(cluster.state.user_with_uid(0).unwrap().name, "root");
    let pool = cluster.state.ipam().pool("default").unwrap();
    assert_eq!(
        (pool.network().to_string().as_str(), pool.gateway().unwrap().to_string().as_str()),
        ("10.42.0.0/16", "10.42.0.1")
    );
    assert_eq!(cluster.refused(By::Agent, init()).0, Code::Exists);
    assert_eq!(cluster.refused(user("root"), init()).0, Code::Exists);
}

#[test]
fn an_illegal_founding_leaves_nothing() {
    for (name, node, admin) in [("", "a", "r"), ("c", "1", "r"), ("c", "a", "none"), ("c", "a", "R")] {
        let mut cluster = Cluster::empty();
        let text = str::to_owned;
        let init = Command::Init { cluster: text(name), node: text(node), admin: text(admin), admin_uid: 0 };
        assert_eq!(cluster.refused(By::Agent, init).0, Code::Invalid);
        assert_eq!((cluster.state.cluster(), cluster.state.nodes().len(), cluster.state.users().len()), (None, 0, 0));
    }
    let mut cluster = Cluster::empty();
    let mut entry = cluster.entry(By::Agent, vec![init()]);
    entry.id.node = NodeId(2);
    assert_eq!(cluster.apply(entry).unwrap_err().code, Code::Invalid);
}

#[test]
fn who_is_no_member_is_refused() {
    let mut cluster = Cluster::new();
    let mut entry = cluster.entry(By::Agent, vec![Command::NodeDown]);
    entry.id.node = NodeId(2);
    let hash = cluster.state.hash();
    assert_eq!(cluster.apply(entry).unwrap_err().code, Code::Denied);
    assert_eq!(cluster.state.hash(), hash);
}

#[test]
fn an_entry_takes_effect_once_and_a_new_boot_closes_the_older_ones() {
    let mut cluster = Cluster::new();
    let first = cluster.entry(user("root"), vec![new_vm(Some("web"), spec())]);
    let second = cluster.entry(user("root"), vec![new_vm(Some("db"), spec())]);
    // A gap in the numbers is no fault: an entry may have been refused before it came into the log.
    cluster.apply(second.clone()).unwrap();
    let taken = |cluster: &mut Cluster, entry: &Entry| {
        let (hash, seq) = (cluster.state.hash(), cluster.state.seq());
        let taken = cluster.apply(entry.clone()).is_ok();
        assert_eq!(cluster.state.seq(), seq + 1, "each place of the log counts");
        assert_eq!(taken, cluster.state.hash() != hash, "what is not taken changes nothing");
        taken
    };
    assert!(!taken(&mut cluster, &second), "the same again");
    assert!(!taken(&mut cluster, &first), "an older one of the same boot");
    let mut of_boot_2 = cluster.entry(By::Agent, vec![Command::NodeDown]);
    (of_boot_2.id.boot, of_boot_2.id.n) = (2, 1);
    assert!(taken(&mut cluster, &of_boot_2));
    let late = cluster.entry(By::Agent, vec![Command::NodeDown]);
    assert!(!taken(&mut cluster, &late), "boot 1 is closed");
    assert_eq!(cluster.state.last_of(NODE), Some((2, 1)));
}

#[test]
fn a_submitters_stamps_never_fall() {
    let mut cluster = Cluster::new();
    cluster.now_ms += 5_000;
    cluster.done(By::Agent, Command::NodeDown);
    let mut entry = cluster.entry(By::Agent, vec![image("other")]);
    entry.at = HybridTime::from_millis(BEGIN_MS + 4_999);
    assert_eq!(cluster.apply(entry).unwrap_err().code, Code::Invalid);
    assert!(cluster.state.image_named("other").is_none());
    assert_eq!(cluster.state.now(), HybridTime::from_millis(BEGIN_MS + 5_000));
    cluster.done(By::Agent, image("other"));
}

#[test]
fn an_entry_has_a_bounded_number_of_commands() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.all(By::Agent, vec![]).unwrap_err().code, Code::Invalid);
    let most = Entry::COMMANDS_MAX;
    assert_eq!(cluster.all(By::Agent, vec![Command::NodeDown; most + 1]).unwrap_err().code, Code::Invalid);
    assert_eq!(cluster.all(By::Agent, vec![Command::NodeDown; most]).unwrap().len(), most);
}

#[test]
fn of_two_thousand_commands_with_a_bad_last_one_none_takes_effect() {
    let mut cluster = Cluster::new();
    let entry = cluster.entry(By::Agent, vec![Command::NodeDown]);
    cluster.apply(entry).unwrap();
    let before = cluster.state.clone();
    let mut commands: Vec<_> = (1..2_000).map(|n| new_vm(Some(&format!("vm{n}")), spec())).collect();
    commands.push(new_vm(Some("vm7"), spec()));
    let refusal = cluster.all(user("root"), commands.clone()).unwrap_err();
    assert_eq!(refusal.code, Code::Exists);
    assert!(refusal.nth == Some(1_999) && refusal.sentence.contains("vms/7"), "{refusal}");
    assert_eq!(cluster.state.vms().len(), 0);
    assert_eq!(cluster.state.ipam(), before.ipam());
    commands.pop();
    assert_eq!(cluster.all(user("root"), commands).unwrap(), (1..2_000).map(Reply::Created).collect::<Vec<_>>());
}

#[test]
fn a_command_sees_what_the_ones_before_it_did() {
    let mut cluster = Cluster::new();
    let replies = cluster.all(
        user("root"),
        vec![new_vm(Some("web"), spec()), verb(1, VmVerb::Start), verb(1, VmVerb::Start), verb(1, VmVerb::Kill)],
    );
    assert_eq!(replies.unwrap(), [Reply::Created(1), Reply::Done, Reply::Unchanged, Reply::Done]);
}

#[test]
fn a_version_that_does_not_match_is_refused_with_both() {
    let mut cluster = Cluster::new();
    let vm = cluster.vm(spec());
    let start = |version| Command::Vm {
        vm: VmId(vm),
        verb: VmVerb::Start,
        conditions: Conditions { version: Some(version), key: None },
    };
    let (code, sentence) = cluster.refused(user("root"), start(7));
    assert_eq!(code, Code::Stale);
    assert!(sentence.contains("version=7") && sentence.contains("version 1 "), "{sentence}");
    cluster.done(user("root"), start(1));
    assert_eq!(cluster.refused(user("root"), start(1)).0, Code::Stale);
    assert_eq!(cluster.done(user("root"), start(2)), Reply::Unchanged);
}

#[test]
fn a_key_gives_the_first_answer_for_a_day() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    let keyed = |key: &str| Some(key.to_owned());
    let restart = |key: &str| Command::Vm {
        vm: VmId(vm),
        verb: VmVerb::Restart,
        conditions: Conditions { version: None, key: keyed(key) },
    };
    let new = |name: &str| Command::VmNew { name: keyed(name), spec: spec(), key: keyed("new") };
    for _ in 0..3 {
        assert_eq!(cluster.done(user("root"), restart("once")), Reply::Done);
        assert_eq!(cluster.is(vm).generation, 2);
        assert_eq!(cluster.done(user("root"), new("web")), Reply::Created(vm + 1));
    }
    let (code, sentence) = cluster.refused(user("root"), new("db"));
    assert_eq!((code, sentence.contains("another command")), (Code::Exists, true), "{sentence}");
    // Keys are their user's own.
    assert_eq!(cluster.done(user("ann"), new("db")), Reply::Created(vm + 2));
    // What was refused is not remembered.
    assert_eq!(cluster.refused(user("bob"), new("db")).0, Code::Exists);
    cluster.done(user("root"), verb(vm + 2, VmVerb::Delete));
    assert_eq!(cluster.done(user("bob"), new("db")), Reply::Created(vm + 3));
    cluster.now_ms += 86_400_000;
    assert_eq!(cluster.done(user("root"), restart("once")), Reply::Done);
    assert_eq!(cluster.is(vm).generation, 3);
    for wrong in ["", "a\nb", &"x".repeat(129)] {
        assert_eq!(cluster.refused(user("root"), restart(wrong)).0, Code::Invalid, "{wrong:?}");
    }
}
