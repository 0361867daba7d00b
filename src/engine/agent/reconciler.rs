//! Wakes the actor of each VM that has changed, and makes one where there is none. At the start it also finds what former lives
//! left behind and belongs to nothing.

use super::actor::Actor;
use super::record::is_damaged;
use super::resources::Resource;
use super::start::{end_unrecorded, release, remove};
use super::supervisor::Policy;
use super::{AGAIN_AFTER, AgentError, Shared};
use crate::engine::state::{Actual, Command, Desired, Kind, NodeId, State, Vm, VmId, VmReport};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Who looks after a VM.
pub(super) enum ActorOf {
    /// An actor, which is woken so.
    Runs(Arc<Notify>),
    /// None: the last one failed too often, when this was wanted. Something else to do is worth another try.
    GivenUp {
        /// Its name.
        task: String,
        /// What it was to do.
        wanted: Wanted,
    },
}

/// What changes when something else is wanted of a VM here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    desired: Desired,
    generation: u64,
    stop_grace_ms: u64,
    /// It is to end, or to vanish.
    ends: bool,
    node: Option<NodeId>,
}

impl Wanted {
    fn of(vm: &Vm) -> Wanted {
        let ends = matches!(vm.actual, Actual::Stopping | Actual::Deleting);
        let Vm { desired, generation, stop_grace_ms, node, .. } = *vm;
        Wanted { desired, generation, stop_grace_ms, ends, node }
    }
}

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
    let Some(supervisor) = shared.supervisor.upgrade() else { return Ok(()) };
    supervisor.start("reconciler", Policy::VITAL, follow)?;
    let weak = Arc::downgrade(shared);
    let retry = move |stop: CancellationToken| {
        let shared = weak.upgrade();
        async move {
            let Some(shared) = shared else { return Ok(()) };
            loop {
                tokio::select! {
                    () = stop.cancelled() => return Ok(()),
                    () = tokio::time::sleep(AGAIN_AFTER) => shared.leftovers.retry(&shared.host).await,
                }
            }
        }
    };
    supervisor.start("leftovers", Policy::VITAL, retry)
}

async fn follow(shared: &Arc<Shared>, stop: &CancellationToken) -> Result<(), String> {
    let mut changes = shared.engine.changes();
    let mut known = Arc::new(State::new());
    loop {
        changes.borrow_and_update();
        let state = shared.engine.state();
        for (before, now) in state.vms_changed_since(&known) {
            let Some(vm) = now else { continue };
            wake(shared, vm)?;
            if before.is_some_and(|before| before.node == Some(shared.options.node))
                && vm.node != before.and_then(|b| b.node)
            {
                left(shared, vm.id)?;
            }
        }
        for (before, _) in known.vms_changed_since(&state) {
            // Removed ones: an actor that is still there looks again and ends.
            if let Some(vm) = before.filter(|vm| state.vm(vm.id).is_none()) {
                removed(shared, vm.id);
            }
        }
        for pool in pools_gone(&known, &state) {
            shared.leftovers.release(&Resource::Bridge(pool), &shared.host).await;
        }
        known = state;
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            changed = changes.changed() => changed.map_err(|_| "the engine has ended".to_owned())?,
        }
    }
}

/// The pools that are no more: nothing had an address of them, so nothing hangs on their bridges.
fn pools_gone(before: &State, now: &State) -> Vec<u64> {
    if before.directory(Kind::Pool).members == now.directory(Kind::Pool).members {
        return Vec::new();
    }
    let there = |id: u64| now.ipam().pools().any(|pool| pool.id() == id);
    before.ipam().pools().map(|pool| pool.id()).filter(|id| !there(*id)).collect()
}

fn actors(shared: &Shared) -> MutexGuard<'_, HashMap<VmId, ActorOf>> {
    shared.actors.lock().unwrap_or_else(PoisonError::into_inner)
}

/// For a VM that is no more.
fn removed(shared: &Shared, id: VmId) {
    let mut actors = actors(shared);
    match actors.get(&id) {
        Some(ActorOf::Runs(changed)) => changed.notify_one(),
        Some(ActorOf::GivenUp { .. }) => drop(actors.remove(&id)),
        None => {}
    }
}

/// For a VM that was taken off this node: an actor clears up what is left of it.
fn left(shared: &Arc<Shared>, id: VmId) -> Result<(), String> {
    let mut actors = actors(shared);
    match actors.get(&id) {
        Some(ActorOf::Runs(_)) => return Ok(()),
        Some(ActorOf::GivenUp { task, .. }) => {
            shared.supervisor.upgrade().iter().for_each(|supervisor| supervisor.forget(task));
            actors.remove(&id);
        }
        None => {}
    }
    drop(actors);
    start_actor(shared, id)
}

/// Wakes the VM's actor, or starts one if it needs one.
fn wake(shared: &Arc<Shared>, vm: &Vm) -> Result<(), String> {
    let mut actors = actors(shared);
    match actors.get(&vm.id) {
        Some(ActorOf::Runs(changed)) => {
            changed.notify_one();
            return Ok(());
        }
        Some(ActorOf::GivenUp { wanted, .. }) if *wanted == Wanted::of(vm) => return Ok(()),
        Some(ActorOf::GivenUp { task, .. }) => {
            shared.supervisor.upgrade().iter().for_each(|supervisor| supervisor.forget(task));
            actors.remove(&vm.id);
        }
        None => {}
    }
    drop(actors);
    if needs_actor(shared, vm) { start_actor(shared, vm.id) } else { Ok(()) }
}

fn start_actor(shared: &Arc<Shared>, id: VmId) -> Result<(), String> {
    let Some(supervisor) = shared.supervisor.upgrade() else { return Ok(()) };
    let changed = Arc::new(Notify::new());
    actors(shared).insert(id, ActorOf::Runs(changed.clone()));
    let weak = Arc::downgrade(shared);
    let begun_for = Arc::new(Mutex::new(None));
    let begins_for = begun_for.clone();
    let start = move |stop: CancellationToken| {
        let (shared, changed, begins_for) = (weak.upgrade(), changed.clone(), begins_for.clone());
        async move {
            let Some(shared) = shared else { return Ok(()) };
            loop {
                let wanted = shared.engine.state().vm(id).map(|vm| Wanted::of(vm));
                *begins_for.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
                Actor::new(shared.clone(), id, changed.clone()).run(stop.clone()).await?;
                // Under the lock that `wake` takes: a change either finds this actor, or finds that there is none.
                let mut actors = actors(&shared);
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
    let task = format!("vm/{id}/{nth}");
    let (weak, name) = (Arc::downgrade(shared), task.clone());
    let given_up = move |failure| async move {
        let wanted = *begun_for.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(shared) = weak.upgrade() {
            give_up(&shared, id, wanted.map(|wanted| ActorOf::GivenUp { task: name, wanted }), failure).await;
        }
    };
    let started = supervisor.start_and_tell(&task, Policy::ACTOR, start, given_up);
    if started.is_err() {
        actors(shared).remove(&id);
    }
    started
}

/// The VM's actor has failed too often. Its machine, if there is one, goes on, and the VM's status says so. What the last one had
/// when it began counts as tried; what has come since does not, and gets an actor.
async fn give_up(shared: &Arc<Shared>, id: VmId, given_up: Option<ActorOf>, failure: String) {
    match given_up {
        Some(given_up) => drop(actors(shared).insert(id, given_up)),
        // It began when the VM was no more.
        None => drop(actors(shared).remove(&id)),
    }
    let state = shared.engine.state();
    let Some(vm) = state.vm(id) else { return removed(shared, id) };
    if let Err(why) = wake(shared, vm) {
        tracing::error!(vm = %id, why, "has no task any more");
    }
    if matches!(actors(shared).get(&id), Some(ActorOf::Runs(_))) {
        return;
    }
    let generation = vm.generation;
    drop(state);
    let sentence = format!(
        "its task failed again and again and was given up: {failure}; \
         to have it tried again, kill the vm (or start it, if it does not run), or start the node anew"
    );
    let report = VmReport::Trouble { sentence };
    if let Err(refusal) = shared.report(Command::VmReport { vm: id, generation, report }).await {
        tracing::error!(vm = %id, %refusal, "can't be told that it has no task any more");
    }
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
            // Its actor tries again; until then what runs is nobody's prey.
            Err(error) if here(vm) && !is_damaged(&error) => {
                tracing::warn!(vm, %error, "its record can't be read now");
                known.extend(shared.records.run_dirs(vm));
                recorded.insert(vm);
            }
            Err(error) => tracing::warn!(vm, %error, "its record is damaged; whatever runs is an orphan"),
        }
    }
    // What stays is listed as left over.
    end_unrecorded(shared, &vms_dir, &known).await?;
    let rubbish = |vm: &u64| match state.vm(VmId(*vm)) {
        // What only this node has of it stays.
        Some(vm) => vm.node != Some(shared.options.node) && vm.is_free(),
        None => state.was_there(VmId(*vm)),
    };
    for vm in shared.records.vms().map_err(failed)?.into_iter().filter(rubbish) {
        if let Err(why) = remove(shared, vm).await {
            tracing::warn!(vm, why, "of a vm that is no more, or not here");
        }
    }
    let taps = shared.host.net.taps().await?;
    for vm in taps.into_iter().chain(shared.host.cgroups.list()).filter(|vm| !recorded.contains(vm)) {
        release(shared, vm).await;
    }
    shared.leftovers.retry(&shared.host).await;
    shared.host.net.remove_idle_bridges().await?;
    for vm in recorded {
        start_actor(shared, VmId(vm)).map_err(AgentError::Task)?;
    }
    Ok(())
}
