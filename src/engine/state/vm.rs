//! The VM: what is desired of it, what it actually does, and how one follows the other.
//!
//! ```text
//!              start                 Started              pause, Paused
//!   defined ──────────┐            ┌─────────▶ running ◀────────────────▶ paused
//!                     ▼            │           │  ▲  │     resume, Resumed   │
//!   stopped ─start─▶ starting ─────┘           │  └──┼── restart: starting   │
//!      ▲              │   ▲  │           Failed│     │stop, kill             │stop, kill
//!      │        Failed│   │  │stop, kill        ▼     ▼                       │
//!      │              │   │  └────────▶ (failed)   stopping ◀────────────────┘
//!      │              ▼   │start, RetryDue            │
//!      │            failed┘                           │Ended, PoweredOff, Failed
//!      └──────────────────────────────────────────────┘   (desired running: starting, next generation)
//!
//!   delete: defined ─▶ gone;  stopped, failed ─▶ deleting ─Removed─▶ gone;  else EBUSY
//!
//!   waiting: it is to run, nothing of it runs, and no node has room: whatever would have begun a generation without a user ends here,
//!   and it is begun as soon as there is room. It is the state of those whose node is lost, too, if their node is sure to have ended them.
//! ```
//!
//! Verbs set what is desired, the agent's reports say what is. Each start has a generation, and a report about another
//! generation is refused: the agent ends what is left of an older one before it begins, and says nothing of that.
//!
//! Every pair of a state and what can happen to it is in this table, which the tests walk:
//! ```text
#![doc = include_str!("transitions.txt")]
//! ```

use super::event::{EVENT_SENTENCE_BYTES_MAX, Event, Subject, What, bounded};
use super::words::words;
use super::{Ha, History, NodeId, Promised, Restart, VmId, VmReport, VmSpec};
use crate::clock::HybridTime;
use crate::mutants::{Mutant, planted};
use crate::text::Refusal;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;
use std::sync::Arc;

/// Failures in a row after which a VM is no longer started by itself.
pub const FAILURES_MAX: u32 = 10;
/// The pause before the first retry, in milliseconds; it doubles with each failure.
pub const RETRY_FIRST_MS: u64 = 1_000;
/// The longest pause before a retry, in milliseconds.
pub const RETRY_MOST_MS: u64 = 60_000;
/// A VM that ran for so many milliseconds has worked: the failures before that don't count any more. Ten of the longest
/// pauses; a guest that crashes whenever it has come up is not taken for one that works.
pub const STEADY_MS: u64 = 600_000;
/// A guest that powers itself off sooner than this after its start, in milliseconds, has failed in the eyes of
/// `restart=always`: else one that can't boot would be started as fast as the machine can.
pub const QUICK_MS: u64 = 10_000;
/// The longest error sentence that is kept, in bytes.
pub const ERROR_BYTES_MAX: usize = 1_024;

words!(
    /// What the user wants.
    Desired: "desired state" {
        /// Running.
        Running = "running",
        /// There, CPUs stopped.
        Paused = "paused",
        /// Not running.
        Stopped = "stopped",
        /// Gone.
        Deleted = "deleted",
    }
);
words!(
    /// What is, as far as the agents have reported.
    Actual: "state" {
        /// Never started.
        Defined = "defined",
        /// The agent is at work on it.
        Starting = "starting",
        /// It runs.
        Running = "running",
        /// It is there, CPUs stopped.
        Paused = "paused",
        /// The agent is ending it.
        Stopping = "stopping",
        /// It ran and doesn't any more.
        Stopped = "stopped",
        /// It could not be started or crashed; `error` says why.
        Failed = "failed",
        /// The agent is clearing up what is left of it.
        Deleting = "deleting",
        /// It is to run, and no node has room for it; `why` says what is wanting.
        Waiting = "waiting",
    }
);

/// A virtual machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vm {
    /// Its number.
    pub id: VmId,
    /// Its name, unique among VMs.
    pub name: Option<String>,
    /// What was asked for.
    pub spec: VmSpec,
    /// Who made it.
    pub owner: String,
    /// What the user wants.
    pub desired: Desired,
    /// What is.
    pub actual: Actual,
    /// Counts the starts; 0 before the first.
    pub generation: u64,
    /// Counts the changes of this object; `version=` compares it.
    pub version: u64,
    /// Where it is placed, or was last; None: nowhere, because it was never started, waits, or was taken off its node.
    pub node: Option<NodeId>,
    /// Where it goes when it has ended where it is: room is kept for it there.
    pub reserved: Option<NodeId>,
    /// Why it is where it is, or nowhere; None before its first start.
    pub why: Option<Arc<str>>,
    /// Memory promised to it there, in bytes; 0 when it holds none.
    pub promised_bytes: u64,
    /// Virtual CPUs promised to it there; 0 when it holds none.
    pub promised_cpus: u32,
    /// Was its generation begun under `ha=restart`? Its node ends it when it can't renew its lease; what the spec says by now counts
    /// from the next start.
    pub fenced: bool,
    /// May there still be a process of an earlier generation that was not fenced?
    pub unfenced_before: bool,
    /// Its address, leased from `new` to the end of `delete`.
    pub ip: Option<IpAddr>,
    /// The process on its node, for people to look at.
    pub pid: Option<u32>,
    /// Since when it runs.
    pub started: Option<HybridTime>,
    /// Has the guest answered in this generation?
    pub guest_ready: bool,
    /// The last error, a whole sentence.
    pub error: Option<Arc<str>>,
    /// Failures in a row.
    pub failures: u32,
    /// When the next try is due, in milliseconds of the cluster's time; the owning agent keeps the timer.
    pub retry_at_ms: Option<u64>,
    /// How long the current stop may take before it is by force, in milliseconds; 0: at once.
    pub stop_grace_ms: u64,
    /// When it was made.
    pub created: HybridTime,
    /// When it last changed.
    pub changed: HybridTime,
    /// The entry that last changed it.
    pub changed_seq: u64,
    /// Its last events.
    pub history: History,
}

/// What a verb or a report leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Change {
    /// It was so already.
    Nothing,
    /// It is so now.
    Now(What),
    /// The next generation is to begin: place it.
    Begin,
    /// The next generation is to begin where this one is, after its end.
    Again,
    /// It is to vanish.
    Remove,
}

fn busy(sentence: String) -> Result<Change, Refusal> {
    Err(Refusal::busy(sentence))
}

impl Vm {
    /// One that was never started.
    pub(super) fn new(id: VmId, name: Option<&str>, spec: &VmSpec, owner: &str, ip: IpAddr, now: HybridTime) -> Vm {
        Vm {
            id,
            name: name.map(str::to_owned),
            spec: spec.clone(),
            owner: owner.to_owned(),
            desired: Desired::Stopped,
            actual: Actual::Defined,
            generation: 0,
            version: 0,
            node: None,
            reserved: None,
            why: None,
            promised_bytes: 0,
            promised_cpus: 0,
            fenced: false,
            unfenced_before: false,
            ip: Some(ip),
            pid: None,
            started: None,
            guest_ready: false,
            error: None,
            failures: 0,
            retry_at_ms: None,
            stop_grace_ms: spec.grace_ms,
            created: now,
            changed: now,
            changed_seq: 0,
            history: History::default(),
        }
    }

    /// Is it as it was asked to be, or failed with no retry due? `wait` waits for this.
    pub fn settled(&self) -> bool {
        match (self.desired, self.actual) {
            (Desired::Running, Actual::Running) | (Desired::Paused, Actual::Paused) => true,
            (Desired::Stopped, Actual::Stopped | Actual::Defined) => true,
            (_, Actual::Failed) => self.retry_at_ms.is_none(),
            _ => false,
        }
    }

    /// Is there, or may there be, a process of it?
    pub fn active(&self) -> bool {
        matches!(self.actual, Actual::Starting | Actual::Running | Actual::Paused | Actual::Stopping)
    }

    /// Its last events, oldest first, at most [`super::HISTORY_MAX`].
    pub fn events(&self) -> impl Iterator<Item = Event> {
        let subject = Subject::Vm(self.id);
        self.history.iter().map(move |(seq, at, what)| Event { seq, at, subject: subject.clone(), what })
    }

    /// `vm 42 (web)`.
    fn called(&self) -> String {
        match &self.name {
            Some(name) => format!("vm {} ({name})", self.id),
            None => format!("vm {}", self.id),
        }
    }

    pub(super) fn start(&mut self) -> Result<Change, Refusal> {
        match self.actual {
            Actual::Defined | Actual::Stopped | Actual::Failed => Ok(self.begin_afresh()),
            // What starts or runs goes on; what is paused is resumed; what is being ended is started again after its end.
            Actual::Starting | Actual::Running | Actual::Paused | Actual::Stopping | Actual::Waiting => {
                Ok(self.desire(Desired::Running))
            }
            Actual::Deleting => self.being_deleted(),
        }
    }

    /// `grace_ms`: 0 is a kill.
    pub(super) fn stop(&mut self, grace_ms: u64) -> Result<Change, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused => {
                (self.desired, self.actual, self.stop_grace_ms) = (Desired::Stopped, Actual::Stopping, grace_ms);
                Ok(Change::Now(What::Stopping))
            }
            Actual::Stopping => {
                let sooner = grace_ms < self.stop_grace_ms;
                let unchanged = self.desired == Desired::Stopped && !sooner;
                self.desired = Desired::Stopped;
                self.stop_grace_ms = self.stop_grace_ms.min(grace_ms);
                self.reserved = None;
                Ok(if unchanged { Change::Nothing } else { Change::Now(What::Stopping) })
            }
            Actual::Failed | Actual::Waiting => {
                self.desired = Desired::Stopped;
                Ok(self.ended())
            }
            Actual::Defined | Actual::Stopped => Ok(Change::Nothing),
            Actual::Deleting => self.being_deleted(),
        }
    }

    pub(super) fn restart(&mut self) -> Result<Change, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused => {
                self.begin_afresh();
                Ok(Change::Again)
            }
            Actual::Stopping => busy(format!("{} is stopping and busy: wait for it, then start it", self.called())),
            Actual::Defined | Actual::Stopped | Actual::Failed => {
                busy(format!("{} is {}, so it can't be restarted (busy): start it", self.called(), self.actual))
            }
            Actual::Waiting => {
                busy(format!("{} is waiting and busy with that: it starts when there is room", self.called()))
            }
            Actual::Deleting => self.being_deleted(),
        }
    }

    pub(super) fn pause(&mut self) -> Result<Change, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused | Actual::Waiting => Ok(self.desire(Desired::Paused)),
            Actual::Deleting => self.being_deleted(),
            actual => busy(format!("{} is {actual} and can't be paused (busy): only a running one can", self.called())),
        }
    }

    pub(super) fn resume(&mut self) -> Result<Change, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused | Actual::Waiting => Ok(self.desire(Desired::Running)),
            Actual::Deleting => self.being_deleted(),
            actual => busy(format!("{} is {actual} and can't be resumed (busy): only a paused one can", self.called())),
        }
    }

    pub(super) fn delete(&mut self) -> Result<Change, Refusal> {
        match self.actual {
            // No node has anything of it.
            Actual::Defined => Ok(Change::Remove),
            Actual::Stopped | Actual::Failed if self.node.is_none() => Ok(Change::Remove),
            Actual::Stopped | Actual::Failed => {
                (self.desired, self.actual, self.retry_at_ms) = (Desired::Deleted, Actual::Deleting, None);
                self.give_back();
                self.name = None;
                Ok(Change::Now(What::Deleting))
            }
            Actual::Deleting => Ok(Change::Nothing),
            actual => busy(format!("{} is {actual} and so it is busy: stop it first", self.called())),
        }
    }

    /// Takes a name and a spec that have been checked. What the machine is made of takes effect at its next start.
    pub(super) fn set(&mut self, name: Option<String>, spec: VmSpec) -> Result<Change, Refusal> {
        if self.actual == Actual::Deleting {
            return self.being_deleted();
        }
        if (&self.name, &self.spec) == (&name, &spec) {
            return Ok(Change::Nothing);
        }
        (self.name, self.spec) = (name, spec);
        if self.spec.restart == Restart::Never && self.retry_at_ms.take().is_some() {
            self.give_back();
        }
        Ok(Change::Now(What::Set))
    }

    /// What the agent of its node saw of the current generation.
    pub(super) fn report(&mut self, report: &VmReport, now: HybridTime) -> Result<Change, Refusal> {
        let generation = self.generation;
        match (report, self.actual) {
            (VmReport::Started { pid }, Actual::Starting) => {
                (self.actual, self.pid, self.started) = (Actual::Running, Some(*pid), Some(now));
                // Its node ends what is left of earlier ones before it starts another.
                self.unfenced_before = false;
                Ok(Change::Now(What::Running { generation }))
            }
            (VmReport::GuestReady, _) if self.started.is_some() && !self.guest_ready => {
                (self.guest_ready, self.error) = (true, None);
                Ok(Change::Now(What::GuestReady { generation }))
            }
            (VmReport::Paused, Actual::Running) => {
                self.actual = Actual::Paused;
                Ok(Change::Now(What::Paused))
            }
            (VmReport::Resumed, Actual::Paused) => {
                self.actual = Actual::Running;
                Ok(Change::Now(What::Resumed))
            }
            (VmReport::PoweredOff | VmReport::Ended, Actual::Stopping) => Ok(self.ended()),
            (VmReport::Failed { sentence, .. }, Actual::Stopping) => {
                self.error = Some(bounded(sentence, ERROR_BYTES_MAX));
                Ok(self.ended())
            }
            (VmReport::PoweredOff, Actual::Starting | Actual::Running | Actual::Paused) => Ok(self.powered_off(now)),
            (VmReport::Ended, Actual::Starting | Actual::Running | Actual::Paused) => {
                Ok(self.fail("its process was ended, and nobody had asked for that here; start it", true, now))
            }
            (VmReport::Failed { sentence, may_retry }, Actual::Starting | Actual::Running | Actual::Paused) => {
                Ok(self.fail(sentence, *may_retry, now))
            }
            (VmReport::Fenced, Actual::Stopping) => Ok(self.ended()),
            // Whoever sets ha=restart has asked for this: it is no failure, and restart= is not asked.
            (VmReport::Fenced, Actual::Starting | Actual::Running | Actual::Paused) => Ok(self.ended()),
            (VmReport::RetryDue, Actual::Failed) if self.retry_at_ms.is_some() => Ok(Change::Begin),
            (VmReport::Removed, Actual::Deleting) => Ok(Change::Remove),
            (VmReport::Removed, actual) => {
                let sentence = format!("invalid report: {} is {actual} and can't have been removed", self.called());
                Err(Refusal::invalid(sentence))
            }
            (VmReport::Trouble { sentence }, _) => {
                self.error = Some(bounded(sentence, ERROR_BYTES_MAX));
                Ok(Change::Now(What::trouble(sentence)))
            }
            // It says what is known already, or what a later event has overtaken.
            _ => Ok(Change::Nothing),
        }
    }

    /// The host was booted anew: whatever process there was is gone.
    pub(super) fn host_gone(&mut self) -> Change {
        if self.active() { self.ended() } else { Change::Nothing }
    }

    /// Its node is lost. If that is sure to have ended it, or has said so, it is to begin elsewhere, or is no more.
    pub(super) fn node_lost(&mut self) -> Change {
        let was_retried = self.actual == Actual::Failed && self.retry_at_ms.is_some();
        let is_fenced = self.fenced && !self.unfenced_before || planted(Mutant::StayMoved);
        if !(was_retried && self.is_free() || self.active() && is_fenced) {
            return Change::Nothing;
        }
        self.ended()
    }

    /// Is there nothing of it that only its node has?
    pub fn is_free(&self) -> bool {
        self.spec.disk_bytes.is_none()
    }

    /// Can it be stopped and started elsewhere now? What is on its way to an end, or ended, is not moved.
    pub(super) fn may_move(&self) -> bool {
        self.is_free() && matches!(self.actual, Actual::Starting | Actual::Running | Actual::Paused)
    }

    /// It is to end where it is, and to begin on another node.
    pub(super) fn move_to(&mut self, node: NodeId, called: &str) -> What {
        (self.actual, self.stop_grace_ms, self.reserved) = (Actual::Stopping, self.spec.grace_ms, Some(node));
        What::Moving(called.into())
    }

    /// What it holds, and where.
    pub(super) fn holds(&self) -> impl Iterator<Item = (NodeId, Promised)> {
        let machine = Promised { bytes: self.promised_bytes, cpus: u64::from(self.promised_cpus), disk_bytes: 0 };
        let disk = Promised { disk_bytes: self.spec.disk_bytes.unwrap_or_default(), ..Promised::default() };
        let asked = Promised { bytes: self.spec.memory_bytes, cpus: u64::from(self.spec.cpus), ..disk };
        let is_late = planted(Mutant::PromiseLate);
        let machine = if is_late && self.actual == Actual::Starting { Promised::default() } else { machine };
        let here = self.node.map(|node| (node, machine.and(disk)));
        here.into_iter()
            .chain(self.reserved.filter(|_| !is_late).map(|node| (node, asked)))
            .filter(|(_, promised)| *promised != Promised::default())
    }

    /// It holds no memory and no CPUs of a node any more.
    fn give_back(&mut self) {
        if planted(Mutant::PromiseKept) {
            return;
        }
        (self.promised_bytes, self.promised_cpus) = (0, 0);
    }

    /// It is to run, and there is no room.
    pub(super) fn wait(&mut self, why: &str) -> What {
        self.leave();
        self.actual = Actual::Waiting;
        self.why = Some(bounded(why, ERROR_BYTES_MAX));
        What::Waiting(bounded(why, EVENT_SENTENCE_BYTES_MAX))
    }

    /// Nothing of it runs; what only its node has ties it to that.
    fn leave(&mut self) {
        self.give_back();
        (self.pid, self.started, self.guest_ready, self.retry_at_ms) = (None, None, false, None);
        (self.reserved, self.unfenced_before) = (None, false);
        if self.is_free() {
            self.node = None;
        }
    }

    /// It is off a node that is to be empty; nothing of it runs.
    pub(super) fn take_off(&mut self) -> What {
        self.node = None;
        What::TakenOff
    }

    /// Whoever runs the cluster says that its node is gone for good, with all that it had.
    pub(super) fn node_forgotten(&mut self, called: &str) -> Change {
        let was_lost = !self.is_free();
        self.leave();
        self.node = None;
        if self.actual == Actual::Deleting {
            return Change::Remove;
        }
        if was_lost {
            let sentence =
                format!("its disk was on node '{called}', which is gone for good: a start makes an empty one");
            self.error = Some(bounded(&sentence, ERROR_BYTES_MAX));
            self.desired = Desired::Stopped;
        }
        self.ended()
    }

    /// A generation begins on this node. `over`: one that may still run there, and is ended first.
    pub(super) fn begin(&mut self, node: NodeId, why: &str, over: bool) -> What {
        self.generation += 1;
        self.unfenced_before = over && (self.unfenced_before || !self.fenced);
        self.actual = Actual::Starting;
        (self.node, self.reserved, self.why) = (Some(node), None, Some(bounded(why, ERROR_BYTES_MAX)));
        (self.promised_bytes, self.promised_cpus) = (self.spec.memory_bytes, self.spec.cpus);
        self.fenced = self.spec.ha == Ha::Restart;
        (self.pid, self.started, self.guest_ready) = (None, None, false);
        (self.retry_at_ms, self.stop_grace_ms) = (None, self.spec.grace_ms);
        What::Starting { generation: self.generation }
    }

    /// Its process is gone, or never came, and nobody had asked for that.
    pub(super) fn fail(&mut self, sentence: &str, may_retry: bool, now: HybridTime) -> Change {
        if self.ran_ms(now).is_some_and(|ms| ms >= STEADY_MS) {
            self.failures = 0;
        }
        self.failures = self.failures.saturating_add(1);
        (self.actual, self.pid, self.started, self.guest_ready) = (Actual::Failed, None, None, false);
        self.error = Some(bounded(sentence, ERROR_BYTES_MAX));
        let retried = may_retry && self.spec.restart != Restart::Never && self.failures < FAILURES_MAX;
        let pause_ms = RETRY_FIRST_MS.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(RETRY_MOST_MS);
        self.retry_at_ms = retried.then(|| now.millis().saturating_add(pause_ms));
        if !retried {
            self.give_back();
        }
        Change::Now(What::failed(sentence))
    }

    /// A user wants it to begin: what was before doesn't count.
    fn begin_afresh(&mut self) -> Change {
        (self.desired, self.failures, self.error) = (Desired::Running, 0, None);
        Change::Begin
    }

    fn desire(&mut self, desired: Desired) -> Change {
        if self.desired == desired {
            return Change::Nothing;
        }
        self.desired = desired;
        Change::Now(match (desired, self.actual) {
            (Desired::Running, Actual::Stopping) => What::StartingAgain,
            (Desired::Running, _) => What::Resuming,
            (Desired::Paused, _) => What::Pausing,
            (Desired::Stopped | Desired::Deleted, _) => What::Stopping,
        })
    }

    fn being_deleted(&self) -> Result<Change, Refusal> {
        Err(Refusal::not_found(format!("vm {} was not found: it is being deleted", self.id)))
    }

    /// The guest powered itself off.
    fn powered_off(&mut self, now: HybridTime) -> Change {
        if self.spec.restart != Restart::Always {
            self.desired = Desired::Stopped;
            return self.ended();
        }
        match self.ran_ms(now) {
            Some(ms) if ms >= QUICK_MS => Change::Begin,
            _ => self.fail("the guest powered itself off as soon as it was started", true, now),
        }
    }

    /// Its process is gone, as was asked for; or whoever asks for another one gets it.
    fn ended(&mut self) -> Change {
        if matches!(self.desired, Desired::Running | Desired::Paused) {
            return Change::Begin;
        }
        (self.actual, self.pid, self.started, self.guest_ready) = (Actual::Stopped, None, None, false);
        self.give_back();
        (self.retry_at_ms, self.reserved, self.unfenced_before) = (None, None, false);
        Change::Now(What::Stopped)
    }

    fn ran_ms(&self, now: HybridTime) -> Option<u64> {
        self.started.map(|started| now.millis().saturating_sub(started.millis()))
    }
}
