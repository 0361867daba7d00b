//! The tree over FUSE as the kernel's users meet it: blocked readers, signals, dead mounts, everyday programs.

use crate::support::{Node, PATIENCE_S, await_end, simulated};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

fn blocked_cat(node: &Node, path: &str) -> Child {
    blocked_cat_of(&node.mount().join(path))
}

/// A `cat` of a file that blocks; it has opened the file and waits when this returns.
pub fn blocked_cat_of(path: &Path) -> Child {
    let mut child = Command::new("cat").arg(path).stdout(Stdio::piped()).spawn().unwrap();
    // The kernel shows where a process waits; there is no event for "is now blocked in a read".
    for _ in 0..PATIENCE_S * 100 {
        let at = std::fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap_or_default();
        if at.contains("fuse") || at.contains("request_wait") {
            return child;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("cat of {path:?} does not block");
}

pub fn ends_by(mut child: Child, signal: Signal) {
    use std::os::unix::process::ExitStatusExt;
    let pid = Pid::from_child(&child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    kill_process(pid, signal).unwrap();
    await_end(&handle);
    let status = child.try_wait().unwrap().unwrap_or_else(|| panic!("still there after {signal:?}"));
    assert_eq!(status.signal(), Some(signal.as_raw()));
}

#[test]
fn a_blocked_reader_ends_at_a_signal_and_holds_up_nobody() {
    let node = simulated();
    let readers: Vec<Child> = (0..100).map(|_| blocked_cat(&node, "events")).collect();
    assert!(node.read("status").contains("nodes 1 up of 1"), "others are served");
    assert_eq!(node.new_vm("image=tiny").unwrap(), 1, "and can write");
    for (n, reader) in readers.into_iter().enumerate() {
        ends_by(reader, if n % 2 == 0 { Signal::INT } else { Signal::KILL });
    }
    assert_eq!(node.read("vms/1/state"), "defined\n");
}

#[test]
fn an_interrupted_wait_can_be_read_again() {
    let node = simulated();
    let id = node.new_vm("image=tiny").unwrap();
    assert_eq!(node.wait(id), "defined");
    let mut cat = blocked_cat(&node, "vms/events");
    node.write(&format!("vms/{id}/ctl"), "start\n").unwrap();
    let mut seen = [0; 64];
    let n = cat.stdout.as_mut().unwrap().read(&mut seen).unwrap();
    assert!(String::from_utf8_lossy(&seen[..n]).contains("vms/1 "), "{:?}", String::from_utf8_lossy(&seen[..n]));
    ends_by(cat, Signal::INT);
    assert_eq!(node.wait(id), "running");
}

#[test]
fn the_mount_of_a_killed_server_is_taken_over() {
    let mut node = simulated();
    node.new_vm("name=web image=tiny").unwrap();
    node.kill();
    let dead = std::fs::read_dir(node.mount()).unwrap_err();
    assert_eq!(dead.raw_os_error(), Some(rustix::io::Errno::NOTCONN.raw_os_error()), "no hang: {dead}");
    node.start();
    assert_eq!(std::fs::read_link(node.mount().join("vms/web")).unwrap().to_str(), Some("1"));
}

#[test]
fn a_clean_end_unmounts_also_what_is_in_use() {
    let mut node = simulated();
    let mut inside = Command::new("sleep").arg("1000").current_dir(node.mount().join("vms")).spawn().unwrap();
    let reader = blocked_cat(&node, "events");
    node.stop();
    assert_eq!(std::fs::read_dir(node.mount()).unwrap().count(), 0, "the folder beneath is bare");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(node.mount()).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o555, "and nothing lands in it");
    inside.kill().unwrap();
    inside.wait().unwrap();
    drop(reader.wait_with_output().unwrap());
    node.start();
    assert!(node.read("status").contains("nodes 1 up"));
}

#[test]
fn a_busy_or_strange_mount_point_is_refused() {
    let node = simulated();
    let (folder, data) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    crate::support::begin(data.path(), &[]);
    let serve = |mount: &std::path::Path| {
        let output = Command::new(env!("CARGO_BIN_EXE_blixard"))
            .args(["serve", "--hypervisor", "simulated", "--data", data.path().to_str().unwrap()])
            .args(["--mount", mount.to_str().unwrap(), "--images", crate::support::images().to_str().unwrap()])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = serve(&node.mount());
    assert!(said.contains("another blixard serves its tree there"), "{said}");
    std::fs::write(folder.path().join("file"), "").unwrap();
    let said = serve(folder.path());
    assert!(said.contains("is not empty"), "{said}");
    let said = serve(&folder.path().join("file"));
    assert!(said.contains("not a directory"), "{said}");
    let twice = Command::new(env!("CARGO_BIN_EXE_blixard"))
        .args(["serve", "--hypervisor", "simulated", "--data", node.data().to_str().unwrap()])
        .args(["--mount", folder.path().join("m").to_str().unwrap()])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8(twice.stderr).unwrap();
    assert!(!twice.status.success() && said.contains("using it"), "{said}");
}

#[test]
fn everyday_programs_work() {
    let node = simulated();
    for n in 0..3 {
        node.new_vm(&format!("name=vm-{n} image=tiny")).unwrap();
    }
    let runs = |line: &str| {
        let output = node.shell("bash", line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        out.trim().to_owned()
    };
    assert_eq!(runs("ls vms | grep -c vm-"), "3");
    assert!(runs("ls -lR . | wc -l").parse::<u32>().unwrap() > 40);
    assert_eq!(runs("find vms -name status | wc -l"), "3", "each object once, links aside");
    assert_eq!(
        runs("timeout 60 grep -rl 'image tiny' . | sort | tr '\\n' ' '"),
        "./vms/1/status ./vms/2/status ./vms/3/status"
    );
    assert_eq!(runs("wc -c < vms/1/status"), runs("cat vms/1/status | wc -c"));
    assert_eq!(runs("tail -n 1 vms/list | cut -c 1"), "3");
    assert_eq!(runs("cp vms/1/spec vms/new && ls vms | grep -cE '^[0-9]+$'"), "4", "a twin");
    assert_eq!(runs("echo start | tee vms/1/ctl > /dev/null && cat vms/1/wait"), "running");
    assert_eq!(runs("echo kill | dd of=vms/1/ctl bs=64k 2>/dev/null && cat vms/1/wait"), "stopped");
    assert_eq!(runs("echo start >> vms/1/ctl && cat vms/1/wait"), "running");
    assert_eq!(runs("printf stop > vms/1/ctl && cat vms/1/wait"), "stopped");
    assert_eq!(runs("exec 3<>vms/new; echo image=tiny >&3; read id <&3; echo $id"), "5");
    assert_eq!(
        runs("cat > vms/new <<E\nimage=tiny name=a\nimage=tiny name=b\nE\ncat vms/a/state vms/b/state"),
        "defined\ndefined"
    );
    assert_eq!(runs("head -c 4 README"), "This");
    assert_eq!(runs("test -w vms/1/ctl && ! test -w vms/1/status && echo right"), "right");
    assert_eq!(runs("touch vms/1/ctl && echo touched"), "touched");
    assert!(runs("cat sync").parse::<u64>().unwrap() > 5);
    assert!(runs("timeout 5 cat log | grep -c vms/new").parse::<u32>().unwrap() >= 6);
    for refused in [
        "mkdir vms/x",
        "rm vms/1/ctl",
        "mv vms/1 vms/9",
        "ln -s 1 vms/x",
        "touch vms/x",
        "chmod 777 vms/1/ctl",
        "echo x > vms/1/status",
    ] {
        assert!(!node.shell("bash", refused).status.success(), "{refused}");
    }
}

/// What a shell line says, and whether it succeeded.
fn says(node: &Node, line: &str) -> (bool, String) {
    let output = node.shell("bash", line);
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&text).trim().to_owned())
}

/// The kernel may remember the way to a number; it must not take it for being there.
/// The ways in which editors save a file: in its place, by a new file beside it, with a copy of the old one kept.
#[test]
fn an_editors_save_is_refused_politely_and_changes_nothing() {
    let node = simulated();
    let id = node.new_vm("name=web image=tiny memory=64M").unwrap();
    let spec = node.read(&format!("vms/{id}/spec"));
    let names = || -> BTreeSet<_> {
        let entries = std::fs::read_dir(node.mount().join(format!("vms/{id}"))).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect()
    };
    let (before, file) = (names(), format!("vms/{id}/spec"));
    for (line, sentence) in [
        (format!("echo image=other > {file}"), "'spec' is only read"),
        (format!("sed -i s/64M/128M/ {file}"), "write to the files that are there"),
        (format!("cp {file} {file}~"), "write to the files that are there"),
        (format!("mv {file} {file}.old"), "no permission to rename"),
        (format!("ln {file} {file}.bak"), "no permission for a link"),
        (format!("touch vms/{id}/.spec.swp"), "write to the files that are there"),
        (format!("chmod 600 {file}"), "owners, modes and times"),
    ] {
        let (taken, said) = says(&node, &line);
        assert!(!taken && !said.is_empty(), "{line}: {said}");
        let errors = node.read("err");
        assert!(errors.lines().last().is_some_and(|last| last.contains(sentence)), "{line}: {errors}");
        assert_eq!((node.read(&file), names()), (spec.clone(), before.clone()), "{line}");
    }
}

#[test]
fn what_was_deleted_is_gone_for_every_program() {
    let node = simulated();
    let id = node.new_vm("name=web image=tiny").unwrap();
    let (mount, folder) = (node.mount(), format!("vms/{id}"));
    let look = |line: &str| {
        let line = line.replace("VM", &folder);
        let said = says(&node, &line);
        (line, said)
    };
    let inside = std::fs::File::open(mount.join(&folder)).unwrap();
    let status = std::fs::File::open(mount.join(&folder).join("status")).unwrap();
    // The kernel has met all of it.
    for line in ["ls -l VM vms/web/", "cat VM/status VM/spec", "find VM", "[ -e VM/ctl ]", "cd VM"] {
        let (line, (fine, said)) = look(line);
        assert!(fine, "{line}: {said}");
    }
    node.delete(id);
    let none = "No such file or directory";
    for line in [
        "ls VM",
        "ls -d VM",
        "stat VM",
        "stat VM/status",
        "cd VM",
        "cat VM/status",
        "cat VM/json",
        "head -c 1 VM/events",
        "cat vms/web/status",
        "readlink -v vms/web",
        "echo start > VM/ctl",
        "echo start >> VM/ctl",
        "truncate -s 0 VM/ctl",
        "rmdir VM",
        "rm VM/status",
        "find VM",
        "mkdir VM/x",
        "mv VM VMx",
    ] {
        let (line, (fine, said)) = look(line);
        assert!(!fine && said.contains(none), "{line}: {said}");
    }
    for line in [
        "[ -e VM ]",
        "[ -d VM ]",
        "[ -r VM/status ]",
        "[ -x VM ]",
        "[ -w VM/ctl ]",
        "ls vms | grep -x 1",
        "find vms -name status | grep .",
    ] {
        let (line, (fine, said)) = look(line);
        assert!(!fine, "{line}: {said}");
    }
    let (line, (fine, said)) = look("mkdir VM");
    assert!(!fine && said.contains("not permitted"), "not \"exists\": {line}: {said}");
    for file in [&inside, &status] {
        assert_eq!(file.metadata().unwrap_err().kind(), std::io::ErrorKind::NotFound, "an open one, too");
    }
    for path in [&folder, "vms/web", &format!("{folder}/status"), &format!("{folder}/wait")] {
        let error = std::fs::File::open(mount.join(path)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{path}: {error}");
    }
}

#[test]
fn a_name_means_at_once_what_it_was_given_to() {
    let node = simulated();
    let (one, two) = (node.new_vm("name=web image=tiny").unwrap(), node.new_vm("image=tiny").unwrap());
    let web = || {
        let link = std::fs::read_link(node.mount().join("vms/web")).unwrap();
        (link.to_str().unwrap().parse::<u64>().unwrap(), node.value("vms/web/status", "id").unwrap())
    };
    for turn in 0..20 {
        let (from, to) = if turn % 2 == 0 { (one, two) } else { (two, one) };
        assert_eq!(web(), (from, from.to_string()));
        node.write(&format!("vms/{from}/ctl"), &format!("set name=other-{turn}\n")).unwrap();
        assert_eq!(
            std::fs::symlink_metadata(node.mount().join("vms/web")).unwrap_err().kind(),
            std::io::ErrorKind::NotFound
        );
        node.write(&format!("vms/{to}/ctl"), "set name=web\n").unwrap();
    }
    let lab = |network: &str| {
        node.write("ipam/new", &format!("name=lab network={network}\n")).unwrap();
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(node.mount().join("ipam/lab")).unwrap());
        assert_eq!(node.value("ipam/lab/status", "network").as_deref(), Some(network));
        std::fs::remove_dir(node.mount().join("ipam/lab")).unwrap();
        assert!(!node.mount().join("ipam/lab/status").exists());
        inode
    };
    assert_ne!(lab("10.60.0.0/24"), lab("10.61.0.0/24"), "the same name, another pool");
}

#[test]
fn modes_are_those_of_who_asks_and_when() {
    let node = simulated();
    let id = node.new_vm("image=tiny").unwrap();
    // As a user of the host that the cluster learns to know while the kernel remembers the way.
    let may = |line: &str| {
        let line = line.replace("CTL", &format!("vms/{id}/ctl"));
        says(&node, &format!("setpriv --reuid 54321 --regid 54321 --clear-groups bash -c '{line}'"))
    };
    let test = |expected: bool| {
        assert!(says(&node, &format!("test -w vms/{id}/ctl")).0, "root always may");
        for line in ["test -w CTL", "echo start > CTL", "echo start >> CTL"] {
            let (fine, said) = may(line);
            assert_eq!(fine, expected, "{line}: {said}");
            assert!(expected || said.is_empty() || said.contains("Permission denied"), "{line}: {said}");
        }
        assert_eq!(may("stat -c %a CTL").1, if expected { "666" } else { "444" });
    };
    test(false);
    node.write("users/new", "name=ann role=admin uid=54321\n").unwrap();
    test(true);
    node.write("users/ann/ctl", "set role=viewer\n").unwrap();
    test(false);
}

/// What costs no request: a close, since a write has said what there is to say, and the way to what can't change its name. A server
/// that is stopped shows it.
#[test]
fn closes_and_ways_ask_nothing() {
    use rustix::fs::{Mode, OFlags};
    let node = simulated();
    let id = node.new_vm("image=tiny").unwrap();
    let ctl = node.mount().join(format!("vms/{id}/ctl"));
    let open = || std::fs::File::options().write(true).open(&ctl).unwrap();
    let (first, second) = (open(), open());
    // The kernel asks once, and learns from the answer.
    drop(first);
    let (sender, done) = std::sync::mpsc::channel();
    node.signal(Signal::STOP);
    let way = ctl.clone();
    std::thread::spawn(move || {
        drop(second);
        sender.send(rustix::fs::open(way, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).is_ok())
    });
    let outcome = done.recv_timeout(std::time::Duration::from_secs(PATIENCE_S));
    node.signal(Signal::CONT);
    assert_eq!(outcome, Ok(true));
    assert_eq!(open().write(b"dance\n").unwrap_err().kind(), std::io::ErrorKind::InvalidInput, "said by the write");
}

/// The kernel cuts a long write into requests by the pages that it touches.
#[test]
fn a_write_arrives_whole_or_is_refused_whole() {
    const MOST: usize = 64 * 1024;
    let node = simulated();
    let mut text = vec![b' '; 3 * MOST];
    let aligned = text.as_ptr().align_offset(4096);
    for offset in [0, 1, 2048, 4095] {
        for (length, fits) in
            [(MOST - 1, true), (MOST, true), (MOST + 1, false), (MOST + 4096, false), (2 * MOST, false)]
        {
            let lines = &mut text[aligned + offset..][..length];
            lines.fill(b'#');
            lines[..11].copy_from_slice(b"image=tiny\n");
            let mut new = std::fs::File::options().write(true).open(node.mount().join("vms/new")).unwrap();
            let before = std::fs::read_dir(node.mount().join("vms")).unwrap().count();
            match new.write(lines) {
                Ok(written) => assert!(fits && written == length, "{length} at {offset}: {written}"),
                Err(error) => assert!(!fits, "{length} at {offset}: {error}"),
            }
            let made = std::fs::read_dir(node.mount().join("vms")).unwrap().count() - before;
            assert_eq!(made, usize::from(fits), "{length} at {offset}");
        }
    }
}
