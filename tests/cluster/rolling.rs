//! A cluster of an older release is upgraded node by node while it is written to: what the older one can't read is refused until the last one is
//! replaced, and nothing is lost.

use crate::lab::{Lab, NAMES, Node, await_same, form, until};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

/// The program that stands for the older release: Cargo builds it with the tests.
fn older() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(|deps| deps.parent()).unwrap().join("examples/older");
    assert!(program.exists(), "{} is missing: cargo build --example older", program.display());
    program
}

/// Asks for what only the newer format has, on each node: nobody takes it while one can't read it.
fn is_refused(nodes: &[Node], old: &[&str]) {
    for node in nodes {
        let refused = node.write("nodes/alpha/ctl", "cordon\n").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(Errno::AGAIN.raw_os_error()), "{refused}");
        let err = node.read("err");
        let said = err.lines().last().unwrap();
        assert!(said.contains("can't read this command yet (format 5): upgrade it first"), "{said}");
        assert!(old.iter().any(|name| said.contains(&format!("node '{name}'"))), "{said} should name one of {old:?}");
    }
}

/// Makes users through a node until it is told to stop: those that were acknowledged.
fn write_users(node: &Node, client: &str, stop: &AtomicBool) -> Vec<String> {
    let mut acknowledged = Vec::new();
    for n in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{client}-{n}");
        if node.write("users/new", &format!("name={name}\n")).is_ok() {
            acknowledged.push(name);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    acknowledged
}

#[test]
fn node_by_node_and_nothing_is_lost() {
    let lab = Lab::new(3);
    let machine = |at| {
        let mut node = Node::new(&lab, at);
        node.program = older();
        node
    };
    let mut nodes = form((0..3).map(machine).collect());
    let formats = |nodes: &[Node]| -> Vec<String> {
        let of = |name: &&str| nodes[0].value(&format!("nodes/{name}/status"), "entry-format").unwrap();
        NAMES.iter().take(3).map(of).collect()
    };
    assert_eq!(formats(&nodes), ["4", "4", "4"]);
    let mut acknowledged = Vec::new();
    for at in 0..3 {
        is_refused(&nodes, &NAMES[at..3]);
        let (stop, name) = (AtomicBool::new(false), NAMES[at]);
        let (before, rest) = nodes.split_at_mut(at);
        let (replaced, after) = rest.split_first_mut().unwrap();
        std::thread::scope(|scope| {
            let others = before.iter().chain(after.iter());
            let writers: Vec<_> = others
                .map(|node| scope.spawn(|| write_users(node, &format!("to-{name}-by-{}", NAMES[node.at]), &stop)))
                .collect();
            replaced.stop();
            let down = |node: &Node| node.value(&format!("nodes/{name}/status"), "state").unwrap() == "down";
            let mut others = before.iter().chain(after.iter());
            until("that it has said goodbye", || others.clone().all(down));
            assert!(
                others.next().is_some() && !replaced.trace_text().contains("was not told that this node goes down")
            );
            replaced.program = env!("CARGO_BIN_EXE_blixard").into();
            replaced.start(&[]);
            until("that it is back", || replaced.try_read("sync").is_ok());
            stop.store(true, Ordering::Relaxed);
            acknowledged.extend(writers.into_iter().flat_map(|writer| writer.join().unwrap()));
        });
        await_same(&nodes);
    }
    assert_eq!(formats(&nodes), ["5", "5", "5"]);
    assert!(acknowledged.len() > 30, "{}", acknowledged.len());
    nodes[1].write("nodes/alpha/ctl", "cordon\n").unwrap();
    await_same(&nodes);
    for node in &nodes {
        assert_eq!(node.value("nodes/alpha/status", "schedule").unwrap(), "cordoned");
        let list = node.read("users/list");
        let lost: Vec<_> = acknowledged.iter().filter(|name| !list.contains(&format!("\n{name} "))).collect();
        assert!(lost.is_empty(), "{}: lost {lost:?}", NAMES[node.at]);
    }
}
