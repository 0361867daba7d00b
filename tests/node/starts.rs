//! A start that is not wanted any more, at whatever moment: it ends cleanly, and the next one finds everything.

use crate::support::{Node, PATIENCE_S, await_end, simulated};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// Sends it a signal, and waits for its end with the suite's patience.
fn end_by(mut child: Child, signal: Signal) -> ExitStatus {
    let pid = Pid::from_child(&child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, signal).unwrap();
    await_end(&handle);
    if child.try_wait().unwrap().is_none() {
        child.kill().unwrap();
        panic!("it goes on after {signal:?}");
    }
    child.wait().unwrap()
}

fn wait_for(path: &Path) {
    let late = Instant::now() + Duration::from_secs(PATIENCE_S);
    while !path.exists() {
        assert!(Instant::now() < late, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// An image of a terabyte keeps a start busy for an hour.
#[test]
fn a_signal_ends_a_start_that_takes_long() {
    let images = tempfile::tempdir().unwrap();
    let image = images.path().join("huge");
    std::fs::create_dir(&image).unwrap();
    std::fs::write(image.join("image.toml"), "kernel = \"kernel\"\ninitrd = \"kernel\"\n").unwrap();
    std::fs::File::create(image.join("kernel")).unwrap().set_len(1 << 40).unwrap();
    let node = Node::unstarted(&["--hypervisor", "simulated", "--images", images.path().to_str().unwrap()]);
    for signal in [Signal::TERM, Signal::INT] {
        let child = node.spawn();
        wait_for(&node.data().join("vms"));
        let status = end_by(child, signal);
        assert!(status.success(), "{signal:?}: {status}; its trace:\n{}", node.trace_text());
        std::fs::remove_dir(node.data().join("vms")).unwrap();
    }
}

#[test]
fn a_start_that_is_ended_at_any_moment_loses_nothing() {
    let mut node = simulated();
    let id = node.new_vm("name=kept image=tiny").unwrap();
    node.stop();
    for moment_ms in [20, 60, 120, 200, 300, 450, 700] {
        let child = node.spawn();
        std::thread::sleep(Duration::from_millis(moment_ms));
        let status = end_by(child, Signal::TERM);
        // So early that nothing listens yet, the signal itself ends it.
        let early = std::os::unix::process::ExitStatusExt::signal(&status) == Some(Signal::TERM.as_raw());
        assert!(status.success() || early, "after {moment_ms} ms: {status}; its trace:\n{}", node.trace_text());
    }
    node.start();
    assert_eq!(node.read(&format!("vms/{id}/state")), "defined\n");
    node.stop();
}
