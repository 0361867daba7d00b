//! One VM: looks at what is desired and at what it sees, does one step, reports, and waits for the next change of either.
//!
//! Level-triggered: it can die at any point and be started again. Its first deed is always to find out whether a process of its VM
//! runs that a former life left.

use super::decide::{Asked, Seen, Step, decide};
use super::record::{MachineRecord, is_damaged};
use super::start::{Look, end_processes, give_back, plan, release, remove, remove_record, start};
use super::{AGAIN_AFTER, Shared};
use crate::engine::host::deadline::was_fenced;
use crate::engine::hypervisor::{Exit, HypervisorError, Instance, Record, Running};
use crate::engine::state::{Actual, Command, State, Vm, VmId, VmReport};
use crate::mutants::{Mutant, planted};
use crate::text::{Code, Refusal};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a hypervisor may take to do what it is told: longer than its own deadlines.
const OBEYS_WITHIN: Duration = Duration::from_secs(30);
/// A machine that is still there so long after it was killed is killed again.
const KILLED_WITHIN: Duration = Duration::from_secs(10);
/// How soon a machine that does not answer whoever wants to take it back is asked again: a busy host's machines are late.
const TAKE_BACK_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// How long a hypervisor may take to end a process whose guest went off: longer than its own deadline.
const DISCARDS_WITHIN: Duration = Duration::from_secs(20);

/// What is said of a machine that its fence has ended.
const FENCED: &str = "ended by its fence: this node could not renew its lease in time";

/// A machine that an actor holds.
struct Held {
    generation: u64,
    instance: Arc<dyn Instance>,
    running: Running,
    asked: Asked,
    /// When its time to power off, or to be gone after it was killed, is over.
    late_at: Option<Instant>,
    /// It said that it was asked to power off when this was its grace.
    grace_ms: u64,
    /// Whether it was told to end at once.
    killed: bool,
    /// Why we killed it though nobody had asked for that.
    killed_for: Option<String>,
    /// The guest's channel is broken: it is not listened to any more.
    guest_lost: bool,
    ended: Option<Box<Exit>>,
}

impl Held {
    fn new(generation: u64, instance: Arc<dyn Instance>, running: Running) -> Held {
        Held {
            generation,
            instance,
            running,
            asked: Asked::No,
            late_at: None,
            grace_ms: 0,
            killed: false,
            killed_for: None,
            guest_lost: false,
            ended: None,
        }
    }

    /// Is there a time by which it is to be gone?
    fn waits(&self) -> bool {
        matches!(self.asked, Asked::PowerDown | Asked::Kill)
    }

    /// Its process has ended.
    fn has_ended(&mut self, exit: Exit) {
        self.ended = Some(Box::new(match (self.killed_for.take(), exit) {
            (Some(why), Exit::Killed | Exit::Crashed(_)) => Exit::Crashed(why),
            (_, exit) => exit,
        }));
    }
}

/// What the hypervisor says, if it says so in time.
async fn in_time<T>(call: impl Future<Output = Result<T, HypervisorError>>) -> Result<T, HypervisorError> {
    let hangs = || HypervisorError::Transient(format!("the hypervisor hangs: {}s are over", OBEYS_WITHIN.as_secs()));
    tokio::time::timeout(OBEYS_WITHIN, call).await.unwrap_or_else(|_| Err(hangs()))
}

/// The actor of one VM.
pub(super) struct Actor {
    shared: Arc<Shared>,
    id: VmId,
    changed: Arc<Notify>,
    held: Option<Held>,
    /// How a machine ended of which a former life could not report it: its generation, and how.
    former: Option<Box<(u64, Exit)>>,
}

impl Actor {
    pub(super) fn new(shared: Arc<Shared>, id: VmId, changed: Arc<Notify>) -> Actor {
        Actor { shared, id, changed, held: None, former: None }
    }

    /// Until there is nothing to do and nothing to watch.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), String> {
        Box::pin(self.find(&stop)).await?;
        loop {
            if stop.is_cancelled() {
                return Ok(());
            }
            // Before the state: what is decided by it is then not older than the lease.
            let tenure = self.shared.lease.tenure();
            let state = self.shared.engine.state();
            let Some(vm) = state.vm(self.id).cloned() else {
                return Box::pin(self.abandon(&stop)).await;
            };
            match self.decide(&vm) {
                Step::Rest => return Ok(()),
                Step::Abandon => return Box::pin(self.abandon(&stop)).await,
                Step::Wait | Step::Retry => {
                    // The state must not be kept while waiting: it would keep every object of it.
                    drop(state);
                    self.wait(&vm, &stop).await?;
                }
                Step::Start => Box::pin(self.start(state, &vm, tenure, &stop)).await?,
                step => {
                    drop(state);
                    Box::pin(self.act(step, &vm, &stop)).await?;
                }
            }
        }
    }

    fn decide(&mut self, vm: &Vm) -> Step {
        let here = vm.node == Some(self.shared.options.node);
        let leased = self.shared.lease.is_held();
        if vm.fenced && vm.actual == Actual::Starting {
            self.shared.lease.want();
        }
        let Some(held) = &mut self.held else {
            let seen = match self.former.as_deref().cloned() {
                Some((generation, exit)) => Seen::Ended { generation, exit },
                None => Seen::Nothing,
            };
            return decide(vm, &seen, 0, here, leased);
        };
        let (generation, pid) = (held.generation, held.instance.record().pid);
        if let Some(exit) = &held.ended {
            return decide(vm, &Seen::Ended { generation, exit: Exit::clone(exit) }, pid, here, leased);
        }
        if held.asked == Asked::PowerDown {
            // A later stop may have shortened the grace.
            let grace_ms = grace_ms(vm, generation);
            if let Some(at) = &mut held.late_at
                && grace_ms < held.grace_ms
            {
                *at = at.checked_sub(Duration::from_millis(held.grace_ms - grace_ms)).unwrap_or_else(Instant::now);
                held.grace_ms = grace_ms;
            }
        }
        if held.waits() && held.late_at.is_none_or(|at| at <= Instant::now()) {
            held.asked = Asked::TooLate;
        }
        decide(vm, &Seen::Machine { generation, running: held.running, asked: held.asked }, pid, here, leased)
    }

    /// Takes back what a former life started, or clears up what is left of it.
    async fn find(&mut self, stop: &CancellationToken) -> Result<(), String> {
        // A former actor may have held a machine, and did not see its end.
        self.shared.instances().remove(&self.id);
        if planted(Mutant::RecordIgnored) {
            return Ok(());
        }
        let read = loop {
            match self.shared.records.read(self.id.0) {
                Err(error) if !is_damaged(&error) => {
                    // Want of a descriptor or of luck with the disk: its guest may be in the best of health.
                    self.trouble(format!("its record can't be read: {error}; it is tried again")).await?;
                    if self.waits(stop).await {
                        return Ok(());
                    }
                }
                read => break read,
            }
        };
        let (process, look) = match read {
            // A start looks for itself.
            Ok(None) if self.begins() => return Ok(()),
            // One that was cut off may have left a process that could not be ended.
            Ok(None) => return self.surely_ended(None, Look::Known, stop).await.map(drop),
            Ok(Some(record)) => match self.take_back(&record, stop).await? {
                Some(look) => {
                    let fenced = || was_fenced(&record.machine.run_dir).then_some(Exit::Fenced);
                    let exit = record.exit.or_else(fenced);
                    self.former = exit.map(|exit| Box::new((record.machine.generation, exit)));
                    (record.process, look)
                }
                None => return Ok(()),
            },
            Err(error) => {
                tracing::warn!(vm = %self.id, %error, "its record is damaged, so what runs is ended");
                (None, Look::Everywhere)
            }
        };
        // How it ended is to be reported before it is forgotten.
        if self.surely_ended(process.as_ref(), look, stop).await? && self.former.is_none() {
            release(&self.shared, self.id.0).await;
        }
        Ok(())
    }

    /// Takes back the machine of a record. Some: it can't be, and what there is of it is to be ended. A machine that does not
    /// answer is left alone and asked again, as long as it is wanted: its guest may be in the best of health.
    async fn take_back(&mut self, record: &MachineRecord, stop: &CancellationToken) -> Result<Option<Look>, String> {
        let MachineRecord { machine, process, .. } = record;
        if machine.fence.as_ref().is_some_and(|fence| !self.shared.lease.governs(fence)) {
            tracing::warn!(vm = %self.id, "its fence looks at a deadline that is not this node's, so it is ended");
            return Ok(Some(Look::Everywhere));
        }
        loop {
            let why = match in_time(self.shared.hypervisor.adopt(machine, process.as_ref())).await {
                Ok(instance) => {
                    tracing::info!(vm = %self.id, generation = machine.generation, "taken back");
                    self.hold(machine.generation, instance).await;
                    return Ok(None);
                }
                Err(HypervisorError::Gone) => return Ok(Some(Look::Known)),
                Err(error) => error.to_string(),
            };
            if !self.wants_running(machine.generation) {
                tracing::warn!(vm = %self.id, why, "its machine can't be taken back and is ended");
                return Ok(Some(Look::Everywhere));
            }
            let sentence =
                format!("its machine does not let itself be taken back: {why}; it is asked again, or kill the vm");
            self.trouble(sentence).await?;
            if self.waits(stop).await {
                return Ok(None);
            }
        }
    }

    /// Until it is worth another try; true: the actor is to end.
    async fn waits(&self, stop: &CancellationToken) -> bool {
        tokio::select! {
            () = stop.cancelled() => return true,
            () = self.changed.notified() => {}
            () = tokio::time::sleep(TAKE_BACK_AGAIN_AFTER) => {}
        }
        false
    }

    /// Is it to be started next?
    fn begins(&self) -> bool {
        let state = self.shared.engine.state();
        state.vm(self.id).is_some_and(|vm| vm.actual == Actual::Starting && vm.node == Some(self.shared.options.node))
    }

    /// Is this generation to go on?
    fn wants_running(&self, generation: u64) -> bool {
        let state = self.shared.engine.state();
        let goes_on = |vm: &Arc<Vm>| matches!(vm.actual, Actual::Starting | Actual::Running | Actual::Paused);
        let here = |vm: &Arc<Vm>| vm.node == Some(self.shared.options.node);
        state.vm(self.id).is_some_and(|vm| vm.generation == generation && goes_on(vm) && here(vm))
    }

    /// Waits until no process of the VM is left. False: we are to stop before that.
    async fn surely_ended(
        &self,
        process: Option<&Record>,
        look: Look,
        stop: &CancellationToken,
    ) -> Result<bool, String> {
        if planted(Mutant::Successor) {
            return Ok(true);
        }
        while let Err(sentence) = end_processes(&self.shared, self.id.0, process, look).await {
            self.trouble(sentence).await?;
            tokio::select! {
                () = stop.cancelled() => return Ok(false),
                () = tokio::time::sleep(AGAIN_AFTER) => {}
            }
        }
        Ok(true)
    }

    async fn hold(&mut self, generation: u64, instance: Arc<dyn Instance>) {
        self.shared.instances().insert(self.id, instance.clone());
        // One that does not say has just ended, or hangs: its end will be seen, or asked for.
        let running = in_time(instance.running()).await.unwrap_or(Running::Running);
        self.held = Some(Held::new(generation, instance, running));
    }

    async fn act(&mut self, step: Step, vm: &Vm, stop: &CancellationToken) -> Result<(), String> {
        match step {
            Step::PowerDown => self.power_down(vm).await,
            Step::Kill => self.kill().await,
            Step::Pause => self.set_running(Running::Paused).await,
            Step::Resume => self.set_running(Running::Running).await,
            Step::Release(report) => self.release(vm, report, stop).await,
            Step::Report(report) => self.report(vm.generation, report).await,
            Step::Remove => self.remove(vm, stop).await,
            Step::Start | Step::Wait | Step::Retry | Step::Rest | Step::Abandon => Ok(()),
        }
    }

    async fn start(&mut self, state: Arc<State>, vm: &Vm, tenure: u64, stop: &CancellationToken) -> Result<(), String> {
        let planned = plan(&self.shared, &state, vm, tenure);
        drop(state);
        let started = match planned {
            Ok(plan) => {
                let generation = vm.generation;
                let unwanted = self.becomes(move |vm| vm.generation != generation || vm.actual != Actual::Starting);
                start(&self.shared, plan, unwanted).await
            }
            Err(error) => Err(error),
        };
        match started {
            Ok(Some((generation, instance))) => {
                let pid = instance.record().pid;
                self.hold(generation, instance).await;
                self.report(vm.generation, VmReport::Started { pid }).await
            }
            // What was cut off may be there still, and whoever sees nothing of it would report that it has ended.
            Ok(None) => self.nothing_left(stop).await.map(drop),
            Err(HypervisorError::NoLease) => {
                // It is begun again when there is a lease, if it is to begin here then.
                tracing::info!(vm = %self.id, generation = vm.generation, "the lease was over before it was started");
                self.nothing_left(stop).await.map(drop)
            }
            Err(error) => {
                let may_retry = !matches!(error, HypervisorError::Permanent(_));
                let sentence = match error {
                    HypervisorError::Gone => {
                        "the machine was gone as soon as it had started; see its log, then start it".to_owned()
                    }
                    other => other.to_string(),
                };
                tracing::warn!(vm = %self.id, generation = vm.generation, %sentence, "could not be started");
                // Once this is said, it may be begun on another node; what is tied to this one asks first what is left.
                if vm.is_free() && !self.nothing_left(stop).await? {
                    return Ok(());
                }
                self.report(vm.generation, VmReport::Failed { sentence, may_retry }).await
            }
        }
    }

    /// Waits until nothing runs of a start that came to nothing. False: we are to stop before that.
    async fn nothing_left(&self, stop: &CancellationToken) -> Result<bool, String> {
        let ended = self.surely_ended(None, Look::Everywhere, stop).await?;
        if ended {
            remove_record(&self.shared, self.id.0);
        }
        Ok(ended)
    }

    /// Until the VM, as it is desired and known, is like this, or is no more.
    async fn becomes(&self, like: impl Fn(&Vm) -> bool) {
        while self.shared.engine.state().vm(self.id).is_some_and(|vm| !like(vm)) {
            self.changed.notified().await;
        }
    }

    async fn power_down(&mut self, vm: &Vm) -> Result<(), String> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let (generation, grace) = (held.generation, grace_ms(vm, held.generation));
        held.grace_ms = grace;
        held.late_at = Instant::now().checked_add(Duration::from_millis(grace));
        held.asked = Asked::PowerDown;
        let (instance, late_at) = (held.instance.clone(), held.late_at);
        let asked = tokio::select! {
            asked = in_time(instance.power_down()) => asked,
            () = sleep_until(late_at) => return Ok(()),
            // It is wanted sooner.
            () = self.becomes(|vm| grace_ms(vm, generation) < grace) => return Ok(()),
        };
        match (asked, &mut self.held) {
            (Ok(()) | Err(HypervisorError::Gone), _) | (_, None) => {}
            (Err(error), Some(held)) => {
                tracing::warn!(vm = %self.id, %error, "can't be asked to power off, so it is killed");
                held.asked = Asked::TooLate;
            }
        }
        Ok(())
    }

    /// By the hypervisor; if that does not help, by the host.
    async fn kill(&mut self) -> Result<(), String> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let again = held.killed;
        (held.asked, held.killed) = (Asked::Kill, true);
        let instance = held.instance.clone();
        let told = in_time(instance.kill()).await;
        if again || !matches!(told, Ok(()) | Err(HypervisorError::Gone)) {
            tracing::error!(vm = %self.id, ?told, "its hypervisor can't kill it; the host is to do it");
            let record = instance.record();
            if let Err(sentence) = end_processes(&self.shared, self.id.0, Some(&record), Look::Known).await {
                self.trouble(sentence).await?;
            }
        }
        if let Some(held) = &mut self.held {
            held.late_at = Instant::now().checked_add(KILLED_WITHIN);
        }
        Ok(())
    }

    async fn set_running(&mut self, wanted: Running) -> Result<(), String> {
        let Some(held) = &mut self.held else { return Ok(()) };
        let done = match wanted {
            Running::Running => in_time(held.instance.resume()).await,
            Running::Paused => in_time(held.instance.pause()).await,
        };
        let Err(error) = done else {
            held.running = wanted;
            return Ok(());
        };
        if error == HypervisorError::Gone
            && let Ok(exit) = tokio::time::timeout(OBEYS_WITHIN, held.instance.exited()).await
        {
            held.has_ended(exit);
            return Ok(());
        }
        // A monitor that does not answer: the machine is of no use to anybody.
        tracing::warn!(vm = %self.id, %error, "does not obey, so it is killed");
        held.killed_for = Some(format!("it did not obey and was killed: {error}; start it"));
        self.kill().await
    }

    /// The machine has ended: what it held is given back. How it ended is kept until the log has it.
    async fn release(&mut self, vm: &Vm, report: Option<VmReport>, stop: &CancellationToken) -> Result<(), String> {
        let mut record = None;
        if let Some(held) = &self.held {
            record = Some(held.instance.record());
            self.note_exit(held);
            // What does not end in time is ended by the host.
            let _ = tokio::time::timeout(DISCARDS_WITHIN, held.instance.discard()).await;
        }
        // Whatever the hypervisor says: a machine whose process is there must never have a successor.
        if !self.surely_ended(record.as_ref(), Look::Known, stop).await? {
            return Ok(());
        }
        self.shared.instances().remove(&self.id);
        give_back(&self.shared, self.id.0).await;
        if report == Some(VmReport::Fenced) {
            self.trouble(FENCED.to_owned()).await?;
        }
        if let Some(report) = report {
            self.report(vm.generation, report).await?;
        }
        (self.held, self.former) = (None, None);
        remove_record(&self.shared, self.id.0);
        self.note_if_elsewhere();
        Ok(())
    }

    /// Was the VM begun on another node while this one could not be heard, or removed?
    fn is_elsewhere(&self) -> bool {
        self.shared.engine.state().vm(self.id).is_none_or(|vm| vm.node != Some(self.shared.options.node))
    }

    /// Says so when a machine has ended that was not this node's any more.
    fn note_if_elsewhere(&self) {
        if self.is_elsewhere() {
            tracing::info!(vm = %self.id, "its machine has ended here, and the vm is another node's by now, or no more");
        }
    }

    /// Writes down how the machine ended, since nobody can be asked when its process is gone.
    fn note_exit(&self, held: &Held) {
        let noted = self.shared.records.read(self.id.0).and_then(|record| match record {
            Some(record) => {
                self.shared.records.write(&MachineRecord { exit: held.ended.as_deref().cloned(), ..record })
            }
            None => Ok(()),
        });
        if let Err(error) = noted {
            tracing::warn!(vm = %self.id, %error, "how it ended can't be written down; it is only reported");
        }
    }

    /// The VM is to vanish; it does when nothing of it is left, since its address is free for others then.
    async fn remove(&mut self, vm: &Vm, stop: &CancellationToken) -> Result<(), String> {
        let Err(sentence) = remove(&self.shared, self.id.0).await else {
            return self.report(vm.generation, VmReport::Removed).await;
        };
        self.trouble(sentence).await?;
        tokio::select! {
            () = stop.cancelled() => {}
            () = tokio::time::sleep(AGAIN_AFTER) => {}
        }
        Ok(())
    }

    /// Tells the log. What it refuses as too late is looked at again.
    async fn report(&self, generation: u64, report: VmReport) -> Result<(), String> {
        let command = Command::VmReport { vm: self.id, generation, report };
        match self.shared.report(command).await {
            Ok(()) | Err(Refusal { code: Code::Stale | Code::NotFound, .. }) => Ok(()),
            // Whoever stood still reports of what is another node's by now.
            Err(Refusal { code: Code::Denied, .. }) if self.is_elsewhere() => Ok(()),
            Err(refusal) => Err(format!("a report was refused: {refusal}")),
        }
    }

    /// A line in the VM's `error`, unless it is there already.
    async fn trouble(&self, sentence: String) -> Result<(), String> {
        let state = self.shared.engine.state();
        let Some(vm) = state.vm(self.id).filter(|vm| vm.error.as_deref() != Some(&sentence)) else { return Ok(()) };
        let generation = vm.generation;
        drop(state);
        self.report(generation, VmReport::Trouble { sentence }).await
    }

    /// Until the VM changes, its machine ends or answers, or a deadline passes. What is done then is boxed: the waiting is long.
    async fn wait(&mut self, vm: &Vm, stop: &CancellationToken) -> Result<(), String> {
        let now = Instant::now();
        let retry = vm.retry_at_ms.filter(|_| self.held.is_none()).map(|at_ms| {
            // Counted from the failure by this host's own clock: nobody else's clock matters.
            now + Duration::from_millis(at_ms.saturating_sub(vm.changed.millis()))
        });
        if self.held.is_none() && vm.fenced && vm.actual == Actual::Starting {
            return Box::pin(self.wait_for_lease(stop)).await;
        }
        let (exit, ready, late_at) = match &self.held {
            Some(held) => {
                let (watched, asked) = (held.instance.clone(), held.instance.clone());
                let knows = vm.guest_ready || vm.pid.is_none() || held.guest_lost;
                let wants = held.generation == vm.generation && !knows;
                (
                    Some(async move { watched.exited().await }),
                    wants.then_some(async move { asked.guest_ready().await }),
                    held.late_at.filter(|_| held.waits()),
                )
            }
            None => (None, None, None),
        };
        tokio::select! {
            () = self.changed.notified() => Ok(()),
            () = stop.cancelled() => Ok(()),
            exit = or_never(exit) => {
                if let Some(held) = &mut self.held {
                    held.has_ended(exit);
                }
                Ok(())
            }
            ready = or_never(ready) => Box::pin(self.guest_says(vm.generation, ready)).await,
            () = sleep_until(late_at.or(retry)) => match retry {
                Some(_) => Box::pin(self.report(vm.generation, VmReport::RetryDue)).await,
                None => Ok(()),
            },
        }
    }

    /// Until the VM changes, or may begin.
    async fn wait_for_lease(&self, stop: &CancellationToken) -> Result<(), String> {
        tokio::select! {
            () = self.changed.notified() => {}
            () = stop.cancelled() => {}
            () = self.shared.lease.held() => {}
        }
        Ok(())
    }

    async fn guest_says(&mut self, generation: u64, ready: Result<(), HypervisorError>) -> Result<(), String> {
        let Some(held) = &mut self.held else { return Ok(()) };
        if ready.is_err() {
            // The channel is gone, and so will be the machine; a guest that breaks its channel has none.
            held.guest_lost = true;
            return Ok(());
        }
        let (asked, instance) = (held.asked, held.instance.clone());
        let (late_at, grace) = (held.late_at, held.grace_ms);
        self.report(generation, VmReport::GuestReady).await?;
        if asked != Asked::PowerDown {
            return Ok(());
        }
        // A guest that was asked to power off while it still booted has not heard it: it is asked again.
        let asked = tokio::select! {
            asked = in_time(instance.power_down()) => asked,
            () = sleep_until(late_at) => Ok(()),
            () = self.becomes(|vm| grace_ms(vm, generation) < grace) => Ok(()),
        };
        if let Err(error) = asked {
            tracing::debug!(vm = %self.id, %error, "can't be asked again to power off; its grace goes on");
        }
        Ok(())
    }

    /// The VM is no more, or is another node's: nothing of it may stay.
    async fn abandon(&mut self, stop: &CancellationToken) -> Result<(), String> {
        if let Some(held) = self.held.take() {
            self.shared.instances().remove(&self.id);
            if !self.surely_ended(Some(&held.instance.record()), Look::Known, stop).await? {
                return Ok(());
            }
            self.note_if_elsewhere();
        }
        if let Err(why) = remove(&self.shared, self.id.0).await {
            tracing::warn!(vm = %self.id, why, "of a vm that is no more, or not here");
        }
        Ok(())
    }
}

/// How long the end of this generation's machine may take.
fn grace_ms(vm: &Vm, generation: u64) -> u64 {
    if vm.generation == generation { vm.stop_grace_ms } else { vm.spec.grace_ms }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A hundred thousand machines on one host are a hundred thousand of these, almost all of them waiting.
    const ACTOR_BYTES_MAX: usize = 1_024;

    fn bytes_of<F: Future>(_: impl FnOnce(Actor, CancellationToken) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_actor_that_waits_is_small() {
        let bytes = bytes_of(Actor::run);
        assert!(bytes <= ACTOR_BYTES_MAX, "{bytes} bytes");
    }
}
