//! A machine with a fence: it lives as long as the deadline is in the future, whoever else is stopped or killed.

use super::*;
use blixard::engine::host::deadline::{DeadlineFile, DeadlineFolder, Term, was_fenced};
use blixard::engine::host::process::{parent, working_below};
use blixard::engine::host::{BootClock, HostClock};
use blixard::engine::hypervisor::Fence;
use rustix::process::{Pid, Signal, kill_process};
use std::process::{Command, Stdio};

const S: u64 = 1_000_000_000;

/// A bed with a deadline.
struct Fenced {
    bed: Bed,
    deadline: DeadlineFile,
}

impl Fenced {
    /// The lease is over in so many seconds.
    fn new(ends_in_s: u64) -> Fenced {
        let bed = Bed::new();
        let term = Term { tenure: 1, ends_ns: HostClock.now_ns() + ends_in_s * S };
        let deadline = DeadlineFile::find_or_make(bed.folder.path(), &DeadlineFolder::of_host(), term).unwrap();
        Fenced { bed, deadline }
    }

    fn machine(&self, generation: u64) -> Machine {
        let fence = Fence { deadline: self.deadline.path().to_owned(), tenure: 1 };
        Machine { fence: Some(fence), ..self.bed.machine(generation) }
    }

    fn ends_in(&mut self, seconds: u64) -> u64 {
        let ends_ns = HostClock.now_ns() + seconds * S;
        self.deadline.write(Term { tenure: 1, ends_ns }).unwrap();
        ends_ns
    }

    /// The processes of the machine, sorted.
    fn processes(&self) -> Vec<u32> {
        let mut pids: Vec<u32> =
            working_below(self.bed.folder.path()).unwrap().into_iter().map(|(pid, _)| pid).collect();
        pids.sort_unstable();
        pids
    }
}

impl Drop for Fenced {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.deadline.path());
    }
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

fn fence_of(instance: &dyn Instance) -> u32 {
    parent(instance.record().pid).unwrap().unwrap()
}

#[tokio::test]
async fn it_dies_at_the_deadline_and_not_before() {
    let (mut fenced, qemu) = (Fenced::new(30), qemu());
    let machine = fenced.machine(1);
    let instance = fenced.bed.launch(&qemu, &machine).await.unwrap();
    assert_eq!(instance.record(), fenced.bed.record());
    within("ready", instance.guest_ready()).await.unwrap();
    let mut pids = vec![fence_of(&*instance), instance.record().pid];
    pids.sort_unstable();
    assert_eq!(fenced.processes(), pids);
    // It is renewed before it is over: the fence sees that when the first one would have been.
    let first = fenced.deadline.term().ends_ns;
    let ends_ns = fenced.ends_in(33);
    HostClock.sleep_until(first + S / 2).await;
    assert_eq!(instance.running().await, Ok(Running::Running));
    assert_eq!(within("its end", instance.exited()).await, Exit::Fenced);
    assert!(HostClock.now_ns() >= ends_ns, "it was ended too early");
    assert!(was_fenced(&machine.run_dir));
    assert_eq!(fenced.processes(), Vec::<u32>::new());
    assert!(matches!(qemu.adopt(&machine, Some(&fenced.bed.record())).await, Err(HypervisorError::Gone)));
}

#[tokio::test]
async fn it_dies_though_nobody_watches_and_that_is_known_later() {
    let (fenced, qemu) = (Fenced::new(8), qemu());
    let machine = fenced.machine(3);
    drop(fenced.bed.launch(&qemu, &machine).await.unwrap());
    HostClock.sleep_until(fenced.deadline.term().ends_ns).await;
    // Whoever comes at this very moment hears of the end, or sees it.
    match qemu.adopt(&machine, Some(&fenced.bed.record())).await {
        Ok(instance) => assert_eq!(within("its end", instance.exited()).await, Exit::Fenced),
        Err(error) => assert_eq!(error, HypervisorError::Gone),
    }
    assert!(was_fenced(&machine.run_dir));
    assert!(!was_fenced(&fenced.machine(2).run_dir));
    assert_eq!(fenced.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn one_that_is_started_too_late_or_knows_no_deadline_starts_nothing() {
    let (fenced, qemu) = (Fenced::new(600), qemu());
    let refused = async |qemu: &Qemu, generation: u64, deadline: PathBuf, tenure: u64| {
        let spawned = |_: &Record| panic!("there is a process");
        let machine = Machine { fence: Some(Fence { deadline, tenure }), ..fenced.machine(generation) };
        let error = qemu.launch(&machine, &spawned).await.err().expect("it must be refused");
        assert!(fenced.processes().is_empty(), "{error}");
        error
    };
    let over = Fenced::new(0);
    assert_eq!(refused(&qemu, 1, over.deadline.path().to_owned(), 1).await, HypervisorError::NoLease);
    let at = fenced.deadline.path().to_owned();
    for (generation, other) in [(2, 0), (3, 2)] {
        assert_eq!(refused(&qemu, generation, at.clone(), other).await, HypervisorError::NoLease);
    }
    let error = refused(&qemu, 4, "/nowhere/deadline".into(), 1).await;
    assert!(error.to_string().contains("/nowhere/deadline: No such file"), "{error}");
    let wrong = format!("{:020} {:020} {:016x}\n", 1, u64::MAX, 1).repeat(2);
    for (generation, text) in [(5, "soon"), (6, wrong.as_str())] {
        let file = fenced.bed.folder.path().join("wrong");
        std::fs::write(&file, text).unwrap();
        let error = refused(&qemu, generation, file, 1).await;
        assert!(error.to_string().contains("it is no deadline"), "{error}");
    }
    let error = refused(&Qemu::new("qemu-system-x86_64"), 7, at.clone(), 1).await;
    assert!(error.to_string().contains("ha=stay"), "{error}");
    let missing = Qemu::new("qemu-system-x86_64").fenced_by("/nowhere/blixard".into());
    let error = refused(&missing, 8, at.clone(), 1).await;
    assert!(error.to_string().contains("its fence ended at once"), "{error}");

    let none = Qemu::new("qemu-that-is-not-there").fenced_by(env!("CARGO_BIN_EXE_blixard").into());
    let error = none.launch(&fenced.machine(9), &|_: &Record| Ok(())).await.err().unwrap();
    assert!(matches!(&error, HypervisorError::Permanent(s) if s.contains("apt-get install")), "{error}");
    assert_eq!(fenced.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_killed_fence_takes_its_machine_along() {
    let (fenced, qemu) = (Fenced::new(600), qemu());
    let instance = fenced.bed.launch(&qemu, &fenced.machine(1)).await.unwrap();
    signal(fence_of(&*instance), Signal::KILL);
    let exit = within("its end", instance.exited()).await;
    assert!(matches!(&exit, Exit::Crashed(why) if why.contains("killed from outside")), "{exit:?}");
    assert_eq!(fenced.processes(), Vec::<u32>::new());
    assert!(!was_fenced(&fenced.machine(1).run_dir));
}

#[tokio::test]
async fn both_are_found_again_and_neither_is_taken_for_the_other() {
    let (fenced, qemu) = (Fenced::new(600), qemu());
    let machine = fenced.machine(1);
    drop(fenced.bed.launch(&qemu, &machine).await.unwrap());
    let vms = fenced.bed.folder.path().join("vms");
    assert_eq!(qemu.orphans(&vms, std::slice::from_ref(&machine.run_dir)).await.unwrap(), []);
    let orphans = qemu.orphans(&vms, &[]).await.unwrap();
    assert_eq!(orphans.len(), 2, "{orphans:?}");
    drop(qemu.adopt(&machine, Some(&fenced.bed.record())).await.unwrap());
    let instance = qemu.adopt(&machine, None).await.unwrap();
    assert_eq!(instance.record(), fenced.bed.record());
    instance.kill().await.unwrap();
    assert_eq!(within("killed", instance.exited()).await, Exit::Killed);
    assert_eq!(qemu.orphans(&vms, &[]).await.unwrap(), [], "its fence ends with it");
}

#[tokio::test]
async fn a_machine_without_the_fence_that_it_is_to_have_is_not_taken_back() {
    let (fenced, qemu) = (Fenced::new(600), qemu());
    let bare = fenced.bed.machine(1);
    drop(fenced.bed.launch(&qemu, &bare).await.unwrap());
    let adopted = qemu.adopt(&fenced.machine(1), Some(&fenced.bed.record())).await;
    assert!(matches!(adopted, Err(HypervisorError::Gone)));
    assert_eq!(fenced.processes(), Vec::<u32>::new());
}

#[tokio::test]
async fn a_lease_that_was_got_back_saves_nobody_of_the_time_before() {
    let (mut fenced, qemu) = (Fenced::new(8), qemu());
    let instance = fenced.bed.launch(&qemu, &fenced.machine(1)).await.unwrap();
    // The whole host hangs, as seen by the fence: it comes to look when there is a lease again.
    let fence = fence_of(&*instance);
    signal(fence, Signal::STOP);
    HostClock.sleep_until(fenced.deadline.term().ends_ns).await;
    let now_ns = HostClock.now_ns();
    let again = fenced.deadline.term().renewed(now_ns + 600 * S, now_ns);
    fenced.deadline.write(again).unwrap();
    signal(fence, Signal::CONT);
    assert_eq!(within("its end", instance.exited()).await, Exit::Fenced);
}

#[tokio::test]
async fn a_fence_is_small_heeds_no_signal_that_can_be_ignored_and_is_not_the_guests() {
    let (fenced, qemu) = (Fenced::new(600), qemu());
    let machine = fenced.machine(1);
    let instance = fenced.bed.launch(&qemu, &machine).await.unwrap();
    let fence = fence_of(&*instance);
    for ignored in [Signal::HUP, Signal::INT, Signal::TERM] {
        signal(fence, ignored);
    }
    let of_fence = |file: &str| std::fs::read_to_string(format!("/proc/{fence}/{file}")).unwrap();
    let session = of_fence("stat").rsplit_once(')').unwrap().1.split_whitespace().nth(3).unwrap().to_owned();
    assert_eq!(session, fence.to_string(), "it leads a session of its own");
    // Above 9 are those that the test itself was started with.
    let mut descriptors: Vec<_> = (0..10)
        .filter_map(|fd| std::fs::read_link(format!("/proc/{fence}/fd/{fd}")).ok())
        .map(|to| to.display().to_string())
        .collect();
    descriptors.sort();
    let mut expected = ["/dev/null", "/dev/null", "/dev/null", "anon_inode:[pidfd]", "anon_inode:[timerfd]"]
        .map(str::to_owned)
        .to_vec();
    expected.insert(0, machine.fence.as_ref().unwrap().deadline.display().to_string());
    expected.sort();
    assert_eq!(descriptors, expected);
    let kb = |key: &str| -> u64 {
        let status = of_fence("status");
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap().to_owned();
        line.trim_end_matches("kB").trim_matches([':', ' ', '\t']).parse().unwrap()
    };
    assert!(kb("RssAnon") < 4 << 10, "{} kB are its own", kb("RssAnon"));

    // What the guest's user may do to it.
    if let Some((uid, gid)) = machine.run_as {
        let deadline = machine.fence.as_ref().unwrap().deadline.clone();
        let tries = format!("kill -KILL {fence}; kill -STOP {fence}; echo > {0}; cat {0}; rm {0}", deadline.display());
        let user = [format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()];
        let before = std::fs::read(&deadline).unwrap();
        let output =
            Command::new("setpriv").args(user).args(["sh", "-c", &tries]).stdin(Stdio::null()).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        assert_eq!(std::fs::read(&deadline).unwrap(), before);
    }
    assert_eq!(instance.running().await, Ok(Running::Running));
    assert!(of_fence("stat").contains(") S "), "it waits");
    instance.kill().await.unwrap();
    assert_eq!(within("killed", instance.exited()).await, Exit::Killed);
}
