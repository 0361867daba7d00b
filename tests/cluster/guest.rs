//! A real guest in a real cluster: what only the node knows on which it runs is read and written on another.

use crate::lab::{Lab, NAMES, PATIENCE, cluster_of, until};
use std::process::{Command, Stdio};
use std::time::Instant;

mod stopped;

#[test]
fn what_only_the_owner_knows_is_asked_of_it() {
    let lab = Lab::new(2);
    let mut nodes = cluster_of("qemu", &lab, 2);
    let id = nodes[0].new_object("vms/new", "name=web image=tiny memory=128M").unwrap();
    nodes[0].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    nodes[1].read("sync");
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

    // Whether anybody is there or not, that is asked.
    let ip = nodes[other].value("vms/web/status", "ip").unwrap();
    let (network, _) = ip.rsplit_once('.').unwrap();
    let ping = format!("ping -c 1 -w 2 {network}.250; echo asked-$((40+2))\n");
    nodes[other].type_at_console("vms/web/console", &ping, "asked-42");

    // What it has used, as its node counts it, and how busy that node is.
    let number = |text: Option<String>| blixard::text::size::parse(&text.unwrap_or_default()).unwrap();
    for at in [owner, other] {
        let of = |key: &str| nodes[at].value("vms/web/stats", key);
        assert_eq!(of("running").as_deref(), Some("yes"));
        assert_eq!(of("pid"), nodes[other].value("vms/web/status", "pid"));
        assert!(of("cpu-time").unwrap().trim_end_matches('s').parse::<f64>().unwrap() > 0.1, "{:?}", of("cpu-time"));
        assert!(number(of("memory-resident")) > 16 << 20, "{:?}", of("memory-resident"));
        assert!(number(of("net-sent-packets")) > 0, "{}", nodes[at].read("vms/web/stats"));
        assert_eq!(of("disk-written").as_deref(), Some("0"), "it has no disk");
        let of = |key: &str| nodes[at].value(&format!("nodes/{on}/stats"), key);
        assert_eq!(of("machines").as_deref(), Some("1"));
        assert!(number(of("memory")) > number(of("memory-available")) && number(of("disk")) > number(of("disk-free")));
    }
    let elsewhere = NAMES[nodes[other].at];
    assert_eq!(nodes[owner].value(&format!("nodes/{elsewhere}/stats"), "machines").as_deref(), Some("0"));

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
    for path in ["vms/web/stats", &format!("nodes/{on}/stats")] {
        let error = nodes[other].try_read(path).unwrap_err();
        assert!(error.contains("Host is down"), "{path}: {error}");
    }
    nodes[owner].start(&[]);
    assert!(ready(&nodes[other].read("vms/web/log")));
    nodes[other].write(&format!("vms/{id}/ctl"), "kill\n").unwrap();
    assert_eq!(nodes[other].read(&format!("vms/{id}/wait")), "stopped\n");
    nodes.iter_mut().for_each(|node| node.signal(rustix::process::Signal::TERM));
    nodes.iter_mut().for_each(|node| drop(node.await_end()));
}

/// A node is emptied: its guest is stopped there and started on the other one, and nothing of it stays behind.
#[test]
fn a_drained_node_ends_up_empty() {
    let lab = Lab::new(2);
    let nodes = cluster_of("qemu", &lab, 2);
    let [alpha, beta] = &nodes[..] else { panic!() };
    let id = alpha.new_object("vms/new", "name=web image=tiny memory=128M node=beta grace=20s").unwrap();
    alpha.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(alpha.read(&format!("vms/{id}/wait")), "running\n");
    assert_eq!(alpha.value("vms/web/status", "node").unwrap(), "beta");
    assert_eq!(alpha.value("vms/web/status", "why").unwrap(), "it asks for node=beta");
    until("the guest", || alpha.value("vms/web/status", "guest").is_some_and(|guest| guest == "ready"));
    alpha.write("nodes/beta/ctl", "drain\n").unwrap();
    until("why it stays", || alpha.value("nodes/beta/status", "stays").is_some_and(|why| why.contains("node=beta")));
    assert_eq!(alpha.value("vms/web/status", "state").unwrap(), "running", "nobody is stopped who has nowhere to go");
    alpha.write("vms/web/ctl", "set node=\n").unwrap();
    until("the move", || alpha.value("vms/web/status", "node").is_some_and(|node| node == "alpha"));
    assert_eq!(beta.read(&format!("vms/{id}/wait")), "running\n");
    until("the drain", || alpha.value("nodes/beta/status", "schedule").is_some_and(|schedule| schedule == "drained"));
    assert_eq!(alpha.value("nodes/beta/status", "vms").unwrap(), "0");
    until("its folder", || !beta.data().join("vms").join(&id).exists());
    until("the guest, once more", || beta.value("vms/web/status", "guest").is_some_and(|guest| guest == "ready"));
    assert!(beta.read("vms/web/log").contains("blixard: ready"), "asked of alpha now");
    beta.write("vms/web/ctl", "kill\n").unwrap();
    assert_eq!(beta.read(&format!("vms/{id}/wait")), "stopped\n");
}

/// The command lines of processes that name this folder.
fn processes_of(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read_to_string(entry.path().join("cmdline")).ok());
    lines.filter(|line| line.contains(folder.to_str().unwrap())).collect()
}

/// The lines of README.md that a reader types, with this lab's folders in the place of the machine's.
#[test]
fn what_the_readme_shows() {
    let lab = Lab::new(3);
    let nodes = cluster_of("qemu", &lab, 3);
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, part) = readme.split_once("In another shell (the tests type these lines):\n").unwrap();
    let typed: Vec<&str> = part.split("\n## ").next().unwrap().lines().filter_map(|l| l.strip_prefix("    ")).collect();
    assert!(typed.len() >= 8, "{typed:?}");
    let (mounts, pids) = (lab.folder().join("n"), lab.folder().join("pids"));
    [&mounts, &pids].iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
    for node in &nodes {
        let name = NAMES[node.at];
        std::os::unix::fs::symlink(lab.folder().join(name).join("n"), mounts.join(name)).unwrap();
        std::fs::write(pids.join(format!("{name}.pid")), node.pid().to_string()).unwrap();
    }
    let script = typed.join("\n").replace("/n/", &format!("{}/", mounts.display()));
    let script = script.replace("/var/lib/blixard-lab/", &format!("{}/", pids.display()));
    let output = Command::new("bash").args(["-euc", &script]).stdin(Stdio::null()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{said}");
    assert!(
        said.contains("gamma  3   up     open      voter") && said.contains("running\n") && said.contains("quorum yes"),
        "{said}"
    );
    let [alpha, beta, _] = &nodes[..] else { panic!() };
    assert_eq!(beta.value("vms/web/status", "cpus").unwrap(), "2");
    assert_ne!(beta.value("vms/web/status", "node").unwrap(), "alpha");
    // The one that ran before was ended on its node, though nobody was there any more to do it.
    assert_eq!(processes_of(&alpha.data().join("vms")), Vec::<String>::new());
    let mut alpha_again = alpha.again();
    alpha_again.start(&[]);
    until("that what it had is gone", || !alpha.data().join("vms").join("1").exists());
    beta.write("vms/web/ctl", "kill\n").unwrap();
    assert_eq!(beta.read("vms/web/wait"), "stopped\n");
}
