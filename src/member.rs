//! What this machine is in its cluster: DATA/member.toml, written by `blixard cluster init` or when the machine joined.
//!
//! Without it a data folder belongs to no cluster, and nothing is begun by accident: a first node whose disk was lost would
//! otherwise be a second cluster of the same name. Knows `peers` (addresses) and `text`.

use crate::durable;
use crate::peers::{Loopback, Peer};
use crate::text::{Dial, Refusal, name};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// The file in the data folder.
const FILE: &str = "member.toml";

/// Why it can't be read or written. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum MemberError {
    /// There is none.
    #[error(
        "not found: {} belongs to no cluster yet: begin one with 'blixard cluster init NAME', or join one with \
         'blixard serve --join TOKEN' (TOKEN is what 'blixard cluster invite' prints on a node that is in); \
         if this was a node and its disk is lost, join it anew: never begin a second cluster in its place", .0.display()
    )]
    Missing(PathBuf),
    /// There is one already.
    #[error("{} is node '{name}' of cluster '{cluster}' already; whoever wants another one moves the folder away", .path.display())]
    Exists {
        /// The data folder.
        path: PathBuf,
        /// The node there.
        name: String,
        /// Its cluster.
        cluster: String,
    },
    /// Something else is in it.
    #[error("{} is invalid: {why}; it is written by blixard alone: put back a backup of it", .path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The system refused.
    #[error("{}: {source}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
}

/// What this machine is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The cluster's name.
    pub cluster: String,
    /// The node's name.
    pub name: String,
    /// The node's number.
    pub node: u64,
    /// Its identity in Raft.
    pub raft: u64,
    /// The network on loopback by which members reach each other's stores.
    pub loopback: Loopback,
    /// Where other nodes reach it, as `HOST!PORT`; empty: nobody does.
    #[serde(default)]
    pub address: String,
    /// Its store was begun: if it is not there any more it has been lost, and is not begun again under the same identity.
    #[serde(default)]
    pub formed: bool,
    /// It is not part of Raft, and follows the log of a member.
    #[serde(default)]
    pub worker: bool,
    /// The other members, as they were when this was written last.
    #[serde(default, rename = "peer", skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
}

impl Member {
    /// The first node of a new cluster.
    ///
    /// # Errors
    /// A name or address that can't be one; no random bytes.
    pub fn first(cluster: &str, node: &str, address: &str) -> Result<Member, Refusal> {
        name::check(cluster).map_err(|r| Refusal::invalid(format!("cluster: {}", r.sentence)))?;
        name::check(node).map_err(|r| Refusal::invalid(format!("node: {}", r.sentence)))?;
        Ok(Member {
            cluster: cluster.to_owned(),
            name: node.to_owned(),
            node: 1,
            raft: 1,
            loopback: Loopback::random()?,
            address: address.to_owned(),
            formed: false,
            worker: false,
            peers: Vec::new(),
        })
    }

    /// Reads it.
    ///
    /// # Errors
    /// There is none, or it is no such file.
    pub fn read(data: &Path) -> Result<Member, MemberError> {
        let path = data.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(MemberError::Missing(data.to_owned())),
            Err(source) => return Err(MemberError::Io { path, source }),
        };
        toml::from_str(&text).map_err(|error| MemberError::Invalid { path, why: error.message().to_owned() })
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// The system's.
    pub fn write(&self, data: &Path) -> Result<(), MemberError> {
        let path = data.join(FILE);
        let text = toml::to_string(self)
            .map_err(|error| MemberError::Invalid { path: path.clone(), why: error.to_string() })?;
        durable::replace(&path, 0o600, text.as_bytes()).map_err(|source| MemberError::Io { path, source })
    }
}

/// The node is no member any more: its file is set aside, so that the folder can join anew, and so are its store and its authority, which
/// are that cluster's. The member file goes last: who was interrupted finds out once more that he was removed.
///
/// # Errors
/// The system's.
pub fn set_aside(data: &Path) -> Result<(), MemberError> {
    for what in ["log", "ca", FILE] {
        let (path, aside) = (data.join(what), data.join(format!("{what}.removed")));
        let failed = |source| MemberError::Io { path: path.clone(), source };
        if !path.exists() {
            continue;
        }
        if aside.is_dir() {
            std::fs::remove_dir_all(&aside).map_err(failed)?;
        }
        std::fs::rename(&path, &aside).map_err(failed)?;
    }
    Ok(())
}

/// `HOST` or `HOST!PORT` as an address that other nodes can dial.
///
/// # Errors
/// What is wrong with it, and how one looks.
pub fn address(text: &str) -> Result<String, Refusal> {
    match format!("tls!{text}").parse() {
        Ok(Dial::Tls { host, port }) if host != crate::text::dial::ANY_HOST && port != 0 => {
            Ok(format!("{host}!{port}"))
        }
        _ => Err(Refusal::invalid(format!(
            "invalid address '{}': it is a name or address of this machine by which the other nodes reach it, as alpha, 10.0.0.1 \
             or alpha!5640",
            crate::text::attrs::shown(text)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Member::read(folder.path()), Err(MemberError::Missing(_))));
        let mut member = Member::first("lab", "alpha", "alpha!5640").unwrap();
        member.peers.push(Peer { raft: 2, address: "beta!5640".into() });
        member.write(folder.path()).unwrap();
        assert_eq!(Member::read(folder.path()).unwrap(), member);
        std::fs::write(folder.path().join(FILE), "cluster = 1").unwrap();
        assert!(Member::read(folder.path()).unwrap_err().to_string().contains("is invalid"));
    }

    #[test]
    fn addresses() {
        assert_eq!(address("alpha").unwrap(), "alpha!5640");
        assert_eq!(address("10.0.0.1!99").unwrap(), "10.0.0.1!99");
        for wrong in ["", "*", "alpha!0", "alpha!x", "a!1!2"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
