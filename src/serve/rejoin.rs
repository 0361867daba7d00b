//! A node whose store can't go on begins with a fresh one, as another identity in Raft, when the others can do without the old one.
//!
//! That the others can is proved by their answer: the new identity is an entry of the log, committed by a majority that counts the old
//! identity among its members. The old store is set aside and stays there for whoever wants to look.

use super::ServeError;
use crate::member::Member;
use crate::ninep::identity::Identity;
use crate::peers::ask::{Answer, Question, ask};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// In the log's folder: the store can't go on, and why.
const MARKER: &str = "rejoin";
/// What a store is made of.
const PARTS: [&str; 3] = ["logs", "state_machine", "mark"];
/// What the folder of a store that was set aside begins with; its identity in Raft follows.
const ASIDE: &str = "aside-";
/// So many are kept.
const ASIDE_MAX: usize = 2;
/// The pause before the others are asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Notes that the store can't go on.
pub(super) fn note(data: &Path, why: &str) -> std::io::Result<()> {
    std::fs::write(data.join("log").join(MARKER), format!("{why}\n"))
}

/// Must this node begin anew? Its store was found to be of no use, or is not there although it was.
pub(super) fn is_due(data: &Path, member: &Member) -> bool {
    let log = data.join("log");
    member.formed && (log.join(MARKER).exists() || !log.join("logs").exists())
}

/// Asks the others for a new identity until one of them answers, and sets the old store aside.
pub(super) async fn rejoin(data: &Path, member: &Member, identity: &Identity) -> Result<Member, ServeError> {
    let was = member.raft;
    if member.peers.is_empty() {
        return Err(ServeError::Failed(format!(
            "the log of node '{}' is lost, and nobody else has one: put back a backup of {}, or move it away and begin a new cluster",
            member.name,
            data.display()
        )));
    }
    let (raft, peers) = loop {
        if let Some(given) = ask_all(member, identity, was).await {
            break given;
        }
        tracing::warn!("the store of this node can't go on, and no majority of the others answers: waiting for them");
        tokio::time::sleep(ASK_AGAIN_AFTER).await;
    };
    let log = data.join("log");
    let aside = set_aside(&log, was).map_err(|error| ServeError::Io("the old store can't be set aside", error))?;
    // In this order: whenever it ends in between, the next start finds that the store is not there, and asks again.
    match std::fs::remove_file(log.join(MARKER)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ServeError::Io("the note about the old store can't be removed", error));
        }
        _ => {}
    }
    let member = Member { raft, peers, formed: false, ..member.clone() };
    member.write(data)?;
    tracing::warn!(was, now = raft, aside = %aside.display(), "this node begins with a fresh store");
    Ok(member)
}

async fn ask_all(member: &Member, identity: &Identity, was: u64) -> Option<(u64, Vec<crate::peers::Peer>)> {
    for peer in &member.peers {
        match ask(identity, &peer.address, &Question::NewRaft { was }).await {
            Ok(Answer::Raft { raft, peers }) => return Some((raft, peers)),
            Ok(other) => tracing::warn!(address = %peer.address, ?other, "an answer to something else"),
            Err(refusal) => tracing::warn!(address = %peer.address, %refusal, "no new identity"),
        }
    }
    None
}

/// Moves the store of this identity aside, and removes those that were set aside long before.
fn set_aside(log: &Path, was: u64) -> std::io::Result<PathBuf> {
    let aside = log.join(format!("{ASIDE}{was}"));
    std::fs::create_dir_all(&aside)?;
    for part in PARTS {
        let from = log.join(part);
        if from.exists() {
            std::fs::rename(&from, aside.join(part))?;
        }
    }
    let mut kept: Vec<u64> = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let name = entry?.file_name();
        kept.extend(name.to_str().and_then(|name| name.strip_prefix(ASIDE)?.parse::<u64>().ok()));
    }
    kept.sort_unstable();
    let old = kept.len().saturating_sub(ASIDE_MAX);
    for was in kept.into_iter().take(old) {
        std::fs::remove_dir_all(log.join(format!("{ASIDE}{was}")))?;
    }
    Ok(aside)
}
