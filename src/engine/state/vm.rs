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
//! ```
//!
//! Verbs set what is desired, the agent's reports say what is. Each start has a generation; a report about another one is
//! refused. What an end leads to depends on `restart=` and on what is desired:
//!
//! | while            | PoweredOff                                | Failed, Ended                                     |
//! |------------------|-------------------------------------------|---------------------------------------------------|
//! | stopping         | stopped, or starting if that is desired   | the same                                          |
//! | starting/running | `always`: starting; else desired stopped  | failed; then starting when the retry is due       |

use super::{NodeId, Restart, VmId, VmReport, VmSpec, What};
use crate::clock::HybridTime;
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
/// The longest error sentence that is kept, in bytes.
pub const ERROR_BYTES_MAX: usize = 1_024;

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* $variant),* }
        impl $name {
            /// All of them.
            pub const ALL: &[$name] = &[$($name::$variant),*];
        }
        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.pad(match self { $($name::$variant => $word),* })
            }
        }
    };
}

words!(
    /// What the user wants.
    Desired {
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
    Actual {
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
    /// Where it is placed.
    pub node: Option<NodeId>,
    /// Memory promised to it there, in bytes; 0 when it holds none.
    pub promised_bytes: u64,
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
    /// Its last events: (seq, time, what), at most [`super::event::HISTORY_MAX`].
    pub history: Vec<(u64, HybridTime, What)>,
}

/// What a verb or a report leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// It was so already.
    Unchanged,
    /// It is so now.
    Changed(What),
    /// A new generation is to begin: place it.
    Begin,
    /// It is to vanish.
    Remove,
}

fn busy(sentence: String) -> Result<Step, Refusal> {
    Err(Refusal::busy(sentence))
}

/// At most [`ERROR_BYTES_MAX`] of a sentence, cut between letters.
pub(super) fn bounded(sentence: &str) -> Arc<str> {
    let end = (0..=sentence.len().min(ERROR_BYTES_MAX)).rev().find(|i| sentence.is_char_boundary(*i)).unwrap_or(0);
    sentence.get(..end).unwrap_or_default().into()
}

impl Vm {
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

    /// "vm 42".
    fn called(&self) -> String {
        match &self.name {
            Some(name) => format!("vm {} ({name})", self.id),
            None => format!("vm {}", self.id),
        }
    }

    pub(super) fn start(&mut self) -> Result<Step, Refusal> {
        match self.actual {
            Actual::Defined | Actual::Stopped | Actual::Failed => {
                (self.desired, self.failures, self.error) = (Desired::Running, 0, None);
                Ok(Step::Begin)
            }
            // What starts or runs goes on; what is being ended is started again after its end.
            Actual::Starting | Actual::Running | Actual::Paused | Actual::Stopping => Ok(self.desire(Desired::Running)),
            Actual::Deleting => busy(format!("{} is being deleted", self.called())),
        }
    }

    fn desire(&mut self, desired: Desired) -> Step {
        if self.desired == desired {
            return Step::Unchanged;
        }
        self.desired = desired;
        Step::Changed(match desired {
            Desired::Running if self.actual == Actual::Stopping => What::Starting { generation: self.generation + 1 },
            Desired::Running => What::Resuming,
            Desired::Paused => What::Pausing,
            Desired::Stopped | Desired::Deleted => What::Stopping,
        })
    }

    /// `grace_ms`: 0 is a kill.
    pub(super) fn stop(&mut self, grace_ms: u64) -> Result<Step, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused => {
                (self.desired, self.actual, self.stop_grace_ms) = (Desired::Stopped, Actual::Stopping, grace_ms);
                Ok(Step::Changed(What::Stopping))
            }
            Actual::Stopping => {
                let sooner = grace_ms < self.stop_grace_ms;
                let unchanged = self.desired == Desired::Stopped && !sooner;
                self.desired = Desired::Stopped;
                self.stop_grace_ms = self.stop_grace_ms.min(grace_ms);
                Ok(if unchanged { Step::Unchanged } else { Step::Changed(What::Stopping) })
            }
            Actual::Failed => {
                (self.desired, self.actual, self.retry_at_ms, self.promised_bytes) =
                    (Desired::Stopped, Actual::Stopped, None, 0);
                Ok(Step::Changed(What::Stopped))
            }
            Actual::Defined | Actual::Stopped => Ok(Step::Unchanged),
            Actual::Deleting => busy(format!("{} is being deleted", self.called())),
        }
    }

    pub(super) fn restart(&mut self) -> Result<Step, Refusal> {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused => {
                (self.desired, self.failures, self.error) = (Desired::Running, 0, None);
                Ok(Step::Begin)
            }
            Actual::Stopping => busy(format!("{} is stopping and busy: wait for it, then start it", self.called())),
            Actual::Defined | Actual::Stopped | Actual::Failed => {
                busy(format!("{} is {}, so it can't be restarted (busy): start it", self.called(), self.actual))
            }
            Actual::Deleting => busy(format!("{} is being deleted", self.called())),
        }
    }

    pub(super) fn pause(&mut self) -> Result<Step, Refusal> {
        match self.actual {
            Actual::Running | Actual::Paused => Ok(self.desire(Desired::Paused)),
            actual => busy(format!("{} is {actual} and can't be paused (busy): only a running one can", self.called())),
        }
    }

    pub(super) fn resume(&mut self) -> Result<Step, Refusal> {
        match self.actual {
            Actual::Running | Actual::Paused => Ok(self.desire(Desired::Running)),
            actual => busy(format!("{} is {actual} and can't be resumed (busy): only a paused one can", self.called())),
        }
    }

    pub(super) fn delete(&mut self) -> Result<Step, Refusal> {
        match self.actual {
            // No node has anything of it.
            Actual::Defined => Ok(Step::Remove),
            Actual::Stopped | Actual::Failed if self.node.is_none() => Ok(Step::Remove),
            Actual::Stopped | Actual::Failed => {
                (self.desired, self.actual, self.retry_at_ms) = (Desired::Deleted, Actual::Deleting, None);
                (self.promised_bytes, self.name) = (0, None);
                Ok(Step::Changed(What::Deleting))
            }
            Actual::Deleting => Ok(Step::Unchanged),
            actual => busy(format!("{} is {actual} and so it is busy: stop it first", self.called())),
        }
    }

    /// What the agent of its node saw of the current generation.
    pub(super) fn report(&mut self, report: &VmReport, now: HybridTime) -> Result<Step, Refusal> {
        let generation = self.generation;
        match (report, self.actual) {
            (VmReport::Started { pid }, Actual::Starting) => {
                (self.actual, self.pid, self.started) = (Actual::Running, Some(*pid), Some(now));
                Ok(Step::Changed(What::Running { generation }))
            }
            (VmReport::GuestReady, Actual::Running | Actual::Paused) if !self.guest_ready => {
                (self.guest_ready, self.failures, self.error) = (true, 0, None);
                Ok(Step::Changed(What::GuestReady { generation }))
            }
            (VmReport::Paused, Actual::Running) => {
                self.actual = Actual::Paused;
                Ok(Step::Changed(What::Paused))
            }
            (VmReport::Resumed, Actual::Paused) => {
                self.actual = Actual::Running;
                Ok(Step::Changed(What::Resumed))
            }
            (VmReport::PoweredOff | VmReport::Ended, Actual::Stopping) => Ok(self.ended()),
            (VmReport::Failed { sentence, .. }, Actual::Stopping) => {
                self.error = Some(bounded(sentence));
                Ok(self.ended())
            }
            (VmReport::PoweredOff, Actual::Starting | Actual::Running | Actual::Paused) => {
                if self.spec.restart == Restart::Always {
                    self.desired = Desired::Running;
                    return Ok(Step::Begin);
                }
                self.desired = Desired::Stopped;
                Ok(self.ended())
            }
            (VmReport::Ended, Actual::Starting | Actual::Running | Actual::Paused) => {
                Ok(self.fail("its process was ended and nobody had asked for it", true, now))
            }
            (VmReport::Failed { sentence, may_retry }, Actual::Starting | Actual::Running | Actual::Paused) => {
                Ok(self.fail(sentence, *may_retry, now))
            }
            (VmReport::RetryDue, Actual::Failed) if self.retry_at_ms.is_some() => Ok(Step::Begin),
            (VmReport::Removed, Actual::Deleting) => Ok(Step::Remove),
            (VmReport::Removed, actual) => Err(Refusal::invalid(format!(
                "invalid report: {} is {actual} and can't have been removed",
                self.called()
            ))),
            (VmReport::Trouble { sentence }, _) => {
                let sentence = bounded(sentence);
                self.error = Some(sentence.clone());
                Ok(Step::Changed(What::Trouble(sentence)))
            }
            _ => Ok(Step::Unchanged),
        }
    }

    /// Its process is gone, as was asked for.
    fn ended(&mut self) -> Step {
        if matches!(self.desired, Desired::Running | Desired::Paused) {
            return Step::Begin;
        }
        (self.actual, self.pid, self.started, self.guest_ready) = (Actual::Stopped, None, None, false);
        (self.promised_bytes, self.retry_at_ms) = (0, None);
        Step::Changed(What::Stopped)
    }

    /// Its process is gone, or never came, and nobody had asked for that.
    pub(super) fn fail(&mut self, sentence: &str, may_retry: bool, now: HybridTime) -> Step {
        let sentence = bounded(sentence);
        self.failures = self.failures.saturating_add(1);
        (self.actual, self.pid, self.started, self.guest_ready) = (Actual::Failed, None, None, false);
        self.error = Some(sentence.clone());
        let retried = may_retry && self.spec.restart != Restart::Never && self.failures < FAILURES_MAX;
        let pause_ms = RETRY_FIRST_MS.saturating_mul(1 << self.failures.saturating_sub(1).min(16)).min(RETRY_MOST_MS);
        self.retry_at_ms = retried.then(|| now.millis() + pause_ms);
        if !retried {
            self.promised_bytes = 0;
        }
        Step::Changed(What::Failed(sentence))
    }

    /// The host was booted anew: whatever process there was is gone.
    pub(super) fn host_gone(&mut self) -> Step {
        match self.actual {
            Actual::Starting | Actual::Running | Actual::Paused | Actual::Stopping => self.ended(),
            _ => Step::Unchanged,
        }
    }
}
