//! Machines that are not part of Raft: they run VMs, serve the tree, and turn to another member when theirs is gone.

use crate::lab::{Lab, NAMES, await_same, await_voters, cluster, until};
use rustix::io::Errno;
use rustix::process::Signal;

#[test]
fn a_worker_runs_vms_and_outlives_the_member_that_it_follows() {
    let lab = Lab::new(4);
    let mut nodes = cluster(&lab, 3);
    let mut worker = crate::lab::Node::new(&lab, 3);
    worker.join_as(&nodes[0], "worker");
    nodes.push(worker);
    await_voters(&nodes, 3);
    let name = NAMES[3];
    assert_eq!(nodes[1].value(&format!("nodes/{name}/status"), "role").unwrap(), "worker");
    assert_eq!(nodes[3].value(&format!("nodes/{name}/status"), "raft-role").unwrap(), "worker");
    assert!(!nodes[3].data().join("log").exists(), "it has no log");
    for verb in ["promote\n", "demote\n"] {
        let error = nodes[0].write(&format!("nodes/{name}/ctl"), verb).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::BUSY.raw_os_error()));
    }

    // A VM there, started from a member, and one that is written on the worker's own tree.
    let run = |nodes: &[crate::lab::Node], at: usize| {
        let id = nodes[at].new_object("vms/new", &format!("image=tiny node={name}")).unwrap();
        nodes[at].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
        assert_eq!(nodes[at].read(&format!("vms/{id}/wait")), "running\n");
        id
    };
    let first = run(&nodes, 0);
    let second = run(&nodes, 3);
    await_same(&nodes);
    assert_eq!(nodes[3].value(&format!("vms/{first}/status"), "node").unwrap(), name);

    // One member after the other dies and comes back: whichever it follows is among them.
    for at in 0..3 {
        nodes[at].kill();
        let third = run(&nodes, 3);
        nodes[3].write(&format!("vms/{third}/ctl"), "kill\n").unwrap();
        assert_eq!(nodes[3].read(&format!("vms/{third}/wait")), "stopped\n");
        nodes[at].start(&[]);
        await_same(&nodes);
    }
    for id in [&first, &second] {
        assert_eq!(nodes[0].value(&format!("vms/{id}/status"), "generation").unwrap(), "1", "its machines ran on");
    }

    // Itself dies and comes back, and finds out what it has missed.
    nodes[3].kill();
    nodes[0].write(&format!("vms/{first}/ctl"), "kill\n").unwrap();
    nodes[3].start(&[]);
    assert_eq!(nodes[3].read(&format!("vms/{first}/wait")), "stopped\n");
    await_same(&nodes);

    // Cut off it goes on reading, and says that nothing can be written.
    lab.cut_off(&[3]);
    until("that it notices", || nodes[3].value("status", "quorum").is_some_and(|quorum| quorum == "no"));
    let error = nodes[3].new_object("vms/new", "image=tiny").unwrap_err();
    assert!([Errno::AGAIN, Errno::TIMEDOUT].map(|e| Some(e.raw_os_error())).contains(&error.raw_os_error()), "{error}");
    lab.carry_all();
    until("that it is back", || nodes[3].value("status", "quorum").is_some_and(|quorum| quorum == "yes"));
    await_same(&nodes);
    nodes[0].write(&format!("vms/{second}/ctl"), "kill\n").unwrap();
    assert_eq!(nodes[0].read(&format!("vms/{second}/wait")), "stopped\n");
    nodes[0].write(&format!("nodes/{name}/ctl"), "leave\n").unwrap();
    let trace = nodes[3].await_end();
    assert!(trace.contains("this node has been removed from the cluster"), "{trace}");
    nodes.iter_mut().take(3).for_each(|node| node.signal(Signal::TERM));
    nodes.iter_mut().take(3).for_each(|node| drop(node.await_end()));
}
