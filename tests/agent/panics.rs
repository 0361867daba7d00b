//! An actor that panics is started again and harms nobody; one that does so again and again is given up, and its VM says so.

use super::bed::{Bed, RETRIED, pass, spec};
use super::world::Fault;
use blixard::engine::agent::Policy;
use blixard::engine::hypervisor::Exit;
use blixard::engine::state::{Actual, VmVerb};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

fn task_lines(bed: &Bed) -> Vec<String> {
    bed.status().into_iter().filter(|(key, _)| key == "task").map(|(_, line)| line).collect()
}

/// Another VM that runs, and must not notice.
async fn neighbour(bed: &Bed) -> (blixard::engine::state::VmId, u32) {
    let vm = bed.new_vm(spec()).await;
    bed.start(vm).await;
    let seen = bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
    (vm, seen.pid.unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_in_the_life_of_a_vm_is_survived() {
    let bed = Bed::new().await;
    let (other, pid) = neighbour(&bed).await;
    for n in 1.. {
        let vm = bed.new_vm(spec()).await;
        bed.world.rule(move |number, _| (number == n).then_some(Fault::Panic));
        bed.start(vm).await;
        bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
        assert_eq!(bed.world.launches(vm.0), 1, "call {n}");
        bed.tell(vm, VmVerb::Pause).await.unwrap();
        bed.is(vm, Actual::Paused).await;
        bed.stop(vm).await;
        bed.is(vm, Actual::Stopped).await;
        bed.tell(vm, VmVerb::Delete).await.unwrap();
        bed.is_gone(vm).await;
        let calls = bed.world.calls().len();
        bed.world.heal();
        bed.nothing_left(vm, &format!("call {n}"));
        if n > calls {
            break;
        }
        // So far apart that no actor is given up for its forerunners' sake.
        pass(Policy::ACTOR.within).await;
    }
    let seen = bed.vm(other);
    assert_eq!((seen.actual, seen.generation, seen.pid), (Actual::Running, 1, Some(pid)));
    assert_eq!(bed.world.launches(other.0), 1);
}

#[tokio::test(start_paused = true)]
async fn an_actor_that_always_panics_is_given_up_and_its_vm_says_so() {
    let bed = Bed::new().await;
    let (other, pid) = neighbour(&bed).await;
    // Whatever it does first, with a machine or without.
    for (victim, verb) in [("launch", VmVerb::Start), ("pause", VmVerb::Pause), ("power down", VmVerb::Restart)] {
        let vm = bed.new_vm(spec()).await;
        if victim != "launch" {
            bed.start(vm).await;
            bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
        }
        bed.world.rule(move |_, name| (name == victim).then_some(Fault::Panic));
        bed.tell(vm, verb).await.unwrap();
        let seen = bed.becomes(vm, "given up", |vm| vm.error.is_some()).await;
        let error = seen.error.as_deref().unwrap();
        assert!(error.contains("given up: it panicked: injected into") && error.contains("kill"), "{error}");
        let met = bed.world.calls().iter().filter(|name| *name == victim).count();
        assert_eq!(met, Policy::ACTOR.most + 1, "{victim}");
        let lines = task_lines(&bed).join("\n");
        assert!(lines.contains("given up: it panicked: injected into"), "{lines}");
        // It stays down: nothing is tried again until somebody wants something else.
        pass(RETRIED).await;
        assert_eq!(bed.world.calls().iter().filter(|name| *name == victim).count(), met, "{victim}");
        bed.world.heal();
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        bed.is(vm, Actual::Stopped).await;
        bed.start(vm).await;
        bed.becomes(vm, "ready", |vm| vm.guest_ready && vm.error.is_none()).await;
        let lines = task_lines(&bed).join("\n");
        assert!(!lines.contains("given up"), "{lines}");
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        bed.is(vm, Actual::Stopped).await;
        bed.tell(vm, VmVerb::Delete).await.unwrap();
        bed.is_gone(vm).await;
        bed.nothing_left(vm, victim);
    }
    let seen = bed.vm(other);
    assert_eq!((seen.actual, seen.generation, seen.pid), (Actual::Running, 1, Some(pid)));
}

/// What is wanted while the last actor is about to fail was never tried: it is not taken for what failed.
#[tokio::test(start_paused = true)]
async fn a_verb_that_comes_as_the_last_actor_fails_is_done() {
    let bed = Bed::new().await;
    let vm = bed.new_vm(spec()).await;
    bed.start(vm).await;
    bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
    let met = Arc::new(AtomicUsize::new(0));
    let count = met.clone();
    bed.world.rule(move |_, name| match name {
        "pause" if count.fetch_add(1, Ordering::Relaxed) < Policy::ACTOR.most => Some(Fault::Panic),
        "pause" => Some(Fault::LatePanic(Duration::from_secs(5))),
        _ => None,
    });
    bed.tell(vm, VmVerb::Pause).await.unwrap();
    while met.load(Ordering::Relaxed) <= Policy::ACTOR.most {
        pass(Duration::from_millis(10)).await;
    }
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    bed.is(vm, Actual::Stopped).await;
}

/// A start that was cut off by a panic is cleared up by whoever comes next, also if that is not to start anything.
#[tokio::test(start_paused = true)]
async fn what_a_panic_leaves_is_given_back() {
    let bed = Bed::new().await;
    for victim in ["make cgroup", "make tap", "make disk", "launch", "running"] {
        let vm = bed.new_vm(spec()).await;
        bed.world.rule(move |_, name| (name == victim).then_some(Fault::Panic));
        bed.start(vm).await;
        bed.becomes(vm, "given up", |vm| vm.error.is_some()).await;
        bed.world.heal();
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        bed.is(vm, Actual::Stopped).await;
        assert_eq!((bed.world.held(vm.0).len(), bed.leftovers().len()), (0, 0), "{victim}");
        bed.tell(vm, VmVerb::Delete).await.unwrap();
        bed.is_gone(vm).await;
        bed.nothing_left(vm, victim);
    }
}

/// A machine that ended while its actor was down is not there any more, for nobody.
#[tokio::test(start_paused = true)]
async fn a_machine_that_ends_unseen_is_forgotten() {
    let bed = Bed::new().await;
    let vm = bed.new_vm(spec()).await;
    bed.start(vm).await;
    bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
    bed.world.rule(|_, name| (name == "pause").then_some(Fault::Panic));
    bed.tell(vm, VmVerb::Pause).await.unwrap();
    bed.becomes(vm, "given up", |vm| vm.error.is_some()).await;
    bed.world.heal();
    bed.world.simulated.end(&bed.world.machines(vm.0)[0], Exit::PoweredOff);
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    bed.is(vm, Actual::Stopped).await;
    bed.tell(vm, VmVerb::Delete).await.unwrap();
    bed.is_gone(vm).await;
    bed.nothing_left(vm, "at the end");
}

#[tokio::test(start_paused = true)]
async fn a_given_up_actor_is_made_anew_with_the_agent() {
    let mut bed = Bed::new().await;
    let vm = bed.new_vm(spec()).await;
    bed.world.rule(|_, name| (name == "launch").then_some(Fault::Panic));
    bed.start(vm).await;
    bed.becomes(vm, "given up", |vm| vm.error.is_some()).await;
    bed.world.heal();
    bed.stop_agent().await;
    bed.start_agent().await;
    bed.becomes(vm, "ready", |vm| vm.guest_ready && vm.error.is_none()).await;
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_the_process_can_not_do_without_escalates() {
    let bed = Bed::new().await;
    let always = |_| async { Err("it can't".to_owned()) };
    bed.supervisor.start("vital", Policy::VITAL, always).unwrap();
    let why = bed.supervisor.escalated().await;
    assert!(why.contains("the task vital failed more than 5 times: it can't"), "{why}");
    assert!(task_lines(&bed).join("\n").contains("vital given up: it can't"));
}
