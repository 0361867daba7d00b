//! What clients wish for when they place: words for `vms/new`, for a machine's `set`, and for a node's. Few labels and few groups, so that
//! they meet.

use crate::random::Random;

const LABELS: &[&str] = &["ssd", "rack:1", "gpu"];
const GROUPS: &[&str] = &["web", "db"];

fn of<'a>(all: &[&'a str], random: &mut Random) -> &'a str {
    random.pick(all).copied().unwrap_or_default()
}

/// For a new machine; begins with a space if it is not empty.
pub fn of_new(random: &mut Random, nodes: &[String]) -> String {
    let mut text = String::new();
    let mut add = |word: String| text = format!("{text} {word}");
    if random.percent(20) {
        add(format!("labels={}", of(LABELS, random)));
    }
    if random.percent(5) {
        add(format!("node={}", random.pick(nodes).map(String::as_str).unwrap_or_default()));
    }
    match random.below(100) {
        0..30 => add(format!("anti-affinity={}", of(GROUPS, random))),
        30..45 => add(format!("affinity={}", of(GROUPS, random))),
        _ => {}
    }
    if random.percent(25) {
        add("place=pack".to_owned());
    }
    if random.percent(30) {
        add(format!("priority={}", random.below(10)));
    }
    text
}

/// Memory of a machine: three of the largest fill a host.
pub fn memory(random: &mut Random) -> &'static str {
    of_static(&["256M", "512M", "512M", "640M"], random)
}

fn of_static(all: &[&'static str], random: &mut Random) -> &'static str {
    random.pick(all).copied().unwrap_or_default()
}

/// `set` of a machine.
pub fn of_machine(random: &mut Random) -> String {
    match random.below(8) {
        0 => "set labels=".to_owned(),
        1 => format!("set labels={}", of(LABELS, random)),
        2 => "set anti-affinity=".to_owned(),
        3 => format!("set anti-affinity={}", of(GROUPS, random)),
        4 => format!("set affinity={}", of(&["", "web", "db"], random)),
        5 => format!("set memory={}", memory(random)),
        6 => format!("set priority={}", random.below(10)),
        _ => "set node=".to_owned(),
    }
}

/// `set` of a node.
pub fn of_node(random: &mut Random) -> String {
    if random.percent(30) {
        return format!("set memory-ratio={}", of(&["60%", "100%", "150%"], random));
    }
    let labels: Vec<&str> = LABELS.iter().copied().filter(|_| random.percent(60)).collect();
    format!("set labels={}", labels.join(","))
}
