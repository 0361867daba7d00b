//! `/nodes`: the machines of the cluster.

use super::table::{Asked, Content, File, Kind, Object};
use super::verbs::{Act, Attributes, Verb};
use super::{events, invitations, node_text, stats};
use crate::engine::state::constraints::parse_labels;
use crate::engine::state::{Command, Kind as Entity, Node, NodeChanges, NodeId, NodeVerb, Operation};
use crate::text::{Code, Refusal, columns::Table, duration, kv::KeyValues, percent, size, time::rfc3339, trace_level};

static FILES: &[File] = &[
    File { number: 1, name: "list", content: Content::Live(list), help: "one line a node" },
    File {
        number: 2,
        name: "new",
        content: Content::Stream(invitations::open, Some(Operation::Administer)),
        help: "write an invitation, read the token with which one machine joins",
    },
];

static OBJECT_FILES: &[File] = &[
    File { number: 1, name: "ctl", content: Content::Ctl(VERBS), help: "verbs; reading it shows them" },
    File {
        number: 2,
        name: "status",
        content: Content::Live(status),
        help: "key value lines: what the host can do, what is missing, the tasks",
    },
    File {
        number: 3,
        name: "events",
        content: Content::Stream(events::of_node, Some(Operation::Read)),
        help: "live: one line an event of the node",
    },
    File { number: 4, name: "sessions", content: Content::Live(sessions), help: "who is connected to it over 9P" },
    File {
        number: 5,
        name: "work",
        content: Content::Private(super::work::open, true),
        help: "the log as it goes on, for a node that is no part of Raft: one line a record",
    },
    File {
        number: 6,
        name: "spec",
        content: Content::Text(node_text::spec),
        help: "what was set: labels and ratios, as `set` takes it",
    },
    File {
        number: 7,
        name: "json",
        content: Content::Live(node_text::json),
        help: "what all nodes know of it as a JSON object",
    },
    File {
        number: 8,
        name: "stats",
        content: Content::Stream(stats::of_node, None),
        help: "how busy its host is: load, memory, disk",
    },
];

pub(super) static KIND: Kind = Kind {
    number: 2,
    name: "nodes",
    files: FILES,
    object_files: OBJECT_FILES,
    numbered: false,
    find: |state, name| state.node_named(name).map(|n| n.id.0),
    object: |state, id| {
        let node = state.node(NodeId(id))?;
        Some(Object {
            name: Some(node.name.clone()),
            owner: None,
            changed: node.changed,
            changed_seq: node.changed_seq,
        })
    },
    after: |state, after| {
        let nodes = state.nodes().map(|node| (node.id.0, Some(node.name.as_str())));
        Box::new(nodes.filter(move |(id, _)| *id > after))
    },
    linked_after: |_, _| Box::new(std::iter::empty()),
    entity: Entity::Node,
    delete: |_, _| None,
};

/// A verb that is a command for the log.
macro_rules! verb {
    ($name:literal, $verb:expr, $help:literal) => {
        Verb {
            name: $name,
            attributes: &["version", "id"],
            help: $help,
            act: Act::Command(|asked, attributes| {
                let (node, conditions) = (NodeId(asked.object), attributes.conditions()?);
                Ok(Command::Node { node, verb: $verb, conditions })
            }),
        }
    };
}

static VERBS: &[Verb] = &[
    verb!("promote", NodeVerb::Promote, "it is to vote"),
    verb!("demote", NodeVerb::Demote, "it is to have the log, and no vote"),
    verb!("cordon", NodeVerb::Cordon, "it takes no more VMs; those that are there stay"),
    verb!("drain", NodeVerb::Drain, "it takes no more VMs, and those that are there are moved away, one at a time"),
    verb!("undrain", NodeVerb::Undrain, "it takes VMs again; ends a cordon and a drain"),
    verb!("leave", NodeVerb::Leave, "drain it, and then it is no member any more"),
    verb!("remove", NodeVerb::Remove, "it is no member any more; refused while VMs are placed there"),
    verb!(
        "forget",
        NodeVerb::Forget,
        "remove it though VMs are there: the machine is gone for good, and its disks with it"
    ),
    Verb {
        name: "set",
        attributes: &["labels", "memory-ratio", "cpu-ratio", "disk-ratio", "version", "id"],
        help: "labels=ssd,rack:3; how much of what it has is promised: memory-ratio=150% cpu-ratio=400% disk-ratio=200%",
        act: Act::Command(set),
    },
    Verb {
        name: "trace",
        attributes: &["level"],
        help: "how much is traced: level=info, level=debug, level=blixard::fs=debug",
        act: TRACE,
    },
];

fn set(asked: &Asked<'_>, attributes: &Attributes<'_>) -> Result<Command, Refusal> {
    let changes = NodeChanges {
        labels: attributes.parsed("labels", parse_labels)?,
        memory_percent: attributes.parsed("memory-ratio", percent::parse)?,
        cpus_percent: attributes.parsed("cpu-ratio", percent::parse)?,
        disk_percent: attributes.parsed("disk-ratio", percent::parse)?,
    };
    if changes == NodeChanges::default() {
        return Err(Refusal::invalid("invalid set: there is no attribute to change; reading ctl shows which can be"));
    }
    Ok(Command::NodeSet { node: NodeId(asked.object), changes, conditions: attributes.conditions()? })
}

const TRACE: Act = Act::Local(|asked, attributes| {
    if asked.object != asked.server.node().0 {
        let sentence = "another node's trace is changed there: write this to its own tree";
        return Err(Refusal::new(Code::HostDown, sentence));
    }
    let missing = || Refusal::invalid("invalid trace: level= is missing, as in trace level=debug");
    let level = attributes.text("level").ok_or_else(missing)?.to_owned();
    trace_level::check(&level)?;
    let server = asked.server.clone();
    Ok(Box::new(move || server.host().set_trace_level(&level)))
});

pub(super) fn node<'a>(asked: &'a Asked<'_>) -> Result<&'a Node, Refusal> {
    asked.state.node(NodeId(asked.object)).ok_or_else(super::tree::gone)
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let node = node(asked)?;
    let promised = asked.state.promised(node.id);
    let mut text = KeyValues::new()
        .line("id", node.id)
        .line("name", &node.name)
        .line("state", state_of(node))
        .line("version", node.version)
        .line("role", node.role)
        .line("raft-id", node.raft.0)
        .maybe("address", Some(&node.address).filter(|address| !address.is_empty()))
        .maybe("release", Some(&node.release).filter(|release| !release.is_empty()))
        .line("entry-format", node.entry_format)
        .line("lease", lease_of(node))
        .line("schedule", node.schedule)
        .line("vms", asked.state.count_on(node.id))
        .maybe("moving", node.moving.map(|vm| format!("vms/{vm}")))
        .maybe("labels", Some(node.labels.join(",")).filter(|labels| !labels.is_empty()))
        .maybe("arch", Some(&node.arch).filter(|arch| !arch.is_empty()))
        .line("memory", size::print(node.memory_bytes))
        .line("memory-ratio", percent::print(node.ratios.memory_percent))
        .line("memory-promised", size::print(promised.bytes))
        .line("cpus", node.cpus)
        .maybe("cpu-ratio", node.ratios.cpus_percent.map(percent::print))
        .line("vcpus-promised", promised.cpus)
        .maybe("vcpus-max", node.vcpus_max)
        .maybe("disk", Some(node.disk_bytes).filter(|bytes| *bytes > 0).map(size::print))
        .line("disk-ratio", percent::print(node.ratios.disk_percent))
        .line("disk-promised", size::print(promised.disk_bytes))
        .line("changed", rfc3339(node.changed.millis()));
    for (vm, why) in asked.state.stays(node) {
        text = text.line("stays", format!("vms/{vm}: {why}"));
    }
    if node.id == asked.server.node() {
        let health = asked.server.engine().health();
        text = text
            .line("raft-role", health.role)
            .line("raft-term", health.term)
            .line("raft-lag", health.lag)
            .line("quorum", if health.quorum { "yes" } else { "no" })
            .maybe("disk-full", asked.server.engine().full());
        for (key, value) in asked.server.host().status() {
            text = text.line(&key, value);
        }
    }
    Ok(text.print())
}

/// What it is, as far as anybody knows: up, down after a clean end, or lost.
pub(super) fn state_of(node: &Node) -> &'static str {
    match (node.lease.expired, node.up) {
        (true, _) => "lost",
        (false, true) => "up",
        (false, false) => "down",
    }
}

fn lease_of(node: &Node) -> String {
    match node.lease.counter {
        0 => "none".to_owned(),
        _ if node.lease.expired => "expired".to_owned(),
        _ => duration::print(node.lease.length_ms),
    }
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table =
        Table::new(&["name", "id", "state", "schedule", "role", "vms", "hypervisor", "memory", "promised", "cpus"]);
    for node in asked.state.nodes() {
        table.row([
            node.name.clone(),
            node.id.to_string(),
            state_of(node).to_owned(),
            node.schedule.to_string(),
            node.role.to_string(),
            asked.state.count_on(node.id).to_string(),
            node.hypervisor.clone(),
            size::print(node.memory_bytes),
            size::print(asked.state.promised(node.id).bytes),
            node.cpus.to_string(),
        ]);
    }
    Ok(table.print())
}

/// Each node knows its own.
fn sessions(asked: &Asked<'_>) -> Result<String, Refusal> {
    let node = node(asked)?;
    if node.id != asked.server.node() {
        let sentence = format!("node '{}' alone knows who is connected to it; ask there", node.name);
        return Err(Refusal::new(Code::HostDown, sentence));
    }
    let mut table = Table::new(&[
        "id",
        "user",
        "how",
        "from",
        "dialect",
        "msize",
        "fids",
        "waiting",
        "requests",
        "rate",
        "bytes-in",
        "bytes-out",
        "since",
    ]);
    for session in asked.server.sessions().all() {
        let (who, seen) = (&session.who, session.seen());
        table.row([
            session.id.to_string(),
            who.user.clone(),
            who.recognised_by.replace([' ', ','], "-"),
            who.from.clone(),
            seen.dialect.unwrap_or_default().to_owned(),
            seen.msize.to_string(),
            seen.fids.to_string(),
            seen.waiting.to_string(),
            seen.requests.to_string(),
            format!("{}/s", seen.requests_a_second),
            seen.bytes_in.to_string(),
            seen.bytes_out.to_string(),
            rfc3339(session.since_ms),
        ]);
    }
    Ok(table.print())
}
