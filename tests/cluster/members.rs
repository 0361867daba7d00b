//! Who goes and who comes back: removal, a store that is lost, and what is refused because the others could not go on.

use crate::lab::{Lab, NAMES, Node, await_same, await_voters, cluster, leader, until};
use rustix::io::Errno;

#[track_caller]
fn refused(node: &Node, path: &str, text: &str, errno: Errno, why: &str) {
    let error = node.write(path, text).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(errno.raw_os_error()), "{text}");
    let said = node.read("err");
    assert!(said.lines().last().unwrap().contains(why), "{text}: {said}");
}

#[test]
fn a_node_is_removed_and_comes_in_again() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    nodes[0].write("nodes/gamma/ctl", "remove\n").unwrap();
    let trace = nodes[2].await_end();
    assert!(trace.contains("this node has been removed from the cluster"), "{trace}");
    await_voters(&nodes, 2);
    assert!(!nodes[0].read("nodes/list").contains("gamma"));
    assert!(nodes[2].refused(&[]).contains("belongs to no cluster yet"));
    // Its folder can join again: the store of its old identity, and the authority, were set aside.
    assert!(nodes[2].data().join("log.removed").is_dir());
    let (others, gamma) = nodes.split_at_mut(2);
    gamma[0].join(&others[1]);
    await_voters(&nodes, 3);
    assert_eq!(nodes[0].value("nodes/gamma/status", "id").unwrap(), "4", "a number is never used again");
    await_same(&nodes);
}

#[test]
fn the_leader_can_be_removed_and_the_others_go_on() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    let leads = leader(&nodes);
    let other = (leads + 1) % 3;
    nodes[other].write(&format!("nodes/{}/ctl", NAMES[leads]), "remove\n").unwrap();
    nodes[leads].await_end();
    nodes[other].new_object("vms/new", "name=after image=tiny").unwrap();
    let there: Vec<Node> = nodes.into_iter().filter(|node| node.at != leads).collect();
    await_voters(&there, 2);
    await_same(&there);
}

#[test]
fn what_would_cost_the_majority_is_refused() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    let id = nodes[0].new_object("vms/new", "image=tiny").unwrap();
    nodes[0].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    let owner = nodes[0].value(&format!("vms/{id}/status"), "node").unwrap();
    refused(&nodes[0], &format!("nodes/{owner}/ctl"), "remove\n", Errno::BUSY, "drain it first");
    nodes[2].kill();
    until("that it is noticed", || nodes[0].value("nodes/gamma/status", "state").unwrap() == "lost");
    assert_eq!(nodes[0].value("status", "nodes").unwrap(), "2 up of 3");
    refused(&nodes[0], "nodes/beta/ctl", "demote\n", Errno::BUSY, "which is no majority; bring back, or remove, gamma");
    // The dead one may go: the others are a majority without it.
    if owner != "gamma" {
        nodes[0].write("nodes/gamma/ctl", "remove\n").unwrap();
        await_voters(&nodes, 2);
    }
}

#[test]
fn a_node_whose_store_is_lost_begins_anew_as_another() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    for at in [1, 0] {
        let name = NAMES[at];
        let other = (at + 1) % 3;
        let raft = |nodes: &[Node]| nodes[other].value(&format!("nodes/{name}/status"), "raft-id").unwrap();
        let before: u64 = raft(&nodes).parse().unwrap();
        nodes[at].kill();
        nodes[other].new_object("vms/new", "image=tiny").unwrap();
        for part in ["logs", "state_machine"] {
            std::fs::remove_dir_all(nodes[at].data().join("log").join(part)).unwrap();
        }
        nodes[at].start(&[]);
        assert!(raft(&nodes).parse::<u64>().unwrap() > before, "never the same identity again");
        await_voters(&nodes, 3);
        await_same(&nodes);
    }
}
