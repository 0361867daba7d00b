//! Machines die and are cut off: nothing that was acknowledged is lost, nothing happens twice, and who can't know says so.

use crate::lab::{Lab, NAMES, Node, await_same, cluster, leader, until};
use rustix::process::Signal;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// What clients have been told.
#[derive(Default)]
struct Record {
    acknowledged: BTreeSet<String>,
    unknown: BTreeSet<String>,
}

/// Makes users named after the client and a number, through one node, until told to stop.
fn write_users(node: &Node, client: &str, count: usize, stop: &AtomicBool) -> Record {
    let mut record = Record::default();
    for n in 0..count {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{client}-{n}");
        match node.write("users/new", &format!("name={name}\n")) {
            Ok(()) => drop(record.acknowledged.insert(name)),
            // Nothing was done, says EAGAIN; of everything else, that is not known.
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::AGAIN.raw_os_error()) => {
                std::thread::sleep(Duration::from_millis(20));
            }
            Err(_) => {
                record.unknown.insert(name);
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
    record
}

/// Each acknowledged one is there, on every node, and made once; what is there was acknowledged, or is one of the unknown.
fn check_users(nodes: &[Node], records: &[Record]) {
    await_same(nodes);
    let acknowledged: BTreeSet<&String> = records.iter().flat_map(|r| &r.acknowledged).collect();
    let unknown: BTreeSet<&String> = records.iter().flat_map(|r| &r.unknown).collect();
    for node in nodes {
        let list = node.read("users/list");
        let there: Vec<String> = list
            .lines()
            .skip(1)
            .filter_map(|l| l.split_whitespace().next())
            .filter(|n| n.contains('-'))
            .map(str::to_owned)
            .collect();
        let once: BTreeSet<&String> = there.iter().collect();
        assert_eq!(once.len(), there.len(), "{}: made twice", NAMES[node.at]);
        let lost: Vec<_> = acknowledged.difference(&once).collect();
        assert!(lost.is_empty(), "{}: lost {lost:?}", NAMES[node.at]);
        let odd: Vec<_> = once.iter().filter(|n| !acknowledged.contains(*n) && !unknown.contains(*n)).collect();
        assert!(odd.is_empty(), "{}: refused, and made all the same: {odd:?}", NAMES[node.at]);
    }
}

#[test]
fn whoever_leads_may_be_killed() {
    let lab = Lab::new(3);
    let mut nodes = cluster(&lab, 3);
    let mut record = Record::default();
    for round in 0..4 {
        let leads = leader(&nodes);
        let through = (leads + 1 + round % 2) % 3;
        nodes[leads].kill();
        let wrote = write_users(&nodes[through], &format!("r{round}"), 20, &AtomicBool::new(false));
        assert!(wrote.acknowledged.len() >= 15, "round {round}: {} acknowledged", wrote.acknowledged.len());
        record.acknowledged.extend(wrote.acknowledged);
        record.unknown.extend(wrote.unknown);
        nodes[leads].start(&[]);
    }
    check_users(&nodes, &[record]);
}

#[test]
fn who_is_cut_off_says_so_and_goes_on_reading() {
    let lab = Lab::new(3);
    let nodes = cluster(&lab, 3);
    nodes[0].new_object("vms/new", "name=seen image=tiny").unwrap();
    await_same(&nodes);
    let alone = leader(&nodes);
    let others = [(alone + 1) % 3, (alone + 2) % 3];
    lab.cut_off(&[alone]);
    until("that it notices", || nodes[alone].value("status", "quorum").unwrap() == "no");
    assert_eq!(nodes[alone].value("vms/seen/status", "state").unwrap(), "defined", "reads go on");
    let begun = Instant::now();
    let refused = nodes[alone].write("users/new", "name=minority\n").unwrap_err();
    let errno = refused.raw_os_error();
    let expected = [rustix::io::Errno::AGAIN, rustix::io::Errno::TIMEDOUT].map(|e| Some(e.raw_os_error()));
    assert!(expected.contains(&errno), "{refused}");
    assert!(nodes[alone].try_read("sync").is_err(), "it can't know");
    assert!(begun.elapsed() < crate::lab::PATIENCE, "in bounded time");
    until("another leader", || nodes[others[0]].write("users/new", "name=majority\n").is_ok());
    assert_eq!(nodes[others[1]].value("status", "quorum").unwrap(), "yes");
    lab.carry_all();
    until("that it is back", || {
        nodes[alone].value("status", "quorum").unwrap() == "yes" && nodes[alone].try_read("sync").is_ok()
    });
    assert!(nodes[alone].read("users/list").contains("majority"));
    await_same(&nodes);
}

#[test]
fn a_line_that_works_one_way_only_stops_nobody_else() {
    let lab = Lab::new(3);
    let nodes = cluster(&lab, 3);
    let leads = leader(&nodes);
    let (deaf, other) = ((leads + 1) % 3, (leads + 2) % 3);
    let mut records = Vec::new();
    for pair in [(leads, deaf), (deaf, leads)] {
        lab.drop_from_to(&[pair]);
        let wrote = write_users(&nodes[other], &format!("w{}{}", pair.0, pair.1), 10, &AtomicBool::new(false));
        assert!(!wrote.acknowledged.is_empty());
        lab.carry_all();
        until("that all are back", || nodes.iter().all(|node| node.try_read("sync").is_ok()));
        records.push(wrote);
        check_users(&nodes, &records);
    }
}

#[test]
fn who_stood_still_catches_up() {
    let lab = Lab::new(3);
    let nodes = cluster(&lab, 3);
    let leads = leader(&nodes);
    let other = (leads + 1) % 3;
    nodes[leads].signal(Signal::STOP);
    until("another leader", || nodes[other].write("users/new", "name=meanwhile\n").is_ok());
    let wrote = write_users(&nodes[other], "s", 50, &AtomicBool::new(false));
    nodes[leads].signal(Signal::CONT);
    until("that it is back", || nodes[leads].try_read("sync").is_ok());
    assert!(nodes[leads].read("users/list").contains("meanwhile"));
    check_users(&nodes, &[wrote]);
}

/// The long form: a thousand acknowledged writes while machines die and lines break, at random.
mod slow {
    use super::*;

    #[test]
    fn a_thousand_acknowledged_writes_under_random_faults() {
        let lab = Lab::new(3);
        let mut nodes = cluster(&lab, 3);
        let mut random = u64::from(std::process::id()) | 1;
        let mut below = move |most: u64| {
            // xorshift64 (Marsaglia 2003).
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % most
        };
        let mut records = Vec::new();
        let mut acknowledged = 0;
        for round in 0.. {
            let victim = usize::try_from(below(3)).unwrap();
            let fault = below(5);
            match fault {
                0 => nodes[victim].kill(),
                1 => lab.cut_off(&[victim]),
                2 => lab.drop_from_to(&[(victim, (victim + 1) % 3)]),
                3 => nodes[victim].signal(Signal::STOP),
                _ => {}
            }
            let stop = AtomicBool::new(false);
            let writers: Vec<usize> = (0..3).filter(|at| *at != victim).collect();
            std::thread::scope(|scope| {
                let all: Vec<_> = writers
                    .iter()
                    .map(|at| {
                        let (node, stop) = (&nodes[*at], &stop);
                        scope.spawn(move || {
                            let record = write_users(node, &format!("t{round}x{at}"), 60, stop);
                            // Whoever is cut off would wait for each of them.
                            stop.store(true, Ordering::Relaxed);
                            record
                        })
                    })
                    .collect();
                for writer in all {
                    let record = writer.join().unwrap();
                    acknowledged += record.acknowledged.len();
                    records.push(record);
                }
            });
            match fault {
                0 => nodes[victim].start(&[]),
                3 => nodes[victim].signal(Signal::CONT),
                _ => lab.carry_all(),
            }
            until("that all are back", || nodes.iter().all(|node| node.try_read("sync").is_ok()));
            if acknowledged >= 1_000 {
                break;
            }
            assert!(round < 60, "{acknowledged} acknowledged after {round} rounds");
        }
        check_users(&nodes, &records);
    }
}
