//! `blixard restore`: a new cluster from a backup, with this machine as its only node.
//!
//! The authority, the secrets of the store and the network of the stores are new: nothing of the old cluster gets in here by mistake. A file
//! that can't be used is refused before anything is written. Knows `ca`, `cluster`, `member` and `engine`.

use crate::ca::CaError;
use crate::cluster::{ClusterError, First, begin_authority, hosts_of};
use crate::engine::backup::{self, BackupError, Head};
use crate::engine::log::{AppendError, HiqliteLog, Log, LogError, Member as StoreMember, OpenOptions};
use crate::engine::state::restored::FirstNode;
use crate::engine::state::{Actual, Role, State};
use crate::engine::{DataFolder, FolderError, first_snapshot};
use crate::member::{self, Member, MemberError};
use crate::peers::Loopback;
use crate::text::{Refusal, time::rfc3339};
use clap::Args;
use std::fs::File;
use std::path::{Path, PathBuf};

/// What to restore, and as what.
#[derive(Debug, Clone, Args)]
pub struct Arguments {
    /// The backup: cat /n/blixard/backup > FILE
    file: PathBuf,
    /// Where and as what
    #[command(flatten)]
    first: First,
    /// Only say whether it is whole, and what is in it
    #[arg(long, conflicts_with_all = ["node", "advertise"])]
    check: bool,
}

/// Why it can't be done. Each message says what would be right.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The file.
    #[error("{}: {source}", .path.display())]
    Backup {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        source: BackupError,
    },
    /// A name or an address.
    #[error("{0}")]
    Refused(Refusal),
    /// There is a store already.
    #[error(
        "{} has a log already, and nothing is restored over it: name another --data, or move it away", .0.display()
    )]
    Exists(PathBuf),
    /// The data folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The member file.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// The authority.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// An address, the machine's name, or the secrets of the store.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    /// The store.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The store took nothing.
    #[error("the backup can't be written into the log: {0}")]
    Append(#[from] AppendError),
    /// What came of it can't be.
    #[error("the backup can't be made a cluster's beginning: {0}")]
    State(String),
    /// The system.
    #[error("{0}: {1}")]
    Io(&'static str, std::io::Error),
}

/// Does it; the answer is what to print. `machine` is what the node is called unless it is said.
///
/// # Errors
/// See [`RestoreError`].
pub fn run(arguments: &Arguments, machine: impl FnOnce() -> Result<String, String>) -> Result<String, RestoreError> {
    let Arguments { file, first: First { data, node, advertise }, check } = arguments;
    let damaged = |source| RestoreError::Backup { path: file.clone(), source };
    let opened = File::open(file).map_err(|error| damaged(error.into()))?;
    let (head, state) = backup::read(opened).map_err(damaged)?;
    if *check {
        return Ok(format!("{}\n", described(&head, &state)));
    }
    let refused = |why: String| RestoreError::Refused(Refusal::invalid(why));
    let name = node.clone().map_or_else(machine, Ok).map_err(refused)?;
    let address = advertise.as_deref().map(member::address).transpose().map_err(RestoreError::Refused)?;
    let address = address.unwrap_or_default();
    let first = FirstNode { name: &name, address: &address, release: env!("CARGO_PKG_VERSION") };
    let state = state.restored(&first).map_err(RestoreError::Refused)?;
    state.check().map_err(RestoreError::State)?;
    check_free(data)?;
    let node = state.nodes().next().map_or(0, |node| node.id.0);
    let member = Member {
        cluster: head.cluster.clone(),
        name: name.clone(),
        node,
        raft: 1,
        loopback: Loopback::random().map_err(RestoreError::Refused)?,
        address,
        formed: true,
        worker: false,
        peers: Vec::new(),
    };
    write(data, &member, &state)?;
    Ok(report(&head, &state, data, &name))
}

/// Nothing is there that a cluster has.
fn check_free(data: &Path) -> Result<(), RestoreError> {
    match Member::read(data) {
        Err(MemberError::Missing(_)) => {}
        Ok(Member { name, cluster, .. }) => {
            return Err(MemberError::Exists { path: data.to_owned(), name, cluster }.into());
        }
        Err(error) => return Err(error.into()),
    }
    if data.join("log").exists() {
        return Err(RestoreError::Exists(data.to_owned()));
    }
    Ok(())
}

fn write(data: &Path, member: &Member, state: &State) -> Result<(), RestoreError> {
    let folder = DataFolder::open(data)?;
    let data = folder.path();
    let log = data.join("log");
    let begun = begin(data, &log, member, state);
    if begun.is_err()
        && let Err(error) = std::fs::remove_dir_all(&log)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %log.display(), "what was begun of a log can't be removed");
    }
    begun
}

fn begin(data: &Path, log: &Path, member: &Member, state: &State) -> Result<(), RestoreError> {
    let hosts = hosts_of(&member.address)?;
    begin_authority(data, &member.name, &hosts)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| RestoreError::Io("no runtime", error))?;
    let written = runtime.block_on(fill(log, member, state));
    runtime.shutdown_background();
    written?;
    // The member file comes last: without it the folder belongs to no cluster.
    Ok(member.write(data)?)
}

/// The store: a snapshot, and the numbers go on after it.
async fn fill(folder: &Path, member: &Member, state: &State) -> Result<(), RestoreError> {
    let (raft, api) = member.loopback.addresses(member.raft).map_err(RestoreError::Refused)?;
    let own = crate::engine::log::Addresses { raft, api };
    let store = StoreMember { raft: member.raft, own, others: Vec::new(), forward: None };
    let (log, _committed) = HiqliteLog::open(folder, &store, OpenOptions::default()).await?;
    let (snapshot, chain) = first_snapshot(state);
    let seq = snapshot.seq;
    let saved = log.begin_with(snapshot).await;
    let marked = log.mark(seq, chain);
    log.close().await;
    saved?;
    Ok(marked?)
}

fn described(head: &Head, state: &State) -> String {
    format!(
        "a whole backup of cluster '{}' at entry {} of {}, made by blixard {}: {} VMs, {} nodes, {} users, {} images",
        head.cluster,
        head.seq,
        rfc3339(head.at_ms),
        head.release,
        state.vms().len(),
        state.nodes().len(),
        state.users().len(),
        state.images().len()
    )
}

fn report(head: &Head, state: &State, data: &Path, node: &str) -> String {
    let failed = state.vms().filter(|vm| vm.actual == Actual::Failed && vm.changed_seq == state.seq()).count();
    let admins: Vec<String> = state
        .users()
        .filter(|user| user.role == Role::Admin)
        .map(|user| match user.uid {
            Some(uid) => format!("{} (uid {uid})", user.name),
            None => format!("{} (by certificate)", user.name),
        })
        .collect();
    let mut text = format!(
        "cluster '{}' begins again after entry {} of {} with node '{node}' alone, in {}: {} VMs, {} users\n",
        head.cluster,
        head.seq,
        rfc3339(head.at_ms),
        data.display(),
        state.vms().len(),
        state.users().len()
    );
    if failed > 0 {
        text.push_str(&format!(
            "{failed} VMs were to run on nodes that are no more; they are failed until somebody starts them: vms/list\n"
        ));
    }
    text.push_str(&format!("its admins: {}\nstart it: blixard serve\n", admins.join(", ")));
    text
}
