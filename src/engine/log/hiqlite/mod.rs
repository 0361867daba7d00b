//! The log in hiqlite: a table that Raft replicates, used as nothing but an ordered, durable sequence.
//!
//! The only room that knows hiqlite, and the one where its faults end: own deadlines ([`rows`]), honest errors ([`errors`]), the
//! mark outside the store ([`mark`]), room on the disk ([`space`]), a start that believes nothing ([`start`]), snapshots that are
//! whole or none ([`snapshots`]), a second source for what the store has lost ([`salvage`]), and the wake-up by SQLite's own writer ([`hook`]).

mod errors;
mod hook;
mod lead;
mod mark;
mod members;
mod rows;
mod salvage;
mod snapshots;
mod space;
mod start;

pub use members::{Addresses, Member, MemberChange, Voters};
pub use space::{DISK_LEAST_BYTES, DISK_RESERVE_BYTES, Room, check as check_room};

use super::committed::{self, Committed, WAITING_MAX};
use super::forward::{Forward, Forwarded, Whose};
use super::{AppendError, BATCH_RECORDS_MAX, Health, Log, LogError, Record, Role, Snapshot};
use async_trait::async_trait;
use bytes::Bytes;
use hiqlite::{Client, LogSync, Param};
use hook::Hook;
use mark::MarkFile;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

/// What to do when the store can't be believed.
const ADVICE: &str =
    "put back a backup of the data folder, or start once with --accept-loss to go on with what is left";
/// What to do when there is nothing to go on with.
const NOTHING_LEFT: &str =
    "nothing of it can be saved: put back a backup of the data folder, or move it away and begin anew";
/// Records that one statement of a cut deletes: some milliseconds on the writer's thread.
const CUT_SLICE: i64 = 5_000;
/// How long hiqlite may take to end. A node alone needs some milliseconds.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// After so many appends in a row without an answer, a node that is its own quorum, or leads with one, is not waiting for anybody: the
/// store is dead.
const SILENT_APPENDS_MAX: u32 = 3;

/// When an append counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// When it is on the disk: what is acknowledged survives a power cut.
    Immediate,
    /// When the kernel has it; on the disk so many milliseconds later. A power cut loses what was acknowledged since; the
    /// next start notices, and asks for [`OpenOptions::accept_loss`].
    Interval(u64),
}

impl From<Durability> for LogSync {
    fn from(durability: Durability) -> Self {
        match durability {
            Durability::Immediate => LogSync::Immediate,
            Durability::Interval(milliseconds) => LogSync::IntervalMillis(milliseconds),
        }
    }
}

/// How the log is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// When an append counts as done.
    pub durability: Durability,
    /// Go on even if the log has lost what was acknowledged; the old mark is put aside.
    pub accept_loss: bool,
    /// Nobody else has a copy: what is lost here is lost, and nobody is waited for.
    pub alone: bool,
    /// Writes are refused while fewer bytes are free; see [`DISK_RESERVE_BYTES`].
    pub disk_reserve_bytes: u64,
    /// After so many Raft entries hiqlite copies its database, on the writer's thread; a start replays no more than these.
    pub store_snapshot_every: u64,
    /// Entries of the Raft log that are kept behind hiqlite's own snapshot: a follower that is no further behind than this needs no
    /// snapshot, which is what kills followers in this version of hiqlite.
    pub raft_log_keep: u64,
}

/// hiqlite's usual figure: a start then replays for a second or two at most.
const STORE_SNAPSHOT_EVERY: u64 = 10_000;
/// Some minutes of a busy cluster.
const RAFT_LOG_KEEP: u64 = 100_000;

impl Default for OpenOptions {
    fn default() -> Self {
        OpenOptions {
            durability: Durability::Immediate,
            accept_loss: false,
            alone: true,
            disk_reserve_bytes: DISK_RESERVE_BYTES,
            store_snapshot_every: STORE_SNAPSHOT_EVERY,
            raft_log_keep: RAFT_LOG_KEEP,
        }
    }
}

/// The log of one node.
pub struct HiqliteLog {
    client: Client,
    own: Addresses,
    raft: u64,
    forward: Option<Arc<dyn Forward>>,
    /// The term in which hiqlite's client has noticed that its node leads.
    led: AtomicU64,
    /// Linearizable reads that were begun.
    reads_begun: AtomicU64,
    /// The last of them, and what came of it. Whoever reads holds it until the answer is there, and those who wait share that.
    last_read: tokio::sync::Mutex<(u64, Result<u64, AppendError>)>,
    folder: PathBuf,
    mark: MarkFile,
    disk_reserve_bytes: u64,
    silent_appends: AtomicU32,
    /// The first mark says that the engine has found everything right.
    verified: Once,
    _hook: Hook,
}

impl std::fmt::Debug for HiqliteLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HiqliteLog").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl HiqliteLog {
    /// Opens the log in `folder`, which is made if need be.
    ///
    /// When it returns for a node alone, everything that the Raft log has is in the database and can be read; of a cluster, a
    /// leader is known.
    pub async fn open(
        folder: &Path,
        member: &Member,
        options: OpenOptions,
    ) -> Result<(HiqliteLog, Committed), LogError> {
        let folder = start::make_folder(folder)?;
        space::check(&folder, options.disk_reserve_bytes).map_err(LogError::Failed)?;
        let fresh = !folder.join("logs").exists();
        let mark = MarkFile::open(&folder, fresh, options.accept_loss)?;
        let (publisher, committed) = committed::channel(WAITING_MAX);
        let hook = Hook::new(folder.join("state_machine").join("db"), publisher)
            .map_err(|error| LogError::Failed(format!("SQLite would not take the extension: {error}")))?;
        let client = open_store(&folder, member, &options, mark.at_open().map_or(0, |(seq, _)| seq)).await?;
        let log = HiqliteLog {
            client,
            own: member.own,
            raft: member.raft,
            forward: member.forward.clone(),
            led: AtomicU64::new(0),
            reads_begun: AtomicU64::new(0),
            last_read: tokio::sync::Mutex::new((0, Ok(0))),
            folder,
            mark,
            disk_reserve_bytes: options.disk_reserve_bytes,
            silent_appends: AtomicU32::new(0),
            verified: Once::new(),
            _hook: hook,
        };
        Ok((log, committed))
    }

    /// The members of Raft, as this node knows them.
    pub fn voters(&self) -> Voters {
        members::voters(&self.client)
    }

    /// Makes a change of the membership; this node must be the leader.
    ///
    /// # Errors
    /// It was not made, or it is not known; look at [`HiqliteLog::voters`].
    pub async fn change_members(&self, change: MemberChange) -> Result<(), AppendError> {
        let not_done = |error: LogError| AppendError::NotDone(error.to_string());
        let (_, secret) = start::secrets(&self.folder).map_err(not_done)?;
        members::change(self.own, &secret, change).await
    }

    /// The two secrets of the cluster's stores, for a node that joins.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn secrets(&self) -> Result<(String, String), LogError> {
        start::secrets(&self.folder)
    }

    /// Makes a new, empty log one that goes on from this snapshot: the next record has the number after it.
    ///
    /// # Errors
    /// The store took it not, or not whole: it is of no use then.
    pub async fn begin_with(&self, snapshot: Snapshot) -> Result<(), AppendError> {
        let seq = rows::integer(snapshot.seq).map_err(|error| AppendError::NotDone(error.to_string()))?;
        rows::write_all(&self.client, rows::number_from(seq)).await?;
        snapshots::save(&self.client, snapshot).await
    }

    fn damaged(&self, what: String) -> LogError {
        LogError::Damaged { path: self.path(), what, advice: ADVICE.to_owned() }
    }

    /// Says where.
    fn located(&self, error: LogError) -> LogError {
        match error {
            LogError::Damaged { what, advice, .. } => LogError::Damaged { path: self.path(), what, advice },
            failed => failed,
        }
    }

    /// How much room there is for it.
    pub fn room(&self) -> Room {
        Room::of(&self.folder, self.disk_reserve_bytes)
    }

    fn check_space(&self) -> Result<(), AppendError> {
        space::check(&self.folder, self.disk_reserve_bytes).map_err(AppendError::Full)
    }

    /// Appends to this node's own Raft, which must lead.
    async fn append_here(&self, records: &[Bytes]) -> Result<(), AppendError> {
        let mut inserts: Vec<_> = records.iter().map(rows::insert).collect();
        let written = match (inserts.pop(), inserts.is_empty()) {
            (None, _) => return Ok(()),
            (Some((sql, values)), true) => rows::write(&self.client, sql, values).await,
            (Some(last), false) => {
                inserts.push(last);
                rows::write_all(&self.client, inserts).await
            }
        };
        match written {
            Ok(()) => {
                self.silent_appends.store(0, Ordering::Relaxed);
                Ok(())
            }
            Err(error @ AppendError::Unknown(_)) => Err(self.diagnose(error).await),
            Err(error) => Err(error),
        }
    }

    /// Looks closer at an append without an answer: does Raft still run?
    async fn diagnose(&self, error: AppendError) -> AppendError {
        let silent = self.silent_appends.fetch_add(1, Ordering::Relaxed) + 1;
        let metrics = match self.client.metrics_db().await {
            Ok(metrics) => metrics,
            Err(error) => return AppendError::Fatal(error.to_string()),
        };
        if let Err(fatal) = metrics.running_state {
            return AppendError::Fatal(fatal.to_string());
        }
        // A node alone waits for nobody; and a leader whom a majority answers waits for its own store.
        let health = members::health(&self.client);
        let waits_for_nobody = self.alone() || (health.role == Role::Leader && health.quorum);
        if waits_for_nobody && silent >= SILENT_APPENDS_MAX {
            return AppendError::Fatal(format!("no answer to {silent} appends in a row"));
        }
        error
    }
}

/// Starts the store. When it does not start, or ends before the mark, and the last run's database has more, a new store is made from
/// that: always if nothing acknowledged is missing from it, else only if loss is accepted.
async fn open_store(folder: &Path, member: &Member, options: &OpenOptions, marked: u64) -> Result<Client, LogError> {
    salvage::resume(folder)?;
    let started = start::start(folder, member, options).await;
    if !options.alone {
        return started;
    }
    let reach = match &started {
        Ok(client) => reach(client).await.unwrap_or(0),
        Err(_) => 0,
    };
    if started.is_ok() && reach >= marked && !options.accept_loss {
        return started;
    }
    let from = folder.to_owned();
    let salvage = tokio::task::spawn_blocking(move || salvage::read(&from)).await.ok().flatten();
    let salvage = salvage.filter(|salvage| salvage.reach() > reach);
    let Some(salvage) = salvage.filter(|salvage| salvage.reach() >= marked || options.accept_loss) else {
        return if options.accept_loss { started.map_err(nothing_left) } else { started };
    };
    if let Ok(client) = &started {
        end(client).await;
    }
    drop(started);
    let aside = salvage::set_aside(folder)?;
    tracing::warn!(reach, marked, found = salvage.reach(), damaged = %aside.display(),
        "the store is damaged: a new one is made from the last run's database");
    let client = start::start(folder, member, options).await?;
    salvage.write(&client).await?;
    salvage::finish(&aside)?;
    Ok(client)
}

/// Loss was accepted, and neither the store nor the last run's database can be read.
fn nothing_left(error: LogError) -> LogError {
    match error {
        LogError::Damaged { path, what, .. } => LogError::Damaged { path, what, advice: NOTHING_LEFT.to_owned() },
        failed => failed,
    }
}

/// Up to where the store is whole: from its newest whole snapshot on, every record there and unaltered.
async fn reach(client: &Client) -> Result<u64, LogError> {
    let mut reach = snapshots::newest(client).await?.map_or(0, |snapshot| snapshot.seq);
    loop {
        match rows::records(client, reach, BATCH_RECORDS_MAX).await? {
            Ok(records) => match records.last() {
                Some(last) => reach = last.seq,
                None => return Ok(reach),
            },
            Err(what) => {
                tracing::warn!(reach, what, "the store is damaged");
                return Ok(reach);
            }
        }
    }
}

/// Ends a node, in bounded time.
async fn end(client: &Client) {
    match tokio::time::timeout(CLOSE_WITHIN, client.shutdown()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => {
            tracing::warn!(%error, "the log did not end cleanly; the next start takes it as after a crash")
        }
        Err(_elapsed) => tracing::warn!("the log did not end in time; the next start takes it as after a crash"),
    }
}

#[async_trait]
impl Log for HiqliteLog {
    fn path(&self) -> String {
        self.folder.display().to_string()
    }

    async fn append(&self, records: Vec<Bytes>) -> Result<(), AppendError> {
        self.check_space()?;
        self.ask_leader(Forwarded::Append(records), Whose::Own).await.map(drop)
    }

    async fn read(&self, after: u64, max: usize) -> Result<Vec<Record>, LogError> {
        let records = rows::records(&self.client, after, max).await.map_err(|error| self.located(error))?;
        records.map_err(|what| self.damaged(what))
    }

    async fn snapshot(&self) -> Result<Option<Snapshot>, LogError> {
        snapshots::newest(&self.client).await.map_err(|error| self.located(error))
    }

    async fn save_snapshot(&self, snapshot: Snapshot) -> Result<(), AppendError> {
        self.check_space()?;
        snapshots::save(&self.client, snapshot).await
    }

    async fn cut(&self, upto: u64) -> Result<(), AppendError> {
        let not_done = |error: LogError| AppendError::NotDone(error.to_string());
        let upto = rows::integer(upto).map_err(not_done)?;
        let Some(oldest) = rows::oldest(&self.client).await.map_err(not_done)? else { return Ok(()) };
        let mut end = oldest;
        while end <= upto {
            end = end.saturating_add(CUT_SLICE);
            // Whatever the caller says, nothing goes that is not in a snapshot.
            let sql = "DELETE FROM log WHERE seq < $1 AND seq <= $2 AND seq <= (SELECT max(seq) FROM snapshot)";
            rows::write(&self.client, sql, vec![Param::Integer(end), Param::Integer(upto)]).await?;
        }
        Ok(())
    }

    fn mark(&self, seq: u64, chain: [u8; 32]) -> Result<(), LogError> {
        self.verified.call_once(|| salvage::discard(&self.folder));
        self.mark.set(seq, chain)
    }

    fn last_mark(&self) -> Option<(u64, [u8; 32])> {
        self.mark.at_open()
    }

    async fn newest(&self) -> Result<u64, AppendError> {
        self.newest_shared().await
    }

    async fn leader_clock(&self) -> Result<Option<u64>, AppendError> {
        self.other_clock().await
    }

    fn full(&self) -> Option<String> {
        self.room().want()
    }

    fn health(&self) -> Health {
        members::health(&self.client)
    }

    fn alone(&self) -> bool {
        members::are_one(&self.client)
    }

    async fn close(&self) {
        // hiqlite's own end of a member lasts ten seconds and leaves nothing better than the end of the process does.
        if self.alone() {
            end(&self.client).await;
        }
    }
}
