//! A real guest in a real cluster: what only the node knows on which it runs is read and written on another.

use crate::lab::{Lab, NAMES, PATIENCE, cluster_of, until};
use std::time::Instant;

#[test]
fn what_only_the_owner_knows_is_asked_of_it() {
    let lab = Lab::new(2);
    let mut nodes = cluster_of("qemu", &lab, 2);
    let id = nodes[0].new_object("vms/new", "name=web image=tiny memory=128M").unwrap();
    nodes[0].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(nodes[1].read(&format!("vms/{id}/wait")), "running\n");
    let on = nodes[1].value("vms/web/status", "node").unwrap();
    let owner = nodes.iter().position(|node| NAMES[node.at] == on).unwrap();
    let other = 1 - owner;
    until("the guest", || nodes[other].value("vms/web/status", "guest").is_some_and(|guest| guest == "ready"));
    let ready = |log: &str| log.contains("blixard: ready");
    until("the ready line, on both", || {
        ready(&nodes[other].read("vms/web/log")) && ready(&nodes[owner].read("vms/web/log"))
    });
    nodes[other].type_at_console("vms/web/console", "echo from-$((40+2))-afar\n", "from-42-afar");

    // With the rights of who asks: a viewer reads, and does not type.
    nodes[owner].blixard(&["new", "users", "name=eve", "role=viewer"]);
    let identity = lab.folder().join("eve.pem");
    nodes[0].blixard(&["ca", "issue", "eve", "--out", identity.to_str().unwrap()]);
    let dial = format!("tls!{}!5640", nodes[other].address());
    let as_eve = ["--at", &dial, "--identity", identity.to_str().unwrap()];
    assert!(ready(&nodes[owner].blixard(&[&as_eve[..], &["cat", "vms/web/log"]].concat())));
    let typed = nodes[owner].command(&[&as_eve[..], &["write", "vms/web/console", "x"]].concat()).output().unwrap();
    assert!(!typed.status.success() && String::from_utf8_lossy(&typed.stderr).contains("no permission"), "{typed:?}");

    // Its machine runs on when its daemon dies, and nobody waits for ever for who is gone.
    nodes[owner].kill();
    let begun = Instant::now();
    let error = nodes[other].try_read("vms/web/log").unwrap_err();
    assert!(error.contains("Host is down") && begun.elapsed() < PATIENCE, "{error}");
    assert!(nodes[other].read("err").contains(&format!("node '{on}', which has it, can't be asked")));
    nodes[owner].start(&[]);
    assert!(ready(&nodes[other].read("vms/web/log")));
    nodes[other].write(&format!("vms/{id}/ctl"), "kill\n").unwrap();
    assert_eq!(nodes[other].read(&format!("vms/{id}/wait")), "stopped\n");
    nodes.iter_mut().for_each(|node| node.signal(rustix::process::Signal::TERM));
    nodes.iter_mut().for_each(|node| drop(node.await_end()));
}
