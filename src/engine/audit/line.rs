//! One line of the audit trail.

use super::super::replica::Step;
use super::super::state::{By, Command, Outcome, Reply};
use crate::text::attrs::quote;
use crate::text::time::rfc3339;
use std::fmt::Write;

/// The most bytes of a transaction's commands that go into its line; the rest is counted.
const COMMANDS_TEXT_MAX: usize = 64 * 1024;

/// `SEQ TIME user=U node=N id=N.B.N result=R [reason=S] command=C`, without the newline. An entry that was appended twice has two
/// lines, the second with `result=repeated`: every number of the log is in the trail.
pub(super) fn of(step: &Step) -> String {
    let entry = &step.entry;
    let user = match &entry.by {
        By::User(name) => quote(name),
        By::Agent => "agent".into(),
    };
    let (seq, at, id) = (step.seq, rfc3339(entry.at.millis()), entry.id);
    let result = if step.repeated { "result=repeated".to_owned() } else { result(&step.outcome) };
    let commands = commands(&entry.commands);
    format!("{seq} {at} user={user} node={} id={id} {result} command={}", id.node, quote(&commands))
}

/// `result=done,created:7` or `result=Busy reason='...'`.
fn result(outcome: &Outcome) -> String {
    match outcome {
        Ok(replies) => {
            let mut words: Vec<String> = replies.iter().map(reply).collect();
            words.dedup();
            format!("result={}", words.join(","))
        }
        Err(refusal) => {
            let nth = refusal.nth.map(|nth| format!("command {}: ", nth + 1)).unwrap_or_default();
            format!("result={:?} reason={}", refusal.code, quote(&format!("{nth}{}", refusal.sentence)))
        }
    }
}

fn reply(reply: &Reply) -> String {
    match reply {
        Reply::Done => "done".to_owned(),
        Reply::Unchanged => "unchanged".to_owned(),
        Reply::Created(number) => format!("created:{number}"),
    }
}

/// All commands, `; ` between them, bounded.
fn commands(commands: &[Command]) -> String {
    let mut text = String::new();
    for (done, command) in commands.iter().enumerate() {
        if text.len() >= COMMANDS_TEXT_MAX {
            let more = commands.len() - done;
            let _infallible = write!(text, "; and {more} more");
            break;
        }
        let between = if done == 0 { "" } else { "; " };
        let _infallible = write!(text, "{between}{command}");
    }
    text
}

/// The number that a line begins with; None for notes and for what is no line.
pub(super) fn seq(line: &str) -> Option<u64> {
    line.split_once(' ')?.0.parse().ok()
}
