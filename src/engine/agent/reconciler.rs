//! Wakes the actor of each VM that has changed, and makes one where there is none. At the start it also finds what former lives
//! left behind and belongs to nothing.

use super::actor::Actor;
use super::resources::Resource;
use super::start::{release, remove};
use super::supervisor::Policy;
use super::{AgentError, Shared};
use crate::engine::state::{Actual, State, Vm, VmId};
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How often what could not be given back is tried again.
const LEFTOVERS_EVERY: Duration = Duration::from_secs(30);

/// Is there something for an actor to do or to watch?
fn needs_actor(shared: &Shared, vm: &Vm) -> bool {
    let here = vm.node == Some(shared.options.node);
    here && (vm.active() || vm.actual == Actual::Deleting || (vm.actual == Actual::Failed && vm.retry_at_ms.is_some()))
}

/// Starts the tasks: one that follows the log, one that comes back to what is left over.
pub(super) fn start(shared: &Arc<Shared>) -> Result<(), String> {
    // Weak: the tasks hang in the supervisor, which is part of what is shared.
    let weak = Arc::downgrade(shared);
    let follow = move |stop: CancellationToken| {
        let shared = weak.upgrade();
        async move {
            match shared {
                Some(shared) => follow(&shared, &stop).await,
                None => Ok(()),
            }
        }
    };
    shared.supervisor.start("reconciler", Policy::VITAL, follow)?;
    let weak = Arc::downgrade(shared);
    let retry = move |stop: CancellationToken| {
        let shared = weak.upgrade();
        async move {
            let Some(shared) = shared else { return Ok(()) };
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    // A real deadline: the host says nothing when a busy resource comes free.
                    () = tokio::time::sleep(LEFTOVERS_EVERY) => shared.leftovers.retry(&shared.host).await,
                }
            }
        }
    };
    shared.supervisor.start("leftovers", Policy::VITAL, retry)
}

async fn follow(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), String> {
    let mut changes = shared.engine.changes();
    let mut known = Arc::new(State::new());
    loop {
        changes.borrow_and_update();
        let state = shared.engine.state();
        for (_, now) in state.vms_changed_since(&known) {
            if let Some(vm) = now {
                wake(shared, vm)?;
            }
        }
        for (before, _) in known.vms_changed_since(&state) {
            // Removed ones: an actor that is still there looks again and ends.
            if let Some(vm) = before.filter(|vm| state.vm(vm.id).is_none()) {
                notify(shared, vm.id);
            }
        }
        known = state;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
        }
    }
}

fn notify(shared: &Shared, id: VmId) -> bool {
    let actors = shared.actors.lock().unwrap_or_else(PoisonError::into_inner);
    actors.get(&id).map(|changed| changed.notify_one()).is_some()
}

/// Wakes the VM's actor, or starts one if it needs one.
fn wake(shared: &Arc<Shared>, vm: &Vm) -> Result<(), String> {
    if notify(shared, vm.id) || !needs_actor(shared, vm) {
        return Ok(());
    }
    start_actor(shared, vm.id)
}

fn start_actor(shared: &Arc<Shared>, id: VmId) -> Result<(), String> {
    let changed = Arc::new(Notify::new());
    shared.actors.lock().unwrap_or_else(PoisonError::into_inner).insert(id, changed.clone());
    let weak = Arc::downgrade(shared);
    let start = move |stop: CancellationToken| {
        let (shared, changed) = (weak.upgrade(), changed.clone());
        async move {
            let Some(shared) = shared else { return Ok(()) };
            loop {
                Actor::new(shared.clone(), id, changed.clone()).run(stop.clone()).await?;
                // Under the lock that `notify` takes: a change either finds this actor, or finds that there is none.
                let mut actors = shared.actors.lock().unwrap_or_else(PoisonError::into_inner);
                let state = shared.engine.state();
                if stop.is_cancelled() || !state.vm(id).is_some_and(|vm| needs_actor(&shared, vm)) {
                    actors.remove(&id);
                    return Ok(());
                }
            }
        }
    };
    // A name of its own for each: the last one's may not be quite gone.
    let nth = shared.actors_made.fetch_add(1, Ordering::Relaxed);
    shared.supervisor.start(&format!("vm/{id}/{nth}"), Policy::ACTOR, start)
}

/// Ends and gives back what belongs to nothing, and starts an actor wherever a former life left something.
pub(super) async fn clear_up(shared: &Arc<Shared>) -> Result<(), AgentError> {
    let state = shared.engine.state();
    let vms_dir = shared.records.folder().to_owned();
    let failed = |e| AgentError::Io(vms_dir.clone(), e);
    let here = |id: u64| state.vm(VmId(id)).is_some_and(|vm| vm.node == Some(shared.options.node));
    let mut known = Vec::new();
    let mut recorded = BTreeSet::new();
    for vm in shared.records.vms().map_err(failed)? {
        match shared.records.read(vm) {
            Ok(Some(record)) if here(vm) => {
                known.push(record.machine.run_dir);
                recorded.insert(vm);
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(vm, %error, "its record can't be read; whatever runs is an orphan"),
        }
    }
    for (record, run_dir) in shared.hypervisor.orphans(&vms_dir, &known).await {
        tracing::warn!(pid = record.pid, run_dir = %run_dir.display(), "a machine that belongs to nothing is ended");
        shared.leftovers.release(&Resource::from(&record), &shared.host).await;
    }
    for vm in shared.records.vms().map_err(failed)?.into_iter().filter(|vm| !here(*vm)) {
        remove(shared, vm).await;
    }
    let taps = shared.host.net.taps().await?;
    for vm in taps.into_iter().chain(shared.host.cgroups.list()).filter(|vm| !recorded.contains(vm)) {
        release(shared, vm).await;
    }
    shared.leftovers.retry(&shared.host).await;
    for vm in recorded {
        start_actor(shared, VmId(vm)).map_err(AgentError::Task)?;
    }
    Ok(())
}
