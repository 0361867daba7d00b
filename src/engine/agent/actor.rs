//! One VM: looks at what is desired and at what it sees, does one step, reports, and waits for the next change of either.
//!
//! Level-triggered: it can die at any point and be started again. Its first deed is always to find out whether a process of its VM
//! runs that a former life left.

use super::Shared;
use super::decide::{Asked, Seen, Step, decide};
use super::record::MachineRecord;
use super::resources::Resource;
use super::start::{release, remove, start};
use crate::engine::hypervisor::{Exit, HypervisorError, Instance, Running};
use crate::engine::state::{Command, State, Vm, VmId, VmReport};
use crate::text::{Code, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A machine that an actor holds.
struct Held {
    generation: u64,
    instance: Arc<dyn Instance>,
    running: Running,
    asked: Asked,
    /// When its time to power off is over.
    kill_at: Option<Instant>,
    /// It said that it was asked to power off when this was its grace.
    grace_ms: u64,
    ended: Option<Exit>,
}

/// The actor of one VM.
pub(super) struct Actor {
    shared: Arc<Shared>,
    id: VmId,
    changed: Arc<Notify>,
    held: Option<Held>,
}

impl Actor {
    pub(super) fn new(shared: Arc<Shared>, id: VmId, changed: Arc<Notify>) -> Actor {
        Actor { shared, id, changed, held: None }
    }

    /// Until there is nothing to do and nothing to watch.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        Box::pin(self.find()).await?;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            let state = self.shared.engine.state();
            let Some(vm) = state.vm(self.id).cloned() else {
                Box::pin(self.abandon()).await;
                return Ok(());
            };
            match self.decide(&vm) {
                Step::Rest => return Ok(()),
                Step::Wait | Step::Retry => {
                    // The state must not be kept while waiting: it would keep every object of it.
                    drop(state);
                    self.wait(&vm, &stop).await;
                }
                step => Box::pin(self.act(step, &state, &vm)).await,
            }
        }
    }

    fn decide(&mut self, vm: &Vm) -> Step {
        let Some(held) = &mut self.held else { return decide(vm, &Seen::Nothing, 0) };
        let (generation, pid) = (held.generation, held.instance.record().pid);
        if let Some(exit) = &held.ended {
            return decide(vm, &Seen::Ended { generation, exit: exit.clone() }, pid);
        }
        if held.asked == Asked::PowerDown {
            // A later stop may have shortened the grace.
            let grace_ms = if vm.generation == generation { vm.stop_grace_ms } else { vm.spec.grace_ms };
            if let Some(at) = &mut held.kill_at
                && grace_ms < held.grace_ms
            {
                *at -= Duration::from_millis(held.grace_ms - grace_ms);
                held.grace_ms = grace_ms;
            }
            if held.kill_at.is_none_or(|at| at <= Instant::now()) {
                held.asked = Asked::TooLate;
            }
        }
        decide(vm, &Seen::Machine { generation, running: held.running, asked: held.asked }, pid)
    }

    /// Takes back what a former life started, or clears up what is left of it.
    async fn find(&mut self) -> Result<(), String> {
        let record = self.shared.records.read(self.id.0).map_err(|e| format!("the record of vm {}: {e}", self.id))?;
        let Some(MachineRecord { machine, process }) = record else { return Ok(()) };
        match self.shared.hypervisor.adopt(&machine, process.as_ref()).await {
            Ok(instance) => {
                tracing::info!(vm = %self.id, generation = machine.generation, "taken back");
                self.hold(machine.generation, instance).await;
            }
            Err(error) => {
                if error != HypervisorError::Gone {
                    tracing::warn!(vm = %self.id, %error, "its machine can't be taken back and is ended");
                }
                if let Some(process) = &process {
                    self.shared.leftovers.release(&Resource::from(process), &self.shared.host).await;
                }
                release(&self.shared, self.id.0).await;
            }
        }
        Ok(())
    }

    async fn hold(&mut self, generation: u64, instance: Arc<dyn Instance>) {
        self.shared.instances().insert(self.id, instance.clone());
        let (running, ended) = match instance.running().await {
            Ok(running) => (running, None),
            // It has just ended, or hangs: its end will be seen, or asked for.
            Err(_) => (Running::Running, None),
        };
        self.held = Some(Held { generation, instance, running, asked: Asked::No, kill_at: None, grace_ms: 0, ended });
    }

    async fn act(&mut self, step: Step, state: &State, vm: &Vm) {
        match step {
            Step::Start => self.start(state, vm).await,
            Step::PowerDown => self.power_down(vm).await,
            Step::Kill => self.kill().await,
            Step::Pause => self.set_running(Running::Paused).await,
            Step::Resume => self.set_running(Running::Running).await,
            Step::Release(report) => {
                self.shared.instances().remove(&self.id);
                self.held = None;
                release(&self.shared, self.id.0).await;
                if let Some(report) = report {
                    self.report(vm.generation, report).await;
                }
            }
            Step::Report(report) => self.report(vm.generation, report).await,
            Step::Remove => {
                if !remove(&self.shared, self.id.0).await {
                    tracing::warn!(vm = %self.id, "not all of it could be removed; nodes/NAME/status lists what is left");
                }
                self.report(vm.generation, VmReport::Removed).await;
            }
            Step::Wait | Step::Retry | Step::Rest => {}
        }
    }

    async fn start(&mut self, state: &State, vm: &Vm) {
        match start(&self.shared, state, vm).await {
            Ok((machine, instance)) => {
                let pid = instance.record().pid;
                self.hold(machine.generation, instance).await;
                self.report(vm.generation, VmReport::Started { pid }).await;
            }
            Err(error) => {
                let may_retry = !matches!(error, HypervisorError::Permanent(_));
                let sentence = match error {
                    HypervisorError::Gone => "the machine was gone as soon as it had started".to_owned(),
                    other => other.to_string(),
                };
                tracing::warn!(vm = %self.id, generation = vm.generation, %sentence, "could not be started");
                self.report(vm.generation, VmReport::Failed { sentence, may_retry }).await;
            }
        }
    }

    async fn power_down(&mut self, vm: &Vm) {
        let Some(held) = &mut self.held else { return };
        held.grace_ms = if vm.generation == held.generation { vm.stop_grace_ms } else { vm.spec.grace_ms };
        held.kill_at = Instant::now().checked_add(Duration::from_millis(held.grace_ms));
        held.asked = Asked::PowerDown;
        match held.instance.power_down().await {
            Ok(()) | Err(HypervisorError::Gone) => {}
            Err(error) => {
                tracing::warn!(vm = %self.id, %error, "can't be asked to power off, so it is killed");
                held.asked = Asked::TooLate;
            }
        }
    }

    async fn kill(&mut self) {
        let Some(held) = &mut self.held else { return };
        held.asked = Asked::Kill;
        if let Err(error) = held.instance.kill().await {
            tracing::error!(vm = %self.id, %error, "can't be killed");
        }
    }

    async fn set_running(&mut self, wanted: Running) {
        let Some(held) = &mut self.held else { return };
        let done = match wanted {
            Running::Running => held.instance.resume().await,
            Running::Paused => held.instance.pause().await,
        };
        match done {
            Ok(()) => held.running = wanted,
            Err(HypervisorError::Gone) => held.ended = Some(held.instance.exited().await),
            Err(error) => {
                // A monitor that does not answer: the machine is of no use to anybody.
                tracing::warn!(vm = %self.id, %error, "does not obey, so it is killed");
                self.kill().await;
                if let Some(held) = &mut self.held {
                    held.ended = Some(Exit::Crashed(error.to_string()));
                }
            }
        }
    }

    /// Tells the log. What it refuses as too late is looked at again.
    async fn report(&self, generation: u64, report: VmReport) {
        let command = Command::VmReport { vm: self.id, generation, report };
        match self.shared.report(command).await {
            Ok(()) | Err(Refusal { code: Code::Stale | Code::NotFound, .. }) => {}
            Err(refusal) => tracing::error!(vm = %self.id, %refusal, "a report was refused"),
        }
    }

    /// Until the VM changes, its machine ends or answers, or a deadline passes.
    async fn wait(&mut self, vm: &Vm, stop: &CancellationToken) {
        let now = Instant::now();
        let retry = vm.retry_at_ms.filter(|_| self.held.is_none()).map(|at_ms| {
            // Counted from the failure by this host's own clock: nobody else's clock matters.
            now + Duration::from_millis(at_ms.saturating_sub(vm.changed.millis()))
        });
        let (exit, ready, kill_at) = match &self.held {
            Some(held) => {
                let (watched, asked) = (held.instance.clone(), held.instance.clone());
                let wants = held.generation == vm.generation && !vm.guest_ready && vm.pid.is_some();
                (
                    Some(async move { watched.exited().await }),
                    wants.then_some(async move { asked.guest_ready().await }),
                    held.kill_at,
                )
            }
            None => (None, None, None),
        };
        let deadline = kill_at.filter(|_| self.held.as_ref().is_some_and(|h| h.asked == Asked::PowerDown)).or(retry);
        tokio::select! {
            () = self.changed.notified() => {}
            () = stop.cancelled() => {}
            exit = or_never(exit) => {
                if let Some(held) = &mut self.held {
                    held.ended = Some(exit);
                }
            }
            ready = or_never(ready) => match ready {
                Ok(()) => self.guest_is_ready(vm.generation).await,
                // The channel is gone, and so will be the machine; a guest that breaks its channel has none.
                Err(_) => self.wait_without_guest(stop).await,
            },
            () = sleep_until(deadline) => {
                if retry.is_some() {
                    self.report(vm.generation, VmReport::RetryDue).await;
                }
            }
        }
    }

    /// A guest that was asked to power off while it still booted has not heard it: it is asked again.
    async fn guest_is_ready(&mut self, generation: u64) {
        self.report(generation, VmReport::GuestReady).await;
        let Some(held) = self.held.as_ref().filter(|h| h.asked == Asked::PowerDown) else { return };
        if let Err(error) = held.instance.power_down().await {
            tracing::debug!(vm = %self.id, %error, "can't be asked again to power off; its grace goes on");
        }
    }

    async fn wait_without_guest(&mut self, stop: &CancellationToken) {
        let Some(held) = &mut self.held else { return };
        let instance = held.instance.clone();
        tokio::select! {
            () = self.changed.notified() => {}
            () = stop.cancelled() => {}
            exit = instance.exited() => held.ended = Some(exit),
        }
    }

    /// The VM is no more: nothing of it may stay.
    async fn abandon(&mut self) {
        if let Some(held) = self.held.take() {
            self.shared.instances().remove(&self.id);
            self.shared.leftovers.release(&Resource::from(&held.instance.record()), &self.shared.host).await;
        }
        remove(&self.shared, self.id.0).await;
    }
}

async fn or_never<T>(future: Option<impl Future<Output = T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
