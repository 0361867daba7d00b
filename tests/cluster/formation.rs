//! How a cluster comes to be, and everything that can be wrong with it: a clear sentence, and nothing half done.

use crate::lab::{Lab, NAMES, Node, await_same, cluster, leader, until};

#[test]
fn three_machines_are_one_tree() {
    let lab = Lab::new(3);
    let nodes = cluster(&lab, 3);
    let [alpha, beta, gamma] = &nodes[..] else { panic!() };
    let id = alpha.new_object("vms/new", "name=web image=tiny").unwrap();
    beta.read("sync");
    beta.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(beta.value(&format!("vms/{id}/status"), "desired").unwrap(), "running", "who wrote sees it");
    gamma.read("sync");
    assert_eq!(gamma.read(&format!("vms/{id}/wait")), "running\n");
    assert_eq!(gamma.value("vms/web/status", "state").unwrap(), "running");
    for node in &nodes {
        assert_eq!(node.value("status", "nodes").unwrap(), "3 up of 3");
        assert_eq!(
            (node.value("status", "voters").unwrap(), node.value("status", "quorum").unwrap()),
            ("3".into(), "yes".into())
        );
    }
    nodes[0].blixard(&["write", "vms/web/ctl", "stop"]);
    let seen = nodes[2].blixard(&["cat", "--sync", "vms/web/status"]);
    assert!(seen.contains("\ndesired stopped\n"), "{seen}");
    await_same(&nodes);
    // Users come in at the port where nodes do.
    alpha.blixard(&["new", "users", "name=ann", "role=operator"]);
    let identity = lab.folder().join("ann.pem");
    alpha.blixard(&["ca", "issue", "ann", "--out", identity.to_str().unwrap()]);
    let dial = format!("tls!{}!5640", beta.address());
    let me = gamma.blixard(&["--at", &dial, "--identity", identity.to_str().unwrap(), "cat", "me"]);
    assert!(me.starts_with("user ann\nrole operator\n"), "{me}");
}

#[test]
fn a_whole_cluster_comes_back() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    nodes[1].new_object("vms/new", "name=kept image=tiny").unwrap();
    for round in 0..4 {
        match round % 2 {
            0 => nodes.iter_mut().for_each(Node::kill),
            // One after the other: the last ones have no quorum to take their leave of.
            _ => nodes.iter_mut().for_each(Node::stop),
        }
        nodes.iter_mut().for_each(|node| node.spawn(&[]));
        nodes.iter_mut().for_each(Node::await_ready);
        for node in &nodes {
            assert_eq!(node.value("vms/kept/status", "state").unwrap(), "defined");
            let status = format!("nodes/{}/status", NAMES[node.at]);
            let raft = node.value(&status, "raft-id").unwrap();
            assert_eq!(raft, (node.at + 1).to_string(), "nothing was lost, so nobody begins anew");
        }
        await_same(&nodes);
    }
}

#[test]
fn who_may_not_join_is_told_why_and_leaves_nothing() {
    let lab = Lab::new(3);
    let (mut alpha, mut beta, gamma) = (Node::new(&lab, 0), Node::new(&lab, 1), Node::new(&lab, 2));
    let nothing = beta.refused(&[]);
    assert!(nothing.contains("belongs to no cluster yet") && nothing.contains("cluster init NAME"), "{nothing}");
    alpha.found();
    let again = alpha.command(&["cluster", "init", "lab"]).output().unwrap();
    let again = String::from_utf8(again.stderr).unwrap();
    assert!(again.contains("is node 'alpha' of cluster 'lab' already"), "{again}");

    let join = |node: &Node, name: &str, token: &str| {
        let said = node.refused(&["--name", name, "--join", token, "--advertise", &node.address()]);
        assert!(!node.data().join("member.toml").exists(), "half joined: {said}");
        said
    };
    assert!(join(&beta, "beta", "blixard1.AAAA").contains("invalid token"));
    let token = alpha.token("voter");
    let missing = beta.refused(&["--name", "beta", "--join", &token]);
    assert!(missing.contains("--advertise HOST is missing"), "{missing}");
    let same = join(&beta, "alpha", &token);
    assert!(same.contains("node 'alpha' exists already") && same.contains("the token is still good"), "{same}");
    lab.cut_off(&[0]);
    let unreachable = join(&beta, "beta", &token);
    assert!(
        unreachable.contains("no member of the cluster could let this machine in: 10.98.0.1!5640"),
        "{unreachable}"
    );
    lab.carry_all();
    beta.start(&["--name", "beta", "--join", &token, "--advertise", &beta.address()]);
    let used = join(&gamma, "gamma", &token);
    assert!(used.contains("used before") && used.contains("blixard cluster invite"), "{used}");
}

#[test]
fn a_token_is_for_one_cluster_and_for_a_while() {
    let lab = Lab::new(3);
    let (mut alpha, mut beta, gamma) = (Node::new(&lab, 0), Node::new(&lab, 1), Node::new(&lab, 2));
    alpha.found();
    beta.blixard(&["cluster", "init", "other", "--node", "beta", "--advertise", &beta.address()]);
    beta.start(&[]);
    let join = |token: &str| gamma.refused(&["--name", "gamma", "--join", token, "--advertise", &gamma.address()]);
    // alpha's token, at the place where beta is: the addresses in it are alpha's, so beta takes that address.
    let token = alpha.token("voter");
    alpha.kill();
    lab.give_address(0, 1);
    beta.stop();
    beta.start(&["--listen", "tls!*!5640"]);
    // The switch takes a moment to learn where the address is now.
    until("another authority's refusal", || join(&token).contains("not signed by this cluster's authority"));
    let short = beta.new_object("nodes/new", "expires=1s").unwrap();
    // There is nothing to wait for: it is the cluster's clock that passes it.
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let late = join(&short);
    assert!(late.contains("has expired"), "{late}");
    for (line, why) in
        [("role=king", "invalid role 'king'"), ("expires=900h", "at most a week"), ("size=9", "invalid attribute")]
    {
        let error = beta.new_object("nodes/new", line).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::INVAL.raw_os_error()), "{line}");
        assert!(beta.read("err").lines().last().unwrap().contains(why), "{line}: {}", beta.read("err"));
    }
    assert!(beta.read("nodes/new").starts_with("# Write attr=value here"), "reading makes nothing");
}

#[test]
fn a_learner_has_the_tree_and_no_vote_until_it_is_promoted() {
    let lab = Lab::new(2);
    let (mut alpha, mut beta) = (Node::new(&lab, 0), Node::new(&lab, 1));
    alpha.found();
    beta.join_as(&alpha, "learner");
    alpha.new_object("vms/new", "name=a image=tiny").unwrap();
    beta.read("sync");
    assert_eq!(beta.value("vms/a/status", "state").unwrap(), "defined");
    let raft_role = |node: &Node| node.value("nodes/beta/status", "raft-role").unwrap();
    assert_eq!((raft_role(&beta), alpha.value("status", "raft-voters").unwrap()), ("learner".into(), "1".into()));
    beta.new_object("vms/new", "name=b image=tiny").unwrap();
    beta.write("nodes/beta/ctl", "promote\n").unwrap();
    until("its vote", || alpha.value("status", "raft-voters").unwrap() == "2");
    assert!(alpha.read("status").contains("warning an even number of voters"));
    beta.write("nodes/beta/ctl", "demote\n").unwrap();
    until("its end as a voter", || alpha.value("status", "raft-voters").unwrap() == "1");
    let last = alpha.write("nodes/alpha/ctl", "demote\n").unwrap_err();
    assert_eq!(last.raw_os_error(), Some(rustix::io::Errno::BUSY.raw_os_error()));
    assert!(alpha.read("err").contains("busy being the last voter"));
    assert_eq!(leader(&[alpha, beta]), 0);
}
