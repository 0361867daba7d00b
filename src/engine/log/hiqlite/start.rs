//! Starting hiqlite in its folder: configuration, secrets, and what can go wrong before the first record.

use crate::engine::log::LogError;
use hiqlite::{Client, Node, NodeConfig};
use std::fs::OpenOptions;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

/// The size of a file of the write-ahead log in bytes. An entry must fit into one: eight of our largest appends do.
pub(super) const WAL_FILE_BYTES: u32 = 16 * 1024 * 1024;
/// Heartbeat and election, in milliseconds: a dead leader is replaced in 1.2–2.2 s instead of hiqlite's 10–15 s.
const HEARTBEAT_MS: u64 = 100;
pub(super) const ELECTION_MS: (u64, u64) = (300, 600);
/// How long the replay of the Raft log since hiqlite's last snapshot may take, of a node alone with its election.
const START_WITHIN: Duration = Duration::from_secs(60);
/// The pause between two looks whether what is replayed has come so far.
const REPLAYED_PAUSE: Duration = Duration::from_millis(20);
/// How often a member that waits for the others says so.
const STILL_WAITING: Duration = Duration::from_secs(10);
/// Length of the two secrets before they are written in hexadecimal.
const SECRET_BYTES: usize = 32;

/// Starts the node over `folder` and returns its client. Of a cluster it waits for a leader, however long that takes.
pub(super) async fn start(
    folder: &Path,
    member: &super::Member,
    options: &super::OpenOptions,
) -> Result<Client, LogError> {
    super::salvage::put_by(folder)?;
    rebuild_database(folder)?;
    let config = config(folder, member, options)?;
    // hiqlite panics at some mistakes: in a task of its own that is an error like any other.
    let mut starting = AbortOnDropHandle::new(tokio::spawn(hiqlite::start_node(config)));
    let mut waited = Duration::ZERO;
    loop {
        match tokio::time::timeout(STILL_WAITING, &mut starting).await {
            Ok(Ok(Ok(client))) => return prepare(folder, options, client).await,
            Ok(Ok(Err(error))) => return Err(cannot_start(folder, &error.to_string())),
            Ok(Err(panic)) => return Err(cannot_start(folder, &panic_message(panic))),
            Err(_elapsed) => waited += STILL_WAITING,
        }
        if options.alone && waited >= START_WITHIN {
            return Err(cannot_start(folder, &format!("no answer within {} s", waited.as_secs())));
        }
        tracing::warn!(
            waited_s = waited.as_secs(),
            "waiting for the others: without a majority of the voters there is no leader"
        );
    }
}

/// The tables. Of a node alone it writes them, if they are not there; the write is a barrier as well: it is applied after all that the
/// Raft log had. Of a cluster they stand in the log since its first node began it, and come with what is replayed or replicated here:
/// hiqlite says that it has started before that is so.
async fn prepare(folder: &Path, options: &super::OpenOptions, client: Client) -> Result<Client, LogError> {
    if options.alone {
        let schema = super::rows::schema() + super::snapshots::SCHEMA;
        let written = super::rows::batch(&client, schema).await;
        return written.map(|()| client).map_err(|error| cannot_start(folder, &error.to_string()));
    }
    let deadline = Instant::now() + START_WITHIN;
    while !super::rows::is_prepared(&client).await? {
        if Instant::now() > deadline {
            let why = format!("nothing of the log has come within {} s", START_WITHIN.as_secs());
            return Err(LogError::Failed(why));
        }
        // What hiqlite replays it does not announce.
        tokio::time::sleep(REPLAYED_PAUSE).await;
    }
    Ok(client)
}

fn cannot_start(folder: &Path, why: &str) -> LogError {
    LogError::Damaged {
        path: folder.display().to_string(),
        what: format!("the store can't be started: {why}"),
        advice: super::ADVICE.to_owned(),
    }
}

fn panic_message(error: tokio::task::JoinError) -> String {
    match error.try_into_panic() {
        Ok(panic) => match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => panic.downcast::<&str>().map_or_else(|_| "it panicked".to_owned(), |text| (*text).to_owned()),
        },
        Err(error) => error.to_string(),
    }
}

fn config(folder: &Path, member: &super::Member, options: &super::OpenOptions) -> Result<NodeConfig, LogError> {
    // What is cut is cut behind a snapshot: with longer pauses more would be kept than was said.
    let mut raft = NodeConfig::default_raft_config(options.store_snapshot_every.min(options.raft_log_keep));
    raft.max_in_snapshot_log_to_keep = options.raft_log_keep;
    raft.heartbeat_interval = HEARTBEAT_MS;
    (raft.election_timeout_min, raft.election_timeout_max) = ELECTION_MS;
    let (secret_raft, secret_api) = secrets(folder)?;
    let data_dir = folder.to_str().ok_or_else(|| {
        LogError::Failed(format!("the data folder's path is invalid: {} is not UTF-8", folder.display()))
    })?;
    // A store that is in the cluster already asks nobody: who the others are stands in its own log.
    let fresh = !folder.join("logs").exists();
    let others = member.others.iter().filter(|_| fresh);
    let own = (member.raft, member.own);
    let nodes = std::iter::once(&own).chain(others).map(|(id, at)| Node {
        id: *id,
        addr_raft: at.raft.to_string(),
        addr_api: at.api.to_string(),
    });
    Ok(NodeConfig {
        node_id: member.raft,
        nodes: nodes.collect(),
        listen_addr_api: member.own.api.ip().to_string().into(),
        listen_addr_raft: member.own.raft.ip().to_string().into(),
        data_dir: data_dir.to_owned().into(),
        wal_sync: options.durability.into(),
        wal_size: WAL_FILE_BYTES,
        secret_raft,
        secret_api,
        health_check_delay: Duration::ZERO,
        raft_config: raft,
        // Who votes is the leader's to say, by what the state wants.
        learner_only: true,
        ..NodeConfig::default()
    })
}

/// Makes hiqlite build its database anew from its snapshot and the Raft log, as after a crash, at every start.
///
/// It never syncs the database to the disk, since it can build it anew; but after a clean end it would trust it. So
/// a power cut after a clean end, or a byte that flipped in between, would be believed. One way to start is better than two.
fn rebuild_database(folder: &Path) -> Result<(), LogError> {
    let state_machine = folder.join("state_machine");
    if !state_machine.exists() {
        return Ok(());
    }
    let marker = state_machine.join("lock");
    let made = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(&marker);
    made.map(drop).map_err(|error| LogError::Failed(format!("{}: {error}", marker.display())))
}

/// The two secrets that hiqlite's ports ask for, the same on all nodes: made at the first start of a cluster, readable by nobody else.
pub(super) fn secrets(folder: &Path) -> Result<(String, String), LogError> {
    let path = folder.join("secret");
    let failed = |error: std::io::Error| LogError::Failed(format!("{}: {error}", path.display()));
    if !path.exists() {
        let text = format!("{}\n{}\n", random_hex()?, random_hex()?);
        crate::durable::replace(&path, 0o600, text.as_bytes()).map_err(failed)?;
    }
    let text = std::fs::read_to_string(&path).map_err(failed)?;
    let mut lines = text.lines().filter(|line| line.len() >= 2 * SECRET_BYTES);
    match (lines.next(), lines.next()) {
        (Some(raft), Some(api)) => Ok((raft.to_owned(), api.to_owned())),
        _ => Err(LogError::Failed(format!(
            "{} is invalid: it should be two lines of {} characters, the same on all nodes: copy it from another one; of a node alone \
             remove it, and new ones are made",
            path.display(),
            2 * SECRET_BYTES
        ))),
    }
}

fn random_hex() -> Result<String, LogError> {
    let mut bytes = [0_u8; SECRET_BYTES];
    // Requests of up to 256 bytes are never cut short once the kernel's pool is ready (getrandom(2)).
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| LogError::Failed(format!("no random bytes from the kernel: {error}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes the folder for its owner alone, and says where it really is.
pub(super) fn make_folder(folder: &Path) -> Result<std::path::PathBuf, LogError> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| folder.canonicalize())
        .map_err(|error| LogError::Failed(format!("{}: {error}", folder.display())))
}
