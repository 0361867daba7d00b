//! Every step of a start, a stop and a delete fails in turn, and every step of the way back: nothing is lost from sight.
//!
//! The steps are counted, not listed: a new one is met like the others.

use super::bed::{Bed, RETRIED, pass, spec};
use super::world::Fault;
use blixard::engine::state::{Actual, VmId, VmVerb};
use std::collections::BTreeSet;

/// The n-th call fails, and the m-th, if that is another. The host does not lie: nobody could tell.
fn both(n: usize, first: Fault, m: usize, second: Fault) -> impl FnMut(usize, &str) -> Option<Fault> {
    move |number, name| match number {
        _ if first == Fault::Lie && name.starts_with("make") => None,
        number if number == n => Some(first),
        number if number == m => Some(second),
        _ => None,
    }
}

/// Starts a VM under a rule that is set; what comes of it must be as promised. The number of calls until it was settled.
async fn start_and_look(bed: &Bed, vm: VmId, of: &str) -> usize {
    bed.start(vm).await;
    let seen = bed.becomes(vm, "settled", |vm| vm.settled()).await;
    let calls = bed.world.calls().len();
    let held = bed.world.held(vm.0);
    if seen.actual == Actual::Running {
        // With an error it is one that is said to have ended, whose process can't be ended yet.
        assert!(held.len() == 3 || seen.error.is_some(), "{of}: {held:?}");
        return calls;
    }
    assert_eq!(seen.actual, Actual::Failed, "{of}");
    let error = seen.error.as_deref().unwrap_or_default();
    assert!(error.contains("start"), "{of}: what to do? {error}");
    let listed = bed.leftovers();
    assert!(held.is_subset(&listed), "{of}: {held:?} is held, and {listed:?} listed");
    calls
}

/// All is well again: what was left over goes away, also while the VM is started and lives on; then it is deleted.
async fn heals(bed: &Bed, vm: VmId, wait_first: bool, of: &str) {
    bed.world.heal();
    // One that is said to have ended, and whose process can't be ended: it fails once that is possible.
    let is_to_fail = bed.vm(vm).actual == Actual::Running && bed.vm(vm).error.is_some();
    if wait_first || is_to_fail {
        pass(RETRIED).await;
        assert_eq!(bed.leftovers(), BTreeSet::new(), "{of}: retried");
        if bed.vm(vm).actual == Actual::Failed {
            assert_eq!(bed.world.held(vm.0), BTreeSet::new(), "{of}: retried");
        }
    }
    bed.start(vm).await;
    bed.is(vm, Actual::Running).await;
    // What a start uses again is not given back beneath it.
    pass(RETRIED).await;
    assert_eq!(bed.leftovers(), BTreeSet::new(), "{of}: while it runs");
    assert_eq!(bed.world.held(vm.0).len(), 3, "{of}: while it runs");
    assert_eq!(bed.vm(vm).actual, Actual::Running, "{of}");
    bed.tell(vm, VmVerb::Kill).await.unwrap();
    bed.is(vm, Actual::Stopped).await;
    bed.tell(vm, VmVerb::Delete).await.unwrap();
    bed.is_gone(vm).await;
    bed.nothing_left(vm, of);
}

#[tokio::test(start_paused = true)]
async fn every_step_of_a_start_and_every_step_of_its_way_back_may_fail() {
    let bed = Bed::new().await;
    let (mut runs, mut steps) = (0, 0);
    for (first, second) in [
        (Fault::Before, Fault::Before),
        (Fault::After, Fault::Before),
        (Fault::Before, Fault::After),
        (Fault::After, Fault::After),
        (Fault::Before, Fault::Hang),
        (Fault::Lie, Fault::Before),
    ] {
        for n in 1.. {
            let mut m = n;
            let calls = loop {
                let vm = bed.new_vm(spec()).await;
                let of = format!("call {n} {first:?}, call {m} {second:?}");
                bed.world.rule(both(n, first, m, second));
                let calls = start_and_look(&bed, vm, &of).await;
                heals(&bed, vm, (n + m) % 2 == 0, &of).await;
                runs += 1;
                if m >= calls {
                    break calls;
                }
                m += 1;
            };
            steps = steps.max(n);
            if n > calls {
                break;
            }
        }
    }
    println!("{runs} starts, up to {steps} calls each");
    assert!(steps > 5, "a start has more steps than {steps}");
    assert_eq!(bed.world.all(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_hanging_step_of_a_start_ends_by_its_deadline() {
    let bed = Bed::new().await;
    for n in 1.. {
        let vm = bed.new_vm(spec()).await;
        let of = format!("call {n} hangs");
        bed.world.rule(both(n, Fault::Hang, n, Fault::Hang));
        bed.start(vm).await;
        let seen = bed.becomes(vm, "settled", |vm| vm.settled()).await;
        let calls = bed.world.calls().len();
        if seen.actual == Actual::Failed {
            let held = bed.world.held(vm.0);
            assert!(held.is_subset(&bed.leftovers()), "{of}: {held:?}");
        }
        heals(&bed, vm, n % 2 == 0, &of).await;
        if n > calls {
            break;
        }
    }
}

/// What can go wrong with the files of a VM, and how that is mended.
#[tokio::test(start_paused = true)]
async fn a_start_that_can_not_write_its_files_fails_and_leaves_nothing() {
    let bed = Bed::new().await;
    // A file where a folder is to be, and files that lead nowhere: that stops root as well.
    for place in ["", "record.new"] {
        let vm = bed.new_vm(spec()).await;
        let of_vm = bed.folder.path().join("data/vms").join(vm.to_string());
        if place.is_empty() {
            std::fs::write(&of_vm, "").unwrap();
        } else {
            std::fs::create_dir(&of_vm).unwrap();
            std::os::unix::fs::symlink("/nowhere/at/all", of_vm.join(place)).unwrap();
        }
        bed.start(vm).await;
        let seen = bed.is(vm, Actual::Failed).await;
        assert!(seen.error.as_deref().unwrap().contains("start"), "'{place}'");
        assert_eq!((bed.world.held(vm.0), bed.leftovers()), (BTreeSet::new(), BTreeSet::new()), "'{place}'");
        if of_vm.is_dir() {
            std::fs::remove_dir_all(of_vm).unwrap()
        } else {
            std::fs::remove_file(of_vm).unwrap()
        }
        heals(&bed, vm, true, &format!("'{place}' blocked")).await;
    }
    // An image that is gone can't come back by itself.
    let vm = bed.new_vm(spec()).await;
    let (image, away) = (bed.folder.path().join("images/tiny"), bed.folder.path().join("away"));
    std::fs::rename(&image, &away).unwrap();
    bed.start(vm).await;
    let seen = bed.is(vm, Actual::Failed).await;
    assert!(seen.error.as_deref().unwrap().contains("the image 'tiny' is not on this node"));
    assert_eq!(seen.retry_at_ms, None);
    std::fs::rename(&away, &image).unwrap();
    heals(&bed, vm, true, "image away").await;
}

/// Stops a running VM, starts it again, stops and deletes it: the n-th kind of call that this takes fails so many times.
#[tokio::test(start_paused = true)]
async fn every_step_of_a_stop_and_a_delete_may_fail_again_and_again() {
    let bed = Bed::new().await;
    let mut kinds: BTreeSet<String> = BTreeSet::new();
    let mut met: Vec<String> = vec!["nothing".to_owned()];
    while let Some(kind) = met.pop() {
        for (times, fault) in [
            (1, Fault::Before),
            (1, Fault::After),
            (3, Fault::Before),
            (3, Fault::After),
            (2, Fault::Hang),
            (1, Fault::Lie),
        ] {
            let vm = bed.new_vm(spec()).await;
            let of = format!("'{kind}' {fault:?} {times} times");
            bed.world.heal();
            bed.start(vm).await;
            bed.is(vm, Actual::Running).await;
            let (failing, mut left) = (kind.clone(), times);
            bed.world.rule(move |_, name| {
                let fails = name == failing && left > 0;
                left -= usize::from(fails);
                fails.then_some(fault)
            });
            bed.stop(vm).await;
            bed.is(vm, Actual::Stopped).await;
            assert_eq!(bed.world.machines(vm.0).len(), 0, "{of}: stopped, and runs");
            let (held, listed) = (bed.world.held(vm.0), bed.leftovers());
            if fault != Fault::Lie {
                assert!(held.is_subset(&listed), "{of}: {held:?} is held, and {listed:?} listed");
            }
            bed.tell(vm, VmVerb::Delete).await.unwrap();
            bed.is_gone(vm).await;
            let calls = bed.world.calls();
            // A call that says that it is done can't be caught lying, but by those who look.
            if fault != Fault::Lie {
                bed.nothing_left(vm, &of);
            }
            for call in calls {
                if kinds.insert(call.clone()) {
                    met.push(call);
                }
            }
            bed.world.heal();
        }
    }
    println!("{kinds:?}");
    assert!(kinds.contains("remove tap") && kinds.contains("remove disk") && kinds.contains("remove cgroup"));
}
