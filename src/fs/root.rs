//! `/`: the cluster's own files, and the directories of the kinds.

use super::table::{Asked, Content, File, Kind};
use super::verbs::{Act, Attributes, Deed, Verb};
use super::{events, streams};
use crate::engine::log::Role;
use crate::engine::state::{Actual, ENTRY_FORMAT, Operation, RaftId, STATE_FORMAT};
use crate::text::{Refusal, kv::KeyValues, time::rfc3339};

/// The directories, in the order in which they are listed.
pub(super) static KINDS: &[&Kind] =
    &[&super::vms::KIND, &super::nodes::KIND, &super::ipam::KIND, &super::images::KIND, &super::users::KIND];

pub(super) static FILES: &[File] = &[
    File { number: 1, name: "README", content: Content::Live(readme), help: "how to use this tree" },
    File { number: 2, name: "version", content: Content::Live(version), help: "blixard's version" },
    File { number: 3, name: "status", content: Content::Live(status), help: "the cluster in a few lines" },
    File {
        number: 4,
        name: "events",
        content: Content::Stream(events::of_all, Some(Operation::Read)),
        help: "live: one line an event, from now on",
    },
    File {
        number: 5,
        name: "log",
        content: Content::Stream(events::log, Some(Operation::Read)),
        help: "the audit trail: every command, accepted or refused",
    },
    File {
        number: 6,
        name: "err",
        content: Content::Live(err),
        help: "your last errors, newest last, in whole sentences",
    },
    File {
        number: 7,
        name: "sync",
        content: Content::Stream(streams::sync, None),
        help: "a barrier: gives the number up to which this tree is now current",
    },
    File { number: 8, name: "clock", content: Content::Live(clock), help: "the hybrid logical clock" },
    File { number: 9, name: "me", content: Content::Live(me), help: "who the server takes you for" },
    File {
        number: 10,
        name: "backup",
        content: Content::Private(super::backup::open, false),
        help: "read it to get a consistent backup of the whole state",
    },
    File { number: 11, name: "ctl", content: Content::Ctl(VERBS), help: "cluster verbs; read it for them" },
];

/// What can be done to the cluster as a whole; the rest is done to its nodes and users.
static VERBS: &[Verb] = &[Verb {
    name: "snapshot",
    attributes: &[],
    help: "write a snapshot of the state into the log now, and cut the log behind the one before; on the node that leads",
    act: Act::Local(snapshot),
}];

fn snapshot(asked: &Asked<'_>, _attributes: &Attributes<'_>) -> Result<Deed, Refusal> {
    let engine = asked.server.engine().clone();
    let health = engine.health();
    if health.role != Role::Leader {
        let leads = health.leader.and_then(|raft| asked.state.node_of_raft(RaftId(raft)));
        let whose =
            leads.map_or("of the node that leads".to_owned(), |node| format!("of node '{}', which leads", node.name));
        return Err(Refusal::busy(format!("busy: this node does not write snapshots: write this to the ctl {whose}")));
    }
    Ok(Box::new(move || {
        engine.snapshot();
        Ok(())
    }))
}

/// What is said of two or four.
const EVEN_VOTERS: &str =
    "an even number of voters survives no more failures than one less: let one more in, or demote one";

fn readme(_asked: &Asked<'_>) -> Result<String, Refusal> {
    let mut text = String::from(
        "This tree is Blixard: what ls, cat and echo can't do, it can't do.\n\
         \n\
         id=$(blixard new vms name=web image=tiny cpus=1 memory=128M)     make a VM\n\
         exec 3<>vms/new; echo image=tiny >&3; read id <&3                the same by hand\n\
         echo start > vms/$id/ctl; cat vms/$id/wait                       start it; wait until it runs\n\
         cat vms/web/status; cat vms/web/log                              look at it\n\
         echo stop > vms/web/ctl; rmdir vms/$id                           stop it; delete it\n\
         tail -n 1 err                                                    why the last write was refused\n\
         \n\
         A ctl shows its verbs when it is read, and a `new` what it takes. Attributes are attr=value;\n\
         quotes for spaces: 'it''s'. All lines of one write take effect, or none. Names are links to numbers.\n\
         Any verb takes version=N (only if status shows that version) and id=KEY (only once).\n\n",
    );
    let mut section = |folder: &str, files: &[File]| {
        for file in files {
            text.push_str(&format!("{:<22} {}\n", format!("{folder}/{}", file.name), file.help));
        }
    };
    section("", FILES);
    for kind in KINDS {
        section(&format!("/{}", kind.name), kind.files);
        let object = if kind.numbered { "ID" } else { "NAME" };
        section(&format!("/{}/{object}", kind.name), kind.object_files);
    }
    Ok(text)
}

fn version(_asked: &Asked<'_>) -> Result<String, Refusal> {
    let version = KeyValues::new().line("blixard", env!("CARGO_PKG_VERSION"));
    Ok(version.line("entry-format", ENTRY_FORMAT).line("state-format", STATE_FORMAT).print())
}

fn status(asked: &Asked<'_>) -> Result<String, Refusal> {
    let state = asked.state;
    let count = |actual: Actual| state.vms().filter(|vm| vm.actual == actual).count();
    let up = state.nodes().filter(|n| n.is_there()).count();
    let health = asked.server.engine().health();
    let leader = health.leader.and_then(|raft| state.node_of_raft(RaftId(raft)));
    let voters = state.voters().count();
    let text = KeyValues::new()
        .line("cluster", state.cluster().unwrap_or("-"))
        .maybe("node", state.node(asked.server.node()).map(|n| n.name.as_str()))
        .line("seq", state.seq())
        .maybe("state-hash", asked.server.engine().digest_of(state.seq()))
        .line("time", rfc3339(state.now().millis()))
        .line("nodes", format!("{up} up of {}", state.nodes().len()))
        .line("voters", voters)
        .line("raft-voters", health.voters)
        .line("leader", leader.map_or("-", |node| node.name.as_str()))
        .line("quorum", if health.quorum { "yes" } else { "no" })
        .maybe("disk-full", asked.server.engine().full())
        .maybe("warning", (voters > 1 && voters.is_multiple_of(2)).then_some(EVEN_VOTERS))
        .line("vms", state.vms().len())
        .line("vms-running", count(Actual::Running))
        .line("vms-failed", count(Actual::Failed))
        .line("images", state.images().len());
    Ok(text.print())
}

fn err(asked: &Asked<'_>) -> Result<String, Refusal> {
    Ok(asked.server.errors_of(asked.who))
}

fn clock(asked: &Asked<'_>) -> Result<String, Refusal> {
    let now = asked.server.engine().time().map_err(|error| Refusal::fault(error.to_string()))?;
    Ok(KeyValues::new()
        .line("now", rfc3339(now.millis()))
        .line("counter", now.counter())
        .line("newest-entry", rfc3339(asked.state.now().millis()))
        .print())
}

fn me(asked: &Asked<'_>) -> Result<String, Refusal> {
    let who = asked.who;
    let role = asked.state.user_named(&who.user).map_or("none".to_owned(), |u| u.role.to_string());
    let text = KeyValues::new()
        .line("user", &who.user)
        .line("role", role)
        .maybe("uid", who.uid)
        .maybe("within", super::users::within(asked.state, &who.user))
        .line("authenticated-by", who.authenticated_by)
        .maybe("from", Some(&who.from).filter(|from| !from.is_empty()))
        .line("dialect", who.dialect);
    Ok(text.print())
}
