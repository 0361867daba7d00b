//! Who may do what: by the table below, of which the mode bits and `apply` must agree.

use super::cluster::{Cluster, image, new_vm, node_up, spec, user, verb};
use blixard::engine::state::{By, Command, Operation, Role, VmId, VmReport, VmVerb};
use blixard::text::Code;

const USERS: [&str; 6] = ["root", "ann", "bob", "eve", "mallory", "none"];

fn user_set(name: &str, role: Role, uid: Option<u32>) -> Command {
    Command::UserSet { name: name.to_owned(), role, uid }
}

#[test]
fn each_user_may_what_their_role_says_and_no_more() {
    // A VM of ann's; the columns are USERS.
    let table: [(Command, Operation, Option<&str>, [bool; 6]); 8] = [
        (new_vm(None, spec()), Operation::Create, None, [true, true, true, false, false, false]),
        (verb(1, VmVerb::Start), Operation::Control, Some("ann"), [true, true, false, false, false, false]),
        (verb(1, VmVerb::Delete), Operation::Control, Some("ann"), [true, true, false, false, false, false]),
        (image("other"), Operation::Administer, None, [true, false, false, false, false, false]),
        (
            Command::ImageForget { name: "spare".into() },
            Operation::Administer,
            None,
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
            None,
            [true, false, false, false, false, false],
        ),
        (
            Command::PoolDelete { name: "default".into() },
            Operation::Administer,
            None,
            [true, false, false, false, false, false],
        ),
        (user_set("new", Role::Admin, None), Operation::Administer, None, [true, false, false, false, false, false]),
    ];
    for (command, operation, owner, allowed) in table {
        for (name, allowed) in USERS.into_iter().zip(allowed) {
            let mut cluster = Cluster::new();
            cluster.done(By::Agent, image("spare"));
            cluster.done(user("ann"), new_vm(None, spec()));
            assert_eq!(cluster.state.may(name, owner, operation), allowed, "{name}: {operation:?}");
            assert!(cluster.state.may(name, owner, Operation::Read));
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
        Command::ImageForget { name: "tiny".into() },
        Command::PoolDelete { name: "default".into() },
        user_set("x", Role::Admin, None),
    ] {
        assert_eq!(cluster.refused(By::Agent, command).0, Code::Denied);
    }
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
