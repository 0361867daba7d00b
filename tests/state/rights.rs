//! Who may do what: by the table below, of which the mode bits and `apply` must agree.

use super::cluster::{Cluster, image, new_vm, node_up, spec, user, verb};
use blixard::engine::state::{About, By, Command, Operation, Reply, Role, VmId, VmReport, VmVerb};
use blixard::text::Code;

const USERS: [&str; 6] = ["root", "ann", "bob", "eve", "mallory", "none"];

fn user_set(name: &str, role: Role, uid: Option<u32>) -> Command {
    Command::UserSet { name: name.to_owned(), role, uid }
}

fn delete(name: &str) -> Command {
    Command::UserDelete { name: name.to_owned() }
}

fn revoke(name: &str, serial: &str) -> Command {
    Command::CertificateRevoke { name: name.to_owned(), serial: serial.to_owned() }
}

fn confine(name: &str, role: Role, uid: u32, within: &[u64]) -> Command {
    let within = within.iter().map(|id| VmId(*id)).collect();
    Command::UserSetWithin { name: name.to_owned(), role, uid: Some(uid), within }
}

#[test]
fn each_user_may_what_their_role_says_and_no_more() {
    // A VM of ann's; the columns are USERS.
    let table: [(Command, Operation, About, [bool; 6]); 10] = [
        (new_vm(None, spec()), Operation::Create, About::Cluster, [true, true, true, false, false, false]),
        (verb(1, VmVerb::Start), Operation::Control, About::Vm(VmId(1)), [true, true, false, false, false, false]),
        (verb(1, VmVerb::Delete), Operation::Control, About::Vm(VmId(1)), [true, true, false, false, false, false]),
        (image("other"), Operation::Administer, About::Cluster, [true, false, false, false, false, false]),
        (
            Command::ImageForget { name: "spare".into() },
            Operation::Administer,
            About::Cluster,
            [true, false, false, false, false, false],
        ),
        (
            Command::PoolNew {
                name: "lab".into(),
                network: "10.9.0.0/24".parse().unwrap(),
                gateway: None,
                reserved: vec![],
            },
            Operation::Administer,
            About::Cluster,
            [true, false, false, false, false, false],
        ),
        (
            Command::PoolDelete { name: "default".into() },
            Operation::Administer,
            About::Cluster,
            [true, false, false, false, false, false],
        ),
        (
            user_set("new", Role::Admin, None),
            Operation::Administer,
            About::Cluster,
            [true, false, false, false, false, false],
        ),
        (delete("eve"), Operation::Administer, About::Cluster, [true, false, false, false, false, false]),
        (revoke("eve", "aa"), Operation::Administer, About::Cluster, [true, false, false, false, false, false]),
    ];
    for (command, operation, about, allowed) in table {
        for (name, allowed) in USERS.into_iter().zip(allowed) {
            let mut cluster = Cluster::new();
            cluster.done(By::Agent, image("spare"));
            cluster.done(user("ann"), new_vm(None, spec()));
            assert_eq!(cluster.state.may(name, about, operation), allowed, "{name}: {operation:?}");
            assert!(cluster.state.may(name, about, Operation::Read));
            let outcome = cluster.one(user(name), command.clone());
            let denied =
                outcome.is_err_and(|refusal| refusal.code == Code::Denied && refusal.sentence.contains("permission"));
            assert_eq!(denied, !allowed, "{name}: {command}");
        }
    }
}

#[test]
fn users_do_not_report_and_agents_do_nothing_else() {
    let mut cluster = Cluster::new();
    let vm = cluster.running(spec());
    let report = Command::VmReport { vm: VmId(vm), generation: 1, report: VmReport::Ended };
    for command in [report, node_up("boot-9"), Command::NodeDown] {
        assert_eq!(cluster.refused(user("root"), command).0, Code::Denied);
    }
    for command in [
        new_vm(None, spec()),
        verb(vm, VmVerb::Kill),
        Command::PoolDelete { name: "default".into() },
        user_set("x", Role::Admin, None),
    ] {
        assert_eq!(cluster.refused(By::Agent, command).0, Code::Denied);
    }
    // Whether an image is there is for the agent to see; while a VM wants it, it is known.
    cluster.verb(vm, VmVerb::Kill).unwrap();
    cluster.report(vm, VmReport::Ended).unwrap();
    cluster.done(By::Agent, Command::ImageForget { name: "tiny".into() });
    assert_eq!(cluster.one(By::Agent, Command::ImageForget { name: "tiny".into() }), Ok(Reply::Unchanged));
    let refusal = cluster.verb(vm, VmVerb::Start).unwrap_err();
    assert_eq!(refusal.sentence, "no capacity: alpha does not have the image tiny");
    cluster.done(By::Agent, image("tiny"));
    cluster.verb(vm, VmVerb::Start).unwrap();
}

#[test]
fn users_are_made_changed_and_never_without_an_admin() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(user("root"), user_set("root", Role::Viewer, Some(0))).0, Code::Busy);
    assert_eq!(
        cluster.refused(user("root"), user_set("zoe", Role::Viewer, Some(1))).0,
        Code::Exists,
        "the uid is ann's"
    );
    assert_eq!(cluster.refused(user("root"), user_set("none", Role::Admin, None)).0, Code::Invalid);
    cluster.done(user("root"), user_set("ann", Role::Admin, Some(1)));
    cluster.done(user("ann"), user_set("root", Role::Viewer, None));
    assert_eq!(cluster.state.user_with_uid(0), None);
    // Who owns something but is no operator any more may not change it.
    cluster.done(user("bob"), new_vm(None, spec()));
    cluster.done(user("ann"), user_set("bob", Role::Viewer, Some(2)));
    assert_eq!(cluster.refused(user("bob"), verb(1, VmVerb::Start)).0, Code::Denied);
}

#[test]
fn who_is_confined_can_do_nothing_outside() {
    let mut cluster = Cluster::new();
    for _ in 0..2 {
        cluster.done(user("ann"), new_vm(None, spec()));
    }
    cluster.done(user("root"), confine("ann", Role::Operator, 1, &[2, 2]));
    assert_eq!(cluster.state.within("ann"), Some(&[VmId(2)][..]), "in order, each once");
    for (about, allowed) in [(About::Vm(VmId(1)), false), (About::Vm(VmId(2)), true), (About::Cluster, false)] {
        for operation in [Operation::Read, Operation::Control] {
            let of_cluster = about == About::Cluster && operation == Operation::Control;
            assert_eq!(cluster.state.may("ann", about, operation), allowed && !of_cluster, "{about:?} {operation:?}");
        }
    }
    assert!(!cluster.state.may("ann", About::Cluster, Operation::Create));
    assert_eq!(cluster.refused(user("ann"), verb(1, VmVerb::Start)).0, Code::Denied);
    assert_eq!(cluster.refused(user("ann"), new_vm(None, spec())).0, Code::Denied);
    cluster.done(user("ann"), verb(2, VmVerb::Start));
    // Another role and uid leave it as it is; only within= changes it.
    cluster.done(user("root"), user_set("ann", Role::Viewer, Some(9)));
    assert!(cluster.state.within("ann").is_some());
    assert_eq!(cluster.refused(user("root"), user_set("ann", Role::Admin, Some(9))).0, Code::Invalid);
    assert_eq!(cluster.refused(user("root"), confine("ann", Role::Admin, 9, &[1])).0, Code::Invalid);
    assert_eq!(cluster.refused(user("root"), confine("ann", Role::Viewer, 9, &[7])).0, Code::NotFound);
    cluster.done(user("root"), confine("ann", Role::Admin, 9, &[]));
    assert!(cluster.state.may("ann", About::Cluster, Operation::Administer));
}

#[test]
fn the_last_admin_stays_and_a_name_does_not_bring_back_its_certificates() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.refused(user("root"), delete("root")).0, Code::Busy);
    assert_eq!(cluster.refused(user("root"), delete("nobody-such")).0, Code::NotFound);
    let admits = |cluster: &Cluster, serial: &str, issued_ms| cluster.state.admits("ann", serial, issued_ms);
    let (first_ms, second_ms) = (cluster.now_ms, cluster.now_ms + 10_000);
    assert!(admits(&cluster, "aa", first_ms).is_ok());
    cluster.done(user("root"), revoke("ann", "aa"));
    assert!(admits(&cluster, "aa", first_ms).unwrap_err().sentence.contains("is revoked"));
    assert!(admits(&cluster, "bb", first_ms).is_ok(), "another of hers");
    cluster.now_ms += 5_000;
    cluster.done(user("root"), delete("ann"));
    assert_eq!(cluster.state.user_with_uid(1), None);
    assert!(admits(&cluster, "bb", first_ms).unwrap_err().sentence.contains("there is no user 'ann'"));
    cluster.done(user("root"), user_set("ann", Role::Viewer, Some(1)));
    for serial in ["aa", "bb"] {
        assert!(admits(&cluster, serial, first_ms).unwrap_err().sentence.contains("an earlier user 'ann'"));
    }
    assert!(admits(&cluster, "cc", second_ms).is_ok(), "one of the new user's");
}

#[test]
fn what_is_revoked_is_bounded_and_a_serial_number() {
    use blixard::engine::state::access::REVOKED_MAX;
    let mut cluster = Cluster::new();
    for wrong in ["", "xyz", "AA", "a b", &"a".repeat(41)] {
        assert_eq!(cluster.refused(user("root"), revoke("ann", wrong)).0, Code::Invalid, "{wrong}");
    }
    for n in 0..REVOKED_MAX {
        cluster.done(user("root"), revoke("ann", &format!("{n:x}")));
    }
    assert_eq!(cluster.one(user("root"), revoke("ann", "0")), Ok(Reply::Unchanged));
    assert_eq!(cluster.refused(user("root"), revoke("ann", "ffffff")).0, Code::NoSpace);
}
