//! Walks the whole table: every row is reached by verbs and reports alone, and from it every column is tried.

use super::cluster::{Cluster, NODE, node_up, node_verb, spec, user, verb};
use super::table::{Cells, columns, rows, sections};
use blixard::engine::state::{
    By, Command, Desired, NodeVerb, Reply, Restart, SpecChanges, Vm, VmId, VmReport, VmSpec, VmVerb,
};
use blixard::text::{Code, Refusal};
use std::collections::BTreeSet;

/// How a table calls what a VM is in.
pub fn row_of(vm: &Vm) -> String {
    let desired = match vm.desired {
        Desired::Running => 'R',
        Desired::Paused => 'P',
        Desired::Stopped => 'S',
        Desired::Deleted => 'D',
    };
    let due = if vm.retry_at_ms.is_some() { "*" } else { "" };
    format!("{desired}/{}{due}", vm.actual)
}

/// How a table calls a refusal.
pub fn errno(code: Code) -> &'static str {
    match code {
        Code::Busy => "EBUSY",
        Code::NotFound => "ENOENT",
        Code::Denied => "EACCES",
        Code::Stale => "ESTALE",
        Code::Invalid => "EINVAL",
        Code::Exists => "EEXIST",
        Code::NoSpace => "ENOSPC",
        other => panic!("no verb or report is refused with {other:?}"),
    }
}

pub fn failed(may_retry: bool) -> VmReport {
    VmReport::Failed { sentence: "it broke".to_owned(), may_retry }
}

/// What a column does.
pub fn act(cluster: &mut Cluster, vm: u64, column: &str) -> Result<Reply, Refusal> {
    let set = || VmVerb::Set { name: None, changes: SpecChanges { cpus: Some(2), ..SpecChanges::default() } };
    match column {
        "start" => cluster.verb(vm, VmVerb::Start),
        "stop" => cluster.verb(vm, VmVerb::Stop { grace_ms: None }),
        "kill" => cluster.verb(vm, VmVerb::Kill),
        "restart" => cluster.verb(vm, VmVerb::Restart),
        "pause" => cluster.verb(vm, VmVerb::Pause),
        "resume" => cluster.verb(vm, VmVerb::Resume),
        "delete" => cluster.verb(vm, VmVerb::Delete),
        "set" => cluster.verb(vm, set()),
        "started" => cluster.report(vm, VmReport::Started { pid: 7 }),
        "ready" => cluster.report(vm, VmReport::GuestReady),
        "paused" => cluster.report(vm, VmReport::Paused),
        "resumed" => cluster.report(vm, VmReport::Resumed),
        "powered-off" => cluster.report(vm, VmReport::PoweredOff),
        "powered-off-later" => {
            cluster.now_ms += 10_000;
            cluster.report(vm, VmReport::PoweredOff)
        }
        "ended" => cluster.report(vm, VmReport::Ended),
        "fenced" => cluster.report(vm, VmReport::Fenced),
        "failed" => cluster.report(vm, failed(true)),
        "failed-for-good" => cluster.report(vm, failed(false)),
        "retry-due" => cluster.report(vm, VmReport::RetryDue),
        "removed" => cluster.report(vm, VmReport::Removed),
        "trouble" => cluster.report(vm, VmReport::Trouble { sentence: "the disk is slow".to_owned() }),
        "drain" => {
            super::moves::join(cluster, "beta");
            cluster.one(user("root"), node_verb(1, NodeVerb::Drain))
        }
        "cordon" => cluster.one(user("root"), node_verb(1, NodeVerb::Cordon)),
        "host-reboot" => {
            let version = cluster.is(vm).version;
            cluster.done(By::Agent, node_up("boot-2"));
            // The reply is about the node; what it means for this VM is seen by its version.
            Ok(if cluster.is(vm).version == version { Reply::Unchanged } else { Reply::Done })
        }
        other => panic!("what is {other}?"),
    }
}

/// The way to a row, from a VM that was just made.
fn way(row: &str) -> &'static [&'static str] {
    match row {
        "S/defined" => &[],
        "R/starting" => &["start"],
        "P/starting" => &["start", "pause"],
        "R/running" => &["start", "started"],
        "P/running" => &["start", "started", "pause"],
        "R/paused" => &["start", "started", "pause", "paused", "resume"],
        "P/paused" => &["start", "started", "pause", "paused"],
        "S/stopping" => &["start", "started", "stop"],
        "R/stopping" => &["start", "started", "stop", "start"],
        // Nothing but a drain ends what is to be paused afterwards.
        "P/stopping" => &["start", "started", "pause", "drain"],
        "S/stopped" => &["start", "started", "stop", "ended"],
        "R/failed" => &["start", "failed-for-good"],
        "P/failed" => &["start", "pause", "failed-for-good"],
        "R/failed*" => &["start", "failed"],
        "P/failed*" => &["start", "pause", "failed"],
        "D/deleting" => &["start", "started", "kill", "ended", "delete"],
        "R/waiting" => &["start", "started", "stop", "start", "cordon", "ended"],
        "P/waiting" => &["start", "started", "stop", "start", "cordon", "ended", "pause"],
        other => panic!("how does one get to {other}?"),
    }
}

fn at(row: &str, spec: VmSpec) -> (Cluster, u64) {
    let mut cluster = Cluster::new();
    let vm = cluster.vm(spec);
    for column in way(row) {
        act(&mut cluster, vm, column).unwrap_or_else(|refusal| panic!("on the way to {row}: {column}: {refusal}"));
    }
    assert_eq!(row_of(cluster.is(vm)), row);
    (cluster, vm)
}

fn walk(cells: &Cells, restart: Restart) {
    for ((row, column), cell) in cells.iter().filter(|((_, column), _)| column != "settled") {
        let (mut cluster, vm) = at(row, VmSpec { restart, ..spec() });
        let before = cluster.is(vm).clone();
        let outcome = act(&mut cluster, vm, column);
        let after = cluster.get(vm);
        let generations = after.map_or(0, |after| after.generation - before.generation);
        let seen = match (&outcome, after) {
            (Ok(Reply::Unchanged), Some(after)) => {
                assert_eq!(*after, before, "{row} {column}: unchanged");
                "=".to_owned()
            }
            (Ok(Reply::Done), None) => "gone".to_owned(),
            (Ok(Reply::Done), Some(after)) => {
                assert_eq!(after.version, before.version + 1, "{row} {column}: a change counts");
                assert_eq!(after.history.len(), before.history.len() + 1, "{row} {column}: a change is an event");
                format!("{}{}", row_of(after), "+".repeat(usize::try_from(generations).unwrap()))
            }
            (Err(refusal), Some(after)) => {
                assert_eq!(*after, before, "{row} {column}: refused");
                errno(refusal.code).to_owned()
            }
            other => panic!("{row} {column}: {other:?}"),
        };
        assert_eq!(seen, *cell, "{restart}: {column} on {row}: {outcome:?}");
    }
}

#[test]
fn every_state_and_verb_is_as_in_the_table() {
    walk(&sections()["verbs"], Restart::OnFailure);
}

#[test]
fn every_state_and_report_is_as_in_the_table() {
    walk(&sections()["reports"], Restart::OnFailure);
}

#[test]
fn verbs_do_not_depend_on_the_restart_policy() {
    // But that with `never` no retry is ever due.
    let verbs: Cells = sections()["verbs"].clone().into_iter().filter(|((row, _), _)| !row.ends_with('*')).collect();
    walk(&verbs, Restart::Never);
    walk(&sections()["verbs"], Restart::Always);
}

#[test]
fn ends_depend_on_the_restart_policy_as_in_the_table() {
    let sections = sections();
    for (policy, restart) in [("never", Restart::Never), ("always", Restart::Always)] {
        let mut cells = sections["reports"].clone();
        cells.retain(|(row, _), _| restart != Restart::Never || !row.ends_with('*'));
        cells.extend(sections[policy].clone());
        walk(&cells, restart);
    }
}

#[test]
fn the_table_is_whole_and_leads_nowhere_else() {
    let sections = sections();
    let names: Vec<_> = sections.keys().map(String::as_str).collect();
    assert_eq!(names, ["always", "never", "reports", "verbs"]);
    let known: BTreeSet<String> = rows(&sections["verbs"]).into_iter().collect();
    for (name, cells) in &sections {
        assert_eq!(cells.len(), rows(cells).len() * columns(cells).len(), "{name} has a cell for each pair");
        for cell in cells.values().filter(|cell| cell.contains('/')) {
            assert!(known.contains(cell.trim_end_matches('+')), "{name} leads to {cell}");
        }
    }
    assert_eq!(known, rows(&sections["reports"]).into_iter().collect());
    // Every verb and every report has a column: a new one does not compile here.
    let verbs = |verb: &VmVerb| match verb {
        VmVerb::Start | VmVerb::Stop { .. } | VmVerb::Kill | VmVerb::Restart => {}
        VmVerb::Pause | VmVerb::Resume | VmVerb::Delete | VmVerb::Set { .. } => {}
    };
    verbs(&VmVerb::Start);
    let reports = |report: &VmReport| match report {
        VmReport::Started { .. } | VmReport::GuestReady | VmReport::Paused | VmReport::Resumed => {}
        VmReport::Failed { .. } | VmReport::PoweredOff | VmReport::Ended | VmReport::RetryDue => {}
        VmReport::Removed | VmReport::Trouble { .. } | VmReport::Fenced => {}
    };
    reports(&VmReport::GuestReady);
    assert_eq!(columns(&sections["verbs"]).len(), 8 + 1, "eight verbs, and `settled`");
    assert_eq!(columns(&sections["reports"]).len(), 11 + 2, "eleven reports, `failed-for-good`, `host-reboot`");
}

#[test]
fn what_is_settled_is_as_in_the_table() {
    let verbs = &sections()["verbs"];
    for row in rows(verbs) {
        let (cluster, vm) = at(&row, spec());
        let settled = if cluster.is(vm).settled() { "yes" } else { "no" };
        assert_eq!(settled, verbs[&(row.clone(), "settled".to_owned())], "{row}");
    }
}

/// Is there a node that may report?
fn cells_are_open(cells: &Cells, row: &str) -> bool {
    cells[&(row.to_owned(), "trouble".to_owned())] != "EACCES"
}

#[test]
fn a_report_about_another_generation_is_refused_everywhere() {
    let sections = sections();
    for row in rows(&sections["reports"]).iter().filter(|row| cells_are_open(&sections["reports"], row)) {
        let (mut cluster, vm) = at(row, spec());
        let before = cluster.is(vm).clone();
        for generation in [before.generation - 1, before.generation + 1] {
            for report in [VmReport::Ended, VmReport::Removed, VmReport::Started { pid: 1 }, failed(true)] {
                let (code, _) = cluster.refused(By::Agent, Command::VmReport { vm: VmId(vm), generation, report });
                assert_eq!(code, Code::Stale, "{row}");
            }
        }
        assert_eq!(*cluster.is(vm), before);
    }
}

#[test]
fn verbs_on_what_never_was_and_on_what_is_gone() {
    let (mut cluster, vm) = at("S/defined", spec());
    let (code, sentence) = cluster.refused(user("root"), verb(vm + 1, VmVerb::Start));
    assert_eq!((code, sentence.contains("never")), (Code::NotFound, true), "{sentence}");
    cluster.verb(vm, VmVerb::Delete).unwrap();
    let (code, sentence) = cluster.refused(user("root"), verb(vm, VmVerb::Start));
    assert_eq!((code, sentence.contains("deleted")), (Code::NotFound, true), "{sentence}");
    let report = Command::VmReport { vm: VmId(vm), generation: 0, report: VmReport::Removed };
    assert_eq!(cluster.refused(By::Agent, report).0, Code::NotFound);
    assert_eq!(cluster.state.node(NODE).unwrap().id, NODE);
}
