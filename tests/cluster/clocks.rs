//! Machines whose clocks are wrong, by minutes and by hours, and are set while they run: no lease depends on the time of day, nothing is
//! lost, and whoever is off says so.

use crate::lab::{Lab, NAMES, Node, await_same, await_voters, until};

/// Leases that are over soon.
const SHORT: &str = "[lease]\nlength = \"2s\"\ndrift = \"20%\"\ngrace = \"1s\"\n";
const MINUTE: i64 = 60;
const HOUR: i64 = 60 * MINUTE;

/// Sets the time of day of a machine: so many seconds from the right one.
fn set(node: &mut Node, seconds: i64) {
    let file = node.data().with_file_name("clock");
    // Put in its place in one step: it is read at any time.
    std::fs::write(file.with_extension("new"), format!("{seconds:+}\n")).unwrap();
    std::fs::rename(file.with_extension("new"), &file).unwrap();
    node.clocks.day = Some(file);
}

fn machine(lab: &Lab, at: usize, seconds: i64) -> Node {
    let mut node = Node::new(lab, at);
    let config = lab.folder().join("config.toml");
    std::fs::write(&config, SHORT).unwrap();
    node.flags = vec!["--config".to_owned(), config.to_str().unwrap().to_owned()];
    set(&mut node, seconds);
    node
}

/// How far a node says that its clock is from the leader's, in seconds; None: it leads, or has not asked yet.
fn offset(node: &Node) -> Option<f64> {
    let text = node.value(&format!("nodes/{}/status", NAMES[node.at]), "clock-offset")?;
    let (offset, error) = text.split_once(" within ").unwrap();
    let [offset, error] = [offset, error].map(|text| text.trim_end_matches('s').parse::<f64>().unwrap());
    assert!(error > 0.0 && error < 5.0, "{text}");
    Some(offset)
}

/// What they say fits the clocks that they have.
fn await_offsets(nodes: &[Node], seconds: &[i64]) {
    until("what they say of their clocks", || {
        let said: Vec<Option<f64>> = nodes.iter().map(offset).collect();
        let leaders: Vec<usize> = (0..nodes.len()).filter(|at| said[*at].is_none()).collect();
        let [leads] = leaders[..] else { return false };
        said.iter().zip(seconds).all(|(said, own)| {
            let right = (own - seconds[leads]) as f64;
            said.is_none_or(|said| (said - right).abs() < 10.0)
        })
    });
    for node in nodes.iter().filter(|node| offset(node).is_some_and(|offset| offset.abs() > 10.0)) {
        let warning = node.value(&format!("nodes/{}/status", NAMES[node.at]), "warning").unwrap_or_default();
        assert!(warning.contains("this machine's clock is") && warning.contains("set it right"), "{warning}");
    }
}

/// Everybody writes, and for some leases nobody takes anybody for lost.
fn all_is_well(nodes: &[Node], round: &str) {
    for node in nodes {
        for n in 0..5 {
            node.write("users/new", &format!("name={round}-{}-{n}\n", NAMES[node.at])).unwrap();
        }
    }
    // Longer than a lease is waited for.
    std::thread::sleep(std::time::Duration::from_secs(4));
    await_same(nodes);
    for node in nodes {
        for name in NAMES.iter().take(nodes.len()) {
            let status = node.read(&format!("nodes/{name}/status"));
            assert!(status.contains("\nstate up") && !status.contains("expired"), "{status}");
        }
        assert_eq!(node.read("users/list").matches(&format!("{round}-")).count(), 5 * nodes.len());
    }
    let log = nodes[0].read("log");
    assert!(!log.contains("lease expire"), "{log}");
}

#[test]
fn no_lease_and_no_write_depends_on_the_time_of_day() {
    let lab = Lab::new(4);
    let mut clocks = [0, 5 * HOUR, -40 * MINUTE];
    let mut nodes: Vec<Node> = clocks.iter().enumerate().map(|(at, seconds)| machine(&lab, at, *seconds)).collect();
    // What leases are counted by is another one on each machine, too.
    nodes[1].clocks.boot = Some(1_000_000);
    nodes[2].clocks.boot = Some(50_000);
    nodes[0].found();
    for at in 1..3 {
        let (before, rest) = nodes.split_at_mut(at);
        rest[0].join(&before[at - 1]);
    }
    await_voters(&nodes, 3);
    await_offsets(&nodes, &clocks);
    let id = nodes[1].new_object("vms/new", "name=web image=tiny ha=restart").unwrap();
    nodes[2].read("sync");
    nodes[2].write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    assert_eq!(nodes[2].read(&format!("vms/{id}/wait")), "running\n");
    all_is_well(&nodes, "first");

    // They are set, forwards and back.
    clocks = [-MINUTE, -30 * MINUTE, 9 * 24 * HOUR];
    nodes.iter_mut().zip(clocks).for_each(|(node, seconds)| set(node, seconds));
    await_offsets(&nodes, &clocks);
    all_is_well(&nodes, "second");
    assert_eq!(nodes[0].value("vms/web/status", "generation").unwrap(), "1", "it ran on");

    // A machine before the time of the certificates that it gets is told so, and is no half of a node.
    let mut delta = machine(&lab, 3, -3 * HOUR);
    let (token, address) = (nodes[0].token("voter"), delta.address());
    let arguments = ["--name", NAMES[3], "--join", &token, "--advertise", &address];
    let said = delta.refused(&arguments);
    assert!(said.contains("by this machine's clock it is"), "{said}");
    set(&mut delta, 2 * MINUTE);
    delta.start(&arguments);
    nodes.push(delta);
    await_voters(&nodes, 4);
    await_same(&nodes);
}
