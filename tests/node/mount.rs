//! `blixard mount`: a node's tree over our own 9P client, as the kernel's users meet it there.

use crate::fuse::{blocked_cat_of, ends_by};
use crate::secure::{Secure, until};
use crate::support::{Node, PATIENCE_S, simulated};
use crate::table::run;
use crate::tables::Fuse;
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A running `blixard mount` of a node.
pub struct Remote {
    folder: tempfile::TempDir,
    identity: Option<PathBuf>,
    process: Option<Child>,
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_blixard"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

impl Remote {
    pub fn of(node: &Node) -> Remote {
        Remote::at(&node.dial())
    }

    pub fn at(dial: &str) -> Remote {
        Remote::with(dial, None)
    }

    fn with(dial: &str, identity: Option<PathBuf>) -> Remote {
        let folder = tempfile::Builder::new().prefix("r").tempdir().unwrap();
        let mut remote = Remote { folder, identity, process: None };
        remote.start(dial);
        remote
    }

    fn start(&mut self, dial: &str) {
        let trace = std::fs::File::options().create(true).append(true).open(self.trace()).unwrap();
        let mut command = command(&["mount", dial, self.path().to_str().unwrap()]);
        if let Some(identity) = &self.identity {
            command.arg("--identity").arg(identity);
        }
        let mut child = command.stderr(trace).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
        self.process = Some(child);
        assert_eq!(said, format!("ready {}\n", self.path().display()), "{}", self.trace_text());
    }

    fn trace(&self) -> PathBuf {
        self.folder.path().join("trace")
    }

    fn trace_text(&self) -> String {
        std::fs::read_to_string(self.trace()).unwrap()
    }

    /// The mounted tree.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    fn join(&self, path: &str) -> PathBuf {
        self.path().join(path)
    }

    fn read(&self, path: &str) -> std::io::Result<String> {
        std::fs::read_to_string(self.join(path))
    }

    fn write(&self, path: &str, text: &str) -> std::io::Result<()> {
        let mut file = std::fs::File::options().write(true).open(self.join(path))?;
        file.write(text.as_bytes()).map(|n| assert_eq!(n, text.len(), "a short write to {path}"))
    }

    fn new_vm(&self, line: &str) -> std::io::Result<u64> {
        let mut file = std::fs::File::options().read(true).write(true).open(self.join("vms/new"))?;
        file.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        file.read_to_string(&mut answer)?;
        Ok(answer.trim().parse().unwrap_or_else(|_| panic!("new answered {answer:?}")))
    }

    fn shell(&self, line: &str) -> Output {
        Command::new("bash").args(["-c", line]).current_dir(self.path()).stdin(Stdio::null()).output().unwrap()
    }

    /// What a shell line prints; it must succeed.
    fn runs(&self, line: &str) -> String {
        let output = self.shell(line);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{line}: {out}{err}");
        out.trim().to_owned()
    }

    /// Sends a signal and waits for the end.
    fn end(&mut self, signal: Signal) -> std::process::ExitStatus {
        let mut child = self.process.take().unwrap();
        kill_process(Pid::from_child(&child), signal).unwrap();
        child.wait().unwrap()
    }

    /// Waits until the connection is there again.
    fn wait_up(&self) {
        let deadline = Instant::now() + Duration::from_secs(PATIENCE_S);
        while let Err(error) = self.read("version") {
            assert_eq!(error.raw_os_error(), Some(Errno::HOSTDOWN.raw_os_error()), "{error}");
            assert!(Instant::now() < deadline, "the mount does not come back; {}", self.trace_text());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if let Some(mut child) = self.process.take() {
            let _ = kill_process(Pid::from_child(&child), Signal::TERM);
            let _ = child.wait();
        }
        let _ = rustix::mount::unmount(self.path(), rustix::mount::UnmountFlags::DETACH);
    }
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_raw_os_error(result.unwrap_err().raw_os_error().unwrap())
}

#[test]
fn everyday_programs_work_far_away() {
    let node = simulated();
    let remote = Remote::of(&node);
    let runs = |line: &str| remote.runs(line);
    for n in 0..3 {
        runs(&format!("echo name=vm-{n} image=tiny > vms/new"));
    }
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
    assert_eq!(runs("printf 'stop\\r\\n' > vms/1/ctl && cat vms/1/wait"), "stopped");
    assert_eq!(runs("exec 3<>vms/new; echo image=tiny >&3; read id <&3; echo $id"), "5");
    assert_eq!(
        runs("cat > vms/new <<E\nimage=tiny name=a\nimage=tiny name=b\nE\ncat vms/a/state vms/b/state"),
        "defined\ndefined"
    );
    assert_eq!(runs("readlink vms/a; cd vms/a && basename $(pwd -P)"), "6\n6");
    assert_eq!(runs("head -c 4 README"), "This");
    assert_eq!(runs("test -w vms/1/ctl && ! test -w vms/1/status && echo right"), "right");
    assert_eq!(runs("touch vms/1/ctl && truncate -s 0 vms/1/ctl && echo taken"), "taken");
    assert_eq!(runs("stat -f -c %l ."), "255");
    assert!(runs("cat sync").parse::<u64>().unwrap() > 5);
    assert!(runs("timeout 5 cat log | grep -c vms/new").parse::<u32>().unwrap() >= 6);
    assert_eq!(runs("rmdir vms/7 && ls vms | grep -c '^7$' || true"), "0");
    // The write is not held up by the read that waits on the same descriptor.
    assert_ne!(runs("exec 3<>events; timeout 60 head -c 3 <&3 & sleep 0.2; echo from=1 >&3; wait"), "");
    for refused in [
        "mkdir vms/x",
        "rm vms/1/ctl",
        "mv vms/1 vms/9",
        "ln -s 1 vms/x",
        "touch vms/x",
        "touch vms/1/status",
        "chmod 777 vms/1/ctl",
        "echo x > vms/1/status",
        "rm -r vms/1/spec",
    ] {
        assert!(!remote.shell(refused).status.success(), "{refused}");
    }
    remote.shell("echo fly > vms/1/ctl");
    assert!(runs("tail -n 1 err").contains("there are: start, stop"), "the sentence comes through");
    assert!(runs("cat me").contains("dialect 9P2000.L"), "{}", runs("cat me"));
}

#[test]
fn both_mounts_show_one_tree() {
    let node = simulated();
    node.new_vm("name=web image=tiny").unwrap();
    let remote = Remote::of(&node);
    let list = "find . -printf '%P %y %i %m %s %n %l\\n' | sort";
    let here = node.shell("bash", list);
    let here = String::from_utf8(here.stdout).unwrap();
    // What nothing dates differs from one look to the next.
    let stable = |text: &str| {
        let moves = ["clock ", "me ", "err ", "nodes/"];
        text.lines().filter(|l| !moves.iter().any(|m| l.starts_with(m))).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(stable(&remote.runs(list)), stable(here.trim()));
    assert!(here.lines().count() > 40);
}

#[test]
fn what_a_name_means_is_asked_each_time() {
    let node = simulated();
    let remote = Remote::of(&node);
    let (one, two) = (node.new_vm("name=web image=tiny").unwrap(), node.new_vm("image=tiny").unwrap());
    for turn in 0..10 {
        let (from, to) = if turn % 2 == 0 { (one, two) } else { (two, one) };
        assert_eq!(std::fs::read_link(remote.join("vms/web")).unwrap().to_str(), Some(from.to_string().as_str()));
        assert!(remote.read("vms/web/status").unwrap().starts_with(&format!("id {from}\n")));
        node.write(&format!("vms/{from}/ctl"), &format!("set name=other-{turn}\n")).unwrap();
        assert_eq!(errno(std::fs::symlink_metadata(remote.join("vms/web"))), Errno::NOENT);
        remote.write(&format!("vms/{to}/ctl"), "set name=web\n").unwrap();
        assert_eq!(node.read("vms/web/status"), remote.read("vms/web/status").unwrap());
    }
    let lab = |network: &str| {
        remote.write("ipam/new", &format!("name=lab network={network}\n")).unwrap();
        assert!(remote.read("ipam/lab/status").unwrap().contains(network));
        let inode = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(remote.join("ipam/lab")).unwrap());
        std::fs::remove_dir(node.mount().join("ipam/lab")).unwrap();
        assert_eq!(errno(remote.read("ipam/lab/status")), Errno::NOENT);
        inode
    };
    assert_ne!(lab("10.60.0.0/24"), lab("10.61.0.0/24"), "the same name, another pool");
    // What was open when it went.
    let status = std::fs::File::open(remote.join(&format!("vms/{one}/status"))).unwrap();
    remote.read(&format!("vms/{one}/status")).unwrap();
    node.delete(one);
    assert_eq!(errno(status.metadata()), Errno::NOENT);
    assert_eq!(errno(remote.read(&format!("vms/{one}/status"))), Errno::NOENT);
    assert_eq!(errno(remote.write(&format!("vms/{one}/ctl"), "start\n")), Errno::NOENT);
}

#[test]
fn blocked_readers_end_at_a_signal_and_hold_up_nobody() {
    let node = simulated();
    let remote = Remote::of(&node);
    let readers: Vec<Child> = (0..100).map(|_| blocked_cat_of(&remote.join("events"))).collect();
    assert!(remote.read("status").unwrap().contains("nodes 1 up of 1"), "others are served");
    assert_eq!(remote.new_vm("image=tiny").unwrap(), 1, "and can write");
    for (n, reader) in readers.into_iter().enumerate() {
        ends_by(reader, if n % 2 == 0 { Signal::INT } else { Signal::KILL });
    }
    assert_eq!(remote.read("vms/1/state").unwrap(), "defined\n");
}

#[test]
fn a_hundred_readers_and_two_mounts_at_once() {
    let node = simulated();
    node.new_vm("name=web image=tiny").unwrap();
    let remotes = [Remote::of(&node), Remote::of(&node)];
    let expected = node.read("vms/1/status");
    std::thread::scope(|scope| {
        for n in 0..100 {
            let (remote, expected) = (&remotes[n % 2], &expected);
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(&remote.read("vms/1/status").unwrap(), expected);
                    assert!(remote.read("vms/list").unwrap().contains("web"));
                }
            });
        }
    });
}

/// The same as on a local mount: whatever the kernel cuts, a text that is too long is refused whole.
#[test]
fn a_write_arrives_whole_or_is_refused_whole_far_away() {
    const MOST: usize = 64 * 1024;
    let node = simulated();
    let remote = Remote::of(&node);
    let mut text = vec![b' '; 3 * MOST];
    let aligned = text.as_ptr().align_offset(4096);
    for offset in [0, 1, 4095] {
        for (length, fits) in [(MOST, true), (MOST + 1, false), (MOST + 4096, false), (2 * MOST, false)] {
            let lines = &mut text[aligned + offset..][..length];
            lines.fill(b'#');
            lines[..11].copy_from_slice(b"image=tiny\n");
            let mut new = std::fs::File::options().write(true).open(remote.join("vms/new")).unwrap();
            let before = std::fs::read_dir(remote.join("vms")).unwrap().count();
            match new.write(lines) {
                Ok(written) => assert!(fits && written == length, "{length} at {offset}: {written}"),
                Err(error) => assert!(!fits, "{length} at {offset}: {error}"),
            }
            let made = std::fs::read_dir(remote.join("vms")).unwrap().count() - before;
            assert_eq!(made, usize::from(fits), "{length} at {offset}");
        }
    }
}

#[test]
fn bad_input_over_a_remote_mount() {
    let node = simulated();
    let remote = Remote::of(&node);
    run(&mut Fuse(remote.path()));
}

#[test]
fn the_mount_survives_its_server() {
    let mut node = simulated();
    let remote = Remote::of(&node);
    remote.new_vm("name=web image=tiny").unwrap();
    let mut status = std::fs::File::open(remote.join("vms/1/status")).unwrap();
    let mut ctl = std::fs::File::options().write(true).open(remote.join("vms/1/ctl")).unwrap();
    let inside = remote.join("vms/1");
    let mut events = std::fs::File::open(remote.join("events")).unwrap();
    let blocked = blocked_cat_of(&remote.join("events"));
    node.kill();
    assert!(!blocked.wait_with_output().unwrap().status.success());
    for path in ["version", "vms/1/status", "nothing"] {
        assert_eq!(errno(remote.read(path)), Errno::HOSTDOWN, "{path}");
    }
    assert_eq!(errno(remote.write("vms/1/ctl", "start\n")), Errno::HOSTDOWN);
    assert_eq!(errno(ctl.write(b"start\n")), Errno::HOSTDOWN, "nothing was done, and that is known");
    assert_eq!(errno(std::fs::read_dir(&inside)), Errno::HOSTDOWN);
    node.start();
    remote.wait_up();
    let mut text = String::new();
    status.read_to_string(&mut text).unwrap();
    assert!(text.contains("name web"), "{text}");
    ctl.write_all(b"start\n").unwrap();
    assert_eq!(remote.read("vms/1/wait").unwrap(), "running\n");
    assert!(std::fs::read_dir(&inside).unwrap().count() > 8);
    assert_eq!(errno(events.read(&mut [0; 64])), Errno::IO, "a stream that was cut says so");
    // Once: from now on it is a new one.
    std::thread::scope(|scope| {
        let reads = scope.spawn(|| {
            let mut text = [0; 4096];
            events.read(&mut text).map(|n| n > 0)
        });
        while !reads.is_finished() {
            node.new_vm("image=tiny").unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(reads.join().unwrap().unwrap());
    });
}

/// Each write is acknowledged, or refused, or of unknown outcome, and none takes effect twice.
#[test]
fn writes_in_flight_take_effect_at_most_once() {
    let mut node = simulated();
    let remote = Remote::of(&node);
    let (mut acknowledged, mut unknown) = (Vec::new(), Vec::new());
    for round in 0..3 {
        let stop = AtomicBool::new(false);
        let written = AtomicBool::new(false);
        let outcomes: Vec<(String, Result<(), Errno>)> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..8)
                .map(|writer| {
                    let (remote, stop, written) = (&remote, &stop, &written);
                    scope.spawn(move || {
                        let mut outcomes = Vec::new();
                        for n in 0.. {
                            if stop.load(Ordering::Relaxed) {
                                break;
                            }
                            let name = format!("w{round}-{writer}-{n}");
                            let done = remote.write("vms/new", &format!("image=tiny memory=32M name={name}\n"));
                            written.fetch_or(done.is_ok(), Ordering::Relaxed);
                            let failed = done.is_err();
                            let done = done.map_err(|e| Errno::from_raw_os_error(e.raw_os_error().unwrap()));
                            outcomes.push((name, done));
                            if failed {
                                break;
                            }
                        }
                        outcomes
                    })
                })
                .collect();
            while !written.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            node.kill();
            stop.store(true, Ordering::Relaxed);
            writers.into_iter().flat_map(|w| w.join().unwrap()).collect()
        });
        for (name, done) in outcomes {
            match done {
                Ok(()) => acknowledged.push(name),
                Err(Errno::TIMEDOUT) => unknown.push(name),
                Err(other) => assert_eq!(other, Errno::HOSTDOWN, "{name}"),
            }
        }
        node.start();
        remote.wait_up();
    }
    let list = remote.read("vms/list").unwrap();
    let named: Vec<&str> = list.lines().filter_map(|l| l.split_whitespace().nth(1)).collect();
    for name in &acknowledged {
        assert_eq!(named.iter().filter(|n| *n == name).count(), 1, "{name} was acknowledged");
    }
    // Names are unique: a write that was sent twice would have been refused the second time, which is EEXIST above.
    let known = named.len() - 1;
    assert!(known <= acknowledged.len() + unknown.len(), "{known} there, {} acknowledged", acknowledged.len());
}

#[test]
fn a_server_that_is_stopped_hangs_nobody() {
    let node = simulated();
    let remote = Remote::of(&node);
    remote.new_vm("image=tiny").unwrap();
    let mut ctl = std::fs::File::options().write(true).open(remote.join("vms/1/ctl")).unwrap();
    let frozen = node.freeze();
    let (read, write) = std::thread::scope(|scope| {
        let write = scope.spawn(|| errno(ctl.write(b"set cpus=2\n")));
        (errno(remote.read("vms/1/status")), write.join().unwrap())
    });
    drop(frozen);
    assert_eq!((read, write), (Errno::HOSTDOWN, Errno::TIMEDOUT));
    remote.wait_up();
    // Its outcome was unknown; the server has taken it since or never will.
    assert!(["1", "2"].contains(&node.value("vms/1/status", "cpus").unwrap().as_str()));
    remote.write("vms/1/ctl", "set cpus=3\n").unwrap();
    assert_eq!(node.value("vms/1/status", "cpus").as_deref(), Some("3"));
}

#[test]
fn it_ends_clean_and_a_dead_mount_is_taken_over() {
    let node = simulated();
    let mut remote = Remote::of(&node);
    let mut inside = Command::new("sleep").arg("1000").current_dir(remote.join("vms")).spawn().unwrap();
    let reader = blocked_cat_of(&remote.join("events"));
    assert!(remote.end(Signal::INT).success());
    assert_eq!(std::fs::read_dir(remote.path()).unwrap().count(), 0, "the folder beneath is bare");
    drop(reader.wait_with_output().unwrap());
    inside.kill().unwrap();
    inside.wait().unwrap();
    remote.start(&node.dial());
    assert!(!remote.end(Signal::KILL).success());
    assert_eq!(errno(std::fs::read_dir(remote.path())), Errno::NOTCONN);
    remote.start(&node.dial());
    assert!(remote.read("status").unwrap().contains("nodes 1 up"));
    assert!(remote.end(Signal::TERM).success());
}

#[test]
fn it_says_what_cannot_be_used() {
    let node = simulated();
    let folder = tempfile::tempdir().unwrap();
    let said = |arguments: &[&str]| {
        let output = command(arguments).output().unwrap();
        assert!(!output.status.success() && output.stdout.is_empty(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let (dial, free) = (node.dial(), folder.path().join("m"));
    let free = free.to_str().unwrap();
    std::fs::write(folder.path().join("file"), "").unwrap();
    let text = said(&["mount", &dial, folder.path().to_str().unwrap()]);
    assert!(text.contains("is not empty"), "{text}");
    let text = said(&["mount", &dial, folder.path().join("file").to_str().unwrap()]);
    assert!(text.contains("not a directory"), "{text}");
    let text = said(&["mount", &dial, node.mount().to_str().unwrap()]);
    assert!(text.contains("is busy"), "{text}");
    let text = said(&["mount", "unix!/nowhere/sock", free]);
    assert!(text.contains("no server answers at unix!/nowhere/sock"), "{text}");
    let text = said(&["mount", "/nowhere", free]);
    assert!(text.contains("a dial string is as"), "{text}");
    assert!(!Path::new(free).exists(), "nothing was made for what can't be mounted");
}

/// Over TLS the certificate says who it is, on every machine; when it is revoked the mount is nobody's.
#[test]
fn it_is_who_its_certificate_says() {
    let secure = Secure::start();
    secure.node.write("users/new", "name=vic role=viewer\n").unwrap();
    let (root, vic) = (secure.issue("root"), secure.issue("vic"));
    let (remote, viewer) = (Remote::with(&secure.tls(), Some(root)), Remote::with(&secure.tls(), Some(vic)));
    assert!(remote.read("me").unwrap().contains("user root\n"));
    assert!(viewer.read("me").unwrap().contains("user vic\n"));
    remote.write("vms/new", "name=web image=tiny\n").unwrap();
    assert!(viewer.read("vms/web/status").unwrap().contains("name web"));
    assert_eq!(errno(viewer.write("vms/1/ctl", "start\n")), Errno::ACCESS);
    assert_eq!(errno(viewer.write("vms/new", "image=tiny\n")), Errno::ACCESS);
    assert!(viewer.runs("stat -c %a vms/1/ctl").contains("444"));
    remote.write("vms/1/ctl", "start\n").unwrap();
    assert_eq!(viewer.read("vms/1/wait").unwrap(), "running\n");
    let blocked = blocked_cat_of(&viewer.join("events"));
    std::fs::remove_dir(remote.join("users/vic")).unwrap();
    assert!(!blocked.wait_with_output().unwrap().status.success());
    until("the session ends", || viewer.read("me").is_err());
    assert_eq!(errno(viewer.read("me")), Errno::HOSTDOWN, "{}", viewer.trace_text());
    assert!(remote.read("status").is_ok());
}

/// Without a dial string it is the server of `--at`, or of BLIXARD; and nobody but who has mounted it gets in.
#[test]
fn it_is_for_its_user_alone() {
    let node = simulated();
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mount = folder.path().join("m");
    let mut child = command(&["mount", mount.to_str().unwrap()]).env("BLIXARD", node.dial()).spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let mine = std::fs::read_to_string(mount.join("status"));
    let theirs = Command::new("setpriv")
        .args(["--reuid=54321", "--regid=54321", "--clear-groups", "cat"])
        .arg(mount.join("status"))
        .output()
        .unwrap();
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    assert!(mine.unwrap().contains("nodes 1 up"));
    let text = String::from_utf8(theirs.stderr).unwrap();
    assert!(text.contains("Permission denied"), "{text}");
}
