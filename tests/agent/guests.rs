//! Guests that crash, and hypervisors that hang, fail and lie.

use super::bed::{Bed, pass, root, spec};
use super::world::Fault;
use blixard::engine::hypervisor::Exit;
use blixard::engine::hypervisor::simulated::Behaviour;
use blixard::engine::state::vm::{FAILURES_MAX, QUICK_MS, RETRY_FIRST_MS, RETRY_MOST_MS, STEADY_MS};
use blixard::engine::state::{Actual, Command, Desired, Restart, VmId, VmSpec, VmVerb};
use std::time::Duration;
use tokio::time::Instant;

/// Timers have a resolution of a millisecond, and some follow one another.
const SLACK: Duration = Duration::from_millis(20);

fn that_restarts(restart: Restart) -> VmSpec {
    VmSpec { restart, ..spec() }
}

async fn running(bed: &Bed, spec: VmSpec) -> VmId {
    let vm = bed.new_vm(spec).await;
    bed.start(vm).await;
    bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
    vm
}

fn end(bed: &Bed, vm: VmId, exit: Exit) {
    let machines = bed.world.machines(vm.0);
    assert_eq!(machines.len(), 1, "{machines:?}");
    assert!(bed.world.simulated.end(&machines[0], exit));
}

fn crash(bed: &Bed, vm: VmId) {
    end(bed, vm, Exit::Crashed("the guest's kernel has panicked; start it".to_owned()));
}

/// How long something takes, by the test's clock.
async fn takes(what: impl Future, least: Duration, of: &str) {
    let begin = Instant::now();
    what.await;
    let took = begin.elapsed();
    assert!(took >= least && took <= least + SLACK, "{of}: {took:?}, not {least:?}");
}

#[tokio::test(start_paused = true)]
async fn a_crash_loop_backs_off_and_ends() {
    let bed = Bed::new().await;
    let vm = running(&bed, that_restarts(Restart::OnFailure)).await;
    for failures in 1..FAILURES_MAX {
        crash(&bed, vm);
        let seen = bed.is(vm, Actual::Failed).await;
        assert_eq!((seen.failures, seen.error.as_deref().unwrap().contains("panicked")), (failures, true));
        let pause_ms = (RETRY_FIRST_MS << (failures - 1)).min(RETRY_MOST_MS);
        let again = bed.becomes(vm, "ready again", |vm| vm.guest_ready);
        takes(again, Duration::from_millis(pause_ms), &format!("after {failures} failures")).await;
    }
    crash(&bed, vm);
    let seen = bed.becomes(vm, "failed for good", |vm| vm.settled() && vm.actual == Actual::Failed).await;
    assert_eq!((seen.failures, seen.desired), (FAILURES_MAX, Desired::Running));
    pass(Duration::from_secs(3600)).await;
    assert_eq!(bed.world.launches(vm.0), usize::try_from(FAILURES_MAX).unwrap());
    assert_eq!((bed.world.held(vm.0).len(), bed.leftovers().len()), (0, 0));
    // A user's start counts anew, and so does one that has run for long.
    bed.start(vm).await;
    bed.becomes(vm, "ready", |vm| vm.guest_ready && vm.failures == 0).await;
    crash(&bed, vm);
    bed.becomes(vm, "ready", |vm| vm.guest_ready && vm.failures == 1).await;
    pass(Duration::from_millis(STEADY_MS)).await;
    crash(&bed, vm);
    assert_eq!(bed.is(vm, Actual::Failed).await.failures, 1);
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_ends_by_itself_is_started_again_as_its_policy_says() {
    let bed = Bed::new().await;
    for (restart, exit, long, expected) in [
        (Restart::Never, Exit::Crashed("x".into()), false, Actual::Failed),
        (Restart::Never, Exit::PoweredOff, false, Actual::Stopped),
        (Restart::OnFailure, Exit::PoweredOff, true, Actual::Stopped),
        (Restart::OnFailure, Exit::Killed, false, Actual::Running),
        (Restart::Always, Exit::PoweredOff, true, Actual::Running),
        (Restart::Always, Exit::PoweredOff, false, Actual::Running),
        (Restart::Always, Exit::Crashed("x".into()), true, Actual::Running),
    ] {
        let of = format!("{restart:?} {exit:?} {long}");
        let vm = running(&bed, that_restarts(restart)).await;
        if long {
            pass(Duration::from_millis(QUICK_MS)).await;
        }
        end(&bed, vm, exit.clone());
        let pause_ms = match (exit, long) {
            _ if expected != Actual::Running => 0,
            (Exit::PoweredOff, true) => 0,
            _ => RETRY_FIRST_MS,
        };
        let generation = 1 + u64::from(expected == Actual::Running);
        let settled = bed.becomes(vm, "as it should be", |vm| {
            vm.actual == expected && vm.generation == generation && (vm.settled() || expected != Actual::Running)
        });
        takes(settled, Duration::from_millis(pause_ms), &of).await;
        pass(Duration::from_secs(600)).await;
        assert_eq!(bed.world.launches(vm.0), usize::try_from(generation).unwrap(), "{of}");
        assert_eq!(bed.world.machines(vm.0).len(), usize::from(expected == Actual::Running), "{of}");
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_power_off_has_its_grace_and_is_killed() {
    let bed = Bed::new().await;
    let grace = Duration::from_millis(spec().grace_ms);
    for (hangs, victim, fault) in [
        (true, "", Fault::Before),
        // The hypervisor does not answer, says so, or lies.
        (true, "power down", Fault::Hang),
        (true, "power down", Fault::Lie),
        // Its channel breaks, before and while it is asked.
        (true, "guest ready", Fault::Before),
    ] {
        bed.world.simulated.behave(Behaviour { hangs, ..Behaviour::default() });
        bed.world.rule(move |_, name| (name == victim).then_some(fault));
        let vm = bed.new_vm(spec()).await;
        bed.start(vm).await;
        bed.is(vm, Actual::Running).await;
        bed.stop(vm).await;
        let of = format!("'{victim}' {fault:?}");
        takes(bed.is(vm, Actual::Stopped), grace, &of).await;
        assert_eq!(bed.world.held(vm.0).len(), 0, "{of}");
        // A kill does not wait, also not in the middle of a stop.
        bed.start(vm).await;
        bed.is(vm, Actual::Running).await;
        bed.stop(vm).await;
        pass(grace / 2).await;
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        takes(bed.is(vm, Actual::Stopped), Duration::ZERO, &of).await;
        assert_eq!(bed.world.held(vm.0).len(), 0, "{of}");
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_launch_that_hangs_is_given_up_and_can_be_stopped() {
    let bed = Bed::new().await;
    for fault in [Fault::Hang, Fault::SlowAnswer(Duration::from_secs(7200))] {
        bed.world.rule(move |_, name| (name == "launch").then_some(fault));
        let vm = bed.new_vm(spec()).await;
        bed.start(vm).await;
        let seen = bed.is(vm, Actual::Failed).await;
        assert!(seen.error.as_deref().unwrap().contains("had not started within"), "{seen:?}");
        assert_eq!((bed.world.held(vm.0).len(), bed.leftovers().len()), (0, 0));
        bed.start(vm).await;
        pass(Duration::from_secs(1)).await;
        bed.stop(vm).await;
        takes(bed.is(vm, Actual::Stopped), Duration::ZERO, "a stop").await;
        assert_eq!((bed.world.held(vm.0).len(), bed.leftovers().len()), (0, 0));
        // A restart in the middle begins anew.
        bed.start(vm).await;
        pass(Duration::from_secs(1)).await;
        bed.world.heal();
        bed.tell(vm, VmVerb::Restart).await.unwrap();
        takes(bed.becomes(vm, "ready", |vm| vm.guest_ready), Duration::ZERO, "a restart").await;
        assert_eq!(bed.world.machines(vm.0).len(), 1);
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_can_not_be_killed_is_tried_again_and_never_has_a_successor() {
    let bed = Bed::new().await;
    for fault in [Fault::Before, Fault::Hang, Fault::Lie] {
        let of = format!("{fault:?}");
        // By the hypervisor it can't, by the host it can.
        bed.world.rule(move |_, name| (name == "kill").then_some(fault));
        let vm = running(&bed, that_restarts(Restart::OnFailure)).await;
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        bed.is(vm, Actual::Stopped).await;
        assert_eq!((bed.world.held(vm.0).len(), bed.leftovers().len()), (0, 0), "{of}");
        // Nobody can.
        bed.start(vm).await;
        bed.becomes(vm, "ready", |vm| vm.guest_ready).await;
        bed.world.rule(move |_, name| match name {
            "kill" => Some(fault),
            "power down" => Some(Fault::Lie),
            "end process" => Some(Fault::Before),
            _ => None,
        });
        bed.tell(vm, VmVerb::Restart).await.unwrap();
        bed.tell(vm, VmVerb::Kill).await.unwrap();
        let seen = bed.becomes(vm, "in trouble", |vm| vm.error.is_some()).await;
        assert!(seen.error.as_deref().unwrap().contains("can't be ended: injected"), "{of}: {seen:?}");
        // A start takes its place, and waits.
        bed.start(vm).await;
        pass(Duration::from_secs(3600)).await;
        assert_eq!((bed.world.machines(vm.0).len(), bed.vm(vm).actual), (1, Actual::Stopping), "{of}");
        bed.world.heal();
        bed.becomes(vm, "ready", |vm| vm.guest_ready && vm.actual == Actual::Running).await;
        assert_eq!((bed.world.machines(vm.0).len(), bed.leftovers().len()), (1, 0), "{of}");
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_does_not_obey_is_ended_before_there_is_another() {
    let bed = Bed::new().await;
    // It takes its time to die: a successor must wait for that.
    bed.world.simulated.behave(Behaviour { dying: Duration::from_secs(3), ..Behaviour::default() });
    for fault in [Fault::Before, Fault::Hang] {
        let vm = running(&bed, that_restarts(Restart::OnFailure)).await;
        bed.world.rule(move |_, name| (name == "pause").then_some(fault));
        bed.tell(vm, VmVerb::Pause).await.unwrap();
        let seen = bed.is(vm, Actual::Failed).await;
        assert!(seen.error.as_deref().unwrap().contains("did not obey"), "{seen:?}");
        bed.world.heal();
        bed.is(vm, Actual::Paused).await;
        assert_eq!((bed.world.machines(vm.0).len(), bed.vm(vm).generation), (1, 2));
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

/// Who says that a machine has ended, or is gone, while it runs, can't make the agent start a second one.
#[tokio::test(start_paused = true)]
async fn a_lying_hypervisor_gets_no_second_machine() {
    let mut bed = Bed::new().await;
    bed.world.simulated.behave(Behaviour { dying: Duration::from_secs(3), ..Behaviour::default() });
    for (victim, times) in [("exited", 1), ("launch", 1), ("exited", 3), ("adopt", 1), ("record the process", 1)] {
        let vm = running(&bed, that_restarts(Restart::OnFailure)).await;
        let mut left = times;
        bed.world.rule(move |_, name| {
            let lies = name == victim && left > 0;
            left -= usize::from(lies);
            lies.then_some(Fault::Lie)
        });
        bed.tell(vm, VmVerb::Restart).await.unwrap();
        pass(Duration::from_secs(60)).await;
        bed.crash_agent().await;
        bed.start_agent().await;
        bed.becomes(vm, "running in the end", |vm| vm.settled() && vm.actual == Actual::Running).await;
        pass(Duration::from_secs(600)).await;
        assert_eq!((bed.world.machines(vm.0).len(), bed.leftovers().len()), (1, 0), "{victim}");
        assert_eq!(bed.vm(vm).actual, Actual::Running, "{victim}");
        bed.world.heal();
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}

/// A launch that fails and leaves its process, written down or not, which can't be ended: the next start has to wait for that.
#[tokio::test(start_paused = true)]
async fn what_a_failed_launch_leaves_running_has_no_successor() {
    let mut bed = Bed::new().await;
    for recorded in [true, false] {
        let vm = bed.new_vm(spec()).await;
        bed.world.rule(move |_, name| match name {
            "launch" => Some(Fault::After),
            "record the process" if !recorded => Some(Fault::Lie),
            "end process" => Some(Fault::Before),
            _ => None,
        });
        bed.start(vm).await;
        bed.is(vm, Actual::Failed).await;
        let process = format!("process of vm {vm}");
        assert!(bed.leftovers().contains(&process), "{:?}", bed.leftovers());
        for life in 0..3 {
            bed.start(vm).await;
            let seen = bed.becomes(vm, "failed", |vm| vm.settled() && vm.actual == Actual::Failed).await;
            assert!(seen.error.as_deref().unwrap().contains("can't be ended"), "{life}: {seen:?}");
            assert!(bed.leftovers().contains(&process), "{life}: {:?}", bed.leftovers());
            // The next life has the list of this one.
            bed.stop_agent().await;
            bed.start_agent().await;
        }
        bed.tell(vm, VmVerb::Delete).await.unwrap();
        pass(Duration::from_secs(600)).await;
        assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Deleting, 1));
        bed.world.heal();
        bed.is_gone(vm).await;
        bed.nothing_left(vm, "at the end");
    }
}

/// One that may be started on another node must not be said to have failed before nothing of it runs here.
#[tokio::test(start_paused = true)]
async fn what_can_go_elsewhere_has_not_failed_while_it_may_run_here() {
    let bed = Bed::new().await;
    let vm = bed.new_vm(VmSpec { disk_bytes: None, ..spec() }).await;
    bed.world.rule(move |_, name| match name {
        "launch" => Some(Fault::After),
        "end process" => Some(Fault::Before),
        _ => None,
    });
    bed.start(vm).await;
    let seen = bed.becomes(vm, "in trouble", |vm| vm.error.is_some()).await;
    assert!(seen.error.as_deref().unwrap().contains("can't be ended"), "{seen:?}");
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Starting, 1));
    bed.world.heal();
    bed.is(vm, Actual::Failed).await;
    assert_eq!(bed.world.machines(vm.0).len(), 0);
}

/// Nor has one ended whose start was cut off because it is to stop, while what was begun can't be ended.
#[tokio::test(start_paused = true)]
async fn what_was_cut_off_has_not_ended_while_it_may_run_here() {
    let mut bed = Bed::new().await;
    let vm = bed.new_vm(VmSpec { disk_bytes: None, ..spec() }).await;
    bed.world.rule(move |_, name| match name {
        "launch" => Some(Fault::SlowAnswer(Duration::from_secs(100))),
        "end process" => Some(Fault::Before),
        _ => None,
    });
    bed.start(vm).await;
    pass(Duration::from_secs(1)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Starting, 1));
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    let seen = bed.becomes(vm, "in trouble", |vm| vm.error.is_some()).await;
    assert!(seen.error.as_deref().unwrap().contains("can't be ended"), "{seen:?}");
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Stopping, 1));
    // Nor does the next life of the agent take it for ended.
    bed.crash_agent().await;
    bed.start_agent().await;
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Stopping, 1));
    bed.world.heal();
    bed.is(vm, Actual::Stopped).await;
    assert_eq!(bed.world.machines(vm.0).len(), 0);
}

/// A pool that is made anew gets a bridge anew: the old one would have the same addresses.
#[tokio::test(start_paused = true)]
async fn a_pools_bridge_goes_with_it() {
    let bed = Bed::new().await;
    let new = |network: &str| Command::PoolNew {
        name: "lab".into(),
        network: network.parse().unwrap(),
        gateway: None,
        reserved: Vec::new(),
    };
    let delete = Command::PoolDelete { name: "lab".into() };
    bed.engine.submit(root(), vec![new("10.7.0.0/24")]).await.unwrap();
    let vm = running(&bed, VmSpec { pool: Some("lab".into()), ..spec() }).await;
    let used = bed.world.bridges();
    assert_eq!(used.len(), 1);
    bed.stop(vm).await;
    bed.is(vm, Actual::Stopped).await;
    bed.tell(vm, VmVerb::Delete).await.unwrap();
    bed.is_gone(vm).await;
    assert_eq!(bed.world.bridges(), used, "it stays for the next vm of the pool");
    // The host refuses once: it is left over, and tried again.
    let mut refuses = 1;
    bed.world.rule(move |_, name| {
        let refused = name == "remove bridge" && refuses > 0;
        refuses -= i32::from(refused);
        refused.then_some(Fault::Before)
    });
    bed.engine.submit(root(), vec![delete, new("10.7.0.0/24")]).await.unwrap();
    pass(Duration::from_secs(1)).await;
    assert_eq!((bed.world.bridges(), bed.leftovers().len()), (used, 1));
    pass(super::bed::RETRIED).await;
    assert_eq!((bed.world.bridges().len(), bed.leftovers().len()), (0, 0));
}

/// An image that is gone is known no more, unless a VM is made from it; then it is known that this node does not have it.
#[tokio::test(start_paused = true)]
async fn images_that_are_gone_are_forgotten_or_missed() {
    let mut bed = Bed::new().await;
    let of = |bed: &Bed| bed.folder.path().join("images");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        std::fs::create_dir(to).unwrap();
        for file in ["image.toml", "kernel", "initrd"] {
            std::fs::copy(from.join(file), to.join(file)).unwrap();
        }
    };
    for name in ["used", "unused", "Not-A-Name"] {
        copy(&of(&bed).join("tiny"), &of(&bed).join(name));
    }
    bed.stop_agent().await;
    bed.start_agent().await;
    let known = |bed: &Bed| bed.engine.state().images().map(|image| image.name.clone()).collect::<Vec<_>>();
    assert_eq!(known(&bed), ["tiny", "unused", "used"]);
    bed.new_vm(VmSpec { image: "used".into(), ..spec() }).await;
    for name in ["used", "unused"] {
        std::fs::remove_dir_all(of(&bed).join(name)).unwrap();
    }
    bed.stop_agent().await;
    bed.start_agent().await;
    assert_eq!(known(&bed), ["tiny", "used"]);
    let missing: Vec<_> = bed.status().into_iter().filter(|(key, _)| key == "missing").map(|(_, why)| why).collect();
    let has = |name: &str| bed.engine.state().image_named(name).unwrap().nodes.len();
    assert_eq!((has("used"), has("tiny")), (0, 1));
    assert!(missing.iter().any(|why| why.contains("Not-A-Name")), "{missing:?}");
}

/// A machine that does not answer at once is no reason to end its guest.
#[tokio::test(start_paused = true)]
async fn a_machine_that_is_slow_to_be_taken_back_goes_on() {
    let mut bed = Bed::new().await;
    let vm = running(&bed, spec()).await;
    bed.crash_agent().await;
    let mut times = 3;
    bed.world.rule(move |_, name| {
        times -= i32::from(name == "adopt");
        (name == "adopt" && times > 0).then_some(Fault::Before)
    });
    bed.start_agent().await;
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.launches(vm.0)), (Actual::Running, 1));
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    bed.is(vm, Actual::Stopped).await;
}

/// A record that can't be read at this moment is read later: only one that is damaged says nothing.
#[tokio::test(start_paused = true)]
async fn a_record_that_cannot_be_read_now_ends_nothing() {
    let mut bed = Bed::new().await;
    let vm = running(&bed, spec()).await;
    bed.crash_agent().await;
    let record = bed.folder.path().join(format!("data/vms/{vm}/record"));
    let aside = record.with_extension("aside");
    // EISDIR, as good as any other error of the disk.
    std::fs::rename(&record, &aside).unwrap();
    std::fs::create_dir(&record).unwrap();
    bed.start_agent().await;
    pass(Duration::from_secs(120)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.launches(vm.0)), (Actual::Running, 1));
    assert!(bed.vm(vm).error.as_ref().is_some_and(|error| error.contains("its record can't be read")));
    std::fs::remove_dir(&record).unwrap();
    std::fs::rename(&aside, &record).unwrap();
    pass(Duration::from_secs(120)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.launches(vm.0)), (Actual::Running, 1));
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    bed.is(vm, Actual::Stopped).await;
}

/// How a machine ended is known although the agent dies before it has told anybody.
#[tokio::test(start_paused = true)]
async fn a_power_off_that_could_not_be_reported_is_reported_by_the_next_life() {
    let mut bed = Bed::new().await;
    let vm = running(&bed, spec()).await;
    bed.world.rule(|_, name| (name == "remove tap").then_some(Fault::Hang));
    end(&bed, vm, Exit::PoweredOff);
    pass(Duration::from_secs(1)).await;
    assert_eq!(bed.vm(vm).actual, Actual::Running, "not reported yet");
    bed.crash_agent().await;
    bed.world.heal();
    bed.start_agent().await;
    bed.is(vm, Actual::Stopped).await;
    assert_eq!((bed.vm(vm).desired, bed.world.launches(vm.0)), (Desired::Stopped, 1));
}

/// Nothing of a VM is given to others while a process of it may be there.
#[tokio::test(start_paused = true)]
async fn a_vm_is_not_gone_before_its_process_is() {
    let mut bed = Bed::new().await;
    let vm = running(&bed, spec()).await;
    bed.crash_agent().await;
    // Its machine can neither be taken back nor be ended.
    bed.world.rule(|_, name| matches!(name, "adopt" | "end process" | "kill").then_some(Fault::Before));
    bed.start_agent().await;
    let seen = bed.becomes(vm, "in trouble", |vm| vm.error.is_some()).await;
    assert!(seen.error.as_deref().unwrap().contains("asked again"), "{seen:?}");
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Running, 1), "its guest is left alone");
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    let cannot =
        |vm: &blixard::engine::state::Vm| vm.error.as_deref().is_some_and(|error| error.contains("can't be ended"));
    bed.becomes(vm, "in worse trouble", cannot).await;
    pass(Duration::from_secs(600)).await;
    assert_eq!((bed.vm(vm).actual, bed.world.machines(vm.0).len()), (Actual::Stopping, 1));
    assert!(bed.leftovers().contains(&format!("process of vm {vm}")));
    bed.world.heal();
    bed.is(vm, Actual::Stopped).await;
    bed.tell(vm, VmVerb::Delete).await.unwrap();
    bed.is_gone(vm).await;
    bed.nothing_left(vm, "at the end");
}
