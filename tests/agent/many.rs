//! Many VMs at once.

use super::bed::{Bed, root, spec};
use blixard::engine::state::{Actual, Command, Conditions, State, VmId, VmVerb};
use std::time::Instant;

const VMS: u64 = 2_000;

async fn all(bed: &Bed, verb: VmVerb, done: impl Fn(&State) -> bool) {
    let told = (1..=VMS).map(|vm| Command::Vm { vm: VmId(vm), verb: verb.clone(), conditions: Conditions::default() });
    bed.engine.submit(root(), told.collect()).await.unwrap();
    let mut changes = bed.engine.changes();
    changes.wait_for(|_| done(&bed.engine.state())).await.unwrap();
}

/// With the clock of the wall, as all of them together take longer than a paused clock would wait for the engine.
#[tokio::test]
async fn two_thousand_machines_come_and_go_at_once() {
    let bed = Bed::new().await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    let tasks_before = tasks();
    let begin = Instant::now();
    let new = (0..VMS).map(|_| Command::VmNew { name: None, spec: spec(), key: None }).collect();
    bed.engine.submit(root(), new).await.unwrap();
    all(&bed, VmVerb::Start, |state| state.vms().all(|vm| vm.actual == Actual::Running && vm.guest_ready)).await;
    println!("running after {:?}", begin.elapsed());
    let lines: Vec<_> = bed.status();
    assert!(lines.contains(&("machines".to_owned(), VMS.to_string())), "{lines:?}");
    assert!(lines.contains(&("task".to_owned(), format!("vm/* {VMS}"))), "{lines:?}");
    all(&bed, VmVerb::Stop { grace_ms: None }, |state| state.vms().all(|vm| vm.actual == Actual::Stopped)).await;
    println!("stopped after {:?}", begin.elapsed());
    all(&bed, VmVerb::Delete, |state| state.vms().next().is_none()).await;
    println!("gone after {:?}", begin.elapsed());
    // The last actors see that their VMs are gone, and end.
    while tasks() > tasks_before {
        tokio::task::yield_now().await;
    }
    let lines = bed.status();
    assert!(lines.contains(&("machines".to_owned(), "0".to_owned())), "{lines:?}");
    let tasks: Vec<_> = lines.iter().filter(|(key, _)| key == "task").map(|(_, line)| line.as_str()).collect();
    assert_eq!(tasks, ["leftovers running restarts=0", "reconciler running restarts=0"]);
    assert_eq!((bed.world.all(), bed.world.wrong()), (0, vec![]));
    assert_eq!(std::fs::read_dir(bed.folder.path().join("data/vms")).unwrap().count(), 0);
    assert_eq!(bed.engine.state().ipam().pool("default").unwrap().leases().len(), 0);
}
