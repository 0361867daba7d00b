//! Many VMs at once.

use super::bed::{Bed, root, spec};
use blixard::engine::state::{Actual, Command, Conditions, State, VmId, VmVerb};
use std::sync::Arc;
use std::time::Instant;

const VMS: u64 = 2_000;
/// Who write at once, each to a VM of their own.
const WRITERS: u64 = 16;
/// How often each starts and kills it.
const ROUNDS: u64 = 30;

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
    let of_agent = |key: &str, line: &str| key == "task" && !line.starts_with("engine/");
    let tasks: Vec<_> = lines.iter().filter(|(key, line)| of_agent(key, line)).map(|(_, line)| line.as_str()).collect();
    let vital = ["clock-offset", "lease", "lease-watch", "leftovers", "reconciler"]
        .map(|name| format!("{name} running restarts=0"));
    assert_eq!(tasks, vital);
    assert_eq!((bed.world.all(), bed.world.wrong()), (0, vec![]));
    assert_eq!(std::fs::read_dir(bed.folder.path().join("data/vms")).unwrap().count(), 0);
    assert_eq!(bed.engine.state().ipam().pool("default").unwrap().leases().len(), 0);
}

/// On several threads, with nothing that waits: whoever changes a VM while its actor is about to end must find it, or make another.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn verbs_that_race_with_the_ends_of_actors_are_all_heard() {
    let bed = Arc::new(Bed::new().await);
    let new = (0..WRITERS).map(|_| Command::VmNew { name: None, spec: spec(), key: None }).collect();
    bed.engine.submit(root(), new).await.unwrap();
    let writers = (1..=WRITERS).map(|vm| {
        let bed = bed.clone();
        tokio::spawn(async move {
            for round in 0..ROUNDS {
                // Waiting for the end or not, the next verb comes when the actor has nothing to do any more, or almost.
                bed.start(VmId(vm)).await;
                if round % 2 == 0 {
                    bed.is(VmId(vm), Actual::Running).await;
                }
                bed.tell(VmId(vm), VmVerb::Kill).await.unwrap();
                if round % 3 != 0 {
                    bed.is(VmId(vm), Actual::Stopped).await;
                }
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
    for vm in 1..=WRITERS {
        let seen = bed.becomes(VmId(vm), "settled", |vm| vm.settled()).await;
        assert_eq!((seen.actual, bed.world.held(vm).len()), (Actual::Stopped, 0));
    }
    assert_eq!(bed.world.wrong(), Vec::<String>::new());
}
