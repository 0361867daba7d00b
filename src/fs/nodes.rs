//! `/nodes`: the machines of the cluster.

use super::events;
use super::table::{Asked, Content, File, Kind, Object};
use super::verbs::{Act, Verb};
use crate::engine::state::{Kind as Entity, Node, NodeId, Operation};
use crate::text::{Code, Refusal, columns::Table, kv::KeyValues, size, time::rfc3339, trace_level};

static FILES: &[File] = &[File { number: 1, name: "list", content: Content::Live(list), help: "one line a node" }];

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

static VERBS: &[Verb] = &[Verb {
    name: "trace",
    attributes: &["level"],
    help: "how much is traced: level=info, level=debug, level=blixard::fs=debug",
    act: Act::Local(|asked, attributes| {
        let missing = || Refusal::invalid("invalid trace: level= is missing, as in trace level=debug");
        let level = attributes.text("level").ok_or_else(missing)?.to_owned();
        trace_level::check(&level)?;
        let server = asked.server.clone();
        Ok(Box::new(move || server.host().set_trace_level(&level)))
    }),
}];

fn node<'a>(asked: &'a Asked<'_>) -> Result<&'a Node, Refusal> {
    asked.state.node(NodeId(asked.object)).ok_or_else(super::tree::gone)
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let node = node(asked)?;
    let mut text = KeyValues::new()
        .line("id", node.id)
        .line("name", &node.name)
        .line("state", if node.up { "up" } else { "down" })
        .line("version", node.version)
        .line("memory", size::print(node.memory_bytes))
        .line("memory-promised", size::print(asked.state.promised(node.id).bytes))
        .line("cpus", node.cpus)
        .line("vcpus-promised", asked.state.promised(node.id).cpus)
        .maybe("vcpus-max", node.vcpus_max)
        .line("changed", rfc3339(node.changed.millis()));
    if node.id == asked.server.node() {
        for (key, value) in asked.server.host().status() {
            text = text.line(&key, value);
        }
    }
    Ok(text.print())
}

fn list(asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut table = Table::new(&["name", "id", "state", "hypervisor", "memory", "promised", "cpus"]);
    for node in asked.state.nodes() {
        table.row([
            node.name.clone(),
            node.id.to_string(),
            if node.up { "up" } else { "down" }.to_owned(),
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
