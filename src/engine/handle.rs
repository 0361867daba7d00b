//! The engine's handle: what the tree and the agent hold. Submit, look, wait for news.

use super::appender::Appender;
use super::applier::Applier;
use super::audit::{self, AuditLines, Trail};
use super::backup::{BACKUPS_MAX, BackupReader};
use super::divergence::Comparison;
use super::failure::Failure;
use super::log::told::{Teller, Told};
use super::log::{AppendError, Committed, Health, Log, LogError};
use super::recovery::recover;
use super::snapshots::{SnapshotKeeper, write_snapshots};
use super::state::{By, Claim, Command, ENTRY_FORMAT, NodeId, Reply, State};
use super::submissions::{Applied, Submissions, Waiters};
use super::view::{Events, View};
use crate::clock::{ClockError, HybridClock, HybridTime};
use crate::mutants::{Mutant, planted};
use crate::text::Refusal;
use futures::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{Semaphore, watch};
use tokio_util::task::AbortOnDropHandle;

/// How the engine is set.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a submitter waits for a place in the queue and then for the outcome, together.
    pub submit_patience: Duration,
    /// A snapshot is due after so many records, or so many bytes of records, whichever comes first.
    pub snapshot_every_records: u64,
    /// See [`Options::snapshot_every_records`].
    pub snapshot_every_bytes: u64,
    /// The folder of the audit trail; None keeps a short one in memory.
    pub audit: Option<PathBuf>,
    /// The newest format of entries that this node reads: [`ENTRY_FORMAT`], unless it stands for an older release.
    pub entry_format: u8,
}

impl Default for Options {
    /// Ten seconds: longer than an election takes, shorter than people wait. Snapshots often enough that a start replays for
    /// a second at most and the database stays small.
    fn default() -> Self {
        Options {
            submit_patience: Duration::from_secs(10),
            snapshot_every_records: 20_000,
            snapshot_every_bytes: 16 * 1024 * 1024,
            audit: None,
            entry_format: ENTRY_FORMAT,
        }
    }
}

/// How long a node of a cluster may take at its start, once there is a leader, to come as far as the others are.
const START_WITHIN: Duration = Duration::from_secs(60);
/// How long nothing comes until it is looked whether the store still runs.
const START_SILENCE: Duration = Duration::from_secs(2);
/// The pause between two tries.
const START_PAUSE: Duration = Duration::from_millis(200);
/// How long closing waits for what has been submitted to be appended and applied.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);
/// How long a reader waits for the audit trail to have what is applied.
const AUDIT_WITHIN: Duration = Duration::from_secs(5);

/// The handle; a clone is the same engine. When the last one is dropped, the engine's tasks end.
#[derive(Debug, Clone)]
pub struct Engine {
    shared: Arc<Shared>,
}

struct Shared {
    view: Arc<View>,
    log: Arc<dyn Log>,
    clock: Arc<HybridClock>,
    /// None once closed.
    submissions: Mutex<Option<Arc<Submissions>>>,
    trail: Trail,
    options: Options,
    /// For those that follow the log.
    teller: Teller,
    /// A place for each backup that is being read.
    backups: Arc<Semaphore>,
    /// A snapshot is wanted with the next entry.
    snapshot_wanted: Arc<AtomicBool>,
    failed: watch::Receiver<Option<Failure>>,
    /// None once closed.
    tasks: Mutex<Option<Tasks>>,
}

/// What runs; each ends when its handle is dropped.
struct Tasks {
    appender: AbortOnDropHandle<()>,
    applier: AbortOnDropHandle<()>,
    snapshots: AbortOnDropHandle<()>,
    scribe: AbortOnDropHandle<()>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("log", &self.log.path()).finish_non_exhaustive()
    }
}

impl Engine {
    /// Opens the engine over a log: recovers the state and starts the tasks. `boot` counts this node's starts and must be
    /// higher than that of any earlier start.
    pub async fn open(
        log: Arc<dyn Log>,
        committed: Committed,
        clock: Arc<HybridClock>,
        node: NodeId,
        boot: u64,
    ) -> Result<Engine, LogError> {
        Self::open_with(log, committed, clock, node, boot, Options::default()).await
    }

    /// As [`Engine::open`], with other settings.
    pub async fn open_with(
        log: Arc<dyn Log>,
        committed: Committed,
        clock: Arc<HybridClock>,
        node: NodeId,
        boot: u64,
        options: Options,
    ) -> Result<Engine, LogError> {
        let (mut recorder, trail, scribe) = audit::open(options.audit.as_deref())
            .map_err(|error| LogError::Failed(format!("the audit trail can't be opened: {error}")))?;
        let (failing, failed) = watch::channel(None);
        let writing =
            scribe.start().map_err(|error| LogError::Failed(format!("the audit trail has no thread: {error}")))?;
        let scribe = supervise("audit trail", writing, failing.clone());
        let (replica, view) = recover(&*log, &recorder, options.entry_format).await?;
        // In a cluster the log may reach further than this node knows yet.
        if log.alone() {
            recorder.begin_at(replica.seq).await.map_err(LogError::Failed)?;
        }
        let mark = log.last_mark().filter(|(seq, _)| *seq > replica.seq);
        let waiters = Arc::new(Waiters::default());
        let (submissions, queue) = Submissions::new(waiters.clone(), clock.clone(), node, boot);
        let (applied, applied_receiver) = watch::channel(0);
        let snapshot_wanted = Arc::new(AtomicBool::new(false));
        let (snapshots, asked) =
            SnapshotKeeper::new(options.snapshot_every_records, options.snapshot_every_bytes, snapshot_wanted.clone());
        let appender = Appender { queue, log: log.clone(), waiters: waiters.clone(), applied: applied_receiver };
        let audit = recorder.clone();
        let applier = Applier {
            replica,
            log: log.clone(),
            view: view.clone(),
            waiters,
            snapshots,
            audit,
            node,
            boot,
            entry_format: options.entry_format,
            mark,
            applied,
            comparison: Comparison::default(),
        };
        let tasks = Tasks {
            appender: supervise("appender", appender.run(), failing.clone()),
            applier: supervise("applier", applier.run(committed), failing.clone()),
            snapshots: supervise("snapshots", write_snapshots(asked, log.clone(), recorder), failing),
            scribe,
        };
        let submissions = Mutex::new(Some(Arc::new(submissions)));
        let tasks = Mutex::new(Some(tasks));
        let backups = Arc::new(Semaphore::new(BACKUPS_MAX));
        let teller = Teller::new(log.clone());
        let shared =
            Shared { view, log, clock, submissions, trail, options, teller, backups, snapshot_wanted, failed, tasks };
        let shared = Arc::new(shared);
        let engine = Engine { shared };
        engine.begin(node, boot).await?;
        Ok(engine)
    }

    /// In a cluster, first comes as far as the others are; then the clock goes on from what the log has.
    async fn begin(&self, node: NodeId, boot: u64) -> Result<(), LogError> {
        let shared = &self.shared;
        if !shared.log.alone() {
            let newest = tokio::select! {
                reached = self.reach_at_start() => reached?,
                why = self.failed() => return Err(self.unusable(why)),
                why = self.silence_at_start() => return Err(self.unusable(Failure::Diverged(why))),
            };
            if let Some((seq, _)) = shared.log.last_mark().filter(|(seq, _)| *seq > newest) {
                return Err(LogError::Failed(format!(
                    "the cluster's log ends at record {newest}, but records up to {seq} were acknowledged on this node: the others \
                     have lost them"
                )));
            }
        }
        let state = self.state();
        check_boot(&state, node, boot)?;
        shared.clock.resume(state.now());
        if let Some(newest) = state.newest_stamp(node) {
            shared.clock.resume(newest);
        }
        Ok(())
    }

    /// Submits one transaction and waits for its outcome: when this returns `Ok`, the commands are durable, have taken effect, and
    /// [`Engine::state`] shows it. Dropping the future does not take the commands back.
    ///
    /// Refusals of the engine's own: EAGAIN and ENOSPC when nothing was done; ETIMEDOUT, with the entry's id, when it is
    /// not known what became of it.
    pub async fn submit(&self, by: By, commands: Vec<Command>) -> Result<Vec<Reply>, Refusal> {
        let (_seq, outcome) = self.submit_entry(by, commands).await?;
        outcome
    }

    async fn submit_entry(&self, by: By, commands: Vec<Command>) -> Result<Applied, Refusal> {
        check_formats(&self.state(), &commands)?;
        let submissions = self.shared.submissions.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match submissions {
            Some(submissions) => submissions.submit(by, commands, self.shared.options.submit_patience).await,
            None => Err(Refusal::again("busy: the node is going down; nothing was done")),
        }
    }

    /// The newest state. Keep it as long as you like: it never changes, and writers go on beside it.
    pub fn state(&self) -> Arc<State> {
        self.shared.view.state()
    }

    /// What is in the log after a record: at most `max` records, or the snapshot if they have been cut.
    ///
    /// # Errors
    /// EIO: the log can't be read.
    pub async fn log_after(&self, after: u64, max: usize) -> Result<Told, Refusal> {
        let told = self.shared.teller.after(after, max).await;
        told.map_err(|error| Refusal::fault(format!("the log can't be read: {error}")))
    }

    /// Up to where this node has applied the log, and what came of it.
    pub fn claim(&self) -> Claim {
        self.shared.view.claim()
    }

    /// A hash over everything that was decided up to the entry `seq`, in hexadecimal, if that is the newest that was applied: the same on
    /// all nodes, or one of them has gone wrong.
    pub fn digest_of(&self, seq: u64) -> Option<String> {
        self.shared.view.digest_of(seq).map(|digest| digest.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// What this node's own hybrid clock shows; it goes on while nothing is submitted.
    ///
    /// # Errors
    /// The clock of the machine can't be read.
    pub fn time(&self) -> Result<HybridTime, ClockError> {
        self.shared.clock.reading()
    }

    /// Why nothing can be written through this node for want of room on its disk, in a sentence.
    pub fn full(&self) -> Option<String> {
        self.shared.log.full()
    }

    /// What the clock of the node that leads shows while it is asked, in milliseconds since the Unix epoch. None: nobody else leads.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn leader_clock(&self) -> Result<Option<u64>, AppendError> {
        self.shared.log.leader_clock().await
    }

    /// The number of the newest applied entry; wakes at each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.view.changes()
    }

    /// What happened after the entry `seq`: at most `max` events, and the rest of the last one's entry. Go on with the
    /// last event's `seq`.
    pub fn events_after(&self, seq: u64, max: usize) -> Events {
        self.shared.view.events_after(seq, max)
    }

    /// Returns when this node has applied everything that was committed anywhere before the call: up to which entry that is. It
    /// asks the leader, and puts nothing into the log.
    ///
    /// # Errors
    /// EAGAIN: no majority has answered in time.
    pub async fn sync(&self) -> Result<u64, Refusal> {
        self.reach_newest(self.shared.options.submit_patience).await
    }

    fn unusable(&self, why: Failure) -> LogError {
        match why {
            Failure::Diverged(what) => LogError::Damaged {
                path: self.shared.log.path(),
                what,
                advice: "it is made anew from the others".to_owned(),
            },
            other => LogError::Failed(other.to_string()),
        }
    }

    /// While nothing comes, looks whether the store still runs: until it does not. What hiqlite installs from a snapshot it does not
    /// announce, and a store that ends over it says nothing.
    async fn silence_at_start(&self) -> String {
        let mut changes = self.changes();
        loop {
            match tokio::time::timeout(START_SILENCE, changes.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_ended)) => std::future::pending().await,
                Err(_silent) => {
                    if let Some(why) = self.health().dead {
                        return format!("the store can't go on: {why}");
                    }
                }
            }
        }
    }

    /// Those who lead may be starting as well.
    async fn reach_at_start(&self) -> Result<u64, LogError> {
        let deadline = tokio::time::Instant::now() + START_WITHIN;
        loop {
            match self.reach_newest(START_WITHIN).await {
                Err(refusal) if tokio::time::Instant::now() < deadline => {
                    tracing::warn!(%refusal, "waiting for the others");
                    tokio::time::sleep(START_PAUSE).await;
                }
                reached => return reached.map_err(|refusal| LogError::Failed(refusal.sentence)),
            }
        }
    }

    async fn reach_newest(&self, within: Duration) -> Result<u64, Refusal> {
        if planted(Mutant::StaleSync) {
            return Ok(self.state().seq());
        }
        let reaching = async {
            let newest = self.shared.log.newest().await;
            let newest = newest.map_err(|error| Refusal::again(format!("busy: no quorum: {error}")))?;
            let mut changes = self.changes();
            let reached = changes.wait_for(|seq| *seq >= newest).await;
            reached.map(drop).map_err(|_ended| Refusal::again("busy: the node is going down"))?;
            Ok(newest)
        };
        let late = |_| {
            Refusal::again(format!("busy: no quorum: nothing was heard of the leader within {} s", within.as_secs()))
        };
        tokio::time::timeout(within, reaching).await.map_err(late)?
    }

    /// How the log is at this moment, as far as this node knows.
    pub fn health(&self) -> Health {
        self.shared.log.health()
    }

    /// Waits until the engine can't go on, and says why. The process must end then: what is in the log is safe, and a new start
    /// finds it. Never returns after [`Engine::close`].
    pub async fn failed(&self) -> Failure {
        let mut failed = self.shared.failed.clone();
        let reason = match failed.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone(),
            Err(_closed) => None,
        };
        match reason {
            Some(reason) => reason,
            None => std::future::pending().await,
        }
    }

    /// The engine's own tasks, and whether each still runs; none when it is closed. One that ends is the engine's end.
    pub fn tasks(&self) -> Vec<(&'static str, bool)> {
        let tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(Tasks { appender, applier, snapshots, scribe }) = &*tasks else { return Vec::new() };
        [("appender", appender), ("applier", applier), ("snapshots", snapshots), ("audit", scribe)]
            .map(|(name, task)| (name, !task.is_finished()))
            .to_vec()
    }

    /// The audit trail after the entry `seq`: at most `max` lines, up to what [`Engine::state`] shows now.
    pub async fn audit_after(&self, seq: u64, max: usize) -> Result<AuditLines, Refusal> {
        let applied = *self.shared.view.changes().borrow();
        match tokio::time::timeout(AUDIT_WITHIN, self.shared.trail.after(seq, max, applied)).await {
            Ok(lines) => lines.map_err(|error| Refusal::fault(format!("invalid answer from the disk: {error}"))),
            Err(_elapsed) => Err(Refusal::again("busy: the audit trail is being written; try again")),
        }
    }

    /// Has a snapshot of the state written into the log with the next entry, which the next renewal of a lease is at the latest, and the log
    /// cut behind the one before it. It is the node that leads which writes them: elsewhere this does nothing.
    pub fn snapshot(&self) {
        self.shared.snapshot_wanted.store(true, Ordering::Relaxed);
    }

    /// Begins to read a backup of what [`Engine::state`] shows now.
    ///
    /// # Errors
    /// EBUSY: as many are being read as can be at a time.
    pub fn backup(&self) -> Result<BackupReader, Refusal> {
        let place = self.shared.backups.clone().try_acquire_owned().map_err(|_none| {
            Refusal::busy(format!(
                "busy: {BACKUPS_MAX} backups are being read from this node, which is the most: try again"
            ))
        })?;
        Ok(BackupReader::begin(self.state(), place))
    }

    /// Ends it: takes no more submissions, lets those that are in the queue come through, closes the log. Bounded in time.
    pub async fn close(&self) {
        // The queue ends when its last sender goes: submitters that are waiting for a place keep it open until they have it.
        self.shared.submissions.lock().unwrap_or_else(PoisonError::into_inner).take();
        let tasks = self.shared.tasks.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Tasks { appender, applier, snapshots, scribe }) = tasks else { return };
        if tokio::time::timeout(CLOSE_WITHIN, appender).await.is_err() {
            tracing::warn!("closing with commands still on their way; the next start will show what became of them");
        }
        drop((applier, snapshots));
        // It ends when the tasks that record are gone, and has written everything by then.
        if tokio::time::timeout(CLOSE_WITHIN, scribe).await.is_err() {
            tracing::warn!("closing before the audit trail was written; the next start adds what is missing");
        }
        self.shared.log.close().await;
    }
}

/// A start whose number was used before would take its entries for repetitions of old ones.
fn check_boot(state: &State, node: NodeId, boot: u64) -> Result<(), LogError> {
    match state.last_of(node) {
        Some((last, _)) if last >= boot => Err(LogError::Failed(format!(
            "this start of node {node} is number {boot}, but the log has entries of its start {last} already: \
             the count of starts in the data folder is invalid; write a number above {last} into its file boot"
        ))),
        _ => Ok(()),
    }
}

/// What not every node can read must wait until the last one is upgraded.
fn check_formats(state: &State, commands: &[Command]) -> Result<(), Refusal> {
    let needed = commands.iter().map(Command::since).max().unwrap_or_default();
    match state.nodes().find(|node| node.entry_format < needed) {
        None => Ok(()),
        Some(node) => Err(Refusal::again(format!(
            "busy: node '{}' runs blixard {}, which can't read this command yet (format {needed}): upgrade it first; nothing was done",
            node.name, node.release
        ))),
    }
}

/// Runs a task of the engine; when it fails or panics, the engine has failed.
fn supervise<E: Into<Failure>>(
    name: &'static str,
    task: impl Future<Output = Result<(), E>> + Send + 'static,
    failing: watch::Sender<Option<Failure>>,
) -> AbortOnDropHandle<()> {
    AbortOnDropHandle::new(tokio::spawn(async move {
        let reason = match AssertUnwindSafe(task).catch_unwind().await {
            Ok(Ok(())) => return,
            Ok(Err(why)) => match why.into() {
                Failure::Other(why) => Failure::Other(format!("the {name} can't go on: {why}")),
                known => known,
            },
            Err(_panic) => Failure::Other(format!("the {name} has panicked; the trace has more")),
        };
        tracing::error!("{name}: {reason}");
        failing.send_if_modified(|failed| {
            let first = failed.is_none();
            failed.get_or_insert(reason);
            first
        });
    }))
}
