//! A node that was away for longer than the log is kept comes back by itself, with what the others have.

use crate::lab::{Lab, NAMES, Node, await_same, await_voters, cluster_with, leader, until};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Three voters that keep so many commits.
fn cluster_that_keeps(lab: &Lab, commits: u64) -> Vec<Node> {
    cluster_with(&format!("[limits]\nlog_keep = {commits}\n"), "simulated", lab, 3)
}

/// Writes through these nodes, one write at a time on each, for so long and so many times in all: how many were acknowledged.
fn write_through(nodes: &[&Node], least: Duration, commits: u64) -> u64 {
    let (begun, acknowledged, stop) = (Instant::now(), AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for node in nodes {
            scope.spawn(|| {
                let path = format!("vms/of-{}/ctl", NAMES[node.at]);
                node.new_object("vms/new", &format!("name=of-{} image=tiny", NAMES[node.at])).unwrap();
                for n in 0_u64.. {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    // Each changes something.
                    let written = node.write(&path, &format!("set cpus={}\n", 1 + n % 2));
                    acknowledged.fetch_add(u64::from(written.is_ok()), Ordering::Relaxed);
                }
            });
        }
        while begun.elapsed() < least || acknowledged.load(Ordering::Relaxed) < commits {
            assert!(begun.elapsed() < 3 * least + Duration::from_secs(120), "too few commits: {acknowledged:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    acknowledged.into_inner()
}

/// A follower ends, the others go on, and it is started again.
fn away(keep: u64, least: Duration, commits: u64) {
    let lab = Lab::new(3);
    let mut nodes = cluster_that_keeps(&lab, keep);
    let follower = (leader(&nodes) + 1) % 3;
    let status = format!("nodes/{}/status", NAMES[follower]);
    let raft_was = nodes[follower].value(&status, "raft-id").unwrap();
    nodes[follower].kill();
    let others: Vec<&Node> = nodes.iter().filter(|node| node.at != follower).collect();
    let acknowledged = write_through(&others, least, commits);
    let begun = Instant::now();
    nodes[follower].start(&[]);
    until("that it is back", || nodes[follower].try_read("sync").is_ok());
    await_same(&nodes);
    await_voters(&nodes, 3);
    let took = begun.elapsed();
    // What it needed was not in the log any more.
    let raft = nodes[follower].value(&status, "raft-id").unwrap();
    println!("{acknowledged} commits meanwhile; back after {took:?}, as {raft} instead of {raft_was}");
    assert_ne!(raft, raft_was, "the log had everything: nothing was tested");
    assert!(nodes[follower].write("users/new", "name=after\n").is_ok(), "it takes part");
    await_same(&nodes);
}

#[test]
fn who_needs_what_the_log_has_no_more_begins_anew() {
    away(1_000, Duration::ZERO, 4_000);
}

/// The long form, with what is kept unless it is said: ten minutes.
mod soak {
    use super::*;

    #[test]
    fn five_minutes_under_load() {
        away(100_000, Duration::from_secs(300), 125_000);
    }
}
