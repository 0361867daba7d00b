//! Which step an actor takes: a pure function of what is desired and of what it sees.

use crate::engine::hypervisor::{Exit, Running};
use crate::engine::state::{Actual, Desired, Vm, VmReport};
use crate::mutants::{Mutant, planted};

/// What the actor holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seen {
    /// No process.
    Nothing,
    /// The process of a start.
    Machine {
        /// Which start.
        generation: u64,
        /// Its CPUs.
        running: Running,
        /// Whether it has been asked to power off.
        asked: Asked,
    },
    /// The process of a start has ended, and this was not reported yet.
    Ended {
        /// Which start.
        generation: u64,
        /// How.
        exit: Exit,
    },
}

/// How far an end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// Not asked.
    No,
    /// Asked, and there is still time.
    PowerDown,
    /// Asked, and its time is over.
    TooLate,
    /// Killed.
    Kill,
}

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Step {
    /// Start this generation.
    Start,
    /// Ask the guest to power off.
    PowerDown,
    /// End the process.
    Kill,
    /// Stop the CPUs.
    Pause,
    /// Let the CPUs run.
    Resume,
    /// Give back what the ended machine held, and report this of its generation, if the VM is still at it.
    Release(Option<VmReport>),
    /// Report.
    Report(VmReport),
    /// Remove everything of the VM, then report it.
    Remove,
    /// Nothing to do until something changes.
    Wait,
    /// Nothing to do until the retry is due.
    Retry,
    /// Nothing to do, and nothing to watch: the actor ends.
    Rest,
    /// It is not this node's any more: nothing of it may stay here.
    Abandon,
}

/// The step. `pid` is the process that is held, if one is; `here`: is the VM placed on this node? `leased`: does this node have its lease?
pub(super) fn decide(vm: &Vm, seen: &Seen, pid: u32, here: bool, leased: bool) -> Step {
    match seen {
        Seen::Nothing if !here => Step::Abandon,
        Seen::Ended { .. } if !here => Step::Release(None),
        // It may run elsewhere by now.
        Seen::Machine { asked, .. } if !here => end(*asked, true),
        Seen::Ended { generation, exit } => Step::Release((*generation == vm.generation).then(|| ended(vm, exit))),
        Seen::Machine { generation, .. } if *generation != vm.generation && planted(Mutant::OldMachine) => Step::Wait,
        Seen::Machine { generation, asked, .. } if *generation != vm.generation => end(*asked, false),
        Seen::Machine { running, asked, .. } => with_machine(vm, *running, *asked, pid),
        Seen::Nothing => without(vm, leased),
    }
}

fn ended(vm: &Vm, exit: &Exit) -> VmReport {
    match exit {
        Exit::PoweredOff => VmReport::PoweredOff,
        Exit::Killed => VmReport::Ended,
        Exit::Fenced | Exit::Crashed(_) if vm.actual == Actual::Stopping => VmReport::Ended,
        Exit::Fenced => VmReport::Fenced,
        Exit::Crashed(sentence) => VmReport::Failed { sentence: sentence.clone(), may_retry: true },
    }
}

/// The way to an end: ask, wait, kill.
fn end(asked: Asked, at_once: bool) -> Step {
    match asked {
        Asked::Kill => Step::Wait,
        _ if at_once => Step::Kill,
        Asked::No => Step::PowerDown,
        Asked::PowerDown => Step::Wait,
        Asked::TooLate => Step::Kill,
    }
}

fn with_machine(vm: &Vm, running: Running, asked: Asked, pid: u32) -> Step {
    match vm.actual {
        Actual::Stopping => end(asked, vm.stop_grace_ms == 0),
        // It did not obey.
        _ if matches!(asked, Asked::Kill | Asked::TooLate) => end(asked, true),
        Actual::Starting => Step::Report(VmReport::Started { pid }),
        Actual::Running | Actual::Paused => match (vm.desired, running, vm.actual) {
            (Desired::Paused, Running::Running, _) => Step::Pause,
            (Desired::Running, Running::Paused, _) => Step::Resume,
            (Desired::Paused, Running::Paused, Actual::Running) => Step::Report(VmReport::Paused),
            (Desired::Running, Running::Running, Actual::Paused) => Step::Report(VmReport::Resumed),
            _ => Step::Wait,
        },
        // A process for which there should be none.
        Actual::Defined | Actual::Stopped | Actual::Failed | Actual::Deleting | Actual::Waiting => end(asked, true),
    }
}

fn without(vm: &Vm, leased: bool) -> Step {
    match vm.actual {
        // Its fence would not let it begin, and that is nobody's failure.
        Actual::Starting if vm.fenced && !leased => Step::Wait,
        Actual::Starting => Step::Start,
        Actual::Running | Actual::Paused => Step::Report(VmReport::Failed {
            sentence: "its process is gone, and nobody saw it end: the host's log may say more; start it".to_owned(),
            may_retry: true,
        }),
        Actual::Stopping => Step::Report(VmReport::Ended),
        Actual::Deleting => Step::Remove,
        Actual::Failed if vm.retry_at_ms.is_some() => Step::Retry,
        Actual::Defined | Actual::Stopped | Actual::Failed | Actual::Waiting => Step::Rest,
    }
}
