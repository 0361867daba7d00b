//! The applier: takes committed records in order, applies them, and lets everybody know.
//!
//! Order of effects for each batch: the mark (so that a later loss would be noticed), then the view that readers see and the
//! wake-up of those who wait for news, then the answers to the submitters, then what nobody waits for.

use super::audit::Recorder;
use super::divergence::Comparison;
use super::failure::Failure;
use super::log::{Committed, Log, LogError, Record};
use super::replica::{Replica, Step, claim};
use super::snapshots::SnapshotKeeper;
use super::state::{Command, NodeId};
use super::submissions::{Applied, Waiters};
use super::view::View;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The most records that are applied before the result is shown. Readers see each batch at once, whole.
pub(super) const APPLY_BATCH_MAX: usize = 256;
/// How long a record that was announced may take to become readable: it is announced just before its commit.
const READABLE_WITHIN: Duration = Duration::from_secs(10);
/// The pause between two looks for it.
const READABLE_PAUSE: Duration = Duration::from_millis(2);

/// See the module.
pub(super) struct Applier {
    pub(super) replica: Replica,
    pub(super) log: Arc<dyn Log>,
    pub(super) view: Arc<View>,
    pub(super) waiters: Arc<Waiters>,
    pub(super) snapshots: SnapshotKeeper,
    pub(super) audit: Recorder,
    pub(super) node: NodeId,
    pub(super) boot: u64,
    /// The newest format of entries that is read.
    pub(super) entry_format: u8,
    /// What the last run had acknowledged, until this one has come so far: the records must be the same.
    pub(super) mark: Option<(u64, [u8; 32])>,
    /// The highest `n` of this node and boot that has been applied.
    pub(super) applied: watch::Sender<u64>,
    /// Whether the others have what this node has.
    pub(super) comparison: Comparison,
}

impl Applier {
    /// Runs until the log ends, which is always a fault: the engine drops this task before it closes the log.
    pub(super) async fn run(mut self, mut committed: Committed) -> Result<(), Failure> {
        let mut records = Vec::with_capacity(APPLY_BATCH_MAX);
        while committed.receive(&mut records, APPLY_BATCH_MAX).await > 0 {
            self.take(&records).await?;
            records.clear();
            if let Some(newest) = committed.newest_when_empty()
                && newest > self.replica.seq
            {
                self.catch_up(newest).await?;
            }
        }
        Err(Failure::LogEnded("it gives no more records".to_owned()))
    }

    /// Applies records as they came: old ones are skipped, missing ones are read.
    async fn take(&mut self, records: &[Record]) -> Result<(), Failure> {
        let mut rest = records;
        loop {
            let old = rest.iter().take_while(|record| record.seq <= self.replica.seq).count();
            rest = rest.get(old..).unwrap_or_default();
            let Some(first) = rest.first() else { return Ok(()) };
            if first.seq > self.replica.seq + 1 {
                self.catch_up(first.seq - 1).await?;
                continue;
            }
            let run = rest.iter().zip(first.seq..).take_while(|(record, seq)| record.seq == *seq).count();
            let (now, later) = rest.split_at_checked(run).unwrap_or((rest, &[]));
            self.apply(now).await?;
            rest = later;
        }
    }

    /// Reads and applies what the channel had no room for, up to and including `upto`.
    async fn catch_up(&mut self, upto: u64) -> Result<(), Failure> {
        tracing::debug!(from = self.replica.seq, upto, "reading records that were not passed on");
        let deadline = tokio::time::Instant::now() + READABLE_WITHIN;
        while self.replica.seq < upto {
            let after = self.replica.seq;
            let records = match self.log.read(after, APPLY_BATCH_MAX).await {
                Ok(records) => records,
                // Perhaps this node was away for so long that they have been cut: then there is a snapshot.
                Err(error) => {
                    self.jump().await.map_err(|why| format!("{error} ({why})"))?;
                    continue;
                }
            };
            if records.is_empty() {
                // Announced by the writer inside its transaction, and not committed yet: there is no event to wait for.
                if tokio::time::Instant::now() > deadline {
                    let missing = format!("record {} was announced and is not in the log", after + 1);
                    return Err(Failure::Other(missing));
                }
                tokio::time::sleep(READABLE_PAUSE).await;
            }
            self.apply(&records).await?;
        }
        Ok(())
    }

    /// Goes on from the newest snapshot in the log.
    async fn jump(&mut self) -> Result<(), String> {
        let snapshot = self.log.snapshot().await.map_err(|error| error.to_string())?;
        let snapshot =
            snapshot.filter(|snapshot| snapshot.seq > self.replica.seq).ok_or("there is no newer snapshot")?;
        let replica = Replica::from_snapshot(&snapshot)?;
        tracing::info!(
            from = self.replica.seq,
            to = replica.seq,
            "going on from a snapshot: the records before it have been cut"
        );
        self.replica = replica;
        let Replica { state, seq, chain, digest } = &self.replica;
        self.mark = self.mark.filter(|(mark, _)| mark > seq);
        if self.mark.is_none() {
            self.log.mark(*seq, *chain).map_err(|error: LogError| error.to_string())?;
        }
        self.view.jump(state.clone(), *digest, *seq);
        self.view.announce(*seq);
        Ok(())
    }

    /// The records that were acknowledged must be there; until they are, the mark stays where it is.
    fn check_mark(&mut self) -> Result<(), Failure> {
        let Some((seq, chain)) = self.mark else { return Ok(()) };
        if seq == self.replica.seq {
            if chain != self.replica.chain {
                let sentence = format!("the records up to {seq} are not those that it had acknowledged");
                return Err(Failure::Diverged(sentence));
            }
            self.mark = None;
        }
        Ok(())
    }

    /// What others have claimed to have, beside what this node has.
    fn compare(&mut self, step: &Step) -> Result<(), Failure> {
        self.comparison.note(claim(step.seq, &self.replica.digest));
        let claims = step.entry.commands.iter().filter_map(|command| match command {
            Command::LeaseRenew { claim, .. } => Some(*claim),
            _ => None,
        });
        let node = step.entry.id.node;
        for claim in claims.filter(|_| node != self.node) {
            self.comparison.hear(node, claim);
            self.comparison.check(&self.replica.state, self.node).map_err(Failure::Diverged)?;
        }
        Ok(())
    }

    /// Applies consecutive records and shows the result.
    async fn apply(&mut self, records: &[Record]) -> Result<(), Failure> {
        let mut answers: Vec<(u64, Applied)> = Vec::new();
        let mut steps: Vec<Step> = Vec::with_capacity(records.len());
        let mut events = Vec::new();
        for record in records {
            let mut step = self.replica.take(record, self.entry_format)?;
            self.check_mark()?;
            self.compare(&step)?;
            events.append(&mut step.events);
            let id = step.entry.id;
            if id.node == self.node && id.boot == self.boot && !step.repeated {
                answers.push((id.n, (step.seq, step.outcome.clone())));
            }
            steps.push(step);
        }
        let Replica { state, seq, chain, digest } = &self.replica;
        if self.mark.is_none() {
            self.log.mark(*seq, *chain).map_err(|error: LogError| error.to_string())?;
        }
        self.view.publish(state.clone(), *digest, events);
        self.view.announce(*seq);
        let newest_own = answers.last().map(|(n, _)| *n);
        self.waiters.complete(answers);
        if let Some(n) = newest_own {
            self.applied.send_replace(n);
        }
        for step in steps {
            self.audit.record(step).await?;
        }
        self.snapshots.consider(&self.replica, records);
        Ok(())
    }
}
