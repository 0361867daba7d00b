//! A cluster that begins again from a backup is one that others join, and whose log need not go back to its beginning.

use crate::lab::{Lab, NAMES, Node, await_same, await_voters, leader, until};

/// Has the log cut on the node that leads, so that whoever comes next gets the snapshot first.
fn cut_log(nodes: &[Node]) {
    until("a log that is cut", || {
        let at = leader(nodes);
        let leads = nodes.iter().find(|node| node.at == at).unwrap();
        leads.write("vms/1/ctl", "set priority=7\n").unwrap();
        leads.write("vms/1/ctl", "set priority=3\n").unwrap();
        leads.write("ctl", "snapshot\n").unwrap();
        leads.answer(&format!("nodes/{}/work", NAMES[leads.at]), "from=1\n").starts_with("snapshot ")
    });
}

fn seq(node: &Node) -> u64 {
    node.value("status", "seq").unwrap().parse().unwrap()
}

#[test]
fn a_restored_cluster_is_joined_by_members_and_by_a_worker_which_get_its_snapshot() {
    let lab = Lab::new(5);
    let mut old = crate::lab::cluster(&lab, 2);
    for n in 0..20 {
        old[n % 2].new_object("vms/new", &format!("name=vm-{n} image=tiny")).unwrap();
    }
    old[0].read("sync");
    old[0].write("vms/vm-3/ctl", "start\n").unwrap();
    assert_eq!(old[0].read("vms/vm-3/wait"), "running\n");
    let (backup, then) = (lab.folder().join("backup"), seq(&old[0]));
    std::fs::write(&backup, std::fs::read(old[0].path("backup")).unwrap()).unwrap();
    old.iter_mut().for_each(Node::kill);

    // Another machine begins anew from it.
    let mut first = Node::new(&lab, 2);
    let address = first.address();
    let said = first.blixard(&["restore", backup.to_str().unwrap(), "--node", NAMES[2], "--advertise", &address]);
    assert!(said.contains("begins again"), "{said}");
    first.start(&[]);
    assert!(seq(&first) > then, "numbers go on");
    let mut nodes = vec![first];
    cut_log(&nodes);

    // A member that joins is given the state and not the whole log, and so is a worker.
    let mut second = Node::new(&lab, 3);
    second.join(&nodes[0]);
    nodes.push(second);
    await_voters(&nodes, 2);
    cut_log(&nodes);
    let mut worker = Node::new(&lab, 4);
    worker.join_as(&nodes[0], "worker");
    nodes.push(worker);
    await_same(&nodes);
    for node in &nodes {
        assert_eq!(node.read("vms/list").lines().count(), 21, "{}", node.read("vms/list"));
        assert_eq!(node.value("vms/vm-3/status", "state").unwrap(), "failed", "nobody knows what became of it");
        let list = node.read("nodes/list");
        assert!(list.lines().count() == 4 && !list.contains("alpha"), "{list}");
    }

    // They are a cluster like any other, the worker too.
    for at in 0..3 {
        let node = format!("image=tiny node={} name=new-{at}", NAMES[nodes[at].at]);
        let id = nodes[(at + 1) % 3].new_object("vms/new", &node).unwrap();
        nodes[at].read("sync");
        nodes[at].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
        assert_eq!(nodes[(at + 2) % 3].value_of_wait(&id), "running");
    }
    await_same(&nodes);

    // What was a node of the old one is none here.
    let identity = old[0].data().join("ca/node.pem");
    let dial = format!("tls!{}!5640", nodes[0].address());
    let line = ["--at", &dial, "--identity", identity.to_str().unwrap(), "cat", "status"];
    let refused = old[0].command(&line).output().unwrap();
    assert!(!refused.status.success(), "{refused:?}");

    // The worker finds its way back, also when the log was cut while it was away.
    nodes[2].kill();
    cut_log(&nodes);
    nodes[2].start(&[]);
    await_same(&nodes);
}
