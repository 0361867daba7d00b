//! This node's own lease: renewed through the log, and told to the fences of its machines.
//!
//! The holder counts on CLOCK_BOOTTIME from before it submitted the renewal, and what it tells the fences is never shorter lived than what
//! it tells the others: a renewal covers what the fences have been told before, also if leases have become shorter since.

use super::lease::Options;
use crate::engine::Engine;
use crate::engine::host::deadline::{DeadlineFile, Term};
use crate::engine::host::{BootClock, DeadlineFolder, HostError, HostParts};
use crate::engine::hypervisor::Fence;
use crate::engine::state::{By, Command, Lease, NodeId, State};
use crate::mutants::{Mutant, planted};
use crate::text::Code;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Renewals within one length: two may be lost.
const RENEWALS: u32 = 3;
/// The pause after a renewal that was not taken.
const AGAIN_AFTER: Duration = Duration::from_millis(500);
/// A millisecond in nanoseconds.
const MS: u64 = 1_000_000;

/// The lease of this node.
pub(super) struct Holder {
    length_ms: u64,
    clock: Arc<dyn BootClock>,
    data: PathBuf,
    folder: DeadlineFolder,
    /// There once a machine was to be fenced here.
    file: Mutex<Option<DeadlineFile>>,
    /// What was acknowledged last.
    term: watch::Sender<Term>,
    /// Are there machines here that depend on it?
    is_wanted: watch::Sender<bool>,
}

impl Holder {
    /// Goes on with what a former life has told the fences, if the host was not started anew since.
    pub(super) fn open(data: &Path, host: &HostParts, options: Options) -> Result<Holder, HostError> {
        let file = DeadlineFile::find(data, &host.deadlines)?;
        let term = file.as_ref().map(DeadlineFile::term).unwrap_or_default();
        Ok(Holder {
            length_ms: options.length_ms,
            clock: host.clock.clone(),
            data: data.to_owned(),
            folder: host.deadlines.clone(),
            file: Mutex::new(file),
            term: watch::channel(term).0,
            is_wanted: watch::channel(false).0,
        })
    }

    /// A machine here depends on it: a node that is alone renews it, too, from here on.
    pub(super) fn want(&self) {
        self.is_wanted.send_if_modified(|is_wanted| !std::mem::replace(is_wanted, true));
    }

    /// Which unbroken chain of leases this is. Whoever asks before it looks at the state knows that what it finds there was not
    /// decided before this chain began: the renewal that began it is in the state.
    pub(super) fn tenure(&self) -> u64 {
        self.term.borrow().tenure
    }

    /// Is there a lease that lasts for a while? With less than half of one left a machine would hardly come up before it ends.
    pub(super) fn is_held(&self) -> bool {
        self.lasts(*self.term.borrow())
    }

    fn lasts(&self, term: Term) -> bool {
        term.ends_ns >= self.clock.now_ns().saturating_add(self.length_ms * MS / 2)
    }

    /// What was acknowledged last; wakes at each renewal.
    pub(super) fn renewals(&self) -> watch::Receiver<Term> {
        self.term.subscribe()
    }

    /// Returns when there is one.
    pub(super) async fn held(&self) {
        // It does not fail: the sender is our own.
        let _ = self.term.subscribe().wait_for(|term| self.lasts(*term)).await;
    }

    /// The fence of a machine that it was decided to start in this tenure.
    pub(super) fn fence(&self, tenure: u64) -> Result<Fence, HostError> {
        let mut file = self.file();
        let term = *self.term.borrow();
        let there = match file.take() {
            Some(there) => there,
            None => DeadlineFile::find_or_make(&self.data, &self.folder, term)?,
        };
        Ok(Fence { deadline: file.insert(there).path().to_owned(), tenure })
    }

    /// Does this fence look at our deadline? One that a former life has lost is renewed by nobody.
    pub(super) fn governs(&self, fence: &Fence) -> bool {
        self.file().as_ref().is_some_and(|file| file.path() == fence.deadline)
    }

    fn file(&self) -> MutexGuard<'_, Option<DeadlineFile>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How long the lease is to be that is renewed now, in milliseconds: at least as long as what the fences know.
    fn next_length_ms(&self, now_ns: u64) -> u64 {
        let told_ns = self.term.borrow().ends_ns.saturating_sub(now_ns);
        self.length_ms.max(told_ns.div_ceil(MS))
    }

    /// A renewal was acknowledged that lasts until then.
    fn acknowledged(&self, ends_ns: u64) {
        // Held over both: whoever makes the file has the newest term.
        let mut file = self.file();
        let term = self.term.borrow().renewed(ends_ns, self.clock.now_ns());
        if let Some(there) = file.as_mut()
            && let Err(error) = there.write(term)
        {
            tracing::error!(file = %there.path().display(), %error, "fences can't be told that the lease goes on");
            return;
        }
        self.term.send_replace(term);
    }

    /// Renews it until `stop`. A node that is alone, and has no machine that depends on it, needs none.
    pub(super) async fn keep(&self, engine: Engine, node: NodeId, stop: CancellationToken) -> Result<(), String> {
        let (mut changes, mut is_wanted) = (engine.changes(), self.is_wanted.subscribe());
        loop {
            let wanted = *is_wanted.borrow_and_update();
            let Some(lease) = renewable(&engine.state(), node, wanted) else {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
                    changed = is_wanted.changed() => changed.map_err(|_| "nobody holds the lease".to_owned())?,
                }
                continue;
            };
            let pause = self.renew(&engine, lease.counter + 1).await;
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Renews it once, and gives the pause until the next time.
    async fn renew(&self, engine: &Engine, counter: u64) -> Duration {
        let (before, before_ns) = (Instant::now(), self.clock.now_ns());
        let length_ms = self.next_length_ms(before_ns);
        if planted(Mutant::FenceEarly) {
            self.acknowledged(before_ns.saturating_add(length_ms * MS));
        }
        let renewal = Command::LeaseRenew { counter, length_ms, claim: engine.claim() };
        match engine.submit(By::Agent, vec![renewal]).await {
            Ok(_) => {
                self.acknowledged(before_ns.saturating_add(length_ms * MS));
                (Duration::from_millis(self.length_ms) / RENEWALS).saturating_sub(before.elapsed())
            }
            // An earlier one came through late.
            Err(refusal) if refusal.code == Code::Stale => Duration::ZERO,
            Err(refusal) => {
                tracing::warn!(%refusal, "the lease could not be renewed; it is tried again");
                AGAIN_AFTER.min(Duration::from_millis(self.length_ms) / RENEWALS)
            }
        }
    }
}

/// The lease, if this node is one of several, or is to have one anyway.
fn renewable(state: &State, node: NodeId, is_wanted: bool) -> Option<Lease> {
    state.node(node).filter(|_| is_wanted || state.nodes().len() > 1).map(|node| node.lease)
}
